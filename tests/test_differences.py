"Two tables that differ in a known way, and two real vendors"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.data.differences import compare
from tradenb.data.tables import read, table_of

DAYS = sessions("2023-06-01", "2024-01-31")


def walk(n=4, seed=0, days=DAYS):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([days, [f"N{j}" for j in range(n)]], names=["session", "symbol"])
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.01, (len(days), n)), axis=0)).ravel()
    return pd.DataFrame({"close": close, "volume": 1000.0}, index)


def test_the_same_table_has_no_differences_and_order_is_no_difference():
    base = walk()
    found = compare(base, base.reset_index().sample(frac=1, random_state=0))
    assert found.table["shape"].unique().tolist() == ["agree"] and found.rows.empty and found.closed == (0, 0)


@settings(max_examples=25, deadline=None)
@given(row=st.integers(10, len(DAYS) - 10), size=st.floats(0.05, 0.5), up=st.booleans(), scale=st.sampled_from([1.0, 4.0, 0.01]),
       wrong=st.sampled_from(["first", "second"]))
def test_one_wrong_price_is_found_and_its_owner_named_whatever_the_scale(row, size, up, scale, wrong):
    base = walk()
    spoiled = base.copy()
    spoiled.loc[(DAYS[row], "N1"), "close"] *= (1 + size) if up else (1 - size)
    first, second = (spoiled, base) if wrong == "first" else (base, spoiled)
    found = compare(first, second.assign(close=second["close"] * scale))
    assert found.rows[["session", "symbol"]].to_numpy().tolist() == [[DAYS[row], "N1"]]
    assert found.rows["right"].item() == ("second" if wrong == "first" else "first")
    assert set(found.table["shape"]) == ({"agree"} if scale == 1 else {"scale"})


@pytest.mark.parametrize("late", [1, -1])
def test_a_shift_by_a_session_is_seen_in_both_directions(late):
    base = walk(1)
    assert compare(base, base.assign(close=base["close"].shift(late)).dropna()).table.loc["N0", ["shape", "number"]].tolist() == ["shifted", late]


def test_coverage_scale_of_volume_and_judgement_by_a_third():
    base = walk()
    other = base.assign(volume=10.0).drop(index=[(DAYS[5], "N0"), (DAYS[6], "N0")])
    other.loc[(DAYS[50], "N2"), "close"] *= 1.001
    found = compare(base, other, third=base, tolerance=5)
    assert found.table.loc["N0", ["both", "only_first", "only_second"]].tolist() == [len(DAYS) - 2, 2, 0]
    assert found.table["volume"].round(6).unique().tolist() == [0.01] and "volume of 4 names" in found.summary()
    assert found.rows["right"].tolist() == ["first"]
    with pytest.raises(ValueError, match="the second table is empty"): compare(base, base.iloc[:0])


def test_a_move_in_two_steps_is_not_called_wrong_for_being_in_two_steps():
    base = walk(1)
    at = base.index.get_level_values("session")
    twice = base.assign(close=base["close"] * np.where(at > DAYS[50], 1.2, np.where(at == DAYS[50], 1.1, 1.0)))
    once = base.assign(close=base["close"] * np.where(at > DAYS[50], 1.2, 1.0))
    once.loc[(DAYS[50], "N0"), "close"] = once.loc[(DAYS[49], "N0"), "close"]
    assert compare(twice, once).rows["right"].tolist() == ["nobody knows"]


@pytest.mark.real
def test_real_vendors(real_data):
    ours = table_of(read(real_data / "spy_daily_ohlcv_1998_2021.parquet"), "SPY")
    theirs = table_of(read(real_data / "spy_adjclose_1993_2024.parquet"), "SPY")
    theirs = theirs[theirs["session"] >= "1998-01-02"].rename(columns={"close": "adj_close"})
    def shape(*years):
        cut = [f[f["session"].dt.year.isin(years)] for f in (ours, theirs)]
        return compare(*cut, price="adj_close").table["shape"].item()
    assert shape(1999, 2000) == shape(2005) == "another closing moment", "one closed at a quarter past four"
    assert shape(2018) == shape(2020) == "scale", "the same closes, adjusted up to another day"
