"Adjusted prices against a purse that is counted share by share, against the past, and against real vendors"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.adjust import CONVENTIONS, actions, adjusted, factors
from tradenb.data.kinds import tidy
from tradenb.data.market import bars

DAYS = sessions("2020-01-02", "2024-12-31")
SPLITS = [1, 1, 1, 1, 2, 3, 1.5, .1]


def table(rows):
    "A panel of (day, name, close, split, dividend); NaN where nothing is said"
    frame = pd.DataFrame(rows, columns=["day", "symbol", "close", "split", "dividend"])
    index = pd.MultiIndex.from_arrays([DAYS[frame["day"]], frame["symbol"]], names=["session", "symbol"])
    frame = frame.drop(columns=["day", "symbol"]).set_axis(index).sort_index().astype(float)
    return frame.assign(**dict.fromkeys(("open", "high", "low"), frame["close"]), volume=1000.)


@st.composite
def markets(draw):
    rows = []
    for name in draw(st.sampled_from([["A"], ["A", "B"], ["A", "B", "C"]])):
        last = None
        for day in range(draw(st.integers(0, 3)), 12):
            if not draw(st.integers(0, 5)): continue  # a day without a row
            split = draw(st.sampled_from(SPLITS))
            close = None if not draw(st.integers(0, 7)) else draw(st.integers(500, 20_000)) / 100
            paid = draw(st.sampled_from([0, 0, .01, .2, .4])) * (last or 0) / split
            rows.append((day, name, close, draw(st.sampled_from([split] + [None] * (split == 1))), paid or draw(st.sampled_from([0, None]))))
            last = close or last
    return table(rows or [(0, "A", 10., None, None)])


def purse(closes, splits, cash, convention):
    "What one first share has become, counted: splits multiply shares, dividends buy more of them"
    shares, before, worth = 1., np.nan, []
    for close, split, paid in zip(closes, splits, cash, strict=True):
        if not np.isnan(before):
            shares *= split
            price = close if convention == "crsp" and not np.isnan(close) else before / split - paid
            shares += shares * paid / price if paid else 0
        before = before if np.isnan(close) else close
        worth.append(shares * close)
    return worth


@settings(max_examples=25, deadline=None)
@given(panel=markets(), convention=st.sampled_from(CONVENTIONS))
def test_an_adjusted_price_is_what_a_holder_has(panel, convention):
    told = adjusted(panel, convention)
    for _, rows in panel.groupby(level="symbol"):
        counted = purse(rows["close"], rows["split"].fillna(1), rows["dividend"].fillna(0), convention)
        np.testing.assert_allclose(told.loc[rows.index, "close"], counted, rtol=1e-12)
    splits = adjusted(panel, convention, dividends=False)
    np.testing.assert_allclose(splits["close"] * splits["volume"], splits["raw_close"] * splits["raw_volume"], rtol=1e-12)
    assert told["raw_close"].equals(panel["close"]) and told["raw_volume"].equals(panel["volume"])


@settings(max_examples=25, deadline=None)
@given(panel=markets(), convention=st.sampled_from(CONVENTIONS), cut=st.integers(0, 11), rounded=st.booleans(), data=st.data())
def test_no_later_row_moves_an_earlier_price(panel, convention, cut, rounded, data):
    if data.draw(st.booleans()):  # the same, told through adj_close too, or alone, by one of two vendors
        adj = adjusted(panel, base="last")["close"]
        if alone := data.draw(st.booleans()): panel = panel.drop(columns=["split", "dividend"])
        panel = panel.assign(adj_close=adj.round(2) if rounded else adj)
        if alone: panel["vendor"] = [data.draw(st.sampled_from(["one", "one", "two"])) for _ in range(len(panel))]
    past = panel[panel.index.get_level_values(0) <= DAYS[cut]]
    if past.empty: return
    for dividends in (True, False):
        before, after = (factors(p, convention, dividends=dividends) for p in (past, panel))
        assert before.equals(after.loc[past.index]), "not a digit"
    assert actions(past).equals(actions(panel).query("session <= @DAYS[@cut]").reset_index(drop=True))


