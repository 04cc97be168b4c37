"Dealer gamma, hedging flows, model-free variance and option history: against other people's formulas, and against the real VIX"
from functools import partial

import numpy as np
import pandas as pd
import pytest
import QuantLib as ql
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from tradenb.core.panel import long
from tradenb.data.black import price
from tradenb.data.chains import priced
from tradenb.data.contracts import years as years_to
from tradenb.data.simulated_chains import sample_chain, sample_history
from tradenb.features import gex, hedging, variance
from tradenb.features.dealers import ASSUMED, CONVENTIONS, book, zero_dte
from tradenb.features.option_history import at_the_money, implied_history, rank

same = partial(pd.testing.assert_frame_equal, rtol=1e-9, atol=1e-12)
exact = pd.testing.assert_frame_equal


def chain_of(seed: int = 0, n: int = 40, session: str = "2024-01-22", spot: float = 100., rate: float = 0.04, dividend: float = 0.01) -> pd.DataFrame:
    "A priced chain of random options: strikes, two expiries, volatilities, open interest"
    rng = np.random.default_rng(seed)
    c = pd.DataFrame(dict(session=pd.Timestamp(session).as_unit("us"), underlying="SPY", root="SPY",
                          expiry=pd.to_datetime(rng.choice(["2024-02-16", "2024-03-15"], n)),
                          strike=np.round(spot * rng.uniform(0.8, 1.2, n), 1), right=rng.choice(["C", "P"], n),
                          open_interest=rng.integers(0, 500, n).astype(float), iv=rng.uniform(0.1, 0.6, n), spot=spot))
    c = c.drop_duplicates(["expiry", "strike", "right"], ignore_index=True)
    c["years"] = years_to(c)
    return c.assign(forward=spot * np.exp((rate - dividend) * c["years"]), discount=np.exp(-rate * c["years"]))


def theirs(c: pd.DataFrame, spot: float, what: str, later: float = 0., points: float = 0.) -> np.ndarray:
    "A Greek of every option at another spot, time and volatility, by QuantLib"
    out = []
    for r in c.itertuples():
        left, growth = r.years - later, np.log(r.forward / r.spot) / r.years
        payoff = ql.PlainVanillaPayoff(ql.Option.Call if r.right == "C" else ql.Option.Put, r.strike)
        made = ql.BlackCalculator(payoff, spot * np.exp(growth * left), (r.iv + points / 100) * left**0.5, r.discount ** (left / r.years))
        out.append(getattr(made, what)(spot))
    return np.array(out)


def held(c: pd.DataFrame, calls: float = 1., puts: float = -1.) -> np.ndarray:
    return 100 * c["open_interest"].to_numpy() * np.where(c["right"] == "C", calls, puts)


@pytest.mark.parametrize("seed", range(4))
def test_exposures_are_the_sum_of_their_contracts(seed):
    c = chain_of(seed)
    by_hand = held(c) * theirs(c, 100., "gamma") * 100.**2 * 0.01
    s = gex.summary(c)
    assert s["total"] == pytest.approx(by_hand.sum(), rel=1e-9) and s["gross"] == pytest.approx(np.abs(by_hand).sum(), rel=1e-9)
    assert s["calls"] == pytest.approx(by_hand[c["right"] == "C"].sum(), rel=1e-9) and s["calls"] > 0 > s["puts"]
    for by in ("strike", "expiry", "both"):
        table = gex.exposure(c, by)
        assert table["net"].sum() == pytest.approx(s["total"], rel=1e-9) and (table["convention"] == ASSUMED).all()
    table = gex.exposure(c)
    want = pd.Series(by_hand).groupby(c["strike"]).sum()[lambda x: x != 0]
    np.testing.assert_allclose(table["net"].loc[want.index], want, rtol=1e-9)
    assert (s["call_wall"], s["put_wall"]) == (table["calls"].idxmax(), table["puts"].idxmin())
    assert s["convention"] == ASSUMED == table.attrs["convention"]


