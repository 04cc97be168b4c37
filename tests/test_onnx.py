"ONNX: what cannot be a lesson. Forests at their limits, hostile files, interrupted exports, another runtime as an oracle"
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_models import planted
from tradenb.core.panel import Dataset
from tradenb.models.ensemble import Average, Seeds
from tradenb.models.forests import forest_sum, leaf, stacked
from tradenb.models.graph import Graph, computed
from tradenb.models.linear import Ridge
from tradenb.models.onnx import export_onnx, extremes, opened, parity
from tradenb.models.stack import Router, Stacker
from tradenb.models.trees import CatBoost, LightGBM, XGBoost

pytest.importorskip("onnx", reason="pip install 'tradenb[onnx]'")
pytest.importorskip("onnxruntime", reason="pip install 'tradenb[onnx]'")
import onnx
from onnx import helper, numpy_helper

FAST = dict(n_estimators=12, reg_lambda=1.)
THREE = {"XGBoost": XGBoost(**FAST, min_child_weight=5.), "LightGBM": LightGBM(**FAST, min_child_samples=5),
         "CatBoost": CatBoost(**FAST)}


def market(sessions=30, symbols=12, decimals=1, holes=.1, seed=0):
    "A planted market whose features lie on the boundaries of trees, with holes"
    ds, rng = planted(sessions, symbols, seed=seed), np.random.default_rng(seed)
    return Dataset(ds.X.round(decimals).mask(rng.random(ds.X.shape) < holes), ds.y, ds.w, ds.known_at)


def fitted(cls, ds, **told): return cls(**told).fit(ds)


# trees, to the bit

@pytest.mark.parametrize("told", [
    dict(cls=XGBoost, n_estimators=5, max_depth=20, min_child_weight=0., reg_lambda=0.),
    dict(cls=LightGBM, n_estimators=5, max_depth=-1, num_leaves=200, min_child_samples=1, reg_lambda=0.),
    dict(cls=CatBoost, n_estimators=3, max_depth=10),
    dict(cls=XGBoost, n_estimators=3, min_child_weight=1e9),
    dict(cls=LightGBM, n_estimators=3, min_child_samples=10**6),
    dict(cls=XGBoost, **FAST, objective="ranking", target="top_bottom", k=3),
    dict(cls=LightGBM, **FAST, objective="ranking"),
    dict(cls=CatBoost, **FAST, objective="quantile", quantile=.1),
], ids=lambda t: f"{t['cls'].__name__} {' '.join(f'{k}={v}' for k, v in t.items() if k not in ('cls', *FAST))}")
@pytest.mark.parametrize("holes", [0., .2], ids=["whole", "holes"])
def test_every_bit_of_deep_trees_of_leaves_and_of_rankings(told, holes, tmp_path):
    ds = market(holes=holes)
    model = fitted(ds=ds, **told)
    found = parity(model, export_onnx(model, tmp_path/"m.onnx"), ds.X)
    assert found.ok and (found.table["difference"] == 0).all(), found


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(list(THREE)), st.integers(0, 10**6), st.sampled_from([0, 1, 8]), st.sampled_from([1e-30, 1., 1e30]))
def test_every_bit_of_any_market(tmp_path_factory, name, seed, decimals, scale):
    ds = market(15, 10, decimals, seed=seed)
    ds = Dataset(ds.X*scale, ds.y, ds.w, ds.known_at)
    model = replace(THREE[name]).fit(ds)
    path = export_onnx(model, tmp_path_factory.mktemp("m")/"m.onnx")
    assert (parity(model, path, ds.X).table["difference"] == 0).all()


@pytest.mark.parametrize("labels", [(0., 1.), (-1., 1.), (-1., 0., 1.)], ids=str)
@pytest.mark.parametrize("name", THREE)
def test_classes_of_every_kind(name, labels, tmp_path):
    ds, rng = market(), np.random.default_rng(1)
    ds = Dataset(ds.X, pd.Series(rng.choice(labels, len(ds.X), p=[.8, *[.2/(len(labels) - 1)]*(len(labels) - 1)]), ds.X.index),
                 ds.w, ds.known_at)
    model = replace(THREE[name], objective="classification").fit(ds)
    found = parity(model, export_onnx(model, tmp_path/"m.onnx"), ds.X)
    assert found.table["relative"].max() < 1e-6 and found.rank_agreement > .9999, found


