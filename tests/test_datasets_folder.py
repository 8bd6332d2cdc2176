"""A user's own folder: layouts, image kinds, statistics, and errors that help."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import DataError, create, data_hash

RED, BLACK = (255, 0, 0), (0, 0, 0)


def save(path, colour=RED, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def two_classes(tmp_path):
    for row in range(10):
        save(tmp_path / "photos" / "apples" / f"{row}.png", RED)
        save(tmp_path / "photos" / "pears" / f"{row}.jpg", BLACK)
    return tmp_path / "photos"


def test_classes_are_the_sorted_folders_and_a_fixed_part_of_each_is_the_test_set(two_classes):
    dataset = create("folder", {"path": str(two_classes), "size": 4, "test_fraction": 0.3})
    train, test = dataset.load("train"), dataset.load("test")
    assert dataset.info.classes == ("apples", "pears")
    assert (train.labels.bincount().tolist(), test.labels.bincount().tolist()) == ([7, 7], [3, 3])
    assert train.pixels(train.of_class(0))[:, 0].min() == 1  # apples are red
    halves = [{path for files in dataset.layout(split).values() for path in files} for split in ("train", "test")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(dataset.paths("")) == {p for p in two_classes.rglob("*") if p.is_file()}
    # One more image may enter the test set or push one out; the rest must stay where they were.
    save(two_classes / "apples" / "one more.png")
    after = {path for files in dataset.layout("test").values() for path in files}
    assert len(after ^ halves[1]) <= 2


def test_statistics_are_those_of_the_training_part_and_follow_changes(two_classes):
    dataset = create("folder", {"path": str(two_classes), "size": 4})
    images = dataset.load("train").pixels().double()
    assert dataset.info.mean == pytest.approx(images.mean(dim=(0, 2, 3)).tolist())
    assert dataset.info.std[0] == pytest.approx(images[:, 0].std(correction=0).item())
    assert dataset.info.std[1:] == (1.0, 1.0)  # no green, no blue anywhere: left unscaled
    assert dataset.info.normalise(images).isfinite().all()
    save(dataset.layout("train")["apples"][0], (255, 0, 255))
    assert dataset.info.mean[2] > 0


def test_grey_sixteen_bit_transparent_turned_and_oblong_images_come_out_right(tmp_path):
    root = tmp_path / "kinds"
    for split in ("train", "test"):
        for label in ("a", "b"):
            save(root / split / label / "0.png")
    deep = np.full((8, 8), 128 * 256, np.uint16)
    Image.fromarray(deep).save(root / "train" / "a" / "1 deep.png")
    save(root / "train" / "a" / "2 clear.png", (0, 0, 0, 0), mode="RGBA")
    oblong = np.zeros((8, 24, 3), np.uint8)
    oblong[:, 8:16] = 255
    Image.fromarray(oblong).save(root / "train" / "a" / "3 oblong.png")
    turned = np.zeros((8, 8, 3), np.uint8)
    turned[0] = 255  # bright at the top as stored; orientation 3 means upside down
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(turned).save(root / "train" / "a" / "4 turned.png", exif=exif)
    for channels in (1, 3):
        dataset = create("folder", {"path": str(root), "size": 8, "channels": channels})
        images = dataset.load("train").pixels()
        assert images.shape == (6, channels, 8, 8)
        assert images[1].unique().tolist() == pytest.approx([128 / 255])
        assert images[2].unique().tolist() == [1]
        assert images[3].unique().tolist() == [1]
        assert images[4, 0, :, 0].tolist() == [0] * 7 + [1]


def test_a_relative_path_is_found_from_the_root_and_from_below_it(two_classes, monkeypatch):
    for start in (two_classes.parent, two_classes / "apples"):
        monkeypatch.chdir(start)
        assert create("folder", {"path": "photos"}).folder() == two_classes
    with pytest.raises(DataError, match=r"no folder fotos in .* or above it"):
        create("folder", {"path": "fotos"}).load("train")


def test_hash_follows_the_images(two_classes):
    options = {"path": str(two_classes)}
    before = data_hash("folder", "", options)
    assert data_hash("folder", "", options) == before
    save(two_classes / "pears" / "0.jpg", RED)
    assert data_hash("folder", "", options) != before


def test_fetching_lists_the_images_where_dvc_looks(two_classes, tmp_path):
    folder = create("folder", {"path": str(two_classes)})
    paths = folder.fetch(tmp_path / "data")
    listed = tmp_path / "data" / "folder" / "images.md5"
    by_hand = {hashlib.md5(p.read_bytes()).hexdigest() + "  " + p.relative_to(two_classes).as_posix() for p in paths}
    first = listed.read_bytes()
    assert set(first.decode().splitlines()) == by_hand and len(by_hand) == len(paths)
    save(paths[0], (0, 255, 0))
    folder.fetch(tmp_path / "data")
    assert listed.read_bytes() != first


def test_all_unreadable_files_are_listed_in_one_error(two_classes):
    whole = (two_classes / "pears" / "3.jpg").read_bytes()
    (two_classes / "pears" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (two_classes / "apples" / "4.png").write_text("not an image")
    (two_classes / "apples" / "notes.txt").write_text("no image's suffix, ignored")
    (two_classes / "apples" / ".DS_Store").write_text("hidden, ignored")
    dataset = create("folder", {"path": str(two_classes)})
    messages = ""
    for split in ("train", "test"):
        try:
            dataset.load(split)
        except DataError as error:
            messages += str(error)
    assert all(name in messages for name in ("3.jpg", "4.png"))
    assert "notes.txt" not in messages and ".DS_Store" not in messages


def test_a_long_list_of_unreadable_files_is_cut_at_ten_with_the_count(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            save(tmp_path / split / label / "good.png")
    for row in range(13):
        (tmp_path / "train" / "a" / f"bad{row:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match="13 files are not readable images") as refused:
        create("folder", {"path": str(tmp_path)}).fetch("")
    assert str(refused.value).count("\n  - ") == 10
    assert "and 3 more" in str(refused.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "at least two class folders with images in them; found: none"),
        (["only/1.png", "only/2.png"], "at least two class folders .* found: only"),
        (["a/1.png", "b/1.png", "b/2.png"], r"a has 1 images, 0 of them for testing at test_fraction 0.2"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "only one has b, c"),
    ],
)
def test_unfit_layouts_are_explained(tmp_path, files, message):
    for file in files:
        save(tmp_path / file)
    with pytest.raises(DataError, match=message):
        create("folder", {"path": str(tmp_path)}).load("train")


def test_an_empty_class_is_named(two_classes):
    (two_classes / "plums").mkdir()
    with pytest.raises(DataError, match="no images in plums"):
        create("folder", {"path": str(two_classes)}).load("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the option path"),
        ({"path": "x", "channels": 4}, r"channels is 4; choose 1 \(grey\) or 3"),
        ({"path": "x", "size": 0}, "size is 0; it must be at least 1"),
        ({"path": "x", "test_fraction": 1.0}, r"test_fraction is 1.0; it must lie between 0 and 1"),
    ],
)
def test_options_are_validated_at_the_door(options, message):
    with pytest.raises(ValueError, match=message):
        create("folder", options)
