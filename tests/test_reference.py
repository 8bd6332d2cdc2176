"""The library computes what the algorithm on one page computes, over whole runs, to rounding."""

from pathlib import Path

import pytest
import torch

from dreamlib import reference
from dreamlib._engine.seeding import generator
from dreamlib.distill import Distiller
from dreamlib.networks import build
from dreamlib.sampling.representatives import cluster_class
from dreamlib.settings import DistillParams
from dreamlib.synthetic.initial import fill
from dreamlib.training.features import embed
from dreamlib.training.trainer import compiled_network

NETWORK, IPC, SEED = ("convnet", {"width": 8}), 2, 3
SETTINGS = DistillParams(
    init="kmeans", sampler="representative", factor=2, real_batch=6, interval=2, outer_iterations=2, inner_iterations=3,
    image_lr=0.02, image_update="per_class", augmentation="color_crop_cutout", augmentation_mode="idc",
    network_steps=3, network_batch=16, network_augmentation="color_crop", cutmix=0.5,
)  # fmt: skip


@pytest.fixture
def toys(toy_data, toy_info, threads_restored):
    """Three classes of 40 images in float64, and their description; on one thread."""
    torch.set_num_threads(1)
    return lambda channels=1: (toy_data(40, channels=channels, dtype=torch.float64), toy_info(channels=channels))


def clustered_start(data, info, compute):
    """The starting set as the clustering stage makes it."""
    model = compute.place(build(NETWORK[0], info, generator(SEED, "clustering-network"), NETWORK[1]))
    kernels, count = compiled_network(NETWORK, info, compute), IPC * SETTINGS.factor**2
    clusters = [cluster_class(data, c, count, SEED, lambda x: embed(model, x, info, kernels)) for c in range(3)]
    return fill(data, torch.stack([result.representatives for result in clusters]), IPC, SETTINGS.factor, "single")


@pytest.mark.parametrize(("channels", "distance"), [(1, "mse"), (3, "l1")])
def test_a_whole_run_is_the_references(toys, channels, distance, float64, global_generators_untouched):
    """Start, representatives, multi-formation, siamese augmentation, CutMix, momentum and clamping, all at once."""
    data, info = toys(channels)
    settings = SETTINGS.model_copy(update={"options": {"distance": distance}})
    start = clustered_start(data, info, float64)
    library = Distiller(start, data, info, settings, NETWORK, float64, SEED).run().synthetic
    expected = reference.dream(data, info, settings, NETWORK, IPC, SEED)
    assert float((library.canvases - start.canvases).abs().mean()) > 0.01, "the run moves pixels"
    torch.testing.assert_close(library.canvases, expected.canvases, rtol=0, atol=1e-11)
    torch.testing.assert_close(library.decode(), expected.decode(), rtol=0, atol=1e-11)


def test_every_part_of_the_algorithm_moves_pixels(toys):
    """So the comparison above would show a library that did any one of them otherwise."""
    data, info = toys()
    usual = reference.dream(data, info, SETTINGS, NETWORK, IPC, SEED).canvases
    changes = {
        "interval": 1, "real_batch": 5, "augmentation": "color_crop", "network_augmentation": "none", "cutmix": 0.0,
        "network_steps": 2, "image_momentum": 0.4,
    }  # fmt: skip
    for name, value in changes.items():
        other = reference.dream(data, info, SETTINGS.model_copy(update={name: value}), NETWORK, IPC, SEED).canvases
        assert float((usual - other).abs().max()) > 1e-5, name


def test_the_algorithm_is_one_page():
    lines = Path(reference.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90 and max(map(len, lines)) <= 120
