"Barriers against a loop in exact fractions, weights against the book's snippets, and to the bit where the future is cut"
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.panel import Dataset, long, wide
from tradenb.labels.barriers import HITS, barrier_label, ewm_volatility, triple_barrier
from tradenb.labels.weights import (
    attribution,
    concurrency,
    draw_probabilities,
    linear_decay,
    sequential_bootstrap,
    time_decay,
    uniqueness,
)

seeds = st.integers(0, 2**32 - 1)
DAYS = sessions("2019-01-02", "2022-12-30")


def market(n_sessions, n_symbols, seed, gaps=0.05, whole=False, bad=0.0):
    "Bars with holes, late listings, names that leave; whole prices, if asked for, so that barriers are touched exactly"
    rng = np.random.default_rng(seed)
    shape, t = (n_sessions, n_symbols), np.arange(n_sessions)[:, None]
    listed = (t >= rng.integers(-20, n_sessions, n_symbols)) & (t < rng.integers(1, n_sessions + 20, n_symbols)) & (rng.random(shape) >= gaps)
    listed[:, 0] = True
    close = 50 * np.exp(rng.normal(0, 0.02, shape).cumsum(0))
    open_ = close * np.exp(rng.normal(0, 0.02, shape))
    table = dict(open=open_, high=np.maximum(open_, close) * 1.01, low=np.minimum(open_, close) / 1.01, close=close)
    for name, x in table.items():
        if whole: x = np.round(x)
        spoilt = np.where(rng.random(shape) < bad, rng.choice([np.nan, 0, -5, np.inf], shape), x)
        table[name] = pd.DataFrame(np.where(listed, spoilt, np.nan), DAYS[:n_sessions], [f"S{n:02d}" for n in range(n_symbols)])
    return long(**table)


def by_hand(panel, profit, stop, horizon, unit, touch, expiry, entry, side):
    "SPEC's sentences, one row after the other, in fractions: hit, ret, entry, exit; None where there is none"
    exact = lambda x: Fraction(x).limit_denominator(10**9)
    rows = {key: {k: Fraction(v) for k, v in bar.items() if np.isfinite(v) and v > 0} for key, bar in panel.to_dict("index").items()}
    days, out = list(panel.index.unique("session")), []
    for (day, symbol), width in zip(panel.index, unit, strict=True):
        at, bar = days.index(day), lambda n, s=symbol: rows.get((days[n], s), {}) if n < len(days) else {}
        paid = {"next_open": bar(at + 1).get("open"), "next_close": bar(at + 1).get("close"), "close": bar(at).get("close")}[entry]
        if paid is None or not width > 0: out.append(("open", None, None, None)); continue
        began = at if entry == "close" else at + 1
        first = at + 2 if entry == "next_close" else at + 1
        target = None if profit is None else paid * (1 + side * exact(profit * width))
        limit = None if stop is None else paid * (1 - side * exact(stop * width))
        for n in range(first, first + horizon):
            here = bar(n)
            if touch == "close": here = dict.fromkeys(["open", "high", "low", "close"], here["close"]) if "close" in here else {}
            best, worst = ("high", "low") if side > 0 else ("low", "high")
            if limit is not None and worst in here and (here[worst] - limit) * side <= 0:
                price, hit = min(here.get("open", limit) * side, limit * side) * side, "stop"
            elif target is not None and best in here and (here[best] - target) * side >= 0:
                price, hit = max(here.get("open", target) * side, target * side) * side, "profit"
            else: continue
            break
        else:
            n, price, hit = first + horizon - 1, bar(first + horizon - 1).get("close"), "expiry"
        if price is None: out.append(("open", None, days[began], None))
        else: out.append((hit, float(side * (price / paid - 1)), days[began], days[n]))
    return out


options = st.fixed_dictionaries(dict(
    profit=st.sampled_from([None, 0.02, 0.04, 0.1]), stop=st.sampled_from([None, 0.02, 0.04, 0.1]), horizon=st.integers(1, 8),
    touch=st.sampled_from(["high_low", "close"]), expiry=st.sampled_from(["zero", "sign"]),
    entry=st.sampled_from(["next_open", "next_close", "close"]), side=st.sampled_from(["long", "short"])))


