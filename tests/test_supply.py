"""From the command line to curated Parquet: each vendor, through its dialect on a server of this machine.

What a vendor says is the demo's own bars, so that what comes out at the other end can be compared to the cent.
"""
import importlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tradenb.core.calendar import sessions
from tradenb.data.market import bars as market_bars
from tradenb.data.providers import ROOMS, found
from tradenb.data.replay import Replay
from tradenb.data.store import Store

EQUITIES = ["polygon", "alpha_vantage", "alpaca", "yfinance", "fmp"]
DIALECT = {"yfinance": "yahoo", "fred": "series", "cboe": "series"}
NAMES = ["AAPL", "BAC", "CAT", "DIS", "GE", "HD", "IBM", "INTC", "JNJ", "JPM", "KO", "MCD",
         "MMM", "MRK", "MSFT", "PFE", "PG", "T", "TRV", "UTX", "VZ", "WMT", "XOM", "CVX"]
FIRST, LAST, NEXT = "2009-09-01", "2010-05-27", "2010-05-28"
RECIPE = f"""
name: {{name}}
data: {{{{source: {{source}}, symbols: [{", ".join(NAMES)}], start: {FIRST}, end: {LAST}}}}}
features: [core14]
model: {{{{xgboost: {{{{n_estimators: 5}}}}}}}}
rules: [{{{{top_bottom: {{{{k: 4}}}}}}}}, {{{{gross: {{{{cap: 1.0}}}}}}}}]
split: {{{{walk_forward: {{{{train: 80, test: 40, embargo: 5}}}}}}}}
"""
ONE_BY_ONE = {"alpha_vantage", "yfinance"} # no endpoint answers for many names with their dividends


def spoken(source): return importlib.import_module(f"tests.vendors.{DIALECT.get(source, source)}")


def keys_of(source):
    "Environment variable to the key that its dialect wants"
    of, dialect = found(source).vendor, spoken(source)
    told = getattr(dialect, "KEYS", None)
    return {name: told[name] if told else dialect.KEY for name in of.keys}


@pytest.fixture(scope="module")
def prices():
    frame = market_bars("stocks_2009", FIRST, NEXT)
    return frame[frame["symbol"].isin(NAMES)].drop(columns=["adj_close", "sector", "vendor"]).reset_index(drop=True)


@pytest.fixture
def vendor(monkeypatch):
    "A context: the vendor's server, its address and keys in the environment"
    def at(source, *frames, **how):
        of, dialect = found(source).vendor, spoken(source)
        for name, key in keys_of(source).items(): monkeypatch.setenv(name, key)
        server = Replay(dialect.routes(*frames, **how))
        monkeypatch.setenv(of.address_env, server.url)
        return server
    return at


def sent(said): return int(re.search(r"(\d+) requests sent", said)[1])


def everything_under(folder):
    return b"\0".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_every_vendor_is_tried_here():
    assert set(EQUITIES) | {"fred", "cboe"} == set(ROOMS)


@pytest.mark.parametrize("source", EQUITIES)
def test_from_the_command_line_to_parquet(source, prices, vendor, command, tmp_path):
    with vendor(source, prices) as server:
        code, said = command("data", "fetch", source, *NAMES, "--start", FIRST, "--end", LAST)
        assert code == 0, said
        first = sent(said)
        assert first == len(server.requests) > 0

        code, said = command("data", "fetch", source, *NAMES, "--start", FIRST, "--end", LAST)
        assert code == 0 and sent(said) == 0 and "0 rows written" in said, said
        assert len(server.requests) == first

        folder, = (tmp_path/"var"/"store").glob(f"{source}-*")
        evening = pd.Timestamp(f"{NEXT} 21:00Z") # of the next session
        assert Store(folder).update(source, NAMES, FIRST, fetched_at=evening) == len(NAMES)
        daily = len(server.requests) - first
        print(f"{source}: {first} requests for {len(NAMES)} names, {daily} for a session more")
        assert daily == len(NAMES) if source in ONE_BY_ONE else daily <= 3

    kept = Store(folder).as_of("bars", "2200-01-01")
    want = prices.set_index(["session", "symbol"]).sort_index()
    pd.testing.assert_frame_equal(kept[["open", "high", "low", "close", "volume"]], want[["open", "high", "low", "close", "volume"]],
                                  check_exact=False, rtol=1e-9, check_index_type=False)
    assert list(folder.rglob("*.parquet"))
    replies = Store(folder).raw.log()
    assert len(replies) == len(server.requests) and set(replies["vendor"]) == {found(source).vendor.name}
    for key in keys_of(source).values(): assert key.encode() not in everything_under(tmp_path)


