"""Processes started from here: results in order, errors told, and none left behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minids3.parallel.launch import LaunchTimeout, LaunchUnavailable, RankFailed, run, unavailable

LIMIT = 240  # a busy machine takes a minute to import PyTorch in every process


def added(x, note):
    print("here is", dist.get_rank(), note)
    dist.all_reduce(x)
    return {"sum": x, "rank": (dist.get_rank(), dist.get_world_size())}


def marked(mark):
    """Processes whose environment has a mark; those that have ended but not been buried aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ended = path.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and mark.encode() in path.joinpath("environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def until_none(mark, seconds=20):
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def test_results_and_outputs_in_order_although_threads_were_used(capsys):
    torch.set_num_threads(2)
    x = torch.ones(300, 300, requires_grad=True)
    (x @ x).sum().backward()
    torch.set_num_threads(1)
    found = run(added, 2, args=(torch.ones(3),), kwargs={"note": "ü"}, timeout=LIMIT)
    assert [r["rank"] for r in found.results] == [(0, 2), (1, 2)]
    assert all(torch.equal(r["sum"], torch.full((3,), 2.0)) for r in found.results)
    assert found.outputs == ["here is 0 ü\n", "here is 1 ü\n"]
    assert capsys.readouterr().out == "[rank 0] here is 0 ü\n[rank 1] here is 1 ü\n"
    assert not list(Path("/tmp").glob(f"minids3-job-*/pid_{os.getpid()}"))


def one_raises():
    if dist.get_rank() == 1:
        raise ValueError("the second rank's own trouble")
    dist.barrier()


def test_the_rank_that_failed_speaks_first():
    with pytest.raises(RankFailed) as caught:
        run(one_raises, 2, timeout=LIMIT, env={"MARK": "minids3-one-raises"})
    lines = str(caught.value).splitlines()
    assert (caught.value.rank, caught.value.kind) == (1, "ValueError")
    assert lines[0] == "rank 1 of 2 failed:"
    assert 'File "work.py"' in lines[2]
    assert "one_raises" in lines[2]
    assert "worker" not in lines[2]
    assert "ValueError: the second rank's own trouble" in lines
    assert until_none("minids3-one-raises") == []


def one_is_killed():
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_killed_rank_is_named():
    with pytest.raises(RankFailed, match="rank 0 of 2 ended with signal SIGKILL") as caught:
        run(one_is_killed, 2, timeout=LIMIT)
    assert (caught.value.rank, caught.value.kind) == (0, "signal SIGKILL")


def one_waits_for_ever(ready):
    if dist.get_rank() == 1:
        Path(ready).touch()
        dist.barrier()
    time.sleep(3600)


def test_the_time_limit_tells_where_each_rank_was(tmp_path):
    text = """
        import time
        import torch.distributed as dist

        def work():
            if dist.get_rank() == 1:
                dist.barrier()
            while True:
                time.sleep(1)
    """
    for limit in (20, 60, 240):  # a busy machine may need longer to begin
        with pytest.raises(LaunchTimeout) as caught:
            run(textwrap.dedent(text), 2, timeout=limit, env={"MARK": "minids3-waits"})
        message = str(caught.value)
        assert message.startswith(f"not done after {limit} s; all 2 processes were ended")
        assert until_none("minids3-waits") == []
        if message.count("in work") == 2:
            break
    assert "rank 0 was at work.py, line 9, in work\n    time.sleep(1)" in message
    assert "rank 1 was at work.py, line 7, in work (in barrier)\n    dist.barrier()" in message


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks Linux's /proc")
@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
def test_an_interrupted_or_killed_kernel_leaves_no_process(tmp_path, end):
    ready, mark = tmp_path / "ready", f"minids3-kernel-{end}"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_launch import one_waits_for_ever\n"
        "from minids3.parallel.launch import run\n"
        "run(one_waits_for_ever, 2, args=(sys.argv[2],), timeout=600)\n"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(ready)],
        env={**os.environ, "MARK": mark, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    try:
        end_of_waiting = time.monotonic() + LIMIT
        while not ready.exists() and time.monotonic() < end_of_waiting:
            assert kernel.poll() is None, kernel.stderr.read().decode()
            time.sleep(0.1)
        assert len(marked(mark)) == 4  # the kernel, torchrun and two ranks
        kernel.send_signal(getattr(signal, end))
        assert kernel.wait(30) != 0
        assert until_none(mark) == []
        if end == "SIGINT":
            assert b"KeyboardInterrupt" in kernel.stderr.read()
            assert list(tmp_path.glob("minids3-job-*")) == []
    finally:
        kernel.kill()
        kernel.wait()
        kernel.stderr.close()


def test_where_it_cannot_work_a_typed_error_says_so(monkeypatch):
    assert unavailable() is None

    def forbidden(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", forbidden)
        with pytest.raises(LaunchUnavailable, match=r"forbids sockets.*recorded results"):
            run(added, 2)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", forbidden)
        with pytest.raises(LaunchUnavailable, match=r"forbids processes.*recorded results"):
            run(added, 2)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"n": 0}, ValueError, "n=0 must be a whole number"),
        ({"n": True}, ValueError, "n=True must be"),
        ({"timeout": 0}, ValueError, "timeout=0 must be greater"),
        ({"work": 3}, TypeError, "must be a function"),
        ({"work": []}, TypeError, "must be a function"),
        ({"args": ({1, 2},)}, TypeError, r"\[0\]\[0\] is a set"),
    ],
)
def test_bad_requests(change, error, told):
    with pytest.raises(error, match=told):
        run(**{"work": added, "n": 1, **change})
