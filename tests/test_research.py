"Sweeps, comparisons, audits and the trial ledger, as somebody at a terminal uses them"
import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from tests.recipes import SMALL
from tradenb.core.panel import Dataset
from tradenb.ops import line
from tradenb.ops.history import backtest, judged
from tradenb.ops.line import dataset, gather, learner
from tradenb.ops.recipe import load
from tradenb.ops.sweep import sweep
from tradenb.ops.tracking import ledger_at, trials

GRID = {"model.xgboost.max_depth": [1, 2], "rules.0.top_bottom.k": [2, 4]}


@pytest.mark.whole
def test_the_backtest_says_which_trial_it_is(small, tmp_path, command):
    code, said = command("backtest", small, "--no-page", "--no-track")
    assert code == 0 and "the first on these names and days" in said and "DSR" in said
    code, said = command("sweep", small, "--grid", "model.xgboost.max_depth=1,2,3", "--grid", "rules.0.top_bottom.k=[2, 4]")
    assert code == 0 and "* max_depth=" in said and "below the median in the other half with probability" in said, said
    code, said = command("backtest", small, "--no-page", "--no-track")
    assert code == 0 and re.search(r"trials 6 on these names and days, effectively \d", said), said   # it is one of the six itself
    said = re.sub(r"[│\s]+", " ", said)      # a sentence may be broken into two lines of the panel
    assert "This is one of 6 trials" in said and "the deflated Sharpe ratio is" in said
    code, said = command("trials")
    assert code == 0 and "6 trials" in said
    code, said = command("backtest", small, "--no-page", "--no-track", "--permute", "0")
    assert code == 0 and "DSR" not in said and "6 trials" in command("trials")[1]   # the null is nobody's trial


@pytest.mark.whole
def test_a_name_does_not_hide_a_trial(small, tmp_path):
    (tmp_path/"other.yml").write_text(SMALL.replace("name: small", "name: brand_new\ntitle: Never tried before"))
    first, again = (backtest(load(path), tmp_path/"home", n_jobs=1) for path in (small, tmp_path/"other.yml"))
    assert len(trials(tmp_path/"home")) == 1
    deep = backtest(load(tmp_path/"other.yml", ["model.xgboost.max_depth=4"]), tmp_path/"home", n_jobs=1)
    assert judged(deep, tmp_path/"home")["trials"] == 2


@pytest.mark.whole
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"], indirect=True)
def test_a_sweep_is_the_same_on_every_backend(small, tmp_path, backend):
    one, two = sweep(small, GRID, tmp_path/"a"), sweep(small, GRID, tmp_path/"b", n_jobs=2, backend=backend)
    pd.testing.assert_frame_equal(one.returns, two.returns, check_exact=True)
    assert one.best == two.best and one.pbo.value == two.pbo.value
    assert trials(tmp_path/"a").set_index("id")["sharpe"].to_dict() == trials(tmp_path/"b").set_index("id")["sharpe"].to_dict()
    assert two.standing["trials"] == 4


@pytest.mark.whole
def test_paths_of_a_combinatorial_split(small, tmp_path):
    r = load(small, ["split={cpcv: {n_groups: 6, n_test: 2, embargo: 5}}"])
    done = backtest(r, tmp_path/"home", n_jobs=1)
    ratios = done.facts["paths"]["sharpe"]
    assert len(ratios) == 5 and sorted(ratios)[2] == pytest.approx(done.facts["metrics"]["sharpe"])
    assert done.facts["model"]["folds"] == 15 and len(trials(tmp_path/"home")) == 1
    one, two = (backtest(load(small, [f"split={{purged_kfold: {{n_splits: {n}, embargo: 5}}}}"]), tmp_path/"home", n_jobs=1) for n in (4, 5))
    assert len(one.facts["paths"]["sharpe"]) == 1 and len(trials(tmp_path/"home")) == 3


def test_weights_are_made_of_the_training_rows_alone(small, tmp_path):
    "The weight of a row does not know what followed the training span"
    r = load(small, ["weights=[uniqueness, {time_decay: {half_life: 6}}]"])
    ds = dataset(r, gather(r, tmp_path/"home"))
    days = ds.sessions.unique()
    by = learner(r, tmp_path/"home")
    def taught(last): return ds.take((ds.known_at < last).to_numpy().nonzero()[0])
    seen = by.weighed(taught(days[100])).w
    later = Dataset(ds.X, ds.y, ds.w, ds.known_at.where(ds.sessions < days[120], pd.Timestamp("2030-01-02")))
    same = by.weighed(later.take((later.known_at < days[100]).to_numpy().nonzero()[0])).w
    pd.testing.assert_series_equal(seen, same, check_exact=True)
    assert 0 < seen.min() < seen.max() < 1


