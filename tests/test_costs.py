"Costs, impact and schedules: plain loops and other people's libraries give the same numbers"
import math
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tradenb.execution.costs import PARTS, TIERS, Conditions, Costs
from tradenb.execution.impact import calibrate
from tradenb.execution.schedule import almgren_chriss, frontier, shortfalls

lightly = settings(max_examples=50, deadline=None)
RATE = st.sampled_from([0.0, 0.3, 5.0, 20.0])


# The bill of a session

@st.composite
def sessions(draw):
    "What was traded, and a market of which much is unknown"
    n = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    traded = rng.normal(0, 1e5, n) * (rng.random(n) > 0.3)
    sigma, adv = rng.uniform(0, 0.1, n), 10 ** rng.uniform(4, 10, n)
    sigma[rng.random(n) < 0.2] = np.nan
    adv[rng.random(n) < 0.2] = np.nan
    adv[rng.random(n) < 0.1] = 0
    return traded, 10 ** rng.uniform(4, 8), Conditions(sigma, adv, at=draw(st.sampled_from(["open", "close"])))


@st.composite
def models(draw):
    "Every term, or some of them"
    return Costs(spread=draw(RATE), commission=draw(RATE), impact=draw(RATE), fees=draw(RATE), Y=draw(st.sampled_from([0.0, 0.7, 1.0])),
                 exponent=draw(st.sampled_from([0.5, 0.6])), slippage=draw(st.sampled_from([None, {"open": 1.5, "close": 3}])), borrow=TIERS,
                 credit=draw(st.sampled_from([0.0, 300.0])), debit=draw(st.sampled_from([0.0, 500.0])), proceeds=draw(st.sampled_from([0.0, 0.5])))


def by_hand(costs, traded, nav, market):
    "The bill, from a plain loop that shares no line with the library"
    turnover = math.fsum(abs(d) for d in traded) / nav
    out = []
    for d, s, v in zip(traded.tolist(), market.sigma.tolist(), market.adv.tolist(), strict=True):
        s, v = (s if s == s else 0.05), (v if v == v and v > 0 else 1e6)
        bps = costs.spread + costs.commission + costs.impact * turnover + (costs.fees if d < 0 else 0)
        if costs.slippage is not None: bps += {"open": 1.5, "close": 3}[market.at]
        out.append(abs(d) * bps / 10_000 + abs(d) * costs.Y * s * (abs(d) / v) ** costs.exponent)
    return out


@lightly
@given(costs=models(), session=sessions())
def test_the_bill_is_what_a_plain_loop_says(costs, session):
    np.testing.assert_allclose(costs.charge(*session), by_hand(costs, *session), rtol=1e-12)


@lightly
@given(costs=models(), session=sessions())
def test_parts_add_up_to_the_bit_and_nobody_is_paid(costs, session):
    parts = costs.parts(*session)
    assert tuple(parts) == PARTS
    np.testing.assert_array_equal(sum(parts.values()), costs.charge(*session))
    assert all((part >= 0).all() and (part[session[0] == 0] == 0).all() for part in parts.values())


@lightly
@given(costs=models(), session=sessions(), where=st.integers(0, 8))
def test_a_name_that_is_merely_listed_changes_no_bit(costs, session, where):
    traded, nav, market = session
    where = min(where, len(traded))
    more = Conditions(np.insert(market.sigma, where, np.nan), np.insert(market.adv, where, np.nan), at=market.at)
    np.testing.assert_array_equal(np.delete(costs.charge(np.insert(traded, where, 0), nav, more), where), costs.charge(*session))


@lightly
@given(costs=models(), session=sessions(), random=st.randoms())
def test_the_order_of_names_means_nothing(costs, session, random):
    traded, nav, market = session
    order = list(range(len(traded)))
    random.shuffle(order)
    shuffled = Conditions(market.sigma[order], market.adv[order], at=market.at)
    np.testing.assert_allclose(costs.charge(traded[order], nav, shuffled), costs.charge(*session)[order], rtol=1e-12)
    one, other = costs.carry(traded, nav, 3, market), costs.carry(traded[order], nav, 3, shuffled)
    np.testing.assert_array_equal(other[0], one[0][order])
    assert other[1] == pytest.approx(one[1], rel=1e-9, abs=1e-9)


