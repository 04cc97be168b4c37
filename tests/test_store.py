"The store under kills, rivals and corrections"
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.home import Home
from tradenb.data.store import Store, adjusted, decimal, evening, fingerprint

DAYS = sessions("2023-12-18", "2024-01-19")


def rows(day, names=("AA", "BB"), close=10.0):
    one = pd.DataFrame({"session": day, "symbol": list(names)})
    return one.assign(open=close, high=close, low=close, close=close, volume=1.0, vendor="test")


WRITER = """
import sys
import pandas as pd
from tradenb.core.calendar import sessions
from tradenb.data.store import Store
root, name, start = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store(root)
days = sessions("2022-06-01", "2024-12-31")
print("ready", flush=True)
for n in range(start, 300):
    # each append spans two years, so that half of one could be told from a whole one
    pair = pd.DataFrame({"session": [days[n], days[n + 300]], "symbol": name})
    store.append("bars", pair.assign(open=1., high=1., low=1., close=float(n), volume=1.), name)
    print(n, flush=True)
"""


@pytest.fixture
def quick():
    "For what has nothing to do with the disk: do not wait for it"
    with mock.patch("os.fsync"): yield


def writer(root, name, start=0):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(root), name, str(start)], stdout=subprocess.PIPE, text=True)


def whole(store, name):
    "How many appends stand, each with both of its rows"
    panel = store.as_of("bars", "2025-01-02", symbols=[name])
    closes = np.sort(panel["close"].to_numpy())
    assert np.array_equal(closes, np.repeat(np.arange(len(closes) // 2), 2)), "half of an append stands"
    return len(closes) // 2


def test_killed_at_random_instants_the_store_opens_whole(tmp_path):
    rng, done = random.Random(0), 0
    for _ in range(10):
        process = writer(tmp_path, "AA", done)
        assert process.stdout.readline() == "ready\n"
        said = [int(process.stdout.readline()) for _ in range(rng.randrange(3))]
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split()]
        process.wait()
        store = Store(tmp_path)
        if not (tmp_path / "manifest.json").exists(): continue
        stands = whole(store, "AA")
        assert stands >= (said[-1] + 1 if said else done), "an append that had returned is lost"
        assert stands <= (said[-1] + 2 if said else done + 1)
        done = stands
        on_disk = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("bars/*/*")}
        assert on_disk == {f["path"] for f in store.home.manifest()["files"]}, "leftovers are swept on opening"
        assert not list(tmp_path.rglob("*.tmp"))
    assert done >= 8, "the writers did write"


def test_two_writers_at_once_lose_nothing(tmp_path):
    both = [writer(tmp_path, name, 280) for name in ("AA", "BB")]
    said = [process.communicate(timeout=120)[0].split()[1:] for process in both]
    assert [len(s) for s in said] == [20, 20]
    panel = Store(tmp_path).as_of("bars", "2025-01-02")
    assert panel.groupby("symbol").size().to_dict() == {"AA": 40, "BB": 40}


def test_a_writer_that_waits_says_for_whom(tmp_path):
    store = Store(tmp_path, wait=0.05)
    store.append("bars", rows(DAYS[0]))
    with Home(tmp_path).writing():
        with pytest.raises(TimeoutError, match=f"process {os.getpid()}.*the lock goes with it"):
            store.append("bars", rows(DAYS[1]))
        assert len(store.as_of("bars", DAYS[1])) == 2  # readers do not wait
        Store(tmp_path)  # nor does opening


@pytest.mark.parametrize("at", range(1, 9))
def test_a_kill_at_each_step_of_an_append_leaves_all_or_nothing(tmp_path, monkeypatch, at):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    calls = itertools.count(1)

    def dies(real):
        def call(*args):
            if next(calls) == at: raise KeyboardInterrupt
            return real(*args)
        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies(os.replace))
        patched.setattr(os, "fsync", dies(os.fsync))
        news = pd.concat([rows(DAYS[1]), rows(DAYS[-1])])  # two files: two years
        try: store.append("bars", news)
        except KeyboardInterrupt: pass
    after = Store(tmp_path)
    assert len(after.as_of("bars", "2024-02-01")) in (2, 6)
    assert after.append("bars", news) in (0, 4)
    assert len(after.as_of("bars", "2024-02-01")) == 6
    assert not list(tmp_path.rglob("*.tmp"))


