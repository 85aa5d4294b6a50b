"""The notebook runs from first cell to last, and what it shows is what a run showed."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
NAMED = 'MODEL = "smollm2"'


def printed(cell):
    """The text of a code cell's outputs."""
    texts = [out.get("text") or out.get("data", {}).get("text/plain") or [] for out in cell["outputs"]]
    return "".join("".join(text) for text in texts)


def test_runs_on_a_small_model(model_folder, tmp_path):
    pytest.importorskip("ipykernel", reason="a notebook runs in a kernel, the extra `notebook`")
    nbformat = pytest.importorskip("nbformat", reason="a notebook is read by nbformat, the extra `notebook`")
    nbclient = pytest.importorskip("nbclient", reason="a notebook is run by nbclient, the extra `notebook`")
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert NAMED in book.cells[1].source
    book.cells[1].source = book.cells[1].source.replace(NAMED, f"MODEL = {model_folder!r}")
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(printed(cell) for cell in book.cells if cell.cell_type == "code")
    assert "learned: True" in shown and "it says: Bergen" in shown
    assert "route:   [Route(edit_id=0, overlap=1.0)]" in shown
    assert "edit -1: The largest planet of the solar system is" in shown, "an unrelated prompt followed an edit"
    assert "loaded:   Jane" in shown and "disabled: Jane" not in shown


def test_outputs_are_of_a_whole_run():
    """Every cell was run, in order, without an error, and shows nothing of the machine."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = {out["output_type"] for out in cell["outputs"]}
        assert (kinds or cell is cells[0]) and "error" not in kinds, cell["source"]
        assert not any(out.get("name") == "stderr" for out in cell["outputs"]), cell["source"]
        assert "/home/" not in printed(cell) and "Warning" not in printed(cell)
    assert "it says: Bergen" in "".join(map(printed, cells))
