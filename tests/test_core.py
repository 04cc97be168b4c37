"The tables, the calendar and the log under data nobody would write by hand"
import io
import json
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core import calendar, log
from tradenb.core.panel import Dataset, check_panel, long, wide

NYSE = json.loads((Path(__file__).parent/"data"/"nyse_calendar.json").read_text())


# The calendar against a list of facts that another library was checked against too

def test_every_session_of_38_years():
    open_days = pd.bdate_range("1990-01-01", "2027-12-31").difference(pd.to_datetime(NYSE["closed_weekdays"]))
    ours = calendar.sessions("1990-01-01", "2027-12-31")
    assert list(ours) == list(open_days)
    assert ours.dtype == "datetime64[us]" and ours.name == "session"
    assert {str(y): int(n) for y, n in ours.year.value_counts().items()} == NYSE["sessions_per_year"]

def test_every_close_of_38_years():
    days = calendar.sessions("1990-01-01", "2027-12-31")
    local = days.strftime("%Y-%m-%d ") + [NYSE["early_closes"].get(d, "16:00") for d in days.strftime("%Y-%m-%d")]
    assert [calendar.close_utc(d) for d in days] == list(pd.to_datetime(local).tz_localize("America/New_York"))
    assert [f"{d:%Y-%m-%d}" for d in days if calendar.is_half_day(d)] == list(NYSE["early_closes"])
    opens = {calendar.open_utc(d).tz_convert("America/New_York").strftime("%H:%M") for d in days[::7]}
    assert opens == {"09:30"}

def test_instants_are_utc():
    for day, (opens, closes) in NYSE["utc"].items():
        assert (str(calendar.open_utc(day)), str(calendar.close_utc(day))) == (opens, closes)
    assert str(calendar.close_utc("2024-07-03").tz) == "UTC" and calendar.close_utc("2024-07-03").unit == "us"

def test_option_expiries_that_are_holidays():
    assert not any(map(calendar.is_session, NYSE["third_fridays_closed"]))

DAYS = st.dates(datetime(1991, 1, 1).date(), datetime(2038, 12, 31).date())

@settings(max_examples=60, deadline=None)
@given(DAYS, st.integers(1, 60))
def test_stepping_counts_sessions(day, n):
    later, earlier = calendar.next_session(day, n), calendar.next_session(day, -n)
    assert len(calendar.sessions(day, later)) == n + calendar.is_session(day)
    assert len(calendar.sessions(earlier, day)) == n + calendar.is_session(day)

@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime(1991, 1, 1), datetime(2038, 12, 31)))
def test_last_closed_is_the_last_that_closed(moment):
    instant = pd.Timestamp(moment, tz="UTC")
    session = calendar.last_closed(instant)
    assert calendar.close_utc(session) <= instant < calendar.close_utc(calendar.next_session(session))
    assert session == calendar.last_closed(instant.tz_convert("Asia/Tokyo"))

def test_a_session_is_known_from_its_close_on():
    for day in calendar.sessions("2024-11-25", "2024-12-05"):
        close = calendar.close_utc(day)
        assert calendar.last_closed(close) == day > calendar.last_closed(close - pd.Timedelta(microseconds=1))

@pytest.mark.real
def test_a_fund_traded_on_every_session_and_on_no_other_day(real_data):
    traded = pd.DatetimeIndex(pd.to_datetime(pd.read_parquet(real_data/"spy_daily_ohlcv_1998_2021.parquet")["date"]))
    ours = calendar.sessions(traded.min(), traded.max())
    assert list(traded.difference(ours)) == [] and list(ours.difference(traded)) == []

@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("exchange", ["XTKS", "XBOM"])
def test_exchanges_known_for_fewer_years_say_so(exchange):
    of = calendar._schedule(exchange)
    assert len(calendar.sessions(of.first, of.last, exchange)) == len(of.days)
    with pytest.raises(ValueError, match=f"outside the {exchange} calendar"):
        calendar.is_session(of.last + pd.Timedelta(days=1), exchange)

def test_importing_the_calendar_does_not_load_the_exchanges():
    code = "import sys; import tradenb.core.calendar; print('exchange_calendars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# Panels

CELLS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ABCD"), st.floats(-9, 9)), min_size=1, max_size=20,
                 unique_by=lambda c: c[:2])

