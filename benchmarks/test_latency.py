"How long one evening's pieces take on 503 x 1000: figures to read, not assertions (they depend on the machine)"
import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import Dataset, check_panel
from tradenb.data.quality import audit, eligible
from tradenb.features.price import core14
from tradenb.labels.horizon import forward_return
from tradenb.models.trees import LightGBM, XGBoost
from tradenb.portfolio.limits import cap
from tradenb.portfolio.sizing import gross, volatility_target
from tradenb.portfolio.weights import State, compose, ewma, filter_negative


def test_check_panel(benchmark, panel503): benchmark(check_panel, panel503)
def test_audit(benchmark, panel503): benchmark.pedantic(audit, (panel503,), rounds=3)
def test_eligible(benchmark, panel503): benchmark.pedantic(eligible, (panel503,), rounds=3)


def test_the_rankers_rules_on_500_names(benchmark):
    rng, names = np.random.default_rng(0), np.array([f"S{i:03}" for i in range(500)], object)
    rule = compose([filter_negative(), ewma(), volatility_target(), cap(), gross()])
    benchmark(rule, rng.normal(0, .02, 500), State(None, names, returns=rng.normal(0, .01, 300)))


@pytest.fixture(scope="module")
def learnt(panel503):
    X, label = core14(panel503), forward_return(panel503, k=5, excess=True)
    X = X.loc[label.index].dropna().iloc[:300_000]
    label = label.loc[X.index]
    return Dataset(X, label["y"], pd.Series(1., X.index), label["known_at"])


@pytest.mark.parametrize("model", [XGBoost(), LightGBM()], ids=["XGBoost", "LightGBM"])
def test_fit_300_000_rows(benchmark, learnt, model): benchmark.pedantic(model.fit, (learnt,), rounds=1)


@pytest.mark.parametrize("model", [XGBoost(), LightGBM()], ids=["XGBoost", "LightGBM"])
def test_score_500_names(benchmark, learnt, model): benchmark(model.fit(learnt.take(np.arange(50_000))).predict, learnt.X.tail(500))
