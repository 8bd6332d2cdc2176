"""Import torchvision when one of its names is first used, even if its compiled extension does not load.

    from dreamlib._engine import lazy_torchvision as torchvision

The import takes two seconds, because it imports torch's compiler; most stages do not need it.

torchvision's wheel from the package registry links CUDA libraries. Without them its compiled extension does not load
and the import stops at ``operator torchvision::nms does not exist``, although the readers, transforms and models used
here are pure Python. Declaring the two operator names is enough for those.
"""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def __getattr__(name: str) -> Any:
    """Return torchvision's attribute of this name."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_imported()[0], name)


@cache
def _imported() -> tuple[ModuleType, torch.library.Library | None]:
    """Return torchvision and the Library object that owns the declarations, which vanish when it is collected."""
    declared = None
    if not _extension_loads():
        declared = torch.library.Library("torchvision", "DEF")
        declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision"), declared


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; run `make setup`")
    binaries = sorted(Path(spec.origin).parent.glob("_C*"))
    try:
        for binary in binaries:
            ctypes.CDLL(str(binary))
    except OSError:
        return False
    return bool(binaries)
