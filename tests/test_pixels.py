"""Images are stored as bytes: whoever uses them gets the bits that float32 images, divided by 255 at once, gave."""

import numpy as np
import pytest
import torch

from dreamlib import reference
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import generator
from dreamlib.data.fetch import DataError
from dreamlib.data.types import DatasetInfo, LabeledImages, allocate, as_float
from dreamlib.data.whitening import ZCA
from dreamlib.distill import Distiller
from dreamlib.evaluation import evaluate
from dreamlib.matching.experts import data_fingerprint
from dreamlib.matching.label_sources import LabelState, train_teacher
from dreamlib.networks import build
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.sampling.representatives import cluster_class
from dreamlib.settings import DistillParams, EvaluationParams
from dreamlib.synthetic.initial import INITS, StartState, fill, noise, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import embed, predict
from dreamlib.training.trainer import train_on_real
from pipeline.report.figures import captioned, image_rows
from pipeline.studies.batch_gradients import BatchStudy

NETWORK = ("convnet", {"width": 8})
EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


@pytest.fixture
def both(toy_data):
    """The same images twice: as bytes, and as floats by the arithmetic of a reader that converts all of them."""
    toys = toy_data(24, channels=3)
    stored = (toys.images * 255).round().to(torch.uint8)
    floats = torch.as_tensor(stored.numpy()).to(torch.float32).div_(255)
    return [LabeledImages(images, toys.labels, 3) for images in (stored, floats)]


@pytest.fixture
def known(toy_info):
    return toy_info(channels=3)


def flat(images):
    """Pixels as features; an embedding is given pixels, not bytes."""
    assert images.dtype == torch.float32 and images.max() <= 1
    return images.flatten(1)


def same(results):
    first, second = results
    assert first.dtype == second.dtype and torch.equal(first, second)


def test_a_byte_is_divided_by_255_in_float32():
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(as_float(EVERY_BYTE).numpy(), expected)
    assert torch.equal(as_float(EVERY_BYTE), EVERY_BYTE.to(torch.float32).div_(255))
    for given in (torch.rand(3), torch.rand(3, dtype=torch.float64), torch.rand(3).bfloat16()):
        assert as_float(given) is given


def test_bytes_floats_and_nothing_else_are_images():
    labels = torch.zeros(1, dtype=torch.long)
    for dtype in (torch.uint8, torch.float32, torch.float64, torch.bfloat16):
        assert LabeledImages(torch.zeros(1, 1, 2, 2, dtype=dtype), labels, 1).pixels().is_floating_point()
    with pytest.raises(ValueError, match=r"uint8 \(0 to 255\) or floating point \(0 to 1\); got torch.int64"):
        LabeledImages(torch.zeros(1, 1, 2, 2, dtype=torch.long), labels, 1)


def test_rows_subsets_and_copies_stay_bytes(both):
    stored, floats = both
    assert stored.images.element_size() == 1
    assert stored.subset(torch.tensor([5, 2])).to("cpu").images.dtype == torch.uint8
    for rows in (torch.tensor([5, 2]), slice(3, 9), slice(None)):
        same([stored.pixels(rows), floats.images[rows]])


def test_normalised_and_whitened_images_are_the_same_bits(both, known, monkeypatch):
    same([data.normalised(known).images for data in both])
    same([known.normalise(data.images) for data in both])
    same([both[0].normalised(known).images, known.normalise(both[1].images)])
    monkeypatch.setattr("dreamlib.data.types.CHUNK", 7)
    same([both[0].normalised(known).images, known.normalise(both[1].images)])
    fits = [ZCA.fit(data.images) for data in both]
    same([zca.matrix for zca in fits])
    same([zca.apply(data.images) for zca, data in zip(fits, both, strict=True)])


def start(data, info, name):
    def rows(count):
        return random_rows(data, count, 1)

    def embedder():
        return lambda images: images.flatten(1)

    settings = DistillParams(init=name, factor=1)
    return INITS[name]().start(StartState(data, info, settings, 3, 0, data, 0, embedder, rows))


