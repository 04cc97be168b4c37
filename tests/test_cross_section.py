"Names against each other, against pandas, scikit-learn and SciPy; to the bit where the future or the company is changed"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import check_panel, long
from tradenb.features.cross_section import cross, demean, rank, winsorise, zscore
from tradenb.features.neutral import neutralise
from tradenb.features.price import core14, inputs
from tradenb.features.prune import likeness, redundant

same = np.testing.assert_array_equal


def features(seed, n_sessions=30, n_symbols=23, columns=("a", "b"), ties=False):
    "Columns with holes, infinite values, late listings, a name that leaves, sessions of one name, and none"
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2020-01-01", periods=n_sessions, unit="us")
    names = [f"S{n:03d}" for n in range(n_symbols)]
    listed = np.arange(n_sessions)[:, None] >= rng.integers(0, n_sessions, n_symbols) * (rng.random(n_symbols) < 0.3)
    listed[n_sessions * 2 // 3:, n_symbols // 2] = False
    listed[rng.random(listed.shape) < 0.05] = False
    listed[0], listed[0, 1] = False, True
    tables = {}
    for name in columns:
        x = rng.normal(rng.normal() * 1e3, 10.0 ** rng.integers(-3, 3), listed.shape)
        if ties: x = np.round(x, 1)
        x[rng.random(x.shape) < 0.05] = np.nan
        x[rng.random(x.shape) < 0.01] = np.inf
        tables[name] = pd.DataFrame(np.where(listed, x, np.nan), days, names)
    return long(**tables)


def sectors(index, n=3, without=11):
    "A label by row that is missing for every eleventh name and changes for some on the way"
    name = index.get_level_values("symbol").str[1:].astype(int)
    late = index.get_level_values("session") > pd.Timestamp("2020-01-29")
    label = np.array([f"g{k}" for k in range(n)])[(name + late * (name % 5 == 0)) % n]
    return pd.Series(np.where(name % without == without - 1, None, label), index, dtype="str")


def finite(f): return f.replace([np.inf, -np.inf], np.nan)


def grouped(f, by=None):
    "Groups of the rows, by pandas, with the number of values in each"
    keys = [f.index.get_level_values("session")] + ([] if by is None else [by])
    g = finite(f).groupby(keys)
    return g, g.transform("count")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("by", [False, True])
def test_ranks_are_those_of_pandas(by, ties):
    f = features(1, ties=ties)
    by = sectors(f.index) if by else None
    g, n = grouped(f, by)
    want = ((g.rank() - 0.5) / n).where(n >= 2)
    np.testing.assert_allclose(rank(f, by=by), want, rtol=1e-14)
    np.testing.assert_allclose(rank(f, "centred", by=by), 2 * want - 1, rtol=1e-12, atol=1e-14)
    normal = pytest.importorskip("scipy.stats").norm.ppf(want)
    np.testing.assert_allclose(rank(f, "normal", by=by), normal, rtol=1e-12, atol=1e-14)
    same(rank(f["a"], by=by), rank(f, by=by)["a"])
    assert want.isna().any().all() and want.notna().any().all()


@pytest.mark.parametrize("by", [False, True])
def test_z_and_means_are_those_of_pandas(by):
    f = features(2)
    by = sectors(f.index) if by else None
    g, n = grouped(f, by)
    apart = (finite(f) - g.transform("mean")).where(n >= 2)
    np.testing.assert_allclose(demean(f, by=by), apart, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(zscore(f, by=by), apart / g.transform("std"), rtol=1e-6, atol=1e-9)
    same(zscore(f, by=by, least=9), zscore(f, by=by).where(n >= 9))


@pytest.mark.parametrize("by", [False, True])
@pytest.mark.parametrize("limits", [0, 0.01, 0.1, 0.4])
def test_quantiles_are_those_of_pandas(by, limits):
    f = features(3)
    by = sectors(f.index) if by else None
    g, _ = grouped(f, by)
    want = finite(f).clip(g.transform(lambda x: x.quantile(limits)), g.transform(lambda x: x.quantile(1 - limits)))
    if by is not None: want = want.where(by.notna(), np.nan, axis=0)
    np.testing.assert_allclose(winsorise(f, limits, by=by), want, rtol=1e-12)


def test_robust_deviations_are_those_of_scipy():
    mad = pytest.importorskip("scipy.stats").median_abs_deviation
    f = features(4, ties=True)
    g, _ = grouped(f)
    middle, width = (g.transform(how) for how in ("median", lambda x: mad(x, scale=1, nan_policy="omit") * 1.4826 * 2))
    want = finite(f).clip((middle - width).where(width > 0, -np.inf), (middle + width).where(width > 0, np.inf))
    np.testing.assert_allclose(winsorise(f, mad=2), want, rtol=1e-12)


def by_least_squares(f, by, spare=1):
    "The residuals of numpy's least squares on all dummies and numbers, a session and a column at a time"
    out = pd.DataFrame(np.nan, f.index, f.columns)
    words = [c for c in by if by[c].dtype.kind not in "fiub"]
    numbers = by.drop(columns=words).replace([np.inf, -np.inf], np.nan)
    known = numbers.notna().all(axis=1) & by[words].notna().all(axis=1)
    for _, rows in f.groupby(level="session"):
        for c in f:
            y = rows[c].replace([np.inf, -np.inf], np.nan).dropna()
            y = y[known.loc[y.index]]
            if not len(y): continue
            dummies = [pd.get_dummies(by.loc[y.index, w]).to_numpy(float) for w in words] or [np.ones((len(y), 1))]
            X = np.hstack([*dummies, numbers.loc[y.index].to_numpy()])
            X = X / np.abs(X).max(axis=0).clip(1e-300)
            if len(y) - np.linalg.matrix_rank(X) >= spare: out.loc[y.index, c] = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    return out


@pytest.mark.parametrize("which", ["sector", "size", "sector+size", "sector+country", "sector+country+size+beta", "sector+size+twin"])
def test_residuals_are_those_of_least_squares(which):
    f = features(5, columns=("a", "b", "size", "beta"))
    by = pd.DataFrame({"sector": sectors(f.index), "country": sectors(f.index, 2, 7).astype("category"),
                       "size": f["size"], "beta": f["beta"], "twin": 3 * f["size"] + 1e3})[which.split("+")]
    y = f[["a", "b"]]
    ours, want = neutralise(y, by), by_least_squares(y, by)
    same(ours.isna(), want.isna())
    np.testing.assert_allclose(ours, want, rtol=1e-6, atol=1e-8 * np.nanmax(np.abs(finite(y))))
    assert 0.3 < ours.notna().mean().min()
    few = neutralise(y, by, spare=16)
    same(few.isna(), by_least_squares(y, by, spare=16).isna())
    assert few.isna().sum().sum() > ours.isna().sum().sum()


def test_what_is_explained_leaves_nothing_and_noise_gets_no_rank():
    f = features(6, columns=("size", "beta"))
    by = f.assign(sector=sectors(f.index))
    left = neutralise((2 * f["size"] - 7 * f["beta"]).rename("y"), by)
    assert left.notna().any() and (left.dropna() == 0).all()
    assert set(rank(left, "centred").dropna()) == {0.0}


STEPS = dict(rank=rank, normal=lambda f: rank(f, "normal"), z=zscore, demean=demean, winsorise=winsorise,
             mad=lambda f: winsorise(f, mad=2), by=lambda f: zscore(f, by=sectors(f.index)),
             clipped_by=lambda f: winsorise(f, 0.1, by=sectors(f.index)),
             neutral=lambda f: neutralise(f[["a"]], f[["b"]].assign(sector=sectors(f.index))))


@pytest.mark.parametrize("step", STEPS)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 28))
@settings(max_examples=6, deadline=None)
def test_no_other_session_moves_a_bit(step, seed, cut):
    step, f = STEPS[step], features(seed)
    days, rng = f.index.levels[0], np.random.default_rng(seed)
    today = days[cut]
    want = step(f)
    past, future = f.loc[:today], f.loc[days[cut + 1]:]
    same(step(past), want.loc[:today])
    rubbish = (future * rng.choice([np.nan, -1, 0, 1e9, 1e300, np.inf], future.shape))[rng.random(len(future)) < 0.6]
    new = rubbish.rename(lambda s: "S9" + s[1:], level="symbol")  # they sort after the others
    old = rubbish.rename(lambda s: "R" + s[1:], level="symbol")   # and these before
    same(step(pd.concat([past, rubbish, new, old]).sort_index()).loc[:today], want.loc[:today])
    if today in past.index.get_level_values("session"): same(step(f.loc[today:today]), want.loc[today:today])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_rank_is_the_order_and_no_more(seed):
    f = features(seed, ties=True)
    r = rank(f, "centred")
    same(rank(np.exp(finite(f) / 1e4), "centred"), r)
    same(rank(-f, "centred"), -r + 0.0)
    assert (r.abs() < 1).where(r.notna(), True).all(axis=None)
    np.testing.assert_allclose(r.groupby(level="session").mean().fillna(0), 0, atol=1e-14)


