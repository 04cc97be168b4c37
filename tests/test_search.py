"Searching settings: kills, resumption, the ledger, honesty of a search inside a fold, Optuna as an oracle, the command line"
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_models import planted, same
from tradenb.core.panel import Dataset
from tradenb.models.base import load, out_of_fold, out_of_fold_paths, save
from tradenb.models.journal import Journal
from tradenb.models.search import Searched, behind, explained, proposal, search
from tradenb.models.spaces import Between, boosters, changed, drawn, grid, size, space_from
from tradenb.models.trees import LightGBM, XGBoost
from tradenb.validation.prediction import ic
from tradenb.validation.splits import CPCV, PurgedKFold, WalkForward
from tradenb.validation.trials import Trials

WALK = WalkForward(train=30, test=10, embargo=2)
SPACE = {"num_leaves": [3, 7, 15], "learning_rate": {"low": .01, "high": .3, "log": True}, "min_child_samples": [20, 200]}
LEAN = LightGBM(n_estimators=4)


class Mix:
    "No learning: the share of f0 in the score"
    def __init__(self, share=0., lag=0): self.share, self.lag = share, lag
    def fit(self, ds): return self
    def predict(self, X): return (self.share*X["f0"] + (1 - self.share)*X["f3"]).rename("score")


# a search is what it would be without interruption

KILLED = """if True:
    import sys, warnings
    warnings.simplefilter("ignore")
    from tests.test_models import planted
    from tests.test_search import LEAN, SPACE, WALK
    from tradenb.models.search import search
    from tradenb.validation.trials import Trials
    print("go", flush=True)
    search(LEAN, SPACE, planted(), WALK, 40, folder=sys.argv[1], trials=Trials(sys.argv[1] + "/trials.db"))
"""


def test_killed_at_random_a_search_ends_with_the_table_it_would_have_had(tmp_path):
    ds, rng, counts = planted(), np.random.default_rng(0), []
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as p:
            p.stdout.readline()
            began = time.monotonic()
            while not (tmp_path/"search.db").exists() and p.poll() is None and time.monotonic() - began < 60: time.sleep(.005)
            time.sleep(float(rng.uniform(.05, .6)))
            os.kill(p.pid, signal.SIGKILL)
        counts.append(_rows(tmp_path))
    assert counts == sorted(counts)
    n = max(14, counts[-1])
    resumed = search(LEAN, SPACE, ds, WALK, n, folder=tmp_path, trials=Trials(tmp_path/"trials.db"))
    whole = search(LEAN, SPACE, ds, WALK, n, trials=Trials(tmp_path/"other.db"))
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(resumed.folds, whole.folds, check_exact=True)
    assert repr(resumed.best) == repr(whole.best)
    assert set(resumed.table["trial"]) <= set(Trials(tmp_path/"trials.db").table()["id"])


def _rows(folder):
    import sqlite3
    db = sqlite3.connect(folder/"search.db")
    try: return db.execute("select count(*) from trials").fetchone()[0]
    except sqlite3.OperationalError: return 0   # killed before there was a table
    finally: db.close()


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_workers_do_not_change_the_table(sampler):
    ds = planted(sessions=60)
    space = SPACE if sampler != "grid" else {"num_leaves": [3, 7, 15], "min_child_samples": [20, 200]}
    one = search(LEAN, space, ds, WALK, 13, sampler, trials=None)
    two = search(LEAN, space, ds, WALK, 13, sampler, trials=None, n_jobs=2, backend="threading")
    pd.testing.assert_frame_equal(one.folds, two.folds, check_exact=True)
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    assert len(one.table) == (13 if sampler != "grid" else 6)
    assert not one.table[list(space)].duplicated().any()


