from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from training.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
x = torch.zeros(2**21)
for _ in range(60):  # until the allocator has found a place that fits
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_what_is_freed_is_not_cleared_by_the_system_again() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True,
                                check=True).stdout)
        for way in ("kept", "given back")
    }  # fmt: skip
    assert faults["kept"] < 100
    assert faults["given back"] > 1000
