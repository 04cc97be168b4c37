"Money: an independent account agrees to the cent, a replay through the disk to the bit, whatever happens in between"
import json
import math
import os
import resource
import signal
from collections import defaultdict, deque
from itertools import count

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tradenb.core.panel import long
from tradenb.execution import vault as vault_room
from tradenb.execution.backtest import run, step
from tradenb.execution.broker import Bars, Fills, Sim
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.portfolio.sizing import volatility_target
from tradenb.portfolio.weights import compose, ewma, rule, top_bottom

FILLS = "next_open", "next_close", "same_close"
ALL_FILLS = *FILLS, "next_twap"


# An account kept by hand

def by_hand(weights, panel, costs, fill="next_open", cash=100_000.0, lot=None, actions=None):
    "NAV by session, from a plain loop over plain dicts that shares no line with the library"
    days, told = defaultdict(dict), defaultdict(list)
    for (day, name), *bar in zip(panel.index, *(panel[c].tolist() for c in panel), strict=True): days[day][name] = dict(zip(panel, bar, strict=True))
    asked = {day: {n: w for n, w in zip(weights.columns, row, strict=True) if w == w}
             for day, row in zip(weights.index, weights.to_numpy().tolist(), strict=True)}
    for (day, name), row in ({} if actions is None else actions.to_dict("index")).items(): told[day].append((name, row))
    held, last, pending, before, out = defaultdict(float), {}, None, None, {}
    seen, since = {}, {}                            # the last close of a name; what a share of then is now, and what it paid
    past = defaultdict(lambda: deque(maxlen=20))    # return and dollars traded of a name, a session each

    def known(name, which, least=10):
        "Mean dollars a day, or volatility, of the 20 sessions before; None where fewer than half are known"
        some = [x[which] for x in past[name] if x[which] is not None]
        if len(some) < least: return None
        mean = sum(some) / len(some)
        return mean if which else math.sqrt(sum((x - mean) ** 2 for x in some) / (len(some) - 1))

    def night(nights):
        "The lender and the bank"
        nonlocal cash
        short, due = 0.0, 0.0
        for n, q in held.items():
            if q >= 0: continue
            adv, rate = known(n, 1), 0.0
            for least, bps in reversed(costs.borrow):
                if least == 0 or adv is not None and adv >= least: rate = bps
            due += -q * last[n] * rate / 10_000 * nights / 360
            short += -q * last[n]
        free = cash - short * (1 - costs.proceeds)
        cash += free * (costs.credit if free > 0 else costs.debit) / 10_000 * nights / 360 - due

    def company(name, split, dividend, delisting):
        nonlocal cash
        if split == split:
            held[name] *= split
            if name in last: last[name] /= split
            if name in since: since[name][0] *= split
        if dividend == dividend:
            cash += held[name] * dividend
            if name in last: last[name] -= dividend
            if name in since: since[name][1] += dividend * since[name][0]
        if delisting == delisting: cash += held.pop(name, 0.0) * delisting

    def trade(bars, target, size_at, fill_at):
        nonlocal cash
        price, paid = ({n: at(bar) for n, bar in bars.items()} for at in (size_at, fill_at))
        nav = cash + sum(q * price.get(n, last.get(n)) for n, q in held.items() if q)
        deals = {}
        for n in price.keys() & (target.keys() | held.keys()):
            want = target.get(n, 0.0) * nav / price[n]
            if lot: want = int(abs(want) / lot + 1e-9) * lot * (1 if want > 0 else -1)
            deals[n] = want - held[n]
        traded = sum(abs(q * paid[n]) for n, q in deals.items())
        for n, q in deals.items():
            dollars = abs(q * paid[n])
            bps = costs.spread + costs.commission + costs.impact * traded / nav + (costs.fees if q < 0 else 0)
            cash -= q * paid[n] + dollars * bps / 10_000
            if costs.Y and q:
                sigma, adv = known(n, 0), known(n, 1)
                cash -= dollars * costs.Y * (costs.unknown_sigma if sigma is None else sigma) * math.sqrt(dollars / (adv or costs.unknown_adv))
            held[n] += q
            if q: last[n] = paid[n]

    def auction(bar): return bar["open" if fill in ("next_open", "next_twap") else "close"]
    def middle(bar): return sum(bar[c] for c in ("open", "high", "low", "close")) / 4
    for day, bars in days.items():
        if before is not None:
            if costs.borrow or costs.credit or costs.debit: night((day - before).days)
        for when in sorted(d for d in told if (before is None or d > before) and d <= day):
            for name, row in told[when]: company(name, row["split"], row["dividend"], row["delisting"])
        if pending: trade(bars, pending, auction, middle if fill == "next_twap" else auction)
        last.update({n: bar["close"] for n, bar in bars.items()})
        pending = asked.get(day)
        if fill == "same_close" and pending: trade(bars, pending, auction, auction)
        if fill == "same_close": pending = None
        out[day] = cash + sum(q * last[n] for n, q in held.items() if q)
        if costs.Y or costs.borrow:
            for n in seen.keys() | bars.keys():
                if n not in bars: past[n].append((None, None)); continue
                close, (grown, got) = bars[n]["close"], since.get(n, (1.0, 0.0))
                past[n].append(((close * grown + got) / seen[n] - 1 if n in seen else None, close * bars[n]["volume"]))
                seen[n], since[n] = close, [1.0, 0.0]
        before = day
    return pd.Series(out)


