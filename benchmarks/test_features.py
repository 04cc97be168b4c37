"All price features against the same by pandas groupby-rolling and by polars expressions, in the same run, the same answers first"
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.features.price import core14, inputs, momentum, technical, trend

FAMILIES = (core14, technical, inputs, momentum, trend)
YEAR = 252**0.5


def ours(panel):
    return {f.__name__: f(panel) for f in FAMILIES}


def formulas(o, h, l, c, v, r, m, g, gap, day, logs, up, down, rank, k):
    """The 61 columns from window functions of a library, which `k` has: lag, mean, std, max, min, ewm, where.

    Nothing is shared beyond what a user would share: windows that are used twice are named once.
    """
    mean = {(n, x): k.mean(s, n) for x, s, ns in (("c", c, (5, 10, 20, 50, 60, 100, 126, 200)), ("v", v, (5, 20)), ("g", g, (5, 20)))
            for n in ns}
    high, low = {n: k.max(h, n) for n in (20, 60, 126, 252)}, {n: k.min(l, n) for n in (20, 60)}
    std = {n: k.std(c, n) for n in (20, 60)}
    core = {"ret_1": r} | {f"ret_{n}": c / k.lag(c, n) - 1 for n in (5, 20)} | {f"vol_{n}": k.std(r, n) for n in (5, 20)}
    core |= {"volume_vol": k.std(v, 20) / mean[20, "v"], "dist_high_20": c / high[20] - 1, "dist_low_20": c / low[20] - 1,
             "range_compression": mean[5, "g"] / mean[20, "g"], "mom_5": c / mean[5, "c"] - 1, "mom_20": c / mean[20, "c"] - 1,
             "volume_ratio": v / mean[20, "v"], "volume_trend": mean[5, "v"] / mean[20, "v"] - 1, "market_return": m}

    def seeded(x, n, alpha, at):  # the mean of n values at the at-th row of a name, then the values
        return k.ewm(k.where(rank > at, x, k.where(rank == at, k.mean(x, n), None)), alpha)
    gain, loss = seeded(up, 14, 1 / 14, 14), seeded(down, 14, 1 / 14, 14)
    line = seeded(c, 12, 2 / 13, 25) - seeded(c, 26, 2 / 27, 25)
    signal = seeded(line, 9, 2 / 10, 33)
    line = k.where(rank >= 33, line, None)
    before = k.lag(c, 1)
    true_range = k.where(h > before, h, before) - k.where(l < before, l, before)
    true_range = k.where(rank >= 1, true_range, None)
    far = 2 * std[20] * (19 / 20)**0.5
    tech = {f"sma_{n}": mean[n, "c"] for n in (5, 20, 50, 200)}
    tech |= {"rsi_14": 100 * gain / (gain + loss), "macd": line, "macd_signal": signal, "macd_hist": line - signal,
             "bb_upper": mean[20, "c"] + far, "bb_lower": mean[20, "c"] - far,
             "bb_percent": (c - mean[20, "c"] + far) / (2 * far), "bb_width": 2 * far / mean[20, "c"],
             "atr_14": seeded(true_range, 14, 1 / 14, 14), "roc_10": 100 * (c / k.lag(c, 10) - 1)}

    inp = {f"momentum_{n}": c / k.lag(c, n) - 1 for n in (5, 20, 60, 126)} | {f"z_{n}": (c - mean[n, "c"]) / std[n] for n in (20, 60)}
    inp |= {f"realised_vol_{n}": YEAR * k.std(logs, n) for n in (20, 60)} | {"dollar_adv_20": k.mean(c * v, 20)}
    inp |= {f"band_{n}": (c - low[n]) / (high[n] - low[n]) for n in (20, 60)}
    gaps = k.std(gap, 20)
    inp |= {"gap": gap, "gap_mean_20": k.mean(gap, 20), "gap_std_20": gaps, "overnight_share_20": gaps**2 / (gaps**2 + k.std(day, 20)**2)}
    inp |= {f"drawdown_{n}": c / high[n] - 1 for n in (126, 252)}
    for n in (60, 126):
        mr, mm = k.mean(r, n), k.mean(m, n)
        both, own, common = (k.mean(x, n) - y for x, y in ((r * m, mr * mm), (r * r, mr * mr), (m * m, mm * mm)))
        inp |= {f"beta_{n}": both / common, f"r2_{n}": both**2 / (common * own),
                f"idio_vol_{n}": ((own - both**2 / common) * (n / (n - 2)))**0.5 * YEAR}
    mom = {f"mom_{n}": c / mean[n, "c"] - 1 for n in (5, 20, 60, 126)}
    slow = {}
    for n in (50, 100, 200):
        slow |= {f"dist_sma_{n}": c / mean[n, "c"] - 1, f"slope_sma_{n}": mean[n, "c"] / k.lag(mean[n, "c"], 20) - 1}
    return dict(core14=core, technical=tech, inputs=inp, momentum=mom, trend=slow)


class Pandas:
    "groupby-rolling on rows sorted by symbol"
    def __init__(self, index): self.index, self.by = index, index.get_level_values("symbol")
    def _rolling(self, x, n): return x.groupby(level="symbol", sort=False).rolling(n)
    def _back(self, x): return pd.Series(x.to_numpy(), self.index)
    def lag(self, x, n): return x.groupby(level="symbol", sort=False).shift(n)
    def mean(self, x, n): return self._back(self._rolling(x, n).mean())
    def std(self, x, n): return self._back(self._rolling(x, n).std())
    def max(self, x, n): return self._back(self._rolling(x, n).max())
    def min(self, x, n): return self._back(self._rolling(x, n).min())
    def ewm(self, x, alpha): return self._back(x.groupby(level="symbol", sort=False).ewm(alpha=alpha, adjust=False).mean())
    def where(self, when, x, other): return x.where(when, np.nan if other is None else other)


