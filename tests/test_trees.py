"Boosted trees: the libraries as oracles for every objective, whole runs with planted and with permuted labels, bits that must not move"
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_models import Walk, planted, same
from tradenb.core.panel import Dataset
from tradenb.models.base import clone, load, out_of_fold, parameters, save
from tradenb.models.regimes import Masked
from tradenb.models.targets import Aim, lesson, target
from tradenb.models.trees import CatBoost, LightGBM, XGBoost
from tradenb.validation.prediction import ic

SMALL = {"XGBoost": XGBoost(n_estimators=12, max_depth=3, min_child_weight=5.),
         "LightGBM": LightGBM(n_estimators=12, num_leaves=7, min_child_samples=20),
         "CatBoost": CatBoost(n_estimators=12, max_depth=3)}
HOW = {"regression": {}, "of ranks": dict(target="rank"), "of zscores": dict(target="zscore"), "of ends": dict(target="top_bottom", k=4),
       "two classes": dict(objective="classification"), "three classes": dict(objective="classification", target="top_bottom", k=4),
       "ranking": dict(objective="ranking"), "ranking of ends": dict(objective="ranking", target="top_bottom", k=4),
       "quantile": dict(objective="quantile", quantile=.8)}
each = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL.keys())
how = pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())


def told(model, **more): return type(model)(**parameters(model) | more)
def asked(ds, how): return Dataset(ds.X, np.sign(ds.y), ds.w, ds.known_at) if how == HOW["two classes"] else ds


# today's bits

def test_the_defaults_give_the_scores_they_always_gave():
    ds, rows = planted(), [0, 700, 1599]
    for model, golden in ((XGBoost(), [-.0018336907960474491, -.00593982869759202, .00795898400247097]),
                          (LightGBM(), [-.004197155503928993, -.0016141145968109063, .007357306435103793]),
                          (CatBoost(), [-0.002587486018063135, 7.128367873965509e-05, 0.004741832894491764])):
        np.testing.assert_allclose(model.fit(ds).predict(ds.X).iloc[rows], golden, rtol=1e-5)


# every objective, every family

