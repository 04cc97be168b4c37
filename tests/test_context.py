"What had been published, where a session stands, and which market it is: each against its definition, evening by evening"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import next_session, sessions
from tradenb.core.panel import long
from tradenb.features.context import calendar_features, earnings_season, macro_features, vix_features, vix_term
from tradenb.features.regimes import LOOKBACK, trend_regime, volatility_regime

same = np.testing.assert_array_equal


def rows(days, names=("A", "B")):
    "A panel that has nothing but its rows, the second name with gaps"
    whole = pd.DataFrame(index=pd.MultiIndex.from_product([days, names], names=["session", "symbol"]))
    return whole[~((whole.index.get_level_values(1) == "B") & (np.arange(len(whole)) % 7 == 3))]


def released(days, seed, name="X", values=70, spread=12):
    "Readings in no order, late by up to `spread` sessions, some of them more than once, some missing"
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, len(days) - spread, values))
    value = np.where(rng.random(values) < 0.05, np.nan, rng.uniform(-5, 80, values))
    return pd.DataFrame(dict(session=days[at], symbol=name, value=value, known_at=days[at + rng.integers(0, spread, values)]))


def as_known(macro, name, evening):
    "Readings of one series on an evening, and the day on which the last was published: the definition"
    out = macro[(macro["symbol"] == name) & (macro["known_at"] <= evening) & macro["value"].notna()]
    out = out.sort_values(["known_at", "session"], kind="stable").drop_duplicates("session", keep="last").sort_values("session")
    return out.set_index("session")


def prices(seed, n_sessions=330, n_symbols=7, start="2017-01-03"):
    "Closes with holes, late listings, and a session on which nobody trades"
    rng = np.random.default_rng(seed)
    days = sessions(start, "2030-12-31")[:n_sessions]
    close = rng.choice([1e-3, 50, 1e5], n_symbols) * np.exp(rng.normal(0, 0.02, (n_sessions, n_symbols)).cumsum(0))
    close[rng.random(close.shape) < 0.02] = np.nan
    close[:n_sessions // 3, ::3] = np.nan
    close[n_sessions // 2] = np.where(rng.random(n_symbols) < 0.5, 0.0, np.nan)
    close[n_sessions // 2, 0] = -1.0
    return long(close=pd.DataFrame(close, days, [f"S{n}" for n in range(n_symbols)]))


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(5, 48))
@settings(max_examples=4, deadline=None)
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


@given(seed=st.integers(0, 2**32 - 1), lag=st.integers(0, 9), readings=st.integers(2, 6), max_age=st.integers(1, 30))
@settings(max_examples=4, deadline=None)
def test_any_series_is_read_as_it_was_known(seed, lag, readings, max_age):
    days = sessions("2019-01-02", "2019-12-31")[:45]
    macro = pd.concat([released(days, seed), released(days, seed + 1, "Y", 9)])
    panel = rows(days[5:40])
    ours = macro_features(panel, macro, ["X", "Y"], lag, readings, max_age)
    assert list(ours) == ["x", "x_change", "x_z", "y", "y_change", "y_z"] and ours.index.equals(panel.index)
    by_hand = []
    for day in days[5:40]:
        evening, row = next_session(day, -lag), []
        for name in ("X", "Y"):
            known = as_known(macro, name, evening)
            x = known["value"].tail(readings)
            if not len(x) or (evening - known["known_at"].iloc[-1]).days > max_age: row += [np.nan] * 3
            else: row += [x.iloc[-1], x.iloc[-1] - x.iloc[-2] if len(x) > 1 else np.nan,
                          (x.iloc[-1] - x.mean()) / x.std() if len(x) == readings else np.nan]
        by_hand.append(row)
    np.testing.assert_allclose(ours.xs("A", level=1), by_hand, rtol=1e-9, atol=1e-12)
    same(ours.xs("B", level=1), ours.xs("A", level=1).loc[ours.xs("B", level=1).index])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
def test_both_ends_of_the_term_are_of_one_session(seed):
    days = sessions("2019-01-02", "2019-12-31")[:45]
    macro = pd.concat([released(days, seed, "VIX", 90, 3), released(days, seed + 1, "VIX3M", 60, 6)])
    ours = vix_term(rows(days), macro)["vix_term"].xs("A", level=1)
    by_hand = []
    for day in days:
        near, far = (as_known(macro, name, day)["value"].tail(10) for name in ("VIX", "VIX3M"))
        both = (far / near).dropna()
        by_hand.append(both.iloc[-1] - 1 if len(both) and (day - both.index[-1]).days <= 7 else np.nan)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-12)
    assert ours.notna().any()


FAMILIES = dict(vix=vix_features, term=vix_term, macro=lambda p, m: macro_features(p, m, ["VIX", "VIX3M"], lag=3, readings=4))


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(20, 38))
@settings(max_examples=5, deadline=None)
def test_what_is_published_later_moves_no_bit(family, seed, cut):
    f, days = FAMILIES[family], sessions("2019-01-02", "2019-12-31")[:45]
    macro = pd.concat([released(days, seed, "VIX"), released(days, seed + 1, "VIX3M")])
    panel, today = rows(days[:40]), days[cut]
    whole, late = f(panel, macro).loc[:today], macro["known_at"] > today
    rubbish = macro.assign(value=macro["value"].mask(late, -1e9))
    for known in (macro[~late], rubbish, macro.sample(frac=1, random_state=0)):
        if known is not rubbish and late.all(): continue
        # two values of one session published on one day: the row order decides, so only the others are shuffled
        if not known.duplicated(["symbol", "session", "known_at"]).any() or known is rubbish or len(known) < len(macro):
            same(f(panel, known).loc[:today], whole)
    same(f(panel.loc[today:today], macro), whole.loc[today:])
    same(f(panel.loc[:today], macro), whole)
    indexed = macro.assign(n=range(len(macro))).set_index(["session", "symbol"])
    same(f(panel, indexed).loc[:today], whole)


