"""What the distilled set is made to match: one objective per file; importing the package imports all."""

from typing import Any

from dreamlib._engine.registry import configured, import_modules
from dreamlib.matching.objective import OBJECTIVES, MatchState, Objective

__all__ = ["OBJECTIVES", "MatchState", "Objective", "make"]

import_modules(__name__, __path__)


def make(name: str, options: dict[str, Any]) -> Objective:
    """Return the named objective with its options; raise UnknownNameError or ValueError listing the known ones.

    >>> make("gradient", {"distance": "l1"}).distance
    'l1'
    """
    return configured(OBJECTIVES[name], options, f"objective '{name}'")
