"Who was listed: against asking day by day, against the demo's prices, and against a vendor's replies"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tradenb.data.market import bars
from tradenb.data.universe import RENAMES, Universe, observed, polygon_listings

START = pd.Timestamp("2020-01-01")


def day(n): return START + pd.Timedelta(days=n)


SPANS = st.lists(st.tuples(st.sampled_from(["c1", "c2", "c3"]), st.sampled_from(["AA", "BB", "NA"]), st.integers(0, 12),
                           st.one_of(st.none(), st.integers(0, 3))), min_size=1, max_size=6)


def listed(spans):
    return pd.DataFrame([(i, s, day(first), None if more is None else day(first + more)) for i, s, first, more in spans],
                        columns=["id", "symbol", "first", "last"])


def worn(spans, n):
    "(id, symbol) in force on day n, asked one by one"
    return [(i, s) for i, s, first, more in spans if first <= n and (more is None or n <= first + more)]


def possible(spans):
    days = [worn(spans, n) for n in range(25)]
    return all(len({s for _, s in d}) == len(d) == len({i for i, _ in d}) for d in days)


@settings(max_examples=60, deadline=None)
@example(spans=[("c1", "AA", 0, 3), ("c2", "AA", 3, None)])
@example(spans=[("c1", "AA", 0, 3), ("c1", "BB", 3, None)])
@given(spans=SPANS)
def test_a_table_is_refused_just_when_a_day_contradicts_itself(spans):
    try: Universe(listed(spans))
    except ValueError as e: assert not possible(spans) and "row " in str(e)
    else: assert possible(spans)


@settings(max_examples=20, deadline=None)
@given(spans=SPANS.filter(possible), rows=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["AA", "BB", "NA", "ZZ"])), min_size=1, max_size=8))
def test_each_row_is_of_the_company_that_wore_its_ticker_that_day(spans, rows):
    universe = Universe(listed(spans))
    frame = pd.DataFrame([(day(n), s) for n, s in rows], columns=["session", "symbol"])
    expected = [next((i for i, t in worn(spans, n) if t == s), None) for n, s in rows]
    got = universe.resolve(frame, strict=False)
    assert [None if pd.isna(i) else i for i in got["id"]] == expected and got[["session", "symbol"]].equals(frame)
    if None in expected:
        n, name = rows[expected.index(None)]
        with pytest.raises(ValueError, match=rf"{expected.count(None)} rows are of no company, first \({day(n):%Y-%m-%d}, {name}\)"):
            universe.resolve(frame)
    for n in range(22): assert universe.members(day(n)) == sorted(s for _, s in worn(spans, n))
    panel = frame.drop_duplicates().set_index(["session", "symbol"]).sort_index().assign(x=1.)
    assert universe.mask(panel).tolist() == [any(t == s for _, t in worn(spans, (d - START).days)) for d, s in panel.index]


@settings(max_examples=20, deadline=None)
@given(spans=SPANS.filter(possible))
def test_renamed_keeps_each_company_apart_and_whole(spans):
    universe = Universe(listed(spans))
    rows = [(day(n), s, i) for n in range(20) for i, s in worn(spans, n)]
    panel = pd.DataFrame(rows, columns=["session", "symbol", "company"]).set_index(["session", "symbol"]).sort_index()
    told = universe.renamed(panel).reset_index()
    assert len(told) == len(panel)
    names = told.groupby("company")["symbol"].unique()
    assert all(len(n) == 1 for n in names) and len({n[0] for n in names}) == len(names), "one name for each, each its own"
    lasting = {i: s for i, s, _, more in spans if more is None}
    assert all(names[i][0] == s for i, s in lasting.items() if i in names), "who is listed keeps the ticker"


def test_tickers_that_look_like_nothing(tmp_path):
    table = pd.DataFrame({"id": ["1", "2", "3"], "symbol": ["NA", "TRUE", "NAN"], "first": "2020-01-02", "last": ["2021-01-04", None, None]})
    for path in (tmp_path / "u.csv", tmp_path / "u.parquet"):
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
        read = Universe.read(path)
        assert read.members("2020-06-01") == ["NA", "NAN", "TRUE"] and read.members("2022-01-03") == ["NAN", "TRUE"]