def test_conventions_turn_signs_and_nothing_else():
    c = chain_of(1)
    found = gex.sensitivity(c)
    greek = theirs(c, 100., "gamma") * 100.
    for name, (calls, puts, outside) in CONVENTIONS.items():
        counts = ((c["strike"] > c["forward"]) == (c["right"] == "C")) if outside else True
        assert found.loc[name, "total"] == pytest.approx((held(c, calls, puts) * greek * counts).sum(), rel=1e-9)
    assert found.loc["long calls, long puts", "total"] == -found.loc["short calls, short puts", "total"]
    assert found.loc["short calls, long puts", "flip"] == pytest.approx(found.loc[ASSUMED, "flip"], rel=1e-9)
    assert "long gamma at every spot from 74" in found.loc["long calls, long puts", "why"]


@pytest.mark.parametrize("seed", range(4))
def test_flips_are_those_of_a_dense_revaluation(seed):
    c = chain_of(seed, 20)
    def total(spot): return (held(c) * theirs(c, spot, "gamma")).sum() * spot**2 * 0.01
    spots = 100 * np.exp(np.linspace(-0.3, 0.3, 121))
    there = np.array([total(s) for s in spots])
    np.testing.assert_allclose(gex.gamma_curve(c, points=121), there, rtol=1e-8, atol=1e-9 * np.abs(there).max())
    turns = np.flatnonzero(np.diff(np.sign(there)))
    roots = [brentq(total, spots[i], spots[i + 1], xtol=1e-10) for i in turns]
    np.testing.assert_allclose(gex.flips(c), roots, atol=1e-6)
    s = gex.summary(c)
    if roots: assert s["flip"] == pytest.approx(min(roots, key=lambda r: abs(np.log(r / 100))), abs=1e-6) and s["why"] == ""
    else: assert np.isnan(s["flip"]) and "at every spot" in s["why"]


@pytest.mark.parametrize("seed", range(3))
def test_flows_are_differences_of_the_dealers_delta(seed):
    c = chain_of(seed)
    def delta(*where): return (held(c) * theirs(c, where[0], "delta", *where[1:])).sum()
    moves = (-0.05, -0.01, 0.01, 0.03)
    found = hedging.hedging_flow(c, moves)
    for move in moves:
        spot = 100 * (1 + move)
        assert found.loc[move, "flow"] == pytest.approx((delta(100.) - delta(spot)) * spot, rel=1e-8)
        assert found.loc[move, "gamma_only"] == pytest.approx(-gex.summary(c)["total"] * move * 100, rel=1e-8)
    later = hedging.charm_flow(c)
    assert later["days"].round(9).tolist() == [0, 1] and later.loc["close", "flow"] == 0
    assert later.loc["next_close", "flow"] == pytest.approx((delta(100.) - delta(100., 1 / 365)) * 100, rel=1e-8)
    points = hedging.vanna_flow(c, (-2, 1))
    for n in (-2, 1): assert points.loc[n, "flow"] == pytest.approx((delta(100.) - delta(100., 0., n)) * 100, rel=1e-8)
    tiny = hedging.hedging_flow(c, (1e-6,)).iloc[0]
    assert tiny["flow"] == pytest.approx(tiny["gamma_only"], rel=1e-4)
    small = hedging.vanna_flow(c, (1e-4,)).iloc[0]
    assert small["flow"] == pytest.approx(small["vanna_only"], rel=1e-3)


def test_charm_alone_is_the_flow_of_a_short_time():
    c = chain_of(3).assign(quoted_at=pd.Timestamp("2024-01-22 15:59", tz="America/New_York"))
    c["years"] = years_to(c)
    soon = hedging.charm_flow(c).loc["close"]
    assert soon["days"] == pytest.approx(1 / 1440) and soon["flow"] == pytest.approx(soon["charm_only"], rel=1e-3)


