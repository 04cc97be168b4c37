"The gate before real files, and against a slow and simple judge"

import html
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.checks import CHECKS, sigma_at
from tradenb.data.providers import fetch
from tradenb.data.quality import QualityError, audit, eligible
from tradenb.data.store import Store
from tradenb.data.tables import read, table_of
from tradenb.ops.report import report

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
            value = bar.volume / np.median(usual) * moves[0] if usual else np.nan
            far = max(moves) <= 0.75 or min(moves) >= 1.9
            gap, end = np.log(moves)
            odd = gap * end > 0 and min(abs(gap), abs(end)) > -np.log(0.85)
            closes = [p[1].close for p in past if days.index(session) - p[0] <= 60 and p[1].close > 0]
            steps = np.diff(np.log(closes))
            sigma = max(1.4826 * np.median(np.abs(steps - np.median(steps))), 0.005) if len(steps) >= 20 else np.inf
            two = next((p[1].close for p in past if p[0] == days.index(session) - 2), np.nan)
            back = abs(np.log(bar.close / two)) < abs(gap) / 2 if sound and two > 0 else False
            quiet = odd and value < 1.75 and abs(gap) > 12 * sigma and not back
            past.append((days.index(session), bar, sound and not (quiet or (far and not value > 5))))
            first = past[-1][0] - window + 1
            recent = [p for p in past if p[0] >= first]
            due = past[-1][0] - max(first, past[0][0]) + 1
            idle = sum(p[1].volume == 0 for p in recent)
            out[session, name] = len(past) >= min_age and due - len(recent) + idle <= max_missing and all(p[2] for p in recent)
    return pd.Series([out[key] for key in panel.index], panel.index, name="eligible")


DEFECTS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 48), st.integers(1, 5), st.sampled_from(["drop", "zero", "halve", "idle"])),
                   max_size=4)


@settings(max_examples=25, deadline=None)
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
    assert five.findings[["check", "symbol"]].to_numpy().tolist() == [["survivor bias", "*"], ["far wick", "MSFT"]]


def test_several_names_that_lose_the_same_days_are_the_feeds_fault():
    base = market(40)
    found = audit(base[~(at(base, "N003", 40, 42) | at(base, "N007", 39, 43) | at(base, "N011", 40, 42))])
    assert found.status == "RED" and found.quarantined == ["N003", "N007", "N011"]
    with pytest.raises(QualityError, match=r"common gap: N007, N003, N011 .*store.update.source, \['N003', 'N007', 'N011'\], '2023-07-28', '2023-08-03'"):
        found.raise_if_red()
    worse = base[~(at(base, "N003", 40, 42) | at(base, "N007", 39, 43) | at(base, "N011", 40, 42) | at(base, "N020", 90, 99))]
    with pytest.raises(QualityError) as refused: audit(worse).raise_if_red()
    assert "N020" not in str(refused.value), "a name that is RED on its own stops nobody, and is not part of the cure"
    halts = base[~(at(base, "N003", 40, 42) | at(base, "N007", 60, 62) | at(base, "N011", 80, 82) | at(base, "N012", 40, 42))]
    assert audit(halts).status == "AMBER" and only(audit(halts), check="common gap").empty
    session, symbol = (base.index.get_level_values(level) for level in base.index.names)
    ended = base[~(symbol.isin(["N003", "N004", "N005"]) & (session >= DAYS[-4]))]
    assert only(audit(ended), check="common gap")["symbol"].tolist() == ["N003", "N004", "N005"] and audit(ended).status == "RED"


def crash(days=DAYS, drop=0.22):
    "A market that opens and closes a fifth lower on one day, with twice the volume, and swings for a month"
    base, rng = market(30, days), np.random.default_rng(1)
    factor = np.ones(len(days))
    factor[100:] *= 1 - drop
    factor[101:125] *= np.cumprod(1 + rng.normal(0, 0.05, 24))
    factor[125:] *= factor[124] / (1 - drop)
    each = np.repeat(factor, 30)
    volume = np.repeat(np.where(np.arange(len(days)) >= 100, 2500.0, 1000.0), 30)
    return base.assign(**{c: base[c] * each for c in ("open", "high", "low", "close")}, volume=volume)


