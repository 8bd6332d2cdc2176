"""Studies: longer runs than the default pipeline's, with their own parameters."""
