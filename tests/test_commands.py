"""Every command answers what it cannot do in one line on stderr, with status 2."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minids3
from minids3 import __main__ as overview
from minids3.bench import __main__ as bench
from minids3.command import fail, one_line, run
from minids3.course import __main__ as course
from minids3.data import DataError, data_dir, files
from minids3.data import __main__ as data
from minids3.kernels import compile as kernels

ROOT = Path(__file__).parents[1]
WRONG = [
    (overview, ["trian"]),
    (overview, ["train", "dense_chat"]),
    (overview, ["--versoin"]),
    (overview, [""]),
    (data, []),
    (data, ["rebuild"]),
    (data, ["build", "--out"]),
    (data, ["build", "--out", "FILE"]),
    (data, ["build", "--out", "FILE/x"]),
    (data, ["verify", "--dir", "nothing\nhere"]),
    (data, ["verify", "--dir", "FILE"]),
    (data, ["show"]),
    (data, ["show", "poems"]),
    (data, ["show", "facts", "--n", "0"]),
    (data, ["show", "facts", "--n", "-3"]),
    (data, ["show", "facts", "--n", "1.5"]),
    (data, ["show", "facts", "--n", "²"]),
    (data, ["show", "facts", "--n", "9" * 5000]),
    (data, ["show", "facts", "--seed", "one"]),
    (data, ["show", "facts", "more"]),
    (bench, []),
    (bench, ["speed"]),
    (bench, ["model", "--rounds", "0"]),
    (bench, ["model", "--rounds", "few"]),
    (bench, ["model", "--device", "tpu"]),
    (bench, ["kernels", "--json", "FILE/x.json"]),
    (bench, ["kernels", "--json", "FOLDER"]),
    (course, []),
    (course, ["bild"]),
    (course, ["build", "99"]),
    (course, ["check", "zz"]),
    (course, ["repository"]),
    (course, ["repository", "no slash"]),
    (course, ["list", "03"]),
    (kernels, ["no_such_kernel"]),
    (kernels, ["a", "b"]),
    (kernels, ["--targets"]),
]


def answer(main, arguments, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("module", "arguments"), WRONG, ids=[f"{m.__name__} {' '.join(a)[:40]}" for m, a in WRONG]
)
def test_wrong_arguments(module, arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    places = {"FILE": tmp_path / "file", "FOLDER": tmp_path}
    arguments = [re.sub("FILE|FOLDER", lambda m: str(places[m[0]]), a) for a in arguments]
    status, printed = answer(module.main, arguments, capsys)
    assert status == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert (tmp_path / "file").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_version_and_overview(capsys):
    written = re.search('^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert minids3.__version__ == written[1]
    assert answer(overview.main, ["--version"], capsys)[1].out == f"minids3 {written[1]}\n"
    for arguments in ([], ["--help"]):
        status, printed = answer(overview.main, arguments, capsys)
        assert status == 0
        for call, _ in overview.COMMANDS.values():
            assert call in printed.out
    for call, _ in overview.COMMANDS.values():
        if call.startswith("python -m "):
            assert importlib.util.find_spec(call.removeprefix("python -m "))
    with pytest.raises(SystemExit) as stop:
        overview.main(["grade", "--help"])
    assert stop.value.code == 0
    assert "submissions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("main", "arguments", "package", "said"),
    [
        (kernels.main, [], "triton", "pip install triton"),
        (kernels.main, ["fp8_gemm"], "triton", "pip install triton"),
        (bench.main, ["kernels"], "triton", "pip install triton"),
        (bench.main, ["model"], "transformers", "pip install -e '.[test]'"),
        (course.main, ["build"], "jupytext", "pip install -e '.[test]'"),
        (course.main, ["check"], "jupytext", "pip install -e '.[test]'"),
    ],
)
def test_a_missing_package_is_named(main, arguments, package, said, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    status, printed = answer(main, arguments, capsys)
    assert status == 2
    assert package in printed.err
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_process_without_triton_compiles_nothing_and_calls_nothing_wrong():
    code = (
        "import sys, runpy; sys.modules['triton'] = None; sys.argv = ['x']\n"
        "runpy.run_module('minids3.kernels.compile', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install triton" in done.stderr
    assert "WRONG" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_written_into_an_installed_package(tmp_path, monkeypatch, capsys):
    inside = tmp_path / "site-packages" / "minids3" / "_data"
    inside.mkdir(parents=True)
    (inside / "SHA256SUMS").write_bytes((data_dir() / "SHA256SUMS").read_bytes())
    monkeypatch.setattr(files, "PACKAGE", inside.parent)
    monkeypatch.delenv("MINIDS3_DATA", raising=False)
    assert data_dir() == inside
    for main, arguments, said in (
        (data.main, ["build"], "--out FOLDER"),
        (bench.main, ["kernels", "--json"], "--json FILE"),
        (bench.main, ["fp8", "--device", "cpu"], "clone"),
    ):
        status, printed = answer(main, arguments, capsys)
        assert status == 2
        assert "inside the installed package" in printed.err
        assert said in printed.err
    assert [p.name for p in inside.iterdir()] == ["SHA256SUMS"]
    with pytest.raises(DataError, match="say --out"):
        files.own_data_dir("--out")
    monkeypatch.setenv("MINIDS3_DATA", str(tmp_path))
    assert files.own_data_dir("--out") == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and limits of a process")
def test_full_disks_and_closed_pipes():
    show = [sys.executable, "-m", "minids3.data", "show", "facts", "--n", "500"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(show, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"
    with subprocess.Popen(show, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""


def test_what_an_action_raises_becomes_a_line(capsys):
    def raising(error):
        def action():
            raise error

        return action

    for error, status, said in (
        (DataError("first\nsecond \x1b[31m"), 2, "error: first second ?[31m\n"),
        (KeyError("no such thing"), 2, "error: no such thing\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        assert run(raising(error)) == status
        assert capsys.readouterr().err == said
    assert run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not dressed up
        run(lambda: 1 // 0)
    assert fail("x") == 2
    assert one_line("a\u2028b\tc") == "a b c"