def test_why_the_dealers_delta_changed_adds_up():
    before = chain_of(0).iloc[:30]
    after = chain_of(0).iloc[5:].assign(session=pd.Timestamp("2024-01-23").as_unit("us"), spot=103.)
    after = after.assign(years=years_to(after), forward=after["forward"] * 1.03, iv=after["iv"] + 0.01)
    after["open_interest"] += np.arange(len(after))
    why = hedging.delta_change(before, after)
    one, two = (held(c) * theirs(c, s, "delta") for c, s in ((before, 100.), (after, 103.)))
    assert why["total"] == pytest.approx((two.sum() - one.sum()) * 103, rel=1e-8)
    assert why.drop("total").sum() == pytest.approx(why["total"], rel=1e-9)
    assert why["spot"] == pytest.approx((held(before) * (theirs(before, 103., "delta") - theirs(before, 100., "delta"))).sum() * 103, rel=1e-8)
    gone = before.iloc[:5]
    assert why["ended"] == pytest.approx(-(held(gone) * theirs(gone, 103., "delta")).sum() * 103, rel=1e-8)


def two_days() -> pd.DataFrame: return pd.concat([chain_of(0), chain_of(1, session="2024-01-23", spot=101.)], ignore_index=True)


def test_features_of_many_sessions_are_those_of_each():
    c = pd.concat([two_days(), two_days().assign(underlying="IWM")])
    f, g = gex.dealer(c), hedging.flows(c)
    for key, one in c.groupby(["session", "underlying"]):
        s, a = gex.summary(one), f.loc[key]
        assert a["gex_net"] == pytest.approx(s["total"] / s["gross"]) and a["gex_size"] == pytest.approx(s["total"] / s["notional"])
        np.testing.assert_allclose(a["flip_distance"], np.log(s["spot"] / s["flip"]), rtol=1e-6)
        assert a["call_wall_distance"] == pytest.approx(np.log(s["call_wall"] / s["spot"]))
        assert g.loc[key, "flow_down_2"] * s["notional"] == pytest.approx(hedging.hedging_flow(one).loc[-0.02, "flow"], rel=1e-9)
        assert g.loc[key, "charm_flow"] * s["notional"] == pytest.approx(hedging.charm_flow(one).loc["next_close", "flow"], rel=1e-9)
    exact(g.loc[(slice(None), ["IWM"]), :].droplevel(1), g.loc[(slice(None), ["SPY"]), :].droplevel(1))
    first, second = g["dealer_delta"].loc[:, "SPY"]
    assert g["delta_change"].loc[:, "SPY"].iloc[1] == pytest.approx(second - first) and g["delta_change"].loc[:, "SPY"].iloc[:1].isna().all()


def test_contracts_and_spot_scale_out():
    c = chain_of(2)
    large = c.assign(**{k: 10 * c[k] for k in ("spot", "forward", "strike")}, open_interest=7 * c["open_interest"])
    same(gex.dealer(large), gex.dealer(c))
    same(hedging.flows(large), hedging.flows(c))


FAMILIES = {"dealer": gex.dealer, "flows": hedging.flows, "model_free": variance.model_free, "smile": lambda c: variance.smile_vol(c).to_frame(),
            "history": lambda c: implied_history(c, panel_of(), window=8, past=(5,)),
            "atm": lambda c: implied_history(c, panel_of(), "atm", window=8, past=(5,))}


def history() -> pd.DataFrame: return HISTORY[0] if HISTORY else HISTORY.append(priced(sample_history(14))) or HISTORY[0]


HISTORY: list[pd.DataFrame] = []


def panel_of() -> pd.DataFrame: return long(close=history().groupby("session")["underlying_price"].first().to_frame("SPX"))


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_rows_and_the_future_do_not_matter(family):
    f, c = FAMILIES[family], history()
    whole = f(c)
    assert whole.index.names == ["session", "symbol"] and whole.index.is_monotonic_increasing
    mixed = c.sample(frac=1, random_state=0)
    exact(f(mixed), whole) if family in ("model_free", "history") else same(f(mixed), whole)
    rng = np.random.default_rng(0)
    for cut in (5, 11):
        today = whole.index[cut][0]
        past, later = c[c["session"] <= today], c[c["session"] > today]
        exact(f(past), whole.loc[:today])
        wild = {k: later[k] * rng.uniform(0.2, 5, len(later)) for k in ("bid", "ask", "open_interest", "volume", "iv", "w", "forward")}
        exact(f(pd.concat([past, later.assign(**wild).sample(frac=0.7, random_state=1)])).loc[:today], whole.loc[:today])