@each
@how
def test_same_seed_same_bytes_and_a_file_that_says_the_same(model, how, tmp_path):
    "Fitted twice the file is the same to the byte, so no time of day is in it; loaded, it scores to the bit"
    ds, asking = asked(planted(), how), told(model, **how)
    fitted, again = clone(asking).fit(ds), clone(asking).fit(ds)
    assert fitted.dump() == again.dump()
    other = told(asking, seed=1).fit(ds)
    assert not other.predict(ds.X).equals(fitted.predict(ds.X))
    read = load(save(fitted, tmp_path/"m", ds))
    same(read.predict(ds.X), fitted.predict(ds.X))
    assert repr(read) == repr(asking) and read.dump() == fitted.dump()
    pd.testing.assert_series_equal(read.importance(), fitted.importance())
    same(pd.concat([read.predict(ds.X.iloc[[i]]) for i in (5, 800)]), fitted.predict(ds.X).iloc[[5, 800]])
    if asking.objective == "classification":
        said = read.probabilities(ds.X)
        np.testing.assert_allclose(said.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(fitted.predict(ds.X), said[1] - said[-1], atol=1e-12)


@each
@how
def test_planted_alpha_is_found_and_permuted_labels_are_not(model, how):
    ds, rng = planted(sessions=150, symbols=20), np.random.default_rng(0)
    past, late = np.flatnonzero(ds.known_at < ds.sessions.unique()[100]), np.flatnonzero(ds.sessions >= ds.sessions.unique()[100])
    grown = told(model, **how, n_estimators=60, learning_rate=.1)

    def value(given):
        scores = clone(grown).fit(asked(given, how).take(past)).predict(given.X.iloc[late])
        return ic(scores, given.y.iloc[late]).fillna(0)
    none = ds.y.groupby("session").transform(lambda d: rng.permutation(d.to_numpy()))
    assert value(ds).mean() > .25
    null = value(Dataset(ds.X, none, ds.w, ds.known_at))
    assert abs(null.mean()) < 4*null.sem()


@each
def test_it_is_a_model_that_out_of_fold_takes(model):
    ds = planted()
    serial = out_of_fold(model, ds, Walk(folds=2))
    same(out_of_fold(model, ds, Walk(folds=2), n_jobs=2, backend="threading"), serial)
    same(out_of_fold(model, ds, Walk(folds=1)), serial.loc[ds.sessions.unique()[70]:])


@each
@how
def test_context_rows_change_nothing(model, how):
    "Rows without weight, label and date are there to fill windows: no tree may see them"
    ds = asked(planted(sessions=40), how)
    early = ds.sessions < ds.sessions.unique()[10]
    whole = Dataset(ds.X, ds.y.mask(early), ds.w.mask(early, 0.), ds.known_at.mask(early))
    fitted = told(model, **how)
    same(clone(fitted).fit(whole).predict(ds.X), clone(fitted).fit(ds.take(np.flatnonzero(~early))).predict(ds.X))


# the libraries in their own words

def test_xgboost_ranks_and_classifies_as_the_library_does():
    import xgboost as xgb
    ds, model = planted(), SMALL["XGBoost"]
    base = dict(max_depth=3, eta=.05, subsample=.5, colsample_bytree=.5, min_child_weight=5, reg_lambda=10, max_bin=64, seed=0, nthread=1,
                tree_method="hist")
    X, n = ds.X.astype("float32"), 20
    rank = ds.y.groupby("session").rank()
    week = ds.w.groupby("session").mean()
    rows = xgb.QuantileDMatrix(X, ((rank - .5)*5//n), group=[n]*80, weight=week, max_bin=64)
    alone = xgb.train(base | {"objective": "rank:pairwise"}, rows, 12)
    np.testing.assert_array_equal(told(model, objective="ranking").fit(ds).predict(ds.X), alone.inplace_predict(X).astype(float))
    place = np.where(rank > n - 4, 2, np.where(rank <= 4, 0, 1))
    rows = xgb.QuantileDMatrix(X, place, weight=ds.w, max_bin=64)
    alone = xgb.train(base | {"objective": "multi:softprob", "num_class": 3}, rows, 12)
    fitted = told(model, objective="classification", target="top_bottom", k=4).fit(ds)
    np.testing.assert_array_equal(fitted.probabilities(ds.X), alone.inplace_predict(X).astype(float))


def test_lightgbm_ranks_and_classifies_as_the_library_does():
    import lightgbm as lgb
    ds, model = planted(), SMALL["LightGBM"]
    base = dict(num_leaves=7, max_depth=5, learning_rate=.05, subsample=.5, subsample_freq=1, colsample_bytree=.5, min_child_samples=20,
                reg_lambda=10, max_bin=63, seed=0, num_threads=1, deterministic=True, force_row_wise=True, verbose=-1)
    X, n = ds.X.to_numpy("float32"), 20
    rank = ds.y.groupby("session").rank()
    rows = lgb.Dataset(X, (rank - .5)*5//n, weight=ds.w, group=[n]*80, params=base)
    alone = lgb.train(base | {"objective": "lambdarank"}, rows, 12)
    np.testing.assert_array_equal(told(model, objective="ranking").fit(ds).predict(ds.X), alone.predict(X))
    rows = lgb.Dataset(X, ds.y > 0, weight=ds.w, params=base)
    alone = lgb.train(base | {"objective": "binary"}, rows, 12)
    two = Dataset(ds.X, (ds.y > 0).astype(float), ds.w, ds.known_at)
    fitted = told(model, objective="classification").fit(two)
    np.testing.assert_array_equal(fitted.probabilities(ds.X)[1], alone.predict(X))
    np.testing.assert_array_equal(fitted.predict(ds.X), alone.predict(X)) # labels 0 and 1: the score is P(1)


def test_catboost_says_the_same_in_its_own_words(tmp_path):
    import catboost as cb
    ds, model = planted(), SMALL["CatBoost"]
    base = dict(iterations=12, depth=3, learning_rate=.05, bootstrap_type="Bernoulli", subsample=.5, rsm=.5, l2_leaf_reg=10, border_count=64,
                random_seed=0, thread_count=1, boosting_type="Plain", allow_writing_files=False, verbose=False)
    X = ds.X.to_numpy("float32")
    alone = cb.CatBoost(base | {"loss_function": "RMSE"}).fit(cb.Pool(X, ds.y, weight=ds.w))
    np.testing.assert_array_equal(clone(model).fit(ds).predict(ds.X), alone.predict(X))
    session = np.repeat(np.arange(80), 20)
    grade, week = (ds.y.groupby("session").rank() - .5)*5//20, ds.w.groupby("session").transform("mean")
    rows = cb.Pool(X, grade, group_id=session, group_weight=week)
    alone = cb.CatBoost(base | {"loss_function": "YetiRank:permutations=1"}).fit(rows)
    fitted = told(model, objective="ranking").fit(ds)
    np.testing.assert_array_equal(fitted.predict(ds.X), alone.predict(X))
    save(fitted, tmp_path/"m")                                     # the file opens without tradenb
    np.testing.assert_array_equal(cb.CatBoost().load_model(str(tmp_path/"m"/"model.cbm")).predict(X), alone.predict(X))


def test_a_classifier_of_lightgbm_opens_in_the_library_alone(tmp_path):
    import lightgbm as lgb
    ds = planted()
    fitted = told(SMALL["LightGBM"], objective="classification", target="top_bottom", k=4).fit(ds)
    save(fitted, tmp_path/"m")
    alone = lgb.Booster(model_file=tmp_path/"m"/"model.txt").predict(ds.X.astype("float32"))
    np.testing.assert_array_equal(alone, fitted.probabilities(ds.X))


# targets

@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 5))
def test_targets_are_made_within_sessions(sessions, k):
    "Of values with ties: sums are 0, order is kept, the ends are k or the half, and other sessions do not matter"
    days = pd.bdate_range("2024-01-01", periods=len(sessions), name="session")
    rows = pd.MultiIndex.from_tuples([(d, f"S{i}") for d, s in zip(days, sessions, strict=True) for i in range(len(s))],
                                     names=["session", "symbol"])
    y = pd.Series([float(v) for s in sessions for v in s], rows)
    for kind in "rank", "zscore", "top_bottom":
        made = target(y, kind, k)
        assert np.isfinite(made).all()
        for day, one in y.groupby("session"):
            part = made.loc[[day]]
            same(part, target(one, kind, k))
            if kind != "top_bottom": assert abs(part.sum()) < 1e-9
            assert (np.diff(part.to_numpy()[np.argsort(one.to_numpy(), kind="stable")]) >= -1e-12).all()
            if kind == "top_bottom" and one.is_unique: assert (part == 1).sum() == (part == -1).sum() == min(k, len(one)//2)
    grades = lesson(Aim(objective="ranking"), Dataset(pd.DataFrame({"f": y}), y, y*0 + 1, pd.Series(days[-1], rows))).y
    assert set(grades) <= {0., 1., 2., 3., 4.}


@each
def test_a_quantile_is_one(model):
    ds = planted(sessions=150)
    grown = told(model, objective="quantile", quantile=.8, n_estimators=150, learning_rate=.1)
    assert .77 < (ds.y < grown.fit(ds).predict(ds.X)).mean() < .85


def test_without_catboost_the_cure_is_named():
    code = """if True:
        import sys; sys.modules["catboost"] = None
        from tests.test_models import planted
        from tradenb.models.trees import CatBoost
        try: CatBoost().fit(planted(20, 5))
        except ImportError as e: print(e)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'tradenb[catboost]'" in said


# regimes

@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(.1, .9))
def test_rows_outside_of_the_regime_are_never_learnt(seed, low):
    "Whatever their labels say"
    ds, rng = planted(sessions=30, symbols=8), np.random.default_rng(seed)
    X = ds.X.assign(regime=np.where(rng.random(len(ds.X)) < .1, np.nan, rng.random(len(ds.X))))
    out = ~(X["regime"] >= low)
    y = ds.y.mask(out, pd.Series(rng.normal(0, 9, len(out)), out.index))
    model = Masked(told(SMALL["LightGBM"], n_estimators=3), "regime", low=low)
    a, b = (clone(model).fit(Dataset(X, labels, ds.w, ds.known_at)).predict(X) for labels in (ds.y, y))
    same(a, b)
