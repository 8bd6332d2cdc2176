"""Run independent tasks at the same time on a CPU: one Python thread each, with its share of the cores.

Small batches use one core more efficiently than they use two. Results are those of running the tasks in sequence,
except where arithmetic depends on the number of cores.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")


class Stopped(Exception):
    """Another task failed or the caller was interrupted, so the result of this one is not needed."""


def shares(count: int, threads: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield (tasks at a time, threads per task) until ``count`` tasks are done on ``threads`` cores.

    As many run at a time, up to ``limit``, as divide the cores evenly; the last ones may get more cores each.

    >>> list(shares(5, 2, limit=2)), list(shares(3, 2, limit=1)), list(shares(5, 8, limit=5))
    ([(2, 1), (2, 1), (1, 2)], [(1, 2), (1, 2), (1, 2)], [(4, 2), (1, 8)])
    """
    while count > 0:
        parallel = max(n for n in range(1, min(count, threads, limit) + 1) if threads % n == 0)
        yield parallel, threads // parallel
        count -= parallel


def side_by_side(
    work: Callable[[T, Callable[[], object]], R],
    items: Sequence[T],
    threads: int,
    on_step: Callable[[], object] = lambda: None,
) -> list[R]:
    """Return ``work(item, stepped)`` of each item, in order; all items run at the same time.

    work: calls ``stepped()`` after each of its steps. First steps run one after the other, because they may compile,
        which is not safe in two threads at once. ``stepped`` raises Stopped if another item has failed or the caller
        was interrupted, so that all end soon; the failure itself is raised here.
    threads: CPU threads per item.
    on_step: called after each step, by one thread at a time.

    A single item runs in the calling thread.
    """
    if len(items) == 1:
        return [work(items[0], on_step)]
    stop, first_step, reporting = threading.Event(), threading.Lock(), threading.Lock()
    before = torch.get_num_threads()

    def run(item: T) -> R:
        torch.set_num_threads(threads)  # of this thread
        first_step.acquire()
        first = True

        def stepped() -> None:
            nonlocal first
            with reporting:
                on_step()
            if first:
                first = False
                first_step.release()
            if stop.is_set():
                raise Stopped

        try:
            if stop.is_set():
                raise Stopped
            return work(item, stepped)
        except BaseException:
            stop.set()
            raise
        finally:
            if first:
                first_step.release()

    try:
        with ThreadPoolExecutor(len(items)) as pool:
            futures = [pool.submit(run, item) for item in items]
            try:
                wait(futures)  # a failure ends the others through ``stop``
            except BaseException:  # an interruption; leaving the block waits for the threads
                stop.set()
                raise
    finally:
        torch.set_num_threads(before)  # new threads start with the number set last, in whichever thread
    for future in futures:
        error = future.exception()
        if error is not None and not isinstance(error, Stopped):
            raise error
    return [future.result() for future in futures]


def in_order(
    tasks: Iterable[Callable[[], R]],
    parallel: int,
    threads: int,
    concurrent_job: Callable[[], object] | None = None,
) -> Generator[R, None, None]:
    """Yield the results of the tasks in their order, running several at a time.

    tasks: functions without arguments.
    parallel: maximum number of tasks that run at a time, counting ``concurrent_job``.
    threads: CPU threads per task.
    concurrent_job: additional work, submitted first and joined last.

    A task's failure is raised when its turn comes; until then, others start. After a failure, or when the generator is
    closed, running tasks end and no other starts. Tasks that compile must not run at the same time: see ``Workers``.

    >>> list(in_order([lambda: torch.get_num_threads(), lambda: 7], parallel=2, threads=1))
    [1, 7]
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(parallel, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        job = pool.submit(concurrent_job) if concurrent_job else None
        futures = deque(pool.submit(task) for task in tasks)
        while futures:
            yield futures.popleft().result()
        if job:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # as in ``side_by_side``


@dataclass
class Workers:
    """``parallel`` tasks at a time, each on ``threads`` CPU threads, with a warm-up per kind of task.

    The first tasks of a kind run one at a time, with the same number of threads, because they may compile, which is not
    safe in two threads at once. ``warm`` holds the kinds that have run.

    >>> workers = Workers(parallel=2)
    >>> list(workers.in_order({"square"}, [lambda: 1, lambda: 4])), workers.warm
    ([1, 4], {'square'})
    """

    parallel: int = 1
    threads: int = 1
    warm: set[str] = field(default_factory=set)

    def in_order(
        self, kinds: set[str], tasks: Iterable[Callable[[], R]], concurrent_job: Callable[[], object] | None = None
    ) -> Generator[R, None, None]:
        """Return the results in order (see ``in_order``); ``kinds`` are those of the tasks and the job."""
        parallel = self.parallel if kinds <= self.warm else 1
        self.warm |= kinds
        return in_order(tasks, parallel, self.threads, concurrent_job)
