"""Soft Spearman, forward and backward, against torchsort (the same projection) and against dense tensors (the same sigmoid), in the same run,
the same answer first. One thread."""
from time import perf_counter

import numpy as np
import pytest
import torch

from tradenb.models.losses import rank_huber, soft_spearman


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(n):
    x, e = np.random.default_rng(0).normal(size=(2, n))
    return torch.from_numpy(x).requires_grad_(True), torch.from_numpy(x + 2 * e)


def standard(x): return (x - x.mean()) / x.std(correction=0)


def correlation(r, q):
    r, q = r - r.mean(), q - q.mean()
    return (r * q).sum() / (r.norm() * q.norm())


def by_torchsort(x, y, t):
    soft_rank = pytest.importorskip("torchsort", reason="torchsort is not here: it is built from source, against the torch that is").soft_rank
    return correlation(soft_rank(standard(x)[None], regularization_strength=t)[0], soft_rank(y[None], regularization_strength=1e-9)[0])


def by_matrix(x, y, t):
    z = standard(x)
    return correlation(.5 + torch.sigmoid((z[:, None] - z) / t).sum(1), y.argsort().argsort().double())


def there_and_back(f, x, *args):
    rho = f(x, *args)
    return rho.item(), torch.autograd.grad(rho, x)[0]


def seconds(f, *args):
    start = perf_counter()
    f(*args)
    return perf_counter() - start


@pytest.mark.parametrize("n", [500, 3000])
@pytest.mark.parametrize("method", ["projection", "sigmoid"])
def test_soft_spearman(benchmark, method, n):
    peer, name, t, often = (by_torchsort, "torchsort", 1 / n, 50) if method == "projection" else (by_matrix, "dense tensors", .05, 5)
    x, y = drawn(n)
    def ours(x, y, t): return soft_spearman(x, y, t, method=method)
    (a, ga), (b, gb) = there_and_back(ours, x, y, t), there_and_back(peer, x, y, t)
    assert abs(a - b) < 1e-12
    np.testing.assert_allclose(ga, gb, rtol=1e-6, atol=1e-12)
    pairs = [(seconds(there_and_back, ours, x, y, t), seconds(there_and_back, peer, x, y, t)) for _ in range(often)]
    mine, theirs = np.min(pairs, axis=0)
    benchmark.pedantic(there_and_back, (ours, x, y, t), rounds=10)
    print(f"\nsoft Spearman by {method} of {n:,} names: {mine * 1e3:.2f} ms forward and backward, {name} {theirs * 1e3:.2f} ms, "
          f"{theirs / mine:.1f} times as fast")


def test_a_batch(benchmark):
    "Four sessions of 500 names in float32: what a training step pays for its loss"
    x = torch.from_numpy(np.random.default_rng(0).normal(size=2000).astype(np.float32)).requires_grad_(True)
    y, dates, w = torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat_interleave(500), torch.ones(2000)
    there_and_back(rank_huber, x, y, dates, w)
    mine = min(seconds(there_and_back, rank_huber, x, y, dates, w) for _ in range(30))
    benchmark.pedantic(there_and_back, (rank_huber, x, y, dates, w), rounds=10)
    print(f"\nrank_huber of 4 sessions x 500 names: {mine * 1e3:.2f} ms forward and backward")
