"An account's papers: whatever happens to it adds up, reads back to the bit, cannot be changed unnoticed, and is explained"
import json
import os
import random
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.execution import vault
from tradenb.execution.actions import Actions, Event, booked, carry, delist, dividend, happen, split, written
from tradenb.execution.book import Book, Entry, line
from tradenb.execution.orders import Fills
from tradenb.execution.reconcile import reconcile
from tradenb.execution.statements import Statements

few = settings(max_examples=30, deadline=None)
NAMES = np.array([f"N{i}" for i in range(5)], dtype=object)
KINDS = "split", "lots", "dividend", "delisting", "carry", "fill", "close"


# Whatever happens

def start(rng):
    n = len(NAMES)
    shares = np.where(rng.random(n) < .7, rng.integers(-200, 200, n), 0).astype(float)
    price = rng.uniform(20, 500, n).round(2)
    return Book(NAMES, shares, price, 50_000., np.where(shares != 0, price, np.nan))


def some(rng, values, none=np.nan): return np.where(rng.random(len(NAMES)) < .5, values, none)


def act(kind, book, rng):
    "One thing that happens: the function that books it, and what it needs"
    n = len(NAMES)
    match kind:
        case "split": return split, (some(rng, rng.choice([7., 2., 1.5, .1, 1.], n)),)
        case "lots": return split, (some(rng, rng.choice([7., 1.5, .1], n)), 1.)
        case "dividend": return dividend, (some(rng, np.round(book.marks*rng.uniform(0, .04, n), 4)),)
        case "delisting":
            gone = rng.random(n) < .25
            return delist, (np.where(gone, rng.choice([0., 3.25, np.nan], n), np.nan), gone)
        case "carry": return carry, (np.where(book.shares < 0, rng.uniform(0, 5, n), 0.), float(rng.normal(0, 3)))


def exactly(book):
    "NAV without rounding"
    worth = (Fraction(q)*Fraction(m) for q, m in zip(book.shares.tolist(), book.marks.tolist(), strict=True))
    return Fraction(book.cash) + sum(worth)


def take(kind, book, rng):
    "The account after one thing, and the entry that keeps it"
    entry = Entry(pd.Timestamp("2024-01-02"), book)
    if kind == "fill":
        deal = np.where(rng.random(len(NAMES)) < .5, rng.integers(-100, 100, len(NAMES)), 0).astype(float)
        price = np.where(deal != 0, np.maximum(book.marks, 1.), 0.)
        entry.trade(Fills(NAMES, deal, price, np.abs(deal)*.01), book.nav)
    elif kind == "close": entry.mark(np.maximum(book.marks, 1.)*np.exp(rng.normal(0, .02, len(NAMES))))
    else:
        done, given = act(kind, book, rng)
        entry.befall(done(book, *given))
    return entry


@few
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=15), st.integers(0, 2**32))
def test_what_happens_adds_up_and_reads_back_to_the_bit(kinds, seed):
    """In exact fractions: NAV moves by the event's cash and, where a name was delisted, by price less mark; a split and a dividend
    move nothing. What was written down, read from JSON, takes the account there again. The views know the shares of every evening."""
    rng, lines, books = np.random.default_rng(seed), [], []
    book = again = begin = start(rng)
    account = type("Account", (Statements,), {})()
    account.opening, account.symbols, account.lines = book.cash, NAMES, lines
    first = Fills(NAMES, book.shares, np.zeros(5), np.zeros(5))
    lines.append(line(Entry(pd.Timestamp("2024-01-01"), book, fills=first)))
    books.append(book)
    for i, kind in enumerate(kinds):
        entry = take(kind, book, rng)
        entry.session = pd.Timestamp("2024-01-02") + pd.Timedelta(days=i)
        after, events = entry.book, entry.events
        moved = exactly(after) - exactly(book)
        told = [Event.of(e) for e in json.loads(json.dumps(written(events)))]
        assert told == events
        if kind in ("split", "lots", "dividend"): assert abs(moved) < Fraction(1, 10**6)
        if kind == "split": np.testing.assert_allclose(after.entry*after.shares, book.entry*book.shares, rtol=1e-12)
        if kind == "delisting":
            lost = sum(Fraction(-e.shares)*(Fraction(e.amount) - Fraction(book.marks[NAMES == e.symbol][0])) for e in events)
            assert abs(moved - lost) < Fraction(1, 10**6)
        if kind == "carry": assert abs(moved - sum(Fraction(e.cash) for e in events)) < Fraction(1, 10**6)
        if kind not in ("fill", "close"):
            again = booked(replace(book), told)
            assert (again.cash, again.shares.tolist()) == (after.cash, after.shares.tolist())
            held = after.shares != 0
            assert again.marks[held].tolist() == after.marks[held].tolist()
            np.testing.assert_array_equal(again.entry, after.entry)
            assert (np.isnan(after.entry) == ~held).all()
        if kind == "lots": assert all(after.shares[NAMES == e.symbol][0] % 1 == 0 for e in events)
        lines.append(line(entry))
        books.append(after)
        book = after
    views = account.positions[NAMES].to_numpy()
    assert views.tolist() == [b.shares.tolist() for b in books]
    assert begin.shares.tolist() == books[0].shares.tolist()          # nothing was changed in place
    worth = (account.weights.mul(account.nav, axis=0).sum(axis=1) + account.cash) - account.nav
    assert worth.abs().max() < 1e-6
    flows = account.borrow + account.interest + account.dividends + account.redeemed
    fills = account.fills
    spent = (fills["shares"]*fills["price"] + fills["cost"]).groupby(fills["session"]).sum().reindex(account.sessions, fill_value=0.)
    assert np.allclose(account.cash.diff().iloc[1:], (flows - spent).iloc[1:], atol=1e-6)
    named = account.received().sum(axis=1) + account.interest
    assert np.allclose(named, flows, atol=1e-9)
    assert account.events["cash"].sum() == pytest.approx(flows.sum(), abs=1e-6)
    for session in account.sessions:
        told = account.statement(session)
        assert told["cash before"] + told["sold less bought":"costs"].sum() == told["cash"]
        assert told["cash"] + told["positions"] == told["NAV"] and told.dtype.kind == "i"
        assert abs(told["NAV"] - 100*account.nav[session]) <= .5 + 1e-6


