"Folds that cannot leak: every splitter against one written row by row from the sentence, and against independent libraries"
import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tradenb.core.panel import Dataset
from tradenb.validation.splits import CPCV, PurgedKFold, WalkForward, overlapping

DAYS = pd.bdate_range("2019-01-02", periods=2520, name="session")
DAILY = pd.date_range("2019-01-01", periods=400, name="session")   # for libraries that count days


# --- what is split --------------------------------------------------------------------------------------------------

@st.composite
def ragged(draw, most=45):
    "A dataset with holes, labels of any length, some of them early, some not known yet"
    n, seed = draw(st.integers(8, most)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:n], list("ABC")], names=["session", "symbol"])
    index = index[rng.random(len(index)) < draw(st.sampled_from([.4, .8, 1.]))]
    at = DAYS.get_indexer(index.get_level_values("session")) + rng.integers(0, draw(st.integers(1, 12)), len(index))
    known = pd.Series(DAYS[at], index).where(rng.random(len(index)) < .95)
    return Dataset(pd.DataFrame({"x": 0.}, index), pd.Series(0., index), pd.Series(1., index), known)

def a_name(labels, days=DAYS):
    "One name, whose labels take so many sessions each"
    n = len(labels)
    index = pd.MultiIndex.from_product([days[:n], ["A"]], names=["session", "symbol"])
    known = pd.Series(days[np.arange(n) + labels], index)
    return Dataset(pd.DataFrame({"x": np.arange(n)*1.}, index), pd.Series(0., index), pd.Series(1., index), known)

def parts(ds): return list(ds.sessions), list(ds.known_at), list(ds.X.index.get_level_values("symbol"))


# --- walk forward ---------------------------------------------------------------------------------------------------

splitters = st.builds(lambda train, test, embargo, expanding: WalkForward(train, test, min(embargo, train - 1), expanding),
                      st.integers(2, 20), st.integers(1, 9), st.integers(0, 6), st.booleans())

def folds_of(splitter, ds):
    "All folds, or as many as there are before one has nothing to train on; None if the dataset is too short"
    found = []
    try:
        for fold in splitter.split(ds): found.append(fold)
    except ValueError as e:
        if "nothing to test" in str(e): return None
        assert "train must exceed embargo" in str(e)
    return found

def by_hand(splitter, ds, i):
    "Fold i, row by row and from the sentence alone"
    session, known = list(ds.X.index.get_level_values("session")), list(ds.known_at)
    axis = sorted(set(session))
    first = splitter.train + i*splitter.test
    begin = axis[0] if splitter.expanding else axis[first - splitter.train]
    must_be_known = axis[first - splitter.embargo - 1]
    block = set(axis[first:first + splitter.test])
    return ([p for p, (s, k) in enumerate(zip(session, known, strict=True)) if s >= begin and k <= must_be_known],
            [p for p, s in enumerate(session) if s in block])

@settings(max_examples=40, deadline=None)
@given(ragged(), splitters)
def test_folds_are_those_of_the_sentence(ds, splitter):
    "Labels that end early or late, rows that are no sessions, start and end of a label: one oracle for all"
    for i, (train, test) in enumerate(folds_of(splitter, ds) or []):
        assert (train.tolist(), test.tolist()) == by_hand(splitter, ds, i)

@settings(max_examples=40, deadline=None)
@given(ragged(), splitters)
def test_no_label_reaches_the_embargo_and_blocks_leave_no_gap(ds, splitter):
    found = folds_of(splitter, ds)
    if not found: return
    session, known = ds.X.index.get_level_values("session"), ds.known_at.to_numpy()
    axis = session.unique()
    for train, test in found:
        first = axis.get_loc(session[test[0]])
        assert (known[train] < axis[first - splitter.embargo].to_datetime64()).all()
        assert axis.get_loc(session[test[-1]]) - first < splitter.test
    tested = np.concatenate([test for _, test in found])
    assert (np.diff(tested) == 1).all() and session[tested[0]] == axis[splitter.train]