@pytest.mark.parametrize("why, bad", [("zero in every", dict(open_interest=0.)), ("missing in every", dict(open_interest=np.nan)),
                                      ("could be priced", dict(iv=np.nan)), ("could be priced", dict(years=-1.))])
def test_where_nothing_can_be_said_the_reason_is(why, bad):
    c = chain_of(0).assign(**bad)
    s = gex.summary(c)
    assert why in s["why"] and np.isnan(s["total"]) and np.isnan(s["flip"]) and s["flips"] == ()
    assert gex.dealer(c).drop(columns="covered").isna().all(axis=None) and hedging.flows(c).isna().all(axis=None)
    assert hedging.hedging_flow(c)["flow"].isna().all() and hedging.charm_flow(c)["flow"].isna().all() and hedging.vanna_flow(c)["flow"].isna().all()
    assert gex.exposure(c).empty and gex.gamma_curve(c).empty and len(gex.flips(c)) == 0


def test_some_missing_rows_are_left_out_and_said():
    c = chain_of(0)
    bad = np.arange(len(c)) % 3 == 0
    got, want = gex.summary(c.assign(iv=c["iv"].mask(bad))), gex.summary(c[~bad])
    assert got["total"] == pytest.approx(want["total"]) and got["flip"] == pytest.approx(want["flip"])
    assert got["covered"] == pytest.approx(1 - c["open_interest"][bad].sum() / c["open_interest"].sum()) and want["covered"] == 1
    some = two_days()
    f = gex.dealer(some.assign(open_interest=some["open_interest"].where(some["session"] == some["session"].iloc[0], 0)))
    assert f.iloc[0].notna().sum() >= 8 and f.iloc[1].drop("covered").isna().all()


@pytest.mark.parametrize("call", [gex.summary, gex.exposure, gex.flips, hedging.hedging_flow, hedging.charm_flow, variance.model_free_vol])
def test_bad_chains_are_refused_by_name(call):
    c = two_days().assign(bid=1., ask=2.)
    with pytest.raises(ValueError, match="2 values of session"): call(c)
    with pytest.raises(ValueError, match="empty"): call(c[:0])
    lacking = "bid" if call is variance.model_free_vol else "open_interest"
    with pytest.raises(ValueError, match=f"no {lacking}"): call(c[:30].drop(columns=lacking))


def test_expiring_options_have_a_last_delta_and_no_charm_after_it():
    c = chain_of(0).assign(session=pd.Timestamp("2024-02-15").as_unit("us"))
    c = c[c["expiry"] == "2024-02-16"].assign(years=lambda t: years_to(t))
    c["forward"], c["discount"] = c["spot"], 1.
    end = np.where(c["right"] == "C", c["strike"] < 100, -1. * (c["strike"] > 100))
    flow = hedging.charm_flow(c).loc["next_close", "flow"]
    assert flow == pytest.approx(100 * (held(c) * (theirs(c, 100., "delta") - end)).sum(), rel=1e-6)
    assert zero_dte(c).all() and gex.summary(c)["zero_dte_share"] == 1


# --- model-free variance ---

def plainly(strike, cb, ca, pb, pa, years, rate):
    "The exchange's steps in plain Python"
    both = [i for i in range(len(strike)) if cb[i] > 0 and pb[i] > 0]
    if not both: return None
    cm, pm = (cb + ca) / 2, (pb + pa) / 2
    at = min(both, key=lambda i: abs(cm[i] - pm[i]))
    forward = strike[at] + np.exp(rate * years) * (cm[at] - pm[at])
    told = (strike <= forward) & (cb >= 0) & (pb >= 0)
    if not told.any(): return None
    k0 = max(np.flatnonzero(told))
    used = {k0: (cm[k0] + pm[k0]) / 2}
    for bid, mid, walk in ((pb, pm, range(k0 - 1, -1, -1)), (cb, cm, range(k0 + 1, len(strike)))):
        empty = 0
        for i in walk:
            empty = 0 if bid[i] > 0 else empty + 1
            if empty == 2: break
            if bid[i] > 0: used[i] = mid[i]
    if len(used) < 3: return None
    at, total = sorted(used), 0.
    for n, i in enumerate(at):
        lo, hi = at[max(n - 1, 0)], at[min(n + 1, len(at) - 1)]
        total += (strike[hi] - strike[lo]) / (2 if 0 < n < len(at) - 1 else 1) / strike[i]**2 * np.exp(rate * years) * used[i]
    return 2 / years * total - (forward / strike[k0] - 1)**2 / years, forward, strike[k0], len(used)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(3, 30), none=st.floats(0, 0.6))
