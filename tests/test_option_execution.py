"Options in the one kernel: an account kept by hand agrees to the cent, nothing is filled better than quoted, and nothing outlives its end"
import math
from collections import defaultdict
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tests.test_execution import _killed, same
from tradenb.core.calendar import sessions
from tradenb.data.contracts import contracts, terms
from tradenb.execution.backtest import run, step
from tradenb.execution.bars import Bars
from tradenb.execution.broker import Sim
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.execution.options import option_bars
from tradenb.execution.trace import day as traced
from tradenb.execution.trips import cost_parts, trips
from tradenb.portfolio.rules import rule
from tradenb.portfolio.switches import kill_switch

FILLS = "next_open", "next_close", "same_close"
SIZED = "at_fill", "at_decision"
COSTS = Costs(spread=5.0, commission=1.0, per_unit=0.0065)
few = settings(max_examples=8, deadline=None)
DAYS = sessions("2024-01-02", "2024-02-02")
ENDS = "2024-01-05", "2024-01-12", "2024-01-15", "2024-01-19", "2024-01-20", "2024-03-15"    # a holiday and a Saturday among them


@cache
def world(seed, n=18):
    "Bars of a share and an index, a chain with holes, crossed quotes and bids of nothing, and weights that ask for all of it"
    rng = np.random.default_rng(seed)
    days, rows = DAYS[:n], []
    spot = {"XYZ": 100 * np.exp(rng.normal(0, 0.03, n).cumsum()).round(4), "SPX": (470 * np.exp(rng.normal(0, 0.02, n).cumsum())).round(2)}
    frames = {name: pd.DataFrame({"open": (close * np.exp(rng.normal(0, 0.01, n))).round(2), "close": close.round(2), "volume": 1e6}, days)
              for name, close in spot.items()}
    frames["XYZ"] = frames["XYZ"].drop(days[rng.integers(4, n, 1 + (seed % 3 == 0))])      # a halt
    stock = pd.concat(frames, names=["symbol", "session"]).swaplevel().sort_index()
    for root, end in (("XYZ", 0), ("XYZ", 3), ("XYZ", 4), ("SPXW", 1), ("SPXW", 2), ("SPX", 3), ("XYZ", 5)):
        under = root[:3]
        expiry = pd.Timestamp(ENDS[end])
        for strike in (np.array([0.97, 1.0, 1.04]) * (100 if under == "XYZ" else 470)).round():
            for right in "CP":
                for day, close in zip(days, spot[under], strict=True):
                    if day > expiry or root == "SPX" and day >= expiry or rng.random() < 0.15: continue
                    worth = max(close - strike if right == "C" else strike - close, 0) + close * (0.004 + 0.01 * rng.random())
                    half = (0.02 + 0.03 * worth) * rng.random(4)
                    bid, ask, bid_open, ask_open = (worth * np.array([1, 1, 1.02, 1.02]) + np.array([-1, 1, -1, 1]) * half).round(2)
                    if rng.random() < 0.1: bid = bid_open = 0.0
                    if rng.random() < 0.05: ask = np.nan
                    if rng.random() < 0.03: bid_open = ask_open + 1
                    rows.append((day, root, under, expiry, float(strike), right, max(bid, 0), ask, max(bid_open, 0), ask_open, 40.0))
    chain = pd.DataFrame(rows, columns="session root underlying expiry strike right bid ask bid_open ask_open volume".split())
    names = contracts(chain).to_numpy()
    all_names = [*dict.fromkeys(names), "XYZ"]
    weights = pd.DataFrame(rng.normal(0, 0.007, (n, len(all_names))), days, all_names)
    weights[rng.random(weights.shape) < 0.6] = 0.0
    weights[rng.random(weights.shape) < 0.2] = np.nan
    weights[rng.random(n) < 0.3] = np.nan
    weights.iloc[-1] = 0.01
    told = terms(all_names[:-1])
    return weights, chain.assign(contract=names), stock, told, option_bars(chain, all_names[:-1], stock)


