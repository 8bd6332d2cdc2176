"""CIFAR's canonical files: the same bytes from the archive and from PNGs, checked, and read without running code."""

import hashlib
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cifar_archives import md5, write_cifar_archive
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from dreamlib.data import DataError, create
from dreamlib.data.cifar import Cifar10, Cifar100
from pipeline.fetch_data import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A tiny archive in tmp_path/archives and the MD5s of the files made from it; {split: (images, labels, names)}."""
    made = write_cifar_archive(tmp_path / "archives", monkeypatch, Cifar10().reader)
    monkeypatch.setattr(Cifar10, "md5s", {})
    paths = Cifar10().fetch(tmp_path / "pinned", tmp_path / "archives")
    monkeypatch.setattr(Cifar10, "md5s", {path.stem: md5(path.read_bytes()) for path in paths})
    return made


@pytest.fixture
def pngs(toys, tmp_path):
    """The same images as PNG files in train/<class>/ and test/<class>/."""
    for split, (images, labels, names) in toys.items():
        for image, label, name in zip(images, labels, names, strict=True):
            place = tmp_path / "pngs" / split / Cifar10.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / name)
    return tmp_path / "pngs"


def test_the_archive_and_a_folder_of_pngs_give_two_files_of_the_same_bytes(toys, pngs, tmp_path):
    cifar, fetched = create("cifar10"), {}
    sources = {"archive": tmp_path / "archives", "file": tmp_path / "archives" / cifar.reader.filename, "pngs": pngs}
    for name, source in sources.items():
        data_dir = tmp_path / "data" / name
        paths = cifar.fetch(data_dir, source)
        assert sorted(path.name for path in data_dir.rglob("*")) == ["cifar10", *sorted(path.name for path in paths)]
        fetched[name] = {path.name: path.read_bytes() for path in paths}
    assert fetched["archive"] == fetched["file"] == fetched["pngs"]
    assert set(fetched["pngs"]) == {"train.safetensors", "test.safetensors"}
    for split, (images, labels, names) in toys.items():
        parts = load_file(tmp_path / "data" / "pngs" / "cifar10" / f"{split}.safetensors")
        assert np.array_equal(parts["images"], images) and np.array_equal(parts["labels"], labels)
        assert parts["file_names"].tobytes().decode().split("\n") == names


def test_the_bytes_of_a_file_are_these(monkeypatch, tmp_path):
    """A header of JSON behind its length, padded to 8 bytes, then the arrays by name: what cifar10.dvc pins."""
    reader = Cifar10().reader
    write_cifar_archive(tmp_path / "archives", monkeypatch, reader)
    monkeypatch.setattr(Cifar10, "md5s", {})
    written = create("cifar10").fetch(tmp_path, tmp_path / "archives")[1].read_bytes()
    parts = load_file(tmp_path / "cifar10" / "test.safetensors")
    images, labels, names = (parts[part].tobytes() for part in ("images", "labels", "file_names"))
    ends = np.cumsum([0, len(names), len(images), len(labels)]).tolist()
    shapes = {"file_names": [len(names)], "images": [20, 3, 32, 32], "labels": [20]}
    header = {"__metadata__": {"sha256": hashlib.sha256(images + labels + names).hexdigest()}} | {
        part: {"dtype": "U8", "shape": shape, "data_offsets": ends[number : number + 2]}
        for number, (part, shape) in enumerate(shapes.items())
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    assert written == len(encoded).to_bytes(8, "little") + encoded + names + images + labels


def test_images_that_are_not_the_published_ones_are_refused(pngs, tmp_path):
    changed = next((pngs / "test" / "frog").glob("*.png"))
    Image.new("RGB", (32, 32)).save(changed)
    with pytest.raises(DataError, match=r"test.safetensors is not the published file: its MD5 is \w{32}"):
        create("cifar10").fetch(tmp_path / "data", pngs)
    Image.new("L", (32, 32)).save(changed)
    with pytest.raises(DataError, match=rf"{changed.name} has shape \(32, 32\) of uint8; CIFAR's are \(32, 32, 3\)"):
        create("cifar10").fetch(tmp_path / "data", pngs)
    changed.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=rf"{changed.name} is not a readable image"):
        create("cifar10").fetch(tmp_path / "data", pngs)
    assert not list((tmp_path / "data").rglob("test*")), "nothing half-written"
    shutil.rmtree(pngs / "train" / "frog")
    with pytest.raises(DataError, match=r"no cifar-10-python.tar.gz and no \*.png in train/frog/"):
        create("cifar10").fetch(tmp_path / "elsewhere", pngs)


def test_an_archive_of_other_bytes_is_refused(toys, tmp_path):
    archive = tmp_path / "archives" / Cifar10().reader.filename
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"its MD5 is {md5(archive.read_bytes())}, that of the published archive"):
        create("cifar10").fetch(tmp_path / "data", archive)


class Hostile:
    """Its pickle makes a folder when it is read by the usual unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path, monkeypatch):
    reader, trap = Cifar100().reader, tmp_path / "trap"
    archives = tmp_path / "archives"
    write_cifar_archive(archives, monkeypatch, reader)
    with tarfile.open(archives / reader.filename, "w:gz") as tar:
        for (name, _), content in zip(reader.train_list + reader.test_list, [Hostile(trap)] * 2, strict=True):
            (archives / name).write_bytes(pickle.dumps({"data": content}, protocol=2))
            tar.add(archives / name, f"{reader.base_folder}/{name}")
    monkeypatch.setattr(reader, "tgz_md5", md5((archives / reader.filename).read_bytes()))
    with pytest.raises(DataError, match=rf"its pickle requests {os.mkdir.__module__}.mkdir, which no batch of images"):
        create("cifar100").fetch(tmp_path / "data", archives)
    assert not trap.exists()
    pickle.loads((archives / "train").read_bytes())
    assert trap.exists(), "the trap works"


