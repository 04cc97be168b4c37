"""The house rules. Each rule is a function from a checkout to its complaints; the suite wants none, and then breaks each rule in a small
house of its own to see that it complains."""
import ast
import base64
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = "core data features labels validation models portfolio execution rl ops serving cli".split()   # ground floor first
KNOWS = {"core": "", "data": "core", "features": "core data", "labels": "core data", "validation": "core",
         "models": "core validation", "portfolio": "core validation", "execution": "core data portfolio",
         "rl": "core validation portfolio execution"}   # itself aside; ops, serving and cli know every floor below them
REPORT = ["Data", "Model", "Prediction", "Analysis", "Verdict"]
RULES: list[Callable] = []


def rule(fn): RULES.append(fn); return fn
def read(p): return json.loads(p.read_text(encoding="utf-8"))["cells"]
def src(c): return "".join(c["source"])
def exports(c): return bool(re.search(r"^#\s*\|\s*exports?i?\b", src(c), re.M))
def modules(root): return sorted(p for p in (root/"tradenb").rglob("*.py") if not p.name.startswith("_"))
def every(root, folder): return sorted(p for p in (root/folder).rglob("*.ipynb") if not any(x.startswith(".") for x in p.parts))
def rooms(root): return [p for p in every(root, "nbs") if p.name != "index.ipynb"]
def door(root, p): return p.relative_to(root/"nbs").with_suffix("").parts


@rule
def mirror(root):
    "one notebook, one module, and the other way round"
    nbs, mods = {door(root, p) for p in rooms(root)}, {p.relative_to(root/"tradenb").with_suffix("").parts for p in modules(root)}
    yield from (f"nbs/{'/'.join(d)}.ipynb has no module" for d in nbs - mods)
    yield from (f"tradenb/{'/'.join(d)}.py has no notebook" for d in mods - nbs)
    if not nbs: yield "there is no house"


@rule
def opening(root):
    "every notebook opens the same way"
    for p in rooms(root):
        cs = read(p)
        if not re.match(r"# .+\n\n> .+", src(cs[0])): yield f"{p.name}: cell 1 is '# Title', blank line, '> promise'"
        if src(cs[1]).strip() != "#| default_exp " + ".".join(door(root, p)): yield f"{p.name}: cell 2 is default_exp of its own path"
        if any(re.search(r"#\s*\|\s*export[is]?[ \t]+\w", src(c)) for c in cs): yield f"{p.name}: exports to a second module"


@rule
def downwards(root):
    "floors import downwards, and neighbours do not know each other"
    for p in modules(root):
        parts = p.relative_to(root/"tradenb").with_suffix("").parts
        if parts[0] not in FLOORS: yield f"{parts[0]} is no floor of the house"; continue
        package = ("tradenb", *parts[:-1])
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))):
            for mod in _imported(n, package):
                if len(mod) < 2 or mod[0] != "tradenb" or mod[1] not in FLOORS: continue
                if FLOORS.index(mod[1]) > FLOORS.index(parts[0]): yield f"{'.'.join(parts)} reaches up to {'.'.join(mod)}"
                elif mod[1] != parts[0] and mod[1] not in KNOWS.get(parts[0], " ".join(FLOORS)).split():
                    yield f"{parts[0]} does not know {mod[1]} ({'.'.join(parts)}): only ops joins them"


def _imported(n, package):
    if isinstance(n, ast.Import): return [tuple(a.name.split(".")) for a in n.names]
    if not isinstance(n, ast.ImportFrom): return []
    base = package[:len(package)-n.level+1] if n.level else ()
    mod = base + tuple(n.module.split(".") if n.module else ())
    return [mod] if len(mod) > 1 else [mod + (a.name,) for a in n.names]


