"Sleeves in one account: nothing is lost between them, a lone one is the account itself; and an account told again"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tradenb.core.panel import long
from tradenb.execution.backtest import run, step
from tradenb.execution.bars import Bars
from tradenb.execution.broker import Sim
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.execution.trace import day, trace
from tradenb.portfolio.rules import compose, rule
from tradenb.portfolio.sizing import gross, volatility_target
from tradenb.portfolio.sleeves import Sleeve, _share_out, attribution, scored, sleeves
from tradenb.portfolio.stops import stop_loss
from tradenb.portfolio.switches import kill_switch
from tradenb.portfolio.weights import ewma, filter_negative, top_bottom

few = settings(max_examples=10, deadline=None)
FILLS = "next_open", "next_close", "next_twap"


@rule
def as_scored():
    return lambda scores, state: scores


# Markets

def market(seed, n=12, m=5, holes=0.0):
    "Prices of a few names, some missing, some rows of scores missing; and the scores"
    rng = np.random.default_rng(seed)
    days, names = pd.bdate_range("2024-01-02", periods=n, unit="us"), [f"{c}{c}" for c in "ABMQZ"[:m]]
    close = 100 * np.exp(rng.normal(0, 0.03, (n, m)).cumsum(axis=0))
    start = close * np.exp(rng.normal(0, 0.01, (n, m)))
    there = rng.random((n, m)) >= holes
    there[:, 0] = True
    frame = {k: pd.DataFrame(np.where(there, v, np.nan), days, names) for k, v in
             dict(open=start, high=np.maximum(start, close) * 1.01, low=np.minimum(start, close) * 0.99, close=close,
                  volume=rng.uniform(100, 5000, (n, m))).items()}
    scores = rng.normal(0, 1, (n, m))
    scores[rng.random((n, m)) < holes] = np.nan
    panel = long(**frame)
    known = panel.index.unique("symbol")
    return panel, pd.DataFrame(scores, days, names)[rng.random(n) >= holes].reindex(columns=known)


def runs(*args, **kwargs):
    try: return run(*args, **kwargs)
    except ValueError as e:
        assert "lower the gross exposure" in str(e)
        reject()


some_costs = st.sampled_from([Costs.zero(), Costs.ranker(), Costs.flat(20), Costs.realistic()])
markets = st.builds(market, st.integers(0, 2**32), st.integers(2, 14), st.integers(1, 5), st.sampled_from([0.0, 0.25]))


def several(other):
    "Three sleeves that trade against each other: one keeps still without scores, one stops its losses, one has scores of its own"
    return {"slow": Sleeve([top_bottom(2), ewma(0.3)], 0.5),
            "nervous": Sleeve([filter_negative(1), volatility_target(window=3), stop_loss(0.02)], 0.3),
            "own": Sleeve([as_scored(), gross(1.0), kill_switch(drawdown=0.03)], 0.15, other)}


# One morning, one name

numbers = st.lists(st.floats(-1e4, 1e4).map(lambda x: round(x, 3)), min_size=3, max_size=3)


@settings(deadline=None)
@given(numbers, numbers, st.floats(-3e4, 3e4))
def test_shares_are_shared_out_to_the_last(asked, held, traded):
    got, held = np.array(asked), np.array(held)
    _share_out(got, held, traded, np.full(3, 1 / 3))
    assert got.sum() == pytest.approx(traded, abs=1e-6)


@settings(deadline=None)
@given(numbers, numbers, st.floats(0, 1))
def test_nobody_gets_more_than_asked_when_less_is_filled(asked, held, part):
    asked = np.array(asked)
    got = asked.copy()
    _share_out(got, np.array(held), part * asked.sum(), np.full(3, 1 / 3))
    assert (got * asked >= -1e-6).all() and (np.abs(got) <= np.abs(asked) + 1e-6).all()
    side = np.sign(asked.sum())
    assert got[asked * side < 0] == pytest.approx(asked[asked * side < 0], abs=1e-6)    # who met inside is done
    mine = asked * side > 0
    if mine.any(): assert np.ptp(got[mine] / asked[mine]) < 1e-6 or np.abs(asked[mine]).min() < 1    # in proportion


