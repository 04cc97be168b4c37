"Orders and fills: a market played tick by tick agrees with the bar, bounds hold whatever is asked, and a real client takes our words"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.panel import long
from tradenb.execution.backtest import step
from tradenb.execution.broker import Bars, Sim, resting_price
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.execution.orders import TIMES, Fills, Orders, order_id, outcome

many, few = settings(max_examples=150, deadline=None), settings(max_examples=40, deadline=None)


# A market played tick by tick

def played(path, side, limit, stop):
    "The fill of one order on a path of prices a tick apart: stops wake at their price, limits wait until somebody trades beyond them"
    awake = stop is None
    for n, price in enumerate(path):
        arrives = n == 0                                        # a marketable order takes what is there when it arrives ...
        if not awake and (price - stop) * side >= 0: awake = arrives = True
        if awake and (limit is None or (limit - price) * side > 0): return price if arrives else limit   # ... a resting one its own price
    return None


paths = st.tuples(st.integers(20, 30), st.lists(st.sampled_from([-1, 1]), max_size=40)).map(lambda p: np.cumsum([p[0], *p[1]]).tolist())
level = st.none() | st.integers(12, 38)


def by_bar(path, side, limit, stop):
    bar = np.array([path[0], max(path), min(path), path[-1]], dtype=float)[:, None]
    given = [None if x is None else np.array([float(x)]) for x in (limit, stop)]
    price = resting_price(np.array([7.0 * side]), *bar, *given).item()
    return None if np.isnan(price) else price


@many
@given(paths, st.sampled_from([1, -1]), level)
def test_limits_alone_fill_as_on_any_path_of_the_bar(path, side, limit):
    assert by_bar(path, side, limit, None) == played(path, side, limit, None)


@many
@given(paths, st.sampled_from([1, -1]), level)
def test_stops_alone_fill_as_on_any_path_of_the_bar(path, side, stop):
    assert by_bar(path, side, None, stop) == played(path, side, None, stop)


@many
@given(paths, st.sampled_from([1, -1]), level, level)
def test_a_stop_limit_fills_never_better_than_any_path_of_the_bar(path, side, limit, stop):
    ours, theirs = by_bar(path, side, limit, stop), played(path, side, limit, stop)
    if ours is not None: assert theirs is not None and (ours - theirs) * side >= 0
    if limit is not None and ours is not None: assert (limit - ours) * side >= 0


def test_the_law_is_the_worse_of_two_orders_in_time():
    "Low first or high first, of one bar: the fill is the worse of what the two paths give, and no harsher than that"
    seen = 0
    for side in (1, -1):
        for limit in range(16, 30):
            for stop in range(16, 30):
                mirror = (lambda p: p) if side == 1 else (lambda p: [46 - x for x in p])
                low_first = mirror([*range(23, 17, -1), *range(18, 27), 25, 24])   # opens 23, low 18, high 26, closes 24
                high_first = mirror([*range(23, 27), *range(25, 17, -1), *range(19, 25)])
                ours = by_bar(low_first, side, limit, stop)
                assert ours == by_bar(high_first, side, limit, stop)
                fills = [played(p, side, limit, stop) for p in (low_first, high_first)]
                assert ours == (None if None in fills else max(fills, key=lambda price: side * price))
                seen += fills[0] != fills[1]
    assert seen > 10


# Whatever is asked, of whatever market

@st.composite
def asked(draw, kinds=TIMES):
    "A market of five sessions with holes, and orders of one kind for one of them, some of them nonsense"
    rng, m = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.integers(1, 6))
    days, names = pd.bdate_range("2024-01-02", periods=5, unit="us"), [f"{c}{c}" for c in "QAZMBX"[:m]]
    o, c = (rng.uniform(10, 90, (5, m)).round(2) for _ in "oc")
    high, low = np.maximum(o, c) + rng.uniform(0, 3, (5, m)).round(2), np.minimum(o, c) - rng.uniform(0, 3, (5, m)).round(2)
    hole = rng.random((5, m)) < draw(st.sampled_from([0.0, 0.3]))
    hole[:, 0] = False
    volume = np.where(rng.random((5, m)) < 0.1, np.nan, rng.integers(0, 3_000, (5, m)))
    f = lambda x: pd.DataFrame(np.where(hole, np.nan, x), days, names).sort_index(axis=1)
    panel = long(open=f(o), high=f(high), low=f(low), close=f(c), volume=f(volume))
    who = np.array([*names, "NONE"], dtype=object)
    shares = rng.normal(0, 400, m + 1).round(draw(st.sampled_from([0, 1])))
    shares[rng.random(m + 1) < 0.2] = draw(st.sampled_from([0.0, np.nan, np.inf]))
    at = draw(st.sampled_from(kinds))
    near = np.r_[o[0], 50.0]
    some = lambda: np.where(rng.random(m + 1) < 0.3, np.nan, (near + rng.normal(0, 4, m + 1)).clip(1).round(2))
    limit = some() if at != "twap" and draw(st.booleans()) else None
    stop = some() if at == "day" and draw(st.booleans()) else None
    held = rng.normal(0, 300, m + 1).round()
    return panel, Orders(who, shares, 1e6, at, limit, stop, held=held), days[draw(st.sampled_from([0, 0, 1, 2, 3, 4]))]