def by_hand(shares, cash, told):
    "The same account in whole numbers, in a plain loop"
    for kind, name, number in told:
        if kind == "split": shares[name] *= number
        if kind == "dividend": cash += shares[name]*number
        if kind == "delisting": cash, shares[name] = cash + shares[name]*number, 0
    return shares, cash


@few
@given(st.lists(st.tuples(st.sampled_from(["split", "dividend", "delisting"]), st.integers(0, 4), st.integers(2, 9)), max_size=12),
       st.lists(st.integers(-50, 50), min_size=5, max_size=5), st.integers(0, 99))
def test_a_table_of_actions_agrees_with_whole_numbers(told, shares, seed):
    "One event a day, in whatever order the table has its rows, slept over or taken day by day"
    days = pd.date_range("2024-01-02", periods=len(told) + 1, unit="us")
    rows = [(day, NAMES[i], kind, float(x)) for day, (kind, i, x) in zip(days[1:], told, strict=True)]
    random.Random(seed).shuffle(rows)
    table = pd.DataFrame(rows, columns=["session", "symbol", "kind", "x"])
    if table.empty: return
    table = table.pivot(index=["session", "symbol"], columns="kind", values="x").sample(frac=1, random_state=seed)
    book = Book(NAMES, np.array(shares, dtype=float), np.full(5, 1e9), 1_000., np.full(5, np.nan))
    actions, awake = Actions(table), book
    slept, events = happen(book, actions, days[0], days[-1])
    for one, other in zip(days[:-1], days[1:], strict=True): awake, _ = happen(awake, actions, one, other)
    hand, cash = by_hand(dict(zip(NAMES, shares, strict=True)), 1_000, [(k, NAMES[i], x) for k, i, x in told])
    assert slept.shares.tolist() == awake.shares.tolist() == [hand[n] for n in NAMES]
    assert slept.cash == awake.cash == cash
    assert all(e.shares or e.cash for e in events)
    assert happen(book, actions, days[-1], days[-1] + pd.Timedelta(days=9))[1] == []


@few
@given(st.integers(0, 2**32))
def test_holding_through_events_is_the_adjusted_price(seed):
    """Prices as printed, with splits and dividends booked and each dividend put back at the price of its morning, return what the
    back-adjusted close returns: every price before an ex-date times (1 - dividend/close before) and over the split"""
    rng, n = np.random.default_rng(seed), 60
    close = 100*np.exp(rng.normal(0, .02, n).cumsum())
    ratio, paid = np.where(rng.random(n) < .05, rng.choice([2., 7., .1], n), 1.), np.zeros(n)
    ratio[0] = 1.
    printed = close/ratio.cumprod()
    ex = np.flatnonzero(rng.random(n - 1) < .1) + 1
    paid[ex] = printed[ex-1]/ratio[ex]*rng.uniform(.001, .05, len(ex))
    factor = np.ones(n)
    for t in range(n - 1, 0, -1): factor[t-1] = factor[t]*(1 - paid[t]*ratio[t]/printed[t-1])/ratio[t]
    adjusted, name = printed*factor, NAMES[:1]
    book = Book(name, np.array([3.]), printed[:1], 0., printed[:1])
    days = pd.bdate_range("2024-01-02", periods=n, unit="us")
    index = pd.MultiIndex.from_product([days, name], names=["session", "symbol"])
    actions = Actions(pd.DataFrame({"split": ratio, "dividend": paid}, index))
    for t in range(1, n):
        book, _ = happen(book, actions, days[t-1], days[t])
        if book.cash: book = book.after(Fills(name, book.cash/book.marks, book.marks, np.zeros(1)))
        book = replace(book.marked(printed[t:t+1]), cash=0.)
        assert book.nav == pytest.approx(3*printed[0]*adjusted[t]/adjusted[0], rel=1e-10)