def test_rows_are_given_back_to_their_owners():
    f = features(7)
    levels = [f.index.levels[0][::-1], f.index.levels[1][::-1]]
    turned = pd.MultiIndex(levels, [len(l) - 1 - np.asarray(c) for l, c in zip(levels, f.index.codes, strict=True)], names=f.index.names)
    g = check_panel(f.set_axis(turned))
    for step in STEPS.values():
        assert step(f).index.equals(f.index)
        same(step(g), step(f))
    words = {s: "even" if int(s[1:]) % 2 else "odd" for s in f.index.levels[1]}
    by_row = pd.Series(f.index.get_level_values("symbol").map(words), f.index)
    for by in (pd.Series(words), by_row, by_row.sample(frac=1, random_state=0), by_row.astype("category")):
        same(zscore(f, by=by), zscore(f, by=words))
        same(neutralise(f, by), neutralise(f, words))
    ints = pd.DataFrame({"n": np.arange(len(f)) % 7, "t": np.arange(len(f)) % 2 == 0}, f.index)
    same(rank(ints), rank(ints.astype(float)))


@pytest.mark.parametrize("seed", [0, 1])
def test_likeness_is_the_correlation_of_ranks(seed):
    f = features(seed, 60, 40, columns=("a", "b", "c"))
    f["d"], f["e"] = f["a"] ** 3, f["b"] * (1 + 0.3 * np.sin(np.arange(len(f))))
    want = rank(f, "centred").corr()
    np.testing.assert_allclose(likeness(f), want, atol=1e-9)
    market = pd.Series(np.asarray(f.index.codes[0], float), f.index)
    both = likeness(f.assign(m=market, k=-market, still=1.0))
    assert both.loc["m", "k"] == -1 and both.loc["m", "a"] == 0 and (both["still"] == [0] * 7 + [1]).all()


