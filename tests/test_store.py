"The store under kills, rivals, corrections and whatever comes late; each promise in a folder and in a database"
import itertools
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.home import Home
from tradenb.data.store import Store, fingerprint
from tradenb.data.versions import evening, folded
from tradenb.features.price import core14, momentum

DAYS = sessions("2023-12-18", "2024-03-28")
END = pd.Timestamp("2200-01-01")
EASY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def rows(day, names=("AA", "BB"), close=10.0):
    one = pd.DataFrame({"session": day, "symbol": list(names)})
    return one.assign(open=close, high=close, low=close, close=close, volume=1.0, vendor="test")


def at(day, hour="22:00"): return pd.Timestamp(f"{day:%Y-%m-%d} {hour}", tz="UTC")


@pytest.fixture
def home(home_address) -> str: return home_address


@pytest.fixture
def quick():
    "For what has nothing to do with the disk: do not wait for it"
    with mock.patch("os.fsync"): yield


@pytest.fixture
def folders(tmp_path, quick):
    "Makes many homes in a folder"
    number = itertools.count()
    return lambda: str(tmp_path/f"home{next(number)}")


@pytest.fixture
def schemas(postgres):
    "Makes many homes in a database"
    return lambda: f"{postgres}?schema=many_{uuid.uuid4().hex[:12]}"


def examples(n): return settings(max_examples=n, deadline=None, suppress_health_check=EASY)


# ---- kills and rivals -----------------------------------------------------------------------------------------------------------
# A parent that has done it all once forks writers for each line it reads, and says "over" when they have ended, however.
PARENT = """
import os, sys, tempfile, time
from pathlib import Path
import pandas as pd
import tradenb.data.update
from tradenb.core.calendar import sessions
from tradenb.data.store import Store
early, days, nights = sessions("2019-11-01", "2020-02-28"), sessions("2022-06-01", "2024-12-31"), sessions("2021-01-04", "2024-12-31")

def say(x): os.write(1, f"{x}\\n".encode())

def append(root, name, n, end):
    store = Store(root)
    say("ready")
    for n in range(n, end):
        # each append spans two years, so that half of one can be told from a whole one
        pair = pd.DataFrame({"session": [days[n], days[n + 300]], "symbol": name})
        store.append("bars", pair.assign(open=1., high=1., low=1., close=float(n), volume=1.), name)
        say(n)

def backfill(root, name, n, end):
    store, folder = Store(root), Path(root + ".files")
    folder.mkdir(exist_ok=True)
    say("ready")
    for n in range(n, end):
        # everything is told anew, over two years and in two files
        told = pd.DataFrame({"session": early}).assign(open=1., high=1., low=1., close=float(n), volume=1.)
        for symbol in "AB": told.to_csv(folder/f"{symbol}.csv", index=False)
        at = pd.Timestamp(f"{nights[n]:%Y-%m-%d} 23:00Z")
        store.update("files", path=str(folder), again=True, fetched_at=at)
        say(n)

with tempfile.TemporaryDirectory() as folder:
    for job in (append, backfill):
        job(f"{folder}/{job.__name__}", "AA", 0, 2)
        start = time.perf_counter()
        job(f"{folder}/{job.__name__}", "AA", 2, 6)
        say(f"takes {(time.perf_counter() - start) / 4}")

for line in sys.stdin:
    pids = []
    for job in line.strip().split(";"):
        what, root, name, n, end = job.split(",")
        pid = os.fork()
        if not pid:
            try: globals()[what](root, name, int(n), int(end))
            except BaseException as e: say(f"failed {e!r}")
            os._exit(0)
        pids.append(pid)
    say("pids " + " ".join(map(str, pids)))
    for pid in pids: os.waitpid(pid, 0)
    say("over")
"""


@pytest.fixture(scope="module")
def parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        process.takes = _takes(process)
        yield process
        process.stdin.close()


def _takes(process):
    "Seconds that one append and one backfill take here and now"
    found = []
    while len(found) < 2:
        word, _, seconds = process.stdout.readline().partition(" ")
        if word == "takes": found.append(float(seconds))
    return found


def start(parent, *jobs):
    "Sets writers to work; their process ids, once each has opened its store"
    parent.stdin.write(";".join(",".join(map(str, job)) for job in jobs) + "\n")
    heard, pids = [], None
    while pids is None or heard.count("ready") < len(jobs):
        line = parent.stdout.readline().strip()
        if line.startswith("pids"): pids = [int(p) for p in line.split()[1:]]
        else: heard.append(line)
    return pids, heard


def until_over(parent, heard):
    "The numbers that were said until all have ended"
    for line in iter(parent.stdout.readline, "over\n"): heard.append(line.strip())
    assert not [h for h in heard if h.startswith("failed")], heard
    return [int(h) for h in heard if h.isdigit()]


