"""Choice of real images: k-means, representatives, real batches, coverage. Every module is imported."""

from dreamlib._engine.registry import import_modules

import_modules(__name__, __path__)
