"""Execution: devices, compilation, threads, ranks, strategies, checkpoints, seeds and registries."""
