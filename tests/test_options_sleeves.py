"Both options sleeves as somebody at a terminal uses them, on a short span of the demo's simulated chains"
import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from tradenb.data.chains import priced
from tradenb.data.quality import audit
from tradenb.data.simulated_chains import sample_history
from tradenb.ops.chains import read_chain
from tradenb.ops.history import backtest
from tradenb.ops.leaks import audit_recipe
from tradenb.ops.line import account, dataset, gather, traded
from tradenb.ops.option_sheet import earned, exposures
from tradenb.ops.options import decided
from tradenb.ops.recipe import load

SHORT = ["data.end=2014-12-31", "split={walk_forward: {train: 120, test: 60, embargo: 10}}",
         "model={lightgbm: {n_estimators: 10, num_leaves: 7, min_child_samples: 20}}"]
PLAIN = ["features=[{momentum: {windows: [5, 20]}}, dealer, vix]"]   # without the surface, which takes its time


@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("options")


@pytest.mark.whole
@pytest.mark.parametrize("name", ["options_vol", "short_term"])
def test_a_sleeve_from_its_recipe_to_its_account(root, home, name):
    recipe = load(root/"recipes"/f"{name}.yml", [*SHORT, *PLAIN])
    done = backtest(recipe, home, n_jobs=1)
    assert done.facts["simulated"] and len(done.fills) > 10
    market, scores = gather(recipe, home, update=False), done.scored["score"]
    trades, bars = decided(recipe, scores, market.chain, market.prints), traded(recipe, scores, market)[1]
    ledger = account(recipe, scores, market)
    assert (ledger.nav == done.days["nav"]).all()
    # each option was bought at the ask and sold at the bid of its moment
    fills = ledger.fills[ledger.fills["symbol"] != "SPX"]
    at = pd.MultiIndex.from_frame(fills[["session", "symbol"]])
    side = "_open" if recipe.execution.fill == "next_open" else ""
    quotes = bars._panel.reindex(at)
    want = np.where(fills["shares"] > 0, quotes[f"ask{side}"], quotes[f"bid{side}"])
    np.testing.assert_array_equal(fills["price"], want)
    assert (fills["shares"] % 100 == 0).all()
    # nothing is decided twice over an exit, and nothing is held after its expiry
    held = ledger.positions.drop(columns="SPX", errors="ignore")
    for contract, expiry in trades.drop_duplicates("contract").set_index("contract")["expiry"].items():
        if contract in held: assert (held.loc[held.index > expiry, contract] == 0).all(), contract
    # the parts of the P&L add up to the cent, and Vega stays under its cap
    parts = earned(ledger, market.chain, market.prints)
    assert parts.drop(columns="pnl").sum(axis=1).sub(parts["pnl"]).abs().max() < .005
    assert parts["pnl"].sum() == pytest.approx(ledger.nav.iloc[-1] - ledger.opening, abs=.005)
    assert exposures(ledger, market.chain, market.prints)["vega"].abs().max() < .004


@pytest.mark.whole
def test_nothing_later_changes_an_earlier_decision(root, home):
    recipe = load(root/"recipes"/"short_term.yml", [*SHORT, *PLAIN])
    whole, cut = gather(recipe, home), pd.Timestamp("2014-10-15")
    then = gather(recipe, home, when=cut, update=False)
    assert then.chain["session"].max() == cut
    past = whole.chain[whole.chain["session"] <= cut].reset_index(drop=True)
    columns = ["session", "contract", "bid", "ask", "open_interest", "iv", "delta", "forward", "flag"]
    pd.testing.assert_frame_equal(then.chain[columns].reset_index(drop=True), past[columns], check_exact=True)
    now, before = (dataset(recipe, m, home).X for m in (whole, then))
    pd.testing.assert_frame_equal(before, now.loc[:cut].reindex(before.index), check_exact=True)
    scores = pd.Series(np.where(np.arange(len(before)) % 2, .01, -.01), before.index, name="score")
    a, b = (decided(recipe, scores, m.chain, m.prints) for m in (whole, then))
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.whole
def test_the_audit_finds_no_leak_and_finds_a_planted_one(root, home, monkeypatch):
    recipe = load(root/"recipes"/"short_term.yml", [*SHORT, "features=[{momentum: {windows: [5, 20]}}, dealer]"])
    assert audit_recipe(recipe, home, n=3).ok
    from tradenb.features import gex
    clean = gex.dealer
    def dealer(chain):   # tomorrow's walls among today's features
        made = clean(chain)
        return made.groupby(level="symbol").shift(-1)
    monkeypatch.setattr(gex, "dealer", dealer)
    found = audit_recipe(recipe, home, n=3)
    assert not found.ok and "features.dealer" in found.table.loc[(found.table["ok"] == False).fillna(False), "part"].tolist()  # noqa: E712


