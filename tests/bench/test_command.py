"""`memoir bench` hands its options to the driver, and says where that is to be had when it is not there."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner


@pytest.fixture
def command(monkeypatch):
    """Runs `memoir bench` with the driver replaced; returns exit code, output and the driver's command line."""
    from memoir_fast.cli.app import app
    from memoir_fast.cli.commands import bench as module

    started = []

    def run(*options, code=0, driver=module._DRIVER):
        def start(line, check):
            started.append(line)
            return SimpleNamespace(returncode=code)

        monkeypatch.setattr(module, "_DRIVER", driver)
        monkeypatch.setattr(module.subprocess, "run", start)
        result = CliRunner().invoke(app, ["bench", *options])
        return result.exit_code, result.output, started

    return run


def test_options_reach_the_driver(command):
    code, _, ((_, driver, *options),) = command(
        "--only", "tophash", "--only", "edit", "--quick", "--gpu", "--json", "f"
    )
    assert code == 0 and Path(driver).is_file()
    assert options == ["--only", "tophash", "--only", "edit", "--quick", "--gpu", "--json", "f"]


def test_exit_code_is_the_drivers(command):
    assert command(code=1)[0] == 1


def test_without_a_checkout(command, tmp_path):
    code, output, started = command(driver=tmp_path / "bench" / "run.py")
    assert code == 1 and not started
    assert "make bench" in output and "Traceback" not in output
