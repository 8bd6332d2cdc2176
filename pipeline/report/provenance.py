"""Which code made a checkpoint."""

import hashlib
from pathlib import Path


def code_hash(root: Path) -> str:
    """Return a hash of the library's files; it is part of a checkpoint's name, so that other code begins anew."""
    whole = hashlib.sha256()
    for file in sorted((root / "dreamlib").rglob("*.py")):
        whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]
