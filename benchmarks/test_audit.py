"The gate on 503 x 1000, beside pandas asking three of its thirty questions by groupby"
import numpy as np
import pytest

from tradenb.core.calendar import sessions
from tradenb.data.differences import compare
from tradenb.data.quality import audit


@pytest.fixture(scope="module")
def torn(panel503):
    "The panel with five names' week gone, a price halved, and rows there twice"
    rng = np.random.default_rng(0)
    flat = panel503.reset_index()
    days, names = flat["session"].unique(), rng.choice(flat["symbol"].unique(), 6, replace=False)
    gone = flat["symbol"].isin(names[:5]) & flat["session"].isin(days[500:505])
    flat.loc[(flat["symbol"] == names[5]) & (flat["session"] == days[300]), ["open", "close"]] /= 2
    return flat[~gone]


def by_pandas(flat):
    "Missing sessions, jumps and duplicates, one name after the other"
    days, found = sessions(flat["session"].min(), flat["session"].max()), {}
    for name, rows in flat.groupby("symbol"):
        rows = rows.sort_values("session")
        life = days[(days >= rows["session"].iloc[0]) & (days <= rows["session"].iloc[-1])]
        missing = len(life.difference(rows["session"]))
        jumps = int((rows["close"].pct_change(fill_method=None).abs() > 0.25).sum())
        found[name] = missing, jumps, int(rows["session"].duplicated().sum())
    return found


def test_audit_of_everything(benchmark, torn):
    found = benchmark.pedantic(audit, (torn,), rounds=3, warmup_rounds=1)
    assert found.status == "RED" and (found.findings["check"] == "common gap").sum() == 5


def test_pandas_by_groupby_three_checks(benchmark, torn):
    found = benchmark.pedantic(by_pandas, (torn,), rounds=2)
    lost = audit(torn).findings
    lost = lost[lost["check"].isin(["missing sessions", "common gap"])].groupby("symbol")["count"].sum()
    assert {name: of[0] for name, of in found.items() if of[0]} == lost.to_dict()  # the same sessions missing


def test_compare_two_vendors(benchmark, panel503): benchmark.pedantic(compare, (panel503, panel503), rounds=2)