# Markets and what might be asked of them

@st.composite
def markets(draw, most=7):
    "A small market with holes, and weights with holes, of which some sessions have no row"
    n, m = draw(st.integers(2, most) | st.just(most)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    days, names = pd.bdate_range("2024-01-02", periods=n, unit="us"), [f"{c}{c}" for c in "QAZMB"[:m]]
    there = rng.random((n, m)) > draw(st.sampled_from([0.0, 0.3]))
    there[:, 0] = True
    o, c, v = rng.uniform(5, 500, (n, m)), rng.uniform(5, 500, (n, m)), 10 ** rng.uniform(3, 7, (n, m))
    columns = dict(open=o, high=np.maximum(o, c) * 1.02, low=np.minimum(o, c) * 0.98, close=c, volume=v)
    weights = rng.normal(0, 0.3, (n, m)) / m
    weights[rng.random((n, m)) < 0.2] = np.nan
    weights[rng.random(n) < 0.2] = np.nan
    rows = rng.random(n) > 0.15
    panel = long(**{k: pd.DataFrame(np.where(there, x, np.nan), days, names).sort_index(axis=1) for k, x in columns.items()})
    weights = pd.DataFrame(weights[rows], days[rows], names)
    return weights.loc[:, weights.columns.isin(panel.index.unique("symbol"))], panel


def acts(panel, seed, part=0.15):
    "What companies did on some of the days: splits, dividends, and delistings of names that nonetheless come back"
    rng, days, names = np.random.default_rng(seed), panel.index.unique("session"), panel.index.unique("symbol")
    rows, last, close = {}, {}, panel["close"].to_dict()
    for day in days:
        for name in sorted(names):
            split, paid, gone = (x if rng.random() < p else np.nan for x, p in
                                 ((rng.choice([7.0, 2.0, 1.5, 0.1]), part), (rng.uniform(0.001, 0.1), part), (rng.choice([0.0, 3.25, 80.0]), part / 3)))
            last[name] = last.get(name, 0.0) / (split if split == split else 1)
            rows[day, name] = split, (paid := paid * last[name] or np.nan), gone
            last[name] = close.get((day, name), gone if gone == gone else last[name] - np.nan_to_num(paid))
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["session", "symbol"]), ["split", "dividend", "delisting"])


def runs(*args, **kwargs):
    "`run`, where the account is not ruined on the way"
    try: return run(*args, **kwargs)
    except ValueError as e:
        assert "lower the gross exposure" in str(e)
        reject()