@pytest.mark.parametrize("source", EQUITIES)
def test_a_wrong_key_is_one_line(source, prices, vendor, command, monkeypatch, tmp_path):
    with vendor(source, prices):
        for name in found(source).vendor.keys: monkeypatch.setenv(name, "not-the-right-one-4711")
        if not found(source).vendor.keys: pytest.skip(f"{source} takes no key")
        code, said = command("data", "fetch", source, "AAPL", "--start", FIRST, "--end", LAST)
    assert code == 1 and found(source).vendor.keys[0] in said and "4711" not in said
    assert b"4711" not in everything_under(tmp_path) and not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("source", EQUITIES)
def test_without_a_key_the_variable_is_named(source, vendor, prices, command, monkeypatch):
    keys = found(source).vendor.keys
    if not keys: pytest.skip(f"{source} takes no key")
    for name in keys: monkeypatch.delenv(name, raising=False)
    code, said = command("data", "fetch", source, "AAPL", "--start", FIRST, "--end", LAST)
    assert code == 1 and keys[0] in said and ".env" in said


@pytest.mark.parametrize("source", EQUITIES)
def test_one_unknown_name_does_not_lose_the_others(source, prices, vendor, command, tmp_path):
    with vendor(source, prices):
        code, said = command("data", "fetch", source, "AAPL", "XNOTX", "MSFT", "--start", FIRST, "--end", LAST)
    assert code == 1 and "XNOTX" in said, said
    folder, = (tmp_path/"var"/"store").glob(f"{source}-*")
    kept = Store(folder).as_of("bars", "2200-01-01").index.unique("symbol").tolist()
    assert kept == ["AAPL", "MSFT"]


@pytest.mark.parametrize("source", EQUITIES)
def test_validate_says_what_a_plan_delivers(source, prices, vendor, command):
    days = sessions("2024-01-02", pd.Timestamp.now().normalize() - pd.Timedelta(days=1))[-prices["session"].nunique():]
    now = prices[prices["symbol"] == "AAPL"].sort_values("session").assign(session=lambda f: days[-len(f):])
    with vendor(source, now): code, said = command("data", "validate", source, "--symbol", "AAPL")
    assert code == 0 and "bars rows" in said and "requests in" in said, said


def test_a_recipe_is_about_the_same_store(prices, vendor, command, tmp_path):
    recipe = tmp_path/"mine.yml"
    recipe.write_text(RECIPE.format(name="mine", source="polygon"))
    with vendor("polygon", prices) as server:
        code, said = command("data", "fetch", recipe)
        assert code == 0 and sent(said) == len(server.requests)
        code, said = command("train", recipe)
        assert code == 0 and "learnt" in said, said
        assert len(list((tmp_path/"var"/"store").glob("polygon-*"))) == 1


