"""One progress bar for every long loop: in a terminal, in JupyterLab, and through papermill."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRESS_FILE = "DREAM_PROGRESS_FILE"


@contextmanager
def progress(total: int, label: str, initial: int = 0, unit: str = "it") -> Iterator[Any]:
    """Yield a tqdm bar with rate and time left; call ``bar.update()`` and ``bar.set_postfix(loss=…)``.

    Under papermill the notebook's kernel has no terminal, so the bar is written to the file that the environment
    variable ``PROGRESS_FILE`` names, and the launcher shows it on standard error. In JupyterLab it is a widget.
    """
    from dreamlib._engine import ranks  # here, because importing torch takes the launcher seconds

    if not ranks.first():  # one bar for all ranks
        from tqdm import tqdm

        with tqdm(total=total, disable=True) as silent:
            yield silent
        return
    path = os.environ.get(PROGRESS_FILE)
    if path:
        from tqdm import tqdm

        with open(Path(path), "a", encoding="utf-8", buffering=1) as file:
            bar = tqdm(total=total, desc=label, initial=initial, unit=unit, file=file, ncols=100, mininterval=1.0)
            with bar:
                yield bar
        return
    # Not tqdm.auto: outside a notebook it warns if ipywidgets is missing.
    from tqdm import tqdm as terminal_bar
    from tqdm.notebook import tqdm as notebook_bar

    in_notebook = "ipykernel" in sys.modules
    with (notebook_bar if in_notebook else terminal_bar)(total=total, desc=label, initial=initial, unit=unit) as bar:
        yield bar
