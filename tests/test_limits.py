"Limits, stops and switches against plain loops, and under histories nobody would write by hand"
import json
import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.portfolio.anytime import anytime_switch, first_fired, sceptic, upper_bound
from tradenb.portfolio.limits import cap, liquidity_cap, net_cap, notional_cap, sector_cap, turnover_cap
from tradenb.portfolio.rules import State, compose
from tradenb.portfolio.stops import _average_range, atr_stop, stop_loss, take_profit, trailing_stop
from tradenb.portfolio.switches import _below_peak, drawdown_breaker, kill_switch, release
from tradenb.validation.drawdowns import drawdown

NAMES   = np.array([f"N{i}" for i in range(10)])
SECTORS = {n: "abc"[i % 3] for i, n in enumerate(NAMES[:-1])} # the last is unknown
DAYS    = pd.bdate_range("2020-01-01", periods=2600)
lightly = settings(max_examples=40, deadline=None)
WEIGHT  = st.one_of(st.sampled_from([-.3, 0., .05, .3, math.nan]), st.floats(-1, 1))
BOOK    = st.lists(WEIGHT, min_size=10, max_size=10).filter(lambda w: not all(map(math.isnan, w)))
HELD    = st.lists(st.floats(-.4, .4), min_size=10, max_size=10)

def market(n=10, sessions=60, seed=0, halts=.05):
    "Closes that walk, highs and lows around them, volumes, and holes"
    rng = np.random.default_rng(seed)
    close = 50*np.exp(np.cumsum(rng.normal(0, .03, (sessions, n)), axis=0))
    wide = close*rng.uniform(0, .02, (2, sessions, n))
    bars = {"close": close, "high": close + wide[0], "low": close - wide[1], "volume": rng.uniform(1e3, 1e5, close.shape)}
    hole = rng.random(close.shape) < halts
    hole[0] = False
    return {k: np.where(hole, np.nan, v) for k, v in bars.items()}

LIMITS = {"cap": cap(.08), "notional_cap": notional_cap(60.), "liquidity_cap": liquidity_cap(.0001), "net_cap": net_cap(.1),
          "sector_cap": sector_cap(.2, SECTORS)}

# --- limits

@pytest.mark.parametrize("name", LIMITS)
@lightly
@given(book=BOOK, held=HELD)
def test_no_limit_makes_a_weight_larger_or_turns_it(name, book, held):
    w = np.array(book)
    out = LIMITS[name](w, State(None, NAMES, held=held, nav=1000., history=market()))
    assert np.array_equal(np.isnan(out), np.isnan(w))
    have = ~np.isnan(w)
    assert (np.abs(out[have]) <= np.abs(w[have])).all()
    assert (out[have]*w[have] >= 0).all()
    again = LIMITS[name](out, State(None, NAMES, held=held, nav=1000., history=market()))
    np.testing.assert_allclose(again, out, rtol=1e-12)     # what is permitted stays as it is

@lightly
@given(book=BOOK, held=HELD)
def test_each_cap_holds(book, held):
    state, have = State(None, NAMES, held=held, nav=1000., history=market()), np.array(book)
    def out(name): return pd.Series(np.nan_to_num(LIMITS[name](have, state)), NAMES)
    assert out("cap").abs().max() <= .08
    assert out("notional_cap").abs().max() <= .06
    assert abs(out("net_cap").sum()) <= .1 + 1e-12
    assert out("sector_cap").abs().groupby(lambda s: SECTORS.get(s, "?")).sum().max() <= .2 + 1e-12
    bars, last = market(), slice(-20, None)
    adv = np.nan_to_num(bars["close"][last]*bars["volume"][last]).mean(axis=0)
    assert (out("liquidity_cap").abs()*1000 <= .0001*adv + 1e-9).all()
    trade = liquidity_cap(.0001, of="trade")(have, state) - held
    assert (np.abs(trade)*1000 <= .0001*adv + 1e-9).all()

@lightly
@given(book=BOOK, held=HELD, most=st.floats(.01, 3))
def test_turnover_stays_within_its_cap_and_gross_within_the_larger(book, held, most):
    target, held = np.nan_to_num(book), np.array(held)
    out = turnover_cap(most)(np.array(book), State(None, NAMES, held=held))
    assert np.abs(out - held).sum() <= most + 1e-12
    assert np.abs(out).sum() <= max(np.abs(target).sum(), np.abs(held).sum()) + 1e-12
    assert (out[target == held] == held[target == held]).all() # no order where nothing is to change

@pytest.mark.parametrize("factory", [lambda: stop_loss(.08), lambda: take_profit(.08), lambda: trailing_stop(.1), lambda: atr_stop(2, 5),
                                     lambda: drawdown_breaker(.05, recover=.02), *(lambda r=r: r for r in LIMITS.values())])
