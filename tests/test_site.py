"The pages: what a lesson cannot show. Kills, a renderer that fails, the real project's sidebar, a browser's opinion."
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tradenb.ops.page import Mentions, render_report, tidy
from tradenb.ops.site import _recover, _swap, api, build, check_links, readme

ROOT = Path(__file__).parents[1]
NBS = [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
CHROME = next((c for c in ("chromium", "chromium-browser", "google-chrome") if shutil.which(c)), None)

WIDE = pd.DataFrame(np.arange(60.).reshape(3, 20), columns=[f"a_long_name_{i}" for i in range(20)])

def _report(path, error=False, html=None):
    "An executed report: wide table, picture, formula, long line"
    dot = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")
    outputs = [new_output("display_data", {"text/html": html or WIDE.to_html()}), new_output("display_data", {"image/png": dot}),
               new_output("stream", name="stdout", text="x" * 400)]
    if error: outputs.append(new_output("error", ename="KeyError", evalue="'close'", traceback=["KeyError: 'close'"]))
    nb = new_notebook(cells=[new_markdown_cell("# Daily <b>\n\n> What to do tonight."),
                             new_markdown_cell("## Data\n\n$$\\widehat{SR} = \\frac{\\bar r}{\\hat\\sigma}\\sqrt{252}" + " + x_{t}" * 30 + "$$"),
                             new_code_cell("load()", outputs=outputs)])
    nb.metadata.papermill = {"parameters": {"recipe": "recipes/baseline.yml", "session": "2018-02-07"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path

@pytest.fixture
def project(tmp_path):
    "A project of two rooms and one report"
    room = new_notebook(cells=[new_markdown_cell("# Room\n\n> One thing."), new_code_cell("#| default_exp core.room"),
        new_code_cell("#| export\ndef double(x): return 2*x"), new_markdown_cell("`double` twice. See `core.other`.")])
    other = new_notebook(cells=[new_markdown_cell("# Other\n\n> Another."), new_markdown_cell("Uses `room.double`.")])
    home = new_notebook(cells=[new_markdown_cell("# Home\n\n> All of it."), new_markdown_cell("A [room](core/room.ipynb#double).")])
    for name, nb in {"index": home, "core/room": room, "core/other": other}.items():
        (tmp_path/"nbs"/name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, tmp_path/f"nbs/{name}.ipynb")
    shutil.copy(ROOT/"_quarto.yml", tmp_path)
    conf = yaml.safe_load((tmp_path/"_quarto.yml").read_text())
    conf["website"]["sidebar"]["contents"] = ["index.ipynb", "reports/index.md", "core/room.ipynb", "core/other.ipynb"]
    (tmp_path/"_quarto.yml").write_text(yaml.safe_dump(conf))
    _report(tmp_path/"var/reports/daily/ranker/2018-02-07/report.ipynb")
    return tmp_path

# ---- the project's own pages

def _listed(contents):
    for c in contents:
        if isinstance(c, str): yield c
        else: yield from _listed(c.get("contents", []))

def test_every_notebook_is_in_the_sidebar_and_every_entry_is_a_notebook():
    conf = yaml.safe_load((ROOT/"_quarto.yml").read_text())
    listed = set(_listed(conf["website"]["sidebar"]["contents"])) - {"reports/index.md"}
    assert listed == {p.relative_to(ROOT/"nbs").as_posix() for p in NBS}

def test_home_names_every_room_and_readme_leads_to_them():
    text = readme(ROOT/"nbs/index.ipynb")
    links = {m for m in re.findall(r"\]\(([^)#:]+)\)", text)}
    assert {link for link in links if not (ROOT/link).exists()} == set()
    assert {p.relative_to(ROOT).as_posix() for p in NBS} - links - {"nbs/index.ipynb"} == set()

@pytest.mark.parametrize("path", [p for p in NBS if p.name != "index.ipynb"], ids=lambda p: p.parent.name + "." + p.stem)
def test_what_a_room_offers_is_said_in_one_line(path):
    offered = api(path)
    assert (offered.doc != "").all(), f"no docstring: {offered['name'][offered.doc == ''].tolist()}"

# ---- what a build promises

def test_pages_links_and_reports(project):
    site = build(project, quarto=None)
    pages = {p.relative_to(site).as_posix(): p.read_text() for p in site.rglob("*.html")}
    assert set(pages) == {"index.html", "core/room.html", "core/other.html", "reports/index.html",
                          "reports/daily/ranker/2018-02-07/report.html"}
    assert 'href="../core/other.html"' in pages["core/room.html"] or 'href="other.html"' in pages["core/room.html"]
    assert 'href="room.html#double"' in pages["core/other.html"] or 'href="../core/room.html#double"' in pages["core/other.html"]
    assert "<mfrac>" in pages["reports/daily/ranker/2018-02-07/report.html"]
    assert "complete" in pages["reports/index.html"] and len(check_links(site)) == 0
    assert json.loads((site/"search.js").read_text().removeprefix("window.siteSearch=")), "the search index is empty"
    assert not [d for d in project.iterdir() if d.name.startswith("._docs")]

def test_a_report_that_stopped_is_listed_as_such_and_keeps_its_banner(project):
    path = _report(project/"var/reports/daily/ranker/2018-02-08/report.ipynb", error=True)
    render_report(path, path.parent, banner='SIMULATED "market" & more')
    site = build(project, quarto=None)
    assert "stopped with an error" in (site/"reports/index.html").read_text()
    page = (site/"reports/daily/ranker/2018-02-08/report.html").read_text()
    assert "KeyError" in page and "SIMULATED &quot;market&quot; &amp; more" in page

@pytest.mark.parametrize("plant, said", [("[gone](core/gone.ipynb)", "no such file"), ("[gone](core/room.ipynb#triple)", "no such anchor"),
                                         ("$\\fraq{1}{2}$", "fraq is not known"), ("@fig-gone", "no cell has the label fig-gone")])
def test_a_slip_in_a_notebook_stops_the_build_and_the_old_site_stays(project, plant, said):
    site = build(project, quarto=None)
    before = {p: p.read_bytes() for p in site.rglob("*") if p.is_file()}
    nb = nbformat.read(project/"nbs/index.ipynb", 4)
    nb.cells.append(new_markdown_cell(plant))
    nbformat.write(nb, project/"nbs/index.ipynb")
    with pytest.raises(ValueError, match=said): build(project, quarto=None)
    assert before == {p: p.read_bytes() for p in site.rglob("*") if p.is_file()}

def test_an_output_that_loads_from_the_network_stops_the_build(project):
    _report(project/"var/reports/daily/ranker/2018-02-07/report.ipynb", html='<script src="https://cdn.example.org/plotly.js"></script>')
    with pytest.raises(ValueError, match="loads from the network"): build(project, quarto=None)

def _command(folder, text):
    folder.mkdir(exist_ok=True)
    (folder/"quarto").write_text(f"#!{sys.executable}\n{text}")
    (folder/"quarto").chmod(0o755)

def test_quarto_is_used_where_there_is_one(project, monkeypatch):
    _command(project/"bin", """
import sys, pathlib, yaml
stage = pathlib.Path(sys.argv[2]); conf = yaml.safe_load((stage/"_quarto.yml").read_text())
assert sys.argv[1] == "render" and (stage/"core/room.ipynb").exists() and (stage/"styles.css").exists()
out = stage/conf["project"]["output-dir"]; out.mkdir()
(out/"search.json").write_text("[]"); (out/"index.html").write_text("<h1>by quarto</h1>")
""")
    monkeypatch.setenv("PATH", str(project/"bin"), prepend=os.pathsep)
    assert "by quarto" in (build(project)/"index.html").read_text()
    assert "by quarto" not in (build(project, quarto=None)/"index.html").read_text()

def test_quarto_failing_says_why_and_changes_nothing(project, monkeypatch):
    site = build(project, quarto=None)
    _command(project/"bin", "import sys; sys.exit('ERROR: unknown theme')")
    monkeypatch.setenv("PATH", str(project/"bin"), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match="unknown theme"): build(project)
    assert (site/"core/room.html").exists()

def test_killed_at_any_instant_the_site_is_whole(project):
    site = build(project, quarto=None)
    code = f"from tradenb.ops.site import build; print('on', flush=True); build({str(project)!r}, quarto=None)"
    rng, start = random.Random(0), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    span = time.perf_counter() - start
    for _ in range(4):
        run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        run.stdout.readline()
        time.sleep(rng.uniform(0, span))
        run.kill()
        run.wait()
        run.stdout.close()
        assert site.exists() or (project/"._docs.old").exists()
        if site.exists(): assert len(check_links(site)) == 0 and len(list(site.rglob("*.html"))) == 5

def _dies_at(n, fn, *args):
    "Run fn in a child that dies before its nth change of the disk; did it finish?"
    pid = os.fork()
    if pid == 0:
        left = [n]
        def hook(event, _):
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.move", "shutil.rmtree"):
                left[0] -= 1
                if left[0] < 0: os._exit(9)
        sys.addaudithook(hook)
        fn(*args)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

def test_dying_at_every_step_of_the_swap_leaves_the_old_site_or_the_new_one(tmp_path):
    out, new = tmp_path/"site", tmp_path/"stage/_site"
    for n in range(100):
        shutil.rmtree(tmp_path)
        for folder, text in ((out, "old"), (new, "new")):
            (folder/"deep").mkdir(parents=True)
            for name in ("a", "deep/b"): (folder/name).write_text(text)
        finished = _dies_at(n, _swap, new, out)
        _recover(out)
        texts = [(out/name).read_text() for name in ("a", "deep/b")]
        assert texts in ([["new", "new"]] if finished else [["old", "old"], ["new", "new"]]), f"died at step {n}"
        assert not (tmp_path/".site.old").exists()
        if finished: break
    assert finished and n > 5

def test_a_second_build_waits_for_the_first(project):
    site = build(project, quarto=None)
    (site/"mark").touch()
    held = os.open(project/"_proc", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    code = f"from tradenb.ops.site import build; print('on', flush=True); build({str(project)!r}, quarto=None)"
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    second.stdout.readline()
    time.sleep(2.5)
    assert second.poll() is None and (site/"mark").exists(), "it did not wait"
    os.close(held)
    second.communicate()
    assert second.returncode == 0 and not (site/"mark").exists() and len(check_links(site)) == 0

# ---- one report

class _Words(HTMLParser):
    def __init__(self, text): super().__init__(); self.words = []; self.feed(text)
    def handle_data(self, data): self.words.append(data)

cells = st.one_of(st.floats(), st.integers(), st.text(max_size=12), st.booleans(), st.none())

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=4), st.lists(st.text(max_size=6), min_size=2, max_size=2))
def test_aligning_a_table_changes_no_word_of_it(rows, names):
    frame = pd.DataFrame(rows, columns=pd.Index(names, name="a<b"), dtype=object).to_html()
    assert _Words(tidy([{"data": {"text/html": frame}}])[0]["data"]["text/html"]).words == _Words(frame).words

def test_report_is_one_file_quick_and_escaped(tmp_path):
    path = _report(tmp_path/"in.ipynb")
    start = time.perf_counter()
    page = render_report(path, tmp_path/"out", title="<script>alert(1)</script>", banner="<img src=x>")
    assert time.perf_counter() - start < 2
    text = page.read_text()
    assert list((tmp_path/"out").iterdir()) == [page] and "<script>alert" not in text and "<img src=x>" not in text
    assert [link for link, loads in Mentions(text).links if loads and not link.startswith("data:")] == []
    assert len(check_links(tmp_path/"out")) == 0

def _width(page, tmp_path, width=390):
    "How wide a page wants to be on a screen of that width, in a real browser"
    copy = page.with_name("measured.html")
    frame = f'<iframe id=f src="{page.name}" style="width:{width}px;height:800px"></iframe><p id=w></p>'
    copy.write_text(f"{frame}<script>onload=()=>{{w.textContent='width='+f.contentDocument.documentElement.scrollWidth}}</script>")
    said = subprocess.run([CHROME, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run",
                           "--disable-background-networking", f"--user-data-dir={tmp_path/'profile'}", "--virtual-time-budget=3000",
                           "--dump-dom", f"file://{copy}"], capture_output=True, text=True, timeout=60).stdout
    copy.unlink()
    return int(re.search(r"width=(\d+)", said)[1])

@pytest.mark.skipif(CHROME is None, reason="no browser")
def test_no_page_is_wider_than_a_phone(project, tmp_path):
    site = build(project, quarto=None)
    alone = render_report(project/"var/reports/daily/ranker/2018-02-07/report.ipynb", project/"alone")
    pages = [site/"index.html", site/"core/room.html", site/"reports/daily/ranker/2018-02-07/report.html", alone]
    assert [_width(p, tmp_path) for p in pages] == [390]*4
