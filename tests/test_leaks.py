"""Ten kinds of leak, planted; each one is caught and named by the audit or the splits, and its clean twin raises nothing.

centred window, full-sample scaler, future fill, unfinished week, same-day close in a label, revised macro, survivor list, target
encoding over all folds, overlapping windows across folds, off-by-one shift
"""
import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from tradenb.core.panel import Dataset, wide
from tradenb.data.store import Store
from tradenb.data.universe import Universe
from tradenb.features.context import macro_features
from tradenb.features.price import core14
from tradenb.features.timeframes import timeframe
from tradenb.labels.horizon import forward_return
from tradenb.validation import causality
from tradenb.validation.causality import audit_as_of, audit_transform
from tradenb.validation.splits import WalkForward, overlapping

from .test_causality import DAYS, MARKET, folds

audit, audit_label = partial(causality.audit, n=6), partial(causality.audit_label, n=4)


def feature(make):
    def fn(panel): return make(wide(panel, "close")).stack().reindex(panel.index).rename("x")
    return fn


def expect(found, *words):
    "A leak, and the words that name it"
    assert not found.ok, f"{found}: not caught"
    for word in words: assert word in found.summary(), found.summary()


def clean(found):
    assert found.ok, found.summary()


# --- features ------------------------------------------------------------------------------------------------------------------------
def test_1_centred_window():
    expect(audit(feature(lambda c: c.rolling(5, center=True).mean()), MARKET), "x", "reads 2 sessions ahead")
    clean(audit(feature(lambda c: c.rolling(5).mean()), MARKET))


def test_2_full_sample_scaler():
    expect(audit(feature(lambda c: (c - c.mean()) / c.std()), MARKET), "x", "made with the whole sample")
    clean(audit(feature(lambda c: (c - c.expanding().mean()) / c.expanding().std()), MARKET))
    def scaler(rows):
        def fn(ds, train, test):
            by = StandardScaler().fit(ds.X.iloc[rows(train, test)])
            return by.transform(ds.X.iloc[train]), by.transform(ds.X.iloc[test])
        return fn
    ds, train, test = folds()
    expect(audit_transform(scaler(lambda train, test: np.r_[train, test]), ds, train, test), "test rows", "fit on ds.take(train) alone")
    clean(audit_transform(scaler(lambda train, test: train), ds, train, test))


def test_3_future_fill():
    rows = pd.MultiIndex.from_product(MARKET.index.levels, names=MARKET.index.names)
    halted = MARKET.reindex(rows)  # a row on every session, empty where nothing traded
    expect(audit(feature(lambda c: c.bfill()), halted, n=20), "x", "gap", "filled backwards")
    expect(audit(feature(lambda c: c.interpolate(limit_area="inside")), halted, n=20), "x", "1 session ahead")
    clean(audit(feature(lambda c: c.ffill()), halted))


def test_4_unfinished_week():
    by_week = lambda how: feature(lambda c: how(c.groupby(c.index.to_period("W"))))
    expect(audit(by_week(lambda w: w.transform("last")), MARKET), "x", "an unfinished week")
    expect(audit(by_week(lambda w: w.transform("max")), MARKET), "x", "an unfinished week")
    clean(audit(by_week(lambda w: w.cummax()), MARKET))
    clean(audit(lambda p: timeframe(p, "momentum", "week", windows=(3,)), MARKET))


def test_10_off_by_one_shift():
    expect(audit(feature(lambda c: c.pct_change(fill_method=None).shift(-1)), MARKET), "x", "reads 1 session ahead: shift by 1")
    expect(audit(feature(lambda c: c.pct_change(fill_method=None).where(c > 51, c.shift(-1))), MARKET), "x", "1 session ahead")
    expect(audit(lambda p: core14(p).assign(market_return=lambda f: f["market_return"].groupby(level=1).shift(-1)), MARKET), "market_return")
    clean(audit(feature(lambda c: c.pct_change(fill_method=None).shift(1)), MARKET))


# --- labels --------------------------------------------------------------------------------------------------------------------------
def test_5_same_day_close_in_a_label():
    expect(audit_label(lambda p: forward_return(p, 5, "same_close"), MARKET), "y", "pays a price of its own session's close")
    early = lambda p: forward_return(p).assign(known_at=lambda y: y.index.get_level_values(0))
    expect(audit_label(early, MARKET), "known_at is too early", "known at its own session's close")
    def today(panel):  # the day itself, open to close
        y = (panel["close"] / panel["open"] - 1).to_frame("y")
        return y.assign(known_at=y.index.get_level_values(0))
    expect(audit_label(today, MARKET), "known_at", "describes the day that it should predict")
    clean(audit_label(forward_return, MARKET))