@lightly
@given(book=BOOK, held=HELD, shuffle=st.randoms())
def test_the_order_of_the_symbols_means_nothing(factory, book, held, shuffle):
    order, bars, price = list(range(10)), market(), market(seed=1)["close"][0]
    shuffle.shuffle(order)
    def ask(o):
        state = State(DAYS[0], NAMES[o], held=np.array(held)[o], price=price[o], entry=np.full(10, 52.)[o], shares=np.array(held)[o],
                      nav=1000., returns=[.01, -.07], history={k: v[:, o] for k, v in bars.items()})
        return factory()(np.array(book)[o], state)
    np.testing.assert_allclose(ask(order), ask(list(range(10)))[order], rtol=1e-12, atol=1e-15)

# --- stops, beside an account kept in dollars by a plain loop

def life(rule, seed, sessions=150, resume=False):
    "A name traded at random under a stop, split 4:1 half of the way: each close's facts before the split, and what the rule gave"
    rng, chance, bars, memory, out = np.random.default_rng(seed), random.Random(seed), market(1, sessions, seed), {}, []
    shares, entry, last, target = 0., math.nan, math.nan, 0.
    for t in range(sessions):
        so_far, traded, paid = {k: v[:t + 1] for k, v in bars.items()}, 0., 0.
        price = so_far["close"][t, 0]
        if price == price and target != shares: # filled near the close of a session with a bar
            traded, paid = target - shares, price*1.003
            if target*shares <= 0: entry = paid
            elif abs(target) > abs(shares): entry = (shares*entry + traded*paid)/target
            shares = target
            if not shares: entry = math.nan
        last = price if price == price else last
        asked = rng.choice([math.nan, math.nan, math.nan, -.02, .01, .02, .03])
        if resume and chance.random() < .3: memory = revived(memory)
        k = 4 if t >= sessions//2 else 1
        state = State(DAYS[t], ["A"], held=[shares/1000], price=[last/k], entry=[entry/k], shares=[shares*k], traded=[traded*k],
                      paid=[paid/k], memory=memory, history={c: v if c == "volume" else v/k for c, v in so_far.items()})
        given = rule([asked], state)[0]
        out.append(dict(shares=shares, entry=entry, price=last, asked=asked, given=given, bars=so_far))
        target = shares if given == shares/1000 else round(given*1000, 9)
    return out

def revived(memory):
    "As a file gives it back"
    text = json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in memory.items()})
    return {k: np.array(v, float) if isinstance(v, list) else v for k, v in json.loads(text).items()}

def expected(rows, touched, cooldown=5):
    "What a loop with a position's own list of prices gives"
    out, seen, side, bar, left = [], [], 0, 0, 0
    for r in rows:
        now = int(np.sign(r["shares"]))
        if now != side: seen, side = [], now
        if now: seen += [r["entry"], r["price"]]
        hit = bool(now) and touched(r, now, seen)
        if hit: bar, left, barred = now, cooldown, True
        else: barred, left = left > 0, max(left - 1, 0)
        want = r["shares"]/1000 if math.isnan(r["asked"]) else r["asked"]
        out.append(0. if barred and want*bar > 0 else want)
    return out

def true_ranges(bars):
    rows = [(h, lo, c) for h, lo, c in zip(*(bars[k][:, 0] for k in ("high", "low", "close")), strict=True) if c == c]
    return [max(h, before[2]) - min(lo, before[2]) for before, (h, lo, c) in pairwise(rows)]

def atr(bars, n=14):
    tr = true_ranges(bars)
    if len(tr) < n: return math.inf
    out = sum(tr[:n])/n
    for x in tr[n:]: out = (out*(n - 1) + x)/n
    return out

def far(seen, now): return max(seen) if now > 0 else min(seen)

STOPS = {"stop_loss": (stop_loss(.04), lambda r, now, seen: now*(r["price"]/r["entry"] - 1) <= -.04),
         "take_profit": (take_profit(.04), lambda r, now, seen: now*(r["price"]/r["entry"] - 1) >= .04),
         "trailing_stop": (trailing_stop(.06), lambda r, now, seen: now*(far(seen, now) - r["price"]) >= .06*far(seen, now)),
         "atr_stop": (atr_stop(2, 14), lambda r, now, seen: now*(far(seen, now) - r["price"]) >= 2*atr(r["bars"]))}

@pytest.mark.parametrize("name", STOPS)
def test_stops_do_what_a_plain_loop_does(name):
    rule, touched = STOPS[name]
    closed = 0
    for seed in range(25):
        rows = life(rule, seed)
        want = expected(rows, touched)
        np.testing.assert_allclose([r["given"] for r in rows], want, rtol=1e-12, err_msg=f"{name}, seed {seed}")
        closed += sum(r["shares"] != 0 and w == 0 for r, w in zip(rows, want, strict=True))
    assert closed > 50 # or nothing was tested

