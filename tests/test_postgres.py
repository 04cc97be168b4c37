"The store in a real PostgreSQL, beside the same store in a folder: kills, rivals, strange values, strange servers"
import logging
import multiprocessing
import os
import random
import signal
import time
import traceback
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.home import Home, plain
from tradenb.data.postgres import Tables
from tradenb.data.store import Store

DAYS = sessions("2022-06-01", "2024-12-31")
FORK = multiprocessing.get_context("fork")  # a child without the seconds that importing takes


def rows(day, names=("AA", "BB"), close=10.0):
    one = pd.DataFrame({"session": day, "symbol": list(names)})
    return one.assign(open=close, high=close, low=close, close=close, volume=1.0, vendor="test")


@pytest.fixture
def fresh(postgres):
    "Makes addresses of schemas that are not there yet"
    return lambda: f"{postgres}?schema=test_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def ask(postgres):
    "SQL on the server, past the store"
    import psycopg
    with psycopg.connect(postgres, autocommit=True) as connection: yield connection.execute


def write(address, name, start, stop, said):
    home = Tables(address)
    for n in range(start, stop):
        with home.writing():  # two tables, one of them over two years, and a note
            pair = pd.DataFrame({"session": [DAYS[n], DAYS[n + 300]], "symbol": name, "close": float(n)})
            home.add("bars", pair, ["session", "symbol"])
            home.add("macro", pair[:1], ["session", "symbol"])
            home.write_note(name, {"done": n + 1})
        said.send(n)


def writer(address, name, start=0, stop=300):
    hear, say = FORK.Pipe(duplex=False)
    process = FORK.Process(target=write, args=(address, name, start, stop, say))
    process.start()
    say.close()
    return process, hear


def heard(hear):
    said = []
    while True:
        try: said.append(hear.recv())
        except EOFError: return said


def whole(home, name):
    "How many writes stand, each with all of its parts"
    done = home.note(name).get("done", 0)
    for kind, each in (("bars", 2), ("macro", 1)):
        table = home.read(kind)
        closes = [] if table is None else [r["close"] for r in table.to_pylist() if r["symbol"] == name]
        assert sorted(closes) == sorted([float(n) for n in range(done)] * each), "a part of a write stands alone, or is lost"
    return done


