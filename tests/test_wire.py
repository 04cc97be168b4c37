"""The way to a vendor, its raw replies, and the vendor on one's own machine: what a lesson cannot show. Nothing here sleeps, and nothing
leaves 127.0.0.1."""
import gzip
import json
import logging
import multiprocessing
import os
import pickle
import socket
import subprocess
import threading
import time
import traceback
from collections import Counter
from urllib.parse import quote_plus

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tradenb.core import log
from tradenb.data import bounds, turns, vendor, wire
from tradenb.data.raw import Raw, digest
from tradenb.data.replay import Replay, faults
from tradenb.data.vendor import Vendor, VendorError
from tradenb.data.wire import Wire

KEY = "pl4nted+key/0f=the~demo"
DEMO = Vendor("demo", "https://api.demo.example", keys=("DEMO_API_KEY",), rate=(5, 60.))
BARS = {"rows": [{"day": "2024-01-02", "close": 472.65}, {"day": "2024-01-03", "close": 468.79}]}
GOOD = {"/bars": BARS, "/csv": "day,close\n2024-01-02,472.65\n"}
NEVER = [f for f in faults() if f not in ("slow drip", "slow headers")]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "A key, no .env of the house, and a clock that only counts"
    monkeypatch.setenv("DEMO_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    slept = []
    monkeypatch.setattr(wire, "sleep", slept.append)
    return slept


def chain(e):
    "An error and everything it carries on its back"
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def told(e): return "".join(traceback.format_exception(e)) + "".join(repr(x) + str(x.args) + str(vars(x)) for x in chain(e))


def ask(r, path="/bars", kept=None, **how):
    keep = None if kept is None else lambda body, about: kept.append((body, about))
    with Wire(DEMO, r.url, keep, **{"timeout": 5, "max_mb": 1} | how) as w, w.asking("SPY 2024-01-02"):
        return w.get_json(path, dict(apikey=w.key()), {"Authorization": f"Bearer {w.key()}"})


# --- every fault ends well ----------------------------------------------------------------------------------------------------------
ENDS = {"429": "limit", "429 retry-after": "limit", "500": "network", "expired key": "key", "html": "malformed", "empty": "malformed",
        "slow drip": "slow", "slow headers": "slow", "reset half-way": "network", "drop connection": "network", "truncated": "malformed",
        "huge": "too large", "gzip bomb": "too large", "redirect elsewhere": "host"}


@pytest.mark.parametrize("fault", list(ENDS))
def test_a_fault_that_stays_is_one_clear_error(fault, caplog, alone):
    caplog.set_level(logging.DEBUG)
    kept = []
    with Replay(GOOD) as r:
        r.fault(fault, times=None)
        with pytest.raises(VendorError) as e: ask(r, kept=kept, tries=2, timeout=.15 if fault.startswith("slow") else 5)
    assert e.value.what == ENDS[fault]
    assert str(e.value).startswith("demo, SPY 2024-01-02: ") and "; " in str(e.value)
    assert e.value.__cause__ is None and e.value.__context__ is None
    assert not kept
    assert len(r.requests) == (2 if ENDS[fault] in wire.AGAIN else 1)
    for form in (KEY, quote_plus(KEY), KEY[:12]): assert form not in told(e.value) + caplog.text


@pytest.mark.parametrize("fault", [f for f in ENDS if ENDS[f] in wire.AGAIN])
def test_a_fault_that_passes_leaves_good_data(fault, alone):
    kept = []
    with Replay(GOOD) as r:
        r.fault(fault, times=2)
        assert ask(r, kept=kept, timeout=.15 if fault.startswith("slow") else 5) == BARS
        assert len(r.requests) == 3 and len(alone) == 2 and len(kept) == 1
    assert json.loads(kept[0][0]) == BARS


@pytest.mark.parametrize("fault", ["wrong types", "duplicate page", "foreign next_url"])
def test_what_only_a_room_can_judge_passes_here(fault):
    with Replay(GOOD) as r: assert isinstance(ask(r.fault(fault)), dict)


def test_a_gigabyte_is_not_read(alone, monkeypatch):
    "Unannounced, it is refused after what is allowed; announced, it is not read at all"
    with Replay(GOOD) as r:
        with pytest.raises(VendorError, match="max_mb=1 MB; ask for a shorter span"): ask(r.fault("huge"))
        monkeypatch.setattr(bounds, "_pieces", None)
        with pytest.raises(VendorError, match="max_mb=1 MB; ask for a shorter span"): ask(r.fault("huge", told=True))


def test_a_name_that_does_not_resolve(monkeypatch, alone):
    def fails(*_, **__): raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with Wire(DEMO, "https://nowhere.invalid", rate=(99, 1.)) as w, pytest.raises(VendorError) as e:
        w.get_json("/bars", dict(apikey=w.key()))
    assert e.value.what == "network" and "nowhere.invalid cannot be resolved, 5 times" in str(e.value)
    assert w.calls == 5 and KEY not in told(e.value)
    assert [0 <= s <= top for s, top in zip(alone, (1, 2, 4, 8), strict=True)]


def test_nobody_listens(alone):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    with Wire(DEMO, f"http://127.0.0.1:{port}", tries=2) as w, pytest.raises(VendorError, match="no connection to 127.0.0.1"): w.get_json("/")


# --- pauses ------------------------------------------------------------------------------------------------------------------------
def test_retry_after_is_obeyed_and_has_a_ceiling(alone):
    with Replay(GOOD) as r:
        ask(r.fault("429 retry-after", headers={"Retry-After": 100}))
        assert alone == [100]
        with pytest.raises(VendorError, match="are to wait 3600 s, more than wait=120"):
            ask(r.fault("429 retry-after", headers={"Retry-After": 3600}))
        assert alone == [100] and len(r.requests) == 3


def test_retry_after_as_a_date(alone):
    from email.utils import formatdate
    with Replay(GOOD) as r: ask(r.fault("429", headers={"Retry-After": formatdate(time.time() + 50, usegmt=True)}))
    assert 45 < alone[0] <= 51


@given(st.one_of(st.text(max_size=30), st.floats().map(str), st.integers().map(str)))
@example("nan")
@example("inf")
def test_no_header_breaks_the_pause(said):
    seconds = vendor.pause({"Retry-After": said}, "limit", 1.7e9)
    assert seconds is None or seconds >= 0


def test_pauses_grow_with_full_jitter(alone):
    "Drawn between nothing and a bound that doubles: the bounds are met, and not always nearly"
    for _ in range(40):
        with Wire(DEMO, "http://127.0.0.1:9", tries=4) as w, pytest.raises(VendorError): w.get_json("/")
    first, second, third = alone[::3], alone[1::3], alone[2::3]
    assert max(first) <= 1 and max(second) <= 2 and max(third) <= 4
    assert max(first) > .5 and max(second) > 1 and max(third) > 2 and min(third) < 2 and min(first) < .5


# --- turns -------------------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 6), st.floats(.1, 100), st.lists(st.floats(0, 30), min_size=1, max_size=40))
def test_no_window_holds_more_calls_than_allowed(calls, seconds, gaps):
    limit, now, went = turns.Limit(calls, seconds), 1000., []
    for gap in gaps:
        now += gap
        went.append(now + limit.book(now))
    assert went == sorted(went)
    for a, b in zip(went, went[calls:], strict=False): assert b - a >= seconds


def _books(path):
    limit = turns.Limit(3, 1000., path)
    return [limit.book(1000.) for _ in range(6)]


def test_processes_share_their_turns(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool: out = sum(pool.map(_books, [tmp_path/"t.json"] * 2, 1), [])
    assert Counter(round(p / 1000.25) for p in out) == Counter({0: 3, 1: 3, 2: 3, 3: 3})


def test_threads_share_their_turns(monkeypatch):
    booked = turns._booked
    monkeypatch.setattr(turns, "_booked", lambda *of: (booked(*of), time.sleep(0))[0]) # let another thread in between
    limit, out = turns.Limit(3, 10.), []
    jobs = [threading.Thread(target=lambda: out.extend(limit.book(1000.) for _ in range(45))) for _ in range(4)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert Counter(round(p / 10.25) for p in out) == Counter({n: 3 for n in range(60)})


def test_two_wires_to_one_vendor_share_their_turns_and_a_plan_raises_them(alone, tmp_path):
    with Replay(GOOD) as r:
        for _ in range(6): ask(r, rate=(5, 60.))
        assert len(alone) == 1 and 55 < alone[0] <= 60.25
        for _ in range(6): ask(r, rate=(500, 60.))
        for _ in range(6): ask(r)
        assert len(alone) == 1
        for _ in range(6): ask(r, rate=(5, 60.), folder=tmp_path)
        assert len(alone) == 2 and (tmp_path/"demo.turns.json").exists()


# --- closed hosts ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["http://localhost:{port}/bars", "http://127.0.0.1:{other}/bars", "https://127.0.0.1:{port}/bars",
                                 "http://127.0.0.1:{port}@localhost:{other}/bars", "http://user:word@127.0.0.1:{port}/bars",
                                 r"http://localhost:{other}\@127.0.0.1:{port}/bars", "http://127.0.0.1:{port}.elsewhere.example/",
                                 "file:///etc/passwd", "//localhost:{other}/bars", "http://127.0.0.1:99999999/bars", "ftp://127.0.0.1:{port}/"])
def test_an_address_elsewhere_is_never_asked(url):
    with Replay(GOOD) as r, Replay(GOOD) as elsewhere:
        port, other = (x.server.server_port for x in (r, elsewhere))
        with pytest.raises(VendorError) as e: ask(r, url.format(port=port, other=other))
        assert e.value.what in ("host", "malformed", "unknown")
        assert not elsewhere.requests
        assert all(q.path != "/bars" for q in r.requests)


def test_a_redirect_is_followed_at_home_and_nowhere_else():
    with Replay(GOOD) as r, Replay(GOOD) as elsewhere:
        assert ask(r.fault("redirect elsewhere", url="/bars")) == BARS
        assert "Bearer" in r.requests[1].headers["Authorization"]
        for to in (elsewhere.url + "/bars", "//localhost:1/x", "javascript:alert(1)", "http://[", elsewhere.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(VendorError): ask(r.fault("redirect elsewhere", None, url=to), tries=2)
            r.faults.clear()
        with pytest.raises(VendorError, match="in a circle"): ask(r.fault("redirect elsewhere", None, url="/bars"), tries=1)
        assert not elsewhere.requests


def test_a_host_of_the_vendor_may_be_asked():
    with Replay(GOOD) as r, Replay(GOOD) as second:
        both = Vendor("both", r.url, hosts=(second.url,))
        with Wire(both) as w: assert w.get_json(second.url + "/bars") == BARS and w.get_json(r.url + "/bars") == BARS


def test_the_base_is_a_setting(monkeypatch):
    with Replay(GOOD) as r:
        monkeypatch.setenv("TRADENB_DEMO_BASE", r.url + "/")
        with Wire(DEMO) as w: assert w.get_json("bars") == BARS
        with Wire(DEMO, "http://127.0.0.1:9") as w: assert w.base == "http://127.0.0.1:9"
    for bad in ("ftp://x", "api.demo.example", "https://user:w0rd@api.demo.example", "http://api.demo.example"):
        with pytest.raises(ValueError) as e: Wire(DEMO, bad)
        assert "w0rd" not in str(e.value)


def test_no_login_of_netrc_and_no_proxy_on_this_machine(monkeypatch, tmp_path):
    (tmp_path/"netrc").write_text("machine 127.0.0.1 login mallory password secret\n")
    for name, value in {"NETRC": tmp_path/"netrc", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, str(value))
    with Replay(GOOD) as r: assert ask(r) == BARS
    assert r.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_proxy_is_used_and_bounded(monkeypatch):
    "Beyond this machine the environment's proxy counts; its replies are under the same watch"
    slow = {"/bars": BARS}
    with Replay(slow) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"): monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"): monkeypatch.delenv(name, raising=False)
        keyless = Vendor("keyless", "http://keyless.invalid", rate=(99, 1.))
        proxy.routes = {"http://keyless.invalid/bars": BARS, "/bars": BARS}
        with Wire(keyless, timeout=5, tries=1) as w: assert w.get_json("/bars") == BARS
        proxy.fault("slow drip")
        with Wire(keyless, timeout=.1, tries=1) as w, pytest.raises(VendorError, match="longer than"): w.get_json("/bars")


# --- keys --------------------------------------------------------------------------------------------------------------------------
def test_a_missing_or_torn_key_says_where_it_belongs(monkeypatch, tmp_path):
    for value, says in {"": "is not set", "  ": "is not set", "two keys": "more than the key", "k\u00e9y": "more than the key"}.items():
        monkeypatch.setenv("DEMO_API_KEY", value)
        with pytest.raises(VendorError, match=says) as e: Wire(DEMO).key()
        assert e.value.what == "key" and "DEMO_API_KEY, in the environment or in .env" in str(e.value)
    monkeypatch.delenv("DEMO_API_KEY")
    (tmp_path/".env").write_text("DEMO_API_KEY='from${HOME}file'\nTRADENB_DEMO_BASE=https://proxy.example\n")
    assert Wire(DEMO).key() == "from${HOME}file" and Wire(DEMO).base == "https://proxy.example"
    assert "DEMO_API_KEY" not in os.environ


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=5, max_size=40), tail=st.text(max_size=500))
def test_no_form_of_a_key_is_ever_said(key, tail, monkeypatch):
    monkeypatch.setenv("DEMO_API_KEY", key)
    w = Wire(DEMO)
    assert w.key() == key
    for form in wire._forms(key):
        said = str(w.error("key", f"<{form}> {tail}")) + repr(w.error("key", tail + form)) + str(w.error("key", "x" * 390 + form))
        assert form not in said.replace("***", "\0") or form in "demo: ; put a valid into DEMO_API_KEY, in the environment or in .env" * 2
    wire._HIDDEN.secrets.clear()


