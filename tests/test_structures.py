"Option structures: identities, expectation against simulation, caps and hedges under books nobody would write, decisions that cannot look ahead"
import json
import math
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core import calendar
from tradenb.data.black import price
from tradenb.data.chains import priced
from tradenb.data.contracts import contracts, parse
from tradenb.data.simulated_chains import sample_chain, sample_history
from tradenb.portfolio import strategies
from tradenb.portfolio.expectation import as_implied, expected_value, outcomes, sessions_left
from tradenb.portfolio.hedge import delta_hedge, parts, standing, vega_cap
from tradenb.portfolio.rules import State, compose
from tradenb.portfolio.selection import short_term, volatility
from tradenb.portfolio.structures import TEMPLATES, Unavailable, breakevens, cost, legs, payoff, targets, worth
from tradenb.portfolio.switches import kill_switch

lightly = settings(max_examples=40, deadline=None)

def named(chain): return priced(chain).assign(contract=lambda c: contracts(c))

@lru_cache
def one(): return named(sample_chain())

@lru_cache
def many(): return named(sample_history(n=12))

def days(): return pd.DatetimeIndex(many()["session"].unique())

def scores(values): return pd.Series(values, pd.MultiIndex.from_product([days()[:len(values)], ["SPX"]], names=["session", "symbol"]))

def intrinsic(forward, strike, years, discount, iv, right): return discount*np.maximum(right*(forward - strike), 0.)

# --- structures

def near(kind="C", **choice): return legs(one(), "single", right=kind, **choice)

def test_parity_of_the_chain():
    "a call less a put at one strike is a forward, before the expiry and at it"
    straddle = legs(one(), "straddle")
    synthetic = straddle.assign(units=[1., -1.])
    spot = straddle["spot"].iloc[0]*np.linspace(.8, 1.2, 9)
    strike = straddle["strike"].iloc[0]
    np.testing.assert_allclose(payoff(synthetic, spot), spot - strike, atol=1e-9)
    for gone in (0., .02, .05):
        left = straddle["years"].iloc[0] - gone
        part = left/straddle["years"].iloc[0]
        forward = spot*(straddle["forward"].iloc[0]/straddle["spot"].iloc[0])**part
        want = straddle["discount"].iloc[0]**part*(forward - strike)
        np.testing.assert_allclose(worth(synthetic, spot, price, gone), want, atol=1e-8)

def test_a_butterfly_is_two_verticals_before_expiry_too():
    butterfly = legs(one(), "butterfly", days=14., wing=.03)
    low, body, high = butterfly["strike"]
    assert high - body == body - low > 0
    spread = [legs(one(), "vertical", days=14., by="strike", body=a, wing=b) for a, b in ((low, body), (body, high))]
    spot = butterfly["spot"].iloc[0]*np.linspace(.9, 1.1, 41)
    for gone in (0., .03, 1.):
        apart = worth(spread[0], spot, price, gone) - worth(spread[1], spot, price, gone)
        np.testing.assert_allclose(worth(butterfly, spot, price, gone), apart, atol=1e-8)
    assert payoff(butterfly, spot).min() >= 0
    here = (one()["expiry"] == butterfly["expiry"].iloc[0]) & (one()["strike"] == low)
    other = legs(one()[~here], "butterfly", days=14., wing=.03) # the strike below is gone: both wings are others
    assert other["strike"].iloc[2] != high and np.ptp(np.diff(other["strike"])) == 0

@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("right", ["C", "P"])
def test_both_sides_of_a_structure_lose_the_spread_together(template, right):
    try: bought, sold = (legs(one(), template, side, right=right) for side in (1, -1))
    except Unavailable as e: pytest.skip(str(e))
    assert (bought["contract"] == sold["contract"]).all() and (bought["units"] == -sold["units"]).all()
    spread = (bought["units"].abs()*(bought["ask"] - bought["bid"])).sum()
    assert cost(bought) + cost(sold) == pytest.approx(spread)
    even = breakevens(bought, price)
    np.testing.assert_allclose(payoff(bought, even, price), cost(bought), atol=.02)