def test_strangers_files_are_left_alone(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    strangers = [tmp_path / "bars/2024/mine.parquet", tmp_path / "notes.tmp", tmp_path / "a/b/c.parquet"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    Store(tmp_path)
    assert all(path.read_text() == "mine" for path in strangers)


def test_many_appends_are_merged_and_keep_every_version(tmp_path, quick):
    store = Store(tmp_path)
    for k in range(70):
        store.append("bars", rows(DAYS[0], close=float(k)), fetched_at=pd.Timestamp(f"{sessions('2024-01-02', '2024-06-28')[k]:%Y-%m-%d} 22:00Z"))
    assert len(store.home.manifest()["files"]) < 32 and len(list(tmp_path.glob("bars/*/*"))) < 32
    assert store.sql("SELECT count(*) AS n FROM bars")["n"].item() == 140
    day = sessions("2024-01-02", "2024-06-28")
    assert [store.as_of("bars", day[k])["close"].iloc[0] for k in (1, 31, 32, 69)] == [1, 31, 32, 69]


# The simplest store there could be: a list, asked row by row. The real one must agree with it whatever happens in whatever order.
DEEDS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["AA", "BB"]), st.integers(1, 3), st.integers(0, 9), st.booleans()),
                 min_size=6, max_size=14)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=DEEDS, when=st.integers(0, 20))
def test_as_of_equals_a_list_asked_row_by_row(tmp_path_factory, quick, deeds, when):
    store, told = Store(tmp_path_factory.mktemp("store")), []
    for session, name, close, later, intraday in deeds:
        fetch_day = DAYS[min(session + later, 20)]
        fetched = pd.Timestamp(f"{fetch_day:%Y-%m-%d} {'16:00' if intraday else '22:00'}", tz="UTC")
        wrote = store.append("bars", rows(DAYS[session], [name], float(close)), fetched_at=fetched)
        versions = [v for v in told if v[:2] == (session, name)]
        known = max(session, DAYS.get_loc(fetch_day)) if versions else session
        said = [v for v in versions if v[2] <= known]
        said = max(enumerate(said), key=lambda v: (v[1][2], v[0]))[1][3] if said else None
        assert wrote == (said != close), "news is written, and nothing else"
        if said != close: told.append((session, name, known, close))
    force: dict = {}
    for session, name, _, close in sorted((t for t in told if t[2] <= when), key=lambda t: t[2]): force[session, name] = close
    if force: got = store.as_of("bars", DAYS[when])["close"]
    else:
        with pytest.raises(ValueError, match="was known as of"): store.as_of("bars", DAYS[when])
        return
    assert {(DAYS.get_loc(s), n): c for (s, n), c in got.items()} == force


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=DEEDS, when=st.integers(6, 10))
def test_later_corrections_never_change_what_was_known(tmp_path_factory, quick, deeds, when):
    store = Store(tmp_path_factory.mktemp("store"))
    store.append("bars", pd.concat([rows(d, ["AA", "BB"]) for d in DAYS[:6]]), fetched_at=pd.Timestamp(f"{DAYS[5]:%Y-%m-%d} 22:00Z"))
    before = fingerprint(store.as_of("bars", DAYS[when]))
    for session, name, close, later, intraday in deeds:
        fetched = pd.Timestamp(f"{DAYS[when + 1 + later % 8]:%Y-%m-%d} {'15:00' if intraday else '22:00'}", tz="UTC")
        store.append("bars", rows(DAYS[session], [name], float(close)), fetched_at=fetched)
    assert fingerprint(store.as_of("bars", DAYS[when])) == before


def test_columns_may_come_late_and_go_again(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[-1]))
    store.append("bars", rows(DAYS[-2]).assign(adj_close=9.0, sector="Energy"))
    assert store.append("bars", rows(DAYS[-2])) == 0, "a frame without adj_close does not contradict one"
    panel = store.as_of("bars", DAYS[-1])
    assert panel["adj_close"].isna().tolist() == [False, False, True, True]
    assert adjusted(panel)["close"].dropna().tolist() == [9.0, 9.0]
    assert panel.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(["open", "high", "low", "close", "volume", "adj_close"], "float64"), "sector": "str",
        "known_at": "datetime64[us]", "vendor": "str", "fetched_at": "datetime64[us, UTC]"}