def test_a_key_is_not_cut_off_in_the_middle():
    w = Wire(DEMO)
    for at in range(380, 400): assert w.key()[:8] not in str(w.error("key", "x " * (at // 2) + KEY))


def test_a_vendor_that_repeats_the_key(caplog):
    "In a refusal, and in a good reply: the reply is kept without it, and says so"
    kept = []
    with Replay({"/bars": lambda q: (200, {}, {"you": dict(q.headers), "asked": q.target})}) as r:
        with pytest.raises(VendorError, match="has no credit"): ask(r.fault("expired key", body={"error": f"your key {KEY} has no credit"}))
        ask(r, kept=kept)
    body, about = kept[0]
    assert KEY.encode() not in body and quote_plus(KEY).encode() not in body and about["blotted"] is True
    assert KEY not in json.dumps(about) and about["params"] == {} and about["asked"] == "SPY 2024-01-02"


def test_packages_below_do_not_log_the_key(caplog):
    caplog.set_level(logging.DEBUG)
    with Replay(GOOD) as r: ask(r)
    lines = [x.getMessage() for x in caplog.records if x.name == "urllib3.connectionpool"]
    assert any("/bars?apikey=***" in x for x in lines) and quote_plus(KEY) not in caplog.text


def test_neither_wire_nor_error_shows_the_key_when_printed(tmp_path):
    with Replay(GOOD) as r, Wire(DEMO, r.url) as w:
        w.key()
        assert KEY not in repr(w) + str(vars(w)) + str(w.headers)
        with pytest.raises(VendorError) as e: w.request("GET", "/bars", headers={"X-Key": f"{KEY}\nEvil: 1"})
        assert e.value.what == "malformed" and KEY not in told(e.value)
        copy = pickle.loads(pickle.dumps(e.value))   # noqa: S301 - our own, made a line above
        assert str(copy) == str(e.value) and copy.what == "malformed"


def test_the_log_of_a_run_holds_no_key(tmp_path):
    log.configure(file=tmp_path/"run.log", level="DEBUG", stream=open(os.devnull, "w"))
    try:
        with Replay(GOOD) as r, pytest.raises(VendorError): ask(r.fault("500", None, body={"error": f"broken for {KEY}"}), tries=3)
    finally: log.configure(level="WARNING")
    lines = [json.loads(x) for x in (tmp_path/"run.log").read_text().splitlines()]
    assert [x["event"] for x in lines] == ["asking again"] * 2 and lines[0]["asked"] == "SPY 2024-01-02"
    assert KEY not in (tmp_path/"run.log").read_text()


# --- replies -----------------------------------------------------------------------------------------------------------------------
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode),
                 st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)).map(lambda x: json.dumps(x).encode())))
