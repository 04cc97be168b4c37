"The paper account from the command line: a kill switch that fires, a person who releases it, a broker who disagrees, a file that was changed"
import re

import numpy as np
import pytest

from tests.recipes import SMALL
from tradenb.execution.ledger import Ledger
from tradenb.ops.daily import account_folder
from tradenb.ops.line import known_sessions
from tradenb.ops.recipe import load


def plain(said): return re.sub(r"[│\s]+", " ", said)    # a sentence may be broken into two lines of a panel


@pytest.fixture
def touchy(tmp_path):
    "A recipe whose switch fires at the first loss worth a tenth of a volatility"
    path = tmp_path/"touchy.yml"
    path.write_text(SMALL.replace("{gross: {cap: 1.0}}]", "{gross: {cap: 1.0}}, {kill_switch: {sigma: 0.1, drawdown: null, sharpe_window: null}}]"))
    return path


@pytest.mark.whole
def test_a_switch_fires_a_person_releases_it_and_it_is_on_file(touchy, command):
    recipe, home = load(touchy), "var"
    known = known_sessions(recipe, home)
    code, said = command("daily", touchy, "--session", f"{known[-3]:%Y-%m-%d}", "--no-page")
    said = plain(said)
    assert code == 0 and "kill_switch fired on" in said and "account release RECIPE kill_switch" in said, said
    folder = account_folder(recipe, home)/"ledger"
    ledger = Ledger.open(folder)
    since = re.search(r"kill_switch fired on (\S+):", said)[1]
    flat = ledger.positions.loc[since:].iloc[1:]
    assert len(flat) > 2 and (flat == 0).all(axis=None) and (ledger.positions.loc[:since] != 0).any(axis=None)
    code, said = command("account", "show", touchy)
    assert code == 0 and "0 long, 0 short" in said and f"kill_switch on {since}" in said and ledger.head in said

    code, said = command("account", "release", touchy, "kill_switch", "--by", " ", "--why", "looked")
    assert code == 1 and "error" in said and Ledger.open(folder).head == ledger.head, said
    code, said = command("account", "release", touchy, "kill_switch", "--by", "A. Person", "--why", "a bad print, mended")
    assert code == 0 and f"by A. Person, after {known[-3]:%Y-%m-%d}" in said
    assert "A. Person" in (folder/f"{known[-3]:%Y-%m-%d}.release-1.json").read_text()
    code, said = command("account", "release", touchy, "kill_switch", "--by", "A. Person", "--why", "again")
    assert code == 1 and "released by A. Person" in said
    code, said = command("daily", touchy, "--no-page")
    assert code == 0 and "fired" not in said, said
    assert (Ledger.open(folder).positions.iloc[-1] != 0).any()            # decided two evenings ago, filled tonight
    code, said = command("account", "verify", touchy, "--noted", ledger.head)
    assert code == 0 and "unchanged up to" in said, said


@pytest.mark.whole
def test_a_broker_who_agrees_one_who_does_not_and_a_file_that_was_changed(small, command, tmp_path):
    assert command("daily", small, "--no-page")[0] == 0
    folder = account_folder(load(small), "var")/"ledger"
    ledger = Ledger.open(folder)
    book = ledger.book
    held = book.shares != 0
    statement = tmp_path/"broker.csv"
    def told(shares): statement.write_text("symbol,shares,price\n" + "".join(
        f"{s},{q!r},{p!r}\n" for s, q, p in zip(book.symbols[held], shares.tolist(), book.marks[held].tolist(), strict=True)))
    told(book.shares[held])
    cash = ("--cash", repr(book.cash))
    code, said = command("account", "reconcile", small, statement, *cash)
    assert code == 0, said
    other = book.shares[held].copy()
    other[0] += 3
    told(other)
    code, said = command("account", "reconcile", small, statement, *cash)
    assert code == 3 and str(book.symbols[held][0]) in said and "1 difference" in said, said
    statement.write_text("name,number\nA,1\n")
    code, said = command("account", "reconcile", small, statement, *cash)
    assert code == 1 and "a statement has the columns symbol and shares" in said
    file = sorted(folder.glob("????-??-??.json"))[5]
    text = file.read_text()
    price = re.search(r'"price": \[(\d+\.\d+)', text)[1]
    file.write_text(text.replace(price, str(np.nextafter(float(price), 0)), 1))
    code, said = command("account", "verify", small)
    assert code == 3 and f"{file.name} was changed after it was written" in said
    code, said = command("account", "show", small)
    assert code == 1 and file.name in said
