"""Makes the scripts of tools/ importable."""

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="session")
def tool():
    """Imports a script of tools/ by name."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(TOOLS))