some_costs = st.builds(Costs, *[st.sampled_from([0.0, 1.0, 5.0, 20.0])] * 3)
all_costs = some_costs | st.builds(Costs.realistic, Y=st.sampled_from([0.0, 0.5, 1.0]), fees=st.sampled_from([0.0, 0.3]), credit=st.sampled_from([0.0, 300.0]),
                                   debit=st.sampled_from([0.0, 500.0]), proceeds=st.sampled_from([0.0, 0.5]))
few = settings(max_examples=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(markets(most=26), all_costs, st.sampled_from(ALL_FILLS), st.sampled_from([None, 1.0, 10.0]), st.integers(0, 2**32))
def test_an_account_kept_by_hand_agrees_to_the_cent(market, costs, fill, lot, seed):
    "Every kind of cost, the nights, and whatever companies do; in lots there is nothing to split"
    weights, panel = market
    actions = None if lot or seed % 4 == 0 else acts(panel, seed)
    ours = runs(weights, Bars(panel, actions), costs, fill, lot=lot).nav
    hand = by_hand(weights, panel, costs, fill, lot=lot, actions=actions)
    assert ((ours - hand).abs() / np.maximum(1, ours.abs() / 1e5)).max() < 0.005


@few
@given(markets(most=12), all_costs, st.sampled_from(ALL_FILLS), st.integers(0, 2**32), st.sampled_from([None, 0.05]))
def test_cash_and_positions_are_the_nav(market, costs, fill, seed, participation):
    "From the lists of fills and events alone: cash is what was not spent, NAV is cash and what is held at the price last seen"
    weights, panel = market
    ledger = runs(weights, Bars(panel, acts(panel, seed) if seed % 4 else None), costs, fill, participation=participation)
    fills, events, shares, price, cash = ledger.fills, ledger.events, defaultdict(float), {}, 100_000.0
    for session in ledger.sessions:
        for e in events[events["session"] == session].itertuples():
            cash += e.cash
            if e.symbol: shares[e.symbol] += e.shares
            if e.kind == "split": price[e.symbol] /= e.amount
            if e.kind == "dividend": price[e.symbol] -= e.amount
        for f in fills[fills["session"] == session].itertuples():
            cash -= f.shares * f.price + f.cost
            shares[f.symbol] += f.shares
            price[f.symbol] = f.price
        price.update({n: p for n, p in panel["close"].xs(session).items() if n in ledger.symbols})
        nav = cash + sum(q * price[n] for n, q in shares.items() if q)
        assert cash == pytest.approx(ledger.cash[session], rel=1e-9, abs=1e-6)
        assert nav == pytest.approx(ledger.nav[session], rel=1e-9, abs=1e-6)
        assert ledger.weights.loc[session].sum() * nav + cash == pytest.approx(nav, rel=1e-9, abs=1e-6)
        assert ledger.statement(session)["NAV"] == sum(ledger.statement(session)[["cash", "positions"]])
    assert (ledger.costs >= 0).all() and ledger.costs.sum() == pytest.approx(fills["cost"].sum())


@few
@given(markets(), some_costs, st.sampled_from(FILLS), st.integers(0, 99))
def test_the_order_of_the_columns_changes_nothing(market, costs, fill, seed):
    weights, panel = market
    shuffled = weights.iloc[:, np.random.default_rng(seed).permutation(weights.shape[1])]
    one, other = (runs(w, panel, costs, fill).nav.tolist() for w in (weights, shuffled))
    assert one == other


@few
@given(markets(), some_costs, st.sampled_from(FILLS), st.integers(0, 6))
def test_the_future_changes_nothing(market, costs, fill, cut):
    "Prices after a session, and for next_open and next_close also the decision of that session itself, leave its NAV alone"
    weights, panel = market
    sessions = panel.index.unique("session")
    t = sessions[min(cut, len(sessions) - 1)]
    wild, other = panel.copy(), weights.copy()
    wild.loc[wild.index.get_level_values("session") > t] *= 1.7
    other.loc[other.index > t if fill == "same_close" else other.index >= t] *= -0.5
    ours, theirs = runs(weights, panel, costs, fill), runs(other, wild, costs, fill)
    assert ours.nav[:t].tolist() == theirs.nav[:t].tolist()
    assert ours.flags == ({"research_only_same_close"} if fill == "same_close" else set())


# Replay

def living_market(n=60, m=40):
    "Names that are listed late, names that go, rows that are missing"
    rng = np.random.default_rng(7)
    days, names = pd.bdate_range("2024-01-02", periods=n, unit="us"), [f"N{i:02d}" for i in rng.permutation(m)]
    close = 50 * np.exp(rng.normal(0, 0.02, (n, m)).cumsum(axis=0))
    opens = close * np.exp(rng.normal(0, 0.01, (n, m)))
    first, last = rng.integers(-40, 40, m), rng.integers(30, 120, m)
    age = np.arange(n)[:, None]
    there = (age >= first) & (age <= last) & (rng.random((n, m)) > 0.03)
    opens, close = (pd.DataFrame(np.where(there, x, np.nan), days, names).sort_index(axis=1) for x in (opens, close))
    scores = pd.DataFrame(rng.normal(size=(n, m)), days, names).where(close.notna())
    scores.iloc[::9] = np.nan
    return scores.dropna(axis=1, how="all"), long(open=opens, close=close)


@rule
def near_high(window: int = 5):
    "A rule that remembers an array along the names, and a count"
    def weigh(weights, state):
        high = np.fmax(state.memory.get("high", np.full(len(weights), np.nan)), state.held)
        state.memory["high"], state.memory["asked"] = high, state.memory.get("asked", 0) + 1
        return np.where(weights == weights, weights, 0.0) * (1 - np.nan_to_num(high)) + 0.001 * (state.memory["asked"] % window)
    return weigh


def living_rules(): return [top_bottom(k=5, long=0.6, short=-0.4), ewma(alpha=0.15), near_high(), volatility_target(target=0.08)]


def same(one, other):
    "Two accounts that nobody can tell apart"
    assert one.nav.tolist() == other.nav.tolist() and one.cash.tolist() == other.cash.tolist()
    for table in ("fills", "positions", "weights"): pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table), check_exact=True)
    for series in ("returns", "turnover", "costs"): assert getattr(one, series).tolist() == getattr(other, series).tolist()
    assert one.flags == other.flags and (one.pending is None) == (other.pending is None)
    if one.pending is not None: pd.testing.assert_series_equal(one.pending, other.pending, check_exact=True)
    for array in ("symbols", "shares", "marks"): assert getattr(one.book, array).tolist() == getattr(other.book, array).tolist()
    assert one.last.memory.keys() == other.last.memory.keys()
    for key, value in one.last.memory.items(): np.testing.assert_array_equal(value, other.last.memory[key])


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_replay_is_the_backtest_to_the_bit(tmp_path, fill, keep):
    "60 evenings; each sees a panel that ends there and has only the names and the stretch of history it feels like having"
    scores, panel = living_market()
    rng = np.random.default_rng(1)
    ledger = None
    for i, day in enumerate(panel.index.unique("session")):
        if ledger is None or rng.random() >= keep: ledger = Ledger.open(tmp_path, 100_000)
        tonight = panel.loc[panel.index.unique("session")[max(0, i - rng.integers(1, 20))]:day]
        row = scores.loc[day].sample(frac=1, random_state=i)
        assert step(ledger, day, tonight, row, Sim(tonight, Costs.ranker()), living_rules(), fill) is ledger
        before = os.listdir(tmp_path)
        step(ledger, day, tonight, -row, Sim(tonight), living_rules(), fill)   # once more: nothing
        assert len(ledger.lines) == i + 1 and os.listdir(tmp_path) == before
    whole = run(scores, panel, Costs.ranker(), fill, living_rules())
    assert len(whole.fills) > 500 and whole.last.memory["asked"] > 50
    same(ledger, whole)
    same(Ledger.open(tmp_path), whole)


