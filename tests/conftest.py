"Where the suite finds what it needs"
import itertools
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder of real market data, or a skip that says how to get it"
    told = os.environ.get("TRADENB_REAL_DATA")
    if not told: pytest.skip("TRADENB_REAL_DATA is not set: point it at a folder of real market data to run this")
    folder = Path(told)
    if not folder.is_dir(): pytest.skip(f"TRADENB_REAL_DATA={told} is not a folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_ledger(tmp_path_factory) -> Iterator[None]:
    "What the suite scores is nobody's trial: it stays away from the ledger of whoever runs it"
    from tradenb.validation.trials import Trials, keeping
    with keeping(Trials(tmp_path_factory.mktemp("trials")/"trials.db")): yield


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the checkout"
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    "The address of a real PostgreSQL server, started once, or a skip that says why there is none"
    from tradenb.data.postgres import server
    running = server()
    try: address = running.__enter__()
    except (OSError, RuntimeError, KeyError, subprocess.SubprocessError) as e: pytest.skip(f"no PostgreSQL server here: {e}")
    yield address
    running.__exit__(None, None, None)


@pytest.fixture(params=["folder", "postgresql"])
def new_home(request, tmp_path) -> Callable[[], str]:
    "Makes addresses where there is no store yet: folders; then, the test once more, schemas of a real database"
    if request.param == "folder":
        number = itertools.count(1)
        return lambda: str(tmp_path/f"home{next(number)}")
    address = request.getfixturevalue("postgres")
    return lambda: f"{address}?schema=home_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def home_address(new_home) -> str:
    "Where there is no store yet: a folder; then, the test once more, a schema of a real database"
    return new_home()


_NO_CLUSTER: dict[str, str] = {}   # backend -> why it does not start on this machine; "" where it does


@pytest.fixture
def backend(request) -> str:
    "A backend of models.cluster whose workers do start here, or a skip that says why they do not"
    name = request.param
    if name in ("dask", "ray"): pytest.importorskip({"dask": "distributed"}.get(name, name), reason=f"pip install 'tradenb[{name}]'")
    if name not in _NO_CLUSTER:
        from tradenb.models.cluster import cluster
        try:
            with cluster(name, 1): _NO_CLUSTER[name] = ""
        except (OSError, RuntimeError, TimeoutError, ConnectionError, ValueError) as e: _NO_CLUSTER[name] = f"{type(e).__name__}: {e}"[:200]
    if _NO_CLUSTER[name]: pytest.skip(f"{name} does not start on this machine: {_NO_CLUSTER[name]}")
    return name


@pytest.fixture
def small(tmp_path) -> Path:
    "The file of a small recipe"
    from tests.recipes import SMALL
    (tmp_path/"small.yml").write_text(SMALL)
    return tmp_path/"small.yml"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    "The command line, run here: exit code, and what it said in one line"
    from tradenb.cli import main
    monkeypatch.chdir(tmp_path)
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["tradenb", *map(str, args)])
        with pytest.raises(SystemExit) as e: main()
        said = capsys.readouterr()
        return e.value.code or 0, " ".join((said.out + said.err).split())
    return run
