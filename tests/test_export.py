"""Sets of this library in the layouts of other codes: what those find there, and what comes back."""

import numpy as np
import pytest
import torch
from PIL import Image

import dreamlib
from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.whitening import ZCA
from dreamlib.sets import main
from dreamlib.synthetic.synthetic_set import DecodedDataset, SyntheticSet

ABOUT = {"bounded": True, "mean": [0.4, 0.5, 0.3], "std": [0.25, 0.3, 0.2], "classes": ["a/b", "c", "d"]}


def a_set(kind="packed"):
    """Four canvases of three classes: packed pixels, normalised or whitened images, and soft labels."""
    canvases = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, about, soft, factor = torch.tensor([2, 0, 1, 2]), dict(ABOUT), None, 2
    if kind != "packed":
        canvases, factor = 4 * canvases - 2, 1
        about["bounded"] = False
    if kind == "whitened":
        about |= {"mean": [0.0] * 3, "std": [1.0] * 3, "whitening": "zca", "zca_epsilon": 0.2}
    if kind == "soft":
        noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
        soft = (noise + 9 * torch.nn.functional.one_hot(labels, 3)).softmax(1)
    extras = {"step_size": torch.tensor(0.02)} if kind in ("soft", "whitened") else {}
    return SyntheticSet(canvases, labels, 3, factor, soft_labels=soft, extras=extras, info=about)


def target(folder, format):
    return folder / {"mtt": "mtt", "png": "png", "dc": "res_DC.pt", "npz": "set.npz"}[format]


@pytest.mark.parametrize(
    ("kind", "format"),
    [(k, f) for k in ("packed", "normalised", "soft", "whitened") for f in ("mtt", "dc", "npz")
     if f != "dc" or k not in ("soft", "whitened")],
)  # fmt: skip
def test_what_is_exported_comes_back(tmp_path, kind, format):
    made = a_set(kind)
    exported = dreamlib.export_set(made, target(tmp_path, format), format)
    back = dreamlib.import_set(target(tmp_path, format), **exported.read_back)
    ours, theirs = DecodedDataset(made), DecodedDataset(back)
    torch.testing.assert_close(theirs.images, ours.images, rtol=0, atol=1e-6)
    assert back.decode()[1].tolist() == made.decode()[1].tolist() and back.num_classes == 3
    torch.testing.assert_close(theirs.labels, ours.labels, rtol=0, atol=1e-6)
    assert (back.whitening, back.bounded) == (made.whitening, False)
    assert back.zca_epsilon == made.zca_epsilon and back.extras == made.extras
    again = back.save(tmp_path / "kept") and SyntheticSet.open(tmp_path / "kept")
    torch.testing.assert_close(again.canvases, back.canvases, rtol=0, atol=0)
    assert all(path.is_file() for path in exported.files)


