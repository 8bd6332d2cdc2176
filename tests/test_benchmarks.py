"""The fast path does the reference's work: same loss, same pixel gradients."""

import pytest
import torch

from benchmarks import table
from benchmarks.reference import matching_gradient, representatives, training_step, with_torchs_layers
from benchmarks.work import INFO, fast_matching_gradient, matching_state
from dreamlib.compute import Compute
from dreamlib.files import read_json
from dreamlib.kernels import Kernels
from dreamlib.networks import build
from dreamlib.training import Trainer, TrainSettings

MODULES = ("container", "conv", "normalization", "activation", "pooling")
SIZES = {"ipc": 2, "real": 6, "width": 16}


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# In float32 either way is as far from float64 as the few ReLU inputs within rounding of 0 make it: one of them on the
# other side moves a gradient of this size by some 1e-4.
@pytest.mark.parametrize(
    ("precision", "dtype", "bound"), [("float64", torch.float64, 1e-10), ("float32", torch.float32, 1e-3)]
)
def test_matching_step_agrees_with_the_plain_loop(precision, dtype, bound):
    state = matching_state(Compute.resolve("cpu", precision), **SIZES)
    value, pixels = matching_gradient(state, dtype)
    fast_value, fast_pixels = fast_matching_gradient(state)
    assert float(pixels.norm()) > 0
    assert relative(fast_value, value) < bound
    assert relative(fast_pixels, pixels) < bound


def test_bfloat16_points_where_float64_does():
    exact = matching_gradient(matching_state(Compute.resolve("cpu", "float64"), **SIZES), torch.float64)[1]
    coarse = fast_matching_gradient(matching_state(Compute.resolve("cpu", "bfloat16"), **SIZES))[1]
    cosine = torch.nn.functional.cosine_similarity(coarse.double().flatten(), exact.flatten(), dim=0)
    assert float(cosine) > 0.99


def test_training_step_agrees_with_the_plain_loop():
    compute = Compute.resolve("cpu", "float64")
    x, y = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8)
    plain, model = (
        compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16})) for _ in "ab"
    )
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(model, INFO, TrainSettings(8), Kernels(model, compute))
    for _ in range(3):
        expected = training_step(plain, optimizer, INFO.normalise(x), y)
        assert float(trainer.step(x, y, torch.Generator())) == pytest.approx(float(expected), rel=1e-10)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_reference_has_torchs_layers_and_the_same_function():
    ours = build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16}).double()
    plain = with_torchs_layers(ours)
    assert {type(m).__module__ for m in plain.blocks[0].modules()} == {"torch.nn.modules." + m for m in MODULES}
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-12, atol=1e-12)


def test_the_references_representatives_are_the_images_of_separate_groups():
    network = build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16})
    base = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = base.repeat_interleave(5, 0) + 1e-4 * torch.rand(15, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert sorted((representatives(network, images, 3, seed=1) // 5).tolist()) == [0, 1, 2]


def test_readme_table_is_the_one_of_the_measurements():
    readme = (table.ROOT / "README.md").read_text()
    assert readme == table.readme_text(readme, read_json(table.RESULTS))
    measured = read_json(table.RESULTS)
    assert all(
        f"| {row['work']} | {row['reference_s']:.3f} | {row['fast_s']:.3f} |" in readme for row in measured["rows"]
    )


def test_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="once each"):
        table.readme_text("# no markers", read_json(table.RESULTS))
