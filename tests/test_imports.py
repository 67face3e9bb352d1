"""The direction of imports, read from the source; and that every list of packages is this one."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minids3

SOURCE = Path(minids3.__file__).parent
ROOT = Path(__file__).parents[1]
# The one list of packages: README, CONTRIBUTING and the package's docstring must agree with it.
# An area may import those before it and itself; data and sim stand beside the chain. Any command
# may use `minids3.command`, which imports nothing of ours.
LAYERS = (
    ("config", "numerics", "isolation"),
    ("ref", "kernels"),
    ("ops",),
    ("nn",),
    ("model",),
    ("train", "infer"),
    ("parallel", "evals"),
    ("viz",),
    ("course", "bench"),
    ("grade",),
)
SIDE = {"data": {"config"}, "sim": {"config", "numerics"}, "command": set()}
# A command may start what stands above its package.
COMMANDS = {"train/__main__.py": ("minids3.parallel.training",)}
AFTER_DATA = {"model", "train", "infer", "parallel", "evals", "viz", "course", "bench", "grade"}
BUILD_ONLY = {"jupytext", "nbformat", "nbclient", "nbconvert"}


def imported(path):
    """Yield dotted names of the modules that ``path`` imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            yield node.module
            if node.module == "minids3":
                yield from (f"minids3.{alias.name}" for alias in node.names)


def area(path):
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def allowed(name):
    if name in SIDE:
        return SIDE[name] | {name, "command"}
    for depth, layer in enumerate(LAYERS):
        if name in layer:
            below = {a for earlier in LAYERS[:depth] for a in earlier}
            side = {"data", "sim"} if name in AFTER_DATA else set()
            return below | side | {name, "command"}
    raise AssertionError(f"say in tests/test_imports.py where minids3.{name} belongs")


def test_direction():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = area(path)
        if name in ("__init__", "__main__") or "_data" in path.parts:
            continue
        for module in imported(path):
            if module in COMMANDS.get(str(path.relative_to(SOURCE)), ()):
                continue
            parts = module.split(".")
            if parts[0] == "minids3" and len(parts) > 1 and parts[1] not in allowed(name):
                wrong.append(f"{path.relative_to(SOURCE)} imports {module}")
    assert wrong == []


def test_only_kernels_import_triton_and_only_the_build_imports_jupyter_formats():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = str(path.relative_to(SOURCE))
        for module in imported(path):
            top = module.split(".")[0]
            # The grader asks whether an answer is one of Triton's kernels.
            if top == "triton" and area(path) != "kernels" and place != "grade/process/runner.py":
                wrong.append(f"{place} imports triton")
            if top == "transformers" and area(path) != "bench":
                wrong.append(f"{place} imports transformers")
            if top in BUILD_ONLY and not place.startswith("course/build/"):
                wrong.append(f"{place} imports {top}")
    assert wrong == []


def test_importing_the_package_needs_neither_triton_nor_transformers():
    code = (
        "import sys\n"
        "for m in ('triton', 'transformers', 'jupytext', 'nbformat', 'nbclient'):\n"
        "    sys.modules[m] = None\n"
        "import minids3, minids3.model, minids3.train, minids3.infer, minids3.data\n"
        "import minids3.sim, minids3.viz, minids3.course\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_triton_everything_imports_and_a_kernel_says_what_to_do():
    code = """
import sys, pkgutil, importlib
sys.modules["triton"] = None
import minids3.kernels
for m in pkgutil.iter_modules(minids3.kernels.__path__):
    importlib.import_module(f"minids3.kernels.{m.name}")
from minids3.course.registry import exercises
from minids3.course.run import run_check
from minids3.kernels.fp8 import decode_e4m3
found = exercises()
assert len(found) > 30
kernel = next(e for e in found if e.kernel)
try:
    decode_e4m3[(1,)](0)
except ImportError as error:
    assert "pip install triton" in str(error)
else:
    raise SystemExit("a kernel ran without Triton")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_rooms_of_the_grader_form_no_circle():
    """Each folder of ``grade`` is a room; a module beside them is one of its own."""
    home = SOURCE / "grade"

    def room(name):
        return name if (home / name).is_dir() else f"{name}.py"

    arrows = {}
    for path in sorted(home.rglob("*.py")):
        here = room(path.relative_to(home).parts[0].removesuffix(".py"))
        for module in imported(path):
            parts = module.split(".")
            if parts[:2] == ["minids3", "grade"] and len(parts) > 2 and room(parts[2]) != here:
                arrows.setdefault(here, set()).add(room(parts[2]))
    rooms = {"submissions", "process", "judging", "reports", "handout"}
    assert rooms <= arrows.keys() | set().union(*arrows.values())
    for path in (home / "reports").glob("*.py"):  # and none inside the room of the pages
        names = [m.rpartition(".")[2] for m in imported(path) if ".reports." in m]
        for name in names:
            arrows.setdefault(f"reports/{path.stem}", set()).add(f"reports/{name}")
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError


CHAIN = " -> ".join(", ".join(layer) for layer in LAYERS)
PACKAGES = [*(name for layer in LAYERS for name in layer), *SIDE]


def chains(text):
    """Every chain of packages in a text, with braces, line breaks and quotes taken away."""
    plain = " ".join(re.sub(r"[{}`]", "", text).split())
    word = r"[a-z]+(?:, [a-z]+)*"
    return [c for c in re.findall(rf"{word}(?: -> {word})+", plain) if "nn -> model" in c]


def test_every_package_is_in_the_list():
    found = {p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()}
    found |= {p.stem for p in SOURCE.glob("*.py") if not p.stem.startswith("__")}
    assert found == set(PACKAGES)


@pytest.mark.parametrize("place", ["README.md", "CONTRIBUTING.md", "src/minids3/__init__.py"])
def test_every_list_of_packages_is_this_one(place):
    text = (ROOT / place).read_text(encoding="utf-8")
    assert chains(text) == [CHAIN]


def test_the_map_tells_of_every_package_what_its_docstring_says():
    rows = []
    for name in PACKAGES:
        path = SOURCE / name / "__init__.py"
        text = (path if path.exists() else SOURCE / f"{name}.py").read_text(encoding="utf-8")
        first = ast.get_docstring(ast.parse(text)).splitlines()[0].rstrip(".")
        rows.append(f"| `{name}` | {first.replace('``', '`')} |")
    table = "\n".join(rows)
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), f"README should say\n{table}"


def test_files_that_the_map_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\]\((src/[^)]+)\)", text)
    assert len(named) >= 5
    assert [path for path in named if not (ROOT / path).exists()] == []