@rule
def upward_lessons(root):
    "a notebook's examples do not reach above their own floor either"
    for p in rooms(root):
        for c in read(p):
            if c["cell_type"] != "code": continue
            for floor in re.findall(r"^\s*(?:from|import) tradenb\.(\w+)", src(c), re.M):
                if floor in FLOORS and FLOORS.index(floor) > FLOORS.index(door(root, p)[0]): yield f"{p.name} reaches up to {floor}"


@rule
def clean(root):
    "notebooks arrive clean: no counts, no metadata but papermill's tags, no tracebacks or warnings in stored outputs"
    for p in every(root, "nbs") + every(root, "reports"):
        for c in read(p):
            if c.get("execution_count") is not None: yield f"{p.name}: an execution count"
            if set(c["metadata"]) - {"tags"}: yield f"{p.name}: cell metadata {sorted(set(c['metadata']) - {'tags'})}"
            for o in c.get("outputs", []):
                if o["output_type"] == "error" or o.get("name") == "stderr": yield f"{p.name}: an error or a warning among the outputs"


@rule
def size(root):
    "rooms stay small: cells, bytes, exported cells, module lines"
    for p in rooms(root):
        cs = read(p)
        if len(cs) > 60: yield f"{p.name}: {len(cs)} cells, at most 60"
        if p.stat().st_size > 200_000: yield f"{p.name}: {p.stat().st_size} bytes, at most 200,000"
        if sum("eval: false" in src(c) for c in cs) > 1: yield f"{p.name}: more than one eval: false"
        yield from (f"{p.name}: an exported cell of {len(src(c).splitlines())} lines, at most 45" for c in cs
                    if exports(c) and len(src(c).splitlines()) > 45)
        for c in cs:
            wide = [x for x in src(c).splitlines() if len(x) > (120 if exports(c) else 88)] if c["cell_type"] == "code" else []
            if wide and "%%html" not in src(c): yield f"{p.name}: a line of {len(wide[0])} characters: {wide[0][:60]}"


@rule
def prose(root):
    "the argument is carried by prose: at least 30% of cells, at most 10% of code hidden beside the imports"
    for p in rooms(root):
        cs = read(p)
        code = [c for c in cs if c["cell_type"] == "code"]
        if (len(cs) - len(code)) / len(cs) < .3: yield f"{p.name}: {(len(cs) - len(code)) / len(cs):.0%} prose, at least 30%"
        hidden = [c for c in code if re.search(r"^#\s*\|\s*hide\b", src(c), re.M)]
        if len(hidden) - 1 > .1 * len(code): yield f"{p.name}: {len(hidden)} of {len(code)} code cells hidden"


@rule
def imports_alone(root):
    "imports and code never share a cell: the docs build runs import cells alone"
    for p in rooms(root):
        for c in read(p):
            if c["cell_type"] != "code" or not exports(c): continue
            try: body = ast.parse(src(c)).body
            except SyntaxError: continue   # a magic
            kinds = {isinstance(n, ast.Import | ast.ImportFrom) for n in body}
            if kinds == {True, False}: yield f"{p.name}: imports share a cell with code: {src(c).splitlines()[1][:60]}"


