"""The pool: results in order, few ahead, an error reaches the caller, and no process outlives its parent."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ecglib import pool
from ecglib.pool import in_order


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_chunks(workers: int) -> None:
    with in_order(math.sqrt, [n * n for n in range(40)], workers) as roots:
        assert list(roots) == list(range(40))


def test_few_chunks_are_done_ahead() -> None:
    submitted = []

    class Done:
        def __init__(self, value: int) -> None:
            self.value = value

        def result(self) -> int:
            return self.value

    class Pool:
        def submit(self, work: object, chunk: int) -> Done:
            submitted.append(chunk)
            return Done(chunk)

    results = pool._results(Pool(), range(100), ahead=8)  # type: ignore[arg-type]
    for n in range(100):
        assert next(results) == n
        assert len(submitted) <= n + 8


def test_an_error_in_a_process_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="math domain"), in_order(math.sqrt, [1, -1], 2) as roots:
        list(roots)


def test_processes_end_with_a_killed_parent() -> None:
    code = (
        "import time\nfrom ecglib.pool import in_order\n"
        "if __name__ == '__main__':\n"
        "    with in_order(time.sleep, [0.01] * 2 + [600] * 2, 2) as naps:\n"
        "        for nap in naps: print('napped', flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
    assert parent.stdout is not None
    parent.stdout.readline()
    workers = [p for p in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.time() + 20
    while any(worker.is_running() for worker in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_running() for worker in workers)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    # Each process imports the script, would start processes of its own, and dies before it has read its work.
    script = tmp_path / "script.py"
    script.write_text(
        "import functools, math\nfrom ecglib.pool import in_order\n"
        "large = functools.partial(math.log, bytearray(10**6))\n"
        "with in_order(large, range(50), 2) as roots:\n    list(roots)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr


def test_work_that_cannot_be_sent_is_an_error_at_once() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError)), in_order(lambda n: n, range(50), 2) as same:
        list(same)
