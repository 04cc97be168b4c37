"Judging: folds that cannot leak, numbers that agree with independent ones, intervals that cover what they say"
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradenb.core.panel import Dataset
from tradenb.validation.inference import block_length, newey_west, sharpe_se, stationary_bootstrap
from tradenb.validation.metrics import (
    METRICS,
    _luck,
    drawdown,
    drawdown_table,
    ic,
    intervals,
    monthly,
    tear,
    verdict,
)
from tradenb.validation.splits import WalkForward

DAYS = pd.bdate_range("2019-01-02", periods=2520, name="session")


# --- splits ---------------------------------------------------------------------------------------------------------

@st.composite
def ragged(draw, most=45):
    "A dataset with holes, labels of any length, some of them early, some not known yet"
    n, seed = draw(st.integers(8, most)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:n], list("ABC")], names=["session", "symbol"])
    index = index[rng.random(len(index)) < draw(st.sampled_from([.4, .8, 1.]))]
    at = DAYS.get_indexer(index.get_level_values("session")) + rng.integers(0, draw(st.integers(1, 12)), len(index))
    known = pd.Series(DAYS[at], index).where(rng.random(len(index)) < .95)
    return Dataset(pd.DataFrame({"x": 0.}, index), pd.Series(0., index), pd.Series(1., index), known)

splitters = st.builds(lambda train, test, embargo, expanding: WalkForward(train, test, min(embargo, train - 1), expanding),
                      st.integers(2, 20), st.integers(1, 9), st.integers(0, 6), st.booleans())

def folds_of(splitter, ds):
    "All folds, or as many as there are before one has nothing to train on; None if the dataset is too short"
    found = []
    try:
        for fold in splitter.split(ds): found.append(fold)
    except ValueError as e:
        if "nothing to test" in str(e): return None
        assert "train must exceed embargo" in str(e)
    return found

def by_hand(splitter, ds, i):
    "Fold i, row by row and from the sentence alone"
    session, known = list(ds.X.index.get_level_values("session")), list(ds.known_at)
    axis = sorted(set(session))
    first = splitter.train + i*splitter.test
    begin = axis[0] if splitter.expanding else axis[first - splitter.train]
    must_be_known = axis[first - splitter.embargo - 1]
    block = set(axis[first:first + splitter.test])
    return ([p for p, (s, k) in enumerate(zip(session, known, strict=True)) if s >= begin and k <= must_be_known],
            [p for p, s in enumerate(session) if s in block])

@settings(max_examples=80, deadline=None)
@given(ragged(), splitters)
def test_folds_are_those_of_the_sentence(ds, splitter):
    "Labels that end early or late, rows that are no sessions, start and end of a label: one oracle for all"
    for i, (train, test) in enumerate(folds_of(splitter, ds) or []):
        assert (train.tolist(), test.tolist()) == by_hand(splitter, ds, i)

@settings(max_examples=50, deadline=None)
@given(ragged(), splitters)
def test_no_label_reaches_the_embargo_and_blocks_leave_no_gap(ds, splitter):
    found = folds_of(splitter, ds)
    if not found: return
    session, known = ds.X.index.get_level_values("session"), ds.known_at.to_numpy()
    axis = session.unique()
    for train, test in found:
        first = axis.get_loc(session[test[0]])
        assert (known[train] < axis[first - splitter.embargo].to_datetime64()).all()
        assert axis.get_loc(session[test[-1]]) - first < splitter.test
    tested = np.concatenate([test for _, test in found])
    assert (np.diff(tested) == 1).all() and session[tested[0]] == axis[splitter.train]

@settings(max_examples=50, deadline=None)
@given(ragged(), splitters, st.data())
def test_a_longer_dataset_changes_no_earlier_fold(ds, splitter, data):
    whole, session = folds_of(splitter, ds), ds.X.index.get_level_values("session")
    if not whole: return
    last = data.draw(st.sampled_from(list(session.unique())))
    seen = session <= last
    then = Dataset(ds.X[seen], ds.y[seen], ds.w[seen], ds.known_at[seen].where(ds.known_at[seen] <= last))
    for (train, test), (old_train, old_test) in zip(whole, folds_of(splitter, then) or [], strict=False):
        assert train.tolist() == old_train.tolist() and test[:len(old_test)].tolist() == old_test.tolist()

@settings(max_examples=30, deadline=None)
@given(ragged(), st.integers(1, 9), st.integers(0, 10))
def test_more_history_behind_a_named_start_moves_nothing(ds, test, cut):
    axis = ds.X.index.get_level_values("session").unique()
    if len(axis) < 25: return
    splitter = WalkForward(10, test, 2, expanding=False, start=axis[22])
    later = ds.X.index.get_level_values("session") >= axis[cut]
    short = Dataset(ds.X[later], ds.y[later], ds.w[later], ds.known_at[later])
    rows = [[d.X.index[p].tolist() for fold in folds_of(splitter, d) for p in fold] for d in (ds, short)]
    assert rows[0] == rows[1]