@settings(max_examples=40, deadline=None)
@given(ragged(), splitters, st.data())
def test_a_longer_dataset_changes_no_earlier_fold(ds, splitter, data):
    whole, session = folds_of(splitter, ds), ds.X.index.get_level_values("session")
    if not whole: return
    last = data.draw(st.sampled_from(list(session.unique())))
    seen = session <= last
    then = Dataset(ds.X[seen], ds.y[seen], ds.w[seen], ds.known_at[seen].where(ds.known_at[seen] <= last))
    for (train, test), (old_train, old_test) in zip(whole, folds_of(splitter, then) or [], strict=False):
        assert train.tolist() == old_train.tolist() and test[:len(old_test)].tolist() == old_test.tolist()

@settings(max_examples=30, deadline=None)
@given(ragged(), st.integers(1, 9), st.integers(0, 10))
def test_more_history_behind_a_named_start_moves_nothing(ds, test, cut):
    axis = ds.X.index.get_level_values("session").unique()
    if len(axis) < 25: return
    splitter = WalkForward(10, test, 2, expanding=False, start=axis[22])
    later = ds.X.index.get_level_values("session") >= axis[cut]
    short = Dataset(ds.X[later], ds.y[later], ds.w[later], ds.known_at[later])
    rows = [[d.X.index[p].tolist() for fold in folds_of(splitter, d) for p in fold] for d in (ds, short)]
    assert rows[0] == rows[1]

def test_tonight_has_a_fold_and_it_is_the_backtests():
    "The span that ops reads off the table trains on the rows that split would train on, a session later"
    index = pd.MultiIndex.from_product([DAYS[:100], ["A"]], names=["session", "symbol"])
    known = pd.Series(DAYS[6:106], index)
    ds = Dataset(pd.DataFrame({"x": 0.}, index), pd.Series(0., index), pd.Series(1., index), known)
    splitter = WalkForward(train=40, test=10, embargo=5)
    for n in range(41, 101):
        fold = splitter.folds(DAYS[:n]).iloc[-1]
        session = index.get_level_values("session")
        rows = np.flatnonzero((session >= fold.train_first) & (known <= fold.train_last))
        train, test = list(splitter.split(ds))[len(splitter.folds(DAYS[:n])) - 1]
        assert rows.tolist() == train.tolist() and n - 1 in test and fold.test_last == DAYS[n-1]


def test_walk_forward_is_scikit_learns_with_a_gap_for_the_labels():
    "One name, labels of one length: the purge is a gap of rows, which TimeSeriesSplit has"
    from sklearn.model_selection import TimeSeriesSplit
    for train, test, embargo, label in (20, 10, 2, 3), (35, 5, 0, 1), (15, 7, 6, 4):
        ds, n = a_name(np.full(train + 6*test, label)), 6
        ours = WalkForward(train, test, embargo).split(ds)
        theirs = TimeSeriesSplit(n, test_size=test, gap=embargo + label).split(ds.X)
        assert [(a.tolist(), b.tolist()) for a, b in ours] == [(a.tolist(), b.tolist()) for a, b in theirs]


# --- which rows leak ------------------------------------------------------------------------------------------------

def leaks_by_hand(ds, train, test, purge, embargo):
    "Every training row against every tested one: the intervals, and then so many sessions more"
    session, known, name = parts(ds)
    axis, found = sorted(set(session)), []
    for i in train:
        met = pd.isna(known[i])
        for j in test:
            if met or (purge == "symbol" and name[i] != name[j]): continue
            end = session[j] if pd.isna(known[j]) else known[j]
            met = known[i] >= session[j] and (session[i] <= end or sum(end < day <= session[i] for day in axis) <= embargo)
        if met: found.append(i)
    return found

