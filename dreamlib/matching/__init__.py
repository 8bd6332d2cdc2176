"""What the distilled set is made to match: one objective a file; every file in this folder is imported."""

import importlib
import pkgutil
from typing import Any

from dreamlib._engine.registry import configured
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective

__all__ = ["OBJECTIVES", "MatchState", "Objective", "make"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def make(name: str, options: dict[str, Any]) -> Objective:
    """Return the named objective with its options; raises UnknownNameError or ValueError listing what is known.

    >>> make("gradient", {"distance": "l1"}).distance
    'l1'
    """
    return configured(OBJECTIVES[name], options, f"objective '{name}'")
