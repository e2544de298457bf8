"""Work on all cores: chunks go out to processes, results come back in order, and few of them wait."""

import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any, TypeVar

from ecglib.errors import EcglibError

POOL_FROM = 24  # chunks from which processes pay: each imports scipy and torch anew, seconds
_AHEAD = (
    4  # chunks for each process that are at work or done and not yet taken: memory does not grow with them
)
C = TypeVar("C")
R = TypeVar("R")


@contextmanager
def in_order(
    work: Callable[[C], R], chunks: Sequence[C], workers: int | None = None
) -> Iterator[Iterator[R]]:
    """Yield an iterator over `work(chunk)`, made by a pool of processes where there are enough to pay for it.

    `work` goes to each process once; `workers` is all cores by default. The processes end with this one, even
    if it is killed. Raises EcglibError where one of them is killed.
    """
    n_workers = min(workers or os.cpu_count() or 1, len(chunks))
    if n_workers <= 1 or (workers is None and len(chunks) < POOL_FROM):
        yield map(work, chunks)
        return
    # Spawned, not forked: a fork would copy the locks of the parent's threads (torch, OpenCV) in any state.
    context = multiprocessing.get_context("spawn")
    # By a queue: with a large argument a parent waits for ever on a process that dies while it starts.
    # Pickled here, once: what cannot be pickled is an error of the caller, not of the queue's own thread.
    pickled, tasks = pickle.dumps(work), context.Queue()
    tasks.cancel_join_thread()
    for _ in range(n_workers):
        tasks.put(pickled)
    pool = ProcessPoolExecutor(n_workers, context, initializer=_start_worker, initargs=(tasks,))
    try:
        yield _results(pool, chunks, _AHEAD * n_workers)
    except BrokenProcessPool as error:
        raise EcglibError(
            "a process at work on ECGs was killed (out of memory?); run it again. A script that calls ecglib "
            'must do so under `if __name__ == "__main__":`'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(pool: ProcessPoolExecutor, chunks: Sequence[Any], ahead: int) -> Iterator[Any]:
    waiting: deque[Future] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_work_on, chunk))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: list[Callable[[Any], Any]] = []  # set once in each process, so that it is not sent with every chunk


def _start_worker(tasks: "Queue[bytes]") -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(pickle.loads(tasks.get()))


def _end_with_parent() -> None:
    """A worker would wait for ever on the queue of a parent that was killed: it holds both ends of it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_on(chunk: Any) -> Any:
    return _worker[0](chunk)