@settings(max_examples=150, deadline=None)
def test_a_term_is_what_the_exchange_says(seed, n, none):
    rng = np.random.default_rng(seed)
    strike = np.sort(rng.choice(np.arange(60., 140), n, replace=False))
    years, rate = rng.uniform(0.01, 1), rng.uniform(-0.02, 0.1)
    mids = [price(rng.uniform(90, 110), strike, years, 1., 0.3, right) + 0.05 for right in "CP"]
    quotes = []
    for mid in mids:
        bid = np.where(rng.random(n) < none, 0, mid * rng.uniform(0.5, 1, n))
        quotes += [np.where(rng.random(n) < 0.1, np.nan, bid) if none > 0.3 else bid, mid * 1.1]
    want, got = plainly(strike, *quotes, years, rate), variance.term_variance(strike, *quotes, years, rate)
    if want is None: assert np.isnan(got.variance)
    else: np.testing.assert_allclose(got, want, rtol=1e-12)


def strip(strikes, iv, years, forward=100.):
    quotes = [price(forward, strikes, years, 1., iv(np.log(strikes / forward)), right) for right in "CCPP"]
    return variance.term_variance(strikes, *quotes, years, 0.)


@pytest.mark.parametrize("iv, years, low, high", [(0.2, 0.1, 80., 125.), (0.4, 0.5, 50., 220.), (0.15, 0.02, 93., 106.)])
def test_a_world_of_black_and_scholes_has_its_own_volatility(iv, years, low, high):
    step = 0.01
    strikes = np.round(np.arange(low, high + step / 2, step), 10)
    def tail(k, right): return 2 / years * price(100., k, years, 1., iv, right) / k**2
    lost = quad(tail, 1e-3, low, args=("P",))[0] + quad(tail, high, 20 * high, args=("C",))[0] # what ends of the strip leave out
    kink = step**2 / (6 * years * 100**2)                                                      # what the step adds at the forward
    ends = step / 2 * (tail(low, "P") + tail(high, "C"))                                       # half a step more at both ends
    assert lost > 10 * kink
    assert strip(strikes, lambda k: iv, years).variance == pytest.approx(iv**2 - lost + kink + ends, rel=2e-6)


def test_a_smile_has_the_variance_of_its_integral():
    years = 0.1
    def smile(k): return np.sqrt((0.004 + 0.02 * (-0.4 * (k - 0.02) + np.sqrt((k - 0.02)**2 + 0.01))) / years) # an SVI slice
    def part(k): return 2 / years * price(100., 100 * np.exp(k), years, 1., smile(k), "P" if k < 0 else "C") / 100 * np.exp(-k)
    want = quad(part, -3, 0, limit=200)[0] + quad(part, 0, 3, limit=200)[0]
    assert strip(np.arange(10., 600, 0.02), smile, years).variance == pytest.approx(want, rel=1e-5)
    assert want > smile(0.)**2
    k = np.linspace(-1.5, 1.5, 1201)
    assert variance._whole(k, smile(k)**2 * years) / years == pytest.approx(want, rel=1e-5)


