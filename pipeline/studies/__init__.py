"""Studies beside the default pipeline."""
