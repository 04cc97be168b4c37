"Polygon over a real socket: both ways to the same bars, actions against brute force, faults, counts, recordings"
import json
import re
import traceback

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vendors import polygon as dialect
from tradenb.core.calendar import close_utc, is_session, open_utc, sessions
from tradenb.data import polygon, wire
from tradenb.data.providers import fetch, parts
from tradenb.data.replay import Replay
from tradenb.data.store import Store
from tradenb.data.wire import VendorError, Wire

DAYS = sessions("2023-06-01", "2024-05-31")
SAME = ["session", "symbol", "open", "high", "low", "close", "volume", "split", "dividend"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setenv("POLYGON_API_KEY", dialect.KEY)
    monkeypatch.setattr(wire, "sleep", lambda seconds: None)


def tape(names, days, seed=0):
    rng = np.random.default_rng(seed)
    close = 100 + rng.normal(0, 1, len(names) * len(days)).cumsum().round(2)
    frame = pd.DataFrame({"session": np.repeat(days, len(names)), "symbol": np.tile(names, len(days))})
    return frame.assign(open=close, high=close + 1, low=close - 1, close=close, volume=1e6)


def asked(routes, names, start, end, **more):
    "(rows, errors by name, requests)"
    rows, failed = [], {}
    with Replay(routes) as r:
        for of, answer in parts("polygon", names, start, end, base=r.url, **more):
            if isinstance(answer, Exception): failed |= dict.fromkeys(of, answer)
            elif len(answer): rows.append(answer)
    found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=SAME)
    return found.sort_values(["session", "symbol"], ignore_index=True), failed, r.requests


def expected(bars, actions, start, end):
    "Actions on rows by the slow and plain way: each on the first row of its name that is not before it, ten days on at most"
    rows = bars[bars["session"].between(start, end)].sort_values(["session", "symbol"], ignore_index=True).assign(split=1., dividend=0.)
    before = DAYS[DAYS < start].max() if (DAYS < start).any() else pd.Timestamp("2023-05-31")
    for a in actions.to_dict("records"):
        if not before < a["session"] <= end: continue
        mine = rows[(rows["symbol"] == a["symbol"]) & rows["session"].between(a["session"], a["session"] + pd.Timedelta(days=10))]
        if mine.empty: continue
        rows.loc[mine.index[0], "split"] *= a["split"]
        rows.loc[mine.index[0], "dividend"] += a["dividend"]
    return rows[SAME]