def test_names_that_are_listed_later_take_no_part(tmp_path):
    "The same past, whether or not the market knows of a stock to come"
    scores, panel = living_market()
    day = panel.index.unique("session")[30]
    then = panel.loc[:day]
    known = then.index.unique("symbol")
    assert len(known) < scores.shape[1]
    early = run(scores.loc[:day, sorted(known)], then, Costs.ranker(), rules=living_rules())
    assert early.nav.tolist() == run(scores, panel, Costs.ranker(), rules=living_rules()).nav[:day].tolist()


# Faults

def _killed(account, work, at):
    "Run `work` in a process of its own that dies at the `at`-th dangerous moment; did it die?"
    pid = os.fork()
    if pid == 0:
        try:
            moment = count()
            def dangerous(real):
                def call(*args, **kwargs):
                    if next(moment) == at: os._exit(9)
                    out = real(*args, **kwargs)
                    if next(moment) == at: os._exit(9)
                    return out
                return call
            for module, name in ((json, "dumps"), (os, "fsync"), (os, "replace")):
                setattr(module, name, dangerous(getattr(module, name)))
            work(Ledger.open(account))
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_a_kill_at_any_moment_leaves_the_whole_session_or_nothing(tmp_path):
    scores, panel = living_market(n=40)
    sessions, bars = panel.index.unique("session"), Bars(panel)
    def take(ledger, day): return step(ledger, day, bars, scores.loc[day], Sim(bars, Costs.ranker()), living_rules())
    whole, kills = run(scores, panel, Costs.ranker(), rules=living_rules()), 0
    for i, day in enumerate(sessions):
        moment = i
        while _killed(tmp_path, lambda ledger, day=day: take(ledger, day), moment):
            kills += 1
            moment += 1 if i < 3 else 7
            assert Ledger.open(tmp_path).nav.tolist() == whole.nav.tolist()[:len(Ledger.open(tmp_path).lines)]
            assert len(Ledger.open(tmp_path).lines) in (i, i + 1)
            if moment > 60: break
        take(Ledger.open(tmp_path), day)
    assert kills > 20
    same(Ledger.open(tmp_path), whole)