def test_a_tree_as_deep_as_it_has_rows():
    n = 1500
    chain = dict(feature=[0]*n, threshold=np.arange(n, dtype=float), yes=[-1 - i for i in range(n)],
                 no=[*range(1, n), -1 - n], nan_yes=[False]*n, value=np.arange(n + 1, dtype=float), target=0)
    g = Graph(["x"])
    x = np.array([[-1], [0], [.5], [n - 1], [n], [np.nan]])
    said = computed(g, g("Cast", g("Squeeze", forest_sum(g, "features", stacked([chain, leaf(.5)])), np.array([1])), to=11), x)
    assert said.tolist() == [.5, .5, 1.5, n - .5, n + .5, n + .5]


def test_another_runtime_says_the_same(tmp_path):
    from onnx.reference import ReferenceEvaluator
    ds = market(15, 8)
    for model in Average([fitted(LightGBM, ds, n_estimators=3, min_child_samples=5), Ridge()]).fit(ds), Stacker(least=5).fit(ds):
        path = export_onnx(model, tmp_path/f"{type(model).__name__}.onnx")
        day = ds.X.loc[[ds.sessions[-1]]]
        kind = float if isinstance(model, Stacker) else np.float32
        said, = ReferenceEvaluator(onnx.load(path)).run(None, {"features": day.to_numpy(kind)})
        np.testing.assert_allclose(said, opened(path).predict(day), rtol=1e-12, atol=1e-14)


# models made of models

def test_models_inside_models(tmp_path):
    ds = market()
    light, xgboost, cat = THREE["LightGBM"], THREE["XGBoost"], THREE["CatBoost"]
    models = {"nested": Seeds(Average([light, Seeds(xgboost, n=2)], by="rank"), n=2), "scores": Average([light, cat], [1, 3], "score"),
              "stack": Stacker(Average([light, Ridge()], by="score")), "positive": Stacker(positive=True, least=5),
              "off": Router({c: i + 1. for i, c in enumerate(ds.X)}), "on": Router(dict.fromkeys(ds.X, 1.), Stacker(least=5, by="rank"))}
    for name, model in models.items():
        found = parity(model.fit(ds), export_onnx(model, tmp_path/f"{name}.onnx"), ds.X)
        assert found.table["relative"].max() < 1e-12 and found.rank_agreement == pytest.approx(1), (name, found)


def test_one_session_or_one_name_is_scored_as_the_model_scores_it(tmp_path):
    ds = market()
    model = Stacker(least=5).fit(ds)
    scorer = opened(export_onnx(model, tmp_path/"m.onnx"))
    lonely = ds.X.loc[(slice(None), "S003"), :]
    for X in ds.X.tail(1), lonely, ds.X.tail(12), ds.X*np.nan:
        np.testing.assert_allclose(scorer.predict(X), model.predict(X), atol=1e-15)
    assert not len(scorer.predict(ds.X.head(0)))


# windows

@pytest.fixture(scope="module")
def nets():
    pytest.importorskip("torch", reason="pip install 'tradenb[nets]'")
    from tradenb.models.nets import LSTMNet, MambaNet, PatchTSTNet, seeded
    from tradenb.models.scaled import Scaled
    from tradenb.models.sequence import LSTM, Mamba, PatchTST
    from tradenb.models.windows import moments
    ds = market(40, 8)
    listed = ~((ds.X.index.get_level_values("symbol") == "S002") & (ds.sessions < ds.sessions.unique()[25]))
    halted = ~((ds.X.index.get_level_values("symbol") == "S005") & ds.sessions.isin(ds.sessions.unique()[[7, 8, 30]]))
    X = ds.X[listed & halted]
    def untaught(model, net):
        with seeded(0): model.network_ = Scaled(net(), *moments(X)).eval()
        model.features_ = list(X.columns)
        return model
    return X, {"LSTM": untaught(LSTM(8, hidden=6, attention=True, bidirectional=True, norm=True), lambda: LSTMNet(5, 6, 2, .2, True, True, True)),
               "PatchTST": untaught(PatchTST(17, patch=8, stride=4, width=8), lambda: PatchTSTNet(5, 17, 8, 4, 8)),
               "Mamba": untaught(Mamba(35, width=8), lambda: MambaNet(5, 8)), "one session": untaught(LSTM(1, hidden=6), lambda: LSTMNet(5, 6))}