# Whole accounts

@few
@given(markets, some_costs, st.sampled_from(FILLS), st.sampled_from([None, 0.05]), st.sampled_from([None, 1.0]))
def test_a_lone_sleeve_is_the_account(given, costs, fill, participation, lot):
    panel, scores = given
    rules = [top_bottom(2), ewma(0.4), volatility_target(window=3), stop_loss(0.02), kill_switch(drawdown=0.04)]
    one = runs(scores, panel, costs, fill, rules, lot=lot, participation=participation)
    other = runs(scores, panel, costs, fill, sleeves({"lone": Sleeve(rules, 1.0)}), lot=lot, participation=participation)
    assert (one.nav - other.nav).abs().max() < 0.005
    fired = [led.last.memory.get(key, {}).get("fired") for led, key in ((one, "kill_switch"), (other, "sleeves.lone.kill_switch"))]
    assert fired[0] == fired[1]


@few
@given(markets, markets, some_costs, st.sampled_from(FILLS), st.sampled_from([None, 0.05]),
       st.sampled_from([(), (gross(0.4),), (kill_switch(drawdown=0.02),)]))
def test_sleeves_add_up_to_the_account(given, other, costs, fill, participation, limits):
    panel, scores = given
    own = other[1].reindex(scores.index, columns=scores.columns).where(scores.notna()) / 3
    ledger = runs(scores, panel, costs, fill, [sleeves(several(own)), *limits], participation=participation)
    if not ledger.last.memory: return
    told = attribution(ledger)
    sums = told.groupby(level="session")[["pnl", "cost", "traded"]].sum()
    change = ledger.nav.diff().fillna(ledger.nav.iloc[0] - ledger.opening)
    assert (sums["pnl"] - change[sums.index])[1:].abs().max() < 0.005 or len(sums) == 1
    assert (sums["cost"] - ledger.costs[sums.index]).abs().max() < 0.005
    dollars = (ledger.fills["shares"] * ledger.fills["price"]).abs().groupby(ledger.fills["session"]).sum()
    assert (sums["traded"] - dollars.reindex(sums.index).fillna(0)).min() > -0.005    # what met inside comes on top
    held = sum(ledger.last.memory[f"sleeves:{name}:shares"] for name in several(None))
    assert held == pytest.approx(ledger.book.shares, abs=1e-6)
    if not costs.has_carry: assert told.xs("account", level="sleeve")["pnl"].abs().max() < 0.0005    # it has 5% of what nobody knows


@few
@given(st.integers(0, 2**32), st.integers(3, 14))
def test_sleeves_earn_what_they_would_have_earned_alone(seed, n):
    "Without costs and with fills at the price that sizes them, a sleeve's return is that of an account of its own"
    panel, scores = market(seed, n)
    mine, theirs = scores / 5, scores.sample(frac=1, axis=1, random_state=1).set_axis(scores.columns, axis=1) / 7
    both = {"a": Sleeve(as_scored(), 0.5), "b": Sleeve(as_scored(), 0.3, theirs)}
    told = attribution(run(mine, panel, fill="next_close", rules=sleeves(both)))["return"].unstack()
    assert told["a"].to_numpy() == pytest.approx(run(mine, panel, fill="next_close").returns.to_numpy(), abs=1e-9)
    assert told["b"].to_numpy() == pytest.approx(run(theirs, panel, fill="next_close").returns.to_numpy(), abs=1e-9)


def test_sleeves_on_names_of_their_own_trade_as_two_accounts():
    "Nothing meets inside, so fills are those of the account, name by name"
    panel, scores = market(3, 12, 4)
    left, right = scores.iloc[:, :2] / 4, scores.iloc[:, 2:] / 4
    parts = {"left": Sleeve(as_scored(), 0.5, left), "right": Sleeve(as_scored(), 0.5, right)}
    ledger = run(scored(parts), panel, Costs.ranker(), rules=sleeves(parts))
    told = attribution(ledger)
    for name, frame in {"left": left, "right": right}.items():
        mine = ledger.fills[ledger.fills["symbol"].isin(frame.columns)]
        dollars = (mine["shares"] * mine["price"]).abs().groupby(mine["session"]).sum()
        assert told.xs(name, level="sleeve")["traded"][dollars.index].to_numpy() == pytest.approx(dollars.to_numpy(), abs=0.005)
        costs = mine.groupby("session")["cost"].sum()
        assert told.xs(name, level="sleeve")["cost"][costs.index].to_numpy() == pytest.approx(costs.to_numpy(), abs=0.005)