def test_before_the_calendar_nothing_is_known_with_a_lag():
    days = sessions("1990-01-02", "1990-01-12")
    macro = pd.DataFrame(dict(session=days[:1], symbol="X", value=[1.0], known_at=days[:1]))
    assert macro_features(rows(days), macro, "X", lag=3)["x"].xs("A", level=1).isna().tolist() == [True] * 3 + [False] * 6


def test_seasons_of_thirty_years_open_when_they_are_said_to():
    days = sessions("1991-01-02", "2025-12-31")
    f = earnings_season(rows(days, ["X"])).droplevel(1)
    opening = [days[days.searchsorted(pd.Timestamp(y, m, 11))] for y in range(1991, 2026) for m in (1, 4, 7, 10)]
    assert (f.loc[opening, "since_earnings"] == 0).all() and (f["since_earnings"] == 0).sum() == len(opening)
    eves = days[days.searchsorted(opening[1:]) - 1]
    assert (f.loc[eves, "to_earnings"] == 1).all()  # none was put off by a hurricane or a funeral
    inside = f["earnings_season"] == 1
    assert (f.loc[opening, "earnings_season"] == 1).all() and 27 <= inside.groupby(f["since_earnings"].eq(0).cumsum()).sum().iloc[1:].min() <= 30
    assert f.notna().all(axis=None) and f["to_earnings"].between(1, 66).all()
    first = earnings_season(rows(sessions("1990-01-02", "1990-02-01"), ["X"])).droplevel(1)
    assert first["since_earnings"].isna().sum() == 7 and first["to_earnings"].notna().all()
    for cut in ("2001-09-10", "2012-10-26"):
        same(earnings_season(rows(days[days <= cut], ["X"])), f.loc[:cut])
    near = days[(days > "2001-07-01") & (days < "2001-10-15")]
    same(calendar_features(rows(near[near <= "2001-09-10"])), calendar_features(rows(near)).loc[:"2001-09-10"])


def market_of(panel):
    "The market by pandas: mean of the returns of those that have one"
    close = panel["close"].unstack()
    return close.where(close > 0).pct_change(fill_method=None).mean(axis=1)


