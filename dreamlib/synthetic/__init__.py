"""Synthetic sets: storage, decoding, initialisation."""
