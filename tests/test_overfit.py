"Overfitting: what independent implementations, random inputs and whole studies say that a lesson cannot"
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.linear_model import Ridge

from tradenb.validation.effective import effective_trials
from tradenb.validation.metrics import METRICS, intervals
from tradenb.validation.monte_carlo import monte_carlo, permutation_null
from tradenb.validation.noise import WARM, _settings, noise_market, noise_study, sweep
from tradenb.validation.overfit import PBO, deflated, dsr, expected_max_sharpe, min_btl, min_trl, moments, pbo, psr
from tradenb.validation.pbo import trial_matrix
from tradenb.validation.superior import spa, step_m

DAYS = pd.bdate_range("2010-01-04", periods=3000, name="session")


def frame(x, first=0): return pd.DataFrame(x, DAYS[first:first + len(x)]).add_prefix("trial ")


def alike(rng, sessions, families, each, rho):
    "Trials of zero mean; those of a family are correlated by rho"
    shared = np.repeat(rng.normal(size=(sessions, families)), each, axis=1)
    return frame(.01*(rho**.5*shared + (1 - rho)**.5*rng.normal(size=shared.shape)))


# --- probabilistic and deflated ------------------------------------------------------------------------------------------------------

@st.composite
def possible(draw):
    "sr, n, skew and a kurtosis that is possible beside the skew"
    skew = draw(st.floats(-4, 4))
    return draw(st.floats(-1, 1)), draw(st.integers(2, 5000)), skew, 1 + skew**2 + draw(st.floats(.1, 30))

@given(possible(), st.floats(-.5, .5), st.sampled_from(["2014", "2025"]))
def test_psr_is_a_probability_that_rises_with_the_ratio_and_falls_with_the_benchmark(m, benchmark, variant):
    sr, n, skew, kurt = m
    p = psr(sr, n, skew, kurt, benchmark, variant)
    assert 0 <= p <= 1 and psr(sr, n, skew, kurt, benchmark + .01, variant) <= p + 1e-12
    if variant == "2025": assert psr(sr + .01, n, skew, kurt, benchmark, variant) >= p - 1e-12   # 2014 may turn: its error grows with sr
    assert psr(sr, n, skew, kurt, sr, variant) == .5

@given(possible())
def test_psr_is_that_of_a_normal_distribution(m):
    sr, n, skew, kurt = m
    variance = (1 - skew*sr + (kurt - 1)/4*sr**2)/(n - 1)
    assert psr(sr, n, skew, kurt, .1) == pytest.approx(stats.norm.cdf(sr, .1, variance**.5), abs=1e-12)

@given(possible(), st.floats(.6, .999), st.sampled_from(["2014", "2025"]))
def test_min_trl_is_the_length_that_psr_needs(m, level, variant):
    sr, _, skew, kurt = m
    assume(sr > .02)
    n = min_trl(sr, skew, kurt, 0., level, variant)
    assume(n >= 2)
    assert psr(sr, n, skew, kurt, 0., variant) == pytest.approx(level, abs=1e-9)

@given(possible(), st.floats(1, 1e6), st.floats(0, .1), st.sampled_from(["2014", "2025"]))
def test_more_trials_never_help(m, trials, variance, variant):
    sr, n, skew, kurt = m
    one, more = (dsr(sr, n, skew, kurt, k, variance, "2014") for k in (trials, 2*trials))
    assert more <= one + 1e-12
    assert dsr(sr, n, skew, kurt, 1, variance, variant) == pytest.approx(psr(sr, n, skew, kurt, 0., variant), abs=1e-9)

@given(st.floats(1, 1e12), st.floats(1, 1e12))
def test_the_best_of_more_is_expected_higher(a, b):
    assert (expected_max_sharpe(min(a, b)) <= expected_max_sharpe(max(a, b))) and min_btl(a) == expected_max_sharpe(a)**2

@pytest.mark.parametrize("n", [2, 3, 10, 50, 1000])
def test_the_expected_best_is_near_the_exact_one(n):
    exact = integrate.quad(lambda x: x*n*stats.norm.pdf(x)*stats.norm.cdf(x)**(n - 1), -10, 10)[0]
    assert expected_max_sharpe(n) == pytest.approx(exact, abs=.05)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 400), st.sampled_from([1, 3, 30]))
