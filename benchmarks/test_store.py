"The store against pandas on the very same Parquet files, in the same run, the same answer first; append; memory"
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import wide
from tradenb.data.store import Store

COLUMNS = ["open", "high", "low", "close", "volume"]
END = pd.Timestamp("2200-01-01")


@pytest.fixture(scope="module")
def kept(tmp_path_factory, panel503):
    "A store with the rows, which were never corrected, so that pandas can do with its files what it does with any"
    folder = tmp_path_factory.mktemp("kept")
    Store(folder).append("bars", panel503.reset_index(), "real", pd.Timestamp("2019-06-03 22:00Z"))
    return folder


def by_pandas(folder, store=None):
    flat = pd.read_parquet(folder/"bars", columns=["session", "symbol", *COLUMNS])
    return [flat.pivot(index="session", columns="symbol", values=c) for c in COLUMNS]


def by_store(folder, store=None):
    panel = (store or Store(folder)).as_of("bars", END, columns=COLUMNS)
    return [wide(panel, c) for c in COLUMNS]


def by_store_all(folder, store=None):
    panel = (store or Store(folder)).as_of("bars", END)
    return [wide(panel, c) for c in COLUMNS]


def by_pandas_all(folder, store=None):
    flat = pd.read_parquet(folder/"bars")
    return [flat.pivot(index="session", columns="symbol", values=c) for c in COLUMNS]


def seconds(f, *args):
    start = perf_counter()
    f(*args)
    return perf_counter() - start


def peak(folder, what):
    "Megabytes in use at most, in a process of its own: what Arrow and what Python and NumPy asked for"
    code = f"""
import pathlib, sys, tracemalloc
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pyarrow as pa
from test_store import by_pandas, by_pandas_all, by_store, by_store_all
tracemalloc.start()
found = {what}(pathlib.Path({str(folder)!r}))
print((tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory()) / 1e6)
"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_as_of_into_matrices(benchmark, kept, panel503):
    store, doers = Store(kept), (by_pandas, by_store, by_pandas_all, by_store_all)
    for ours, theirs in zip(by_store(kept, store), by_pandas(kept), strict=True):
        theirs = theirs[list(ours.columns)]  # names that were listed late come last in what pandas makes of categories
        np.testing.assert_array_equal(ours.to_numpy(), theirs.to_numpy())
        assert ours.index.equals(theirs.index)
    rounds = [[seconds(f, kept, store) for f in doers] for _ in range(7)]
    first = min(seconds(by_store, kept) for _ in range(5))
    benchmark.pedantic(by_store, (kept, store), rounds=5)
    peer, mine, peer_all, mine_all = np.min(rounds, axis=0)
    print(f"\nas_of and five matrices of {panel503.attrs['said']}: {mine * 1e3:.0f} ms, pandas read_parquet of the same files and five pivots "
          f"{peer * 1e3:.0f} ms, {peer / mine:.1f} times as fast; {peer / first:.1f} where the store was just opened and checks its files; "
          f"with all columns and provenance {mine_all * 1e3:.0f} and {peer_all * 1e3:.0f} ms, {peer_all / mine_all:.1f} times")
    held = store.as_of("bars", END).memory_usage(deep=True).sum() / 1e6
    print(f"peak memory {peak(kept, 'by_store'):.0f} MB, pandas {peak(kept, 'by_pandas'):.0f} MB; all columns "
          f"{peak(kept, 'by_store_all'):.0f} and {peak(kept, 'by_pandas_all'):.0f} MB, of which the panel is {held:.0f} MB; "
          f"on disk {sum(f.stat().st_size for f in kept.glob('bars/*/*')) / 1e6:.0f} MB")
    assert peer / mine >= 5


def test_append_of_one_session(benchmark, kept, panel503):
    store, last = Store(kept), panel503.index.levels[0][-1]
    of = panel503.loc[[last]].reset_index()
    days = iter(pd.bdate_range(last, periods=60)[1:])

    def tonight():
        day = next(days)
        store.append("bars", of.assign(session=day), "real", pd.Timestamp(f"{day:%Y-%m-%d} 22:00Z"))

    times = []
    for _ in range(40): times.append(seconds(tonight))  # more than a year's 31 small files: one append merges them
    benchmark.pedantic(tonight, rounds=10)
    print(f"\nappend of one session of {len(of)} names to {panel503.attrs['said']}: {np.median(times) * 1e3:.0f} ms, "
          f"the slowest of 40 (which merges the small files) {max(times) * 1e3:.0f} ms")
    assert np.median(times) < 0.2


@pytest.mark.parametrize("when", ["a session in the past", "corrected"])
def test_as_of(benchmark, kept, panel503, when):
    store, days = Store(kept), panel503.index.levels[0]
    if when == "corrected":
        some = panel503.sample(5000, random_state=0).reset_index()
        store.append("bars", some.assign(close=some["close"] + 1), "real", pd.Timestamp("2026-06-03 22:00Z"))
    benchmark(store.as_of, "bars", END if when == "corrected" else days[700])
