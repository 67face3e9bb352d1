"""``make versions`` and ``make colab``: bounds, marks, records, counts and the table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import environments
import running
import trials
import versions
from running import Outcome

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_lower_bounds_are_those_of_pyproject():
    text = """
[project]
name = "x"
keywords = [
    "a b",
]
dependencies = [
    "torch>=2.8",
]
[project.optional-dependencies]
one = ["gguf>=0.10"]
lab = [
    "triton>=3.4; platform_system == 'Linux'",
    "x[one]",
]
[project.urls]
other = ["no>=1"]
"""
    assert environments.lower_bounds(text) == (
        "gguf==0.10",
        "torch==2.8",
        "triton==3.4; platform_system == 'Linux'",
    )
    with pytest.raises(ValueError, match=r"torch.* no plain lower bound"):
        environments.lower_bounds(text.replace("torch>=2.8", "torch>=2.8,<3"))
    with pytest.raises(ValueError, match="gguf has two lower bounds"):
        environments.lower_bounds(text.replace('"torch>=2.8"', '"gguf>=0.11"'))


def test_promised_bounds_are_those_that_hold():
    """Those of Colab: with torch 2.8 and Triton 3.4 many tests fail ('make versions')."""
    found = environments.lower_bounds(PYPROJECT)
    assert "torch==2.11" in found
    assert "tokenizers==0.22" in found
    triton = {bound.partition(";")[0] for bound in found if bound.startswith("triton")}
    assert triton == {"triton==3.6"}


def test_pins_meet_the_bounds():
    """Every version in the two files of constraints is one that pyproject allows."""
    bounds = dict(b.partition(";")[0].split("==") for b in environments.lower_bounds(PYPROJECT))
    pinned = 0
    for file in ("constraints.txt", "constraints-colab.txt"):
        for name, version in re.findall(
            r"(?m)^([\w-]+)==([\d.]+)", (ROOT / file).read_text(encoding="utf-8")
        ):
            if name in bounds:
                pinned += 1
                assert key(version) >= key(bounds[name]), (file, name)
    assert pinned > 20


def key(version):
    return [int(n) for n in version.split(".")]


def test_matrix_has_the_bounds_on_the_oldest(monkeypatch):
    monkeypatch.setattr(environments, "pythons", lambda: {"3.10": "a", "3.12": "b", "3.13": "c"})
    envs = environments.matrix()
    assert [env.name for env in envs] == ["3.10-lower", "3.12-newest", "3.13-newest"]
    assert "torch==2.11" in envs[0].constraints
    assert envs[1].constraints == ()
    assert [env.wants[1].rpartition("[")[2] for env in envs] == ["tools]", "test]", "test]"]
    assert [e.name for e in versions.chosen(envs, ["3.13"])] == ["3.13-newest"]
    with pytest.raises(ValueError, match=r"starts with '3\.9'; there are: 3\.10-lower, 3"):
        versions.chosen(envs, ["3.9"])


def test_versions_of_ones_choosing_are_tried_on_each_python(monkeypatch, capsys):
    monkeypatch.setattr(environments, "pythons", lambda: {"3.10": "a", "3.12": "b"})
    envs = environments.matrix(["torch==2.13.0", "numpy==2.1"])
    assert [env.name for env in envs] == ["3.10-torch-2.13.0-numpy-2.1",
                                          "3.12-torch-2.13.0-numpy-2.1"]  # fmt: skip
    assert {env.constraints for env in envs} == {("torch==2.13.0", "numpy==2.1")}
    assert versions.main(["matrix", "--with", "torch>=2.13"]) == 2
    assert "'torch>=2.13' is no version of a package" in capsys.readouterr().err


def test_this_python_is_found():
    found = environments.pythons()
    assert set(found) <= set(environments.SUPPORTED)
    for version, place in found.items():
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        assert subprocess.check_output([place, "-c", code], text=True).strip() == version


def test_colab_needs_its_python(monkeypatch):
    monkeypatch.setattr(environments, "pythons", lambda: {"3.13": "p"})
    env = environments.colab()
    assert "torch==2.11.0" in env.constraints
    assert {"torch", "ipywidgets", "nbval"} <= set(env.wants)
    assert not {"minids3", "transformers"} & set(env.wants)
    monkeypatch.setattr(environments, "pythons", lambda: {"3.12": "p"})
    with pytest.raises(RuntimeError, match=r"Colab has Python 3\.13, and there is none"):
        environments.colab()
    assert versions.main(["colab"]) == 2


# An environment that is there already: the one that runs these tests. ---------------------------


@pytest.fixture
def here(monkeypatch, tmp_path):
    env = environments.Environment("here", sys.executable, (), ())
    monkeypatch.setattr(environments.Environment, "bin", Path(sys.executable))
    return env


def test_an_interrupted_run_goes_on_and_what_failed_is_tried_again(here, tmp_path, monkeypatch):
    made = []

    def trial(name, *outcomes):
        left = list(outcomes)

        def run(log):
            made.append(name)
            outcome = left.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return trials.Trial(name, run)

    monkeypatch.setattr(versions, "install", lambda env, log: made.append("install") or Outcome())
    plan = [
        trial("a", Outcome(3)),
        trial("b", Outcome(1, 1), Outcome(2)),
        trial("c", KeyboardInterrupt(), running.Failed("boom"), Outcome(1)),
    ]

    def go(source="1"):
        record = versions.Record(tmp_path / "here.json", here.mark, source)
        versions.attempt(here, plan, record, tmp_path / "logs")
        return record.outcomes

    with pytest.raises(KeyboardInterrupt):
        go()
    assert made == ["install", "a", "b", "c"]
    made.clear()
    assert go() == {
        "install": Outcome(), "a": Outcome(3), "b": Outcome(2), "c": Outcome(failed=1, note="boom"),
    }  # fmt: skip
    assert made == ["b", "c"]
    made.clear()
    assert go()["c"] == Outcome(1)
    assert made == ["c"]
    # Another source: everything again, but for the environment; another environment: that too.
    assert set(versions.Record(tmp_path / "here.json", here.mark, "2").outcomes) == {"install"}
    assert versions.Record(tmp_path / "here.json", "other", "1").outcomes == {}
    (tmp_path / "here.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged: remove it"):
        go()


def test_where_the_package_cannot_be_installed_nothing_else_is_tried(here, tmp_path, monkeypatch):
    def install(env, log):
        raise running.Failed("no such version")

    monkeypatch.setattr(versions, "install", install)
    record = versions.Record(tmp_path / "r.json", here.mark, "1")
    versions.attempt(here, [trials.Trial("a", pytest.fail)], record, tmp_path)
    assert record.outcomes == {"install": Outcome(failed=1, note="no such version")}


def test_tests_are_counted(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    def run(body, *options):
        (tmp_path / "test_it.py").write_text(body, encoding="utf-8")
        outcome = running.run_pytest(here, [tmp_path / "test_it.py"], options, tmp_path / "log")
        return outcome.passed, outcome.failed, outcome.skipped, outcome.note

    body = (
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pass\n"
        "def test_c(): import nosuchpackage\n"
        "def test_d(): pytest.skip('x')\n"
        "@pytest.fixture\n"
        "def e(): 1 / 0\n"
        "def test_e(e): pass\n"
    )
    assert run(body) == (2, 2, 1, "")
    assert run(body, "-k", "zzz") == (0, 0, 0, "no test was chosen")
    assert run("1 / 0\n")[:2] == (0, 1)
    passed, failed, _, note = run(body, "--nosuchoption")
    assert (passed, failed) == (0, 1)
    assert note
    assert run("import nosuchpackage\n") == (0, 0, 0, "1 files left out: no nosuchpackage")
    assert run("import json, nosuch.x as y\ndef test(): pass\n")[3] == "1 files left out: no nosuch"


def test_files_that_import_what_is_absent_through_a_neighbour_are_left_out(here, monkeypatch):
    monkeypatch.setattr(
        running, "FIND", "import sys; print([n for n in sys.argv[1:] if n == 'transformers'])"
    )
    files = [ROOT / "tests" / "model" / "test_hf_config.py", ROOT / "tests" / "nn" / "test_rope.py"]
    assert running.lacking(here, [f for f in files if f.exists()]) == {files[0]: {"transformers"}}


def test_a_command_that_takes_too_long_is_ended(tmp_path):
    log = tmp_path / "log"
    code = (
        "import subprocess as s, sys; s.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    assert running.call([sys.executable, "-c", code], log, limit=1) == 124
    assert running.call([sys.executable, "-c", "print('x'); raise SystemExit(3)"], log) == 3
    assert running.last_line(log) == "x"
    with pytest.raises(running.Failed, match=r"^x$"):
        running.demand([sys.executable, "-c", "print('x'); raise SystemExit(3)"], log)


def test_the_table_and_its_sums():
    found = {
        "e": {"install": Outcome(seconds=2.4, note="torch 2"), "t": Outcome(3, 1, 2, 1.2, "a|b\nc")}
    }
    assert versions.table(found, {"e": ["install", "t", "u"]}).splitlines() == [
        "| environment | what    | passed | failed | skipped | seconds |             |",
        "| ----------- | ------- | ------ | ------ | ------- | ------- | ----------- |",
        "| e           | install | 0      | 0      | 0       | 2       | torch 2     |",
        "| e           | t       | 3      | 1      | 2       | 1       | a/b c       |",
        "| e           | u       |        |        |         |         | not tried   |",
        "| e           | all     | 3      | 1      | 2       | 4       | 1 not tried |",
    ]


def test_every_test_file_and_notebook_is_tried_and_quick_tries_fewer(here):
    names = [t.name for t in trials.trials(here, None, [], False)]
    assert names[0] == "data, byte for byte"
    assert names[-3:] == ["notebook 00", "notebook 07", "notebook 08"]
    assert {"tests: grade", "tests: kernels", "tests: beside them"} <= set(names)
    quick = [t.name for t in trials.trials(here, ["08"], [], True)]
    assert quick == [
        "data, byte for byte", *(f"tests: {n}" for n in ("data", "nn", "numerics", "ref", "sim")),
        "notebook 08",
    ]  # fmt: skip
    files = {p for paths in trials._test_files(False).values() for p in paths}
    assert files == set((ROOT / "tests").rglob("test_*.py")) - set(
        (ROOT / "tests/browser").iterdir()
    )
    on_colab = environments.Environment("colab", sys.executable, (), ())
    solved = list((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
    names = [t.name for t in trials.trials(on_colab, None, [], False)]
    assert names[0] == "set-up cell"
    assert sum(name.startswith("notebook") for name in names) == len(solved)
    with pytest.raises(ValueError, match="no solved notebook starts with '77'"):
        trials.trials(here, ["77"], [], False)


def test_the_set_up_cell_is_run_as_on_colab(here, tmp_path, monkeypatch):
    """It must install from the address that is put in, and may change no package."""
    cells = []
    states = iter([{"torch": "2.11.0"}, {"torch": "2.11.0", "minids3": "0"}] * 2)

    def call(command, log, cwd=None, limit=0):
        if str(command[-1]).endswith("setup_cell.py"):
            cells.append(Path(command[-1]).read_text(encoding="utf-8"))
        return 0

    monkeypatch.setattr(trials, "call", call)
    monkeypatch.setattr(trials, "_versions", lambda env: next(states))
    outcome = trials._setup_cell(here, tmp_path / "log")
    assert (outcome.passed, outcome.failed, outcome.note) == (1, 0, "adds minids3")
    assert f'minids3 @ {ROOT.as_uri()}"' in cells[0]
    assert "github.com" not in cells[0]
    compile(cells[0], "setup_cell.py", "exec")
    states = iter([{"torch": "2.11.0"}, {"torch": "2.13.0"}])
    outcome = trials._setup_cell(here, tmp_path / "log")
    assert (outcome.failed, outcome.note) == (1, "torch 2.11.0 became 2.13.0")


def test_data_that_differ_are_named(here, tmp_path, monkeypatch):
    def demand(command, log):
        out = Path(command[-1])
        for name in ("tokenizer.json", "SHA256SUMS"):
            (out / name).write_bytes((ROOT / "data" / name).read_bytes())
        (out / "SHA256SUMS").write_bytes(b"other")

    monkeypatch.setattr(trials, "demand", demand)
    outcome = trials._data(here, tmp_path / "log")
    assert (outcome.passed, outcome.failed, outcome.note) == (1, 1, "differs: SHA256SUMS")


def test_the_record_is_whole_whenever_it_is_looked_at(tmp_path):
    record = versions.Record(tmp_path / "a" / "r.json", "e", "s")
    record.enter("t", Outcome(1, note="n"))
    kept = json.loads((tmp_path / "a" / "r.json").read_text(encoding="utf-8"))
    assert kept["outcomes"]["t"]["passed"] == 1
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.json"]
    assert versions.Record(tmp_path / "a" / "r.json", "e", "s", fresh=True).outcomes == {}