def test_any_body_is_read_or_refused(body):
    said, wrong = vendor.parsed(body)
    assert (wrong is None) == isinstance(said, dict | list)
    text, wrong = vendor.parsed(body, text=True)
    assert (wrong is None) == isinstance(text, str)


def test_a_million_brackets_are_refused():
    assert vendor.parsed(b"[" * 1_000_000)[1] == "the reply is not whole JSON (1,000,000 bytes)"


@pytest.mark.parametrize("said", [None, [], [1], {"error": 7}, {"error": {"message": "no"}}, {"Note": None}])
@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 403, 404, 418, 429, 500, 503, 599, 999])
def test_a_judge_meets_every_shape(said, status):
    def judge(status, body):
        if "Note" in body: return "limit", body["Note"] + ""
        return ("key", body["error"]["message"]) if "error" in body else None
    told = vendor.verdict(Vendor("v", "https://v.example", judge=judge), status, said, None)
    assert told is None and status == 200 or told[0] in vendor.CURES


def test_text_is_text(alone):
    with Replay(GOOD) as r, Wire(DEMO, r.url, tries=1) as w:
        assert w.get_text("/csv") == GOOD["/csv"]
        with pytest.raises(VendorError, match="page of HTML"): w.get_text(r.fault("html").url + "/csv")
        with pytest.raises(VendorError, match="is not text"): w.get_text(r.fault("html", body=b"\xff\xfe\x00").url + "/csv")
        with pytest.raises(VendorError, match="not whole JSON"): w.get_json("/csv")
    csv = Vendor("csv", "https://csv.example", text=(r"\.csv$",))
    with Replay({"/a.csv": "day\n"}) as r, Wire(csv, r.url) as w: assert w.get("/a.csv").text == "day\n"


