"""Dataset distillation by representative matching: DREAM on the IDC baseline, and the line of work around it."""

import os

# Idle OpenMP threads must sleep, not spin: on a busy machine spinning makes every notebook several times slower.
# It is read once, when torch loads, so it is set here, before any module of the library can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dreamlib.synthetic import DecodedDataset, SyntheticSet, load

__all__ = ["DecodedDataset", "SyntheticSet", "load"]
__version__ = "0.1.0"