def test_names_are_read_as_the_data_floor_reads_them():
    names = one()["contract"].drop_duplicates().sample(40, random_state=0)
    for name, row in parts(names).iterrows():
        want = parse(name)
        assert (row["root"], row["expiry"], row["right"], row["strike"]) == (want.root, want.expiry, want.right, want.strike)
    assert parts(["SPX", "BRK.B", "SPXW24011", ""])["expiry"].isna().all()

def test_what_is_flagged_or_missing_is_no_structure():
    chain, found = one(), legs(one(), "iron_condor")
    for contract in found["contract"]:
        with pytest.raises(Unavailable, match=contract):
            flagged = chain.assign(flag=chain["flag"].where(chain["contract"] != contract, "wide"))
            legs(flagged, "iron_condor")
    body = found["contract"].iloc[0]
    with pytest.raises(ValueError, match="2 times"): legs(pd.concat([chain, chain[chain["contract"] == body]]), "iron_condor")
    with pytest.raises(ValueError, match="sessions"): legs(many(), "single")

# --- expectation

def simulated(of, spot, drift, vol, hold, gone, n=400_000):
    "Mean, deviation and probability of a profit by simulation, written down without the room's arrays"
    z = np.random.default_rng(1).normal(size=n)
    wide = vol*math.sqrt(hold/252)
    s, total = spot*(1 + drift)*np.exp(wide*z - wide**2/2), 0.
    for leg in of.itertuples():
        sign, left = 1 if leg.right == "C" else -1, leg.years - gone
        half = (leg.ask - leg.bid)/(leg.ask + leg.bid)
        if left < 1e-9: later, half, fees = np.maximum(sign*(s - leg.strike), 0.), 0., 1
        else:
            forward = s*(leg.forward/leg.spot)**(left/leg.years)
            iv = leg.iv + .01 - .4*np.log(s/spot)
            later, fees = price(forward, leg.strike, left, leg.discount**(left/leg.years), np.maximum(iv, .1*leg.iv), sign), 2
        out = later*(1 - half) - leg.ask if leg.units > 0 else leg.bid - later*(1 + half)
        total = total + abs(leg.units)*(out - fees*.0065)
    return total.mean(), total.std(), (total > 0).mean()

@pytest.mark.parametrize("template, hold, choice", [("single", 3, {}), ("vertical", 5, {"right": "P"}), ("straddle", 5, {}),
                                                    ("calendar", 5, {}), ("iron_condor", 30, {}), ("single", 9, {"days": 7.})])
def test_expectation_is_that_of_a_simulation(template, hold, choice):
    of = legs(one(), template, **choice)
    spot, session = float(of["spot"].iloc[0]), of["session"].iloc[0]
    found = expected_value(of, spot, .004, .3, hold, price, iv_change=.01, beta=-.4, nodes=801)
    held = int(found["sessions"])
    gone = of["years"].min() if held == sessions_left(session, of["expiry"].min()) else \
        (calendar.next_session(session, held) - session).days/365
    mean, deviation, probability = simulated(of, spot, 1.004**(held/hold) - 1, .3, held, gone)
    assert found["expected"] == pytest.approx(mean, abs=.01*deviation)
    assert found["deviation"] == pytest.approx(deviation, rel=.02)
    assert found["probability"] == pytest.approx(probability, abs=.004)

@lightly
@given(drift=st.floats(-.3, .3), vol=st.floats(.01, 3), n=st.integers(1, 60), nodes=st.integers(2, 301))
def test_the_grid_is_exact_in_mean_and_variance(drift, vol, n, nodes):
    grid = outcomes(drift, vol, n, nodes)
    assert grid.mean() == pytest.approx(1 + drift, rel=1e-12)
    assert np.log(grid).std() == pytest.approx(vol*math.sqrt(n/252), rel=1e-9)
    assert (np.diff(grid) > 0).all()

