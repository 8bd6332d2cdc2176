"""One progress bar for every long loop: in a terminal, in JupyterLab, and through papermill."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

PROGRESS_FILE = "DREAM_PROGRESS_FILE"


@contextmanager
def progress(total: int, label: str, initial: int = 0, unit: str = "it") -> Iterator[Any]:
    """Yield a tqdm bar with rate and time left; call ``bar.update()`` and ``bar.set_postfix(loss=…)``.

    Under papermill the notebook's kernel has no terminal, so the bar is written to the file that the environment
    variable ``PROGRESS_FILE`` names, and the launcher shows it on standard error. In JupyterLab it is a widget.
    """
    from dreamlib._engine import ranks  # here, because importing torch takes the launcher seconds

    path = os.environ.get(PROGRESS_FILE)
    if "ipykernel" in sys.modules and not path:
        from tqdm.notebook import tqdm  # not tqdm.auto, which outside a notebook warns if ipywidgets is missing
    else:
        from tqdm import tqdm
    options: dict[str, Any] = {"total": total, "desc": label, "initial": initial, "unit": unit}
    with ExitStack() as stack:
        if not ranks.first():  # one bar for all ranks
            options = {"total": total, "disable": True}
        elif path:
            file = stack.enter_context(open(path, "a", encoding="utf-8", buffering=1))
            options |= {"file": file, "ncols": 100, "mininterval": 1.0}
        yield stack.enter_context(tqdm(**options))
