"""How things are executed: devices, compilation, threads, ranks, checkpoints, seeds, registries."""