@given(seed=seeds, how=options, sigma=st.booleans())
@settings(max_examples=60, deadline=None)
def test_barriers_are_what_the_loop_says(seed, how, sigma):
    panel = market(26, 4, seed, whole=not sigma, bad=0.02)
    width = ewm_volatility(wide(panel, "close"), 3).stack().reindex(panel.index) * 20 if sigma else "fixed"
    ours = triple_barrier(panel, width=width, **how)
    unit = width.fillna(0) if sigma else np.ones(len(panel))
    want = by_hand(panel, **{**how, "unit": unit, "side": 1 if how["side"] == "long" else -1})
    assert ours["hit"].tolist() == [hit for hit, *_ in want]
    np.testing.assert_allclose(ours["ret"], [np.nan if r is None else r for _, r, *_ in want], rtol=1e-9, atol=1e-12)
    for name, place in ("entry", 2), ("exit", 3), ("known_at", 3):
        assert ours[name].tolist() == [pd.NaT if row[place] is None else row[place] for row in want]
    label = {"profit": 1.0, "stop": -1.0, "open": np.nan}
    said = [label.get(hit, np.sign(r or 0.0) if how["expiry"] == "sign" else 0.0) for hit, r, *_ in want]
    np.testing.assert_array_equal(ours["label"], said)


@given(seed=seeds, cut=st.integers(25, 58), how=options, width=st.sampled_from(["ewm", "fixed"]))
@settings(max_examples=40, deadline=None)
def test_a_label_is_fixed_from_the_close_at_which_it_is_known(seed, cut, how, width):
    panel, rng = market(60, 8, seed), np.random.default_rng(seed)
    today = panel.index.levels[0][cut]
    past, future = panel.loc[:today], panel.loc[today:].drop(index=today, level=0)
    rubbish = (future * rng.choice([np.nan, -1, 1e-9, 3, 1e9], future.shape))[rng.random(len(future)) < 0.7]
    how = {**how, **{k: how[k] and how[k] * (25 if width == "ewm" else 1) for k in ("profit", "stop")}, "width": width, "span": 10}
    want = triple_barrier(panel, **how)
    want = want[want["known_at"] <= today]
    known = triple_barrier(past, **how)
    pd.testing.assert_frame_equal(known[known["hit"] != "open"], want, check_exact=True)
    if {*rubbish.index.get_level_values(0)} == {*future.index.get_level_values(0)}:  # the same session axis
        moved = triple_barrier(pd.concat([past, rubbish]), **how)
        pd.testing.assert_frame_equal(moved[moved["known_at"] <= today], want, check_exact=True)