def test_data_space_model_splitter_and_sampler_belong_to_a_search(tmp_path):
    ds, X = planted(sessions=50), planted(sessions=50).X
    def run(model=LEAN, space=SPACE, data=ds, walk=WALK, **more):
        return search(model, space, data, walk, 2, folder=tmp_path, trials=None, **{"sampler": "random", **more})
    run()
    for what, asked in {"seed": dict(seed=1), "prune": dict(prune=False), "sampler": dict(sampler="tpe"),
                        "splitter": dict(walk=PurgedKFold(3)), "model": dict(model=LightGBM(n_estimators=5)),
                        "space": dict(space=SPACE | {"num_leaves": [3, 7]})}.items():
        with pytest.raises(ValueError, match=f"is a search with another {what}: .*Search in another folder"): run(**asked)
    w, known, y = ds.w.copy(), ds.known_at.copy(), ds.y.copy()
    touched = X.copy()
    touched.iloc[9, 0] += 1e-12
    w.iloc[7] += 1e-9; known.iloc[7] += pd.Timedelta(days=1); y.iloc[7] += 1e-12
    names = X.index.set_levels(X.index.levels[1].str.replace("S003", "S003B"), level=1)
    moved = [X.set_axis(names), *(pd.Series(s.to_numpy(), names) for s in (ds.y, ds.w, ds.known_at))]
    for data in (Dataset(X, ds.y, w, ds.known_at), Dataset(X, ds.y, ds.w, known), Dataset(X, y, ds.w, ds.known_at),
                 Dataset(X.rename(columns={"f4": "g4"}), ds.y, ds.w, ds.known_at),
                 Dataset(touched, ds.y, ds.w, ds.known_at), Dataset(*moved)):
        with pytest.raises(ValueError, match="another data"): run(data=data)
    assert len(run().table) == 2


# the record

@pytest.mark.parametrize("splitter", [WALK, CPCV(4, 2, embargo=3)], ids=["walk", "cpcv"])
def test_a_trial_is_the_trial_that_out_of_fold_records(splitter, tmp_path):
    "The best of a search, scored again by models.base, is the same line of the ledger and no new one"
    ds, ledger = planted(sessions=80), Trials(tmp_path/"trials.db")
    found = search(LEAN, SPACE, ds, splitter, 12, trials=ledger)
    assert set(ledger.table()["id"]) == set(found.table["trial"]) and (found.table["state"] == "pruned").any()
    ask = out_of_fold_paths if hasattr(splitter, "paths") else out_of_fold
    scores = ask(found.best, ds, splitter, trials=ledger)
    assert scores.attrs["trial"] == found.table["trial"][found.number]
    assert len(ledger.table()) == found.table["trial"].nunique()


def test_the_value_is_the_mean_of_the_folds_rank_correlations():
    ds = planted(sessions=60)
    found = search(LEAN, SPACE, ds, WALK, 3, sampler="random", trials=None)
    for row in found.rows:
        model = changed(LEAN, row["params"])
        by_hand = [ic(changed(model, {}).fit(ds.take(train)).predict(ds.X.iloc[test]), ds.y.iloc[test]).fillna(0).mean()
                   for train, test in WALK.split(ds)]
        np.testing.assert_allclose(row["folds"], by_hand, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=6, max_size=6), min_size=5, max_size=9), st.lists(st.floats(-1, 1), min_size=1, max_size=6))
def test_only_what_is_behind_the_median_is_given_up(finished, values):
    means = sorted(np.mean(f[:len(values)]) for f in finished)
    n, k = len(means), len(values)
    middle = means[n//2] if n % 2 else (means[n//2 - 1] + means[n//2])/2
    assert behind(values, finished) == (3 <= k < 6 and np.mean(values) < middle)
    assert not behind(values, finished[:4])


def test_giving_up_saves_folds_and_loses_little():
    ds = planted(sessions=90)
    share = {"share": {"low": 0., "high": 1.}}
    lazy, whole = (search(Mix(), share, ds, WALK, 16, "random", prune, trials=None) for prune in (True, False))
    assert lazy.table["folds"].sum() < .85*whole.table["folds"].sum()
    assert lazy.params == whole.params # the points are drawn, so the best of them can be compared
    assert lazy.table["value"].max() >= whole.table["value"].max() - 1e-12


def test_optuna_itself_would_ask_for_the_same_point():
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, rng = space_from(SPACE), np.random.default_rng(0)
    past = [dict(params=drawn(space, rng), folds=[float(rng.normal())]*4, state="complete") for _ in range(15)]
    kinds = {"num_leaves": optuna.distributions.CategoricalDistribution((3, 7, 15)),
             "learning_rate": optuna.distributions.FloatDistribution(.01, .3, log=True),
             "min_child_samples": optuna.distributions.CategoricalDistribution((20, 200))}
    seed = int(np.random.default_rng([5, 15]).integers(2**31))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for row in past: study.add_trial(optuna.create_trial(params=row["params"], distributions=kinds, value=row["folds"][0]))
    assert proposal(space, past, "tpe", seed=5) == study.ask(kinds).params


def test_tpe_finds_a_peak_sooner_than_chance():
    space = {"a": {"low": 0., "high": 1.}, "b": {"low": 1e-4, "high": 1., "log": True}, "c": ["x", "y", "z"]}
    wanted = space_from(space)
    def value(p): return -(p["a"] - .3)**2 - (np.log10(p["b"]) + 2)**2/4 - (p["c"] != "y")
    def best(sampler, seed):
        past = []
        for _ in range(35):
            point = proposal(wanted, past, sampler, seed)
            past.append(dict(params=point, folds=[value(point)], state="complete"))
        return max(row["folds"][0] for row in past)
    assert np.median([best("tpe", s) for s in range(4)]) > np.median([best("random", s) for s in range(4)])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), min_size=1), st.integers(0, 99),
       st.sampled_from(["grid", "random"]))
