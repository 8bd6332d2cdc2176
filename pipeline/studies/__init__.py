"""Studies: longer runs than the default pipeline's, with parameters of their own."""
