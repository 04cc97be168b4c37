"Features against pandas rolling, on markets with holes, to the bit where the future or the history is cut"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.panel import check_panel, long
from tradenb.features.price import CORE14, INPUTS, core14, inputs, momentum, trend
from tradenb.features.timeframes import timeframe
from tradenb.features.windows import Trailing

same = np.testing.assert_array_equal
FAMILIES = dict(core14=(core14, 21), momentum=(lambda p: momentum(p, (5, 20, 37)), 37),
                trend=(lambda p: trend(p, (10, 33), step=7), 40), inputs=(inputs, 252),
                weekly=(lambda p: timeframe(p, momentum, windows=(2, 5)), 30),
                monthly=(lambda p: timeframe(p, "core14", "month"), 23 * 22))


def market(n_sessions, n_symbols, seed, gaps=0.02, start="2017-01-03"):
    "Bars with holes, late listings, a name that leaves, one without trade, prices from 1e-3 to 1e5 and a monstrous volume"
    rng = np.random.default_rng(seed)
    days = sessions(start, "2030-12-31")[:n_sessions]
    names = [f"S{n:03d}" for n in range(n_symbols)]
    shape = n_sessions, n_symbols
    close = rng.choice([1e-3, 50, 1e5], n_symbols) * np.exp(rng.normal(0, 0.02, shape).cumsum(0))
    width = close * rng.uniform(0, 0.02, shape)
    volume = rng.lognormal(10, 0.8, shape).round()
    volume[:, 0] = 0
    volume[rng.integers(n_sessions), -1] = 1e15
    listed = np.arange(n_sessions)[:, None] >= rng.integers(0, n_sessions, n_symbols) * (rng.random(n_symbols) < 0.3)
    listed[n_sessions * 2 // 3:, n_symbols // 2] = False
    kept = listed & (rng.random(shape) >= gaps)
    kept[:, 1] = True
    open = close + width * rng.uniform(-1, 1, shape)
    return long(**{name: pd.DataFrame(np.where(kept, x, np.nan), days, names) for name, x in
                   dict(open=open, high=close + width, low=close - width, close=close, volume=volume).items()})


def oracle(panel):
    "The table of the room, by rolling windows of pandas on the whole session axis"
    h, l, c, v = (panel[name].unstack() for name in ("high", "low", "close", "volume"))
    r, g = c.pct_change(fill_method=None), (h - l) / c
    apart = lambda x, n: x.rolling(n).apply(lambda w: np.std(w, ddof=1), raw=True)
    mean = lambda x, n: x.rolling(n).apply(np.mean, raw=True)
    table = {f"ret_{n}": c / c.shift(n) - 1 for n in (1, 5, 20)} | {f"vol_{n}": apart(r, n) for n in (5, 20)}
    table |= {f"mom_{n}": c / mean(c, n) - 1 for n in (5, 20)}
    table |= dict(volume_vol=apart(v, 20) / mean(v, 20), volume_ratio=v / mean(v, 20), volume_trend=mean(v, 5) / mean(v, 20) - 1,
                  dist_high_20=c / h.rolling(20).max() - 1, dist_low_20=c / l.rolling(20).min() - 1,
                  range_compression=mean(g, 5) / mean(g, 20),
                  market_return=pd.DataFrame(np.repeat(r.mean(axis=1).to_numpy()[:, None], r.shape[1], 1), r.index, r.columns))
    return on_rows(table, panel)[CORE14]


def on_rows(table, panel):
    return pd.DataFrame({name: x.stack().reindex(panel.index) for name, x in table.items()})


def test_core14_is_the_table():
    panel = market(300, 30, seed=1)
    np.testing.assert_allclose(core14(panel), oracle(panel), rtol=1e-9, atol=1e-12)


def test_momentum_and_trend_are_rolling_means():
    panel, table = market(320, 12, seed=2), {}
    c = panel["close"].unstack()
    for n in (50, 100, 126, 200):
        sma = c.rolling(n).apply(np.mean, raw=True)
        table |= {f"mom_{n}": c / sma - 1, f"dist_sma_{n}": c / sma - 1, f"slope_sma_{n}": sma / sma.shift(20) - 1}
    want = on_rows(table, panel)
    np.testing.assert_allclose(momentum(panel, (50, 126)), want[["mom_50", "mom_126"]], rtol=1e-9, atol=1e-12)
    ours = trend(panel)
    assert ours.notna().any().all()
    np.testing.assert_allclose(ours, want[list(ours)], rtol=1e-9, atol=1e-12)


def test_inputs_are_the_table():
    panel = market(300, 6, seed=8, gaps=0.0005)
    o, h, l, c, v = (panel[name].unstack() for name in ("open", "high", "low", "close", "volume"))
    r, gap, day = c.pct_change(fill_method=None), o / c.shift(1) - 1, (c / o - 1).where(c.shift(1).notna())
    roll = lambda x, n, f: x.rolling(n).apply(f, raw=True)
    apart = lambda w: np.std(w, ddof=1)
    table = {f"momentum_{n}": c / c.shift(n) - 1 for n in (5, 20, 60, 126)}
    table |= {f"z_{n}": (c - roll(c, n, np.mean)) / roll(c, n, apart) for n in (20, 60)}
    table |= {f"realised_vol_{n}": 252**.5 * roll(np.log(c / c.shift(1)), n, apart) for n in (20, 60)}
    table |= {f"band_{n}": (c - l.rolling(n).min()) / (h.rolling(n).max() - l.rolling(n).min()) for n in (20, 60)}
    table |= {f"drawdown_{n}": c / h.rolling(n).max() - 1 for n in (126, 252)}
    table |= dict(dollar_adv_20=roll(c * v, 20, np.mean), gap=gap, gap_mean_20=roll(gap, 20, np.mean), gap_std_20=roll(gap, 20, apart))
    table["overnight_share_20"] = roll(gap, 20, np.var) / (roll(gap, 20, np.var) + roll(day, 20, np.var))
    for n in (60, 126): table |= regressions(r, n)
    want, got = on_rows(table, panel)[INPUTS], inputs(panel)
    assert got.notna().any().all()
    for name in got:  # to a billionth of the value, or of the column's own spread
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-9 * np.nanstd(want[name]), err_msg=name)
    prints = panel.assign(raw_close=panel["close"] * 2, raw_volume=panel["volume"] * 3)
    np.testing.assert_allclose(inputs(prints)["dollar_adv_20"], 6 * got["dollar_adv_20"])
    np.testing.assert_allclose(inputs(panel, year=52)["idio_vol_60"], (52 / 252)**.5 * got["idio_vol_60"])


