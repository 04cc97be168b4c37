"""Alpha Vantage's dialect, of our own making: answers any question about the frames it is given, in the documented shapes."""
import pandas as pd

KEY = "replay-key-alpha-vantage"
_META = "Daily Time Series with Splits and Dividend Events"


def routes(bars, actions=None, chain=None, minutes=None, macro=None, *, key=KEY, free=False, ends=False):
    "Routes for Replay; `free` is a plan without adjusted bars, `ends` stamps minutes with their end as older replies do"
    names, told = set(bars["symbol"]), {}

    def daily(request, about, adjusted):
        if about not in names: return _wrong(request)
        if about not in told: told[about] = _with(bars[bars["symbol"] == about], actions)
        rows = told[about].sort_values("session", ascending=False)
        if request.query.get("outputsize", "compact") == "compact": rows = rows.head(100)
        series = {f"{r['session']:%Y-%m-%d}": _day(r, adjusted) for r in rows.to_dict("records")}
        return {"Meta Data": {"1. Information": _META, "2. Symbol": about, "5. Time Zone": "US/Eastern"}, "Time Series (Daily)": series}

    def intraday(request, about):
        rows = minutes[(minutes["symbol"] == about)] if minutes is not None else bars[:0].assign(time=pd.Series(dtype="datetime64[us, UTC]"))
        if about not in names: return _wrong(request)
        at = rows["time"].dt.tz_convert("America/New_York") + pd.Timedelta(minutes=int(ends))
        rows = rows.assign(at=at)[at.dt.strftime("%Y-%m") == request.query["month"]].sort_values("at", ascending=False)
        series = {f"{r['at']:%Y-%m-%d %H:%M:%S}": _bar(r) for r in rows.to_dict("records")}
        return {"Meta Data": {"2. Symbol": about, "4. Interval": "1min", "6. Time Zone": "US/Eastern"}, "Time Series (1min)": series}

    def options(request, about):
        rows = chain[(chain["underlying"] == about) & (chain["session"] == pd.Timestamp(request.query["date"]))] if chain is not None else bars[:0]
        if rows.empty: return {"endpoint": "Historical Options", "message": f"No data for symbol {about}", "data": []}
        return {"endpoint": "Historical Options", "message": "success", "data": [_contract(r) for r in rows.to_dict("records")]}

    def rates(request, name):
        rows = macro[macro["symbol"] == name].sort_values("session", ascending=False) if macro is not None else []
        return {"name": name, "interval": "daily", "unit": "percent",
                "data": [{"date": f"{d:%Y-%m-%d}", "value": "." if v != v else str(v)} for d, v in zip(rows["session"], rows["value"], strict=True)]}

    def quotes(request):
        last = bars[bars["session"] == bars["session"].max()]
        wanted = request.query["symbol"].split(",")
        rows = last[last["symbol"].isin(wanted[:100])].to_dict("records")
        return {"endpoint": "Realtime Bulk Quotes", "message": "success", "data": [
            {"symbol": r["symbol"], "timestamp": f"{r['session']:%Y-%m-%d} 16:00:00", **{c: str(r[c]) for c in _COLUMNS}} for r in rows]}

    def answer(request):
        if request.query.get("apikey") != key:
            return {"Error Message": "the parameter apikey is invalid or missing. Please claim your free API key on "
                                     "(https://www.alphavantage.co/support/#api-key). It should take less than 20 seconds."}
        function, about = request.query.get("function"), request.query.get("symbol")
        if free and function in ("TIME_SERIES_DAILY_ADJUSTED", "REALTIME_BULK_QUOTES"):
            return {"Information": "Thank you for using Alpha Vantage! This is a premium endpoint. You may subscribe to any of the premium "
                                   "plans at https://www.alphavantage.co/premium/ to instantly unlock all premium endpoints"}
        if function == "TIME_SERIES_DAILY_ADJUSTED": return daily(request, about, True)
        if function == "TIME_SERIES_DAILY": return daily(request, about, False)
        if function == "TIME_SERIES_INTRADAY": return intraday(request, about)
        if function == "HISTORICAL_OPTIONS": return options(request, about)
        if function == "REALTIME_BULK_QUOTES": return quotes(request)
        if function == "TREASURY_YIELD": return rates(request, _YIELDS[request.query["maturity"]])
        if function == "FEDERAL_FUNDS_RATE": return rates(request, "DFF")
        return _wrong(request)

    return {"/query": answer}


_COLUMNS = ("open", "high", "low", "close", "volume")
_YIELDS = {"3month": "DGS3MO", "2year": "DGS2", "5year": "DGS5", "7year": "DGS7", "10year": "DGS10", "30year": "DGS30"}


def _wrong(request):
    return {"Error Message": f"Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) "
                             f"for {request.query.get('function')}."}


def _with(rows, actions):
    "`rows` with split, dividend, and the vendor's adjusted close: c / (c + D) on the ex-date, and the split"
    rows = rows.sort_values("session", ignore_index=True)
    if actions is None: events = rows[["session", "symbol"]].assign(split=1., dividend=0.)[:0]
    else: events = actions.groupby(["session", "symbol"], as_index=False).agg(split=("split", "prod"), dividend=("dividend", "sum"))
    out = rows.drop(columns=["split", "dividend"], errors="ignore").merge(events, how="left", on=["session", "symbol"])
    out = out.fillna({"split": 1., "dividend": 0.})
    back = (out["close"] / (out["close"] + out["dividend"]) / out["split"])[::-1].cumprod()[::-1].shift(-1, fill_value=1.)
    return out.assign(adj_close=out["close"] * back)


def _bar(r): return {f"{i}. {c}": repr(r[c]) for i, c in enumerate(_COLUMNS, 1)}


def _day(r, adjusted):
    if not adjusted: return _bar(r)
    return {**{f"{i}. {c}": repr(r[c]) for i, c in enumerate(_COLUMNS[:4], 1)}, "5. adjusted close": repr(r["adj_close"]),
            "6. volume": repr(r["volume"]), "7. dividend amount": f"{r['dividend']:.4f}", "8. split coefficient": repr(r["split"])}


def _contract(r):
    ticker = f"{r.get('root', r['underlying'])}{r['expiry']:%y%m%d}{r['right']}{round(r['strike'] * 1000):08d}"
    numbers = {c: str(r.get(c, 0)) for c in ("last", "bid", "ask", "bid_size", "ask_size", "volume", "open_interest", "delta", "gamma",
                                             "vega", "theta", "rho")}
    return {"contractID": ticker, "symbol": r["underlying"], "expiration": f"{r['expiry']:%Y-%m-%d}", "strike": f"{r['strike']:.2f}",
            "type": {"C": "call", "P": "put"}[r["right"]], "date": f"{r['session']:%Y-%m-%d}", "mark": "0",
            "implied_volatility": str(r.get("iv", .2)), **numbers}
