"Implied volatilities of 100,000 real quotes, and Greeks, against the loops of vollib and QuantLib, in the same run, the same answers first"
import os
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest

from tradenb.data.american import american_premium
from tradenb.data.black import greeks, price
from tradenb.data.implied import implied, implied_vol

CHAINS, QUOTES, RATE = "option_chains_spx_spy_xsp_4_snapshots.parquet", 100_000, .05


def _real(file):
    "Bids and asks of four real chains; forwards by parity at the strike where call and put are closest, at a flat rate"
    chain = pd.read_parquet(file, columns=["snapshot", "root", "expiry", "strike", "right", "bid", "ask", "quote_stamp_text"])
    day = pd.to_datetime(chain.quote_stamp_text.str.extract(r"(\w+ \d+, \d+)")[0], format="%B %d, %Y")
    chain["years"] = (pd.to_datetime(chain.expiry) - day).dt.days/365
    chain = chain[(chain.years > 0) & (chain.bid > 0) & (chain.ask > chain.bid)].astype({"snapshot": "str"})
    chain["mid"], key = (chain.bid + chain.ask)/2, ["snapshot", "root", "expiry", "years"]
    pairs = chain.pivot_table(index=[*key, "strike"], columns="right", values="mid").dropna().reset_index()
    nearest = pairs.loc[(pairs.C - pairs.P).abs().groupby([pairs[k] for k in key]).idxmin()]
    nearest["forward"] = nearest.strike + (nearest.C - nearest.P)*np.exp(RATE*nearest.years)
    chain = chain.merge(nearest[[*key, "forward"]], on=key)
    quotes = pd.concat([chain.assign(price=chain.bid), chain.assign(price=chain.ask)], ignore_index=True)
    return quotes.iloc[:QUOTES]


def _simulated():
    "As many quotes of a made-up chain, to the cent"
    rng = np.random.default_rng(0)
    years, right = rng.choice([1, 7, 30, 90, 365], QUOTES)/365, rng.choice(["C", "P"], QUOTES)
    k = rng.normal(0, 2, QUOTES)*.2*np.sqrt(years)
    strike = (4000*np.exp(k)).round(-1)
    quotes = pd.DataFrame({"forward": 4000., "strike": strike, "years": years, "right": right})
    quotes["price"] = price(4000, strike, years, np.exp(-RATE*years), .2 - .1*k, right).round(2)
    return quotes


@pytest.fixture(scope="module")
def quotes():
    "100,000 quotes: real ones where the folder TRADENB_REAL_DATA has them"
    file = Path(os.environ.get("TRADENB_REAL_DATA", ""))/CHAINS
    table = _real(file) if file.is_file() else _simulated()
    table["discount"] = np.exp(-RATE*table.years)
    table.attrs["said"] = f"{len(table):,} {'real' if file.is_file() else 'simulated'} quotes"
    return table


def seconds(f, *args):
    "Of one core: what other programs take from the clock is not counted"
    start = process_time()
    f(*args)
    return process_time() - start


def ours(q): return implied(q.price, q.forward, q.strike, q.years, q.discount, q.right)


def by_vollib(q):
    "One quote after the other; NaN where it raises"
    from py_lets_be_rational.exceptions import AboveMaximumException, BelowIntrinsicException
    from vollib.black.implied_volatility import implied_volatility
    out = np.full(len(q), np.nan)
    for i, (p, f, k, t, right) in enumerate(zip(*(q[c].tolist() for c in ("price", "forward", "strike", "years", "right")), strict=True)):
        try: out[i] = implied_volatility(p, f, k, RATE, t, right.lower())
        except (AboveMaximumException, BelowIntrinsicException): pass
    return out


def by_quantlib(q):
    "One quote after the other; NaN where it raises"
    import QuantLib as ql
    kinds, out = {"C": ql.Option.Call, "P": ql.Option.Put}, np.full(len(q), np.nan)
    columns = ("price", "forward", "strike", "years", "discount", "right")
    for i, (p, f, k, t, d, right) in enumerate(zip(*(q[c].tolist() for c in columns), strict=True)):
        try: out[i] = ql.blackFormulaImpliedStdDev(kinds[right], k, f, p, d, 0., .2*t**.5, 1e-9, 1000)/t**.5
        except RuntimeError: pass
    return out


@pytest.mark.parametrize("peer", ["vollib", "quantlib"])
def test_implied_volatilities(benchmark, quotes, peer):
    pytest.importorskip({"quantlib": "QuantLib"}.get(peer, peer))
    theirs, least = {"vollib": (by_vollib, 20), "quantlib": (by_quantlib, 1)}[peer]
    (iv, flag), other = ours(quotes), theirs(quotes)
    both = np.isfinite(iv) & np.isfinite(other)
    again = price(quotes.forward, quotes.strike, quotes.years, quotes.discount, iv, quotes.right)
    true = np.abs(again/quotes.price - 1)[flag == ""]
    if peer == "vollib":    # the same volatility, and none for the same quotes
        np.testing.assert_allclose(iv[both], other[both], rtol=1e-9)
        assert (np.isfinite(other) == (flag == "")).all()
    else:                   # it stops a billionth away in standard deviations, and cannot invert a price without a digit of time value
        assert (np.abs(iv - other)*np.sqrt(quotes.years))[both].max() < 1e-6 and both.sum() > .95*(flag == "").sum()
    assert true.max() < 1e-13 and both.mean() > .5
    pairs = [(seconds(theirs, quotes), min(seconds(ours, quotes) for _ in range(5))) for _ in range(3)]
    benchmark.pedantic(ours, (quotes,), rounds=5)
    peers, own = (min(times) for times in zip(*pairs, strict=True))
    print(f"\nimplied volatilities of {quotes.attrs['said']} ({(flag == '').mean():.1%} have one): {own*1e3:.0f} ms, "
          f"{peer} {peers*1e3:.0f} ms, {peers/own:.1f} times as fast; {len(quotes)/own/1e6:.2f} million a second on one core, "
          f"price again to {true.max():.1e}")
    assert peers/own >= least


