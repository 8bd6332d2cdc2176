"""Checkpoint files: written atomically, verified when read, named after their run."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from dreamlib._engine.files import write_atomically

_MAGIC = b"DREAMCK1"
_log = logging.getLogger("dreamlib")


class Checkpoint:
    """One run's resumable state in one file.

    folder: folder of the file.
    key: hash of parameters, data and code, part of the file's name and content; a run in which any of these changed
        has another key and never reads the old file.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.path = Path(folder) / f"{key}.ckpt"
        self.key = key

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by this state, atomically."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        payload = buffer.getvalue()
        write_atomically(self.path, _MAGIC + hashlib.sha256(payload).digest() + payload)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None if there is no file or, with a warning, if it is torn, corrupt or foreign."""
        if not self.path.is_file():
            return None
        content = self.path.read_bytes()
        magic, digest, payload = content[:8], content[8:40], content[40:]
        if magic != _MAGIC or hashlib.sha256(payload).digest() != digest:
            _log.warning("checkpoint %s is torn or corrupt and is not used: starting from the beginning", self.path)
            return None
        saved = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        if saved["key"] != self.key:
            _log.warning("checkpoint %s belongs to another run and is not used: starting from the beginning", self.path)
            return None
        return saved["state"]

    def delete(self) -> None:
        """Remove the file, after a successful run."""
        self.path.unlink(missing_ok=True)