@cache
def market(seed): return Bars(world(seed)[4], terms=world(seed)[3])


def ruined(f, *args, **kwargs):
    try: return f(*args, **kwargs)
    except ValueError as e:
        assert "lower the gross exposure" in str(e)
        reject()


# An account kept by hand

@cache
def ended(name):
    "The last session of a contract, from its name and a list of what was closed"
    day = f"20{name[-15:-13]}-{name[-13:-11]}-{name[-11:-9]}"
    return pd.Timestamp({"2024-01-15": "2024-01-12", "2024-01-20": "2024-01-19"}.get(day, day))


def by_hand(seed, costs, fill, sized, lot):
    "NAV and positions by session, from dicts and floats"
    weights, chain, stock, told, _ = world(seed)
    quotes, bars = defaultdict(dict), defaultdict(dict)
    for r in chain.itertuples(): quotes[r.session][r.contract] = r
    for (day, name), r in stock.to_dict("index").items(): bars[day][name] = r
    under, strike, am, settlement = (told[c].to_dict() for c in ("underlying", "strike", "am", "settlement"))
    sign = {n: 1 if r == "C" else -1 for n, r in told.right.items()}
    cash, held, mark, todo, out, last_close, met = 1e6, defaultdict(float), {}, None, {}, {}, set()

    def mid(day, name, at):
        r = quotes[day].get(name)
        if r is None: return None
        bid, ask = (r.bid_open, r.ask_open) if at == "open" else (r.bid, r.ask)
        return (bid + ask) / 2 if ask > 0 and bid <= ask else None
    def price(day, name, at):
        if name not in sign: return bars[day].get(name, {}).get(at)
        if day > ended(name): return None
        if at == "close" and day == ended(name): return settled(day, name)
        return mid(day, name, at)
    def settled(day, name):
        u = under[name]
        spot = bars[day].get(u, {}).get("open" if am[name] else "close", last_close.get(u))
        worth = round(max(sign[name] * (spot - strike[name]), 0.0), 6)
        return worth if worth >= 0.01 or settlement[name] == "cash" else 0.0
    def quote(day, name, n, at):
        "What a broker does: dollars a unit, or None"
        if name not in sign: return price(day, name, at)
        end, r = ended(name), quotes[day].get(name)
        if r is None or day > end or am[name] and day == end or mid(day, name, at) is None: return None
        bid, ask = (r.bid_open, r.ask_open) if at == "open" else (r.bid, r.ask)
        return ask if n > 0 else bid or None
    def whole(want, name):
        size = 100.0 if name in sign else lot
        return math.copysign(math.floor(abs(want) / size + 1e-9) * size, want) if size else want
    def trade(day, at, orders, nav):
        nonlocal cash
        deals = {n: (q, p) for n, q in orders.items() if q and (p := quote(day, n, q, at))}
        for name, (q, p) in deals.items():
            fee = costs.per_unit * abs(q) if name in sign else abs(q * p) * (costs.spread + costs.commission) / 1e4
            cash -= q * p + fee
            held[name] += q
            mark[name] = p
    def worth(day, at): return cash + sum(q * (mark[n] if (p := price(day, n, at)) is None else p) for n, q in held.items() if q)
    def fill_weights(day, at, target):
        nav = worth(day, at)
        orders = {}
        for name in {**target, **held}:
            p = price(day, name, at)
            if not p: continue
            orders[name] = whole(target.get(name, 0.0) * nav / p, name) - held[name]
        trade(day, at, orders, nav)
    at = "open" if fill == "next_open" else "close"
    for day in DAYS[:18]:
        for name in [n for n in held if held[n] and n in sign and ended(n) < day]:
            q, value = held.pop(name), mark[name]
            if settlement[name] == "cash" or value == 0: cash += q * value
            else:
                cash -= sign[name] * q * strike[name]
                held[under[name]] += sign[name] * q
                mark.setdefault(under[name], strike[name] + sign[name] * value)
        if todo is not None:
            if sized == "at_fill": fill_weights(day, at, todo)
            else: trade(day, at, {n: q for n, q in todo.items() if n not in sign or ended(n) >= day}, worth(day, at))
        for name, r in bars[day].items(): last_close[name] = r["close"]
        asked = weights.loc[day].to_dict()
        met |= {n for n, w in asked.items() if w == w}
        met |= {under[n] for n in met if n in sign}
        for name in met:
            if (p := price(day, name, "close")) is not None: mark[name] = p
        todo = {n: w for n, w in asked.items() if w == w} or None
        nav = cash + sum(q * mark[n] for n, q in held.items() if q)
        if todo is not None and sized == "at_decision":
            todo = {n: whole(todo.get(n, 0.0) * nav / mark[n], n) - held[n] for n in {**todo, **held} if mark.get(n)}
        if fill == "same_close" and todo is not None:
            if sized == "at_fill": fill_weights(day, "close", todo)
            else: trade(day, "close", todo, nav)
            mark.update({n: p for n in met if (p := price(day, n, "close")) is not None})
            todo = None
        out[day] = cash + sum(q * mark[n] for n, q in held.items() if q), {n: q for n, q in held.items() if q}
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.sampled_from(FILLS), st.sampled_from(SIZED), st.sampled_from([None, 1.0]))
def test_an_account_kept_by_hand_agrees_to_the_cent(seed, fill, sized, lot):
    "Random quotes, calls and puts, cash and physical, settled at opens and closes, on holidays and Saturdays, beside shares"
    ours = ruined(run, world(seed)[0], market(seed), COSTS, fill, cash=1e6, lot=lot, sized=sized)
    hand = by_hand(seed, COSTS, fill, sized, lot)
    assert (ours.nav - pd.Series({d: nav for d, (nav, _) in hand.items()})).abs().max() < 0.005
    for day, row in ours.positions.iterrows():
        held = row[row != 0].to_dict()
        assert held.keys() == hand[day][1].keys() and all(abs(q - hand[day][1][n]) < 1e-6 for n, q in held.items())


