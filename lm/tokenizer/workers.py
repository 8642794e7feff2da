"""Work on the spans of a file, in order, in this process or in several."""

import multiprocessing
import os
import signal
import sys
import types
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

from tqdm import tqdm

from lm.tokenizer.pretokenize import SPAN, Span

Result = TypeVar("Result")
# Yields results with the bytes of the span that each stands for. Must be picklable.
Work = Callable[[Span], Iterator[tuple[int, Result]]]

SMALL = 16 << 20  # bytes that are done sooner here than other processes have started
LONG = 16 * SPAN  # bytes of a span whose results are too many to be sent in one piece

_work: Work[Any] | None = None


def checked_workers(num_workers: int | None) -> int:
    """The number asked for, by default one a core. Raises ValueError if it is below 1."""
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers are too few; give at least 1")
    return num_workers


def map_spans(
    work: Work[Result], spans: list[Span], num_workers: int | None = None, label: str | None = None
) -> Generator[Result, None, None]:
    """What `work` yields for each span, in order; holds the results of a few spans at a time.

    Closing the iterator, an error or Ctrl-C ends the processes as soon as their current spans are done.

    Args:
        work: a generator function of one span.
        spans: parts of files.
        num_workers: processes; by default one a core. Small files and files of one span are done in this process.
        label: shows a progress bar with this name, in bytes.

    Raises:
        ValueError: num_workers is below 1.
        ChildProcessError: a worker was killed.
        Exception: whatever `work` raises.
    """
    num_workers = checked_workers(num_workers)
    total = sum(span.size for span in spans)
    with tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=label is None) as bar:
        if num_workers == 1 or len(spans) == 1 or total <= SMALL:
            results = (result for span in spans for result in work(span))
        else:
            results = _map_in_processes(work, spans, num_workers)
        for num_bytes, result in results:
            bar.update(num_bytes)
            yield result


def _map_in_processes(work: Work[Result], spans: list[Span], num_workers: int) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside threads, which torch starts
    parent_lives, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(work, parent_lives))
    pending: deque[tuple[Span, Future[list[tuple[int, Result]]] | None]] = deque()
    waiting = iter(spans)
    try:
        while True:
            while len(pending) <= 2 * num_workers and (span := next(waiting, None)):
                with _without_main():
                    pending.append((span, pool.submit(_run, span) if span.size <= LONG else None))
            if not pending:
                return
            span, future = pending.popleft()
            if future is None:
                yield from work(span)
                continue
            # Raised here and not by `result()`, so that the traceback ends in our own code.
            if error := future.exception():
                raise error
            yield from future.result()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"one of {num_workers} worker processes was killed, perhaps for want of memory; use fewer workers"
        ) from None
    finally:
        # Workers finish the span they are at: one that left while it sends a result would leave the pool waiting.
        pool.shutdown(cancel_futures=True)
        our_end.close()
        parent_lives.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module from processes started meanwhile.

    They would run it again, which fails for a script without the `__name__ == "__main__"` guard, and costs its imports.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(work: Work[Any], parent_lives: Connection) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent deals with it
    Thread(target=_exit_with_parent, args=(parent_lives,), daemon=True).start()


def _exit_with_parent(parent_lives: Connection) -> None:
    """Leave as soon as the parent closes its end of the pipe, be it because it was killed."""
    parent_lives.poll(None)
    os._exit(1)


def _run(span: Span) -> list[tuple[int, Any]]:
    assert _work is not None
    return list(_work(span))
