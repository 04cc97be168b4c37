"""The simulated chains over all of their sessions: what a lesson shows on a month is asked of five years here."""
import numpy as np
import pandas as pd
import pytest

from tradenb.data import market
from tradenb.data.simulated_chains import _demo, chains, sample_chain, sample_history, simulate_chains
from tradenb.data.smiles import atm_variance, bend_limit, ssvi
from tradenb.data.store import Store
from tradenb.data.strikes import LISTED, STEP

KEY = ["session", "underlying", "root", "expiry", "strike", "right"]

@pytest.fixture(scope="module")
def made(): return _demo(0, .01)

@pytest.fixture(scope="module")
def whole(): return chains()

def _sides(whole, *columns):
    "Calls and puts of each (session, expiry, strike), row by row, calls first"
    return [(whole[c].to_numpy()[::2], whole[c].to_numpy()[1::2]) for c in columns]

def _neighbours(whole):
    "Is the next strike of the same session and expiry?"
    t, e = whole["session"].to_numpy()[::2], whole["expiry"].to_numpy()[::2]
    return (t[1:] == t[:-1]) & (e[1:] == e[:-1])

def test_the_table_is_a_chain_of_every_session(whole):
    assert 600_000 < len(whole) < 900_000 and not whole.duplicated(KEY).any()
    assert whole["session"].nunique() == 1256 and whole["session"].agg(["min", "max"]).dt.strftime("%Y-%m-%d").tolist() \
        == ["2014-01-06", "2018-12-31"]
    assert (whole["right"].to_numpy().reshape(-1, 2) == ["C", "P"]).all() and (whole["strike"] % STEP == 0).all()
    assert set(whole["vendor"]) == {"market:simulated"}
    order = whole[["session", "expiry", "strike"]].iloc[::2]
    assert pd.MultiIndex.from_frame(order).is_monotonic_increasing

def test_quotes_lie_on_ticks_and_are_never_crossed(whole):
    live = whole[whole["expiry"] > whole["session"]]
    for bid, ask in (("bid", "ask"), ("bid_open", "ask_open")):
        of = live if bid == "bid" else whole
        assert (of[ask] > of[bid]).all() and (of[bid] >= 0).all() and (of[ask] >= .05).all()
        for c in (bid, ask):
            cents = np.round(of[c] * 100)
            assert np.abs(of[c] * 100 - cents).max() < 1e-6 and (cents % 5 == 0).all() and (cents[of[c] > 3] % 10 == 0).all()
    assert .02 < (live["bid"] == 0).mean() < .3

def test_at_the_last_close_a_contract_is_worth_what_it_pays(whole):
    last = whole[whole["expiry"] == whole["session"]]
    pays = np.maximum(np.where(last["right"] == "C", 1, -1) * (last["underlying_price"] - last["strike"]), 0)
    assert (last["bid"] == last["ask"]).all() and np.abs(last["bid"] - pays).max() < .00501

def test_mids_do_not_fall_the_wrong_way(whole):
    near = _neighbours(whole)
    for bid, ask in (("bid", "ask"), ("bid_open", "ask_open")):
        (call_bid, put_bid), (call_ask, put_ask) = _sides(whole, bid, ask)
        assert (np.diff(call_bid + call_ask)[near] <= 1e-9).all() and (np.diff(put_bid + put_ask)[near] >= -1e-9).all()

@pytest.mark.parametrize("side", (0, 1))
def test_no_butterfly_and_no_vertical_pays_at_bid_and_ask(whole, side):
    near, ((strike, _),) = _neighbours(whole), _sides(whole, "strike")
    both, step = near[1:] & near[:-1], np.diff(strike)
    for bid, ask in (("bid", "ask"), ("bid_open", "ask_open")):
        bid, ask = (x[side] for x in _sides(whole, bid, ask))
        wing = step[1:] / (step[1:] + step[:-1])
        assert (wing*ask[:-2] + (1 - wing)*ask[2:] - bid[1:-1])[both].min() > -.006 # last closes are rounded to cents
        most = bid[:-1] - ask[1:] if side == 0 else bid[1:] - ask[:-1]
        assert (most - step)[near].max() < .011

