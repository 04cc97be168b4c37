"One kernel for the past and for tonight: other libraries hold the same account, no kill is noticed, and what is promised of orders holds"
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.test_execution import acts, markets, runs, same
from tradenb.core.panel import long, wide
from tradenb.execution.backtest import run, step
from tradenb.execution.bars import Bars
from tradenb.execution.broker import Sim
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.portfolio.anytime import anytime_switch
from tradenb.portfolio.limits import cap, liquidity_cap, net_cap, notional_cap, sector_cap, turnover_cap
from tradenb.portfolio.rebalance import band, hold, rebalance
from tradenb.portfolio.sizing import fixed_fractional, gross, regime_filter, risk_parity, volatility_target
from tradenb.portfolio.stops import atr_stop, stop_loss, take_profit, trailing_stop
from tradenb.portfolio.switches import drawdown_breaker, kill_switch
from tradenb.portfolio.weights import ewma, filter_negative, long_only, rank, threshold, top_bottom, volatility_scaled, zscore

NEXT = "next_open", "next_close", "next_twap"
few = settings(max_examples=20, deadline=None)
COSTLY = Costs.realistic(credit=200.0, fees=0.3, proceeds=0.5, slippage={"open": 1, "close": 0.5})


# Markets, and everything that can be asked of an account at once

