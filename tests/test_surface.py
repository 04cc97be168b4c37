"SVI: against scipy from many starts, densities of Black prices, round trips, faults, the future, and real chains"
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, minimize

from tradenb.data.black import price
from tradenb.features.arbitrage import calendar, certificate, certify, crossedness, crossings, violations
from tradenb.features.repair import fit_certified, repair
from tradenb.features.smile_points import points, slices
from tradenb.features.ssvi import SSVI, conditions, fit_ssvi
from tradenb.features.surface import surface, surface_features
from tradenb.features.svi import RAW, SVI, fit_slices, fit_svi, from_jump_wings, from_natural, jump_wings, natural

VOGT = SVI(-.041, .1331, .306, .3586, .4153)
few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def slices_of(draw, lowest=.005):
    "Raw slices with positive variance and wings below Lee's bound"
    f = lambda lo, hi: draw(st.floats(lo, hi))
    b, rho, m, sigma = f(.02, .6), f(-.95, .95), f(-.2, .2), f(.05, .5)
    return SVI(f(lowest, .1) - b * sigma * (1 - rho**2)**.5, b, rho, m, sigma)


@few
@given(slices_of())
def test_what_was_put_in_comes_out(truth):
    k = np.linspace(-1, 1, 60)
    found = fit_svi(k, truth.w(k))
    assert found.ok and found.rmse < 1e-4
    np.testing.assert_allclose(found.w(k), truth.w(k), atol=1e-7)


def best_of_scipy(k, w, h, starts, rng):
    "Least squares in five numbers from many starts, inside the same limits: the least mean square"
    width, (lo, hi) = np.ptp(k), (k.min(), k.max())
    low = np.array([-np.inf, 0, 0, lo - width / 2, np.log(width / 100)])
    high = np.array([np.inf, 2, 2, hi + width / 2, np.log(3 * width)])

    def off(z):
        x = k - z[3]
        return np.sqrt(h / h.sum()) * (z[0] + (z[2] - z[1]) / 2 * x + (z[1] + z[2]) / 2 * np.sqrt(x * x + np.exp(2 * z[4])) - w)
    best = np.inf
    for _ in range(starts):
        z = [w.min() * rng.uniform(0, 1), *rng.uniform(.01, 1, 2), rng.uniform(lo, hi), np.log(width * rng.uniform(.02, 1))]
        r = least_squares(off, z, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12, x_scale="jac", max_nfev=300)
        a, left, right, _, log_sigma = r.x
        if a + np.exp(log_sigma) * np.sqrt(left * right) >= 0: best = min(best, 2 * r.cost)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_scipy_from_many_starts(seed):
    rng = np.random.default_rng(seed)
    k = np.sort(rng.uniform(-.6, .5, 30))
    truth = SVI(.01, rng.uniform(.05, .4), rng.uniform(-.9, .3), rng.normal(0, .1), rng.uniform(.05, .3))
    w, h = truth.w(k) * np.exp(.05 * rng.normal(size=30)), rng.uniform(.5, 2, 30)
    mine = fit_svi(k, w, h)
    loss = (h * (mine.w(k) - w)**2).sum() / h.sum()
    assert loss <= best_of_scipy(k, w, h, 12, rng) * (1 + 1e-6)


def test_variance_is_never_negative():
    "Where the free optimum would dip below zero, the best curve that touches zero: against SLSQP"
    k = np.linspace(-.5, .5, 21)
    w = np.maximum(np.abs(k) - .1, 1e-4)
    found = fit_svi(k, w, limit=np.inf)
    assert found.lowest >= -1e-15 and not found.ok and found.why == "zero variance"

    def loss(z):
        x = k - z[3]
        return 1e4 * np.mean((z[0] + (z[2] - z[1]) / 2 * x + (z[1] + z[2]) / 2 * np.sqrt(x * x + z[4]**2) - w)**2)
    touch = dict(type="ineq", fun=lambda z: z[0] + z[4] * np.sqrt(z[1] * z[2]))
    best = min(minimize(loss, [0, .5, .5, m, s], constraints=touch, method="SLSQP",
                        bounds=[(None, None), (1e-6, 2), (1e-6, 2), (-1, 1), (.01, 3)]).fun for m in (-.1, 0, .1) for s in (.02, .1, .5))
    assert loss([found.a, *found.wings, found.m, found.sigma]) <= best * (1 + 1e-5)


