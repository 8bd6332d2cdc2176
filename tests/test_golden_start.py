"""What canvases start from, against the released code of DREAM (k-means, packing) and of IDC (noise)."""

import pytest
import torch
from golden_numbers import assert_near, golden, plain_info

from dreamlib.data.types import LabeledImages
from dreamlib.sampling import kmeans as clustering
from dreamlib.sampling import representatives
from dreamlib.sampling.kmeans import Clustering, kmeans, squared_distances
from dreamlib.sampling.representatives import ReleasedSampler, cluster_class
from dreamlib.synthetic.decode import decode, tile
from dreamlib.synthetic.initial import fill, noise

TOLERANCE = 1e-9
TABLES = ("blobs", "loose")


def from_given_centres(numbers, **options):
    """k-means of recorded features from recorded centres, an empty cluster left empty."""
    points, centres = numbers["features"].unsqueeze(0), numbers["start_centres"].unsqueeze(0)
    options = {"max_iterations": 100, "start": centres, "keep_empty": True, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "TOLERANCE", 0.0)
        return kmeans(points, centres.shape[1], torch.Generator(), **options)


def of_one_class(features):
    """Features (n, D) as images of one class, one row of pixels each."""
    return LabeledImages(features.view(len(features), 1, 1, -1), torch.zeros(len(features), dtype=torch.long), 1)


def as_features(images):
    return images.flatten(1)


# ---- k-means --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_lloyds_steps_from_given_centres(table):
    numbers = golden("initialisation", f"kmeans.{table}.")
    assert torch.equal(numbers["start_centres"], numbers["features"][numbers["start_rows"]])
    once = from_given_centres(numbers, max_iterations=1)
    assert_near(once.centers[0], numbers["centres_after_1_step"], TOLERANCE)
    steps = from_given_centres(numbers, max_iterations=int(numbers["steps"]))
    assert_near(steps.centers[0], numbers["centres"], TOLERANCE)
    whole = from_given_centres(numbers)
    assert_near(whole.centers[0], numbers["centres"], TOLERANCE)
    assert torch.equal(whole.assignment[0], numbers["assignment"])
    assert_near(
        squared_distances(numbers["features"][None], whole.centers)[0].T.sqrt(), numbers["distances"], TOLERANCE
    )


def test_an_empty_clusters_centre_goes_to_the_origin_and_stays():
    numbers = golden("initialisation", "kmeans.empty.")
    result = from_given_centres(numbers)
    assert_near(result.centers[0], numbers["centres"], TOLERANCE)
    assert torch.equal(result.assignment[0], numbers["assignment"])
    assert 2 not in result.assignment
    assert torch.equal(squared_distances(numbers["features"][None], result.centers)[0].argmin(0), numbers["chosen"])


# ---- picks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [*TABLES, "empty"])
def test_the_nearest_of_all_is_picked_for_each_centre(table, monkeypatch):
    numbers = golden("initialisation", f"kmeans.{table}.")
    start = numbers["start_centres"].float().unsqueeze(0)
    monkeypatch.setattr(
        representatives, "kmeans", lambda *points, **options: kmeans(*points, **{**options, "start": start})
    )
    result = cluster_class(of_one_class(numbers["features"]), 0, start.shape[1], 0, as_features, pick="released")
    assert torch.equal(result.representatives, numbers["chosen"])


def test_two_centres_may_pick_the_same_image(monkeypatch):
    numbers = golden("initialisation", "nearest.")
    centres = numbers["centres"].float().unsqueeze(0)
    assignment = torch.zeros(1, len(numbers["features"]), dtype=torch.long)
    monkeypatch.setattr(representatives, "kmeans", lambda *_, **__: Clustering(centres, assignment, torch.zeros(1), 1))
    result = cluster_class(of_one_class(numbers["features"]), 0, 3, 0, as_features, pick="released")
    assert result.representatives.tolist() == numbers["chosen"].tolist() == [1, 1, 5]


@pytest.mark.parametrize("table", TABLES)
def test_the_three_nearest_of_all_make_a_real_batch(table, monkeypatch):
    numbers = golden("initialisation", f"kmeans.{table}.")
    given = numbers["start_centres"].float().unsqueeze(0)
    monkeypatch.setattr(
        representatives, "kmeans", lambda *args, start, **options: kmeans(*args, start=given, **options)
    )
    sampler = ReleasedSampler(of_one_class(numbers["features"]), batch=12, seed=0, per_cluster=3)
    sampler.prepare(0, as_features)
    assert torch.equal(sampler.rows(0, 0).view(4, 3), numbers["chosen_three_nearest"])
    assert len(numbers["chosen_three_nearest"].unique()) < 12  # two centres share an image


