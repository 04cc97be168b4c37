"Labels against a loop that a person can follow, and to the bit where the future is cut"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.calendar import sessions
from tradenb.core.panel import Dataset, long
from tradenb.labels.horizon import FILLS, forward_return


def market(n_sessions, n_symbols, seed, gaps=0.05):
    "Opens and closes with holes, late listings and names that leave; the first name is always there"
    rng = np.random.default_rng(seed)
    days, names = sessions("2019-01-02", "2022-12-30")[:n_sessions], [f"S{n:02d}" for n in range(n_symbols)]
    shape = n_sessions, n_symbols
    t = np.arange(n_sessions)[:, None]
    listed = (t >= rng.integers(-20, n_sessions, n_symbols)) & (t < rng.integers(1, n_sessions + 20, n_symbols)) & (rng.random(shape) >= gaps)
    listed[:, 0] = True
    close = 50 * np.exp(rng.normal(0, 0.02, shape).cumsum(0))
    table = lambda x: pd.DataFrame(np.where(listed, x, np.nan), days, names)
    return long(open=table(close * np.exp(rng.normal(0, 0.01, shape))), close=table(close))


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), fill=st.sampled_from(list(FILLS)), excess=st.booleans())
@settings(max_examples=25, deadline=None)
def test_labels_are_what_the_loop_says(seed, k, fill, excess):
    panel = market(30, 5, seed)
    column, wait = FILLS[fill]
    days, price = list(panel.index.levels[0]), panel[column].to_dict()
    want = {}
    for (day, symbol) in panel.index:
        paid, got = days.index(day) + wait, days.index(day) + wait + k
        if got >= len(days) or (days[paid], symbol) not in price or (days[got], symbol) not in price: continue
        want[day, symbol] = price[days[got], symbol] / price[days[paid], symbol] - 1, days[paid], days[got]
    if excess:
        crowd = {day: [y for (d, _), (y, *_) in want.items() if d == day] for day, _ in want}
        want = {(d, s): (y - np.mean(crowd[d]), *rest) for (d, s), (y, *rest) in want.items() if len(crowd[d]) > 1}
        if not want:
            with pytest.raises(ValueError, match="no session has two"): forward_return(panel, k, fill, excess)
            return
    ours = forward_return(panel, k, fill, excess)
    assert list(ours.index) == list(want)
    np.testing.assert_allclose(ours["y"], [y for y, *_ in want.values()], rtol=1e-12, atol=1e-15)
    assert ours["entry"].tolist() == [e for _, e, _ in want.values()]
    assert ours["exit"].tolist() == ours["known_at"].tolist() == [x for *_, x in want.values()]
    assert (ours["known_at"] > ours.index.get_level_values("session")).all()
    Dataset(panel.loc[ours.index, ["close"]], ours["y"], pd.Series(1.0, ours.index), ours["known_at"])


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(15, 39), k=st.integers(1, 10), fill=st.sampled_from(list(FILLS)), excess=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_label_is_fixed_from_the_close_at_which_it_is_known(seed, cut, k, fill, excess):
    panel = market(40, 12, seed)
    today = panel.index.levels[0][cut]
    past, future = panel.loc[:today], panel.loc[today:].drop(index=today, level=0)
    rng = np.random.default_rng(seed)
    rubbish = (future * rng.choice([np.nan, -1, 1e-9, 3, 1e9], future.shape))[rng.random(len(future)) < 0.7]
    try: want = forward_return(panel, k, fill, excess)
    except ValueError as e:
        assert "no session has two" in str(e)
        return
    want = want[want["known_at"] <= today]
    if want.empty: return
    cut_off = forward_return(past, k, fill, excess)
    pd.testing.assert_frame_equal(cut_off, want, check_exact=True)
    if len(rubbish) and {*rubbish.index.get_level_values(0)} == {*future.index.get_level_values(0)}:  # the same session axis
        moved = forward_return(pd.concat([past, rubbish]), k, fill, excess)
        pd.testing.assert_frame_equal(moved[moved["known_at"] <= today], want, check_exact=True)


@pytest.mark.parametrize("bad", [0.0, -5.0, np.inf, np.nan])
def test_no_label_rests_on_what_is_no_price(bad):
    panel = market(30, 4, seed=1, gaps=0)
    at = panel.index.levels[0][14]
    before = forward_return(panel, 3)
    panel.loc[(at, "S00"), "open"] = bad
    lost = before.index.difference(forward_return(panel, 3).index)
    assert list(lost) == [(panel.index.levels[0][n], "S00") for n in (10, 13)]  # sold there, bought there


def test_levels_out_of_order_change_nothing():
    panel = market(40, 6, seed=2)
    levels = [level[::-1] for level in panel.index.levels]
    codes = [len(level) - 1 - np.asarray(code) for level, code in zip(levels, panel.index.codes, strict=True)]
    turned = panel.set_axis(pd.MultiIndex(levels, codes, names=panel.index.names))
    pd.testing.assert_frame_equal(forward_return(turned, 4, excess=True), forward_return(panel, 4, excess=True), check_exact=True)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "5", None])
def test_k_is_a_whole_number(k):
    with pytest.raises(ValueError, match="k is a whole number of sessions from 1 up"): forward_return(market(30, 3, 0), k)


@pytest.mark.parametrize("fill, most", [("next_open", 28), ("next_close", 28), ("same_close", 29)])
def test_the_longest_horizon_gives_labels_and_one_more_an_error(fill, most):
    panel = market(30, 3, 0, gaps=0)
    assert (forward_return(panel, most, fill).index.get_level_values("session") == panel.index.levels[0][0]).all()
    with pytest.raises(ValueError, match=f"needs {31} sessions to give one label, the panel has 30"): forward_return(panel, most + 1, fill)


@pytest.mark.real
def test_labels_of_the_real_panel(real_data):
    raw = pd.read_parquet(real_data / "us_stocks_503_daily_2015_2018.parquet")
    raw["session"], raw["symbol"] = pd.to_datetime(raw["date"]).astype("datetime64[us]"), raw["symbol"].astype("str")
    panel = raw.set_index(["session", "symbol"]).sort_index()[["open", "close"]].astype(float)
    ours, o = forward_return(panel), panel["open"].unstack()
    want = (o.shift(-6) / o.shift(-1) - 1).stack().reindex(panel.index).dropna()
    pd.testing.assert_series_equal(ours["y"], want.rename("y"), rtol=1e-12)
    assert len(ours) == len(want)
    assert abs(forward_return(panel, excess=True)["y"].groupby(level="session").mean()).max() < 1e-12