def test_what_is_fair_loses_its_spread_and_nothing_else():
    "at the volatility that is paid for, through a weekend as through a week"
    flat = one()[one()["flag"] == ""].copy()
    flat["iv"] = .2
    flat["mid"] = price(flat["forward"], flat["strike"], flat["years"], flat["discount"], flat["iv"], flat["right"])
    flat = flat.assign(bid=flat["mid"], ask=flat["mid"])
    for hold in (1, 3, 7):
        of = legs(flat, "straddle", days=45.)
        found = expected_value(of, float(of["spot"].iloc[0]), 0., None, hold, price, commission=0., nodes=801)
        assert abs(found["expected"]) < .02*of["mid"].sum()*math.sqrt(hold/30)
    assert as_implied(.2, 365/365, 252) == pytest.approx(.2)

# --- hedges

C1, C2, P1 = "SPXW240216C04500000", "SPXW240315C04600000", "SPXW240216P04400000"
NAMES = ["SPX", C1, C2, P1]
UNITS = st.floats(-300, 300).map(lambda x: round(x, 2))
GREEK = st.floats(-1, 1)

def state(shares, delta, vega=(2., 3., 2.5), prices=(4500., 60., 70., 50.), nav=1e6, **more):
    shares, prices = np.array(shares, float), np.array(prices)
    history = {"delta": [[np.nan, *delta]], "vega": [[np.nan, *vega]]}
    return State("2024-01-16", NAMES, held=shares*prices/nav, shares=shares, price=prices, nav=nav, history=history, **more)

@lightly
@given(shares=st.tuples(UNITS, UNITS, UNITS, UNITS), asked=st.tuples(UNITS, UNITS, UNITS), delta=st.tuples(GREEK, GREEK, GREEK),
       keep=st.tuples(*[st.booleans()]*3), lot=st.sampled_from([None, 1., 100.]))
def test_an_account_sized_at_the_decision_has_no_delta_after_it(shares, asked, delta, keep, lot):
    now = state(shares, delta)
    row = np.array([np.nan, *(np.nan if k else u*p/now.nav for k, u, p in zip(keep, asked, now.price[1:], strict=True))])
    out = compose([standing(), delta_hedge("SPX", lot=lot)])(row, now)
    units = out*now.nav/now.price
    if lot:
        odd = np.copysign(np.floor(np.abs(units)/lot + 1e-9)*lot, units)
        units[1:] = np.where(out == now.held, now.shares, odd)[1:]
    assert units[0] + units[1:]@np.array(delta) == pytest.approx(0, abs=1e-6)
    for i in np.flatnonzero(keep): assert out[1 + i] == now.held[1 + i] # to the bit: no order

@lightly
@given(shares=st.tuples(UNITS, UNITS, UNITS, UNITS), delta=st.tuples(GREEK, GREEK, GREEK), band=st.floats(0, .5),
       to=st.sampled_from(["target", "edge"]))
def test_a_band_is_never_left_open_and_nothing_moves_within_it(shares, delta, band, to):
    now = state(shares, delta)
    out = delta_hedge("SPX", band=band, to=to)(now.held.copy(), now)
    net = now.shares[1:]@np.array(delta)
    before, after = ((u + net)*4500/1e6 for u in (now.shares[0], out[0]*1e6/4500))
    if not now.shares[1:].any(): assert out[0] == 0
    elif abs(before) <= band: assert out[0] == now.held[0]
    else: assert abs(after) == pytest.approx(band if to == "edge" else 0, abs=1e-9)

@lightly
@given(shares=st.tuples(UNITS, UNITS, UNITS, UNITS), asked=st.tuples(UNITS, UNITS, UNITS), cap=st.floats(1e-5, 3e-3),
       vega=st.tuples(*[st.floats(0, 9)]*3))
def test_what_is_opened_never_takes_vega_beyond_its_cap(shares, asked, cap, vega):
    now = state(shares, (0., 0., 0.), vega)
    row = np.array([now.held[0], *(u*p/now.nav for u, p in zip(asked, now.price[1:], strict=True))])
    out = vega_cap(cap)(row, now)
    opens = np.r_[False, (np.abs(row[1:]) > np.abs(now.held[1:])) | (row[1:]*now.held[1:] < 0)]
    assert (out[~opens] == row[~opens]).all()
    def total(w): return (w*now.nav/now.price)[1:]@np.array(vega)/now.nav
    stays = total(np.where(opens, now.held, row))
    assert abs(total(out)) <= max(cap, abs(stays)) + 1e-12
    step = (out - now.held)[opens]/np.where(row == now.held, 1, row - now.held)[opens]
    assert not len(step) or (np.ptp(step) < 1e-9 and -1e-9 <= step.min() <= step.max() <= 1 + 1e-9) # one factor for all legs

