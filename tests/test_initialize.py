"""The canvases a run starts from: whose images, where on the canvas, and what is refused before any work."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from dreamlib.data.types import LabeledImages
from dreamlib.sampling.representatives import cluster_class
from dreamlib.settings import DistillParams
from dreamlib.synthetic.decode import tile
from dreamlib.synthetic.initial import check_budget, fill, images_needed, noise, random_rows


def pixels(images):
    return images.flatten(1)


def canvas_by_numpy(images, factor, shrink):
    """Shrink and lay out by loops over pixels; only for factors that divide the side."""
    _, channels, height, width = images.shape
    h, w = height // factor, width // factor
    canvas = np.zeros((channels, height, width), np.float32)
    for number, image in enumerate(images.numpy()):
        top, left = h * (number // factor), w * (number % factor)
        for i in range(h):
            for j in range(w):
                block = image[:, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
                canvas[:, top + i, left + j] = block[:, 0, 0] if shrink == "nearest" else block.mean((1, 2))
    return canvas


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shrink", get_args(DistillParams.model_fields["shrink"].annotation))
def test_tile_equals_a_loop_over_pixels(factor, shrink):
    images = torch.rand(3 * factor**2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    got = tile(images, factor, shrink)
    for number, canvas in enumerate(got.numpy()):
        mine = images[number * factor**2 : (number + 1) * factor**2]
        np.testing.assert_allclose(canvas, canvas_by_numpy(mine, factor, shrink), rtol=1e-6)


def test_tile_where_the_factor_does_not_divide_keeps_the_top_left():
    images = torch.arange(1.0, 10.0).view(9, 1, 1, 1).expand(9, 1, 28, 28)
    canvas = tile(images, 3)[0, 0]  # crops of 10, 10 and 8 pixels
    assert canvas.shape == (28, 28)
    for i, j in ((0, 0), (9, 19), (10, 9), (19, 20), (20, 0), (27, 27)):
        assert canvas[i, j] == 1 + 3 * (i // 10) + j // 10


def test_random_rows_are_of_the_class_and_never_twice(toy_data, global_generators_untouched):
    data = toy_data(per_class=12)
    rows = random_rows(data, 8, seed=0)
    assert rows.shape == (3, 8)
    for label, mine in enumerate(rows):
        assert len(set(mine.tolist())) == 8
        assert data.labels[mine].unique().tolist() == [label]
    assert torch.equal(rows, random_rows(data, 8, seed=0))
    assert not torch.equal(rows, random_rows(data, 8, seed=1))
    assert sorted(random_rows(data, 12, seed=5)[1].tolist()) == data.of_class(1).tolist()


def test_cluster_class_picks_one_image_of_each_planted_group(global_generators_untouched):
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(60) % 6
    mine = torch.rand(6, 1, 8, 8, generator=rng)[group] + 0.05 * torch.randn(60, 1, 8, 8, generator=rng)
    other = torch.rand(20, 1, 8, 8, generator=rng)
    data = LabeledImages(torch.cat([other, mine]), torch.tensor([0] * 20 + [1] * 60), 2)
    clusters = cluster_class(data, 1, 6, seed=0, embed=pixels)
    assert data.labels[clusters.representatives].tolist() == [1] * 6
    assert sorted(group[clusters.representatives - 20].tolist()) == list(range(6))
    assert clusters.members.tolist() == list(range(20, 80))
    # the nearest to each centre, by brute force in float64
    for cluster, row in enumerate(clusters.representatives.tolist()):
        mates = [i for i in range(60) if clusters.clustering.assignment[0, i] == cluster]
        points = mine.flatten(1).double()
        center = points[mates].mean(0)
        assert row - 20 == min(mates, key=lambda i: float((points[i] - center).norm()))


def test_cluster_class_sees_a_pool_of_the_class_only(toy_data):
    data = toy_data(per_class=30)
    clusters = cluster_class(data, 2, 4, seed=0, embed=pixels, pool=10)
    assert len(clusters.members) == len(clusters.features) == 10
    assert data.labels[clusters.members].unique().tolist() == [2]
    assert set(clusters.representatives.tolist()) <= set(clusters.members.tolist())


def test_fill_puts_each_class_on_its_own_canvases(toy_data):
    data = toy_data(per_class=12)
    rows = random_rows(data, 8, seed=0)
    synthetic = fill(data, rows, ipc=2, factor=2, rule="single")
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (synthetic.ipc, synthetic.factor, synthetic.rule) == (2, 2, "single")
    for label in range(3):
        for canvas in range(2):
            mine = data.images[rows[label, 4 * canvas : 4 * canvas + 4]]
            np.testing.assert_allclose(
                synthetic.canvases[2 * label + canvas].numpy(), canvas_by_numpy(mine, 2, "area"), rtol=1e-6
            )


def test_fill_at_factor_one_is_the_images_themselves(toy_data):
    data = toy_data()
    rows = random_rows(data, 3, seed=0)
    assert torch.equal(fill(data, rows, 3, 1, "single").canvases, data.images[rows.flatten()])


def test_fill_lays_mixed_factors_out_as_decode_reads_them():
    """40 canvases under 'bound' at factor 3: nine of 3×3, four of 2×2, 27 whole; constant images survive the trip."""
    count = images_needed(40, 3, "bound")
    assert count == 9 * 9 + 4 * 4 + 27
    shades = (torch.arange(count) + 1.0).div(count).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)
    data = LabeledImages(shades.contiguous(), torch.zeros(count, dtype=torch.long), 1)
    images, _ = fill(data, torch.arange(count)[None], 40, 3, "bound").decode()
    torch.testing.assert_close(images, data.images)


@pytest.mark.parametrize(("bounded", "mean", "std"), [(True, 0.5, 0.25), (False, 0.0, 1.0)])
def test_noise_is_about_grey_within_bounds_and_standard_normal_without(
    bounded, mean, std, toy_data, toy_info, global_generators_untouched
):
    info = toy_info(channels=3, size=32) if bounded else toy_info(channels=3, size=32).unbounded()
    data = toy_data(per_class=1, channels=3, size=32)
    made = noise(data, info, ipc=20, factor=2, rule="single", seed=0)
    assert made.canvases.shape == (60, 3, 32, 32)
    pixels = made.canvases.flatten().double().numpy()
    low, high = (0, 1) if bounded else (-np.inf, np.inf)
    assert pixels.min() >= low and pixels.max() <= high
    # The share below each of these is a normal distribution's, also where it is clamped.
    for z in (-1.9, -1.0, 0.0, 0.5, 1.9):
        assert (pixels <= mean + z * std).mean() == pytest.approx((1 + math.erf(z / math.sqrt(2))) / 2, abs=0.005)
    assert torch.equal(made.canvases, noise(data, info, 20, 2, "single", seed=0).canvases)
    assert not torch.equal(made.canvases, noise(data, info, 20, 2, "single", seed=1).canvases)


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ipc", "factor", "fits"), [(3, 2, True), (4, 2, False), (12, 1, True), (13, 1, False)])
def test_an_ipc_the_data_cannot_fill_is_refused(ipc, factor, fits, toy_data, toy_info):
    data, info = toy_data(per_class=12), toy_info()
    if fits:
        check_budget(data, info, ipc, factor)
        return
    with pytest.raises(ValueError, match=r".+") as caught:
        check_budget(data, info, ipc, factor)
    message = str(caught.value)
    for part in (f"ipc {ipc}", f"needs {ipc * factor**2}", "class 'a' of toy has 12", f"ipc ≤ {12 // factor**2}"):
        assert part in message
    assert "\n" not in message


def test_the_class_that_is_short_is_the_one_named(toy_info):
    data = LabeledImages(torch.zeros(9, 1, 8, 8), torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2]), 3)
    with pytest.raises(ValueError, match=r"class 'b' of toy has 1 .*ipc ≤ 1"):
        check_budget(data, toy_info(), 2, 1)


@pytest.mark.parametrize(("factor", "fits"), [(4, True), (5, False), (9, False)])
def test_a_factor_that_leaves_no_crop_is_refused(factor, fits, toy_data, toy_info):
    data, info = toy_data(per_class=100), toy_info()
    if fits:
        check_budget(data, info, 1, factor)
        return
    with pytest.raises(ValueError, match=rf"factor {factor} leaves {8 // factor} pixels.*at least 2.*factor ≤ 4"):
        check_budget(data, info, 1, factor)


def test_noise_needs_pixels_and_no_images(toy_data, toy_info):
    data, info = toy_data(per_class=3), toy_info()
    with pytest.raises(ValueError, match=r"needs 4 real images.*: choose a smaller factor or validation split"):
        check_budget(data, info, 1, 2)
    check_budget(data, info, 1, 2, init="noise")
    with pytest.raises(ValueError, match="leaves 1 pixels"):
        check_budget(data, info, 1, 8, init="noise")


def test_bound_needs_what_it_decodes_to(toy_data, toy_info):
    data, info = toy_data(per_class=124), toy_info()
    check_budget(data, info, 40, 3, "bound")
    with pytest.raises(ValueError, match="needs 360"):
        check_budget(data, info, 40, 3, "single")
    with pytest.raises(ValueError, match="needs 124 real images") as caught:
        check_budget(toy_data(per_class=123), info, 40, 3, "bound")
    advised = int(str(caught.value).split("choose ipc ≤ ")[1].split(",")[0])
    assert images_needed(advised, 3, "bound") <= 123
