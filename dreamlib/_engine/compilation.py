"""Whether torch.compile works on this machine: found out by a trial, because a compiler that exists may still fail."""

import atexit
import logging
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from dreamlib._engine import ranks
from dreamlib._engine.files import require_writable

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # names the folder in which torch keeps compiled code
_log = logging.getLogger("dreamlib")
_works: dict[str, bool] = {}  # by type of device


def compilation_works(device: torch.device) -> bool:
    """Return whether torch.compile works on a device; log one warning, with the reason, when it does not.

    The first call in a process compiles and runs a small function. Torch keeps its code: a later process that compiles
    anyway takes a tenth of a second longer.
    """
    if device.type not in _works:
        reason = unwritable_cache() or _trial(device)
        _works[device.type] = not reason
        if reason and ranks.first():
            _log.warning("torch.compile does not work, running uncompiled, about twice as slow: %s", reason)
    return _works[device.type]


def compilation_failed(device: torch.device) -> bool:
    """Return whether ``compilation_works`` was called in this process and found that it does not."""
    return not _works.get(device.type, True)


@cache
def unwritable_cache() -> str:
    """Return why the folder of torch's compiled code cannot be written, or an empty string.

    If it cannot, torch gets a temporary folder: its optimisers import parts of torch that make the folder, also where
    nothing is compiled, and fail if they cannot.
    """
    try:
        if CACHE_VARIABLE in os.environ:
            require_writable(Path(os.environ[CACHE_VARIABLE]))
        return ""
    except OSError as error:
        os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="dreamlib-")
        atexit.register(shutil.rmtree, os.environ[CACHE_VARIABLE], ignore_errors=True)
        return str(error)


def _trial(device: torch.device) -> str:
    """Return why a small function cannot be compiled, in one line, or an empty string."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(8, device=device))
        return ""
    except Exception as error:  # anything: of torch's own parts, of the compiler's output, of a full disk
        text = str(error) or type(error).__name__
        match = re.search(r"^.*\berror: .*$", text, re.MULTILINE)  # in the compiler's output
        reason = text.splitlines()[0] + (f": {match[0]}" if match else "")
        return f"{reason}. Install g++ with its headers, or name a working compiler in the variable CXX"
