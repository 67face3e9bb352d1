"""Memory that one step frees is there for the next."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from minids3.train.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("unknown")
    sys.exit()

def step():
    return sum(float(torch.ones(size << 20)[-1]) for size in (4, 12, 16))  # 16 to 64 MB

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    command = [sys.executable, "-c", FAULTS, mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_a_step_faults_no_page_in_again():
    kept = faults("keep")
    if kept == "unknown":
        pytest.skip("this C library has no mallopt")
    assert int(kept) < 20
    assert int(faults("default")) >= 40  # the control; 32,768 unless pages are huge
