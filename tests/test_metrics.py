"Judging: numbers that agree with independent ones, errors that cover what they say, sentences that say what they must"
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.validation.calibration import auc, brier, calibration_error, calibration_slope, log_loss, rmse
from tradenb.validation.inference import block_length, eta, newey_west, sharpe_errors, sharpe_se, stationary_bootstrap
from tradenb.validation.metrics import (
    METRICS,
    drawdown,
    drawdown_table,
    ic,
    ic_summary,
    intervals,
    monthly,
    omega,
    reliability,
    scorecard,
    spread,
    stress,
    tear,
    value_at_risk,
    verdict,
)
from tradenb.validation.overfit import dsr, min_btl
from tradenb.validation.periods import STRESS
from tradenb.validation.prediction import paired, quantiles
from tradenb.validation.scorecard import KINDS
from tradenb.validation.verdict import _luck

DAYS = pd.bdate_range("2019-01-02", periods=2520, name="session")


# --- inference ------------------------------------------------------------------------------------------------------

def ar1(n, rho, rng, shock=lambda rng, n: rng.normal(size=n)):
    from scipy.signal import lfilter
    return lfilter([1], [1, -rho], shock(rng, n + 200))[200:]

@pytest.mark.parametrize("lags", [0, 1, 7])
def test_newey_west_agrees_with_statsmodels(lags):
    sm = pytest.importorskip("statsmodels.api")
    x = ar1(400, .4, np.random.default_rng(1))
    theirs = sm.OLS(x, np.ones(400)).fit(cov_type="HAC", cov_kwds={"maxlags": lags}).bse[0]
    assert newey_west(x, lags) == pytest.approx(theirs, rel=1e-12)

@pytest.mark.parametrize("rho", [.3, .6])
def test_runs_are_as_long_as_theory_wants_them(rho):
    "For an AR(1), (G/g)**2 is (2 rho / (1 - rho**2))**2"
    n, rng = 4000, np.random.default_rng(2)
    found = np.median([block_length(ar1(n, rho, rng)) for _ in range(15)])
    assert found == pytest.approx((n * (2*rho/(1 - rho**2))**2)**(1/3), rel=.25)

def test_runs_are_about_as_long_as_those_of_arch():
    bootstrap = pytest.importorskip("arch.bootstrap")
    rng = np.random.default_rng(3)
    for rho in (.2, .5, .8):
        x = ar1(2000, rho, rng)
        theirs = max(bootstrap.optimal_block_length(v)["stationary"].item() for v in (x, x**2))
        assert block_length(x) == pytest.approx(theirs, rel=.35)

def test_the_bootstrap_knows_the_error_of_a_mean_under_serial_correlation():
    x, rng = ar1(2000, .5, np.random.default_rng(4)), np.random.default_rng(5)
    error = x[stationary_bootstrap(2000, block_length(x), 2000, rng)].mean(axis=1).std()
    assert error == pytest.approx((1/.5)/2000**.5, rel=.15)     # sigma / (1 - rho) / root n
    assert x[stationary_bootstrap(2000, 1, 2000, rng)].mean(axis=1).std() < .7*error

def test_runs_have_the_length_that_was_asked_for():
    at = stationary_bootstrap(1000, 8, 200)
    jumps = (np.diff(at) % 1000 != 1).mean()
    assert jumps == pytest.approx(1/8, rel=.03) and at.min() == 0 and at.max() == 999


def lagged_sums(rho, n=200_000, seed=0):
    "Long-run variances of a standardised AR(1) with skewed shocks: of x, of x and x squared, of x squared; and its own moments"
    x = ar1(n, rho, np.random.default_rng(seed), shock=lambda rng, n: (rng.gamma(.5, size=n) - .5)*2**.5)
    z = (x - x.mean())/x.std()
    q = z**2 - 1
    def total(a, b): return np.mean(a*b) + sum(np.mean(a[k:]*b[:-k]) + np.mean(a[:-k]*b[k:]) for k in range(1, 30))
    return total(z, z), total(z, q), total(q, q), stats.skew(z), stats.kurtosis(z, fisher=False)

@pytest.mark.parametrize("rho", [-.3, 0., .5])
def test_the_formula_of_2025_is_the_delta_method_on_long_run_covariances(rho):
    "Var of mean/sd is, per period, C(x,x) - S C(x,x2) + S2/4 C(x2,x2), whatever the process; here summed up from a simulated one"
    xx, xq, qq, skew, kurt = lagged_sums(rho)
    for s in (.1, .5):
        assert sharpe_se(s, 1, skew, kurt, rho)**2 == pytest.approx(xx - s*xq + s**2/4*qq, rel=.04), s

