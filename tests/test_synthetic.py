"""Decoding by hand, by numpy and by PIL; the file against its promises."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save as pack
from torch import nn
from torch.utils.data import DataLoader

import dreamlib
from dreamlib.synthetic import decode as decoding
from dreamlib.synthetic.decode import decode, formation, tile
from dreamlib.synthetic.synthetic_set import DecodedDataset, SyntheticSet

ROOT = Path(__file__).parents[1]
INFO = {"dataset": "toy", "classes": ["a", "b"], "mean": [0.4, 0.5], "std": [0.25, 0.2]}


def canvases(count, channels=2, height=8, width=8, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def a_set(**changes):
    """Two classes, two canvases each, factor 2; with every optional part when asked."""
    given = {"canvases": canvases(4), "labels": torch.tensor([0, 0, 1, 1]), "num_classes": 2, "factor": 2, "info": INFO}
    return SyntheticSet(**(given | changes))


# ---- decoding -------------------------------------------------------------------------------------------------------


def test_crops_are_row_major_and_enlarged_by_hand():
    canvas = torch.arange(16.0).view(1, 1, 4, 4) ** 2  # asymmetric in both directions
    double = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear ×2, align_corners off, edges clamped
    crops = [canvas[0, 0, i : i + 2, j : j + 2].numpy() for i in (0, 2) for j in (0, 2)]
    want = np.stack([double @ crop @ double.T for crop in crops])
    np.testing.assert_allclose(decode(canvas, 2)[:, 0].numpy(), want, rtol=1e-6)


def test_the_crops_of_one_canvas_follow_each_other_channels_apart():
    value = 100 * torch.arange(3.0).view(3, 1, 1, 1) + 10 * torch.arange(2.0).view(1, 2, 1, 1)
    quadrant = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    got = decode(value + quadrant, 2)  # (3·4, 2, 6, 6), each crop constant
    assert torch.equal(got.amin((2, 3)), got.amax((2, 3)))
    assert got[:, :, 0, 0].tolist() == [[100 * n + q, 100 * n + 10 + q] for n in range(3) for q in range(4)]


@pytest.mark.parametrize(("side", "factor"), [(28, 3), (8, 3), (7, 2), (28, 2), (9, 4), (6, 6)])
def test_decode_equals_pil_on_crops_padded_with_a_half(side, factor):
    canvas = canvases(1, 1, side, side)
    crop = math.ceil(side / factor)
    padded = np.full((crop * factor, crop * factor), 0.5, np.float32)
    padded[:side, :side] = canvas[0, 0].numpy()
    got = decode(canvas, factor)
    for number, image in enumerate(got[:, 0]):
        top, left = crop * (number // factor), crop * (number % factor)
        piece = Image.fromarray(padded[top : top + crop, left : left + crop])
        want = np.asarray(piece.resize((side, side), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(image.numpy(), want, atol=2e-6)
    assert len(got) == factor**2


def test_decode_keeps_a_rectangle_a_rectangle():
    got = decode(canvases(2, 3, 6, 10), 2)
    assert got.shape == (8, 3, 6, 10)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shrink", ["area", "nearest"])
def test_decode_undoes_tile_where_shrinking_loses_nothing(factor, shrink):
    constant = torch.rand(2 * factor**2, 3, 1, 1, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 8, 8)
    torch.testing.assert_close(decode(tile(constant, factor, shrink), factor), constant.contiguous())


def test_decode_is_differentiable_and_spreads_the_gradient_over_every_pixel():
    x = canvases(1, 1, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decode(x, 2), (x,))
    decode(x, 2).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))  # each crop pixel becomes 4 pixels' worth


# ---- formation ------------------------------------------------------------------------------------------------------


def bound_by_loop(ipc, factor, bound):
    """IDC's rule canvas by canvas: f² is paid, largest f first, out of what one image per canvas left leaves."""
    factors = []
    for f in range(factor, 0, -1):
        room = bound - sum(g**2 for g in factors) - (ipc - len(factors))
        while len(factors) < ipc and (f == 1 or room >= f**2):
            factors.append(f)
            room -= f**2
    return tuple(factors)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("bound", [10, 64, 128])
def test_bound_formation_equals_the_rule_as_a_loop(factor, bound, monkeypatch):
    monkeypatch.setattr(decoding, "BOUND", bound)
    for ipc in range(1, bound + 1):
        got = formation(ipc, factor, "bound")
        assert got == bound_by_loop(ipc, factor, bound), ipc
        assert len(got) == ipc
        assert list(got) == sorted(got, reverse=True)
        assert sum(f * f for f in got) <= bound