@settings(max_examples=20, deadline=None)
@given(panel=markets(), convention=st.sampled_from(CONVENTIONS))
def test_the_base_moves_levels_and_not_returns(panel, convention):
    first, last = (adjusted(panel, convention, base) for base in ("first", "last"))
    for _, rows in panel.groupby(level="symbol"):
        ratio = (last["close"] / first["close"]).loc[rows.index].dropna()
        np.testing.assert_allclose(ratio, ratio.iloc[0] if len(ratio) else 1, rtol=1e-12)
        assert first.loc[rows.index[0], "close"] == rows["close"].iloc[0] or np.isnan(rows["close"].iloc[0])
        assert last.loc[rows.index[-1], "close"] == rows["close"].iloc[-1] or np.isnan(rows["close"].iloc[-1])


def test_more_decimals_later_make_no_event_of_the_past():
    plain = table([(i, "A", c, None, None) for i, c in enumerate([10., 10., 10., 10.])]).drop(columns=["split", "dividend"])
    seen = plain.assign(adj_close=[9.5, 9.49, 9.5, 9.493217])
    assert actions(seen.iloc[:3]).empty and actions(seen).query("session < @DAYS[3]").empty


def test_a_vendor_that_begins_to_tell_leaves_its_past_alone():
    seen = table([(i, "A", c, s, None) for i, (c, s) in enumerate([(10., None), (10.3, None), (5.1, 2.), (5.2, None)])])
    seen["adj_close"] = [5.01, 5.15, 5.1, 5.2]  # rounded, and a cent off on the first day
    told = adjusted(seen)["close"]
    assert told.iloc[1] == pytest.approx(10 * 5.15 / 5.01) and (told.pct_change().iloc[2:] - [5.1 / 5.15 - 1, 5.2 / 5.1 - 1]).abs().max() < 1e-12
    assert adjusted(seen.iloc[:2])["close"].equals(told.iloc[:2])


def rounded_prices(digits, rng, price=12., n=800):
    "A name with planted actions, and the adj_close that a vendor rounds"
    close = np.round(price * np.exp(np.cumsum(rng.normal(0, .02, n))), 2)
    split, paid = np.ones(n), np.zeros(n)
    paid[60:n:63] = np.round(close[59:n - 1:63] * .008, 2)
    split[[300, 500]] = 2, .1
    close = np.round(close / np.cumprod(split), 2)
    panel = table([(i, "A", c, s, d) for i, (c, s, d) in enumerate(zip(close, split, np.round(paid / np.cumprod(split), 2), strict=True))])
    adj = adjusted(panel, base="last")["close"] * .8  # the vendor knows of later dividends
    return panel, panel.drop(columns=["split", "dividend"]).assign(adj_close=adj.astype("float32").astype(float) if digits is None else adj.round(digits))


@pytest.mark.parametrize("digits", [2, 3, 4, 6, None])
def test_rounding_is_told_from_events(digits):
    for seed in range(4):
        told, result = rounded_prices(digits, np.random.default_rng(seed))
        truth, found = actions(told), actions(result)
        assert found["implied"].all() and not truth["implied"].any()
        same = truth.merge(found, on="session", suffixes=("", "_found"))
        assert len(found) == len(truth) == len(same), "each event once, on its day, and no other"
        assert same["split"].tolist() == same["split_found"].tolist()
        off = (same["dividend"] - same["dividend_found"]).abs().max()
        assert off < {2: .02, 3: 2e-3, 4: 2e-4}.get(digits, 2e-5), "USD a share"
        noise = (adjusted(result)["close"].pct_change() - adjusted(told)["close"].pct_change()).abs().max()
        assert noise < {2: 6e-3, 3: 6e-4, 4: 6e-5}.get(digits, 2e-6)


def test_two_vendors_of_one_name_do_not_multiply():
    told = table([(i, "A", c, s, 0.) for i, (c, s) in enumerate([(80., 1.), (40., 2.), (41., 1.), (42., 1.)])])
    mixed = told.assign(adj_close=[20., 20., 41., 42.], vendor=["old", "old", "new", "new"])
    mixed.loc[mixed["vendor"] == "old", ["split", "dividend"]] = np.nan  # the old vendor gives results, the new one actions
    assert adjusted(mixed)["close"].tolist() == [80., 80., 82., 84.], "the new vendor's base is not taken for a jump"
    fixed = mixed.assign(vendor=["old", "old", "me", "old"], split=np.nan, dividend=np.nan, adj_close=[20., 20., np.nan, 21.])
    assert adjusted(fixed)["close"].tolist() == [80., 80., 82., 84.], "a correction in between breaks no chain"