bounds = st.fixed_dictionaries({"participation": st.sampled_from([None, 0.01, 0.1, 1.0]), "lot": st.sampled_from([None, 1.0, 10.0]),
                                "shortable": st.sampled_from([None, ("AA", "ZZ"), lambda day, names: names == "QQ"])})


@few
@given(asked(), bounds)
def test_a_fill_never_breaks_a_bound(market, bound):
    panel, orders, day = market
    fills = Sim(panel, Costs.flat(10), **bound).trade(orders, day)
    bars, known, why = panel.loc[day], set(panel.index.unique("symbol")), dict(fills.rejects)
    for i, name in enumerate(orders.symbols):
        wanted, done, price, cost = orders.shares[i], fills.shares[i], fills.price[i], fills.cost[i]
        assert done == 0 or (abs(done) <= abs(wanted) and done * wanted > 0)
        assert (price > 0) == (done != 0) == (cost > 0) and cost == pytest.approx(abs(done * price) / 1000)
        if wanted != 0 and not np.isfinite(wanted): assert done == 0 and "asked for" in why[name]
        elif wanted != 0 and name not in bars.index: assert done == 0 and ("no bar" if name in known else "no such name") in why[name]
        if not done: continue
        bar, side = bars.loc[name], np.sign(done)
        assert bar["low"] <= price <= bar["high"]
        if orders.at in ("open", "close"): assert price == bar[orders.at]
        if orders.limit is not None and orders.limit[i] == orders.limit[i]: assert (orders.limit[i] - price) * side >= 0
        if orders.stop is not None and orders.stop[i] == orders.stop[i]: assert (bar["high" if side > 0 else "low"] - orders.stop[i]) * side >= 0
        if bound["participation"]: assert abs(done) <= bound["participation"] * bar["volume"]
        if bound["lot"] and done != -orders.held[i]: assert abs(done / bound["lot"] - round(done / bound["lot"])) < 1e-6 or "not shortable" in why.get(name, "")
        can = bound["shortable"]
        if can and not (name == "QQ" if callable(can) else name in can):
            assert max(-(orders.held[i] + done), 0) <= max(-orders.held[i], 0), "shorter than before, and not allowed to be"


@few
@given(asked(), bounds, st.randoms())
def test_the_order_of_names_does_not_matter(market, bound, random):
    panel, orders, day = market
    turn = list(range(len(orders.symbols)))
    random.shuffle(turn)
    pick = lambda x: None if x is None else x[turn]
    turned = Orders(orders.symbols[turn], orders.shares[turn], orders.nav, orders.at, pick(orders.limit), pick(orders.stop), held=pick(orders.held))
    sim = Sim(panel, Costs.ranker(), **bound)
    one, other = sim.trade(orders, day), sim.trade(turned, day).on(orders.symbols)
    for k in ("shares", "price"): np.testing.assert_array_equal(getattr(one, k), getattr(other, k))
    np.testing.assert_allclose(one.cost, other.cost, rtol=1e-12)
    assert sorted(one.rejects) == sorted(other.rejects)


@few
@given(asked(kinds=["open", "close"]))
def test_bounds_that_bind_nobody_change_no_bit(market):
    panel, orders, day = market
    panel = panel.assign(volume=1e12)
    free, loose = Sim(panel, Costs.ranker()), Sim(panel, Costs.ranker(), participation=1.0, shortable=lambda day, names: np.ones(len(names), bool))
    one, other = free.trade(orders, day), loose.trade(orders, day)
    for k in ("shares", "price", "cost"): np.testing.assert_array_equal(getattr(one, k), getattr(other, k))
    assert one.rejects == other.rejects