def test_nets_read_windows_with_late_listings_and_halts(nets, tmp_path):
    X, models = nets
    for name, model in models.items():
        found = parity(model, path := export_onnx(model, tmp_path/f"{name}.onnx"), X)
        assert found.ok and found.table["relative"].max() < 1e-4, (name, found)
        scorer = opened(path)
        assert scorer.lookback == model.window - 1
        tail = X.loc[X.index.levels[0][-model.window:][0]:] # the bits of a row do not depend on its company
        assert scorer.predict(X).loc[X.index[-1]] == scorer.predict(tail).loc[X.index[-1]]


def test_windows_are_those_that_the_net_was_trained_on(nets, tmp_path):
    from tradenb.models.runtime import _reader
    X, models = nets
    read = _reader(opened(export_onnx(models["LSTM"], tmp_path/"m.onnx")), X)
    windows, _ = models["LSTM"].windows(X)
    np.testing.assert_array_equal(read(slice(100, 228)), windows[100:228])


def test_a_mean_of_nets_and_trees_gives_each_its_share_of_the_window(nets, tmp_path):
    X, models = nets
    light = LightGBM(n_estimators=5, min_child_samples=5)
    y = pd.Series(np.random.default_rng(0).normal(size=len(X)), X.index)
    light.fit(Dataset(X, y, y*0 + 1, pd.Series(X.index.get_level_values("session") + pd.Timedelta(days=1), X.index)))
    mixed = Average([models["LSTM"], light, models["PatchTST"]], by="zscore")
    mixed.members_, mixed.features_ = [models["LSTM"], light, models["PatchTST"]], list(X.columns)
    found = parity(mixed, path := export_onnx(mixed, tmp_path/"m.onnx"), X)
    assert found.ok and opened(path).lookback == 16 and opened(path).said["by_session"], found


# files that are not what they were, or more than a model

@pytest.fixture
def exported(tmp_path):
    ds = market(15, 8)
    return export_onnx(fitted(LightGBM, ds, n_estimators=3, min_child_samples=5), tmp_path/"m.onnx"), ds.X


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_changed_byte_is_opened(tmp_path_factory, data):
    home = tmp_path_factory.mktemp("bent")
    ds = market(15, 8)
    if not hasattr(test_no_changed_byte_is_opened, "raw"):
        path = export_onnx(fitted(LightGBM, ds, n_estimators=3, min_child_samples=5), home/"m.onnx")
        test_no_changed_byte_is_opened.raw = path.read_bytes(), (home/"m.onnx.sha256").read_text()
    raw, said = test_no_changed_byte_is_opened.raw
    at, to = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(1, 255))
    bent = bytearray(raw)
    bent[at] ^= to
    cut = data.draw(st.sampled_from([None, at]))
    (home/"m.onnx").write_bytes(bent[:cut])
    (home/"m.onnx.sha256").write_text(said)
    with pytest.raises(ValueError, match="is not as it was exported"): opened(home/"m.onnx")


def test_damaged_or_foreign_bytes_are_named_even_where_the_hash_is_right(exported, tmp_path):
    path, _ = exported
    def told(data):
        (tmp_path/"bent.onnx").write_bytes(data)
        with pytest.raises(ValueError) as e: opened(tmp_path/"bent.onnx", hashlib.sha256(data).hexdigest())
        return str(e.value)
    raw = path.read_bytes()
    assert "damaged" in told(raw[:-7]) or "does not say" in told(raw[:-7])
    assert "no ONNX model" in told(b"\x80\x04pickle")
    assert "does not say" in told(b"")
    bare = onnx.load(path)
    del bare.metadata_props[:]
    assert "does not say its" in told(bare.SerializeToString())
    lie = onnx.load(path)
    next(p for p in lie.metadata_props if p.key == "features").value = '["f0"]'
    assert "reads another" in told(lie.SerializeToString())


