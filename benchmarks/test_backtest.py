"""Backtests of 503 stocks x 5 years against vectorbt, bt, backtrader and zipline: the same NAV first, then a ratio a line.

The real market has 1,000 sessions. It is extended to five years, 1,260 sessions, by its own first 260 under later dates, scaled to go on
from the last close; a name that is listed late stands at its first price until then, because the peers want a price in every session.
"""
import os
import subprocess
import sys
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import long, wide
from tradenb.execution.backtest import run, step
from tradenb.execution.bars import Bars
from tradenb.execution.broker import Sim
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.portfolio.limits import cap, net_cap, sector_cap, turnover_cap
from tradenb.portfolio.rules import rule
from tradenb.portfolio.sizing import gross, volatility_target
from tradenb.portfolio.stops import atr_stop, stop_loss, take_profit, trailing_stop
from tradenb.portfolio.switches import drawdown_breaker, kill_switch
from tradenb.portfolio.weights import ewma, filter_negative, top_bottom

CASH = 100_000.0
COLUMNS = "open", "high", "low", "close", "volume"


def five_years(panel, sessions=1260):
    "The columns of a market in matrices, with a price for every name in every session, and the market made of them"
    frames = {c: wide(panel, c).ffill().bfill() for c in COLUMNS}
    n, more = len(frames["close"]), sessions - len(frames["close"])
    days = pd.bdate_range("2014-01-02", periods=sessions, unit="us", name="session")
    scale = frames["close"].iloc[-1] / frames["close"].iloc[0]
    frames = {c: pd.concat([f, f.iloc[1:more + 1] * (1 if c == "volume" else scale)]).set_axis(days) for c, f in frames.items()}
    assert len(frames["close"]) == sessions == n + more
    return frames, long(**frames)


@pytest.fixture(scope="module")
def market(panel503):
    "Bars, opens, closes, weights that change every session, and scores"
    frames, panel = five_years(panel503)
    opens, closes = frames["open"], frames["close"]
    scores = pd.DataFrame(np.random.default_rng(0).normal(0, 0.01, closes.shape), closes.index, closes.columns)
    return Bars(panel), opens, closes, scores.div(scores.abs().sum(axis=1), axis=0), scores


def whole_line(names, watched=None):
    "All fourteen: construction, smoothing, size, caps, stops, and two switches, of which the last looks and does not fire"
    sectors = {s: f"S{i % 11}" for i, s in enumerate(names)}
    rules = [filter_negative(k=38), ewma(0.15), volatility_target(), cap(), sector_cap(0.25, sectors), net_cap(0.5), gross(), turnover_cap(0.5),
             stop_loss(0.08), trailing_stop(0.1), atr_stop(), take_profit(0.2), drawdown_breaker(0.9, 0.5, 0.5),
             kill_switch(sigma=50.0, drawdown=0.99, sharpe_window=None)]
    return rules if watched is None else [*rules, watched]


def seconds(f, rounds=5):
    def once():
        start = perf_counter()
        f()
        return perf_counter() - start
    return min(once() for _ in range(rounds))


