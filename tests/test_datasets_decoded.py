"""A folder's decoded images on disk: decoded once, never trusted for other files, and done without where need be."""

import concurrent.futures
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlib.data import DataError, create, decoded, info, load_split
from dreamlib.data import folder as folder_module
from dreamlib.data.decoded import moments


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten noisy images, and what they hold: (20, 3, 8, 8)."""
    rng, images = np.random.default_rng(0), []
    for label in ("apples", "pears"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for row in range(10):
            images.append(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            Image.fromarray(images[-1]).save(tmp_path / "photos" / label / f"{row}.png")
    return tmp_path / "photos", torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture
def decodings(monkeypatch):
    """The files decoded so far; every test begins as a process does, with nothing remembered."""
    seen, decode = [], folder_module.decode
    monkeypatch.setattr(folder_module, "decode", lambda path, *how: seen.append(path.name) or decode(path, *how))
    forget()
    yield seen
    forget()


def forget():
    decoded.contents.cache_clear()
    folder_module._statistics.cache_clear()


def options(root, **more):
    return {"path": str(root), "size": 8, **more}


def rows_of(dataset, split):
    """The rows of a split among all images."""
    files = [path for paths in dataset.layout(split).values() for path in paths]
    return [int(path.stem) + 10 * (path.parent.name == "pears") for path in files]


def test_the_second_process_decodes_nothing_and_sees_the_same(photos, decodings, tmp_path):
    root, _ = photos
    seen = []
    for _ in range(2):
        forget()
        known = info("folder", options(root), tmp_path / "data")
        train, held, test = (
            load_split("folder", s, tmp_path / "data", 2, 0, options(root)) for s in ("train", "validation", "test")
        )
        seen.append((known, train, held, test))
        assert sorted(decodings) == sorted(f"{row}.png" for row in range(10) for _ in "ab"), "each file once"
    (known, *first), (again, *second) = seen
    assert known == again
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.images.dtype == other.images.dtype == torch.uint8
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".decoded"]
    assert len(list((tmp_path / "data" / ".decoded").iterdir())) == 2, "a file for each split, no scratch files"


def test_what_is_kept_is_what_is_decoded(photos, tmp_path):
    root, images = photos
    dataset = create("folder", options(root, test_fraction=0.5))
    for _ in range(2):
        forget()
        for split in ("train", "test"):
            rows = rows_of(dataset, split)
            assert torch.equal(dataset.load(split, tmp_path / "data").images, images[rows])
            assert torch.equal(dataset.load(split).images, images[rows])


def test_a_changed_file_is_seen_even_under_its_old_size_and_time(photos, decodings, tmp_path):
    root, _ = photos
    dataset = create("folder", options(root))
    path = dataset.layout("train")["apples"][0]
    for image in (np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)):
        Image.fromarray(image).save(path, compress_level=0)
        os.utime(path, ns=(10**18, 10**18))
        forget()  # as the next process does
        assert dataset.load("train", tmp_path / "data").images[0].unique().tolist() == [image[0, 0, 0]]
        assert dataset.info_in(tmp_path / "data").mean == create("folder", options(root)).info.mean


@pytest.mark.parametrize(
    "change", ["size", "channels", "added", "removed", "test_fraction", "renamed", "Pillow", "copied"]
)
def test_another_setting_or_set_of_files_is_decoded_anew(change, photos, decodings, tmp_path, monkeypatch):
    root, _ = photos
    more = {"size": {"size": 4}, "channels": {"channels": 1}, "test_fraction": {"test_fraction": 0.5}}.get(change, {})
    create("folder", options(root)).load("train", tmp_path / "data")
    first = create("folder", options(root)).layout("train")["apples"][0]
    if change == "added":
        shutil.copy(first, root / "apples" / "more.png")
    if change == "removed":
        first.unlink()
    if change == "renamed":
        first.rename(first.with_name("x.png"))
    if change == "Pillow":
        monkeypatch.setattr(folder_module.PIL, "__version__", "0")
    if change == "copied":
        root = shutil.copytree(root, tmp_path / "copy")
    forget()
    dataset = create("folder", options(root) | more)
    found = dataset.load("train", tmp_path / "data")
    forget()
    assert torch.equal(found.images, dataset.load("train").images)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other", "empty"])
def test_a_damaged_file_is_made_again(damage, photos, decodings, tmp_path):
    root, _ = photos
    dataset = create("folder", options(root))
    whole = dataset.load("train", tmp_path / "data").images
    (kept,) = (tmp_path / "data" / ".decoded").iterdir()
    content = bytearray(kept.read_bytes())
    content[-100] ^= 1
    kept.unlink()
    kept.write_bytes({"truncated": content[:-200], "flipped": content, "other": b"not one", "empty": b""}[damage])
    assert torch.equal(dataset.load("train", tmp_path / "data").images, whole)
    before = len(decodings)
    dataset.load("train", tmp_path / "data")
    assert len(decodings) == before, "and kept again"


def test_where_nothing_can_be_written_images_are_decoded_every_time(photos, decodings, tmp_path):
    root, _ = photos
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".decoded").write_text("a file where the folder should be")
    dataset = create("folder", options(root))
    runs = [dataset.load("train", tmp_path / "data").images for _ in range(2)]
    assert torch.equal(*runs) and len(decodings) == 32
    assert (tmp_path / "data" / ".decoded").read_text().startswith("a file")


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_scratch(photos, decodings, tmp_path, monkeypatch):
    root, _ = photos
    dataset = create("folder", options(root))
    dataset.load("train", tmp_path / "data")
    (kept,) = (tmp_path / "data" / ".decoded").iterdir()
    before = kept.read_bytes()

    def full(tensors, path, about):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "save_file", full)
    shutil.rmtree(root / "apples")
    shutil.copytree(root / "pears", root / "plums")
    assert len(dataset.load("train", tmp_path / "data")) == 16
    assert kept.read_bytes() == before and list(kept.parent.iterdir()) == [kept]


def test_several_at_once_leave_one_whole_file(photos, tmp_path):
    root, images = photos
    dataset = create("folder", options(root))
    rows = rows_of(dataset, "train")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # they share no file but the finished one
        found = list(pool.map(lambda _: dataset.load("train", tmp_path / "data").images, range(8)))
    assert all(torch.equal(each, images[rows]) for each in found)
    assert len(list((tmp_path / "data" / ".decoded").iterdir())) == 1


def test_images_that_change_while_they_are_read_are_not_kept(photos, tmp_path, monkeypatch):
    root, _ = photos
    dataset, decode = create("folder", options(root)), folder_module.decode
    first = dataset.layout("train")["apples"][0]

    def changing(path, *how):
        Image.new("RGB", (9, 9)).save(first)
        return decode(path, *how)

    monkeypatch.setattr(folder_module, "decode", changing)
    with pytest.raises(DataError, match="changed while they were read: run again"):
        dataset.load("train", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_moments_are_exact_and_the_same_in_chunks(monkeypatch):
    images = torch.randint(256, (37, 2, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wide = images.numpy().astype(np.float64) / 255
    mean, std = moments(images)
    np.testing.assert_allclose(mean.numpy(), wide.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(std.numpy(), wide.std((0, 2, 3)), rtol=1e-14)
    monkeypatch.setattr(decoded, "CHUNK", 5)
    assert all(torch.equal(a, b) for a, b in zip(moments(images), (mean, std), strict=True))
    huge = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4096, 4096)
    assert [float(part) for part in moments(huge)] == [0.5, 0.5]


def test_given_statistics_are_taken_and_no_image_is_decoded_for_them(photos, decodings):
    root, _ = photos
    cifar = info("cifar10")
    numbers = {"mean": [0.1, 0.2, 1], "std": [0.5, 1, 0.25]}
    for given, mean, std in (
        ({"like": "cifar10"}, cifar.mean, cifar.std),
        (numbers, (0.1, 0.2, 1.0), (0.5, 1.0, 0.25)),
    ):
        known = info("folder", options(root, **given))
        assert (known.mean, known.std, known.classes) == (mean, std, ("apples", "pears"))
    assert not decodings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, r"mean \[0.5, 0.5, 0.5\] and std \[\] need one number per channel: 3"),
        ({"mean": [0.5], "std": [0.5]}, r"need one number per channel: 3"),
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, r"pixels in \[0, 1\].* divide .* by 255"),
        ({"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, r"std above 0 and at most 1"),
        ({"mean": [0.5] * 3, "std": [0.5, math.nan, 0.5]}, r"std above 0 and at most 1"),
        ({"mean": 0.5, "std": 0.5}, r"option mean of data set 'folder': .*valid tuple.*got 0.5"),
        ({"like": "cifar10", "mean": [0.5] * 3, "std": [0.5] * 3}, r"like: cifar10 sets mean and std"),
        ({"like": "cifar1O"}, r"unknown data set 'cifar1O': did you mean 'cifar10'"),
        ({"like": "mnist"}, r"like: mnist has 1 channels, not 3; give mean and std"),
        ({"like": "folder"}, r"like: folder has no fixed statistics; choose a published data set"),
    ],
)
def test_statistics_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        create("folder", {"path": "x"} | given)


def test_images_that_do_not_fit_into_memory_are_refused_before_any_is_decoded(photos, decodings):
    with pytest.raises(
        DataError, match=r"for the images \(16 × 3 × 10,000,000 × .*\): they take .* GiB; choose a smaller size"
    ):
        create("folder", options(photos[0]) | {"size": 10**7}).load("train")
    assert not decodings