def test_starts_of_every_kind_are_the_same_bits(both, known):
    for rule in ("single", "bound", "dct"):
        same([fill(data, random_rows(data, 8, 0), 2, 2, rule).canvases for data in both])
        same([noise(data, known, 2, 2, rule, seed=0).canvases for data in both])
    for name in INITS:
        same([start(data, known, name).canvases for data in both])
    for pick in ("members", "released"):
        found = [cluster_class(data, 1, 4, 0, flat, pick=pick) for data in both]
        same([clusters.representatives for clusters in found])
        same([clusters.features for clusters in found])


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_chooses_and_distils_the_same(name, both, known):
    settings = DistillParams(
        sampler=name, factor=1, real_batch=8, interval=1, outer_iterations=1, inner_iterations=2, network_steps=2,
        network_batch=16, image_lr=0.05, augmentation="color_crop_cutout", network_augmentation="color_crop",
        pretrain_epochs=0.5,
    )  # fmt: skip
    start = fill(both[1], random_rows(both[1], 1, 0), 1, 1, "single")
    runs = [Distiller(start, data, known, settings, NETWORK, Compute(), seed=0).run() for data in both]
    same([run.synthetic.canvases for run in runs])
    assert runs[0].history == runs[1].history and not torch.equal(runs[0].synthetic.canvases, start.canvases)


def test_training_on_them_and_judging_by_them_give_the_same_bits(both, known):
    compute, results = Compute(), []
    for data in both:
        network = build("convnet", known, generator(0, "network"), {"width": 8})
        kernels = CompiledNetwork(network, compute)
        train_on_real(network, data, known, kernels, epochs=1, seed=0)
        teacher, _ = train_teacher(LabelState(data, known, DistillParams(teacher_epochs=1), NETWORK, compute, seed=0))
        study = BatchStudy(data, known, kernels, size=8, draws=2, seed=0)
        found = [predict(network, data.images, known, kernels), embed(network, data.images, known, kernels)]
        found.append(torch.cat([p.detach().flatten() for p in teacher.parameters()]))
        measures = study.measure(network, 0)[["norm", "distance", "nearest_distance"]]
        results.append([*found, torch.tensor(measures.to_numpy())])
    for pair in zip(*results, strict=True):
        same(pair)
    synthetic = SyntheticSet(both[1].pixels(slice(0, 3)), torch.arange(3), 3)
    protocol = EvaluationParams(epochs=2, repeats=1, batch=3)
    judged = [
        evaluate(synthetic, data, known, protocol, NETWORK, compute, seed=0, split="test").accuracies for data in both
    ]
    assert judged[0] == judged[1]


def test_the_page_that_is_the_reference_takes_them_too(both, known):
    settings = DistillParams(
        init="kmeans", sampler="representative", factor=2, real_batch=4, outer_iterations=1, inner_iterations=2,
        image_update="per_class", network_steps=1, network_batch=16,
    )  # fmt: skip
    same([reference.dream(data, known, settings, NETWORK, 1, seed=0).canvases for data in both])


def test_experts_know_the_data_again_that_they_were_made_with(both, monkeypatch):
    monkeypatch.setattr("dreamlib.matching.experts.CHUNK", 7)
    assert data_fingerprint(both[0]) == data_fingerprint(both[1])


def test_figures_show_them_in_the_same_brightness(both):
    def picture(figure):
        return torch.from_numpy(np.asarray(figure.axes[0].images[0].get_array()))

    for draw in (lambda x: image_rows({"a": x[:2], "b": x[:1]}), lambda x: captioned(x[:2], ["a", "b"])):
        same([picture(draw(data.images)) for data in both])


def test_memory_that_is_not_there_is_asked_for_in_one_line():
    with pytest.raises(DataError) as refused:
        allocate("the images", (10**9, 3, 1024, 1024), torch.uint8)
    assert str(refused.value) == (
        "memory is too small for the images (1,000,000,000 × 3 × 1,024 × 1,024 of uint8): they take 2,929,687.5 GiB; "
        "choose a smaller size (an option of data set folder) or fewer images"
    )
    pixel, info = (
        torch.zeros(1, 1, 1, 1, dtype=torch.uint8),
        DatasetInfo("wide", ("a",), 3, 2**22, (0.5,) * 3, (1.0,) * 3),
    )
    wide = LabeledImages(pixel.expand(1, 3, 2**22, 2**22), torch.zeros(1, dtype=torch.long), 1)
    with pytest.raises(DataError, match=r"the normalised images \(1 × 3 × .* of float32\): they take 196,608.0 GiB"):
        wide.normalised(info)
    long = pixel.expand(2, 3, 2**10, 2**10)
    with pytest.raises(
        DataError, match=r"the pixels' covariances \(3,145,728 × 3,145,728 of float64\): they take 73,728"
    ):
        ZCA.fit(long)