@pytest.mark.whole
def test_sleeves_are_scored_by_the_splitter_that_asks_and_see_nothing_later(small, tmp_path):
    "A column a sleeve, in the order of their names, each what the sleeve alone says under the blender's splitter"
    (tmp_path/"zulu.yml").write_text(SMALL.replace("name: small", "name: zulu"))
    (tmp_path/"alpha.yml").write_text(SMALL.replace("name: small", "name: alpha").replace("max_depth: 2", "max_depth: 1").replace("test: 21", "test: 10"))
    (tmp_path/"both.yml").write_text("extends: small.yml\nname: both\nfeatures: []\nsleeves: [zulu.yml, alpha.yml]\n"
                                     "split: {walk_forward: {train: 80, test: 30, embargo: 5}}\nmodel: {stacker: {learner: ridge}}\n")
    asked, home = load(tmp_path/"both.yml"), tmp_path/"home"
    market = gather(asked, home)
    ds = dataset(asked, market, home)
    assert list(ds.X) == ["alpha", "zulu"]
    for name in ds.X:
        alone = load(tmp_path/f"{name}.yml", ["split={walk_forward: {train: 80, test: 30, embargo: 5}}"])
        said = line.score(alone, dataset(alone, market, home), home, trials=None, n_jobs=1)
        pd.testing.assert_series_equal(ds.X[name].dropna(), said.reindex(ds.X.index).dropna(), check_names=False, check_exact=True)
    cut = market.panel.index.unique("session")[150]
    before = dataset(asked, gather(asked, home, when=cut), home).X
    assert len(before) and before.index.get_level_values("session").max() == cut
    common = before.index.intersection(ds.X.index[ds.X.index.get_level_values("session") <= cut])
    assert len(common) > 100
    np.testing.assert_array_equal(ds.X.loc[common], before.loc[common])


def test_what_an_older_code_has_learnt_is_not_remembered(small, tmp_path, monkeypatch):
    r = load(small)
    ds = line.last_training(r, dataset(r, gather(r, tmp_path/"home"), tmp_path/"home"))
    by = learner(r, tmp_path/"home")
    now = by.key(ds)
    assert by.key(ds) == now
    monkeypatch.setattr(line, "code_digest", lambda floor: {"models": "0"*12}[floor])
    assert by.key(ds) != now


def test_every_shipped_recipe_loads(root):
    shipped = [p for p in sorted((root/"recipes").glob("*.yml")) if p.name != "base.yml"]
    assert len(shipped) >= 6
    for path in shipped: assert load(path).name == path.stem


@pytest.mark.whole
def test_compare_in_the_terminal_and_on_a_page(small, tmp_path, command):
    (tmp_path/"wide.yml").write_text(SMALL.replace("name: small", "name: wide").replace("k: 4", "k: 7"))
    code, said = command("compare", small, tmp_path/"wide.yml")
    assert code == 0 and "sessions that all of them traded" in said and "small less wide" in said, said
    page = tmp_path/"var"/"reports"/"compare"/"small-wide"/"index.html"
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))).split())
    for must in ("SIMULATED market", "They differ in rules", "rank information coefficient", "p_holm", "Verdict",
                 "They read the same data", "may have been luck", "dsr"): assert must in words, must
    assert page.read_text().count("<img") >= 3 and "Warning" not in words
    code, said = command("compare", small)
    assert code == 1 and "two recipes or more" in said
    code, said = command("compare", small, tmp_path/"none.yml")
    assert code == 1 and "no such recipe" in said


def test_what_a_sweep_cannot_follow_fails_before_anything_is_computed(small, command, tmp_path):
    for said, want in ((("--grid", "model.xgboost.max_dept=1,2"), "did you mean 'max_depth'"), ((), "a sweep needs a grid"),
                       (("--grid", "seed"), "should be KEY=V1,V2"), (("--grid", "seed=1,2", "--backend", "spark"), "no backend 'spark'")):
        code, told = command("sweep", small, *said)
        assert code == 1 and want in told, told
    assert not (tmp_path/"var"/"backtests").exists()


@pytest.mark.whole
def test_audit_finds_the_planted_leak_and_nothing_else(small, tmp_path, command, monkeypatch):
    small.write_text(SMALL.replace("n_estimators: 10, max_depth: 2", "n_estimators: 60, max_depth: 3, learning_rate: 0.3"))
    code, said = command("audit", small, "--cuts", "4")
    assert code == 0, said
    from tradenb.features import price
    clean = price.core14
    def core14(panel):   # tomorrow's return among today's features
        made = clean(panel)
        return made.assign(ret_1=made["ret_1"].groupby(level="symbol").shift(-1))
    monkeypatch.setattr(price, "core14", core14)
    code, said = command("audit", small, "--cuts", "4")
    assert code == 4 and "core14" in said, said


def test_the_ledger_is_plain_numbers(small, tmp_path):
    "Anybody can read it without this library, and nothing in it can be executed"
    import sqlite3
    ledger_at(tmp_path).record(pd.Series([.01, -.02, .03], pd.bdate_range("2024-01-02", periods=3)), ["SPY"], "by hand")
    with sqlite3.connect(tmp_path/"trials.db") as db: days, rets = db.execute("select days, rets from trials").fetchone()
    assert len(days) == len(rets) == 24 and json.dumps(memoryview(rets).cast("d").tolist()) == "[0.01, -0.02, 0.03]"