@pytest.mark.parametrize("room", [0, 1, 300, 2000])
def test_a_kill_within_a_write_leaves_nothing(tmp_path, room):
    "The kernel kills whoever writes more bytes than there is room for"
    scores, panel = living_market(n=12)
    bars, days = Bars(panel), panel.index.unique("session")
    def take(ledger, day): return step(ledger, day, bars, scores.loc[day], Sim(bars), living_rules())
    for i, day in enumerate(days):
        if i % 4 == 3:
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
                try: take(Ledger.open(tmp_path), day)
                finally: os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGXFSZ
            assert len(Ledger.open(tmp_path).lines) == i
        take(Ledger.open(tmp_path), day)
    same(Ledger.open(tmp_path), run(scores, panel, rules=living_rules()))


def test_an_account_read_back_knows_the_prices_of_what_it_does_not_hold(tmp_path):
    scores, panel = living_market(n=12)
    bars = Bars(panel)
    ledger = Ledger.open(tmp_path)
    for day in bars.sessions: step(ledger, day, bars, scores.loc[day], Sim(bars), [top_bottom(k=2)])
    assert (ledger.book.shares == 0).sum() > 10 and (ledger.book.marks > 0).all()
    same(Ledger.open(tmp_path), ledger)


def test_names_without_a_past_are_nan_in_what_rules_remember():
    _, panel = living_market(n=3)
    bars, seen = Bars(panel), []
    def remembers(weights, state):
        seen.append(state.memory.get("there", np.zeros(0)))
        state.memory["there"] = np.ones(len(weights))
        return weights
    ledger, some = Ledger(), bars.symbols[:4]
    for day, names in zip(bars.sessions, (some[1:3], some, some), strict=True):
        step(ledger, day, bars, pd.Series(0.1, names), Sim(bars), remembers)
    np.testing.assert_array_equal(seen[1], [1, 1, np.nan, np.nan])
    np.testing.assert_array_equal(seen[2], [1, 1, 1, 1])
    assert ledger.symbols.tolist() == [*some[1:3], some[0], some[3]]