def frame(cells):
    days = calendar.sessions("2024-01-02", "2024-01-31")
    index = pd.MultiIndex.from_tuples([(days[i], s) for i, s, _ in cells], names=["session", "symbol"])
    return pd.DataFrame({"x": [v for *_, v in cells]}, index)

@settings(max_examples=60, deadline=None)
@given(CELLS)
def test_there_and_back(cells):
    panel = frame(cells).sort_index()
    pd.testing.assert_frame_equal(long(x=wide(panel, "x")), panel)

@settings(max_examples=60, deadline=None)
@given(CELLS, st.randoms())
def test_the_quick_check_agrees_with_pandas(cells, random):
    mixed = cells + random.choices(cells, k=random.randint(0, 1))
    random.shuffle(mixed)
    rows = frame(mixed)
    good = rows.index.is_monotonic_increasing and rows.index.is_unique
    if good: assert check_panel(rows) is rows
    else:
        with pytest.raises(ValueError, match="duplicate|not sorted"): check_panel(rows)

def test_levels_in_any_order_are_judged_by_their_values():
    days = calendar.sessions("2024-01-02", "2024-01-03")
    def indexed(codes): return pd.DataFrame({"x": 1.}, pd.MultiIndex([days[::-1], ["B", "A"]], codes, names=["session", "symbol"]))
    check_panel(indexed([[1, 1, 0], [1, 0, 0]]))
    with pytest.raises(ValueError, match="not sorted"): check_panel(indexed([[0, 1, 1], [0, 0, 1]]))

def test_half_a_million_rows():
    days = calendar.sessions("2020-01-01", "2023-12-31")[:1000]
    index = pd.MultiIndex.from_product([days, [f"S{i:03}" for i in range(500)]], names=["session", "symbol"])
    panel = pd.DataFrame({"close": np.ones(len(index), "float32")}, index)
    assert check_panel(panel) is panel
    assert wide(panel, "close").shape == (1000, 500)

def test_take_keeps_all_four_together():
    panel = frame([(i, s, 10*i + ord(s)) for i in range(5) for s in "ABC"])
    known = pd.Series(panel.index.get_level_values("session") + pd.Timedelta(days=7), panel.index)
    known.iloc[-3:] = pd.NaT # tonight's labels
    ds = Dataset(panel, panel["x"].rename("y"), panel["x"].abs(), known)
    part = ds.take(np.array([0, 4, 14]))
    assert part.y.tolist() == part.X["x"].tolist() == part.w.tolist()
    assert list(part.sessions) == list(ds.sessions[[0, 4, 14]])
    assert part.known_at.isna().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="panel is empty"): ds.take([])


@pytest.mark.real
def test_real_prices_there_and_back(real_data):
    raw = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet").rename(columns={"date": "session"})
    raw["session"], raw["symbol"] = pd.to_datetime(raw["session"]), raw["symbol"].astype(str)
    panel = raw.set_index(["session", "symbol"]).sort_index()[["close", "volume"]].astype(float)
    pd.testing.assert_frame_equal(long(close=wide(panel, "close"), volume=wide(panel, "volume")), check_panel(panel), check_index_type=False)


# The log

@pytest.fixture
def lines():
    "JSON lines of the log as they come; afterwards it is as it was"
    screen = io.StringIO()
    log.configure(json=True, stream=screen, level="DEBUG")
    yield lambda: [json.loads(line) for line in screen.getvalue().splitlines()]
    log.configure(level="WARNING")

SECRET = "Zq9-very/secret+42"