@few
@given(st.integers(0, 2**32), st.lists(st.integers(0, 11), max_size=3))
def test_an_account_of_sleeves_goes_on_where_it_was_killed(tmp_path_factory, seed, deaths):
    panel, scores = market(seed, holes=0.2)
    own, costs = scores.iloc[:, ::-1].set_axis(scores.columns, axis=1).where(scores.notna()) / 3, Costs.realistic()
    whole = runs(scores, panel, costs, rules=sleeves(several(own)))
    folder, rules, bars = tmp_path_factory.mktemp("account"), sleeves(several(own)), Bars(panel)
    ledger = Ledger.open(folder, 100_000)
    for i, session in enumerate(bars.sessions):
        if i in deaths: ledger, rules = Ledger.open(folder), sleeves(several(own))
        row = scores.loc[session] if session in scores.index else None
        step(ledger, session, bars, row, Sim(bars, costs), rules)
    assert ledger.nav.tolist() == whole.nav.tolist()
    if whole.last.memory: pd.testing.assert_frame_equal(attribution(ledger), attribution(whole))


def test_the_order_of_names_and_of_sleeves_changes_nothing():
    panel, scores = market(7, 14, holes=0.2)
    one = run(scores, panel, Costs.ranker(), rules=sleeves(several(scores / 3)))
    turned = dict(reversed(several(scores / 3).items()))
    other = run(scores.iloc[:, ::-1], panel, Costs.ranker(), rules=sleeves(turned))
    assert other.nav.to_numpy() == pytest.approx(one.nav.to_numpy(), abs=1e-6)
    back = attribution(other)["pnl"].unstack()[["slow", "nervous", "own"]]
    assert back.to_numpy() == pytest.approx(attribution(one)["pnl"].unstack()[["slow", "nervous", "own"]].to_numpy(), abs=1e-4)


# What happens without a trade

def eventful(seed=5, n=12):
    "Raw prices with a split, dividends and a delisting"
    panel, scores = market(seed, n, 4)
    days, names = panel.index.unique("session"), scores.columns
    actions = pd.DataFrame([(days[4], names[0], 7.0, np.nan, np.nan), (days[4], names[1], np.nan, 2.0, np.nan),
                            (days[6], names[0], np.nan, 0.3, np.nan), (days[8], names[2], np.nan, np.nan, 31.0)],
                           columns=["session", "symbol", "split", "dividend", "delisting"]).set_index(["session", "symbol"])
    sessions, symbols = panel.index.get_level_values("session"), panel.index.get_level_values("symbol")
    after = (sessions >= days[4]) & (symbols == names[0])
    panel.loc[after, ["open", "high", "low", "close"]] /= 7
    return panel[~((sessions >= days[8]) & (symbols == names[2]))], actions, scores


def test_splits_dividends_and_delistings_find_their_sleeve():
    panel, actions, scores = eventful()
    bars, costs = Bars(panel, actions), Costs.realistic(debit=0.0)
    other = -scores.iloc[:, ::-1].set_axis(scores.columns, axis=1)
    parts = {"up": Sleeve([as_scored(), gross(1.0)], 0.5), "down": Sleeve([as_scored(), gross(1.0)], 0.4, other)}
    ledger, rules = Ledger(100_000), sleeves(parts)
    for session in bars.sessions: step(ledger, session, bars, scores.loc[session], Sim(bars, costs), rules)
    assert {"split", "dividend", "delisting", "borrow"} <= {*ledger.events["kind"]}
    told = attribution(ledger)
    assert told["pnl"].groupby(level="session").sum()[1:].to_numpy() == pytest.approx(ledger.nav.diff()[1:].to_numpy(), abs=0.005)
    assert sum(ledger.last.memory[f"sleeves:{k}:shares"] for k in parts) == pytest.approx(ledger.book.shares, abs=1e-6)
    assert told.xs("account", level="sleeve")["pnl"].abs().max() < 0.0005


