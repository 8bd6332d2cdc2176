"""Execute one notebook: ``python -m pipeline.launch_notebook NOTEBOOK OUTPUT [key=value …]``.

Papermill runs the notebook. The launcher rejects unknown parameters, shows the kernel's progress on standard error, and
removes from the executed copy whatever differs from run to run.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# nbformat imports jsonschema, which with this module spends two seconds on a grammar of web addresses that notebooks do
# not need. Without the module, it skips the grammar.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import nbformat  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

from dreamlib._engine.files import require_writable, write_atomically  # noqa: E402
from dreamlib._engine.progress import PROGRESS_FILE  # noqa: E402
from dreamlib.errors import ParameterError, unknown  # noqa: E402
from pipeline.failures import exit_status, interrupted, one_line  # noqa: E402
from pipeline.params import find_root, read_params  # noqa: E402
from pipeline.report.notebooks import reset_cells  # noqa: E402


def parse(pairs: list[str]) -> dict[str, int | str]:
    """Return ``key=value`` arguments as a notebook's parameters; integers become int, other values stay text.

    >>> parse(["method=dream", "ipc=10"])
    {'method': 'dream', 'ipc': 10}
    """
    parameters: dict[str, int | str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.isidentifier():
            raise ParameterError(f"'{pair}' is not of the form key=value")
        parameters[key] = int(value) if value.lstrip("-").isdigit() else value
    return parameters


def refuse_unknown(notebook: nbformat.NotebookNode, parameters: dict[str, Any], name: str) -> None:
    """Reject parameters missing from the notebook's ``parameters`` cell, or non-integers for integer parameters.

    Papermill itself only warns. Raise UnknownNameError or ParameterError.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{name} must have exactly one cell tagged 'parameters'; it has {len(cells)}")
    types = dict(re.findall(r"^(\w+)(?:: (\w+))? =", cells[0].source, re.MULTILINE))
    for key, value in parameters.items():
        if key not in types:
            raise unknown("parameter", key, list(types), name)
        if types[key] == "int" and not isinstance(value, int):
            raise ParameterError(f"{key}={value}: {key} is a whole number in {name}, such as {key}=1")


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove times, random ids, standard error and widgets from an executed notebook, in place; return it.

    The rest is byte-identical across runs, so that DVC and git see a change only if a result changed.
    """
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info", "title")}
    reset_cells(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not _is_noise(o)]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
    return notebook


def _is_noise(output: Any) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or (output.output_type == "stream" and output.name == "stderr")


@contextmanager
def _shown_progress() -> Iterator[None]:
    """Copy the kernel's progress file to standard error while it grows."""
    with tempfile.NamedTemporaryFile(prefix="dream-progress-") as file:
        os.environ[PROGRESS_FILE] = file.name
        stop = threading.Event()
        terminal = sys.stderr.isatty()

        def copy() -> None:
            with open(file.name, encoding="utf-8", errors="replace") as source:
                shown = 0.0
                while True:
                    done, text = stop.is_set(), source.read()
                    # A terminal shows every redraw, a log file one line every 20 seconds.
                    if text and (terminal or done or time.monotonic() - shown > 20):
                        shown = time.monotonic()
                        sys.stderr.write(text if terminal else text.rstrip().splitlines()[-1].split("\r")[-1] + "\n")
                        sys.stderr.flush()
                    if done:
                        return
                    stop.wait(0.5)

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            del os.environ[PROGRESS_FILE]


def prepare_kernel(root: Path) -> None:
    """Set the environment of the kernels: folders for IPython, matplotlib and compiled code; allocator thresholds.

    The folders are in .dream/, so that a user's IPython start-up files and styles do not affect the stages, and no home
    directory is needed.
    """
    profile = root / ".dream" / "ipython" / "profile_default"
    config = b"c = get_config()  # noqa: F821\nc.IPKernelApp.log_level = 'CRITICAL'\n"
    write_atomically(profile / "ipython_kernel_config.py", config)
    os.environ["IPYTHONDIR"] = str(profile.parent)
    os.environ["MPLCONFIGDIR"] = str(root / ".dream" / "matplotlib")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / ".dream" / "compiled"))
    # By default, glibc returns the large buffers of each step to the system and faults them in again, which takes a
    # third of the time.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 * 2**30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(16 * 2**30))


def restart_prepared(module: str) -> None:
    """Restart this process (``python -m module …``) in the environment of ``prepare_kernel``, unless it has it already.

    A restart is needed because the allocator reads its settings when a process starts. If it fails, outside a project
    or because .dream/ is not writable, the command continues without it and reports the problem itself.
    """
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        with suppress(OSError):
            prepare_kernel(find_root())
            os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def failed_copy(root: Path, output: Path) -> Path:
    """Return the path of a failed notebook's copy."""
    return root / ".dream" / "failed" / output.name


def _write_normalised(executed: Path, target: Path) -> None:
    text = nbformat.writes(normalise(nbformat.read(executed, as_version=4))) + "\n"
    write_atomically(target, text.encode())


@contextmanager
def _locked(lock: Path, output: Path) -> Iterator[None]:
    """Hold a lock while ``output`` is made; the system releases it when this process ends, however it ends."""
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise RuntimeError(f"another process is making {output}: wait until it ends, or end it") from None


def run(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Execute ``notebook`` with ``parameters`` and write its normalised copy to ``output``.

    The kernel's standard error is forwarded to this process's. If this process is killed, the kernel ends within a
    second.

    Raise ParameterError, UnknownNameError or OSError before anything runs, RuntimeError if another process makes the
    same output, and PapermillExecutionError if the notebook fails: ``output`` is then not written, and a copy with the
    traceback is in .dream/failed/.
    """
    import papermill

    root = find_root()
    refuse_unknown(nbformat.read(notebook, as_version=4), parameters, notebook.name)
    executed = root / ".dream" / "running" / f"{output.parent.name}-{output.name}"
    failed = failed_copy(root, output)
    require_writable(executed.parent, failed.parent, output.parent)
    prepare_kernel(root)
    with _locked(executed.with_suffix(".lock"), output):
        failed.unlink(missing_ok=True)
        try:
            with _shown_progress():
                papermill.execute_notebook(
                    str(notebook), str(executed), parameters, kernel_name="python3", cwd=str(root),
                    progress_bar=False, log_output=False, stderr_file=sys.stderr,
                    shutdown_kernel="immediate",  # all files are written; an orderly end takes more than a second
                )  # fmt: skip
            _write_normalised(executed, output)
        except papermill.PapermillExecutionError:
            with suppress(OSError):  # a full disk must not hide what happened
                _write_normalised(executed, failed)
            raise
        finally:
            executed.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, after one line on standard error if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.launch_notebook", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("parameters", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    from papermill.exceptions import PapermillExecutionError

    def work() -> None:
        read_params()
        run(options.notebook, options.output, parse(options.parameters))

    try:
        return exit_status(work)
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # the kernel received it first
            return interrupted()
        root = find_root()
        failed = failed_copy(root, options.output)
        where = f" (traceback: {failed})" if failed.is_file() else ""
        line = one_line(error.ename, error.evalue, root)
        print(f"error: {options.notebook}: {error.ename}: {line}{where}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the kernel too, as Ctrl-C does
    sys.exit(main())
