"Hedged option labels against a loop that a person can follow, to the cent, and to the bit where the future is cut"
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ndtr

from tradenb.core.calendar import sessions
from tradenb.core.panel import Dataset, long
from tradenb.labels.attribution import PARTS, attribution
from tradenb.labels.hedged import hedge, hedged
from tradenb.labels.legs import STRUCTURES, choose, flat_chain, quotes
from tradenb.labels.spreads import breakevens, lognormal, payoff, profit_probability, spread_label

seeds = st.integers(0, 2**32 - 1)
DAYS = sessions("2016-01-04", "2016-12-30")


def market(seed, n=18, holes=0.04, symbols=("X", "Y"), n_strikes=9, root=None):
    "Chains of two underlyings with quotes that are missing or flagged, and adjusted bars of both, which pay a dividend on the way"
    rng = np.random.default_rng(seed)
    days, fridays = DAYS[:n], pd.date_range(DAYS[0], DAYS[n - 1] + pd.Timedelta(days=60), freq="W-FRI")[::2]
    chains, bars = [], {}
    for symbol in symbols:
        level = pd.Series(100 * np.exp(rng.normal(0, 0.015, n).cumsum()), days)
        vol = pd.Series(0.2 + rng.normal(0, 0.01, n).cumsum(), days).clip(0.08)
        strikes = 100 + 3.0 * (np.arange(n_strikes) - n_strikes // 2)
        chains.append(flat_chain(level, vol, strikes, fridays, symbol=symbol))
        paid = np.where(np.arange(n) >= rng.integers(n), 1.0, 0.98)
        bars[symbol] = level * paid
    chain = pd.concat(chains, ignore_index=True)
    if root: chain["root"] = root
    for name in ("iv", "bid", "ask"): chain[name] *= rng.uniform(0.98, 1.0, len(chain)) if name == "bid" else rng.uniform(1.0, 1.02, len(chain))
    gone = rng.random(len(chain)) < holes
    fine = (chain["flag"] == "").to_numpy()
    chain.loc[gone & fine, "flag"] = rng.choice(["wide", "stale", "no_quote", "crossed", "arbitrage"], (gone & fine).sum())
    empty = (chain["flag"] == "no_quote").to_numpy()
    chain.loc[empty, ["bid", "ask"]] = np.nan
    chain.loc[gone & fine, ["iv", "delta", "gamma", "vega", "theta", "vanna"]] = np.nan
    chain = chain.assign(bid_open=chain["bid"] * 0.99, ask_open=chain["ask"] * 1.01)
    close = pd.DataFrame(bars)
    panel = long(open=close * np.exp(rng.normal(0, 0.005, close.shape)), close=close).rename_axis(["session", "symbol"])
    return chain[rng.random(len(chain)) >= holes].reset_index(drop=True), panel


def by_hand(chain, panel, structure, days, horizon, fill, side, spread, rate, right, far, width=1.0, follow=True):
    "The same sentences, one evening, leg and session after the other: usd, vega, premium, exit by (session, symbol)"
    axis = list(panel.index.unique("session"))
    every = list(chain.drop(columns=["forward", "discount", "rho", "charm", "volga"]).itertuples())
    book = {(r.session, r.underlying, r.root, r.expiry, r.right, r.strike): r for r in every}
    spots, evenings = {(r.session, r.underlying): r.spot for r in every}, {}
    for r in every: evenings.setdefault((r.session, r.underlying), []).append(r)
    bars = {what: panel[what].to_dict() for what in ("open", "close")}
    held = lambda s, x, what: bars[what].get((axis[s], x), math.nan)
    def fine(r): return r is not None and r.flag == "" and 0 <= r.bid <= r.ask and r.ask > 0 and all(map(math.isfinite, (r.iv, r.delta, r.vega)))
    def closable(r): return r is not None and r.flag not in ("crossed", "no_quote", "stale", "expired") and 0 <= r.bid <= r.ask and r.ask > 0
    wait = {"next_close": 1, "next_open": 1, "same_close": 0}[fill]
    later = [*axis, *DAYS[DAYS > axis[-1]][:3]]
    def evening(day, symbol, rows):
        t = axis.index(day)
        rows = [r for r in rows if fine(r)]
        lives = {r.expiry: r.years * 365 for r in rows if r.expiry > later[t + wait]}
        if not lives: return None
        near = min(lives, key=lambda e: (abs(lives[e] - days), e))
        beyond = {e: v for e, v in lives.items() if e > near}
        is_far = any(f for *_, f in STRUCTURES[structure])
        if is_far and not beyond: return None
        ends = {False: near, True: min(beyond, key=lambda e: (abs(beyond[e] - far), e)) if is_far else near}
        at = {(r.expiry, r.right, r.strike): r for r in rows}
        legs = [(right if r == "S" else r, p * width * (-1 if r == "S" and right == "P" else 1), u, ends[f]) for r, p, u, f in STRUCTURES[structure]]
        middle = [k for k in sorted({r.strike for r in rows if r.expiry == near}) if all((e, r, k) in at for r, p, _, e in legs if p == 0)]
        if not middle: return None
        k0 = {k: next(r.k for r in rows if r.strike == k and r.expiry == near) for k in middle}
        anchor = min(middle, key=lambda k: abs(k0[k]))
        of = min((r for r in rows if r.strike == anchor and r.expiry == near), key=lambda r: "CP".index(r.right) * -1)
        one = of.iv * math.sqrt(of.years)
        if abs(of.k) > one: return None
        chosen, bound = [], {1: of.k, -1: of.k}
        for r, p, u, e in legs:
            if p == 0: chosen.append((at[e, r, anchor], u)); continue
            way = 1 if p > 0 else -1
            outside = [q for q in rows if q.expiry == near and q.right == r and way * q.k > way * bound[way]]
            if not outside: break
            best = min(outside, key=lambda q: abs(q.k - p * one))
            bound[way] = best.k
            chosen.append((best, u))
        if len(chosen) < len(legs): return None
        sign = 1 if side == "long" else -1
        chosen = [(r, sign * u) for r, u in chosen]
        points = [(t + wait + i, False) for i in range(horizon + 1)]
        if fill == "next_open": points = [(t + 1, True), *[(t + 1 + i, False) for i in range(horizon)], (t + 1 + horizon, True)]
        last = max(r.expiry for r, _ in chosen)
        stop = axis.index(last) if last in axis else len(axis)
        points = list(dict.fromkeys((s, o) if s <= stop else (stop, False) for s, o in points))
        if points[-1][0] >= len(axis): return None
        def quote(r, n):
            s, o = points[n]
            q = book.get((axis[s], symbol, r.root, r.expiry, r.right, r.strike))
            if q is None or not (fine(q) if n == 0 else closable(q)): return None
            b, a = (q.bid_open, q.ask_open) if o else (q.bid, q.ask)
            return (b, a) if 0 <= b <= a and a > 0 else None
        def settled(r, n): return axis[points[n][0]] > r.expiry or (axis[points[n][0]] == r.expiry and not points[n][1])
        def value(n, way):
            total = 0.0
            for r, u in chosen:
                if settled(r, n):
                    s = spots[r.expiry, symbol]
                    total += u * max(s - r.strike if r.right == "C" else r.strike - s, 0)
                    continue
                if (q := quote(r, n)) is None: return math.nan
                b, a = q
                total += u * ((a + b) / 2 + way * (1 if u > 0 else -1) * spread * (a - b))
            return total
        level = lambda n: held(points[n][0], symbol, "open" if points[n][1] else "close")
        cash, delta = -value(0, 1), {}
        for n in range(len(points) - 1):
            if not follow: continue
            s, o = points[n]
            adjusted, quoted = held(s, symbol, "close"), spots.get((axis[s], symbol), math.nan)
            for i, (r, _) in enumerate(chosen):
                q = r if o else book.get((axis[s], symbol, r.root, r.expiry, r.right, r.strike))
                if q is not None and math.isfinite(q.delta): delta[i] = q.delta
                if settled(r, n): delta[i] = 0.0
            shares = sum(u * delta.get(i, math.nan) for i, (_, u) in enumerate(chosen)) * quoted / adjusted
            gap = (axis[points[n + 1][0]] - axis[s]).days
            cash += (cash + shares * level(n)) * rate / 365 * gap - shares * (level(n + 1) - level(n))
        usd = cash + value(len(points) - 1, -1)
        entry = [r if fill == "next_open" else book.get((axis[t + wait], symbol, r.root, r.expiry, r.right, r.strike)) for r, _ in chosen]
        if not math.isfinite(usd) or any(e is None for e in entry): return None
        vega = sum(abs(u) * e.vega for e, (_, u) in zip(entry, chosen, strict=True))
        mids = [sum(quote(r, 0)) / 2 for r, _ in chosen]
        return usd, vega, abs(sum(u * m for m, (_, u) in zip(mids, chosen, strict=True))), axis[points[-1][0]]
    return {key: evening(*key, rows) for key, rows in evenings.items()}


asked = dict(seed=seeds, structure=st.sampled_from(list(STRUCTURES)), days=st.sampled_from([5, 12, 25]), horizon=st.integers(1, 8),
             fill=st.sampled_from(["next_close", "next_open", "same_close"]), side=st.sampled_from(["long", "short"]),
             spread=st.sampled_from([0.0, 0.3, 0.5]), rate=st.sampled_from([0.0, 0.05]), right=st.sampled_from(["C", "P"]))


@given(**asked, unit=st.sampled_from(["usd", "vega", "premium"]))
@settings(max_examples=8, deadline=None)
def test_labels_are_what_the_loop_says(seed, structure, days, horizon, fill, side, spread, rate, right, unit):
    chain, panel = market(seed, n=14)
    want = by_hand(chain, panel, structure, days, horizon, fill, side, spread, rate, right, 40)
    ours = hedged(chain, panel, structure, days, horizon, "delta", spread, unit, fill, side, 1.0, right, 40, rate)
    assert list(ours.index) == sorted(want)
    for key, row in zip(ours.index, ours.itertuples(), strict=True):
        if want[key] is None:
            assert math.isnan(row.y) and row.entry is row.exit is row.known_at is pd.NaT
            continue
        usd, vega, premium, exit_ = want[key]
        scale = dict(usd=1.0, vega=vega, premium=premium)[unit]
        assert row.y == pytest.approx(usd / scale, rel=1e-9, abs=1e-11)
        assert row.exit == row.known_at == exit_
        assert row.entry == panel.index.unique("session")[list(panel.index.unique("session")).index(key[0]) + (fill != "same_close")]


@pytest.mark.parametrize("seed, structure, days", [(0, "calendar", 5), (1, "calendar", 12), (2, "straddle", 5)])
def test_a_leg_that_settles_on_the_way_is_paid_and_hedged_no_more(seed, structure, days):
    chain, panel = market(seed, n=14, holes=0)
    want = {key: v for key, v in by_hand(chain, panel, structure, days, 9, "next_close", "long", 0.5, 0.0, "C", 40).items() if v}
    ours = hedged(chain, panel, structure, days, 9, "delta", 0.5, "usd", far=40).dropna()
    settles = {e for e in chain["expiry"].unique() if DAYS[2] <= e < DAYS[13]}
    assert list(ours.index) == sorted(want) and any(key[0] < e < v[3] or e == v[3] for key, v in want.items() for e in settles)
    np.testing.assert_allclose(ours["y"], [want[key][0] for key in ours.index], rtol=0, atol=1e-10)


@given(**asked)
@settings(max_examples=8, deadline=None)
def test_spread_labels_are_what_the_loop_says(seed, structure, days, horizon, fill, side, spread, rate, right):
    chain, panel = market(seed, n=14)
    want = by_hand(chain, panel, structure, days, horizon, fill, side, spread, 0.0, right, 40, follow=False)
    ours = spread_label(chain, panel, structure, days, 1.0, horizon, fill, side, right, 40, spread)
    known = ours["y"].notna()
    assert {key for key, v in want.items() if v} >= set(ours.index[known])
    for key, row in ours[known].iterrows():
        assert row["pnl"] == pytest.approx(want[key][0], rel=1e-9, abs=1e-11)
        assert row["y"] == (row["pnl"] > 1e-9)


@given(**{k: v for k, v in asked.items() if k != "fill"}, fill=st.sampled_from(["next_close", "same_close"]))
@settings(max_examples=12, deadline=None)
def test_attribution_sums_to_the_profit_to_the_cent(seed, structure, days, horizon, fill, side, spread, rate, right):
    chain, panel = market(seed, n=14)
    how = dict(structure=structure, days=days, horizon=horizon, fill=fill, side=side, spread=spread, rate=rate, right=right, far=40)
    y = hedged(chain, panel, unit="usd", **how)["y"].dropna()
    parts = attribution(chain, panel, **how)
    assert list(parts.columns) == [*PARTS, "pnl"]
    assert np.isfinite(parts.to_numpy()).all()
    np.testing.assert_allclose(parts[list(PARTS)].sum(axis=1), parts["pnl"], rtol=0, atol=1e-10)
    total = parts.groupby(level=["session", "symbol"]).sum()
    assert list(total.index) == list(y.index)
    np.testing.assert_allclose(total["pnl"], y, rtol=0, atol=1e-9)
    assert (np.round(100 * (total[list(PARTS)].sum(axis=1) - y).to_numpy(), 6) == 0).all()


def test_a_hedge_at_its_own_delta_leaves_no_delta_part_and_a_missing_quote_does():
    chain, panel = market(3, holes=0)
    parts = attribution(chain, panel, horizon=6)
    assert abs(parts["delta"]).max() < 1e-12
    holed, panel = market(3, holes=0.15)
    assert len(attribution(holed, panel, horizon=6).groupby(level=[0, 1]).size().unique()) > 1  # sessions told together


@given(seed=seeds, cut=st.integers(4, 15), structure=st.sampled_from(list(STRUCTURES)), horizon=st.integers(1, 6),
       fill=st.sampled_from(["next_close", "next_open", "same_close"]), which=st.sampled_from([hedged, spread_label]))
@settings(max_examples=12, deadline=None)
def test_a_label_is_fixed_from_the_close_at_which_it_is_known(seed, cut, structure, horizon, fill, which):
    chain, panel = market(seed, n=17)
    today = DAYS[cut]
    label = lambda c, p: which(c, p, structure, **{"days": 20, "horizon": horizon, "fill": fill, "far": 45})
    whole = label(chain, panel)
    known = whole[whole["known_at"] <= today]
    assert (known["known_at"] > known.index.get_level_values("session")).all()
    past, later = panel.loc[:today], (chain["session"] > today).to_numpy()
    pd.testing.assert_frame_equal(label(chain[~later], past).dropna(), known, check_exact=True)
    rng, rubbish, bars = np.random.default_rng(seed), chain.copy(), panel.copy()
    names = ["bid", "ask", "bid_open", "ask_open", "iv", "delta", "vega", "k", "spot", "years"]
    rubbish.loc[later, names] *= rng.choice([np.nan, -1, 1e-6, 3, 1e6], (later.sum(), len(names)))
    bars.loc[bars.index.get_level_values("session") > today] *= 7
    moved = label(rubbish, bars)
    pd.testing.assert_frame_equal(moved.loc[known.index], known, check_exact=True)


@given(seed=seeds, structure=st.sampled_from(list(STRUCTURES)))
@settings(max_examples=4, deadline=None)
def test_the_order_of_rows_is_nobodys_business(seed, structure):
    chain, panel = market(seed)
    turned = chain.sample(frac=1, random_state=seed % 2**31)
    pd.testing.assert_frame_equal(hedged(turned, panel, structure), hedged(chain, panel, structure), check_exact=True)
    pd.testing.assert_frame_equal(spread_label(turned, panel, structure), spread_label(chain, panel, structure), check_exact=True)


def test_the_other_side_and_other_underlyings_change_nothing():
    chain, panel = market(5)
    both = hedged(chain, panel, unit="usd")
    np.testing.assert_allclose(hedged(chain, panel, unit="usd", side="short")["y"], -both["y"], atol=1e-12)
    alone = hedged(chain[chain["underlying"] == "Y"], panel, unit="usd")
    pd.testing.assert_frame_equal(alone, both[both.index.get_level_values("symbol") == "Y"], check_exact=True)
    more = pd.concat([panel, panel.xs("X", level=1, drop_level=False).rename(index={"X": "A"}, level=1)]).sort_index()
    pd.testing.assert_frame_equal(hedged(chain, more, unit="usd"), both, check_exact=True)


def test_labels_make_a_dataset():
    chain, panel = market(6)
    y = hedged(chain, panel)
    known = y["known_at"].notna()
    assert y["known_at"].dtype == "datetime64[us]"
    Dataset(panel.loc[y.index, ["close"]], y["y"], pd.Series(1.0, y.index), y["known_at"])
    assert known.any() and not known.all() and (known == y["y"].notna()).all()


def test_in_black_scholes_world_the_error_shrinks_like_the_root_of_the_step():
    vol, life, paths, most = 0.2, 21 / 252, 6000, 160
    rng = np.random.default_rng(7)
    z = rng.normal(-0.5 * vol**2 * life / most, vol * np.sqrt(life / most), (paths, most))
    s = 100 * np.exp(np.pad(z, ((0, 0), (1, 0))).cumsum(axis=1))
    left = life * np.arange(most, -1, -1) / most
    d = np.log(s / 100) / np.maximum(vol * np.sqrt(left), 1e-12) + vol * np.sqrt(left) / 2
    v, delta = 2 * (s * ndtr(d) - 100 * ndtr(d - vol * np.sqrt(left))) - s + 100, 2 * ndtr(d) - 1
    found = {n: hedge(v[:, :: most // n], delta[:, :: most // n], s[:, :: most // n]) for n in (20, 40, 80, 160)}
    for n, e in found.items():
        assert abs(e.mean()) < 4 * e.std() / np.sqrt(paths)
        assert e.std() == pytest.approx(np.sqrt(np.pi / 4) * 2 * 100 * np.sqrt(life / (2 * np.pi)) * vol / np.sqrt(n), rel=0.08)
    slope = np.polyfit(np.log(list(found)), [np.log(e.std()) for e in found.values()], 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)


def test_interest_makes_the_hedge_fair_where_there_are_rates():
    vol, life, rate, n = 0.2, 0.25, 0.08, 250
    rng = np.random.default_rng(1)
    z = rng.normal((rate - 0.5 * vol**2) * life / n, vol * np.sqrt(life / n), (4000, n))
    s = 100 * np.exp(np.pad(z, ((0, 0), (1, 0))).cumsum(axis=1))
    left = life * np.arange(n, -1, -1) / n
    f = s * np.exp(rate * left)
    d = np.log(f / 100) / np.maximum(vol * np.sqrt(left), 1e-12) + vol * np.sqrt(left) / 2
    call = np.exp(-rate * left) * (f * ndtr(d) - 100 * ndtr(d - vol * np.sqrt(left)))
    with_, without = hedge(call, ndtr(d), s, interest=np.expm1(rate * life / n)), hedge(call, ndtr(d), s)
    assert abs(with_.mean()) < 4 * with_.std() / np.sqrt(4000)
    assert abs(without.mean()) > 20 * without.std() / np.sqrt(4000)


@given(seed=seeds, n=st.integers(1, 4), cost=st.floats(-8, 8), vol=st.floats(0.1, 0.8))
@settings(max_examples=12, deadline=None)
def test_the_probability_is_the_integral_over_gaining_prices(seed, n, cost, vol):
    rng = np.random.default_rng(seed)
    legs = [(str(rng.choice(["C", "P"])), float(rng.integers(80, 121)), float(rng.choice([-2, -1, 1, 2]))) for _ in range(n)]
    dist, s = lognormal(100, 0.5, vol), vol * np.sqrt(0.5)
    z = (np.arange(100_000) + 0.5) / 100_000 * 16 - 8
    gains = payoff(100 * np.exp(s * z - s * s / 2), legs) - cost > 0
    brute = (np.exp(-z * z / 2) / np.sqrt(2 * np.pi))[gains].sum() * 16 / 100_000
    assert profit_probability(legs, cost, dist) == pytest.approx(brute, abs=3e-4)
    for b in breakevens(legs, cost):
        assert payoff(b, legs) == pytest.approx(cost, abs=1e-8)


def test_lognormal_has_its_forward_as_mean():
    dist = lognormal(100, 0.5, 0.3)
    assert quad(lambda x: 1 - dist(x), 0, 2000, limit=200, points=[50, 100, 200])[0] == pytest.approx(100, rel=1e-6)
    assert lognormal(100, 0.5, 0.3, drift=0.1)(100) < dist(100)


def test_morning_settled_options_end_at_the_open():
    chain, panel = market(8, holes=0, root="SPX")
    q = quotes(chain, panel)
    rows = choose(q, "single", days=12)
    t = q.table.iloc[rows[0]]
    y = hedged(chain, panel, "single", days=12, horizon=20, unit="usd", hedge="none")
    day = pd.Timestamp(t["expiry"].iloc[0])
    assert y["exit"].iloc[0] == day
    spot, bar = chain[(chain["session"] == day) & (chain["underlying"] == "X")]["spot"].iloc[0], panel.loc[day, "X"]
    at_entry = chain[(chain["session"] == DAYS[1]) & (chain["underlying"] == "X") & (chain["expiry"] == day)
                     & (chain["strike"] == t["strike"].iloc[0]) & (chain["right"] == "C")].iloc[0]
    mid = (at_entry["bid"] + at_entry["ask"]) / 2
    paid = max(spot * bar["open"] / bar["close"] - t["strike"].iloc[0], 0)
    assert y["y"].iloc[0] == pytest.approx(paid - mid, abs=1e-9)
    held = chain[(chain["underlying"] == "X") & (chain["expiry"] == day) & (chain["strike"] == t["strike"].iloc[0]) & (chain["right"] == "C")]
    held, bars = held.set_index("session").loc[DAYS[1] : day], panel.xs("X", level=1)
    shares, ends = held["delta"] * held["spot"] / bars["close"].loc[held.index], bars["close"].loc[held.index].to_numpy(copy=True)
    ends[-1] = bar["open"]
    gained = (shares.to_numpy()[:-1] * (ends[1:] - bars["close"].loc[held.index].to_numpy()[:-1])).sum()
    assert hedged(chain, panel, "single", days=12, horizon=20, unit="usd")["y"].iloc[0] == pytest.approx(paid - mid - gained, abs=1e-9)
    parts = attribution(chain, panel, structure="single", days=12, horizon=20).loc[DAYS[0], :, :].xs("X", level="symbol")
    assert parts["pnl"].sum() == pytest.approx(paid - mid - gained, abs=1e-9)


@pytest.mark.parametrize("change, said", [
    (dict(structure="stradle"), "no structure 'stradle'; did you mean 'straddle'"), (dict(horizon=0), "horizon is a whole number of sessions"),
    (dict(horizon=2.5), "was 2.5"), (dict(horizon=True), "was True"), (dict(fill="close"), "there is no fill='close'"),
    (dict(unit="point"), "there is no unit='point'"), (dict(side=1), "there is no side=1"), (dict(spread=-0.1), "0 to 1, or 'half', was -0.1"),
    (dict(spread=math.nan), "was nan"), (dict(days=0), "days is a number of calendar days above 0"), (dict(far=math.inf, structure="calendar"), "far is"),
    (dict(right="call"), "right is 'C'"), (dict(width=-1), "width is a number"), (dict(hedge=None), "there is no hedge=None")])
def test_bad_questions_get_one_clear_answer(change, said):
    chain, panel = market(0)
    with pytest.raises(ValueError) as e: hedged(chain, panel, **change)
    assert said in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("spoil, said", [
    (lambda c, p: (c.drop(columns=["k", "vega"]), p), "the chain has no k, vega; price it first"),
    (lambda c, p: (c.head(0), p), "the chain has no rows"),
    (lambda c, p: (pd.concat([c, c.head(1)]), p), "has 1 contracts twice in a session"),
    (lambda c, p: (c, p.rename(index={"X": "A", "Y": "B"}, level=1)), "the panel has no X"),
    (lambda c, p: (c, p.drop(columns="close")), "the panel has no close")])
def test_bad_data_gets_one_clear_answer(spoil, said):
    with pytest.raises(ValueError) as e: hedged(*spoil(*market(0)))
    assert said in str(e.value)