def test_numbers_from_other_files_and_operators_of_plug_ins_are_found_wherever_they_hide(exported, tmp_path):
    path, _ = exported
    def told(change):
        model = onnx.load(path)
        change(model)
        data = model.SerializeToString()
        (tmp_path/"bent.onnx").write_bytes(data)
        with pytest.raises(ValueError) as e: opened(tmp_path/"bent.onnx", hashlib.sha256(data).hexdigest())
        return str(e.value)
    away = numpy_helper.from_array(np.zeros(2, np.float32), "away")
    away.ClearField("raw_data")
    away.data_location = onnx.TensorProto.EXTERNAL
    away.external_data.add(key="location", value="/etc/passwd")
    branch = helper.make_graph([], "branch", [], [], [away])
    plug = helper.make_graph([helper.make_node("Steal", [], ["x"], domain="com.plug")], "branch", [], [])
    def within(graph): return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    for change in (lambda m: m.graph.initializer.append(away),
                   lambda m: m.graph.node.append(helper.make_node("Constant", [], ["y"], value=away)),
                   lambda m: m.graph.node.append(within(branch)),
                   lambda m: m.graph.node.append(within(helper.make_graph([within(branch)], "outer", [], []))),
                   lambda m: m.graph.sparse_initializer.add(values=away)):
        assert "takes numbers from another file" in told(change)
    for change in (lambda m: m.graph.node.append(helper.make_node("Steal", [], ["y"], domain="com.plug")),
                   lambda m: m.graph.node.append(helper.make_node("FusedMatMul", [], ["y"], domain="com.microsoft")),
                   lambda m: m.graph.node.append(within(plug))):
        assert "needs the operator" in told(change)
    own = helper.make_function("own", "Own", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 18)])
    assert "defines operators of its own (Own)" in told(lambda m: m.functions.append(own))


def test_a_file_too_large_is_not_even_read(exported, monkeypatch):
    path, _ = exported
    monkeypatch.setattr("tradenb.models.runtime.LARGEST", 1000)
    with pytest.raises(ValueError, match="1,000 are the most"): opened(path)


def test_an_interrupted_export_leaves_nothing_that_opens_and_is_done_again(tmp_path, monkeypatch):
    model, path, rename = fitted(LightGBM, market(15, 8), n_estimators=3), tmp_path/"m.onnx", Path.rename
    for survives in (0, 1):
        calls = []
        def dies(self, to, calls=calls, survives=survives):
            calls.append(to)
            if len(calls) > survives: raise OSError("no space left on device")
            return rename(self, to)
        monkeypatch.setattr(Path, "rename", dies)
        with pytest.raises(OSError, match="no space"): export_onnx(model, path)
        monkeypatch.undo()
        assert not path.exists() and not list(tmp_path.glob(".*"))
        with pytest.raises(FileNotFoundError, match="no model at"): opened(path)
    assert opened(export_onnx(model, path)).features == model.features_


def test_without_the_package_the_cure_is_named(monkeypatch, exported):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'tradenb\[onnx\]'"): opened(exported[0])


# parity is a gate

def test_parity_sees_a_threshold_that_is_off_by_one_bit(tmp_path, monkeypatch):
    ds = market(holes=0.)
    model = fitted(LightGBM, ds, n_estimators=3, min_child_samples=5)
    def rounded(trees, dtype=np.float64, strict=False):
        return stacked([t | {"threshold": np.float32(t["threshold"]).astype(float)} for t in trees], dtype, strict)
    monkeypatch.setattr("tradenb.models.forests.stacked", rounded) # what a converter to float32 does
    found = parity(model, export_onnx(model, tmp_path/"m.onnx"), ds.X)
    assert not found.ok and "does NOT hold" in repr(found)


def test_parity_sees_two_names_that_change_places(exported, monkeypatch):
    from tradenb.models.runtime import Scorer
    ds = market(15, 8)
    model, path = fitted(LightGBM, ds, n_estimators=3, min_child_samples=5), exported[0]
    say = Scorer.predict
    def swapped(self, X):
        s = say(self, X)
        return s.mask(s == s.max(), s.min()).mask(s == s.min(), s.max())
    monkeypatch.setattr(Scorer, "predict", swapped)
    found = parity(model, path, ds.X)
    assert not found.ok and found.rank_agreement < .999


def test_extremes_hit_thresholds_and_their_neighbours():
    X = pd.DataFrame(np.zeros((2000, 1)), pd.MultiIndex.from_product([pd.date_range("2024-01-01", periods=2000), ["S"]]), ["x"])
    t = np.float32(.3)
    seen = set(extremes(X, {0: np.array([.3])})["x"].dropna())
    assert {t, np.nextafter(t, np.float32(1)), np.nextafter(t, np.float32(0)), np.float32(3e38), np.float32(-3e38)} <= seen


def test_a_model_without_a_family_and_one_without_a_fit(tmp_path):
    class Own:
        features_ = ["f0"]
    with pytest.raises(TypeError, match="Own cannot be written as ONNX; families that can: "): export_onnx(Own(), tmp_path/"m.onnx")
    with pytest.raises(ValueError, match="has learnt nothing yet"): export_onnx(LightGBM(), tmp_path/"m.onnx")
    assert not list(tmp_path.iterdir())
