"Prices, implied volatilities and Greeks against arithmetic with sixty digits, QuantLib and vollib; and what must hold for every option"
from functools import cache
from itertools import product

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tradenb.data.american import american, american_premium
from tradenb.data.black import GREEKS, bsm, greeks, log_ratio, price, signs
from tradenb.data.implied import implied, implied_vol
from tradenb.data.normal import cumulative, density, erfcx, quantile

ROUNDING = np.finfo(float).eps
MINUTE = 1/(365*24*60)


@cache
def exact(forward, strike, years, discount, iv, sign):
    "Black's price with sixty digits left after the cancellation"
    f, k, t, d, v = map(mp.mpf, (forward, strike, years, discount, iv))
    with mp.workdps(max(mp.mp.dps, 60) + int((mp.log(f/k)/v)**2/t/4)):
        s = v*mp.sqrt(t)
        d1 = mp.log(f/k)/s + s/2
        return d*sign*(f*mp.ncdf(sign*d1) - k*mp.ncdf(sign*(d1 - s)))


def grid(years=(MINUTE, 30*MINUTE, 1/365, .1, 1., 10.), iv=(.01, .2, 1., 3.), far=(-30, -12, -8, -3, -.5, 0, .3, 2, 6, 20)):
    "Options by deviations from the strike, calls and puts: wings of thirty deviations, a minute to ten years, volatility to 300%"
    rows = [(100., 100*np.exp(z*v*t**.5), t, np.exp(-.03*t), v, sign) for t, v, z, sign in product(years, iv, far, (1., -1.))]
    return np.array([row for row in rows if 1e-6 < row[1] < 1e8])


def error(got, true):
    "Largest relative error, where the true value is a number of normal size"
    return max(float(abs(mp.mpf(float(a))/b - 1)) for a, b in zip(got, true, strict=True) if abs(b) > 1e-290)


def reach(forward, strike, years, discount, iv, sign):
    "By how much a relative error of an input, say of the last digit, grows in the price: 1 + (deviations from the strike)^2"
    return 1 + (np.log(forward/strike)/(iv*np.sqrt(years)))**2


def test_normal_functions_hold_their_stated_accuracy():
    with mp.workdps(50):
        for kernel, true, points, stated in [
                (erfcx, lambda z: mp.exp(z*z)*mp.erfc(z), np.linspace(0, 100, 150), 1e-15),
                (erfcx, lambda z: mp.exp(z*z)*mp.erfc(z), np.linspace(-5, 0, 150), 3e-15),
                (density, mp.npdf, np.linspace(-37, 8, 150), 1e-15),
                (cumulative, mp.ncdf, np.linspace(-37, 8, 150), 1e-15)]:
            assert error([kernel(z) for z in points], [true(mp.mpf(z)) for z in points]) < stated
        for p in [*10.**-np.arange(1, 300, 7), .07, .0751, .3, .5001, .9, .93, .999]:
            z = quantile(p)     # back through the sixty digits: the error of z is the error of its probability over z's density
            assert abs((mp.ncdf(mp.mpf(z)) - mp.mpf(p))/mp.npdf(z)) <= 2e-15*max(abs(z), .1)


def test_price_is_right_where_an_input_allows_it():
    rows = grid()
    got, true = price(*rows.T), [exact(*map(float, row)) for row in rows]
    worst = max(error([a], [b])/reach(*row) for a, b, row in zip(got, true, rows, strict=True))
    assert worst < 5*ROUNDING
    near = np.abs(np.log(rows[:, 0]/rows[:, 1])) < 8*rows[:, 4]*np.sqrt(rows[:, 2])
    assert error(got[near], [b for b, yes in zip(true, near, strict=True) if yes]) < 1e-13