@pytest.mark.parametrize("row, said", [
    ((1, "A", 40., 0., 0.), "the split of A on 2020-01-03 is 0.*new shares for one"), ((1, "A", 40., -2., 0.), "split of A"),
    ((1, "A", 40., 1., -1.), "the dividend of A on 2020-01-03 is -1.*cash paid out"),
    ((1, "A", 40., 1., 80.), "is 80, and the close before was no more than that"), ((1, "A", 40., 2., 41.), "is 41.*shares before a split")])
def test_what_cannot_be_names_the_row(row, said):
    panel = table([(0, "A", 80., 1., 0.), row])
    for convention in CONVENTIONS:
        with pytest.raises(ValueError, match=said): adjusted(panel, convention)


def test_plain_panels_stay_as_they_are():
    plain = table([(0, "A", 80., None, None), (1, "A", 40., None, None)]).drop(columns=["split", "dividend"])
    told = adjusted(plain)
    assert told[plain.columns].equals(plain) and told["raw_close"].equals(plain["close"]) and actions(plain).empty
    only = adjusted(plain[["close"]])
    assert only.columns.tolist() == ["close", "raw_close"]


def step_off(panel, convention):
    "Read the dividends back from adj_close, tell them, and compare the returns with those of adj_close"
    found = actions(panel, convention).set_index(["session", "symbol"])
    told = panel.drop(columns="adj_close").join(found[["split", "dividend"]])
    mine, own = (x.unstack().pct_change() for x in (adjusted(told, convention)["close"], panel["adj_close"]))
    return (mine - own).abs().max().max(), len(found)


def test_the_demo_vendor_follows_crsp():
    five = bars("five").set_index(["session", "symbol"]).sort_index()
    off, n = step_off(five, "crsp")
    assert n == 95 and off < 1e-6
    paid = {c: actions(five, c).query("dividend > 0")["dividend"] for c in CONVENTIONS}
    odd = {c: float((p * 100 % 1 - .5).abs().rsub(.5).mean()) for c, p in paid.items()}  # how far from whole cents
    assert odd["crsp"] < .02 < .1 < odd["vendor"]
    raw = five["close"].xs("AAPL", level=1).pct_change()
    assert raw.min() < -.45 and adjusted(five)["close"].xs("AAPL", level=1).pct_change().min() > -.55


@pytest.mark.real
def test_real_vendors(real_data):
    stocks = tidy(pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet"), "bars", "stocks").set_index(["session", "symbol"]).sort_index()
    off, n = step_off(stocks, "vendor")
    assert off < 2e-6 and 6000 < n < 7000
    found = actions(stocks)
    assert (found["split"] == 1).all(), "their closes have the splits out already"
    paid = found.query("symbol in ['AAPL', 'MSFT', 'IBM', 'KO'] and session >= '2018-01-01'")["dividend"]
    assert ((paid * 100 - (paid * 100).round()).abs() < .02).all(), "Yahoo's dividends are round by its own convention"
    spy = pd.read_parquet(real_data / "spy_daily_ohlcv_1998_2021.parquet").rename(columns={"date": "session"}).assign(symbol="SPY", volume=1.)
    spy = tidy(spy, "bars", "spy").set_index(["session", "symbol"]).sort_index()
    off, n = step_off(spy, "vendor")
    assert off < 2e-6 and n == 94


@pytest.mark.real
def test_alpha_vantage_follows_crsp(real_data):
    reply = json.loads((real_data / "vendor/alpha_vantage/TIME_SERIES_DAILY_ADJUSTED_AAPL_2021-07-23.json").read_text())
    days = pd.DataFrame(next(v for k, v in reply.items() if "Series" in k)).T.sort_index().astype(float)
    days.columns = ["open", "high", "low", "close", "adj_close", "volume", "dividend", "split"]
    told = days.set_axis(pd.MultiIndex.from_product([pd.to_datetime(days.index), ["AAPL"]], names=["session", "symbol"]))
    off = {c: (adjusted(told, c)["close"].pct_change() - told["adj_close"].pct_change()).abs().max() for c in CONVENTIONS}
    assert off["crsp"] < 1e-9 < 5e-6 < off["vendor"]