def test_inversions_a_second(benchmark, quotes):
    "The target: a million a second on one core, the out-of-the-money side of every quote that has a volatility"
    iv, _ = ours(quotes)
    use = quotes[np.isfinite(iv)]
    right = np.where(use.strike >= use.forward, 1., -1.)
    columns = [use[c].to_numpy() for c in ("forward", "strike", "years", "discount")]
    paid = price(*columns, iv[np.isfinite(iv)], right)
    back = implied_vol(paid, *columns, right)
    assert np.nanmax(np.abs(back/iv[np.isfinite(iv)] - 1)) < 1e-12
    own = min(seconds(implied_vol, paid, *columns, right) for _ in range(9))
    benchmark.pedantic(implied_vol, (paid, *columns, right), rounds=5)
    print(f"\n{len(use)/own/1e6:.2f} million inversions a second, {own/len(use)*1e9:.0f} ns each")
    assert len(use)/own > 1e6


def test_greeks(benchmark, quotes):
    analytical = pytest.importorskip("vollib.black_scholes_merton.greeks.analytical")
    iv, flag = ours(quotes)
    use = quotes.assign(iv=iv)[flag == ""].iloc[::5]
    use["spot"] = use.forward*np.exp(-(RATE - .015)*use.years)
    names = ("delta", "gamma", "vega", "theta", "rho")

    def mine(q): return greeks(q.forward, q.strike, q.years, q.discount, q.iv, q.right, q.spot)

    def theirs(q):
        rows = list(zip(q.right.str.lower(), *(q[c].tolist() for c in ("spot", "strike", "years", "iv")), strict=True))
        return {name: [f(right, s, k, t, RATE, v, .015) for right, s, k, t, v in rows] for name in names for f in [getattr(analytical, name)]}
    table, other = mine(use), theirs(use)
    for name in names: np.testing.assert_allclose(table[name], other[name], rtol=1e-8, atol=1e-11*np.abs(table[name]).max(), err_msg=name)
    pairs = [(seconds(theirs, use), min(seconds(mine, use) for _ in range(9))) for _ in range(2)]
    benchmark.pedantic(mine, (use,), rounds=5)
    peers, own = (min(times) for times in zip(*pairs, strict=True))
    print(f"\neight Greeks of {len(use):,} options: {own*1e3:.1f} ms, five of vollib {peers*1e3:.0f} ms, {peers/own:.0f} times as fast")
    assert peers/own >= 30


def test_american_premium_of_a_chain(benchmark, quotes):
    ql = pytest.importorskip("QuantLib")
    iv, flag = ours(quotes)
    use = quotes.assign(iv=iv)[(flag == "") & (iv < 1)].iloc[::40]
    use["spot"] = use.forward*np.exp(-(RATE - .015)*use.years)
    today, basis = ql.Date(2, 1, 2026), ql.Actual365Fixed()
    ql.Settings.instance().evaluationDate = today
    curves = [ql.YieldTermStructureHandle(ql.FlatForward(today, x, basis)) for x in (.015, RATE)]

    def mine(q): return american_premium(q.forward, q.strike, q.years, q.discount, q.iv, q.right, q.spot)

    def theirs(q):
        out = []
        for right, s, k, t, v in zip(q.right, *(q[c].tolist() for c in ("spot", "strike", "years", "iv")), strict=True):
            smile = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(today, ql.NullCalendar(), v, basis))
            process = ql.BlackScholesMertonProcess(ql.QuoteHandle(ql.SimpleQuote(s)), *curves, smile)
            end = today + round(t*365)
            option = ql.VanillaOption(ql.PlainVanillaPayoff(ql.Option.Call if right == "C" else ql.Option.Put, k), ql.AmericanExercise(today, end))
            option.setPricingEngine(ql.BinomialLRVanillaEngine(process, 103))
            out.append(option.NPV())
        return np.array(out)
    european = price(use.forward, use.strike, use.years, use.discount, use.iv, use.right)
    np.testing.assert_allclose(european + mine(use), theirs(use), atol=1e-3*use.strike.max())
    peers, own = seconds(theirs, use), min(seconds(mine, use) for _ in range(5))
    benchmark.pedantic(mine, (use,), rounds=3)
    print(f"\nAmerican premiums of {len(use):,} options: {own*1e3:.0f} ms ({own/len(use)*1e6:.1f} us each), QuantLib's Leisen-Reimer tree of "
          f"103 steps {peers*1e3:.0f} ms, {peers/own:.1f} times as fast")
    assert peers/own >= 1