def test_killed_at_random_instants_the_home_opens_whole(fresh):
    address, rng, done = fresh(), random.Random(0), 0
    for _ in range(30):
        process, hear = writer(address, "AA", done)
        first = [hear.recv()] if rng.random() < .7 else []  # else it may not even have a line to the server
        time.sleep(rng.uniform(0, .03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        said = first + heard(hear)
        with Tables(address, wait=10).writing(): pass  # the lock went with the process
        stands = whole(Tables(address), "AA")
        assert stands >= (said[-1] + 1 if said else done), "a write that had returned is lost"
        assert stands <= (said[-1] + 2 if said else done + 1)
        done = stands
    assert done >= 10, "the writers did write"


def test_two_writers_at_once_lose_nothing(fresh):
    address = fresh()
    both = [writer(address, name, 0, 15) for name in ("AA", "BB")]  # not even the schema is there
    assert [heard(hear) for _, hear in both] == [list(range(15))] * 2
    for process, _ in both: process.join()
    home = Tables(address)
    assert [whole(home, name) for name in ("AA", "BB")] == [15, 15]
    assert sorted({f["serial"] for f in home.manifest()["files"]}) == list(range(1, 61))


def test_a_writer_that_waits_says_for_whom_and_readers_do_not_wait(fresh):
    address = fresh()
    store = Store(address, wait=.05)
    store.append("bars", rows(DAYS[0]))
    with Tables(address).writing():
        with pytest.raises(TimeoutError, match=f"process {os.getpid()} on .*the lock goes with it"):
            store.append("bars", rows(DAYS[1]))
        assert len(store.as_of("bars", DAYS[1])) == 2
        assert Store(fresh(), wait=.05).append("bars", rows(DAYS[1])) == 2, "another schema has a lock of its own"
    assert store.append("bars", rows(DAYS[1])) == 2


def test_a_line_that_is_cut_while_writing_leaves_the_old(fresh, ask):
    address = fresh()
    home, store = Tables(address), Store(address)
    store.append("bars", rows(DAYS[0]))
    with pytest.raises(ConnectionError, match="does not answer"):
        with home.writing():
            home.add("bars", rows(DAYS[1]).drop(columns="vendor"), ["session"])
            ask("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            home.write_note("fetched", {"half": True})
    assert len(store.as_of("bars", DAYS[1])) == 2 and home.note("fetched") == {}
    assert store.append("bars", rows(DAYS[1])) == 2


def test_a_reader_sees_all_of_a_write_or_nothing(fresh):
    address = fresh()
    home = Tables(address)
    with home.writing(): home.add("bars", rows(DAYS[0]), ["session"])
    with home.writing():
        home.add("bars", rows(DAYS[1]), ["session"])
        home.add("macro", rows(DAYS[1]), ["session"])
        assert home.read("bars").num_rows == 4, "the writer sees its own"
        other = Tables(address)
        assert other.read("bars").num_rows == 2 and other.read("macro") is None and len(other.manifest()["files"]) == 1
    assert Tables(address).read("macro").num_rows == 2


# The law of the homes: whatever is written, both give the same back.
DEEDS = st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["AA", "BB", "N/A"]), st.integers(1, 3), st.integers(0, 9),
                           st.sampled_from(["", "adj_close", "sector"])), min_size=3, max_size=6)


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=DEEDS)
def test_a_folder_and_a_database_are_one_store(tmp_path_factory, fresh, deeds):
    both = [Store(tmp_path_factory.mktemp("home")), Store(fresh())]
    for day, name, close, later, more in deeds:
        frame = rows(DAYS[day], [name], float(close))
        if more: frame = frame.assign(**{more: {"adj_close": close / 3, "sector": None if later % 2 else "Energy"}[more]})
        wrote = [s.append("bars", frame, fetched_at=pd.Timestamp(f"{DAYS[day + later]:%Y-%m-%d} 22:00Z")) for s in both]
        assert wrote[0] == wrote[1]
    whens = {DAYS[day + k] for day, *_ in deeds[-2:] for k in (0, 5)}
    for when in whens:
        seen = []
        for s in both:
            try: seen.append(s.as_of("bars", when).sort_index(axis=1))
            except ValueError: seen.append(None)
        assert (seen[0] is None) == (seen[1] is None)
        if seen[0] is not None: pd.testing.assert_frame_equal(*seen, check_exact=True)
    last = [plain(s.home.read("bars", DAYS[5], DAYS[200])).to_pandas() for s in both]
    pd.testing.assert_frame_equal(*last, check_exact=True)
    files = [[{k: f[k] for k in ("kind", "year", "rows", "first", "last")} for f in s.home.manifest()["files"]] for s in both]
    assert sorted(files[0], key=str) == sorted(files[1], key=str)


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)


@example(values=[(float("nan"), None, True, 0), (-0.0, "", False, 1), (float("inf"), "NaN", True, -1)])
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(st.floats(allow_nan=True), st.one_of(st.none(), TEXTS), st.booleans(), st.integers(-2**62, 2**62)),
                       min_size=1, max_size=5))
def test_every_value_comes_back_as_it_went(tmp_path_factory, fresh, values):
    number, text, truth, whole = zip(*values, strict=True)
    frame = pd.DataFrame({"session": DAYS[:len(values)], "number": np.array(number), "text": pd.Series(text, dtype="str"),
                          "truth": truth, "whole": whole, "at": pd.Timestamp("2024-01-04 21:00:00.000123Z")})
    frame["at"] = frame["at"].astype("datetime64[us, UTC]")
    back = []
    for home in (Home(tmp_path_factory.mktemp("home")), Tables(fresh())):
        with home.writing(): home.add("odd", frame, ["session"])
        table = home.read("odd")
        assert table["number"].null_count == frame["number"].isna().sum(), "a missing number is missing in SQL too"
        back.append(plain(table).to_pandas())
    pd.testing.assert_frame_equal(*back, check_exact=True)
    assert np.array_equal(np.signbit(back[1]["number"]), np.signbit(frame["number"].fillna(np.nan)))
    assert back[1]["text"].isna().tolist() == [t is None for t in text]
    assert [t for t in back[1]["text"] if not pd.isna(t)] == [t for t in text if t is not None]


STRANGE = ["", "NULL", "\\N", "\\.", 'say "x"', "a,b", "two\nlines", "tab\t", " spaces ", "Zürich", "N/A", "nan", "'; DROP TABLE bars; --"]


def test_texts_that_mean_something_elsewhere_are_texts(fresh):
    home = Tables(fresh())
    frame = pd.DataFrame({"session": DAYS[0], "text": pd.Series(STRANGE, dtype="str"), 'odd "name"; --': 1.0})
    with home.writing(): home.add("bars", frame, ["session"])
    back = plain(home.read("bars")).to_pandas()
    assert back["text"].tolist() == STRANGE and back.columns.tolist() == frame.columns.tolist()