@pytest.mark.parametrize("name", STOPS)
def test_stops_go_on_from_what_was_written(name):
    for seed in range(5):
        plain, killed = (life(STOPS[name][0], seed, resume=r) for r in (False, True))
        assert [r["given"] for r in plain] == [r["given"] for r in killed]

def test_the_average_true_range_is_that_of_talib():
    talib = pytest.importorskip("talib")
    bars = market(4, 400, halts=0)
    own = _average_range(bars["high"], bars["low"], bars["close"], 14)*bars["close"][-1]
    for i in range(4):
        want = talib.ATR(*(np.ascontiguousarray(bars[k][:, i]) for k in ("high", "low", "close")), 14)[-1]
        np.testing.assert_allclose(own[i], want, rtol=1e-10)

def test_the_range_moved_on_session_by_session_is_the_one_of_the_whole_history():
    bars, memory, rule = market(5, 200), {}, atr_stop(3, 14)
    for t in range(60, 200):
        so_far = {k: v[:t + 1] for k, v in bars.items()}
        rule(np.zeros(5), State(DAYS[t], NAMES[:5], memory=memory, history=so_far))
        if t % 20: continue
        whole = _average_range(so_far["high"], so_far["low"], so_far["close"], 14)
        np.testing.assert_allclose(memory["atr_stop.range"], whole, rtol=1e-12)

# --- switches

def replay(rule, returns, memory=None, releases=(), key="kill_switch", asked=(.3, -.2)):
    "What `rule` gives at each close of an account with these returns, which is flat while it is stopped"
    memory, held, r, out, chance = {} if memory is None else memory, np.zeros(2), np.array(returns), [], random.Random(0)
    for t in range(len(r)):
        if not held.any() and t: r[t] = 0.
        scores = np.array(asked) if chance.random() < .7 else np.full(2, np.nan)
        held = rule(scores, State(DAYS[t], NAMES[:2], held=held, returns=r[:t + 1], memory=memory))
        out.append(held)
        if t in releases and "fired" in memory.get(key, {}) and "released" not in memory[key]:
            release(memory, key, "Ada", "looked at", DAYS[t])
    return np.array(out), memory, r

@lightly
@given(seed=st.integers(0, 10_000), mean=st.floats(-.003, .001), when=st.lists(st.integers(0, 299), max_size=4))
def test_a_kill_switch_places_no_opening_order_until_it_is_released(seed, mean, when):
    returns = np.random.default_rng(seed).normal(mean, .01, 300)
    out, memory, lived = replay(kill_switch(), returns, releases=set(when))
    down, since = False, 0
    for t in range(300):
        if down and t - 1 in when: down, since = False, t + 1    # from the close after the release, on what comes after it
        elif not down: down = plain_alarm(lived[since:t + 1].tolist())
        idle = not t or not out[t - 1].any() # and it may have had no scores yet
        assert not out[t].any() if down else out[t].any() or idle, f"session {t}"

def plain_alarm(r):
    "The three conditions by their definitions"
    while r and r[0] == 0: r = r[1:]
    level, peak = 1., 1.
    for x in r:
        level *= 1 + x
        peak = max(peak, level)
    return (len(r) > 20 and r[-1] < -3*statistics.stdev(r[-21:-1])) or level/peak - 1 < -.08 or (len(r) >= 60 and sum(r[-60:]) < 0)

def test_the_drawdown_is_that_of_validation():
    r = np.random.default_rng(0).normal(0, .01, 500)
    np.testing.assert_allclose([_below_peak(r[:t + 1]) for t in range(500)], drawdown(pd.Series(r, DAYS[:500])), rtol=1e-9, atol=1e-12)

@lightly
@given(seed=st.integers(0, 10_000), limit=st.floats(.02, .1), scale=st.floats(.1, .9))
def test_a_breaker_never_holds_more_than_its_part_while_it_is_tripped(seed, limit, scale):
    out, memory, lived = replay(drawdown_breaker(limit, scale, limit/2), np.random.default_rng(seed).normal(-.0005, .01, 250))
    tripped = False
    for t in range(250):
        down = _below_peak(lived[:t + 1])
        tripped = down > -limit and tripped and down < -limit/2 or down <= -limit
        assert not tripped or np.abs(out[t]).sum() <= scale*.5 + 1e-12
        assert np.abs(out[t]).sum() <= .5 + 1e-12

