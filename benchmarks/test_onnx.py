"Five hundred names scored at once, by ONNX and by the library that trained the model, in the same run, the same answers first"
from dataclasses import replace
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import Dataset
from tradenb.features.price import core14
from tradenb.models.onnx import export_onnx, opened
from tradenb.models.trees import CatBoost, LightGBM, XGBoost

MODELS = {"XGBoost": XGBoost(), "LightGBM": LightGBM(), "CatBoost": CatBoost(),
          "LightGBM 127 leaves": LightGBM(num_leaves=127, max_depth=-1)}


@pytest.fixture(scope="module")
def learnt(panel503):
    X = core14(panel503).dropna().iloc[-100_000:]
    y = pd.Series(np.random.default_rng(0).normal(0, .02, len(X)) + .01*X["ret_1"], X.index)
    return Dataset(X, y, pd.Series(1., X.index), pd.Series(X.index.get_level_values("session") + pd.Timedelta(days=1), X.index))


@pytest.mark.parametrize("name", MODELS)
def test_score_500_names_p99_under_10_ms(learnt, name, tmp_path, capsys):
    model = replace(MODELS[name]).fit(learnt.take(np.arange(50_000)))
    scorer, X = opened(export_onnx(model, tmp_path/"m.onnx")), learnt.X.tail(500)
    assert (scorer.predict(X) == model.predict(X)).all()
    took = {}
    for who, score in ("native", model.predict), ("ONNX", scorer.predict):
        times = []
        for _ in range(500):
            began = perf_counter()
            score(X)
            times.append(perf_counter() - began)
        took[who] = 1000*np.percentile(times, [50, 99])
    with capsys.disabled():
        print(f"\n{name}: 500 names, {scorer.said['versions']['onnx']}: " + "; ".join(
            f"{who} median {t[0]:.2f} ms, p99 {t[1]:.2f} ms" for who, t in took.items())
            + f"; {took['native'][0]/took['ONNX'][0]:.1f}x")
    assert took["ONNX"][1] < 10
