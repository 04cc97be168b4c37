"FMP's stable and older addresses in their documented shapes: newest first, 5,000 rows a reply, CSV in bulk, errors in words"
import pandas as pd

from .tape import events, flat, since

KEYS = {"FMP_API_KEY": "fmp+test/0123456789abcdef"}
FULL = 5000


def routes(bars, actions=None, chain=None, bulk=True, legacy=False):
    "Routes for Replay that answer any span of `bars`; bulk, legacy: does the plan include them"
    rows = flat(bars).assign(symbol=lambda f: f.symbol.str.replace(".", "-"))
    told = events(bars, actions).assign(symbol=lambda f: f.symbol.str.replace(".", "-"))
    of, days = dict(list(rows.groupby("symbol"))), dict(list(rows.groupby("session")))
    def by_name(r, listing): return listing(told[told.symbol == r.query["symbol"]].iloc[::-1])
    def by_day(r, listing): return listing(told[told.session.between(*_span(r.query))])
    def old(r, listing):
        name = r.path.rsplit("/", 1)[1]
        return {"symbol": name, "historical": listing(name)} if name in of else {}
    def listed(make, r): return old(r, lambda n: make(told[told.symbol == n].iloc[::-1]))
    stable = {"historical-price-eod/non-split-adjusted": lambda r: _tape(of.get(r.query["symbol"], rows.iloc[:0]), r.query),
              "splits": lambda r: by_name(r, _splits), "dividends": lambda r: by_name(r, _dividends),
              "splits-calendar": lambda r: by_day(r, _splits), "dividends-calendar": lambda r: by_day(r, _dividends),
              "eod-bulk": (lambda r: _day(days, r.query)) if bulk else lambda r: (402, {}, {"Error Message": "Special Endpoint : this endpoint is not "
                                                                                   "available under your current subscription"})}
    older = {"stock_split/[^/]*": lambda r: listed(_splits, r), "stock_dividend/[^/]*": lambda r: listed(_dividends, r),
             "[^/]*": lambda r: old(r, lambda n: _adjusted(of[n], told[told.symbol == n], r.query))}
    if not legacy: older = {".*": lambda r: (403, {}, {"Error Message": "Legacy Endpoint : Due to Legacy endpoints being no longer supported - This "
                                                       "endpoint is only available for legacy users who have valid subscriptions prior August 31, 2025."})}
    return {f"/stable/{p}": _known(a) for p, a in stable.items()} | {f"/api/v3/historical-price-full/{p}": _known(a) for p, a in older.items()}


def _known(answer):
    def reply(request):
        if request.query.get("apikey") != KEYS["FMP_API_KEY"]: return 401, {}, {"Error Message": "Invalid API KEY. Please retry or visit our documentation"}
        return answer(request)
    return reply


def _span(query): return pd.Timestamp(query.get("from", "1960-01-01")), pd.Timestamp(query.get("to", "2100-01-01"))


def _tape(rows, query):
    rows = rows[rows.session.between(*_span(query))].iloc[::-1].head(FULL)
    return [dict(symbol=s, date=f"{t:%Y-%m-%d}", adjOpen=o, adjHigh=h, adjLow=lo, adjClose=c, volume=int(v))
            for t, s, o, h, lo, c, v in rows[["session", "symbol", "open", "high", "low", "close", "volume"]].itertuples(index=False)]


def _splits(told):
    return [dict(symbol=s, date=f"{t:%Y-%m-%d}", numerator=a if a > 1 else 1, denominator=1 if a > 1 else round(1 / a, 9))
            for t, s, a, _ in told.itertuples(index=False) if a != 1]


def _dividends(told):
    return [dict(symbol=s, date=f"{t:%Y-%m-%d}", recordDate="", paymentDate="", declarationDate="", adjDividend=d, dividend=d, **{"yield": 1.},
                 frequency="Quarterly") for t, s, _, d in told.itertuples(index=False) if d]


def _day(days, query):
    rows = days.get(pd.Timestamp(query["date"]), pd.DataFrame(columns=["symbol"]))
    lines = [f'"{r.symbol}","{query["date"]}","{r.open}","{r.low}","{r.high}","{r.close}","{r.close}","{int(r.volume)}"' for r in rows.itertuples()]
    return "\n".join(['"symbol","date","open","low","high","close","adjClose","volume"', *lines]) + "\n"


def _adjusted(rows, told, query):
    rows = rows[rows.session.between(*_span(query))].iloc[::-1].head(FULL)
    return [dict(date=f"{r.session:%Y-%m-%d}", open=round(r.open / q, 6), high=round(r.high / q, 6), low=round(r.low / q, 6), close=round(r.close / q, 6),
                 adjClose=round(r.close / q, 6), volume=r.volume * q, unadjustedVolume=r.volume) for r, q in zip(rows.itertuples(), since(rows.session, told),
                                                                                                                strict=True)]
