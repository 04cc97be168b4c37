"Triple barriers on the whole panel against the loop everybody runs, in the same run, the same answers first; weights of half a million labels"
from importlib import import_module
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import wide
from tradenb.labels.barriers import ewm_volatility, triple_barrier
from tradenb.labels.weights import sequential_bootstrap, uniqueness

PROFIT, STOP, HORIZON, NAMES = 2.0, 1.0, 10, 4


def snippet(close, events, pt_sl, molecule):
    "Snippet 3.2 of Advances in Financial Machine Learning, as mlfinpy runs it: the first session beyond a barrier, one event at a time"
    out = events.loc[molecule, ["t1"]].copy()
    target, stop = pt_sl[0] * events["trgt"], -pt_sl[1] * events["trgt"]
    out["pt"], out["sl"] = pd.Series(dtype=events.index.dtype), pd.Series(dtype=events.index.dtype)
    for loc, end in events["t1"].items():
        path = close[loc:end]
        path = (path / close[loc] - 1) * events.at[loc, "side"]
        out.at[loc, "sl"] = path[path < stop[loc]].index.min()
        out.at[loc, "pt"] = path[path > target[loc]].index.min()
    return out


def peers():
    "The loop, and mlfinpy's own where it is installed (it asks for pandas 2, and runs beside pandas 3 with pip install --no-deps mlfinpy)"
    found = {"the loop of snippet 3.2": snippet}
    try: mlfinpy = import_module("mlfinpy.labeling.labeling")
    except ImportError: return found
    return {"mlfinpy": mlfinpy.triple_barriers, **found}


def seconds(f):
    start = perf_counter()
    out = f()
    return perf_counter() - start, out


@pytest.mark.parametrize("peer", peers())
def test_barriers(benchmark, panel503, peer):
    loop, close = peers()[peer], wide(panel503, "close")
    names = close.columns[close.notna().all()][::100][:NAMES]  # the loop counts rows, which are sessions for these
    unit, days = ewm_volatility(close), close.index
    events = {n: pd.DataFrame({"t1": pd.Series(days[HORIZON:], days[:-HORIZON]), "trgt": unit[n], "side": 1.0}).dropna() for n in names}

    def theirs(): return {n: loop(close[n], events[n], [PROFIT, STOP], events[n].index) for n in names}
    def ours(): return triple_barrier(panel503, PROFIT, STOP, HORIZON, touch="close", entry="close")

    took, touched = seconds(theirs)
    answer = ours()
    for n in names:
        want = touched[n][["t1", "pt", "sl"]].apply(pd.to_datetime).min(axis=1)
        mine = answer.xs(n, level="symbol").loc[want.index]
        assert (mine["exit"] == want).all()
        np.testing.assert_allclose(mine["ret"], close[n][want].to_numpy() / close[n][want.index] - 1, rtol=1e-12, atol=1e-15)
        assert (mine["hit"] == np.where(want == touched[n]["sl"], "stop", np.where(want == touched[n]["pt"], "profit", "expiry"))).all()

    rows = sum(map(len, events.values()))
    whole = took / rows * len(panel503)
    quick = min(seconds(ours)[0] for _ in range(5))
    ranges = min(seconds(lambda: triple_barrier(panel503))[0] for _ in range(5))
    benchmark.pedantic(ours, rounds=5)
    print(f"\ntriple_barrier on {panel503.attrs['said']}: closes {quick * 1e3:.0f} ms, highs and lows from the next open {ranges * 1e3:.0f} ms; "
          f"{peer} {took / rows * 1e6:.0f} us a row, {whole:.0f} s for the panel, {whole / quick:.0f} times as long")
    assert whole >= 100 * quick


def test_weights(benchmark, panel503):
    labels = triple_barrier(panel503)
    labels, days = labels[labels["hit"] != "open"], panel503.index.unique("session")
    sequential_bootstrap(labels, 10, sessions=days)  # compiled
    counted, _ = min((seconds(lambda: uniqueness(labels, days)) for _ in range(3)), key=lambda x: x[0])
    some, _ = seconds(lambda: sequential_bootstrap(labels.iloc[:5000], 5000, sessions=days, across=True))
    all_, drawn = seconds(lambda: sequential_bootstrap(labels, sessions=days))
    assert len(drawn) == len(labels)
    benchmark.pedantic(uniqueness, (labels, days), rounds=3)
    print(f"\nuniqueness of {len(labels):,} labels {counted * 1e3:.0f} ms; sequential bootstrap of as many {all_:.1f} s, "
          f"of 5,000 in each other's way {some * 1e3:.0f} ms")
    assert counted < 1