@settings(max_examples=7, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_by_name_and_by_session_give_the_same_rows_and_actions_stand_where_they_belong(monkeypatch, data):
    names, days = ["AAA", "BBB", "CC.B"], DAYS[20:28]
    bars = tape(names, days)
    bars = bars[np.random.default_rng(data.draw(st.integers(0, 99))).random(len(bars)) > data.draw(st.sampled_from([0, .1, .5]))]
    when = st.integers(0, (days[-1] - days[0]).days).map(lambda n: days[0] + pd.Timedelta(days=n))
    events = data.draw(st.lists(st.tuples(when, st.sampled_from(names), st.sampled_from([1., 1., 4., .1]), st.sampled_from([.25, 0., 1.])),
                                max_size=8))
    actions = pd.DataFrame(events, columns=["session", "symbol", "split", "dividend"]).drop_duplicates()
    actions = actions.astype({"session": "datetime64[us]"}).drop_duplicates(["session", "symbol"])
    i = data.draw(st.integers(0, len(days) - 1))
    start, end = days[i], days[data.draw(st.integers(i, len(days) - 1))]
    found = []
    for way in [(True, False), (False, False), (False, True)]:
        monkeypatch.setattr(polygon, "_plan", lambda *_, way=way: way)
        rows, failed, _ = asked(dialect.routes(bars, actions, page=5), names, start, end)
        found.append((rows.reindex(columns=SAME), sorted(n for n, e in failed.items() if "no bar since" in str(e))))
    want = expected(bars, actions, start, end)
    for rows, _ in found: pd.testing.assert_frame_equal(rows, want, check_dtype=False)
    assert found[0][1] == found[1][1] == found[2][1]


def test_an_action_without_a_row_is_asked_for_again_and_arrives_when_the_stock_trades():
    bars = tape(["AAA", "BBB"], DAYS[-4:])
    halted = bars[~((bars["symbol"] == "AAA") & (bars["session"] == DAYS[-2]))]
    actions = pd.DataFrame({"session": [DAYS[-2]], "symbol": ["AAA"], "split": [4.], "dividend": [0.]})
    rows, failed, _ = asked(dialect.routes(halted, actions), ["AAA", "BBB"], DAYS[-4], DAYS[-2])
    assert list(failed) == ["AAA"] and f"a split or a dividend on {DAYS[-2]:%Y-%m-%d}, and no bar since" in str(failed["AAA"])
    assert len(rows) == 5 and (rows["split"] == 1).all()
    rows, failed, _ = asked(dialect.routes(halted, actions), ["AAA", "BBB"], DAYS[-2], DAYS[-1])
    assert not failed and rows.query("symbol == 'AAA'")["split"].tolist() == [4]


@pytest.mark.parametrize("way", [(True, False), (False, False), (False, True)])
def test_a_weekends_split_stands_on_monday_also_when_only_monday_is_asked_for(monkeypatch, way):
    monkeypatch.setattr(polygon, "_plan", lambda *_: way)
    monday = next(d for d in DAYS[5:] if d.weekday() == 0)
    actions = pd.DataFrame({"session": [monday - pd.Timedelta(days=2)], "symbol": ["AAA"], "split": [4.], "dividend": [0.]})
    rows, failed, _ = asked(dialect.routes(tape(["AAA"], DAYS[:20]), actions), ["AAA"], monday, monday)
    assert rows["split"].tolist() == [4] and not failed


def test_pages_of_any_size_are_the_same_answer_and_a_repeated_page_is_none():
    names, bars = ["AAA", "BBB"], tape(["AAA", "BBB"], DAYS)
    actions = tape(names, DAYS[::20])[["session", "symbol"]].assign(split=1., dividend=.1)
    whole, _, calls = asked(dialect.routes(bars, actions), names, DAYS[0], DAYS[-1])
    paged, _, more = asked(dialect.routes(bars, actions, page=7), names, DAYS[0], DAYS[-1])
    pd.testing.assert_frame_equal(whole[SAME], paged[SAME])
    assert len(more) > 3 * len(calls) and all(q.headers.get("Authorization") == f"Bearer {dialect.KEY}" for q in more)
    with Replay(dialect.routes(bars, actions, page=100)) as r:
        r.fault("duplicate page", where="cursor=100")
        found = fetch("polygon", "AAA", DAYS[0], DAYS[-1], base=r.url)
        pd.testing.assert_frame_equal(found[SAME], whole.query("symbol == 'AAA'")[SAME].reset_index(drop=True))
        r.fault("duplicate page", where="cursor=100", times=None)
        with pytest.raises(ValueError, match="circle"): fetch("polygon", "AAA", DAYS[0], DAYS[-1], base=r.url)


def test_an_answer_about_another_stock_is_refused():
    bars = tape(["AAA", "BBB"], DAYS[:9])
    routes = dialect.routes(bars)
    theirs = routes[r"/v2/aggs/ticker/[^/]+/range/.*"]
    routes[r"/v2/aggs/ticker/[^/]+/range/.*"] = lambda request: theirs(request) | {"ticker": "BBB"}
    _, failed, _ = asked(routes, ["AAA"], DAYS[0], DAYS[8])
    assert "it answers about 'BBB'" in str(failed["AAA"])


@pytest.mark.parametrize("where", ["/v2/aggs/ticker", "/v2/aggs/grouped", "/v3/reference/splits", "/v3/reference/dividends"])
@pytest.mark.parametrize("fault", ["wrong types", "duplicate page", "foreign next_url", "truncated", "html", "expired key"])
def test_a_broken_reply_is_one_clear_error_or_the_right_rows(monkeypatch, fault, where):
    names, bars = ["AAA", "BBB", "CCC"], tape(["AAA", "BBB", "CCC"], DAYS[:40])
    actions = tape(names, DAYS[5:15:5])[["session", "symbol"]].assign(split=2., dividend=.1)
    monkeypatch.setattr(polygon, "_plan", lambda *_: ("grouped" in where, False))
    want = expected(bars, actions, DAYS[0], DAYS[20])
    with Replay(dialect.routes(bars, actions)) as r:
        r.fault(fault, times=None, where=where)
        try: found = fetch("polygon", names, DAYS[0], DAYS[20], base=r.url)
        except ValueError as e: told = "".join(traceback.format_exception(e)) + repr(vars(e)) + str(e)
        else: pd.testing.assert_frame_equal(found[SAME], want); return
    assert "polygon" in told and dialect.KEY not in told


def test_a_daily_update_of_many_names_takes_three_calls(capsys):
    names, days = [f"N{i:02d}" for i in range(40)], DAYS[-60:]
    bars, actions = tape(names, days), tape(names, days[::30])[["session", "symbol"]].assign(split=1., dividend=.1)
    routes = dialect.routes(bars, actions)
    _, _, full = asked(routes, names, days[0], days[-2])
    rows, failed, tonight = asked(routes, names, DAYS[-1], DAYS[-1])
    with capsys.disabled(): print(f"\npolygon, 40 names x 60 sessions: {len(full)} calls; tonight: {len(tonight)}")
    assert len(rows) == 40 and not failed and len(tonight) == 3 <= .1 * len(full)


def test_the_store_asks_nothing_twice(tmp_path):
    names, bars = ["AAA", "BBB"], tape(["AAA", "BBB"], DAYS)
    store = Store(tmp_path)
    with Replay(dialect.routes(bars)) as r:
        assert store.update("polygon", names, DAYS[0], DAYS[-2], base=r.url) == 2 * (len(DAYS) - 1)
        before = len(r.requests)
        assert store.update("polygon", names, DAYS[0], DAYS[-2], base=r.url) == 0 and len(r.requests) == before
        assert store.update("polygon", names, DAYS[0], DAYS[-1], base=r.url) == 2 and len(r.requests) - before <= 4
        assert store.calls["polygon"] == len(r.requests)
    assert store.as_of("bars", DAYS[-1])["split"].eq(1).all()


def test_unknown_delisted_and_forbidden_names():
    bars = tape(["AAA", "GONE"], DAYS[:50])
    routes = dialect.routes(bars[(bars["symbol"] == "AAA") | (bars["session"] < DAYS[10])], delisted=("GONE",))
    for end in (DAYS[20], DAYS[25]): # by session, then by name
        rows, failed, _ = asked(routes, ["AAA", "GONE", "APPL", "X", "Y", "Z", "V"], DAYS[20], end)
        assert sorted(failed) == ["APPL", "V", "X", "Y", "Z"] and "no ticker APPL" in str(failed["APPL"])
        assert set(rows["symbol"]) == {"AAA"}
    no = {"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}
    with Replay(routes) as r:
        r.fault("500", where="ticker/GONE", times=None, status=403, body=no)
        found = list(parts("polygon", ["GONE", "AAA"], DAYS[0], DAYS[30], base=r.url))
    assert found[0][1].what == "plan" and len(found[1][1]) == 31
    with Replay(routes) as r: # of everybody: two names are enough to see it
        r.fault("500", where="/v2/", times=None, status=403, body=no)
        with pytest.raises(VendorError, match="entitled"): list(parts("polygon", ["AAA", "B", "C", "D"], DAYS[0], DAYS[30], base=r.url))
        assert sum("/v2/" in q.path for q in r.requests) == 2


def test_all_names_at_once_new_lists_and_delayed_plans():
    bars = tape([f"N{i}" for i in range(30)], DAYS[:3])
    actions = pd.DataFrame({"session": [DAYS[1]], "symbol": ["N7"], "split": [2.], "dividend": [0.], "currency": ["USD"]})
    rows, failed, calls = asked(dialect.routes(bars, actions, status="DELAYED"), None, DAYS[0], DAYS[2], actions="v1")
    assert len(rows) == 90 and rows["split"].prod() == 2 and not failed
    assert {q.path for q in calls if "/v1/" in q.path} == {"/stocks/v1/splits", "/stocks/v1/dividends"}


def test_a_dividend_in_another_currency_fails_its_name_only():
    bars = tape(["AAA", "BBB"], DAYS[:20])
    actions = pd.DataFrame({"session": [DAYS[5]] * 2, "symbol": ["AAA", "BBB"], "split": 1., "dividend": [20., .5], "currency": ["JPY", "USD"]})
    for names in (["AAA", "BBB"], ["AAA", "BBB", *"CDEFGH"]):
        rows, failed, _ = asked(dialect.routes(bars, actions), names, DAYS[4], DAYS[8])
        assert "AAA pays in JPY" in str(failed["AAA"]) and set(rows["symbol"]) == {"BBB"} and rows["dividend"].sum() == .5
    rows, failed, _ = asked(dialect.routes(bars, actions), ["AAA", "BBB"], DAYS[4], DAYS[8], foreign="leave out")
    assert not failed and rows["dividend"].sum() == .5


def test_prices_adjusted_by_surprise_are_refused():
    with Replay(dialect.routes(tape(["AAA"], DAYS[:5]), adjusted=True)) as r:
        with pytest.raises(ValueError, match="prices are as traded"): fetch("polygon", "AAA", DAYS[0], DAYS[4], base=r.url)


def test_minutes_keep_to_the_hours_of_their_day_also_when_clocks_change_and_on_half_days():
    days = pd.DatetimeIndex(["2023-11-03", "2023-11-06", "2023-11-24"]) # before and after the change, and a half day
    four, eight = (days.tz_localize("America/New_York") + pd.Timedelta(hours=h) for h in (4, 20))
    at = pd.concat([pd.Series(pd.date_range(a, b, freq="min", inclusive="left")) for a, b in zip(four, eight, strict=True)], ignore_index=True)
    at = at.dt.tz_convert("UTC")
    minutes = pd.DataFrame({"time": at, "symbol": "AAA", "open": 1., "high": 2., "low": .5, "close": 1., "volume": 5.})
    minutes["session"] = minutes["time"].dt.tz_convert("America/New_York").dt.tz_localize(None).dt.normalize()
    routes = dialect.routes(tape(["AAA"], days), minutes=minutes, page=500)
    with Replay(routes) as r:
        found = fetch("polygon", "AAA", days[0], days[-1], kind="minutes", base=r.url)
        every = fetch("polygon", "AAA", days[0], days[-1], kind="minutes", base=r.url, extended=True)
    assert found.groupby("session").size().tolist() == [390, 390, 210] and len(every) == 3 * 960
    for day, rows in found.groupby("session"): assert (rows["time"].min(), rows["time"].max()) == (open_utc(day), close_utc(day) - pd.Timedelta(minutes=1))


def option_table(day, n=300):
    strikes = np.arange(n) * .5 + 50
    return pd.DataFrame({"session": day, "underlying": "AAPL", "root": np.where(strikes > 100, "AAPL", "AAPL7"), "strike": strikes,
                         "expiry": pd.Timestamp("2024-06-21"), "right": np.where(np.arange(n) % 2, "C", "P"), "bid": 1., "ask": 1.1,
                         "open_interest": np.arange(n), "volume": 3, "delta": .5, "gamma": .01, "vega": .1, "theta": -.02, "iv": .3})


def test_a_chain_comes_whole_over_its_pages_and_is_of_its_own_session_only():
    table = option_table(DAYS[-1])
    routes = dialect.routes(tape(["AAPL"], DAYS), chain=table)
    with Replay(routes) as r:
        found = fetch("polygon", "AAPL", DAYS[-1], DAYS[-1], kind="chain", base=r.url)
        assert len(r.requests) == 2
        with pytest.raises(ValueError, match=f"the snapshot is of {DAYS[-1]:%Y-%m-%d}, and there is no other"):
            fetch("polygon", "AAPL", DAYS[-3], DAYS[-2], kind="chain", base=r.url)
        assert fetch("polygon", "NOPE", DAYS[-1], DAYS[-1], kind="chain", base=r.url).empty
    columns = ["session", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "open_interest", "delta", "iv"]
    pd.testing.assert_frame_equal(found.sort_values("strike", ignore_index=True)[columns], table[columns], check_dtype=False)


def test_both_addresses_are_the_vendor_and_nobody_else_is(monkeypatch):
    monkeypatch.setenv("TRADENB_POLYGON_BASE", "https://api.massive.com")
    w = Wire(polygon.POLYGON)
    assert w.base == "https://api.massive.com"
    with Replay({r"/.*": {"status": "OK", "results": [], "next_url": "https://api.massive.com.evil.example/v3?cursor=1"}}) as r:
        with pytest.raises(VendorError) as e: list(parts("polygon", "AAA", DAYS[0], DAYS[5], base=r.url))
        assert e.value.what == "host" and len(r.requests) == 1


# ---- recordings of the vendor's own, where TRADENB_REAL_DATA is set

@pytest.fixture
def told(real_data):
    folder = real_data / "vendor" / "polygon"
    if not folder.is_dir(): pytest.skip(f"{folder} is not there")
    return lambda name: json.loads((folder / f"{name}.json").read_text())


def test_recorded_bars_read_as_their_dates(told):
    w = Wire(polygon.POLYGON)
    page = told("v2_aggs_ticker_AAPL_range_1_day_2005-04-01_2005-04-04")
    with pytest.raises(VendorError, match="as traded"): polygon._aggregates(w, [page], "AAPL")
    rows = polygon._aggregates(w, [page | {"adjusted": False}], "AAPL") # winter time on the first day, summer time on the second
    assert rows["session"].dt.strftime("%Y-%m-%d").tolist() == ["2005-04-01", "2005-04-04"] and rows["close"].tolist() == [1.4604, 1.4675]
    for name in ("v2_aggs_grouped_locale_us_market_stocks_2005-04-04_adjusted_true", "openapi_examples/v2_aggs_grouped_locale_us_market_stocks_date"):
        rows = polygon._aggregates(w, [told(name) | {"adjusted": False}])
        assert (rows["session"] == "2020-10-14").all() and is_session(rows["session"].iloc[0])
    page = told("openapi_examples/v2_aggs_ticker_stocksTicker_range_multiplier_timespan_from_to")
    assert page["next_url"].startswith("https://api.massive.com/") and ("https", "api.massive.com", 443) in w.origins


def test_recorded_splits_dividends_and_chain(told, monkeypatch):
    replies = {"/v3/reference/splits": told("v3_reference_splits"), "/v3/reference/dividends": told("v3_reference_dividends")}
    with Replay(replies) as r:
        with Wire(polygon.POLYGON, r.url) as w:
            found = polygon._actions(w, polygon._client(w), "v3", pd.Timestamp("2020-01-01"), pd.Timestamp("2026-01-01"))
            assert found.set_index(["symbol", "session"])["split"].loc[[("GOOGL", "2022-07-18"), ("BRW", "2022-05-20")]].tolist() == [20, .5]
            assert found.query("symbol == 'CSSEN'")["dividend"].tolist() == [.59375] * 8
            rows = told("v3_snapshot_options_AAPL")["results"]
            contracts = polygon._contracts(w, rows, "AAPL")
            with pytest.raises(VendorError, match="2022-04-29 is not over, the newest quote is of 13:44"): polygon._snapshot(w, contracts, False)
            row = polygon._snapshot(w, contracts, True).iloc[0]
            assert (row["root"], row["right"], row["strike"], row["bid"], row["open_interest"], row["last"]) == ("AAPL", "C", 150, 28.9, 8133, 29)
            example = told("openapi_examples/v3_snapshot_options_underlyingAsset")["results"]
            with pytest.raises(VendorError, match="is not what its details describe"): polygon._contracts(w, example, "AAPL")


def test_recorded_errors_are_of_the_right_kind(real_data):
    items = json.loads((real_data / "vendor" / "ERRORS.json").read_text())["items"]
    found = {(i["http"], re.sub(r"\W+", " ", str(i["body"].get("error") or i["body"].get("message")))[:20]): polygon._judge(i["http"], i["body"])
             for i in items if i["vendor"] == "polygon"}
    assert sorted(v[0] if v else "good" for v in found.values()) == ["good", "key", "limit", "plan"]