def test_a_failing_broker_rule_or_disk_leaves_the_account_where_it_was(tmp_path, monkeypatch):
    scores, panel = living_market(n=12)
    days, bars, rules = panel.index.unique("session"), Bars(panel), living_rules()
    whole, ledger = run(scores, panel, Costs.ranker(), rules=rules), Ledger.open(tmp_path)

    class Down:
        def trade(self, orders, session): raise ConnectionError("the broker is down")
    def spoils(weights, state):
        state.memory["high"], state.memory["asked"] = 7 * state.held, 99
        raise ZeroDivisionError("a rule of somebody's")
    def full(*_): raise OSError("no space left on device")

    for i, day in enumerate(days):
        good = scores.loc[day], Sim(bars, Costs.ranker()), rules
        if ledger.last and ledger.last.pending is not None:
            with pytest.raises(ConnectionError): step(ledger, day, bars, good[0], Down(), good[2])
        if good[0].notna().any():
            with pytest.raises(ZeroDivisionError): step(ledger, day, bars, good[0], good[1], compose([*rules, spoils]))
        with monkeypatch.context() as m, pytest.raises(OSError, match="no space"):
            m.setattr(vault_room.os, "replace", full)
            step(ledger, day, bars, *good)
        assert len(ledger.lines) == i
        step(ledger, day, bars, *good)
    same(ledger, whole)
    same(Ledger.open(tmp_path), whole)


def test_a_broker_may_fill_less_than_asked_in_any_order():
    scores, panel = living_market(n=10)
    bars = Bars(panel)
    class Half(Sim):
        def trade(self, orders, session):
            f = super().trade(orders, session)
            some = np.flatnonzero(f.shares)[::-2]
            return Fills(f.symbols[some], f.shares[some] / 2, f.price[some], f.cost[some] / 2)
    ledger = Ledger()
    for day in bars.sessions: step(ledger, day, bars, scores.loc[day] / 100, Half(bars, Costs.flat(5)))
    fills = ledger.fills
    assert len(fills) > 50
    assert ledger.book.cash == pytest.approx(100_000 - (fills["shares"] * fills["price"]).sum() - fills["cost"].sum())


def test_infinite_weights_are_refused_by_the_step():
    scores, panel = living_market(n=3)
    bars, day = Bars(panel), panel.index[0][0]
    def wild(weights, state): return np.full(len(weights), np.inf)
    row = pd.Series(1.0, scores.columns)
    with pytest.raises(ValueError, match="is infinite: gross exposure has to be finite"): step(Ledger(), day, bars, row, Sim(bars), wild)
    with pytest.raises(ValueError, match="scores name N.* twice"): step(Ledger(), day, bars, pd.concat([row, row]), Sim(bars))


# Real prices

@pytest.mark.real
@pytest.mark.parametrize(("fill", "costs"), [("next_open", Costs.ranker()), ("next_close", Costs.realistic(credit=200.0, fees=0.3))])
def test_by_hand_over_the_real_stocks(real_data, fill, costs):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet", columns=["date", "symbol", "open", "close", "volume"])
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index()[["open", "close", "volume"]].astype(float)
    names, sessions = panel.index.unique("symbol"), panel.index.unique("session")
    weights = pd.DataFrame(np.random.default_rng(0).normal(size=(len(sessions), len(names))), sessions, names)
    weights = weights.div(weights.abs().sum(axis=1), axis=0)
    ledger = run(weights, panel, costs, fill, cash=1e7)
    assert len(ledger.fills) > 400_000 and ledger.costs.sum() > 100_000 and (ledger.borrow.sum() < -10_000) == bool(costs.borrow)
    hand = by_hand(weights, panel, costs, fill, cash=1e7)
    assert (ledger.nav - hand).abs().max() < 0.005
