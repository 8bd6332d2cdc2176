"""Synthetic sets: storage, decoding, initialisation; found by being there."""

from dreamlib._engine.registry import import_modules

import_modules(__name__, __path__)