def test_this_world_has_everything():
    "Else the test before this one would promise little"
    kinds, whys, early = set(), set(), 0
    for seed in range(6):
        ledger = run(world(seed)[0], market(seed), COSTS, cash=1e6, sized="at_decision")
        kinds, whys = kinds | {*ledger.events["kind"]}, whys | {*ledger.rejects["why"]}
        early += (ledger.events["symbol"].str.startswith("SPX24") & (ledger.events["cash"] != 0)).sum()
        assert len(ledger.fills) > 60
    assert kinds == {"exercise", "assignment", "expiry", "delivery"} and early >= 3
    assert whys >= {"no bid", "no ask", "expired", "no bar: halted or delisted", "no quote"}


# What is promised of fills and of ends

@few
@given(st.integers(0, 9), st.sampled_from(FILLS), st.sampled_from(SIZED))
def test_buys_at_the_ask_sells_at_the_bid_and_whole_contracts(seed, fill, sized):
    _, chain, _, told, panel = world(seed)
    ledger = ruined(run, world(seed)[0], market(seed), COSTS, fill, cash=1e6, sized=sized)
    done = ledger.fills[ledger.fills["symbol"].isin(told.index)].merge(chain, left_on=["session", "symbol"], right_on=["session", "contract"])
    assert len(done) == ledger.fills["symbol"].isin(told.index).sum() > 0
    at = "_open" if fill == "next_open" else ""
    assert (done["price"] == np.where(done["shares"] > 0, done["ask" + at], done["bid" + at])).all()
    assert (done["shares"] % 100 == 0).all() and (done["price"] > 0).all()
    np.testing.assert_allclose(done["cost"], 0.0065 * done["shares"].abs())


