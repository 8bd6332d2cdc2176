"""Which real images stand for a class: k-means, representatives, real batches, coverage; found by being there."""

from dreamlib._engine.registry import import_modules

import_modules(__name__, __path__)