@lightly
@given(costs=models(), session=sessions(), cash=st.floats(-1e6, 1e6), days=st.integers(0, 5))
def test_the_nights_are_what_a_plain_loop_says(costs, session, cash, days):
    value, _, market = session
    borrow, interest = costs.carry(value, cash, days, market)
    for dollars, v, paid in zip(value.tolist(), market.adv.tolist(), borrow.tolist(), strict=True):
        bps = 50 if v >= 100e6 else 100 if v >= 10e6 else 200
        assert paid == pytest.approx(max(-dollars, 0) * bps / 10_000 * days / 360, rel=1e-12)
    free = cash - (1 - costs.proceeds) * -value[value < 0].sum()
    assert interest == pytest.approx(free * (costs.credit if free > 0 else costs.debit) / 10_000 * days / 360, rel=1e-9, abs=1e-9)


@lightly
@given(costs=models(), session=sessions())
def test_a_model_that_needs_no_conditions_looks_at_none(costs, session):
    traded, nav, market = session
    costs = replace(costs, Y=0.0, slippage=None, borrow=())
    assert not costs.needs_conditions
    np.testing.assert_array_equal(costs.charge(traded, nav), costs.charge(traded, nav, market))


def test_what_is_given_is_not_changed_and_may_be_of_any_kind():
    traded, market = np.array([1000, -500]), Conditions(pd.Series([0.01, np.nan]), [1e6, 2e6])
    traded.flags.writeable = False
    for kind in (traded, pd.Series(traded), traded.tolist(), traded.astype("float32")):
        np.testing.assert_array_equal(Costs.realistic().charge(kind, 10_000, market),
                                      Costs.realistic().charge(traded.astype(float), 1e4, Conditions(*map(np.array, (market.sigma, market.adv)))))
    assert traded.tolist() == [1000, -500] and len(Costs.realistic().charge([], 1.0)) == 0


def test_a_model_is_a_value():
    costs = Costs.realistic(slippage={"open": 1}, borrow=[[1e8, 50], [0, 200]])
    costs.charge([100.0], 1e4)   # after use as before
    assert deepcopy(costs) == costs == Costs.realistic(slippage={"open": 1}, borrow=((1e8, 50), (0, 200)))
    assert hash(costs) == hash(replace(costs)) and replace(costs, spread=9.0).charge([100.0], 1e4) > costs.charge([100.0], 1e4)
    assert not replace(costs, slippage=None, Y=0.0, borrow=()).needs_conditions
    with pytest.raises(FrozenInstanceError): costs.spread = 1.0


@pytest.mark.parametrize("bad", [dict(spread=10_000), dict(commission=-1), dict(fees=math.inf), dict(Y=math.nan), dict(exponent=-0.5), dict(proceeds=1.5),
                                 dict(unknown_adv=0), dict(unknown_sigma=-0.1), dict(borrow=[(1e8, 50)]), dict(borrow=[(0, -1)]), dict(debit=math.nan)])
def test_a_rate_of_no_world_is_named(bad):
    with pytest.raises(ValueError, match="borrow tiers" if "borrow" in bad else next(iter(bad))): Costs(**bad)


@pytest.mark.parametrize("traded", [[math.nan, 1.0], [math.inf, 1.0]])
def test_dollars_that_are_no_number_are_refused(traded):
    for costs in (Costs.zero(), Costs.ranker(), Costs.realistic()):
        with pytest.raises(ValueError, match="dollars traded are"): costs.charge(traded, 1e4)
        with pytest.raises(ValueError, match="positive NAV"): costs.charge([1.0], -1e4)


@pytest.mark.real
def test_real_stocks_pay_what_pandas_says(real_data):
    bars = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet")
    close, dollars = ((bars.assign(v=bars["close"] * bars["volume"])).pivot(index="date", columns="symbol", values=c).tail(120) for c in ("close", "v"))
    sigma, adv = close.pct_change(fill_method=None).rolling(20).std().shift(1), dollars.rolling(20).mean().shift(1)
    traded = pd.DataFrame(np.random.default_rng(0).normal(0, 1e6, close.shape), close.index, close.columns).where(close.notna(), 0)
    size = traded.abs()
    theirs = size * 5e-4 + size * sigma.fillna(0.05) * np.sqrt(size / adv.fillna(1e6))
    ours = [Costs.realistic().charge(traded.loc[day], 1e9, Conditions(sigma.loc[day], adv.loc[day])) for day in close.index]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert 5 < theirs.tail(90).sum().sum() / size.tail(90).sum().sum() * 1e4 < 60   # basis points


