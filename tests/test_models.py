"Models: what cannot be a lesson. Processes, kills, damage, other libraries as oracles, real prices"
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import Dataset
from tradenb.models.base import clone, feature_matrix, load, out_of_fold, parameters, register, save
from tradenb.models.trees import LightGBM, XGBoost

SMALL = {"XGBoost": XGBoost(n_estimators=12, max_depth=3, min_child_weight=20.),
         "LightGBM": LightGBM(n_estimators=12, num_leaves=7, min_child_samples=20)}
both = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL.keys())


def planted(sessions=80, symbols=20, features=5, seed=0):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2020-01-01", periods=sessions + 6, name="session")
    names = [f"S{i:03}" for i in range(symbols)]
    rows = pd.MultiIndex.from_product([days[:sessions], names], names=["session", "symbol"])
    X = pd.DataFrame(rng.normal(size=(len(rows), features)), rows, [f"f{i}" for i in range(features)])
    y = .01*X["f0"] + .01*np.sign(X["f1"]*X["f2"]) + rng.normal(0, .02, len(rows))
    known = pd.Series(np.repeat(days[6:], symbols), rows)
    return Dataset(X, y, pd.Series(rng.uniform(.5, 1.5, len(rows)), rows), known)


class Walk:
    "Walk-forward in blocks, purged by known_at; only the last `folds` of them, when told"
    def __init__(self, first=30, block=10, folds=None): self.first, self.block, self.folds = first, block, folds
    def split(self, ds):
        days, known = ds.sessions.unique(), ds.known_at.to_numpy()
        blocks = [days[i:i + self.block] for i in range(self.first, len(days), self.block)]
        for b in blocks[-self.folds:] if self.folds else blocks:
            yield np.flatnonzero(known < b[0].to_datetime64()), np.flatnonzero(ds.sessions.isin(b))


def same(a, b): pd.testing.assert_series_equal(a, b, check_exact=True)


# the same bits, whoever runs the folds

@both
def test_processes_threads_and_a_suffix_give_the_same_bits(model):
    ds = planted()
    serial = out_of_fold(model, ds, Walk())
    same(out_of_fold(model, ds, Walk(), n_jobs=2), serial)
    same(out_of_fold(model, ds, Walk(), n_jobs=-1, backend="threading"), serial)
    same(out_of_fold(model, ds, Walk(folds=1)), serial.loc[ds.sessions.unique()[70]:])
    assert not hasattr(model, "model_") # it was clones that were fitted
    assert serial.name == "score" and serial.dtype == float and serial.index.is_monotonic_increasing


@both
def test_out_of_fold_is_a_plain_loop(model):
    ds, parts = planted(), []
    for train, test in Walk().split(ds): parts.append(clone(model).fit(ds.take(train)).predict(ds.X.iloc[test]))
    same(out_of_fold(model, ds, Walk()), pd.concat(parts))


def test_the_order_of_folds_and_of_positions_does_not_matter():
    ds, model = planted(), SMALL["XGBoost"]
    class Backwards:
        def split(self, ds):
            for train, test in reversed(list(Walk().split(ds))): yield train[::-1], test[::-1]
    same(out_of_fold(model, ds, Backwards()), out_of_fold(model, ds, Walk()))


@both
def test_a_fold_sees_nothing_after_its_training_rows(model):
    ds, rng = planted(), np.random.default_rng(1)
    cut = ds.sessions.unique()[50]
    later = ds.known_at >= cut
    y = ds.y.mask(later, pd.Series(rng.normal(0, 1, len(ds.y)), ds.y.index))
    changed = Dataset(ds.X, y, ds.w, ds.known_at)
    last = ds.sessions.unique()[59]
    same(out_of_fold(model, changed, Walk()).loc[:last], out_of_fold(model, ds, Walk()).loc[:last])
    assert not out_of_fold(model, changed, Walk()).equals(out_of_fold(model, ds, Walk()))


@both
def test_one_row_is_scored_as_among_many(model):
    ds = planted()
    X = ds.X.mask(np.random.default_rng(3).random(ds.X.shape) < .2)
    fitted = clone(model).fit(Dataset(X, ds.y, ds.w, ds.known_at))
    batch = fitted.predict(X)
    same(pd.concat([fitted.predict(X.iloc[[i]]) for i in range(0, len(X), 7)]), batch.iloc[::7])
    same(fitted.predict(X.iloc[::-1]).iloc[::-1], batch)


