"""The bundle that students get: notebooks with stubs, how to begin, and how to hand in.

A bundle is made from the repository's student notebooks and refuses what must not be in one: a
filled-in answer, an output, an exercise without its check. ``manifest.json`` holds the checksum of
every file, so that it can be told later which release a submission came from.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minids3.course.registry import exercises
from minids3.course.repository import address
from minids3.grade.files import write
from minids3.grade.submissions.pristine import Pristine, find_notebook, is_stub

__all__ = ["release"]

_README = """\
# {title}

{table}

## Begin

On Colab: open a notebook there; its first cell installs what is needed. On your own machine, with
Python 3.10 or newer:

    python -m venv .venv
    .venv/bin/pip install "minids3[lab] @ git+{address}"
    .venv/bin/jupyter lab

## Work

- Write your answer into the cell that begins with `# EXERCISE`; keep that line. Cells of your own
  may stand anywhere: what your answer needs of them is graded with it.
- Run the check below it. It says what is right, what is not, and why. `hint("...")` asks you a
  question, called again it gives pseudocode.
- Before you hand in: *Restart and run all*, then see what the public checks say:

      minids3 grade --self {first}.ipynb

## Hand in

The notebook file itself, under any name. Its outputs are not read. Grading uses the checks you have
seen, and the same properties with other inputs and shapes. Each exercise is graded by itself: a
mistake in one costs nothing in the next.
"""


def release(numbers: list[str], out: Path, pack: bool = False) -> list[Path]:
    """Write the bundle of notebooks ``numbers`` into ``out`` and return its files.

    Args:
        numbers: ``"03"``, ``"03_latent_attention"`` or paths.
        out: a folder, new or made by this command before.
        pack: also write ``out.zip``.

    Raises:
        FileNotFoundError: no such notebook.
        ValueError: a notebook that must not go out, or a folder with other things in it.
    """
    paths = list(dict.fromkeys(find_notebook(n) for n in numbers))
    made = {f"{p.stem}.ipynb": p.read_bytes() for p in paths}
    notebooks = [Pristine.read(p) for p in paths]
    for notebook in notebooks:
        _refuse_answers(notebook)
    for path, notebook in zip(paths, notebooks, strict=True):
        made |= {name: (path.parent / name).read_bytes() for name in _pictures(notebook, path)}
    made["README.md"] = _readme(notebooks).encode()
    manifest = {
        "minids3": version("minids3"),
        "notebooks": {n.name: {"exercises": n.ids} for n in notebooks},
        "sha256": {name: hashlib.sha256(made[name]).hexdigest() for name in sorted(made)},
    }
    made["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    _refuse_strangers(out, made)
    for name, content in made.items():
        write(out / name, content)
    if pack:
        _pack(out, made)
    return [out / name for name in made]


def _refuse_answers(notebook: Pristine) -> None:
    for raw, given in zip(notebook.notebook["cells"], notebook.all_cells, strict=True):
        if given is None:
            continue
        if raw.get("outputs"):
            raise ValueError(
                f"{notebook.name}: cell {given.number + 1} has outputs; release the "
                "student's notebook, not the solved one"
            )
        if given.kind == "answer" and not is_stub(given.source, given.name):
            raise ValueError(
                f"{notebook.name}: {given.exercise} is answered; release the student's notebook"
            )


def _refuse_strangers(out: Path, made: dict[str, bytes]) -> None:
    """Do not write among files that are not a bundle's."""
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} if out.is_dir() else ()
    strangers = sorted(set(there) - set(made))
    if strangers and "manifest.json" not in there:
        raise ValueError(f"{out} holds other files ({strangers[0]}); choose a new folder")


def _pictures(notebook: Pristine, path: Path) -> list[str]:
    """Return the files beside the notebook that its text shows."""
    text = "\n".join(
        "".join(c["source"]) for c in notebook.notebook["cells"] if c["cell_type"] == "markdown"
    )
    found = re.findall(r'(?:\]\(|src=")(?!https?:)([^)"\s#]+\.(?:png|svg|jpe?g|gif))', text)
    return sorted({name for name in found if (path.parent / name).is_file() and ".." not in name})


def _readme(notebooks: list[Pristine]) -> str:
    rows = ["| notebook | exercise | points | minutes |", "|---|---|---|---|"]
    total: Any = 0
    for notebook in notebooks:
        for e in exercises(notebook.name):
            rows.append(f"| `{notebook.name}` | {e.title} | {e.points} | {e.minutes} |")
            total += e.points
    rows.append(f"| | **together** | **{total}** | |")
    title = (
        notebooks[0].title
        if len(notebooks) == 1
        else "minids3: notebooks " + ", ".join(n.name[:2] for n in notebooks)
    )
    return _README.format(
        title=title, table="\n".join(rows), address=address(), first=notebooks[0].name
    )


def _pack(out: Path, made: dict[str, bytes]) -> None:
    """Write the zip file, the same bytes for the same content."""
    place = out.with_name(f"{out.name}.zip")
    temporary = place.with_name(f".{place.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as pack:
        for name in sorted(made):
            pack.writestr(zipfile.ZipInfo(f"{out.name}/{name}"), made[name])
    temporary.replace(place)