@settings(max_examples=40, deadline=None)
@given(ragged(most=25), st.sampled_from(["time", "symbol"]), st.integers(0, 6), st.data())
def test_leaks_are_those_of_the_sentence(ds, purge, embargo, data):
    "Any rows against any rows: blocks, blocks with holes, rows at random"
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    train, test = (np.flatnonzero(rng.random(len(ds.y)) < data.draw(st.sampled_from([.1, .5]))) for _ in range(2))
    rng.shuffle(train)
    assert overlapping(ds, train, test, purge, embargo).tolist() == leaks_by_hand(ds, train, test, purge, embargo)
    assert overlapping(ds.X, train, test, purge, embargo, known_at=ds.known_at).tolist() == overlapping(ds, train, test, purge, embargo).tolist()

def test_rows_far_away_do_not_leak():
    ds = a_name(np.full(30, 2))
    assert overlapping(ds, [], []).tolist() == overlapping(ds, [0, 1], []).tolist() == overlapping(ds, [], [5]).tolist() == []
    assert overlapping(ds, np.arange(30, dtype=np.uint8), [20], embargo=10**9).tolist() == list(range(18, 30))


# --- blocks ---------------------------------------------------------------------------------------------------------

def blocks_by_hand(ds, n, k, embargo, purge):
    "All folds, row by row and from the sentence alone: a block is [first session, last known_at], each tested group its own"
    session, known, name = parts(ds)
    axis, rows = sorted(set(session)), range(len(session))
    groups = [set(group) for group in np.array_split(np.array(axis, dtype=object), n)]
    for tested in combinations(range(n), k):
        test = [p for g in tested for p in rows if session[p] in groups[g]]
        train = []
        for p in rows:
            drop = pd.isna(known[p]) or p in test
            for g in tested:
                mine = [q for q in rows if session[q] in groups[g] and (purge == "time" or name[q] == name[p])]
                if drop or not mine: continue
                first, last = min(session[q] for q in mine), max(session[q] if pd.isna(known[q]) else known[q] for q in mine)
                drop = (session[p] <= last and known[p] >= first) or (session[p] > last and sum(last < d <= session[p] for d in axis) <= embargo)
            if not drop: train.append(p)
        yield train, test

shapes = st.integers(2, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))

def taken(splitter, ds):
    "All folds as lists, or those before the first one that has nothing to train on"
    found = []
    try:
        for train, test in splitter.split(ds): found.append((train.tolist(), test.tolist()))
    except ValueError as e: assert "shorten the embargo" in str(e)
    return found

@settings(max_examples=40, deadline=None)
@given(ragged(most=22), shapes, st.integers(0, 5), st.sampled_from(["time", "symbol"]))
def test_blocks_are_those_of_the_sentence(ds, shape, embargo, purge):
    n, k = shape
    assume(ds.sessions.nunique() >= n)
    splitter = PurgedKFold(n, embargo, purge) if k == 1 else CPCV(n, k, embargo, purge)
    found, by_hand = taken(splitter, ds), list(blocks_by_hand(ds, n, k, embargo, purge))
    assert found == by_hand[:len(found)]
    assert len(found) == splitter.get_n_splits() or not by_hand[len(found)][0]

@settings(max_examples=40, deadline=None)
@given(ragged(most=30), shapes, st.integers(0, 5))
def test_purging_each_name_for_itself_keeps_more(ds, shape, embargo):
    assume(ds.sessions.nunique() >= shape[0])
    for (by_time, test), (by_name, same) in zip(*(taken(CPCV(*shape, embargo, p), ds) for p in ("time", "symbol")), strict=False):
        assert set(by_time) <= set(by_name) and test == same
        assert not len(overlapping(ds, by_time, test, embargo=embargo)) and not len(overlapping(ds, by_name, test, "symbol", embargo))


# --- four bugs that libraries have ----------------------------------------------------------------------------------

@st.composite
def barriers(draw):
    "Labels of one name that end early or late, as barrier labels do"
    n = draw(st.integers(12, 40))
    return a_name(np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))))

