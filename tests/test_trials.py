"The trial ledger: every scored fit, once, whatever happens to the process that made it"
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import Dataset
from tradenb.models.base import out_of_fold, out_of_fold_paths
from tradenb.validation.overfit import dsr, expected_max_sharpe
from tradenb.validation.splits import CPCV, WalkForward
from tradenb.validation.trials import Trials, keeping, ledger_here, rank_book

DAYS = pd.bdate_range("2018-01-02", periods=600, name="session")


class Line:
    "Scores with one of the features"
    def __init__(self, column="a"): self.column = column
    def fit(self, ds): self.fitted_ = len(ds.X); return self
    def predict(self, X): return X[self.column].rename("score")


def noise(seed=0, sessions=300, names=12):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:sessions], [f"S{i:02}" for i in range(names)]], names=["session", "symbol"])
    X = pd.DataFrame(rng.normal(size=(len(index), 3)), index, list("abc"))
    y = pd.Series(rng.normal(0, .02, len(index)), index)
    known = pd.Series(np.repeat(DAYS[1:sessions + 1], names), index)
    return Dataset(X, y, pd.Series(1., index), known)


WALK = WalkForward(train=100, test=50, embargo=2)


def series(seed, n=300, sd=.01): return pd.Series(np.random.default_rng(seed).normal(0, sd, n), DAYS[:n])


def test_every_fit_is_counted_without_being_asked(tmp_path):
    ledger = Trials(tmp_path/"trials.db")
    with keeping(ledger):
        for column in "abca": out_of_fold(Line(column), noise(), WALK)   # one of them twice
    told = ledger.table()
    assert len(told) == 3 and told["runs"].tolist() == [2, 1, 1] and (told["kind"] == "scores").all()
    book = rank_book(noise().X["a"].loc[DAYS[100]:], noise().y)
    np.testing.assert_allclose(ledger.returns([told["id"].iloc[0]]).iloc[:, 0], book, atol=1e-12)


def test_the_book_is_the_sentence():
    "weights are ranks less their mean, sizes summing to 1: row by row"
    ds = noise(3, sessions=40)
    scores = ds.X["b"].round(0)   # many ties
    for day, book in rank_book(scores, ds.y).items():
        rank = scores.loc[day].rank()
        away = rank - rank.mean()
        assert book == pytest.approx((away/away.abs().sum() * ds.y.loc[day]).sum() if away.abs().sum() else 0, abs=1e-15)


def test_paths_are_one_trial(tmp_path):
    ledger = Trials(tmp_path/"trials.db")
    paths = out_of_fold_paths(Line(), noise(), CPCV(6, 2, 3), trials=ledger)
    assert paths.shape[1] == 5 and len(ledger.table()) == 1 and ledger.table()["id"].iloc[0] == paths.attrs["trial"]
    for c in paths: np.testing.assert_array_equal(paths[c].dropna(), noise().X["a"].reindex(paths[c].dropna().index))


def test_an_account_stands_in_for_its_scores(tmp_path):
    ledger, ds = Trials(tmp_path/"trials.db"), noise()
    scored = out_of_fold(Line(), ds, WALK, trials=ledger).attrs["trial"]
    ledger.record(series(1), of=scored, strategy="one rule")
    assert ledger.table()["strategy"].tolist() == ["one rule"]
    ledger.record(series(2), of=scored, strategy="another rule")
    assert len(ledger.table()) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_same_series_is_the_same_trial(tmp_path_factory, seeds):
    ledger = Trials(tmp_path_factory.mktemp("l")/"trials.db")
    for at, seed in enumerate(seeds): ledger.record(series(seed, 60) * (1 + 1e-13*at), strategy=str(at))
    assert len(ledger.table()) == len(set(seeds)) and ledger.table()["runs"].sum() == len(seeds)


def test_deflation_grows_with_what_was_tried(tmp_path):
    "The best of many noise strategies: alone it looks real, among all it does not"
    ledger, tried = Trials(tmp_path/"trials.db"), {i: series(i, 500) for i in range(60)}
    best = max(tried.values(), key=lambda r: r.mean()/r.std())
    ledger.record(best, ["SPY"])
    alone = ledger.standing(best, ["SPY"])
    for r in tried.values(): ledger.record(r, ["SPY"])
    among = ledger.standing(best, ["SPY"])
    assert (alone.trials, among.trials) == (1, 60) and among.effective > 40 and among.number == 1
    sr = best.mean()/best.std()
    assert dsr(sr, 500, 0, 3, 1) > .95 > dsr(sr, 500, 0, 3, among.effective, among.variance)
    assert among.variance**.5 == pytest.approx(1/500**.5, rel=.25)   # nothing but luck sets them apart
    assert expected_max_sharpe(among.effective) > 2