def test_rules_on_an_evening_without_decisions():
    now = state((0., 10., 0., 0.), (.5, .5, -.5), memory={}, returns=np.array([0.]))
    book = compose([standing(), vega_cap(.01), delta_hedge("SPX"), kill_switch(drawdown=.08)])
    out = book(np.full(4, np.nan), now)
    assert out[0]*1e6/4500 == pytest.approx(-5) and (out[1:] == now.held[1:]).all()
    fallen = state((-5., 10., 0., 0.), (.5, .5, -.5), memory={}, returns=np.array([-.2]))
    assert not book(np.full(4, np.nan), fallen).any()

# --- decisions

def test_decisions_never_use_the_future():
    rng, n = np.random.default_rng(0), 9
    s, v = scores(rng.normal(0, .02, n)), scores(rng.normal(0, 4, n))
    forecast = scores(np.linspace(.1, .3, 12))
    for f, given_ in ((lambda c, x, vol: short_term(x, c, price, hold=2, volatility=vol), s),
                      (lambda c, x, vol: volatility(x, c, price, hold=2, volatility=vol), v)):
        whole = f(many(), given_, forecast)
        assert whole["trade"].nunique() > 1
        for cut in days()[[2, 5]]:
            past, later = many()["session"] <= cut, many()["session"] > cut
            wild = many().assign(**{k: many()[k].where(past, many()[k]*1.7) for k in ("bid", "ask", "mid", "iv", "spot", "forward")})
            for chain in (many()[past], wild.sample(frac=1, random_state=1)):
                got = f(chain, *(x.where(x.index.get_level_values(0) <= cut, far*x) for x, far in ((given_, -1), (forecast, 3))))
                want = whole[whole["session"] <= cut]
                pd.testing.assert_frame_equal(got[got["session"] <= cut].reset_index(drop=True), want)
            assert later.any()

@settings(max_examples=12, deadline=None)
@given(vega=st.floats(1e-5, 1e-2), notional=st.floats(.01, 3), risk=st.floats(1e-4, .1), seed=st.integers(0, 99))
def test_caps_are_never_exceeded(vega, notional, risk, seed):
    rng = np.random.default_rng(seed)
    for d in (short_term(scores(rng.normal(0, .02, 6)), many(), price, hold=1, vega=vega, notional=notional, risk=risk),
              volatility(scores(rng.normal(0, 5, 6)), many(), price, hold=1, vega=vega, notional=notional, risk=risk)):
        at = d.merge(many()[["session", "contract", "vega", "spot", "mid"]], on=["session", "contract"], suffixes=("", "_leg"))
        size = at.groupby("trade")["units"].transform(lambda u: u.abs().min())
        used = at.assign(v=at["units"]*at["vega_leg"], n=at["units"].abs()*at["spot"]).groupby("trade")
        assert (used["v"].sum().abs() <= vega*(1 + 1e-9)).all() and (used["n"].max() <= notional*(1 + 1e-9)).all()
        assert (-at["worst"]*size <= risk*(1 + 1e-9)).all() and (at["expected"] > 0).all()
        np.testing.assert_allclose(at["weight"], at["units"]*at["mid"])

def test_one_trade_an_underlying_and_no_contract_twice():
    s = scores(np.full(12, .03))
    plain = short_term(s, many(), price, hold=3).drop_duplicates("trade")
    assert (plain["session"].iloc[1:].to_numpy() == plain["exit"].iloc[:-1].to_numpy()).all() # and the next at once
    crowd = short_term(s, many(), price, hold=3, overlap=True, max_trades=3)
    alive = [((crowd["session"] <= d) & (crowd["exit"] > d)) for d in days()]
    assert max(crowd[a]["trade"].nunique() for a in alive) == 3
    assert not any(crowd[a]["contract"].duplicated().any() for a in alive)
    frame = targets(crowd, days(), also=["SPX"])
    assert frame.shape == (12, crowd["contract"].nunique() + 1) and frame["SPX"].isna().all()