@pytest.mark.parametrize("factory", [kill_switch, anytime_switch])
def test_a_release_told_beforehand_is_one_given_on_the_day(factory):
    returns, key = np.random.default_rng(3).normal(-.004, .01, 250), factory.__name__
    live, memory, _ = replay(factory(), returns, releases={150, 200}, key=key)
    past, told, _ = replay(factory(releases={DAYS[150]: "Ada", DAYS[200]: "Ada"}), returns)
    np.testing.assert_array_equal(live, past)
    assert live[151:].any() and not live[150].any()
    assert [p["released"]["by"] for p in memory[key]["past"]] == [p["released"]["by"] for p in told[key]["past"]] != []

# --- anytime

def plain_sceptic(returns, floor=0., window=20, most=7., spread=.001, stakes=(0, 1/8, 1/4, 1/2, .95)):
    "The bets one at a time"
    parts, before, out = [.2]*5, [], []
    for r in returns:
        if r != 0:
            if len(before) >= window:
                z = (r - floor/252)/statistics.stdev(before[-window:])
                z = max(-most, min(most, z))
                parts = [p*(1 - s*z/most) for p, s in zip(parts, stakes, strict=True)]
                out.append(sum(parts))
                parts = [p*(1 - spread) + spread*out[-1]/5 for p in parts]
            else: out.append(1.)
            before.append(r)
        else: out.append(out[-1] if out else 1.)
    return out

@lightly
@given(seed=st.integers(0, 10_000), floor=st.floats(-.2, .2), window=st.integers(2, 30))
def test_the_sceptic_bets_as_a_plain_loop_does(seed, floor, window):
    rng = np.random.default_rng(seed)
    r = np.where(rng.random(200) < .1, 0., rng.standard_t(3, 200)*.01)
    np.testing.assert_allclose(sceptic(r, floor, window=window), plain_sceptic(r.tolist(), floor, window), rtol=1e-7)

def worlds(rng, n=400, t=1260):
    "Accounts with a mean of exactly zero and nothing else that is nice"
    normal, calm = rng.standard_normal((n, t)), np.ones(n)
    yield "normal", normal*.005
    yield "heavy tails", rng.standard_t(3, (n, t))*.003
    yield "a coin", rng.choice([-.01, .01], (n, t))
    yield "small gains and crashes", np.where(rng.random((n, t)) < .02, -.049, .001)
    clustered = np.empty((n, t))
    for i in range(t):
        clustered[:, i] = normal[:, i]*calm**.5
        calm = .05 + .10*clustered[:, i]**2 + .85*calm
    yield "clustered volatility", clustered*.005
    yield "a sleeve that rests", np.where(np.arange(t)//60 % 2, 0., normal*.005)

def test_false_alarms_are_as_rare_as_promised_in_worlds_that_are_not_normal():
    for name, returns in worlds(np.random.default_rng(0)):
        richest = np.array([sceptic(r).max() for r in returns])
        for alpha in (.05, .2):
            fired = (richest >= 1/alpha).mean()
            assert fired <= alpha, f"{name}: {fired:.1%} of accounts at {alpha:.0%}"

def test_the_upper_bound_is_where_the_sceptics_turn_rich():
    r = np.random.default_rng(1).normal(-.001, .005, 600)
    bound, grid = upper_bound(r, .05), np.linspace(-1, 1, 401)
    assert (np.diff(bound[np.isfinite(bound)]) <= 0).all()
    for t in (100, 300, 599):
        rich = [f for f in grid if sceptic(r[:t + 1], f).max() >= 20]
        assert bound[t] == (min(rich) if rich else np.inf)

def test_the_study_fires_when_the_rules_do():
    rng = np.random.default_rng(2)
    only = dict(window=20, sigma=None, drawdown=None, sharpe_window=None)
    rules = [kill_switch(**{**only, "sigma": 3.}), kill_switch(**{**only, "drawdown": .08}),
             kill_switch(**{**only, "sharpe_window": 60}), anytime_switch()]
    for mean in (-.004, -.001, .0003):
        returns = rng.normal(mean, .01, 300)
        when = first_fired(returns[None])[0][0]
        for k, rule in enumerate(rules):
            memory = {}
            for t in range(300):
                rule(np.array([.5]), State(DAYS[t], NAMES[:1], held=[.5], returns=returns[:t + 1], memory=memory))
                if memory: break
            assert when[k] == (t + 1 if memory else np.inf), (k, mean)

def test_switches_and_stops_stand_in_one_list():
    rules = compose([stop_loss(), trailing_stop(), drawdown_breaker(), kill_switch(), anytime_switch()])
    assert rules.always
    state = State(DAYS[0], NAMES, held=np.full(10, .05), price=np.full(10, 100.), entry=np.full(10, 100.))
    np.testing.assert_array_equal(rules(np.full(10, np.nan), state), state.held) # nothing happened: no order