def test_forty_copies_are_one(tmp_path):
    ledger, rng, r = Trials(tmp_path/"trials.db"), np.random.default_rng(0), series(0)
    for _ in range(40): ledger.record(r + rng.normal(0, 1e-4, 300), ["SPY"])
    assert ledger.standing(r, ["SPY"]).trials == 40 and ledger.standing(r, ["SPY"]).effective < 1.5


def test_rivals_share_half_of_the_days_and_of_the_names(tmp_path):
    ledger, r = Trials(tmp_path/"trials.db"), series(0, 100)
    ledger.record(series(1, 600), list("AB"), "longer")
    ledger.record(series(2, 600).iloc[60:], list("AB"), "too little in common")
    ledger.record(series(3, 100), list("AXYZ"), "half of the names")
    ledger.record(series(4, 100), list("XYZ"), "other names")
    ledger.record(series(5, 100), (), "unknown names")
    assert ledger.rivals(r, list("AB"))["strategy"].tolist() == ["longer", "half of the names", "unknown names"]


SCORING = """
import sys
from tests.test_trials import Line, WALK, noise
from tradenb.models.base import out_of_fold
from tradenb.validation.trials import Trials
for seed in range(10_000):
    scores = out_of_fold(Line(), noise(seed, 130, 4), WALK, trials=Trials(sys.argv[1]), strategy=str(seed))
    print(seed, flush=True)
"""


def test_kill_9_loses_no_trial_that_was_seen(tmp_path, root):
    "killed at random instants, four times: the file opens, and every score that was given out is in it"
    rng, path, seen = np.random.default_rng(0), tmp_path/"trials.db", set()
    for _ in range(4):
        p = subprocess.Popen([sys.executable, "-c", SCORING, str(path)], cwd=root, stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(rng.uniform(0, .15))
        os.kill(p.pid, signal.SIGKILL)
        seen |= {"0", *p.stdout.read().split()}
        p.wait()
        assert seen <= set(Trials(path).table()["strategy"])
    with sqlite3.connect(path) as db: assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_four_processes_at_once(tmp_path, root):
    code = textwrap.dedent("""
        import sys
        from tests.test_trials import series
        from tradenb.validation.trials import Trials
        for i in range(25): Trials(sys.argv[1]).record(series(int(sys.argv[2])*25 + i), strategy="x")
    """)
    path = tmp_path/"trials.db"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)], cwd=root) for k in range(4)]
    assert [p.wait() for p in running] == [0] * 4
    assert len(Trials(path).table()) == 100


def test_what_cannot_be_recorded_is_not_given_out(tmp_path):
    (tmp_path/"trials.db").write_bytes(b"not a database at all, but long enough to be taken for one" * 9)
    with pytest.raises(RuntimeError, match="trials.db cannot be written: .*nothing is scored unrecorded"):
        out_of_fold(Line(), noise(), WALK, trials=Trials(tmp_path/"trials.db"))


def test_a_notebook_is_counted_where_the_commands_count(tmp_path, root):
    "A real notebook in a real kernel, two folders down, that names no ledger; run twice, it is one trial"
    import nbformat
    from nbclient import NotebookClient
    (tmp_path/"recipes").mkdir(); (tmp_path/"nbs"/"ideas").mkdir(parents=True)
    code = (f"import sys; sys.path.insert(0, {str(root)!r})\n"
            "from tests.test_trials import Line, WALK, noise\nfrom tradenb.models.base import out_of_fold\n"
            "out_of_fold(Line(), noise(), WALK).head()")
    for _ in range(2):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        NotebookClient(nb, timeout=120, resources={"metadata": {"path": str(tmp_path/"nbs"/"ideas")}}).execute()
    told = Trials(tmp_path/"var"/"trials.db").table()
    assert told["strategy"].tolist() == ["Line"] and told["runs"].tolist() == [2]


def test_the_nearest_ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with keeping("nearest"): assert ledger_here().path == tmp_path/"var"/"trials.db"
    with keeping(None): assert ledger_here() is None
