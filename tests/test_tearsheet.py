"Trades, cost parts, capacity and the fan: what they add up to, and what other libraries say"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import long
from tradenb.execution.backtest import run
from tradenb.execution.bars import Bars
from tradenb.execution.costs import Costs
from tradenb.execution.trips import cost_parts, round_trips, trip_summary, trips
from tradenb.ops.capacity import capacity, in_words, limits
from tradenb.ops.tearsheet import fan, rolling
from tradenb.validation.drawdowns import drawdown
from tradenb.validation.inference import stationary_bootstrap


def market(names=6, sessions=90, seed=0, volume=5e6):
    "A random market whose last name is halted for a week"
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2024-01-02", periods=sessions, name="session")
    symbols = pd.Index([f"S{i}" for i in range(names)], name="symbol")
    close = pd.DataFrame(50*np.exp(rng.normal(0, .02, (sessions, names)).cumsum(0)), days, symbols)
    opens = close.shift(1).fillna(50)*np.exp(rng.normal(0, .005, close.shape))
    shares = pd.DataFrame(volume, days, symbols)/close
    for frame in (close, opens, shares): frame.iloc[40:45, -1] = np.nan
    weights = pd.DataFrame(rng.normal(0, .2, (sessions, names)), days, symbols).where(rng.random((sessions, names)) < .8, 0.)
    return long(open=opens, close=close, high=close, low=close, volume=shares).dropna(), weights, rng


# --- round trips ------------------------------------------------------------------------------------------------------------------
MOVES = st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["trade", "flat", "through", "split", "dividend", "borrow", "delisting"]),
                           st.integers(1, 500), st.floats(.5, 900.), st.floats(0., 9.)), max_size=40)


def played(moves):
    "Fills and events of `moves`, one a session, and what an account of plain numbers holds and has in the end"
    days = pd.bdate_range("2024-01-02", periods=max(len(moves), 1), name="session")
    held, cash, fills, events, happened = dict.fromkeys("ABC", 0.), 0., [], [], 0
    for i, (day, (name, kind, size, price, cost)) in enumerate(zip(days, moves, strict=False)):
        q, got = held[name], price*size/100
        shares = {"trade": size if i % 2 else -size, "flat": -q, "through": -q - np.copysign(size, q) if q else size}.get(kind)
        if shares is not None:
            if shares: fills.append((day, name, float(shares), price, cost)); cash -= shares*price + cost; held[name] += shares
        elif q:
            change = {"split": q*2, "delisting": -q}.get(kind, 0.)
            got = {"split": 0., "delisting": q*price, "dividend": np.copysign(got, q), "borrow": -got}[kind]
            events.append((day, kind, name, change, got)); cash += got; held[name] += change; happened += 1
    frames = (pd.DataFrame(fills, columns=["session", "symbol", "shares", "price", "cost"]),
              pd.DataFrame(events, columns=["session", "kind", "symbol", "shares", "cash"]))
    return days, *frames, held, cash


@settings(max_examples=40, deadline=None)
@given(MOVES)
def test_trips_leave_nothing_out(moves):
    days, fills, events, held, cash = played(moves)
    if not len(fills): return
    close = pd.Series({"A": 10., "B": 200., "C": .5})
    table = round_trips(fills, close, days, events)
    worth = cash + sum(q*close[name] for name, q in held.items())
    scale = 1 + (fills["shares"]*fills["price"]).abs().sum() + abs(worth)
    assert abs(table["net"].sum() - worth) < 1e-9*scale
    assert abs(table["cost"].sum() - fills["cost"].sum()) < 1e-9*scale
    side = np.where(table["side"] == "long", 1, -1)
    assert np.allclose(table["gross"], side*table["shares"]*(table["exit"] - table["entry"]), rtol=1e-9, atol=1e-9*scale)
    assert (table["unrealised"][table["closed"].notna()] == 0).all()
    assert sorted(table["symbol"][table["closed"].isna()]) == sorted(name for name, q in held.items() if q)   # one open trip a held name
    for _, own in table.groupby("symbol"): assert (own["opened"].iloc[1:].to_numpy() >= own["closed"].iloc[:-1].to_numpy()).all()
    every = trip_summary(table)
    assert np.isclose(every.loc["all", "net"], worth, atol=1e-9*scale) and every.loc["all", "trips"] == len(table)


def test_a_split_comes_before_the_fills_of_its_session():
    days = pd.bdate_range("2024-01-02", periods=3, name="session")
    fills = pd.DataFrame({"session": days[[0, 1, 2]], "symbol": "A", "shares": [10., -35., -35.], "price": [700., 110., 120.], "cost": 0.})
    events = pd.DataFrame({"session": days[[1]], "kind": "split", "symbol": "A", "shares": [60.], "cash": [0.]})
    table = round_trips(fills, pd.Series(dtype=float), days, events)
    assert table[["side", "shares", "entry", "exit", "net"]].to_numpy().tolist() == [["long", 70., 100., 115., 1050.]]


