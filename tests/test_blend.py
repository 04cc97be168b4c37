"Ensembles, stackers and intervals: oracles, properties, real prices"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import Dataset
from tradenb.models.base import load, out_of_fold, save
from tradenb.models.conformal import conformal, coverage
from tradenb.models.ensemble import Average, Seeds, blend, by_session
from tradenb.models.linear import Ridge, ridge
from tradenb.models.stack import Router, Stacker, sleeves
from tradenb.models.trees import LightGBM, XGBoost
from tradenb.validation.prediction import ic, ic_summary
from tradenb.validation.splits import CPCV, WalkForward


def rows(sessions, symbols, start="2018-01-01"):
    days = pd.bdate_range(start, periods=sessions + 1, name="session")
    index = pd.MultiIndex.from_product([days[:-1], [f"S{i:03}" for i in range(symbols)]], names=["session", "symbol"])
    return index, pd.Series(np.repeat(days[1:], symbols), index)


def drawn(index, rng, size=1.): return pd.Series(rng.normal(0, size, len(index)), index)


def sides(sessions=120, symbols=12, seed=0, holes=.3):
    "Three sleeves of which two overlap, with holes anywhere, and what followed"
    rng, (index, known) = np.random.default_rng(seed), rows(sessions, symbols)
    a, b = drawn(index, rng), drawn(index, rng)
    y = .01*a + .005*b + drawn(index, rng, .02)
    given = {"a": a, "ab": a + b + drawn(index, rng), "b": b}
    return sleeves({k: s[rng.random(len(s)) > holes] for k, s in given.items()}, y, known)


def same(a, b): pd.testing.assert_series_equal(a, b, check_exact=True)


# linear

@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 1e4))
def test_the_line_is_scikit_learns(seed, features, alpha):
    from sklearn.linear_model import Ridge as Oracle
    rng, (index, known) = np.random.default_rng(seed), rows(12, 5)
    X = pd.DataFrame({f"f{i}": drawn(index, rng, 10.**rng.integers(-3, 3)) for i in range(features)})
    y, w = drawn(index, rng), pd.Series(rng.uniform(0, 2, len(index)), index)
    found = Ridge(alpha).fit(Dataset(X, y, w, known))
    x32 = X.astype(np.float32).astype(float) # as any model reads features
    mean, std = np.average(x32, axis=0, weights=w), np.sqrt(np.average((x32 - np.average(x32, axis=0, weights=w))**2, axis=0, weights=w))
    oracle = Oracle(alpha).fit((x32 - mean)/std, y, sample_weight=w)
    np.testing.assert_allclose(found.predict(X), oracle.predict((x32 - mean)/std), rtol=1e-6, atol=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 100))
def test_weights_that_are_not_negative_are_the_best_of_those(seed, alpha):
    rng = np.random.default_rng(seed)
    Z, y = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=40)
    G, c = Z.T @ Z, Z.T @ y
    b = ridge(G, c, 40, alpha, positive=True)
    slope = c - (G + alpha/40*np.diag(np.diag(G))) @ b # Karush, Kuhn, Tucker: no way is up
    size = np.sqrt(np.diag(G))*np.linalg.norm(y)
    assert (b >= 0).all() and (slope/size < 1e-7).all() and (np.abs(slope/size)[b > 0] < 1e-7).all()


# ensembles

def test_a_row_has_the_same_bits_in_any_company():
    ds = sides(holes=0.)
    for model in Seeds(LightGBM(n_estimators=5), n=9), Average([Ridge(), XGBoost(n_estimators=5)], by="score"), Ridge():
        whole = model.fit(ds).predict(ds.X)
        same(pd.concat([model.predict(ds.X.iloc[i:i + 1]) for i in range(20)]), whole.head(20))
    for model in Average([Ridge(), LightGBM(n_estimators=5)]), Stacker(), Router({"a": 1, "ab": 1, "b": 2}, Stacker()):
        whole = model.fit(ds).predict(ds.X) # a session is the company that counts
        same(pd.concat([model.predict(part) for _, part in ds.X.groupby(level="session")]), whole)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["zscore", "rank"]))