def test_cifar100_is_made_from_its_archive_alone(tmp_path, monkeypatch):
    toys = write_cifar_archive(tmp_path / "archives", monkeypatch, Cifar100().reader)
    cifar = create("cifar100")
    with pytest.raises(
        DataError, match=r"has no cifar-100-python.tar.gz: .* only by the archive, whose MD5 is published"
    ):
        cifar.fetch(tmp_path / "data", tmp_path)
    train_file, _ = cifar.fetch(tmp_path / "data", tmp_path / "archives")
    train = cifar.load("train", tmp_path / "data")
    assert np.array_equal(train.images.numpy(), toys["train"][0])
    assert train.labels.tolist() == sorted(toys["train"][1]), "the fine labels, class by class"
    content = bytearray(train_file.read_bytes())
    content[-600] ^= 1
    train_file.write_bytes(content)
    with pytest.raises(DataError, match=r"train.safetensors is damaged: its bytes .* Delete it and run `python -m"):
        cifar.load("train", tmp_path / "data")


def test_the_command_takes_a_folder_for_one_data_set(pngs, tmp_path, capsys):
    assert main(["cifar10", "--from", str(pngs), "--data-dir", str(tmp_path / "data")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit):
        main(["--from", str(pngs), "--data-dir", str(tmp_path / "data")])
    assert "--from needs the NAME of one data set" in capsys.readouterr().err
    assert main(["digits", "--from", str(pngs), "--data-dir", str(tmp_path / "data")]) == 1
    assert "digits.csv.gz" in capsys.readouterr().err


def test_the_pin_is_that_of_the_two_files_and_leaves_that_of_fashion_mnist_alone():
    (pin,) = YAML(typ="safe", pure=True).load(ROOT / "cifar10.dvc")["outs"]
    listed = [{"md5": file.md5, "relpath": file.name} for file in sorted(Cifar10().files(), key=lambda f: f.name)]
    assert pin["md5"] == md5(json.dumps(listed).encode()) + ".dir", "as DVC hashes a folder"
    assert (pin["path"], pin["nfiles"]) == ("data/cifar10", 2)
    (other,) = YAML(typ="safe", pure=True).load(ROOT / "data.dvc")["outs"]
    assert other["path"] == "data/fashion_mnist"
