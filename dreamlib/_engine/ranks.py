"""One run in several processes of torch.distributed, each on its share of the classes or networks; alone, a no-op.

A process is a member of a group once ``joined`` is entered (torchrun sets what that needs); outside it every function
here does what is right for a group of one. All members run the same program: what is said to be called by all must be.
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
# A member waits here for as long as another one works on its own; a dead one is torchrun's to notice, not a clock's.
_PATIENCE = timedelta(days=30)


class WorkerError(RuntimeError):
    """A member of the group failed; the message is its own."""


def active() -> bool:
    """Whether this process is a member of a group."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many processes share the work; 1 outside a group."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """This process's number, from 0; 0 outside a group."""
    return dist.get_rank() if active() else 0


def first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def my_share(items: Sequence[T]) -> list[T]:
    """Every ``world``-th of the items, from the ``rank``-th on: shares differ by one item at most.

    >>> my_share(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return list(items[rank() :: world()])


def my_classes(num_classes: int) -> list[int]:
    """The classes this process matches and clusters: c with c % world = rank."""
    return my_share(range(num_classes))


def gather(share: Sequence[T]) -> list[T]:
    """All members' shares, in the order ``my_share`` dealt them from; called by all. Items travel pickled.

    >>> gather([1, 2])
    [1, 2]
    """
    if world() == 1:
        return list(share)
    shares: list[Any] = [None] * world()
    dist.all_gather_object(shares, list(share))
    return [shares[i % world()][i // world()] for i in range(sum(map(len, shares)))]


def sum_over_workers(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all members; called by all, with the same shapes and formats.

    Every member gets the same bits. Where only one of them has something other than zero, the sum is that exactly.
    """
    if world() == 1:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        same = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in same])  # one message for all
        dist.all_reduce(flat)
        for tensor, summed in zip(same, flat.split([t.numel() for t in same]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def as_the_first(value: bool) -> bool:
    """What process 0 says, for a decision that clocks may see differently; called by all."""
    if world() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return bool(said[0])


def local_device(device: str) -> str:
    """Where this process computes: 'auto' and 'cuda' are a GPU of its own within a group, anything else as it is.

    Raises ValueError when there are fewer GPUs than processes, or one GPU is named for several.
    """
    if world() == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise ValueError(f"compute.device '{device}' names one device for {world()} workers; use 'cuda' or 'cpu'")
    return _own_gpu(world())


def _own_gpu(workers: int) -> str:
    local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= here:
        raise ValueError(f"{workers} workers need a GPU each and this machine has {here}: lower compute.workers")
    return f"cuda:{local}"


def share_of_threads(threads: int, workers: int | None = None) -> int:
    """The CPU threads of one of ``workers`` processes (default: this group's); 0 stands for all the machine has.

    >>> share_of_threads(8, 3), share_of_threads(2, 4), share_of_threads(0, 1)
    (2, 1, 0)
    """
    workers = workers or world()
    return threads if workers == 1 else max(1, (threads or os.cpu_count() or 1) // workers)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be a member of the group torchrun started this process for: NCCL where it computes on GPUs, else Gloo.

    Raises ValueError when there are fewer GPUs than processes.
    """
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(_own_gpu(int(os.environ["WORLD_SIZE"])))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after a failure: it would wait for the others, who wait for this one


def report_failure(message: str) -> None:
    """Leave the group's first failure where ``run_workers`` looks; those that follow from it are not told."""
    try:
        with open(os.environ[FAILURE_FILE], "x", encoding="utf-8") as file:
            file.write(message)
    except (KeyError, FileExistsError):  # not started by run_workers, or not the first
        return


def run_workers(workers: int, arguments: Sequence[str], root: Path, threads: int = 0) -> None:
    """``python -m pipeline.worker *arguments`` in ``workers`` processes under torchrun, in ``root``.

    What they say on standard error comes out on ours as it is said. Raises WorkerError with the first failure's
    message.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    # The workers run the code this process runs, wherever it was imported from.
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="dream-workers-") as folder:
        failure = Path(folder) / "failure"
        env = {**os.environ, "PYTHONPATH": path, FAILURE_FILE: str(failure)}
        env["OMP_NUM_THREADS"] = str(share_of_threads(threads, workers))
        last = ""
        with subprocess.Popen(
            [*torchrun, "-m", "pipeline.worker", *arguments],
            cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        ) as process:  # fmt: skip
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    sys.stderr.write(line)
                    last = line.strip() or last
            except BaseException:  # interrupted: torchrun passes the end on to its workers
                process.terminate()
                raise
        if process.returncode:
            said = failure.read_text(encoding="utf-8") if failure.exists() else f"ended without a word; last: {last}"
            raise WorkerError(f"one of {workers} workers of `pipeline.worker {' '.join(arguments)}`: {said}")
