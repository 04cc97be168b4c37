"The rules under scores, symbols and orders nobody would write by hand"
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tradenb.portfolio.limits import cap
from tradenb.portfolio.sizing import gross, volatility_target
from tradenb.portfolio.weights import State, compose, directional, ewma, filter_negative, rank, rule, top_bottom, zscore

RULES = {"filter_negative": filter_negative(k=3), "top_bottom": top_bottom(k=2), "directional": directional(.5, short=-1.), "rank": rank(),
         "zscore": zscore(winsor=.1), "ewma": ewma(alpha=.3), "gross": gross(.7), "volatility_target": volatility_target(window=5),
         "cap": cap(.1), "ranker": compose([filter_negative(k=3), ewma(.3, key="slow"), volatility_target(window=5), cap(.1), gross(.5)])}
NAMES = [f"N{i}" for i in range(12)]

# few distinct values, so that equal scores and missing ones are common
SCORE  = st.one_of(st.sampled_from([-2., -1., 0., 1., 2., math.nan]), st.floats(-5, 5))
SCORES = st.lists(SCORE, min_size=1, max_size=12).filter(lambda v: not all(map(math.isnan, v)))
RULE   = pytest.mark.parametrize("name", RULES)
lightly = settings(max_examples=60, deadline=None)

def account(names, returns=(.01, -.02, .01, .03, 0.), **kwargs): return State(None, names, returns=np.array(returns), **kwargs)

@RULE
@lightly
@given(scores=SCORES, random=st.randoms())
def test_the_order_of_the_symbols_means_nothing(name, scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    names, scores, held = np.array(NAMES[:len(scores)]), np.array(scores), np.linspace(-.1, .1, len(scores))
    here, there = account(names, held=held), account(names[order], held=held[order])
    for _ in range(2): one, other = RULES[name](scores, here), RULES[name](scores[order], there)
    np.testing.assert_allclose(other, one[order], rtol=1e-12, atol=1e-15)
    assert set(np.flatnonzero(one)) == {order[i] for i in np.flatnonzero(other)}

@RULE
@lightly
@given(scores=SCORES)
def test_a_series_gives_what_the_array_gives(name, scores):
    names = NAMES[:len(scores)]
    array = RULES[name](np.array(scores), account(names))
    series = RULES[name](pd.Series(scores, names)[::-1], account(names))
    assert list(series.index) == names[::-1]
    np.testing.assert_array_equal(series[::-1].to_numpy(), array)

@RULE
@lightly
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
    state = account(NAMES, memory={"ewma": {"N0": .5}})
    assert np.isnan(RULES[name](np.full(12, np.nan), state)).all()
    assert state.memory == {"ewma": {"N0": .5}}

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
@given(nights=NIGHTS, random=st.randoms(), alpha=st.floats(.01, 1))
def test_ewma_remembers_by_name_when_symbols_come_and_go(nights, random, alpha):
    memory, slow, by_hand = {}, ewma(alpha), {}
    for night in nights:
        names = list(night)
        random.shuffle(names)
        out = slow(np.array([night[n] for n in names]), State(None, names, memory=memory))
        memory = json.loads(json.dumps(memory)) # as the ledger keeps it
        if all(map(math.isnan, night.values())):
            assert np.isnan(out).all()
            continue
        by_hand = {n: alpha*(0 if math.isnan(night[n]) else night[n]) + (1 - alpha)*by_hand.get(n, 0.) for n in names}
        assert dict(zip(names, out.tolist(), strict=True)) == by_hand, "to the last bit, through JSON too"
        assert memory["ewma"] == by_hand

def test_ewma_starts_from_what_is_held_and_then_from_its_own_word():
    names, memory = ["A", "B"], {}
    assert ewma(.5)([1., 0.], State(None, names, held=[0., .4], memory=memory)).tolist() == [.5, .2]
    assert ewma(.5)([1., 0.], State(None, names, held=[.9, .9], memory=memory)).tolist() == [.75, .1]

def test_two_memories_do_not_mix():
    memory = {}
    compose([ewma(.5, key="fast"), ewma(.1, key="slow")])([1.], State(None, ["A"], memory=memory))
    assert memory == {"fast": {"A": .5}, "slow": {"A": .05}}

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
                                  lambda: gross(math.nan), lambda: cap(math.nan), lambda: ewma(math.nan), lambda: volatility_target(math.nan)])
def test_parameters_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError): make()
