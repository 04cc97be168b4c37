"Soft ranks and the losses made of them: limits, gradients, and oracles on cases that nobody would write down"
import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr

from tradenb.models.losses import LOSSES, METHODS, loss_of, rank_huber, soft_rank, soft_spearman
from tradenb.models.pairs import passed_back, ranked
from tradenb.models.projection import pools, projected

SEEDS, SIZES, METHOD = st.integers(0, 2**32 - 1), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from(sorted(METHODS))


def drawn(seed, sizes, ties=False):
    "Scores, labels, weights and dates, float64; with ties, from few values"
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    x, y = (rng.integers(0, 5, n).astype(float) if ties else rng.normal(size=n) for _ in "xy")
    return *(torch.from_numpy(v) for v in (x, y, rng.uniform(.5, 2, n))), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def by_matrix(x, t): return .5 + torch.sigmoid((x[:, None] - x)/t).sum(1)


def by_hand(x, y, w, dates, t):
    "The definition, with dense tensors and torch's own gradient; sessions that say nothing are left out"
    found, says = [], []
    for d in dates.unique():
        a, b, v = x[dates == d], y[dates == d], w[dates == d]
        if len(b.unique()) < 2: continue
        q = torch.from_numpy(rankdata(b))
        r = by_matrix((a - a.mean())/a.std(correction=0), t)
        r, q = (u - (v*u).sum()/v.sum() for u in (r, q))
        found.append((v*r*q).sum()/((v*r*r).sum()*(v*q*q).sum()).sqrt())
        says.append(v.mean())
    return (torch.stack(found)*torch.stack(says)).sum()/sum(says) if found else torch.tensor(0.)