@settings(max_examples=40, deadline=None)
@given(barriers(), shapes)
def test_labels_that_end_early(ds, shape):
    "Neither the last row's label nor a number of rows ends a block: nothing that meets it stays, nothing else goes"
    assume(len(ds.y) >= shape[0])
    session, known, _ = parts(ds)
    for train, test in taken(CPCV(*shape, embargo=0), ds):
        for p in set(range(len(session))) - set(test):
            meets = any(session[p] <= known[q] and session[q] <= known[p] for q in test)
            assert (p in train) != meets

@settings(max_examples=40, deadline=None)
@given(ragged(), shapes, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_wrong_index(ds, shape, embargo, random):
    "known_at in another order is refused, never read by place; in the rows' own order it may come without an index"
    assume(ds.sessions.nunique() >= shape[0])
    splitter, groups = CPCV(*shape, embargo), ds.known_at
    order = list(range(len(groups)))
    random.shuffle(order)
    assume(order != sorted(order))
    for wrong in groups.iloc[order], groups.reset_index(drop=True), groups.iloc[1:], groups.to_numpy()[1:]:
        with pytest.raises(ValueError, match="reindex|take both"): next(splitter.split(ds.X, groups=wrong))
    expected = taken(splitter, ds)
    for right in groups, groups.to_numpy(), groups.iloc[order].reindex(ds.X.index):
        found = []
        try:
            for train, test in splitter.split(ds.X, groups=right): found.append((train.tolist(), test.tolist()))
        except ValueError: pass
        assert found == expected

@settings(max_examples=40, deadline=None)
@given(ragged(), st.integers(3, 6), st.integers(0, 5))
def test_blocks_that_do_not_touch(ds, n, embargo):
    "What trains beside two blocks is what trains beside the one and beside the other: no more, and no less"
    assume(ds.sessions.nunique() >= n)
    alone, pairs = taken(PurgedKFold(n, embargo), ds), taken(CPCV(n, 2, embargo), ds)
    for (g, h), (train, test) in zip(combinations(range(n), 2), pairs, strict=False):
        if max(g, h) >= len(alone): continue
        assert train == sorted(set(alone[g][0]) & set(alone[h][0])) and test == alone[g][1] + alone[h][1]

@settings(max_examples=40, deadline=None)
@given(ragged(most=20), st.data())
def test_start_and_end_swapped(ds, data):
    "To meet is mutual; and labels that end before they start are refused, whoever brings them"
    known = ds.known_at.notna().to_numpy()
    assume(known.any())
    i, j = (data.draw(st.sampled_from(np.flatnonzero(known).tolist())) for _ in range(2))
    assert len(overlapping(ds, [i], [j])) == len(overlapping(ds, [j], [i]))
    late = known & (ds.known_at > ds.sessions).to_numpy()
    assume(late.any())
    row = ds.known_at[late].index[0]
    swapped = ds.known_at.copy()
    swapped[row] = row[0] - (ds.known_at[row] - row[0])
    for splitter in WalkForward(2, 1, 0), PurgedKFold(2), CPCV(3, 2):
        with pytest.raises(ValueError, match="1 labels known before their own session, first .*swapped"): next(splitter.split(ds.X, groups=swapped))


# --- spans and paths ------------------------------------------------------------------------------------------------

@settings(max_examples=15, deadline=None)
@given(st.integers(8, 40), shapes)
def test_the_table_of_spans_holds_every_fold(n, shape):
    ds = a_name(np.zeros(n, int))
    splitter = CPCV(*shape, embargo=0)
    table = splitter.folds(ds.sessions)
    for fold, (train, test) in enumerate(splitter.split(ds)):
        spans_of = table.loc[fold]
        assert (spans_of["train_first"] == ds.sessions[train[0]]).all() and (spans_of["train_last"] == ds.sessions[train[-1]]).all()
        inside = [p for p, day in enumerate(ds.sessions) if ((spans_of["test_first"] <= day) & (day <= spans_of["test_last"])).any()]
        assert inside == test.tolist()
    assert len(table) == splitter.get_n_splits()*shape[1]

@settings(max_examples=30, deadline=None)
@given(ragged(most=30), shapes)
def test_paths_use_every_test_once_and_no_path_tests_twice(ds, shape):
    n, k = shape
    assume(ds.sessions.nunique() >= n)
    splitter = CPCV(n, k)
    axis = ds.sessions.unique()
    block = np.concatenate([np.full(len(g), i) for i, g in enumerate(np.array_split(axis, n))])[axis.get_indexer(ds.sessions)]
    folds = [np.flatnonzero(np.isin(block, tested)) for tested in combinations(range(n), k)]
    scores = [pd.Series(1000.*fold + test, ds.X.index[test]) for fold, test in enumerate(folds)]
    paths = splitter.paths(scores)
    assert paths.shape == (len(ds.y), splitter.n_paths) and paths.index.equals(ds.X.index) and splitter.n_paths*n == splitter.get_n_splits()*k
    row, fold = paths.to_numpy() % 1000, paths.to_numpy()//1000
    assert (row == np.arange(len(ds.y))[:, None]).all() and not np.isnan(paths.to_numpy()).any()
    pairs = {(int(f), int(b)) for f, b in zip(fold.ravel(), np.repeat(block, splitter.n_paths), strict=True)}
    assert pairs == {(f, g) for f, tested in enumerate(combinations(range(n), k)) for g in tested}
    assert all(len(set(fold[block == g, path])) == 1 for g in range(n) for path in range(splitter.n_paths))
    assert (np.sort(fold, axis=1) == fold).all()

def test_paths_of_a_strategys_returns_are_by_session():
    cv = CPCV(5, 2)
    groups = np.array_split(DAYS[:50], 5)
    returns = [pd.Series(float(f), groups[a].append(groups[b]).rename("session")) for f, (a, b) in enumerate(combinations(range(5), 2))]
    paths = cv.paths(returns)
    assert paths.index.equals(DAYS[:50]) and (paths.iloc[::10].to_numpy() == cv.routes().to_numpy()).all()


# --- independent libraries ------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("n", "k", "size", "label", "embargo"), [(6, 2, 20, 4, 3), (8, 3, 15, 2, 0), (5, 4, 30, 6, 5), (4, 2, 12, 0, 2)])
def test_skfolio_yields_the_same_folds_where_labels_have_one_length(n, k, size, label, embargo):
    "It counts rows; so do we, as long as labels take the same time and the sessions divide"
    selection = pytest.importorskip("skfolio.model_selection")
    ds = a_name(np.full(n*size, label))
    theirs = selection.CombinatorialPurgedCV(n, k, purged_size=label, embargo_size=embargo)
    ours = CPCV(n, k, embargo)
    assert taken(ours, ds) == [(train.tolist(), np.concatenate(test).tolist()) for train, test in theirs.split(ds.X)]
    assert (ours.get_n_splits(), ours.n_paths) == (theirs.n_splits, theirs.n_test_paths)
    assert ours.routes().to_numpy().tolist() == theirs.recombined_paths.tolist()

def test_skfolio_leaks_where_labels_end_when_they_end():
    selection = pytest.importorskip("skfolio.model_selection")
    labels = np.full(60, 3)
    labels[[22, 37]] = 9, 0
    ds = a_name(labels)
    theirs = [(train, np.concatenate(test)) for train, test in selection.CombinatorialPurgedCV(4, 2, purged_size=3).split(ds.X)]
    assert any(len(overlapping(ds, train, test)) for train, test in theirs)
    assert not any(len(overlapping(ds, train, test)) for train, test in CPCV(4, 2, embargo=0).split(ds))

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 1), (5, 2), (6, 3), (5, 4)]), st.integers(0, 6))
def test_purgedcv_yields_the_same_folds_if_a_label_ends_a_day_later(seed, shape, embargo):
    "Its intervals are half open, so ours are its own with a day more; its embargo is a time, so days make the axis"
    purgedcv = pytest.importorskip("purgedcv")
    (n, k), rng = shape, np.random.default_rng(seed)
    ds = a_name(rng.integers(0, 12, rng.integers(60, 120)), DAILY)
    times = dict(prediction_times=pd.Series(ds.sessions), evaluation_times=pd.Series(ds.known_at.to_numpy()) + pd.Timedelta("1D"))
    if embargo: times["embargo"] = pd.Timedelta(days=embargo - 1)
    theirs = purgedcv.PurgedKFold(n, **times) if k == 1 else purgedcv.CombinatorialPurgedCV(n_splits=n, n_test_groups=k, **times)
    if embargo == 1: return    # an embargo of no time is none, and ours would be one of a session
    expected = [(train.tolist(), test.tolist()) for train, test in theirs.split(ds.X)]
    found = taken(PurgedKFold(n, embargo) if k == 1 else CPCV(n, k, embargo), ds)
    assert found == expected[:len(found)] and (len(found) == len(expected) or not expected[len(found)][0])