def by_groupby(panel):
    "The features as pandas would have them: sorted by symbol once, one groupby-rolling each"
    p = panel.swaplevel().sort_index()
    k = Pandas(p.index)
    o, h, l, c, v = (p[x] for x in ("open", "high", "low", "close", "volume"))
    before = k.lag(c, 1)
    r, move, rank = c / before - 1, c - before, c.groupby(level="symbol").cumcount()
    m = r.groupby(level="session").transform("mean")
    made = formulas(o, h, l, c, v, r, m, (h - l) / c, o / before - 1, (c / o - 1).where(rank >= 1), np.log(c / before),
                    move.clip(lower=0), (-move).clip(lower=0), rank, k)
    return {f: pd.DataFrame(columns).swaplevel().sort_index() for f, columns in made.items()}


class Polars:
    "Expressions, each over its symbol"
    def __init__(self, pl): self.pl = pl
    def lag(self, x, n): return x.shift(n).over("symbol")
    def mean(self, x, n): return x.rolling_mean(n).over("symbol")
    def std(self, x, n): return x.rolling_std(n).over("symbol")
    def max(self, x, n): return x.rolling_max(n).over("symbol")
    def min(self, x, n): return x.rolling_min(n).over("symbol")
    def ewm(self, x, alpha): return x.ewm_mean(alpha=alpha, adjust=False, ignore_nulls=True).over("symbol")
    def where(self, when, x, other): return self.pl.when(when).then(x).otherwise(other)


def by_polars(frame):
    "The features as polars would have them, lazily, so that it may share and spread the work as it likes"
    import polars as pl
    k = Polars(pl)
    o, h, l, c, v = map(pl.col, ("open", "high", "low", "close", "volume"))
    lf = frame.lazy().with_columns(before=k.lag(c, 1), rank=pl.int_range(pl.len()).over("symbol"))
    r, move = c / pl.col("before") - 1, c - pl.col("before")
    lf = lf.with_columns(r=r, g=(h - l) / c, gap=o / pl.col("before") - 1, logs=(c / pl.col("before")).log(),
                         day=pl.when(pl.col("rank") >= 1).then(c / o - 1), up=move.clip(lower_bound=0), down=(-move).clip(lower_bound=0))
    lf = lf.with_columns(m=pl.col("r").mean().over("session"))
    names = "r m g gap day logs up down rank".split()
    made = formulas(o, h, l, c, v, *map(pl.col, names), k)
    return lf.select([x.alias(f"{f}.{name}") for f, columns in made.items() for name, x in columns.items()]).collect()


def without_gaps(panel):
    "Names with a row in every session since their first: rows are sessions for these, as groupby needs it"
    row = pd.Series(pd.factorize(panel.index.get_level_values("session"))[0], panel.index).groupby(level="symbol")
    whole = row.max() - row.min() + 1 == row.size()
    return panel[panel.index.get_level_values("symbol").isin(whole.index[whole])]


def seconds(f, panel):
    start = perf_counter()
    f(panel)
    return perf_counter() - start


def agree(mine, theirs, panel):
    "To a billionth of the value, or of the column's own spread where values cross zero"
    # the real panel has a name that stood still for twenty sessions: running sums leave a residue there, and divide it by another
    still = panel["close"].groupby(level="symbol").diff().eq(0).groupby(level="symbol").rolling(19).min().droplevel(0)
    moved = ~still.reindex(panel.index).eq(1).to_numpy()
    assert moved.mean() > 0.999 and list(mine) == list(theirs)
    for name in mine:
        a, b = mine[name].to_numpy()[moved], theirs[name].replace([np.inf, -np.inf], np.nan).to_numpy()[moved]
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.nanstd(a), err_msg=str(name))


@pytest.mark.parametrize("peer", ["pandas", "polars"])
def test_price_features(benchmark, panel503, peer):
    panel = without_gaps(panel503)
    mine = pd.concat(ours(panel), axis=1)
    if peer == "pandas":
        theirs, given, least = by_groupby, panel, 10
        agree(mine, pd.concat(theirs(panel), axis=1), panel)
    else:
        pl = pytest.importorskip("polars")
        given = pl.from_pandas(panel.reset_index())
        theirs, least = by_polars, 1
        made = theirs(given).to_pandas().set_axis(mine.index)
        agree(mine, made.set_axis(mine.columns, axis=1), panel)
    rounds = 2 if peer == "pandas" else 5
    pairs = [(seconds(theirs, given), min(seconds(ours, panel) for _ in range(3))) for _ in range(rounds)]
    benchmark.pedantic(ours, (panel,), rounds=5)
    peers, own = (min(times) for times in zip(*pairs, strict=True))
    print(f"\n{mine.shape[1]} price features on {panel503.attrs['said']} ({len(panel):,} without gaps): {own * 1e3:.0f} ms, "
          f"{peer} {peers * 1e3:.0f} ms, {peers / own:.1f} times as fast; {own * 1e3 / panel503.index.levels[1].size:.2f} ms a symbol")
    assert peers / own >= least