@few
@given(asked(), bounds)
def test_every_order_has_an_outcome(market, bound):
    panel, orders, day = market
    fills = Sim(panel, **bound).trade(orders, day)
    told = outcome(orders, fills).set_index("symbol")
    assert set(told.index) == {s for s, q in zip(orders.symbols, orders.shares, strict=True) if q != 0}
    assert (told.index[told["state"] == "rejected"].isin(dict(fills.rejects))).all()
    assert (told["done"] != 0).equals(told["state"].isin(["filled", "partly"]))


def test_an_account_in_a_thin_market_never_takes_more_than_its_part():
    "Through the whole account: step asks again every session, and the fills of no session pass the bound"
    rng, days, names = np.random.default_rng(3), pd.bdate_range("2024-01-02", periods=30, unit="us"), list("ABCD")
    close = 50 * np.exp(rng.normal(0, 0.01, (30, 4)).cumsum(axis=0))
    f = lambda x: pd.DataFrame(x, days, names)
    panel = long(open=f(close * 1.001), high=f(close * 1.01), low=f(close * 0.99), close=f(close), volume=f(rng.integers(200, 4_000, (30, 4)).astype(float)))
    bars, ledger = Bars(panel), Ledger(1e6)
    broker, target = Sim(bars, Costs.ranker(), participation=0.1), pd.Series([0.4, -0.3, 0.2, 0.1], names)
    for day in days: step(ledger, day, bars, target, broker)
    done = ledger.fills.set_index(["session", "symbol"])
    part = done["shares"].abs() / panel["volume"].reindex(done.index)
    assert part.max() == pytest.approx(0.1, rel=1e-12) and (part <= 0.1 * (1 + 1e-12)).all() and (part > 0.0999).mean() > 0.5
    assert ledger.weights.iloc[-1].abs().sum() > ledger.weights.iloc[3].abs().sum() > 0


# Words of an exchange

@many
@given(st.integers(2_000, 20_000_00), st.integers(-20, 20), st.sampled_from(["limit", "stop"]), st.sampled_from([1.0, -1.0]))
def test_rounding_to_the_grid_changes_no_order(hundredths, off, kind, side):
    "Whatever the price between two ticks: the order means the same at every price at which anybody can trade"
    price = hundredths / 10_000
    orders = Orders(np.array(["A"], dtype=object), np.array([side]), 1e3, "day", **{kind: np.array([price])})
    sent, grid = orders.each()[0][f"{kind}_price"], 10_000 if price < 1 else 100
    assert sent == pytest.approx(round(sent * grid) / grid, abs=1e-12)
    tick = round(price * grid) + off
    if price >= 1 and tick < 100: return
    meets = lambda at: at - 1e-9 <= tick / grid if (kind == "stop") == (side > 0) else tick / grid <= at + 1e-9
    assert meets(price) == meets(sent)


def test_the_client_of_alpaca_takes_every_message():
    "alpaca-py checks each message as it would before sending it, and says the same back"
    requests = pytest.importorskip("alpaca.trading.requests")
    kinds = {"market": requests.MarketOrderRequest, "limit": requests.LimitOrderRequest, "stop": requests.StopOrderRequest,
             "stop_limit": requests.StopLimitOrderRequest}
    names, nan = np.array(["A", "BRK.B", "C", "D", "E"], dtype=object), np.nan
    shares = np.array([10.0, -3.0, 7.0, -2.0, 0.0])
    resting = Orders(names, shares, 1e5, "day", [nan, 30.0, nan, 19.0, nan], [nan, nan, 55.5, 20.0, nan])
    tables = [Orders(names, shares, 1e5), Orders(names, shares, 1e5, "close", [12.0, nan, nan, nan, nan]), resting]
    for orders in tables:
        messages = orders.named("main", "2024-01-03").each()
        assert len(messages) == 4
        for said in messages:
            heard = kinds[said["type"]](**said).to_request_fields()
            assert {k: heard[k] for k in said} == said
    assert [m["type"] for m in resting.each()] == ["market", "limit", "stop", "stop_limit"]


text = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=60)
about = st.tuples(text, st.dates().map(pd.Timestamp), text, st.sampled_from(TIMES))


@many
@given(about, about)
def test_ids_are_the_same_for_the_same_order_and_for_no_other(one, other):
    assert len(order_id(*one)) <= 48
    assert (order_id(*one) == order_id(*other)) == (one == other)