@few
@given(st.integers(0, 9), st.sampled_from(FILLS), st.sampled_from(SIZED))
def test_nothing_outlives_its_end_and_no_event_moves_the_nav(seed, fill, sized):
    _, _, _, told, _ = world(seed)
    bars, ledger = market(seed), Ledger(1e6)
    for day in bars.sessions:
        before, row = ledger.book, world(seed)[0].loc[day]
        ruined(step, ledger, day, bars, row, Sim(bars, COSTS), fill=fill, sized=sized)
        held = {n: q for n, q in zip(ledger.symbols, ledger.book.shares, strict=True) if q}
        assert all(ended(n) >= day for n in held if n in told.index)
        line, moved, marks = ledger.lines[-1], 0.0, dict(zip(before.symbols, before.marks, strict=True))
        for e in line.events:
            assert ended(e.symbol) < day if e.kind != "delivery" else e.symbol == "XYZ"
            moved += e.cash + e.shares * marks[e.symbol]
        assert abs(moved) < 1e-6
    whole = ruined(run, world(seed)[0], bars, COSTS, fill, cash=1e6, sized=sized)
    same(ledger, whole)


@few
@given(st.integers(0, 9), st.sampled_from(FILLS), st.sampled_from(SIZED))
def test_cash_and_positions_are_the_nav(seed, fill, sized):
    "From the lists of fills and events alone; and every table about them tells the same"
    bars = market(seed)
    ledger = ruined(run, world(seed)[0], bars, COSTS, fill, cash=1e6, sized=sized)
    fills, events, held, cash, positions, weights = ledger.fills, ledger.events, defaultdict(float), 1e6, ledger.positions, ledger.weights
    for session in ledger.sessions:
        for e in events[events["session"] == session].itertuples():
            cash += e.cash
            held[e.symbol] += e.shares
        for f in fills[fills["session"] == session].itertuples():
            cash -= f.shares * f.price + f.cost
            held[f.symbol] += f.shares
        assert cash == pytest.approx(ledger.cash[session], rel=1e-9)
        assert {n: q for n, q in held.items() if abs(q) > 1e-9} == pytest.approx({n: q for n, q in positions.loc[session].items() if q})
        assert weights.loc[session].sum() * ledger.nav[session] + cash == pytest.approx(ledger.nav[session], rel=1e-9)
        told = ledger.statement(session)
        assert told["NAV"] == told["cash"] + told["positions"] and told["cash"] == told.iloc[:-3].sum()
    assert trips(ledger)["net"].sum() == pytest.approx(ledger.nav.iloc[-1] - 1e6, abs=0.01)
    assert cost_parts(ledger, COSTS, bars).sum(axis=1).tolist() == pytest.approx(ledger.costs.tolist())
    assert traced(ledger, ledger.sessions[9], bars, world(seed)[0], (), COSTS)["pnl"].sum() == pytest.approx(ledger.nav.diff().iloc[9], abs=1e-6)


@few
@given(st.integers(0, 9), st.integers(2, 15), st.sampled_from(FILLS), st.sampled_from(SIZED))
def test_nothing_later_changes_anything_earlier(seed, i, fill, sized):
    weights, chain, stock, told, _ = world(seed)
    day = DAYS[i]
    later, other = chain.copy(), weights.copy()
    late = later["session"] > day
    later.loc[late, ["bid", "ask", "bid_open", "ask_open"]] *= 3
    wild = stock.copy()
    wild.loc[wild.index.get_level_values("session") > day] *= 1.3
    other.loc[other.index > day] *= -1
    ours = ruined(run, weights, market(seed), COSTS, fill, cash=1e6, sized=sized)
    theirs = ruined(run, other, Bars(option_bars(later, told.index, wild), terms=told), COSTS, fill, cash=1e6, sized=sized)
    assert ours.nav[:day].tolist() == theirs.nav[:day].tolist()
    pd.testing.assert_frame_equal(ours.positions[:day], theirs.positions.reindex(columns=ours.positions.columns)[:day], check_exact=True)


# Replay and kills

