"""Every bad day of a vendor, for every vendor: what comes out is the right data or one clear error, nothing half-written stays, and the
key is in no message, no log line, no raw reply and no table."""
import importlib
import io
import json
import logging
import re
import socket
import traceback
import warnings
from urllib.parse import quote, quote_plus

import numpy as np
import pandas as pd
import pytest

from tests.vendors.tape import table
from tradenb.core import log
from tradenb.data import series, wire
from tradenb.data.providers import ROOMS, fetch, found
from tradenb.data.replay import Replay
from tradenb.data.store import Store

DIALECT = {"yfinance": "yahoo", "fred": "series", "cboe": "series"}
TAPE = table(3, 8)
DAYS = pd.DatetimeIndex(sorted(TAPE.session.unique()))
RATES = pd.DataFrame({"session": DAYS.repeat(2), "symbol": ["DGS10", "DFF"] * len(DAYS), "value": np.round(np.linspace(.5, 4.25, 2 * len(DAYS)), 2),
                      "known_at": DAYS.repeat(2) + pd.Timedelta(days=1)})
INDEX = RATES.assign(symbol=["VIX", "SKEW"] * len(DAYS), value=RATES.value + 20)
WHAT = {"fred": ("macro", RATES), "cboe": ("macro", INDEX)}
SOURCES = sorted(ROOMS)
CLOSED, TODAY = pd.Timestamp("2020-12-01 22:00", tz="UTC"), pd.Timestamp("2020-12-01")


def asked(source):
    kind, frame = WHAT.get(source, ("bars", TAPE))
    return sorted(frame.symbol.unique()), DAYS[0], DAYS[-1], kind


def routes(source):
    dialect = importlib.import_module(f"tests.vendors.{DIALECT.get(source, source)}")
    if source == "fred": return dialect.routes(RATES)
    if source == "cboe": return dialect.cboe(INDEX)
    told = TAPE[["session", "symbol", "split", "dividend"]]
    return dialect.routes(TAPE, told[(told.split != 1) | (told.dividend != 0)], **({"page": 5} if source == "polygon" else {}))


def keys(source):
    dialect = importlib.import_module(f"tests.vendors.{DIALECT.get(source, source)}")
    told = getattr(dialect, "KEYS", None)
    return {name: told[name] if told else dialect.KEY for name in found(source).vendor.keys}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, caplog):
    "All keys, no .env of the house, no pauses, and every line of every logger"
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wire, "sleep", lambda seconds: None)
    monkeypatch.setattr(series, "_PAGE", 5)
    for source in SOURCES:
        for name, key in keys(source).items(): monkeypatch.setenv(name, key)
    log.configure(file=tmp_path/"run.log", level="DEBUG", stream=io.StringIO())
    yield
    log.configure(level="WARNING")


class Run:
    "One run from a vendor's server into a store, and everything that was said meanwhile"
    def __init__(self, source, server, folder, caplog, **how):
        self.source, self.store, self.folder, self.caplog = source, Store(folder/"store"), folder, caplog
        how = {"base": server.url, "max_mb": 1, "tries": 3, "timeout": 5} | how
        names, first, last, self.kind = asked(source)
        self.frame, self.error = None, None
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="tradenb")
            try: self.frame = fetch(source, names, first, last, self.kind, fetched_at=CLOSED, keep=self.store.raw.keep, **how)
            except ValueError as e: self.error = e
        if self.frame is not None and len(self.frame): self.store.append(self.kind, self.frame)

    def chain(self):
        e = self.error
        while e is not None:
            yield e
            e = e.__cause__ or e.__context__

    def said(self):
        "Everything that a person or a program may read afterwards"
        yield "error", "".join(traceback.format_exception(self.error)) if self.error else ""
        for e in self.chain(): yield "error", f"{e!r} {e.args} {vars(e)}"
        yield "log", self.caplog.text + "".join(p.read_text() for p in (self.folder, self.folder.parent) for p in p.glob("run.log"))
        raw = self.store.raw
        yield "raw", "".join(raw.log().astype(str).agg(" ".join, axis=1))
        for d in set(raw.log().digest): yield "raw", raw.get(d).decode(errors="replace")
        if self.frame is not None and len(self.frame): yield "curated", self.store.as_of(self.kind, TODAY).to_csv()
        for p in (self.folder/"store").rglob("*"):
            if p.is_file(): yield f"file {p.name}", p.read_bytes().decode("latin-1")

    def search(self):
        forms = {f for key in keys(self.source).values() for f in (key, quote(key), quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1], key[:-3])}
        for where, text in self.said() if forms else ():
            for form in forms: assert form not in text, (self.source, where)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    "What each source says on a good day"
    kept = {}
    def of(source, caplog):
        if source not in kept:
            with Replay(routes(source)) as server: run = Run(source, server, tmp_path_factory.mktemp(source), caplog)
            assert run.error is None, run.error
            kept[source] = run.frame, len(server.requests)
        return kept[source]
    return of