def test_no_secret_leaves_by_any_door(lines, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_VENDOR_API_KEY", SECRET)
    monkeypatch.setenv("BROKER_TOKEN", SECRET + "0") # contains the other
    class Reply:
        def __str__(self): return f"<Reply {SECRET}>"
    logger = log.get_logger("data.providers")
    log.configure(json=True, stream=(screen := io.StringIO()), file=tmp_path/"night.log")
    logger.info(f"asked with {SECRET}", reply=Reply(), headers={"X": [SECRET, ("a", SECRET + "0")]}, error=ValueError(SECRET))
    logger.info("as argument %s", SECRET)
    try:
        try: raise ConnectionError(f"https://x/?k={SECRET}")
        except ConnectionError as e: raise RuntimeError("outer") from e
    except RuntimeError: logger.exception("failed")
    with log.bound(recipe=SECRET): logger.warning("bound")
    @log.timed
    def fails(): raise ValueError(SECRET)
    with pytest.raises(ValueError, match="Zq9"): fails()
    log.configure(stream=(people := io.StringIO()))
    logger.error("for people", reply=Reply())
    for text in (screen.getvalue(), (tmp_path/"night.log").read_text(), people.getvalue()):
        assert "***" in text and "Zq9" not in text and "secret+" not in text
        assert "***0" not in text, "a secret that begins with another is taken out whole"

@pytest.mark.parametrize("text", ["api_key=Zq9", "apikey: Zq9", '{"password": "Zq9"}', "'token': 'Zq9'", "X-API-Key=Zq9",
                                  "Authorization: Bearer Zq9.x", "secret = Zq9", "https://ann:Zq9@host/db", "APCA-API-SECRET-KEY: Zq9"])
def test_names_that_tell(text): assert "Zq9" not in log.redact(text, {}) and "***" in log.redact(text, {})

@settings(max_examples=60, deadline=None)
@given(st.text())
def test_redaction_is_done_at_once(text): assert log.redact(log.redact(text, {}), {}) == log.redact(text, {})

def test_ordinary_words_stay():
    for text in ("the key is 5", "512 tokens", "secretary of state", "keyboard=us", "monkey: 3", "2024-07-03 16:00:00"):
        assert log.redact(text, {"SHORT_KEY": "3"}) == text

def test_every_line_is_json_whatever_is_logged(lines):
    logger = log.get_logger("core")
    odd = {"nan": np.float64("nan"), "inf": float("inf"), "int": np.int64(3), "bool": np.bool_(True), "at": pd.Timestamp("2024-07-03"),
           "then": pd.Timestamp("2024-07-03 16:00", tz="UTC"), "never": pd.NaT, "set": {1}, "path": Path("a"), "text": "two\nlines",
           "frame": pd.DataFrame({"x": [1]}), "array": np.arange(3), "none": None}
    logger.info("odd", **odd)
    event, = lines()
    assert (event["nan"], event["inf"], event["int"], event["bool"]) == (None, "inf", 3, True)
    assert (event["at"], event["then"], event["text"]) == ("2024-07-03", "2024-07-03T16:00:00+00:00", "two\nlines")

def test_context_is_the_threads_own(lines):
    logger = log.get_logger("ops")
    with log.bound(session="2024-07-03"):
        other = threading.Thread(target=lambda: logger.info("other"))
        other.start(); other.join()
        logger.info("own")
    assert {e["event"]: e.get("session") for e in lines()} == {"other": None, "own": "2024-07-03"}

def test_context_ends_with_an_error(lines):
    with pytest.raises(ValueError), log.bound(session="2024-07-03"): raise ValueError
    log.get_logger("ops").info("after")
    assert "session" not in lines()[-1]

def test_timed_says_seconds_and_keeps_the_function(lines):
    @log.timed
    def works(x:int)->int: "doc"; return x + 1
    assert (works(1), works.__name__, works.__doc__) == (2, "works", "doc")
    event, = lines()
    assert event["event"] == "finished" and 0 <= event["seconds"] < 5 and event["function"].endswith("works")

def test_configuring_again_does_not_double(tmp_path):
    for _ in range(3): log.configure(json=True, stream=(screen := io.StringIO()), file=tmp_path/"a.log")
    log.get_logger("core").info("once")
    log.configure(level="WARNING")
    assert len(screen.getvalue().splitlines()) == len((tmp_path/"a.log").read_text().splitlines()) == 1

def test_colour_only_for_a_terminal_and_clock_in_utc(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self): return True
    def said(stream): log.configure(stream=stream); log.get_logger("core").info("hello", rows=3); return stream.getvalue()
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in said(Terminal()) and "\x1b[" not in said(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = said(Terminal())
    log.configure(level="WARNING")
    assert "\x1b[" not in plain and "rows=3" in plain
    written = datetime.fromisoformat(plain.split()[0])
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60

def test_screen_is_standard_error_of_the_moment(capsys):
    log.get_logger("core").warning("to the screen")
    log.get_logger("core").info("not worth a line")
    seen = capsys.readouterr()
    assert "to the screen" in seen.err and "not worth" not in seen.err and seen.out == ""

def test_the_applications_own_logging_is_left_alone(lines):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log.configure(level="DEBUG")
    assert (root.handlers[:], root.level) == before