def test_a_text_without_an_end_is_not_believed(alone):
    "Header names in any case; and where neither length nor packing tells, half a text looks like a whole one"
    def server(listening, head):
        with listening.accept()[0] as s: s.recv(9999); s.sendall(head + b"\r\n\r\nday,close\n")
    for head, good in ((b"HTTP/1.1 200 OK\r\ncontent-length: 10", True), (b"HTTP/1.0 200 OK", False)):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            job = threading.Thread(target=server, args=(listening, head))
            job.start()
            with Wire(DEMO, f"http://127.0.0.1:{listening.getsockname()[1]}", tries=1) as w:
                if good: assert w.get_text("/csv") == "day,close\n"
                else:
                    with pytest.raises(VendorError, match="nothing says where the text ends"): w.get_text("/csv")
            job.join()


def test_a_packed_text_that_broke_off(alone):
    packed = gzip.compress(GOOD["/csv"].encode() * 99)
    with Replay({"/csv": lambda _: (200, {"Content-Encoding": "gzip"}, packed)}) as r, Wire(DEMO, r.url, tries=1) as w:
        assert w.get_text("/csv") == GOOD["/csv"] * 99
        with pytest.raises(VendorError, match="the reply broke off"): w.get_text(r.fault("truncated").url + "/csv")