def test_the_formula_of_2025_holds_those_before_it():
    assert sharpe_se(.5, 60, 0, 3, 0) == sharpe_se(.5, 60) == pytest.approx(0.13693063937629152, abs=1e-15)
    assert sharpe_se(.7079, 134, -.225, 2.957) == pytest.approx(.1028, abs=5e-4)      # Bailey and Lopez de Prado 2012
    assert sharpe_se(.8183, 134, -1.4455, 7.0497) == pytest.approx(.155, abs=1e-3)
    x = np.random.default_rng(3).standard_t(5, 500)*.01 + .001
    z, s = (x - x.mean())/x.std(), x.mean()/x.std(ddof=1)
    rho = z[1:] @ z[:-1] / 500
    assert sharpe_errors(x)["2025"] == pytest.approx(sharpe_se(s, 500, (z**3).mean(), (z**4).mean(), rho), rel=1e-12)
    assert sharpe_errors(x)["Lo 2002"] == pytest.approx(sharpe_se(s, 500), rel=1e-12)
    assert np.isnan(list(sharpe_errors(np.full(50, .01)).values())).all()

def test_quantstats_calls_mean_reversion_a_penalty_and_lo_does_not():
    qs = pytest.importorskip("quantstats").stats
    r = pd.Series(ar1(2000, -.3, np.random.default_rng(1))*.01 + .001, DAYS[:2000])
    assert qs.smart_sharpe(r) < qs.sharpe(r) and eta(252, -.3) > eta(252, 0)


# --- metrics --------------------------------------------------------------------------------------------------------

def record(n=756, seed=0, mean=.0005):
    rng = np.random.default_rng(seed)
    return pd.Series(rng.standard_t(4, n)*.008 + mean, DAYS[:n]), pd.Series(rng.normal(.0003, .01, n), DAYS[:n])

def test_metrics_work_along_the_last_axis():
    "The same line judges one history and many"
    rng = np.random.default_rng(6)
    many = {k: rng.normal(0, .02, (5, 4, 60)) for k in "rbgux"}
    for name, fn in METRICS.items():
        takes = fn.__code__.co_varnames[:fn.__code__.co_argcount]
        all_at_once = fn(*(many[k] for k in takes))
        assert all_at_once.shape == (5, 4), name
        one = [[float(fn(*(many[k][i, j] for k in takes))) for j in range(4)] for i in range(5)]
        np.testing.assert_allclose(all_at_once, one, rtol=1e-12, err_msg=name)
        assert fn.__doc__, name

def test_tear_agrees_with_scipy_and_with_loops():
    r, b = record()
    sheet, x = tear(r, b), r.to_numpy()
    assert sheet["skew"] == pytest.approx(stats.skew(x)) and sheet["kurtosis"] == pytest.approx(stats.kurtosis(x, fisher=False))
    line = stats.linregress(b, r)
    assert sheet["beta"] == pytest.approx(line.slope) and sheet["alpha"] == pytest.approx(252*line.intercept)
    wealth = best = 1.
    under = []
    for v in x:
        wealth *= 1 + v
        best = max(best, wealth)
        under.append(wealth/best - 1)
    longest = max(len(run) for run in "".join("u" if u < 0 else " " for u in under).split())
    np.testing.assert_allclose(drawdown(r), under, atol=1e-12)
    assert sheet["drawdown_sessions"] == longest
    assert sheet["max_drawdown"] == pytest.approx(min(under)) and sheet["ulcer"] == pytest.approx(np.mean(np.square(under))**.5)
    assert sheet["cagr"] == pytest.approx(wealth**(252/len(x)) - 1)
    table = drawdown_table(r, top=10**6)
    assert table["depth"].iloc[0] == sheet["max_drawdown"] and table["sessions"].sum() == sum(u < 0 for u in under)
    assert (table["recovered"].isna().sum() == 1) == (under[-1] < 0)