def raced(ours, *theirs, rounds=4):
    "Best times of each, in turns, so that a busy machine is busy for all of them"
    times = [[seconds(f, 1) for f in (ours, *theirs)] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def agree(ours, theirs): assert np.abs(ours.to_numpy() / theirs.to_numpy() - 1).max() < 1e-10


def vectorbt(price, closes, weights):
    vbt = pytest.importorskip("vectorbt", reason="pip install tradenb[peers]")
    return vbt.Portfolio.from_orders(closes, size=weights, size_type="targetpercent", price=price, group_by=True, cash_sharing=True,
                                     call_seq="auto", init_cash=CASH, freq="1D")


def test_weights_against_vectorbt(benchmark, market):
    bars, opens, closes, weights, _ = market
    shifted = weights.shift(1)
    agree(run(weights, bars, cash=CASH).nav, vectorbt(opens, closes, shifted).value())
    agree(run(weights, bars, cash=CASH, fill="next_close").nav, vectorbt(closes, closes, shifted).value())
    agree(run(weights, bars, cash=CASH, fill="same_close").nav, vectorbt(closes, closes, weights).value())
    mine, orders, value = raced(lambda: run(weights, bars).nav, lambda: vectorbt(opens, closes, shifted), lambda: vectorbt(opens, closes, shifted).value())
    benchmark.pedantic(run, (weights, bars), rounds=3)
    print(f"\nweights of {closes.shape[1]} names x {len(closes)} sessions, no costs: {mine * 1e3:.0f} ms; vectorbt's from_orders {orders * 1e3:.0f} ms, "
          f"{orders / mine:.2f} times ours; with .value() {value * 1e3:.0f} ms, {value / mine:.2f} times ours")
    assert mine < 1.5 * orders


@pytest.mark.parametrize("costs", [Costs.ranker(), Costs.realistic()], ids=["ranker", "realistic"])
def test_all_rules_stops_and_costs_against_vectorbt_without_any(benchmark, market, costs):
    "vectorbt gets weights, and charges nothing; ours makes its weights by fourteen rules, and pays"
    bars, opens, closes, weights, scores = market
    rules, seen = whole_line(closes.columns), {}
    def watched(asked, state):
        seen[state.session] = asked.copy()
        return asked
    ledger = run(scores, bars, costs, rules=whole_line(closes.columns, watched))
    asked = pd.DataFrame.from_dict(seen, orient="index", columns=ledger.symbols).reindex(closes.index)[closes.columns]
    agree(run(asked, bars, cash=CASH).nav, vectorbt(opens, closes, asked.shift(1)).value())
    assert run(scores, bars, costs, rules=rules).nav.tolist() == ledger.nav.tolist() and "fired" not in ledger.last.memory.get("kill_switch", {})
    assert all((ledger.last.memory[k] != 0).any() for k in ("stop_loss", "trailing_stop")) and len(ledger.fills) > 100_000
    shifted = asked.shift(1)
    mine, orders, value = raced(lambda: run(scores, bars, costs, rules=rules), lambda: vectorbt(opens, closes, shifted),
                                lambda: vectorbt(opens, closes, shifted).value())
    benchmark.pedantic(run, (scores, bars, costs), dict(rules=rules), rounds=3)
    print(f"\n{len(rules)} rules and {costs!r}: {mine * 1e3:.0f} ms, {len(ledger.fills):,} fills; vectorbt's costless from_orders on the same weights "
          f"{orders * 1e3:.0f} ms, {orders / mine:.2f} times ours; with .value() {value * 1e3:.0f} ms, {value / mine:.2f} times ours")
    assert mine < 2.5 * value


def test_weights_against_bt(market):
    bt = pytest.importorskip("bt", reason="pip install tradenb[peers]")
    bars, _, closes, weights, scores = market
    daily = bt.Strategy("daily", [bt.algos.RunDaily(run_on_first_date=True), bt.algos.WeighTarget(weights), bt.algos.Rebalance()])
    test = bt.Backtest(daily, closes, initial_capital=CASH, integer_positions=False, progress_bar=False)
    peer = seconds(test.run, 1)
    agree(run(weights, bars, cash=CASH, fill="same_close").nav, test.strategy.values.iloc[1:])   # it opens the day before
    mine, full = seconds(lambda: run(weights, bars).nav), seconds(lambda: run(scores, bars, Costs.ranker(), rules=whole_line(closes.columns)), 3)
    print(f"\nbt {peer:.1f} s: {peer / mine:.0f} times ours ({mine * 1e3:.0f} ms); {peer / full:.0f} times ours with 14 rules and costs ({full * 1e3:.0f} ms)")
    assert peer / mine >= 25


def through_backtrader(closes, weights):
    "NAV by session of weights that are traded at the close that decides them, and the seconds it took"
    bt = pytest.importorskip("backtrader", reason="it is no peer of the environment; pip install backtrader")
    asked = weights.to_numpy()

    class Daily(bt.Strategy):
        def __init__(self): self.nav = []
        def next(self):
            i, nav = len(self) - 1, self.broker.getvalue()
            self.nav.append(nav)
            moves = [(w * nav / d.close[0] - self.getposition(d).size, d) for w, d in zip(asked[i].tolist(), self.datas, strict=True)]
            for size, d in sorted(moves, key=lambda x: x[0]):   # who sells first has the money to buy
                (self.buy if size > 0 else self.sell)(data=d, size=abs(size))

    engine = bt.Cerebro(stdstats=False)
    engine.broker.set_cash(CASH)
    engine.broker.set_coc(True)
    engine.broker.set_checksubmit(False)
    engine.addstrategy(Daily)
    for name in closes:
        bars = pd.DataFrame({c: closes[name] for c in ("open", "high", "low", "close")}).assign(volume=1e9, openinterest=0)
        engine.adddata(bt.feeds.PandasData(dataname=bars), name=name)
    start = perf_counter()
    found, = engine.run()
    return pd.Series(found.nav, closes.index), perf_counter() - start


def test_weights_against_backtrader(market, names=50):
    _, _, closes, weights, _ = market
    some, part = closes.iloc[:, :names], weights.iloc[:, :names].div(weights.iloc[:, :names].abs().sum(axis=1), axis=0) * 0.9
    nav, peer = through_backtrader(some, part)
    bars = Bars(long(close=some))
    agree(run(part, bars, cash=CASH, fill="same_close").nav, nav)
    mine = seconds(lambda: run(part, bars, fill="same_close").nav)
    print(f"\nbacktrader on {names} names {peer:.1f} s: {peer / mine:.0f} times ours ({mine * 1e3:.0f} ms)")
    assert peer / mine >= 25


def _one(bars, scores, params):
    "NAV at the end for one set of parameters"
    k, alpha, target, most, stop = params
    rules = [filter_negative(k=k), ewma(alpha), volatility_target(target), cap(most), gross(), stop_loss(stop)]
    return run(scores, bars, Costs.ranker(), rules=rules).last.book.nav


def _many(bars, scores, sets): return [_one(bars, scores, params) for params in sets]


def test_a_sweep_of_a_thousand(market, sessions=252):
    "One market, sent to each worker once; the same thousand accounts, with one worker and with two"
    joblib = pytest.importorskip("joblib")
    bars, _, closes, _, scores = market
    year = Bars(long(**{c: wide(bars._panel, c).iloc[:sessions] for c in ("open", "close")}))
    rng, some = np.random.default_rng(3), scores.iloc[:sessions]
    sets = [(int(rng.integers(5, 60)), *rng.uniform((0.05, 0.05, 0.01, 0.03), (1.0, 0.2, 0.1, 0.2)).tolist()) for _ in range(1000)]
    took, found = {}, {}
    for workers in (1, 2):
        with joblib.parallel_config("loky", n_jobs=workers), joblib.Parallel() as pool:
            pool(joblib.delayed(_many)(year, some, sets[:1]) for _ in range(2 * workers))   # they start, and compile
            start = perf_counter()
            found[workers] = sum(pool(joblib.delayed(_many)(year, some, sets[i::8 * workers]) for i in range(8 * workers)), [])
            took[workers] = perf_counter() - start
    assert sorted(found[1]) == sorted(found[2]) and len({*found[1]}) > 990
    print(f"\n1,000 sets of parameters on {closes.shape[1]} names x {sessions} sessions: {took[1]:.1f} s with 1 worker, {took[2]:.1f} s with 2, "
          f"{took[1] / took[2]:.2f} times as fast ({os.cpu_count()} cores)")
    assert took[2] < 1.2 * took[1]


LARGE = """
import gc, resource, sys
import numpy as np, pandas as pd
from tradenb.core.panel import long
from tradenb.execution.backtest import run
from tradenb.execution.bars import Bars
from tradenb.execution.costs import Costs
from tradenb.portfolio.sizing import gross, volatility_target
from tradenb.portfolio.weights import ewma, filter_negative
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def now(): gc.collect(); return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
n, m = int(sys.argv[1]), int(sys.argv[2])
rng, days = np.random.default_rng(0), pd.bdate_range("2000-01-03", periods=n, unit="us")
names = [f"S{i:04d}" for i in range(m)]
close = np.exp(rng.normal(0, 0.02, (n, m)).cumsum(axis=0)) * 50
frame = lambda x: pd.DataFrame(x, days, names)
panel = long(open=frame(close * np.exp(rng.normal(0, 0.005, (n, m)))), close=frame(close), volume=frame(np.full((n, m), 1e6)))
scores = frame(rng.normal(0, 0.01, (n, m)))
del close
bars = Bars(panel)
bars.conditions(bars.sessions[1], "open", bars.symbols)
bars.price(bars.sessions[1], "open", bars.symbols)
market, before = peak(), now()
ledger = run(scores, bars, Costs.realistic(), rules=[filter_negative(k=300), ewma(), volatility_target(), gross()])
after, whole = now(), peak()
fills, held = sum(len(l.done) for l in ledger.lines), sum(len(l.held) for l in ledger.lines)
lent = sum(len(e.each) for l in ledger.lines for e in l.events if e.each is not None)
print(fills, held, lent, market, before, after, whole)
"""


@pytest.mark.parametrize(("sessions", "names"), [(5040, 3000)])
def test_memory_of_twenty_years(sessions, names):
    "A fill is 28 bytes (which, shares, price, cost), a name held at a close 12 (which, mark), one borrowed for a night 16 (who, dollars)"
    said = subprocess.run([sys.executable, "-c", LARGE, str(sessions), str(names)], capture_output=True, text=True, check=True).stdout
    fills, held, lent, market, before, after, whole = map(float, said.split())
    bound = (28 * fills + 12 * held + 16 * lent) / 2**20
    print(f"\n{names:,} names x {sessions:,} sessions: peak {whole:,.0f} MiB, of which the market {market:,.0f} MiB at its peak and {before:,.0f} MiB to keep; "
          f"the account is {after - before:,.0f} MiB for {fills:,.0f} fills, {held:,.0f} closes of what it held and {lent:,.0f} nights of "
          f"what it borrowed ({bound:,.0f} MiB by their bytes)")
    assert after - before < 1.2 * bound + 150


@rule
def my_sides(k: int = 38, side: float = 0.5):
    def weigh(scores, state):
        out, order = np.zeros(len(scores)), np.argsort(scores)
        out[order[-k:]], out[order[:k]] = side / k, -side / k
        return out
    return weigh


@rule
def my_ewma(alpha: float = 0.15):
    def weigh(weights, state):
        state.memory["mine"] = alpha * weights + (1 - alpha) * state.memory.get("mine", state.held)
        return state.memory["mine"].copy()
    return weigh


@rule(always=True)
def my_stop(fixed: float = 0.08):
    def weigh(weights, state):
        gain = np.sign(state.held) * (state.price / state.entry - 1)
        return np.where((state.held != 0) & (gain <= -fixed + 1e-12) & (weights * state.held > 0), 0.0, weights)
    return weigh


def test_rules_of_a_notebook_against_the_built_in_ones(market):
    "Ten lines of NumPy each, written in a cell"
    bars, _, _, _, scores = market
    built, own = [top_bottom(k=38), ewma(), stop_loss(0.08, cooldown=0)], [my_sides(), my_ewma(), my_stop()]
    one, other = (run(scores, bars, Costs.ranker(), rules=rules).nav for rules in (built, own))
    agree(one, other)
    ours, theirs = raced(lambda: run(scores, bars, Costs.ranker(), rules=built), lambda: run(scores, bars, Costs.ranker(), rules=own))
    print(f"\nrules of a notebook {theirs * 1e3:.0f} ms, the built-in ones {ours * 1e3:.0f} ms: {theirs / ours:.2f} times")
    assert theirs < 3 * ours


def test_a_thousand_sessions_from_disk(market, tmp_path):
    bars, _, _, weights, _ = market
    part = Bars(long(**{c: wide(bars._panel, c).iloc[:1000] for c in ("open", "close")}))
    asked, kept = weights.iloc[:1000], Ledger.open(tmp_path)
    ledger = run(asked, part)
    for day in part.sessions: step(kept, day, part, asked.loc[day], Sim(part))
    again, took = Ledger.open(tmp_path), seconds(lambda: Ledger.open(tmp_path), 3)
    assert again.nav.tolist() == ledger.nav.tolist()
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    print(f"\n{len(again.lines)} sessions of {len(again.fills):,} fills from {size / 1e6:.0f} MB in {took:.2f} s")
