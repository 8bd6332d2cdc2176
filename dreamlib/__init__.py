"""Dataset distillation by representative matching: DREAM on the IDC baseline, and the line of work around it."""

import os
from importlib import import_module
from typing import Any

# Idle OpenMP threads must sleep, not spin: on a busy machine spinning makes every notebook several times slower.
# It is read once, when torch loads, so it is set here, before any module of the library can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["DecodedDataset", "SyntheticSet", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand, so that the launcher does not pay for importing torch.
    if name not in __all__:
        raise AttributeError(f"module 'dreamlib' has no attribute '{name}'")
    return getattr(import_module("dreamlib.synthetic.synthetic_set"), name)