def test_a_blend_does_not_care_about_units_or_order(seed, by):
    rng, (index, _) = np.random.default_rng(seed), rows(5, 6)
    scores = pd.DataFrame({k: drawn(index, rng).where(rng.random(30) > .3) for k in "abc"})
    told = dict(zip("abc", rng.uniform(0, 1, 3), strict=True))
    plain = blend(scores, told, by)
    np.testing.assert_allclose(blend(1e4*scores + 7, told, by), plain, atol=1e-9)
    np.testing.assert_allclose(blend(scores[["c", "a", "b"]], told, by), plain, atol=1e-12)
    assert plain.notna().equals(by_session(scores, by).notna().any(axis=1))


@pytest.mark.parametrize("model", [
    Seeds(Average([LightGBM(n_estimators=4), Ridge()]), n=2), Average([Seeds(XGBoost(n_estimators=4), n=2), Ridge()], [1, 3], "rank"),
    Ridge(3., True), Stacker(positive=True), Stacker(LightGBM(n_estimators=4)), Router({"a": 1, "ab": 1, "b": 2}),
    Router({"a": 1, "ab": 1, "b": 2}, Stacker(Ridge()))], ids=lambda m: type(m).__name__)
def test_what_is_kept_comes_back_to_the_bit(model, tmp_path):
    ds = sides(60)
    again = load(save(model.fit(ds), tmp_path/"kept", ds))
    same(again.predict(ds.X), model.predict(ds.X))
    assert again.dump() == model.dump() and repr(again) == repr(model)


# the stacker

def test_any_set_of_sleeves_is_a_fit_on_the_rows_that_have_it():
    ds = sides()
    for by in "zscore", "score":
        model = Stacker(alpha=20., by=by).fit(ds)
        Z, y = by_session(ds.X, by), ds.y - ds.y.groupby("session").transform("mean")*(by == "zscore")
        for some in ["a"], ["b"], ["a", "b"], ["ab", "b"], ["a", "ab", "b"]:
            z = Z[some][Z[some].notna().all(axis=1)]
            x, target = z.to_numpy(), y[z.index].to_numpy()
            penalty = 20*np.diag((x**2).mean(axis=0))
            np.testing.assert_allclose(model.weights_for(some), np.linalg.solve(x.T @ x + penalty, x.T @ target), rtol=1e-9)


def test_a_failed_sleeve_goes_the_way_of_the_rest_and_the_switch_is_one():
    ds = sides(holes=0.)
    model = Stacker(alpha=0., by="score").fit(ds)
    without = ds.X.assign(ab=np.nan)
    alone = Stacker(alpha=0., by="score").fit(Dataset(ds.X[["a", "b"]], ds.y, ds.w, ds.known_at))
    pd.testing.assert_series_equal(model.predict(without), alone.predict(ds.X[["a", "b"]]), rtol=1e-9)
    assert model.ways(without)["rest"].sum() == len(ds.X) == model.ways(ds.X)["stacker"].sum()
    told = {"a": 1, "ab": 2, "b": 3}
    off, on = Router(told).fit(ds), Router(told, Stacker()).fit(ds)
    same(off.predict(ds.X), blend(ds.X, told).rename("score"))
    same(on.predict(ds.X), Stacker(weights=told).fit(ds).predict(ds.X))
    assert on.ways(ds.X)["stacker"].sum() == off.ways(ds.X)["average"].sum() == len(ds.X)


def test_what_is_not_known_is_not_learnt():
    ds = sides()
    late = ds.sessions > ds.sessions.unique()[100]
    changed = Dataset(ds.X, ds.y.mask(late, 99.), ds.w, ds.known_at)
    walk = WalkForward(60, 20, 1)
    for model in Stacker(), Stacker(LightGBM(n_estimators=5)), Router({"a": 1, "ab": 1, "b": 1}, Stacker()):
        a, b = (out_of_fold(model, d, walk, trials=None) for d in (ds, changed))
        upto = ds.sessions.unique()[100]
        same(a.loc[:upto], b.loc[:upto])


@pytest.mark.parametrize("learner", ["ridge", LightGBM(n_estimators=20)], ids=["ridge", "LightGBM"])
def test_permuted_labels_are_not_found_and_true_ones_are(learner):
    rng, (index, known) = np.random.default_rng(1), rows(240, 20)
    a, b = drawn(index, rng), drawn(index, rng)
    y = .002*a + .002*b + drawn(index, rng, .02)
    shuffled = y.groupby(level="session").transform(lambda d: rng.permutation(d.to_numpy()))
    found = {}
    for name, label in ("true", y), ("permuted", shuffled):
        features = Dataset(pd.concat({"a": a, "b": b}, axis=1), label, label*0 + 1., known)
        one = {n: out_of_fold(m, features, WalkForward(60, 30, 1), trials=None)
               for n, m in (("line", Ridge()), ("tree", LightGBM(n_estimators=20)))}
        scores = out_of_fold(Stacker(learner), sleeves(one, label, known), WalkForward(60, 30, 1), trials=None)
        found[name] = ic_summary(ic(scores, label))
    assert found["true"]["t"] > 4 and abs(found["permuted"]["t"]) < 3