def test_tonight_has_a_fold_and_it_is_the_backtests():
    "The span that ops reads off the table trains on the rows that split would train on, a session later"
    index = pd.MultiIndex.from_product([DAYS[:100], ["A"]], names=["session", "symbol"])
    known = pd.Series(DAYS[6:106], index)
    ds = Dataset(pd.DataFrame({"x": 0.}, index), pd.Series(0., index), pd.Series(1., index), known)
    splitter = WalkForward(train=40, test=10, embargo=5)
    for n in range(41, 101):
        fold = splitter.folds(DAYS[:n]).iloc[-1]
        session = index.get_level_values("session")
        rows = np.flatnonzero((session >= fold.train_first) & (known <= fold.train_last))
        train, test = list(splitter.split(ds))[len(splitter.folds(DAYS[:n])) - 1]
        assert rows.tolist() == train.tolist() and n - 1 in test and fold.test_last == DAYS[n-1]


# --- inference ------------------------------------------------------------------------------------------------------

def ar1(n, rho, rng):
    from scipy.signal import lfilter
    return lfilter([1], [1, -rho], rng.normal(size=n + 200))[200:]

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


# --- metrics --------------------------------------------------------------------------------------------------------

def record(n=756, seed=0, mean=.0005):
    rng = np.random.default_rng(seed)
    return pd.Series(rng.standard_t(4, n)*.008 + mean, DAYS[:n]), pd.Series(rng.normal(.0003, .01, n), DAYS[:n])

def test_metrics_work_along_the_last_axis():
    "The same line judges one history and many"
    rng = np.random.default_rng(6)
    many = {k: rng.normal(0, .02, (5, 4, 60)) for k in "rbu"}
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
    for name, theirs in dict(cagr=em.cagr(r), volatility=em.annual_volatility(r), sharpe=em.sharpe_ratio(r), sortino=em.sortino_ratio(r),
                             calmar=em.calmar_ratio(r), max_drawdown=em.max_drawdown(r), total_return=em.cum_returns_final(r),
                             var_95=em.value_at_risk(r), cvar_95=em.conditional_value_at_risk(r), tail_ratio=em.tail_ratio(r),
                             beta=em.beta(r, b)).items():
        assert sheet[name] == pytest.approx(theirs, rel=1e-9), name
    assert em.alpha(r, b) == pytest.approx((1 + sheet["alpha"]/252)**252 - 1)
    assert em.excess_sharpe(r, b)*252**.5 == pytest.approx(sheet["information_ratio"])

def test_tear_agrees_with_quantstats_but_where_the_lesson_says():
    qs = pytest.importorskip("quantstats").stats
    r, b = record(seed=2)
    sheet, n = tear(r, b), len(r)
    for name, theirs in dict(cagr=qs.cagr(r, periods=252), sharpe=qs.sharpe(r), sortino=qs.sortino(r), max_drawdown=qs.max_drawdown(r),
                             hit_rate=qs.win_rate(r), profit_factor=qs.profit_factor(r), tail_ratio=qs.tail_ratio(r)).items():
        assert sheet[name] == pytest.approx(theirs, rel=1e-9), name
    assert qs.ulcer_index(r) == pytest.approx(sheet["ulcer"]*(n/(n - 1))**.5)
    assert qs.skew(r) == pytest.approx(stats.skew(r, bias=False)) and qs.kurtosis(r) == pytest.approx(stats.kurtosis(r, bias=False))
    normal = stats.norm.ppf(.05, r.mean(), r.std())
    assert qs.value_at_risk(r) == pytest.approx(normal) and qs.cvar(r, method="historical") == pytest.approx(sheet["cvar_95"])
    assert qs.cvar(r) == pytest.approx(r.mean() - r.std()*stats.norm.pdf(stats.norm.ppf(.05))/.05)
    assert qs.information_ratio(r, b)*252**.5 == pytest.approx(sheet["information_ratio"])

returns = st.lists(st.floats(-1, 3, allow_subnormal=False), min_size=1, max_size=30)

@settings(max_examples=120, deadline=None)
@given(returns)
def test_any_returns_at_all_give_a_sheet_without_a_warning(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = tear(x)
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
    worlds = rng.normal(true*.01/252**.5, .01, (400, 500))
    for closed, least in (True, .92), (False, .87):
        rows = [intervals(x, "sharpe", closed=closed, n=150, block=1).loc["sharpe"] for x in worlds[:400 if closed else 100]]
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
    assert sharpe_se(.5, 12) == pytest.approx(0.30618621784789724, abs=1e-15)
    row, s = intervals(r, "sharpe").loc["sharpe"], tear(r)["sharpe"]
    assert row["method"] == "Lo 2002" and row["se"] == pytest.approx(((1 + s**2/252/2)/400*252)**.5)
    assert row["high"] - s == pytest.approx(stats.norm.ppf(.975)*row["se"])

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
    assert row["low"] < .5 < row["high"] and row["se"] == pytest.approx((252/len(r))**.5, rel=.01)

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
    code = ("import sys, tradenb.validation.metrics, tradenb.validation.splits;"
            "print([m for m in ('scipy.stats', 'sklearn', 'matplotlib') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
