"What cannot be a lesson of data.yahoo: any span back to the tape, nobody else asked, nothing written at home"
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data import wire as way
from tradenb.data.providers import fetch
from tradenb.data.replay import Replay

from .vendors import tape, yahoo

BARS = tape.table(6, 40)
DAYS = BARS.session.unique()
NIGHT = pd.Timestamp(DAYS[-1]).tz_localize("UTC") + pd.Timedelta("22h")


@pytest.fixture(autouse=True)
def _still(monkeypatch): monkeypatch.setattr(way, "sleep", lambda s: None)


@pytest.fixture(scope="module")
def vendor():
    with Replay(yahoo.routes(BARS)) as replay: yield replay


def ask(vendor, names, first, last, at=NIGHT, **more): return fetch("yfinance", names, first, last, base=vendor.url, fetched_at=at, **more)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 39), st.integers(0, 39), st.sampled_from(sorted(BARS.symbol.unique())))
def test_any_span_of_any_name_is_the_tape(vendor, a, b, name):
    first, last = sorted([DAYS[a], DAYS[b]])
    tape.same(ask(vendor, [name], first, last), BARS[BARS.symbol == name], first, last)


def test_a_later_split_does_not_change_what_a_fetch_says():
    "Asked before and after a split of 10 for 1, the same Friday has the same print"
    bars = BARS[BARS.symbol == "S000"].assign(split=1., dividend=0.)
    later = pd.DataFrame({"session": [DAYS[-1]], "symbol": "S000", "split": 10., "dividend": 0.})
    with Replay(yahoo.routes(bars, later.iloc[:0])) as before: old = ask(before, "S000", DAYS[0], DAYS[-2])
    with Replay(yahoo.routes(bars, later)) as after: new = ask(after, "S000", DAYS[0], DAYS[-2])
    pd.testing.assert_frame_equal(old[tape.COLUMNS], new[tape.COLUMNS], check_exact=True)


def test_the_quote_list_is_the_evening_and_only_the_evening(vendor):
    vendor.requests.clear()
    names = sorted(BARS.symbol.unique())
    tape.same(ask(vendor, names, DAYS[-1], DAYS[-1], bulk=True), BARS, DAYS[-1], DAYS[-1], tape.COLUMNS)
    assert len(vendor.requests) == 2
    with pytest.raises(ValueError, match="is for one session"): ask(vendor, names, DAYS[0], DAYS[-1], bulk=True)
    with pytest.raises(ValueError, match="no quote is of"): ask(vendor, names, DAYS[-2], DAYS[-2], bulk=True)


def test_a_missing_volume_stays_missing(vendor):
    def holed(request):
        reply = vendor.routes["/v8/finance/chart/.*"](request)
        reply["chart"]["result"][0]["indicators"]["quote"][0]["volume"][3] = None
        return reply
    with Replay({"/v8/finance/chart/.*": holed}) as broken: found = ask(broken, "S001", DAYS[0], DAYS[-1])
    assert np.flatnonzero(found.volume.isna()).tolist() == [3]


SCRIPT = """
import socket, sys, pandas as pd
from tests.vendors import tape, yahoo
from tradenb.data.providers import fetch
from tradenb.data.replay import Replay
asked = []
find = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: (asked.append(host), find(host, *a, **k))[1]
bars = tape.table(1, 8)
with Replay(yahoo.routes(bars)) as vendor:
    found = fetch("yfinance", ["S000"], bars.session.min(), bars.session.max(), base=vendor.url)
    many = fetch("yfinance", ["S000"], bars.session.max(), bars.session.max(), base=vendor.url, bulk=True,
                 fetched_at=bars.session.max().tz_localize("UTC") + pd.Timedelta("22h"))
import yfinance
from yfinance.data import YfData
print(len(found), len(many), sorted(set(asked)), YfData._instances, yfinance.config.debug.hide_exceptions)
"""


def test_nobody_else_is_asked_and_nothing_is_written_at_home(tmp_path, root):
    "In a process of its own, with a home of its own: no cookie, no cache, no shared session, no changed switch"
    env = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path/"cache"), "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    told = subprocess.run([sys.executable, "-c", SCRIPT], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["8", "1", "['127.0.0.1']", "{}", "True"], told.stderr
    assert not [p for p in tmp_path.rglob("*") if "yfinance" in str(p)]
    assert not list(tmp_path.iterdir())
