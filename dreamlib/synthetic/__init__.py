"""Synthetic sets: storage, decoding, initialisation. Importing the package imports all."""

from dreamlib._engine.registry import import_modules

import_modules(__name__, __path__)
