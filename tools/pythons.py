"""The interpreters of this machine, and whether one of them can run the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from registry import would_install

MINORS = ("3.10", "3.11", "3.12", "3.13")
_SAY = "import sys, sysconfig; print(*sys.version_info[:3], sep='.'); sysconfig.get_path('include') or sys.exit(1)"
_COMPILE = """
import pathlib, sys
for name in sys.stdin.read().splitlines():
    compile(pathlib.Path(name).read_bytes(), name, "exec", dont_inherit=True)
"""


def version(python: str | Path) -> str | None:
    """What an interpreter calls itself, such as 3.12.1; None where it does not run."""
    try:
        said = subprocess.run([str(python), "-c", _SAY], capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def interpreters() -> dict[str, Path]:
    """By minor version: the one that runs this, those on the PATH, and pyenv's."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        places = [sys.executable] if minor == f"{sys.version_info[0]}.{sys.version_info[1]}" else []
        places += filter(None, [shutil.which(f"python{minor}")])
        places += map(str, sorted(pyenv.glob(f"versions/{minor}.*/bin/python{minor}")))
        for place in map(Path, places):
            if (version(place) or "").startswith(f"{minor}."):
                found[minor] = place
                break
    return found


def compiles(python: Path, sources: list[Path]) -> str | None:
    """What an interpreter says of the first source that it cannot compile; None where it compiles all."""
    names = "\n".join(map(str, sources))
    ran = subprocess.run([str(python), "-c", _COMPILE], input=names, capture_output=True, text=True)
    return ran.stderr.strip().splitlines()[-1] if ran.returncode else None


def cpu_torch(python: Path, constraints: Path) -> bool:
    """Whether pip finds the pinned torch as a CPU build. Others bring several GB of CUDA libraries."""
    wanted = would_install(python, "--ignore-installed", "--no-deps", "-c", constraints, "torch")
    return "+cpu" in wanted["torch"][0]