# On disk

def folder_of(path, n=6, release=True):
    "An account of `n` sessions, one of them with a release"
    head = vault.keep(path, "opening.json", {"cash": 1_000.})
    for i in range(n):
        head = vault.keep(path, f"2024-01-{i + 2:02d}.json", {"nav": 1_000. + i}, {"pending": None, "memory": i}, head)
        if release and i == 2:
            for k in range(1, 12): head = vault.keep(path, f"2024-01-04.release-{k}.json", {"released": {"by": f"n{k}"}}, None, head)
    return head


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path/"account"
    return folder, folder_of(folder)


@pytest.fixture(scope="module")
def bytes_kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    return folder, folder_of(folder, n=4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 99), st.integers(0, 999), st.integers(1, 255))
def test_no_byte_can_be_changed_unnoticed(bytes_kept, which, at, by):
    "The file is named, or the one before it where it was the link that was changed"
    folder, head = bytes_kept
    paths = vault.files(folder)
    here = which % len(paths)
    was = paths[here].read_bytes()
    new = bytearray(was)
    new[at % len(was)] ^= by
    paths[here].write_bytes(new)
    said = vault.verify(folder, head)
    paths[here].write_bytes(was)
    assert said.broken and said.broken[0][0] in {p.name for p in paths[max(here - 1, 0):here + 1]}, said
    assert vault.verify(folder, head).ok


def test_whatever_is_removed_is_named(kept):
    folder, head = kept
    for path in vault.files(folder)[:-1]:
        text = path.read_bytes()
        path.unlink()
        said = vault.verify(folder)
        assert said.broken[0] == (path.name, said.broken[0][1]) and "was removed" in said.broken[0][1]
        with pytest.raises(ValueError, match=r"was removed|no opening\.json"): vault.read(folder)
        path.write_bytes(text)
    vault.files(folder)[-1].unlink()
    assert vault.verify(folder).ok                      # the end of a chain can be cut
    assert not vault.verify(folder, head).ok            # but not past a head that was noted


def test_whatever_is_put_in_is_named(kept):
    "A day of its own, a copy of another day, and a day that links where the next one does"
    folder, head = kept
    pages = vault.read(folder)
    for text in ('{"nav": 1.0}\n', pages[2].path.read_text(),
                 json.dumps({"nav": 1., "follows": "2024-01-04.release-3.json", "prev": pages[6].digest}) + "\n"):
        vault.write(folder/"2024-01-04.release-99.json", text)
        said = vault.verify(folder, head)
        assert "2024-01-04.release-99.json" in dict(said.broken), said
        with pytest.raises(ValueError, match="put in|removed|changed"): vault.read(folder)
        (folder/"2024-01-04.release-99.json").unlink()
    vault.write(folder/"2024-02-01.json", '{"nav": 1.0}\n')   # at the end, where no link points past it
    assert dict(vault.verify(folder).broken).keys() == {"2024-02-01.json"}
    (folder/"2024-02-01.json").unlink()
    assert vault.verify(folder, head).ok and [p.name for p in vault.read(folder)] == [p.name for p in pages]


def test_a_rewritten_tail_holds_unless_its_head_was_noted(kept):
    folder, head = kept
    pages = vault.read(folder)
    early = pages[3].digest
    for page in pages[-2:]: page.path.unlink()
    last = pages[-3].digest
    for page in pages[-2:]: last = vault.keep(folder, page.name, {"nav": 9e9}, page.second, last)
    assert vault.verify(folder).ok and vault.verify(folder, early).noted == pages[3].name
    assert not vault.verify(folder, head).ok


def test_two_programs_do_not_book_over_each_other(tmp_path):
    "Each reads, both write: the second is refused, and the first one's file is whole"
    head = folder_of(tmp_path, n=2, release=False)
    vault.keep(tmp_path, "2024-01-10.json", {"nav": 1.}, {}, head)
    for name in ("2024-01-10.json", "2024-01-11.json"):
        with pytest.raises(ValueError, match=r"is written already|written to by somebody else"):
            vault.keep(tmp_path, name, {"nav": 2.}, {}, head)
    assert vault.read(tmp_path)[-1].first["nav"] == 1. and vault.verify(tmp_path).ok


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_chain_as_it_was(kept, call, monkeypatch):
    folder, head = kept
    def full(*_): raise OSError("no space left on device")
    with monkeypatch.context() as m, pytest.raises(OSError, match="no space"):
        m.setattr(os, call, full)
        vault.keep(folder, "2024-02-01.json", {"nav": 1.}, {}, head)
    assert vault.verify(folder, head).head == head
    assert vault.verify(folder, vault.keep(folder, "2024-02-01.json", {"nav": 1.}, {}, head)).ok


