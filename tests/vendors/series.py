"FRED's archive, which cuts vintages to the window asked for and refuses more than 2,000 of them, and Cboe's files"
import pandas as pd

KEYS = {"FRED_API_KEY": "0123456789abcdef0123456789abcdef"}
LAST = "9999-12-31"


def routes(releases, pages=None, vintages=2000):
    "Routes for Replay; releases: rows session, symbol, value (NaN: '.'), known_at, any number of versions of a session"
    of = {}
    for name, rows in releases.groupby("symbol"):
        rows = rows.sort_values(["session", "known_at"])
        until = rows.groupby("session").known_at.shift(-1) - pd.Timedelta(days=1)
        of[name] = [(f"{d:%Y-%m-%d}", "." if pd.isna(v) else repr(float(v)), f"{k:%Y-%m-%d}", LAST if pd.isna(u) else f"{u:%Y-%m-%d}")
                    for d, v, k, u in zip(rows.session, rows.value, rows.known_at, until, strict=True)]
    return {"/fred/series/observations": lambda r: _observations(of, r.query, pages, vintages)}


def _bad(said): return 400, {}, {"error_code": 400, "error_message": f"Bad Request.  {said}"}


def _observations(of, query, pages, vintages):
    if query.get("api_key") != KEYS["FRED_API_KEY"]: return _bad("The value for variable api_key is not registered.")
    if query["series_id"] not in of: return _bad("The series does not exist.")
    since, until = query["realtime_start"], query["realtime_end"]
    told = of[query["series_id"]]
    seen = {k for _, _, k, _ in told if since <= k <= until}
    if len(seen) > vintages:
        return _bad(f"There are {len(seen)} vintage dates in the specified real-time period: {since} to {until}.  "
                    f"This exceeds the maximum number of vintage dates allowed ({vintages}).")
    if until < min(k for _, _, k, _ in told): return _bad("The series does not exist in ALFRED but may exist in FRED.")
    rows = [dict(date=d, value=v, realtime_start=max(k, since), realtime_end=min(u, until)) for d, v, k, u in told
            if k <= until and u >= since and query.get("observation_start", "") <= d <= query.get("observation_end", LAST)]
    limit, at = pages or int(query["limit"]), int(query.get("offset", 0))
    return dict(realtime_start=since, realtime_end=until, count=len(rows), offset=at, limit=limit, observations=rows[at:at + limit])


def cboe(values):
    "Routes for Replay; values: rows session, symbol, value"
    return {f"/api/global/us_indices/daily_prices/{name}_History.csv": _file(name, rows) for name, rows in values.groupby("symbol")}


def _file(name, rows):
    cells = [f"{d:%m/%d/%Y}," + ",".join([f"{v:.6f}"] * (4 if name == "VIX" else 1)) for d, v in zip(rows.session, rows.value, strict=True)]
    return "\r\n".join(["DATE,OPEN,HIGH,LOW,CLOSE" if name == "VIX" else f"DATE,{name}", *cells, ""])