def test_tear_agrees_with_empyrical():
    em = pytest.importorskip("empyrical")
    r, b = record(seed=1)
    sheet = tear(r, b)
    for name, theirs in dict(omega=em.omega_ratio(r), stability=em.stability_of_timeseries(r), downside=em.downside_risk(r),
                             cagr=em.cagr(r), volatility=em.annual_volatility(r), sharpe=em.sharpe_ratio(r), sortino=em.sortino_ratio(r),
                             calmar=em.calmar_ratio(r), max_drawdown=em.max_drawdown(r), total_return=em.cum_returns_final(r),
                             var_95=em.value_at_risk(r), cvar_95=em.conditional_value_at_risk(r), tail_ratio=em.tail_ratio(r),
                             beta=em.beta(r, b)).items():
        assert sheet[name] == pytest.approx(theirs, rel=1e-9), name
    assert em.alpha(r, b) == pytest.approx((1 + sheet["alpha"]/252)**252 - 1)
    assert em.excess_sharpe(r, b)*252**.5 == pytest.approx(sheet["information_ratio"])
    assert omega(r, .1) == pytest.approx(em.omega_ratio(r, required_return=.1)) and omega(r) == pytest.approx(sheet["profit_factor"])
    for side, good in ("up", b > 0), ("down", b < 0):
        assert sheet[f"{side}_capture"] == pytest.approx(r[good].mean()/b[good].mean())
        theirs = getattr(em, f"{side}_capture")
        assert theirs(r, b) == pytest.approx(((1 + r[good]).prod()**(252/good.sum()) - 1)/((1 + b[good]).prod()**(252/good.sum()) - 1))
        assert abs(theirs(2*b, b) - 2) > .5 and tear(2*b, b)[f"{side}_capture"] == pytest.approx(2)   # a year of good days alone

def test_tear_agrees_with_quantstats_but_where_the_lesson_says():
    qs = pytest.importorskip("quantstats").stats
    r, b = record(seed=2)
    sheet, n = tear(r, b), len(r)
    for name, theirs in dict(cagr=qs.cagr(r, periods=252), sharpe=qs.sharpe(r), sortino=qs.sortino(r), max_drawdown=qs.max_drawdown(r),
                             hit_rate=qs.win_rate(r), profit_factor=qs.profit_factor(r), tail_ratio=qs.tail_ratio(r),
                             omega=qs.omega(r), payoff=qs.payoff_ratio(r), volatility=qs.volatility(r), calmar=qs.calmar(r), best_day=qs.best(r),
                             worst_day=qs.worst(r), beta=qs.greeks(r, b)["beta"], alpha=qs.greeks(r, b)["alpha"],
                             var_95_normal=qs.value_at_risk(r), cvar_95_normal=qs.cvar(r)).items():
        assert sheet[name] == pytest.approx(theirs, rel=1e-9), name
    assert qs.ulcer_index(r) == pytest.approx(sheet["ulcer"]*(n/(n - 1))**.5)
    assert qs.skew(r) == pytest.approx(stats.skew(r, bias=False)) and qs.kurtosis(r) == pytest.approx(stats.kurtosis(r, bias=False))
    normal = stats.norm.ppf(.05, r.mean(), r.std())
    assert qs.value_at_risk(r) == pytest.approx(normal) and qs.cvar(r, method="historical") == pytest.approx(sheet["cvar_95"])
    assert qs.cvar(r) == pytest.approx(r.mean() - r.std()*stats.norm.pdf(stats.norm.ppf(.05))/.05)
    assert qs.information_ratio(r, b)*252**.5 == pytest.approx(sheet["information_ratio"])
    assert qs.r_squared(r, b) == pytest.approx(sheet["correlation"]**2)
    some = r.where(np.arange(n) % 8 > 0, 0.)
    assert tear(some)["time_in_market"] == pytest.approx(1 - np.ceil(n/8)/n) and qs.exposure(some) == .88      # rounded up
    assert qs.monthly_returns(r, eoy=False).iloc[-1, -1] == 0 and np.isnan(monthly(r).iloc[-1, -1])
    gains = pd.Series([.1, .2, 1.5, .1], DAYS[:4])
    assert qs.comp(gains) == pytest.approx(2.63) and qs.volatility(gains) != pytest.approx(tear(gains)["volatility"])   # taken for prices

def test_thirty_and_more_each_with_its_basis():
    r, b = record()
    sheet = tear(r, b, b.abs())
    assert len(sheet) >= 36 and len(tear(r)) >= 28 and sheet.notna().all() and set(sheet.index) < set(METRICS)
    assert set(tear(r, gross=r + .001, exposure=b.abs()).index) - set(tear(r).index) == {"cost_drag", "exposure"}
    for name in ("volatility", "sharpe", "downside", "sortino", "alpha", "tracking_error", "cagr", "cost_drag"):
        assert "252" in METRICS[name].__doc__, name

def test_value_at_risk_is_the_quantile_of_the_distribution_that_is_named():
    r, _ = record(2000, seed=4)
    r = r.clip(-.03, .03)
    for level in (.95, .99):
        tail = (np.arange(200_000) + .5)/200_000*(1 - level)
        z, s, k = stats.norm.ppf(tail), stats.skew(r), stats.kurtosis(r)
        bent = z + (z**2 - 1)/6*s + (z**3 - 3*z)/24*k - (2*z**3 - 5*z)/36*s**2
        for method, q in ("normal", z), ("cornish_fisher", bent):
            found = value_at_risk(r, level, method)
            assert found["var"] == pytest.approx(r.mean() + r.std()*q[-1], rel=1e-5)
            assert found["cvar"] == pytest.approx(r.mean() + r.std()*q.mean(), rel=1e-4)
        var = r.quantile(1 - level)
        np.testing.assert_allclose(value_at_risk(r, level), [var, r[r <= var].mean()])
    sheet = tear(r)
    assert sheet["cvar_95_cornish_fisher"] == pytest.approx(value_at_risk(r, .95, "cornish_fisher")["cvar"])