@both
def test_the_unit_of_float_does_not_matter(model):
    "float64 features, float32 features and integers of the same value give the same model"
    ds = planted()
    X = ds.X.astype("float32")
    a = clone(model).fit(Dataset(X, ds.y, ds.w, ds.known_at)).predict(X)
    same(clone(model).fit(Dataset(X.astype(float), ds.y, ds.w, ds.known_at)).predict(ds.X), a)


@both
def test_weights_count(model):
    "A row of weight zero is a row that is not there, but for the bins and samples; two regimes, one switched off"
    ds = planted()
    off = ds.X["f3"] > 0
    y = ds.y.mask(off, 1.)
    w = ds.w.mask(off, 0.)
    scores = clone(model).fit(Dataset(ds.X, y, w, ds.known_at)).predict(ds.X)
    assert scores.abs().max() < .2
    assert clone(model).fit(Dataset(ds.X, y, ds.w, ds.known_at)).predict(ds.X)[off].mean() > .2


def test_nobody_else_changes_the_seed():
    np.random.seed(0) # noqa: NPY002 what a stranger does
    a = XGBoost(n_estimators=5).fit(planted()).dump()
    np.random.seed(1) # noqa: NPY002
    import xgboost as xgb
    xgb.train({"seed": 99, "subsample": .3}, xgb.DMatrix(np.random.default_rng(0).random((50, 2)), np.arange(50.)), 3)
    assert XGBoost(n_estimators=5).fit(planted()).dump() == a
    assert XGBoost(n_estimators=5, seed=1).fit(planted()).dump() != a


# what out_of_fold refuses, whatever the splitter

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_fold_that_leaks_is_ever_fitted(data):
    "Random folds: accepted exactly when every training label was known before every tested session"
    ds = planted(sessions=14, symbols=1) # labels take six sessions
    train = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True))
    test = data.draw(st.lists(st.integers(4, 13), min_size=1, max_size=4, unique=True))
    honest = ds.known_at.iloc[train].max() < ds.sessions[test].min()
    class Given:
        def split(self, ds): yield train, test
    fitted = []
    class Spy:
        def fit(self, ds): fitted.append(1); return self
        def predict(self, X): return pd.Series(0., X.index)
    if honest:
        assert list(out_of_fold(Spy(), ds, Given()).index) == [ds.X.index[i] for i in sorted(test)]
    else:
        with pytest.raises(ValueError, match="leaks"): out_of_fold(Spy(), ds, Given())
        assert not fitted


def test_a_label_not_known_yet_is_scored_but_never_learnt():
    ds = planted()
    late = ds.sessions >= ds.sessions.unique()[74]
    ds = Dataset(ds.X, ds.y.mask(late), ds.w, ds.known_at.mask(late))
    scores = out_of_fold(SMALL["XGBoost"], ds, Walk())
    assert scores.index[-1] == ds.X.index[-1] and scores.notna().all()


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_an_error_inside_a_fold_names_the_fold(backend):
    ds = planted()
    bad = Dataset(ds.X, ds.y.mask(ds.sessions == ds.sessions.unique()[40]), ds.w, ds.known_at)
    with pytest.raises(ValueError, match="20 of .* labels cannot be learnt from") as e:
        out_of_fold(SMALL["XGBoost"], bad, Walk(), n_jobs=2, backend=backend)
    assert any("in fold" in note and " of 5: " in note for note in e.value.__notes__)


def test_the_bar_counts_folds_and_is_silent_unless_asked(capsys):
    ds = planted()
    out_of_fold(SMALL["XGBoost"], ds, Walk())
    assert capsys.readouterr().err == ""
    quiet, shown = out_of_fold(SMALL["XGBoost"], ds, Walk()), out_of_fold(SMALL["XGBoost"], ds, Walk(), progress=True)
    same(shown, quiet)
    assert "5/5" in capsys.readouterr().err


def test_folds_make_room_for_threads(monkeypatch):
    from tradenb.models import base
    monkeypatch.setattr("joblib.cpu_count", lambda *a, **k: 8)
    monkeypatch.setattr("joblib.effective_n_jobs", lambda n: 8 if n < 0 else n)
    assert base._side_by_side(XGBoost(), 4, "loky") == 4
    assert base._side_by_side(XGBoost(n_jobs=4), 4, "loky") == 2
    assert base._side_by_side(XGBoost(n_jobs=-1), 4, "loky") == 1
    assert base._side_by_side(XGBoost(), -1, "loky") == 8
    class Around:
        def __init__(self, inner): self.inner = inner
        def fit(self, ds): return self
        def predict(self, X): return X
    assert base._side_by_side(Around(XGBoost(n_jobs=4)), 8, "threading") == 2
    assert isinstance(clone(Around(XGBoost(seed=3))).inner, XGBoost) and clone(Around(XGBoost(seed=3))).inner.seed == 3


