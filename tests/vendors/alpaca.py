"Alpaca's market data as its package and fixtures have it: many names a page, page tokens, keys in headers"
import base64
import json

import pandas as pd

from .tape import NEW_YORK, events, flat

KEYS = {"APCA_API_KEY_ID": "PK-TEST-0123456789", "APCA_API_SECRET_KEY": "secret/+test==0123456789"}
KINDS = {"forward_split": "forward_splits", "reverse_split": "reverse_splits", "stock_dividend": "stock_dividends", "cash_dividend": "cash_dividends"}


def routes(bars, actions=None, chain=None, minutes=None, about="ex_date"):
    "Routes for Replay that answer any span of `bars`; about: the date by which actions are looked up"
    daily, told = {s: f for s, f in flat(bars).groupby("symbol")}, events(bars, actions)
    fine = {s: f for s, f in minutes.groupby("symbol")} if minutes is not None else {}
    return {"/v2/stocks/bars": _known(lambda q: _bars(fine if q["timeframe"] == "1Min" else daily, q)),
            "/v1/corporate-actions": _known(lambda q: _actions(told, q, about))}


def _known(answer):
    def reply(request):
        if any(request.headers.get(name.replace("_", "-")) != key for name, key in KEYS.items()):
            return 401, {}, {"message": "unauthorized"}
        return answer(request.query)
    return reply


def _token(offset): return base64.b64encode(f"offset|{offset}".encode()).decode()
def _offset(query): return int(base64.b64decode(query["page_token"]).decode().split("|")[1]) if query.get("page_token") else 0


def _bars(of, query):
    if query["adjustment"] != "raw": return 400, {}, {"message": "only the tape is kept here"}
    first, last = (pd.Timestamp(query[q]) for q in ("start", "end"))
    left, page, skip = int(query.get("limit", 1000)), {}, _offset(query)
    offset, more = skip, False
    for name in sorted(set(query["symbols"].split(",")) & set(of)):
        time = of[name].time.dt if "time" in of[name] else of[name].session.dt.tz_localize(NEW_YORK).dt
        utc = time.tz_convert("UTC").reset_index(drop=True)
        rows = of[name].reset_index(drop=True)[((utc >= first) & (utc <= last)).to_numpy()]
        if skip >= len(rows): skip -= len(rows); continue
        rows = rows.iloc[skip:]
        skip, more = 0, len(rows) > left
        if left <= 0: more = True; break
        rows = rows.iloc[:left]
        stamps = utc.loc[rows.index].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        page[name] = [{"t": t, "o": o, "h": h, "l": lo, "c": c, "v": int(v), "n": 1, "vw": c}
                      for t, o, h, lo, c, v in zip(stamps, rows.open, rows.high, rows.low, rows.close, rows.volume, strict=True)]
        left -= len(rows)
        offset += len(rows)
        if more: break
    return json.loads(json.dumps({"bars": page, "next_page_token": _token(offset) if more else None}))


def _actions(told, query, about):
    first, last = pd.Timestamp(query["start"]), pd.Timestamp(query["end"])
    names, wanted, rows = query["symbols"].split(","), query["types"].split(","), []
    for day, name, split, dividend in told.itertuples(index=False):
        if name not in names: continue
        common = {"symbol": name, "ex_date": f"{day:%Y-%m-%d}", "process_date": f"{day:%Y-%m-%d}", "id": f"{name}-{day:%Y%m%d}"}
        if split != 1: rows.append(("forward_split" if split > 1 else "reverse_split", common | {"new_rate": split if split > 1 else 1,
                                                                                               "old_rate": 1 if split > 1 else round(1 / split, 9)}))
        if dividend: rows.append(("cash_dividend", common | {"rate": dividend, "foreign": False, "special": False,
                                                             "process_date": f"{day + pd.Timedelta('21D'):%Y-%m-%d}"}))
    rows = [(kind, row) for kind, row in rows if kind in wanted and first <= pd.Timestamp(row[about]) <= last]
    at, limit = _offset(query), int(query.get("limit", 100))
    page = {}
    for kind, row in rows[at:at + limit]: page.setdefault(KINDS[kind], []).append(row)
    return {"corporate_actions": page, "next_page_token": _token(at + limit) if at + limit < len(rows) else None}