@rule
def plots(root):
    "two plots a room, 60 kB each"
    for p in rooms(root):
        png = [o["data"]["image/png"] for c in read(p) for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        if len(png) > 2: yield f"{p.name}: {len(png)} plots, at most 2"
        yield from (f"{p.name}: a plot of {n} bytes" for x in png if (n := len(base64.b64decode("".join(x)))) > 60_000)


@rule
def never(root):
    "never in a notebook: shell, magics that reload, marks of work left, keys, absolute paths, pickle, a changed environment"
    bad = {r"^\s*!": "a shell line", r"%autoreload": "%autoreload", r"\b(TODO|FIXME|XXX)\b": "work left", r"pip install(?! )?$": "an install",
           r"[\"'](/home/|/Users/|/root/|/work/|[A-Z]:\\)": "an absolute path", r"\bpickle\.loads?\b": "pickle",
           r"\bos\.environ(\[[^]]*\]\s*=[^=]|\s*\|?=[^=])": "a changed environment (use mock.patch.dict)",
           r"(?i)(api_?key|secret|token)\s*=\s*[\"'][A-Za-z0-9]{16,}": "a key", r"^\s*#\s*(import|from|def|for|if|print)\b.*[:()]\s*$": "commented-out code"}
    for p in every(root, "nbs") + every(root, "reports"):
        for c in read(p):
            if c["cell_type"] != "code": continue
            yield from (f"{p.name}: {what} in a cell" for pattern, what in bad.items() if re.search(pattern, src(c), re.M))


@rule
def inits(root):
    "generated packages hold nothing by hand: __init__ is the version or empty, and no room is called utils"
    for p in (root/"tradenb").rglob("__init__.py"):
        if re.sub(r'__version__ = "[\d.]+"', "", p.read_text(encoding="utf-8")).strip(): yield f"{p.relative_to(root)} holds more than the version"
    yield from (f"{p.relative_to(root)}: there is no {p.stem} in this house" for p in modules(root)
                if re.search(r"util|helper|manager|misc|common|_v\d", p.stem))


@rule
def reports(root):
    "a report has parameters, then Data, Model, Prediction, Analysis, Verdict, and carries no output"
    for p in every(root, "reports"):
        cs = read(p)
        if not any("parameters" in c["metadata"].get("tags", []) for c in cs): yield f"{p.name}: no cell tagged parameters"
        heads = [m[1].strip() for c in cs if c["cell_type"] == "markdown" for m in re.finditer(r"^## (.+)$", src(c), re.M)]
        if [h for h in heads if h in REPORT] != REPORT: yield f"{p.name}: sections are {heads}, in order {REPORT}"
        if any(c.get("outputs") for c in cs): yield f"{p.name}: an executed copy"


@rule
def itself_alone(root):
    "the project speaks of itself alone, and its files stay small"
    ours = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False).stdout.split("\0")
    for name in [n for n in ours if n] or [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]:
        p = root/name
        if not p.is_file() or p.is_symlink(): continue
        size = p.stat().st_size if name != "tradenb/_modidx.py" else len(re.sub(rb"\n +", b"\n", p.read_bytes()))   # nbdev indents its index by half
        if size > 500_000: yield f"{name}: {size} bytes"
        if p.suffix in {".ipynb", ".py", ".md", ".yml", ".yaml", ".ini", ".toml", ".txt", ".sh", ""} and name not in ("tests/test_house.py", ".ci/run"):
            said = re.search(r"/work/|\.\./shared|TRADENB_SESSION_|/opt/pypi|pypi-more|/root/", p.read_text(encoding="utf-8", errors="ignore"))
            if said: yield f"{name}: speaks of {said[0]!r}"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule(rule): assert list(rule(ROOT)) == [], rule.__doc__


# --- and each rule can fail -------------------------------------------------------------------------------------------------------
def cell(kind, text, **meta):
    c = {"cell_type": kind, "metadata": meta, "source": text}
    return c if kind == "markdown" else {**c, "execution_count": None, "outputs": []}


def good_room(name="core.panel"):
    return [cell("markdown", "# Panel\n\n> One shape."), cell("code", f"#| default_exp {name}"), cell("code", "#| export\nimport numpy as np"),
            cell("markdown", "Why."), cell("code", "#| export\ndef two(): return 2"), cell("code", "two()"), cell("markdown", "So.")]


def good_report(): return [cell("code", "recipe = 1", tags=["parameters"])] + [cell("markdown", f"## {h}") for h in REPORT]


@pytest.fixture
def house(tmp_path):
    def write(path, cells):
        p = tmp_path/path
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    write("nbs/core/panel.ipynb", good_room()); write("reports/daily.ipynb", good_report())
    for f, text in {"__init__.py": '__version__ = "0.1.0"\n', "core/__init__.py": "", "core/panel.py": "import numpy as np\n"}.items():
        p = tmp_path/"tradenb"/f
        p.parent.mkdir(parents=True, exist_ok=True); p.write_text(text)
    return tmp_path, write


