"What is asked again, and what never is: interruptions, late publication, macro series, and no rows at all"
from datetime import date

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vendors import polygon
from tradenb.core.calendar import sessions
from tradenb.data import providers
from tradenb.data.replay import Replay
from tradenb.data.store import Store
from tradenb.data.update import _gaps, _joined, _left
from tradenb.data.wire import Vendor

FIRST, LAST = "2010-05-03", "2010-05-14"


@pytest.fixture
def prices():
    rows = pd.MultiIndex.from_product([sessions(FIRST, LAST), ["A", "B", "C", "D"]], names=["session", "symbol"]).to_frame(index=False)
    return rows.assign(open=10., high=11., low=9., close=10., volume=100.)


@pytest.fixture
def server(prices, monkeypatch):
    monkeypatch.setenv("POLYGON_API_KEY", polygon.KEY)
    monkeypatch.setattr("tradenb.data.wire.sleep", lambda seconds: None)
    with Replay(polygon.routes(prices)) as r: yield r


def names(store): return store.as_of("bars", LAST).index.unique("symbol").tolist()


def test_a_line_that_breaks_keeps_what_came(server, prices, tmp_path):
    store = Store(tmp_path/"store")
    server.fault("drop connection", None, where="/C/")
    with pytest.raises(ValueError, match="polygon, bars of C, 2010-05-03 to 2010-05-14: no connection .*check the connection"):
        store.update("polygon", ["A", "B", "C", "D"], FIRST, LAST, base=server.url)
    assert names(store)[:2] == ["A", "B"]
    asked = len(server.requests)
    server.faults.clear()
    store.update("polygon", ["A", "B", "C", "D"], FIRST, LAST, base=server.url)
    assert names(store) == ["A", "B", "C", "D"] and len(store.as_of("bars", LAST)) == len(prices)
    again = [r for r in server.requests[asked:] if "/A/" in r.path or "/B/" in r.path]
    assert not again


def test_ctrl_c_keeps_what_came(server, tmp_path, monkeypatch):
    store, real = Store(tmp_path/"store"), providers.parts
    def parts(*args, **kwargs):
        for i, part in enumerate(real(*args, **kwargs)):
            if i == 2: raise KeyboardInterrupt
            yield part
    monkeypatch.setattr("tradenb.data.update.parts", parts)
    with pytest.raises(KeyboardInterrupt): store.update("polygon", ["A", "B", "C", "D"], FIRST, LAST, base=server.url)
    assert names(store) == ["A", "B"]


class Evening:
    "A vendor of our own that publishes late"
    def __init__(self): self.asked, self.upto, self.gone = [], None, ()
    def __call__(self, symbols, start, end, kind, wire):
        self.asked.append((tuple(symbols), start, end))
        for name in symbols:
            days = sessions(start, min(end, pd.Timestamp(self.upto)))
            if name in self.gone: days = days[:0]
            yield [name], pd.DataFrame({"session": days, "symbol": name, "open": 1., "high": 1., "low": 1., "close": 1., "volume": 1.,
                                        "value": 1.})


@pytest.fixture
def late(monkeypatch):
    of = Evening()
    vendor = Vendor("late", "http://127.0.0.1:9")
    def read(symbols, start, end, kind, wire): yield from of(symbols, start, end, kind, wire)
    monkeypatch.setitem(providers.SOURCES, "late", providers.Source(read, ("bars", "macro"), vendor))
    return of


EVENING = pd.Timestamp("2010-05-14 20:30Z")


def test_an_unpublished_evening_is_asked_again_and_a_published_one_is_not(late, tmp_path):
    store = Store(tmp_path/"store")
    late.upto = "2010-05-13"
    store.update("late", ["A", "B"], FIRST, fetched_at=EVENING)
    late.upto = LAST
    store.update("late", ["A", "B"], FIRST, fetched_at=EVENING + pd.Timedelta("1h"))
    assert late.asked[1][1:] == (pd.Timestamp(LAST), pd.Timestamp(LAST))
    store.update("late", ["A", "B"], FIRST, fetched_at=EVENING + pd.Timedelta("2h"))
    assert len(late.asked) == 2 and store.as_of("bars", LAST).index.unique("session")[-1] == pd.Timestamp(LAST)


def test_a_name_that_did_not_trade_is_not_asked_for_ever(late, tmp_path):
    store = Store(tmp_path/"store")
    late.upto = "2010-05-13"
    store.update("late", ["A", "B"], FIRST, "2010-05-13", fetched_at=EVENING)
    late.upto, late.gone = LAST, ("B",)
    for _ in range(3): store.update("late", ["A", "B"], FIRST, fetched_at=EVENING)
    assert len(late.asked) == 2


def test_a_name_without_any_row_is_an_error_each_time(late, tmp_path):
    store = Store(tmp_path/"store")
    late.upto, late.gone = LAST, ("NONE",)
    for _ in range(2):
        with pytest.raises(ValueError, match="NONE: late has nothing of it from 2010-05-03 to 2010-05-14; check"):
            store.update("late", ["A", "NONE"], FIRST, fetched_at=EVENING)
    assert names(store) == ["A"] and late.asked[-1][0] == ("NONE",)


def test_macro_looks_back_when_a_new_session_closed(late, tmp_path):
    store = Store(tmp_path/"store")
    late.upto = LAST
    for _ in range(2): store.update("late", ["A"], FIRST, kind="macro", fetched_at=EVENING)
    assert len(late.asked) == 1
    store.update("late", ["A"], FIRST, kind="macro", fetched_at=EVENING + pd.Timedelta(days=3))
    assert len(late.asked) == 2 and late.asked[1][1] == pd.Timestamp("2010-05-15") - pd.Timedelta(days=400)


def test_the_way_to_a_vendor_is_no_part_of_what_was_asked(server, tmp_path):
    store = Store(tmp_path/"store")
    store.update("polygon", ["A"], FIRST, LAST, base=server.url)
    asked = len(server.requests)
    store.update("polygon", ["A"], FIRST, LAST, base=server.url, tries=2, timeout=5.)
    assert len(server.requests) == asked


days = st.integers(0, 40).map(lambda n: date.fromordinal(733_000 + n))
spans = st.tuples(days, days).map(lambda s: (min(s), max(s)))


@settings(max_examples=300, deadline=None)
@given(spans, st.lists(spans, max_size=6))
def test_what_is_left_is_what_is_wanted_without_what_is_covered(want, covered):
    def of(spans): return {d for a, b in spans for d in range(a.toordinal(), b.toordinal() + 1)}
    left = _left(want, covered)
    assert of(left) == of([want]) - of(covered)
    assert all(a <= b for a, b in left) and left == sorted(left)
    joined = []
    for span in covered: joined = _joined(joined, span)
    told = [(date.fromisoformat(a), date.fromisoformat(b)) for a, b in joined]
    assert of(told) == of(covered)
    assert all(b.toordinal() + 1 < c.toordinal() for (_, b), (c, _) in zip(told, told[1:], strict=False))
    asked = [d for span in _gaps({"A": joined}, ["A"], want) for d in sessions(*map(pd.Timestamp, span))]
    assert asked == [d for d in sessions(*map(pd.Timestamp, want)) if d.date().toordinal() in of(left)]
