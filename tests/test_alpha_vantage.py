"Alpha Vantage over a real socket: spans, adjustment, errors inside 200, minutes, chains, releases, recordings"
import json
import traceback
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_polygon import option_table, tape
from tests.vendors import alpha_vantage as dialect
from tradenb.core.calendar import close_utc, open_utc, sessions
from tradenb.data import alpha_vantage, wire
from tradenb.data.providers import fetch, parts
from tradenb.data.replay import Replay
from tradenb.data.store import Store
from tradenb.data.wire import VendorError, Wire

DAYS = sessions("2023-06-01", "2024-05-31")
EVENING = close_utc(DAYS[-1]) + pd.Timedelta(hours=1)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setenv("ALPHAVANTAGE_API_KEY", dialect.KEY)
    monkeypatch.setattr(wire, "sleep", lambda seconds: None)


def ask(routes, names, start, end, **more):
    "(rows, requests)"
    with Replay(routes) as r: return fetch("alpha_vantage", names, start, end, base=r.url, fetched_at=EVENING, **more), r.requests


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(DAYS) - 1), st.integers(0, 40), st.integers(60, len(DAYS)))
def test_any_span_is_whole_whichever_length_of_reply_was_asked(first, length, listed):
    bars = tape(["AAA"], DAYS[-listed:]) # a young stock has fewer days than a short reply
    start, end = DAYS[first], DAYS[min(first + length, len(DAYS) - 1)]
    found, calls = ask(dialect.routes(bars), "AAA", start, end)
    want = bars[bars["session"].between(start, end)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(want)], want, check_dtype=False)
    assert [q.query["outputsize"] for q in calls] == ["compact" if len(DAYS) - first <= 100 else "full"]


def test_a_short_reply_that_does_not_reach_back_is_asked_again_in_full():
    found, calls = ask(dialect.routes(tape(["AAA"], DAYS)), "AAA", DAYS[-100], DAYS[-1])
    assert len(found) == 100 and len(calls) == 1
    extra = tape(["AAA"], DAYS).assign(session=DAYS + pd.Timedelta(days=3)) # the vendor counts days that the calendar does not know
    _, calls = ask(dialect.routes(pd.concat([tape(["AAA"], DAYS), extra[-3:]])), "AAA", DAYS[-100], DAYS[-1])
    assert [q.query["outputsize"] for q in calls] == ["compact", "full"]


def test_adjusted_close_earns_what_an_owner_earned_and_the_free_plan_tells_no_actions():
    bars = tape(["AAA"], DAYS[-30:])
    actions = pd.DataFrame({"session": DAYS[[-20, -10]], "symbol": "AAA", "split": [1., 4.], "dividend": [.5, 0.]})
    found, _ = ask(dialect.routes(bars, actions), "AAA", DAYS[-30], DAYS[-1])
    owner = (found["close"] * found["split"] + found["dividend"])[1:].to_numpy() / found["close"][:-1].to_numpy()
    np.testing.assert_allclose(found["adj_close"].to_numpy()[1:] / found["adj_close"].to_numpy()[:-1], owner, rtol=1e-9)
    assert found["split"].prod() == 4 and found["dividend"].sum() == .5
    plain, _ = ask(dialect.routes(bars, actions, free=True), "AAA", DAYS[-30], DAYS[-1], actions=False)
    assert not {"split", "dividend", "adj_close"} & set(plain) and len(plain) == 30
    with pytest.raises(VendorError, match=r"premium endpoint.*actions=False") as e: ask(dialect.routes(bars, free=True), "AAA", DAYS[-30], DAYS[-1])
    assert e.value.what == "plan"


def test_names_fail_alone_and_limits_end_everything():
    bars = tape(["AAA", "CCC"], DAYS[-5:])
    with Replay(dialect.routes(bars)) as r:
        found = list(parts("alpha_vantage", ["AAA", "APPL", "CCC"], DAYS[-5], DAYS[-1], base=r.url))
        assert [isinstance(a, Exception) and a.what for _, a in found] == [False, "unknown", False]
        quota = {"Information": "We have detected your API key as " + dialect.KEY + " and our standard API rate limit is 25 requests per day. "
                                "Please subscribe to any of the premium plans."}
        r.fault("500", status=200, body=quota, times=None, where="CCC")
        rest = parts("alpha_vantage", ["AAA", "CCC", "AAA2"], DAYS[-5], DAYS[-1], base=r.url, tries=1)
        assert next(rest)[0] == ["AAA"]
        with pytest.raises(VendorError, match="ask tomorrow") as e: next(rest)
    assert e.value.what == "limit" and dialect.KEY not in "".join(traceback.format_exception(e.value)) + repr(vars(e.value))