def regressions(r, n):
    "Each name's returns on the mean of all, a least squares in every window"
    m, made = r.mean(axis=1).to_numpy(), np.full((3, *r.shape), np.nan)
    for t in range(n, len(r)):
        x = np.column_stack([np.ones(n), m[t - n + 1:t + 1]])
        for s in np.flatnonzero(r.iloc[t - n + 1:t + 1].notna().all()):
            y = r.iloc[t - n + 1:t + 1, s].to_numpy()
            b = np.linalg.lstsq(x, y, rcond=None)[0]
            left = ((y - x @ b)**2).sum()
            made[:, t, s] = b[1], 1 - left / ((y - y.mean())**2).sum(), (252 * left / (n - 2))**.5
    return {f"{name}_{n}": pd.DataFrame(x, r.index, r.columns) for name, x in zip(("beta", "r2", "idio_vol"), made, strict=True)}


@pytest.mark.parametrize("every", ["week", "month"])
def test_a_session_reads_the_last_period_that_was_over(every):
    panel = market(100, 3, seed=9, gaps=0.1, start="2024-01-17")
    begin, open_days, bars = panel.index[0][0], sessions("2023-11-01", "2024-12-31"), {}
    period = pd.Series([d.isocalendar()[:2] if every == "week" else (d.year, d.month) for d in open_days], open_days)
    first, last = (period.drop_duplicates(keep=k) for k in ("first", "last"))
    fields, seen = dict(open="first", high="max", low="min", close="last", volume="sum"), []
    for day, symbol in panel.index:  # the sentence, row by row
        latest = last[last.index <= day].iloc[-1]
        if symbol not in bars: bars[symbol] = panel.xs(symbol, level=1)
        rows = bars[symbol][bars[symbol].index.isin(open_days[period == latest])]
        whole = first.index[first == latest][0] >= begin and len(rows)
        seen.append([rows[c].iloc[{"first": 0, "last": -1}[f]] if f in ("first", "last") else rows[c].agg(f)
                     for c, f in fields.items()] if whole else [np.nan] * 5)
    ours = timeframe(panel, lambda bars: bars, every)
    assert list(ours) == [f"{c}_{every[0]}" for c in fields]
    np.testing.assert_allclose(ours.to_numpy(), np.array(seen, float), rtol=1e-12)
    assert ours.notna().any().all() and ours.isna().any().all()


