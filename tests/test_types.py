"""Types: a user's script passes strictly, and every public module says what it exports."""

from __future__ import annotations

import ast
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# Readers' code: the registry finds it, nobody imports it by name.
EXERCISES = "minids3.course.exercises"


def module_name(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exported(tree):
    """The module's ``__all__``, or None."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if getattr(target, "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """Names that the module's top level binds, in branches too."""
    found, left = set(), list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
PUBLIC = {name: tree for name, tree in TREES.items() if not name.startswith(EXERCISES)}


def test_every_public_module_says_what_it_exports():
    assert len(PUBLIC) > 100
    assert [name for name, tree in PUBLIC.items() if exported(tree) is None] == []


@pytest.mark.parametrize("name", [n for n, t in PUBLIC.items() if exported(t)])
def test_what_it_exports_is_there(name):
    names = exported(PUBLIC[name])
    assert set(names) <= defined(PUBLIC[name])
    assert len(set(names)) == len(names)
    assert not [n for n in names if n.startswith("_") and n != "__version__"]


def test_what_others_import_is_exported():
    """Whatever one package, a notebook or the README takes from another is in its ``__all__``."""
    others = {p.name: p.read_text(encoding="utf-8") for p in ROOT.glob("notebooks/source/*.py")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for i, block in enumerate(readme.split("```python\n")[1:]):
        others[f"README, block {i}"] = block.split("```")[0]
    trees = TREES | {name: ast.parse(text) for name, text in others.items()}
    hidden = []
    for user, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.module not in TREES:
                continue
            if user.split(".")[:2] == node.module.split(".")[:2]:
                continue
            for alias in node.names:
                if f"{node.module}.{alias.name}" in TREES or alias.name.startswith("_"):
                    continue
                if alias.name not in (exported(TREES[node.module]) or ()):
                    hidden.append(f"{user} imports {alias.name} from {node.module}")
    assert hidden == []


def test_the_package_says_that_it_is_typed():
    assert (importlib.resources.files("minids3") / "py.typed").is_file()


@pytest.mark.slow
def test_a_users_script_and_the_package_pass_mypy():
    """Half a minute on one core the first time, seconds from ``.mypy_cache`` afterwards."""
    pytest.importorskip("mypy")
    if torch.__version__ < "2.13":
        pytest.skip("PyTorch's own types of backward() were others before 2.13")
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success: no issues found" in done.stdout
