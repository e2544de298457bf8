"""Freed memory is kept: large arrays made one after the other cost page faults once."""

import subprocess
import sys

SCRIPT = """
import resource, sys
import numpy as np
from ecglib.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(1 << 23)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    assert page_faults("kept") < page_faults("given back") / 5
