"""Layouts of folders of images: those that are published or common are read, any other is refused by name."""

from pathlib import Path

import pytest
from PIL import Image

from dreamlib.data import DataError, create
from dreamlib.data.image_folders import find_layout


def lay(root, *names):
    """Make files: images where the name ends in one's suffix, else text."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpeg"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("text")
    return root


def names(layout, root):
    return {label: [Path(path).relative_to(root).as_posix() for path in files] for label, files in layout.items()}


def test_train_and_test_are_read_without_a_word(tmp_path, caplog):
    lay(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
    train, test = find_layout(tmp_path)
    assert names(train, tmp_path) == {"a": ["train/a/1.png"], "b": ["train/b/2.png"]}
    assert names(test, tmp_path) == {"a": ["test/a/3.png"], "b": ["test/b/4.png"]}
    assert caplog.messages == []


@pytest.mark.parametrize("half", ["val", "valid", "validation", "Val"])
def test_validation_images_are_the_test_half_where_there_is_no_other_and_this_is_said_once(tmp_path, half, caplog):
    lay(tmp_path, "train/a/1.png", "train/b/2.png", f"{half}/a/3.png", f"{half}/b/4.png")
    for _ in range(2):
        _, test = find_layout(tmp_path)
    assert names(test, tmp_path) == {"a": [f"{half}/a/3.png"], "b": [f"{half}/b/4.png"]}
    assert caplog.messages == [f"{tmp_path}: the test images are those of {half}/"]


def test_validation_images_beside_test_ones_are_left_out_and_this_is_said(tmp_path, caplog):
    lay(tmp_path, *(f"{half}/{label}/1.png" for half in ("train", "val", "test") for label in "ab"), "more/x.png")
    assert names(find_layout(tmp_path)[1], tmp_path)["a"] == ["test/a/1.png"]
    assert caplog.messages == [f"{tmp_path}: the test images are those of test/; not used: more, val"]


def test_imagenette_as_it_comes(tmp_path, caplog):
    root = lay(tmp_path / "imagenette2-160", "noisy_imagenette.csv", ".DS_Store")
    lay(root, *(f"{half}/{wnid}/{wnid}_{n}.JPEG" for half in ("train", "val") for wnid in ("n01440764", "n02102040")
                for n in (10, 9)))  # fmt: skip
    lay(tmp_path, "__MACOSX/._imagenette2-160")
    for path in (root, tmp_path):  # also where the archive was unpacked
        train, test = find_layout(path)
        assert names(train, root)["n01440764"] == [
            "train/n01440764/n01440764_10.JPEG",
            "train/n01440764/n01440764_9.JPEG",
        ]
        assert list(test) == list(train) == ["n01440764", "n02102040"]
    assert f"{tmp_path} holds one folder, imagenette2-160, which is read in its place" in caplog.messages


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Two classes of two images in the layout of tiny-imagenet-200.zip."""
    root = lay(tmp_path / "tiny-imagenet-200", "wnids.txt", "words.txt", "test/images/test_0.JPEG")
    for wnid in ("n01443537", "n01629819"):
        lay(root, *(f"train/{wnid}/images/{wnid}_{n}.JPEG" for n in (0, 1)), f"train/{wnid}/{wnid}_boxes.txt")
    lay(root, *(f"val/images/val_{n}.JPEG" for n in range(3)))
    lines = [
        "val_0.JPEG\tn01629819\t0\t32\t44\t62\n",
        "val_1.JPEG\tn01443537\t52\t55\t57\t59\n",
        "val_2.JPEG\tn01629819\t4\t0\t60\t55\n",
    ]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet_as_it_comes(tiny_imagenet, caplog):
    train, test = find_layout(tiny_imagenet)
    assert names(train, tiny_imagenet / "train") == {
        wnid: [f"{wnid}/images/{wnid}_0.JPEG", f"{wnid}/images/{wnid}_1.JPEG"] for wnid in ("n01443537", "n01629819")
    }
    assert names(test, tiny_imagenet / "val/images") == {
        "n01443537": ["val_1.JPEG"], "n01629819": ["val_0.JPEG", "val_2.JPEG"],
    }  # fmt: skip
    assert f"{tiny_imagenet}: the test images are those of val/; not used: test" in caplog.messages
    dataset = create("folder", {"path": str(tiny_imagenet), "size": 4})
    assert dataset.load("test").labels.tolist() == [0, 1, 1]