def check(run, good):
    "Right data or one clear error"
    if run.error is None: pd.testing.assert_frame_equal(run.frame, good)
    else:
        said = str(run.error)
        assert run.source in said and "; " in said and "\n" not in said and len(said) < 1500, said
        assert not re.search(r"Traceback|object at 0x|KeyError|TypeError|AttributeError", said), said
        assert not (run.folder/"store"/"bars").exists() and not (run.folder/"store"/"macro").exists()
    run.search()


# --- a good day --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", SOURCES)
def test_a_good_day(source, good, tmp_path, caplog):
    frame, calls = good(source, caplog)
    kind, told = WHAT.get(source, ("bars", TAPE))
    column = "value" if kind == "macro" else "close"
    both = told.merge(frame, on=["session", "symbol"], suffixes=("", "_got"))
    assert len(frame) == len(told) == len(both)
    assert np.allclose(both[column], both[f"{column}_got"], rtol=1e-5)
    assert (frame.vendor == source).all() and (frame.fetched_at == CLOSED).all()
    with Replay(routes(source)) as server: run = Run(source, server, tmp_path, caplog)
    check(run, frame)
    assert len(run.store.raw.log()) == calls


# --- faults of a reply -------------------------------------------------------------------------------------------------------------
FAULTS = ["429", "429 retry-after", "500", "reset half-way", "drop connection", "truncated", "html", "expired key", "huge", "gzip bomb",
          "wrong types", "duplicate page", "slow drip"]
PASSES = ["429 retry-after", "500", "reset half-way", "truncated", "html"]


