"""Hashes of the code behind a stage, and what a run took on this machine."""

import hashlib
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.params import find_root


def stage_dependencies(stage: str, root: Path | None = None) -> list[str]:
    """Return the dependencies that dvc.yaml declares for a stage; the whole library for a stage it does not have."""
    root = root or find_root()
    stages = YAML(typ="safe", pure=True).load(root / "dvc.yaml")["stages"]
    return list(stages[stage].get("deps", [])) if stage in stages else ["dreamlib"]


def code_hash(stage: str, root: Path | None = None) -> str:
    """Return a hash of the library files that a stage depends on; it is part of a checkpoint's name."""
    root = root or find_root()
    whole = hashlib.sha256()
    for name in sorted(d for d in stage_dependencies(stage, root) if d.startswith("dreamlib")):
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            whole.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]