@pytest.mark.parametrize("fault", ["wrong types", "duplicate page", "truncated", "html", "redirect elsewhere"])
def test_a_broken_reply_is_one_clear_error_or_the_right_rows(fault):
    bars, chain = tape(["AAA", "BBB"], DAYS[-5:]), option_table(DAYS[-1], 4)
    macro = pd.DataFrame({"session": DAYS[-5:], "symbol": "DGS10", "value": 4.5})
    routes = dialect.routes(bars, chain=chain, macro=macro)
    for kind, names in (("bars", ["AAA", "BBB"]), ("chain", ["AAPL"]), ("macro", ["DGS10"])):
        with Replay(routes) as r:
            want = fetch("alpha_vantage", names, DAYS[-1], DAYS[-1], kind=kind, base=r.url, fetched_at=EVENING)
            r.fault(fault, times=None)
            try: found = fetch("alpha_vantage", names, DAYS[-1], DAYS[-1], kind=kind, base=r.url, fetched_at=EVENING)
            except ValueError as e:
                told = "".join(traceback.format_exception(e)) + repr(vars(e))
                assert "alpha_vantage" in told and dialect.KEY not in told
            else: pd.testing.assert_frame_equal(found, want)


def test_bulk_quotes_tell_no_actions_and_only_tonight():
    names = [f"N{i:03d}" for i in range(230)]
    bars = tape(names, DAYS[-3:])
    found, calls = ask(dialect.routes(bars), names, DAYS[-1], DAYS[-1], bulk=True)
    assert len(calls) == 3 and len(found) == 230 and not {"split", "dividend"} & set(found)
    with pytest.raises(VendorError, match="last session only"): ask(dialect.routes(bars), names, DAYS[-2], DAYS[-1], bulk=True)
    assert ask(dialect.routes(bars), names, DAYS[-2], DAYS[-2], bulk=True)[0].empty # tonight's quotes are not yesterday's bars


@pytest.mark.parametrize("ends", [False, True])
def test_minutes_begin_when_they_begin_whatever_the_stamp(ends):
    days = pd.DatetimeIndex(["2023-11-03", "2023-11-06", "2023-12-01"]) # before and after the change of clocks, and a second month
    at = pd.concat([pd.Series(pd.date_range(open_utc(d), close_utc(d), freq="min", inclusive="left")) for d in days], ignore_index=True)
    minutes = pd.DataFrame({"time": at, "symbol": "AAA", "open": 1., "high": 2., "low": .5, "close": 1., "volume": 5.})
    found, calls = ask(dialect.routes(tape(["AAA"], days), minutes=minutes, ends=ends), "AAA", days[0], days[-1], kind="minutes")
    assert [q.query["month"] for q in calls] == ["2023-11", "2023-12"]
    assert found["time"].tolist() == at.tolist()
    assert found.groupby("session").size().tolist() == [390, 390, 390]


def test_chains_come_session_by_session():
    chain = pd.concat([option_table(d, 6) for d in DAYS[-3:]], ignore_index=True)
    routes = dialect.routes(tape(["AAPL"], DAYS[-3:]), chain=chain)
    with Replay(routes) as r:
        found = list(parts("alpha_vantage", "AAPL", DAYS[-3], DAYS[-1], kind="chain", base=r.url))
        assert [q.query["date"] for q in r.requests] == [f"{d:%Y-%m-%d}" for d in DAYS[-3:]]
        with pytest.raises(ValueError, match="say start="): fetch("alpha_vantage", "AAPL", kind="chain", base=r.url)
    columns = ["session", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "open_interest", "delta", "iv"]
    rows = pd.concat([a for _, a in found]).sort_values(["session", "strike"], ignore_index=True)
    pd.testing.assert_frame_equal(rows[columns], chain[columns], check_dtype=False)


def test_a_rate_is_known_at_the_first_close_after_its_release():
    from pandas.tseries.holiday import USFederalHolidayCalendar
    rest = USFederalHolidayCalendar().holidays("2015-01-01", "2025-12-31")
    days = sessions("2016-01-01", "2024-12-20")
    closes = [close_utc(d) for d in days]
    found = alpha_vantage._released(pd.Series(days))
    for day, known in zip(days, found, strict=True):
        out = day + pd.Timedelta(days=1)
        while out.weekday() > 4 or out in rest: out += pd.Timedelta(days=1)
        release = (out + pd.Timedelta("16:15:00")).tz_localize("America/New_York")
        i = days.searchsorted(known) if known <= days[-1] else None
        if i is not None: assert closes[i - 1] <= release < closes[i] # neither later than need be nor too early
    assert all(a <= b for a, b in pairwise(found))


