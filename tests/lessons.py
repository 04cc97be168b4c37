"""The notebooks' lessons, run against the library that users import.

`nbdev_test` runs a notebook's own cells, so an error between the cell and the exported module goes unseen. Here each notebook runs
with its export cells replaced by one import of the module they became.

    python -m tests.lessons [NOTEBOOK ...]     run them
    python -m tests.lessons --report 80        print coverage by room; fail below 80%
"""
import importlib
import json
import os
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lesson_cells(path: Path) -> list[str]:
    "The notebook's example cells as source, with the module's names imported where the module is declared"
    cells, flags = [], set((re.search(r"tst_flags = (.*)", (ROOT/"settings.ini").read_text()) or [0, ""])[1].split())
    for c in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if c["cell_type"] != "code": continue
        src = "".join(c["source"])
        marks = set(re.findall(r"^#\s*\|\s*([^\n:]+)", src, re.M))
        if "eval: false" in src or marks & flags: continue
        if m := re.match(r"#\s*\|\s*default_exp\s+(\S+)", src):
            cells.append(f"import tradenb.{m[1]} as _room\nglobals().update({{k: v for k, v in vars(_room).items() if not k.startswith('__')}})")
        elif not re.match(r"#\s*\|\s*exports?i?\b", src): cells.append(src)
    return cells


def run(path: Path) -> float:
    "Seconds that the lessons of one notebook took; the first failing cell raises"
    from execnb.shell import CaptureShell
    began, shell, here = time.perf_counter(), CaptureShell(), Path.cwd()
    os.chdir(path.parent)
    try:
        for src in lesson_cells(path):
            shell.run(src)
            if shell.exc: raise AssertionError(f"{path.relative_to(ROOT)} against the exported library:\n{src}") from shell.exc
    finally: os.chdir(here)
    return time.perf_counter() - began


def rooms() -> list[Path]:
    return sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def report(bar: float) -> int:
    "Coverage by room, as a table; 1 if the whole is below `bar` percent"
    from coverage import Coverage
    cov = Coverage()
    cov.load()
    lines, total = defaultdict(lambda: [0, 0]), [0, 0]
    for f in sorted((ROOT/"tradenb").rglob("*.py")):
        if f.name.startswith("_"): continue
        _, statements, _, missing, _ = cov.analysis2(str(f))
        room = ".".join(f.relative_to(ROOT/"tradenb").with_suffix("").parts)
        lines[room] = [len(statements), len(missing)]
        total[0] += len(statements); total[1] += len(missing)
    for room, (n, miss) in lines.items(): print(f"{room:<24}{n:>6} lines {(n - miss) / max(n, 1):>7.1%}")
    share = 100 * (total[0] - total[1]) / max(total[0], 1)
    print(f"{'all rooms':<24}{total[0]:>6} lines {share:>6.1f}%  (bar {bar:.0f}%)")
    return int(share < bar)


if __name__ == "__main__":
    if "--report" in sys.argv: sys.exit(report(float(sys.argv[-1])))
    importlib.import_module("tradenb")
    for nb in [Path(a).resolve() for a in sys.argv[1:]] or rooms(): print(f"{nb.relative_to(ROOT)!s:<40}{run(nb):6.1f} s", flush=True)