def test_the_trend_is_that_of_an_index_multiplied_up():
    panel = prices(0)
    panel = panel.drop(index=panel.index.levels[0][165])  # the session on which nobody traded
    level = (1 + market_of(panel).fillna(0)).cumprod()
    for window, band in ((50, 0), (200, 0.01), (2, 0)):
        ratio = (level / level.rolling(window).mean() - 1).where(np.arange(len(level)) >= window - 1)
        ours = trend_regime(panel, window, band=band).groupby(level="session").first()
        same(ours["trend_up"], (ratio > band).astype(float).where(ratio.notna()))
        same(ours["trend_down"], (ratio < -band).astype(float).where(ratio.notna()))


@pytest.mark.parametrize("history", [100, None])
def test_volatility_is_placed_among_what_had_been_seen(history):
    panel = prices(1)
    vol = market_of(panel).rolling(20).apply(lambda w: np.std(w, ddof=1), raw=True)
    ours = volatility_regime(panel, 20, history, least=40).groupby(level="session").first()
    for t in range(len(vol)):
        seen = vol.iloc[max(0, t + 1 - (history or len(vol))):t + 1].dropna()
        place = ((seen.rank() - 0.5) / len(seen)).iloc[-1] if len(seen) >= 40 and vol.notna().iloc[t] else np.nan
        np.testing.assert_allclose(ours["vol_rank"].iloc[t], place, rtol=1e-12)
    known = ours.dropna()
    assert 150 < len(known) < len(ours) and (known[["vol_low", "vol_mid", "vol_high"]].sum(axis=1) == 1).all()
    same(known["vol_high"], (known["vol_rank"] > 2 / 3).astype(float))
    same(known["vol_low"], (known["vol_rank"] < 1 / 3).astype(float))
    assert ours["vol_rank"].iloc[165:185].isna().all()  # windows that hold the session without a market


REGIMES = dict(trend=trend_regime, volatility=volatility_regime, so_far=lambda p: volatility_regime(p, history=None),
               of_one=lambda p: trend_regime(p, 30, "S1", 0.02))


@pytest.mark.parametrize("regime", REGIMES)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 328))
@settings(max_examples=6, deadline=None)
def test_a_regime_is_made_of_its_past(regime, seed, cut):
    f, panel, rng = REGIMES[regime], prices(seed), np.random.default_rng(seed)
    days = panel.index.levels[0]
    today = days[cut]
    want = f(panel).loc[:today]
    same(f(panel.loc[:today]), want)
    future = panel.loc[days[cut + 1]:]
    future = (future * rng.choice([np.nan, -1, 0, 1e9, np.inf], future.shape))[rng.random(len(future)) < 0.7]
    new = future.rename(lambda s: s.replace("S", "A"), level="symbol")
    same(f(pd.concat([panel.loc[:today], future, new]).sort_index()).loc[:today], want)
    need = LOOKBACK.get(getattr(f, "__name__", ""), 0)
    if need and cut >= need - 1: same(f(panel.loc[days[cut - need + 1]:today]).loc[today:], want.loc[today:])


@pytest.mark.real
def test_regimes_and_vix_of_the_real_market(real_data):
    raw = pd.read_parquet(real_data / "spy_daily_ohlcv_1998_2021.parquet")
    days = pd.DatetimeIndex(pd.to_datetime(raw["date"]).astype("datetime64[us]"))
    spy = long(close=pd.DataFrame({"SPY": raw["adj_close"].to_numpy(float)}, days))
    trend, vol = (f(spy, market="SPY").droplevel("symbol") for f in (trend_regime, volatility_regime))
    assert trend.loc["2008-10":"2009-04", "trend_down"].all() and trend.loc["2013", "trend_up"].all()
    assert vol.loc["2008-10", "vol_high"].all() and vol.loc["2020-04", "vol_high"].all()
    assert vol.loc["2017-10", "vol_low"].all()
    assert trend["trend_up"].mean() > 0.6 and trend.iloc[199:].notna().all(axis=None) and vol.iloc[147:].notna().all(axis=None)

    told = pd.read_parquet(real_data / "vix_daily_1990_2026.parquet")
    when = pd.DatetimeIndex(pd.to_datetime(told["date"]).astype("datetime64[us]"))
    macro = pd.DataFrame(dict(session=when, symbol="VIX", value=told["close"].to_numpy(), known_at=when))
    ours = vix_features(spy, macro)["vix"].droplevel("symbol")
    same(ours, pd.Series(told["close"].to_numpy(), when).reindex(days).ffill())