def test_moments_are_scipys(seed, n, df):
    x = np.random.default_rng(seed).standard_t(df, n)*.01
    found = moments(x)
    assert found[:2] == (pytest.approx(x.mean()/x.std(ddof=1)), n)
    assert found[2:] == (pytest.approx(stats.skew(x), abs=1e-9), pytest.approx(stats.kurtosis(x, fisher=False), rel=1e-9))
    psr(*found)                                                    # measured moments are always possible ones

@pytest.mark.parametrize("kurt, said", [(0, "add 3"), (-.5, "add 3"), (np.nan, "a number is missing")])
def test_excess_kurtosis_is_refused_by_every_door(kurt, said):
    for call in (lambda: psr(.1, 100, 0, kurt), lambda: dsr(.1, 100, 0, kurt, 5), lambda: min_trl(.1, 0, kurt)):
        with pytest.raises(ValueError, match=said): call()

def test_psr_keeps_its_level_on_skewed_days():
    "Its 5% are about 5% where a normal test is far off"
    rng = np.random.default_rng(0)
    days = 1 - rng.exponential(size=(4000, 60))*1.     # mean 0, skew -2
    p = np.array([psr(*moments(d)) for d in days])
    normal = np.array([psr(moments(d).sr, 60, 0, 3) for d in days])
    # left-skewed records look too good: sample means above zero come with small deviations
    assert .03 < (p > .95).mean() < .09 and (normal > .95).mean() > (p > .95).mean()

def test_the_variant_of_2025_knows_serial_correlation():
    rng = np.random.default_rng(1)
    e = rng.normal(size=(3000, 300))
    x = np.zeros_like(e)
    for t in range(1, 300): x[:, t] = .3*x[:, t-1] + e[:, t]
    naive, honest = (np.mean([psr(*moments(r), variant="2025", rho=rho) > .95 for r in x]) for rho in (0., .3))
    assert naive > .09 and .035 < honest < .07


# --- the probability of overfitting ------------------------------------------------------------------------------------------------

def by_loop(x, n_blocks):
    "The paper, split by split"
    blocks, everything, logits, after = np.array_split(x, n_blocks), set(range(n_blocks)), [], []
    for inside in combinations(range(n_blocks), n_blocks // 2):
        past, future = (np.concatenate([blocks[b] for b in sorted(which)]) for which in (inside, everything - set(inside)))
        past, future = (h.mean(0)/h.std(0, ddof=1) for h in (past, future))
        omega = stats.rankdata(future)[past.argmax()]/(x.shape[1] + 1)
        logits.append(np.log(omega/(1 - omega)))
        after.append(future[past.argmax()])
    return np.array(logits), np.array(after)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([4, 6, 8]), st.integers(24, 90), st.floats(0, 2))
def test_pbo_is_that_of_the_loop(seed, trials, n_blocks, sessions, edge):
    "Also where the blocks are not equally long"
    rng = np.random.default_rng(seed)
    x = .01*(rng.standard_t(4, size=(sessions, trials)) + edge*rng.normal(size=trials))
    found, (logits, after) = pbo(frame(x), n_blocks, paths=0), by_loop(x, n_blocks)
    np.testing.assert_allclose(found.logits, logits, atol=1e-9)
    assert (found.value, found.loss) == ((logits <= 1e-12).mean(), (after < 0).mean())

@pytest.mark.parametrize("trials, n_blocks", [(10, 8), (40, 10), (40, 16)])
def test_demeaned_noise_is_exactly_one(trials, n_blocks):
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.normal(0, .01, (100*n_blocks, trials))
        found = pbo(frame(x - x.mean(0)), n_blocks, paths=0)
        assert found.value == 1. and found.loss == 1.

def test_scale_and_order_do_not_matter():
    rng = np.random.default_rng(2)
    x = frame(rng.normal(size=(400, 15)))
    found = pbo(x, 8, paths=0)
    assert pbo(x*rng.uniform(1e-4, 1e4, 15), 8, paths=0).value == found.value
    assert sorted(pbo(x.sample(frac=1, axis=1, random_state=0), 8, paths=0).logits.round(9)) == sorted(found.logits.round(9))

@pytest.mark.parametrize("edge, truth", [(0., .5), (2., None)])
def test_the_band_holds_what_it_says(edge, truth):
    "The expected answer lies in nine of ten bands at least"
    rng, sessions, trials, hit = np.random.default_rng(3), 500, 20, 0
    def world(): return frame(rng.normal(size=(sessions, trials)) + edge/252**.5*(np.arange(trials) == 0))
    truth = truth or np.mean([pbo(world(), 8, paths=0).value for _ in range(200)])
    for _ in range(40):
        low, high = pbo(world(), 8, paths=40, rng=rng).band
        hit += low <= truth <= high
    assert hit >= 35

