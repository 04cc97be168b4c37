"""Polygon's dialect, of our own making: answers any span of the bars it is given, in the documented shapes.

`Replay(routes(bars, actions, chain))` is a vendor on 127.0.0.1 that pages, checks the key, and knows nothing but those frames.
"""
import re

import pandas as pd

KEY = "replay-key-polygon"
_SHORT = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}


def routes(bars, actions=None, chain=None, minutes=None, *, key=KEY, page=None, status="OK", delisted=(), adjusted=False):
    "Routes for Replay: `bars` session, symbol, OHLCV; `actions` session, symbol, split, dividend; `chain`, `minutes` as their kinds"
    days = _stamped(bars, bars["session"].dt.tz_localize("America/New_York"))
    daily = {name: rows.reset_index(drop=True) for name, rows in days.groupby("symbol")}
    minutely = {} if minutes is None else {n: r for n, r in _stamped(minutes, minutes["time"]).groupby("symbol")}
    by_day = {f"{d:%Y-%m-%d}": rows for d, rows in days.groupby("session")}
    lists = _lists(actions)

    def told(request, rows, most):
        "One page of `rows` with the address of the next"
        size, at = min(int(request.query.get("limit", most)), page or most), int(request.query.get("cursor", 0))
        out = {"status": status, "request_id": "0", "results": rows[at:at + size]}
        if at + size < len(rows):
            rest = "&".join(f"{k}={v}" for k, v in request.query.items() if k != "cursor")
            out["next_url"] = f"http://{request.headers['Host']}{request.path}?{rest}&cursor={at + size}"
        return out

    def aggregates(request):
        name, unit, first, last = re.fullmatch(r"/v2/aggs/ticker/([^/]+)/range/1/(day|minute)/([^/]+)/([^/]+)", request.path).groups()
        rows = (daily if unit == "day" else minutely).get(name)
        rows = [] if rows is None else _rows(rows[rows["session"].between(pd.Timestamp(first), pd.Timestamp(last))])
        out = told(request, rows, 50_000)
        echo = adjusted or request.query.get("adjusted", "true") == "true"
        out |= {"ticker": name, "adjusted": echo, "queryCount": len(rows), "resultsCount": len(out["results"])}
        return out if rows else {k: v for k, v in out.items() if k != "results"}

    def grouped(request):
        rows = by_day.get(request.path.rsplit("/", 1)[1])
        rows = [] if rows is None else _rows(rows.assign(t=rows["t"] + 16 * 3_600_000), T=True)
        return {"status": status, "adjusted": request.query.get("adjusted") == "true", "queryCount": len(rows),
                "resultsCount": len(rows), "results": rows}

    def listed(request):
        what = request.path.rsplit("/", 1)[1]
        date = "execution_date" if what == "splits" else "ex_dividend_date"
        first, last, one = (request.query.get(k) for k in (f"{date}.gte", f"{date}.lte", "ticker"))
        rows = [r for r in lists[what] if first <= r[date] <= last and (one is None or r["ticker"] == one)]
        return told(request, rows, 1000)

    def tickers(request):
        name, active = request.query.get("ticker"), request.query.get("active") == "true"
        known = name in daily and (name not in delisted) == active or name in delisted and not active
        return {"status": status, "results": [{"ticker": name, "market": "stocks", "active": active}] if known else []}

    def snapshot(request):
        rows = [] if chain is None else _contracts(chain[chain["underlying"] == request.path.rsplit("/", 1)[1]])
        return told(request, rows, 250)

    def guarded(answer):
        def reply(request):
            if request.headers.get("Authorization") == f"Bearer {key}": return answer(request)
            return 401, {}, {"status": "ERROR", "request_id": "0", "error": "Unknown API Key"}
        return reply

    return {path: guarded(answer) for path, answer in {
        r"/v2/aggs/ticker/[^/]+/range/.*": aggregates, r"/v2/aggs/grouped/.*": grouped, "/v3/reference/tickers": tickers,
        r"/v3/reference/(splits|dividends)": listed, r"/stocks/v1/(splits|dividends)": listed, r"/v3/snapshot/options/.*": snapshot}.items()}


def _stamped(frame, instants):
    at = (instants.dt.tz_convert("UTC").dt.tz_localize(None) - pd.Timestamp(0)) // pd.Timedelta(milliseconds=1)
    return frame.assign(t=at).sort_values(["symbol", "t"])


def _rows(frame, T=False):
    columns = {**({"symbol": "T"} if T else {}), **_SHORT, "t": "t"}
    return frame[list(columns)].rename(columns=columns).to_dict("records")


def _lists(actions):
    rows = [] if actions is None else actions.assign(day=actions["session"].dt.strftime("%Y-%m-%d")).to_dict("records")
    splits = [{"ticker": r["symbol"], "execution_date": r["day"], "split_from": 1, "split_to": r["split"]}
              for r in rows if r.get("split", 1) == r.get("split", 1) and r.get("split", 1) != 1]
    dividends = [{"ticker": r["symbol"], "ex_dividend_date": r["day"], "cash_amount": r["dividend"], "currency": r.get("currency", "USD"),
                  "dividend_type": "CD", "pay_date": r["day"]} for r in rows if (r.get("dividend") or 0) > 0]
    return {"splits": splits, "dividends": dividends}


def _contracts(chain):
    "The last session of a chain as the snapshot tells it, quoted a second before four"
    rows = chain[chain["session"] == chain["session"].max()].to_dict("records")
    return [_contract(r) for r in rows]


def _contract(r):
    day = r["session"].tz_localize("America/New_York")
    stamp = (day + pd.Timedelta("15:59:59")).value
    told = {k: r[k] for k in ("delta", "gamma", "vega", "theta") if r.get(k) == r.get(k) and k in r}
    ticker = f"O:{r.get('root', r['underlying'])}{r['expiry']:%y%m%d}{r['right']}{round(r['strike'] * 1000):08d}"
    return {"details": {"ticker": ticker, "contract_type": {"C": "call", "P": "put"}[r["right"]], "exercise_style": "american",
                        "expiration_date": f"{r['expiry']:%Y-%m-%d}", "shares_per_contract": 100, "strike_price": r["strike"]},
            "last_quote": {"bid": r["bid"], "ask": r["ask"], "bid_size": 1, "ask_size": 1, "last_updated": stamp},
            "day": {"close": r["bid"], "volume": r.get("volume", 0), "last_updated": day.value}, "greeks": told,
            "implied_volatility": r.get("iv", .2), "open_interest": r.get("open_interest", 0),
            "underlying_asset": {"ticker": r["underlying"], "price": r.get("underlying_price", 100.), "last_updated": stamp}}
