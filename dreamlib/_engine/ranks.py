"""One run in several processes (ranks) of torch.distributed, each with its share of the classes or networks.

A process belongs to a group inside ``joined`` (torchrun sets the environment for that); outside it every function here
acts as if in a group of one. All ranks run the same program: a function marked collective must be called by all.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")
FAILURE_FILE = "DREAM_WORKER_FAILURE"
# Ranks may wait for each other arbitrarily long; torchrun, not a timeout, detects a dead one.
_TIMEOUT = timedelta(days=30)


class WorkerError(RuntimeError):
    """A rank failed; the message is that of its error."""


def active() -> bool:
    """Return whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Return the number of processes in the group; 1 outside a group."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """Return the rank of this process; 0 outside a group."""
    return dist.get_rank() if active() else 0


def first() -> bool:
    """Return whether this is rank 0, which writes files."""
    return rank() == 0


def my_share(items: Sequence[T]) -> list[T]:
    """Return every ``world``-th item, starting with the ``rank``-th; shares differ by one item at most.

    >>> my_share(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return list(items[rank() :: world()])


def gather(share: Sequence[T]) -> list[T]:
    """Return the shares of all ranks, in the order of the list ``my_share`` split (collective). Items are pickled.

    >>> gather([1, 2])
    [1, 2]
    """
    if world() == 1:
        return list(share)
    shares: list[Any] = [None] * world()
    dist.all_gather_object(shares, list(share))
    return [shares[i % world()][i // world()] for i in range(sum(map(len, shares)))]


def sum_over_workers(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all ranks (collective); shapes and formats must agree.

    Every rank gets the same bits. If only one rank has a nonzero value, the sum is exactly that value.
    """
    if world() == 1:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in same])  # one message for all tensors
        dist.all_reduce(flat)
        for tensor, summed in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def broadcast_from_first(value: bool) -> bool:
    """Broadcast rank 0's value (collective), for a decision that depends on a clock."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return bool(values[0])


def local_device(device: str) -> str:
    """Return this process's device: for 'auto' and 'cuda' in a group, a GPU of its own; otherwise ``device``.

    Raise ValueError if there are fewer GPUs than processes, or one GPU is named for several.
    """
    if world() == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    check_device(device, world())
    return _local_gpu(world())


def check_device(device: str, workers: int) -> None:
    """Raise ValueError if one GPU is named for several processes."""
    if workers > 1 and device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"compute.workers = {workers}, but compute.device {device} names one device; use auto, cuda or cpu, or "
            "workers: 1"
        )


def _local_gpu(workers: int) -> str:
    local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= available:
        raise ValueError(f"{workers} workers need a GPU each and this machine has {available}: lower compute.workers")
    return f"cuda:{local}"


def share_of_threads(threads: int, workers: int | None = None) -> int:
    """Return the CPU threads of one of ``workers`` processes (default: this group's); 0 means all cores.

    >>> share_of_threads(8, 3), share_of_threads(2, 4), share_of_threads(0, 1)
    (2, 1, 0)
    """
    workers = workers or world()
    return threads if workers == 1 else max(1, (threads or os.cpu_count() or 1) // workers)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the process group that torchrun started this process for: NCCL on GPUs, else Gloo.

    Raise ValueError if there are fewer GPUs than processes.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(_local_gpu(int(os.environ["WORLD_SIZE"])))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    yield
    dist.destroy_process_group()  # not after a failure: it would wait for ranks that wait for this one


def report_failure(message: str) -> None:
    """Write the group's first failure for ``run_workers``; failures that follow from it are dropped."""
    try:
        with open(os.environ[FAILURE_FILE], "x", encoding="utf-8") as file:
            file.write(message)
    except (KeyError, FileExistsError):  # not started by run_workers, or not the first
        return


def run_workers(workers: int, module: str, arguments: Sequence[str], root: Path, threads: int = 0) -> None:
    """Run ``python -m module *arguments`` in ``workers`` processes under torchrun, in folder ``root``.

    Their standard error is passed on line by line. Their standard input stays open as long as this process lives.
    Raise WorkerError with the message of the first failure.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    # Workers must import the code that this process runs.
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="dream-workers-") as folder:
        failure = Path(folder) / "failure"
        env = {**os.environ, "PYTHONPATH": path, FAILURE_FILE: str(failure)}
        env["OMP_NUM_THREADS"] = str(share_of_threads(threads, workers))
        last = ""
        with subprocess.Popen(
            [*torchrun, "-m", module, *arguments],
            cwd=root, env=env, text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    sys.stderr.write(line)
                    last = line.strip() or last
            except BaseException:  # interrupted; torchrun ends its workers
                process.terminate()
                raise
        if process.returncode:
            no_message = f"ended without an error message; last output: {last}"
            message = failure.read_text(encoding="utf-8") if failure.exists() else no_message
            raise WorkerError(f"one of {workers} workers of `{module} {' '.join(arguments)}`: {message}")