def test_the_band_is_repeatable_and_the_generator_the_callers():
    x = frame(np.random.default_rng(4).normal(size=(300, 8)))
    a, b, c = pbo(x, 8), pbo(x, 8), pbo(x, 8, rng=np.random.default_rng(9))
    assert isinstance(a, PBO) and a.band == b.band != c.band and a.value == c.value

def test_axes_are_never_guessed():
    x = frame(np.random.default_rng(5).normal(size=(60, 6)))
    for wrong, said in ((x.T, "axes swapped"), (x.to_numpy().T, "axes swapped"), (x.to_numpy()[:6], "axes swapped"),
                        (x.reset_index(drop=True), "not sessions"), (x[::-1], "in order"), (x["trial 0"].to_numpy(), "dimensions")):
        for door in (lambda w: pbo(w, 4), spa, effective_trials):
            with pytest.raises((ValueError, TypeError), match=said): door(wrong)
    assert trial_matrix(x.to_numpy())[0].shape == (60, 6)

def test_a_flat_strategy_scores_zero():
    rng = np.random.default_rng(6)
    x = np.abs(rng.normal(size=(80, 3)))*[-1, 0, -2]        # two that only lose, one that does nothing
    found = pbo(frame(x), 4, paths=0)
    assert found.value == 0 and found.loss == 0


# --- the effective number of trials --------------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6), st.floats(0, 1), st.floats(0, .5))
def test_effective_trials_are_between_one_and_all(seed, families, each, rho, gone):
    rng = np.random.default_rng(seed)
    x = alike(rng, 200, families, each, rho)
    x = x.mask(np.arange(200)[:, None] < rng.integers(0, 1 + int(gone*200), x.shape[1]))
    found = effective_trials(x)
    assert 1 - 1e-9 <= found.n <= x.shape[1] + 1e-9 and found.variance > 0 and list(found.clusters.index) == list(x)
    turned = effective_trials(-3*x.iloc[:, ::-1])
    assert turned.n == pytest.approx(found.n, rel=1e-6)

@pytest.mark.parametrize("families, each, rho, n", [(20, 1, 0, 20), (1, 20, 1, 1), (4, 10, .999, 4), (5, 8, .7, 15.5), (1, 30, .6, 12.6)])
def test_effective_trials_of_known_crowds(families, each, rho, n):
    assert effective_trials(alike(np.random.default_rng(7), 1000, families, each, rho)).n == pytest.approx(n, rel=.08)

def test_a_crowd_without_skill_seldom_passes():
    "Sweeps of related trials: deflated by what is counted from their own returns, few pass"
    rng, passed = np.random.default_rng(8), 0
    for _ in range(100):
        x = alike(rng, 300, 2, 10, .7)
        counted = effective_trials(x)
        passed += deflated(x.iloc[:, int((x.mean()/x.std()).argmax())], counted.n, counted.variance) >= .95
    assert passed <= 5

def test_trials_that_never_risked_anything():
    idle = effective_trials(frame(np.zeros((50, 3))))
    assert (idle.n, idle.variance, idle.clusters.tolist()) == (1, 0, [-1]*3)
    assert dsr(.1, 50, 0, 3, idle.n, idle.variance) == psr(.1, 50, 0, 3)
    never = frame(np.random.default_rng(0).normal(size=(50, 3))).assign(**{"trial 1": np.nan})
    assert effective_trials(never).clusters.tolist() == [0, -1, 1]


# --- superior ------------------------------------------------------------------------------------------------------------------------

def test_spa_and_step_m_against_arch():
    "At equal risk, which arch needs since it does not studentise: the same p but for its draws, the same winners"
    bootstrap = pytest.importorskip("arch.bootstrap")
    rng = np.random.default_rng(9)
    for edge in (0, .12, .25):
        x = rng.normal(size=(500, 15)) + .5*rng.normal(size=(500, 1))
        x[:, 3] += edge
        x[:, 5] += edge/1.5
        x[:, 7] -= .4
        x /= x.std(0)
        theirs = bootstrap.SPA(np.zeros(500), -x, block_size=2, reps=1000, seed=1)
        theirs.compute()
        ours = spa(frame(x), block=2, n=1000)
        assert [ours.lower, ours.p, ours.upper] == pytest.approx(theirs.pvalues.tolist(), abs=.05)
        step = bootstrap.StepM(np.zeros(500), -x, block_size=2, reps=1000, seed=1)
        step.compute()
        assert {f"trial {k}" for k in step.superior_models} == set(step_m(frame(x), block=2))

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_spa_is_in_order_and_blind_to_scale(seed, trials):
    rng = np.random.default_rng(seed)
    x = frame(rng.normal(.05, 1, size=(100, trials)))
    found = spa(x, n=99, block=2)
    assert found.lower <= found.p <= found.upper and found.table["p"].is_monotonic_increasing and found.table["p"].iloc[0] == found.p
    scaled = spa(x*rng.uniform(.01, 100, trials), n=99, block=2).table["p"]
    pd.testing.assert_series_equal(found.table["p"], scaled[found.table.index])