@pytest.mark.parametrize("fault", PASSES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_fault_that_passes(source, fault, good, tmp_path, caplog):
    frame, calls = good(source, caplog)
    with Replay(routes(source)) as server:
        server.fault(fault, times=2)
        run = Run(source, server, tmp_path, caplog)
    if (source, fault) == ("cboe", "truncated"): # half a text is a text; the room can tell, and the wire cannot ask again
        check(run, frame)
        return
    assert run.error is None, run.error
    check(run, frame)
    assert len(server.requests) == calls + 2 and len(run.store.raw.log()) == calls


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_fault_that_stays(source, fault, good, tmp_path, caplog):
    frame, calls = good(source, caplog)
    slow = fault == "slow drip"
    with Replay(routes(source)) as server:
        server.fault(fault, times=None)
        run = Run(source, server, tmp_path, caplog, tries=1 if slow else 2, timeout=.1 if slow else 5)
    if fault != "duplicate page": assert run.error is not None
    if fault == "expired key" and keys(source): assert all(name in str(run.error) for name in keys(source))
    check(run, frame)
    judged_by_the_room = fault in ("duplicate page", "wrong types") or (source, fault) == ("cboe", "truncated")
    if not judged_by_the_room: assert not len(run.store.raw.log()), "a bad reply was kept"
    assert len(server.requests) <= 2 * calls + 2


@pytest.mark.parametrize("nth", [2, 3])
@pytest.mark.parametrize("fault", ["duplicate page", "wrong types", "expired key", "huge"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_fault_in_the_middle(source, fault, nth, good, tmp_path, caplog):
    "The replies before it were good; the table that comes out is whole all the same, or there is none"
    frame, calls = good(source, caplog)
    if calls < nth: pytest.skip(f"{source} needs {calls} calls for this")
    with Replay(routes(source)) as server:
        answer, seen = server.answer, []
        def late(handler, request):
            seen.append(request)
            if len(seen) == nth: server.fault(fault)
            return answer(handler, request)
        server.answer = late
        run = Run(source, server, tmp_path, caplog)
    check(run, frame)


@pytest.mark.parametrize("value", ["", None, {}, [1], True], ids=repr)
@pytest.mark.parametrize("source", SOURCES)
def test_wrong_types_of_every_kind(source, value, good, tmp_path, caplog):
    frame, _ = good(source, caplog)
    with Replay(routes(source)) as server:
        server.fault("wrong types", None, value=value)
        run = Run(source, server, tmp_path, caplog, tries=1)
    assert run.error is not None
    check(run, frame)


@pytest.mark.parametrize("source", SOURCES)
def test_a_reply_cut_at_any_of_its_last_bytes(source, good, tmp_path, caplog):
    frame, _ = good(source, caplog)
    for back in (1, 2, 10):
        with Replay(routes(source)) as server:
            server.fault("truncated", None, at=-back)
            check(Run(source, server, tmp_path/str(back), caplog, tries=1), frame)


SHAPES = [{}, [], [{}], [1, 2], {"results": None}, {"bars": []}, {"chart": 7}, {"observations": [{}], "count": 1}, {"Time Series (Daily)": []}]


@pytest.mark.parametrize("source", SOURCES)
def test_a_reply_of_another_shape(source, good, tmp_path, caplog):
    "Good JSON that is not what was asked: an error, or, where it does mean 'nothing', no rows; never other rows"
    frame, _ = good(source, caplog)
    for n, shape in enumerate(SHAPES):
        with Replay({".*": lambda _, shape=shape: (200, {}, shape)}) as server:
            run = Run(source, server, tmp_path/str(n), caplog, tries=1)
        if run.error is None and len(run.frame) == 0: run.search()
        else: check(run, frame)


# --- faults of the way -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", SOURCES)
def test_a_name_that_does_not_resolve(source, good, tmp_path, caplog, monkeypatch):
    frame, _ = good(source, caplog)                          # asked before names stop resolving: a worker may see this test first
    def fails(*_, **__): raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    class Nowhere: url = "https://nowhere.invalid"
    run = Run(source, Nowhere, tmp_path, caplog, rate=(10_000, 1.))
    assert "nowhere.invalid cannot be resolved, 3 times" in str(run.error)
    check(run, frame)


@pytest.mark.parametrize("fault", ["foreign next_url", "redirect elsewhere"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_key_follows_nobody(source, fault, good, tmp_path, caplog):
    frame, _ = good(source, caplog)
    with Replay(routes(source)) as server, Replay({".*": lambda _: (200, {}, {})}) as elsewhere:
        server.fault(fault, None, url=elsewhere.url + "/next")
        run = Run(source, server, tmp_path, caplog)
    assert not elsewhere.requests
    if fault == "redirect elsewhere": assert run.error is not None
    check(run, frame)


@pytest.mark.parametrize("source", SOURCES)
def test_a_vendor_that_repeats_the_key(source, good, tmp_path, caplog):
    "In a refusal, and then in each good reply"
    frame, _ = good(source, caplog)
    if not keys(source): pytest.skip(f"{source} has no key")
    key = next(iter(keys(source).values()))
    with Replay(routes(source)) as server:
        server.fault("expired key", None, body={"error": f"The key {key} has expired", "message": f"The key {key} has expired"})
        run = Run(source, server, tmp_path, caplog)
    assert run.error is not None and next(iter(keys(source))) in str(run.error), run.error
    check(run, frame)
    with Replay(routes(source)) as server:
        server.fault("foreign next_url", None, field="you_are", url=key)
        run = Run(source, server, tmp_path, caplog)
    check(run, frame)


@pytest.mark.parametrize("source", SOURCES)
def test_a_key_that_is_missing_or_wrong(source, good, tmp_path, caplog, monkeypatch):
    if not keys(source): pytest.skip(f"{source} has no key")
    frame, names = good(source, caplog)[0], list(keys(source))
    for value in ("", "wr0ng/" + "k+y" * 9):
        for name in names: monkeypatch.setenv(name, value)
        with Replay(routes(source)) as server: run = Run(source, server, tmp_path, caplog)
        assert run.error is not None and names[0] in str(run.error) and not (value and value in "".join(t for _, t in run.said()))
        assert value or not server.requests
        check(run, frame)


# --- from a fault to the whole -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", SOURCES)
def test_an_update_that_broke_off_is_finished_by_the_next(source, good, tmp_path, caplog):
    "The line goes dead at each call in turn; what was stored stays, the next run brings the rest, the one after asks nothing"
    frame, calls = good(source, caplog)
    names, first, last, kind = asked(source)
    for at in {2, calls}:
        store = Store(tmp_path/f"store{at}")
        how = dict(kind=kind, fetched_at=CLOSED, tries=1, timeout=5)
        with Replay(routes(source)) as server:
            answer = server.answer
            def cut(handler, request, answer=answer, server=server, at=at):
                if len(server.requests) == at - 1: server.fault("drop connection", None)
                return answer(handler, request)
            server.answer = cut
            try: store.update(source, names, first, last, base=server.url, **how)
            except ValueError as e: assert source in str(e)
        with Replay(routes(source)) as server:
            store.update(source, names, first, last, base=server.url, **how)
            done = store.as_of(kind, TODAY)
            asked_again = len(server.requests)
            assert store.update(source, names, first, last, base=server.url, **how) == 0 and len(server.requests) == asked_again
        column = "value" if kind == "macro" else "close"
        done = done.reset_index()[["session", "symbol", column]].sort_values(["session", "symbol"], ignore_index=True)
        done = done[done.session.between(first, last)]
        want = frame[["session", "symbol", column]]
        assert len(done) == len(want) and np.allclose(done[column], want[column])