@pytest.mark.parametrize(
    ("ipc", "factor", "counts"),
    [(10, 3, (10, 0, 0)), (20, 3, (12, 3, 5)), (50, 3, (8, 3, 39)), (50, 2, (19, 31))],
)
def test_bound_formation_by_hand(ipc, factor, counts):
    # ipc 20: room 108 → 12 by 3 (108); room 128 − 108 − 8 = 12 → 3 by 2; 5 whole. ipc 50: 78 // 9 = 8; 14 // 4 = 3.
    assert tuple(formation(ipc, factor, "bound").count(f) for f in range(factor, 0, -1)) == counts


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"single, bound.*'bond'"):
        formation(1, 2, "bond")


# ---- the set --------------------------------------------------------------------------------------------------------


def test_decode_goes_class_by_class_and_mixes_factors():
    synthetic = SyntheticSet(canvases(80), torch.arange(2).repeat_interleave(40), 2, factor=3, rule="bound")
    images, labels = synthetic.decode()
    assert labels.tolist() == sorted(labels.tolist())
    assert labels.bincount().tolist() == [9 * 9 + 4 * 4 + 27] * 2  # 88 // 9 = 9; (128 − 81 − 31) // 4 = 4; 27 whole
    torch.testing.assert_close(images[: 9 * 9], decode(synthetic.canvases[:9], 3))
    assert torch.equal(images[-27:], synthetic.canvases[-27:])
    torch.testing.assert_close(synthetic.decode_class(1), images[labels == 1])


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_real_whatever_their_order_and_numbers(factor, soft, tmp_path):
    """Seven canvases of classes 4, 1, 4, 0, 1, 4, 4 of six: each image comes out with its own label."""
    labels = torch.tensor([4, 1, 4, 0, 1, 4, 4])
    shades = torch.arange(7 * factor**2).float() / 100  # one for each training image, in the order of the canvases
    stored = tile(shades.view(-1, 1, 1, 1).expand(-1, 2, 8, 8), factor)
    rows = torch.softmax(canvases(1, 1, 7 * factor**2, 6)[0, 0], 1)
    made = SyntheticSet(stored, labels, 6, factor, soft_labels=rows if soft else None, info={"bounded": True})
    made.save(tmp_path / "set")
    for one in (made, SyntheticSet.open(tmp_path / "set"), made.to("cpu")):
        images, classes = one.decode()
        came = [round(100 * image.mean().item()) for image in images]
        expected = [row * factor**2 + cell for row in (3, 1, 4, 0, 2, 5, 6) for cell in range(factor**2)]
        assert came == expected
        assert classes.tolist() == labels.repeat_interleave(factor**2)[expected].tolist()
        assert one.soft_labels is None or torch.equal(one.soft_labels, rows[expected])
        assert one.class_sizes == (1, 2, 0, 0, 4, 0) and one.ipc == pytest.approx(7 / 6)
        assert one.decoded_sizes == tuple(n * factor**2 for n in one.class_sizes)
        assert [len(one.canvases[one.rows_of_class(label)]) for label in range(6)] == list(one.class_sizes)
        assert torch.equal(one.decode_class(4), images[classes == 4]) and one.decode_class(2).shape == (0, 2, 8, 8)
        assert one.pictures().shape == stored.shape and one.metadata()["ipc"] == one.ipc


def test_the_rule_bound_cuts_each_class_by_its_own_number_of_canvases():
    labels = torch.cat([torch.zeros(20), torch.ones(1), torch.zeros(20)]).long()
    soft = torch.rand(124 + 9, 2, generator=torch.Generator().manual_seed(2)).softmax(1)
    stored = canvases(41)
    made = SyntheticSet(stored, labels, 2, factor=3, rule="bound", soft_labels=soft)
    assert made.decoded_sizes == (124, 9) and made.factors == (*formation(40, 3, "bound"), 3)
    images, classes = made.decode()
    assert classes.tolist() == [0] * 124 + [1] * 9
    torch.testing.assert_close(images[-9:], decode(stored[20:21], 3))
    first = sum(f * f for f in made.factors[:20])  # rows of soft labels before those of the canvas of class 1
    assert torch.equal(made.soft_labels, torch.cat([soft[:first], soft[first + 9 :], soft[first : first + 9]]))