def test_purgedcv_puts_the_same_paths_together():
    purgedcv = pytest.importorskip("purgedcv")
    ds, rng = a_name(np.full(61, 1), DAILY), np.random.default_rng(0)
    times = dict(prediction_times=pd.Series(ds.sessions), evaluation_times=pd.Series(ds.known_at.to_numpy()))
    theirs, ours = purgedcv.CombinatorialPurgedCV(n_splits=6, n_test_groups=3, **times), CPCV(6, 3, 0)
    tests = [test for _, test in ours.split(ds)]
    scores = [rng.normal(size=len(test)) for test in tests]
    paths = ours.paths([pd.Series(x, ds.X.index[test]) for x, test in zip(scores, tests, strict=True)])
    np.testing.assert_array_equal(paths.to_numpy().T, theirs.reconstruct_paths(scores))

def test_where_purgedcv_differs():
    "A label known at the close of the test's first session trains there; an embargo of rows is used up by the labels"
    purgedcv = pytest.importorskip("purgedcv")
    ds = a_name(np.full(40, 3), DAILY)
    times = dict(prediction_times=pd.Series(ds.sessions), evaluation_times=pd.Series(ds.known_at.to_numpy()))
    without, rows = (list(purgedcv.PurgedKFold(4, **times, **more).split(ds.X)) for more in ({}, {"embargo_observations": 2}))
    assert all(a.tolist() == b.tolist() for (a, _), (b, _) in zip(without, rows, strict=True))
    train, test = without[1]
    assert overlapping(ds, train, test).tolist() == [7, 22]