@pytest.mark.parametrize(("fill", "sized", "seed"), [("next_open", "at_decision", 3), ("next_close", "at_fill", 8), ("same_close", "at_decision", 5)])
def test_a_replay_through_the_disk_is_the_backtest_to_the_bit(tmp_path, fill, sized, seed):
    "Every evening sees a market that ends there, with the contracts that were quoted by then, and an account just read"
    weights, chain, stock, told, _ = world(seed)
    for day in DAYS[:18]:
        known = chain[chain["session"] <= day]
        tonight = told.loc[told.index.isin(known["contract"])]
        bars = Bars(option_bars(known, tonight.index, stock.loc[:day]), terms=tonight)
        row = weights.loc[day, [*tonight.index, "XYZ"]]
        step(Ledger.open(tmp_path, 1e6), day, bars, row.where(row.index.isin(bars.symbols)), Sim(bars, COSTS), fill=fill, sized=sized)
    listed = chain.groupby("contract")["session"].min()
    asked = weights.where(weights.apply(lambda w: w.index >= listed.get(w.name, DAYS[0])))
    whole = run(asked, market(seed), COSTS, fill, cash=1e6, sized=sized)
    again = Ledger.open(tmp_path)
    same(again, whole)
    pd.testing.assert_frame_equal(again.events, whole.events, check_exact=True)
    if sized == "at_decision" and fill != "same_close":
        pd.testing.assert_series_equal(again.pending_shares, whole.pending_shares, check_exact=True)
        assert again.pending_shares.any() and '"sized": "at_decision"' in (tmp_path / f"{DAYS[17]:%Y-%m-%d}.json").read_text()


def test_a_kill_at_any_moment_leaves_the_whole_session_or_nothing(tmp_path):
    weights, bars, kills = world(3)[0], market(3), 0
    whole = run(weights, bars, COSTS, cash=1e6, sized="at_decision")
    def take(ledger, day): return step(ledger, day, bars, weights.loc[day], Sim(bars, COSTS), sized="at_decision")
    Ledger.open(tmp_path, 1e6)
    for i, day in enumerate(bars.sessions):
        moment = i
        while moment < 40 and _killed(tmp_path, lambda ledger, day=day: take(ledger, day), moment):
            kills += 1
            moment += 3
            ledger = Ledger.open(tmp_path)
            assert len(ledger.lines) in (i, i + 1) and ledger.nav.tolist() == whole.nav.tolist()[:len(ledger.lines)]
        take(Ledger.open(tmp_path), day)
    assert kills > 15
    same(Ledger.open(tmp_path), whole)


@pytest.mark.parametrize("sized", SIZED)
def test_a_kill_switch_flattens_options_where_there_is_a_bid_and_stays_flat(sized):
    for seed in range(4):
        weights, _, _, told, _ = world(seed)
        bars, seen = market(seed), []
        def watch(asked, state, seen=seen):
            seen.append("fired" in state.memory.get("kill_switch", {}))
            return asked
        rules = [lambda w, s: np.where(w == w, w, s.held), kill_switch(sigma=None, drawdown=0.004, sharpe_window=None), watch]
        ledger = run(weights, bars, COSTS, rules=rules, cash=1e6, sized=sized)
        down = DAYS[:18][len(DAYS[:18]) - sum(seen):]
        assert len(down) > 2
        held, fills, refused = ledger.positions, ledger.fills, ledger.rejects
        options = [n for n in held if n in told.index]
        for before, day in zip(down, down[1:], strict=False):
            had = held.loc[before]
            stuck = {*refused[refused["session"] == day]["symbol"]} | {n for n in options if ended(n) < day}
            still = {n for n in held if held.at[day, n]}
            delivered = {e.symbol for e in ledger.events[ledger.events["session"] == day].itertuples() if e.kind == "delivery"}
            assert still <= stuck | delivered and all(abs(held.at[day, n]) <= abs(had[n]) for n in options)
        for f in fills[fills["session"] > down[0]].itertuples():
            before = held.loc[:f.session].iloc[-2][f.symbol]
            assert f.shares * before < 0 or f.symbol == "XYZ"