# Schedules

ORDERS = st.fixed_dictionaries(dict(shares=st.sampled_from([1e6, -3e5, 1.0]), periods=st.integers(1, 12), vol=st.floats(0.05, 5),
                                    eps=st.floats(0, 0.1), gamma=st.floats(0, 1e-6), eta=st.floats(1e-6, 1e-4), tau=st.sampled_from([1.0, 0.1])))


def cost_and_variance(held, shares, periods, vol, eps, gamma, eta, tau):
    "Of any way to sell, term by term as prices move"
    cost, variance, pushed = 0.0, 0.0, 0.0
    for before, after in zip(held, held[1:], strict=False):
        n = before - after
        cost += n * (pushed + eps * np.sign(n) + eta * n / tau)
        pushed += gamma * n
        variance += vol**2 * tau * after**2
    return cost, variance


@lightly
@given(order=ORDERS, hurry=st.sampled_from([-0.02, 0.0, 1e-9, 0.01, 1.0, 30.0, 1e4]))
def test_the_schedule_solves_the_equations_of_its_minimum(order, hurry):
    n, tau, stiff = order["periods"], order["tau"], order["eta"] - order["gamma"] * order["tau"] / 2
    aversion = hurry * stiff / (order["vol"] * tau) ** 2
    found = almgren_chriss(**order, risk_aversion=aversion)
    # stiff/tau (2 x_k - x_{k-1} - x_{k+1}) + aversion vol^2 tau x_k = 0 between the ends
    matrix = np.diag(np.full(n - 1, 2 + hurry)) - np.eye(n - 1, k=1) - np.eye(n - 1, k=-1)
    between = np.linalg.solve(matrix, order["shares"] * np.eye(n - 1)[0]) if n > 1 else []
    np.testing.assert_allclose(found.holdings, [order["shares"], *between, 0], rtol=1e-8, atol=1e-10 * abs(order["shares"]))
    np.testing.assert_allclose((found.cost, found.variance), cost_and_variance(found.holdings, **order), rtol=1e-9)


@lightly
@given(order=ORDERS, hurry=st.sampled_from([0.0, 0.1, 5.0]), done=st.integers(0, 11))
def test_planning_again_changes_nothing(order, hurry, done):
    assume(done < order["periods"])
    aversion = hurry * (order["eta"] - order["gamma"] * order["tau"] / 2) / (order["vol"] * order["tau"]) ** 2
    whole = almgren_chriss(**order, risk_aversion=aversion)
    rest = almgren_chriss(**order | dict(shares=whole.holdings[done], periods=order["periods"] - done), risk_aversion=aversion)
    np.testing.assert_allclose(rest.holdings, whole.holdings[done:], rtol=1e-9, atol=1e-9 * abs(order["shares"]))


@lightly
@given(order=ORDERS)
def test_nobody_is_sent_the_wrong_way(order):
    assume(order["periods"] > 1)
    worst = (order["eta"] - order["gamma"] * order["tau"] / 2) / (order["vol"] * order["tau"]) ** 2 * 2 * (1 - np.cos(np.pi / (2 * order["periods"] - 1)))
    trades = almgren_chriss(**order, risk_aversion=-worst * (1 - 1e-9)).trades * np.sign(order["shares"])
    assert (trades > -1e-6 * abs(order["shares"])).all()
    with pytest.raises(ValueError, match="trades the wrong way"): almgren_chriss(**order, risk_aversion=-worst * 1.001)


def test_the_frontier_is_convex_and_nothing_lies_below_it():
    stock = dict(vol=0.95, eps=0.0625, gamma=2.5e-7, eta=2.5e-6)
    curve = frontier(1e6, 5, **stock)
    sd, cost = curve["sd"].to_numpy(), curve["cost"].to_numpy()
    assert (np.diff(sd) < 0).all() and (np.diff(cost) > 0).all() and (np.diff(np.diff(cost) / np.diff(sd)) < 0).all()
    rng = np.random.default_rng(0)
    for held in rng.dirichlet(np.ones(5), 500):
        held = 1e6 * np.r_[1, 1 - held.cumsum()]
        c, v = cost_and_variance(held, 1e6, 5, **stock, tau=1)
        assert c >= np.interp(np.sqrt(v), sd[::-1], cost[::-1]) - 0.01 * c * (np.sqrt(v) < sd[-1]) - 2000