def test_price_against_quantlib_and_vollib():
    ql, black = pytest.importorskip("QuantLib"), pytest.importorskip("vollib.black").black
    rows = grid()
    side = {1.: (ql.Option.Call, "c"), -1.: (ql.Option.Put, "p")}
    ours, true = price(*rows.T), [exact(*map(float, row)) for row in rows]
    peers = {"QuantLib": [ql.blackFormula(side[r[5]][0], r[1], r[0], r[4]*r[2]**.5, r[3]) for r in rows],
             "vollib": [black(side[r[5]][1], r[0], r[1], r[2], .03, r[4]) for r in rows]}
    for name, theirs in peers.items():
        apart = np.abs(ours - theirs)
        np.testing.assert_array_less(apart, 1e-11*np.maximum(rows[:, 0], rows[:, 1]))
        # where they are apart by more than a billionth, sixty digits say that the other is the one further off
        for a, b, t in zip(ours, theirs, true, strict=True):
            if abs(a - b) > 1e-9*abs(t) > 1e-290: assert abs(a - t) < 1e-3*abs(b - t), name


def test_implied_volatility_is_right_where_the_price_allows_it():
    rows = grid()
    rows = rows[rows[:, 5]*(rows[:, 0] - rows[:, 1]) <= 0]
    true = [exact(*map(float, row)) for row in rows]
    quoted = np.array([float(b) for b in true])
    keep = quoted > 1e-290
    got, flag = implied(quoted[keep], *rows[keep].T[:4], rows[keep].T[5])
    assert (flag == "").all()
    for iv, row, b in zip(got, rows[keep], quoted[keep], strict=True):
        f, k, t, d, v, _ = row
        d1 = np.log(f/k)/(v*t**.5) + .5*v*t**.5
        vega = d*f*np.exp(-.5*d1*d1)/np.sqrt(2*np.pi)*t**.5
        assert abs(iv/v - 1) < 8*ROUNDING*(1 + b/(v*vega))
    steep = np.abs(rows[keep][:, 4]*np.sqrt(rows[keep][:, 2])) < 3
    assert np.abs(got/rows[keep][:, 4] - 1)[steep].max() < 2e-14


def test_implied_volatility_against_quantlib_and_vollib():
    ql, theirs = pytest.importorskip("QuantLib"), pytest.importorskip("vollib.black.implied_volatility").implied_volatility
    rows = grid(far=(-5, -2, -.5, 0, .3, 1, 3))
    rows = rows[rows[:, 5]*(rows[:, 0] - rows[:, 1]) <= 0]
    quoted = price(*rows.T)
    rows, quoted = rows[quoted > 1e-8], quoted[quoted > 1e-8]
    ours = implied_vol(quoted, *rows.T[:4], rows.T[5])
    assert np.abs(ours/rows[:, 4] - 1).max() < 5e-12
    for iv, r, b in zip(ours, rows, quoted, strict=True):
        call = r[5] > 0
        assert theirs(b, r[0], r[1], .03, r[2], "c" if call else "p") == pytest.approx(iv, rel=2e-11)
        root = ql.blackFormulaImpliedStdDev(ql.Option.Call if call else ql.Option.Put, r[1], r[0], b, r[3], 0., r[4]*r[2]**.5, 1e-12, 1000)
        assert root/r[2]**.5 == pytest.approx(iv, abs=1e-6)


def test_prices_without_a_volatility_are_flagged_and_never_zero():
    given = [(10., 100, 110, .5, 1., "C", ""), (0., 100, 110, .5, 1., "C", "below_intrinsic"), (-1., 100, 110, .5, 1., "C", "below_intrinsic"),
             (19.99, 100, 80, .5, 1., "C", "below_intrinsic"), (20., 100, 80, .5, 1., "C", "below_intrinsic"),
             (np.nextafter(20, 21), 100, 80, .5, 1., "C", "below_intrinsic"),
             (19.99, 80, 100, .5, 1., "P", "below_intrinsic"), (100., 100, 110, .5, 1., "C", "above_maximum"),
             (110., 100, 110, .5, 1., "P", "above_maximum"), (np.inf, 100, 110, .5, 1., "C", "above_maximum"),
             (np.nan, 100, 110, .5, 1., "C", "no_input"), (5., np.nan, 110, .5, 1., "C", "no_input"), (5., 100, 0, .5, 1., "C", "no_input"),
             (5., 100, 110, 0, 1., "C", "no_input"), (5., 100, 110, .5, np.nan, "P", "no_input"), (5., 100, np.inf, .5, 1., "C", "no_input")]
    *columns, right, flags = map(list, zip(*given, strict=True))
    iv, flag = implied(*columns, right)
    assert flag.tolist() == flags
    assert (np.isnan(iv) == (flag != "")).all() and not (iv == 0).any()