# the libraries themselves as oracles

def test_xgboost_says_the_same_in_its_own_words(tmp_path):
    import xgboost as xgb
    ds, model = planted(), SMALL["XGBoost"]
    native = xgb.train(dict(max_depth=3, eta=.05, subsample=.5, colsample_bytree=.5, min_child_weight=20, reg_lambda=10, max_bin=64,
                            seed=0, nthread=1, tree_method="hist"),
                       xgb.QuantileDMatrix(ds.X.astype("float32"), ds.y, weight=ds.w, max_bin=64), 12)
    fitted = clone(model).fit(ds)
    np.testing.assert_array_equal(fitted.predict(ds.X), native.predict(xgb.DMatrix(ds.X.astype("float32"))).astype(float))
    save(fitted, tmp_path/"m")
    alone = xgb.Booster(model_file=tmp_path/"m"/"model.ubj")
    np.testing.assert_array_equal(alone.inplace_predict(ds.X.astype("float32")), native.inplace_predict(ds.X.astype("float32")))


def test_lightgbm_says_the_same_in_its_own_words(tmp_path):
    import lightgbm as lgb
    ds, model = planted(), SMALL["LightGBM"]
    fitted = clone(model).fit(ds)
    sklearn = lgb.LGBMRegressor(n_estimators=12, num_leaves=7, max_depth=5, learning_rate=.05, subsample=.5, subsample_freq=1,
                                colsample_bytree=.5, min_child_samples=20, reg_lambda=10, max_bin=63, seed=0, n_jobs=1,
                                min_child_weight=1e-3, deterministic=True, force_row_wise=True, verbose=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = sklearn.fit(ds.X.astype("float32"), ds.y, sample_weight=ds.w).predict(ds.X.astype("float32"))
    np.testing.assert_array_equal(fitted.predict(ds.X), oracle)
    save(fitted, tmp_path/"m")
    np.testing.assert_array_equal(lgb.Booster(model_file=tmp_path/"m"/"model.txt").predict(ds.X.astype("float32")), oracle)


@both
def test_importance_is_the_share_of_gain(model):
    more = type(model)(**parameters(model) | {"n_estimators": 80})
    shares = more.fit(planted()).importance()
    assert abs(shares.sum() - 1) < 1e-12 and shares.is_monotonic_decreasing and set(shares.index[:3]) == {"f0", "f1", "f2"}
    flat = planted(sessions=10, symbols=2)
    none = clone(model).fit(Dataset(flat.X, flat.y*0, flat.w, flat.known_at)).importance()
    assert none.tolist() == [0.]*5


# files

@both
def test_saved_is_what_is_loaded_in_another_process(model, tmp_path):
    ds = planted()
    fitted = clone(model).fit(ds)
    save(fitted, tmp_path/"m", ds, fingerprint="abc")
    ds.X.to_parquet(tmp_path/"X.parquet")
    code = ("import sys, pandas as pd; from tradenb.models.base import load; m = load(sys.argv[1] + '/m'); "
            "m.predict(pd.read_parquet(sys.argv[1] + '/X.parquet')).to_frame().to_parquet(sys.argv[1] + '/s.parquet'); print(m)")
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    same(pd.read_parquet(tmp_path/"s.parquet")["score"], fitted.predict(ds.X))
    assert said.strip() == repr(model)
    again = load(tmp_path/"m")
    assert parameters(again) == parameters(model)
    t = again.training_
    assert (t["rows"], t["first"], t["last"], t["known"], t["data"]) == (1600, "2020-01-01", "2020-04-21", "2020-04-29", "abc")
    assert {"python", "tradenb", "numpy", "pandas", model.library} == set(t["versions"])
    before = {p.name: p.read_bytes() for p in (tmp_path/"m").iterdir()}
    save(fitted, tmp_path/"m", ds, fingerprint="abc")              # again: nothing changes
    save(load(tmp_path/"m"), tmp_path/"copy", ds, fingerprint="abc") # a copy of a copy is the same to the byte
    assert before == {p.name: p.read_bytes() for p in (tmp_path/"m").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path/"copy").iterdir()}
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path/"m").returncode == 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    ds = planted()
    return save(clone(SMALL["XGBoost"]).fit(ds), tmp_path_factory.mktemp("kept")/"m", ds)


