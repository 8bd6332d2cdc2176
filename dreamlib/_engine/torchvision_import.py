"""Make ``import torchvision`` work with a CPU build of torch; always import this module before torchvision.

torchvision's wheel from the package registry links CUDA libraries. Without them its compiled part does not load
and the import stops at ``operator torchvision::nms does not exist``, although the readers, transforms and models used
here are pure Python. Declaring the two operator names is enough for those.
"""

import ctypes
import importlib.util
from pathlib import Path

import torch


def _binary_part_loads() -> bool:
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


# The Library object owns the declarations: they vanish when it is collected, so it is kept at module level.
_declared: torch.library.Library | None = None
if not _binary_part_loads():
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402

__all__ = ["torchvision"]
