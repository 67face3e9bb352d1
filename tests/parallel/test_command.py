"""``python -m minids3.train`` under torchrun: README's command, a killed process, a restart."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minids3.train.log import read_log

ROOT = Path(__file__).parents[2]
README = "torchrun --nproc-per-node 4 -m minids3.train mini --ep 2 --dp 2"
SHORT = (
    *("--tokens", "1024", "--eval-every", "4", "--save-every", "4", "--set", "batch_size=4"),
    *("--set", "seq_len=32", "--set", "eval_batches=1"),
)


def command(*words):
    """A command line that begins with ``torchrun`` or ``python``, with this Python."""
    start = {"torchrun": ["-m", "torch.distributed.run"], "python": []}[words[0]]
    return [sys.executable, *start, *words[1:]]


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def losses(folder):
    return [(e["kind"], e["step"], e["loss"]) for e in read_log(folder / "log.jsonl")]


def train(words, out):
    """Run a command line that trains, and return what it printed."""
    done = subprocess.run(
        [*command(*words), "--out", str(out)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """README's command, and the same on one process."""
    root = tmp_path_factory.mktemp("commands")
    assert README in (ROOT / "README.md").read_text(encoding="utf-8")
    lines = {"four": README.split(), "one": ["python", "-m", "minids3.train", "mini"]}
    for name, words in lines.items():
        assert train([*words, *SHORT], root / name).count("wrote") == 1
    return root


def test_the_command_of_readme_does_what_one_process_does(finished):
    four, one = losses(finished / "four"), losses(finished / "one")
    assert [e[:2] for e in four] == [e[:2] for e in one]
    assert len(one) == 8 + 3
    assert all(abs(a - b) < 1e-4 for (*_, a), (*_, b) in zip(four, one, strict=True))
    about = [json.loads((finished / n / "about.json").read_text()) for n in ("four", "one")]
    assert about[0]["processes"] == {"pp": 1, "dp": 2, "ep": 2}
    assert about[0]["parameters"] == about[1]["parameters"]


def test_a_run_of_two_stages_is_that_of_one_process(tmp_path):
    """Both stages, the first in proportion; its weights are handed over, whoever holds them."""
    own = ["-m", "minids3.train", "mini_chat"]
    starts = {
        "two": ["torchrun", "--nproc-per-node", "2", *own, "--ep", "2"],
        "one": ["python", *own],
    }
    short = ["--steps", "2", *SHORT[2:]]
    for name, words in starts.items():
        train([*words, *short], tmp_path / name)
    two, one = (json.loads((tmp_path / n / "about.json").read_text()) for n in starts)
    assert (one["steps"], one["first_stage"]["steps"]) == (2, 6)
    assert (two["steps"], two["first_stage"]["steps"]) == (2, 6)
    for stage in ("first_stage", "."):
        pairs = zip(losses(tmp_path / "two" / stage), losses(tmp_path / "one" / stage), strict=True)
        for ours, alone in pairs:
            assert ours[:2] == alone[:2]
            assert ours[2] == pytest.approx(alone[2], abs=5e-3)  # near ties of routing
    for name in starts:
        handed = losses(tmp_path / name / "first_stage")[-1], losses(tmp_path / name)[0]
        assert handed[0][2] == pytest.approx(handed[1][2], abs=1e-5)


def worker(mark, rank):
    """The process of this rank, by the environment that torchrun gave it."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = path.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"MARK={mark}".encode() in told and f"RANK={rank}".encode() in told:
            return int(path.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks Linux's /proc")
def test_a_killed_process_is_told_and_a_restart_goes_on(finished, tmp_path):
    words = README.replace("torchrun", "torchrun --max-restarts 1").split()
    out = tmp_path / "run"
    running = subprocess.Popen(
        [*command(*words), *SHORT, "--out", str(out), "--fresh"],
        env=environment(MARK=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 400
        while not (out / "step_00000004").exists() and time.monotonic() < limit:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        os.kill(worker(tmp_path, 2), signal.SIGKILL)
        _, told = running.communicate(timeout=400)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 0, told
    lost = re.findall(r"error: rank \d lost another process.*goes on from .*step_00000004", told)
    assert lost, told
    assert "started again after a failure, from" in told
    assert losses(out) == losses(finished / "four")


def test_options_for_many_processes_say_what_starts_them():
    done = subprocess.run(
        [*command("python", "-m", "minids3.train", "mini", "--ep", "2", "--pp", "2")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --ep, --pp: for many processes, started by 'torchrun --nproc-per-node 4 "
        "-m minids3.train mini --ep 2 --pp 2'\n"
    )