def test_a_crash_is_no_defect():
    found = audit(crash())
    assert found.status == "GREEN", found.findings
    assert eligible(crash()).iloc[-30:].all()
    alone = crash()[crash().index.get_level_values("symbol") == "N003"]
    assert audit(alone).status == "GREEN"
    deep = crash(drop=0.3)
    closes = deep[deep.index.get_level_values("symbol") == "N003"][["close"]]
    assert audit(closes).status == "GREEN", "a close alone: no round ratio, no split"
    halved = closes.assign(close=closes["close"].where(closes.index.get_level_values("session") < DAYS[50], closes["close"] / 2))
    assert audit(halved).findings["check"].tolist() == ["split-like jump"]


def test_what_is_usual_for_a_name_is_no_action_and_is_asked_of_the_past_alone():
    base, rng = market(12), np.random.default_rng(2)
    wild = np.where(base.index.get_level_values("symbol") == "N003", np.repeat(np.exp(np.cumsum(rng.normal(0, 0.04, len(DAYS)))), 12), 1.0)
    wild = np.where((base.index.get_level_values("symbol") == "N003") & (base.index.get_level_values("session") >= DAYS[120]), wild * 0.8, wild)
    for factor, calls in ((wild, []), (np.where(~before(base, "N003", 120) & (base.index.get_level_values("symbol") == "N003"), 0.8, 1.0),
                                       ["split-like jump"])):
        torn = base.assign(**{c: base[c] * factor for c in ("open", "high", "low", "close")})
        torn["high"], torn["low"] = torn[["open", "high", "close"]].max(axis=1), torn[["open", "low", "close"]].min(axis=1)
        assert only(audit(torn), symbol="N003", status="RED")["check"].tolist() == calls
    close = base["close"].unstack().to_numpy()
    future = close.copy()
    future[100:] *= rng.uniform(0.1, 9.0, future[100:].shape)
    assert sigma_at(close, 100, 3) == sigma_at(future, 100, 3)


def test_a_wick_is_judged_by_the_closes_around_it():
    base = market(12)
    rose = np.where((base.index.get_level_values("symbol") == "N003") & (base.index.get_level_values("session") > DAYS[40]), 1.1, 1.0)
    news = base.assign(**{c: base[c] * rose for c in ("open", "high", "low", "close")})
    news["high"] = news["high"].where(~at(base, "N003", 40), news["close"] * 1.12)
    assert only(audit(news), check="far wick").empty, "the next close was up there"
    assert only(audit(news.assign(high=news["high"].where(~at(base, "N003", 60), news["close"] * 1.12))), check="far wick")["first"].item() == DAYS[60]


DEFECTS_OF_ONE_BAR = {
    "far wick": lambda m: m.assign(high=m["high"].where(~at(m, "N003", 40), m["high"] * 1.3)),
    "action without a move": lambda m: m.assign(adj_close=m["close"].where(~before(m, "N003", 40), m["close"] / 1.2)),
    "split-like jump": lambda m: m.assign(**{c: m[c].where(~before(m, "N003", 40), m[c] / 0.78) for c in ("open", "high", "low", "close")}),
    "unfinished bar": lambda m: m.assign(fetched_at=m.index.get_level_values("session").tz_localize("UTC") + pd.Timedelta(hours=15)),
}


def before(panel, name, row):
    session, symbol = (panel.index.get_level_values(level) for level in panel.index.names)
    return (symbol == name) & (session < DAYS[row])


@pytest.mark.parametrize("check", DEFECTS_OF_ONE_BAR)
def test_one_bar_is_enough_to_be_told(check):
    found = audit(DEFECTS_OF_ONE_BAR[check](market()))
    assert found.findings["check"].tolist() == [check]


