"A whole chain of 20,000 contracts: forwards, volatilities and Greeks against py_vollib's loop, then all features of it under a quarter of a second"
import os
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest

from tradenb.data.black import price
from tradenb.data.chains import priced, years
from tradenb.data.quote_pages import snapshots
from tradenb.features.gex import summary
from tradenb.features.surface import surface_features
from tradenb.features.variance import model_free_vol

FILE, SAMPLE, LIMIT = "option_chains_spx_spy_xsp_4_snapshots.parquet", 400, .25


@pytest.fixture(scope="module")
def chain():
    "The S&P 500 options of 2023-09-14, 19,920 contracts; where there are no real data, a SIMULATED chain of that size"
    file = Path(os.environ.get("TRADENB_REAL_DATA", "")) / FILE
    if not file.is_file(): return made(), "simulated"
    found = snapshots(file)
    return found[(found["underlying"] == "SPX") & (found["session"] == "2023-09-14")].reset_index(drop=True), "real"


def made():
    days = pd.bdate_range("2024-01-17", periods=40, unit="us").drop(pd.Timestamp("2024-02-19"), errors="ignore")
    grid = pd.MultiIndex.from_product([days, np.linspace(3000, 6000, 256).round(), ["C", "P"]], names=["expiry", "strike", "right"])
    out = grid.to_frame(index=False).astype({"right": "str"})
    out = out.assign(session=pd.Timestamp("2024-01-16"), underlying="SPX", root="SPXW", open_interest=100., underlying_price=4500.)
    t = years(out)
    k = np.log(out["strike"] / 4500)
    mid = price(4500, out["strike"], t, np.exp(-.05 * t), .18 - .3 * k + .8 * k**2, out["right"])
    return out.assign(bid=np.floor(mid * 20 * .99) / 20, ask=np.ceil(mid * 20 * 1.01 + .5) / 20)


def seconds(f, rounds=1):
    "The least processor time of some rounds (nothing here runs beside it), and the answer"
    best = np.inf
    for _ in range(rounds):
        start = process_time()
        out = f()
        best = min(best, process_time() - start)
    return best, out


def loop(rows):
    "vollib, one contract after another: volatility, then five Greeks; the spot is the discounted forward"
    from vollib.black.greeks import analytical as g
    from vollib.black.implied_volatility import implied_volatility
    out = []
    for r in rows.itertuples():
        flag, rate = r.side, -np.log(r.discount) / r.years
        iv = implied_volatility(r.mid, r.forward, r.strike, rate, r.years, flag)
        out.append((iv, *(f(flag, r.forward, r.strike, r.years, rate, iv) for f in (g.delta, g.gamma, g.vega, g.theta, g.rho))))
    return pd.DataFrame(out, rows.index, ["iv", "delta", "gamma", "vega", "theta", "rho"])


def test_priced(benchmark, chain):
    rows, said = chain
    done = priced(rows)
    out = done["right"].eq("C") == (done["strike"] >= done["forward"])
    some = done[out & done["iv"].notna()].sample(SAMPLE, random_state=0)
    some = some.assign(side=some["right"].str.lower())
    took, theirs = seconds(lambda: loop(some))
    np.testing.assert_allclose(some["iv"], theirs["iv"], rtol=1e-8)
    np.testing.assert_allclose(some["vega"], theirs["vega"], rtol=1e-6)          # both a point
    each = took / SAMPLE * len(rows)
    benchmark.pedantic(priced, (rows,), rounds=3, warmup_rounds=1)
    ours = seconds(lambda: priced(rows), 7)[0]
    print(f"\n{len(rows):,} {said} contracts priced in {1e3 * ours:.0f} ms; vollib's loop {each:.1f} s (from {SAMPLE}), ratio {each / ours:.0f}")
    assert each / ours > 20


def everything(rows):
    p = priced(rows)
    return p, summary(p), surface_features(p), model_free_vol(p)


def test_chain_to_all_features(benchmark, chain):
    rows, said = chain
    p, gex, surface, vix = everything(rows)                                      # compiled, and the answers
    assert p["iv"].notna().mean() > .5 and np.isfinite(vix) and np.isfinite(gex.drop(["why"], errors="ignore").iloc[0])
    parts = {f.__name__: seconds(lambda f=f: f(p), 5)[0] for f in (summary, surface_features, model_free_vol)}
    parts = {"priced": seconds(lambda: priced(rows), 5)[0], **parts}
    benchmark.pedantic(everything, (rows,), rounds=3, warmup_rounds=1)
    best = seconds(lambda: everything(rows), 7)[0]
    told = ", ".join(f"{n} {1e3 * t:.0f}" for n, t in parts.items())
    print(f"\n{len(rows):,} {said} contracts to all features: {1e3 * best:.0f} ms ({told})")
    assert best < LIMIT