def test_the_dust_of_a_fading_position_opens_no_trip():
    held = 100*.5**np.arange(60)
    days = pd.bdate_range("2024-01-02", periods=60, name="session")
    fills = pd.DataFrame({"session": days, "symbol": "A", "shares": np.diff(held, prepend=0.), "price": 50., "cost": .01})
    table = round_trips(fills, pd.Series({"A": 50.}), days)
    assert table["side"].tolist() == ["long"] and np.isclose(table["cost"].sum(), .6) and abs(table["gross"].sum()) < .005


def test_trips_do_not_know_the_order_of_the_names():
    panel, weights, _ = market()
    table = trips(run(weights, panel, Costs.flat(5)))
    other = trips(run(weights[weights.columns[::-1]], panel, Costs.flat(5)))
    pd.testing.assert_frame_equal(table, other, rtol=1e-9)


def test_trips_agree_with_vectorbt():
    nb = pytest.importorskip("vectorbt.portfolio.nb")
    from vectorbt.portfolio.enums import order_dt
    from vectorbt.records.nb import col_map_nb
    panel, weights, _ = market(names=4, sessions=60)
    ledger = run(weights.iloc[:, :3], panel, Costs.flat(10))
    own, fills, names = trips(ledger), ledger.fills.sort_values(["symbol", "session"], ignore_index=True), weights.columns[:3]
    orders = np.zeros(len(fills), order_dt)
    orders["id"], orders["col"], orders["idx"] = np.arange(len(fills)), names.get_indexer(fills["symbol"]), ledger.sessions.get_indexer(fills["session"])
    orders["size"], orders["price"], orders["fees"], orders["side"] = fills["shares"].abs(), fills["price"], fills["cost"], fills["shares"] < 0
    close = np.ascontiguousarray(panel["close"].unstack()[names].ffill().to_numpy())
    exits = nb.get_exit_trades_nb(orders, close, col_map_nb(orders["col"], 3))
    done = pd.DataFrame(nb.get_positions_nb(exits, col_map_nb(exits["col"], 3)))
    theirs = done.assign(symbol=names[done["col"]]).sort_values(["entry_idx", "symbol"], ignore_index=True)
    assert len(own) == len(theirs) > 20
    assert own["symbol"].tolist() == theirs["symbol"].tolist()
    assert np.array_equal(own["side"] == "short", theirs["direction"])
    for mine, other in {"shares": "size", "entry": "entry_price", "exit": "exit_price", "net": "pnl", "ret": "return"}.items():
        assert np.allclose(own[mine], theirs[other], rtol=1e-7, atol=1e-9), mine


# --- accounts with nights, dividends and splits ---------------------------------------------------------------------------------------
def raw_account(costs, seed=1):
    panel, weights, rng = market(seed=seed)
    days, names = panel.index.unique("session"), weights.columns
    at = [(days[d], names[i]) for d, i in ((20, 0), (30, 1), (50, 2), (60, 0), (70, 3))]
    acts = pd.DataFrame({"split": [7., 1., 1., .5, 1.], "dividend": [0., 1.25, .4, 0., 0.], "delisting": [np.nan]*4 + [31.]},
                        index=pd.MultiIndex.from_tuples(at, names=["session", "symbol"]))
    weights.loc[days[69]:, names[3]] = 0.
    panel = panel[~((panel.index.get_level_values("symbol") == names[3]) & (panel.index.get_level_values("session") >= days[70]))]
    weights.loc[days[60]:, names[3]] = .1   # held into its delisting
    weights.loc[days[69]:, names[3]] = np.nan
    bars = Bars(panel, acts)
    return run(weights, bars, costs), bars


@pytest.mark.parametrize("costs", [Costs.ranker(), Costs.realistic(credit=300.)], ids=["ranker", "realistic"])
def test_trips_and_interest_are_what_the_account_made(costs):
    ledger, _ = raw_account(costs)
    table = trips(ledger)
    made = ledger.nav.iloc[-1] - ledger.opening
    assert abs(table["net"].sum() + ledger.interest.sum() - made) < .005
    assert abs(table["cost"].sum() - ledger.costs.sum()) < .005
    assert abs(table["income"].sum() - ledger.dividends.sum() - ledger.borrow.sum()) < .005
    assert {"split", "dividend", "delisting"} <= set(ledger.events["kind"])
    open_now = table[table["closed"].isna()].set_index("symbol")
    entry = pd.Series(ledger.book.entry, ledger.book.symbols).dropna()
    shares, marks = (pd.Series(x, ledger.book.symbols) for x in (ledger.book.shares, ledger.book.marks))
    paper = (shares*(marks - entry)).dropna()
    assert np.allclose(open_now["unrealised"].reindex(paper.index), paper, atol=1e-6)   # the book's own average price


@pytest.mark.parametrize("costs", [Costs.ranker(), Costs.realistic(fees=.3, commission=1., slippage={"open": 2.})], ids=["ranker", "realistic"])
def test_cost_parts_add_up_to_the_cent(costs):
    ledger, bars = raw_account(costs)
    parts = cost_parts(ledger, costs, bars)
    assert (parts.sum(axis=1) - ledger.costs).abs().max() < .005 and ledger.costs.sum() > 10
    assert (parts >= 0).all().all() and parts.index.equals(ledger.sessions)
    if costs.needs_conditions:
        with pytest.raises(ValueError, match="pass bars="): cost_parts(ledger, costs)
    with pytest.raises(ValueError, match="ask with the costs and the market that it was run with"): cost_parts(ledger, Costs.flat(3), bars)


