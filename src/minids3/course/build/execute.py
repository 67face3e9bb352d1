"""Running a notebook for its outputs, and taking out of them what varies."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from typing import Any

from minids3.course.build.cells import METADATA, BuildError

__all__ = ["execute"]


def execute(notebook: Any, timeout: int = 3600) -> Any:
    """Run ``notebook`` in a fresh kernel and return it with outputs and nothing that varies.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        given = {
            "MINIDS3_STRICT": "1",
            "MINIDS3_HOME": folder,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        before = {k: os.environ.get(k) for k in given}
        os.environ.update(given)
        try:
            NotebookClient(
                notebook,
                timeout=timeout,
                kernel_name="python3",
                store_widget_state=True,  # it answers the kernel; dropped below
                record_timing=False,
                extra_arguments=["--log-level=40"],
                resources={"metadata": {"path": folder}},
            ).execute()
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
    notebook.metadata.update(copy.deepcopy(METADATA))
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    return notebook


def _tidy(outputs: list[Any]) -> list[Any]:
    """Drop widget views (their models are gone), progress bars and empty output; join streams."""
    kept: list[Any] = []
    for out in outputs:
        data = out.get("data", {})
        widget = "application/vnd.jupyter.widget-view+json"
        if widget in data:
            del data[widget]
            out.get("metadata", {}).pop(widget, None)
        if re.match(r"[^|\n]*\d+%\|.*\[.*\]", data.get("text/plain", "")):
            continue  # tqdm's bar, with or without a name, frozen at its first step
        if out.output_type == "stream" and out.name == "stderr":
            if "it/s" in out.text or "s/it" in out.text or "\r" in out.text:
                continue
            raise BuildError(f"a cell wrote to stderr: {out.text[:200]}")
        same_stream = out.output_type == "stream" and kept and kept[-1].output_type == "stream"
        if same_stream and kept[-1].name == out.name:
            kept[-1].text += out.text
        else:
            kept.append(out)
    return kept
