"Chains: real pages of an exchange, properties of clean, forwards and priced, and what bad input does"
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.data.black import price
from tradenb.data.chains import FLAGS, clean, contracts, days_to_expiry, forwards, parse, priced, settles, years
from tradenb.data.contracts import expiry_session, terms
from tradenb.data.quote_pages import pages, snapshots
from tradenb.data.quotes import CHAIN

FILE = "option_chains_spx_spy_xsp_4_snapshots.parquet"
JUNE, SEPTEMBER = pd.Timestamp("2022-06-10"), pd.Timestamp("2023-09-14")
KEY = ["session", "underlying", "root", "expiry", "strike", "right"]


def made(root="SPXW", session="2024-01-16", expiries=("2024-01-19", "2024-02-16", "2024-12-20"), spot=4000., rate=.03, carry=.02,
         iv=.2, spread=.4, n=21):
    "SIMULATED: a session of Black-76 prices, the same volatility everywhere"
    grid = [(e, k, r) for e in expiries for k in spot * np.linspace(.9, 1.1, n).round(4) for r in "CP"]
    out = pd.DataFrame(grid, columns=["expiry", "strike", "right"]).astype({"expiry": "datetime64[us]", "right": "str"})
    out = out.assign(session=pd.Timestamp(session), underlying="SPX", root=root).astype({"session": "datetime64[us]"})
    t = years(out)
    mid = price(spot * np.exp(carry * t), out["strike"], t, np.exp(-rate * t), iv, out["right"])
    half = np.minimum(spread / 2, mid / 2)
    return out.assign(bid=mid - half, ask=mid + half, open_interest=7.)


@pytest.fixture(scope="module")
def real(real_data):
    "Four pages: SPX of June 2022; SPX, SPY and XSP of September 2023"
    return snapshots(real_data/FILE)


@pytest.fixture(scope="module")
def real_priced(real):
    return priced(real)


# --- real pages

def test_a_page_of_a_saturday_is_fridays(real):
    assert sorted(real["session"].unique()) == [JUNE, SEPTEMBER]
    assert len(real) == 57764 and real.groupby("underlying").size().to_dict() == {"SPX": 39590, "SPY": 7292, "XSP": 10882}
    assert set(real["quoted_at"].dt.tz_convert("America/New_York").dt.strftime("%a %H:%M")) == {"Fri 16:15", "Thu 16:15"}
    assert (real["iv"].dropna() > 0).all()


def test_nothing_is_lost(real, real_priced):
    assert len(real_priced) == len(real)
    assert set(contracts(real_priced)) == set(contracts(real))
    assert set(real_priced["flag"]) <= {"", *FLAGS}
    told = real_priced[["flag", "iv"]]
    assert told.loc[told["flag"] != "", "iv"].notna().mean() < .2   # only where the other side of the strike is good
    assert (real_priced["flag"] == "expired").sum() == 450 + 296 + 250 + 280   # the options of that very day


def test_forwards_of_the_index_make_sense(real):
    f = forwards(real).reset_index()
    f = f[f["root"].isin(["SPX", "SPXW"]) & (f["flag"] != "expired")]
    last = f["session"].map({JUNE: 3900.86, SEPTEMBER: 4505.10})
    assert (f["flag"] == "").all()
    assert (f["error"] < .5).mean() > .9 and f["error"].median() < .1
    far = f["years"] > .25
    dividend = f["rate"] - np.log(f["forward"] / last) / f["years"]
    assert dividend[far].between(.004, .016).all()                      # the index paid 1.5% in both years; 1.0 to 1.4% after a year
    assert dividend[f["years"] > .9].between(.0115, .0145).sum() > .9 * (f["years"] > .9).sum()
    soon = f[f["years"] < 5 / 365]
    now = soon.groupby("session")["forward"].mean()
    assert 1.0012 < now[SEPTEMBER] / 4505.10 < 1.0019 and 1.0018 < now[JUNE] / 3900.86 < 1.0026   # moved from 16:00 to 16:15
    year = f[f["years"].between(.9, 1.1)].groupby("session")["rate"].mean()
    assert abs(year[JUNE] - .030) < .002 and abs(year[SEPTEMBER] - .0562) < .002


