"Features against pandas rolling, on markets with holes, to the bit where the future or the history is cut"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.panel import check_panel, long
from tradenb.features.context import calendar_features, vix_features
from tradenb.features.price import CORE14, Trailing, core14, momentum, trend

same = np.testing.assert_array_equal
FAMILIES = dict(core14=(core14, 21), momentum=(lambda p: momentum(p, (5, 20, 37)), 37),
                trend=(lambda p: trend(p, (10, 33), step=7), 40), calendar=(calendar_features, 1))


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
    return long(**{name: pd.DataFrame(np.where(kept, x, np.nan), days, names)
                   for name, x in dict(high=close + width, low=close - width, close=close, volume=volume).items()})


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


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(5, 48))
@settings(max_examples=5, deadline=None)
def test_vix_knows_what_was_published_and_no_more(seed, cut):
    rng = np.random.default_rng(seed)
    days = sessions("2019-01-02", "2019-12-31")
    at = np.sort(rng.integers(0, 50, 70))
    macro = pd.DataFrame(dict(session=days[at], symbol="VIX", value=rng.uniform(9, 80, 70),
                              known_at=days[at + rng.integers(0, 12, 70)]))
    panel = pd.DataFrame(index=pd.MultiIndex.from_product([days[:50], ["A", "B"]], names=["session", "symbol"]))
    ours = vix_features(panel, macro).xs("A", level=1)
    by_hand = []
    for today in days[:50]:  # the definition, with nothing remembered from one evening to the next
        out = macro[macro["known_at"] <= today].sort_values(["known_at", "session"], kind="stable")
        x = out.drop_duplicates("session", keep="last").set_index("session").sort_index()["value"].tail(20)
        fresh = len(x) and (today - x.index[-1]).days <= 7
        by_hand.append((x.iloc[-1], x.iloc[-1] / x.iloc[-2] - 1 if len(x) > 1 else np.nan,
                        x.iloc[-1] / x.mean() - 1 if len(x) == 20 else np.nan) if fresh else (np.nan,) * 3)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-12)

    out = macro[macro["known_at"] <= days[cut]]
    if len(out): same(vix_features(panel, out).xs("A", level=1).loc[:days[cut]], ours.loc[:days[cut]])


def test_every_scheduled_holiday_of_thirty_years_is_seen_coming():
    days = sessions("1991-01-02", "2025-12-31")
    f = calendar_features(pd.DataFrame(index=pd.MultiIndex.from_product([days, ["X"]], names=["session", "symbol"]))).droplevel(1)
    closed = pd.bdate_range(days[0], days[-1]).difference(days)
    eves = days[[days.searchsorted(d) - 1 for d in closed]]
    unforeseen = f.loc[eves, "to_holiday"].ne(0).to_numpy()
    # September 2001, a hurricane, and presidents' funerals (that of 2007 followed New Year's Day, whose eve was an eve anyway)
    assert set(closed[unforeseen].strftime("%Y-%m-%d")) == {
        "1994-04-27", "2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14", "2004-06-11", "2012-10-29", "2012-10-30",
        "2018-12-05", "2025-01-09"}
    after = days[[days.searchsorted(d) for d in closed if d < days[-1]]]
    assert f.loc[after, "after_holiday"].eq(0).all() and f["after_holiday"].eq(0).sum() == len(set(after)) + 1
    assert f["half_day"].sum() > 50 and f.notna().all(axis=None)


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
