"""Every letter in a shape is explained in the docstring of its package."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import minids3

SOURCE = Path(minids3.__file__).parent
LEGEND = {name: name for name in ("ref", "ops", "nn", "kernels")}
LEGEND |= dict.fromkeys(("model", "train", "infer", "parallel"), "nn")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef


def explained(package):
    """Letters of the indented lines of a package's docstring."""
    text = importlib.import_module(f"minids3.{package}").__doc__
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return set(re.findall(r"\b[A-Z]\b", "\n".join(lines)))


def used(path):
    """Letters of the shapes, such as [B, T, D], in the docstrings of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        for shape in re.findall(r"\[([^\[\]]*)\]", text or ""):
            if re.fullmatch(r"[\w\s.,*/+()]+", shape):
                found |= set(re.findall(r"\b[0-9]?([A-Z])\b", shape))
    return found


@pytest.mark.parametrize("package", LEGEND)
def test_letters_are_explained(package):
    known = explained(LEGEND[package]) | set("MNK")
    assert len(known) >= 8
    unknown = {p.name: used(p) - known for p in sorted((SOURCE / package).rglob("*.py"))}
    assert {name: letters for name, letters in unknown.items() if letters} == {}


def test_letters_of_shapes_are_found():
    assert {"M", "K", "N"} <= used(SOURCE / "kernels/gemm.py")
    assert {"B", "H", "T", "S", "C", "R"} <= used(SOURCE / "nn/mla.py")
