"What cannot be a lesson of data.series: any history of releases through any windows, the archive's limit, a real VIX"
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data import series as room
from tradenb.data import wire as way
from tradenb.data.providers import fetch
from tradenb.data.replay import Replay

from .vendors import series

NOW = pd.Timestamp("2025-06-02 22:00Z")
COLUMNS = ["session", "symbol", "value", "known_at"]
relaxed = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name, key in series.KEYS.items(): monkeypatch.setenv(name, key)
    monkeypatch.setattr(way, "sleep", lambda s: None)


def ask(vendor, name="X", start=None, **more):
    return fetch("fred", name, start, kind="macro", base=vendor.url, fetched_at=NOW, **more)[COLUMNS]


@st.composite
def histories(draw):
    "Releases of a monthly number: some late, some revised, some empty, the archive beginning somewhere"
    months = pd.date_range("1985-01-01", "2025-04-01", freq="MS")
    picked = sorted(draw(st.sets(st.sampled_from(list(months)), min_size=1, max_size=8)))
    opened = draw(st.sampled_from([pd.Timestamp("1976-01-01"), pd.Timestamp("1996-12-20"), pd.Timestamp("2011-03-01")]))
    rows = []
    for month in picked:
        at, before = max(month + pd.Timedelta(days=draw(st.integers(5, 90))), opened), None
        for _ in range(draw(st.integers(1, 4))):
            value = draw(st.sampled_from([3.7, 3.8, 4.25, np.nan]))
            if before is None or not (value == before or np.isnan(value) and np.isnan(before)): rows.append((month, "X", value, at))
            before, at = value, at + pd.Timedelta(days=draw(st.integers(1, 4000)))
    return pd.DataFrame(rows, columns=["session", "symbol", "value", "known_at"])


@relaxed
@given(histories(), st.sampled_from([None, "1984-01-01", "1996-06-01", "2004-01-01", "2019-01-01"]), st.sampled_from([3, 7]), st.sampled_from([2, 100_000]))
def test_releases_are_the_archives_whatever_the_windows(history, start, years, page):
    want = history[(history.session >= pd.Timestamp(start or "1900-01-01")) & (history.known_at <= NOW.tz_localize(None))]
    shown = history[history.known_at <= NOW.tz_localize(None)]
    if shown.empty: return
    with pytest.MonkeyPatch.context() as patch, Replay(series.routes(shown, pages=page)) as vendor:
        patch.setattr(room, "_YEARS", years)
        patch.setattr(room, "_PAGE", page)
        found = ask(vendor, start=start)
    pd.testing.assert_frame_equal(found.sort_values(["session", "known_at"], ignore_index=True),
                                  want.sort_values(["session", "known_at"], ignore_index=True), check_dtype=False)


def test_a_daily_series_stays_below_the_limit_of_vintages():
    days = pd.bdate_range("1998-01-01", "2025-05-30")
    history = pd.DataFrame({"session": days, "symbol": "DFF", "value": np.arange(len(days)) / 100, "known_at": days + pd.offsets.BDay(1)})
    with Replay(series.routes(history)) as vendor:
        found = ask(vendor, "DFF")
        assert len(vendor.requests) == 6
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="exceeds the maximum number of vintage dates"):
            patch.setattr(room, "_YEARS", 9)
            ask(vendor, "DFF")
    pd.testing.assert_frame_equal(found.reset_index(drop=True), history, check_dtype=False)


def test_an_update_is_one_request_a_series():
    days = pd.bdate_range("2015-01-01", "2025-05-30")
    history = pd.concat([pd.DataFrame({"session": days, "symbol": s, "value": 1., "known_at": days + pd.offsets.BDay(1)}) for s in "AB"])
    with Replay(series.routes(history)) as vendor:
        ask(vendor, ["A", "B"], "2024-04-28") # an update looks 400 days back
    assert len(vendor.requests) == 2


def test_wrong_key_and_lag(caplog, monkeypatch):
    history = pd.DataFrame({"session": pd.to_datetime(["2024-01-01"]), "symbol": "X", "value": 1., "known_at": pd.to_datetime(["2024-02-01"])})
    with Replay(series.routes(history)) as vendor:
        assert ask(vendor, vintages=False, lag={"X": 45}).known_at.tolist() == [pd.Timestamp("2024-02-15")]
        monkeypatch.setenv("FRED_API_KEY", "f" * 32)
        with pytest.raises(ValueError, match="FRED_API_KEY") as e: ask(vendor)
    assert "f" * 32 not in f"{e.value!r}{caplog.text}"


def test_the_real_vix_through_the_file(real_data):
    vix = pd.read_parquet(real_data/"vix_daily_1990_2026.parquet").rename(columns={"date": "session", "close": "value"})
    vix = vix.assign(session=pd.to_datetime(vix.session), symbol="VIX")[["session", "symbol", "value"]].dropna()
    with Replay(series.cboe(vix)) as vendor:
        found = fetch("cboe", "VIX", kind="macro", base=vendor.url, lag=1)
        assert len(vendor.requests) == 1
    np.testing.assert_allclose(found.value, vix.value.to_numpy(), atol=5e-7)
    assert (found.session.to_numpy() == vix.session.to_numpy()).all() and (found.known_at - found.session == pd.Timedelta("1D")).all()