# ---- packing --------------------------------------------------------------------------------------------------------


def cells_of_decoding(side, factor):
    """Start and size along a side of what ``decode`` cuts a canvas into, found by marking one row after the other."""
    blank, results = torch.zeros(1, 1, side, side), []
    for row in range(side):
        marked = blank.clone()
        marked[..., row, 0] = 1.0
        changed = (decode(marked, factor) != decode(blank, factor)).flatten(1).any(1)
        results.append(int(changed.nonzero()) // factor)
    return [[results.index(cell), results.count(cell)] for cell in range(factor)]


@pytest.mark.parametrize(
    ("side", "factor"),
    [
        (28, 2),
        (32, 2),
    ],
)
def test_packing_by_nearest_neighbour(side, factor):
    numbers = golden("initialisation", f"pack.side{side}.f{factor}.")
    assert numbers["cells"].tolist() == cells_of_decoding(side, factor)
    assert torch.equal(tile(numbers["images"], factor, "nearest"), numbers["canvas"])


def test_packing_all_but_the_last_row_and_column_of_cells():
    """A difference on purpose, at 32 pixels and factor 3: the last cells are cut where the released ones are shrunk.

    Both begin at 0, 11 and 22, as decoding cuts; the last has 10 pixels, for which the released code shrinks the image
    further than the others, and ours leaves out the eleventh.
    """
    numbers = golden("initialisation", "pack.side32.f3.")
    assert numbers["cells"].tolist() == cells_of_decoding(32, 3)
    whole = tile(numbers["images"], 3, "nearest")[..., :22, :22]
    assert torch.equal(whole, numbers["canvas"][..., :22, :22])


def test_packing_where_the_released_cells_are_not_those_of_its_decoder():
    """A difference on purpose, at 28 pixels and factor 3: our cells are the ones that decoding cuts out.

    The released cells begin at 0, 10 and 19, its decoder cuts at 0, 10 and 20 as ours does: row 19 is shown by the
    crop above the image it was taken from.
    """
    numbers = golden("initialisation", "pack.side28.f3.")
    ours = tile(torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 28, 28), 3, "nearest")[0, 0, :, 0] // 3
    cut = torch.cat([torch.full((size,), cell) for cell, (_, size) in enumerate(cells_of_decoding(28, 3))])
    released = torch.cat([torch.full((size,), cell) for cell, (_, size) in enumerate(numbers["cells"].tolist())])
    assert ours.tolist() == cut.tolist()
    assert (released != cut).nonzero().flatten().tolist() == [19]
    # The first cell is the same in both, and takes the same pixels.
    canvas = tile(numbers["images"], 3, "nearest")
    assert torch.equal(canvas[..., :10, :10], numbers["canvas"][..., :10, :10])
    assert not torch.equal(canvas, numbers["canvas"])


@pytest.mark.parametrize("factor", [2, 3])
def test_images_are_packed_cell_by_cell_as_released_once_reordered(factor):
    """The released code fills the first cell of all canvases, then the second; ours fills canvas after canvas."""
    released = golden("initialisation", f"pack.side32.f{factor}.cell_image")[""]
    count, side = released.numel(), 32
    assert torch.equal(released, torch.arange(count).view(factor, factor, 2).permute(2, 0, 1))
    shades = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, side, side) / count
    data = LabeledImages(shades.contiguous(), torch.zeros(count, dtype=torch.long), 1)
    packed = fill(data, released.view(1, -1), 2, factor, "single", "nearest")
    starts = [start for start, _ in cells_of_decoding(side, factor)]
    corners = packed.canvases[:, 0][:, starts][:, :, starts]  # (2, factor, factor)
    assert torch.equal(corners, released / count)


# ---- noise ----------------------------------------------------------------------------------------------------------


def test_noise_is_a_quarter_of_a_normal_draw_about_a_half_clamped(monkeypatch):
    numbers = golden("initialisation", "noise.")
    monkeypatch.setattr(torch, "randn", lambda shape, generator: numbers["normal_draws"].view(shape))
    images = torch.zeros(1, 1, 4, 4)
    data, info = LabeledImages(images, torch.zeros(1, dtype=torch.long), 1), plain_info(images, 1)
    made = noise(data, info, ipc=2, factor=1, rule="single", seed=0)
    assert_near(made.canvases, numbers["canvases"], 1e-7)
    assert {0.0, 1.0} <= set(made.canvases.flatten().tolist())