def test_float32_becomes_the_decimal_people_see():
    cents = np.round(np.random.default_rng(0).uniform(0.01, 5000, 20_000), 2)
    assert np.array_equal(decimal(cents.astype("float32")), cents)
    assert np.array_equal(decimal(cents), cents)
    odd = np.array([np.nan, np.inf, -np.inf, 0, -1.5, 1e30, 1 / 3], dtype="float32")
    assert np.array_equal(decimal(odd).astype("float32"), odd, equal_nan=True)


def test_evening_is_never_before_the_last_close_and_never_looks_ahead():
    for hour in pd.date_range("2024-03-08", "2024-03-13", freq="3h", tz="UTC"):  # over a change of the clocks
        day = evening(hour)
        assert day == sessions("2024-03-01", "2024-03-20")[sessions("2024-03-01", "2024-03-20") <= day][-1]
        assert hour < pd.Timestamp(f"{sessions(day + pd.Timedelta(days=1), '2024-03-29')[0]:%Y-%m-%d} 14:30", tz="UTC")


def test_update_asks_only_for_what_is_new(tmp_path):
    file = tmp_path / "vendor.csv"
    pd.concat([rows(d, ["AA", "BB"]) for d in DAYS]).drop(columns="vendor").to_csv(file, index=False)
    store, ask = Store(tmp_path / "store"), {"path": str(file)}
    days = [f"{d:%Y-%m-%d}" for d in DAYS]
    assert store.update("files", ["AA"], days[0], days[9], **ask) == 10
    assert store.update("files", ["AA"], days[3], days[9], **ask) == 0 and store.calls["files"] == 1
    assert store.update("files", ["AA", "BB"], days[0], days[9], **ask) == 10 and store.calls["files"] == 2
    assert store.update("files", None, days[5], days[11], **ask) == 4 and store.calls["files"] == 3
    assert Store(tmp_path / "store").update("files", "BB", days[0], days[11], **ask) == 0
    other = Store(tmp_path / "store")
    other.update("files", "BB", days[0], days[11], **ask)
    assert other.calls["files"] == 0, "a second run over the same span makes no call"
    other.update("files", None, days[5], days[11], again=True, **ask)
    assert other.calls["files"] == 1
    with pytest.raises(ValueError, match="swap them"): store.update("files", None, days[3], days[1], **ask)


def test_update_tells_a_live_source_from_a_local_one(tmp_path, monkeypatch):
    asked = []

    def fetch(source, symbols, start, end, kind="bars", fetched_at=None, **settings):
        asked.append((start, end))
        days = DAYS[(start is None or start <= DAYS) & (DAYS <= end)]
        return pd.concat([rows(d, ["AA"]) for d in days]).assign(fetched_at=fetched_at)

    monkeypatch.setattr("tradenb.data.store.fetch", fetch)
    store = Store(tmp_path)
    tonight = [pd.Timestamp(f"{d:%Y-%m-%d} 22:00Z") for d in DAYS]
    store.update("live", ["AA"], fetched_at=tonight[10])
    store.update("live", ["AA"], fetched_at=tonight[10])
    assert store.update("live", ["AA"], fetched_at=tonight[11]) == 1
    assert asked == [(None, DAYS[10]), (DAYS[10] + pd.Timedelta(days=1), DAYS[11])]


@pytest.mark.parametrize("frame, said", [
    (rows(DAYS[0]).iloc[:0], "no rows"), (rows(DAYS[0]).drop(columns="close"), "close"), (rows(DAYS[0]).assign(session=None), "session"),
    (rows(DAYS[0]).assign(session="2023-12-18 16:00"), "time"), (rows(DAYS[0]).assign(close="x"), "close"),
    (rows(DAYS[0]).assign(symbol=None), "symbol"), (rows(DAYS[0]).assign(known_at="2023-12-01"), "known"),
    (rows(DAYS[0]).drop(columns="vendor"), "whose rows"), (rows(DAYS[0]).assign(fetched_at="2024-01-02"), "zone"),
    (pd.concat([rows(DAYS[0]), rows(DAYS[0], close=2.0)]), "say two things")])
