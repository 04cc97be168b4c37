"The gate before real files, and against a slow and simple judge"

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.providers import fetch
from tradenb.data.quality import CHECKS, QualityError, audit, eligible
from tradenb.data.store import Store

DAYS = sessions("2023-06-01", "2024-06-28")


def market(n=12, days=DAYS, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"N{j:03d}" for j in range(n)]
    index = pd.MultiIndex.from_product([days, names], names=["session", "symbol"])
    close = (50 * np.exp(np.cumsum(rng.normal(0, 0.01, (len(days), n)), axis=0))).round(2).ravel()
    opened = (close * (1 + rng.normal(0, 0.002, close.size))).round(2)
    high, low = np.maximum(opened, close) + 0.1, np.minimum(opened, close) - 0.1
    return pd.DataFrame({"open": opened, "high": high, "low": low, "close": close, "volume": 1000.0}, index)


def at(panel, name, first, last=None):
    session, symbol = (panel.index.get_level_values(level) for level in panel.index.names)
    return (symbol == name) & (session >= DAYS[first]) & (session <= DAYS[last if last is not None else first])


def only(found, **of):
    rows = found.findings
    for column, value in of.items(): rows = rows[rows[column] == value]
    return rows


def test_clean_data_is_green_and_passes():
    found = audit(market())
    assert found.status == "GREEN" and found.findings.empty and found.quarantined == []
    assert audit(market(1)).status == "GREEN"
    found.raise_if_red()


SPOILED = {
    "missing sessions": lambda m: m[~at(m, "N003", 40, 44)],
    "no trades": lambda m: m.assign(volume=m["volume"].where(~at(m, "N003", 40, 44), 0.0)),
    "inconsistent bars": lambda m: m.assign(high=m["high"].where(~at(m, "N003", 40, 44), m["low"] / 2)),
    "frozen price": lambda m: m.assign(close=m["close"].where(~at(m, "N003", 40, 49), 50.0), open=m["open"].where(~at(m, "N003", 40, 49), 50.0),
                                       high=m["high"].where(~at(m, "N003", 40, 49), 90.0), low=m["low"].where(~at(m, "N003", 40, 49), 9.0)),
    "bad price": lambda m: m.assign(low=m["low"].where(~at(m, "N003", 40), -1.0)),
    "negative volume": lambda m: m.assign(volume=m["volume"].where(~at(m, "N003", 40), -5.0)),
    "split-like jump": lambda m: m.assign(**{c: m[c].where(~at(m, "N003", 40, 999 % len(DAYS)), m[c] / 2) for c in m.columns.drop("volume")}),
    "stale tail": lambda m: m[~at(m, "N003", len(DAYS) - 2, len(DAYS) - 1)],
}


@pytest.mark.parametrize("check", SPOILED)
def test_each_defect_is_found_where_it_is_and_quarantines_its_name(check):
    found = audit(SPOILED[check](market()))
    red = only(found, status="RED")
    assert red["check"].tolist() == [check] and red["symbol"].tolist() == ["N003"]
    assert found.status == "AMBER" and found.quarantined == ["N003"], "one name of twelve is quarantined, the rest goes on"
    assert "store.update(source, ['N003']" in red["cure"].item() or "another vendor" in red["cure"].item()


def test_amber_defects():
    base = market()
    slip = base.assign(close=base["close"].where(~at(base, "N003", 40), base["low"]), low=base["low"].where(~at(base, "N003", 40), base["low"] * 0.8))
    slip = slip.assign(close=slip["close"].where(~at(base, "N003", 40), slip["low"]))
    assert only(audit(slip), symbol="N003")[["check", "status"]].to_numpy().tolist() == [["outliers", "AMBER"]]
    full = base.assign(volume=base["volume"].where(~at(base, "N003", 40), 2**31 - 1))
    assert only(audit(full), symbol="N003")[["check", "status"]].to_numpy().tolist() == [["saturated volume", "AMBER"]]
    short = base[~at(base, "N003", 40, 42)]
    assert only(audit(short), symbol="N003")["status"].tolist() == ["AMBER"], "three of sixty is the limit, not beyond it"


def test_listing_late_and_leaving_early_is_no_defect():
    base = market()
    life = base[~at(base, "N003", 0, 99) & ~at(base, "N004", 200, len(DAYS) - 1)]
    assert audit(life).status == "GREEN"