def test_worst_runs_and_capture_agree_with_loops():
    r, b = record(300, seed=5)
    sheet = tear(r, b)
    for name, n in ("worst_week", 5), ("worst_month", 21):
        assert sheet[name] == pytest.approx(min((1 + r.iloc[i:i+n]).prod() - 1 for i in range(300 - n + 1)))
    assert sheet["correlation"] == pytest.approx(np.corrcoef(r, b)[0, 1]) and sheet["tracking_error"] == pytest.approx((r - b).std()*252**.5)
    assert tear(r, gross=r + .0002)["cost_drag"] == pytest.approx(.0504)

returns = st.lists(st.floats(-1, 3, allow_subnormal=False), min_size=1, max_size=30)

@settings(max_examples=120, deadline=None)
@given(returns)
def test_any_returns_at_all_give_a_sheet_without_a_warning(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = tear(x, x[::-1], np.abs(x), x, np.abs(x))
    assert -1 <= sheet["max_drawdown"] <= 0 and sheet["total_return"] >= -1 and not np.isinf(sheet).any()
    assert sheet["cvar_95"] <= sheet["var_95"] + 1e-12 and 0 <= sheet["drawdown_sessions"] <= len(x)

@pytest.mark.parametrize("x", [[0.]*300, [.001]*300, [0.]*299 + [.01], [-1.] + [.01]*299])
def test_odd_histories_have_intervals_and_a_verdict(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, said = intervals(pd.Series(x, DAYS[:300]), n=50), verdict(pd.Series(x, DAYS[:300]))
    assert len(table) == len(tear(x)) and said.endswith(".")

def test_months_compound_to_the_total():
    r, _ = record()
    table = monthly(r)
    assert (1 + table).prod(axis=None) - 1 == pytest.approx(tear(r)["total_return"])
    assert table.loc[2020, "Mar"] == pytest.approx((1 + r["2020-03"]).prod() - 1)

def test_sharpe_intervals_cover_the_truth_as_often_as_they_say():
    rng, true = np.random.default_rng(7), 1.
    worlds = rng.normal(true*.01/252**.5, .01, (200, 500))
    for closed, least in (True, .91), (False, .85):
        rows = [intervals(x, "sharpe", closed=closed, n=150, block=1).loc["sharpe"] for x in worlds[:200 if closed else 40]]
        assert least <= np.mean([row["low"] <= true <= row["high"] for row in rows]) <= .985

def test_a_longer_benchmark_is_met_session_by_session():
    r, b = record()
    late = r.iloc[100:]
    pd.testing.assert_series_equal(tear(late, b, b.abs()), tear(late, b.iloc[100:], b.abs().iloc[100:]))

def test_interval_is_the_quantiles_of_the_resampled_metric():
    r, _ = record(400)
    x = r.to_numpy()[stationary_bootstrap(400, 5, 300, np.random.default_rng(3))]
    found = intervals(r, "volatility", n=300, block=5, level=.9, rng=np.random.default_rng(3)).loc["volatility"]
    drawn = METRICS["volatility"](x)
    np.testing.assert_allclose(found[["se", "low", "high"]].astype(float), [drawn.std(ddof=1), *np.quantile(drawn, [.05, .95])])

def test_the_formula_is_used_where_it_is_named():
    r, _ = record(400)
    row, s = intervals(r, "sharpe").loc["sharpe"], tear(r)["sharpe"]
    assert row["method"].startswith("Lo 2002") and row["se"] == pytest.approx(max(sharpe_errors(r).values())*252**.5)
    assert row["se"] >= ((1 + s**2/252/2)/400*252)**.5 and row["high"] - s == pytest.approx(stats.norm.ppf(.975)*row["se"])

def test_sharpe_intervals_cover_where_los_alone_would_not():
    rng, held = np.random.default_rng(12), {"Lo 2002": 0, "intervals": 0}
    for _ in range(120):
        x = ar1(400, .4, rng)*.01 + .001
        s, se = x.mean()/x.std(ddof=1), sharpe_errors(x)
        true = .1*(1 - .4**2)**.5
        row = intervals(x, "sharpe").loc["sharpe"]
        held["Lo 2002"] += abs(s - true) <= 1.96*se["Lo 2002"]
        held["intervals"] += row["low"] <= true*252**.5 <= row["high"]
    assert held["Lo 2002"] < .85*120 and .9*120 < held["intervals"]

def test_a_record_as_long_as_the_verdict_asks_for_is_just_enough():
    "Four years at 0.5 with an error of 0.5: the error must fall to 0.5 / 1.96, so (1.96)**2 times as long"
    said = _luck(.5, .5, 4., 1, .95)
    assert "takes 15.4 years of record, 11.4 more" in said
    assert "more than luck" in _luck(.5, .5*(4/15.5)**.5, 15.5, 1, .95)
    assert "not distinguishable" in _luck(.5, .5*(4/15.2)**.5, 15.2, 1, .95)

def test_intervals_are_repeatable_and_the_generator_is_the_callers():
    r, b = record(300)
    pd.testing.assert_frame_equal(intervals(r, benchmark=b, n=150), intervals(r, benchmark=b, n=150))
    a, c = (intervals(r, "calmar", n=150, rng=np.random.default_rng(seed))["se"].item() for seed in (1, 2))
    assert a != c

def test_the_best_of_twenty_is_luck_if_it_is_said_that_there_were_twenty():
    rng, alone, widened = np.random.default_rng(8), 0, 0
    for _ in range(40):
        worlds = rng.normal(0, .01, (20, 300))
        best = worlds[np.argmax(worlds.mean(1)/worlds.std(1))]
        alone += "not distinguishable from luck" not in verdict(best)
        widened += "not distinguishable from luck" not in verdict(best, trials=20)
    assert widened <= 5 and alone >= 10

def test_verdict_says_what_it_must():
    r, _ = record(2000, mean=.003)
    assert "bug until proven otherwise" in verdict(r) and "more than luck" in verdict(r)
    poor = pd.Series(np.random.default_rng(9).normal(-.002, .01, 2000), DAYS[:2000])
    assert "worse than bad luck" in verdict(poor) and "Costs eat the edge" in verdict(poor, gross=poor + .004)
    assert "no edge even before costs" in verdict(poor, gross=poor + .0001)
    smooth = pd.Series(ar1(1000, .5, np.random.default_rng(10))*.01 + .001, DAYS[:1000])
    assert "resembles the one before" in verdict(smooth)
    assert "Nothing can be said of 19 sessions" in verdict(r[:19]) and "too few to have seen" in verdict(r[:100])
    assert "account was lost" in verdict(pd.Series([.01]*30 + [-1.], DAYS[:31]))
    assert "Nothing was risked" in verdict(pd.Series(0., DAYS))
    with pytest.raises(ValueError, match="swapped"): verdict(r, gross=r - .001)
    with pytest.raises(ValueError, match="gross returns lacks 1"): verdict(r, gross=r[1:])


def test_the_verdict_deflates_by_what_overfit_says():
    r, _ = record(756, seed=6, mean=.001)
    s, x = tear(r), r.to_numpy()
    for effective, variance in (None, None), (9, .0009), (9.4, None), (1, .001):
        said = verdict(r, trials=37, effective=effective, variance=variance)
        n = 37 if effective is None else effective
        p = dsr(x.mean()/x.std(ddof=1), 756, s["skew"], s["kurtosis"], n, variance)
        count = "37 trials" if effective is None else f"37 trials, effectively {n:.0f}"
        assert f"This is one of {count}: the deflated Sharpe ratio is {np.floor(100*p)/100:.2f}, {'below' if p < .95 else 'not below'} the bar of 0.95." in said
        assert ("too few to choose from them" in said) == (3 < min_btl(n))
        assert ("widened" in said) == (n > 1)
    assert "deflated" not in verdict(r) and "counts one trial" not in verdict(r, trials=37, effective=1)
    for bad in dict(trials=0), dict(trials=2, effective=3), dict(trials=5, effective=.5):
        with pytest.raises(ValueError, match="effective="): verdict(r, **bad)

def test_stress_windows_are_those_of_the_calendar():
    index = pd.bdate_range("2020-01-02", "2020-06-30", name="session")
    r = pd.Series(np.random.default_rng(0).normal(0, .01, len(index)), index)
    table = stress(r, r/2)
    assert table.index.tolist() == ["pandemic 2020"] and table.iloc[0][["sessions", "of"]].tolist() == [23, 23]
    part = r["2020-02-20":"2020-03-23"]
    assert table["total_return"].item() == pytest.approx((1 + part).prod() - 1)
    assert table["benchmark"].item() == pytest.approx((1 + part/2).prod() - 1) and table["worst_day"].item() == part.min()
    assert stress(r, r[:60])["benchmark"].notna().all() and stress(r, r[:50])["benchmark"].isna().all()
    assert stress(r, windows={"june": ("2020-06-01", "2020-06-30")})["sessions"].item() == 22


# --- calibration and scores -----------------------------------------------------------------------------------------

def forecasts(n=3000, seed=0, steps=None):
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=n)
    if steps: p = np.round(p*steps)/steps
    y = (rng.random(n) < np.clip(.2 + .6*p, 0, 1)).astype(float)
    return p, y, rng.integers(0, 4, n).astype(float)

@pytest.mark.parametrize("steps", [None, 10])
def test_calibration_agrees_with_scikit_learn(steps):
    "With ties, weights, and probabilities of 0 and 1"
    m = pytest.importorskip("sklearn.metrics")
    from sklearn.calibration import calibration_curve
    p, y, w = forecasts(steps=steps)
    assert rmse(p, y, w)**2 == pytest.approx(m.mean_squared_error(y, p, sample_weight=w), rel=1e-9)
    for mine, theirs in (auc, m.roc_auc_score), (brier, m.brier_score_loss), (log_loss, m.log_loss):
        assert mine(p, y) == pytest.approx(theirs(y, p), rel=1e-9)
        assert mine(p, y, w) == pytest.approx(theirs(y, p, sample_weight=w), rel=1e-9)
    for strategy in ("uniform", "quantile"):
        table = reliability(p, y, 7, strategy)
        observed, predicted = calibration_curve(y, p, n_bins=7, strategy=strategy)
        np.testing.assert_allclose(table[["observed", "predicted"]], np.c_[observed, predicted])
        error = (abs(table["observed"] - table["predicted"])*table["rows"]).sum()/len(p)
        assert calibration_error(p, y, bins=7, strategy=strategy) == pytest.approx(error) and table["rows"].sum() == len(p)

def test_calibration_slope_and_wilson_agree_with_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    from statsmodels.stats.proportion import proportion_confint
    p, y, w = forecasts()
    p = p.clip(.01, .99)
    X = sm.add_constant(np.log(p/(1 - p)))
    assert calibration_slope(p, y) == pytest.approx(sm.Logit(y, X).fit(disp=0).params[1], rel=1e-6)
    assert calibration_slope(p, y, w) == pytest.approx(sm.GLM(y, X, family=sm.families.Binomial(), freq_weights=w).fit().params[1], rel=1e-6)
    assert calibration_slope(p, y, link="identity") == pytest.approx(sm.OLS(y, sm.add_constant(p)).fit().params[1])
    table = reliability(p, y)
    low, high = proportion_confint(table["observed"]*table["rows"], table["rows"], method="wilson")
    np.testing.assert_allclose(table[["low", "high"]], np.c_[low, high])

def test_a_weight_is_a_row_that_is_there_as_often():
    p, y, w = forecasts(500)
    often = np.repeat(np.arange(500), w.astype(int))
    for fn in (auc, brier, log_loss, calibration_slope, calibration_error, rmse):
        assert fn(p, y, w) == pytest.approx(fn(p[often], y[often]), rel=1e-7), fn.__name__

def test_series_are_joined_and_holes_left_out():
    index = pd.RangeIndex(6)
    p = pd.Series([.1, .9, .8, np.nan, .3, .2], index)
    y = pd.Series([0, 1, 0, 1, 1, 0.], index)
    assert brier(p, y[1:]) == brier([.9, .8, .3, .2], [1, 0, 1, 0])
    with pytest.raises(ValueError, match="weights"): brier(p, y[1:], np.ones(6))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 13), st.integers(2, 5), st.sampled_from([2, 5, 10**6]))
