"""Check by a trial whether torch.compile works: an installed compiler may still fail."""

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

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # names torch's folder of compiled code
_log = logging.getLogger("dreamlib")
_works: dict[str, bool] = {}  # by type of device


def compilation_works(device: torch.device) -> bool:
    """Return whether torch.compile works on a device; log one warning, with the reason, if it does not.

    The first call in a process compiles and runs a small function. Torch caches it, so the check costs a later
    process that compiles anyway about 0.1 s.
    """
    if device.type not in _works:
        reason = unwritable_cache() or _trial(device)
        _works[device.type] = not reason
        if reason and ranks.first():
            _log.warning("torch.compile does not work, running uncompiled, about twice as slow: %s", reason)
    return _works[device.type]


def compilation_failed(device: torch.device) -> bool:
    """Return whether ``compilation_works`` was called in this process and returned False."""
    return not _works.get(device.type, True)


@cache
def unwritable_cache() -> str:
    """Return why the folder of torch's compiled code cannot be written, or an empty string.

    If it cannot, torch gets a temporary folder: its optimisers import modules that create the folder even if nothing is
    compiled, and fail if they cannot.
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
    except Exception as error:  # any exception: from torch, the compiler or a full disk
        text = str(error) or type(error).__name__
        match = re.search(r"^.*\berror: .*$", text, re.MULTILINE)  # in the compiler's output
        reason = text.splitlines()[0] + (f": {match[0]}" if match else "")
        return f"{reason}. Install g++ with its headers, or set CXX to a working compiler"