# --- scikit-learn ---------------------------------------------------------------------------------------------------

@pytest.fixture
def learnable():
    "Forty sessions of three names, a label with a known line in it, known three sessions later"
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([DAYS[:40], list("ABC")], names=["session", "symbol"])
    X = pd.DataFrame(rng.normal(size=(120, 2)), index, columns=["a", "b"])
    y = X["a"]*.5 + rng.normal(0, .1, 120)
    return Dataset(X, y, pd.Series(1., index), pd.Series(DAYS[3:43].repeat(3), index))

def test_cross_val_predict_predicts_each_row_by_the_model_of_its_fold(learnable):
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import cross_val_predict
    ds, cv = learnable, PurgedKFold(4, embargo=2)
    by_hand = np.empty(120)
    for train, test in cv.split(ds):
        by_hand[test] = LinearRegression().fit(ds.X.iloc[train], ds.y.iloc[train]).predict(ds.X.iloc[test])
    np.testing.assert_array_equal(cross_val_predict(LinearRegression(), ds.X, ds.y, cv=cv, groups=ds.known_at), by_hand)

@pytest.mark.parametrize("cv", [WalkForward(15, 5, 2), PurgedKFold(4, 2), CPCV(5, 2, 2), CPCV(5, 3, 1, "symbol")])
def test_cross_validate_and_grid_search_take_every_splitter(learnable, cv):
    from sklearn.base import clone
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, check_cv, cross_validate
    ds = learnable
    done = cross_validate(Ridge(), ds.X, ds.y, cv=cv, groups=ds.known_at, return_indices=True)
    assert len(done["test_score"]) == cv.get_n_splits(ds.X, ds.y, ds.known_at) and check_cv(cv) is cv
    for (train, test), used, tested in zip(cv.split(ds), done["indices"]["train"], done["indices"]["test"], strict=True):
        assert train.tolist() == used.tolist() and test.tolist() == tested.tolist()
    search = clone(GridSearchCV(Ridge(), {"alpha": [.01, 1e4]}, cv=cv)).fit(ds.X, ds.y, groups=ds.known_at)
    assert search.n_splits_ == len(done["test_score"]) and search.best_params_ == {"alpha": .01}
    with pytest.raises(ValueError, match="groups=ds.known_at"): cross_validate(Ridge(), ds.X, ds.y, cv=cv, error_score="raise")

