"Every feature and label that exists, tried against other futures; and the audit itself, on functions whose look-ahead is known"
import importlib
import inspect
import pkgutil
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tradenb.features
import tradenb.labels
from tradenb.core.calendar import sessions
from tradenb.core.panel import Dataset, check_panel, long, wide
from tradenb.features.price import core14
from tradenb.labels.horizon import forward_return
from tradenb.validation.causality import audit, audit_label, audit_transform, warm_up
from tradenb.validation.futures import as_known, known, rewritten

same = np.testing.assert_array_equal


def market(n_sessions=270, n_symbols=8, seed=0, start="2016-11-01"):
    "Bars with holes, halts, a late listing and a name that leaves; the first two names are whole"
    rng = np.random.default_rng(seed)
    days = sessions(start, "2030-12-31")[:n_sessions]
    names, shape = [f"S{n:02d}" for n in range(n_symbols)], (n_sessions, n_symbols)
    close = 50 * np.exp(rng.normal(0, .02, shape).cumsum(0))
    close[(rng.random(shape) < .02) & (np.arange(n_symbols) > 1)] = np.nan
    if n_symbols > 3: close[:n_sessions // 4, 2], close[n_sessions * 2 // 3:, 3] = np.nan, np.nan
    width, volume = close * rng.uniform(.001, .02, shape), rng.lognormal(10, .8, shape).round()
    volume[rng.random(shape) < .02] = 0
    table = lambda x: pd.DataFrame(np.where(np.isnan(close), np.nan, x), days, names)
    bars = dict(open=table(close + rng.uniform(-1, 1, shape) * width), high=table(close + width), low=table(close - width),
                close=table(close), volume=table(volume))
    return long(**bars)


MARKET = market()
DAYS = MARKET.index.unique("session")


def macro():
    "VIX and VIX3M a day late, a monthly series two weeks late, each with holes"
    rng, day = np.random.default_rng(1), DAYS[::21]
    rows = [pd.DataFrame(dict(session=DAYS[:-1], symbol=s, value=rng.uniform(9, 40, len(DAYS) - 1), known_at=DAYS[1:])) for s in ("VIX", "VIX3M")]
    late = DAYS[np.minimum(DAYS.get_indexer(day) + 10, len(DAYS) - 1)]
    rows.append(pd.DataFrame(dict(session=day, symbol="CPI", value=rng.normal(2, 1, len(day)), known_at=late)))
    return pd.concat(rows).sort_values(["session", "symbol"], ignore_index=True)


SECTOR = {f"S{n:02d}": "AB"[n % 2] for n in range(8)}
SIZE = {f"S{n:02d}": float(n * n) for n in range(8)}
# How to call what wants more than a panel, and what has a look-back longer than this market
CALLS = {
    "price.momentum": dict(windows=(5, 20, 37)), "price.trend": dict(windows=(10, 33), step=7), "price.inputs": dict(year=60),
    "technical.sma": dict(windows=(5, 20)), "regimes.trend_regime": dict(window=30),
    "regimes.volatility_regime": dict(window=5, history=50, least=20), "context.macro_features": dict(series="CPI", readings=3),
    "neutral.neutralise": dict(by=pd.DataFrame({"sector": SECTOR, "size": SIZE}).rename_axis("symbol")),
}
# Public names that make no feature and no label of a panel by themselves
OTHERS = {
    "windows": "kernels; seen through the families made of them", "slices": "kernels; seen through the families made of them",
    "seasons.of_sessions": "seen through calendar_features", "timeframes.Periods": "the calendar of timeframe",
    "prune.likeness": "of a training set", "prune.redundant": "fitted on a training set: see below", "prune.Pruned": "what redundant gives",
    "barriers.ewm_volatility": "the width of triple_barrier", "weights": "weights of labels that are given",
    **dict.fromkeys(("svi_curve", "svi", "arbitrage", "repair", "ssvi", "smile_points", "dealers", "flip", "variance", "legs", "positions",
                     "attribution"), "of one evening's chain, or of numbers; seen through the families of CHAINED"),
    **dict.fromkeys(("gex", "hedging", "surface", "option_history", "hedged", "spreads"), "read a chain: see CHAINED below"),
}
# What makes a feature or a label of a history of option chains, and how to call it
CHAINED = {
    "gex.dealer": {}, "hedging.flows": {}, "surface.surface": {}, "option_history.implied_history": dict(window=20, past=(5,), lags=(1, 5)),
    "hedged.hedged": dict(horizon=3), "spreads.spread_label": dict(template="vertical", horizon=3),
}


def rooms(*floors):
    return [importlib.import_module(f"{floor.__name__}.{m.name}") for floor in floors for m in pkgutil.iter_modules(floor.__path__)
            if not m.name.startswith("_")]


def offered(modules):
    "(name, function) of every public function and class that a room defines itself"
    for room in modules:
        for name in getattr(room, "__all__", ()):
            it, place = getattr(room, name), room.__name__.rpartition(".")[2]
            if callable(it) and it.__module__ == room.__name__: yield f"{place}.{name}", it


def told_how(name, it):
    "The function with all its arguments but the panel, or None for what OTHERS names"
    if name in OTHERS or name.partition(".")[0] in OTHERS: return None
    takes = list(inspect.signature(it).parameters.values())
    args = CALLS.get(name, {})
    more = {p.name: macro() for p in takes if p.name == "macro"}
    needed = [p.name for p in takes[1:] if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    unknown = [name for name in needed if name not in args and name not in more]
    if takes[0].name not in ("panel", "frame") or unknown:
        raise LookupError(f"{name}{inspect.signature(it)}: tell the table CALLS how to call it, or OTHERS why it is neither feature nor label")
    fn = (lambda panel, **m: it(panel[["close", "volume"]], **args, **m)) if takes[0].name == "frame" else (lambda panel, **m: it(panel, **args, **m))
    fn.__name__ = name
    return fn, more


EXISTING = [(name, it) for name, it in offered(rooms(tradenb.features, tradenb.labels))]


@pytest.mark.parametrize(("name", "it"), EXISTING, ids=[n for n, _ in EXISTING])
def test_every_feature_and_label_that_exists(name, it):
    if (call := told_how(name, it)) is None: return
    fn, tables = call
    found = audit(fn, MARKET, n=4, rng=np.random.default_rng(7), **tables)
    assert found.ok, found.summary()
    assert (found.values > 0).all(), f"{found}: nothing was compared; give it a shorter look-back in CALLS"


@pytest.mark.parametrize("name", CHAINED)
def test_every_feature_and_label_of_option_chains(name):
    from tradenb.data.chains import priced
    from tradenb.data.kinds import KINDS
    from tradenb.data.market import bars
    from tradenb.data.simulated_chains import sample_history
    chain = sample_history(30)
    days = chain["session"].drop_duplicates()
    spx = bars("indices", days.min() - pd.Timedelta(days=60), days.max()).query("symbol == 'SPX'")
    panel = spx.set_index(["session", "symbol"])[["open", "high", "low", "close", "volume"]].sort_index()
    it = dict(EXISTING)[name]
    wants = "panel" in inspect.signature(it).parameters
    def fn(panel, chain):
        chain = chain.assign(strike=chain["strike"].round(3).clip(.001, 99_999.999)).drop_duplicates([*KINDS["chain"].key], ignore_index=True)
        return it(priced(chain), **({"panel": panel} if wants else {}), **CHAINED[name])
    found = audit(fn, panel, n=2, rng=np.random.default_rng(7), chain=chain)
    assert found.ok, found.summary()
    assert (found.values > 0).any()


def test_no_recipe_reads_a_chain_untried():
    from tradenb.ops.names import NAMES, named
    reads = {f"{where.split(':')[0].rpartition('.')[2]}.{where.split(':')[1]}" for part in ("features", "label") for name, where in NAMES[part].items()
             if "chain" in inspect.signature(named(part, name)).parameters}
    assert reads and reads <= set(CHAINED)


@pytest.mark.real
def test_no_false_alarm_on_real_prices(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw = raw[raw["symbol"].isin(sorted(raw["symbol"].unique())[::50])]
    raw = raw.assign(session=pd.to_datetime(raw["date"]).astype("datetime64[us]"), symbol=raw["symbol"].astype("str"))
    panel = raw.set_index(["session", "symbol"]).sort_index()[["open", "high", "low", "close", "volume"]].astype(float).iloc[:4000]
    for name, it in EXISTING:
        if name.partition(".")[0] in ("context", "neutral") or not (call := told_how(name, it)): continue
        found = audit(call[0], panel, n=2)
        assert found.ok, found.summary()


def test_the_tables_name_what_exists():
    there = {name for name, _ in EXISTING} | {name.partition(".")[0] for name, _ in EXISTING}
    assert set(CALLS) | set(OTHERS) <= there, "the tables name what is no more"
    assert {"price.core14", "horizon.forward_return", "barriers.triple_barrier"} <= there


def test_a_new_room_is_found_and_cannot_go_untried():
    room = types.ModuleType("tradenb.features.novel")
    exec("def peek(panel): return panel['close'].unstack().shift(-1).stack().to_frame('x')\ndef ask(panel, whom): return panel", room.__dict__)
    room.__all__ = ["peek", "ask"]
    for it in (room.peek, room.ask): it.__module__ = room.__name__
    peek, ask = offered([room])
    assert (peek[0], ask[0]) == ("novel.peek", "novel.ask")
    with pytest.raises(LookupError, match=r"novel.ask.*tell the table CALLS how to call it"): told_how(*ask)
    with pytest.raises(AssertionError, match="reads 1 session ahead"): test_every_feature_and_label_that_exists(*peek)


# --- the audit itself ---------------------------------------------------------------------------------------------------------------
def shifted(k):
    def fn(panel): return wide(panel, "close").rolling(3).mean().shift(-k).stack().rename("x")
    return fn


@given(k=st.integers(-5, 6), seed=st.integers(0, 2**32 - 1), single=st.booleans())
@settings(max_examples=8, deadline=None)
def test_the_reach_is_the_shift_and_looking_back_is_no_leak(k, seed, single):
    panel = market(60, 1 if single else 5, seed)
    found = audit(shifted(k), panel, n=5, rng=np.random.default_rng(seed))
    assert found.ok == (k <= 0)
    if k > 0: assert found.leaks["reach"].max() == k and set(found.leaks["kind"]) == {"truncate", "perturb"}


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 59), newcomers=st.booleans(), symbols=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_another_future_leaves_the_past_as_it_was(seed, cut, newcomers, symbols):
    panel = market(60, symbols, seed % 1000).assign(sector="A", lots=7)
    days, rng = panel.index.unique("session"), np.random.default_rng(seed)
    today = days[min(cut, len(days) - 1)]
    other = check_panel(rewritten(panel, today, rng, newcomers))
    past = as_known(other, today)
    pd.testing.assert_frame_equal(past, as_known(panel, today), check_exact=True)
    pd.testing.assert_frame_equal(past, panel.loc[:today], check_exact=True)
    assert list(other.dtypes) == list(panel.dtypes) and (known(other)[len(past):] > today).all()
    new = set(other.index.get_level_values("symbol")) - set(panel.index.get_level_values("symbol"))
    assert new <= {"!NEW", "~NEW"} and bool(new) == newcomers
    later = other.loc[today:].drop(index=today, level="session", errors="ignore")
    kept = later.index.intersection(panel.index)
    assert not len(kept) or not (later.loc[kept, "close"] == panel.loc[kept, "close"]).any()


def test_every_fate_is_met():
    panel = market(60, 12, 3)
    today, met = panel.index.unique("session")[30], set[str]()
    other = rewritten(panel, today, np.random.default_rng(0), False)
    for name in panel.index.unique("symbol"):
        a, b = (x["close"].xs(name, level="symbol").loc[today:].iloc[1:] for x in (panel, other))
        if len(b) < len(a): met.add("gone")
        elif b.isna().all(): met.add("missing")
        elif np.allclose(np.sort(b / b.max()), np.sort(a / a.max())): met.add("as it was" if np.allclose(b / b.max(), a / a.max()) else "shuffled")
        else: met.add("scaled")
    assert met == {"gone", "missing", "shuffled", "scaled"}


def test_the_last_session_is_tried_too():
    def sly(panel):
        close = wide(panel, "close")
        last = close.index[-1]
        return close.assign(**{"S00": close["S00"].where(close.index < last, -1.)}).stack().rename("x")
    found = audit(sly, MARKET, n=1)
    assert list(found.cuts) == [DAYS[-1]] and not found.ok and set(found.leaks["kind"]) == {"perturb"}


def test_the_column_set_its_order_and_rows_are_part_of_the_answer():
    by_name = lambda order: lambda p: wide(p, "close").pipe(lambda c: c[order(c)]).pct_change(fill_method=None)
    assert "(columns)" in set(audit(by_name(lambda c: list(c)), MARKET, n=3).leaks["column"])
    dates = lambda p: pd.get_dummies(p.index.get_level_values(0).astype(str)).set_axis(p.index)
    assert "(columns)" in set(audit(dates, MARKET, n=3).leaks["column"])
    def faithful(panel): return panel.loc[panel.groupby(level=1)["close"].transform("size") > 190, ["close"]]
    assert "(rows)" in set(audit(faithful, MARKET, n=3).leaks["column"])


def test_who_raises_on_the_past_is_named():
    def greedy(panel):
        if len(panel) < len(MARKET): raise ValueError("more, please")
        return panel[["close"]]
    found = audit(greedy, MARKET, n=3)
    assert found.leaks["column"].tolist() == ["(raises)"] and "ValueError: more, please" in found.summary()


def test_a_function_that_writes_into_its_panel_is_noticed_or_harmless():
    def scribble(panel):
        panel["close"] = panel["close"] * 2
        return panel[["close"]]
    before = MARKET.copy()
    assert audit(scribble, MARKET, n=3).ok
    pd.testing.assert_frame_equal(MARKET, before)


@given(early=st.integers(0, 4), k=st.integers(1, 6), fill=st.sampled_from(["next_open", "next_close"]))
@settings(max_examples=6, deadline=None)
def test_a_label_may_claim_no_session_too_early(early, k, fill):
    def label(panel):
        y = forward_return(panel, k, fill)
        axis = panel.index.unique("session")
        return y.assign(known_at=axis[np.maximum(axis.get_indexer(y["known_at"]) - early, axis.get_indexer(y.index.get_level_values(0)))])
    found = audit_label(label, market(40, 4, early), n=4)
    assert found.ok == (early == 0), found
    if early: assert "known_at is too early" in found.summary()


def test_a_label_that_pays_todays_close_is_research_only():
    for fill, ok in (("next_open", True), ("next_close", True), ("same_close", False)):
        found = audit_label(lambda p: forward_return(p, 5, fill), MARKET, n=5)  # noqa: B023 asked at once
        assert found.ok == ok
    assert found.leaks["kind"].tolist() == ["price"] and "research only" in found.summary()


def test_a_dataset_is_fixed_in_both_parts():
    def whole(panel, slip=0):
        x, y = core14(panel).dropna(), forward_return(panel)
        x, y = x.groupby(level=1).shift(-slip).dropna(), y.reindex(x.index)
        y = y.reindex(x.index)
        return Dataset(x, y["y"], pd.Series(1., x.index), y["known_at"])
    found = audit(whole, MARKET, n=5)
    assert found.ok and list(found.values.index)[-3:] == ["y", "w", "known_at"]
    leaks = audit(lambda p: whole(p, 1), MARKET, n=5).leaks
    assert "ret_1" in set(leaks["column"]) and "y" not in set(leaks["column"])


def folds():
    x, y = core14(MARKET).dropna(), forward_return(MARKET)
    y = y.reindex(x.index).dropna()
    ds = Dataset(x.loc[y.index], y["y"], pd.Series(1., y.index), y["known_at"])
    at = ds.sessions
    return ds, np.flatnonzero(at < DAYS[70]), np.flatnonzero(at.isin(DAYS[80:100]))


def test_pruning_is_fitted_on_the_training_rows():
    from tradenb.features.prune import redundant
    def pruned(rows):
        def fn(ds, train, test):
            kept = redundant(ds.X.iloc[rows(train, test)])
            return kept.apply(ds.X.iloc[train]), kept.apply(ds.X.iloc[test])
        return fn
    ds, train, test = folds()
    assert audit_transform(pruned(lambda train, test: train), ds, train, test).ok


def test_transforms_of_any_shape():
    ds, train, test = folds()
    flat = ds.X.to_numpy()
    cube = lambda ds, train, test: (ds.X.to_numpy()[train][:, None, :], ds.X.to_numpy()[test][:, None, :])
    assert audit_transform(cube, ds, train, test).ok
    with pytest.raises(ValueError, match="rows went in"): audit_transform(lambda ds, a, b: (flat[a], flat[b][:-1]), ds, train, test)


def test_the_warm_up_is_what_the_room_declares():
    from tradenb.features.price import LOOKBACK
    panel = market(60, 5, 2)
    told = warm_up(core14, panel, evenings=1)
    assert told["exact"].max() == LOOKBACK["core14"] == told["declared"].iloc[0] and told["ok"].all()
    assert told.loc[["ret_1", "market_return", "ret_5", "vol_5", "mom_5"], "exact"].tolist() == [2, 2, 6, 6, 5]
