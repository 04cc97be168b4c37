"The rules under scores, symbols and orders nobody would write by hand"
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tradenb.core import calendar
from tradenb.portfolio.kelly import bayes_stein, growth_optimal, kelly
from tradenb.portfolio.limits import cap
from tradenb.portfolio.rebalance import band, best_width, hold, rebalance
from tradenb.portfolio.rules import State, compose, rule
from tradenb.portfolio.sizing import covariance, fixed_fractional, gross, regime_filter, risk_contributions, risk_parity, volatility, volatility_target
from tradenb.portfolio.weights import directional, ewma, filter_negative, long_only, rank, threshold, top_bottom, volatility_scaled, zscore

RULES = {"filter_negative": filter_negative(k=3), "top_bottom": top_bottom(k=2), "directional": directional(.5, short=-1.), "rank": rank(),
         "zscore": zscore(winsor=.1), "ewma": ewma(alpha=.3), "gross": gross(.7), "volatility_target": volatility_target(window=5),
         "cap": cap(.1), "threshold": threshold(.5, k=3), "long_only": long_only(3), "volatility_scaled": volatility_scaled(3, window=20),
         "parity": volatility_scaled(3, window=20, parity=True), "unscaled": volatility_target(window=5, of="unscaled"),
         "fixed_fractional": fixed_fractional(sigmas=3.), "regime_filter": regime_filter(window=20, outside=.3), "risk_parity": risk_parity(20),
         "kelly": kelly(), "growth_optimal": growth_optimal(window=20), "band": band(.1), "rebalance": rebalance("day"), "hold": hold(3),
         "ranker": compose([filter_negative(k=3), ewma(.3, key="slow"), volatility_target(window=5), cap(.1), gross(.5)])}
NAMES = [f"N{i}" for i in range(12)]

# few distinct values, so that equal scores and missing ones are common
SCORE  = st.one_of(st.sampled_from([-2., -1., 0., 1., 2., math.nan]), st.floats(-5, 5))
SCORES = st.lists(SCORE, min_size=1, max_size=12).filter(lambda v: not all(map(math.isnan, v)))
RULE   = pytest.mark.parametrize("name", RULES)
lightly = settings(max_examples=40, deadline=None)
sparsely = settings(max_examples=15, deadline=None) # for what is asked of every rule

MOVES   = {n: np.random.default_rng(i).normal(0, .01*(1 + i % 3), 30) for i, n in enumerate(NAMES)}
MOVES["N3"][:18] = np.nan # listed late
MOVES["N5"][[7, 20]] = np.nan # halted twice
EVENING = pd.Timestamp("2024-01-05")

def account(names, returns=(.01, -.02, .01, .03, 0.), session=EVENING, **kwargs):
    def history(column, n): return np.array([MOVES[name][-n:] for name in names]).T
    return State(session, names, returns=np.array(returns), history=history, **kwargs)