def test_sleeves_by_cpcv_are_met_again_by_the_same_groups():
    ds = sides(160, 10, holes=0.)
    scores = out_of_fold(Stacker(), ds, CPCV(8, 1, 2), trials=None)
    assert len(scores) == len(ds.X) and ic(scores, ds.y).mean() > .2


# intervals

def one_name(values, names=1):
    index, known = rows(len(values)//names, names)
    return pd.Series(0., index), pd.Series(np.asarray(values, float), index), known


def plain_loop(scores, y, known, level, window, gamma):
    "Gibbs and Candes (2021) as one would write it down, for one name"
    r, days = (y - scores).abs().to_numpy(), scores.index.get_level_values("session").to_numpy()
    a, out, k = 1 - level, [], known.to_numpy()
    least = int(np.ceil(level/(1 - level) - 1e-9))
    for t in range(len(r)):
        seen = np.flatnonzero(k <= days[t])
        if t and len(seen) and seen[-1] == t - 1 and gamma and not np.isnan(out[t - 1]): a += gamma*(1 - level - (r[t - 1] > out[t - 1]))
        pool = np.sort(r[seen[-max(window, least):]])
        place = int(np.ceil((1 - a)*(len(pool) + 1) - 1e-9))
        if len(pool) < least: out.append(np.nan)
        else: out.append(np.inf if place > len(pool) else pool[place - 1] if place > 0 else -1.)
    return np.array(out)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([.5, .8, .9]), st.sampled_from([5, 20, 40]), st.sampled_from([0, .02, .3]))
def test_one_name_is_the_plain_loop(seed, level, window, gamma):
    rng = np.random.default_rng(seed) # rounded, so that many are equal
    scores, y, known = one_name(np.round(rng.standard_t(2, 60), rng.integers(0, 4)))
    found = conformal(scores, y, known, level, "adaptive" if gamma else "split", gamma or None, window, None)
    wanted = plain_loop(scores, y, known, level, window, gamma)
    np.testing.assert_allclose(found["high"], np.maximum(wanted, 0), atol=1e-12)
    np.testing.assert_array_equal(found["covered"], np.where(np.isnan(wanted), np.nan, y.abs() <= wanted))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([.8, .9, .95]), st.floats(.01, .5))
def test_misses_are_bounded_whatever_the_market_does(seed, level, gamma):
    rng = np.random.default_rng(seed) # a walk of volatility, jumps of it, and a drift: nothing that repeats
    sizes = np.exp(np.cumsum(rng.normal(0, .3, 400)) + 4*(rng.random(400) < .01).cumsum())
    found = conformal(*one_name(rng.normal(size=400)*sizes), level, gamma=gamma, scale=None)
    misses = 1 - found["covered"].dropna()
    assert abs(misses.mean() - (1 - level)) <= (max(level, 1 - level) + gamma)/(gamma*len(misses)) + 1e-12


def test_split_covers_what_it_says_where_nothing_changes():
    rng = np.random.default_rng(0)
    for level in .5, .9, .99:
        found = conformal(*one_name(rng.standard_t(3, 20_000), 20), level, "split", window=100, scale=None)
        assert abs(found["covered"].mean() - level) < .01