def test_mtts_files_are_what_its_evaluation_loads(tmp_path):
    """Tensors for torch.load: float images, class numbers, or logits whose softmax DATM trains with; the rate."""
    dreamlib.export_set(a_set("packed"), tmp_path / "hard", "mtt")
    images, labels = (torch.load(tmp_path / "hard" / f"{name}_best.pt") for name in ("images", "labels"))
    assert (images.dtype, images.shape, labels.dtype) == (torch.float32, (16, 3, 8, 8), torch.int64)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 8 and not (tmp_path / "hard" / "lr.pt").exists()
    first = a_set().decode()[0][0]
    mean, std = (torch.tensor(ABOUT[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(images[0], (first - mean) / std)
    dreamlib.export_set(a_set("soft"), tmp_path / "soft", "mtt")
    logits, rate = (torch.load(tmp_path / "soft" / name) for name in ("labels_best.pt", "lr.pt"))
    torch.testing.assert_close(logits.softmax(1), a_set("soft").soft_labels)
    assert rate.item() == pytest.approx(0.02)


def test_labels_without_doubt_are_logits_without_infinity(tmp_path):
    made = SyntheticSet(torch.rand(2, 3, 8, 8), torch.arange(2), 2, soft_labels=torch.eye(2), info=ABOUT)
    exported = dreamlib.export_set(made, tmp_path / "mtt", "mtt")
    back = dreamlib.import_set(tmp_path / "mtt", **exported.read_back)
    torch.testing.assert_close(back.soft_labels, torch.eye(2))


def test_a_class_that_the_soft_labels_do_not_tell_is_kept_by_arrays_and_missed_by_mtts_files(tmp_path):
    made = SyntheticSet(torch.rand(2, 3, 8, 8), torch.arange(2), 2, soft_labels=torch.eye(2)[[1, 1]], info=ABOUT)
    for format, classes in (("npz", [0, 1]), ("mtt", [1, 1])):
        exported = dreamlib.export_set(made, target(tmp_path, format), format)
        back = dreamlib.import_set(target(tmp_path, format), **exported.read_back)
        assert back.labels.tolist() == classes
        assert any("the class of 1 images" in phrase for phrase in exported.lost) == (format == "mtt")


def test_dcs_file_is_what_its_readers_loop_over(tmp_path):
    dreamlib.export_set(a_set("normalised"), tmp_path / "res.pt", "dc")
    content = torch.load(tmp_path / "res.pt")
    ((images, labels),) = content["data"]
    assert torch.equal(images, a_set("normalised").canvases) and labels.tolist() == [0, 1, 2, 2]
    assert content["accs_all_exps"] == {}


def test_arrays_are_plain_numpy(tmp_path):
    dreamlib.export_set(a_set("soft"), tmp_path / "set.npz", "npz")
    with np.load(tmp_path / "set.npz") as arrays:
        assert sorted(arrays.files) == ["classes", "images", "labels", "mean", "soft_labels", "std"]
        assert arrays["images"].shape == (4, 3, 8, 8) and arrays["labels"].tolist() == [0, 1, 2, 2]
        assert arrays["classes"].tolist() == ["a/b", "c", "d"] and arrays["std"].tolist() == ABOUT["std"]


def test_pictures_lose_what_is_said_and_nothing_else(tmp_path):
    made = a_set("normalised")
    exported = dreamlib.export_set(made, tmp_path / "png", "png")
    pixels = made.as_pixels(made.canvases)
    outside = ((pixels < 0) | (pixels > 1)).float().mean().item()
    assert 0.1 < outside < 0.9 and any(f"{100 * outside:.1f} % of the numbers" in phrase for phrase in exported.lost)
    back = dreamlib.import_set(tmp_path / "png", **exported.read_back)
    torch.testing.assert_close(back.canvases, pixels.clamp(0, 1), rtol=0, atol=0.5 / 255 + 1e-6)
    assert back.labels.tolist() == [0, 1, 2, 2]
    theirs = torchvision.datasets.ImageFolder(tmp_path / "png")  # torchvision's reader numbers the classes alike
    assert theirs.targets == [0, 1, 2, 2] and np.asarray(theirs[0][0]).shape == (8, 8, 3)


def test_grey_pictures_and_ten_classes_keep_their_numbers(tmp_path):
    made = SyntheticSet(torch.rand(11, 1, 8, 8), torch.arange(11), 11, info={"bounded": True})
    exported = dreamlib.export_set(made, tmp_path / "png", "png")
    assert exported.files[2] == tmp_path / "png" / "02" / "00002.png"
    with Image.open(exported.files[2]) as picture:
        assert picture.mode == "L" and torchvision.datasets.ImageFolder(tmp_path / "png").targets == list(range(11))


def test_pictures_of_whitened_images_need_the_whitening(tmp_path):
    train = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    zca, made = ZCA.fit(train, 0.2), a_set("whitened")
    made.canvases = zca.apply(train[:4])
    with pytest.raises(ValueError, match=r"pass zca=ZCA\.fit\(training images, 0\.2\)"):
        dreamlib.export_set(made, tmp_path / "png", "png")
    assert not (tmp_path / "png").exists()
    exported = dreamlib.export_set(made, tmp_path / "png", "png", zca=zca)
    back = dreamlib.import_set(tmp_path / "png", **exported.read_back)
    torch.testing.assert_close(back.canvases, train[:4], rtol=0, atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize(
    ("kind", "format", "message"),
    [
        ("soft", "dc", r"soft labels: use format 'mtt', or drop them"),
        ("whitened", "dc", "this set is whitened: use format 'mtt'"),
        ("packed", "gif", "unknown format 'gif'"),
        ("bare", "npz", "does not specify the mean and std of its normalisation"),
        ("empty", "png", r"classes \[1\] have no image"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_written(tmp_path, kind, format, message):
    made = a_set("packed" if kind in ("bare", "empty") else kind)
    if kind == "bare":
        made.info = {}
    if kind == "empty":
        made = SyntheticSet(made.canvases[:2], torch.tensor([0, 2]), 3, info=ABOUT)
    with pytest.raises(ValueError, match=message):
        dreamlib.export_set(made, tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mtt").mkdir()
    (tmp_path / "mtt" / "images_best.pt").write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match="is not an empty folder: give the path of a new one"):
        dreamlib.export_set(a_set(), tmp_path / "mtt", "mtt")
    assert (tmp_path / "mtt" / "images_best.pt").read_bytes() == b"theirs"


def test_the_command_says_what_is_lost_and_how_to_read_it_back(tmp_path, capsys):
    a_set("packed").save(tmp_path / "ours.safetensors")
    assert main(["export", str(tmp_path / "ours.safetensors"), str(tmp_path / "mtt"), "--format", "mtt"]) == 0
    *written, packed, metadata, command = capsys.readouterr().out.splitlines()
    assert written == [str(tmp_path / "mtt" / f"{name}_best.pt") for name in ("images", "labels")]
    assert packed.startswith("not kept: that 16 images are stored as 4 canvases") and "metadata" in metadata
    arguments = command.removeprefix("read it back: python -m dreamlib.sets ").replace(
        "SET.safetensors", str(tmp_path / "back.safetensors")
    )
    assert main(arguments.split()) == 0
    back = SyntheticSet.open(tmp_path / "back.safetensors")
    torch.testing.assert_close(back.canvases, DecodedDataset(a_set()).images)