@settings(deadline=None, max_examples=25)
@given(SEEDS, SIZES, st.booleans(), METHOD)
def test_the_limits_are_plain_ranks_and_the_middle(seed, sizes, ties, method):
    x, *_, dates = drawn(seed, sizes, ties)
    plain = np.concatenate([rankdata(x[dates == d]) for d in range(len(sizes))])
    for cold in (0, 1e-12, 1e-300): np.testing.assert_allclose(soft_rank(x, cold, dates, method), plain, rtol=1e-12)
    hot = soft_rank(x, 1e14, dates, method)
    np.testing.assert_allclose(hot, np.concatenate([np.full(n, (n + 1)/2) for n in sizes]), rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(SEEDS, SIZES, METHOD, st.sampled_from([.01, .1, 1, 10]))
def test_ranks_keep_their_sum_and_order_and_do_not_see_a_shift(seed, sizes, method, t):
    x, *_, dates = drawn(seed, sizes)
    r = soft_rank(x, t, dates, method)
    np.testing.assert_allclose(soft_rank(x + 5, t, dates, method), r, rtol=1e-9)
    np.testing.assert_allclose(soft_rank(3*x, 3*t, dates, method), r, rtol=1e-9)
    for d, n in enumerate(sizes):
        mine, scores = r[dates == d], x[dates == d]
        assert abs(mine.sum() - n*(n + 1)/2) < 1e-9 and mine.min() > 1 - 1e-9 and mine.max() < n + 1e-9
        assert (mine[scores.argsort()].diff() >= -1e-9).all()


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.integers(2, 4), st.sampled_from([.1, .5, 2]))
def test_the_projection_is_the_nearest_point_of_the_permutahedron(seed, n, t):
    x = np.random.default_rng(seed).normal(size=n)
    order = np.argsort(x)
    mine = projected(x[order], np.array([0, n]), t)
    subsets = [[i for i in range(n) if m >> i & 1] for m in range(1, 2**n - 1)]   # any k names hold at least 1 + ... + k
    rules = [dict(type="ineq", fun=lambda r, s=s: r[s].sum() - len(s)*(len(s) + 1)/2) for s in subsets]
    rules.append(dict(type="eq", fun=lambda r: r.sum() - n*(n + 1)/2))
    far = minimize(lambda r: ((r - x[order]/t)**2).sum(), np.full(n, (n + 1)/2), constraints=rules, method="SLSQP", options=dict(ftol=1e-12))
    np.testing.assert_allclose(mine, far.x, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(SEEDS, SIZES, METHOD, st.sampled_from([.1, 1]))
def test_gradients_of_ranks_against_small_steps(seed, sizes, method, t):
    x, *_, dates = drawn(seed, sizes)
    assert torch.autograd.gradcheck(lambda s: soft_rank(s, t, dates, method), x.requires_grad_(True), eps=1e-7, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(SEEDS, SIZES, st.sampled_from([.05, .5, 5]))
def test_the_loss_and_its_gradient_are_the_definition(seed, sizes, t):
    x, y, w, dates = drawn(seed, [n if n > 1 else 3 for n in sizes])
    a, b = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    mine, theirs = soft_spearman(a, y, t, dates, w), by_hand(b, y, w, dates, t)
    mine.backward(), theirs.backward()
    assert abs(mine - theirs).item() < 1e-9
    np.testing.assert_allclose(a.grad, b.grad, rtol=1e-5, atol=1e-9)


@settings(deadline=None, max_examples=8)
@given(SEEDS, SIZES, METHOD)
def test_every_loss_against_small_steps(seed, sizes, method):
    x, y, w, dates = drawn(seed, [n if n != 2 else 3 for n in sizes])   # two standardised names are at -1 and 1 whatever they are
    for name in LOSSES:
        loss = loss_of(name, temperature=.3, method=method, delta=.4)
        assert torch.autograd.gradcheck(lambda s, f=loss: f(s, y, dates, w), x.clone().requires_grad_(True), eps=1e-7, atol=1e-4), name


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(3, 60), METHOD)
def test_cold_is_spearman_with_ties(seed, n, method):
    x, y, *_ = drawn(seed, [n], ties=True)
    if len(x.unique()) < 2 or len(y.unique()) < 2: return
    for t in (0, 1e-5): assert abs(soft_spearman(x, y, t, method=method).item() - spearmanr(x, y).statistic) < 1e-12


@settings(deadline=None, max_examples=25)
@given(SEEDS, SIZES, METHOD, st.sampled_from(sorted(LOSSES)))
def test_rows_that_do_not_count_are_not_there(seed, sizes, method, name):
    x, y, w, dates = drawn(seed, sizes)
    out = torch.from_numpy(np.random.default_rng(seed).random(len(x)) < .4)
    if out.all(): return
    loss, some = loss_of(name, method=method), torch.from_numpy(np.random.default_rng(seed + 1).random(len(x)) < .5)
    full, rest = x.clone().requires_grad_(True), x[~out].clone().requires_grad_(True)
    mine = loss(full, torch.where(out & some, torch.nan, y), dates, torch.where(out & ~some, 0, w))
    theirs = loss(rest, y[~out], dates[~out], w[~out])
    mine.backward(), theirs.backward()
    assert mine.item() == theirs.item() and not full.grad[out].any() and torch.equal(full.grad[~out], rest.grad)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_dates_are_a_batch_of_their_own(method):
    x, y, w, dates = drawn(1, [7, 30, 12])
    each = [soft_spearman(x[dates == d], y[dates == d], method=method) for d in range(3)]
    assert abs(soft_spearman(x, y, dates=dates, method=method) - sum(each)/3) < 1e-14
    weights = torch.tensor([1., 2, 5])
    mixed = soft_spearman(x, y, dates=dates, weight=weights[dates], method=method)
    assert abs(mixed - (torch.stack(each)*weights).sum()/8) < 1e-14
    square = drawn(2, [4, 4, 4])
    flat = soft_spearman(*square[:2], dates=square[3], method=method)
    assert torch.equal(soft_spearman(square[0].reshape(3, 4), square[1].reshape(3, 4), method=method), flat)
    assert torch.equal(soft_rank(square[0].reshape(3, 4), .1, method=method), soft_rank(square[0], .1, square[3], method).reshape(3, 4))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_sessions_that_say_nothing(method):
    "One name, or labels that are all equal: left out, with no gradient; alone they give 0"
    y, dates = torch.tensor([3., 1, 2, 5, 5, 8]), torch.tensor([0, 0, 0, 1, 1, 2])
    x = torch.tensor([.3, .2, .1, 4, 9, 7], requires_grad=True)
    all_of_it = soft_spearman(x, y, 2, dates, method=method)
    assert all_of_it.item() == soft_spearman(x[:3], y[:3], 2, method=method).item()
    all_of_it.backward()
    assert x.grad[:3].any() and not x.grad[3:].any()
    silent = x[3:].detach().requires_grad_(True)
    nothing = soft_spearman(silent, y[3:], dates=dates[3:], method=method)
    nothing.backward()
    assert nothing.item() == 0 and not silent.grad.any()
    assert rank_huber(silent, y[3:], dates[3:]).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0., .1, -1e6, 1e30])