@RULE
@sparsely
@given(scores=SCORES, random=st.randoms())
def test_the_order_of_the_symbols_means_nothing(name, scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    names, scores, held = np.array(NAMES[:len(scores)]), np.array(scores), np.linspace(-.1, .1, len(scores))
    here, there = account(names, held=held), account(names[order], held=held[order])
    for _ in range(2): one, other = RULES[name](scores, here), RULES[name](scores[order], there)
    np.testing.assert_allclose(other, one[order], rtol=1e-9 if name in ("growth_optimal", "risk_parity", "parity") else 1e-12, atol=1e-13)
    assert set(np.flatnonzero(one)) == {order[i] for i in np.flatnonzero(other)}

@RULE
@sparsely
@given(scores=SCORES)
def test_a_series_gives_what_the_array_gives(name, scores):
    names = NAMES[:len(scores)]
    array = RULES[name](np.array(scores), account(names))
    series = RULES[name](pd.Series(scores, names)[::-1], account(names))
    assert list(series.index) == names[::-1]
    np.testing.assert_array_equal(series[::-1].to_numpy(), array)

@RULE
@sparsely
@given(scores=SCORES)
def test_what_is_given_is_not_changed(name, scores):
    given_, state = np.array(scores), account(NAMES[:len(scores)])
    before, held = given_.copy(), state.held.copy()
    out = RULES[name](given_, state)
    assert out is not given_ and not np.shares_memory(out, given_)
    np.testing.assert_array_equal(given_, before)
    np.testing.assert_array_equal(state.held, held)

@RULE
def test_nothing_scored_is_no_decision(name):
    state = account(NAMES, memory={"ewma": .5})
    assert np.isnan(RULES[name](np.full(12, np.nan), state)).all()
    assert state.memory == {"ewma": .5}

@RULE
def test_infinite_is_refused(name):
    with pytest.raises(ValueError, match="infinite for N3"): RULES[name](np.where(np.arange(12) == 3, np.inf, 1.), account(NAMES))

@lightly
@given(scores=SCORES, k=st.integers(1, 15))
def test_sides_against_a_plain_sort(scores, k):
    names = NAMES[:len(scores)]
    ranked = sorted((-s, n) for s, n in zip(scores, names, strict=True) if not math.isnan(s))
    k_ = min(k, len(ranked)//2)
    best, worst = ranked[:k_], ranked[len(ranked) - k_:]
    falling = [n for s, n in worst if -s < 0]
    both = {n: .5/k_ for _, n in best} | {n: -.5/k_ for _, n in worst}
    ours = {n: .65/k_ for _, n in best} | {n: -.35/len(falling) for n in falling}
    series = pd.Series(scores, names)
    assert top_bottom(k)(series).pipe(lambda w: w[w != 0]).to_dict() == pytest.approx(both)
    assert filter_negative(k)(series).pipe(lambda w: w[w != 0]).to_dict() == pytest.approx(ours)

@lightly
@given(scores=SCORES)
def test_ranks_and_zscores_against_pandas(scores):
    series = pd.Series(scores, NAMES[:len(scores)])
    known = series.dropna()
    n = len(known)
    wanted = 2*(known.rank() - 1)/(n - 1) - 1 if n > 1 else known*0
    np.testing.assert_allclose(rank()(series), wanted.reindex(series.index), atol=1e-12)
    assume(n > 1 and known.std() > 1e-3)
    np.testing.assert_allclose(zscore(winsor=0)(series), (series - known.mean())/known.std(), atol=1e-9)

def test_zscore_is_winsorised_before_it_is_centred():
    scores = np.r_[np.arange(99.), 1e6]
    wanted = np.clip(scores, 1., 98.)
    np.testing.assert_allclose(zscore(.01)(scores, State(None, [f"{i:02}" for i in range(100)])), (wanted - wanted.mean())/wanted.std(ddof=1))


# Limits

WEIGHTS = st.lists(st.one_of(st.just(math.nan), st.floats(-3, 3)), min_size=1, max_size=12)

@lightly
@given(weights=WEIGHTS, name=st.floats(.001, 1), total=st.floats(.01, 3))
def test_caps_hold(weights, name, total):
    state = account(NAMES[:len(weights)])
    out = compose([cap(name), gross(total)])(weights, state)
    if not np.isnan(out).all():
        assert np.abs(out).max() <= name*(1 + 1e-12) and np.abs(out).sum() <= total*(1 + 1e-12)
        assert (out*np.nan_to_num(weights) >= 0).all(), "a limit never turns a long into a short"
        assert (np.abs(out) <= np.abs(np.nan_to_num(weights))).all(), "a limit never adds"

@lightly
@given(weights=st.lists(st.floats(-.05, .05), min_size=1, max_size=12))
def test_what_is_permitted_is_left_as_it_is(weights):
    state = account(NAMES[:len(weights)])
    np.testing.assert_array_equal(compose([cap(.05), gross(1.)])(weights, state), weights)

@lightly
@given(window=st.integers(2, 30), more=st.integers(-2, 3), move=st.floats(.001, .02), seed=st.integers(0, 99))
def test_volatility_factor_against_pandas(window, more, move, seed):
    returns = np.random.default_rng(seed).normal(0, move, window + more)
    factor = volatility_target(.08, window)([1.], State(None, ["A"], returns=returns))[0]
    assert .5 <= factor <= 2.
    realised = pd.Series(returns[-window:]).std()*math.sqrt(252)
    assert factor == pytest.approx(1. if more < 0 else min(max(.08/realised, .5), 2.))

def test_volatility_looks_at_the_last_window_only():
    calm, wild = np.resize([.004, -.004], 20), np.resize([.1, -.1], 300)
    def factor(returns): return volatility_target()([1.], State(None, ["A"], returns=returns))[0]
    assert factor(np.r_[wild, calm]) == factor(calm) != factor(np.r_[calm, wild])


# Memory

NIGHTS = st.lists(st.dictionaries(st.sampled_from(NAMES[:5]), st.one_of(st.floats(-1, 1), st.just(math.nan)), min_size=1), min_size=1, max_size=8)

@lightly
@given(nights=NIGHTS, alpha=st.floats(.01, 1))
def test_ewma_remembers_by_name_while_names_join(nights, alpha):
    memory, slow, by_hand, names = {}, ewma(alpha), {}, []
    for night in nights:
        names += [n for n in night if n not in names]
        if "ewma" in memory: memory["ewma"] = np.r_[memory["ewma"], np.full(len(names) - len(memory["ewma"]), np.nan)] # as the ledger does
        scores = np.array([night.get(n, math.nan) for n in names])
        out = slow(scores, State(None, names, memory=memory))
        if np.isnan(scores).all():
            assert np.isnan(out).all()
            continue
        by_hand = {n: alpha*(0 if math.isnan(s) else s) + (1 - alpha)*by_hand.get(n, 0.) for n, s in zip(names, scores.tolist(), strict=True)}
        assert dict(zip(names, out.tolist(), strict=True)) == by_hand, "to the last bit"
        out += 1 # what was given out is the caller's
        assert memory["ewma"].tolist() == list(by_hand.values())

def test_ewma_starts_from_what_is_held_and_then_from_its_own_word():
    names, memory = ["A", "B"], {}
    assert ewma(.5)([1., 0.], State(None, names, held=[0., .4], memory=memory)).tolist() == [.5, .2]
    assert ewma(.5)([1., 0.], State(None, names, held=[.9, .9], memory=memory)).tolist() == [.75, .1]

def test_two_memories_do_not_mix():
    memory = {}
    compose([ewma(.5, key="fast"), ewma(.1, key="slow")])([1.], State(None, ["A"], memory=memory))
    assert {k: v.tolist() for k, v in memory.items()} == {"fast": [.5], "slow": [.05]}

def test_state_by_default_is_an_account_in_cash():
    state = State(None, pd.Index(["A", "B"]))
    assert (state.held.tolist(), len(state.returns), state.nav, state.memory) == ([0., 0.], 0, 1., {})
    with pytest.raises(ValueError, match="one each"): State(None, ["A", "B"], held=[1.])
    with pytest.raises(AttributeError): state.nav = 2.

def test_rules_say_what_they_are():
    assert repr(filter_negative(k=5)) == "filter_negative(k=5, long=0.65, short=-0.35)"
    assert (cap(.1).__name__, cap(.1).params, filter_negative.__name__) == ("cap", {"name": .1}, "filter_negative")
    plain = compose([lambda w, s: w + 1, cap(.5)])
    assert plain([0., np.nan], State(None, ["A", "B"])).tolist() == [.5, 0.]
    @rule
    def mine(): return lambda w, s: w
    assert repr(mine()) == "mine()"

@pytest.mark.parametrize("make", [lambda: top_bottom(0), lambda: top_bottom(1.5), lambda: filter_negative(long=-1), lambda: directional(-1),
                                  lambda: zscore(.5), lambda: ewma(0), lambda: ewma(1.5), lambda: gross(-1), lambda: cap(0),
                                  lambda: volatility_target(0), lambda: volatility_target(window=1), lambda: volatility_target(low=3.),
                                  lambda: gross(math.nan), lambda: cap(math.nan), lambda: ewma(math.nan), lambda: volatility_target(math.nan),
                                  lambda: volatility_target(of="book"), lambda: volatility_target(of="unscaled", low=0.), lambda: threshold(math.nan),
                                  lambda: threshold(k=0), lambda: long_only(long=-1.), lambda: volatility_scaled(window=1), lambda: fixed_fractional(0),
                                  lambda: fixed_fractional(sigmas=-1.), lambda: fixed_fractional(math.nan), lambda: regime_filter(outside=2.),
                                  lambda: regime_filter(window=1), lambda: risk_parity(by="x"), lambda: risk_parity(within="x"), lambda: kelly(0),
                                  lambda: kelly(1.5), lambda: kelly(low=0.), lambda: kelly(math.nan), lambda: growth_optimal(2.),
                                  lambda: growth_optimal(expected="x"), lambda: growth_optimal(horizon=0), lambda: growth_optimal(shrink=2.),
                                  lambda: rebalance(0), lambda: rebalance("year"), lambda: rebalance(on="middle"), lambda: band(-1.),
                                  lambda: band(math.nan), lambda: band(1., relative=True), lambda: band(to="x"), lambda: hold(0), lambda: hold(1.5)])
def test_parameters_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError): make()


# Constructors

@lightly
@given(scores=SCORES, k=st.integers(1, 15), at=st.sampled_from([0., .5, 1.]))
def test_threshold_and_long_only_against_a_plain_sort(scores, k, at):
    names = NAMES[:len(scores)]
    ranked = sorted((-s, n) for s, n in zip(scores, names, strict=True) if not math.isnan(s))
    up, down = [n for s, n in ranked if -s > at][:k], [n for s, n in ranked if -s < -at][-k:]
    series = pd.Series(scores, names)
    held = {n: .5/len(up) for n in up} | {n: -.5/len(down) for n in down}
    assert threshold(at, k)(series).pipe(lambda w: w[w != 0]).to_dict() == pytest.approx(held)
    best = [n for _, n in ranked[:k]]
    assert long_only(k)(series).pipe(lambda w: w[w != 0]).to_dict() == pytest.approx({n: 1/len(best) for n in best})

@lightly
@given(scores=SCORES, k=st.integers(1, 6), parity=st.booleans())
def test_volatility_scaled_chooses_as_top_bottom_and_keeps_the_budgets(scores, k, parity):
    state = account(NAMES[:len(scores)])
    plain, scaled = top_bottom(k)(scores, state), volatility_scaled(k, window=20, parity=parity)(scores, state)
    np.testing.assert_array_equal(np.sign(scaled), np.sign(plain))
    for side in (plain > 0, plain < 0): assert scaled[side].sum() == pytest.approx(plain[side].sum())
    if not parity:
        moves = volatility(np.array([MOVES[n][-20:] for n in state.symbols]).T)
        for side in (plain > 0, plain < 0): assert np.ptp((scaled*moves)[side]) < 1e-12 if side.any() else True


# Risk

SEEDS = st.integers(0, 10**6)

@lightly
@given(seed=SEEDS, n=st.integers(2, 40), k=st.integers(2, 12))
def test_covariance_is_ledoit_and_wolfs(seed, n, k):
    learn = pytest.importorskip("sklearn.covariance")
    rng = np.random.default_rng(seed)
    returns = rng.normal(0, .01, (n, 1)) + rng.normal(0, .01, (n, k))*rng.uniform(.5, 3, k)
    np.testing.assert_allclose(covariance(returns), learn.LedoitWolf().fit(returns).covariance_, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(covariance(returns, 0.), np.cov(returns.T, ddof=0), rtol=1e-8, atol=1e-14)

@lightly
@given(seed=SEEDS, n=st.integers(4, 40), k=st.integers(1, 12), gone=st.floats(0, .9))
def test_what_is_missing_leaves_a_covariance(seed, n, k, gone):
    rng = np.random.default_rng(seed)
    returns = np.where(rng.random((n, k)) < gone, np.nan, rng.normal(0, .01, (n, k)))
    before, cov = returns.copy(), covariance(returns)
    np.testing.assert_array_equal(returns, before)
    assert np.isfinite(cov).all() and (cov == cov.T).all() and np.linalg.eigvalsh(cov).min() > -1e-12*cov.max()
    known = pd.DataFrame(returns).count() >= (n + 1)//2
    wanted = pd.DataFrame(returns).std().where(known)
    if wanted.notna().any(): np.testing.assert_allclose(volatility(returns), wanted.fillna(wanted.max()))
    else: assert (volatility(returns) == 1).all()

@lightly
@given(seed=SEEDS, n=st.integers(30, 60), k=st.integers(2, 12))
def test_risk_parity_keeps_gross_and_sides_and_shares_the_risk(seed, n, k):
    rng = np.random.default_rng(seed)
    past, weights = rng.normal(0, .01, (n, k))*rng.uniform(.2, 5, k) + rng.normal(0, .01, (n, 1)), rng.uniform(-1, 1, k)
    state = State(None, range(k), history={"return": past})
    out = risk_parity(n)(weights, state)
    np.testing.assert_array_equal(np.sign(out), np.sign(weights))
    assert np.abs(out).sum() == pytest.approx(np.abs(weights).sum())
    side = np.sign(weights)
    np.testing.assert_allclose(risk_contributions(np.abs(out), covariance(past*side)), 1/k, rtol=1e-6)

def test_risk_parity_against_skfolio():
    pytest.importorskip("skfolio")
    from skfolio.moments import LedoitWolf
    from skfolio.optimization import RiskBudgeting
    from skfolio.prior import EmpiricalPrior
    rng = np.random.default_rng(0)
    past = rng.normal(0, .01, (120, 8))*rng.uniform(.5, 3, 8) + rng.normal(0, .01, (120, 1))
    theirs = RiskBudgeting(prior_estimator=EmpiricalPrior(covariance_estimator=LedoitWolf())).fit(pd.DataFrame(past).add_prefix("N")).weights_
    np.testing.assert_allclose(risk_parity(120)(np.full(8, .125), State(None, range(8), history={"return": past})), theirs, rtol=1e-3)

@lightly
@given(seed=SEEDS, steps=st.integers(1, 60), window=st.integers(2, 20))
def test_unscaled_volatility_sees_the_book_before_scaling(seed, steps, window):
    rng = np.random.default_rng(seed)
    book, memory, returns, factors = rng.normal(0, .01, steps), {}, [], []
    size = volatility_target(window=window, of="unscaled")
    for t in range(steps):
        asked = rng.random() < .8 # some evenings nothing is scored
        if asked or not factors:
            factors.append(size([1.], State(None, ["A"], returns=returns, memory=json.loads(json.dumps(memory)) if t % 2 else memory))[0])
            if t % 2: size([1.], State(None, ["A"], returns=returns, memory=memory))
            own = pd.Series(book[:t])
            wanted = 1. if t < window else min(max(.08/(own[-window:].std()*math.sqrt(252)), .5), 2.)
            assert factors[-1] == pytest.approx(wanted)
        returns.append(factors[-1]*book[t])

@lightly
@given(closes=st.lists(st.one_of(st.floats(1, 100), st.just(math.nan)), min_size=1, max_size=30), window=st.integers(2, 10))
def test_regime_filter_against_pandas(closes, window):
    level = pd.Series(closes).tail(window).ffill().dropna()
    assume(len(level) < window or abs(level.iloc[-1] - level.mean()) > 1e-9)
    below = len(level) == window and level.iloc[-1] < level.mean()
    state = State(None, ["A", "B"], history={"close": np.c_[closes, closes]})
    assert regime_filter("B", window)([1., .5], state).tolist() == ([0., 0.] if below else [1., .5])


# Kelly

@lightly
@given(seed=SEEDS, n=st.integers(20, 80), k=st.integers(2, 10))
def test_bayes_stein_against_skfolio(seed, n, k):
    moments = pytest.importorskip("skfolio.moments")
    past = np.random.default_rng(seed).normal(.001, .01, (n, k))
    theirs = moments.ShrunkMu(method=moments.ShrunkMuMethods.BAYES_STEIN, vol_weighted_target=True).fit(past)
    np.testing.assert_allclose(bayes_stein(past.mean(axis=0), np.cov(past.T), n), theirs.mu_, rtol=1e-8, atol=1e-14)

@lightly
@given(seed=SEEDS, k=st.integers(1, 6), horizon=st.integers(1, 10))
def test_no_book_grows_faster_than_the_growth_optimal(seed, k, horizon):
    rng = np.random.default_rng(seed)
    past, scores = rng.normal(0, .01, (50, k)) + rng.normal(0, .005, (50, 1)), rng.normal(0, .002, k)
    best = growth_optimal(1., horizon=horizon, window=50)(scores, State(None, range(k), history={"return": past}))
    def rate(f): return f@scores/horizon - f@covariance(past)@f/2
    for _ in range(20): assert rate(best) >= rate(best + rng.normal(0, .1, k))

@lightly
@given(seed=SEEDS, steps=st.integers(1, 80))
def test_kelly_remembers_the_book_before_scaling(seed, steps):
    rng = np.random.default_rng(seed)
    book, memory, returns, size = rng.normal(.002, .01, steps), {}, [], kelly(.5, least=10, high=3.)
    for t in range(steps + 1):
        if t == 0 or rng.random() < .7:
            factor = size([1.], State(None, ["A"], returns=returns, memory=memory))[0]
            own = pd.Series(book[:t])
            t2 = t*own.mean()**2/own.var() if t > 1 else 0.
            believed = 0. if t < 2 or own.mean() <= 0 else own.mean()/own.var()*max(1 - 1/t2, 0.)
            assert factor == pytest.approx(.5 if t < 10 else min(max(.5*believed, .1), 3.))
        if t < steps: returns.append(factor*book[t])


# Rebalance

@lightly
@given(start=st.integers(0, 900), asked=st.lists(st.booleans(), min_size=1, max_size=60),
       every=st.sampled_from(["day", "week", "month", 3, 10]), on=st.sampled_from(["first", "last"]))
def test_rebalance_against_a_calendar_of_its_own(start, asked, every, on):
    days = calendar.sessions("2019-01-01", "2024-12-31")
    groups = {"week": days.isocalendar().year.astype(str) + "-" + days.isocalendar().week.astype(str), "month": days.strftime("%Y-%m")}
    scheduled = set(pd.Series(days, days).groupby(list(groups[every])).agg(on)) if every in groups else set()
    memory, when, last = {}, rebalance(every, on), None
    for i, there in enumerate(asked, start):
        if not there: continue
        out = when([.5], State(days[i], ["A"], held=[.3], memory=memory))
        step = 1 if every == "day" else every
        due = last is None or (any(d in scheduled for d in days[last + 1:i + 1]) if every in groups else i - last >= step)
        assert out.tolist() == ([.5] if due else [.3])
        if due: last = i

@lightly
@given(pairs=st.lists(st.tuples(st.floats(-.5, .5), st.floats(-.5, .5)), min_size=1, max_size=12), width=st.floats(0, .3),
       to=st.sampled_from(["edge", "target"]), relative=st.booleans())
def test_a_band_trades_no_more_than_it_must(pairs, width, to, relative):
    target, held = map(np.array, zip(*pairs, strict=True))
    out = band(width, to, relative)(target, State(None, range(len(target)), held=held))
    wide = width*np.abs(target) if relative else np.full(len(target), width)
    still = (np.abs(target - held) <= wide) & (target != 0)
    np.testing.assert_array_equal(out[still], held[still]) # to the bit: no order
    assert (np.abs(out - target) <= np.where(target == 0, 0., wide) + 1e-15).all()
    assert (np.abs(out - held) <= np.abs(target - held) + 1e-15).all()
    if to == "target": np.testing.assert_array_equal(out[~still], target[~still])

@lightly
@given(wanted=st.lists(st.tuples(st.sampled_from([-1., 0., 1.]), st.integers(1, 3)), min_size=1, max_size=25), sessions=st.integers(1, 6))
def test_hold_against_a_plain_count(wanted, sessions):
    days, memory, held, opened, i = calendar.sessions("2024-01-01", "2024-12-31"), {}, 0., None, 0
    for want, gap in wanted: # some evenings are skipped, a halt or no scores
        if held != 0 and opened is None: opened = i
        out = hold(sessions)([want], State(days[i], ["A"], held=[held], memory=memory))[0]
        young = held != 0 and i - opened + 1 < sessions and want*held <= 0
        assert out == (held if young else want)
        if out*held <= 0: opened = None
        held, i = out, i + gap

def test_the_best_width_is_least_of_what_is_lost():
    at, cost, part = best_width(.3, .002, 2.), .002, (.3*.7)**2
    def lost(w): return 2.*w**2/6 + cost*part/(2*w)
    assert lost(at) < min(lost(.99*at), lost(1.01*at))


# Real prices

def test_a_list_of_rules_on_real_prices():
    from tradenb.data.providers import fetch
    bars = fetch("market", None, "2009-08-01", "2010-03-31", universe="stocks_2009")
    close = bars.set_index(["session", "symbol"])["close"].unstack("symbol")
    moves, scores, names = close.pct_change(fill_method=None).to_numpy(), close.pct_change(20, fill_method=None), close.columns.to_numpy()
    rules = compose([volatility_scaled(38, .65, -.35, parity=True), ewma(.15), volatility_target(high=1., of="unscaled"),
                     rebalance("week"), band(.0005), hold(5), cap(.1), gross(1.2)])
    held, returns, memory, traded = np.zeros(len(names)), [], {}, {}
    for t in range(25, len(close)):
        move = np.nan_to_num(moves[t])
        returns.append(held@move)
        held = held*(1 + move)/(1 + returns[-1])
        state = State(close.index[t], names, held=held, returns=returns, memory=memory, history={"return": moves[:t + 1], "close": close.to_numpy()[:t + 1]})
        out = rules(scores.iloc[t].to_numpy(), state)
        traded[close.index[t]] = (out != held).sum()
        assert np.isfinite(out).all() and np.abs(out).sum() <= 1.2 + 1e-12 and np.abs(out).max() <= .1 + 1e-12
        held = out
    traded = pd.Series(traded)
    days = calendar.sessions(traded.index[0], traded.index[-1])
    ends = days[:-1][days.isocalendar().week.diff().shift(-1).fillna(0).ne(0)[:-1]]
    due = traded.index[[0, *traded.index.searchsorted(ends)]] # where the data has a hole, the evening after it
    assert len(due) > 20 and traded[due].min() > 0 == traded.drop(due).max(), "nothing is traded between two Fridays"