@pytest.fixture(scope="module")
def demo():
    return bars("stocks_2009").set_index(["session", "symbol"]).sort_index()


def test_the_demo_has_these_renames_and_no_other(demo):
    closes = demo["adj_close"].unstack()
    days, there = closes.index, closes.notna()
    joins = set()
    for t in range(1, len(days)):  # a name's rows end the evening before another's begin, and the price goes on
        gone = there.iloc[t - 1] & ~there.iloc[t:t + 5].any()
        new = there.iloc[t] & ~there.iloc[max(t - 5, 0):t].any()
        joins |= {(days[t], a, b) for a in closes.columns[gone] for b in closes.columns[new]
                  if abs(closes[b].iloc[t] / closes[a].iloc[t - 1] - 1) < .056}
    assert joins == set(RENAMES[["session", "old", "new"]].itertuples(index=False, name=None))


def test_the_demo_under_one_name_a_company(demo):
    universe = observed(demo, RENAMES)
    whole = universe.renamed(demo)
    assert len(whole) == len(demo) and whole.index.levels[1].size == 524 - 3
    returns = whole["adj_close"].unstack()[["AON", "NEE", "ETFC"]].pct_change().loc[RENAMES["session"]]
    assert returns.abs().max().max() < .056 and returns.notna().all().all()
    assert {"AMGN", "WYE", "FPL"} & set(universe.members("2010-08-20")) == {"AMGN"}, "a last day without a row is a gap"
    assert universe.mask(demo).all()
    assert np.array_equal(universe.resolve(demo)["id"].groupby(level=1).nunique().unique(), [1]), "no ticker is used twice here"


def test_a_rename_in_the_last_days_and_one_to_come(demo):
    until = demo[demo.index.get_level_values(0) <= "2010-06-25"]
    universe = observed(until, RENAMES)
    assert {"FPL", "NEE", "ETFC", "ETFCD"} & set(universe.members("2010-06-25")) == {"NEE", "ETFCD"}
    some = until[until.index.get_level_values(1).isin(["NEE", "AON", "A"])]
    assert set(observed(some, RENAMES).members("2010-06-25")) == {"A", "AON", "NEE"}
    early = demo[demo.index.get_level_values(0) <= "2009-11-30"]
    assert observed(early, RENAMES).members("2009-11-30").count("AOC") == 1


def test_an_id_does_not_change_when_more_is_known(demo):
    early = demo[demo.index.get_level_values(0) <= "2010-06-11"]
    ids = [observed(x, RENAMES).resolve(early)["id"] for x in (early, demo)]
    assert ids[0].equals(ids[1])


@pytest.mark.real
def test_polygons_own_samples(real_data):
    folder = real_data / "vendor/polygon"
    def reply(name): return json.loads((folder / f"{name}.json").read_text())["results"]
    tickers = [*reply("v3_reference_tickers"), reply("v3_reference_tickers_AAPL")]
    meta = reply("vX_reference_tickers_META_events_types_ticker_change")
    faces = [{"ticker": t, "composite_figi": meta["composite_figi"], "name": meta["name"], "delisted_utc": gone}
             for t, gone in (("META", None), ("FB", "2022-06-11T00:00:00Z"))]  # the old ticker has an entry of its own, delisted
    universe = Universe(polygon_listings([*tickers, *faces], [meta]))
    assert universe.members("2013-01-02") == ["A", "AA", "AAPL", "FB"] and universe.members("2023-01-03") == ["A", "AA", "AAPL", "META"]
    assert universe.members("1970-01-02") == ["A", "AA"], "where no first day is told, it was always there"
    gone = [{"ticker": "X", "composite_figi": "F", "delisted_utc": "2020-03-04T05:00:00Z"}, {"ticker": "Y"}]
    assert Universe(polygon_listings(gone)).members("2020-03-05") == ["Y"]