GREEKS_OF = {"delta": ((1, 0, 0, 0), 1), "gamma": ((2, 0, 0, 0), 1), "vega": ((0, 1, 0, 0), .01), "theta": ((0, 0, 1, 0), -1/365),
             "rho": ((0, 0, 0, 1), .01), "vanna": ((1, 1, 0, 0), .01), "charm": ((1, 0, 1, 0), -1/365), "volga": ((0, 2, 0, 0), 1e-4)}


@pytest.mark.parametrize("case", [(100, 100, .5, .03, .01, .2, 1), (100, 130, .1, .05, .0, .15, 1), (100, 60, 2., -.01, .04, .5, -1),
                                  (100, 100.5, 30*MINUTE, .05, .013, .4, -1), (100, 400, 3., .02, .02, 3., 1), (50, 51, 1., 0., 0., .01, -1)])
def test_greeks_are_the_derivatives_of_the_price(case):
    spot, strike, years, rate, dividend, iv, sign = case

    def value(s, v, t, r):
        return exact(s*mp.exp((r - dividend)*t), strike, t, mp.exp(-r*t), v, sign)
    ours = greeks(spot*np.exp((rate - dividend)*years), strike, years, np.exp(-rate*years), iv, sign, spot).iloc[0]
    at = tuple(map(mp.mpf, (spot, iv, years, rate)))
    with mp.workdps(60):
        for name, (orders, unit) in GREEKS_OF.items():
            assert ours[name] == pytest.approx(float(mp.diff(value, at, orders)*unit), rel=2e-12), name


def test_greeks_against_quantlib_and_vollib():
    ql, theirs = pytest.importorskip("QuantLib"), pytest.importorskip("vollib.black_scholes_merton.greeks.analytical")
    today, basis = ql.Date(2, 1, 2026), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    for days, iv, z, right in product((1, 30, 365), (.05, .3, 3.), (-4, -1, 0, .5, 3), "CP"):
        t, r, q, spot = days/365, .04, .015, 100.
        strike = spot*np.exp(z*iv*t**.5)
        call = right == "C"
        ours = greeks(spot*np.exp((r - q)*t), strike, t, np.exp(-r*t), iv, right, spot).iloc[0]
        rates = [ql.YieldTermStructureHandle(ql.FlatForward(today, x, basis)) for x in (q, r)]
        smile = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), iv, basis))
        option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call if call else ql.Option.Put, strike), ql.EuropeanExercise(today + days))
        option.setPricingEngine(ql.AnalyticEuropeanEngine(ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(spot)), *rates, smile)))
        assert float(bsm(spot, strike, t, r, q, iv, right)) == pytest.approx(option.NPV(), rel=1e-9, abs=1e-12)
        for name, unit in dict(delta=1, gamma=1, vega=.01, theta=1/365, rho=.01).items():
            peer = getattr(option, name)()*unit
            other = getattr(theirs, name)("c" if call else "p", spot, strike, t, r, iv, q)
            assert ours[name] == pytest.approx(peer, rel=1e-9, abs=1e-12), name
            assert ours[name] == pytest.approx(other, rel=1e-9, abs=1e-12), name


POSITIVE = {"forward": st.floats(1, 1e4), "ratio": st.floats(-1.5, 1.5), "years": st.floats(MINUTE, 5), "discount": st.floats(.5, 1.05),
            "iv": st.floats(.01, 3)}