def test_quantiles_are_those_of_the_sentence_and_turn_with_the_sign(seed, sessions, names, n, levels):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:sessions], [f"S{i:02}" for i in range(names)]], names=["session", "symbol"])
    x, y = pd.Series(rng.integers(0, levels, len(index))*1., index), pd.Series(rng.normal(size=len(index)), index)
    y = y.where(rng.random(len(index)) < .9)
    found = quantiles(x, y, n)
    np.testing.assert_allclose(quantiles(-x, y, n).to_numpy()[:, ::-1], found, rtol=1e-12)
    for session, row in found.iterrows():
        both = pd.DataFrame({"x": x[session], "y": y[session]}).dropna()
        place = (both["x"].rank() - .5)/max(len(both), 1)
        for g, value in row.items():
            inside = both["y"][(place > (g - 1)/n + 1e-9) & (place < g/n - 1e-9)]
            assert value == pytest.approx(inside.mean(), nan_ok=True)
    pd.testing.assert_series_equal(spread(x, y, n), (found[n] - found[1]).rename("spread"))

def moody(seed, sessions=250, names=20, horizon=1):
    "Honest probabilities whose outcomes share the news of their session, and of the sessions their labels span; and a forecast"
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:sessions], [f"S{i:02}" for i in range(names)]], names=["session", "symbol"])
    news = pd.Series(rng.normal(size=sessions + horizon - 1)).rolling(horizon).sum().dropna().to_numpy()/horizon**.5
    mood = ar1(sessions, .9, rng)*(1 - .81)**.5
    chance = stats.norm.cdf(.6*mood)
    p = pd.Series(np.repeat(chance, names), index) + rng.uniform(-1e-6, 1e-6, len(index))
    y = pd.Series(np.repeat((stats.norm.cdf(news) < chance).astype(float), names), index)
    forecast = pd.Series(rng.normal(size=len(index)), index) + np.repeat(mood, names)
    return p.clip(0, 1), y, forecast, forecast + 3*np.repeat(news, names) + rng.normal(size=len(index))

