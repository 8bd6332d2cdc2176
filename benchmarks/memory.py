"""``python -m benchmarks.memory IPC``: peak bytes of DREAM's inner iterations on Fashion-MNIST above torch's import."""

import sys

import torch  # (what the measure starts from)

from dreamlib._engine.compute import Compute, peak_memory_bytes

if __name__ == "__main__":
    before = peak_memory_bytes()
    from benchmarks.work import INFO
    from dreamlib.data.types import LabeledImages
    from dreamlib.distill import Distiller
    from dreamlib.settings import DistillParams
    from dreamlib.synthetic.synthetic_set import SyntheticSet

    ipc, k, per_class = int(sys.argv[1]), INFO.num_classes, 6000
    rng = torch.Generator().manual_seed(0)
    data = LabeledImages(torch.rand(k * per_class, 1, 28, 28, generator=rng), torch.arange(k).repeat(per_class), k)
    canvases = torch.rand(k * ipc, 1, 28, 28, generator=rng)
    start = SyntheticSet(canvases, torch.arange(k).repeat_interleave(ipc), k, 2)
    settings = DistillParams(
        objective="gradient", sampler="representative", real_batch=128, interval=2, pool=0, outer_iterations=1,
        inner_iterations=4, network_steps=4, snapshots=0, parallel_classes=2,
    )  # fmt: skip
    compute = Compute.resolve("cpu", "auto", 2, True)
    Distiller(start, data, INFO, settings, ("convnet", {}), compute, 0).run()
    print(peak_memory_bytes() - before)
