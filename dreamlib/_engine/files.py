"""Atomic writes of files, and JSON with reproducible bytes."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, payload: bytes) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part; survives a kill at any moment."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, atomically; the same value gives the same bytes."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; raises FileNotFoundError that names the command for a missing file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `dvc repro` makes it")
    return json.loads(path.read_text())


def find_above(relative: str | Path, start: str | Path | None = None) -> Path | None:
    """Return ``relative`` in the nearest folder, at or above ``start``, that has it; None if none has.

    start: the working directory by default.
    """
    here = Path(start or Path.cwd()).resolve()
    return next((folder / relative for folder in (here, *here.parents) if (folder / relative).exists()), None)