# --- Monte Carlo ---------------------------------------------------------------------------------------------------------------------

def record(n=300, mean=.0005, seed=10): return pd.Series(np.random.default_rng(seed).normal(mean, .01, n), DAYS[:n])

def test_every_metric_of_a_record_has_its_worlds():
    r = record()
    table = intervals(r, n=150, closed=False)
    for name in table.index:
        found = monte_carlo(r, name, n=150)
        assert found.value == pytest.approx(METRICS[name](r.to_numpy())) and len(found.draws) == 150
        assert [found.low, found.high] == pytest.approx(table.loc[name, ["low", "high"]].tolist(), nan_ok=True)

@pytest.mark.parametrize("method", ["stationary", "parametric"])
def test_intervals_hold_what_they_say(method):
    truth = .05*252**.5
    inside = [(i := monte_carlo(record(250, .0005, seed), "sharpe", method, 200)).low <= truth <= i.high for seed in range(120)]
    assert 105 <= sum(inside) <= 120

def test_permuting_the_order_keeps_what_does_not_depend_on_it():
    r = record()
    found = monte_carlo(r, lambda x: x.sum(-1) + x[..., 0], "permutation", 50)
    assert found.draws - r.sum() == pytest.approx([d for d in found.draws - r.sum()]) and set((found.draws - r.sum()).round(12)) <= set(r.round(12))

@pytest.mark.parametrize("shuffle", ["time", "names"])
def test_permutation_null_keeps_its_level(shuffle):
    rng, low = np.random.default_rng(11), 0
    for _ in range(100):
        held, market = (pd.DataFrame(rng.normal(size=(120, 8)), DAYS[:120]) for _ in range(2))
        low += permutation_null(held.rolling(5, min_periods=1).mean(), market, shuffle=shuffle, n=99, rng=rng).p <= .1
    assert 2 <= low <= 20


# --- the study -----------------------------------------------------------------------------------------------------------------------

def test_noise_looks_great_and_is_not_believed():
    "Fifty models on markets of noise: fine records, no discoveries, an overfitting of one half"
    study = noise_study(24)
    assert study["best"].median() > 1 and (study["best"] > 1).mean() > .6
    assert (study["dsr"] < .95).mean() >= .95 and (study["dsr_2025"] < .95).mean() >= .9
    assert .4 < study["pbo"].mean() < .65 and abs(study["after"].mean()) < .5 and study["effective"].between(10, 45).all()

def test_what_is_there_is_found():
    "Of a strength of 0.05 at least three in four, and the choice goes on to earn"
    study = noise_study(16, strength=.05, rng=np.random.default_rng(1))
    assert (study["dsr"] >= .95).mean() >= .75 and (study["dsr_2025"] >= .95).mean() >= .85
    assert study["pbo"].mean() < .05 and study["after"].mean() > 3

def test_a_model_of_the_sweep_is_the_ridge_it_says():
    market, rng = noise_market(WARM + 42, names=10), np.random.default_rng(12)
    found, (columns, window, shrinkage) = sweep(market, 3, rng), _settings(3, 12, np.random.default_rng(12))[1]
    y = market.returns - market.returns.mean(1, keepdims=True)
    for at in (WARM, WARM + 21):
        rows = slice(at - window, at)
        ridge = Ridge(alpha=max(shrinkage, 1e-9), fit_intercept=False)
        ridge.fit(market.features[rows][..., columns].reshape(-1, len(columns)), y[rows].ravel())
        score = market.features[at:at+21][..., columns] @ ridge.coef_
        score -= score.mean(1, keepdims=True)
        expected = (score*market.returns[at:at+21]).sum(1) / np.abs(score).sum(1)
        np.testing.assert_allclose(found[at-WARM:at-WARM+21, 1], expected, rtol=1e-6)