def test_every_point_of_a_space_is_asked_for_once_and_then_it_ends(lists, seed, sampler):
    space, past = space_from(lists), []
    while (point := proposal(space, past, sampler, seed)) is not None: past.append(dict(params=point))
    points = [tuple(row["params"].values()) for row in past]
    assert len(points) == len(set(points)) == size(space) == len(grid(space))


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1), st.floats(1e-5, 1e5), st.booleans(), st.floats(0, 1))
def test_between_stays_between(low, more, log, share):
    assert low <= Between(low, low + more, log).at(share) <= low + more


def test_what_a_setting_explains_is_what_statsmodels_says():
    smf = pytest.importorskip("statsmodels.formula.api", reason="pip install 'tradenb[oracles]'")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.choice([1, 2, 3], 40), "b": rng.choice(["x", "y"], 40), "state": "complete"})
    table["value"] = .3*table["a"] + rng.normal(size=40)
    found = explained(table, {"a": (1, 2, 3), "b": ("x", "y")})
    for key in "ab": np.testing.assert_allclose(found[key], max(0, smf.ols(f"value ~ C({key})", table).fit().rsquared_adj), atol=1e-12)


# a search inside of the fold

def test_a_search_inside_sees_no_more_than_the_fold():
    "Labels after the training span move nothing, and labels within are all that it needs"
    ds, rng = planted(sessions=70), np.random.default_rng(1)
    model = Searched(LEAN, {"num_leaves": [3, 7], "learning_rate": [.05, .3]}, n_trials=3, inner=3, embargo=2, sampler="random")
    late = ds.known_at >= ds.sessions.unique()[50]
    other = Dataset(ds.X, ds.y.mask(late, pd.Series(rng.normal(0, 9, len(ds.y)), ds.y.index)), ds.w, ds.known_at)
    walk, last = WalkForward(train=40, test=10, embargo=0), ds.sessions.unique()[49]
    a, b = (out_of_fold(model, data, walk, trials=None) for data in (ds, other))
    same(a.loc[:last], b.loc[:last])
    assert not a.equals(b)


def test_noise_searched_inside_stays_noise_and_the_ledger_has_one_line(tmp_path):
    ds, rng, ledger = planted(sessions=120), np.random.default_rng(0), Trials(tmp_path/"t.db")
    none = ds.y.groupby("session").transform(lambda d: rng.permutation(d.to_numpy()))
    model = Searched(LEAN, {"num_leaves": [3, 7, 15], "learning_rate": [.05, .3]}, n_trials=4, inner=3, embargo=2, sampler="random")
    scores = out_of_fold(model, Dataset(ds.X, none, ds.w, ds.known_at), WalkForward(train=60, test=30, embargo=2), trials=ledger)
    found = ic(scores, none)
    assert abs(found.mean()) < 4*found.sem()
    assert len(ledger.table()) == 1


def test_searched_is_kept_and_read(tmp_path):
    ds = planted(sessions=50)
    for model in Searched(LEAN, {"num_leaves": [3, 7]}, 2, 3, 2, "grid"), Searched(XGBoost(n_estimators=4), {"max_depth": [2, 3]}, 2, 3, 2, "grid"):
        fitted = model.fit(ds)
        again = load(save(fitted, tmp_path/type(model.model).__name__, ds))
        same(again.predict(ds.X), fitted.predict(ds.X))
        assert again.dump() == fitted.dump() and again.space == model.space and again.features_ == list(ds.X.columns)