@pytest.mark.parametrize("told", [dict(method="split"), dict(gamma=.05), dict(), dict(scale=None)], ids=str)
def test_the_future_does_not_move_an_interval(told):
    rng, (index, known) = np.random.default_rng(0), rows(120, 6)
    known = known.groupby(level="symbol").shift(-2) # labels take three sessions; the last are never known
    scores, y = drawn(index, rng), drawn(index, rng)
    when = index.unique("session")[80]
    changed = y.where((known <= when) & known.notna(), 1e6)
    a, b = (conformal(scores, v, known, **told).loc[:when, ["low", "high", "level"]] for v in (y, changed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    short = conformal(scores.loc[:when], y.loc[:when], known.loc[:when], **told)
    pd.testing.assert_frame_equal(short[["low", "high", "level"]], a, check_exact=True)
    assert a["high"].notna().sum() > 300


# real prices

def test_coverage_holds_through_2008_and_2020(real_data):
    bars = pd.read_parquet(real_data/"spy_daily_ohlcv_1998_2021.parquet")
    close = pd.Series(bars["adj_close"].to_numpy(float), pd.DatetimeIndex(bars["date"], name="session")).sort_index()
    index = pd.MultiIndex.from_product([close.index[:-1], ["SPY"]], names=["session", "symbol"])
    y, known = pd.Series((close.shift(-1)/close - 1).to_numpy()[:-1], index), pd.Series(close.index[1:], index)
    vix = pd.read_parquet(real_data/"vix_daily_1990_2026.parquet").assign(date=lambda v: pd.to_datetime(v["date"])).set_index("date")["close"]
    regime = pd.cut(vix, [0, 15, 25, 100], labels=["calm", "usual", "storm"]).astype(str).rename("vix")
    adaptive, fixed = conformal(0*y, y, known), conformal(0*y, y, known, method="split", window=None, scale=None)
    spans = {"all": slice(None), "2008 and 2009": slice("2008-01-01", "2009-12-31"), "2020": slice("2020-01-01", "2020-12-31"),
             "autumn 2008": slice("2008-09-01", "2009-02-28"), "spring 2020": slice("2020-02-20", "2020-06-30")}
    table = pd.DataFrame({n: {k: coverage(f.loc[s])["covered"].iloc[0] for k, s in spans.items()} for n, f in (("adaptive", adaptive), ("split", fixed))})
    by_vix = coverage(adaptive, regime)
    print(table.round(3), by_vix.round(3), coverage(adaptive, "year").round(3), sep="\n\n")
    assert (table["adaptive"].drop("autumn 2008") - .9).abs().max() < .02
    autumn = coverage(adaptive.loc[spans["autumn 2008"]]).iloc[0] # 124 sessions: two points are less than one error
    assert autumn["low"] < .9 < autumn["high"] and autumn["covered"] > .86
    assert table.loc["autumn 2008", "split"] < .6 and table.loc["spring 2020", "split"] < .7
    assert (by_vix["covered"] - .9).abs().max() < .02


def test_coverage_holds_on_five_hundred_stocks(real_data):
    bars = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet", columns=["date", "symbol", "adj_close"])
    close = bars.assign(date=pd.to_datetime(bars["date"]), symbol=bars["symbol"].astype(str)).pivot(index="date", columns="symbol", values="adj_close")
    close.index.name = "session"
    def column(wide): return wide.stack().rename_axis(["session", "symbol"])
    vol = close.pct_change().rolling(20).std()
    X = pd.concat({"week": column(close/close.shift(5) - 1), "quarter": column(close.shift(5)/close.shift(60) - 1), "vol": column(vol)}, axis=1).dropna()
    y = column(close.shift(-1)/close - 1).reindex(X.index)
    known = pd.Series(pd.Series(close.index, close.index).shift(-1).reindex(X.index.get_level_values("session")).to_numpy(), X.index).where(y.notna())
    scores = out_of_fold(Ridge(), Dataset(X, y, pd.Series(1., X.index), known), WalkForward(120, 63, 1), trials=None)
    found, plain = conformal(scores, y, known), conformal(scores, y, known, method="split", window=None, scale=None)
    year = coverage(found, "year")
    names = {n: f["covered"].groupby(level="symbol").mean().quantile([.05, .95]) for n, f in (("adaptive", found), ("split", plain))}
    wild = coverage(found.loc["2018-02-01":"2018-03-31"])["covered"].iloc[0], coverage(found.loc["2018-10-01":])["covered"].iloc[0]
    print(coverage(plain).round(3), coverage(found).round(3), sep="\n\n")
    print(year.round(3), coverage(plain, "year").round(3), pd.DataFrame(names).round(3), np.round(wild, 3), sep="\n\n")
    assert abs(found["covered"].mean() - .9) < .005 and (year["covered"] - .9).abs().max() < .02
    assert max(abs(w - .9) for w in wild) < .02
    assert names["adaptive"].sub(.9).abs().max() < .04 < names["split"].sub(.9).abs().max()