def test_zero_days():
    d = short_term(scores([.03]*4), many(), price, days=(1, 1), structures=["call"])
    assert (d["exit"] == d["expiry"]).all()
    assert (d["exit"] == [calendar.next_session(s) for s in d["session"]]).all()
    assert np.nanmin(targets(d, days()).to_numpy()) > 0 # nothing closes them, they settle

@pytest.mark.parametrize("bad, why", [
    (dict(scores=3.), "Series"), (dict(hold=0), "hold=0"), (dict(structures=["calls"]), "some of"), (dict(days=(3, 1)), "fewest"),
    (dict(deltas=[1.5]), "between 0 and 1"), (dict(volatility="nothing"), "nothing"), (dict(risk=0.), "risk=0"),
    (dict(scale=0.), "scale=0"), (dict(max_trades=.5), "max_trades=0.5")])
def test_bad_input_has_one_clear_error(bad, why):
    with pytest.raises((ValueError, TypeError), match=why): short_term(**(dict(scores=scores([.1]), chain=many(), value=price) | bad))

def test_an_empty_chain_and_scores_of_nobody_decide_nothing():
    assert short_term(scores([.1]), many().iloc[:0], price).empty
    assert short_term(scores([np.nan]), many(), price).empty
    assert volatility(scores([3.]).rename({"SPX": "NDX"}), many(), price).empty
    assert targets(short_term(scores([np.nan]), many(), price), days()).shape == (12, 0)

# --- strategies.json

@lru_cache
def decided(): return short_term(scores([.03]*12), many(), price, hold=3)

def test_every_session_comes_back_as_it_was_written(tmp_path):
    for session, want in decided().groupby("session"):
        path = strategies.write(decided(), tmp_path, session, recipe="short_term", simulated=True, caps={"vega": .001, "risk": .01})
        pd.testing.assert_frame_equal(strategies.read(path).decisions(), want.reset_index(drop=True), check_dtype=False)
    v = volatility(scores([6.]*3), many(), price, buy=["calendar", "straddle"], hold=1)
    strategies.write(v, tmp_path)
    back = strategies.read(tmp_path).decisions()
    assert back["contract"].tolist() == v[v["session"] == v["session"].max()]["contract"].tolist()

def hostile():
    deep = "[" * 100_000
    yield b"", "file"
    yield b"\xff\xfe{}", "strategies.json"
    yield deep.encode(), "strategies.json"
    yield b"null", "strategies.json"
    yield b"[]", "strategies.json"
    yield b"{" + b" "*9_000_000 + b"}", "larger than"
    yield b'{"version": 1, "version": 1}', "said twice"
    yield b'{"version": 1e999}', "version"

@pytest.mark.parametrize("raw, why", list(hostile()), ids=range(8))
def test_hostile_files_are_refused_by_name(raw, why, tmp_path):
    (tmp_path/"strategies.json").write_bytes(raw)
    with pytest.raises(ValueError, match=why if why != "file" else "strategies.json"): strategies.read(tmp_path)

@lru_cache
def written(folder): return strategies.write(decided(), folder, caps={"vega": .001, "risk": .01}).read_text()

@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_field_can_be_changed_for_nonsense(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    told = json.loads(written(folder))
    at, place = told, []
    while isinstance(at, (dict, list)) and len(at):
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        place.append((at, key))
        at = at[key]
    holder, key = place[-1]
    if key in ("recipe", "why"): return
    holder[key] = data.draw(st.sampled_from([[], {}, True if not isinstance(at, bool) else 1, "x"*1000, -1e300]))
    (folder/"strategies.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"strategies\.json"): strategies.read(folder)

def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = strategies.write(decided(), tmp_path)
    before = path.read_bytes()
    def full(_): raise OSError("no space left on device")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"): strategies.write(decided(), tmp_path, recipe="other")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["strategies.json"]
