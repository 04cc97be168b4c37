"""A training that is killed at any moment, by any means, ends with the same bits; two processes do what one does; and the windows are those
that anybody would cut out by hand."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="pip install 'tradenb[nets]'")

from tradenb.models import trainer  # noqa: E402
from tradenb.models.checkpoints import FILE, read_checkpoint  # noqa: E402
from tradenb.models.trainer import Training, scores, train  # noqa: E402
from tradenb.models.windows import Batches, Windows, moments  # noqa: E402

TOLD = dict(epochs=5, learning_rate=.01, keep=2, average=True, patience=9, schedule="plateau", weight_decay=.01, accumulate=2, threads=1)


def market(sessions=24, symbols=6, features=3, seed=0, holes=0.):
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2024-01-01", periods=sessions, name="session", unit="us")
    index = pd.MultiIndex.from_product([days, [f"S{i}" for i in range(symbols)]], names=["session", "symbol"])
    index = index[rng.random(len(index)) >= holes]
    X = pd.DataFrame(rng.normal(size=(len(index), features)), index, [f"f{i}" for i in range(features)])
    return X.mask(rng.random(X.shape) < holes), pd.Series(X["f0"].fillna(0) + rng.normal(size=len(index)), index)


class Net(torch.nn.Module):
    "A small LSTM with dropout, so that an epoch draws random numbers, and a buffer of whole numbers"
    def __init__(self, dropout=.3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.lstm, self.drop, self.out = torch.nn.LSTM(3, 4, batch_first=True), torch.nn.Dropout(dropout), torch.nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training: self.seen += len(x)
        return self.out(self.drop(self.lstm(x)[0][:, -1])).squeeze(-1)


def square(pred, true, dates, weight):
    "Mean over sessions of the weighted square"
    total = 0.
    for d in dates.unique(): total = total + (weight * (pred - true)**2)[dates == d].sum() / weight[dates == d].sum()
    return total / len(dates.unique())


def sets(**more):
    X, y = market(**more)
    windows = Windows(X, 4, *moments(X))
    at = windows.rows(X.index)
    early = at[:, 1] < 18
    return Batches(windows, at[early], y[early], sessions_per_batch=3, seed=1), Batches(windows, at[~early], y[~early], sessions_per_batch=4)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


# --- killed -----------------------------------------------------------------------------------------------------------------------
def _attempt(folder, moment):
    "In a process of its own: train into the folder, and die of SIGKILL at the `moment`-th call of the loss or of the file system"
    left = iter(range(moment, -1, -1))

    def mortal(f):
        def called(*args, **kwargs):
            if next(left, 1) == 0: os.kill(os.getpid(), 9)
            return f(*args, **kwargs)
        called.__qualname__ = f.__qualname__
        return called
    for name in "fsync", "replace", "open": setattr(os, name, mortal(getattr(os, name)))
    made = trainer.write_checkpoint

    def written(*args):   # once before the file is there, and once after
        mortal(made)(*args)
        mortal(list)()
    trainer.write_checkpoint = written
    net = Net()
    train(net, *sets(), mortal(square), Training(**TOLD), folder)
    np.savez(Path(folder)/"final.npz", **{k: v.numpy() for k, v in net.state_dict().items()})


def _until_done(folder, seed):
    "One process of one thread; each child that it forks trains on from where the last one died, until its own random moment has come"
    train(Net(), *sets(), square, Training(**TOLD | dict(epochs=1)))   # what torch imports late is imported once
    rng, deaths, folder = np.random.default_rng(seed), 0, Path(folder)
    while not (folder/"final.npz").exists():
        if not (child := os.fork()):
            _attempt(folder, int(rng.integers(0, 24)) if deaths < 15 else 10**9)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFEXITED(status): assert os.WTERMSIG(status) == 9
        elif os.WEXITSTATUS(status): raise SystemExit("a child failed")
        deaths += os.WIFSIGNALED(status)
    return deaths


def test_killed_at_random_and_resumed_to_the_same_bits(tmp_path, root):
    whole = Net()
    history = train(whole, *sets(), square, Training(**TOLD), tmp_path/"whole")
    folders = [tmp_path/str(seed) for seed in range(4)]
    for folder in folders: folder.mkdir()
    code = f"from tests.test_trainer import _until_done; print(*[_until_done(f, i) for i, f in enumerate({list(map(str, folders))})])"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
                          capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert sum(map(int, done.stdout.split())) >= 8
    for folder in folders:
        with np.load(folder/"final.npz") as final:
            for name, v in whole.state_dict().items(): assert np.array_equal(final[name], v.numpy()), name
        rows = read_checkpoint(folder)[0]["rows"]
        assert pd.DataFrame(rows).drop(columns="seconds").equals(history.table.drop(columns="seconds").reset_index(drop=True))


def test_a_finished_training_is_not_trained_again(tmp_path):
    one, two = Net(), Net()
    first = train(one, *sets(), square, Training(**TOLD), tmp_path)
    before = (tmp_path/FILE).read_bytes()

    def never(*args): raise AssertionError("trained again")
    never.__qualname__ = square.__qualname__
    again = train(two, *sets(), never, Training(**TOLD), tmp_path)
    assert same(one, two) and again.table.equals(first.table) and (tmp_path/FILE).read_bytes() == before


@pytest.mark.parametrize("change, said", [
    (dict(seed=5), "its batches was"), (dict(holes=.1), "its batches was")])
def test_other_data_does_not_go_on_from_the_folder(tmp_path, change, said):
    train(Net(), *sets(), square, Training(**TOLD), tmp_path)
    with pytest.raises(ValueError, match=said): train(Net(), *sets(**change), square, Training(**TOLD), tmp_path)
    with pytest.raises(ValueError, match="its first weights was"): train(Net(seed=9), *sets(), square, Training(**TOLD), tmp_path)


# --- several processes ------------------------------------------------------------------------------------------------------------
def test_two_processes_do_what_one_does(tmp_path):
    "19 learnt sessions in batches of three, so that one rank has two of them, the other one, and in the last batch none"
    told = TOLD | dict(epochs=2, accumulate=1)
    X, y = market()
    windows = Windows(X, 4, *moments(X))
    at = windows.rows(X.index)
    early = at[:, 1] < 19
    batches, valid = Batches(windows, at[early], y[early], sessions_per_batch=3), Batches(windows, at[~early], y[~early], sessions_per_batch=3)
    one, two = Net(dropout=0.), Net(dropout=0.)
    alone = train(one, batches, valid, square, Training(**told))
    both = train(two, batches, valid, square, Training(**told, ranks=2), tmp_path)
    columns = ["loss", "valid", "lr", "grad_norm"]
    np.testing.assert_allclose(both.table[columns], alone.table[columns], rtol=1e-4, atol=1e-6)
    for name, v in one.named_parameters(): torch.testing.assert_close(two.get_parameter(name), v, rtol=1e-3, atol=1e-5)
    assert both.device == "2 x cpu"


# --- the loop ---------------------------------------------------------------------------------------------------------------------
def test_nothing_of_torch_is_changed_for_others():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    threads, net = torch.get_num_threads(), Net()
    torch.manual_seed(3)
    train(net, *sets(), square, Training(**TOLD))
    assert torch.equal(torch.rand(2), expected) and torch.get_num_threads() == threads and not net.training


def test_half_precision_on_a_cpu_is_near_and_not_the_same():
    def flat():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1), torch.nn.Flatten(0))
    full, half = flat(), flat()
    exact = train(full, *sets(), square, Training(**TOLD))
    rough = train(half, *sets(), square, Training(**TOLD, amp="bfloat16"))
    assert not same(full, half)
    np.testing.assert_allclose(rough.table["loss"], exact.table["loss"], rtol=.05)


@pytest.mark.parametrize("metric", ["rank_ic", "loss"])
def test_the_best_epoch_is_what_is_left(metric):
    "Weights, by scoring the validation again with what is left in the module"
    batches, valid = sets()
    net = Net()
    went = train(net, batches, valid, square, Training(**TOLD | dict(epochs=8, average=False, keep=1, metric=metric)))
    pred = pd.Series(scores(net, valid.windows, valid.at), valid.windows.index(valid.at))
    true = pd.Series(valid._rows[1].double().numpy(), pred.index)
    if metric == "rank_ic":
        from tradenb.validation.prediction import ic
        found, best = ic(pred, true).mean(), went.table["valid"].max()
    else:
        found, best = ((pred - true)**2).groupby("session").mean().mean(), went.table["valid"].min()
    assert found == pytest.approx(best, rel=1e-5) and went.table["valid"][went.best] == best


def test_a_gradient_that_is_no_number_stops_before_it_is_a_weight():
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x
        @staticmethod
        def backward(ctx, g): return g * float("nan")
    net = Net()
    with pytest.raises(FloatingPointError, match=r"the gradient is nan in epoch 0, batch 1 of 6 \(2024-01"):
        train(net, *sets(), lambda p, t, d, w: square(Cliff.apply(p), t, d, w), Training(**TOLD))
    assert same(net, Net())


# --- windows ----------------------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0., .3]), st.integers(0, 99))
def test_windows_are_what_one_would_cut_out_by_hand(window, sessions, symbols, holes, seed):
    X, _ = market(sessions, symbols, 3, seed, holes)
    if not len(X): return
    mean, std = moments(X)
    windows, raw = Windows(X, window, mean, std), Windows(X, window)
    days, flat = X.index.get_level_values("session").unique().sort_values(), X.astype(np.float32)
    at = windows.rows(X.index)
    got, plain = windows.take(at).numpy(), raw.take(at).numpy()
    assert np.shares_memory(windows.view.numpy(), windows.values.numpy())
    assert np.array_equal(windows.view[at[:, 0], at[:, 1]].numpy(), got)
    for row, (session, symbol) in enumerate(X.index):
        span = days[max(days.get_loc(session) - window + 1, 0):days.get_loc(session) + 1]
        rows = flat.reindex(pd.MultiIndex.from_product([span, [symbol]], names=X.index.names)).to_numpy()
        rows = np.vstack([np.full((window - len(rows), 3), np.nan, np.float32), rows])
        assert np.array_equal(plain[row], rows, equal_nan=True)
        assert np.array_equal(got[row], np.nan_to_num(np.clip((rows - mean) / std, -5, 5)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_every_target_once_an_epoch_with_its_own_window(per_batch, ranks, shuffle, seed):
    X, y = market(15, 5, 3, seed, .2)
    rng = np.random.default_rng(seed)
    y, w = y.mask(rng.random(len(y)) < .2), pd.Series(rng.integers(0, 3, len(y)), y.index)
    windows = Windows(X, 3)
    batches = Batches(windows, windows.rows(X.index), y, w, per_batch, shuffle, seed)
    rows = []
    for rank in range(ranks):
        for x, label, weight, dates in batches.epoch(4, rank, ranks):
            assert len(dates.unique_consecutive()) == len(dates.unique()) <= -(-per_batch // ranks)
            rows += [(d, lab, wt, *last) for d, lab, wt, last in zip(dates.tolist(), label.tolist(), weight.tolist(),
                                                                    x[:, -1].tolist(), strict=True)]
    counted = y[(w > 0) & y.notna()].index
    session = windows.rows(counted)[:, 1]
    expected = [(int(d), *map(float, (np.float32(y[i]), w[i], *X.loc[i].astype(np.float32)))) for d, i in zip(session, counted, strict=True)]
    assert sorted(map(str, rows)) == sorted(map(str, expected))
    one, two = ([b.dates.tolist() for b in batches.epoch(i)] for i in (2, 3))
    assert shuffle or one == two
