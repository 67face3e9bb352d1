"""Whatever ends the grader, no process and no folder of a student's is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minids3.isolation import sandbox

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sandbox.missing()), reason="no isolation on this machine"),
]
CODE = """
import sys, time
from minids3.grade.process.child import Child
from minids3.grade.process.zygote import Zygote
from minids3.isolation.sandbox import Limits
zygote = Zygote(Limits())
answer = '''
import ctypes, time
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # not to end with its parent: refused
def f():
    time.sleep(600)
'''
child = Child(zygote, {"pieces": [{"kind": "answer", "code": answer}], "name": "f", "forbid": [],
                       "seed": 0})
child.start()
print(child._pid, zygote._process.pid, zygote.home, flush=True)
child.ask({"op": "call", "args": {"tuple": []}, "kwargs": {"dict": []}}, 300)
"""


def gone(pid):
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return told.rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_behind(number):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        child, zygote, home = process.stdout.readline().split()
        time.sleep(0.5)
        os.kill(process.pid, number)
        process.wait(60)
    finally:
        process.kill()
        process.stdout.close()
    until = time.monotonic() + 60
    while time.monotonic() < until and not (
        gone(child) and gone(zygote) and not os.path.exists(home)
    ):
        time.sleep(0.2)
    assert (gone(child), gone(zygote), os.path.exists(home)) == (True, True, False)
