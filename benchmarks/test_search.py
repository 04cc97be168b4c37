"""Out of fold over CPCV(8, 2) with LightGBM: folds beside each other against the plain serial loop, and a search that gives up against one that
does not; the same answers first, on 503 stocks x 1000 sessions"""
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import Dataset
from tradenb.features.price import core14
from tradenb.labels.horizon import forward_return
from tradenb.models.base import clone, out_of_fold_paths
from tradenb.models.search import search
from tradenb.models.trees import LightGBM
from tradenb.validation.splits import CPCV

SPLIT = CPCV(8, 2, embargo=10)
MODEL = LightGBM(n_estimators=50, num_leaves=31, min_child_samples=200, target="rank")


@pytest.fixture(scope="module")
def learnt(panel503):
    X, label = core14(panel503).dropna(), forward_return(panel503, 5, excess=True).dropna(subset="y")
    rows = X.index.intersection(label.index)
    ds = Dataset(X.loc[rows], label.loc[rows, "y"], pd.Series(1., rows), label.loc[rows, "known_at"])
    print(f"\n  {panel503.attrs['said']}; {len(rows):,} rows to learn from, {X.shape[1]} features")
    return ds


def loop(ds):
    "As it would be written by hand: each fold fitted and scored, then the paths put together"
    return SPLIT.paths([clone(MODEL).fit(ds.take(train)).predict(ds.X.iloc[test]) for train, test in SPLIT.split(ds)])


def timed(f, *args, **more):
    began = perf_counter()
    answer = f(*args, **more)
    return answer, perf_counter() - began


def test_cpcv_of_lightgbm_against_a_serial_loop(learnt):
    serial, by_hand = timed(loop, learnt)
    one, alone = timed(out_of_fold_paths, MODEL, learnt, SPLIT, trials=None)
    many, beside = timed(out_of_fold_paths, MODEL, learnt, SPLIT, n_jobs=-1, trials=None)
    for paths in one, many: np.testing.assert_array_equal(paths.to_numpy(), serial.to_numpy())
    print(f"  28 fits: loop {by_hand:.1f} s, out_of_fold {alone:.1f} s ({by_hand/alone:.2f}x), on all cores {beside:.1f} s "
          f"({by_hand/beside:.2f}x); {1000*by_hand/28:.0f} ms a fit")
    assert alone < 1.5*by_hand   # its checks cost little
    assert beside < 1.2*by_hand


def test_a_search_that_gives_up_against_one_that_does_not(learnt):
    some = learnt.take(np.flatnonzero(learnt.X.index.get_level_values("symbol").isin(learnt.X.index.levels[1][::8])))
    space = {"num_leaves": [7, 31, 127], "learning_rate": [.01, .05, .2], "min_child_samples": [50, 200, 800]}
    told = dict(n_trials=14, sampler="random", trials=None)
    whole, patient = timed(search, MODEL, space, some, SPLIT, prune=False, **told)
    lazy, quick = timed(search, MODEL, space, some, SPLIT, **told)
    kept = whole.table["value"].rank(ascending=False)[lazy.number]
    print(f"  14 trials: {patient:.1f} s, giving up {quick:.1f} s ({patient/quick:.2f}x), "
          f"{lazy.table['folds'].sum()} of {whole.table['folds'].sum()} folds; its best is number {kept:.0f} of the whole search")
    assert quick < 1.1*patient and kept <= 4
