"What all dialects share: the tape they tell, and how a share of each day is counted"
import numpy as np
import pandas as pd

NEW_YORK = "America/New_York"


def flat(bars):
    "A panel or flat rows as flat rows, by symbol and session"
    frame = bars if "session" in bars else bars.reset_index()
    return frame.assign(session=pd.to_datetime(frame.session)).sort_values(["symbol", "session"], ignore_index=True)


def events(bars, actions=None):
    "Rows (session, symbol, split, dividend) of all corporate actions: those given, else those on the bars themselves"
    told = flat(bars) if actions is None else actions
    told = told.reindex(columns=["session", "symbol", "split", "dividend"]).fillna({"split": 1., "dividend": 0.})
    told = told.assign(session=pd.to_datetime(told.session))
    return told[(told.split != 1) | (told.dividend != 0)].sort_values(["session", "symbol"], ignore_index=True)


def since(days, told):
    "For each day, the product of one name's later splits, by the slow and plain way"
    return np.array([np.prod([s for d, s in zip(told.session, told.split, strict=True) if d > day]) for day in days])


def table(n=3, m=8, start="2020-08-24", seed=0):
    "m sessions of n names on the tape, with one split and one dividend each"
    from tradenb.core.calendar import sessions
    rng = np.random.default_rng(seed)
    days = sessions(start, pd.Timestamp(start) + pd.Timedelta(days=2 * m + 10))[:m]
    parts = []
    for i in range(n):
        close = np.round(100 * np.exp(rng.normal(0, .02, m).cumsum()), 2)
        open_ = np.round(close * np.exp(rng.normal(0, .005, m)), 2)
        split, dividend = np.ones(m), np.zeros(m)
        split[(m // 2 + i) % m], dividend[(m // 3 + i) % m] = (2., 4., .1)[i % 3], .25
        ratio = split.cumprod()
        price = np.array([open_, np.maximum(open_, close) + .5, np.minimum(open_, close) - .5, close]) / ratio
        parts.append(pd.DataFrame({"session": days, "symbol": f"S{i:03d}", **dict(zip(("open", "high", "low", "close"), np.round(price, 2), strict=True)),
                                   "volume": np.round(rng.uniform(1e5, 1e6, m) * ratio) * 10, "split": split, "dividend": dividend}))
    return pd.concat(parts, ignore_index=True)


COLUMNS = ["session", "symbol", "open", "high", "low", "close", "volume"]


def same(found, bars, first, last, columns=(*COLUMNS, "split", "dividend")):
    "Raises unless `found` is the tape of `bars` from `first` to `last`, to the last digit"
    want = bars[bars.session.between(pd.Timestamp(first), pd.Timestamp(last))].sort_values(["session", "symbol"], ignore_index=True)
    pd.testing.assert_frame_equal(found[list(columns)], want[list(columns)], check_exact=True, check_dtype=False)
