"""docs/first_run.ipynb runs from its first cell to its last. On a copy of the small run that other tests
make, so that its own `rft run` finds all stages done and costs seconds."""

from pathlib import Path

import pytest

from tests.pipeline.conftest import ROOT, SMALL, copy


def test_notebook_runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("RFT_FIRST_RUN", " ".join([f"runs={copy(finished, tmp_path)}", *SMALL]))
    notebook = nbformat.read(ROOT / "docs/first_run.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is stored without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    told = "\n".join(out.get("text") or str(out.get("data")) for out in outputs)
    shown = ["on the same 40 problems", "--- correct, ", "--- wrong, wrong", "<svg"]
    for words in [*shown, "--- with the adapter", "--- without"]:
        assert words in told, words
