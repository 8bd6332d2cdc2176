"""``python -m benchmarks.memory IPC``: peak bytes three matching steps need above torch's import."""

import sys

import torch  # noqa: F401 (what the measure starts from)

from dreamlib.compute import Compute, peak_memory_bytes

if __name__ == "__main__":
    before = peak_memory_bytes()
    from benchmarks.work import fast_matching_gradient, matching_state

    state = matching_state(Compute.resolve("cpu", "bfloat16", 2, True), int(sys.argv[1]), 128)
    for _ in range(3):
        fast_matching_gradient(state)
    print(peak_memory_bytes() - before)
