"Where the suite finds what it needs"
import os
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


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the checkout"
    return Path(__file__).resolve().parents[1]
