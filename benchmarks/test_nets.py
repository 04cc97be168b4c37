"Windows against naive stacking, batches against a plain Dataset and DataLoader, in the same run, the same numbers first; data path of an LSTM step"
import warnings
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch", reason="pip install 'tradenb[nets]'")

from tradenb.models.windows import Batches, Windows, moments  # noqa: E402

WINDOW, FEATURES, NAMES = 90, 14, 500


@pytest.fixture(scope="module")
def features() -> pd.DataFrame:
    "14 features of 500 names over 400 sessions"
    days = pd.bdate_range("2020-01-01", periods=400, name="session", unit="us")
    index = pd.MultiIndex.from_product([days, [f"S{i:03d}" for i in range(NAMES)]], names=["session", "symbol"])
    return pd.DataFrame(np.random.default_rng(0).normal(size=(len(index), FEATURES)), index, [f"f{i}" for i in range(FEATURES)])


@pytest.fixture(scope="module")
def windows(features): return Windows(features, WINDOW, *moments(features))


def best(f, rounds=5):
    "Seconds of the fastest of some rounds"
    times = []
    for _ in range(rounds):
        start = perf_counter()
        f()
        times.append(perf_counter() - start)
    return min(times)


class Ranker(torch.nn.Module):
    def __init__(self, hidden, layers):
        super().__init__()
        self.lstm, self.out = torch.nn.LSTM(FEATURES, hidden, layers, batch_first=True), torch.nn.Linear(hidden, 1)

    def forward(self, x): return self.out(self.lstm(x)[0][:, -1]).squeeze(-1)


def step(net, optimizer, x, y):
    optimizer.zero_grad()
    ((net(x) - y)**2).mean().backward()
    optimizer.step()


def stacked(features, mean, std):
    "What one would write: standardise, and stack the windows of each name"
    out = {}
    for symbol, rows in features.groupby(level="symbol"):
        x = np.nan_to_num(np.clip((rows.to_numpy(np.float32) - mean) / std, -5, 5))
        x = np.vstack([np.zeros((WINDOW - 1, FEATURES), np.float32), x])
        out[symbol] = np.stack([x[t:t + WINDOW] for t in range(len(rows))])
    return out


def test_windows_against_stacking(benchmark, features):
    mean, std = moments(features)
    ours, theirs = benchmark.pedantic(lambda: Windows(features, WINDOW, mean, std), rounds=3, warmup_rounds=1), stacked(features, mean, std)
    for s, symbol in enumerate(ours.symbols): assert np.array_equal(ours.view[s].numpy(), theirs[symbol])
    assert np.shares_memory(ours.view.numpy(), ours.values.numpy())
    written = sum(x.nbytes for x in theirs.values())
    del theirs
    mine, peer = best(lambda: Windows(features, WINDOW, mean, std).view), best(lambda: stacked(features, mean, std), 2)
    print(f"\n{len(features):,} windows of {WINDOW} x {FEATURES}: {mine * 1e3:.0f} ms and {ours.values.nbytes / 1e6:.0f} MB, no copy; stacked "
          f"{peer * 1e3:.0f} ms and {written / 1e6:.0f} MB; {peer / mine:.0f} times as fast")
    assert peer > 20 * mine


def test_data_path_of_a_full_step(benchmark, windows, features):
    "Hidden 128, 2 layers, 500 names a session: what an epoch spends on its batches, against what it spends on steps"
    y = np.random.default_rng(1).normal(size=len(features))
    batches, net = Batches(windows, windows.rows(features.index), y), Ranker(128, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    batch = next(batches.epoch(0))
    feeding = best(lambda: [None for _ in batches.epoch(0)], 3) / len(batches)
    benchmark.pedantic(lambda: [None for _ in batches.epoch(0)], rounds=1)
    stepping = best(lambda: step(net, optimizer, batch.x, batch.y), 3)
    print(f"\nLSTM step, hidden 128 x 2, {NAMES} windows of {WINDOW} x {FEATURES}, {torch.get_num_threads()} threads: {stepping * 1e3:.0f} ms; "
          f"its batch {feeding * 1e3:.2f} ms, {feeding / (feeding + stepping):.2%} of both")
    assert feeding < .05 * (feeding + stepping)


class PerSample(torch.utils.data.Dataset):
    "One window an item, as in every tutorial"
    def __init__(self, windows, at, y): self.x, self.pad, self.at, self.y = windows.values.numpy(), windows.window, at, y
    def __len__(self): return len(self.at)
    def __getitem__(self, i):
        s, t = self.at[i]
        return torch.from_numpy(self.x[s, t:t + self.pad]), self.y[i]


@pytest.mark.parametrize("window", [WINDOW, 10])
def test_batches_against_a_dataloader(benchmark, features, window):
    "Hidden 32: what it takes to be fed, alone and with the step that follows"
    warnings.filterwarnings("ignore")
    windows = Windows(features.loc[:features.index[40 * NAMES - 1][0]], window, *moments(features))
    at = np.argwhere(windows.seen).astype(np.int32)
    at = at[np.lexsort(at.T)]
    y = np.random.default_rng(1).normal(size=len(at)).astype(np.float32)
    batches = Batches(windows, at, y, shuffle=False)
    loader = torch.utils.data.DataLoader(PerSample(windows, at, y), batch_size=NAMES)
    for ours, (x, label) in zip(batches.epoch(0), loader, strict=True): assert torch.equal(ours.x, x) and torch.equal(ours.y, label)
    net = Ranker(32, 1)
    optimizer = torch.optim.AdamW(net.parameters())

    def feed(given): return lambda: [None for _ in given()]
    def train(given): return lambda: [step(net, optimizer, b[0], b[1]) for b in given()]
    benchmark.pedantic(feed(lambda: batches.epoch(0)), rounds=3)
    mine, peer = (best(feed(g), 3) / len(batches) * 1e3 for g in (lambda: batches.epoch(0), lambda: iter(loader)))
    whole, whole_peer = (best(train(g), 2) / len(batches) * 1e3 for g in (lambda: batches.epoch(0), lambda: iter(loader)))
    print(f"\nbatch of {NAMES} windows of {window} x {FEATURES}: {mine:.2f} ms, Dataset and DataLoader {peer:.2f} ms, {peer / mine:.0f} times as fast; "
          f"with a step of hidden 32: {whole:.1f} ms, {whole_peer:.1f} ms, {whole_peer / whole:.2f} times as fast")
    assert peer > 3 * mine