def test_errors_of_the_scorecard_cover_the_truth_where_those_by_the_book_do_not():
    held = {"calibration_slope": 0, "brier": 0, "line": 0, "by the book": 0}
    chance = stats.norm.cdf(.6*np.random.default_rng(0).normal(size=200_000))
    truth = (chance*(1 - chance)).mean()
    for seed in range(40):
        p, y, forecast, after = moody(seed, horizon=5)
        sheet, line = scorecard(p, y, "probability", horizon=5), scorecard(forecast, after, "return", horizon=5).loc["calibration_slope"]
        square = (p - y)**2
        for name, true in ("brier", truth), ("calibration_slope", 1.):
            held[name] += sheet.loc[name, "low"] <= true <= sheet.loc[name, "high"]
        held["line"] += line["low"] <= 1 <= line["high"]
        held["by the book"] += abs(square.mean() - truth) < 1.96*square.std()/len(square)**.5
    assert held["by the book"] < .4*40 and all(held[name] > .8*40 for name in ("brier", "calibration_slope", "line")), held

def test_the_pull_of_rows_is_what_a_bootstrap_of_sessions_finds():
    rng = np.random.default_rng(5)
    p, y, *_ = moody(3)
    own = pd.Series(rng.uniform(-.2, .2, len(p)), p.index)
    p = (p*.6 + .2 + own).clip(.01, .99)
    sheet = scorecard(p, y, "probability")
    x, v, group, sessions = paired(p, y)
    w = [np.bincount(path, minlength=len(sessions))[group] for path in stationary_bootstrap(len(sessions), 6, 300, rng)]
    for name in ("auc", "brier", "log_loss", "calibration_slope"):
        fn = KINDS["probability"][name][0]
        assert sheet.loc[name, "value"] == fn(x, v)
        assert sheet.loc[name, "se"] == pytest.approx(np.std([fn(x, v, o) for o in w]), rel=.25), name