def test_a_hole_in_the_file_is_one_finding():
    base = market(40)
    session = base.index.get_level_values("session")
    found = audit(base[~session.isin(DAYS[[3, 50, 51, 120]])])
    assert found.findings[["check", "status", "symbol", "count"]].to_numpy().tolist() == [["hole in the file", "AMBER", "*", 4]]
    found = audit(base[~session.isin(DAYS[50:70])])
    assert found.status == "RED" and found.findings["check"].tolist() == ["hole in the file"]
    few = base[base.index.get_level_values("symbol") < "N003"]
    found = audit(few[~few.index.get_level_values("session").isin(DAYS[50:55])])
    assert found.status == "RED" and found.quarantined == ["N000", "N001", "N002"], "of three names nobody can tell; each is told"


def test_a_table_that_ends_too_early_is_red():
    base = market()
    found = audit(base.loc[:DAYS[-3]], end=DAYS[-1])
    with pytest.raises(QualityError, match="stale file.*Backfill with store.update.source, None, '2024-06-27', '2024-06-28', again=True"):
        found.raise_if_red()
    assert audit(base, start="2023-05-01").findings["check"].tolist() == ["hole in the file"]


def test_duplicates_closed_days_and_time_zones():
    flat = market().reset_index()
    found = audit(pd.concat([flat, flat.iloc[[7, 9]]]))
    assert found.findings[["check", "status"]].drop_duplicates().to_numpy().tolist() == [["duplicates", "AMBER"]]
    found = audit(pd.concat([flat, flat.iloc[[7]].assign(close=1.0)]))
    assert "RED" in only(found, check="duplicates")["status"].tolist()
    shifted = flat.assign(session=flat["session"] + pd.Timedelta(days=1))  # Friday's bars on Saturday
    found = audit(shifted, end=DAYS[-1])
    assert found.status == "RED" and only(found, check="closed days")["status"].tolist() == ["RED"]
    with pytest.raises(ValueError, match="no date; providers.tidy"): audit(flat.assign(session=flat["session"].dt.tz_localize("UTC")))
    with pytest.raises(ValueError, match="no date; providers.tidy"): audit(flat.assign(session=flat["session"] + pd.Timedelta(hours=16)))


def test_more_than_a_tenth_red_stops_the_line_and_says_what_to_fetch():
    base = market()
    torn = base[~at(base, "N003", 40, 44) & ~at(base, "N004", 41, 45)]
    with pytest.raises(QualityError, match=r"missing sessions: N003, N004 .*store.update.source, \['N003', 'N004'\], '2023-07-31', '2023-08-07'"):
        audit(torn).raise_if_red()
    audit(torn, max_red=0.2).raise_if_red()


def test_the_story_of_the_lost_week_through_the_store(tmp_path):
    base = market(8, DAYS[:120])
    file = tmp_path / "vendor.parquet"
    base[~at(base, "N003", 40, 44)].reset_index().to_parquet(file)
    store = Store(tmp_path / "store")
    store.update("files", path=str(file))
    found = audit(store.as_of("bars", DAYS[119]))
    with pytest.raises(QualityError, match="missing sessions: N003") as refused: found.raise_if_red()
    base.reset_index().to_parquet(file)  # the vendor finds its week again
    source, again = "files", str(refused.value).split("store.update(source, ")[1].split(")")[0]
    names, first, last, _ = eval(f"[{again.replace('again=True', 'True')}]")  # what the message says, done
    assert store.update(source, names, first, last, again=True, path=str(file)) == 5
    audit(store.as_of("bars", DAYS[119])).raise_if_red()
    assert audit(store.as_of("bars", DAYS[119])).status == "GREEN"