def test_a_copy_with_other_canvases_reads_no_labels_again():
    made, moved = a_set(), a_set().to("meta")  # on this device nothing can be read
    replace(moved, canvases=torch.empty(4, 2, 8, 8, device="meta"), rule="bound")
    assert replace(made, labels=torch.tensor([1, 1, 1, 0])).class_sizes == (1, 3)
    assert replace(made, num_classes=3).class_sizes == (2, 2, 0)
    with pytest.raises(ValueError, match=r"for logits, store logits\.softmax"):
        replace(made, soft_labels=torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvases": canvases(4)[0]}, r"canvases must be .* \(N, C, H, W\) of floats; got torch\.float32 \(2, 8, 8\)"),
        ({"canvases": canvases(4).long()}, r"of floats; got torch\.int64"),
        ({"canvases": canvases(4)[:0], "labels": torch.arange(0)}, "at least one image"),
        ({"canvases": canvases(4).fill_(float("nan"))}, "512 of 512 numbers in canvases are infinite or not a"),
        ({"labels": torch.tensor([0, 0, 1])}, r"one per canvas \(4\); got torch\.int64 \(3,\)"),
        ({"labels": torch.tensor([0.0, 0, 1, 1])}, "probabilities belong in soft_labels"),
        ({"labels": torch.tensor([0, 0, 1, 2])}, r"labels must lie in \[0, 2\), the number of classes; got 0\.\.2"),
        ({"labels": torch.tensor([0, 0, 1, -1])}, r"got -1\.\.1"),
        ({"num_classes": 0}, "num_classes = 0 must be at least 1"),
        ({"factor": 0}, "factor = 0 must lie between 1 and the side of the canvases, 8"),
        ({"factor": 9}, "factor = 9 must lie between"),
        ({"factor": 3, "info": INFO | {"bounded": False}}, "factor = 3 does not divide the side of the 8×8 canvases"),
        ({"rule": "bond"}, "decode must be one of"),
        ({"soft_labels": torch.full((4, 2), 0.5)}, r"must be floats \(16, 2\), .*got torch\.float32 \(4, 2\)"),
        ({"soft_labels": torch.zeros(16, 2).long()}, r"one row per decoded image; got torch\.int64"),
        ({"soft_labels": torch.full((16, 2), 0.4)}, r"sums in \[0\.8, 0\.8\]; for logits, store logits\.softmax"),
        ({"soft_labels": torch.tensor([[1.5, -0.5]] * 16)}, r"got values in \[-0\.5, 1\.5\]"),
        ({"extras": {"lr": torch.tensor(float("inf"))}}, "1 of 1 numbers in lr are infinite"),
        ({"canvases": 3 * canvases(4), "info": INFO | {"bounded": True}}, r"pixels in \[0, 1\]; got \[0\.003708, 3\]"),
        ({"info": INFO | {"whitening": "pca"}}, "whitening must be 'none' or 'zca'; got 'pca'"),
        ({"info": INFO | {"whitening": "zca", "bounded": True}}, "whitened canvases have no bounds"),
        ({"info": INFO | {"mean": [0.5]}}, r"mean must be one number per channel \(2\)"),
        ({"info": INFO | {"std": [0.5, 0.0]}}, "std must be above 0"),
        ({"rule": "dct", "frequencies": torch.arange(17)}, "17 frequencies of 4 images do not fit into 8×8 canvases"),
        ({"rule": "dct", "frequencies": torch.tensor([3, 64])}, r"positions below 64, H·W; got 3\.\.64"),
    ],
)  # fmt: skip
def test_what_no_set_can_be_is_refused_where_it_is_made(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        a_set(**changes)
    assert "\n" not in str(caught.value)


def test_values_are_checked_again_when_a_set_is_written_and_opened(tmp_path):
    made = a_set()
    made.canvases = 2 * made.canvases
    with pytest.raises(ValueError, match=r"pixels in \[0, 1\]"):
        made.save(tmp_path / "set")
    assert not list(tmp_path.iterdir())
    for name, tensor in {"canvases": 2 * canvases(4), "soft_labels": torch.ones(16, 2)}.items():
        tensors = {"canvases": canvases(4), "labels": torch.tensor([0, 0, 1, 1])} | {name: tensor}
        (tmp_path / "file").write_bytes(pack(tensors, metadata={"dreamlib": json.dumps(OWN)}))
        with pytest.raises(
            ValueError, match=f"not a complete distilled set.*{'pixels in' if name == 'canvases' else name}"
        ):
            SyntheticSet.open(tmp_path / "file")


def test_every_committed_set_opens():
    paths = sorted((ROOT / "results").glob("**/sets/*.safetensors")) + sorted(
        (ROOT / "results/best").glob("*.safetensors")
    )
    for path in paths:
        made = SyntheticSet.open(path)
        assert made.labels.tolist() == sorted(made.labels.tolist()) and len(set(made.class_sizes)) == 1
    assert len(paths) > 3


def test_stored_floats_count_pixels_and_labels_and_learned_floats_the_rest():
    assert (a_set().stored_floats, a_set().learned_floats) == (4 * 2 * 8 * 8, 0)
    full = a_set(soft_labels=torch.full((16, 2), 0.5), extras={"lr": torch.tensor(0.1), "steps": torch.zeros(3)})
    assert (full.stored_floats, full.learned_floats) == (4 * 2 * 8 * 8 + 16 * 2, 1 + 3)


def test_save_and_open_round_trip_exactly(tmp_path):
    soft = torch.softmax(canvases(1, 1, 16, 2)[0, 0], 1)
    made = a_set(soft_labels=soft, extras={"lr": torch.tensor(0.1)})
    sha = made.save(tmp_path / "deep" / "set.safetensors")
    read = SyntheticSet.open(tmp_path / "deep" / "set.safetensors")
    for name in ("canvases", "labels", "soft_labels"):
        assert torch.equal(getattr(read, name), getattr(made, name)), name
    assert {k: v.item() for k, v in read.extras.items()} == {"lr": pytest.approx(0.1)}
    assert (read.num_classes, read.factor, read.rule, read.ipc) == (2, 2, "single", 2)
    assert sha == hashlib.sha256((tmp_path / "deep" / "set.safetensors").read_bytes()).hexdigest()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["set.safetensors"]  # no scratch file left


def test_the_same_set_is_the_same_bytes_also_after_a_round_trip(tmp_path):
    first = a_set().save(tmp_path / "a")
    assert a_set().save(tmp_path / "b") == first
    assert SyntheticSet.open(tmp_path / "a").save(tmp_path / "c") == first
    assert a_set(canvases=canvases(4).double().requires_grad_()).save(tmp_path / "d") == first  # stored as float32
    assert a_set(canvases=canvases(4, seed=1)).save(tmp_path / "e") != first


def test_the_file_says_what_it_is(tmp_path):
    a_set(soft_labels=torch.full((16, 2), 0.5)).save(tmp_path / "set")
    with safe_open(tmp_path / "set", "pt") as file:
        said = json.loads(file.metadata()["dreamlib"])
    assert said == INFO | {
        "format": "dreamlib-set-1",
        "num_classes": 2,
        "ipc": 2,
        "factor": 2,
        "decode": "single",
        "label_kind": "soft",
        "stored_floats": 4 * 2 * 64 + 32,
    }


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, -1])
def test_a_torn_file_is_refused_with_a_remedy(tmp_path, kept):
    path = tmp_path / "set"
    a_set().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"not a complete distilled set.*dvc repro"):
        SyntheticSet.open(path)


