"""Memory that the process keeps for its tensors, and gives back when asked."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
from lineside.machine import give_back_memory, prepare
prepare()
import numpy as np

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

held = [np.ones(2**17) for _ in range(200)]  # 1 MB each
last = np.ones(1000)  # above them, so that freeing alone cannot shrink the heap
full = resident()
del held
kept = resident()
give_back_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    full, kept, given = map(int, out.split())
    assert kept > full - 20  # MB
    assert given < full - 150
