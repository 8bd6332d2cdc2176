"""Dataset distillation by representative matching: DREAM, its baseline IDC, and related objectives.

``load`` and ``SyntheticSet`` read and write distilled sets, ``import_set`` and ``export_set`` those of other projects.
``Distiller`` makes sets, ``evaluate`` measures them; ``Compute`` says on which device and in which number format.
"""

import os
from importlib import import_module
from typing import Any

# Idle OpenMP threads must sleep, not spin: on a busy machine spinning makes every notebook several times slower.
# OpenMP reads the variable once, when torch loads, so it is set before any module of the library can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_MODULES = {
    "Compute": "dreamlib._engine.compute",
    "DecodedDataset": "dreamlib.synthetic.synthetic_set",
    "Distiller": "dreamlib.distill",
    "SyntheticSet": "dreamlib.synthetic.synthetic_set",
    "evaluate": "dreamlib.evaluation",
    "export_set": "dreamlib.synthetic.export",
    "import_set": "dreamlib.synthetic.foreign",
    "load": "dreamlib.synthetic.synthetic_set",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    # On first use, because importing torch takes seconds and the launcher does not need it.
    if name not in _MODULES:
        raise AttributeError(f"module 'dreamlib' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