# --- capacity -------------------------------------------------------------------------------------------------------------------------
def test_costs_that_do_not_know_size_have_no_capacity():
    panel, weights, _ = market()
    table = capacity(weights, panel, Costs.ranker(), capitals=[1e3, 1e9])
    assert np.allclose(table.loc[1e3, ["sharpe", "cost", "ret"]], table.loc[1e9, ["sharpe", "cost", "ret"]], rtol=1e-8)
    assert np.isclose(table.loc[1e9, "share"]/table.loc[1e3, "share"], 1e6)


def test_capacity_is_what_one_account_says():
    panel, weights, _ = market()
    costs = Costs.realistic()
    table = capacity(weights.iloc[25:], panel, costs, capitals=[1e6, 1e4])
    ledger = run(weights.iloc[25:], panel, costs, cash=1e6, start=weights.index[25])
    assert table.index.tolist() == [1e4, 1e6] and len(ledger.returns) == 65
    assert np.isclose(table.loc[1e6, "ret"], 252*ledger.returns.mean())
    paid = (ledger.costs - ledger.borrow - ledger.interest)/ledger.nav.shift(1, fill_value=1e6)
    assert np.isclose(table.loc[1e6, "cost"], 252*paid.mean()) and np.isclose(table.loc[1e6, "gross"] - table.loc[1e6, "cost"], table.loc[1e6, "ret"])
    assert np.isclose(table.loc[1e6, "dollars"], 1e6*252*ledger.returns.mean())
    assert table["cost"].is_monotonic_increasing and table["sharpe"].is_monotonic_decreasing
    assert abs(table["gross"].iloc[1] - table["gross"].iloc[0]) < .2*abs(table["cost"].iloc[1] - table["cost"].iloc[0])
    with pytest.raises(ValueError, match="capitals are dollars above 0"): capacity(weights, panel, capitals=[0.])


def test_limits_of_a_square_root():
    capital, r, c = np.geomspace(1e5, 1e9, 400), .1, 1e-5           # r - c sqrt(C): nothing at (r/c)^2 = 1e8
    ret = r - c*capital**.5
    table = pd.DataFrame({"sharpe": ret/.05, "ret": ret, "dollars": ret*capital, "gross": r, "over": 0.}, pd.Index(capital, name="capital"))
    found = limits(table)
    half = ((r - ret[0]/2)/c)**2
    assert np.allclose(found, [half, 1e8*4/9, 1e8], rtol=1e-3)
    assert in_words(table).startswith("Half of the Sharpe ratio is gone at $27 million, most dollars are earned at about $44 million, nothing is left at $100")
    assert limits(table.iloc[:50]).isna().all() and "still there" in in_words(table.iloc[:50])
    lost = table.assign(sharpe=-1., ret=-.2, gross=-.1)
    assert limits(lost).isna().all() and "makes -10.0% a year before costs and -20.0% after them" in in_words(lost)


# --- the fan, and risk on the move ------------------------------------------------------------------------------------------------------
def test_the_fan_is_of_the_days_themselves():
    rng = np.random.default_rng(3)
    r = pd.Series(rng.normal(.0005, .01, 300), pd.bdate_range("2023-01-02", periods=300))
    drawn = fan(r, 200)
    paths = stationary_bootstrap(300, drawn.block, 200, np.random.default_rng(0))
    for k in range(40):
        one = pd.Series(r.to_numpy()[paths[k]])
        assert np.isclose(drawn.ends[k], (1 + one).prod() - 1) and np.isclose(drawn.depths[k], drawdown(one).min())
    assert (drawn.bands.diff(axis=1).iloc[:, 1:] >= 0).all().all() and drawn.bands.index.equals(r.index)
    assert np.array_equal(fan(r, 200).ends, drawn.ends)
    still = fan(pd.Series(.001, r.index), 20)
    assert np.ptp(still.ends) < 1e-12 and np.isclose(still.bands.iloc[-1], 1.001**300).all() and (still.depths == 0).all()


def test_rolling_is_a_loop_over_windows():
    rng = np.random.default_rng(4)
    days = pd.bdate_range("2023-01-02", periods=120)
    m = pd.Series(rng.normal(0, .01, 120), days)
    r = .7*m + rng.normal(0, .004, 120)
    table = rolling(r, m, 40)
    for i in (39, 70, 119):
        x, y = r.iloc[i-39:i+1], m.iloc[i-39:i+1]
        assert np.isclose(table["sharpe"].iloc[i], x.mean()/x.std()*252**.5) and np.isclose(table["beta"].iloc[i], np.polyfit(y, x, 1)[0])
    changed = r.copy()
    changed.iloc[100:] += .05
    assert rolling(changed, m, 40)[["sharpe", "beta"]].iloc[:100].equals(table[["sharpe", "beta"]].iloc[:100])   # the past does not move