@few
@given(slices_of())
def test_g_has_the_sign_of_the_density(slice_):
    "The second derivative of Black call prices by strike, by differences, is g times a positive number"
    k = np.linspace(-.8, .8, 33)
    step = 2e-4
    strikes = np.exp(k)[:, None] * np.array([1 - step, 1, 1 + step])
    iv = np.sqrt(slice_.w(np.log(strikes)))
    calls = price(1., strikes.ravel(), 1., 1., iv.ravel(), "C").reshape(-1, 3)
    density = (calls[:, 0] - 2 * calls[:, 1] + calls[:, 2]) / (step * np.exp(k))**2
    w = slice_.w(k)
    d2 = -k / np.sqrt(w) - np.sqrt(w) / 2
    want = slice_.g(k) / np.sqrt(2 * np.pi * w) * np.exp(-d2**2 / 2) / np.exp(k)
    np.testing.assert_allclose(density, want, rtol=2e-3, atol=2e-5 * (1 + abs(want).max()))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(slices_of(lowest=1e-4))
def test_the_certificate_is_the_dense_scan(slice_):
    "What is proven is seen nowhere below zero, what is refuted is seen below zero where the intervals say"
    seen = slice_.g(slice_.m + slice_.sigma * np.sinh(np.linspace(-9, 9, 20001)))
    proof = certificate(slice_)
    assume(abs(seen.min()) > 1e-7)
    assert proof.ok == (seen.min() > 0)
    bad = violations(slice_)
    assert proof.ok == (not bad)
    for lo, hi in bad:
        inside = slice_.m + slice_.sigma * np.sinh(np.mean(np.arcsinh((np.clip([lo, hi], -1e4, 1e4) - slice_.m) / slice_.sigma)))
        assert slice_.g(inside) < 0


@few
@given(slices_of(), st.floats(.01, 3))
def test_forms_and_back(slice_, t):
    np.testing.assert_allclose(from_natural(natural(slice_)).raw, slice_.raw, rtol=1e-9, atol=1e-11)
    jw = jump_wings(slice_, t)
    assume(jw.v - jw.v_min > 1e-4 * jw.v)
    k = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(from_jump_wings(jw, t).w(k), slice_.w(k), rtol=1e-6)


@few
@given(slices_of(), slices_of())
def test_crossings_are_all_found(near, far):
    k = np.linspace(-6, 6, 60001)
    apart = near.w(k) - far.w(k)
    turns = k[1:][np.diff(np.sign(apart)) != 0]
    found = crossings(near, far)
    np.testing.assert_allclose(near.w(found), far.w(found), atol=1e-8)
    for turn in turns: assert np.abs(found - turn).min() < 1e-3
    if crossedness(near, far) == 0: assert apart.max() < 1e-9
    table = pd.DataFrame([near.raw, far.raw], columns=RAW)
    dense = (np.sqrt(near.w(k)) - np.sqrt(far.w(k)))[np.abs(k) <= 1.5].max()
    assert calendar(table, [0, 0], n=3000)[1] == pytest.approx(dense, abs=1e-5)


def at(z): return SVI(z[0], (z[1] + z[2]) / 2, (z[2] - z[1]) / (z[1] + z[2]), z[3], np.exp(z[4]))


