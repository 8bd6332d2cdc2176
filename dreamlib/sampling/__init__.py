"""Choice of real images: k-means, representatives, real batches, coverage. Importing the package imports all."""

from dreamlib._engine.registry import import_modules

import_modules(__name__, __path__)