# --- what was known ------------------------------------------------------------------------------------------------------------------
def test_6_revised_macro(tmp_path):
    store, months = Store(tmp_path), DAYS[10::21]
    utc = lambda day: pd.Timestamp(day).tz_localize("UTC") + pd.Timedelta(hours=22)
    first = pd.DataFrame(dict(session=months, symbol="GDP", value=np.arange(len(months)) * 1., known_at=DAYS[DAYS.get_indexer(months) + 5]))
    store.append("macro", first, "statistics", fetched_at=utc(DAYS[-2]))
    better = first.iloc[[1]].assign(value=9., known_at=DAYS[90])  # a year on, somebody knew better
    store.append("macro", better, "statistics", fetched_at=utc(DAYS[-1]))
    assert len(store.sql("select * from macro")) == len(first) + 1
    series = lambda panel, macro: macro_features(panel, macro, series="GDP", readings=2)
    known = lambda t: (MARKET, store.as_of("macro", t).reset_index())
    tries = DAYS[[60, 80, -1]]

    def one_version(t):  # what a vendor gives who overwrites: the number of today, under the date of the first
        _, macro = known(DAYS[-1])
        return MARKET, macro.assign(known_at=macro["session"].map(first.set_index("session")["known_at"]))
    clean(audit(series, MARKET, macro=one_version(0)[1]))  # cutting by dates sees nothing
    expect(audit_as_of(series, lambda t: one_version(t) if t == tries[-1] else known(t), tries), "gdp", "has been revised")
    clean(audit_as_of(series, known, DAYS[[40, 60, 80]]))  # before the revision all is as it was

    at_the_time = lambda t: series(*known(t)).loc[t]
    kept = pd.concat({t: at_the_time(t) for t in tries}, names=["session"])
    def point_in_time(panel): return kept.loc[:panel]  # each session from its own evening: the cure
    clean(audit_as_of(point_in_time, lambda t: t, tries))

    def impatient(panel, macro):  # the number of the month it is about, before it was out
        by = macro[macro["symbol"] == "GDP"].set_index("session")["value"].reindex(DAYS, method="ffill")
        return by.reindex(panel.index.get_level_values(0)).set_axis(panel.index).rename("gdp")
    expect(audit(impatient, MARKET, n=40, macro=first), "gdp", "ahead")


def test_7_survivor_list():
    ends = MARKET.reset_index().groupby("symbol")["session"].agg(["min", "max"])
    table = pd.DataFrame(dict(id=ends.index, symbol=ends.index, first=ends["min"], last=ends["max"].where(ends["max"] < DAYS[-6])))
    universe = Universe(table.reset_index(drop=True))
    assert len(universe.members(DAYS[-1])) < len(universe.members(DAYS[120]))
    strength = lambda panel: panel.groupby(level="session")["close"].rank(pct=True)
    of = lambda names: MARKET[MARKET.index.get_level_values("symbol").isin(names)]
    upto = lambda panel, t: panel.loc[:t]
    tries = DAYS[[60, 120, -1]]

    survivors = of(universe.members(DAYS[-1]))
    clean(audit(strength, survivors, newcomers=False))  # no cut shows who is not there
    hindsight = lambda t: survivors if t == tries[-1] else upto(of(universe.members(t)), t)
    expect(audit_as_of(strength, hindsight, tries), "(rows)", "chosen with hindsight")
    clean(audit_as_of(strength, lambda t: upto(MARKET[universe.mask(MARKET)], t), tries))

    still_here = lambda panel: strength(panel)[panel.groupby(level="symbol")["close"].transform("size").notna()
                                               & panel.index.get_level_values("symbol").isin(panel.loc[panel.index[-1][0]].index)]
    expect(audit(still_here, MARKET), "(rows)", "come or go")  # made inside the function it is seen at once


# --- folds ---------------------------------------------------------------------------------------------------------------------------
def letters():
    ds, train, test = folds()
    name = pd.factorize(ds.X.index.get_level_values("symbol"))[0] * 1.
    return Dataset(ds.X.assign(letter=name), ds.y, ds.w, ds.known_at), train, test


def test_8_target_encoding_over_all_folds():
    def encoder(rows):
        def fn(ds, train, test):
            told = ds.take(np.sort(rows(train, test)))
            means = told.y.groupby(told.X["letter"]).mean()
            x = ds.X["letter"].map(means).to_frame()
            return x.iloc[train], x.iloc[test]
        return fn
    ds, train, test = letters()
    expect(audit_transform(encoder(lambda train, test: np.arange(len(ds.X))), ds, train, test), "letter", "test labels", "training rows alone")
    expect(audit_transform(encoder(lambda train, test: test), ds, train, test), "test rows change with their own labels: an answer is no feature")
    clean(audit_transform(encoder(lambda train, test: train), ds, train, test))