def test_refits_are_certified_and_near_the_best():
    "Noisy slices with arbitrage: all certified, and not far from SLSQP under the same constraint on a dense grid"
    rng = np.random.default_rng(3)
    k = np.linspace(-.5, .4, 30)
    w = np.array([np.maximum(VOGT.w(k + shift), 1e-3) * np.exp(.02 * rng.normal(size=30)) for shift in (0, .3, .5)])
    fits = fit_certified(np.tile(k, 3), w.ravel(), np.ones(90), np.repeat(range(3), 30), np.ones(3), limit=np.inf)
    free = fit_slices(np.tile(k, 3), w.ravel(), np.ones(90), np.repeat(range(3), 30), np.ones(3), limit=np.inf)
    assert fits.certified.all() and (certify(free).certified == ~fits.refitted).all() and fits.refitted.any()
    theta = np.sinh(np.linspace(-8, 8, 257))
    for i in np.flatnonzero(fits.refitted):
        mine = SVI(*fits.loc[i, RAW])
        loss = lambda z, w=w[i]: 1e4 * np.mean((at(z).w(k) - w)**2)
        held = dict(type="ineq", fun=lambda z: at(z).g(z[3] + np.exp(z[4]) * theta) - 1e-4)
        box = [(None, None), (1e-6, 1.99), (1e-6, 1.99), (-.95, .85), (np.log(.009), np.log(2.7))]
        z = [mine.a, *mine.wings, mine.m, np.log(mine.sigma)]
        with np.errstate(all="ignore"): other = minimize(loss, z, constraints=held, bounds=box, method="SLSQP", options=dict(maxiter=200))
        best = other.fun if held["fun"](other.x).min() > -1e-6 else np.inf
        assert np.sqrt(loss(z)) <= 1.02 * np.sqrt(best)


@few
@given(slices_of(lowest=.01))
def test_repaired_slices_are_certified_and_keep_the_money(slice_):
    if certificate(slice_).ok: assert repair(slice_) is slice_; return
    try: made = repair(slice_, steps=4)
    except ValueError as e: assert "refit to the quotes" in str(e); return
    assert certificate(made).ok
    np.testing.assert_allclose(jump_wings(made, 1)[:3], jump_wings(slice_, 1)[:3], rtol=1e-6)


K = np.linspace(-.3, .2, 20)
W = SVI(.01, .1, -.5, 0, .1).w(K)


@pytest.mark.parametrize(("k", "w", "why"), [
    (K[:3], W[:3], "few points"), (K, np.full(20, np.nan), "few points"), (np.zeros(20), W, "few points"), ([], [], "few points"),
    (K, np.full(20, .04), "flat"), (K, np.where(K == K[4], -.01, W), "non-positive variance"),
    (K, np.where(K == K[4], 0, W), "non-positive variance"), (K, np.where(K == K[7], 1e3, W), "fit error above the limit"),
    (K, np.full(20, np.inf), "few points")])
def test_what_cannot_be_fitted_says_why(k, w, why):
    found = fit_svi(k, w)
    assert not found.ok and found.why == why
    if why == "flat": np.testing.assert_allclose(found.w(K), .04)


def test_missing_points_are_left_out():
    w, h = np.where(K == K[3], np.nan, W), np.where(K == K[5], 0, 1.)
    assert fit_svi(K, w, h).raw == fit_svi(np.delete(K, [3, 5]), np.delete(W, [3, 5])).raw
    with pytest.raises(ValueError, match="for each point"): fit_svi(K, W[:-1])
    with pytest.raises(ValueError, match="above 0"): fit_svi(K, W, years=0)


def chain_of(session, level=.04, underlying="SPX", noise=0., seed=0):
    "A priced chain of five expiries, free of arbitrage"
    rng, rows = np.random.default_rng(seed), []
    shape = SSVI(-.6, "power", (1., .5), np.array([.01, 1.]), level * np.array([.01, 1.]))
    for days in (5, 20, 40, 70, 120):
        t = days / 365
        k = np.linspace(-4, 3, 31) * (level * t)**.5
        iv = shape.slice(t).iv(k, t) * np.exp(noise * rng.normal(size=31))
        for right in "CP":
            rows.append(pd.DataFrame(dict(session=pd.Timestamp(session), underlying=underlying, root=underlying,
                                          expiry=pd.Timestamp(session) + pd.Timedelta(days, "D"), right=right, strike=100 * np.exp(k),
                                          years=t, forward=100., k=k, iv=iv, iv_bid=iv - .001, iv_ask=iv + .001, flag="")))
    return pd.concat(rows, ignore_index=True)


def test_rows_in_any_order_and_sessions_by_themselves():
    "Shuffled rows, other sessions and other underlyings change nothing, to the bit"
    one, two, other = (chain_of("2024-01-19", noise=.01), chain_of("2024-01-22", .09, noise=.01, seed=1),
                       chain_of("2024-01-19", .02, "XSP", noise=.01, seed=2))
    alone = surface(one)
    every = pd.concat([two, other, one], ignore_index=True).sample(frac=1, random_state=0)
    together = surface(every)
    pd.testing.assert_frame_equal(together.loc[[alone.index[0]]], alone, check_exact=True)
    assert together.shape[0] == 3
    pd.testing.assert_series_equal(surface_features(one), alone.iloc[0], check_names=False)