@given(**POSITIVE)
@settings(max_examples=300, deadline=None)
def test_parity_homogeneity_and_bounds(forward, ratio, years, discount, iv):
    strike = forward*np.exp(ratio)
    call, put = price(forward, strike, years, discount, iv, ["C", "P"])
    assert call - put == pytest.approx(discount*(forward - strike), abs=2*ROUNDING*max(call, put))
    assert max(discount*(forward - strike), 0) <= call <= discount*forward and max(discount*(strike - forward), 0) <= put <= discount*strike
    assert price(4*forward, 4*strike, years, discount, iv, ["C", "P"]).tolist() == [4*call, 4*put]    # a power of four changes no digit
    scaled = price(3.7*forward, 3.7*strike, years, discount, iv, ["C", "P"])
    grown = 20*ROUNDING*(1 + (ratio/(iv*years**.5))**2)*(1 + 1/max(abs(ratio), iv*years**.5))
    np.testing.assert_allclose(scaled, [3.7*call, 3.7*put], rtol=min(grown, 1), atol=1e-300)
    mirrored = price(strike, forward, years, discount, iv, ["P", "C"])       # a call is a put on the other currency
    np.testing.assert_allclose(mirrored, [call, put], rtol=min(grown, 1), atol=1e-300)


@given(**POSITIVE)
@settings(max_examples=200, deadline=None)
def test_more_volatility_more_value_and_convex_in_the_strike(forward, ratio, years, discount, iv):
    strike = forward*np.exp(ratio)
    ladder = price(forward, strike, years, discount, iv*np.array([1, 1.01, 1.1, 2]), "C")
    assert (np.diff(ladder) >= -4*ROUNDING*ladder[1:]).all()
    step = .05*iv*years**.5
    strikes = strike*np.exp(step*np.arange(-2, 3))
    calls, puts = (price(forward, strikes, years, discount, iv, right) for right in "CP")
    noise = 40*ROUNDING*discount*max(forward, strikes[-1])
    assert (np.diff(calls) <= noise).all() and (np.diff(puts) >= -noise).all()
    for values in (calls, puts): assert (np.diff(np.diff(values)/np.diff(strikes)) >= -2*noise/np.diff(strikes).min()).all()


@given(forward=st.floats(1, 1e4), far=st.floats(-25, 25), years=st.floats(MINUTE, 10), iv=st.floats(.01, 3), right=st.sampled_from("CP"))
@settings(max_examples=500, deadline=None)
def test_price_to_volatility_to_price(forward, far, years, iv, right):
    strike = forward*np.exp(far*iv*years**.5)
    assume(1e-6 < strike < 1e9)
    paid = price(forward, strike, years, .97, iv, right)
    found, flag = implied(paid, forward, strike, years, .97, right)
    intrinsic = .97*max((forward - strike)*(1 if right == "C" else -1), 0)
    if paid - intrinsic < 1e-13*paid or paid > .97*(forward if right == "C" else strike)*(1 - 1e-13): return   # no digit of it is left
    assert flag == ""
    again = price(forward, strike, years, .97, found, right)
    assert abs(again/paid - 1) < max(1e-13, 16*ROUNDING*(1 + far**2))


@given(**POSITIVE, right=st.sampled_from("CP"))
@settings(max_examples=200, deadline=None)
def test_greeks_in_every_corner_are_numbers_with_their_sign(forward, ratio, years, discount, iv, right):
    row = greeks(forward, forward*np.exp(ratio), years, discount, iv, right).iloc[0]
    assert np.isfinite(row.to_numpy()).all() and list(row.index) == list(GREEKS)
    assert 0 <= row.delta <= 1 if right == "C" else -1 <= row.delta <= 0
    assert row.gamma >= 0 and row.vega >= 0 and (row.rho >= 0 if right == "C" else row.rho <= 0)


