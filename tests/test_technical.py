"The technical indicators against TA-Lib, name by name, on real prices and on prices with holes"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import long
from tradenb.features import technical as room
from tradenb.features.technical import LOOKBACK, TECHNICAL, scale_free, technical

talib = pytest.importorskip("talib", reason="TA-Lib is not installed: pip install TA-Lib to check the indicators against it")
same = np.testing.assert_array_equal
LAST_BIT = ["rsi_14", "macd", "macd_signal", "macd_hist", "atr_14"]  # the recursions: same seed and step; its compiler divides its own way


def by_talib(high, low, close):
    "The fourteen columns of one name without holes, as TA-Lib has them"
    h, l, c = (np.ascontiguousarray(x, float) for x in (high, low, close))
    out = {f"sma_{n}": talib.SMA(c, n) for n in (5, 20, 50, 200)} | {"rsi_14": talib.RSI(c, 14)}
    out |= dict(zip(("macd", "macd_signal", "macd_hist"), talib.MACD(c, 12, 26, 9), strict=True))
    upper, middle, lower = talib.BBANDS(c, 20, 2, 2)
    return pd.DataFrame(out | {"bb_upper": upper, "bb_lower": lower, "bb_percent": (c - lower) / (upper - lower),
                               "bb_width": (upper - lower) / middle, "atr_14": talib.ATR(h, l, c, 14), "roc_10": talib.ROC(c, 10)})


def some(sessions, symbols, seed, gaps=0.0):
    rng = np.random.default_rng(seed)
    days, names = pd.bdate_range("2015-01-02", periods=sessions, unit="us"), [f"S{n:02d}" for n in range(symbols)]
    shape = sessions, symbols
    close = rng.choice([0.5, 50, 5000], symbols) * np.exp(rng.normal(0, 0.02, shape).cumsum(0))
    width = close * rng.uniform(0, 0.02, shape)
    kept = rng.random(shape) >= gaps
    return long(**{name: pd.DataFrame(np.where(kept, x, np.nan), days, names)
                   for name, x in dict(high=close + width, low=close - width, close=close).items()})


def agree(ours, bars, what):
    theirs = by_talib(bars["high"], bars["low"], bars["close"])
    assert list(ours) == list(theirs) == TECHNICAL
    price = bars["close"].max()
    for name in LAST_BIT:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=3e-14, atol=3e-14 * price, err_msg=f"{what} {name}")
    if what != "behind a hole": same(ours["roc_10"], theirs["roc_10"], err_msg=what)  # two ends, whatever lies between
    for n in (5, 20, 50, 200): np.testing.assert_allclose(ours[f"sma_{n}"], theirs[f"sma_{n}"], rtol=1e-12, err_msg=what)
    # TA-Lib takes the square of the mean from the mean of squares, and loses half of its digits there
    for name in ("bb_upper", "bb_lower"): np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=f"{what} {name}")
    wide = theirs["bb_width"].to_numpy() > 1e-3
    for name in ("bb_percent", "bb_width"):
        np.testing.assert_allclose(ours[name][wide], theirs[name][wide], rtol=1e-6, atol=1e-7, err_msg=f"{what} {name}")


@pytest.mark.real
def test_talib_agrees_on_real_prices(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index()[["high", "low", "close"]].astype(float)
    ours, days = technical(panel), panel.index.unique("session")
    rows = panel.groupby(level="symbol").size()
    checked = [*rows.index[rows == len(days)][::15], *rows.index[rows < len(days)]]
    holes = 0
    for s in checked:
        bars = panel.xs(s, level=1)
        if len(bars) < len(days) - days.get_loc(bars.index[0]): holes += 1; continue  # TA-Lib knows no sessions, only rows
        agree(ours.xs(s, level=1), bars, s)
    assert len(checked) - holes > 30


@given(seed=st.integers(0, 2**32 - 1), sessions=st.integers(2, 320))
@settings(max_examples=25, deadline=None)
def test_talib_agrees_on_any_prices(seed, sessions):
    panel = some(sessions, 2, seed)
    for s in ("S00", "S01"): agree(technical(panel).xs(s, level=1), panel.xs(s, level=1), s)


def test_behind_a_hole_everything_is_as_if_newly_listed():
    panel = some(500, 3, seed=1)
    days = panel.index.unique("session")
    holed = panel.drop([(days[230], "S01")])
    ours = technical(holed)
    agree(ours.loc[days[231]:].xs("S01", level=1), panel.loc[days[231]:].xs("S01", level=1), "behind a hole")
    same(ours.xs("S00", level=1), technical(panel).xs("S00", level=1))
    same(ours.loc[:days[229]], technical(panel).loc[:days[229]])


def test_where_talib_says_0_or_a_number_of_nothing():
    flat = np.full(60, 1.1)
    days = pd.bdate_range("2020-01-01", periods=60, unit="us")
    bars = long(**{c: pd.DataFrame({"STILL": flat}, days) for c in ("high", "low", "close")})
    ours = technical(bars)
    assert talib.RSI(flat, 14)[-1] == 0 and ours[["rsi_14", "bb_percent"]].isna().all(axis=None)
    assert ours["atr_14"].iloc[-1] == 0 and ours["roc_10"].iloc[-1] == 0 and abs(ours["macd"].iloc[-1]) < 1e-12


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 248))
@settings(max_examples=15, deadline=None)
def test_the_future_moves_no_bit_of_the_past(seed, cut):
    panel = some(250, 3, seed, gaps=0.01)
    days = panel.index.unique("session")
    rng = np.random.default_rng(seed)
    past, future = panel.loc[:days[cut]], panel.loc[days[min(cut + 1, len(days) - 1)]:]
    future = future * rng.choice([np.nan, -1, 0, 1e-9, 1e9, np.inf], future.shape)
    for family in (technical, scale_free, room.ema):
        want = family(panel).loc[:days[cut]]
        same(family(past), want)
        if cut < len(days) - 1: same(family(pd.concat([past, future])).loc[:days[cut]], want)


def test_the_start_is_forgotten_within_the_look_back():
    panel = some(1200, 20, seed=3)
    days, tonight = panel.index.unique("session"), panel.index[-1][0]
    price = panel.loc[tonight, "close"]
    for name, n in LOOKBACK.items():
        family = getattr(room, name)
        few, all_ = (family(p).loc[tonight] for p in (panel.loc[days[-n]:], panel))
        assert few.notna().all(axis=None)
        apart = (few - all_).abs()
        scale = apart.copy()
        for c in apart: scale[c] = 100 if c.startswith(("rsi", "roc", "bb_p")) or c.endswith("_pct") else price
        assert (apart / scale).max(axis=None) < 1e-9, name
        if name in ("rsi", "atr", "ema", "macd"):  # and not long before
            early = family(panel.loc[days[-n // 2]:]).loc[tonight]
            assert ((early - all_).abs() / scale).max(axis=None) > 1e-9, name