def test_the_pull_of_a_row_is_what_leaving_it_out_moves():
    rng = np.random.default_rng(6)
    x = rng.beta(2, 5, 4000)
    y = (rng.random(4000) < .1 + .5*x).astype(float)
    forecast, after = rng.normal(1, 2, 4000), rng.gamma(2, size=4000)
    for kind, (a, b) in {"probability": (x, y), "return": (forecast, after)}.items():
        for name, (fn, pull) in KINDS[kind].items():
            value = fn(a, b)
            pulls = pull(a, b, value)
            assert abs(pulls.mean()) < 1e-8*abs(pulls).max(), name
            for row in np.argsort(-abs(pulls))[[0, 50, 400]]:
                kept = np.arange(4000) != row
                assert (value - fn(a[kept], b[kept]))*3999 == pytest.approx(pulls[row], rel=.03), (kind, name)

def test_overlapping_labels_are_counted_twice_as_far_as_they_reach():
    p, y, *_ = moody(8)
    square = ((p - y)**2).groupby("session").mean().to_numpy()
    for horizon, lags in (1, 4), (5, 8), (20, 38):
        assert scorecard(p, y, "probability", horizon).loc["brier", "se"] == pytest.approx(newey_west(square, lags))
        assert ic_summary(pd.Series(square), horizon)["se"] == pytest.approx(newey_west(square, lags))