def test_limits():
    for years, iv in ((0., .2), (1., 0.), (1e-12, .2), (1., 1e-12)):
        assert price(100, [90, 110], years, 1., iv, "C").tolist() == [10, 0]
        table = greeks(100, [90, 110], years, 1., iv, "C")
        assert table.delta.tolist() == [1, 0] and table.gamma.tolist() == [0, 0] and np.isfinite(table.to_numpy()).all()
    assert price(100, 100, 1., 1., 300., ["C", "P"]).tolist() == [100, 100]
    assert np.isinf(greeks(100, 100, 0., 1., .2, "C").gamma[0])
    assert np.isnan(price([100, np.nan, -1, 100], [100, 100, 100, 0], 1, 1, .2, "C")).tolist() == [False, True, True, True]
    assert log_ratio(100., 100.) == 0
    with pytest.raises(ValueError, match='a right is "C" or "P"'): signs(["C", "X"])


def _quantlib_premium(ql, today, spot, strike, days, rate, dividend, iv, right):
    basis = ql.Actual365Fixed()
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, x, basis)) for x in (dividend, rate)]
    smile = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), iv, basis))
    process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(spot)), *curves, smile)
    payoff = ql.PlainVanillaPayoff(ql.Option.Call if right == "C" else ql.Option.Put, strike)
    early = ql.VanillaOption(payoff, ql.AmericanExercise(today, today + days))
    early.setPricingEngine(ql.QdFpAmericanEngine(process, ql.QdFpAmericanEngine.accurateScheme()))
    late = ql.VanillaOption(payoff, ql.EuropeanExercise(today + days))
    late.setPricingEngine(ql.AnalyticEuropeanEngine(process))
    return early.NPV() - late.NPV()


def test_american_premium_against_quantlib():
    ql = pytest.importorskip("QuantLib")
    today = ql.Date(2, 1, 2026)
    ql.Settings.instance().evaluationDate = today
    rows = [row for row in product((70., 95., 104., 140.), (10, 365), (.002, .05), (0., .03, .06), (.1, .8), "CP")]
    ours, true = [], []
    for strike, days, rate, dividend, iv, right in rows:
        t = days/365
        market = (100*np.exp((rate - dividend)*t), strike, t, np.exp(-rate*t), iv, right, 100.)
        ours.append([american_premium(*market)[0], american_premium(*market, steps=301)[0]])
        true.append(_quantlib_premium(ql, today, 100., strike, days, rate, dividend, iv, right))
    off = np.abs(np.array(ours) - np.array(true)[:, None])/100
    assert (off.max(axis=0) < [4e-4, 5e-5]).all() and (np.sqrt((off**2).mean(axis=0)) < [3e-5, 6e-6]).all(), (off.max(axis=0), np.sqrt((off**2).mean(axis=0)))


def test_cash_dividends_against_quantlib():
    ql = pytest.importorskip("QuantLib")
    today, basis = ql.Date(2, 1, 2026), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    rate, iv, days, paid = .04, .25, 180, [(40, 1.), (130, 1.5)]
    flat = ql.YieldTermStructureHandle(ql.FlatForward(today, rate, basis))
    none = ql.YieldTermStructureHandle(ql.FlatForward(today, 0., basis))
    smile = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), iv, basis))
    process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(100.)), none, flat, smile)
    engine = ql.FdBlackScholesVanillaEngine(process, ql.DividendVector([today + d for d, _ in paid], [c for _, c in paid]), 400, 400, 0,
                                            ql.FdmSchemeDesc.Douglas(), False, -1., ql.FdBlackScholesVanillaEngine.Escrowed)
    forward = (100 - sum(c*np.exp(-rate*d/365) for d, c in paid))*np.exp(rate*days/365)
    for strike, right in product((70., 90., 100., 120.), "CP"):
        option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call if right == "C" else ql.Option.Put, strike),
                                  ql.AmericanExercise(today, today + days))
        option.setPricingEngine(engine)
        got = american(forward, strike, days/365, np.exp(-rate*days/365), iv, right, 100., [(d/365, c) for d, c in paid], 301).iloc[0]
        assert got.european + got.premium == pytest.approx(option.NPV(), abs=.02), (strike, right)