@pytest.mark.whole
def test_the_pages_of_a_sleeve_and_of_a_chain(root, home, tmp_path, command):
    small = tmp_path/"small_vol.yml"
    small.write_text(f"extends: {root/'recipes'/'options_vol.yml'}\nname: small_vol\ntitle: A small volatility sleeve\n")
    sets = [x for s in (*SHORT, *PLAIN) for x in ("--set", s)]
    code, said = command("backtest", small, "--home", home, "--no-track", *sets)
    assert code == 0, said
    for kind in ("backtest", "options"):
        page, = (home/"reports"/kind/"small_vol").glob("*/index.html")
        words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))).split())
        assert "SIMULATED" in words and "Verdict" in words and "Warning" not in words and "Traceback" not in words, kind
    for must in ("Earned by exposure", "no option on this page was ever quoted", "half-spreads in options took"):
        assert must in page.read_text(encoding="utf-8") or must in words, must
    chain = sample_history(30).loc[lambda c: c["session"] == c["session"].max()]
    chain.to_csv(tmp_path/"chain.csv", index=False)
    assert len(read_chain(tmp_path/"chain.csv")) == len(chain)
    code, said = command("chain", tmp_path/"chain.csv", "--home", home)
    assert code == 0 and "SIMULATED SPX" in said and "dealers' gamma" in said, said
    page, = (home/"reports"/"chain").glob("*/index.html")
    assert "free of butterfly arbitrage" in page.read_text(encoding="utf-8")
    code, said = command("chain", tmp_path/"chain.csv", "--underlying", "SPY")
    assert code == 1 and "there is no chain of SPY; the file has SPX" in re.sub(r"[│\s]+", " ", said)


def test_the_gate_on_chains_sees_what_was_spoiled():
    sound = sample_history(12)
    days = sorted(sound["session"].unique())
    assert audit(sound, kind="chain").status != "RED"
    stale = sound.copy()
    stale.loc[stale["session"] == days[6], "underlying_price"] = stale.loc[stale["session"] == days[5], "underlying_price"].iloc[0]
    again = sound[sound["session"] == days[5]].assign(session=days[6]).loc[lambda c: c["expiry"] >= c["session"]]
    repeated = pd.concat([sound[sound["session"] != days[6]], again])
    fewer = sound[~((sound["session"] == days[6]) & (sound["right"] == "P"))]
    for spoiled, check in ((stale, "stale underlying"), (repeated, "repeated session"), (fewer, "missing contracts")):
        found = audit(spoiled, kind="chain").findings
        hit = found[found["check"] == check]
        assert len(hit) == 1 and days[6].strftime("%Y-%m-%d") in hit["said"].iloc[0], check
        assert check not in set(audit(sound, kind="chain").findings["check"])


def test_a_recipe_that_reads_chains_says_where_they_come_from(root, tmp_path, home):
    plain = tmp_path/"plain.yml"
    plain.write_text("name: plain\ndata: {settings: {universe: indices}, symbols: [SPX], start: 2016-01-04, end: 2016-06-30}\n"
                     "features: [dealer]\nmodel: xgboost\nrules: [{directional: {}}]\n")
    recipe = load(plain)
    with pytest.raises(ValueError, match="features.dealer reads option chains, and the recipe has no part options"):
        dataset(recipe, gather(recipe, home), home)


@pytest.mark.parametrize(("session", "underlying", "within"), [("2022-06-10", "SPX", .1), ("2023-09-14", "SPX", .1)])
def test_the_published_index_comes_out_of_real_chains(real_data, session, underlying, within, tmp_path, command):
    code, said = command("chain", real_data/"option_chains_spx_spy_xsp_4_snapshots.parquet", "--underlying", underlying, "--session", session,
                         "--published", real_data/"vix_daily_1990_2026.parquet", "--no-page")
    assert code == 0, said
    ours, theirs = (float(x) for x in re.search(r"([\d.]+), published ([\d.]+)", said).groups())
    assert abs(ours - theirs) <= within


def test_priced_twice_is_priced_once():
    once = priced(sample_history(3))
    pd.testing.assert_frame_equal(priced(once)[once.columns], once)
    assert json.loads(once["flag"].value_counts().to_json())
