"The command line as a person meets it: help, errors of one line, exit codes"
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tradenb.core.calendar import sessions

SMALL = """
name: small
data: {source: files, settings: {path: "%s"}}
features: [core14]
model: {xgboost: {n_estimators: 10}}
rules: [{top_bottom: {k: 2}}]
"""


@pytest.fixture
def bars():
    days, rng = sessions("2024-01-02", "2024-02-27"), np.random.default_rng(0)
    rows = pd.MultiIndex.from_product([days, ["A", "B", "C"]], names=["session", "symbol"]).to_frame(index=False)
    close = 10 + rng.uniform(-.1, .1, len(rows)).round(3)
    return rows.assign(open=close, high=close + .05, low=close - .05, close=close, volume=1000.)


def test_help_teaches(command):
    code, said = command("--help")
    assert code == 0
    for word in ("daily", "backtest", "data", "site", "doctor", "no key, no network"): assert word in said
    for sub in ("daily", "backtest", "site"): assert command(sub, "--help")[0] == 0


def test_help_is_quick_to_load():
    "Nothing heavy is imported to answer --help"
    code = "import sys, tradenb.cli; print([m for m in ('pandas', 'numba', 'mlflow', 'xgboost', 'matplotlib', 'papermill') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("break_it", "says"), [
    (lambda b, p: None, "nothing.parquet"),
    (lambda b, p: b.iloc[:0].to_parquet(p), "has no rows; was the download cut off?"),
    (lambda b, p: b.drop(columns="close").to_parquet(p), "close"),
    (lambda b, p: p.write_bytes(b"not parquet"), "cannot be read"),
], ids=["missing", "empty", "wrong columns", "malformed"])
def test_bad_files_are_one_line(command, tmp_path, bars, break_it, says):
    path = tmp_path/"nothing.parquet"
    break_it(bars, path)
    (tmp_path/"r.yml").write_text(SMALL % path)
    code, said = command("backtest", "r.yml", "--no-page", "--no-track")
    assert code == 1 and says in said and "Traceback" not in said and said.count("error") == 1


def test_rows_that_contradict_each_other_do_not_get_in(command, tmp_path, bars):
    pd.concat([bars, bars.assign(volume=5.)]).to_csv(tmp_path/"bars.csv", index=False)
    (tmp_path/"r.yml").write_text(SMALL % (tmp_path/"bars.csv"))
    code, said = command("data", "audit", "r.yml")
    assert code == 1 and "117 (session, symbol) rows say two things, first (2024-01-02, A); keep one of each" in said


@pytest.mark.parametrize(("break_it", "status", "says"), [
    (lambda b: b.assign(close=b["close"].where(b["symbol"] != "A", -1.)), "RED", "price"),
    (lambda b: b.sample(frac=1, random_state=0), "GREEN", "nothing found"),
], ids=["negative price", "unsorted"])
def test_the_gate_names_what_is_wrong(command, tmp_path, bars, break_it, status, says):
    break_it(bars).to_csv(tmp_path/"bars.csv", index=False)
    (tmp_path/"r.yml").write_text(SMALL % (tmp_path/"bars.csv"))
    code, said = command("data", "audit", "r.yml")
    assert says in said.lower() and (code == 3) == (status == "RED"), said


def test_bad_recipes_are_one_line(command, tmp_path):
    (tmp_path/"r.yml").write_text(SMALL % "x" + "modle: 3\n")
    assert command("backtest", "r.yml") == (1, "error r.yml: unknown key 'modle', did you mean 'model'?")
    (tmp_path/"r.yml").write_text(SMALL % "${NOT_SET_ANYWHERE}")
    code, said = command("backtest", "r.yml")
    assert code == 1 and "r.yml: data.settings.path: the environment variable NOT_SET_ANYWHERE is not set; export" in said
    code, said = command("backtest", "q.yml")
    assert code == 1 and "no such recipe" in said
    code, said = command("daily", "r.yml", "--simulated", "--files", ".")
    assert code == 1 and "give one of them" in said


def test_doctor(command):
    code, said = command("doctor")
    assert code == 0 and "Python" in said and "demo data" in said