# what is refused

def test_slips_are_said_before_anything_is_computed():
    class Never:
        def __init__(self, a=1): self.a = a
        def fit(self, ds): raise AssertionError("fitted")
        def predict(self, X): return X
    ds = planted(sessions=50)
    for space, more, said in (({"b": [1]}, {}, "has no parameter 'b'"), ({"a": 1}, {}, "a is a list"), (None, {}, "there is no space for Never"),
                              ({"a": {"low": 0, "high": 1}}, dict(sampler="grid"), "wants a list"), ({"a": [1]}, dict(n_trials=0), "1 or more")):
        with pytest.raises(ValueError, match=said): search(Never(), space, ds, WALK, trials=None, **more)


def test_without_optuna_the_cure_is_named_and_grids_work():
    code = """if True:
        import sys; sys.modules["optuna"] = None
        from tests.test_search import Mix, WALK, planted, search
        print(search(Mix(), {"share": [0., .5, 1.]}, planted(50), WALK, sampler="grid", trials=None).params)
        try: search(Mix(), {"share": {"low": 0., "high": 1.}}, planted(50), WALK, 12, trials=None)
        except ImportError as e: print(e)"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "{'share': 1.0}" in said and "pip install 'tradenb[search]'" in said


def test_two_processes_with_one_search_do_no_harm(tmp_path):
    of = {"data": "x"}
    a, b = Journal(tmp_path/"search.db", of), Journal(tmp_path/"search.db", of)
    for number in range(5): (a if number % 2 else b).put(number, {"p": number}, [.1], "complete", None, 0.)
    a.put(2, {"p": 99}, [.9], "complete", None, 0.)
    assert [row["params"]["p"] for row in b.rows()] == [0, 1, 2, 3, 4]


def test_the_boosters_spaces_are_those_of_the_specification():
    told = boosters["LightGBM"]
    assert told == dict(num_leaves=[31, 63, 127], max_depth=[-1, 7, 11], learning_rate=[.01, .05, .1], min_child_samples=[50, 200],
                        colsample_bytree=[.6, .9], subsample=[.6, .9], reg_alpha=[0., 10.], reg_lambda=[0., 10.])


# the command

RECIPE = """
name: small
data: {settings: {universe: simulated, n_symbols: 12, n_sessions: 160}}
features: [core14]
label: {forward_return: {k: 5, excess: true}}
weights: [{time_decay: {half_life: 6}}]
split: {walk_forward: {train: 80, test: 21, embargo: 5}}
model: {lightgbm: {n_estimators: 4, min_child_samples: 20}}
rules: [{top_bottom: {k: 3, long: 0.5, short: -0.5}}]
"""


def test_a_recipe_is_searched_written_down_and_judged(tmp_path):
    from tradenb.ops.recipe import load as recipe_of
    from tradenb.ops.search import search_recipe
    (tmp_path/"small.yml").write_text(RECIPE)
    told = dict(space={"num_leaves": [3, 7], "learning_rate": [.05, .3]}, n_trials=4, sampler="random")
    found = search_recipe(tmp_path/"small.yml", tmp_path/"var", **told)
    best = recipe_of(found.file)
    assert best.model.args == {"n_estimators": 4, "min_child_samples": 20, **found.params} and best.weights and best.name == "small"
    assert found.test.facts["digest"] == best.digest()
    lines = Trials(tmp_path/"var"/"trials.db").table()
    assert len(lines) == found.table["trial"].nunique() and (lines["kind"] == "account").sum() == 1
    # the value of the best is that of the recipe's own scores, weights and all
    scored = found.test.scored
    told_of = scored["y"].notna() # a session whose labels are not known yet says nothing
    folds = [ic(scored["score"][part], scored["y"][part]).fillna(0).mean()
             for part in (told_of & scored.index.get_level_values("session").isin(days) for days in _tested(best, scored))]
    np.testing.assert_allclose(found.table["value"][found.search.number], np.mean(folds), rtol=1e-9)
    whole = search_recipe(tmp_path/"small.yml", tmp_path/"var", ["model.lightgbm.n_estimators=3"], **told)
    assert "extends" not in whole.file.read_text() and recipe_of(whole.file).model.args["n_estimators"] == 3


def _tested(recipe, scored):
    days = scored.index.unique("session")
    return [days[i:i + 21] for i in range(0, len(days), 21)]