def test_no_calendar_pays_at_bid_and_ask(whole):
    live = whole[whole["right"] == "C"].sort_values(["session", "strike", "expiry"])
    same = (live["session"].to_numpy()[1:] == live["session"].to_numpy()[:-1]) & (live["strike"].to_numpy()[1:] == live["strike"].to_numpy()[:-1])
    days = (live["expiry"] - live["session"]).dt.days.to_numpy()
    for bid, ask in (("bid", "ask"), ("bid_open", "ask_open")):
        bid, ask = live[bid].to_numpy(), live[ask].to_numpy()
        carry = live["underlying_price"].to_numpy()[1:] * .011 * np.diff(days)/365 # the yield that a call does not get
        assert (ask[1:] - bid[:-1] + carry + .006)[same].min() > 0

def test_the_surface_is_sound_on_every_session(made):
    of, clock = made["surface"], made["calendar"]["close"].to_numpy()
    assert (of["eta"] <= bend_limit(of["rho"])).all() and (of[["spot", "long", "scale"]] > 0).all().all()
    k, col = np.linspace(-1.5, 1.5, 121), lambda x: of[x].to_numpy()[:, None, None]
    tau = np.array([1, 2, 5, 21, 63, 126])[:, None]/263
    theta = col("scale") * atm_variance(tau, col("spot"), col("long"))
    w, phi, rho = ssvi(k, theta, col("rho"), col("eta")), col("eta")/np.sqrt(theta*(1 + theta)), col("rho")
    assert (np.diff(w, axis=1) > 0).all() and (np.diff(clock) > 0).all()
    y = np.sqrt((phi*k + rho)**2 + 1 - rho**2)
    first, second = .5*theta*phi*(rho + (phi*k + rho)/y), .5*theta*phi**2*(1 - rho**2)/y**3
    assert ((1 - k*first/(2*w))**2 - first**2/4*(1/w + .25) + second/2 > 0).all()

def test_the_chain_gives_the_vix_back(whole):
    from tradenb.features.variance import model_free
    found = model_free(whole)["vol"].droplevel("symbol")
    off = found - market.vix().set_index("session")["value"].reindex(found.index)
    assert off.notna().all() and off.abs().max() < .15 and off.abs().mean() < .01 and abs(off.mean()) < .003

def test_a_contract_is_listed_once_and_quoted_until_it_expires(made):
    t, e, j = made["rows"]
    order = np.lexsort((t, j, e))
    t, e, j = t[order], e[order], j[order]
    same = (e[1:] == e[:-1]) & (j[1:] == j[:-1])
    assert (np.diff(t)[same] == 1).all()
    ends = np.r_[~same, True]
    assert (t[ends] == np.minimum(e[ends], len(made["days"]) - 1)).all()
    assert (e - t).max() <= max(LISTED.values())

def test_open_interest_is_the_count_of_the_close_before(made):
    t, e, j = (np.repeat(x, 2) for x in made["rows"])
    volume, held = made["traded"]
    order = np.lexsort((t, np.arange(len(t)) % 2, j, e))
    follows = np.all([np.diff(x[order]) == by for x, by in ((t, 1), (e, 0), (j, 0))], axis=0)
    moved = np.abs(np.diff(held[order]))[follows]
    assert (moved <= volume[order][:-1][follows]).all() and (volume >= 0).all() and (held >= 0).all()
    new = np.r_[True, ~follows] & (t[order] > 0)
    assert (held[order][new] == 0).all()

def test_round_strikes_and_monthlies_are_crowded(whole):
    day = whole["expiry"].dt
    of = whole.assign(round=whole["strike"] % 100 == 0, kind=day.day.between(15, 21) & (day.day_of_week == 4))
    by = of[(of["expiry"] - of["session"]).dt.days.between(2, 30)].groupby(["kind", "round"])["open_interest"].mean()
    assert by[True, True] > 1.5*by[True, False] and by[True, True] > 2*by[False, True]

def test_nothing_is_known_too_early():
    spx = market.bars("indices", "2014-01-02", "2014-12-31").query("symbol == 'SPX'")
    vix, day = market.vix("2014-01-02", "2014-12-31"), pd.Timestamp("2014-06-30")
    rng = np.random.default_rng(1)
    late = spx["session"] > day
    other = spx.assign(**{c: spx[c]*np.where(late, rng.uniform(.8, 1.2, len(spx)), 1) for c in ("open", "close")})
    scared = vix.assign(value=vix["value"]*np.where(vix["session"] > day, rng.uniform(.7, 3, len(vix)), 1))
    changed = simulate_chains(other, scared, seed=3)
    short = simulate_chains(spx[~late], vix, seed=3)
    pd.testing.assert_frame_equal(changed[changed["session"] <= day].reset_index(drop=True), short)

