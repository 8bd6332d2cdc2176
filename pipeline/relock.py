"""Update dvc.lock after a code change that changes no result: ``python -m pipeline.relock``.

The study ``relock`` of studies/params.yaml, all families of methods on scikit-learn's digits, runs twice: with the code
that the locks were last committed with, and with the current code. If all files it makes are byte-identical apart from
parameter hashes (``comparable``), the stages whose locks differ only in code are committed to the locks without running
them. A stage that differs in anything else (parameters, data, a notebook, its outputs) is left for ``dvc repro``, as is
a stage whose lock was already stale when committed, which this comparison cannot cover.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.failures import exit_status
from pipeline.params import find_root

STUDY = "relock"
LOCKS = ("dvc.lock", "studies/dvc.lock")
PIPELINES = ("dvc.yaml", "studies/dvc.yaml")
CODE = ("dreamlib", "pipeline")
SHARED = ("params.yaml", "methods.yaml", "studies/params.yaml")  # the same in both runs: only code differs


# Hashes in a set's metadata, and the digest of a set's file in its metrics.
HASHES = re.compile(rb'(parameter_hash|sha256)(\\?": \\?")[0-9a-f]+')


class RelockError(RuntimeError):
    """The locks cannot be updated; the message has the reason."""


def code_alone(changes: list[Any]) -> bool:
    """Return whether a stage's entry of ``dvc status --json`` names changed code, or its command, and nothing else.

    >>> code_alone([{"changed deps": {"dreamlib/data": "modified"}}, "changed command"])
    True
    >>> code_alone([{"changed deps": {"params.yaml": {"seeds": "modified"}}}])
    False
    """
    details = [change for change in changes if change != "changed command"]
    kinds = {kind for change in details for kind in change}
    return kinds <= {"changed deps"} and all(_is_code(path) for path in _changed_dependencies(details))


def code_differs(changes: list[Any]) -> bool:
    """Return whether a stage's entry of ``dvc status --json`` names changed code, alone or with other changes.

    >>> code_differs([{"changed deps": {"data/digits": "deleted"}}, "changed command"])
    False
    """
    return any(_is_code(path) for path in _changed_dependencies(changes))


def _changed_dependencies(changes: list[Any]) -> list[str]:
    return [path for change in changes if isinstance(change, dict) for path in change.get("changed deps", {})]


def _is_code(path: str) -> bool:
    return Path(path).parts[0] in CODE


def _run(root: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    if done.returncode:
        raise RelockError(f"`{' '.join(command)}` failed in {root}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def changed_stages(root: Path) -> dict[str, list[Any]]:
    """Return the stages whose locks differ from the working tree, with what differs."""
    return json.loads(_run(root, "dvc", "status", "--json", *PIPELINES))


def comparable(content: bytes) -> bytes:
    r"""Return a file's content without the hash of all parameters, and without the digest of a set that has this hash.

    The hash covers the names and values of all settings, so that adding or removing an unused setting changes it.

    >>> comparable(b'{"sha256": "9f", "x": 1}'), comparable(rb'{\"parameter_hash\": \"0a1b\"}')
    (b'{"sha256": "", "x": 1}', b'{\\"parameter_hash\\": \\"\\"}')
    """
    return HASHES.sub(rb"\1\2", content)


def results_of_study(root: Path) -> dict[str, bytes]:
    """Run the study in ``root``; return its files by their path below results/."""
    _run(root, sys.executable, "-m", "pipeline.fetch_data", "digits")
    for part in ("experts", "all"):
        _run(root, sys.executable, "-m", "pipeline.studies.run", STUDY, part)
    folder = root / "results" / STUDY
    shutil.rmtree(folder / "experts")  # their keys include the code hash; the sets distilled from them are compared
    for path in (folder / "clusters").glob("*.safetensors"):
        path.unlink()  # a clustering that one method uses may be stored here or made by its distillation
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): comparable(path.read_bytes()) for path in files}


@contextmanager
def tree_of(root: Path, commit: str) -> Iterator[Path]:
    """Check ``commit`` out into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _run(root, "git", "worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _run(root, "git", "worktree", "remove", "--force", str(tree))


def working_tree(root: Path, folder: Path) -> Path:
    """Copy the working tree's code and parameters below ``folder``, so that the study leaves nothing in the project."""
    names = _run(root, "git", "ls-files", "--cached", "--others", "--exclude-standard", *CODE, *SHARED, *PIPELINES)
    tree = folder / "after"
    for name in names.split():
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((root / name).read_bytes())
    return tree


def relock(root: Path) -> None:
    """Compare the study's results before and after, and commit the stages that differ only in code."""
    changed = changed_stages(root)
    stages = [name for name, changes in changed.items() if code_alone(changes)]
    for name in sorted(set(changed) - set(stages)):
        print(f"{name}: more than code differs; `dvc repro {name}` runs it")
    if not stages:
        print("no stage differs in code alone: nothing to do")
        return
    commit = _run(root, "git", "log", "-1", "--format=%H", "--", *LOCKS).strip()
    with tree_of(root, commit) as tree:
        stale_before = changed_stages(tree)
        stale = [name for name in stages if code_differs(stale_before.get(name, []))]
        for name in stale:
            print(f"{name}: its lock is older than the code of {commit[:12]}; `dvc repro {name}` runs it")
        stages = [name for name in stages if name not in stale]
        if not stages:
            return
        for name in SHARED:
            (tree / name).write_bytes((root / name).read_bytes())
        before = results_of_study(tree)
    with tempfile.TemporaryDirectory() as folder:
        after = results_of_study(working_tree(root, Path(folder)))
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if different:
        raise RelockError(
            f"results differ from those of {commit[:12]}: {', '.join(different)}; run `dvc repro` instead"
        )
    print(f"{len(after)} files of the study '{STUDY}' are byte-identical to those of {commit[:12]}")
    _run(root, "dvc", "commit", "--force", *stages)
    print(f"updated: {', '.join(stages)}")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: relock(find_root())))
