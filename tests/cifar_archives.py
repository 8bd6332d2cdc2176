"""Tiny CIFAR archives in the published format, and other toy images of bytes."""

import hashlib
import io
import pickle
import tarfile

import numpy as np

SPLITS = ("train", "test")


def toy_bytes(classes, channels, side, per_class):
    """{split: (images (N, C, H, W) bytes, labels (N,))} with every class in both splits, in shuffled order."""
    rng = np.random.default_rng(classes)
    made = {}
    for split in SPLITS:
        labels = rng.permutation(np.repeat(np.arange(classes), per_class[split]))
        made[split] = rng.integers(0, 256, (len(labels), channels, side, side), dtype=np.uint8), labels
    return made


def md5(content):
    return hashlib.md5(content).hexdigest()


class Python2Pickler(pickle.Pickler):
    """Pickles dtypes as Python 2 did when CIFAR was published: flags as integers."""

    def reducer_override(self, obj):
        if isinstance(obj, np.dtype):
            return np.dtype, (obj.str[1:], 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def python2_pickle(value):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar_archive(folder, monkeypatch, reader):
    """A tiny archive in the published format; {split: (images, labels, file names)} by class, then file name."""
    folder.mkdir()
    fine = "100" in reader.base_folder
    toys = toy_bytes(100 if fine else 10, 3, 32, {"train": 5, "test": 2})
    key = "fine_labels" if fine else "labels"
    contents = {}
    for split, listed in (("train", reader.train_list), ("test", reader.test_list)):
        names = [f"kind_s_{number:06}.png" for number in np.random.default_rng(3).permutation(len(toys[split][1]))]
        for (name, _), rows in zip(listed, np.array_split(np.arange(len(toys[split][1])), len(listed)), strict=True):
            images, labels = (part[rows] for part in toys[split])
            batch = {"data": images.reshape(len(rows), -1), key: labels.tolist(), "filenames": [names[r] for r in rows]}
            contents[name] = python2_pickle(batch)
        order = np.lexsort((names, toys[split][1]))
        toys[split] = *(part[order] for part in toys[split]), [names[row] for row in order]
    contents[reader.meta["filename"]] = pickle.dumps({reader.meta["key"]: ["any"]}, protocol=2)
    with tarfile.open(folder / reader.filename, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{reader.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(reader, "tgz_md5", md5((folder / reader.filename).read_bytes()))
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5(contents[reader.meta["filename"]])})
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(reader, part, [[name, md5(contents[name])] for name, _ in getattr(reader, part)])
    return toys
