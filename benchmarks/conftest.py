"What every benchmark is measured on: 503 stocks x 1000 sessions, real where there are any"
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tradenb.core.panel import check_panel, long

REAL = "us_stocks_503_daily_2015_2018.parquet"


@pytest.fixture(scope="session")
def panel503() -> pd.DataFrame:
    """Bars (open, high, low, close, volume, float64) by (session, symbol), names listed late among them.

    `panel503.attrs["said"]` tells which market it is: the real one in the folder TRADENB_REAL_DATA, else a random walk.
    """
    file = Path(os.environ.get("TRADENB_REAL_DATA", "")) / REAL
    bars = _real(file) if file.is_file() else _walk()
    sessions, symbols = (bars.index.get_level_values(n).nunique() for n in bars.index.names)
    bars.attrs["said"] = f"{symbols} {'real' if file.is_file() else 'simulated'} stocks x {sessions} sessions, {len(bars):,} rows"
    return check_panel(bars)


def _real(file):
    raw = pd.read_parquet(file)
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    return raw.set_index(["session", "symbol"]).sort_index()[["open", "high", "low", "close", "volume"]].astype(float)


def _walk(sessions=1000, symbols=503):
    rng = np.random.default_rng(0)
    days, names = pd.bdate_range("2015-01-02", periods=sessions, unit="us"), [f"S{n:03d}" for n in range(symbols)]
    shape = sessions, symbols
    close = 50 * np.exp(rng.normal(0, 0.02, shape).cumsum(axis=0))
    open_ = close * np.exp(rng.normal(0, 0.005, shape))
    volume = rng.lognormal(13, 0.5, shape).round()
    listed = np.arange(sessions)[:, None] >= np.where(np.arange(symbols) < 10, rng.integers(1, sessions, symbols), 0)
    matrices = dict(open=open_, high=np.maximum(open_, close) * 1.004, low=np.minimum(open_, close) * 0.996, close=close, volume=volume)
    return long(**{name: pd.DataFrame(np.where(listed, x, np.nan), days, names) for name, x in matrices.items()})