def killed(parent, job, rng, takes):
    "What a writer said before it was killed: in its first round or, now and then, in its second"
    (pids, heard), first = start(parent, job), rng.randrange(4) == 0
    while sum(h.isdigit() for h in heard) < first: heard.append(parent.stdout.readline().strip())
    time.sleep(rng.uniform(0, 1.3 * takes))
    os.kill(pids[0], signal.SIGKILL)
    return until_over(parent, heard)


def opened_whole(root):
    "The store, which has swept what a killed writer left"
    store = Store(root)
    on_disk = {str(p.relative_to(root)) for p in Path(root).glob("bars/*/*")}
    assert on_disk == {f["path"] for f in store.home.manifest()["files"]}
    assert not list(Path(root).rglob("*.tmp"))
    return store


def test_killed_at_fifty_instants_of_an_append_the_store_opens_whole(tmp_path, parent):
    rng, root, done, busy = random.Random(0), str(tmp_path/"home"), 0, 0
    for _ in range(50):
        said = killed(parent, ("append", root, "AA", done, 300), rng, parent.takes[0])
        if not Path(root, "manifest.json").exists(): continue
        left = len(list(Path(root).glob("bars/*/*"))) + len(list(Path(root).rglob("*.tmp")))
        store = opened_whole(root)
        busy += left > len(store.home.manifest()["files"])
        if not store.home.manifest()["files"]: continue
        closes = np.sort(store.as_of("bars", END)["close"].to_numpy())
        assert np.array_equal(closes, np.repeat(np.arange(len(closes)//2), 2)), "half of an append stands"
        stands = len(closes)//2
        assert stands >= (said[-1] + 1 if said else done), "an append that had returned is lost"
        assert stands <= (said[-1] + 2 if said else done + 1)
        done = stands
    assert done >= 5, "the writers did write"
    assert busy, "and some were killed with files half done"


def test_killed_at_fifty_instants_of_a_backfill_the_store_opens_whole(tmp_path, parent):
    rng, root, done = random.Random(1), str(tmp_path/"home"), 0
    for _ in range(50):
        said = killed(parent, ("backfill", root, "-", done, 900), rng, parent.takes[1])
        if not Path(root, "manifest.json").exists(): continue
        store = opened_whole(root)
        if not store.home.manifest()["files"]: continue
        panel = store.as_of("bars", END)
        stands = set(panel["close"])
        assert len(stands) == 1 and panel.index.levshape == (81, 2) and len(panel) == 162, "half of a backfill stands"
        last = int(stands.pop())
        assert last >= (said[-1] if said else done - 1), "a backfill that had returned is lost"
        assert last <= (said[-1] + 1 if said else done)
        done = last + 1
    assert done >= 5, "the writers did write"


def test_two_writers_at_once_lose_nothing(home, parent):
    _, heard = start(parent, ("append", home, "AA", 292, 300), ("append", home, "BB", 292, 300))
    assert sorted(until_over(parent, heard)) == sorted([*range(292, 300)] * 2)
    panel = Store(home).as_of("bars", END)
    assert panel.groupby("symbol").size().to_dict() == {"AA": 16, "BB": 16}


def test_a_writer_that_waits_says_for_whom(tmp_path):
    store = Store(tmp_path, wait=0.05)
    store.append("bars", rows(DAYS[0]))
    with Home(tmp_path).writing():
        with pytest.raises(TimeoutError, match=f"process {os.getpid()}.*the lock goes with it"):
            store.append("bars", rows(DAYS[1]))
        assert len(store.as_of("bars", DAYS[1])) == 2  # readers do not wait
        Store(tmp_path)  # nor does opening


@pytest.mark.parametrize("kind", ["bars", "chain"])
@pytest.mark.parametrize("at_step", range(1, 21, 2))
def test_a_kill_at_each_step_of_an_append_leaves_all_or_nothing(tmp_path, monkeypatch, kind, at_step):
    make = rows if kind == "bars" else quotes
    store = Store(tmp_path)
    store.append(kind, make(DAYS[1]))
    before, calls = fingerprint(store.as_of(kind, END)), itertools.count(1)

    def dies(real):
        def call(*args):
            if next(calls) == at_step: raise KeyboardInterrupt
            return real(*args)
        return call

    news = pd.concat([make(DAYS[2]), make(DAYS[-1])])  # two years, so two files; of a chain, two tables of them
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies(os.replace))
        patched.setattr(os, "fsync", dies(os.fsync))
        try: store.append(kind, news)
        except KeyboardInterrupt: pass
    after = Store(tmp_path)
    def all_there(found): return len(found) == 6 and (kind == "bars" or found["open_interest"].notna().all())
    found = after.as_of(kind, END)
    assert all_there(found) or fingerprint(found) == before
    after.append(kind, news)
    assert all_there(after.as_of(kind, END))
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_stands_is_never_written_in_place(tmp_path):
    store, held = Store(tmp_path/"home"), {}
    store.append("bars", rows(DAYS[0]), fetched_at=at(DAYS[0]))
    for i, path in enumerate(p for p in (tmp_path/"home").rglob("*") if p.is_file() and p.name != ".lock"):
        os.link(path, tmp_path/str(i))  # another name of the same bytes
        held[tmp_path/str(i)] = path.read_bytes()
    store.append("bars", rows(DAYS[1]), fetched_at=at(DAYS[1]))
    assert len(held) == 3 and all(path.read_bytes() == data for path, data in held.items())


def test_strangers_files_are_left_alone(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    strangers = [tmp_path/"bars/2024/mine.parquet", tmp_path/"notes.tmp", tmp_path/"a/b/c.parquet"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    Store(tmp_path)
    assert all(path.read_text() == "mine" for path in strangers)


def test_many_appends_are_merged_and_keep_every_version(tmp_path, quick):
    store, days = Store(tmp_path), sessions("2024-01-02", "2024-06-28")
    real = os.replace

    def dies(old, new):
        if str(new).endswith("manifest.json"): raise KeyboardInterrupt
        real(old, new)

    for k in range(40):
        if k == 31:  # which merges the small files, and is killed before the new list stands
            with mock.patch("os.replace", dies), pytest.raises(KeyboardInterrupt):
                store.append("bars", rows(DAYS[0], close=float(k)), fetched_at=at(days[k]))
            assert store.as_of("bars", days[k])["close"].iloc[0] == 30
        store.append("bars", rows(DAYS[0], close=float(k)), fetched_at=at(days[k]))
    assert len(store.home.manifest()["files"]) < 32 and len(list(tmp_path.glob("bars/*/*"))) < 32
    assert store.sql("SELECT count(*) AS n FROM bars")["n"].item() == 80
    assert [store.as_of("bars", days[k])["close"].iloc[0] for k in (1, 31, 32, 39)] == [1, 31, 32, 39]


def test_a_large_file_is_not_written_again(tmp_path, quick):
    home, files = Home(tmp_path), []
    for n in range(20):
        told = rows(DAYS[20], [f"S{i}" for i in range(7 if n == 2 else 1)], close=float(n))
        with home.writing(): home.add("bars", told, ["symbol"], most=4, small=6)
        files.append({f["path"]: f["rows"] for f in home.manifest()["files"]})
    assert all(files[n]["bars/2024/000003.parquet"] == 7 for n in range(2, 20)), "it stays as it is"
    assert max(map(len, files)) < 9 and sum(files[-1].values()) == 26
    closes = home.read("bars").to_pandas().query("symbol == 'S0'")["close"].tolist()
    assert closes == sorted(closes), "oldest write first"


# ---- what was known when ----------------------------------------------------------------------------------------------------------
# The simplest store there could be: a list, asked row by row. The real one must agree with it whatever happens in whatever order.
DEEDS = st.lists(st.tuples(st.sampled_from(["say", "say", "say", "retract"]), st.integers(9, 11), st.sampled_from(["AA", "BB"]),
                           st.sampled_from(["one", "two"]), st.integers(1, 3), st.integers(0, 9), st.booleans()), min_size=6, max_size=14)


class Listed:
    "What a store is, spelled out"
    def __init__(self): self.told, self.evenings, self.names = [], set(), {}

    def last(self, s, name, vendor, until):
        seen = [(v["known"], n, v) for n, v in enumerate(self.told)
                if (v["s"], v["name"], v["vendor"]) == (s, name, vendor) and v["known"] <= until]
        return max(seen, key=lambda v: v[:2]) if seen else None

    def late(self, s, name, night):
        over = [e for e in self.evenings if e < night]
        if not over or name not in self.names: return False
        first, since = self.names[name]
        return max(s, since) <= max(over) and (s >= first or s >= min(self.evenings))

    def say(self, s, name, vendor, value, night):
        seen = any((v["s"], v["name"], v["vendor"]) == (s, name, vendor) for v in self.told)
        known = max(s, night) if seen or self.late(s, name, night) else s
        force = self.last(s, name, vendor, known)
        news = force is None or force[2]["value"] != value
        if news: self.told.append(dict(s=s, name=name, vendor=vendor, known=known, value=value))
        if s >= night - 3: self.evenings.add(night)
        first, since = self.names.get(name, (s, night))
        self.names[name] = min(first, s), since
        return news

    def retract(self, s, name, vendor, night):
        force = self.last(s, name, vendor, 10**9)
        if force is None: return None
        if force[2]["value"] is None: return 0
        self.told.append(dict(s=s, name=name, vendor=vendor, known=max(night, force[0]), value=None))
        return 1

    def as_of(self, when, vendors):
        out = {}
        for s, name in {(v["s"], v["name"]) for v in self.told}:
            stand = [f for v in vendors if (f := self.last(s, name, v, when)) and f[2]["value"] is not None]
            if stand: out[s, name] = max(stand, key=lambda f: f[:2])[2]["value"]
        return out


def equals_a_list(store, deeds, when):
    told = Listed()
    for deed, s, name, vendor, close, later, morning in deeds:
        night = s + later
        fetched = at(DAYS[night + 1], "13:00") if morning else at(DAYS[night])
        assert evening(fetched) == DAYS[night]
        if deed == "say":
            wrote = store.append("bars", rows(DAYS[s], [name], float(close)), vendor, fetched)
            assert wrote == told.say(s, name, vendor, close, night), "news is written, and nothing else"
        elif (n := told.retract(s, name, vendor, night)) is None:
            with pytest.raises(ValueError, match="not in the store|has no bars"): store.retract("bars", [(DAYS[s], name)], fetched, vendor)
        else: assert store.retract("bars", [(DAYS[s], name)], fetched, vendor) == n
    for vendors in (["one", "two"], ["two"]):
        want = told.as_of(when, vendors)
        try: got = store.as_of("bars", DAYS[when], vendor=vendors[0] if len(vendors) == 1 else None)["close"]
        except ValueError: got = pd.Series(dtype=float)
        assert {(DAYS.get_loc(s), n): c for (s, n), c in got.items()} == want


@examples(9)
@given(deeds=DEEDS, when=st.integers(9, 22))
def test_as_of_equals_a_list_asked_row_by_row(folders, deeds, when): equals_a_list(Store(folders()), deeds, when)


@examples(2)
@given(deeds=DEEDS, when=st.integers(9, 22))
def test_as_of_of_a_database_equals_a_list(schemas, deeds, when): equals_a_list(Store(schemas()), deeds, when)


@st.composite
def weeks(draw):
    "What befalls a store in use: rows that come late, mistakes, splits told late, rows withdrawn, names that join"
    lived = range(26, 35)
    late = draw(st.dictionaries(st.tuples(st.sampled_from(lived[:-1]), st.sampled_from(["AA", "BB"])), st.integers(1, 4), max_size=5))
    more = draw(st.lists(st.tuples(st.sampled_from(["misprint", "split", "retract", "hole"]), st.integers(3, 24),
                                   st.sampled_from(["AA", "BB", "CC"]), st.sampled_from(lived[1:])), max_size=6, unique_by=lambda e: e[1:3]))
    return lived, late, more


def walk(n):
    "Bars of three names over the first `n` days, the same for ever"
    rng = np.random.default_rng(7)
    close = 50 * np.exp(rng.normal(0, 0.02, (len(DAYS), 3)).cumsum(axis=0))
    flat = pd.DataFrame({"session": np.repeat(DAYS[:n], 3), "symbol": ["AA", "BB", "CC"] * n, "close": close[:n].round(2).ravel()})
    volume = rng.integers(1000, 2000, (len(DAYS), 3))[:n].ravel().astype(float)
    return flat.assign(open=flat["close"], high=flat["close"] * 1.01, low=flat["close"] * 0.99, volume=volume, vendor="test")


def stays_known(store, story):
    lived, late, more = story
    true = walk(lived[-1] + 1)
    day = true["session"].map({d: i for i, d in enumerate(DAYS)})
    comes = pd.Series([d + late.get((d, n), 0) if d in lived else lived[0] - 1 for d, n in zip(day, true["symbol"], strict=True)])
    for what, d, name, when in more:
        if what == "hole": comes[(day == d) & (true["symbol"] == name)] = when
    answers = {}
    for now in range(lived[0] - 1, lived[-1] + 1):
        if (new := true[comes == now]).size: store.append("bars", new, fetched_at=at(DAYS[now]))
        for what, d, name, when in more:
            row = true[(day == d) & (true["symbol"] == name)]
            if when != now or what == "hole": continue
            if what == "retract": store.retract("bars", row, at(DAYS[now]))
            else: store.append("bars", row.assign(close=row["close"] + 1) if what == "misprint" else row.assign(split=2.), fetched_at=at(DAYS[now]))
        if now == lived[2]:  # a name that is new brings its history with it
            store.append("bars", true[day < now].replace({"symbol": {"CC": "NEW"}})[lambda x: x["symbol"] == "NEW"], fetched_at=at(DAYS[now]))
        answers[now] = store.as_of("bars", DAYS[now])
    for now, then in answers.items():
        again = store.as_of("bars", DAYS[now], symbols=["AA", "BB", "CC"])
        then = then[then.index.get_level_values("symbol") != "NEW"].dropna(axis=1, how="all")
        assert fingerprint(again.dropna(axis=1, how="all")) == fingerprint(then)
    features = [(core14(a), momentum(a)) for a in (store.as_of("bars", DAYS[lived[4]], symbols=["AA", "BB"]),
                                                   answers[lived[4]].loc[(slice(None), ["AA", "BB"]), :])]
    for once, now in zip(*features, strict=True): pd.testing.assert_frame_equal(once, now, check_freq=False)


@examples(4)
@given(story=weeks())
def test_what_was_known_on_an_evening_is_known_so_for_ever(folders, story): stays_known(Store(folders()), story)


@examples(1)
@given(story=weeks())
def test_what_was_known_in_a_database_is_known_so_for_ever(schemas, story): stays_known(Store(schemas()), story)


@examples(4)
@given(cut=st.integers(22, 38), hole=st.integers(2, 20), name=st.sampled_from(["AA", "BB"]))
def test_features_of_what_was_known_are_the_features_of_later_cut_there(folders, cut, hole, name):
    store, true = Store(folders()), walk(40)
    gone = (true["session"] == DAYS[hole]) & (true["symbol"] == name)
    for part in (true[~gone & (true["session"] <= DAYS[cut])], true[~gone & (true["session"] > DAYS[cut])]):
        store.append("bars", part, fetched_at=at(part["session"].max()))
    then, later = store.as_of("bars", DAYS[cut]), store.as_of("bars", END)
    assert len(later) > len(then)
    for f in (core14, momentum):
        pd.testing.assert_frame_equal(f(then), f(later).loc[:DAYS[cut]], check_freq=False)


def test_history_comes_in_any_order_and_is_known_at_its_sessions(home):
    "A store filled from files, name after name and years later, was never in use: nothing in it is late"
    store, true = Store(home), walk(20)
    when = [pd.Timestamp(f"2026-03-0{d} 22:00Z") for d in (2, 3, 4, 5)]
    store.append("bars", true[true["symbol"] == "AA"][5:], fetched_at=when[0])
    store.append("bars", true[true["symbol"] == "BB"].drop(index=[31]), fetched_at=when[1])
    store.append("bars", true[true["symbol"] == "AA"][:5], fetched_at=when[2])
    store.append("bars", true[true["symbol"] == "BB"], fetched_at=when[3])  # a hole is filled
    assert len(store.as_of("bars", DAYS[12])) == 26
    assert (store.as_of("bars", DAYS[19]).eval("known_at == session")).all()


def test_history_reaches_further_back_also_in_a_store_in_use(home):
    store, true = Store(home), walk(20)
    store.append("bars", true[true["session"] >= DAYS[10]], fetched_at=at(DAYS[19]))
    store.append("bars", true, fetched_at=at(DAYS[24]))
    assert len(store.as_of("bars", DAYS[5])) == 18


def test_a_name_that_joined_since_the_last_evening_was_in_no_answer(home):
    store, true = Store(home), walk(20)
    joined = true[(true["symbol"] == "BB") & (true["session"] < DAYS[10])]
    store.append("bars", true[(true["symbol"] == "AA") & (true["session"] <= DAYS[14])], fetched_at=at(DAYS[14]))
    store.append("bars", joined.drop(index=joined.index[3]), fetched_at=at(DAYS[16]))  # its history alone: no evening of the store
    store.append("bars", joined, fetched_at=at(DAYS[17]))
    assert len(store.as_of("bars", DAYS[9], "BB")) == 10
    store.append("bars", true[true["session"] == DAYS[17]], fetched_at=at(DAYS[17]))
    store.append("bars", true[(true["symbol"] == "BB") & (true["session"] < DAYS[12])], fetched_at=at(DAYS[18]))
    assert len(store.as_of("bars", DAYS[17], "BB")) == 11 and len(store.as_of("bars", DAYS[18], "BB")) == 13


def test_columns_may_come_late_and_go_again(home):
    store = Store(home)
    store.append("bars", rows(DAYS[-1]))
    store.append("bars", rows(DAYS[-2]).assign(adj_close=9.0, sector="Energy"))
    assert store.append("bars", rows(DAYS[-2])) == 0, "a frame without adj_close does not contradict one"
    panel = store.as_of("bars", DAYS[-1])
    assert panel["adj_close"].isna().tolist() == [False, False, True, True]
    assert panel.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(["open", "high", "low", "close", "volume", "adj_close"], "float64"), "sector": "str",
        "known_at": "datetime64[us]", "vendor": "str", "fetched_at": "datetime64[us, UTC]"}


def test_evening_is_never_before_the_last_close_and_never_looks_ahead():
    for hour in pd.date_range("2024-03-08", "2024-03-13", freq="3h", tz="UTC"):  # over a change of the clocks
        day = evening(hour)
        assert day == DAYS[DAYS <= day][-1]
        assert hour < at(sessions(day + pd.Timedelta(days=1), "2024-03-29")[0], "14:30")


@examples(40)
@given(data=st.data(), sizes=st.lists(st.sampled_from([1, 3, 500, 60_000, 2**31]), min_size=1, max_size=6))
def test_one_number_for_a_key_sorts_as_the_key(data, sizes):
    rows = [[data.draw(st.integers(0, n - 1)) for n in sizes] for _ in range(8)]
    key = folded([np.array(c) for c in zip(*rows, strict=True)], sizes)
    for (a, x), (b, y) in itertools.combinations(zip(rows, key, strict=True), 2): assert (a < b) == (x < y) and (a == b) == (x == y)


# ---- chains and minutes -----------------------------------------------------------------------------------------------------------
def quotes(day, names=("SPX", "AAPL"), bid=1.0, interest=7.0):
    one = pd.DataFrame({"session": day, "underlying": list(names), "strike": 100.0, "right": "C", "expiry": "2024-06-21"})
    return one.assign(bid=bid, ask=bid + 1, open_interest=interest, vendor="test")


@pytest.mark.parametrize("way", ["previous", "same_session"])
def test_nobody_sees_the_open_interest_of_a_session_at_its_close(home, quick, way):
    counts, fixed, store = [11, 12, 13, 14, 15, 16], 2, Store(home)
    for i, count in enumerate(counts):  # the count of close i; a vendor shows it beside the quotes of i, or of i + 1
        frame = quotes(DAYS[i + (way == "previous")], ["SPX"], interest=float(count))
        store.append("chain", frame, fetched_at=at(DAYS[i + 1]), open_interest=way)
    wrong = quotes(DAYS[fixed + (way == "previous")], ["SPX"], interest=2e6)
    store.append("chain", wrong, fetched_at=at(DAYS[8]), open_interest=way)
    for t in (1, 2, 3, 6):
        seen = store.as_of("chain", DAYS[t]).set_index("session")["open_interest"]
        for s, figure in seen.items():
            i = DAYS.get_loc(s)
            assert figure == counts[i - 1] if i else np.isnan(figure)
        assert store.as_of("open_interest", DAYS[t])["session"].max() < DAYS[t]
    with pytest.raises(ValueError, match="nothing of open_interest was known"): store.as_of("open_interest", DAYS[0])
    after = store.as_of("chain", DAYS[8]).set_index("session")["open_interest"]
    assert after.get(DAYS[fixed + 1]) == 2e6


def test_a_chain_is_told_by_its_whole_key(home):
    store, day = Store(home), quotes(DAYS[3], ["SPX"])
    kinds = pd.concat([day, day.assign(root="SPXW"), day.assign(right="P"), day.assign(strike=100.5), day.assign(expiry="2024-06-28")])
    assert store.append("chain", kinds, fetched_at=at(DAYS[3])) == 10
    assert store.append("chain", kinds, fetched_at=at(DAYS[3])) == 0
    assert store.append("chain", kinds.iloc[1:2].assign(bid=1.5), fetched_at=at(DAYS[5])) == 1
    found = store.as_of("chain", DAYS[5])
    assert list(found.columns) == ["session", "underlying", "root", "expiry", "strike", "right", "bid", "ask", "open_interest",
                                   "known_at", "vendor", "fetched_at"]
    assert found["bid"].tolist() == [1, 1, 1, 1, 1.5] and found["root"].tolist() == ["SPX"] * 4 + ["SPXW"]
    assert found.sort_values(list(found.columns[:6]), ignore_index=True).equals(found)
    assert store.retract("chain", found[found["root"] == "SPXW"], at(DAYS[6])) == 1
    assert len(store.as_of("chain", DAYS[6])) == 4 and len(store.as_of("chain", DAYS[5])) == 5
    assert store.sql("SELECT count(*) AS n FROM chain, open_interest WHERE NOT chain.gone")["n"].item() == 6 * 5


def test_minutes_are_flat_rows_with_instants(home):
    store = Store(home)
    opens = pd.date_range("2024-01-04 14:30", periods=3, freq="min", tz="UTC")
    told = pd.concat([rows(DAYS[11], [n]).drop(columns="session").merge(pd.DataFrame({"time": opens}), how="cross") for n in ("BB", "AA")])
    assert store.append("minutes", told, fetched_at=at(DAYS[11])) == 6
    assert store.append("minutes", told.iloc[:1].assign(close=11.0), fetched_at=at(DAYS[12])) == 1
    found = store.as_of("minutes", DAYS[12])
    assert found["symbol"].tolist() == ["AA"] * 3 + ["BB"] * 3 and found["close"].tolist() == [10] * 3 + [11, 10, 10]
    assert found["time"].dtype == "datetime64[us, UTC]" and (found["session"] == DAYS[11]).all()
    assert store.as_of("minutes", DAYS[12], symbols="AA")["time"].tolist() == opens.tolist()
    assert fingerprint(found) != fingerprint(store.as_of("minutes", DAYS[11]))


@pytest.mark.real
def test_real_chains_come_back_as_they_went_in(tmp_path, real_data):
    raw = pd.read_parquet(real_data/"option_chains_spx_spy_xsp_4_snapshots.parquet")
    day = pd.to_datetime(raw["snapshot"].astype(str).str.extract(r"_(.*)")[0]).replace(pd.Timestamp("2022-06-11"), pd.Timestamp("2022-06-10"))
    told = raw.assign(session=day, underlying=raw["snapshot"].astype(str).str.extract(r"(.*)_")[0], underlying_price=raw["underlying_last"])
    told = told.rename(columns={"oi": "open_interest"}).drop(columns=["sym", "snapshot", "underlying_last"])
    store = Store(tmp_path)
    assert store.append("chain", told, "cboe") == 2 * len(told)
    assert store.append("chain", told, "cboe") == 0
    found = store.as_of("chain", END)
    want = told.astype({"open_interest": float, "volume": float}).assign(session=day.astype("datetime64[us]"),
                                                                       expiry=pd.to_datetime(told["expiry"]).astype("datetime64[us]"))
    want = want.sort_values(["session", "underlying", "root", "expiry", "strike", "right"], ignore_index=True)
    same = [c for c in found.columns if c in want and c not in ("known_at", "vendor", "fetched_at")]
    assert len(same) == 15
    pd.testing.assert_frame_equal(found[same], want[same], check_dtype=False)


# ---- the door, questions, errors ----------------------------------------------------------------------------------------------------
def test_update_asks_only_for_what_is_new(home, tmp_path):
    file = tmp_path/"vendor.csv"
    pd.concat([rows(d, ["AA", "BB"]) for d in DAYS[:23]]).drop(columns="vendor").to_csv(file, index=False)
    store, ask = Store(home), {"path": str(file)}
    days = [f"{d:%Y-%m-%d}" for d in DAYS]
    assert store.update("files", ["AA"], days[0], days[9], **ask) == 10
    assert store.update("files", ["AA"], days[3], days[9], **ask) == 0 and store.calls["files"] == 1
    assert store.update("files", ["AA", "BB"], days[0], days[9], **ask) == 10 and store.calls["files"] == 2
    assert store.update("files", None, days[5], days[11], **ask) == 4 and store.calls["files"] == 3
    other = Store(home)
    assert other.update("files", "BB", days[0], days[11], **ask) == 0
    assert other.calls["files"] == 0, "a second run over the same span makes no call"
    other.update("files", None, days[5], days[11], again=True, **ask)
    assert other.calls["files"] == 1
    with pytest.raises(ValueError, match="swap them"): store.update("files", None, days[3], days[1], **ask)


@pytest.mark.parametrize("frame, said", [
    (rows(DAYS[0]).iloc[:0], "no rows"), (rows(DAYS[0]).drop(columns="close"), "close"), (rows(DAYS[0]).assign(session=None), "session"),
    (rows(DAYS[0]).assign(session="2023-12-18 16:00"), "time"), (rows(DAYS[0]).assign(close="x"), "close"),
    (rows(DAYS[0]).assign(symbol=None), "symbol"), (rows(DAYS[0]).assign(known_at="2023-12-01"), "known"),
    (rows(DAYS[0]).drop(columns="vendor"), "whose rows"), (rows(DAYS[0]).assign(fetched_at="2024-01-02"), "zone"),
    (pd.concat([rows(DAYS[0]), rows(DAYS[0], close=2.0)]), "say two things")])
def test_bad_frames_are_refused_and_leave_no_trace(tmp_path, frame, said):
    store = Store(tmp_path/"home")
    with pytest.raises(ValueError, match=said): store.append("bars", frame)
    assert not (tmp_path/"home").exists()


def test_reading_what_is_not_there(home, tmp_path):
    store = Store(home)
    for ask in (lambda: store.as_of("bars", "2024-01-02"), lambda: store.as_of("macro", "2024-01-02")):
        with pytest.raises(ValueError, match="has no .* yet; store.update"): ask()
    with pytest.raises(ValueError, match="did you mean 'bars'"): store.as_of("bar", "2024-01-02")
    with pytest.raises(ValueError, match="has no bars; there is nothing"): store.retract("bars", [(DAYS[0], "AA")])
    assert not (Path(home)/"manifest.json").exists(), "asking makes no store"
    store.append("bars", rows(DAYS[0]))
    with pytest.raises(ValueError, match="did you mean AA"): store.as_of("bars", DAYS[0], symbols=["AAA"])
    with pytest.raises(ValueError, match="from other; it has those of test"): store.as_of("bars", DAYS[0], vendor="other")
    with pytest.raises(ValueError, match="no span"): store.as_of("bars", DAYS[5], start=DAYS[3], end=DAYS[1])
    with pytest.raises(ValueError, match="keeps no kind 'open_interest'"): store.append("open_interest", rows(DAYS[0]))


def test_a_torn_list_of_files_is_told(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    (tmp_path/"manifest.json").write_text("{torn")
    with pytest.raises(ValueError, match="manifest.json is damaged.*restore it"): store.as_of("bars", DAYS[0])


def test_a_file_that_rots_while_the_store_is_open_is_told(tmp_path):
    store = Store(tmp_path)
    store.append("bars", rows(DAYS[0]))
    store.as_of("bars", DAYS[0])
    file = next(tmp_path.glob("bars/*/*"))
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: its content is not what was written"): store.as_of("bars", DAYS[0])


def test_sql_only_looks(home, tmp_path):
    store = Store(home)
    store.append("bars", rows(DAYS[0]))
    (tmp_path/"secret.csv").write_text("a\n1")
    for query in ("INSERT INTO bars VALUES (1)", f"COPY bars TO '{tmp_path/'out.csv'}'", f"SELECT * FROM '{tmp_path/'secret.csv'}'",
                  f"ATTACH '{tmp_path/'x.db'}'", "SELECT * FROM manifest", "SET enable_external_access=true", "SELEC"):
        with pytest.raises(ValueError, match="Tables, read only: bars"): store.sql(query)
    assert not (tmp_path/"out.csv").exists() and store.sql("SELECT count(*) AS n FROM BARS")["n"].item() == 2


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
def test_half_a_million_real_rows(tmp_path, real_data):
    store, path = Store(tmp_path), str(real_data/"us_stocks_503_daily_2015_2018.parquet")
    assert store.update("files", path=path, end="2018-12-28") > 495_000
    panel = store.as_of("bars", "2018-12-31")
    assert panel.loc[("2015-01-12", "A"), "close"] == 40.11
    assert store.update("files", path=path, start="2018-12-31", end="2018-12-31") == 498
    assert len(store.as_of("bars", "2018-12-31")) == len(pd.read_parquet(path))
    only = store.as_of("bars", "2017-06-30", symbols=["AAPL", "MSFT"], start="2017-06-01")
    assert len(only) == 44 and set(only.index.get_level_values("symbol")) == {"AAPL", "MSFT"}


def test_the_store_does_not_need_its_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    store.append("bars", rows(DAYS[0]))
    assert Path("here/manifest.json").exists()
    assert repr(store) == "Store(here: 2 rows of bars)"


def test_a_database_keeps_replies_in_a_folder(postgres, tmp_path):
    with pytest.raises(ValueError, match="replies lie in a folder"): Store(postgres).raw  # noqa: B018
    assert Store(postgres, folder=tmp_path).raw.folder == tmp_path/"raw"
    assert repr(Store(postgres)).endswith("empty)") and "@" in repr(Store(postgres)) and ":" in repr(Store(postgres))


def test_a_source_that_dates_its_revisions_is_believed_and_one_that_does_not_is_not(tmp_path):
    "First release, revision, and what each evening knew; a later change under an old release date is a correction of today"
    rows = pd.DataFrame({"session": ["2023-12-01", "2023-12-01"], "symbol": "UNRATE", "value": [3.7, 3.8],
                         "known_at": ["2024-01-05", "2025-01-10"]})
    store, at = Store(tmp_path/"s"), pd.Timestamp("2025-06-02 22:00Z")
    assert store.append("macro", rows, vendor="fred", fetched_at=at) == 2
    assert store.append("macro", rows, vendor="fred", fetched_at=at + pd.Timedelta(days=1)) == 0
    def known(day): return store.as_of("macro", day)["value"].tolist()
    assert (known("2024-01-05"), known("2025-01-09"), known("2025-01-10")) == ([3.7], [3.7], [3.8])
    later = rows.iloc[1:].assign(value=3.9, known_at="2025-06-06")
    assert store.append("macro", later, vendor="fred", fetched_at=pd.Timestamp("2025-06-20 22:00Z")) == 1
    assert (known("2025-06-05"), known("2025-06-06")) == ([3.8], [3.9])
    silent = rows.iloc[1:].assign(value=4.0)
    assert store.append("macro", silent, vendor="fred", fetched_at=pd.Timestamp("2025-07-01 22:00Z")) == 1
    assert (known("2025-01-10"), known("2025-06-30"), known("2025-07-01")) == ([3.8], [3.9], [4.0])
