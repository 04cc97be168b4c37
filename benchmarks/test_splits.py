"CPCV(8, 2) over half a million rows, purged by label interval, and the same purge by purgedcv's searches in the same run"
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import Dataset
from tradenb.validation.splits import CPCV, PurgedKFold, overlapping


@pytest.fixture(scope="session")
def half_a_million() -> Dataset:
    "500 names x 1000 sessions, labels of up to twenty sessions, as barriers leave them"
    rng, days = np.random.default_rng(0), pd.bdate_range("2015-01-02", periods=1020, unit="us")
    index = pd.MultiIndex.from_product([days[:1000], [f"S{n:03d}" for n in range(500)]], names=["session", "symbol"])
    known = pd.Series(days[np.repeat(np.arange(1000), 500) + rng.integers(0, 20, len(index))], index)
    zero = pd.Series(0.0, index)
    return Dataset(zero.to_frame("x"), zero, zero + 1, known)


def seconds(f, rounds=3):
    times = []
    for _ in range(rounds):
        start = perf_counter()
        f()
        times.append(perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("purge", ["time", "symbol"])
def test_cpcv(benchmark, half_a_million, purge):
    cv, ds = CPCV(8, 2, embargo=10, purge=purge), half_a_million
    folds = benchmark.pedantic(lambda: list(cv.split(ds)), rounds=5, warmup_rounds=1)
    assert len(folds) == 28
    assert not any(len(overlapping(ds, train, test, purge, 10)) for train, test in folds[::9])
    mine = seconds(lambda: list(cv.split(ds)))
    print(f'\nCPCV(8, 2), purge="{purge}", {len(ds.y):,} rows: {mine * 1e3:.0f} ms for 28 folds')
    assert mine < 1


def test_against_purgedcv(benchmark, half_a_million):
    "One name's rows at its scale of rows: it cuts rows, so a session a row makes the two comparable; the same folds first"
    purgedcv = pytest.importorskip("purgedcv")
    rng, days = np.random.default_rng(0), pd.date_range("1700-01-01", periods=100_020, unit="us")
    index = pd.MultiIndex.from_product([days[:100_000], ["A"]], names=["session", "symbol"])
    known = pd.Series(days[np.arange(100_000) + rng.integers(0, 20, 100_000)], index)
    zero = pd.Series(0.0, index)
    ds, cv = Dataset(zero.to_frame("x"), zero, zero + 1, known), CPCV(8, 2, embargo=10)
    theirs = purgedcv.CombinatorialPurgedCV(
        n_splits=8, n_test_groups=2, prediction_times=pd.Series(ds.sessions),
        evaluation_times=pd.Series(known.to_numpy()) + pd.Timedelta("1D"), embargo=pd.Timedelta("9D"))
    for (train, test), (train2, test2) in zip(cv.split(ds), theirs.split(ds.X), strict=True):
        assert np.array_equal(train, train2) and np.array_equal(test, test2)
    benchmark.pedantic(lambda: list(cv.split(ds)), rounds=3)
    mine, peer = seconds(lambda: list(cv.split(ds))), seconds(lambda: list(theirs.split(ds.X)), 1)
    print(f"\nCPCV(8, 2), {len(ds.y):,} rows of one name: {mine * 1e3:.0f} ms, purgedcv {peer * 1e3:.0f} ms, {peer / mine:.0f} times as fast")
    assert mine < peer


def test_one_check_of_a_foreign_fold(benchmark, half_a_million):
    "What a model asks before it learns: does this training set leak?"
    train, test = next(PurgedKFold(5).split(half_a_million))
    benchmark.pedantic(lambda: overlapping(half_a_million, train, test), rounds=5)
    print(f"\noverlapping, {len(half_a_million.y):,} rows: {seconds(lambda: overlapping(half_a_million, train, test)) * 1e3:.0f} ms")