def test_the_open_does_not_know_the_day():
    spx = market.bars("indices", "2014-01-02", "2014-03-31").query("symbol == 'SPX'")
    vix = market.vix("2014-01-02", "2014-03-31")
    last = spx["session"].max()
    other = simulate_chains(spx.assign(close=spx["close"].where(spx["session"] < last, 1500.)),
                            vix.assign(value=vix["value"].where(vix["session"] < last, 60.)))
    one = simulate_chains(spx, vix)
    key = [*KEY, "bid_open", "ask_open", "open_interest"]
    pd.testing.assert_frame_equal(one[key], other[key])
    assert not one[one["session"] == last]["bid"].equals(other[other["session"] == last]["bid"])

def test_a_seed_is_a_market():
    spx = market.bars("indices", "2014-01-02", "2014-02-28").query("symbol == 'SPX'")
    a, again, b = (simulate_chains(spx, market.vix(), seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(a, again)
    assert (a["volume"] != b["volume"]).mean() > .5 and (a["bid"] != b["bid"]).any()
    assert np.abs(a["bid"] - b["bid"]).max() < 6 # the noise is small

def test_a_missing_session_is_an_error():
    spx = market.bars("indices", "2014-01-02", "2014-02-28").query("symbol == 'SPX'")
    with pytest.raises(ValueError, match="1 sessions are missing, first 2014-01-15"):
        simulate_chains(spx[spx["session"] != "2014-01-15"], market.vix())
    with pytest.raises(ValueError, match="fewer than 2 sessions"): simulate_chains(spx, market.vix("2018-01-01"))
    with pytest.raises(ValueError, match="there twice"): simulate_chains(pd.concat([spx, spx]), market.vix())

def test_an_implied_move_is_like_the_real_one(whole):
    "Mids of next-session straddles at the money, against what the index then did: neither a gift nor a robbery"
    near = whole[(whole["strike"] - whole["underlying_price"]).abs() < 13]
    eve = near[(near["expiry"] - near["session"]).dt.days.between(1, 4)].sort_values("expiry")
    eve = eve[eve["expiry"] == eve.groupby("session")["expiry"].transform("min")]
    price = eve.assign(mid=(eve["bid"] + eve["ask"])/2).pivot_table(index=["session", "expiry", "strike"], columns="right", values="mid").sum(axis=1)
    price = price.reset_index(name="straddle")
    close = whole.drop_duplicates("session").set_index("session")["underlying_price"]
    price = price[price["expiry"] <= close.index.max()]
    paid = (price["expiry"].map(close) - price["strike"]).abs()
    assert len(price) > 1000 and .7 < paid.mean() / price["straddle"].mean() < 1.1

def test_a_store_keeps_it_with_the_figures_that_were_out(tmp_path):
    store = Store(tmp_path)
    n = store.update("market", "SPX", "2016-06-20", "2016-06-24", kind="chain")
    made = chains("SPX", "2016-06-20", "2016-06-24")
    assert n == 2*len(made) and store.update("market", "SPX", "2016-06-20", "2016-06-24", kind="chain") == 0
    kept = store.as_of("chain", "2016-06-24")
    assert kept["open_interest"].notna().all() and set(kept["vendor"]) == {"market:simulated"}
    both = kept.merge(made, on=KEY, suffixes=("", "_made"))
    assert len(both) == len(made) and (both["known_at"] == both["session"]).all()
    for c in ("bid", "ask", "bid_open", "ask_open", "volume", "open_interest"): assert (both[c] == both[f"{c}_made"]).all()

def test_the_gate_finds_nothing():
    from tradenb.data.quality import audit
    found = audit(chains("SPX", "2016-06-13", "2016-06-24"))
    assert found.status == "GREEN", found.findings.to_string()

def test_samples_are_cuts_of_the_history(whole):
    pd.testing.assert_frame_equal(sample_chain("2018-02-05"), whole[whole["session"] == "2018-02-05"].reset_index(drop=True))
    assert sample_history(3)["session"].nunique() == 3 and len(chains("SPX", "2019-02-01", "2019-03-01")) == 0
