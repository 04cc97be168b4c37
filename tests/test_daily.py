"The one day: killed, repeated, continued, stopped. Whole runs, some of them in processes of their own."
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from tradenb.data.store import Store
from tradenb.execution.ledger import Ledger
from tradenb.ops.daily import account_folder, day
from tradenb.ops.line import account, dataset, gather, known_sessions, score
from tradenb.ops.recipe import load


def ledger_of(recipe, home): return Ledger.open(account_folder(recipe, home)/"ledger")


def test_the_next_session_continues_the_same_account(small, tmp_path):
    r, home = load(small), tmp_path/"home"
    known = known_sessions(r, home)
    day(r, home, known[-3])
    first = ledger_of(r, home).fills
    facts = day(r, home)
    then = ledger_of(r, home)
    assert facts["account"]["sessions"] == 32 and len(then.sessions) == 32
    pd.testing.assert_frame_equal(then.fills.iloc[:len(first)], first)
    assert then.fills.loc[len(first):, "session"].unique().tolist() == known[-2:].tolist()


def test_sessions_one_by_one_with_the_disk_between_equal_the_loop(small, tmp_path):
    r, home = load(small), tmp_path/"home"
    known = known_sessions(r, home)
    for s in known[-20:]: day(load(small, ["daily.paper_sessions=1", "daily.account=one"]), home, s)
    one = Ledger.open(home/"accounts"/"one"/"ledger")
    market = gather(r, home)
    loop = account(r, score(r, dataset(r, market), home, n_jobs=1).loc[known[-20]:], market)
    pd.testing.assert_series_equal(one.nav, loop.nav, check_exact=True)
    pd.testing.assert_series_equal(one.costs, loop.costs, check_exact=True)


@pytest.mark.whole
def test_sixty_real_sessions_through_the_day_equal_the_backtest(root, tmp_path):
    pytest.importorskip("arch")   # the demo's packages are there
    r = load(root/"recipes"/"baseline.yml")
    day(r, tmp_path)
    paper = ledger_of(r, tmp_path)
    market = gather(r, tmp_path, update=False)
    loop = account(r, score(r, dataset(r, market), tmp_path/"apart").loc[paper.sessions[0]:], market)
    assert len(paper.sessions) == 60
    assert (paper.nav.mul(100).round() == loop.nav.mul(100).round()).all()        # to the cent
    np.testing.assert_allclose(paper.nav, loop.nav, rtol=1e-12)                    # and well below it
    assert len(paper.fills) == len(loop.fills) > 1_000


def run_day(recipe, home, *more):
    code = "from tradenb.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "daily", str(recipe), "--home", str(home), "--json", *more],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_at_ten_random_instants(small, tmp_path):
    whole = run_day(small, tmp_path/"whole")
    began = time.perf_counter()
    want, err = whole.communicate(timeout=300)
    took = time.perf_counter() - began
    assert whole.returncode == 0, err
    rng, r, home, seen = np.random.default_rng(0), load(small), tmp_path/"home", 0
    for wait in rng.uniform(.15, 1, 10)*took:
        p = run_day(small, home)
        try: p.wait(wait)
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
        ledger = ledger_of(r, home)                      # the ledger is whole, and never shorter than before
        assert len(ledger.sessions) >= seen
        seen = len(ledger.sessions)
        for store in (home/"store").glob("*/"):           # and so is the store
            if Store(store).home.manifest()["files"]: assert len(Store(store).as_of("bars", "2200-01-01"))
    p = run_day(small, home)
    got, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    assert json.loads(got) == json.loads(want)
    pd.testing.assert_frame_equal(ledger_of(r, home).fills, ledger_of(r, tmp_path/"whole").fills, check_exact=True)


def test_two_runs_at_once_do_not_mix(small, tmp_path):
    r, home = load(small), tmp_path/"home"
    folder = account_folder(r, home)
    folder.mkdir(parents=True)
    with open(folder/".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another run has the account small-.* open; wait for it"): day(r, home)
    assert day(r, home)["account"]["sessions"] == 30


def test_a_red_evening_changes_nothing_and_can_be_mended(small, tmp_path):
    "Bars of our own files; the last week is deleted for most names, then put back"
    r, home = load(small), tmp_path/"home"
    bars = gather(r, tmp_path/"source").panel.reset_index()[["session", "symbol", "open", "high", "low", "close", "volume"]]
    days = bars["session"].unique()
    folder = tmp_path/"bars"
    folder.mkdir()
    names = sorted(bars["symbol"].unique())[:-4]
    (broken := bars[~(bars["symbol"].isin(names) & bars["session"].isin(days[-5:]))]).to_parquet(folder/"bars.parquet")
    mine = load(small, ["data.source=files", f"data.settings={{path: {folder}}}"])
    day(mine, home, days[-7])
    before = ledger_of(mine, home).nav
    stopped = day(mine, home)
    assert stopped["data"]["status"] == "RED" and names[0] in stopped["data"]["summary"] and stopped["account"] is None
    held = ledger_of(mine, home).nav
    assert held.index[-1] < days[-1] and before.equals(held.loc[:days[-7]])
    assert len(broken) < len(bars)
    bars.to_parquet(folder/"bars.parquet")
    facts = day(mine, home)
    assert facts["data"]["status"] != "RED" and facts["session"] == f"{days[-1]:%Y-%m-%d}"