def test_constant_predictions_have_an_ordinary_gradient(value, dtype):
    x = torch.full((501,), value, dtype=dtype).requires_grad_(True)
    y = torch.from_numpy(np.random.default_rng(0).normal(size=501)).to(torch.float32)
    rho = soft_spearman(x, y)
    rho.backward()
    assert rho.item() == 0 and x.grad.dtype == dtype and .1 < x.grad.double().norm() < 10
    assert spearmanr(x.grad.double(), y).statistic > .99


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_score_is_heard_of(method, bad):
    "Not hidden, not endless: the loss is NaN, and whoever trains says so"
    x, y, w, dates = drawn(3, [40, 40])
    x[[3, 17, 20]] = bad
    assert soft_spearman(x.requires_grad_(True), y, dates=dates, method=method).isnan()
    assert soft_rank(torch.full((5,), bad), .1, method=method).shape == (5,)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_half_precision_and_the_same_bits_twice(loss):
    x, y, w, dates = drawn(4, [30, 30])
    small = x.to(torch.bfloat16).requires_grad_(True)
    found = [torch.autograd.grad(LOSSES[loss](small, y.float(), dates, w.float()), small)[0] for _ in "ab"]
    assert found[0].dtype == torch.bfloat16 and found[0].isfinite().all() and torch.equal(*found)
    if loss == "soft_spearman":
        exact = x.to(torch.bfloat16).double().requires_grad_(True)
        assert abs(LOSSES[loss](small, y, dates, w).item() - LOSSES[loss](exact, y, dates, w).item()) < 1e-6


def test_the_kernel_against_the_matrix_far_and_near():
    "Stretches of exponentials, and names in clusters that lie thousands of temperatures apart"
    rng = np.random.default_rng(0)
    for spread, t in ((1, 1e-3), (1, .05), (1e4, 1), (1e-8, .05), (1e200, 1e199)):
        x = np.sort(np.concatenate([c + rng.normal(size=60) for c in (0, 0, 3, 200)])*spread)
        g, bounds, dense = rng.normal(size=240), np.array([0, 100, 240]), torch.from_numpy(x).requires_grad_(True)
        theirs = torch.cat([by_matrix(part, t) for part in (dense[:100], dense[100:])])
        theirs.backward(torch.from_numpy(g))
        np.testing.assert_allclose(ranked(x, bounds, t), theirs.detach(), rtol=1e-12)
        np.testing.assert_allclose(passed_back(g, x, bounds, t), dense.grad, rtol=1e-8, atol=1e-12/t)


def test_memory_is_bounded():
    "12,000 names, forward and backward: a matrix of the pairs would hold 1.15 GB"
    x, y = (torch.from_numpy(v) for v in np.random.default_rng(0).normal(size=(2, 12_000)))
    soft_spearman(x[:9].clone().requires_grad_(True), y[:9]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    soft_spearman(x.requires_grad_(True), y).backward()
    assert x.grad.isfinite().all() and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)*1024 < 100e6


def test_pools_are_those_of_isotonic_regression():
    isotonic = pytest.importorskip("sklearn.isotonic").isotonic_regression
    for seed in range(20):
        x, t = np.sort(np.random.default_rng(seed).normal(size=200)), 10**np.random.default_rng(seed).uniform(-4, 0)
        fit = isotonic(x/t - np.arange(1, 201))
        np.testing.assert_allclose(projected(x, np.array([0, 200]), t), x/t - fit, rtol=1e-9, atol=1e-9)
        assert abs(len(pools(x, t)) - 1 - len(np.unique(fit.round(9)))) <= 1


def test_complaints():
    x = torch.arange(4.)
    for bad in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match=f"temperature is 0 .* was {bad}"): soft_rank(x, bad)
    with pytest.raises(ValueError, match=r"given \(4, 1\) scores, \(4,\) labels; squeeze"): rank_huber(x[:, None], x)
    with pytest.raises(ValueError, match="none of 4 rows has a label and a weight above 0"): LOSSES["mse"](x, x*torch.nan)
    with pytest.raises(ValueError, match="none of 4 rows"): soft_spearman(x, x, weight=torch.zeros(4))
    with pytest.raises(ValueError, match="the rows of date 1 are not together"): soft_spearman(x, x, dates=torch.tensor([1, 2, 1, 3]))
    with pytest.raises(ValueError, match=r"dates has shape \(3,\) for 4 rows"): soft_spearman(x, x, dates=torch.tensor([1, 2, 1]))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"mse", "huber"}))
def test_descent_finds_the_order_on_any_scale(name):
    "Labels of two sessions, on scales a million apart: one step of many, the rank correlation rises to nearly 1"
    x, y, w, dates = drawn(5, [50, 50])
    y = y*torch.where(dates == 0, 1e-3, 1e3)
    free = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([free], lr=.05)
    for _ in range(150):
        descent.zero_grad()
        loss_of(name, huber=1e-6)(free, y, dates, None).backward()
        descent.step()
    assert soft_spearman(free.detach(), y, 0, dates) > .97