def test_9_overlapping_windows_across_folds():
    ds, *_ = folds()
    for train, test in KFold(5).split(ds.X):
        rows = overlapping(ds, train, test)
        assert len(rows) and set(rows) <= set(train)
        session = ds.X.index[rows[0]][0]  # named: the rows, and with them their sessions
        assert ds.known_at.iloc[rows[0]] >= ds.sessions[test].min() or session <= ds.known_at.iloc[test].max()
    for train, test in WalkForward(train=50, test=20, embargo=0).split(ds): assert not len(overlapping(ds, train, test))

    def sequences(ahead):  # of five rows; ahead=4 counts them from their first
        def fn(ds, train, test):
            x = ds.X.to_numpy()
            at = lambda rows: np.clip(rows[:, None] + np.arange(-4, 1) + ahead, 0, len(x) - 1)
            return x[at(train)], x[at(test)]
        return fn
    train, test = np.arange(300), np.arange(300, 400)
    expect(audit_transform(sequences(4), ds, train, test), "let no window reach over the edge")
    clean(audit_transform(sequences(0), ds, train, test))


# --- whole recipes -------------------------------------------------------------------------------------------------------------------
RECIPE = """
name: small
data: {settings: {universe: simulated, n_symbols: 12, n_sessions: 200}}
features: [core14]
label: {forward_return: {k: 5}}
split: {walk_forward: {train: 90, test: 50, embargo: 5}}
model: {xgboost: {n_estimators: 30, max_depth: 3}}
rules: [{top_bottom: {k: 2}}]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from tradenb.ops.recipe import load
    home = tmp_path_factory.mktemp("leaks")
    (home/"small.yml").write_text(RECIPE)
    return load(home/"small.yml"), home


def test_a_clean_recipe_raises_none_and_says_what_it_saw(recipe):
    from rich.console import Console

    from tradenb.ops.leaks import audit_recipe, leaks_table
    found = audit_recipe(*recipe, n=3)
    assert found.ok and "no leak" in found.summary(), found.table.to_string()
    assert not found.table["ok"].isna().any()
    console = Console(width=120, file=io.StringIO())
    console.print(leaks_table(found))
    said = console.file.getvalue()
    for word in ("features.core14", "label.forward_return", "the whole line", "split.walk_forward", "model.xgboost", "12 names"): assert word in said


def found_in(found, part, says):
    told = [row.said for row in found.table.itertuples() if row.part.startswith(part) and row.ok is not pd.NA and not row.ok]
    assert any(says in said for said in told), f"{part}: {says}\n{found.table.to_string()}"


def test_a_leak_in_each_part_of_a_recipe_is_found_there(recipe, monkeypatch):
    import tradenb.features.price as price
    import tradenb.validation.splits as splits
    from tradenb.models.trees import XGBoost
    from tradenb.ops.leaks import audit_recipe
    given, home = recipe
    true, own = price.core14, splits.WalkForward.split

    def careless(self, ds, y=None, groups=None):
        for _, test in own(self, ds): yield np.arange(test[0]), test
    monkeypatch.setattr(price, "core14", lambda panel: true(panel).assign(ret_1=lambda f: f["ret_1"].groupby(level=1).shift(-1)))
    monkeypatch.setattr(splits.WalkForward, "split", careless)
    monkeypatch.setattr(XGBoost, "predict", lambda self, X: pd.Series(np.arange(len(X)) % 7 * 1., X.index))
    today = given.model_copy(update=dict(execution=given.execution.model_copy(update=dict(fill="same_close"))))
    found = audit_recipe(today, home, n=3)
    assert not found.ok
    found_in(found, "features.core14", "ret_1 (truncate) reads 1 session ahead")
    found_in(found, "label.forward_return", "pays a price of its own session's close")
    found_in(found, "split.walk_forward", "training labels meet the test")
    found_in(found, "model.xgboost", "the planted answer was not found")


def test_a_leak_between_the_parts_is_found_in_the_whole_line(recipe, monkeypatch):
    "Each part is clean; prices adjusted to the last session, so that a split of next year moves today's, are not"
    import tradenb.features.price as price
    import tradenb.ops.leaks as leaks
    true, own = price.core14, leaks.adjusted
    monkeypatch.setattr(price, "core14", lambda panel: true(panel).assign(level=panel["close"]))
    monkeypatch.setattr(leaks, "adjusted", lambda bars, convention, base: own(bars, convention, "last"))
    monkeypatch.setattr(leaks, "_learn", lambda *given: ())
    found = leaks.audit_recipe(*recipe, n=3)
    assert found.table.loc[found.table["part"] == "features.core14", "ok"].all()
    found_in(found, "the whole line", "level")


@pytest.mark.parametrize(("years", "left", "says"), [(4, 0, "made with hindsight?"), (4, 1, "1 of 60 names left"), (1, 0, "0 of 60 names left")])
def test_a_list_that_nobody_leaves_is_asked_about(years, left, says):
    from tradenb.ops.leaks import _survivors
    days = pd.bdate_range("2015-01-01", periods=252 * years, unit="us")
    rows = pd.MultiIndex.from_product([days, [f"S{n:02d}" for n in range(60)]], names=["session", "symbol"])
    panel = pd.DataFrame({"close": 1.}, rows)
    if left: panel = panel.drop(panel.loc[days[100]:].xs("S07", level=1, drop_level=False).index)
    ok, said = _survivors(panel)
    assert says in said and (ok is None) == (years == 4 and not left)