def test_morning_and_afternoon_agree(real):
    f = forwards(real).reset_index()
    two = f[f["root"].isin(["SPX", "SPXW"])].pivot(index=["session", "expiry"], columns="root", values=["forward", "years", "rate"]).dropna()
    assert len(two) >= 11
    hours = (two["years", "SPXW"] - two["years", "SPX"]) * 365 * 24
    assert hours.round(6).eq(6.5).all()                                  # 9:30 and 16:00
    apart = two["forward", "SPXW"] - two["forward", "SPX"]
    assert apart.abs().max() < .5 and apart.abs().median() < .1          # USD, of 4000
    small = f[f["root"] == "XSP"].merge(f[(f["root"] == "SPXW") & (f["session"] == SEPTEMBER)], on="expiry")
    good = (small["flag_x"] == "") & (small["flag_y"] == "")
    assert (10 * small["forward_x"] / small["forward_y"] - 1)[good].abs().max() < 1e-4 and good.sum() > 30   # a tenth of the index


def differences(p):
    "Our volatility less the exchange's, in points, with the side, and the size in dollars"
    both = p[(p["iv_vendor"] > 0) & p["iv"].notna()]
    out = both["right"].eq("C") == (both["strike"] >= both["forward"])
    points = 100 * (both["iv"] - both["iv_vendor"])
    return both.assign(out=out, points=points, dollars=points * both["vega"], far=(both["k"] / np.sqrt(both["w"])).abs())


def test_volatilities_agree_with_the_exchanges_own(real_priced):
    d = differences(real_priced)
    d = d[d["root"].isin(["SPX", "SPXW"])]
    near = d[d["out"] & (d["far"] < 1)].groupby("session")["points"]
    med, most = near.apply(lambda x: x.abs().median()), near.apply(lambda x: x.abs().quantile(.99))
    assert med[SEPTEMBER] < .015 and most[SEPTEMBER] < .08              # volatility points
    assert med[JUNE] < .09 and most[JUNE] < .32
    out = d[d["out"]]["points"].abs()
    assert out.quantile(.9) < .22 and out.quantile(.99) < 1.5
    assert len(d) > 33_000                                               # of 36,000 that the exchange computed


def test_where_they_differ_most_it_is_in_the_money_and_less_than_the_spread(real_priced):
    d = differences(real_priced)
    d = d[d["root"].isin(["SPX", "SPXW"])]
    tail = d[d["points"].abs() > 2]
    assert (~tail["out"]).mean() > .95                                   # they invert the side that has no time value
    assert (tail["dollars"].abs() < .5 * (tail["ask"] - tail["bid"])).mean() > .9


def test_greeks_agree_with_the_exchanges_own(real, real_priced):
    both = real_priced.merge(real[[*KEY, "delta", "gamma"]], on=KEY, suffixes=("", "_vendor"))
    both = both[both["iv"].notna() & (both["iv_vendor"] > 0) & both["root"].isin(["SPXW", "XSP"])]
    out = both["right"].eq("C") == (both["strike"] >= both["forward"])
    off = (both["delta"] - both["delta_vendor"])[out].abs()
    assert off.median() < .002 and off.quantile(.99) < .013
    spx = both[(both["root"] == "SPXW") & (both["k"] ** 2 < both["w"])]
    gamma = (spx["gamma"] - spx["gamma_vendor"]).abs()
    assert gamma.median() < 3e-5 and gamma.quantile(.9) < 6e-5           # theirs is printed with four digits


def test_american_options_are_told(real_priced):
    by = real_priced.groupby("root")["american"].mean()
    assert (by[["SPX", "SPXW", "XSP"]] == 0).all() and by["SPY"] > .1
    marked = real_priced[real_priced["american"]]
    assert ((marked["right"] == "P") == (marked["strike"] > marked["spot"] * .9)).mean() > .8   # no dividend here: puts, in the money


def test_the_audit_and_the_flags_speak_of_the_same_rows(real_priced):
    crossed, none = (CHAIN[check][0](real_priced) for check in ("crossed quote", "no quote"))
    assert none.any() and real_priced.loc[none, "flag"].isin(["no_quote", "expired"]).all()
    assert real_priced.loc[crossed, "flag"].isin(["crossed", "expired"]).all()
    assert not (real_priced.loc[~crossed, "flag"] == "crossed").any()


# --- properties

@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.floats(.05, .8), st.floats(.0, .08), st.floats(-.02, .06))
def test_permutation_changes_nothing_and_answers_are_right(seed, iv, rate, carry):
    chain = made(iv=iv, rate=rate, carry=carry)
    rng = np.random.default_rng(seed)
    p = priced(chain.iloc[rng.permutation(len(chain))])
    pd.testing.assert_frame_equal(p, priced(chain))
    assert len(p) == len(chain) and not p.duplicated(KEY).any()
    pd.testing.assert_frame_equal(p[KEY], chain.sort_values(KEY, ignore_index=True)[KEY], check_dtype=False)
    f = forwards(chain)
    np.testing.assert_allclose(f["forward"], 4000 * np.exp(carry * f["years"]), rtol=2e-6)
    fine = p[(p["flag"] == "") & p["iv"].notna() & (p["mid"] > 1)]
    assert (fine["iv"] - iv).abs().max() < 2e-3 and ((fine["iv_bid"] <= fine["iv"]) & (fine["iv"] <= fine["iv_ask"])).all()