def test_actions_that_are_told_are_no_jumps_however_they_are_told():
    base = market()
    halved = base.assign(**{c: base[c].where(~before(base, "N003", 40), base[c] * 2) for c in ("open", "high", "low", "close")})
    assert audit(halved).quarantined == ["N003"]
    assert audit(halved.assign(split=np.where(at(base, "N003", 40), 2.0, np.nan))).status == "GREEN"
    assert audit(halved.assign(adj_close=base["close"])).status == "GREEN"
    false = audit(base.assign(split=np.where(at(base, "N003", 40), 2.0, 1.0)))
    assert only(false, symbol="N003")["check"].tolist() == ["split-like jump", "action without a move"]
    paid = base["close"].groupby(level="symbol").shift(1) * 0.3
    dropped = base.assign(**{c: base[c].where(before(base, "N003", 40) | (base.index.get_level_values("symbol") != "N003"), base[c] * 0.7)
                             for c in ("open", "high", "low", "close")})
    assert audit(dropped).quarantined == ["N003"]
    assert audit(dropped.assign(dividend=paid.where(at(base, "N003", 40), 0.0))).status == "GREEN"


def test_units_paces_twins_and_shifted_dates():
    base = market(12)
    early = base.index.get_level_values("session") < DAYS[100]
    name = base.index.get_level_values("symbol")
    lots = base.assign(volume=base["volume"].where(~(early & (name == "N003")), 10.0))
    assert only(audit(lots), symbol="N003")["check"].tolist() == ["volume unit"]
    weekly = base[(name != "N003") | (base.index.get_level_values("session").day_of_week == 4)]
    assert only(audit(weekly), symbol="N003")[["check", "status"]].to_numpy().tolist() == [["frequency", "RED"]]
    copied = base.copy()
    copied.loc[name == "N003", ["open", "high", "low", "close"]] = base.loc[name == "N004", ["open", "high", "low", "close"]].to_numpy() * 2
    assert set(only(audit(copied), check="twin")["symbol"]) == {"N003", "N004"}
    rng = np.random.default_rng(0)
    common = np.exp(np.cumsum(rng.normal(0, 0.01, len(DAYS))))
    moved = base.assign(**{c: base[c] * np.repeat(common, 12) for c in ("open", "high", "low", "close")})
    assert audit(moved).status == "GREEN"
    flat = moved.reset_index()
    late = flat["symbol"] == "N003"
    flat.loc[late, ["open", "high", "low", "close"]] = flat.loc[late, ["open", "high", "low", "close"]].shift(1).bfill().to_numpy()
    assert only(audit(flat), symbol="N003")["check"].tolist() == ["shifted dates"]


def test_a_table_must_reach_the_last_session_that_had_closed():
    base = market()
    evening = pd.Timestamp("2024-07-01 20:30", tz="UTC")  # after the close of the session after the last
    assert audit(base, now=evening).findings["check"].tolist() == ["stale file"]
    assert audit(base, now=evening - pd.Timedelta(hours=2)).status == "GREEN", "that session was still open"
    assert audit(base, end="2024-07-31", now=evening).findings["count"].tolist() == [1], "nobody has tomorrow's bars"


@settings(max_examples=8, deadline=None)
@given(names=st.sets(st.integers(0, 29), min_size=3, max_size=8), first=st.integers(30, 100), length=st.integers(3, 6))
def test_deleting_a_week_of_several_names_is_always_red_and_bringing_it_back_heals(names, first, length):
    base = market(30, DAYS[:130])
    gone = np.logical_or.reduce([at(base, f"N{j:03d}", first, min(first + length - 1, 127)) for j in names])
    found = audit(base[~gone])
    assert found.status == "RED" and found.quarantined == [f"N{j:03d}" for j in sorted(names)]
    assert audit(pd.concat([base[~gone], base[gone]]).sort_index()).status == "GREEN"


