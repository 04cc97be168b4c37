"The reports, run by papermill as a scheduler would and rendered: what the pages must say"
import html
import re

import pytest

from tradenb.ops.daily import day
from tradenb.ops.recipe import load
from tradenb.ops.report import report


def words(page): return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))).split())


@pytest.mark.whole
def test_the_backtest_page_and_its_null(small, tmp_path):
    told = {"recipe": str(small), "home": str(tmp_path/"home")}
    said = words(page := report("backtest", tmp_path/"page", told, "SIMULATED market"))
    for must in ("SIMULATED market", "Data", "Model", "Prediction", "Analysis", "Verdict", "95% interval", "not distinguishable from",
                 "equal-weighted market", "no risk-free rate is subtracted", "Mean rank IC", "sharpe", "Lo 2002"):
        assert must in said, must
    assert page.read_text().count("<img") >= 5
    made = page.stat().st_mtime_ns
    assert report("backtest", tmp_path/"page", told, "SIMULATED market").stat().st_mtime_ns == made   # not made twice
    null = words(report("backtest", tmp_path/"null", told | {"permute": 0}, "SIMULATED market"))
    assert "This is the null. Labels were shuffled within each session (seed 0)" in null and "The null:" in null


@pytest.mark.whole
def test_the_daily_page(small, tmp_path):
    facts = day(load(small), tmp_path/"home")
    told = {"recipe": str(small), "home": str(tmp_path/"home"), "session": facts["session"]}
    said = words(report("daily", tmp_path/"page", told, "SIMULATED market"))
    for must in ("SIMULATED market", f"{facts['account']['nav']:,.2f}", facts["session"], f"{facts['orders']['count']} orders for the next open",
                 "Verdict", "Sharpe ratio", facts["targets"]["long"][0]["symbol"]):
        assert must in said, must
    assert "Warning" not in said and "site-packages" not in said   # nobody's machine on the page


def test_a_report_that_stops_half_way_is_told_and_kept(small, tmp_path):
    with pytest.raises(RuntimeError, match="report backtest stopped in a cell: RecipeError: .*no such recipe.*what it had done is in"):
        report("backtest", tmp_path/"page", {"recipe": str(tmp_path/"none.yml"), "home": str(tmp_path/"home")})
    assert (tmp_path/"page"/"report.ipynb").is_file() and not (tmp_path/"page"/"index.html").exists()
