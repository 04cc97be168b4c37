"A backtest of changing weights against vectorbt and bt, in the same run, the same NAV first"
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import wide
from tradenb.execution.backtest import run
from tradenb.execution.costs import Costs
from tradenb.execution.ledger import Ledger
from tradenb.portfolio.limits import cap
from tradenb.portfolio.sizing import volatility_target
from tradenb.portfolio.weights import ewma, filter_negative

CASH = 100_000.0


@pytest.fixture(scope="module")
def market(panel503):
    "Names with a bar in every session, as the peers need them: panel, opens, closes, and weights that change every session"
    whole = panel503.groupby(level="symbol").size()
    panel = panel503[panel503.index.get_level_values("symbol").isin(whole.index[whole == whole.max()])]
    opens, closes = wide(panel, "open"), wide(panel, "close")
    weights = pd.DataFrame(np.random.default_rng(0).normal(size=closes.shape), closes.index, closes.columns)
    return panel, opens, closes, weights.div(weights.abs().sum(axis=1), axis=0)


def seconds(f, rounds=5):
    def once():
        start = perf_counter()
        f()
        return perf_counter() - start
    return min(once() for _ in range(rounds))


def agree(ours, theirs):
    assert np.abs(ours.to_numpy() / theirs.to_numpy() - 1).max() < 1e-10


def test_backtest_against_vectorbt(benchmark, market, panel503):
    vbt = pytest.importorskip("vectorbt", reason="pip install tradenb[peers]")
    panel, opens, closes, weights = market

    def theirs(price, weights):
        return vbt.Portfolio.from_orders(closes, size=weights, size_type="targetpercent", price=price, group_by=True, cash_sharing=True,
                                         call_seq="auto", init_cash=CASH, freq="1D").value()

    agree(run(weights, panel, cash=CASH).nav, theirs(opens, weights.shift(1)))
    agree(run(weights, panel, cash=CASH, fill="next_close").nav, theirs(closes, weights.shift(1)))
    agree(run(weights, panel, cash=CASH, fill="same_close").nav, theirs(closes, weights))
    shifted = weights.shift(1)
    pairs = [(seconds(lambda: theirs(opens, shifted)), seconds(lambda: run(weights, panel).nav)) for _ in range(3)]
    benchmark.pedantic(run, (weights, panel), rounds=5)
    peer, mine = (min(times) for times in zip(*pairs, strict=True))
    print(f"\nrun on {closes.shape[1]} of {panel503.attrs['said']}, weights changing every session: {mine * 1e3:.0f} ms, "
          f"vectorbt {peer * 1e3:.0f} ms, {peer / mine:.2f} times as fast")
    assert mine < 1.25 * peer


def test_backtest_against_bt(market):
    bt = pytest.importorskip("bt", reason="pip install tradenb[peers]")
    panel, _, closes, weights = market

    def theirs():
        daily = bt.Strategy("daily", [bt.algos.RunDaily(run_on_first_date=True), bt.algos.WeighTarget(weights), bt.algos.Rebalance()])
        test = bt.Backtest(daily, closes, initial_capital=CASH, integer_positions=False, progress_bar=False)
        test.run()
        return test.strategy.values.iloc[1:]   # it opens the day before

    start = perf_counter()
    nav = theirs()
    peer = perf_counter() - start
    agree(run(weights, panel, cash=CASH, fill="same_close").nav, nav)
    mine = seconds(lambda: run(weights, panel).nav)
    print(f"\nrun {mine * 1e3:.0f} ms, bt {peer * 1e3:.0f} ms, {peer / mine:.0f} times as fast")
    assert peer / mine >= 10


def test_the_whole_line_of_rules_with_costs(benchmark, market):
    "The ranker's rules and costs, which no peer has"
    panel, _, _, weights = market
    rules = [filter_negative(), ewma(), cap(), volatility_target()]
    ledger = benchmark.pedantic(run, (weights, panel, Costs.ranker()), dict(rules=rules), rounds=3)
    print(f"\nwith costs and {len(rules)} rules: {benchmark.stats.stats.min * 1e3:.0f} ms, {len(ledger.fills):,} fills")


def test_a_thousand_sessions_from_disk(benchmark, market, tmp_path):
    panel, _, _, weights = market
    ledger, kept = run(weights, panel), Ledger.open(tmp_path)
    from tradenb.execution.backtest import step
    from tradenb.execution.broker import Bars, Sim
    bars = Bars(panel)
    for day in bars.sessions: step(kept, day, bars, weights.loc[day], Sim(bars))
    again = benchmark.pedantic(Ledger.open, (tmp_path,), rounds=3)
    assert again.nav.tolist() == ledger.nav.tolist()
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    print(f"\n{len(again.lines)} sessions of {len(again.fills):,} fills from {size / 1e6:.0f} MB in {benchmark.stats.stats.min:.2f} s")
