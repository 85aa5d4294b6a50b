"""What stands beside the code: make's help, the hooks, the workflow, the forms. What they name exists."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="reads the project's YAML files")

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
PAGES = [*FORMS, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md"))]
FILES = [*PAGES, *(ROOT / name for name in (".github/workflows/ci.yml", ".pre-commit-config.yaml", ".ci/run"))]
EXAMPLE = "mask_columns"  # what stands for `<op>`: it has a file of each kind
MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = set(" ".join(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)).split())


def parsed(name):
    return yaml.safe_load((ROOT / name).read_text())


def in_backticks(text):
    """What stands in backticks, and the lines of blocks of code, without their comments."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return [*inline, *(line.split("#")[0].strip(" $") for block in blocks for line in block.splitlines())]


def test_help_lists_every_target():
    if shutil.which("make") is None:
        pytest.skip("needs make, there is none")
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^make (\w+) +\S.{5,}$", said, re.MULTILINE)
    assert set(lines) == PHONY and len(lines) == len(PHONY)
    assert subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout == said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_make_targets_exist(path):
    text = path.read_text()
    said = text if path.suffix != ".md" else "\n".join(in_backticks(text))
    assert set(re.findall(r"\bmake ([a-z]+)\b", re.sub(r"#.*", "", said))) <= PHONY


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_that_they_name_exist(path):
    """Words that begin with a folder of the project, and in CONTRIBUTING all that look like a file of sources."""
    text = path.read_text().replace("<op>", EXAMPLE)
    begins = r"(?:\.ci|bench|tools|tests|kernels|csrc|memoir_fast|docs|examples)"
    named = set(re.findall(rf"(?<![\w/.-])({begins}/[\w./-]*\w)", text))
    if path.name == "CONTRIBUTING.md":
        words = " ".join(in_backticks(text)).split()
        named |= {
            word.split("::")[0] for word in words if re.search(r"^[\w.-]+/[\w./-]+\.(py|md|json|cpp|cu|h)\b", word)
        }
        assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_memoirs_commands_exist():
    """Each `memoir ...` that is named is a command, and takes the options that it is named with."""
    named = {word for path in PAGES for word in in_backticks(path.read_text()) if re.match(r"memoir [a-z]", word)}
    assert "memoir env --json -" in named
    for command in named:
        _, name, *rest = shlex.split(command)
        run = [sys.executable, "-m", "memoir_fast", name, "--help"]
        said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert said.returncode == 0, f"{command}: {said.stderr}"
        assert all(word in said.stdout for word in rest if word.startswith("--")), command


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_are_forms(path):
    form = yaml.safe_load(path.read_text())
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [element["id"] for element in form["body"] if element["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and "env" in ids
    for element in form["body"]:
        assert element["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert element["attributes"].get("label") or element["attributes"].get("value")


def test_a_report_asks_for_what_is_needed():
    form = parsed(".github/ISSUE_TEMPLATE/bug.yml")
    required = {one["id"] for one in form["body"] if one.get("validations", {}).get("required")}
    assert required == {"expected", "came", "example", "env"}
    assert parsed(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}


def test_workflow():
    """Actions are pinned to commits, jobs end, the Pythons are those that the package names, and `.ci/run` is run."""
    workflow = parsed(".github/workflows/ci.yml")
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert all(job["timeout-minutes"] <= 30 for job in workflow["jobs"].values())
    assert workflow["permissions"] == {"contents": "read"}
    pythons = {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")}
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert oldest in pythons and all(f"Python :: {one}" in (ROOT / "pyproject.toml").read_text() for one in pythons)
    script = ROOT / next(step["run"] for step in steps if step.get("run", "").startswith(".ci"))
    assert script.stat().st_mode & 0o111, f"{script} cannot be run"


def test_hooks_are_the_environments_tools():
    """No hook fetches anything: each is a tool that `make lint` calls too, of the same environment."""
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    tools = set()
    for hook in repository["hooks"]:
        folder, _, tool = shlex.split(hook["entry"])[0].rpartition("/")
        assert (hook["language"], folder) == ("system", ".venv/bin")
        tools.add(tool)
    assert set(re.findall(r"\$\(BIN\)/(\w+)", MAKEFILE[MAKEFILE.index("\nlint:") :].split("\n\n")[0])) == tools


def test_devcontainer():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert re.fullmatch(r"make (\w+)", settings["postCreateCommand"])[1] in PHONY
    assert (
        f'"Programming Language :: Python :: {re.search("python:([0-9.]+)", settings["image"])[1]}"'
        in (ROOT / "pyproject.toml").read_text()
    )