def test_bad_frames_are_refused_and_leave_no_trace(tmp_path, frame, said):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=said): store.append("bars", frame)
    assert not (tmp_path / "manifest.json").exists()


def test_reading_what_is_not_there(tmp_path):
    store = Store(tmp_path / "none")
    for ask in (lambda: store.as_of("bars", "2024-01-02"), lambda: store.as_of("macro", "2024-01-02")):
        with pytest.raises(ValueError, match="has no .* yet; store.update"): ask()
    with pytest.raises(ValueError, match="did you mean 'bars'"): store.as_of("bar", "2024-01-02")
    assert not (tmp_path / "none").exists(), "asking makes no folder"
    store.append("bars", rows(DAYS[0]))
    with pytest.raises(ValueError, match="did you mean AA"): store.as_of("bars", DAYS[0], symbols=["AAA"])
    with pytest.raises(ValueError, match="no span"): store.as_of("bars", DAYS[5], start=DAYS[3], end=DAYS[1])
    (tmp_path / "none/manifest.json").write_text("{torn")
    with pytest.raises(ValueError, match="manifest.json is damaged.*restore it"): store.as_of("bars", DAYS[0])


def test_sql_only_looks(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    (tmp_path / "secret.csv").write_text("a\n1")
    for query in ("INSERT INTO bars VALUES (1)", f"COPY bars TO '{tmp_path / 'out.csv'}'", f"SELECT * FROM '{tmp_path / 'secret.csv'}'",
                  f"ATTACH '{tmp_path / 'x.db'}'", "SELECT * FROM manifest", "SET enable_external_access=true", "SELEC"):
        with pytest.raises(ValueError, match="Tables, read only"): store.sql(query)
    assert not (tmp_path / "out.csv").exists() and store.sql("SELECT count(*) AS n FROM bars")["n"].item() == 2


def test_fingerprint_sees_every_change_and_no_other():
    day = pd.MultiIndex.from_product([DAYS[:2], ["AA", "BB"]], names=["session", "symbol"])
    base = pd.DataFrame({"close": [1.0, 2.0, np.nan, 4.0], "sector": ["x", "y", "x", None]}, index=day)
    base["sector"] = base["sector"].astype("str")
    same = [base[["sector", "close"]], base.assign(fetched_at=1), base.copy(), base.iloc[::-1].sort_index()]
    other = [base.assign(close=base["close"] + 1e-9), base.fillna({"close": 0.0}), base.assign(sector="x"), base.iloc[:3],
             base.rename(columns={"close": "open"}), base.rename(index={"BB": "CC"})]
    told = fingerprint(base)
    assert {fingerprint(p) for p in same} == {told}
    assert told not in {fingerprint(p) for p in other}


@pytest.mark.real
def test_half_a_million_real_rows_in_a_blink(tmp_path, real_data):
    store, path = Store(tmp_path), str(real_data / "us_stocks_503_daily_2015_2018.parquet")
    assert store.update("files", path=path, end="2018-12-28") > 495_000
    begin = time.perf_counter()
    panel = store.as_of("bars", "2018-12-31")
    assert time.perf_counter() - begin < 1.0
    assert panel.loc[("2015-01-12", "A"), "close"] == 40.11
    begin = time.perf_counter()
    assert store.update("files", path=path, start="2018-12-31", end="2018-12-31") == 498
    assert time.perf_counter() - begin < 3.0
    raw = pd.read_parquet(path)
    assert len(store.as_of("bars", "2018-12-31")) == len(raw)
    only = store.as_of("bars", "2017-06-30", symbols=["AAPL", "MSFT"], start="2017-06-01")
    assert len(only) == 44 and set(only.index.get_level_values("symbol")) == {"AAPL", "MSFT"}


def test_the_store_does_not_need_its_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    store.append("bars", rows(DAYS[0]))
    assert Path("here/manifest.json").exists()
    assert repr(store) == "Store(here: 2 rows of bars)"