@given(seed=seeds, span=st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_volatility_is_the_weighted_sum_over_all_that_came_before(seed, span):
    close = wide(market(40, 3, seed, gaps=0.2), "close")
    found, r = ewm_volatility(close, span), close / close.shift() - 1
    for symbol in close:
        for t in range(len(close)):
            x = r[symbol].to_numpy()[:t + 1]
            w = (1 - 2 / (span + 1)) ** np.arange(t, -1, -1)
            w, x = w[x == x], x[x == x]
            if len(x) < span:
                assert np.isnan(found[symbol].iloc[t])
                continue
            w = w / w.sum()
            var = w @ (x - w @ x) ** 2 / (1 - w @ w)
            np.testing.assert_allclose(found[symbol].iloc[t], np.sqrt(var), rtol=1e-9)


def afml(close, unit, profit, stop, horizon):
    "Snippets 3.2 and 3.4 of Advances in Financial Machine Learning for one name: first session beyond a barrier, return there"
    out = {}
    for loc, end in zip(close.index[:-horizon], close.index[horizon:], strict=True):
        path = close[loc:end] / close[loc] - 1
        stops, targets = path[path < -stop * unit[loc]].index.min(), path[path > profit * unit[loc]].index.min()
        t1 = min(t for t in (stops, targets, end) if not pd.isna(t))
        out[loc] = t1, path[t1]
    return pd.DataFrame.from_dict(out, orient="index", columns=["exit", "ret"])


def test_close_barriers_are_the_books_snippets():
    close = wide(market(400, 1, 7, gaps=0), "close")
    unit = ewm_volatility(close)["S00"].dropna()
    want = afml(close["S00"][unit.index], unit, 2, 1, 10)
    ours = triple_barrier(long(close=close), touch="close", entry="close").xs("S00", level="symbol").loc[want.index]
    assert (ours["exit"] == want["exit"]).all() and set(ours["hit"]) == {"profit", "stop", "expiry"}
    np.testing.assert_allclose(ours["ret"], want["ret"], rtol=1e-12, atol=1e-15)


def test_side_and_width_by_row_are_the_rows_of_each():
    panel = market(120, 6, 3)
    rng = np.random.default_rng(0)
    side = pd.Series(rng.choice([1.0, -1.0, 0.0, np.nan], len(panel)), panel.index)[rng.random(len(panel)) < 0.9]
    mixed = triple_barrier(panel, side=side.sample(frac=1, random_state=0), expiry="sign", min_return=0.02)
    both = {s: triple_barrier(panel, side=n, expiry="sign", min_return=0.02) for s, n in ((1.0, "long"), (-1.0, "short"))}
    chosen = side.reindex(panel.index)
    for s, rows in both.items():
        pd.testing.assert_frame_equal(mixed[chosen == s], rows[chosen == s])
    assert (mixed[~chosen.isin([1, -1])]["hit"] == "open").all() and mixed[~chosen.isin([1, -1])]["entry"].isna().all()
    sigma = ewm_volatility(wide(panel, "close")).stack().reindex(panel.index)
    small = sigma < 0.02
    assert 0 < small.sum() < len(panel) and both[1.0][small]["entry"].isna().all()
    pd.testing.assert_frame_equal(both[1.0][~small], triple_barrier(panel, expiry="sign")[~small])


def test_levels_out_of_order_change_nothing():
    panel = market(60, 6, seed=2)
    levels = [level[::-1] for level in panel.index.levels]
    codes = [len(level) - 1 - np.asarray(code) for level, code in zip(levels, panel.index.codes, strict=True)]
    turned = panel.set_axis(pd.MultiIndex(levels, codes, names=panel.index.names))
    pd.testing.assert_frame_equal(triple_barrier(turned), triple_barrier(panel), check_exact=True)


@pytest.mark.parametrize("fill, entry", [("next_open", "next_open"), ("next_close", "next_close"), ("same_close", "close")])
def test_a_recipes_label_is_the_labelled_rows(fill, entry):
    panel = market(80, 6, 5)
    ends = triple_barrier(panel, entry=entry, expiry="sign")
    ends = ends[ends["hit"] != "open"]
    for target, y in dict(label=ends["label"], ret=ends["ret"], win=(ends["ret"] > 0) * 1.0).items():
        ours = barrier_label(panel, expiry="sign", fill=fill, target=target)
        pd.testing.assert_series_equal(ours["y"], y, check_names=False)
        Dataset(panel.loc[ours.index, ["close"]], ours["y"], pd.Series(1.0, ours.index), ours["known_at"])
    assert (ours["known_at"] >= ours["entry"]).all() and (ours["known_at"] > ours.index.get_level_values("session")).all()


def test_a_short_panel_has_no_labels_and_says_so_in_every_row():
    panel = market(5, 3, 0, gaps=0)
    for p in (panel, panel.loc[panel.index.levels[0][:1]]):
        ends = triple_barrier(p)
        assert ends.index.equals(p.index) and (ends["hit"] == "open").all() and ends["known_at"].isna().all()
        assert barrier_label(p).empty and list(ends["hit"].cat.categories) == HITS


# --- weights ----------------------------------------------------------------------------------------------------------------------
def some_labels(seed, n_sessions=25, n_symbols=3, longest=6, unknown=0.1):
    "Labels by (session, symbol), out of order, some not known yet"
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS[:n_sessions], [f"S{n}" for n in range(n_symbols)]], names=["session", "symbol"])
    index = index[rng.permutation(len(index))[:rng.integers(1, len(index))]]
    at = DAYS.get_indexer(index.get_level_values("session"))
    known = pd.Series(DAYS[at + rng.integers(0, longest, len(at))], index, name="known_at")
    return known.mask(rng.random(len(known)) < unknown)


def company(events, axis, across):
    "The indicator matrix of snippet 4.3, (labels, sessions), and which labels are of one kind"
    begun, symbol = events.index.get_level_values("session"), events.index.get_level_values("symbol")
    lives = np.array([(axis >= a) & (axis <= b) if not pd.isna(b) else np.zeros(len(axis), bool) for a, b in zip(begun, events, strict=True)])
    return lives, np.array([[across or a == b for a in symbol] for b in symbol], int)


@given(seed=seeds, across=st.booleans())
@settings(max_examples=30, deadline=None)
def test_uniqueness_is_snippets_4_1_and_4_2(seed, across):
    events, axis = some_labels(seed), DAYS[:35]
    lives, alike = company(events, axis, across)
    want = [np.nan if pd.isna(known) else np.mean(1 / (alike[n] @ lives)[lives[n]]) for n, known in enumerate(events)]
    ours = uniqueness(events, axis, across)
    np.testing.assert_allclose(ours, want, rtol=1e-12)
    assert ours.index.equals(events.index)
    np.testing.assert_allclose(uniqueness(events.to_frame(), across=across), want, rtol=1e-12)  # the exchange's sessions
    assert concurrency(events, axis, across).to_numpy().sum() == lives.sum()


