"What cannot be a lesson of data.alpaca: any span against a server with real pages, the package's own traps, recordings"
import itertools
import json

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data import alpaca as room
from tradenb.data import wire as way
from tradenb.data.providers import fetch
from tradenb.data.replay import Replay, Request

from .vendors import alpaca, tape

BARS = tape.table(6, 40)
DAYS = BARS.session.unique()
ROUTES = alpaca.routes(BARS)
NIGHT = pd.Timestamp(DAYS[-1]).tz_localize("UTC") + pd.Timedelta("22h")


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name, key in alpaca.KEYS.items(): monkeypatch.setenv(name, key)
    monkeypatch.setattr(way, "sleep", lambda s: None)


@pytest.fixture(scope="module")
def vendor():
    with Replay(alpaca.routes(BARS)) as replay: yield replay


def ask(vendor, names, first, last, **more):
    return fetch("alpaca", names, first, last, base=vendor.url, fetched_at=NIGHT, **more)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 39), st.integers(0, 39), st.sets(st.sampled_from(sorted(BARS.symbol.unique())), min_size=1), st.sampled_from([5, 7, 10_000]),
       st.sampled_from([3, 60, 100_000]))
def test_any_span_of_any_names_is_the_tape(vendor, a, b, names, page, batch):
    first, last = sorted([DAYS[a], DAYS[b]])
    with pytest.MonkeyPatch.context() as patch, Replay(paged(page)) as small:
        patch.setattr(room, "_BATCH", batch)
        tape.same(ask(small, sorted(names), first, last), BARS[BARS.symbol.isin(names)], first, last)


def paged(rows):
    "The vendor with pages of so many rows"
    def cut(path): return lambda r: ROUTES[path](Request(r.method, r.path, r.query | {"limit": str(rows)}, r.headers))
    return {path: cut(path) for path in ROUTES}


def test_an_evening_of_all_names_is_two_requests(vendor):
    vendor.requests.clear()
    names = sorted(BARS.symbol.unique())
    tape.same(ask(vendor, [*names, "GONE"], DAYS[-1], DAYS[-1]), BARS, DAYS[-1], DAYS[-1])
    assert [r.path for r in vendor.requests] == ["/v2/stocks/bars", "/v1/corporate-actions"]


@pytest.mark.parametrize("about", ["ex_date", "process_date"])
def test_events_arrive_whichever_of_their_dates_the_vendor_goes_by(about):
    with Replay(alpaca.routes(BARS, about=about)) as vendor:
        for day in DAYS[5:30:4]: tape.same(ask(vendor, sorted(BARS.symbol.unique()), day, day), BARS, day, day)


def test_more_than_a_thousand_corporate_actions_all_arrive():
    "The package's default limit would cut them at 1,000"
    days = pd.DatetimeIndex(DAYS)
    paid = pd.DataFrame([(d, s, .01) for d, s in itertools.product(days, [f"S{i:03d}" for i in range(30)])], columns=["session", "symbol", "dividend"])
    bars = pd.concat([BARS[BARS.symbol == "S000"].assign(symbol=s, split=1., dividend=.01) for s in sorted(paid.symbol.unique())], ignore_index=True)
    with Replay(alpaca.routes(bars)) as vendor:
        found = ask(vendor, sorted(paid.symbol.unique()), DAYS[0], DAYS[-1])
    assert (found.dividend == .01).sum() == 1200


def test_an_event_on_a_halted_day_is_not_lost_by_an_update_after_it():
    day, after = DAYS[20], DAYS[21]
    bars = BARS[(BARS.symbol == "S000") & (BARS.session != day)].assign(split=1., dividend=0.)
    told = pd.DataFrame({"session": [day], "symbol": "S000", "split": 3., "dividend": 0.})
    with Replay(alpaca.routes(bars, told)) as vendor: found = ask(vendor, ["S000"], after, after)
    assert found.split.tolist() == [3.]


def test_minutes_have_their_instant_and_the_date_of_new_york():
    instants = pd.to_datetime(["2020-08-28 13:30Z", "2020-08-28 23:59Z", "2020-08-29 00:30Z"]) # the last is 20:30 on Friday
    minutes = pd.DataFrame({"session": pd.Timestamp("2020-08-28"), "symbol": "S000", "time": instants, "volume": 7,
                            **dict.fromkeys(("open", "high", "low", "close"), 9.5)})
    with Replay(alpaca.routes(BARS, minutes=minutes)) as vendor:
        found = fetch("alpaca", "S000", "2020-08-28", "2020-08-28", kind="minutes", base=vendor.url)
    assert found.time.tolist() == instants.tolist() and (found.session == "2020-08-28").all() and len(vendor.requests) == 1
    assert {"trades", "vwap"} <= set(found)


@pytest.mark.parametrize("fault", ["duplicate page", "truncated", "wrong types", "expired key"])
def test_a_broken_page_is_one_error(fault, caplog):
    "With pages of 7 rows, the first of them good"
    with Replay(paged(7)) as small, pytest.raises(ValueError, match="alpaca") as e:
        small.fault(fault, times=None, where="page_token=[^&]")
        ask(small, ["S000", "S001"], DAYS[0], DAYS[-1])
    assert len(small.requests) < 20 and not any(key in f"{e.value}{e.value!r}{caplog.text}" for key in alpaca.KEYS.values())


def test_recorded_pages_are_read(real_data):
    "The fixtures of Alpaca's own packages, as replies"
    folder = real_data/"vendor/alpaca"
    pages = {name: json.loads((folder/f"{name}.json").read_text()) for name in ("go_GetMultiBars_553", "go_GetCorporateActions_1277")}
    with Replay({"/v2/stocks/bars": pages["go_GetMultiBars_553"], "/v1/corporate-actions": pages["go_GetCorporateActions_1277"]}) as vendor:
        found = fetch("alpaca", ["AAPL", "NIO"], "2021-10-13", "2021-10-15", base=vendor.url)
    assert found[found.symbol == "AAPL"].close.tolist() == [140.91, 143.76, 144.84] and len(found) == 6
    recorded = json.loads((folder/"py_get_corporate_actions_41.json").read_text()) | {"next_page_token": None}
    bar = {"o": 1, "h": 1, "l": 1, "c": 1, "v": 1}
    days = {"MNTS": "2023-08-24", "SRE": "2023-08-22", "MSBC": "2023-05-19", "FCF": "2023-05-04"}
    rows = {name: [bar | {"t": f"{day}T04:00:00Z"}] for name, day in days.items()}
    with Replay({"/v2/stocks/bars": {"bars": rows, "next_page_token": None}, "/v1/corporate-actions": recorded}) as vendor:
        found = fetch("alpaca", list(days), "2023-05-01", "2023-08-31", base=vendor.url).set_index("symbol")
    assert found.split.round(6).to_dict() == {"MNTS": .02, "SRE": 2, "MSBC": 1.05, "FCF": 1} and found.dividend["FCF"] == .125
