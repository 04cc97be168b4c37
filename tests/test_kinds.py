"The door of untrusted rows, under whatever stands before it"
import io
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tradenb.data.kinds import ALIASES, KINDS, MISSING, PROVENANCE, TEXT, TYPES, columns_of, tidy

EASY = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def good(kind, n=4, rng=None):
    "Rows of a kind as a well-behaved vendor gives them"
    rng = rng or np.random.default_rng(0)
    days = pd.bdate_range("2024-01-02", periods=n, unit="us")
    make = {"date": lambda c: days + pd.Timedelta(days=30 if c == "expiry" else 0), "name": lambda c: [f"N{i}" for i in range(n)],
            "text": lambda c: ["x"] * n, "right": lambda c: ["C", "P"] * (n//2), "instant": lambda c: days.tz_localize("UTC") + pd.Timedelta(hours=15)}
    of = KINDS[kind]
    return pd.DataFrame({c: make[TYPES[c]](c) if c in TYPES else rng.uniform(1, 99, n).round(3) for c in (*of.columns, "known_at", "vendor")})


def holds(out, kind):
    "What everybody behind the door relies on"
    of = KINDS[kind]
    assert list(out.columns) == [c for c in (*of.columns, "known_at", "vendor") if c in out]
    assert set(of.key) | set(of.needs) <= set(out)
    for c in out:
        want = {"date": "datetime64[us]", "instant": "datetime64[us, UTC]"}.get(TYPES.get(c), "str" if c in TYPES else "float64")
        assert str(out[c].dtype) == want, c
    assert out[list(of.key)].notna().all(axis=None)
    assert not np.isinf(out.select_dtypes("float").to_numpy()).any()
    if "known_at" in out: assert (out["known_at"] >= out["session"]).all()
    for c in out.columns[[TYPES.get(c) == "name" for c in out]]: assert not out[c].str.contains("[<>,\x00-\x1f]").any()
    if "right" in out: assert set(out["right"]) <= {"C", "P"}
    if "time" in out: assert (out["time"].dt.tz_convert("America/New_York").dt.date == out["session"].dt.date).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tidy_stays_as_it_is_also_through_a_file(kind):
    once = tidy(good(kind), kind)
    holds(once, kind)
    pd.testing.assert_frame_equal(tidy(once, kind), once)
    text = pd.read_csv(io.StringIO(once.to_csv(index=False)), dtype=dict.fromkeys(TEXT, "str"))
    pd.testing.assert_frame_equal(tidy(text, kind), once)
    narrow = once.assign(**{c: once[c].astype("float32") for c in once.select_dtypes("float")})
    pd.testing.assert_frame_equal(tidy(narrow, kind), once)
    dressed = once.rename(columns=lambda c: c.upper().replace("_", " ")).sample(frac=1, axis=1, random_state=0)
    pd.testing.assert_frame_equal(tidy(dressed, kind), once)


STRANGE = st.one_of(st.none(), st.text(max_size=12), st.floats(), st.integers(-10**12, 10**12), st.booleans(), st.dates(), st.datetimes(),
                    st.binary(max_size=4), st.just("<script>alert(1)</script>"), st.timedeltas(),
                    st.sampled_from(["1,234", "2024-02-30", "\ud800", "3/4/2024"]))


@settings(max_examples=120, **EASY)
@given(kind=st.sampled_from(list(KINDS)), where=st.integers(0, 30), row=st.integers(0, 3), value=STRANGE, whole=st.booleans())
def test_whatever_stands_in_a_cell_it_is_typed_or_refused_by_name(kind, where, row, value, whole):
    frame = good(kind).astype(object)
    name = frame.columns[where % len(frame.columns)]
    strange = pd.Series([value if whole or i == row else v for i, v in enumerate(frame[name])], dtype=object)
    frame[name] = strange.infer_objects() if whole and not isinstance(value, str) else strange
    try: out = tidy(frame, kind, "the reply")
    except ValueError as e:
        assert str(e).startswith("the reply") and len(str(e)) < 300, e
    else: holds(out, kind)


@settings(max_examples=50, **EASY)
@given(at=st.datetimes(pd.Timestamp("1995-01-01").to_pydatetime(), pd.Timestamp("2035-01-01").to_pydatetime()),
       zone=st.sampled_from(["UTC", "America/New_York", "Asia/Tokyo", "Europe/Berlin"]))
def test_a_minute_belongs_to_its_date_in_new_york(at, zone):
    told = pd.Timestamp(at).floor("min").tz_localize(zone, ambiguous=True, nonexistent="shift_forward")
    frame = good("minutes").drop(columns=["session", "known_at"]).assign(time=told.isoformat())
    out = tidy(frame, "minutes")
    assert out["session"].dt.date.eq(told.to_pydatetime().astimezone(ZoneInfo("America/New_York")).date()).all()
    assert out["time"].eq(told).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_could_stand_for_two_columns(kind):
    "Each name a vendor may use leads to one of our columns alone, and our own names to themselves"
    of = KINDS[kind]
    for ours in (*of.columns, *PROVENANCE): assert columns_of((ours,), kind, "x") == {ours: ours}
    for ours in of.columns:
        for theirs in ALIASES.get(ours, ()):
            found = columns_of((theirs,), kind, "x")
            assert len(found) == 1 and (found[theirs] == ours or theirs in of.columns or "time" in of.key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_lacks_is_named(kind):
    of, frame = KINDS[kind], good(kind)
    for c in (*of.key, *of.needs):
        if c == "root" or (c == "session" and "time" in of.key): continue
        with pytest.raises(ValueError, match=f"the frame has no .*{c}.*; {kind} have"): tidy(frame.drop(columns=c), kind)


@pytest.mark.parametrize("kind, wrong, said", [
    ("minutes", dict(time="2024-01-02 10:00"), "time in row 1 is '2024-01-02 10:00'.*write instants with their zone"),
    ("minutes", dict(session="2024-01-09"), "session of a minute is its date in New York"),
    ("minutes", dict(time=1704207600000), "time in row 1 is 1704207600000.*write instants"),
    ("chain", dict(underlying="<script>"), "underlying in row 1 is '<script>'"), ("chain", dict(root="a,b"), "root in row 1 is 'a,b'"),
    ("chain", dict(underlying="SPX240119C04700000"), "that is a contract"), ("chain", dict(right="X"), "is a call .C. or a put"),
    ("chain", dict(strike=0), "a contract has a strike"), ("chain", dict(expiry="soon"), "expiry in row 1 is 'soon'"),
    ("bars", dict(session=True), "session in row 1 is"), ("bars", dict(session=pd.Timedelta(days=1)), "session in row 1 is")])
def test_what_is_wrong_is_named_with_its_cure(kind, wrong, said):
    frame = good(kind).drop(columns="known_at").assign(**wrong)
    with pytest.raises(ValueError, match=said): tidy(frame, kind)


@pytest.mark.parametrize("word", MISSING)
def test_a_missing_number_is_missing_and_a_missing_key_is_refused(word):
    frame = good("chain").astype(object)
    assert tidy(frame.assign(iv=word), "chain")["iv"].isna().all()
    with pytest.raises(ValueError, match="strike in row 1"): tidy(frame.assign(strike=word), "chain")


def test_vendors_ways_to_write_a_chain():
    told = pd.DataFrame({"contractID": ["IBM171117C00075000"], "symbol": "IBM", "expiration": "2017-11-17", "strike": "75.00", "type": "call",
                         "last": "0.00", "mark": "78.10", "bid": "76.25", "bid_size": "6", "ask": "79.95", "ask_size": "44", "volume": "0",
                         "open_interest": "0", "date": "2017-11-15", "implied_volatility": "2.85", "delta": "0.99", "gamma": "0.0"})
    out = tidy(told, "chain")
    holds(out, "chain")
    assert out[["underlying", "root", "right", "iv"]].iloc[0].tolist() == ["IBM", "IBM", "C", 2.85] and "mark" not in out


@pytest.mark.real
def test_real_chains_and_minutes_pass(real_data):
    chain = pd.read_parquet(real_data/"option_universe_iv_greeks.parquet").rename(columns={"file_date": "date", "underlying_close": "spot"})
    chain = chain.assign(bid=np.nan, ask=np.nan).drop(columns=["open", "high", "low"]).rename(columns={"close": "last"})
    out = tidy(chain, "chain")
    holds(out, "chain")
    assert len(out) == len(chain) and out["iv"].equals(chain["implied_volatility"])
    minutes = pd.read_parquet(real_data/"minute_trade_quote_10_symbols.parquet")
    with pytest.raises(ValueError, match="time has no zone"): tidy(minutes.rename(columns={"ts_et": "time"}), "minutes")
    out = tidy(minutes.assign(time=minutes["ts_et"].dt.tz_localize("America/New_York"), bid=minutes["bid_close"]), "minutes")
    holds(out, "minutes")
    assert (out["session"] == minutes["ts_et"].dt.normalize()).all()
