"What cannot be a lesson of data.providers: random layouts, rubbish, damaged archives, real files"
import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data import providers
from tradenb.data.providers import fetch

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = {"session": ["session", "Date", "timestamp", "TRADE_DATE"], "symbol": ["symbol", "Ticker"], "open": ["open", "o", "Open"],
         "high": ["h", "HIGH"], "low": ["low"], "close": ["Close", "c"], "volume": ["Vol", "v"], "adj_close": ["Adj Close", "adj_close"]}
WRITERS = {".csv": lambda f, p: f.to_csv(p, index=False), ".csv.gz": lambda f, p: f.to_csv(p, index=False),
           ".parquet": lambda f, p: f.to_parquet(p)}


@st.composite
def layouts(draw):
    "Bars, and a folder of files that says the same in some mixture of names, orders and formats"
    days = pd.to_datetime(sorted(draw(st.sets(st.dates(pd.Timestamp("2000-01-01").date(), pd.Timestamp("2030-01-01").date()), min_size=1,
                                              max_size=5))))
    symbols = draw(st.lists(st.sampled_from(["NA", "TRUE", "nan", "null", "BRK.B", "^GSPC", "ES=F", "1E5", "A"]), min_size=1, unique=True))
    rows = pd.MultiIndex.from_product([days, symbols], names=["session", "symbol"]).to_frame(index=False).astype({"symbol": "str"})
    price = st.floats(-1e9, 1e9) | st.just(float("nan"))
    for c in ("open", "high", "low", "close", "volume", "adj_close"):
        rows[c] = draw(st.lists(price, min_size=len(rows), max_size=len(rows)))
    files = []
    for s, part in rows.groupby("symbol"):
        names = {ours: draw(st.sampled_from(theirs)) for ours, theirs in NAMES.items()}
        part = part.iloc[draw(st.permutations(range(len(part))))]
        part = part.assign(session=draw(st.sampled_from([part.session, part.session.dt.date, part.session.dt.strftime("%Y%m%d")])))
        alone = draw(st.booleans())
        part = part.drop(columns=["symbol"] if alone else [])[draw(st.permutations([c for c in part if c != "symbol" or not alone]))]
        files.append((f"{s}" if alone else f"file{len(files)}", draw(st.sampled_from(sorted(WRITERS))), part.rename(columns=names)))
    return rows, files


@relaxed
@given(layouts())
def test_any_layout_reads_back_the_same(tmp_path_factory, layout):
    rows, files = layout
    folder = tmp_path_factory.mktemp("layout")
    for name, ending, frame in files: WRITERS[ending](frame, folder/(name + ending))
    found = fetch("files", path=folder)[rows.columns]
    want = rows.assign(session=rows.session.astype("datetime64[us]")).sort_values(["session", "symbol"], ignore_index=True)
    pd.testing.assert_frame_equal(found, want, check_exact=True)


@relaxed
@given(st.binary(max_size=300), st.sampled_from(sorted(WRITERS)), st.booleans())
def test_rubbish_is_refused_by_name(tmp_path_factory, rubbish, ending, headed):
    file = tmp_path_factory.mktemp("rubbish")/f"rubbish{ending}"
    text = b"date,symbol,open,high,low,close,volume\n" * headed + rubbish
    file.write_bytes(gzip.compress(text) if ending == ".csv.gz" and headed else text)
    try: found = fetch("files", path=file)
    except ValueError as e: assert "rubbish" in str(e)
    else: assert found.session.notna().all() and found.symbol.str.len().gt(0).all()


def test_a_damaged_archive_and_a_bomb(tmp_path):
    good = gzip.compress(b"date,o,h,l,c,v\n" + b"2024-01-02,1,1,1,1,1\n" * 300_000)
    (tmp_path/"A.csv.gz").write_bytes(good[:len(good)//2])
    with pytest.raises(ValueError, match=r"A\.csv\.gz cannot be read"): fetch("files", path=tmp_path)
    (tmp_path/"A.csv.gz").write_bytes(good)
    with pytest.raises(ValueError, match=r"A\.csv\.gz goes beyond max_rows"): fetch("files", path=tmp_path, max_rows=1_000)
    with pytest.raises(ValueError, match=r"more than max_mb=0"): fetch("files", path=tmp_path, max_mb=0)


def test_the_bound_on_rows_holds_over_a_folder(tmp_path):
    for s in "ABC": (tmp_path/f"{s}.csv").write_text("date,o,h,l,c,v\n" + "2024-01-02,1,1,1,1,1\n" * 4)
    assert len(fetch("files", path=tmp_path, max_rows=12)) == 12
    with pytest.raises(ValueError, match=r"C\.csv goes beyond max_rows"): fetch("files", path=tmp_path, max_rows=11)


def test_a_label_of_simulation_survives_a_file(tmp_path):
    made = fetch("market", universe="simulated", n_symbols=3, n_sessions=5)
    assert made.vendor.eq("market:simulated").all()
    made.to_csv(tmp_path/"mine.csv", index=False)
    again = fetch("files", path=tmp_path/"mine.csv", fetched_at=made.fetched_at[0])
    pd.testing.assert_frame_equal(again, made)


def test_every_source_has_the_protocol():
    for name, s in providers.SOURCES.items():
        assert s.kinds, name
        assert set(s.kinds) <= {"bars", "minutes", "chain", "macro"}, name


@pytest.mark.real
def test_503_stocks(real_data):
    found = fetch("files", path=real_data/"us_stocks_503_daily_2015_2018.parquet")
    assert len(found) == 496_495 and found.sector.nunique() == 11
    assert found.session.is_monotonic_increasing and not found.duplicated(["session", "symbol"]).any()
    first = found[found.symbol == "A"].iloc[0]
    assert (first.open, first.close, first.volume) == (40.61, 40.11, 2_770_800) # decimals, not 40.11000061


@pytest.mark.real
def test_files_of_other_layouts(real_data):
    spy = fetch("files", path=real_data/"spy_daily_ohlcv_1998_2021.parquet", symbol="SPY")
    assert set(spy.symbol) == {"SPY"} and spy.adj_close.notna().all()
    macro = fetch("files", path=real_data/"vix_daily_1990_2026.parquet", kind="macro", symbol="VIX")
    demo = fetch("market", "VIX", kind="macro")             # the same series, from another hand
    both = demo.merge(macro, on="session")
    assert len(both) == len(demo) and np.isclose(both.value_x, both.value_y).mean() > .99
