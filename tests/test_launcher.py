"""The launcher when something goes wrong: kernels that are killed or warn, files that cannot be written, no memory."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from papermill import PapermillExecutionError

from pipeline import launch_notebook as launcher
from pipeline.failures import MEMORY_REMEDY, exit_status, one_line
from pipeline.params import find_root

ROOT = find_root(Path(__file__).parent)
PATIENCE_S = 120
WORK = """
import os, time
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
deadline = time.monotonic() + seconds
while time.monotonic() < deadline:
    pass
"""
WARN = """
from pathlib import Path
from dreamlib._engine.checkpoint import Checkpoint
Path("old.ckpt").write_bytes(b"torn")
assert Checkpoint(".", "old").load() is None
"""


@pytest.fixture
def root(tmp_path):
    """A project of parameters alone, and an older output that no failure may touch."""
    for name in ("methods.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "out.ipynb").write_text("old")
    return tmp_path


def launch(root, source, wait=True, limit=resource.RLIM_INFINITY, **parameters):
    """Run the launcher on a notebook of one cell; return its process, with ``err`` where its end is waited for.

    limit: bytes that a file may have: what is written beyond fails, as on a full disk.
    """
    cell = nbformat.v4.new_code_cell("seconds: int = 0", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(source)], metadata=kernel), root / "n.ipynb"
    )
    command = [sys.executable, "-m", "pipeline.launch_notebook", "n.ipynb", "out.ipynb"]
    process = subprocess.Popen(
        command + [f"{key}={value}" for key, value in parameters.items()], cwd=root, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(root / "out.ipynb" / "nowhere")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    if wait:
        process.err = process.communicate(timeout=PATIENCE_S)[1]
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_launcher_leaves_no_kernel_and_a_rerun_may_begin(root, number, until_ended):
    pid = root / "pid"
    first = launch(root, WORK, wait=False, seconds=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    kernel = psutil.Process(int(pid.read_text()))
    second = launch(root, WORK)
    assert second.returncode == 1
    assert second.err == "error: another process is making out.ipynb: wait until it ends, or end it\n"
    first.send_signal(number)
    err = first.communicate(timeout=PATIENCE_S)[1]
    until_ended([kernel])
    assert (root / "out.ipynb").read_text() == "old"
    if number == signal.SIGTERM:
        assert first.returncode == 130 and "interrupted: run the same command again to continue" in err
    third = launch(root, WORK)
    assert third.returncode == 0 and third.err == ""
    assert nbformat.read(root / "out.ipynb", 4).cells[-1].source.startswith("\nimport os")
    assert not list((root / ".dream" / "running").glob("*.ipynb"))


def test_a_damaged_checkpoint_is_told_of_on_standard_error_and_not_in_the_copy(root):
    done = launch(root, WARN)
    assert done.returncode == 0
    assert done.err == "checkpoint old.ckpt is torn or corrupt and is not used: starting from the beginning\n"
    assert "torn or corrupt" not in (root / "out.ipynb").read_text()


def test_a_kernel_that_the_system_kills_is_one_line(root):
    done = launch(root, "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == 1 and "Traceback" not in done.err
    assert done.err.splitlines()[-1].startswith("error: the kernel was killed, probably because memory ran out")
    assert (root / "out.ipynb").read_text() == "old"


def test_a_disk_that_fills_up_while_a_notebook_runs_is_one_line(root):
    done = launch(root, "print('x' * 300_000)", limit=200_000)
    assert done.returncode == 1 and "Traceback" not in done.err
    told = "File too large: free space on the disk or make the folder writable, and run the same command again"
    assert done.err == f"error: [Errno 27] {told}\n"
    assert (root / "out.ipynb").read_text() == "old"


def test_a_disk_without_room_is_refused_before_the_kernel_starts(root):
    done = launch(root, WORK, limit=10_000)
    assert done.returncode == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: cannot write") and "existing files are unchanged. Free space on the disk" in line
    assert not (root / "pid").exists()


# ---- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allocate", "size"),
    [
        (lambda: torch.empty(2**50), "4,194,304.0 GiB"),
        (lambda: np.empty(2**50), "8.00 PiB"),
        (lambda: bytearray(2**62), "an array"),
        # As torch words it, where there is a GPU.
        (
            lambda: raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has")),
            "2.50 GiB",
        ),
    ],
)
def test_memory_that_runs_out_is_one_line_with_the_size_and_the_knobs(allocate, size, capsys):
    assert exit_status(allocate) == 1
    assert capsys.readouterr().err == f"error: out of memory: {size} could not be allocated; {MEMORY_REMEDY}\n"


def raise_(error):
    raise error


def test_memory_that_runs_out_in_a_notebook_is_the_same_line(root, capsys, monkeypatch):
    def run(*_):
        raise PapermillExecutionError(2, 2, "", "_ArrayMemoryError", "Unable to allocate 8.00 PiB for an array", "")

    monkeypatch.chdir(root)
    monkeypatch.setattr(launcher, "run", run)
    assert launcher.main(["n.ipynb", "out.ipynb"]) == 1
    line = f"error: n.ipynb: _ArrayMemoryError: out of memory: 8.00 PiB could not be allocated; {MEMORY_REMEDY}\n"
    assert capsys.readouterr().err == line, "and no traceback is named, since there is none"


@pytest.mark.parametrize(
    ("place", "hint"), [(".dvc/tmp/exps/tmpab12", True), (".dvc/tmp/exps/standalone/tmpab12", True), ("exps", False)]
)
def test_a_name_unknown_in_dvcs_copy_of_the_project_may_be_in_a_file_that_git_does_not_know(tmp_path, place, hint):
    line = one_line("UnknownNameError", "unknown objective 'moments': Known: dm", tmp_path / place)
    assert line.startswith("unknown objective 'moments': Known: dm")
    assert ("`git add`" in line) == hint
    assert "git add" not in one_line("ValueError", "ipc is 0", tmp_path / place)