@settings(max_examples=15, deadline=None)
@given(st.floats(-200, 200))
def test_a_shifted_forward_is_found(shift):
    base, moved = made(), made(spot=4000.)
    call = moved["right"] == "C"
    t = years(moved)
    add = np.where(call, 1, 0) * shift * np.exp(-.03 * t)                # C - P = D (F - K), so F moves by the shift
    moved["bid"], moved["ask"] = moved["bid"] + add + 250, moved["ask"] + add + 250
    base["bid"], base["ask"] = base["bid"] + 250, base["ask"] + 250
    np.testing.assert_allclose(forwards(moved)["forward"] - forwards(base)["forward"], shift, atol=.02)


def test_a_session_does_not_know_the_others():
    one, other = made(), made(session="2024-01-17", spot=4100., iv=.4)
    both = priced(pd.concat([other, one]))
    pd.testing.assert_frame_equal(both[both["session"] == one["session"].iloc[0]], priced(one))


def test_scale_does_not_matter():
    one = priced(made())
    ten = made()
    ten[["strike", "bid", "ask"]] /= 10
    ten = priced(ten)
    np.testing.assert_allclose(ten["iv"], one["iv"], rtol=2e-4)
    np.testing.assert_allclose(ten["delta"], one["delta"], atol=2e-4)


def test_priced_twice_is_priced_once():
    once = priced(made().assign(iv=.5))
    assert (once["iv_vendor"] == .5).all()
    pd.testing.assert_frame_equal(priced(once)[once.columns], once)


def test_every_number_has_its_flag():
    chain = made()
    chain.loc[::7, "bid"] = 0.
    p = priced(chain)
    out = p["right"].eq("C") == (p["strike"] >= p["forward"])
    assert (p.loc[out, "iv"].notna() == (p.loc[out, "flag"] == "")).all()
    assert p[["delta", "gamma", "vega", "theta"]].notna().all().all()     # the nearest strike's volatility where there is none


# --- contracts

@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["SPX", "SPXW", "XSP", "AAPL", "BRKB", "GOOG1"]), st.dates(date(2005, 1, 1), date(2038, 12, 31)),
       st.sampled_from("CP"), st.integers(1, 10**8 - 1))
def test_names_say_what_they_name(root, day, right, thousandths):
    chain = pd.DataFrame({"root": [root], "expiry": [pd.Timestamp(day)], "right": [right], "strike": [thousandths / 1000]})
    name = contracts(chain).iloc[0]
    of = parse(name)
    assert (of.root, of.expiry, of.right, of.strike) == (root, pd.Timestamp(day), right, thousandths / 1000)
    assert terms([name]).loc[name, "settles"] == settles(root, day)


@pytest.mark.parametrize("root, expiry, when", [
    ("SPX", "2014-04-19", "2014-04-17 09:30"),    # Saturday after Good Friday
    ("AAPL", "2014-04-19", "2014-04-17 16:00"),
    ("SPX", "2014-06-21", "2014-06-20 09:30"),    # Saturday
    ("SPX", "2019-04-19", "2019-04-18 09:30"),    # named after the holiday itself
    ("SPXW", "2023-11-24", "2023-11-24 13:00"),   # half day
    ("SPX", "2024-01-19", "2024-01-19 09:30"),
    ("VIX", "2024-01-17", "2024-01-17 09:30"),
    ("SPY", "2024-07-03", "2024-07-03 13:00"),
])
def test_settlement(root, expiry, when):
    assert settles(root, expiry) == pd.Timestamp(when, tz="America/New_York")
    assert expiry_session(expiry) == pd.Timestamp(when).normalize()


def test_zero_days_to_expiry():
    day = made(expiries=["2024-01-16"])
    noon = "2024-01-16T12:00-05:00"
    assert (days_to_expiry(day) == 0).all() and (years(day) == 0).all()
    assert (clean(day)["flag"] == "expired").all() and clean(day, noon)["years"].iloc[0] == pytest.approx(4 / 24 / 365)


# --- bad input