def test_the_scorecard_says_nothing_of_what_has_no_answer():
    index = pd.MultiIndex.from_product([DAYS[:30], list("AB")], names=["session", "symbol"])
    half, up = pd.Series(.5, index), pd.Series(1., index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = scorecard(half, up, "probability")
    assert sheet.loc[["auc", "calibration_slope"], "value"].isna().all() and sheet.loc["brier", "value"] == .25
    assert "rank_ic" not in sheet.index                       # two names a session order nothing
    assert scorecard(half[:20], up[:20], "probability")["se"].isna().all()
    with pytest.raises(ValueError, match="horizon"): ic_summary(pd.Series(np.arange(50.)), horizon=0)


# --- information coefficient ----------------------------------------------------------------------------------------

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12), st.sampled_from([2, 5, 10**6]))
def test_ic_is_scipys_session_by_session(seed, n, names, levels):
    "With ties, missing values, rows that only one side has and sessions with too few names"
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:n], [f"S{i:02}" for i in range(names)]], names=["session", "symbol"])
    x, y = (pd.Series(rng.integers(0, levels, len(index))*1., index).where(rng.random(len(index)) < .9)[rng.random(len(index)) < .9]
            for _ in range(2))
    try: found = ic(x, y)
    except ValueError as e:
        assert "share no" in str(e) or "empty" in str(e)
        return
    both = pd.DataFrame({"x": x, "y": y}).dropna()
    for session, value in found.items():
        rows = both[both.index.get_level_values("session") == session]
        if len(rows) < 3 or rows["x"].nunique() < 2 or rows["y"].nunique() < 2: assert np.isnan(value)
        else: assert value == pytest.approx(stats.spearmanr(rows["x"], rows["y"]).statistic, abs=1e-12)

@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_ic_does_not_care_for_the_unit(method):
    rng = np.random.default_rng(11)
    index = pd.MultiIndex.from_product([DAYS[:30], [f"S{i:02}" for i in range(20)]], names=["session", "symbol"])
    x, y = (pd.Series(rng.normal(size=600), index) for _ in range(2))
    np.testing.assert_allclose(ic(x, y, method), ic(x*1e-13, y*1e13, method), rtol=1e-9)
    flat = x.where(x.index.get_level_values("session") != DAYS[3], .1)
    assert ic(flat, y, method).isna().tolist() == [i == 3 for i in range(30)]


# --- on real prices -------------------------------------------------------------------------------------------------

@pytest.mark.real
def test_real_returns_are_judged(real_data):
    frame = pd.read_parquet(real_data/"spy_daily_ohlcv_1998_2021.parquet")
    r = frame.set_index(pd.DatetimeIndex(frame["date"], name="session"))["adj_close"].pct_change().dropna()
    sheet, table = tear(r), drawdown_table(r)
    assert .3 < sheet["sharpe"] < .7 and -.56 < sheet["max_drawdown"] < -.54 and sheet["kurtosis"] > 10
    assert table["trough"][0] == pd.Timestamp("2009-03-09") and block_length(r) > 10
    row = intervals(r, "sharpe").loc["sharpe"]
    assert row["low"] < .5 < row["high"] and (252/len(r))**.5 <= row["se"] < 1.1*(252/len(r))**.5

@pytest.mark.real
def test_the_windows_of_stress_begin_after_a_high_and_end_at_a_low(real_data):
    frame = pd.read_parquet(real_data/"spy_adjclose_1993_2024.parquet")
    price = frame.set_index(pd.DatetimeIndex(frame["date"], name="session"))["adj_close"]
    table = stress(price.pct_change().dropna())
    assert list(table.index) == list(STRESS) and (table["sessions"] == table["of"]).all()
    falls = table.drop(["quants 2007", "Lehman 2008", "flash crash 2010"])
    for name, row in falls.iterrows():
        part = price[row["first"]:row["last"]]
        before = price.index[price.index.get_loc(part.index[0]) - 1]
        near = price[before - pd.Timedelta(days=10):row["last"] + pd.Timedelta(days=10)]
        assert price[before] == pytest.approx(near[:row["last"]].max(), rel=.002), name
        assert part.iloc[-1] == pytest.approx(near[before:].min(), rel=.002), name
        assert row["total_return"] < -.05 and row["total_return"] == pytest.approx(row["max_drawdown"], abs=.002), name
    assert -.02 < table.loc["quants 2007", "total_return"] < .02 and table.loc["flash crash 2010", "total_return"] < -.04

@pytest.mark.real
def test_ic_on_503_stocks_is_that_of_a_loop(real_data):
    frame = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet", columns=["date", "symbol", "close"])
    wide = frame.astype({"symbol": "str"}).pivot(index="date", columns="symbol", values="close").rename_axis(index="session")
    wide.index = pd.DatetimeIndex(wide.index, name="session")
    past, ahead = wide.pct_change(5, fill_method=None), wide.shift(-6)/wide.shift(-1) - 1
    found = ic(past.stack(), ahead.stack())
    loop = past.corrwith(ahead, axis=1, method="spearman").dropna()
    np.testing.assert_allclose(found.dropna(), loop[found.dropna().index], atol=1e-12)


def test_importing_stays_light():
    code = ("import sys, tradenb.validation.metrics;"
            "print([m for m in ('scipy.stats', 'sklearn', 'matplotlib') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