def test_a_week_of_symbols_is_lost_and_found(prices, vendor, command, tmp_path):
    "The story: a vendor loses a week of symbols, training is refused and names them; it mends itself, backfill, training runs"
    lost = prices["symbol"].isin(["AAPL", "IBM", "KO"]) & prices["session"].between("2010-02-01", "2010-02-05")
    recipe = tmp_path/"mine.yml"
    recipe.write_text(RECIPE.format(name="mine", source="polygon"))
    with vendor("polygon", prices[~lost]):
        code, said = command("data", "audit", recipe)
        assert code == 3 and "RED" in said and all(n in said for n in ("AAPL", "IBM", "KO")), said
        for refused in (("train", recipe), ("backtest", recipe, "--no-page"), ("daily", recipe, "--no-page")):
            code, said = command(*refused)
            assert code in (1, 3) and "RED" in said and all(n in said for n in ("AAPL", "IBM", "KO")) and "ackfill" in said, said
    with vendor("polygon", prices):
        code, said = command("data", "backfill", recipe)
        assert code == 0 and "before RED" in said, said
        code, said = command("train", recipe)
        assert code == 0 and "GREEN" in said or "AMBER" in said, said


def test_two_vendors_of_the_same_data_give_the_same_strategy(prices, vendor, command, tmp_path, monkeypatch):
    "The story: the vendor is swapped, the metrics stay"
    answers = {}
    for source in ("polygon", "alpaca"):
        recipe = tmp_path/f"{source}.yml"
        recipe.write_text(RECIPE.format(name="swapped", source=source))
        with vendor(source, prices):
            code, said = command("backtest", recipe, "--no-page", *(["--no-track"] if source == "alpaca" else []))
            assert code == 0, said
    for facts in Path(tmp_path/"var"/"backtests"/"swapped").glob("*/facts.json"):
        told = json.loads(facts.read_text())
        answers[told["vendor"]] = told["metrics"]
    assert set(answers) == {"polygon", "alpaca"}
    assert answers["polygon"]["sharpe"] == pytest.approx(answers["alpaca"]["sharpe"], rel=1e-6)
    assert (tmp_path/"var"/"mlflow.db").is_file() # and neither there nor anywhere else is a key
    for source in answers:
        for key in keys_of(source).values(): assert key.encode() not in everything_under(tmp_path)


def chain_of(session, open_interest):
    rows = [(expiry, strike, right) for expiry in ("2026-12-18", "2027-01-15") for strike in (95., 100., 105.) for right in "CP"]
    frame = pd.DataFrame(rows, columns=["expiry", "strike", "right"]).assign(session=session, underlying="SPY", root="SPY", volume=5.)
    value = (frame["right"].map({"C": 1, "P": -1}) * (100 - frame["strike"])).clip(lower=0) + 2.
    return frame.assign(expiry=pd.to_datetime(frame["expiry"]).astype("datetime64[us]"), bid=value - .05, ask=value + .05,
                        open_interest=open_interest, iv=.2, delta=.5, gamma=.01, vega=.1, theta=-.01, underlying_price=100.)


def test_an_archive_of_chains_starts_today(prices, vendor, command, tmp_path, monkeypatch):
    "A snapshot has no past: one a session, none twice; the open interest of a row is what was known at its close"
    evenings = [pd.Timestamp("2026-11-19 21:30Z"), pd.Timestamp("2026-11-20 21:30Z")]
    store = Store(tmp_path/"store")
    for n, at in enumerate(evenings):
        with vendor("polygon", prices, None, chain_of(at.tz_localize(None).normalize(), 100. + n)) as server:
            for again in (0, 1):
                rows = store.update("polygon", ["SPY"], kind="chain", fetched_at=at, base=server.url)
                assert rows == (0 if again else rows) and len(server.requests) == 1
    kept = store.as_of("chain", "2026-11-20")
    assert kept.groupby("session")["open_interest"].agg(["size", "min", "max"]).to_numpy().tolist() == [[12, 100, 100], [12, 101, 101]]
    assert len(store.as_of("chain", "2026-11-19")) == 12


def test_a_chain_from_the_command_line(prices, vendor, command, tmp_path):
    from tradenb.core.calendar import last_closed
    session = last_closed(pd.Timestamp.now("UTC"))
    with vendor("polygon", prices, None, chain_of(session, 7.)):
        code, said = command("data", "fetch", "polygon", "SPY", "--kind", "chain")
        assert code == 0 and "chain" in said, said
        code, said = command("data", "audit", "polygon", "SPY", "--kind", "chain")
        assert code in (0, 3) and "SPY" in said, said