def test_rates_come_under_freds_names_without_holidays_and_weekends():
    every = pd.date_range("2023-10-02", "2023-10-13")
    macro = pd.concat([pd.DataFrame({"session": every, "symbol": s, "value": v}) for s, v in (("DFF", 5.33), ("DGS10", 4.6))])
    macro.loc[(macro["symbol"] == "DGS10") & (macro["session"] == pd.Timestamp("2023-10-09")), "value"] = np.nan
    routes = dialect.routes(tape(["AAA"], DAYS[:2]), macro=macro)
    found, _ = ask(routes, ["DFF", "DGS10"], "2023-10-02", "2023-10-13", kind="macro")
    assert found.groupby("symbol").size().to_dict() == {"DFF": 10, "DGS10": 9} and (found["known_at"] > found["session"]).all()
    with pytest.raises(ValueError, match="there is no series DGS11; it has DGS3MO"): ask(routes, "DGS11", "2023-10-02", "2023-10-13", kind="macro")


def test_the_store_asks_nothing_twice(tmp_path, capsys):
    names, store = ["AAA", "BBB"], Store(tmp_path)
    with Replay(dialect.routes(tape(names, DAYS))) as r:
        def update(until, **more): return store.update("alpha_vantage", names, DAYS[0], until, base=r.url, fetched_at=EVENING, **more)
        assert update(DAYS[-2]) == 2 * (len(DAYS) - 1) and len(r.requests) == 2
        assert update(DAYS[-2]) == 0 and len(r.requests) == 2
        assert update(DAYS[-1]) == 2 and len(r.requests) == 4
    with capsys.disabled(): print("\nalpha_vantage, 2 names: 2 calls for a history, 2 for tonight (one a name, whatever the span)")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and dialect.KEY.encode() in p.read_bytes()]


# ---- recordings, where TRADENB_REAL_DATA is set

@pytest.fixture
def told(real_data):
    folder = real_data / "vendor" / "alpha_vantage"
    if not folder.is_dir(): pytest.skip(f"{folder} is not there")
    return lambda name: json.loads((folder / f"{name}.json").read_text())


def test_recorded_bars_and_the_vendors_own_adjustment(told):
    reply = told("TIME_SERIES_DAILY_ADJUSTED_AAPL_2021-07-23")
    with Replay({"/query": reply}) as r:
        found = fetch("alpha_vantage", "AAPL", "2021-03-03", "2021-07-23", base=r.url)
        with pytest.raises(ValueError, match="it answers about 'AAPL'"): fetch("alpha_vantage", "MSFT", "2021-03-03", "2021-07-23", base=r.url)
    assert len(found) == 100 and found.query("dividend > 0")["session"].dt.strftime("%Y-%m-%d").tolist() == ["2021-05-07"]
    owner = (found["close"] + found["dividend"]).to_numpy()[1:] / found["close"].to_numpy()[:-1]
    np.testing.assert_allclose(found["adj_close"].to_numpy()[1:] / found["adj_close"].to_numpy()[:-1], owner, rtol=2e-8)


def test_recorded_minutes_and_other_functions_are_read_or_refused(told):
    w = Wire(alpha_vantage.ALPHA_VANTAGE)
    series = told("romeltorres_mock_time_series")["Time Series (1min)"]
    times = alpha_vantage._beginnings(w, list(series)) # of a running session, stamped with neither bell
    assert times.max() == pd.Timestamp("2017-12-18 14:56", tz="America/New_York")
    assert len(alpha_vantage._numbers(w, list(series.values()), alpha_vantage._PRICES)) == len(series)
    later = told("TIME_SERIES_INTRADAY_5min_TSLA")["Time Series (5min)"]
    regular = alpha_vantage._beginnings(w, [k for k in later if k <= "2021-07-23 16:00:00"]) # this one was stamped with ends
    assert regular.max() == pd.Timestamp("2021-07-23 15:59", tz="America/New_York")
    with pytest.raises(VendorError, match="it answers about"): alpha_vantage._series(w, {}, told("romeltorres_mock_technical_indicator")["Meta Data"], "MSFT")


def test_recorded_errors_are_of_the_right_kind(real_data):
    items = json.loads((real_data / "vendor" / "ERRORS.json").read_text())["items"]
    found = [alpha_vantage._judge(i["http"], i["body"])[0] for i in items if i["vendor"] == "alpha_vantage" and i["body"]]
    assert found == ["limit", "limit", "unknown"]
