"""Readers against files in their real formats, written here byte by byte; contracts over everything registered."""

import gzip
import random
import struct
import warnings

import numpy as np
import pytest
import scipy.io
import torch
from cifar_archives import SPLITS, md5, toy_bytes, write_cifar_archive
from PIL import Image

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data import DATASETS, DataError, cifar_sources, create, info
from dreamlib.errors import UnknownNameError


def write_idx(folder, monkeypatch, name):
    toys = toy_bytes(10, 1, 28, {"train": 3, "test": 2})
    md5s = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = toys[split]
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels.astype(np.uint8))):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            packed = gzip.compress(header + array.tobytes())
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(packed)
            md5s[f"{prefix}-{kind}-ubyte.gz"] = md5(packed)
    monkeypatch.setattr(DATASETS[name], "md5s", md5s)
    return toys


def write_svhn(folder, monkeypatch):
    toys = toy_bytes(10, 3, 32, {"train": 3, "test": 2})
    listed = {}
    for split in SPLITS:
        images, labels = toys[split]
        file = folder / f"{split}_32x32.mat"
        digit_zero_is_ten = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": digit_zero_is_ten})
        listed[split] = ["http://nowhere.invalid/" + file.name, file.name, md5(file.read_bytes())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    return toys


def write_cifar(folder, monkeypatch, name):
    """The canonical files, made from a tiny archive that lies outside the data folder."""
    dataset, archives = create(name), folder.parent / "archives"
    toys = write_cifar_archive(archives, monkeypatch, dataset.reader)
    monkeypatch.setattr(type(dataset), "md5s", {})
    paths = dataset.fetch(folder.parent, archives)
    if name == "cifar10":  # that of CIFAR-100 is not known in advance
        monkeypatch.setattr(type(dataset), "md5s", {path.stem: md5(path.read_bytes()) for path in paths})
    return {split: (images, labels) for split, (images, labels, _) in toys.items()}


def write_folder(folder):
    """PNGs named by their row; the classes are letters. The reader's order is class by class."""
    toys = toy_bytes(4, 3, 32, {"train": 3, "test": 2})
    for split, (images, labels) in toys.items():
        order = np.argsort(labels, kind="stable")
        toys[split] = images[order], labels[order]
        for row, (image, label) in enumerate(zip(*toys[split], strict=True)):
            place = folder / split / "abcd"[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{row:03}.png")
    return toys


WRITERS = {
    "mnist": lambda folder, patch: write_idx(folder, patch, "mnist"),
    "fashion_mnist": lambda folder, patch: write_idx(folder, patch, "fashion_mnist"),
    "svhn": write_svhn,
    "cifar10": lambda folder, patch: write_cifar(folder, patch, "cifar10"),
    "cifar100": lambda folder, patch: write_cifar(folder, patch, "cifar100"),
    "folder": lambda folder, patch: write_folder(folder),
}


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Call it with a name: (data set, what its files hold)."""

    def write(name):
        if name == "digits":
            create(name).fetch(tmp_path)
            return create(name), None
        (tmp_path / name).mkdir()
        toys = WRITERS[name](tmp_path / name, monkeypatch)
        return create(name, {"path": str(tmp_path / name)} if name == "folder" else None), toys

    return write


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_files_and_classes_are_those_torchvision_lists(name, tmp_path):
    dataset = create(name)
    theirs = getattr(torchvision.datasets, dataset.reader_name)
    assert dict(dataset.md5s) == dict(theirs.resources)
    assert [label.split(" - ")[0] for label in theirs.classes] == list(dataset.info.classes)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_torchvision_reads_the_same(name, on_disk, tmp_path):
    dataset, _ = on_disk(name)
    raw = tmp_path / dataset.reader_name / "raw"
    raw.mkdir(parents=True)
    for file in dataset.md5s:
        (raw / file.removesuffix(".gz")).write_bytes(gzip.decompress((tmp_path / name / file).read_bytes()))
    for split in SPLITS:
        theirs = getattr(torchvision.datasets, dataset.reader_name)(tmp_path, train=split == "train")
        ours = dataset.load(split, tmp_path)
        assert torch.equal(ours.images[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)


def test_every_registered_data_set_has_tiny_files_here():
    assert set(DATASETS) == {*WRITERS, "digits"}, "add a writer of tiny files, or the new reader goes untested"


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_reader_returns_what_the_files_hold_in_file_order(name, on_disk, tmp_path):
    dataset, toys = on_disk(name)
    for split in SPLITS:
        images, labels = toys[split]
        read = dataset.load(split, tmp_path)
        assert torch.equal(read.images, torch.tensor(images)), "bytes until they are used"
        assert torch.equal(read.pixels(), torch.tensor(images.astype(np.float32) / np.float32(255)))
        assert read.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("name", DATASETS.names())
def test_images_have_the_described_shape_range_type_and_labels(name, on_disk, tmp_path):
    dataset, _ = on_disk(name)
    known = dataset.info
    for split in SPLITS:
        data = dataset.load(split, tmp_path)
        images = data.pixels()
        assert images.shape[1:] == (known.channels, known.size, known.size)
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert images.min() >= 0
        assert 0.5 < images.max() <= 1
        assert data.labels.dtype == torch.int64
        assert data.num_classes == known.num_classes
        assert data.labels.unique().tolist() == list(range(known.num_classes))
    assert known.name == name == type(dataset).name
    assert len(known.mean) == len(known.std) == known.channels
    assert min(known.std) > 0


@pytest.mark.parametrize("name", DATASETS.names())
def test_only_train_and_test_are_published(name, on_disk, tmp_path):
    dataset, _ = on_disk(name)
    with pytest.raises(UnknownNameError, match=r"unknown split 'tset': did you mean 'test'"):
        dataset.load("tset", tmp_path)
    with pytest.raises(UnknownNameError, match="unknown split 'validation'"):
        dataset.load("validation", tmp_path)


@pytest.mark.parametrize("name", DATASETS.names())
def test_reading_leaves_data_folder_and_global_generators_alone(name, on_disk, tmp_path):
    dataset, _ = on_disk(name)
    files = sorted(tmp_path.rglob("*"))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    dataset.load("train", tmp_path)
    dataset.fetch(tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert before[2] == random.getstate()
    found = [path for path in tmp_path.rglob("*") if ".decoded" not in path.parts]  # kept beside the data sets
    listing = [tmp_path / "folder" / "images.md5"] if name == "folder" else []  # what fetching adds for DVC
    assert sorted(found) == sorted([*files, *listing])


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - {"folder"}))
def test_a_changed_or_missing_file_is_refused_with_the_remedy(name, on_disk, tmp_path):
    dataset, _ = on_disk(name)
    file = dataset.paths(tmp_path)[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    told = "is damaged" if name == "cifar100" else rf"{md5(whole[:-1])}.*{md5(whole)}"
    with pytest.raises(DataError, match=rf"{file.name}.*{told}.*Delete it and run") as refused:
        dataset.load("test", tmp_path)
    assert f"python -m pipeline.fetch_data {name} --data-dir {tmp_path}" in str(refused.value)
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name} is missing: run `") as refused:
        dataset.load("train", tmp_path)
    assert "or `make data`, if params.yaml names this data set" in str(refused.value)


def test_digits_statistics_and_fixed_split(on_disk, tmp_path):
    dataset, _ = on_disk("digits")
    train, test = (dataset.load(split, tmp_path) for split in SPLITS)
    assert dataset.info.mean == (round(train.images.mean().item(), 4),)
    assert dataset.info.std == (round(train.images.std(correction=0).item(), 4),)
    from sklearn.datasets import load_digits  # the independent reader

    bundled = load_digits()
    for label in range(10):
        rows = np.flatnonzero(bundled.target == label)
        cut = len(rows) - len(rows) // 5
        for part, wanted in ((train, rows[:cut]), (test, rows[cut:])):
            found = part.images[part.of_class(label), 0].numpy()
            assert np.array_equal(found, (bundled.images[wanted] / 16).astype(np.float32))


def test_cifar_is_read_without_the_warning_that_some_numpy_releases_give(on_disk, tmp_path, monkeypatch):
    dataset, _ = on_disk("cifar10")
    load = cifar_sources._ArrayUnpickler.load

    def warn_and_load(unpickler):
        text = "dtype(): align should be passed as Python or NumPy boolean but got `align=0`."
        warnings.warn(text, np.exceptions.VisibleDeprecationWarning, stacklevel=1)
        return load(unpickler)

    monkeypatch.setattr(cifar_sources._ArrayUnpickler, "load", warn_and_load)
    for path in dataset.paths(tmp_path):
        path.unlink()
    assert len(dataset.fetch(tmp_path, tmp_path / "archives")) == 2


def test_normalisation_and_flips_are_those_of_the_literature():
    facts = {name: info(name) for name in DATASETS if name != "folder"}
    assert facts["mnist"].mean + facts["mnist"].std == (0.1307, 0.3081)
    assert facts["fashion_mnist"].mean + facts["fashion_mnist"].std == (0.2861, 0.3530)
    assert facts["svhn"].mean + facts["svhn"].std == (0.4377, 0.4438, 0.4728, 0.1980, 0.2010, 0.1970)
    assert facts["cifar10"].mean + facts["cifar10"].std == (0.4914, 0.4822, 0.4465, 0.2023, 0.1994, 0.2010)
    assert (facts["cifar100"].mean, facts["cifar100"].std) == (facts["cifar10"].mean, facts["cifar10"].std)
    flips = {name for name, known in facts.items() if known.flip}
    assert flips >= {"fashion_mnist", "cifar10", "cifar100"}
    assert not flips & {"mnist", "svhn", "digits"}
    assert len(set(facts["cifar100"].classes)) == 100