def releases():
    rows = [("2023-11-01", 3.7, "2023-12-08"), ("2023-12-01", 3.7, "2024-01-05"), ("2023-12-01", 3.8, "2025-01-10"), ("2024-01-01", 3.7, "2024-02-02")]
    frame = pd.DataFrame(rows, columns=["session", "value", "known_at"]).assign(symbol="UNRATE")
    return frame.astype({"session": "datetime64[us]", "known_at": "datetime64[us]"})


def test_macro_series_from_the_command_line_to_parquet(vendor, command, tmp_path):
    "FRED's vintages: what each evening knew, and a second fetch that sends nothing"
    with vendor("fred", releases()) as server:
        for rows, requests in ((4, 1), (0, 0)):
            code, said = command("data", "fetch", "fred", "UNRATE", "--kind", "macro", "--start", "2023-11-01")
            assert code == 0 and sent(said) == requests and f"{rows} rows written" in said, said
        assert len(server.requests) == 1
    folder, = (tmp_path/"var"/"store").glob("fred-*")
    store = Store(folder)
    def december(evening): return store.as_of("macro", evening)["value"].loc["2023-12-01"].tolist()
    assert (december("2024-06-03"), december("2025-06-02")) == ([3.7], [3.8])
    for key in keys_of("fred").values(): assert key.encode() not in everything_under(tmp_path)


def test_an_index_of_volatility_needs_no_key(command, tmp_path, monkeypatch):
    values = pd.DataFrame({"session": sessions("2024-01-02", "2024-03-28"), "symbol": "VIX", "value": 13.5})
    with Replay(spoken("cboe").cboe(values)) as server:
        monkeypatch.setenv("TRADENB_CBOE_BASE", server.url)
        for requests in (1, 0):
            code, said = command("data", "fetch", "cboe", "VIX", "--kind", "macro", "--start", "2024-01-02", "--end", "2024-03-28")
            assert code == 0 and sent(said) == requests, said
    folder, = (tmp_path/"var"/"store").glob("cboe-*")
    assert len(Store(folder).as_of("macro", "2024-03-28")) == len(values)


def test_the_shelves_may_be_in_postgresql(postgres, prices, vendor, command, tmp_path, monkeypatch):
    "The same commands, the same answers, in a real database; only the replies as they came lie in a folder"
    monkeypatch.setenv("TRADENB_STORE", postgres)
    with vendor("polygon", prices):
        code, said = command("data", "fetch", "polygon", *NAMES[:4], "--start", FIRST, "--end", LAST)
        assert code == 0 and sent(said) > 0, said
        code, said = command("data", "fetch", "polygon", *NAMES[:4], "--start", FIRST, "--end", LAST)
        assert code == 0 and sent(said) == 0, said
    code, said = command("data", "sql", "polygon", "SELECT symbol, count(*) AS n FROM bars WHERE NOT gone GROUP BY symbol ORDER BY symbol")
    assert code == 0 and all(f"{n} {(prices['symbol'] == n).sum() - 1}" in said for n in NAMES[:4]), said
    assert not list(tmp_path.rglob("*.parquet")) and list(tmp_path.rglob("log.jsonl"))


def test_open_interest_of_its_own_date_is_seen_a_session_later(prices, vendor, tmp_path):
    "This vendor's figure for a date is published the next morning: the row of t shows that of the session before"
    days = sessions("2024-01-03", "2024-01-05")
    told = pd.concat([chain_of(d, 100. + n) for n, d in enumerate(days)], ignore_index=True)
    told["expiry"] += pd.DateOffset(years=-2)
    store = Store(tmp_path/"store")
    with vendor("alpha_vantage", prices, None, told) as server:
        store.update("alpha_vantage", ["SPY"], days[0], days[-1], kind="chain", base=server.url)
    seen = store.as_of("chain", days[-1]).groupby("session")["open_interest"].max()
    assert seen.isna().tolist() == [True, False, False] and seen.iloc[1:].tolist() == [100., 101.]
