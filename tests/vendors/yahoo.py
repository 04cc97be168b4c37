"Yahoo's charts and quotes as yfinance reads them: today's shares, 32-bit prices, no key"
import numpy as np
import pandas as pd

from .tape import NEW_YORK, events, flat, since

KEYS = {}
CRUMB = "cr/umb.Test0123"


def routes(bars, actions=None, chain=None):
    "Routes for Replay that answer any span of `bars`, adjusted for all splits there are"
    of, told = {s.replace(".", "-"): f for s, f in flat(bars).groupby("symbol")}, events(bars, actions)
    told = {s.replace(".", "-"): f for s, f in told.groupby("symbol")}
    nothing = events(flat(bars).iloc[:0])
    return {"/v8/finance/chart/.*": lambda r: _chart(r.path.rsplit("/", 1)[1], of, told, nothing, r.query),
            "/v1/test/getcrumb": lambda _: CRUMB,
            "/v7/finance/quote": lambda r: _quotes(of, r.query)}


def _no(status, code, said): return status, {}, {"chart": {"result": None, "error": {"code": code, "description": said}}}
def _stamps(days): return [int(t.timestamp()) for t in (pd.DatetimeIndex(days) + pd.Timedelta("09:30:00")).tz_localize(NEW_YORK)]
def _short(x): return [None if np.isnan(v) else float(np.float32(v)) for v in np.asarray(x, float)]


def _chart(name, of, told, nothing, query):
    if name not in of: return _no(404, "Not Found", "No data found, symbol may be delisted")
    rows, acts = of[name], told.get(name, nothing)
    first, last = (pd.Timestamp(int(query[q]), unit="s", tz="UTC").tz_convert(NEW_YORK).tz_localize(None) for q in ("period1", "period2"))
    rows = rows[(rows.session >= first) & (rows.session < last)]
    if rows.empty: return _no(400, "Bad Request", f"Data doesn't exist for startDate = {query['period1']}, endDate = {query['period2']}")
    ratio = since(rows.session, acts)
    acts = acts[(acts.session >= first) & (acts.session < last)]
    quote = {c: _short(np.round(rows[c] / ratio, 6)) for c in ("open", "high", "low", "close")} | {"volume": [int(v) for v in rows.volume * ratio]}
    splits = {str(s): {"date": s, "numerator": a if a > 1 else 1., "denominator": 1. if a > 1 else round(1 / a, 9), "splitRatio": "?"}
              for s, a in zip(_stamps(acts.session), acts.split, strict=True) if a != 1}
    paid = {str(s): {"date": s, "amount": float(np.round(d / q, 6))}
            for s, d, q in zip(_stamps(acts.session), acts.dividend, since(acts.session, acts), strict=True) if d}
    meta = {"symbol": name, "currency": "USD", "instrumentType": "EQUITY", "exchangeTimezoneName": NEW_YORK, "priceHint": 2,
            "validRanges": ["1d", "5d", "max"], "dataGranularity": "1d"}
    return {"chart": {"error": None, "result": [{"meta": meta, "timestamp": _stamps(rows.session), "events": {"splits": splits, "dividends": paid},
                                                 "indicators": {"quote": [quote], "adjclose": [{"adjclose": quote["close"]}]}}]}}


def _quotes(of, query):
    if query.get("crumb") != CRUMB: return 401, {}, {"finance": {"result": None, "error": {"code": "Unauthorized", "description": "Invalid Crumb"}}}
    last = {n: of[n].iloc[-1] for n in query["symbols"].split(",") if n in of}
    rows = [{"symbol": n, "currency": "USD", "regularMarketTime": s + 23400, "regularMarketOpen": r.open, "regularMarketDayHigh": r.high,
             "regularMarketDayLow": r.low, "regularMarketPrice": r.close, "regularMarketVolume": int(r.volume)}
            for (n, r), s in zip(last.items(), _stamps([r.session for r in last.values()]), strict=True)]
    return {"quoteResponse": {"result": rows, "error": None}}