def test_a_table_of_classes_that_does_not_match_the_images_is_refused(tiny_imagenet):
    table = tiny_imagenet / "val" / "val_annotations.txt"
    whole = table.read_text()
    table.write_text(whole.replace("val_2", "val_3"))
    with pytest.raises(DataError, match=r"only one has val_2\.JPEG, val_3\.JPEG"):
        find_layout(tiny_imagenet)
    table.write_text(whole + "val_9.JPEG\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt: no class, separated by a tab, for val_9\.JPEG"):
        find_layout(tiny_imagenet)
    table.write_text(whole.replace("n01443537", "n99999999"))
    with pytest.raises(DataError, match="train/ and val/ need the same classes; only one has n01443537, n99999999"):
        find_layout(tiny_imagenet)


def test_what_systems_leave_is_ignored_and_annotations_are_said_not_to_count(tmp_path, caplog):
    lay(tmp_path, "a/1.PNG", "a/notes.txt", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store", "a/._1.png", "b/2.png")
    lay(tmp_path, "b/.thumbnails/x.png", "b/__MACOSX/x.png", "__MACOSX/x/1.png", ".hidden/1.png", "readme.md")
    train, test = find_layout(tmp_path)
    assert names(train, tmp_path) == {"a": ["a/1.PNG"], "b": ["b/2.png"]} and test is None
    assert caplog.messages == [f"{tmp_path}: annotations are not used: a/notes.txt"]


def test_images_outside_the_class_folders_are_named(tmp_path, caplog):
    lay(tmp_path, "a/1.png", "b/1.png", "cover.png")
    find_layout(tmp_path)
    assert caplog.messages == [f"{tmp_path}: images outside the class folders are not used: cover.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a/1.png", "b/2.png", "b/2.heic"],
            r"unexpected entries: b/2\.heic\. .* convert, move or remove",
        ),
        (["a/1.png", "a/more/2.png", "b/2.png"], "entries: a/more"),  # next to images
        (["a/x/1.png", "a/y/2.png", "b/2.png"], "entries: a/x, a/y"),  # two to choose from
        (["a/x/y/1.png", "b/2.png"], "entries: a/x/y"),  # two levels too deep
        (["a/1.png", "b/2.png", *(f"b/{n:02}.npy" for n in range(13))], r"b/09\.npy and 3 more"),
        (
            ["train/a/1.png", "train/b/1.png"],
            "has train/, but no test images: add test/ or val/ .* or set the option path",
        ),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "train/ and, without classes, test, but no test images"),
        (["train/a/1.png", "train/b/1.png", "test/images/1.png"], "without classes, test"),
        (["train/1.png", "test/1.png"], "train needs at least two class folders with images in them; found: none"),
        (["test/a/1.png", "test/b/1.png"], "has test/ but no train/: add it"),
        (["Train/a/1.png", "train/b/1.png"], "has both Train/ and train/: keep one"),
        (
            [f"{half}/{label}/1.png" for half in ("train", "val", "valid") for label in "ab"],
            "has val/ and valid/: rename the one that holds the test images to test",
        ),
    ],
)
def test_any_other_layout_is_refused_in_one_line_that_says_what_to_do(tmp_path, files, message):
    lay(tmp_path, *files)
    with pytest.raises(DataError, match=message) as refused:
        find_layout(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_link_to_nowhere_is_named(tmp_path):
    lay(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"entries: b/2\.png"):
        find_layout(tmp_path)