def test_a_token_is_hidden_and_not_kept():
    kept = []
    with Replay(GOOD | {"/crumb": "cr/umb.0123"}) as r, Wire(DEMO, r.url, lambda *of: kept.append(of)) as w:
        assert w.get_text("/crumb", secret=True) == "cr/umb.0123" and not kept
        w.get_json("/bars", dict(crumb="cr/umb.0123", day=1))
        assert kept[0][1]["params"] == {"day": "1"} and "cr/umb" not in str(w.error("plan", "no cr/umb.0123"))


def test_packages_get_what_they_expect(alone):
    "A requests.Session for those who bring requests, a pool for those who bring urllib3; their own time-outs and redirects do not count"
    with Replay(GOOD) as r, Wire(DEMO, r.url, timeout=5, tries=2) as w:
        got = w.get(r.url + "/bars", params={"a": 1}, timeout=.000001, allow_redirects=True, verify=False)
        assert got.json() == BARS and got.ok and json.loads(got.text) == BARS and got.raise_for_status() is None
        got = w.pool.request("GET", r.url + "/bars", fields={"a": [1, 2]}, headers={"X": "y", "Accept-Encoding": "br"})
        assert got.status == 200 and json.loads(got.data.decode()) == BARS and got.headers["content-type"] == "application/json"
        assert {q.headers["Accept-Encoding"] for q in r.requests} == {"gzip"} # what else could not be unpacked within bounds
        assert r.requests[-1].headers["x"] == "y" and r.requests[-1].target == "/bars?a=1&a=2"
        r.fault("truncated", None)
        with pytest.raises(VendorError, match="not whole JSON"): w.pool.request("GET", r.url + "/bars")
        assert w.calls == 4