# A world in which everything is known

def black_scholes(spot, strike, years, vol, right):
    "Price, delta, gamma, theta a year; without interest"
    cdf = lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2)))
    d = (math.log(spot / strike) + vol**2 / 2 * years) / (vol * math.sqrt(years))
    e, pdf = d - vol * math.sqrt(years), math.exp(-d * d / 2) / math.sqrt(2 * math.pi)
    call = spot * cdf(d) - strike * cdf(e)
    price, delta = (call, cdf(d)) if right == "C" else (call - spot + strike, cdf(d) - 1)
    return price, delta, pdf / (spot * vol * math.sqrt(years)), -spot * pdf * vol / (2 * math.sqrt(years))


def test_a_hedged_straddle_earns_what_its_attribution_says():
    """No spread, no costs, and a night in which nothing moves: the open is the close before it, so the hedge is the delta of the close that
    decides it. NAV is then the sum of units (dV - delta dS) to the cent, and nearly that of gamma and theta"""
    days, vol, n = sessions("2024-01-02", "2024-02-16"), 0.25, 33
    rng, end = np.random.default_rng(4), pd.Timestamp("2024-02-16")
    close = 100 * np.exp((rng.normal(0, vol / math.sqrt(252), n) - vol**2 / 504).cumsum())
    years = [(end - d).days / 365 + 1e-9 for d in days]
    stock = pd.DataFrame({"open": np.r_[100.0, close[:-1]], "close": close}, pd.MultiIndex.from_product([days, ["XYZ"]], names=["session", "symbol"]))
    told = {r: [black_scholes(s, 100, y, vol, r) for s, y in zip(close, years, strict=True)] for r in "CP"}
    rows = [dict(session=d, root="XYZ", underlying="XYZ", expiry=end, strike=100.0, right=r, bid=v[0], ask=v[0], bid_open=u[0], ask_open=u[0],
                 delta=v[1], gamma=v[2], theta=v[3] / 365, vega=0.0)
            for r, of in told.items() for d, u, v in zip(days, [of[0], *of[:-1]], of, strict=True)]
    chain = pd.DataFrame(rows)
    names = [*dict.fromkeys(contracts(chain))]
    bars = Bars(option_bars(chain, names, stock), terms=terms(names))

    @rule
    def straddle(units: float = 1000.0):
        def weigh(scores, state):
            option = np.array([s != "XYZ" for s in state.symbols])
            held = np.where(option, units, 0.0)
            delta = np.nan_to_num(state.past("delta", 1)[-1])
            held[~option] = -(held * delta)[option].sum()
            price = np.nan_to_num(state.price)
            return held * price / state.nav
        return weigh
    scores = pd.DataFrame(1.0, days, [*names, "XYZ"])
    ledger = run(scores, bars, Costs.zero(), rules=straddle(), cash=1e6, sized="at_decision")
    price, delta, gamma, theta = (sum(np.array(told[r])[:, k] for r in "CP") for k in range(4))
    move, sold = np.diff(close), -ledger.positions["XYZ"].to_numpy()[1:]
    assert np.abs(sold[:-1] / 1000 - delta[:-2]).max() < 1e-9
    assert abs(sold[-1] / 1000 - delta[-2]) < 1e-9                    # the last hedge is decided at the close before the end
    worth = 1000 * np.diff(price)
    worth[-1] = 1000 * (abs(close[-1] - 100) - price[-2])
    path = 1e6 + np.r_[0.0, (worth - sold * move).cumsum()]
    assert np.abs(ledger.nav.to_numpy() - path).max() < 0.005
    taylor = 1000 * (gamma[:-1] * move**2 / 2 - theta[:-1] * np.diff(years))[:-4]
    assert abs(taylor.sum() - (path[-5] - 1e6)) < 0.15 * np.abs(taylor).sum()


# Edges