def raw_market(seed=12, n=60, m=18):
    "Printed prices: late listings, halts, splits, dividends, and delistings after the last bar; the scores, and the actions"
    rng = np.random.default_rng(seed)
    days, names = pd.bdate_range("2024-01-02", periods=n, unit="us"), [f"N{i:02d}" for i in rng.permutation(m)]
    close = 60 * np.exp(rng.normal(0, 0.02, (n, m)).cumsum(axis=0))
    ratio = np.where(rng.random((n, m)) < 0.01, rng.choice([7.0, 2.0, 1.5, 0.25], (n, m)), np.nan)
    paid = np.where(rng.random((n, m)) < 0.02, rng.uniform(0.05, 0.6, (n, m)).round(4), np.nan)
    first, last = np.maximum(rng.integers(-2 * n // 3, n // 3, m), 0), rng.integers(n // 2, 3 * n, m)
    first[:3], last[:3] = 0, 3 * n
    age = np.arange(n)[:, None]
    printed = close / np.nancumprod(ratio, axis=0)
    start = printed * np.exp(rng.normal(0, 0.01, (n, m)))
    there = (age >= first) & (age <= last) & ((rng.random((n, m)) > 0.03) | (np.arange(m) < 3))
    columns = dict(open=start, high=np.maximum(start, printed) * 1.01, low=np.minimum(start, printed) * 0.99, close=printed,
                   volume=rng.lognormal(8, 1, (n, m)).round())
    panel = long(**{k: pd.DataFrame(np.where(there, x, np.nan), days, names).sort_index(axis=1) for k, x in columns.items()})
    gone = np.where(age == last + 1, np.where(rng.random(m) < 0.3, 0.0, printed.round(2)), np.nan)
    actions = pd.concat({k: pd.DataFrame(x, days, names).rename_axis(index="session", columns="symbol").stack()
                         for k, x in dict(split=ratio, dividend=np.minimum(paid, printed / 20), delisting=gone).items()}, axis=1).sort_index()
    scores = pd.DataFrame(rng.normal(0, 0.02, (n, m)), days, names).where(there)
    scores.iloc[4::9] = np.nan
    return scores, panel, actions


def every_rule(symbols, **switch):
    "Construction, smoothing, sizing, limits, stops, a breaker, and a switch that fires: whatever remembers anything is among them"
    sectors = {s: f"S{i % 4}" for i, s in enumerate(sorted(symbols))}
    switch = dict(sigma=50.0, drawdown=0.006, sharpe_window=None) | switch
    return [filter_negative(k=6), ewma(0.15), volatility_target(0.2, of="unscaled"), cap(0.12), sector_cap(0.5, sectors), net_cap(0.4), turnover_cap(0.3),
            stop_loss(0.05), trailing_stop(0.06), atr_stop(2.5, 5), take_profit(0.1), drawdown_breaker(0.01, 0.5, 0.004), kill_switch(**switch), gross(1.0)]


SCORES, PANEL, ACTIONS = raw_market()
RELEASES = {day: "Ada Lovelace" for day in SCORES.index[[18, 33, 47]]}


def evening(ledger, day, bars, fill="next_open", rules=None, costs=COSTLY, participation=0.05):
    return step(ledger, day, bars, SCORES.loc[day], Sim(bars, costs, participation), rules or every_rule(SCORES, releases=RELEASES), fill)


def whole(fill="next_open"):
    return run(SCORES, Bars(PANEL, ACTIONS), COSTLY, fill, every_rule(SCORES, releases=RELEASES), participation=0.05)


def test_this_market_has_everything():
    "Else the tests below would promise little"
    bars, ledger, hit, scaled = Bars(PANEL, ACTIONS), Ledger(), set(), 0
    for day in bars.sessions:
        memory = evening(ledger, day, bars).last.memory
        hit |= {k for k in ("stop_loss", "trailing_stop", "atr_stop", "take_profit") if np.any(memory.get(k, 0.0) != 0)}
        scaled += "tripped" in memory.get("drawdown_breaker", {})
    assert hit == {"stop_loss", "trailing_stop", "atr_stop", "take_profit"} and 3 < scaled < 50
    assert {*ledger.events["kind"]} == {"split", "dividend", "delisting", "borrow", "interest"}
    assert len(memory["kill_switch"]["past"]) == 3 and len(ledger.fills) > 300
    done = ledger.fills.set_index(["session", "symbol"])
    part = done["shares"].abs() / PANEL["volume"].reindex(done.index)
    assert 0.01 < (part > 0.0499).mean() < 0.99 and part.max() <= 0.05 * (1 + 1e-12)


# Other libraries, the same account

@pytest.fixture(scope="module")
def full_market():
    "Names with a bar in every session: opens, closes, and weights that change every session, both sides"
    rng = np.random.default_rng(11)
    days, names = pd.bdate_range("2023-01-02", periods=120, unit="us"), [f"P{i:02d}" for i in range(30)]
    close = 40 * np.exp(rng.normal(0, 0.02, (120, 30)).cumsum(axis=0))
    opens, closes = (pd.DataFrame(x, days, names).rename_axis("session") for x in (close * np.exp(rng.normal(0, 0.01, (120, 30))), close))
    weights = pd.DataFrame(rng.normal(size=closes.shape), closes.index, closes.columns)
    return long(open=opens, close=closes), weights.div(weights.abs().sum(axis=1), axis=0)


def agree(ours, theirs): np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_vectorbt_holds_the_same_account(full_market, fill):
    vbt = pytest.importorskip("vectorbt", reason="pip install tradenb[peers]")
    panel, weights = full_market
    closes, price = wide(panel, "close"), wide(panel, "open" if fill == "next_open" else "close")
    theirs = vbt.Portfolio.from_orders(closes, size=weights if fill == "same_close" else weights.shift(1), size_type="targetpercent", price=price,
                                       group_by=True, cash_sharing=True, call_seq="auto", init_cash=100_000.0, freq="1D")
    ours = run(weights, panel, fill=fill)
    agree(ours.nav, theirs.value())
    agree(ours.cash, theirs.cash())


@pytest.mark.parametrize("fill", ["next_close", "same_close"])
def test_bt_holds_the_same_account(full_market, fill):
    bt = pytest.importorskip("bt", reason="pip install tradenb[peers]")
    panel, weights = full_market
    asked = weights if fill == "same_close" else weights.shift(1).iloc[1:]
    algos = [bt.algos.RunDaily(run_on_first_date=True), bt.algos.WeighTarget(asked), bt.algos.Rebalance()]
    test = bt.Backtest(bt.Strategy("daily", algos), wide(panel, "close"), initial_capital=100_000.0, integer_positions=False, progress_bar=False)
    test.run()
    agree(run(weights, panel, fill=fill).nav, test.strategy.values.iloc[1:])   # it opens the day before


# Replay and kills

@pytest.mark.parametrize("fill", ["next_open", "next_twap", "same_close"])
def test_a_replay_is_the_backtest_to_the_bit_whatever_happens(tmp_path, fill):
    "Each evening sees a market that ends there, in an order of its own; on some the account comes back from disk"
    rng, ledger = np.random.default_rng(1), None
    for i, day in enumerate(SCORES.index):
        if ledger is None or rng.random() < 0.3: ledger, rules = Ledger.open(tmp_path, 100_000), every_rule(SCORES, releases=RELEASES)
        tonight = Bars(PANEL.loc[:day], ACTIONS.loc[:day])
        step(ledger, day, tonight, SCORES.loc[day].sample(frac=1, random_state=i), Sim(tonight, COSTLY, 0.05), rules, fill)
    same(ledger, expected := whole(fill))
    same(Ledger.open(tmp_path), expected)
    pd.testing.assert_frame_equal(Ledger.open(tmp_path).events, expected.events, check_exact=True)


def test_a_shorter_past_changes_no_cent(tmp_path):
    "What is measured over a window only starts elsewhere in the rows: the last bits may move, the cents do not"
    ledger = Ledger()
    for i, day in enumerate(SCORES.index):
        since = SCORES.index[max(0, i - 40)]
        evening(ledger, day, Bars(PANEL.loc[since:day], ACTIONS.loc[:day]), rules=[filter_negative(k=6), ewma(), stop_loss(0.05), gross()])
    expected = run(SCORES, Bars(PANEL, ACTIONS), COSTLY, rules=[filter_negative(k=6), ewma(), stop_loss(0.05), gross()], participation=0.05)
    assert (ledger.nav - expected.nav).abs().max() < 0.005


def go(folder, most=None):
    "Take the account in `folder` on, as far as there are sessions, or by `most` of them and then wait to be killed"
    bars, ledger = Bars(PANEL, ACTIONS), Ledger.open(folder, 100_000)
    todo = SCORES.index[len(ledger.lines):]
    for day in todo[:most]: evening(ledger, day, bars)
    if most is not None and len(todo) > most: signal.pause()


def _booked(folder): return sum(name[0] != "." and name != "opening.json" for name in os.listdir(folder))


def _killed(process, folder, target, pause):
    "SIGKILL `process`, a moment after `target` sessions are booked; was it killed before it was done?"
    while process.is_alive() and _booked(folder) < target: time.sleep(0.0002)
    time.sleep(pause)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_killed_account_goes_on_to_the_bit(tmp_path):
    "A process takes the account on until the kernel kills it, between two sessions or within one; then another process does"
    rng, expected, kills = np.random.default_rng(), whole(), 0
    for _ in range(200):
        n = _booked(tmp_path)
        process = get_context("fork").Process(target=go, args=(tmp_path, 6))  # so that a slow machine kills as often as a fast one
        process.start()
        died = _killed(process, tmp_path, n + rng.integers(0, 7), rng.uniform(0, 0.01))
        kills += died
        if not died: break
        found = Ledger.open(tmp_path)
        assert found.verify().ok and len(found.lines) >= n
        assert found.nav.tolist() == expected.nav.tolist()[:len(found.lines)]
    assert kills > 5
    same(Ledger.open(tmp_path), expected)
    pd.testing.assert_frame_equal(Ledger.open(tmp_path).events, expected.events, check_exact=True)


def test_another_interpreter_goes_on_to_the_bit(tmp_path, root):
    "Nothing hangs on what one interpreter hashes or has compiled: others, seeded otherwise, take it on, and one of them is killed"
    words = [sys.executable, "-c", "import sys; from tests.test_kernel import go; go(sys.argv[1])", str(tmp_path)]
    for seed, stop in ((1, 30), (2, None)):
        process = subprocess.Popen(words, cwd=root, env=os.environ | {"PYTHONHASHSEED": str(seed)})
        while stop and process.poll() is None and (not tmp_path.exists() or _booked(tmp_path) < stop): time.sleep(0.0005)
        if stop: process.kill()
        assert process.wait() == (-signal.SIGKILL if stop else 0)
        assert not stop or stop <= _booked(tmp_path) < len(SCORES)
    same(Ledger.open(tmp_path), whole())


# What is promised of decisions and orders

def pool(symbols):
    "Rules of every kind, as lists are drawn from them; keys are told apart by their place"
    sectors = {s: "AB"[i % 2] for i, s in enumerate(sorted(symbols))}
    return [lambda k: filter_negative(k=2, long=1.3, short=-1.1), lambda k: top_bottom(k=2, long=2.0, short=-2.0), lambda k: threshold(0.1, k=3, long=1.5),
            lambda k: long_only(k=3, long=3.0), lambda k: volatility_scaled(k=2, window=5), lambda k: rank(), lambda k: zscore(),
            lambda k: ewma(0.5, key=k), lambda k: volatility_target(0.5, window=3, of="unscaled", key=k), lambda k: volatility_target(0.5, window=3, key=k),
            lambda k: fixed_fractional(0.05, 0.05), lambda k: risk_parity(5, "volatility"), lambda k: regime_filter(window=3), lambda k: cap(0.6),
            lambda k: sector_cap(0.8, sectors), lambda k: net_cap(0.3), lambda k: turnover_cap(0.7), lambda k: notional_cap(60_000.0),
            lambda k: liquidity_cap(0.5, 3), lambda k: band(0.05), lambda k: rebalance(2, key=k), lambda k: hold(2, key=k),
            lambda k: stop_loss(0.05, key=k), lambda k: trailing_stop(0.05, key=k), lambda k: atr_stop(1.0, 3, key=k), lambda k: take_profit(0.05, key=k),
            lambda k: drawdown_breaker(0.05, 0.5, 0.01, key=k), lambda k: kill_switch(sigma=2.0, drawdown=0.3, sharpe_window=None, window=5, key=k),
            lambda k: anytime_switch(key=k)]


N_POOL = len(pool("AB"))
some_rules = st.lists(st.integers(0, N_POOL - 1), max_size=6)


def chosen(numbers, symbols): return [pool(symbols)[n](f"rule{i}") for i, n in enumerate(numbers)]


def steps(weights, bars, costs, fill, rules, participation=None, lot=None):
    "The account after each of its sessions"
    ledger = Ledger()
    for day in bars.sessions:
        try: step(ledger, day, bars, weights.loc[day] if day in weights.index else None, Sim(bars, costs, participation, lot=lot), rules, fill, lot)
        except ValueError as e:
            if "lower the gross exposure" in str(e): return
            raise
        yield ledger


def decided(entry):
    "Weights that the account is on the way to, those that are left alone as they are"
    return np.where(np.isnan(entry.pending), entry.book.weights, entry.pending)


@settings(max_examples=60, deadline=None)
@given(markets(most=14), some_rules, st.sampled_from([0.3, 1.0, 1.6]), st.sampled_from(NEXT), st.integers(0, 2**32))
def test_no_list_of_rules_decides_more_than_its_gross(market, numbers, most, fill, seed):
    "Without scores a limit closes positions and opens none: then it is what is held that is not exceeded"
    weights, panel = market
    bars = Bars(panel, acts(panel, seed) if seed % 4 else None)
    for ledger in steps(10 * weights, bars, COSTLY, fill, [*chosen(numbers, weights.columns), gross(most)]):
        entry = ledger.last
        if entry.pending is None: continue
        scored = entry.session in weights.index and weights.loc[entry.session].notna().any()
        bound = most if scored else max(most, np.abs(entry.book.weights).sum())
        assert np.abs(decided(entry)).sum() <= bound * (1 + 1e-12)


@few
@given(st.integers(0, 2**32), some_rules, st.sampled_from(NEXT), st.sampled_from([None, 0.02]), st.lists(st.integers(0, 29), max_size=2),
       st.sets(st.integers(0, 29), max_size=6))
def test_a_switch_that_fired_opens_nothing_until_a_person_releases_it(tmp_path_factory, seed, numbers, fill, participation, releases, reopened):
    """Whatever stands before it: from the close at which it fires until the evening after a release by name, a fill only brings
    a position closer to zero; and so it is when the account comes back from disk on any evening"""
    scores, panel, actions = raw_market(seed, n=30, m=6)
    bars, folder = Bars(panel, actions), tmp_path_factory.mktemp("account")
    def rules(): return [top_bottom(k=2), *chosen(numbers, scores.columns), kill_switch(sigma=None, drawdown=0.005, sharpe_window=None), gross()]
    ledger, asked, down, free, fired = Ledger.open(folder, 100_000), rules(), False, False, 0
    for i, day in enumerate(bars.sessions):
        if i in reopened: ledger, asked = Ledger.open(folder), rules()
        before = dict(zip(ledger.symbols, ledger.book.shares, strict=True))
        try: step(ledger, day, bars, scores.loc[day], Sim(bars, COSTLY, participation), asked, fill)
        except ValueError as e:
            assert "lower the gross exposure" in str(e)
            return
        line = ledger.lines[-1]
        for e in line.events:
            if e.symbol: before[e.symbol] += e.shares
        for at, shares in zip(line.done, line.shares, strict=True) if down else ():
            had = before.get(ledger.symbols[at], 0.0)
            assert had * shares < 0 and abs(shares) <= abs(had) * (1 + 1e-12), f"{ledger.symbols[at]} is opened on {day} while the switch is down"
        latch = ledger.last.memory.get("kill_switch", {})
        assert "fired" in latch or not down or free, "nobody released it"
        fired, down, free = fired + ("fired" in latch and not down), "fired" in latch, False
        if not down: continue
        assert not (ledger.book.shares if ledger.last.pending is None else decided(ledger.last)).any()   # scores or none
        if i in releases:
            for nobody in ("", " ", None, "42"):
                with pytest.raises(ValueError, match="carries the name of a person"): ledger.release("kill_switch", nobody, "looked at")
            ledger.release("kill_switch", "Ada Lovelace", "looked at")
            free = True
    assume(fired)


def test_a_release_on_the_day_is_the_release_told_beforehand(tmp_path):
    "An account released by hand, and reopened, is to the bit the backtest that knows when"
    by_hand, rules, bars = [], every_rule(SCORES), Bars(PANEL, ACTIONS)
    for i, day in enumerate(SCORES.index):
        ledger = Ledger.open(tmp_path, 100_000)
        evening(ledger, day, bars, rules=rules)
        if i % 5 == 3 and "fired" in ledger.last.memory.get("kill_switch", {}):
            Ledger.open(tmp_path).release("kill_switch", "Ada Lovelace", "looked at")
            by_hand.append(day)
    told = run(SCORES, bars, COSTLY, rules=every_rule(SCORES, releases=dict.fromkeys(by_hand, "Ada Lovelace")), participation=0.05)
    assert len(by_hand) > 2 and ledger.nav.tolist() == told.nav.tolist()
    pd.testing.assert_frame_equal(ledger.fills, told.fills, check_exact=True)


@few
@given(markets(most=12), st.sampled_from([0.001, 0.1, 1.0]), st.sampled_from([*NEXT, "same_close"]), st.sampled_from([None, 1.0, 7.0]),
       st.integers(0, 2**32))
def test_nobody_gets_more_than_a_part_of_the_volume(market, participation, fill, lot, seed):
    weights, panel = market
    bars = Bars(panel, acts(panel, seed) if seed % 4 else None)
    *_, ledger = steps(30 * weights, bars, Costs.zero(), fill, [gross(3.0)], participation, lot)
    done = ledger.fills.set_index(["session", "symbol"])
    assert (done["shares"].abs() <= participation * panel["volume"].reindex(done.index) * (1 + 1e-12)).all()
    if lot and len(done) and seed % 4 == 0: assert (done["shares"] % lot).isin([0.0, lot]).all()


@few
@given(st.integers(0, 2**32), st.sampled_from([*NEXT, "same_close"]), st.sampled_from([None, 0.05]), st.randoms(use_true_random=False))
def test_the_order_of_names_changes_no_bit(seed, fill, participation, random):
    "All rules, all costs, all that companies do; columns of scores, rows of actions, sectors: in any order"
    scores, panel, actions = raw_market(seed, n=45, m=14)
    names, rows = [*scores.columns], [*range(len(actions))]
    random.shuffle(names)
    random.shuffle(rows)
    one = runs(scores, Bars(panel, actions), COSTLY, fill, every_rule(scores), participation=participation)
    other = runs(scores[names], Bars(panel, actions.iloc[rows]), COSTLY, fill, every_rule(names), participation=participation)
    same(one, other)
    columns = ["session", "kind", "symbol", "cash"]
    pd.testing.assert_frame_equal(*(l.events[columns].sort_values(columns[:3], ignore_index=True) for l in (one, other)), check_exact=True)


# Time

def upto(scores, bars, day, fill, participation=0.05):
    "The account through `day`, and nothing run after it"
    ledger = Ledger()
    for session in bars.sessions[:bars.row(day) + 1]:
        step(ledger, session, bars, scores.loc[session], Sim(bars, COSTLY, participation), every_rule(scores), fill)
    return ledger


def wild(panel, days, factor=1.7, columns=("open", "high", "low", "close", "volume")):
    "The same market with other numbers on `days`"
    out = panel.copy()
    out.loc[out.index.get_level_values("session").isin(days), [*columns]] *= factor
    return out


@few
@given(st.integers(0, 2**32), st.integers(5, 38), st.sampled_from([*NEXT, "same_close"]), st.floats(0.3, 3.0))
def test_nothing_after_a_session_changes_it(seed, i, fill, factor):
    "Prices, volumes, scores and actions to come: neither what was booked, nor what was decided at that close, knows them"
    scores, panel, _ = raw_market(seed, n=40, m=8)
    actions = acts(panel, seed, 0.05)
    day, later = scores.index[i], scores.index[i + 1:]
    other, doom = scores.copy(), actions[actions.index.get_level_values("session") <= day]
    other.loc[later] *= -1
    same(upto(scores, Bars(panel, actions), day, fill), upto(other, Bars(wild(panel, later, factor), doom), day, fill))


@few
@given(st.integers(0, 2**32), st.integers(5, 38), st.sampled_from(NEXT), st.booleans())
def test_no_order_is_filled_in_the_session_whose_close_decided_it(seed, i, fill, turned):
    """Without the flag. A session's fills do not know its scores; nor, at the open, the rest of its bar; and what a close decides
    is filled at a price of the next session, whatever this one's were"""
    scores, panel, actions = raw_market(seed, n=40, m=8)
    day, other = scores.index[i], scores.copy()
    other.loc[day] = -scores.loc[day].to_numpy() if turned else np.nan
    ours, theirs = (upto(s, Bars(panel, actions), day, fill) for s in (scores, other))
    pd.testing.assert_frame_equal(ours.fills, theirs.fills, check_exact=True)
    assert ours.nav.tolist() == theirs.nav.tolist() and ours.last.memory.keys() >= {"ewma"}
    if fill == "next_open":
        rest = upto(scores, Bars(wild(panel, [day], columns=["high", "low", "close", "volume"]), actions), day, fill, None)
        free = upto(scores, Bars(panel, actions), day, fill, None)
        pd.testing.assert_frame_equal(free.fills, rest.fills, check_exact=True)
    price = wide(panel, {"next_open": "open", "next_close": "close"}.get(fill, "low"))
    for f in ours.fills.itertuples():
        paid = price.loc[f.session, f.symbol]
        assert f.price == paid if fill != "next_twap" else paid <= f.price <= panel.loc[(f.session, f.symbol), "high"]


def test_with_the_flag_a_session_fills_what_its_own_close_decides():
    "So the test before this one would notice"
    day, other = SCORES.index[20], SCORES.copy()
    other.loc[day] *= -1
    ours, theirs = (upto(s, Bars(PANEL, ACTIONS), day, "same_close") for s in (SCORES, other))
    assert ours.flags == {"research_only_same_close"} and ours.last.pending is None
    assert not ours.fills.equals(theirs.fills)
    with pytest.raises(ValueError, match="fill is 'same_open'"): run(SCORES, PANEL, fill="same_open")