@given(n=st.integers(2, 70), rows=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_window_is_made_of_its_own_rows(n, rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(1e6 * rng.random(), 10.0 ** rng.integers(-3, 4), (rows, 3))
    x[rng.random(x.shape) < 0.01] = np.nan
    t = Trailing(x)
    windows = [x[end - n:end] for end in range(n, rows + 1)]
    for ours, f, exact in ((t.mean(n), lambda w: w.mean(0), False), (t.std(n), lambda w: w.std(0, ddof=1), False),
                           (t.max(n), lambda w: w.max(0), True), (t.min(n), lambda w: w.min(0), True)):
        want = np.array([f(w) for w in windows]).reshape(-1, 3)
        assert ours.shape == want.shape
        if exact: same(ours, want)
        else: np.testing.assert_allclose(ours, want, rtol=1e-9, atol=3e-16 * np.nanmax(np.abs(x), initial=0))
    for end in range(n, rows + 1, 7):  # the same bits from the window alone
        alone = Trailing(x[end - n:end])
        same(t.mean(n)[end - n], alone.mean(n)[0])
        same(t.std(n)[end - n], alone.std(n)[0])


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 198), symbols=st.integers(2, 9))
@settings(max_examples=12, deadline=None)
def test_the_future_moves_no_bit_of_the_past(family, seed, cut, symbols):
    f, lookback = FAMILIES[family]
    panel = market(200, symbols, seed)
    days = panel.index.levels[0]
    today = days[cut]
    past = panel.loc[:today]
    want = f(panel).loc[:today]
    same(f(past), want)

    rng = np.random.default_rng(seed)
    future = panel.loc[days[cut + 1]:]
    future = (future * rng.choice([np.nan, -1, 0, 1e-9, 1e9, np.inf], future.shape))[rng.random(len(future)) < 0.7]
    same(f(pd.concat([past, future])).loc[:today], want)

    recent = panel.loc[days[max(0, cut - lookback + 1)]:today]
    if today in recent.index.levels[0] and cut >= lookback - 1: same(f(recent).loc[today:], want.loc[today:])


def test_rows_are_given_back_to_their_owners():
    panel = market(150, 6, seed=3)
    assert core14(panel).index.equals(panel.index)
    part = pd.concat([panel.xs(s, level=1, drop_level=False) for s in ("S005", "S002", "S001")])
    untidy = pd.concat([part, panel.drop(["S005", "S002", "S001"], level=1)]).sort_index()
    same(core14(untidy), core14(panel))
    levels = [panel.index.levels[0][::-1], panel.index.levels[1][::-1]]
    turned = pd.MultiIndex(levels, [len(l) - 1 - np.asarray(c) for l, c in zip(levels, panel.index.codes, strict=True)],
                           names=panel.index.names)
    same(core14(check_panel(panel.set_axis(turned))), core14(panel))
    narrow = panel.assign(volume=panel["volume"].astype("int64")).astype({c: "float32" for c in ("high", "low", "close")})
    same(core14(narrow), core14(narrow.astype(float)))


def test_names_yet_to_come_change_no_bit_of_the_market():
    panel = market(60, 300, seed=7, gaps=0)
    days = panel.index.get_level_values("session")
    panel["close"] *= 1.05 ** panel.index.levels[0].get_indexer(days)  # a rally: sums above 1 are rounded, those below are exact
    today, symbol = panel.index.levels[0][30], panel.index.get_level_values("symbol")
    later = panel.loc[today:].index.get_level_values("symbol").unique().difference(panel.loc[:today].index.get_level_values("symbol"))
    assert len(later) > 20
    whole = core14(panel)["market_return"].loc[:today]
    same(core14(panel.loc[:today])["market_return"], whole)
    same(core14(panel[~symbol.isin(later)])["market_return"].loc[:today], whole)


def test_a_name_alone_has_the_features_it_has_in_company():
    panel = market(150, 6, seed=4)
    one = panel.xs("S001", level=1, drop_level=False)  # the one without holes: no session disappears with the others
    own = [c for c in CORE14 if c != "market_return"]
    same(core14(one)[own], core14(panel).loc[one.index, own])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_what_is_no_price_counts_as_missing(bad):
    panel = market(60, 3, seed=5, gaps=0)
    at = panel.index.get_level_values("session")[90], "S001"
    spoiled, gone = panel.copy(), panel.copy()
    spoiled.loc[at, ["high", "low", "close"]] = bad
    gone.loc[at, ["high", "low", "close"]] = np.nan
    same(core14(spoiled), core14(gone))
    assert np.isfinite(core14(spoiled).to_numpy()[~np.isnan(core14(spoiled))]).all()


def test_no_trade_is_missing_and_never_infinite():
    f = core14(market(100, 4, seed=6, gaps=0)).xs("S000", level=1)
    assert f[["volume_vol", "volume_ratio", "volume_trend"]].isna().all(axis=None)
    assert f.drop(columns=["volume_vol", "volume_ratio", "volume_trend"]).tail(30).notna().all(axis=None)


@pytest.mark.real
def test_core14_on_the_real_panel(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index()[["high", "low", "close", "volume"]].astype(float)
    some = panel.loc[:"2016-06-30"]
    some = some[some.index.get_level_values("symbol").isin(some.index.levels[1][::25])]
    np.testing.assert_allclose(core14(some), oracle(some), rtol=1e-9, atol=1e-12)

    whole, today = core14(panel), pd.Timestamp("2018-06-29")
    same(core14(panel.loc[:today]), whole.loc[:today])
    month = panel.index.levels[0][panel.index.levels[0] <= today][-21:]
    same(core14(panel.loc[month[0]:today]).loc[today:], whole.loc[today:today])  # what tonight needs: 21 sessions
    assert np.isfinite(whole.to_numpy()[~np.isnan(whole)]).all()
    assert whole.isna().mean().max() < 0.03