def test_prices_that_obey_the_model_lose_what_it_says():
    order = dict(vol=2.0, eps=0.05, gamma=1e-6, eta=4e-6)
    plan = almgren_chriss(-5e5, 8, **order, risk_aversion=1e-6, tau=0.5)
    lost = shortfalls(plan, **order, n=200_000, rng=np.random.default_rng(3))
    assert abs(lost.mean() - plan.cost) < 4 * plan.sd / np.sqrt(len(lost))
    assert abs(lost.var() / plan.variance - 1) < 4 * np.sqrt(2 / len(lost))


# Calibration

def fills(seed, n=3000, sessions=60, Y=0.8, exponent=0.5, spread=3.0):
    rng = np.random.default_rng(seed)
    sigma, adv, day, part = rng.uniform(0.01, 0.05, n), 10 ** rng.uniform(6, 9, n), rng.integers(0, sessions, n), 10 ** rng.uniform(-3, -0.5, n)
    side = rng.choice([-1, 1], n)
    moved = side * (spread / 1e4 + Y * sigma * part**exponent) + sigma * (0.4 * rng.normal(size=n) + 0.2 * rng.normal(size=sessions)[day])
    return pd.DataFrame(dict(session=day, symbol="A", shares=side * part * adv / 20, arrival=20.0, price=20 * (1 + moved), sigma=sigma, adv=adv))


@pytest.mark.parametrize("spread", [None, 3.0])
@pytest.mark.parametrize("session", [True, False])
def test_statsmodels_says_the_same(session, spread):
    sm = pytest.importorskip("statsmodels.api", reason="pip install tradenb[peers]")
    frame = fills(0)
    side, sigma = np.sign(frame["shares"]), frame["sigma"]
    y = side * (frame["price"] / frame["arrival"] - 1) / sigma - (spread or 0) / 1e4 / sigma
    X = np.c_[np.sqrt(frame["shares"].abs() * frame["arrival"] / frame["adv"]), 1e-4 / sigma][:, : 2 - (spread is not None)]
    theirs = sm.OLS(y, X).fit(**dict(cov_type="cluster", cov_kwds=dict(groups=frame["session"])) if session else dict(cov_type="HC1"))
    ours = calibrate(frame if session else frame.drop(columns="session"), spread=spread)
    np.testing.assert_allclose([ours.Y, ours.spread][: X.shape[1]], theirs.params, rtol=1e-9)
    np.testing.assert_allclose([ours.se, ours.spread_se][: X.shape[1]], theirs.bse, rtol=1e-9)
    assert ours.groups == (60 if session else 3000) and ours.noise == pytest.approx(np.sqrt(theirs.mse_resid))


def test_scipy_finds_the_same_exponent():
    from scipy.optimize import curve_fit
    frame = fills(1, exponent=0.65)
    part, sigma = frame["shares"].abs() * 20 / frame["adv"], frame["sigma"]
    y = np.sign(frame["shares"]) * (frame["price"] / 20 - 1) / sigma
    theirs, _ = curve_fit(lambda x, Y, d, c: Y * x[0] ** d + c * x[1], np.array([part, 1e-4 / sigma]), y, p0=[1, 0.5, 0], ftol=1e-15, xtol=1e-15, gtol=1e-15)
    ours = calibrate(frame, exponent=None)
    np.testing.assert_allclose([ours.Y, ours.exponent, ours.spread], theirs, rtol=1e-5)
    assert abs(ours.exponent - 0.65) < 3 * ours.exponent_se


def test_errors_are_as_large_as_they_say():
    found = [calibrate(fills(seed, n=2000, sessions=60), exponent=None) for seed in range(80)]
    for name, error, truth in (("exponent", "exponent_se", 0.5), ("spread", "spread_se", 3.0), ("Y", "se", 0.8)):
        values, told = (np.array([getattr(f, a) for f in found]) for a in (name, error))
        assert 0.8 < values.std() / np.median(told) < 1.3, name
        assert (np.abs(values - truth) < 2.02 * told).mean() > 0.88, name


def test_the_scale_of_prices_means_nothing():
    frame = fills(2)
    split = frame.assign(shares=frame["shares"] * 7, price=frame["price"] / 7, arrival=frame["arrival"] / 7)
    one, other = calibrate(frame), calibrate(split)
    np.testing.assert_allclose([other.Y, other.se, other.spread], [one.Y, one.se, one.spread], rtol=1e-9)