def test_a_server_with_manners_of_its_own(fresh, ask):
    ask("ALTER ROLE tradenb SET extra_float_digits = 0")
    ask("ALTER ROLE tradenb SET timezone = 'Asia/Tokyo'")
    ask("ALTER ROLE tradenb SET datestyle = 'German'")
    try:
        store = Store(fresh())
        store.append("bars", rows(DAYS[0], close=.1 + .2), fetched_at=pd.Timestamp("2022-06-01 21:30Z"))
        panel = store.as_of("bars", DAYS[0])
        assert panel["close"].tolist() == [.1 + .2] * 2
        assert panel["fetched_at"].tolist() == [pd.Timestamp("2022-06-01 21:30Z")] * 2
    finally: ask("ALTER ROLE tradenb RESET ALL")


def test_a_schema_that_somebody_else_made_for_us(fresh, ask, postgres):
    ask("CREATE ROLE guest LOGIN PASSWORD 'guest'; CREATE SCHEMA lent AUTHORIZATION guest")
    address = postgres.rsplit("@", 1)[1]
    store = Store(f"postgresql://guest:guest@{address}?schema=lent")
    assert store.append("bars", rows(DAYS[0])) == 2 and len(store.as_of("bars", DAYS[0])) == 2
    with pytest.raises(ValueError, match="permission denied.*nothing of this write stands"):
        Store(f"postgresql://guest:guest@{address}?schema=not_lent").append("bars", rows(DAYS[0]))


def test_the_password_is_nowhere(fresh, caplog, capfd, postgres):
    secret = "h%40rd%2Fto%3Aguess"
    words = ["guess", postgres.split(":")[2].split("@")[0]]
    place = postgres.rsplit("@", 1)[1]
    said = []
    with caplog.at_level(logging.DEBUG):
        for address in (f"postgresql://tradenb:{secret}@{place}", f"postgresql://tradenb:{secret}@127.0.0.1:1/db",
                        f"postgresql://tradenb:h@rd/to:guess@{place}", f"postgresql://tradenb:{secret}@{place}?schema=a-b",
                        f"postgresql://tradenb:{secret}@no.such.host.invalid/db", f"postgresql://tradenb:{secret}@host:x/db", f"mysql://tradenb:{secret}@host/db"):
            try: Store(address).append("bars", rows(DAYS[0]))
            except (ValueError, OSError) as e:
                said += ["".join(traceback.format_exception(e)), repr(e), repr(e.__cause__), repr(e.__context__ if not e.__suppress_context__ else None)]
        assert len(said) == 28, "each of the seven is an error of ours"
        store = Store(fresh())
        store.append("bars", rows(DAYS[0]))
        said += [repr(store), str(store.root), repr(store.home), str(vars(store.home)), str(store.home._engine.url)]
    out = capfd.readouterr()
    for text in (*said, caplog.text, out.out, out.err): assert not any(w in text for w in words)


@pytest.mark.parametrize("told", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_spelling_of_the_address(fresh, told):
    assert Tables(fresh().replace("postgresql", told, 1)).manifest() == {"serial": 0, "files": []}


def test_reading_what_is_not_there_makes_nothing(fresh, ask):
    address = fresh()
    home, store = Tables(address), Store(address)
    assert home.read("bars") is None and home.note("x") == {} and home.manifest() == {"serial": 0, "files": []}
    with pytest.raises(ValueError, match="has no bars yet; store.update"): store.as_of("bars", DAYS[0])
    assert not ask("SELECT 1 FROM pg_namespace WHERE nspname = %s", (home.schema,)).fetchall()
    with home.writing(): home.add("bars", rows(DAYS[5]), ["session"])
    assert home.read("bars", DAYS[6]).num_rows == 0 and home.read("bars", DAYS[6])["symbol"].type == home.read("bars")["symbol"].type


@pytest.mark.real
def test_real_prices_are_the_same_in_both(tmp_path, fresh, real_data):
    path = str(real_data / "us_stocks_503_daily_2015_2018.parquet")
    both = [Store(tmp_path / "home"), Store(fresh(), folder=tmp_path)]
    for s in both: assert s.update("files", path=path, start="2018-07-02") > 60_000
    first, second = (s.as_of("bars", "2018-12-31").drop(columns="fetched_at") for s in both)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