def lone(strike=100.0, n=8):
    "One call on one share, and what it takes to trade it"
    days = DAYS[:n]
    stock = pd.DataFrame({"open": 100.0, "close": 101.0, "volume": 1e6}, pd.MultiIndex.from_product([days, ["XYZ"]], names=["session", "symbol"]))
    chain = pd.DataFrame([dict(session=d, root="XYZ", underlying="XYZ", expiry=pd.Timestamp("2024-01-09"), strike=strike, right="C", bid=2.0, ask=2.2,
                               bid_open=2.1, ask_open=2.3, volume=3.0) for d in days[:6]])
    name, = contracts(chain).unique()
    return days, stock, chain, name


def test_a_split_overnight_scales_shares_that_were_decided_and_refuses_options_on_them():
    days, stock, chain, name = lone()
    acts = pd.DataFrame({"split": [2.0]}, pd.MultiIndex.from_tuples([(days[1], "XYZ")], names=["session", "symbol"]))
    halved = stock.copy()
    halved.loc[days[1]:, ["open", "close"]] /= 2
    ledger = run(pd.DataFrame({"XYZ": [0.5]}, days[:1]), Bars(halved, acts), cash=10_100.0, sized="at_decision")
    assert ledger.positions["XYZ"].iloc[-1] == 100.0 and ledger.fills["price"].tolist() == [50.0]
    later = acts.set_axis(pd.MultiIndex.from_tuples([(days[3], "XYZ")], names=["session", "symbol"]))
    with pytest.raises(ValueError, match=f"XYZ splits on 2024-01-05 while the account holds {name}"):
        run(pd.DataFrame({name: [0.05]}, days[:1]), Bars(option_bars(chain, [name], stock), later, terms([name])), cash=10_000.0)


@pytest.mark.parametrize("sized", SIZED)
def test_no_more_than_a_part_of_the_contracts_that_trade(sized):
    days, stock, chain, name = lone()
    bars = Bars(option_bars(chain, [name], stock), terms=terms([name]))
    ledger = run(pd.DataFrame({name: [0.5]}, days[:1]), bars, cash=10_000.0, participation=0.7, sized=sized)
    assert ledger.fills["shares"].tolist() == [200.0]                # 0.7 of three contracts, in whole ones


def test_a_written_option_is_not_borrowed():
    days, stock, chain, name = lone()
    bars = Bars(option_bars(chain, [name], stock), terms=terms([name]))
    ledger = run(pd.DataFrame({name: [-0.2]}, days[:1]), bars, Costs.realistic(borrow=[(0, 5000)]), cash=10_000.0)
    assert ledger.fills["shares"].tolist() == [-900.0]              # 2,000 dollars at an open of 2.20
    assert ledger.events["kind"].tolist()[:2] == ["assignment", "delivery"] and ledger.borrow[:days[5]].sum() == 0


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.drop(columns="strike"), "terms lack strike"),
    (lambda t: t.assign(multiplier=np.nan), "the multiplier of XYZ240109C00100000 is nan"),
    (lambda t: pd.concat([t, t]), "terms tell of XYZ240109C00100000 twice"),
    (lambda t: t.assign(underlying="ABC"), "is about ABC, which has no bars")])
def test_terms_that_cannot_be_held_are_refused(change, said):
    _, stock, chain, name = lone()
    with pytest.raises(ValueError, match=said): Bars(option_bars(chain, [name], stock), terms=change(terms([name])))


def test_an_option_is_not_traded_all_day():
    days, stock, chain, name = lone()
    bars = Bars(option_bars(chain, [name], stock.assign(high=101.0, low=100.0)), terms=terms([name]))
    with pytest.raises(ValueError, match="options are quoted at the open and the close"):
        run(pd.DataFrame({name: [0.5]}, days[:1]), bars, fill="next_twap", cash=10_000.0)
    with pytest.raises(ValueError, match="sized is 'later'; it is one of at_fill, at_decision"): run(pd.DataFrame({name: [0.5]}, days[:1]), bars, sized="later")