BAD = {
    "a contract twice":   (lambda c: pd.concat([c, c.head(1)]), "1 contracts twice in a session, first SPXW240119C"),
    "no rows":            (lambda c: c.head(0), "has no rows"),
    "text for a price":   (lambda c: c.assign(bid="n/a?"), "bid in row 1 is 'n/a?'"),
    "no expiry":          (lambda c: c.assign(expiry=pd.NaT), "expiry in row 1"),
    "no right":           (lambda c: c.assign(right="X"), "a call (C) or a put (P)"),
    "no bids at all":     (lambda c: c.drop(columns="bid"), "has no bid"),
    "an endless price":   (lambda c: c.assign(ask=np.inf), "ask in row 1 is inf"),
    "a strike of zero":   (lambda c: c.assign(strike=0.), "a contract has a strike"),
    "a Sunday":           (lambda c: c.assign(session=pd.Timestamp("2024-01-14")), "is no XNYS session"),
    "no zone":            (lambda c: c.assign(quoted_at=pd.Timestamp("2024-01-16 16:00")), "quoted_at has no zone"),
}


@pytest.mark.parametrize("f", [clean, forwards, priced])
@pytest.mark.parametrize("why", BAD)
def test_what_is_no_chain_is_refused(f, why):
    spoil, said = BAD[why]
    with pytest.raises((ValueError, TypeError)) as e: f(spoil(made()))
    assert said in str(e.value)


def one_bad(flag, **values):
    chain = made(expiries=["2024-02-16"])
    row = chain.index[(chain["strike"] == 4080) & (chain["right"] == "C")][0]
    for c, v in values.items(): chain.loc[row, c] = v
    p = priced(chain)
    at = (p["strike"] == 4080) & (p["right"] == "C")
    assert p.loc[at, "flag"].tolist() == [flag]
    return p, at


@pytest.mark.parametrize("flag, values", [
    ("crossed", dict(bid=60., ask=50.)), ("no_quote", dict(bid=np.nan, ask=np.nan)), ("no_quote", dict(bid=-1., ask=50.)),
    ("no_quote", dict(bid=1., ask=0.)), ("zero_bid", dict(bid=0., ask=70.)), ("zero_bid", dict(bid=np.nan, ask=70.)),
    ("wide", dict(bid=20., ask=120.)), ("arbitrage", dict(bid=300., ask=301.)), ("arbitrage", dict(bid=1., ask=1.5)),
])
def test_one_bad_quote_has_its_flag_and_spoils_no_other(flag, values):
    p, at = one_bad(flag, **values)
    assert p.loc[p["strike"] == 4080, "iv"].isna().all()                 # of call and put: the side out of the money is the bad one
    others = p["strike"] != 4080
    assert (p.loc[others, "iv"] - .2).abs().max() < 2e-3 and (p.loc[others, "flag"] == "").all()


def test_old_quotes_are_told_by_parity():
    chain = made(expiries=["2024-02-16"])
    call = chain["right"] == "C"
    low = call & (chain["strike"] < 3750)
    chain.loc[low, ["bid", "ask"]] -= 12.                                # a few calls from a lower index
    p = priced(chain)
    assert (p.loc[(p["strike"] < 3750), "flag"].isin(["stale", "below_intrinsic", "arbitrage"])).mean() >= .5
    assert (p.loc[(p["strike"] > 3760), "flag"] == "").all()


def test_a_single_strike_and_a_single_side():
    chain = made(expiries=["2024-02-16"])
    one = priced(chain[chain["strike"] == 4000])
    assert len(one) == 2 and (one["iv"] - .2).abs().max() < 1e-2
    calls = priced(chain[chain["right"] == "C"])
    assert (calls["flag"] == "no_forward").all() and calls["iv"].isna().all() and calls["delta"].isna().all()


def test_text_and_categories_are_read():
    chain = made()
    said = chain.assign(right=chain["right"].map({"C": "call", "P": "put"}), bid=chain["bid"].astype(str), root=chain["root"].astype("category"),
                        expiry=chain["expiry"].dt.strftime("%Y-%m-%d"), note="kept")
    p = priced(said)
    assert (p["note"] == "kept").all()
    pd.testing.assert_frame_equal(p.drop(columns="note")[priced(chain).columns], priced(chain), check_exact=False)


def test_pages_without_a_stamp_or_zone_are_refused(real_data):
    page = pd.read_parquet(real_data/FILE).head(3)
    for spoil, said in ((page.drop(columns="quote_stamp_text"), "no quote_stamp_text"),
                        (page.assign(quote_stamp_text="June 11, 2022"), "does not end in a zone")):
        with pytest.raises(ValueError, match=said): pages(spoil)
