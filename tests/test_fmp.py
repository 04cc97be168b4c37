"What cannot be a lesson of data.fmp: any span by name, by file and by the older addresses, full pages, plans, recordings"
import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data import fmp as room
from tradenb.data import wire as way
from tradenb.data.providers import fetch
from tradenb.data.replay import Replay

from .vendors import fmp, tape

BARS = tape.table(6, 40)
DAYS, NAMES = BARS.session.unique(), sorted(BARS.symbol.unique())
NIGHT = pd.Timestamp(DAYS[-1]).tz_localize("UTC") + pd.Timedelta("22h")


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name, key in fmp.KEYS.items(): monkeypatch.setenv(name, key)
    monkeypatch.setattr(way, "sleep", lambda s: None)


def ask(vendor, names, first, last, **more): return fetch("fmp", names, first, last, base=vendor.url, fetched_at=NIGHT, **more)


@pytest.fixture(scope="module")
def vendors():
    with Replay(fmp.routes(BARS)) as rich, Replay(fmp.routes(BARS, bulk=False)) as poor, Replay(fmp.routes(BARS, legacy=True)) as old:
        yield {"rich": rich, "poor": poor, "old": old}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 39), st.integers(0, 39), st.sets(st.sampled_from(NAMES), min_size=1), st.sampled_from(["rich", "poor", "old"]),
       st.sampled_from([None, True, False]))
def test_any_span_any_way_is_the_tape(vendors, a, b, names, plan, bulk):
    first, last = sorted([DAYS[a], DAYS[b]])
    legacy = plan == "old"
    if bulk and plan == "poor" or legacy and bulk is not None: bulk = None
    found = ask(vendors[plan], sorted(names), first, last, bulk=bulk, legacy=legacy)
    tape.same(found, BARS[BARS.symbol.isin(names)], first, last)


def test_requests_of_an_evening_by_plan(vendors):
    counts = {}
    for plan, legacy in (("rich", False), ("poor", False), ("old", True)):
        vendors[plan].requests.clear()
        ask(vendors[plan], NAMES, DAYS[-1], DAYS[-1], legacy=legacy)
        counts[plan] = len(vendors[plan].requests)
    assert counts == {"rich": 3, "poor": 3 + len(NAMES), "old": 3 * len(NAMES)}


def test_full_pages_and_full_calendars_are_asked_further(monkeypatch):
    monkeypatch.setattr(fmp, "FULL", 7)
    monkeypatch.setattr(room, "_FULL", 7)
    with Replay(fmp.routes(BARS)) as vendor: tape.same(ask(vendor, "S002", DAYS[0], DAYS[-1]), BARS[BARS.symbol == "S002"], DAYS[0], DAYS[-1])
    assert len(vendor.requests) == 2 + 6
    monkeypatch.setattr(room, "_CALENDAR", 4)
    routes = fmp.routes(BARS)
    def cut(path): return lambda r: routes[path](r)[:4]
    with Replay(routes | {p: cut(p) for p in ("/stable/splits-calendar", "/stable/dividends-calendar")}) as vendor:
        tape.same(ask(vendor, NAMES, DAYS[10], DAYS[-1], bulk=True), BARS, DAYS[10], DAYS[-1])


def test_a_file_of_an_older_day_is_not_believed_about_a_name_that_split_since():
    "A file made again in later shares: the name is asked for by name, and has the tape"
    routes = fmp.routes(BARS)
    day = BARS[(BARS.split > 1) & (BARS.symbol == "S000")].session.iloc[0]
    before = DAYS[list(DAYS).index(day) - 1]
    def later(request):
        lines = routes["/stable/eod-bulk"](request).splitlines()
        return "\n".join(line if "S000" not in line else '"S000","2020-01-01","1","1","1","1","1","1"'.replace("2020-01-01", request.query["date"])
                         for line in [*lines, ""])
    with Replay(routes | {"/stable/eod-bulk": later}) as vendor: tape.same(ask(vendor, NAMES, before, before), BARS, before, before)


def test_a_wrong_key_is_an_error_that_does_not_say_it(monkeypatch, caplog):
    monkeypatch.setenv("FMP_API_KEY", "wrong key+/%".replace(" ", "_"))
    with Replay(fmp.routes(BARS)) as vendor, pytest.raises(ValueError, match="FMP_API_KEY") as e: ask(vendor, "S000", DAYS[0], DAYS[-1])
    assert "wrong_key" not in f"{e.value!r}{e.value}{caplog.text}" and len(vendor.requests) == 1


def test_recorded_histories_are_read(real_data):
    "Of the older address; the list of splits says 7 for 1 in 2014 and 4 for 1 in 2020, both before them"
    old = "/api/v3/historical-price-full"
    none = {"symbol": "AAPL", "historical": [dict(date="2020-08-31", numerator=4, denominator=1)]}
    for name, first, last, n in (("AAPL_2023-01_openbb", "2023-01-03", "2023-01-10", 6), ("AAPL_short", "2021-05-20", "2021-06-01", None)):
        told = json.loads((real_data/f"vendor/fmp/historical-price-full_{name}.json").read_text())
        with Replay({f"{old}/AAPL": told, f"{old}/stock_split/AAPL": none, f"{old}/stock_dividend/AAPL": {}}) as vendor:
            found = ask_old(vendor, first, last)
        rows = {r["date"]: r for r in told["historical"]}
        assert len(found) == (n or len(found)) > 3
        for r in found.itertuples():
            said = rows[f"{r.session:%Y-%m-%d}"]
            assert (r.open, r.close, r.volume, r.adj_close) == (said["open"], said["close"], said["volume"], said["adjClose"])


def ask_old(vendor, first, last): return fetch("fmp", "AAPL", first, last, base=vendor.url, legacy=True)