def test_a_sleeve_is_let_go_by_name():
    panel, scores = market(11, 10)
    parts = {"a": Sleeve([as_scored(), gross(1.0), kill_switch(drawdown=0.001)], 0.5), "b": Sleeve([as_scored(), gross(1.0)], 0.5)}
    ledger, bars, rules = Ledger(), Bars(panel), sleeves(parts)
    fired = None
    for session in bars.sessions:
        step(ledger, session, bars, scores.loc[session], Sim(bars), rules)
        seen = ledger.last.memory.get("sleeves.a.kill_switch", {})
        if fired is None and "fired" in seen:
            fired = session
            assert np.nansum(np.abs(ledger.last.memory["sleeves:a:want"])) == 0
            assert np.nansum(np.abs(ledger.last.memory["sleeves:b:want"])) > 0
            ledger.release("sleeves.a.kill_switch", "Ada Lovelace", "looked into it")
        elif fired is not None and "fired" not in seen: break
    assert np.nansum(np.abs(ledger.last.memory["sleeves:a:want"])) > 0


def test_a_same_bar_fill_is_refused():
    panel, scores = market(2)
    with pytest.raises(ValueError, match="not fill='same_close'"):
        run(scores, panel, fill="same_close", rules=sleeves({"a": Sleeve([as_scored(), gross(1.0)], 1.0)}))


# Told again

@few
@given(markets, some_costs, st.sampled_from([*FILLS, "same_close"]), st.sampled_from([None, 0.05]))
def test_a_trace_is_the_account(given, costs, fill, participation):
    panel, scores = given
    rules = [top_bottom(2), ewma(0.4), stop_loss(0.02)]
    ledger = runs(scores, panel, costs, fill, rules, participation=participation)
    names = [*ledger.symbols][:2]
    if not names: return
    rows = {name: trace(ledger, name, panel, scores, rules, costs) for name in names}
    held, fills = ledger.positions, ledger.fills.set_index(["symbol", "session"])
    for name, told in rows.items():
        assert told["shares"].fillna(0).to_numpy() == pytest.approx(held[name].to_numpy(), abs=1e-9)
        assert told["nav"].tolist() == ledger.nav.tolist() and told["cash"].tolist() == ledger.cash.tolist()
        done = told[told["fill"].fillna(0) != 0]
        assert (done["fill"].abs() <= done["order"].abs() * (1 + 1e-9)).all()
        mine = fills.loc[name] if name in fills.index else fills.iloc[:0]
        assert done["cost"].sum() == pytest.approx(mine["cost"].sum())
    last = ledger.sessions[-1]
    before = ledger.nav.iloc[-2] if len(ledger.sessions) > 1 else ledger.opening
    table = day(ledger, last, panel, scores, rules, costs)
    assert table["pnl"].sum() + ledger.interest[last] == pytest.approx(ledger.nav[last] - before, abs=0.005)


def test_facts_alone_are_enough_for_an_account_with_events():
    panel, actions, scores = eventful()
    bars, costs = Bars(panel, actions), Costs.realistic(debit=0.0)
    ledger, rules = Ledger(), compose([as_scored(), gross(1.0)])
    for session in bars.sessions: step(ledger, session, bars, scores.loc[session], Sim(bars, costs), rules)
    split = trace(ledger, scores.columns[0], bars)
    full = trace(ledger, scores.columns[0], bars, scores, rules, costs)
    same = ["shares", "events", "pnl", "cash", "nav"]
    pd.testing.assert_frame_equal(split[same].fillna(0), full[same].fillna(0))
    every = sum(trace(ledger, name, bars)["pnl"].fillna(0) for name in scores.columns)
    change = ledger.nav.diff().fillna(ledger.nav.iloc[0] - ledger.opening)
    assert every.to_numpy() == pytest.approx(change.to_numpy(), abs=0.005)
