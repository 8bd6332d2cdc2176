"""Checkpoints that are whole or not there: written atomically, checked when read, named by what they belong to."""

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
    """One run's resumable state in one file; ``key`` (parameters, data and code) is part of the name and the content.

    A run whose parameters, data or code changed has another key and never sees the old file.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.path = Path(folder) / f"{key}.ckpt"
        self.key = key

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file by this state, all or nothing."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        payload = buffer.getvalue()
        write_atomically(self.path, _MAGIC + hashlib.sha256(payload).digest() + payload)

    def load(self) -> dict[str, Any] | None:
        """The saved state; None when there is none or, said in a warning, when it is torn, corrupt or foreign."""
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
        """Remove the file, after success."""
        self.path.unlink(missing_ok=True)