def test_connections_are_used_again():
    with Replay(GOOD) as r, Wire(DEMO, r.url) as w:
        for _ in range(20): w.get_json("/bars")
        with r.lock: assert len(r.open) == 1
        r.fault("html", 3)
        w.get_json("/bars")
        with r.lock: assert len(r.open) == 1


def test_many_threads_one_wire():
    with Replay({r"/\d+": lambda q: (200, {}, [q.path])}) as r, Wire(DEMO, r.url) as w:
        out = {}
        def run(n): out[n] = w.get_json(f"/{n}")
        jobs = [threading.Thread(target=run, args=(n,)) for n in range(16)]
        for j in jobs: j.start()
        for j in jobs: j.join()
    assert out == {n: [f"/{n}"] for n in range(16)}


def test_watches_end_with_their_replies():
    with Replay(GOOD) as r:
        for fault in (None, *NEVER):
            if fault: r.fault(fault, **({"mb": 3} if fault in ("huge", "gzip bomb") else {}))
            try: ask(r, tries=1)
            except VendorError: pass
    left = [t for t in threading.enumerate() if type(t).__name__ == "Watch" and not t.finished.is_set()]
    assert not left


def test_over_tls_too(tmp_path, alone, monkeypatch):
    "A drip through an encrypted connection is cut as well, and a certificate of nobody's is refused"
    import ssl
    how = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    made = subprocess.run(["openssl", *how.split(), "-keyout", tmp_path/"k.pem", "-out", tmp_path/"c.pem"], capture_output=True, check=False)
    if made.returncode: pytest.skip(f"openssl cannot make a certificate here: {made.stderr[-200:]!r}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path/"c.pem", tmp_path/"k.pem")
    with Replay(GOOD) as r:
        r.server.socket = context.wrap_socket(r.server.socket, server_side=True)
        base = r.url.replace("http://127.0.0.1", "https://localhost")
        with Wire(DEMO, base, tries=1) as w, pytest.raises(VendorError, match="SSL"): w.get_json("/bars")
        for timeout, faults in ((5, ()), (.2, ("slow drip", "slow headers"))):
            with Wire(DEMO, base, tries=1, timeout=timeout) as w:
                w.verify = str(tmp_path/"c.pem")
                if not faults: assert w.get_json("/bars") == BARS
                for fault in faults:
                    r.fault(fault)
                    with pytest.raises(VendorError, match="longer than timeout"): w.get_json("/bars")


# --- raw ---------------------------------------------------------------------------------------------------------------------------
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(bodies=st.lists(st.binary(max_size=300), max_size=8))
def test_what_is_kept_comes_back(bodies, tmp_path_factory):
    raw = Raw(tmp_path_factory.mktemp("raw"))
    told = [raw.keep(b, {"vendor": "v", "fetched_at": "2024-01-02T21:30:00+00:00", "n": i}) for i, b in enumerate(bodies)]
    assert [raw.get(d) for d in told] == bodies and told == [digest(b) for b in bodies]
    assert list(raw.log().digest) == told
    assert len(list(raw.folder.glob("*/*.zst"))) == len(set(bodies))


def test_a_shelf_with_nothing_on_it(tmp_path):
    raw = Raw(tmp_path/"raw")
    assert raw.log().empty and raw.find("polygon", "SPY", since="2024-01-01").empty and not (tmp_path/"raw").exists()
    (tmp_path/"file").write_text("")
    with pytest.raises(ValueError, match="folder of their own"): Raw(tmp_path/"file")
    with pytest.raises(KeyError): raw.get("../../etc/passwd")


def test_a_reply_under_another_ones_name_is_refused(tmp_path):
    raw = Raw(tmp_path)
    one, two = (raw.keep(body, {}) for body in (b"one", b"two"))
    raw.path(one).write_bytes(raw.path(two).read_bytes())
    with pytest.raises(ValueError, match="its content is not what was kept"): raw.get(one)
    assert raw.get(two) == b"two"


def test_a_damaged_line_is_named(tmp_path):
    raw = Raw(tmp_path)
    for n in range(3): raw.keep(b"%d" % n, {"n": n})
    whole = (tmp_path/"log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path/"log.jsonl").write_bytes(b"".join([whole[0], whole[1][:9] + b"\n", whole[2]]))
    with pytest.raises(ValueError, match="line 2 is damaged"): raw.log()


def _keeps(folder, name, start):
    raw, bulk = Raw(folder), np.random.default_rng(0).bytes(2_000_000)
    for n in range(start, 10**6): raw.keep(b"%d" % n + bulk, {"vendor": name, "n": n}) # as all the writers before


def test_killed_at_any_instant_with_two_writers(tmp_path):
    "Every line tells of a whole reply, however its writer ended; a torn line is gone with the next one"
    context, rng, seen = multiprocessing.get_context("fork"), np.random.default_rng(0), 0
    for instant in range(15):
        jobs = [context.Process(target=_keeps, args=(tmp_path, f"w{instant}{i}", 0)) for i in "ab"]
        for j in jobs: j.start()
        for j in jobs: time.sleep(rng.uniform(.01, .04)); j.kill(); j.join()
        if instant % 5 == 4:
            with open(tmp_path/"log.jsonl", "ab") as f: f.write(b'{"digest": "torn')
        raw = Raw(tmp_path)
        said = raw.log()
        for d in set(said.digest[seen:]): assert digest(raw.get(d)) == d
        assert len(said) >= seen and not list(tmp_path.glob("*/.*.tmp"))
        raw.keep(b"between", {"vendor": "me", "n": instant})
        seen = len(raw.log())
    for _, of in raw.log().groupby("vendor"): assert list(of.n) == list(range(len(of)))
    assert seen > 20


# --- the vendor on one's own machine -----------------------------------------------------------------------------------------------
def test_a_replay_ends_cleanly():
    before = set(threading.enumerate())
    with Replay(GOOD) as r:
        w = Wire(DEMO, r.url)
        w.get_json("/bars")                       # its connection stays open
        r.fault("slow drip", pause=.01)
        threading.Thread(target=lambda: pytest.raises(VendorError, w.get_json, "/bars"), daemon=True).start()
    for t in set(threading.enumerate()) - before: t.join(5)
    assert not [t for t in set(threading.enumerate()) - before if t.is_alive()]
    with pytest.raises(OSError): socket.create_connection(("127.0.0.1", r.server.server_port), .2)


def test_a_replay_says_what_it_does_not_know():
    with Replay({"/a": 1}) as r:
        with pytest.raises(ValueError, match="no fault 'earthquake'; there are 429,"): r.fault("earthquake")
        with Wire(DEMO, r.url, tries=1) as w:
            with pytest.raises(VendorError, match="no route /b; there are /a"): w.get_json("/b")
            r.routes["/c"] = lambda q: q.query["missing"]
            with pytest.raises(VendorError, match="route /c failed with KeyError"): w.get_json("/c")