@pytest.mark.real
def test_real_list_of_2015_to_2018(real_data):
    frame = fetch("files", None, path=str(real_data / "us_stocks_503_daily_2015_2018.parquet"))
    found = audit(frame)
    assert found.status == "AMBER"
    assert found.quarantined == ["AMCR", "ARNC", "DHR", "FRC", "FTI", "UA", "VTR"]
    assert only(found, check="action without a move")["first"].dt.strftime("%Y-%m-%d").tolist() == ["2016-07-05", "2017-03-15", "2016-05-04"]
    assert only(found, check="twin")["symbol"].tolist() == ["UA", "UAA"] and only(found, check="common gap").empty
    assert only(found, check="survivor bias")["count"].item() == 498
    assert set(found.findings["check"]) <= {*CHECKS, "survivor bias", "twin"}
    week = frame["symbol"].isin(["AAPL", "KO", "XOM", "JPM"]) & frame["session"].between("2017-03-06", "2017-03-10")
    with pytest.raises(QualityError, match="common gap: AAPL, JPM, KO, XOM .5 sessions missing together.*'JPM'.*'2017-03-10', again=True"):
        audit(frame[~week]).raise_if_red()
    assert audit(pd.concat([frame[~week], frame[week]])).status == "AMBER", "rows back, as before"
    use = eligible(frame.set_index(["session", "symbol"]).sort_index())
    assert not use.xs("AMCR", level="symbol").loc["2015-06-01":"2017-12-01"].any(), "a price that nobody traded is not used"
    assert use.xs("AAPL", level="symbol").loc["2015-03-01":].all()


@pytest.mark.whole
def test_the_page_on_a_folder_of_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    base = market(12, DAYS[:130])
    gone = at(base, "N003", 40, 44) | at(base, "N004", 40, 44) | at(base, "N005", 40, 44)
    base[~gone].reset_index().to_parquet(folder / "bars.parquet")
    base.reset_index().to_csv(folder / "theirs.csv", index=False)
    pd.DataFrame({"who": ["me"]}).to_csv(folder / "names.csv", index=False)
    page = report("data_quality", tmp_path / "page", {"files": str(folder), "other": str(folder / "theirs.csv")})
    said = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))).split())
    for must in ("RED , the worst of 2 tables", "no column of dates", "3 of 12 names lack a session", "12 agree", "15 only in other: theirs",
                 "common gap", "store.update(source, ['N003']", "Stop. RED: bars.parquet."):
        assert must in said, must
    assert page.read_text().count("<img") == 3 and "Warning" not in said


FOUND = {  # file: (status, checks that must be found there; each was looked at by hand)
    "spy_daily_ohlcv_1998_2021.parquet": ("AMBER", {"far wick"}),
    "spy_adjclose_1993_2024.parquet": ("GREEN", set()),
    "vix_daily_1990_2026.parquet": ("RED", {"inconsistent bars", "flat bars", "closed days", "far wick", "missing sessions"}),
    "us_treasury_curve_1990_2017.parquet": ("AMBER", {"hole in the file", "closed days", "missing sessions"}),
    "shiller_monthly_1871_2026.parquet": ("RED", {"zeros for nothing", "known too early"}),
    "minute_trade_quote_10_symbols.parquet": ("RED", {"two scales", "partial session", "trade off quote", "no quotes"}),
    "option_chains_spx_spy_xsp_4_snapshots.parquet": ("RED", {"closed days", "expired", "zero volatility", "no quote", "wide quote"}),
    "option_eod_quotes_trades_oi.parquet": ("RED", {"expired", "missing contracts", "no quote", "wide quote"}),
}


@pytest.mark.real
@pytest.mark.parametrize("file", FOUND)
def test_real_files_have_the_defects_that_were_seen_and_no_others(real_data, file):
    status, checks = FOUND[file]
    found = audit(table_of(read(real_data / file), file.split("_")[0].upper()))
    assert (found.status, set(found.findings["check"])) == (status, checks)


@pytest.mark.real
def test_open_interest_that_tells_the_next_morning_is_seen(real_data):
    file = "option_universe_iv_greeks.parquet"
    found = audit(table_of(read(real_data / file), "OPTION"))
    assert set(only(found, check="open interest of the same session")["symbol"]) == {"AAPL", "GOOG"}
    assert "2015-12-31" in only(found, check="repeated session", symbol="GOOG")["last"].astype(str).item(), "a copy of the day before"
    assert only(found, check="underlying out of step", symbol="TWX")["first"].item() == pd.Timestamp("2014-06-06"), "spun off on the 9th"