def slow(panel, window, max_missing, min_age):
    "`eligible` said again, row by row in plain Python"
    days, out = list(sessions(*panel.index.levels[0][[0, -1]])), {}
    for name, rows in panel.groupby(level="symbol"):
        past: list = []
        for (session, _), bar in zip(rows.index, rows.itertuples(), strict=True):
            old = past[-1][1] if past else None
            sound = min(bar.open, bar.high, bar.low, bar.close) > 0
            moves = [p / old.close for p in (bar.open, bar.close)] if sound and old and old.close > 0 else [1.0, 1.0]
            usual = [p[1].volume for p in past if days.index(session) - p[0] <= 20 and p[1].volume > 0]
            crowd = bool(usual) and bar.volume / np.median(usual) * moves[0] > 5
            far = max(moves) <= 0.75 or min(moves) >= 1.9
            past.append((days.index(session), bar, sound and not (far and not crowd)))
            first = past[-1][0] - window + 1
            recent = [p for p in past if p[0] >= first]
            due = past[-1][0] - max(first, past[0][0]) + 1
            idle = sum(p[1].volume == 0 for p in recent)
            out[session, name] = len(past) >= min_age and due - len(recent) + idle <= max_missing and all(p[2] for p in recent)
    return pd.Series([out[key] for key in panel.index], panel.index, name="eligible")


DEFECTS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 48), st.integers(1, 5), st.sampled_from(["drop", "zero", "halve", "idle"])),
                   max_size=4)


@settings(max_examples=40, deadline=None)
@given(defects=DEFECTS, cut=st.integers(12, 49))
def test_eligible_equals_its_slow_twin_and_never_looks_ahead(defects, cut):
    panel, limits = market(2, DAYS[:50]), dict(window=15, max_missing=3, min_age=5)
    for j, first, length, what in defects:
        rows = at(panel, f"N{j:03d}", first, min(first + length, 49))
        if what == "drop": panel = panel[~rows]
        elif what == "idle": panel.loc[rows, "volume"] = 0.0
        else: panel.loc[rows, ["open", "high", "low", "close"]] *= 0.0 if what == "zero" else 0.5
    got = eligible(panel, **limits)
    pd.testing.assert_series_equal(got, slow(panel, **limits))
    pd.testing.assert_series_equal(eligible(panel.loc[:DAYS[cut]], **limits), got.loc[:DAYS[cut]])


def test_five_hundred_names_and_a_thousand_sessions():
    panel = market(500, sessions("2020-01-02", "2023-12-20"))
    assert audit(panel).status == "AMBER"  # a thousand sessions, and nobody left: survivors
    assert eligible(panel).groupby(level="session").sum().iloc[[0, -1]].tolist() == [0, 500]


def bars(*args, **settings):
    try: return fetch(*args, **settings)
    except (ImportError, FileNotFoundError) as e: pytest.skip(str(e))


def test_the_demo_universe_is_amber_for_honest_reasons():
    frame = bars("market", None, universe="stocks_2009")
    found = audit(frame)
    assert found.status == "AMBER"
    found.raise_if_red()
    assert only(found, check="hole in the file")["count"].item() == 7
    assert only(found, check="split-like jump").empty, "adj_close tells the actions of the year"
    assert {"ETFC", "WYNN", "EBAY"} < set(found.quarantined) and len(found.quarantined) < 25
    assert only(found, check="inconsistent bars")["count"].sum() == pytest.approx(77, abs=1)
    raw = audit(frame.drop(columns="adj_close"))
    jumps = only(raw, check="split-like jump")
    assert {"CAH", "DHR", "GIS", "STR", "WY"} <= set(jumps["symbol"]), "without adj_close every untold action is seen"
    assert raw.status == "AMBER"


def test_simulated_and_crashed_names_are_not_called_splits():
    assert audit(bars("market", None, universe="simulated")).status == "GREEN"
    five = audit(bars("market", None, universe="five"))  # Apple lost half on 2000-09-29, and that was news
    assert five.findings["check"].tolist() == ["survivor bias"]


@pytest.mark.real
def test_real_list_of_2015_to_2018(real_data):
    frame = fetch("files", None, path=str(real_data / "us_stocks_503_daily_2015_2018.parquet"))
    found = audit(frame)
    assert found.status == "AMBER" and found.quarantined == ["AMCR", "ARNC", "UA"]
    assert only(found, check="survivor bias")["count"].item() == 498
    assert set(found.findings["check"]) <= {*CHECKS, "survivor bias"}
    use = eligible(frame.set_index(["session", "symbol"]).sort_index())
    assert not use.xs("AMCR", level="symbol").loc["2015-06-01":"2017-12-01"].any(), "a price that nobody traded is not used"
    assert use.xs("AAPL", level="symbol").loc["2015-03-01":].all()
