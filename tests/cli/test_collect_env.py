"""The report behind `memoir env`."""

import json
import sys

import pytest
import torch

import memoir_fast
from memoir_fast import backends
from memoir_fast.cli import collect_env


def test_report_is_plain_and_true():
    report = collect_env.collect()
    assert json.loads(json.dumps(report)) == report
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["packages"]["memoir-fast"] in (None, memoir_fast.__version__)
    assert len(report["gpu"]["devices"]) == torch.cuda.device_count()
    assert report["processor"]["torch_threads"] == torch.get_num_threads()


def test_backends_are_those_of_the_report(monkeypatch):
    rows = collect_env.collect()["backends"]
    assert [(row["op"], row["backend"], row["reason"]) for row in rows] == [tuple(row) for row in backends.report()]
    assert all(row["available"] == (row["reason"] is None) for row in rows)


def test_environment(monkeypatch):
    monkeypatch.setenv("MEMOIR_FAST_BACKEND", "reference")
    monkeypatch.delenv("MEMOIR_FAST_CPU", raising=False)
    variables = collect_env.collect()["environment"]
    assert variables["MEMOIR_FAST_BACKEND"] == "reference" and variables["MEMOIR_FAST_CPU"] is None


@pytest.mark.parametrize("broken", ["native.extension", "backends.report"])
def test_a_broken_probe_leaves_its_reason(monkeypatch, broken):
    def fail():
        raise RuntimeError("out of order")

    monkeypatch.setattr(f"memoir_fast.{broken}", fail)
    report = collect_env.collect()
    section = "extension" if broken.startswith("native") else "backends"
    assert report[section] == {"error": "RuntimeError: out of order"}
    assert report["packages"]["torch"] is not None


def test_missing_package_is_none(monkeypatch):
    monkeypatch.setattr(collect_env, "_PACKAGES", ("no-such-distribution",))
    assert collect_env.collect()["packages"] == {"no-such-distribution": None}