OWN = {"format": "dreamlib-set-1", "num_classes": 2, "factor": 2, "decode": "single"}


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        ("text", None),
        ({"weights": torch.zeros(3)}, None),
        ({"canvases": canvases(4)}, {"other": "1"}),
        ({"canvases": canvases(4)}, {"dreamlib": "not JSON"}),
        ({"canvases": canvases(4)}, {"dreamlib": "[]"}),
        ({"canvases": canvases(4), "labels": torch.zeros(4)}, {"dreamlib": json.dumps(OWN | {"format": "other-9"})}),
        ({"canvases": canvases(4), "labels": torch.zeros(4)}, {"dreamlib": json.dumps({"format": OWN["format"]})}),
        ({"weights": torch.zeros(3)}, {"dreamlib": json.dumps(OWN)}),
    ],
    ids=["text", "weights", "other key", "no JSON", "a list", "other format", "no keys", "no canvases"],
)
def test_a_foreign_file_is_refused_with_a_remedy(tmp_path, content, metadata):
    path = tmp_path / "set"
    path.write_bytes(b"dear diary, " * 20 if content == "text" else pack(content, metadata=metadata))
    with pytest.raises(ValueError, match=r"not a complete distilled set.*dvc repro"):
        SyntheticSet.open(path)


def test_a_missing_file_is_an_error_that_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        dreamlib.load(tmp_path / "nothing")