def test_the_small_house_keeps_every_rule(house):
    for r in RULES: assert list(r(house[0])) == [], r.__name__


def broken(name):
    "The one change to the small house that breaks a rule"
    room = good_room()
    def put(path, cells): return lambda root, write: write(path, cells)
    def text(path, said):
        def do(root, write):
            p = root/path
            p.parent.mkdir(parents=True, exist_ok=True); p.write_text(said)
        return do
    panel = "nbs/core/panel.ipynb"
    stderr = {"output_type": "stream", "name": "stderr", "text": "UserWarning"}
    png = {"output_type": "display_data", "metadata": {}, "data": {"image/png": base64.b64encode(b"0" * 70_000).decode()}}
    return {
        "mirror": [text("tradenb/core/left_behind.py", ""), put("nbs/core/extra.ipynb", good_room("core.extra"))],
        "opening": [put(panel, room[1:]), put(panel, good_room("core.other")), put(panel, room + [cell("code", "#| export core.other\nx = 1")])],
        "downwards": [text("tradenb/core/panel.py", "from tradenb.ops.daily import day\n"), text("tradenb/core/panel.py", "import tradenb.data.store\n"),
                      text("tradenb/features/price.py", "from ..labels import horizon\n"), text("tradenb/attic/box.py", "")],
        "upward_lessons": [put(panel, room + [cell("code", "from tradenb.ops.daily import day")])],
        "clean": [put(panel, room + [{**cell("code", "1"), "execution_count": 3}]), put(panel, room + [cell("code", "1", collapsed=True)]),
                  put(panel, room + [{**cell("code", "1"), "outputs": [stderr]}])],
        "size": [put(panel, room * 10), put(panel, room + [cell("code", "#| export\n" + "x = 1\n" * 50)]),
                 put(panel, room + [cell("code", "x = " + "1 + " * 30 + "1")]), put(panel, room + [cell("code", "#| eval: false\n1")] * 2)],
        "prose": [put(panel, room + [cell("code", "1")] * 9), put(panel, room + [cell("code", "#| hide\n1"), cell("markdown", "b")] * 4)],
        "imports_alone": [put(panel, room + [cell("code", "#| export\nimport os\nx = os.name"), cell("markdown", "b")])],
        "plots": [put(panel, room + [{**cell("code", "1"), "outputs": [png]}])],
        "never": [put(panel, room + [cell("code", s)]) for s in ("!ls", "%autoreload 2", "# TODO: later", "p = '/home/me/x'", "pickle.load(f)",
                                                              "api_key = 'abcdefghijklmnop1234'",
                                                              "os.environ['A_KEY'] = 'b'", "os.environ |= {}", "# for x in y:")],
        "inits": [text("tradenb/core/__init__.py", "from .panel import *\n"), text("tradenb/core/utils.py", "")],
        "reports": [put("reports/daily.ipynb", good_report()[1:]), put("reports/daily.ipynb", good_report()[::-1]),
                    put("reports/daily.ipynb", good_report() + [{**cell("code", "1"), "outputs": [stderr]}])],
        "itself_alone": [text("README.md", "see /work/" + "main"), text("data.csv", "1" * 600_000)],
    }[name]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_breaking_the_rule_turns_it_red(rule, house):
    root, write = house
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for breakage in broken(rule.__name__):
        breakage(root, write)
        assert list(rule(root)), f"{rule.__name__} did not notice"
        for p in [p for p in root.rglob("*") if p.is_file()]: p.unlink()
        for p, b in before.items(): p.write_bytes(b)
        assert not list(rule(root))


def test_the_readme_is_the_index():
    from tradenb.ops.site import readme
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme(ROOT/"nbs"/"index.ipynb"), "run: make readme"