def quotes_of(ends: list[tuple[str, str]], session: str, underlying: str = "SPX", iv: float = 0.2) -> pd.DataFrame:
    "A clean chain with these (root, expiry) terms in a Black-Scholes world"
    terms = pd.DataFrame(ends, columns=["root", "expiry"]).astype({"expiry": "datetime64[us]"})
    c = terms.merge(pd.DataFrame({"strike": np.arange(50., 160, 1)}), how="cross").merge(pd.DataFrame({"right": ["C", "P"]}), how="cross")
    c = c.assign(session=pd.Timestamp(session).as_unit("us"), underlying=underlying)
    worth = price(100., c["strike"], years_to(c), 1., iv, c["right"])
    return c.assign(bid=worth, ask=worth)


def test_terms_are_fridays_mornings_and_the_last_day_of_a_short_week():
    days = pd.date_range("2024-03-05", "2024-04-20")
    every = [("SPXW", f"{d:%Y-%m-%d}") for d in days if d.day_of_week < 5 and d != pd.Timestamp("2024-03-29")]
    def chosen(session):
        t = variance.contributions(quotes_of([*every, ("SPX", "2024-03-15"), ("SPX", "2024-04-19")], session), rate=0.)
        return [f"{d:%m-%d}" for d in t.reset_index().groupby("which")["expiry"].first()]
    assert chosen("2024-02-28") == ["03-28", "04-05"] # 29 March is Good Friday: Thursday ends the week
    assert chosen("2024-03-04") == ["03-28", "04-05"]
    assert chosen("2024-03-18") == ["04-12", "04-19"]
    both = variance.model_free(quotes_of([*every, ("SPX", "2024-04-19")], "2024-03-18"), rate=0.).iloc[0]
    assert both["next_days"] == pytest.approx(32 - 6.5 / 24) # the monthly one, settled in the morning
    assert variance.model_free(quotes_of(every, "2024-03-18"), rate=0.).iloc[0]["next_days"] == 32


def test_minutes_are_those_of_the_clock_on_the_wall():
    c = quotes_of([("SPXW", "2024-03-22"), ("SPXW", "2024-03-28")], "2024-02-26") # summer time begins on 10 March
    found = variance.model_free(c, rate=0.).iloc[0]
    assert (found["near_days"], found["next_days"]) == (25, 31)
    at = variance.model_free(c, rate=0., at=pd.Timestamp("2024-02-26 16:15", tz="America/New_York")).iloc[0]
    assert at["near_days"] == pytest.approx(25 - 15 / 1440)


def test_rates_come_from_parity_and_hardly_matter():
    c = sample_chain()
    raw, known = variance.model_free_vol(c), variance.model_free_vol(priced(c))
    assert raw == pytest.approx(known, rel=1e-9)
    assert abs(variance.model_free_vol(c, rate=0.05) - variance.model_free_vol(c, rate=0.04)) < 0.02


def test_parts_add_up_to_the_index():
    c = sample_chain()
    parts, whole = variance.contributions(c), variance.model_free(c).iloc[0]
    total = parts.groupby("which")["part"].sum()
    assert 100 * total["near"]**0.5 == pytest.approx(whole["near"]) and 100 * total["next"]**0.5 == pytest.approx(whole["next"])
    assert (parts["side"] == "both").groupby("which").sum().eq(1).all() and (parts["quote"] > 0).all()


def snapshot(folder, name: str, day: str) -> pd.DataFrame:
    x = pd.read_parquet(folder / "option_chains_spx_spy_xsp_4_snapshots.parquet")
    x = x[x["snapshot"] == name].reset_index(drop=True)
    c = x[["root", "strike", "right", "bid", "ask", "volume"]].assign(open_interest=x["oi"].astype(float), underlying=name[:3])
    return c.assign(session=pd.Timestamp(day).as_unit("us"), expiry=pd.to_datetime(x["expiry"]).astype("datetime64[us]"))


@pytest.mark.real
@pytest.mark.parametrize("name, day, off", [("SPX_2022-06-11", "2022-06-10", 0.05), ("SPX_2023-09-14", "2023-09-14", 0.005),
                                            ("XSP_2023-09-14", "2023-09-14", 0.1), ("SPY_2023-09-14", "2023-09-14", 0.1)])
