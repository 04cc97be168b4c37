"PBO of 50 strategies over 16 blocks, 12,870 splits, beside the loop that papers print, on the splits it can do meanwhile"
from itertools import combinations
from time import perf_counter

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from tradenb.validation.effective import effective_trials
from tradenb.validation.pbo import pbo


def by_loop(x, n_blocks, splits):
    "Logits of the first splits, one after the other: join the blocks, score, rank"
    blocks, everything, logits = np.array_split(x, n_blocks), set(range(n_blocks)), []
    for inside in list(combinations(range(n_blocks), n_blocks // 2))[:splits]:
        halves = (np.concatenate([blocks[b] for b in sorted(which)]) for which in (inside, everything - set(inside)))
        past, future = (half.mean(0) / half.std(0, ddof=1) for half in halves)
        omega = rankdata(future)[past.argmax()] / (x.shape[1] + 1)
        logits.append(np.log(omega / (1 - omega)))
    return np.array(logits)


def returns(sessions=1000, trials=50):
    "Daily returns of trials that share some of their risk, and know nothing"
    rng = np.random.default_rng(0)
    x = 0.006 * rng.normal(size=(sessions, 1)) + 0.008 * rng.normal(size=(sessions, trials))
    return pd.DataFrame(x, pd.bdate_range("2018-01-02", periods=sessions, name="session"))


def seconds(f, *args, **kwargs):
    start = perf_counter()
    found = f(*args, **kwargs)
    return perf_counter() - start, found


def test_pbo(benchmark):
    frame, some = returns(), 500
    pbo(frame)   # compiles, and lays out the splits once
    theirs, logits = seconds(by_loop, frame.to_numpy(), 16, some)
    np.testing.assert_allclose(pbo(frame, paths=0).logits[:some], logits, atol=1e-12)
    bare, _ = min((seconds(pbo, frame, paths=0) for _ in range(5)), key=lambda run: run[0])
    whole, found = min((seconds(pbo, frame) for _ in range(5)), key=lambda run: run[0])
    benchmark.pedantic(pbo, (frame,), rounds=3)
    loop = theirs / some * len(found.logits)
    print(f"\nPBO, 50 strategies x 1000 sessions, {len(found.logits):,} splits: {bare * 1e3:.0f} ms, with a band of 100 histories "
          f"{whole * 1e3:.0f} ms; the loop {loop:.1f} s (from {some} splits), {loop / bare:.0f} times as long")
    assert len(found.logits) == 12_870 and whole < 2 and loop / bare > 10


def test_effective_trials_of_500(benchmark):
    frame = returns(trials=500)
    effective_trials(frame.iloc[:, :10])
    found = benchmark.pedantic(effective_trials, (frame,), rounds=3)
    assert found.n > 1
