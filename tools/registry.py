"""What pip would install, a release of transformers laid over an environment, and the headers of a torch release.

Everything asks pip, with the indexes that it is set up for. A question that it cannot answer is a RegistryError.
"""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

COMPLETE = "complete.json"  # what a folder holds, written last


class RegistryError(Exception):
    """pip failed: which command, and its last words."""


def pip(python: str | Path, *arguments: str | Path, **environment: str) -> str:
    """Output of one pip command of an environment."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    ran = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    if ran.returncode:
        words = "\n".join((ran.stderr.strip() or ran.stdout.strip()).splitlines()[-4:])
        raise RegistryError(f"{' '.join(command)} failed, which needs the package registry:\n{words}")
    return ran.stdout


def would_install(python: str | Path, *arguments: str | Path) -> dict[str, tuple[str, str]]:
    """What `pip install` with these arguments would add to an environment: by name, the version and the file."""
    return planned(pip(python, "install", "-q", "--dry-run", "--report", "-", *arguments))


def planned(report: str) -> dict[str, tuple[str, str]]:
    """Name, version and file of every package in a report of pip's."""
    found = {}
    for item in json.loads(report)["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found[name] = item["metadata"]["version"], item["download_info"]["url"].rsplit("/", 1)[-1]
    return found


def newest(python: str | Path, name: str) -> str:
    """The newest release that the registry has for this Python, final releases only."""
    answer = pip(python, "index", "versions", name)
    first = re.match(rf"{re.escape(name)} \((\S+)\)", answer)
    if not first:
        raise RegistryError(f"pip index versions {name}: expected '{name} (version)' first, got {answer[:200]!r}")
    return first[1]


def overlay(python: str | Path, folder: Path, package: str, version: str) -> dict[str, str]:
    """A folder to be put before site-packages: one release of a package, and of its needs those that the environment
    lacks or has in a version that this release refuses. Returns the versions in it; {} where the environment fits.
    """
    if not (folder / COMPLETE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        wanted = {name: held for name, (held, _) in would_install(python, f"{package}=={version}").items()}
        folder.mkdir(parents=True)
        if wanted:
            pins = [f"{name}=={held}" for name, held in wanted.items()]
            pip(python, "install", "-q", "--no-deps", "--target", folder, *pins)
        (folder / COMPLETE).write_text(json.dumps(wanted))
    return json.loads((folder / COMPLETE).read_text())


def headers(python: str | Path, folder: Path, version: str, library: Path) -> Path:
    """A folder that passes for an installed torch of this release when something is built: its headers, its metadata,
    and `library` as what to link with.

    The headers are those of the wheel for macOS, which is a sixth of the one for Linux, and has the same stable ABI.
    """
    if not (folder / COMPLETE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        platforms = [f"--platform=macosx_{major}_0_arm64" for major in range(11, 20)]
        choice = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", *platforms]
        # No pip.conf: a cap there on what may be installed is none on whose headers are looked at.
        pip(python, "download", "-q", *choice, "-d", folder, f"torch=={version}", PIP_CONFIG_FILE=os.devnull)
        (wheel,) = folder.glob("torch-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if needed(name)])
        wheel.unlink()
        (folder / "torch" / "__init__.py").touch()
        (folder / "torch" / "lib").symlink_to(library)
        (folder / COMPLETE).write_text(json.dumps({"torch": version}))
    return folder


def needed(name: str) -> bool:
    """Whether a build reads this file of a torch wheel."""
    return name.startswith("torch/include/") or bool(re.fullmatch(r"torch-[^/]*\.dist-info/METADATA", name))
