"""How a command ends: its exit status and, if it fails, one line with the error and its remedy."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

MEMORY_REMEDY = (
    "lower real_batch, synthetic_batch or parallel_classes (distillation), pool (clustering), batch or "
    "parallel_networks (evaluation) in params.yaml, or data.options.size for dataset: folder"
)
# Folder in which DVC runs queued experiments on a copy of the project.
EXPERIMENTS = (".dvc", "tmp", "exps")


def exit_status(work: Callable[[], object]) -> int:
    """Run a command; return 0, or print one line to standard error and return 1 if it raises an expected error."""
    try:
        work()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(f"error: {one_line(type(error).__name__, str(error), Path.cwd())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return interrupted()
    return 0


def interrupted() -> int:
    """Print how to continue after Ctrl-C; return the shell's exit status for it."""
    print("interrupted: run the same command again to continue from the last checkpoint", file=sys.stderr)
    return 130


def one_line(kind: str, message: str, root: Path) -> str:
    """Return an exception's message, or an explanation with a remedy if it has none.

    kind: name of the exception's class.
    message: its text.
    root: the project that the command ran in.

    >>> one_line("RuntimeError", "can't allocate memory: you tried to allocate 8589934592 bytes.", Path())
    'out of memory: 8.0 GiB could not be allocated; lower real_batch, ...'
    >>> one_line("DataError", "no folder my_images", Path())
    'no folder my_images'
    """
    if kind == "DeadKernelError":
        return f"the kernel was killed, probably because memory ran out; {MEMORY_REMEDY}"
    if kind.endswith("MemoryError") or "allocate memory" in message or "out of memory" in message:
        size = _size(message)
        return f"out of memory: {size or 'an array'} could not be allocated; {MEMORY_REMEDY}"
    if re.match(r"\[Errno \d+\] (No space left|Disk quota exceeded|File too large|Read-only file system)", message):
        return f"{message}: free space on the disk or make the folder writable, and run the same command again"
    if kind == "UnknownNameError" and _is_copy(root):
        return (
            f"{message}. This is DVC's copy of the project, which has only the files tracked by git: if a new file "
            "defines it, run `git add` on that file and queue the experiment again"
        )
    return message


def _size(message: str) -> str:
    """Return the size of the allocation that a message of torch or numpy names; empty if it names none."""
    match = re.search(r"allocate ([\d.]+) (bytes|\wiB)", message)
    if match is None:
        return ""
    return f"{int(match[1]) / 2**30:,.1f} GiB" if match[2] == "bytes" else match[0].removeprefix("allocate ")


def _is_copy(root: Path) -> bool:
    parts = root.resolve().parts
    return any(parts[at : at + len(EXPERIMENTS)] == EXPERIMENTS for at in range(len(parts)))
