"""Atomic writes of files, and JSON with reproducible bytes."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROBE_BYTES = 2**16  # a full disk may still hold an empty file


def write_atomically(path: str | Path, payload: bytes) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part; survives a kill at any moment.

    Raise OSError, with the remedy, if the disk is full or the folder cannot be written; the old file is then unchanged.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            with suppress(OSError):  # the folder may be gone
                scratch.unlink(missing_ok=True)


def require_writable(*folders: Path) -> None:
    """Raise OSError, with the remedy, unless each folder, or the nearest existing parent of a missing one, is writable.

    Call this before long work that writes there.
    """
    for folder in folders:
        with _explained(folder):
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            with tempfile.TemporaryFile(dir=existing) as probe:
                probe.write(bytes(PROBE_BYTES))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {path}: {reason}; existing files are unchanged. Free space on the disk or make the folder "
            "writable, and run the same command again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, atomically; the same value gives the same bytes."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; raise FileNotFoundError, with the remedy, for a missing file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; run `dvc repro` for the stage of dvc.yaml or studies/dvc.yaml that makes it"
        )
    return json.loads(path.read_text())


def find_above(relative: str | Path, start: str | Path | None = None) -> Path | None:
    """Return ``relative`` in the nearest folder, at or above ``start``, that has it; None if none has.

    start: the working directory by default.
    """
    here = Path(start or Path.cwd()).resolve()
    return next((folder / relative for folder in (here, *here.parents) if (folder / relative).exists()), None)
