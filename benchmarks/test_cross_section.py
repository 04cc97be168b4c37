"Ranks, z and residuals within sessions against pandas groupby-transform, in the same run, the same answer first"
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.features.cross_section import rank, winsorise, zscore
from tradenb.features.neutral import neutralise
from tradenb.features.price import core14


@pytest.fixture(scope="module")
def features(panel503):
    "Thirteen of the core fourteen (all but the market's), and a sector for each name"
    names = panel503.index.levels[1]
    return core14(panel503).drop(columns="market_return"), pd.Series(np.resize(list("ABCDEFGHIJK"), len(names)), names)


def by_session(f): return f.groupby(level="session")


def pandas_rank(f):
    g = by_session(f)
    return (g.rank() - 0.5) / g.transform("count")


def pandas_z(f):
    g = by_session(f)
    return (f - g.transform("mean")) / g.transform("std")


def pandas_clip(f):
    g = by_session(f)
    low, high = (g.quantile(q).reindex(f.index.get_level_values("session")).set_axis(f.index) for q in (0.01, 0.99))
    return f.clip(low, high)


def pandas_neutral(f, sector):
    return f - f.groupby([f.index.get_level_values("session"), sector.reindex(f.index.get_level_values("symbol")).to_numpy()]).transform("mean")


def seconds(f, *args):
    start = perf_counter()
    f(*args)
    return perf_counter() - start


@pytest.mark.parametrize("what", ["rank", "z", "winsorise", "neutralise"])
def test_within_sessions(benchmark, panel503, features, what):
    f, sector = features
    ours, theirs, args = {"rank": (rank, pandas_rank, (f,)), "z": (zscore, pandas_z, (f,)), "winsorise": (winsorise, pandas_clip, (f,)),
                          "neutralise": (neutralise, pandas_neutral, (f, sector))}[what]
    a, b = ours(*args), theirs(*args)
    np.testing.assert_allclose(a.where(b.notna()), b.where(a.notna()), rtol=1e-6, atol=1e-9 * float(b.abs().max(axis=None)))
    peer = min(seconds(theirs, *args) for _ in range(2))
    mine = min(seconds(ours, *args) for _ in range(5))
    benchmark.pedantic(ours, args, rounds=5)
    print(f"\n{what} of 13 features on {panel503.attrs['said']}: {mine * 1e3:.0f} ms, pandas groupby-transform {peer * 1e3:.0f} ms, "
          f"{peer / mine:.1f} times as fast")
    assert peer > mine