def test_two_roots_of_one_date_make_one_slice_of_the_term_structure():
    chain = chain_of("2024-01-19")
    am = chain[chain.expiry == "2024-02-08"].assign(root="AM", years=lambda c: c.years - 6.5 / 24 / 365)
    fits = slices(pd.concat([chain, am.iloc[::3]]))
    used = fits[fits.index.get_level_values("expiry") == "2024-02-08"].used
    assert len(fits) == 6 and used.to_dict() == {k: k[2] == "SPX" for k in used.index}


def test_a_surface_keeps_its_conditions():
    "SSVI through noisy quotes: all conditions hold, every slice certified, none crosses the next"
    chain = chain_of("2024-01-19", noise=.02)
    made = fit_ssvi(points(chain), slices(chain))
    assert (conditions(made) >= 0).all() and made.rmse < 1
    every = [made.slice(t) for t in np.linspace(5, 120, 24) / 365]
    assert all(certificate(s).ok for s in every)
    assert all(crossedness(a, b) < 1e-12 for a, b in zip(every[:-1], every[1:], strict=True))


def test_real_chains(real_data):
    "Every expiry of four chains of an exchange that has enough quotes is fitted and certified; fit errors are small"
    from tradenb.data.chains import priced
    raw = pd.read_parquet(real_data / "option_chains_spx_spy_xsp_4_snapshots.parquet")
    raw = raw[raw.snapshot.str.contains("2023")]
    chain = pd.DataFrame(dict(session=pd.Timestamp("2023-09-14"), underlying=raw.snapshot.str[:3].astype("str"), root=raw.root.astype("str"),
                              expiry=pd.to_datetime(raw.expiry), strike=raw.strike, right=raw.right.astype("str"), bid=raw.bid, ask=raw.ask))
    fits = slices(priced(chain.reset_index(drop=True)))
    assert len(fits) > 130 and fits.certified.all() and fits.served.mean() > .98
    assert fits.rmse[fits.served].median() < .15 and fits.rmse[fits.served].max() < 1
    made = surface(None, fits=fits)
    assert made.atm_30.between(.08, .15).all() and (made.rr_25 < 0).all() and (np.ptp(made.atm_30) < .01)


def test_an_arbitrage_far_beyond_the_scan_is_seen():
    "g is positive all over the scanned range, and negative from k = 2.4 to 11.5: only the proof can know"
    far = SVI(-4.0167, .8133, .1686, 1.1453, 5.0172)
    proof = certificate(far)
    assert proof.g_min > 0 and not proof.ok and proof.why == "negative density"
    (lo, hi), = violations(far)
    assert 2 < lo < 3 and 11 < hi < 12


def test_wings_stop_at_the_bound_of_lee():
    "Quotes that rise faster than any free market: the best curve has a slope of 2, and the rest adapts to it"
    k = np.linspace(-.5, .5, 41)
    w = .5 + 2.6 * np.maximum(k, 0) + .3 * np.maximum(-k, 0)
    found = fit_svi(k, w, limit=np.inf)
    assert found.wings[1] == pytest.approx(2, abs=1e-12)
    assert np.mean((found.w(k) - w)**2) <= best_of_scipy(k, w, np.ones(41), 20, np.random.default_rng(0)) * (1 + 1e-6)


@pytest.mark.parametrize("seed", [312, 212])
def test_the_lower_of_two_valleys(seed):
    "Rough points whose plane has two valleys; downhill from the lowest cell alone ends 14% and 7% too high"
    rng = np.random.default_rng(seed)
    k = np.sort(rng.uniform(-.5, .5, 12))
    w = np.maximum(.05 + .3 * rng.uniform(.2, 1) * np.abs(k - rng.uniform(-.3, .3)) + .02 * rng.normal(size=12), .005)
    found = fit_svi(k, w, limit=np.inf)
    assert np.mean((found.w(k) - w)**2) <= best_of_scipy(k, w, np.ones(12), 25, np.random.default_rng(0)) * (1 + 1e-6)