@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.3, 0.6, 0.9, 1.0]))
@settings(max_examples=12, deadline=None)
def test_every_dropped_feature_is_like_the_one_that_stands_for_it(seed, threshold):
    rng = np.random.default_rng(seed)
    f = finite(features(seed, 20, 30, columns=tuple("abcd")))
    for n in range(8):
        x = f["abcd"[n % 4]]
        f[f"x{n}"] = x * rng.choice([-1, 1]) + rng.uniform(0, 1.5) * x.std() * rng.normal(size=len(f))
    f = f[rng.permutation(f.columns)]
    worth = pd.Series(rng.integers(0, 3, f.shape[1]).astype(float), f.columns)
    p = redundant(f, worth, threshold)
    assert (p.dropped["likeness"].abs() >= threshold - 1e-8).all()
    for _, members in p.clusters.groupby(p.clusters): assert (p.likeness.loc[members.index, members.index].abs() >= threshold - 1e-8).all(axis=None)
    assert threshold > 0.6 or len(p.dropped) > 2
    assert p.keep == [c for c in f if c in set(p.clusters)] and (p.clusters[p.keep] == p.keep).all()
    assert (worth[p.clusters].to_numpy() >= worth[p.clusters.index].to_numpy()).all()
    again = redundant(f[sorted(f)], worth, threshold)
    assert set(again.keep) == set(p.keep) and again.clusters.to_dict() == p.clusters.to_dict()
    assert redundant(f[p.keep[:1]]).keep == p.keep[:1]


@pytest.mark.real
def test_a_family_on_the_real_panel(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index().loc["2016-01-01":"2016-12-31"]
    panel = panel[["open", "high", "low", "close", "volume"]].astype(float).assign(sector=panel["sector"].astype("str"))
    made = cross(panel, "core14", neutral=["sector", "size", "beta_60"])
    assert "market_return_rank" not in made and made.abs().max(axis=None) < 1
    late = made.loc["2016-06-01":]
    assert late.notna().mean().min() > 0.97 and abs(late.mean()).max() < 1e-12
    beta = rank(inputs(panel)["beta_60"], "centred")
    assert abs(made["vol_20_rank"].corr(beta)) < 0.1 < 0.3 < rank(core14(panel)["vol_20"]).corr(beta)
    today = pd.Timestamp("2016-09-01")
    same(cross(panel.loc[:today], "core14", neutral=["sector", "size", "beta_60"]), made.loc[:today])