def test_a_splitter_asks_nothing_of_the_process_it_runs_in(learnable):
    "It travels to workers, and two of the same settings are the same"
    import pickle
    cv = CPCV(5, 2, 2)
    assert pickle.loads(pickle.dumps(cv)) == cv == CPCV(5, 2, 2) != CPCV(5, 2, 3)   # noqa: S301 our own bytes


# --- on real prices -------------------------------------------------------------------------------------------------

@pytest.mark.real
@pytest.mark.parametrize("purge", ["time", "symbol"])
def test_503_stocks_with_labels_of_any_length(real_data, purge):
    "Half a million rows, names listed late: each fold against the blocks' intervals, by pandas, in one pass a fold"
    frame = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet", columns=["date", "symbol", "close"])
    frame["session"] = pd.to_datetime(frame["date"]).astype("datetime64[us]")
    frame = frame.astype({"symbol": "str"}).set_index(["session", "symbol"])[["close"]].sort_index()
    session, rng = frame.index.get_level_values("session"), np.random.default_rng(0)
    axis = session.unique()
    place = axis.get_indexer(session)
    reach = place + rng.integers(0, 21, len(place))
    known = pd.Series(axis.append(pd.bdate_range(axis[-1] + pd.Timedelta("1D"), periods=30))[reach], frame.index)
    ds = Dataset(frame, frame["close"], frame["close"]*0 + 1, known)
    group = np.concatenate([np.full(len(g), i) for i, g in enumerate(np.array_split(axis, 8))])[place]
    name = pd.factorize(frame.index.get_level_values("symbol"))[0] if purge == "symbol" else np.zeros(len(place), int)
    rows = pd.DataFrame({"first": place, "last": reach, "group": group, "name": name})
    edges = rows.groupby(["group", "name"]).agg(first=("first", "min"), last=("last", "max"))
    for (g, h), (train, test) in list(zip(combinations(range(8), 2), CPCV(purge=purge).split(ds), strict=True))[::5]:
        keep = ~rows["group"].isin([g, h])
        for block in g, h:
            edge = edges.loc[block].reindex(rows["name"])
            keep &= ~((rows["last"].to_numpy() >= edge["first"].to_numpy()) & (rows["first"].to_numpy() <= edge["last"].to_numpy() + 10))
        assert train.tolist() == np.flatnonzero(keep).tolist() and test.tolist() == np.flatnonzero(rows["group"].isin([g, h])).tolist()


def test_importing_stays_light():
    code = ("import sys, tradenb.validation.splits;"
            "print([m for m in ('scipy', 'sklearn', 'matplotlib', 'numba') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
