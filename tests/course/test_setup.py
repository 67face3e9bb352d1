import os
import subprocess
import sys

import pytest
import torch

from minids3.course.setup import device_matrix

MODULE = sys.modules["minids3.course.setup"]  # the package's name "setup" is the function


def rows(matrix):
    return {r.what: r for r in matrix.rows}


def test_matrix_on_this_machine():
    matrix = device_matrix()
    assert list(rows(matrix)) == ["CPU", "MPS", "CUDA", "BF16", "FP8", "Triton"]
    assert all(r.reason for r in matrix.rows)
    assert (rows(matrix)["CUDA"].state == "yes") == torch.cuda.is_available()
    assert all(r.reason in repr(matrix) for r in matrix.rows)
    assert matrix._repr_html_().count("<tr>") == 6


@pytest.mark.parametrize(
    ("capability", "bf16", "fp8"),
    [
        ((7, 5), "emulated", "emulated"),
        ((8, 0), "yes", "emulated"),
        ((9, 0), "yes", "yes"),
        ((12, 0), "yes", "yes"),
        ((8, 6), "yes", "emulated"),
    ],
)
def test_matrix_of_gpus_nobody_has_here(monkeypatch, capability, bf16, fp8):
    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(MODULE, "_version", lambda package: "3.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *a: Properties)
    found = rows(device_matrix())
    assert found["BF16"].state == bf16
    assert found["FP8"].state == fp8
    assert found["Triton"].state == "yes"
    assert f"sm_{capability[0]}{capability[1]}" in found["CUDA"].reason
    never = "never compiled" in found["Triton"].reason
    assert never == (capability == (8, 6))


def test_known_gpus_are_those_of_the_compile_matrix():
    from minids3.kernels.compile import NAMES, TARGETS

    assert tuple(MODULE.KNOWN) == TARGETS == tuple(NAMES.values())
    assert "G4" in MODULE.KNOWN["sm_120"]


def test_no_triton(monkeypatch):
    monkeypatch.setattr(MODULE, "_version", lambda package: None)
    assert rows(device_matrix())["Triton"].state == "no"


def test_setup_from_another_folder_does_not_import_triton(tmp_path):
    code = (
        "import sys\nfrom minids3.course import setup\nprint(setup('00_start_here'))\n"
        "assert not any(m == 'triton' or m.startswith('triton.') for m in sys.modules)"
    )
    env = {**os.environ, "MINIDS3_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Notebook 00 is ready.")
