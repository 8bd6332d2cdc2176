"""Which real images stand for a class: k-means, representatives, real batches, coverage; found by being there."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