@pytest.mark.whole
def test_the_shipped_long_term_recipe_runs_its_evenings(root, tmp_path):
    pytest.importorskip("arch")
    facts = day(load(root/"recipes"/"long_term.yml", ["daily.paper_sessions=40"]), tmp_path)
    assert facts["account"]["sessions"] == 40 and facts["model"]["ic"]["sessions"] == 0 and facts["market"] == "the name itself"


def test_a_short_account_has_no_interval_and_says_so(small, tmp_path):
    from rich.console import Console

    from tradenb.ops.terminal import day_table
    facts = day(load(small, ["daily.paper_sessions=3"]), tmp_path/"home")
    assert facts["account"]["sharpe"]["low"] is None
    page = Console(width=100, record=True, file=open(os.devnull, "w"))
    page.print(day_table(facts))
    assert "too few days for an interval" in page.export_text()


def test_an_account_opens_when_there_is_something_to_decide(small, tmp_path):
    r = load(small, ["daily.paper_sessions=90"])
    day(r, tmp_path/"home")
    opened = ledger_of(r, tmp_path/"home")
    assert 60 < len(opened.sessions) < 90 and opened.pending is not None
    with pytest.raises(ValueError, match="can be scored yet"): day(load(small, ["split.walk_forward.train=190"]), tmp_path/"home")


def test_restated_prices_stop_an_account_that_holds_shares_at_the_old_ones(small, tmp_path):
    r, home = load(small), tmp_path/"home"
    bars = gather(r, tmp_path/"source").panel.reset_index()[["session", "symbol", "open", "high", "low", "close", "volume"]]
    bars["adj_close"] = bars["close"]
    days = bars["session"].unique()
    path = tmp_path/"bars.parquet"
    bars[bars["session"] <= days[-3]].to_parquet(path)
    mine = load(small, ["data.source=files", f"data.settings={{path: {path}}}"])
    day(mine, home)
    held = ledger_of(mine, home)
    before, name = held.nav, held.pending.abs().idxmax()
    paid = (bars["symbol"] == name) & (bars["session"] < days[-2])
    bars.assign(adj_close=bars["adj_close"].where(~paid, bars["adj_close"]*.97)).to_parquet(path)   # a dividend of 3%, told backwards
    with pytest.raises(ValueError, match=f"the adjusted price of {name} was restated after"): day(mine, home)
    assert ledger_of(mine, home).nav.loc[:before.index[-1]].equals(before)


def test_a_value_that_was_mended_later_lets_the_evening_run_and_is_said(small, tmp_path):
    r, home = load(small), tmp_path/"home"
    bars = gather(r, tmp_path/"source").panel.reset_index()[["session", "symbol", "open", "high", "low", "close", "volume"]]
    path, days = tmp_path/"bars.csv", bars["session"].unique()
    wrong = bars["symbol"].isin(sorted(bars["symbol"].unique())[:5]) & (bars["session"] == days[-1])
    bars.assign(close=bars["close"].where(~wrong, -1.)).to_csv(path, index=False)
    mine = load(small, ["data.source=files", f"data.settings={{path: {path}}}"])
    assert day(mine, home)["data"]["status"] == "RED"
    bars.to_csv(path, index=False)
    facts = day(mine, home)
    assert facts["data"]["status"] != "RED" and facts["data"]["restated"] and facts["session"] == f"{days[-1]:%Y-%m-%d}"


@pytest.mark.parametrize(("damage", "says"), [
    (lambda home, folder: (last(folder/"ledger")).write_text((last(folder/"ledger")).read_text().split("\n")[0]), "whole lines of 2"),
    (lambda home, folder: change(last(folder/"ledger"), '"pending": {', '"pending": {"SIM001": 0.5, '), "was changed after it was written"),
    (lambda home, folder: last(folder/"days").write_text("{"), "is damaged .* delete it and run the day again"),
    (lambda home, folder: next(folder.glob("scores/*.parquet")).write_bytes(b"no"), "is damaged .* restore it from a backup"),
    (lambda home, folder: next(home.glob("store/*/manifest.json")).unlink(), "manifest.json is gone"),
    (lambda home, folder: next(home.glob("store/*/fetched.json")).write_text("[]"), "fetched.json is damaged"),
], ids=["half a session", "pending changed", "facts", "old scores", "manifest", "fetched"])
def test_damage_is_one_clear_error(small, tmp_path, damage, says):
    r, home = load(small), tmp_path/"home"
    known = known_sessions(r, home)
    day(r, home, known[-2])
    from tradenb.ops.daily import _kept_scores
    _kept_scores.cache_clear()
    damage(home, account_folder(r, home))
    with pytest.raises(ValueError, match=says): day(r, home, known[-2] if "damaged .* delete" in says else None)


def last(folder): return sorted(folder.glob("????-??-??.json"))[-1]
def change(path, old, new): path.write_text(path.read_text().replace(old, new, 1))