def copied(kept, tmp_path):
    folder = tmp_path/"m"
    folder.mkdir()
    for p in kept.iterdir(): (folder/p.name).write_bytes(p.read_bytes())
    return folder


def test_every_flipped_bit_is_seen(kept, tmp_path):
    folder, rng = copied(kept, tmp_path), np.random.default_rng(0)
    for p in sorted(kept.iterdir()):
        good = p.read_bytes()
        for at in {0, len(good) - 1, *rng.integers(0, len(good), 25).tolist()}:
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(8))
            (folder/p.name).write_bytes(bad)
            with pytest.raises((ValueError, FileNotFoundError), match=r"restore the folder from a backup"): load(folder)
        (folder/p.name).write_bytes(good[:len(good)//2])
        with pytest.raises((ValueError, FileNotFoundError), match=r"restore the folder from a backup"): load(folder)
        (folder/p.name).write_bytes(good)
    load(folder)


@pytest.mark.parametrize("name", ["model.ubj", "feature_list.json", "training.json", "SHA256SUMS"])
def test_a_lost_file_is_missed(kept, tmp_path, name):
    folder = copied(kept, tmp_path)
    (folder/name).unlink()
    with pytest.raises(FileNotFoundError, match=name): load(folder)
    sums = folder/"SHA256SUMS"
    if sums.exists(): # also when the list of hashes was made to fit
        sums.write_text("".join(line + "\n" for line in sums.read_text().splitlines() if not line.endswith(name)))
        with pytest.raises(FileNotFoundError, match=name): load(folder)


def rehash(folder):
    names = [p.name for p in folder.iterdir() if p.name != "SHA256SUMS"]
    (folder/"SHA256SUMS").write_text("".join(f"{hashlib.sha256((folder/n).read_bytes()).hexdigest()}  {n}\n" for n in names))


def test_nothing_is_imported_or_unpickled_because_a_file_says_so(kept, tmp_path):
    folder = copied(kept, tmp_path)
    for name in "os.system", "builtins.eval", "tradenb.models.trees.XGBoost", "xgboost", "__main__.Evil", "":
        told = json.loads((kept/"training.json").read_text()) | {"class": name}
        (folder/"training.json").write_text(json.dumps(told))
        rehash(folder)
        with pytest.raises(ValueError, match="loadable are"): load(folder)
    source = importlib.util.find_spec("tradenb.models.base").origin
    assert "import pickle" not in open(source).read()


def test_a_hash_file_cannot_point_elsewhere(kept, tmp_path):
    folder = copied(kept, tmp_path)
    (tmp_path/"secret").write_text("s")
    line = f"{hashlib.sha256(b's').hexdigest()}  ../secret\n"
    (folder/"SHA256SUMS").write_text((kept/"SHA256SUMS").read_text() + line)
    with pytest.raises(ValueError, match="SHA256SUMS is damaged"): load(folder)


def test_features_in_another_order_do_not_load(kept, tmp_path):
    folder = copied(kept, tmp_path)
    (folder/"feature_list.json").write_text(json.dumps(["f1", "f0", "f2", "f3", "f4"]))
    rehash(folder)
    with pytest.raises(ValueError, match="disagree about the features"): load(folder)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    fitted = clone(SMALL["XGBoost"]).fit(planted())
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"): save(fitted, tmp_path/"m")
    assert not list(tmp_path.iterdir())


def test_two_who_save_the_same_model_both_succeed(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    ds = planted()
    fitted = clone(SMALL["XGBoost"]).fit(ds)
    with ThreadPoolExecutor(8) as pool: assert len(set(pool.map(lambda _: save(fitted, tmp_path/"m", ds), range(16)))) == 1
    load(tmp_path/"m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_killed_while_saving_there_is_a_whole_model_or_none(kept, tmp_path):
    "A process saves model after model under new names and is killed at random; every name that exists loads"
    code = """if True:
        import sys, itertools
        from tradenb.models.base import load, save
        m = load(sys.argv[1]); save(m, sys.argv[2] + "/first"); print("go", flush=True)
        for i in itertools.count(): save(m, sys.argv[2] + f"/{sys.argv[3]}-{i}")
    """
    rng, seen = np.random.default_rng(0), 0
    for run in range(3):
        with subprocess.Popen([sys.executable, "-c", code, str(kept), str(tmp_path), str(run)], stdout=subprocess.PIPE) as p:
            p.stdout.readline()
            time.sleep(float(rng.uniform(.02, .25)))
            os.kill(p.pid, signal.SIGKILL)
        for folder in tmp_path.glob(f"{run}-*"): load(folder); seen += 1
    assert seen > 3


def test_only_models_that_can_be_kept_register():
    with pytest.raises(TypeError, match="has no dump"):
        @register
        class Half:
            file, library = "half", "numpy"


# doors

@settings(max_examples=60, deadline=None)
@given(st.permutations(["a", "b", "c"]), st.integers(0, 3), st.booleans())
def test_only_the_learnt_columns_in_the_learnt_order(columns, keep, extra):
    X = pd.DataFrame(0., index=range(2), columns=columns[:keep] + ["z"]*extra)
    if list(X.columns) == ["a", "b", "c"]: assert feature_matrix(X, ["a", "b", "c"]).shape == (2, 3)
    else:
        with pytest.raises(ValueError): feature_matrix(X, ["a", "b", "c"])


def test_feature_matrix_takes_what_frames_hold():
    X = pd.DataFrame({"f": pd.array([1., None], "Float64"), "i": pd.array([1, 2], "Int64"), "b": [True, False], "s": np.float32([1, 2])})
    m = feature_matrix(X)
    assert m.dtype == np.float32 and m.flags.c_contiguous and np.isnan(m[1, 0]) and m[0].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="'f' is infinite"):
        feature_matrix(pd.DataFrame({"f": [1e39]}, index=pd.MultiIndex.from_tuples([(pd.Timestamp("2024-01-02"), "A")])))


@both
def test_nothing_to_learn_from_is_said(model):
    ds = planted()
    with pytest.raises(ValueError, match="nothing to learn from: X has no features"): clone(model).fit(Dataset(ds.X[[]], ds.y, ds.w, ds.known_at))
    assert len(clone(model).fit(ds).predict(ds.X.iloc[:0])) == 0


def test_the_heavy_libraries_stay_out_until_needed():
    code = "import sys, tradenb.models.trees; print([m for m in ('xgboost', 'lightgbm', 'sklearn', 'joblib', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# real prices

@pytest.fixture(scope="module")
def real(real_data):
    bars = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet")
    close = bars.assign(session=pd.to_datetime(bars["date"]).astype("datetime64[us]"), symbol=bars["symbol"].astype(str))
    p = close.pivot(index="session", columns="symbol", values="adj_close").astype(float)
    r = p.pct_change(fill_method=None)
    wides = {f"ret{k}": p.pct_change(k, fill_method=None) for k in (1, 5, 20, 60, 126)} | {f"vol{k}": r.rolling(k).std() for k in (5, 20, 60)}
    wides |= {f"sma{k}": p/p.rolling(k).mean() - 1 for k in (10, 50, 100)} | {f"high{k}": p/p.rolling(k).max() - 1 for k in (20, 60)}
    wides |= {"rel": r.sub(r.mean(axis=1), axis=0)}
    y = p.shift(-6)/p.shift(-1) - 1
    y = y.sub(y.mean(axis=1), axis=0)
    frame = pd.concat({k: w.stack() for k, w in (wides | {"y": y}).items()}, axis=1).dropna(subset="y").sort_index()
    days = p.index
    known = pd.Series(days[days.get_indexer(frame.index.get_level_values("session")) + 6], frame.index)
    return Dataset(frame[list(wides)], frame["y"], pd.Series(1., frame.index), known)


def ic(scores, y):
    ranks = pd.DataFrame({"s": scores, "y": y}).dropna().groupby("session").rank()
    return ranks.groupby("session").corr().iloc[::2, 1]


@pytest.mark.real
def test_real_prices_without_labels_give_no_edge(real):
    rng = np.random.default_rng(0)
    class Halves:
        def split(self, ds):
            days, known = ds.sessions.unique(), ds.known_at.to_numpy()
            for b in days[500:750], days[750:]: yield np.flatnonzero(known < b[0]), np.flatnonzero(ds.sessions.isin(b))
    null = real.y.groupby("session").transform(lambda d: rng.permutation(d.to_numpy()))
    model = XGBoost(n_estimators=60)
    edge, none = ic(out_of_fold(model, real, Halves()), real.y), ic(out_of_fold(model, Dataset(real.X, null, real.w, real.known_at), Halves()), null)
    print(f"rank IC {edge.mean():.4f} (se {edge.sem():.4f}), permuted {none.mean():.4f} (se {none.sem():.4f})")
    assert abs(none.mean()) < 4*none.sem()