# ---- the set as a data set ------------------------------------------------------------------------------------------


def test_load_normalises_and_trains_in_an_ordinary_loop(tmp_path):
    x = torch.zeros(4, 2, 8, 8)
    x[2:] = 1.0  # class 1 is bright
    a_set(canvases=x).save(tmp_path / "set")
    data = dreamlib.load(tmp_path / "set")
    assert len(data) == 16
    assert data.set.ipc == 2
    dark, label = data[0]
    assert label == 0
    torch.testing.assert_close(dark.amax((1, 2)), torch.tensor([-0.4 / 0.25, -0.5 / 0.2]))
    network = nn.Sequential(nn.Flatten(), nn.Linear(128, 2))
    nn.init.zeros_(network[1].weight)
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.01), []
    for _ in range(5):
        for images, labels in DataLoader(data, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(0)):
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_normalised_canvases_are_given_as_stored_and_as_pixels_without_clipping(tmp_path):
    normalised = 4 * canvases(4) - 2  # mean and standard deviation of a channel: .4 and .25, .5 and .2
    a_set(canvases=normalised, factor=1, info=INFO | {"bounded": False}).save(tmp_path / "set")
    data = dreamlib.load(tmp_path / "set")
    assert not data.set.bounded and a_set().bounded
    assert torch.equal(data.images, normalised)
    pixels = torch.stack([normalised[:, 0] * 0.25 + 0.4, normalised[:, 1] * 0.2 + 0.5], 1)
    torch.testing.assert_close(dreamlib.load(tmp_path / "set", normalise=False).images, pixels)
    torch.testing.assert_close(data.set.as_pixels(normalised), pixels)
    assert pixels.min() < 0, "there is something that clipping would have changed"
    torch.testing.assert_close(
        DecodedDataset(a_set(canvases=pixels, factor=1)).images, normalised, msg="as a bounded set of the same pixels"
    )
    assert a_set().as_pixels(normalised) is normalised


def test_soft_labels_are_given_row_by_row(tmp_path):
    soft = torch.softmax(canvases(1, 1, 16, 2)[0, 0], 1)
    a_set(soft_labels=soft).save(tmp_path / "set")
    data = dreamlib.load(tmp_path / "set")
    assert torch.equal(torch.stack([data[i][1] for i in range(16)]), soft)
    images, labels = next(iter(DataLoader(data, batch_size=16)))
    assert math.isfinite(nn.functional.cross_entropy(images.mean((2, 3)), labels))


def test_pixels_as_they_are_need_no_statistics(tmp_path):
    bare = a_set(info={})
    bare.save(tmp_path / "set")
    assert torch.equal(dreamlib.load(tmp_path / "set", normalise=False).images, bare.decode()[0])
    with pytest.raises(ValueError, match="normalise=False"):
        DecodedDataset(bare)


def test_moving_a_set_moves_everything_and_shares_nothing_it_should_not():
    full = a_set(soft_labels=torch.full((16, 2), 0.5), extras={"lr": torch.tensor(0.1)})
    moved = full.to("meta")
    assert {t.device.type for t in (moved.canvases, moved.labels, moved.soft_labels, *moved.extras.values())} == {
        "meta"
    }
    assert full.canvases.device.type == "cpu"


def test_the_best_set_of_a_data_set_is_found_by_name_and_ipc(tmp_path, monkeypatch):
    (tmp_path / "results" / "best").mkdir(parents=True)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(FileNotFoundError, match=r"no set toy-ipc2 in results/best; available: none\."):
        dreamlib.load("toy", ipc=2)
    made = a_set()
    made.save(tmp_path / "results" / "best" / "toy-ipc2.safetensors")
    assert torch.equal(dreamlib.load("toy", ipc=2).set.canvases, made.canvases)
    with pytest.raises(FileNotFoundError, match=r"no set toy-ipc10 in results/best; available: toy-ipc2\."):
        dreamlib.load("toy", ipc=10)
    with pytest.raises(FileNotFoundError, match=r'no distilled set at toy.*or give an ipc: load\("toy", ipc=1\)'):
        dreamlib.load("toy")  # without ipc it is a path


def test_outside_a_project_the_best_sets_are_those_of_the_librarys_source_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dreamlib.load("fashion_mnist", ipc=1).set.info["dataset"] == "fashion_mnist"