def test_the_real_vix(real_data, name, day, off):
    "SPX options are those that the index is made of; a tenth of an index and a fund on it come as near as their quotes allow"
    told = pd.read_parquet(real_data / "vix_daily_1990_2026.parquet")
    published = told.loc[pd.to_datetime(told["date"]) == day, "close"].item()
    c, bell = snapshot(real_data, name, day), pd.Timestamp(f"{day} 16:15", tz="America/New_York")
    assert abs(variance.model_free_vol(c, at=bell) - published) < off
    assert abs(variance.model_free_vol(priced(c)) - published) < off + 0.01 # with minutes counted from 16:00
    assert abs(variance.smile_vol(priced(c)).iloc[0] - published) < 0.3


@pytest.mark.real
def test_dealers_of_a_real_chain(real_data):
    c = priced(snapshot(real_data, "SPX_2023-09-14", "2023-09-14"))
    s, table = gex.summary(c), gex.exposure(c)
    assert s["covered"] > 0.85 and 4400 < s["flip"] < 4600 and 0.3 < s["zero_dte_share"] < 0.7
    assert s["call_wall"] == table["calls"].idxmax() == 4500 and table["net"].sum() == pytest.approx(s["total"])
    own = c["gamma"] * held(c) * c["spot"]**2 * 0.01
    assert own[(c["iv"] > 0) & (c["years"] > 0)].sum() == pytest.approx(s["total"], rel=1e-6)


# --- history ---

def test_rank_and_percentile_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.lognormal(size=(80, 2)), pd.date_range("2024-01-01", periods=80), ["A", "B"])
    x = x.mask(rng.random(x.shape) < 0.1)
    place, below = rank(x, 20)
    for t in range(len(x)):
        for name in x:
            w = x[name].iloc[max(0, t - 19):t + 1]
            if t < 19 or w.notna().sum() < 16 or np.isnan(w.iloc[-1]): assert np.isnan(place[name].iloc[t]) and np.isnan(below[name].iloc[t])
            else:
                assert place[name].iloc[t] == pytest.approx((w.iloc[-1] - w.min()) / (w.max() - w.min()))
                assert below[name].iloc[t] == pytest.approx((w.iloc[:-1].dropna() < w.iloc[-1]).mean())


def test_history_counts_sessions_of_the_exchange():
    c = history()
    days = c["session"].unique()
    holed = implied_history(c[c["session"] != days[6]], panel_of(), window=8, past=(5,))
    whole = implied_history(c, panel_of(), window=8, past=(5,))
    assert len(holed) == len(whole) - 1
    assert holed["implied_change_1"].loc[days[7]].isna().all() and holed["implied_change_5"].loc[days[11]].isna().all()
    exact(holed[["realised_past_5"]], whole.drop(index=days[6], level=0)[["realised_past_5"]])
    assert whole["realised_past_5"].isna().tolist() == [True] * 5 + [False] * 9 # five returns take six closes
    own = whole["implied"].droplevel(1)
    np.testing.assert_allclose(whole["implied_change_5"].droplevel(1).iloc[5:], np.log(own / own.shift(5)).iloc[5:], rtol=1e-12)
    np.testing.assert_allclose(whole["implied"], variance.model_free(c)["vol"] / 100, rtol=1e-12)


def test_open_interest_of_a_row_is_used_as_it_stands():
    "It is the count of the session before already: moved once more, it would be two sessions old; read from the next row, from the future"
    c = history()
    f = implied_history(c)
    sums = c.groupby(["session", "right"])["open_interest"].sum().unstack()
    np.testing.assert_allclose(f["put_call_open_interest"], np.log(sums["P"] / sums["C"]), rtol=1e-12)
    last = c["session"].max()
    other = implied_history(c.assign(open_interest=c["open_interest"].where(c["session"] < last, 1.)))
    exact(other.iloc[:-1], f.iloc[:-1])


def test_the_money_of_a_priced_history_is_near_the_vix():
    c = history()
    atm, vix = at_the_money(c), variance.model_free(c)["vol"] / 100
    assert atm.notna().all() and ((vix - atm) > 0).all() and (vix - atm).max() < 0.1
    assert len(book(c).rows) > 1000
