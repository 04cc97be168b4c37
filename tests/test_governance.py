"Who becomes champion: the gate through the command line, the register under kills, the record under SIGKILL, and runs made again"
import importlib.util
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tradenb.ops import gate as gates
from tradenb.ops import registry
from tradenb.ops.gate import Gate
from tradenb.ops.origin import differing, digests

PLANTED = """
name: planted
data: {settings: {universe: simulated, n_symbols: 24, n_sessions: 420, alpha: 0.15}}
features: [{momentum: {windows: [5, 20]}}]
label: {forward_return: {k: 5, excess: true}}
split: {walk_forward: {train: 126, test: 126, embargo: 5}}
model: {lightgbm: {n_estimators: 20, num_leaves: 4, min_child_samples: 20}}
rules: [{top_bottom: {k: 6, long: 0.5, short: -0.5}}, {ewma: {alpha: 0.2}}, {gross: {cap: 1.0}}]
daily: {paper_sessions: 3}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A market with planted alpha: its recipe swept, backtested, and backtested on shuffled labels"
    folder = tmp_path_factory.mktemp("governance")
    (folder/"planted.yml").write_text(PLANTED)
    from tradenb.cli import app as cli
    from tradenb.ops.model_commands import COMMANDS
    app = typer.Typer()
    for c in cli.registered_commands:
        if c.callback.__name__ in ("backtest", "sweep"): app.command()(c.callback)
    for c in COMMANDS: app.command()(c)
    def typed(*words, at=folder/"home"):
        said = CliRunner().invoke(app, [*map(str, words), "--home", str(at)])
        return said.exit_code, " ".join((said.output + str(said.exception or "")).split())
    recipe = folder/"planted.yml"
    assert typed("sweep", recipe, "--grid", "rules.1.ewma.alpha=0.2,0.9")[0] == 0
    assert typed("backtest", recipe, "--no-page", "--jobs", 1)[0] == 0
    assert typed("backtest", recipe, "--no-page", "--jobs", 1, "--permute", 0)[0] == 0
    return SimpleNamespace(folder=folder, at=folder/"home", recipe=recipe, typed=typed)


@pytest.fixture
def own(home, tmp_path):
    "A copy of that home, whose register is nobody else's; the runs' files stay where they are"
    at = tmp_path/"home"
    shutil.copytree(home.at, at, ignore=shutil.ignore_patterns("artifacts"))
    return SimpleNamespace(at=at, recipe=home.recipe, typed=partial(home.typed, at=at))


@pytest.fixture(autouse=True)
def native(monkeypatch):
    "Where ONNX is not installed, its bar is left open"
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        monkeypatch.setattr(gates, "exported", lambda done, at: ("no export", None, ""))


def test_planted_alpha_is_promoted_and_the_null_is_refused_with_reasons(own):
    from tradenb.ops.tracking import run_of, runs
    table = runs(own.at).set_index("tags.null")
    null, real = (table.loc[k, "run_id"] for k in ("True", "False"))
    code, said = own.typed("promote", null[:8], "--by", "Eve", "--why", "hope")
    assert code == 5
    for reason in ("labels", "shuffled, seed 0", "do not hold", "sharpe", "DSR"): assert reason in said, reason
    assert own.typed("models")[1].startswith("nothing is registered")
    code, said = own.typed("promote", own.recipe, "--by", "Ada", "--why", "it was planted")
    assert code == 0, said
    assert "planted.simulated version 1 is @champion now" in said
    code, said = own.typed("models")
    assert code == 0 and real[:8] in said and "Ada" in said and "it was planted" in said
    code, said = own.typed("promote", real[:8], "--by", "Ada", "--why", "twice")
    assert code == 1 and "champion already" in said
    kept = {run: [json.loads(p.read_text()) for p in run_of(own.at, run).folder("gate").iterdir()] for run in (null, real)}
    assert any(x["by"] == "Eve" and "labels" in x["failed"] for x in kept[null])   # a refusal is remembered too
    assert any(x["why"] == "it was planted" and x["ok"] for x in kept[real])
    code, said = own.typed("rollback", "planted.simulated", "--by", "Bob", "--why", "to see")
    assert code == 0 and "no champion now" in said


def test_a_run_is_reproduced_and_a_changed_record_is_found_out(home, tmp_path):
    from tradenb.ops.reproduce import reproduce
    from tradenb.ops.tracking import ledger_at, run_of, runs
    run = run_of(home.at, runs(home.at).set_index("tags.null").loc["False", "run_id"])
    before = len(ledger_at(home.at).table())
    code, said = home.typed("reproduce", home.recipe)
    assert code == 0 and "identical to the last bit" in said, said
    assert len(ledger_at(home.at).table()) == before      # making it again is no trial
    assert not list(home.at.glob(".again-*"))
    days, note = run.folder()/"days.parquet", run.folder()/"origin"/"machine.json"
    kept = {p: p.read_bytes() for p in (days, note)}
    try:
        table = pd.read_parquet(days)
        table.assign(nav=table["nav"]*1.01, ret=table["ret"] + .001).to_parquet(days)
        note.write_text(json.dumps(json.loads(note.read_text()) | {"numpy": "1.0.0"}))
        found = registry.promote(run, home.at, "Eve", "improved")
        assert "record" in found.failed and not found.ok
        assert reproduce(run, home.at).changed == ["numpy"]   # the numbers are those that were sealed, whatever the file says
    finally:
        for p, data in kept.items(): p.write_bytes(data)


def test_a_null_is_reproduced_with_its_shuffle(home):
    from tradenb.ops.reproduce import reproduce
    from tradenb.ops.tracking import runs
    found = reproduce(runs(home.at).set_index("tags.null").loc["True", "run_id"], home.at)
    assert found.ok and found.changed == [], found.table


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4))
def test_one_changed_cell_is_found_in_its_session_and_its_name(seed, sessions, names):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2024-01-02", periods=sessions).as_unit("us")
    index = pd.MultiIndex.from_product([days, [f"S{i}" for i in range(names)]], names=["session", "symbol"])
    panel = pd.DataFrame(rng.normal(size=(len(index), 2)), index, ["close", "volume"])
    row = int(rng.integers(len(panel)))
    moved = panel.copy()
    moved.iloc[row, int(rng.integers(2))] += 1e-12
    said = differing(digests(panel), digests(moved))
    assert said == f"1 of {sessions} sessions differ, first {index[row][0]:%Y-%m-%d}, in {index[row][1]}"
    assert differing(digests(panel), digests(panel.iloc[rng.permutation(len(panel))])) == ""


class Shelf:
    "A register in memory that dies at a write"
    def __init__(self): self.tags, self.aliases, self.left = {}, {}, -1
    def _write(self):
        if self.left == 0: raise KeyboardInterrupt
        self.left -= 1
    def get_registered_model(self, name): return SimpleNamespace(tags=dict(self.tags), aliases=dict(self.aliases))
    def set_registered_model_tag(self, name, key, value): self._write(); self.tags[key] = value
    def set_registered_model_alias(self, name, alias, version): self._write(); self.aliases[alias] = int(version)
    def delete_registered_model_alias(self, name, alias): self._write(); self.aliases.pop(alias, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["champion", "challenger", "rollback"]), st.integers(1, 4), st.integers(-1, 2)), max_size=12))
def test_the_lineage_is_what_moved_whoever_was_killed_where(steps):
    shelf, line, told = Shelf(), [], 0
    before, registry._client = registry._client, lambda home: shelf
    try:
        for what, version, die in steps:
            alias = "challenger" if what == "challenger" else "champion"
            if what == "rollback":
                if not line: continue
                version = line[-2] if len(line) > 1 else 0
            elif shelf.aliases.get(alias, 0) == version: continue   # promote refuses that
            shelf.left = die
            try: registry._moved(shelf, "s", alias, version, "rollback" if what == "rollback" else "promote", "Ada", "")
            except KeyboardInterrupt: pass
            else:
                told += alias == "champion"
                if alias == "champion": line = line[:-1] if what == "rollback" else [*line, version]
            shelf.left = -1
            assert registry.lineage(".", "s") == line
            assert shelf.aliases.get("champion", 0) == (line[-1] if line else 0)
            assert len(registry.moves(".", "s")) == told
    finally: registry._client = before


def _forked(work):
    "A process of its own that does `work` and leaves without a word"
    pid = os.fork()
    if pid: return pid
    try: work()
    finally: os._exit(0)


WRITES = ("create_registered_model", "create_model_version", "set_registered_model_tag", "set_registered_model_alias",
          "delete_registered_model_alias", "log_dict")


def test_a_promotion_that_is_killed_at_any_write_happened_or_did_not(home, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    from tradenb.ops.tracking import run_of, runs
    row = dict(bar="none", value="", wanted="", ok=True, said="")
    open_ = Gate("planted.simulated", pd.DataFrame([row]).astype({"ok": "boolean"}))
    monkeypatch.setattr(registry, "gate", lambda *asked: open_)
    ids = runs(home.at).sort_values("start_time")["run_id"].tolist()[:2]
    outcomes = []
    for kill in range(6):
        own = tmp_path/f"home{kill}"
        own.mkdir()
        shutil.copy(home.at/"mlflow.db", own/"mlflow.db")   # its artifacts stay where they are
        def work(own=own, kill=kill):
            left = [kill]
            def dying(of):
                def write(*a, **kw):
                    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    return of(*a, **kw)
                return write
            for name in WRITES: setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
            registry.promote(run_of(own, ids[0]), own, "Ada", "a try")
        _, status = os.waitpid(_forked(work), 0)
        name = "planted.simulated"
        holder, moves = registry.holder(own, name), registry.moves(own, name)
        new = [m for m in moves["by"] + moves["why"] if m == "Adaa try"]
        assert len(new) == (holder is not None), (kill, moves)         # told exactly where it moved
        outcomes.append((os.WIFSIGNALED(status), holder is not None))
        registry.promote(run_of(own, ids[1]), own, "Bob", "after the kill")  # and the register goes on
        assert registry.holder(own, name).run == ids[1] and registry.moves(own, name)["by"].iloc[-1] == "Bob"
    assert outcomes[0] == (True, False) and outcomes[-1][1]


def test_the_record_opens_after_a_kill_at_any_time(tmp_path):
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 imported before the forks

    from tradenb.ops.tracking import record, runs
    rng, home, whole = random.Random(0), tmp_path/"home", 0
    def work():
        for i in range(10_000):
            record(home, "tiny", f"run {i}", {"a": i, "b": i}, {"x": i, "y": i}, "0")
    for delay in (.05, .4, 1.2, *(rng.uniform(0, .6) for _ in range(4))):   # while the database is made, and while it is written
        pid = _forked(work)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if (home/"mlflow.db").is_file():
            with sqlite3.connect(home/"mlflow.db") as db: assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    def look():
        found = runs(home, "tiny") if record(home, "tiny", "last", {"a": 1, "b": 1}, {"x": 1, "y": 1}, "0") else None
        bad = found[["params.a", "params.b", "metrics.x", "metrics.y"]].isna().any(axis=1)
        (home/"seen").write_text(f"{len(found)} {int(bad.sum())}")
    os.waitpid(_forked(look), 0)   # a process of its own, as everybody who comes after is
    whole, bad = map(int, (home/"seen").read_text().split())
    assert whole >= 1 and bad == 0