@given(seed=seeds, across=st.booleans(), size=st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_the_tree_draws_what_the_probabilities_say(seed, across, size):
    events, axis = some_labels(seed), DAYS[:35]
    if events.isna().all():
        with pytest.raises(ValueError, match="nothing to draw from"): sequential_bootstrap(events, size, sessions=axis)
        return
    ours = sequential_bootstrap(events, size, np.random.default_rng(seed), axis, across)
    assert len(ours) == size and not events.iloc[ours].isna().any()
    symbol = events.index.get_level_values("symbol") if not across else np.zeros(len(events))
    order, rng, drawn = np.lexsort([np.arange(len(events)), events.index.get_level_values("session"), symbol]), np.random.default_rng(seed), []
    for got in ours:
        p = draw_probabilities(events, drawn, axis, across).to_numpy()[order]
        edges, u = np.cumsum(p), rng.random()
        near = np.abs(edges - u).min() < 1e-12  # on the edge between two labels, either will do
        assert near or got == order[np.searchsorted(edges, u, side="right")]
        drawn.append(got)


@given(seed=seeds, across=st.booleans())
@settings(max_examples=15, deadline=None)
def test_draw_probabilities_are_snippet_4_5(seed, across):
    events, axis = some_labels(seed), DAYS[:35]
    rows = np.flatnonzero(events.notna())
    if not len(rows): return
    drawn = np.random.default_rng(seed).choice(rows, 7)
    lives, alike = company(events, axis, across)
    share = np.zeros(len(events))
    for n in rows:
        beside = 1 + sum(lives[d] * alike[n][d] for d in drawn)
        share[n] = np.mean(1 / beside[lives[n]])
    np.testing.assert_allclose(draw_probabilities(events, drawn, axis, across), share / share.sum(), rtol=1e-12)


@pytest.mark.parametrize("oldest", [1, 0.5, 0, -0.25, -0.9])
def test_linear_decay_is_snippet_4_10(oldest):
    events = some_labels(3, n_symbols=1, unknown=0).droplevel("symbol")
    unique = uniqueness(events, DAYS[:35])
    w = unique.sort_index().cumsum()
    slope = (1 - oldest) / w.iloc[-1] if oldest >= 0 else 1 / ((oldest + 1) * w.iloc[-1])
    want = (1 - slope * w.iloc[-1] + slope * w).clip(lower=0)
    np.testing.assert_allclose(linear_decay(unique, oldest).sort_index(), want, atol=1e-12)


def test_attribution_is_the_books_without_the_return_into_the_label():
    panel = market(40, 4, 11)
    labels = triple_barrier(panel, 0.04, 0.02, 5, "fixed")
    labels = labels[labels["hit"] != "open"]
    price, alive = wide(panel, "close").ffill(), concurrency(labels, panel.index.unique("session"))
    r = np.log(price).diff().fillna(0.0)
    want = []
    for (day, symbol), until in labels["known_at"].items():
        span = (r.index > day) & (r.index <= until)
        want.append(abs((r.loc[span, symbol] / alive.loc[span, symbol]).sum()))
    np.testing.assert_allclose(attribution(labels, panel), np.array(want) / np.mean(want), rtol=1e-9)


def test_weights_of_nothing():
    none = some_labels(0).mask(lambda x: x.notna())
    for found in (uniqueness(none), uniqueness(none, DAYS[:35]), linear_decay(uniqueness(none, DAYS[:35]), 0.5)):
        assert found.isna().all() and found.index.equals(none.index)
    assert (concurrency(none, DAYS[:35]) == 0).all(axis=None)
    assert len(time_decay(none[:0])) == 0


def test_ages_do_not_depend_on_the_index():
    events = some_labels(1)
    at = events.index.get_level_values("session")
    one = time_decay(events, 6)
    np.testing.assert_array_equal(one, time_decay(at, 6))
    assert one.max() == 1 and one.min() > 0
    np.testing.assert_allclose(np.log2(one), -(at.max() - at).days / (6 * 365.25 / 12))


@pytest.mark.real
def test_barriers_of_the_real_panel(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index()[["open", "high", "low", "close"]].astype(float)
    ends = triple_barrier(panel)
    known, days = ends[ends["hit"] != "open"], panel.index.unique("session")
    assert len(known) > 0.97 * len(panel) and not known["ret"].isna().any()
    assert (known["entry"] > known.index.get_level_values("session")).all() and (known["exit"] >= known["entry"]).all()
    life = days.get_indexer(known["exit"]) - days.get_indexer(known["entry"]) + 1
    assert life.min() == 1 and life.max() == 10 and (life[known["hit"] == "expiry"] == 10).all()
    assert (known.loc[known["hit"] == "profit", "ret"] > 0).all() and (known.loc[known["hit"] == "stop", "ret"] < 0).all()
    unique = uniqueness(known, days)
    # every label-session is shared out once: the shares of a session add up to 1, or to 0 where nobody lives
    total = (unique * (days.get_indexer(known["known_at"]) - days.get_indexer(known.index.get_level_values("session")) + 1)).sum()
    np.testing.assert_allclose(total, (concurrency(known, days) > 0).to_numpy().sum(), rtol=1e-9)
    drawn = sequential_bootstrap(known, 20_000, sessions=days)
    plain = np.random.default_rng(0).integers(0, len(known), 20_000)
    assert uniqueness(known.iloc[drawn], days).mean() > uniqueness(known.iloc[plain], days).mean()