def test_ids_of_accounts_that_look_alike_differ():
    "Where the readable part is cut or its pieces could be put together in two ways, the digest still tells"
    alike = [("a" * 60, "2024-01-03", "SPY", "open"), ("a" * 61, "2024-01-03", "SPY", "open"),
             ("m", "2024-01-03", "A-open", "close"), ("m", "2024-01-03", "A", "close"), ("m-2024-01-03", "2024-01-03", "A", "close")]
    assert len({order_id(*a) for a in alike}) == len(alike)
    first = Orders(np.array(["A"], dtype=object), np.array([1e4]), 1e6, "twap").named("a" * 60, "2024-01-03").sliced(13)
    assert len({p.ids[0] for p in first}) == 13 and all(len(p.ids[0]) <= 48 for p in first)


@many
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from([None, 1.0, 100.0]))
def test_slices_add_up_in_whole_lots(shares, n, lot):
    shares = np.array(shares) if lot is None else np.round(np.array(shares) / lot) * lot
    parts = np.array([p.shares for p in Orders(np.arange(len(shares)).astype(str), shares, 1e6, "twap").sliced(n, lot)])
    np.testing.assert_allclose(parts.sum(axis=0), shares, rtol=1e-12, atol=1e-9)
    assert (parts * np.sign(shares) >= 0).all() and np.ptp(parts, axis=0).max() <= (lot or 0) * (1 + 1e-9) + np.abs(shares).max() * 1e-12
    if lot: np.testing.assert_allclose(parts / lot, np.round(parts / lot), atol=1e-9)


pieces = st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 500), st.integers(100, 9_900), st.integers(0, 99)), max_size=12)


@many
@given(pieces, st.fixed_dictionaries({c: st.sampled_from([1, -1]) for c in "ABC"}))
def test_executions_in_pieces_move_the_same_shares_and_the_same_cash(pieces, side):
    names, many_ = np.array([*"CBAZ"], dtype=object), np.array([p[0] for p in pieces], dtype=object)
    shares, price, cost = (np.array([f(p) for p in pieces], dtype=float) for f in (lambda p: p[1] * side[p[0]], lambda p: p[2] / 100, lambda p: p[3] / 100))
    whole = Fills(many_, shares, price, cost).on(names)
    for i, name in enumerate(names):
        mine = many_ == name
        assert whole.shares[i] == shares[mine].sum() and whole.cost[i] == pytest.approx(cost[mine].sum(), abs=1e-9)
        assert whole.shares[i] * whole.price[i] == pytest.approx((shares * price)[mine].sum(), rel=1e-12, abs=1e-9)


# Real bars

def test_limits_and_stops_on_real_bars(real_data):
    "503 names over 2015 to 2018: a loop over plain numbers says the same of every order"
    rows = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet").rename(columns={"date": "session"})
    panel = rows.dropna().astype({"symbol": str, "session": "datetime64[us]"}).set_index(["session", "symbol"]).sort_index()
    bars, rng = Bars(panel), np.random.default_rng(0)
    names, kinds = bars.symbols.to_numpy(object), np.zeros(4, dtype=int)
    for day in bars.sessions[5:1000:90]:
        there, n = panel.loc[day], len(names)
        bar_of = dict(zip(there.index, there[["open", "high", "low", "close", "volume"]].to_numpy().tolist(), strict=True))
        mid = there["close"].reindex(names).to_numpy()
        shares = rng.choice([-100.0, 100.0], n)
        limit, stop = (np.where(rng.random(n) < 0.5, mid * (1 + rng.normal(0, 0.01, n)), np.nan) for _ in "ls")
        limit, stop = (np.where(x > 0, x, np.nan) for x in (limit, stop))
        fills = Sim(bars, participation=0.001).trade(Orders(names, shares, 1e8, "day", limit, stop), day)
        for i, name in enumerate(names):
            if name not in there.index: assert fills.shares[i] == 0; continue
            o, h, l, c, v = bar_of[name]
            s = 1 if shares[i] > 0 else -1
            L, S = (x[i] if x[i] == x[i] else None for x in (limit, stop))
            far, near = (h, l) if s > 0 else (l, h)
            if S is not None and s * (o - S) < 0:
                price = None if s * (far - S) < 0 else S if L is None or s * (L - S) > 0 else L if s * (L - c) > 0 else None
            else: price = o if L is None or s * (L - o) > 0 else L if s * (L - near) > 0 else None
            want = 0 if price is None else s * min(100, 0.001 * v)
            assert (fills.shares[i], fills.price[i]) == (want, price if want else 0)
            kinds[(L is not None) + 2 * (S is not None)] += price is not None
    assert (kinds > 50).all()