# Beside a broker

def account(shares, marks, cash):
    n = len(shares)
    book = Book(NAMES[:n], np.zeros(n), np.zeros(n), cash, np.full(n, np.nan))
    entry = Entry(pd.Timestamp("2024-01-02"), book)
    entry.trade(Fills(NAMES[:n], shares, marks, np.zeros(n)), cash)
    out = Statements()
    out.opening, out.symbols, out.lines = cash, NAMES[:n], [line(entry)]
    return out


@few
@given(st.lists(st.integers(-500, 500).filter(bool), min_size=5, max_size=5), st.integers(0, 4),
       st.sampled_from(["nothing", "split", "reverse", "fill", "missing", "unknown", "renamed", "sign", "rounding"]), st.integers(0, 2**32))
def test_what_was_planted_is_named_and_nothing_else(shares, k, planted, seed):
    rng = np.random.default_rng(seed)
    marks, q = rng.uniform(20, 500, 5).round(2), np.array(shares, dtype=float)
    if planted == "rounding": q = q + .3333
    ours = account(q, marks, 1e6)
    cash = ours.cash.iloc[0]
    theirs = pd.DataFrame({"symbol": NAMES, "shares": q, "price": marks})
    name, said = NAMES[k], {"fill": "shares", "reverse": "split"}.get(planted, planted)
    match planted:
        case "split": theirs.loc[k, ["shares", "price"]] = q[k]*7, marks[k]/7
        case "reverse": theirs.loc[k, ["shares", "price"]] = q[k]/10, marks[k]*10
        case "fill":
            theirs.loc[k, "shares"] += 1.5*abs(q[k]) + 13
            cash -= (theirs["shares"][k] - q[k])*marks[k]*1.001
        case "missing": theirs = theirs.drop(index=k)
        case "unknown": theirs.loc[5] = ["ZZ", 17.25, 30.]
        case "renamed": theirs.loc[k, "symbol"] = "ZZ"
        case "sign": theirs.loc[k, "shares"] *= -1
        case "rounding": theirs.loc[k, "shares"] = np.trunc(q[k])
    found = reconcile(ours, theirs.sample(frac=1, random_state=seed % 1000), cash=cash)
    rows = found.differences[found.differences["symbol"] != ""]
    assert found.ok == (planted == "nothing")
    if planted == "renamed": assert sorted(rows["symbol"]) == sorted([name, "ZZ"]) and {*rows["what"]} == {"renamed"}
    elif not found.ok:
        assert rows[["symbol", "what"]].to_numpy().tolist() == [["ZZ" if planted == "unknown" else name, said]]
    if planted == "fill": assert found.differences["what"].tolist()[-1] == "fill"
    assert found.summary() in found._repr_html_()


def test_a_statement_of_the_account_itself_agrees_after_whatever_happened():
    rng = np.random.default_rng(3)
    book, lines = start(rng), []
    lines.append(line(Entry(pd.Timestamp("2024-01-01"), book, fills=Fills(NAMES, book.shares, book.marks, np.zeros(5)))))
    for i, kind in enumerate([*KINDS]*6):
        entry = take(kind, book, rng)
        entry.session, book = pd.Timestamp("2024-01-02") + pd.Timedelta(days=i), entry.book
        lines.append(line(entry))
    out = Statements()
    out.opening, out.symbols, out.lines = 1., NAMES, lines
    for session in out.sessions:
        l = out.lines[out.sessions.get_loc(session)]
        frame = pd.DataFrame({"symbol": NAMES[l.held], "shares": out.positions.loc[session, NAMES[l.held]], "price": l.marks})
        assert reconcile(out, frame, session, cash=l.cash).ok


def test_anything_with_a_books_fields_will_do():
    "The functions know nothing of Book but its fields"
    from dataclasses import make_dataclass
    Plain = make_dataclass("Plain", ["symbols", "shares", "marks", "cash", "entry"], frozen=True)
    plain = Plain(NAMES[:1], np.array([10.]), np.array([70.]), 5., np.array([60.]))
    after, _ = split(plain, [7.])
    assert (after.shares[0], after.marks[0], type(after)) == (70., 10., Plain) and plain.shares[0] == 10.
    assert SimpleNamespace(**vars(after)).cash == 5.
