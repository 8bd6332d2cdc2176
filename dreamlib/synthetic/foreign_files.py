"""Files of other projects' distilled sets, by layout; no code that a file may contain is executed."""

import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# What a torch file may hold besides tensors and Python containers: numpy's numbers and numeric arrays, under the module
# names of numpy 1 and 2, but no arrays of objects.
_MAKERS = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
_RENAMED = [(f, f"numpy.{core}.multiarray.{name}") for name, f in _MAKERS.items() for core in ("core", "_core")]
ALLOWED = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, *_RENAMED]

IMAGE_KEYS = ("images", "image", "data", "x", "x_train")
LABEL_KEYS = ("soft_labels", "labels", "label", "targets", "target", "y", "y_train")  # soft ones first
RATE_KEYS = ("lr", "syn_lr", "step_size")
TORCH_SUFFIXES = (".pt", ".pth", ".tar", ".pkl")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class StoredSet:
    """One distilled set as stored in its file.

    images: (N, …), in any units.
    labels: (N,) class numbers or (N, K) of any kind.
    step_size: learned with the set; None if the file has none.
    accuracies: fractions by network name, as measured by the set's authors; None or empty if the file has none.
    names: names of the classes that ``labels`` number; empty if the file has none.
    classes: (N,) class numbers in addition to labels (N, K); None if the file has none.
    """

    images: Tensor
    labels: Tensor
    step_size: float | None = None
    accuracies: dict[str, list[float]] | None = None
    names: tuple[str, ...] = ()
    classes: Tensor | None = None


def read_torch(path: Path) -> Any:
    """Return the content of a torch file, of the zip format or the older one, on the CPU.

    Nothing in the file is executed: it may hold tensors, numbers, strings, lists and dictionaries, and numpy's numbers
    and numeric arrays. Raise ValueError, with the name that the file refers to, for any other content.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it refers to {name[1]}" if name else str(error).splitlines()[0]
        raise ValueError(
            f"{path} holds more than tensors, numbers and their containers: {reason}; nothing in it was executed. Save "
            "the images and labels as plain tensors, or as arrays with numpy.savez"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in the unpickler
        raise ValueError(f"{path} is damaged or not a torch file ({error!r:.200})") from error


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an npz or safetensors file, or of ``images.npy`` and the ``labels.npy`` next to it.

    Raise ValueError for arrays of objects, which would need code to be run, and for damaged files.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npy":
            other = path.with_name(path.name.replace("images", "labels").replace("x_", "y_"))
            if other == path or not other.is_file():
                raise ValueError(
                    f"the labels are missing: expected images*.npy with labels*.npy next to it, not {other}"
                )
            return {name: _tensor(_loaded(file)[""]) for name, file in (("images", path), ("labels", other))}
        return {name: _tensor(array) for name, array in _loaded(path).items() if array.dtype.kind in "fiub"}
    except (SafetensorError, OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or holds no plain arrays ({error})") from error


def _loaded(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name, and that of an npy file under the name ''."""
    with open(path, "rb") as file:  # numpy leaves a damaged file open
        content = np.load(file)
        return {"": content} if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}


def _tensor(value: Any) -> Tensor:
    """Return a tensor, array, list of numbers or of tensors as a tensor without gradient."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return torch.stack([part.detach() for part in value])
    return torch.as_tensor(np.array(value))


def _pair(content: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Return images and labels of a pair, or of a dictionary that names them."""
    if isinstance(content, dict):
        by_name = {str(key).lower(): value for key, value in content.items()}
        keys = [[name for name in names if name in by_name] for names in (IMAGE_KEYS, LABEL_KEYS)]
        if not all(keys):
            raise ValueError(f"{path} holds {sorted(by_name)}; name the arrays images and labels")
        content = [by_name[present[0]] for present in keys]
    if not isinstance(content, (list, tuple)) or len(content) != 2:
        raise ValueError(f"{path} holds no pair of images and labels; got {type(content).__name__}")
    return _tensor(content[0]), _tensor(content[1])


def dc_sets(path: Path) -> list[StoredSet]:
    """Return the experiments of a file of DC, DSA or DM: {'data': [[images, labels], …], 'accs_all_exps': …}."""
    content = read_torch(path)
    if not _is_dc(content):
        raise ValueError(f"{path} is not a file of DC: expected a dictionary with the list 'data' of [images, labels]")
    pairs = [content["data"]] if isinstance(content["data"][0], Tensor) else content["data"]
    accuracies = {name: [float(value) for value in values] for name, values in _accuracies(content).items()}
    sets = []
    for index, pair in enumerate(pairs):
        shares = {}
        for name, values in accuracies.items():
            networks = len(values) // len(pairs)  # of each set, one set after the other
            if networks * len(pairs) == len(values):
                shares[name] = values[index * networks : (index + 1) * networks]
        sets.append(StoredSet(*_pair(pair, path), accuracies=shares))
    return sets


def _accuracies(content: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies by network, omitting networks without any."""
    accuracies = content.get("accs_all_exps") or {}
    return {str(name): values for name, values in accuracies.items() if len(values)}


def _is_dc(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("data"), (list, tuple)) and bool(content["data"])


def mtt_sets(path: Path) -> list[StoredSet]:
    """Return the set of MTT, FTD or DATM: images*.pt, with labels*.pt of the same suffix and lr*.pt in the same folder.

    path: the file of images, or a folder with a single one.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("*images*.pt") if "images_zca" not in file.name)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise ValueError(f"{path} must hold one file images*.pt; found: {names}. Give the path of one of them")
        path = files[0]
    name = path.name.replace("images_zca", "images")  # MTT's name for images whose whitening is undone
    labels = path.with_name(name.replace("images", "labels"))
    if labels == path or not labels.is_file():
        raise ValueError(f"{path} needs its labels next to it: give the path of images*.pt, with labels*.pt next to it")
    rates = [path.with_name(rate) for rate in (name.replace("images", "lr"), "lr.pt")]
    rate = next((_rate(read_torch(file), file) for file in rates if file.is_file()), None)
    return [StoredSet(_tensor(read_torch(path)), _tensor(read_torch(labels)), step_size=rate)]


def pair_sets(path: Path) -> list[StoredSet]:
    """Return the set of images and labels in one file: a pair or a dictionary of tensors, or arrays."""
    content = read_torch(path) if path.suffix in TORCH_SUFFIXES else read_arrays(path)
    named = content if isinstance(content, dict) else {}
    rates = [_rate(named[name], path) for name in RATE_KEYS if name in named]
    classes = _tensor(named["labels"]) if {"labels", "soft_labels"} <= named.keys() else None
    return [StoredSet(*_pair(content, path), step_size=rates[0] if rates else None, classes=classes)]


def _rate(value: Any, path: Path) -> float:
    """Return a learned step size; raise ValueError unless it is one number."""
    rate = _tensor(value)
    if rate.numel() != 1:
        raise ValueError(f"the step size of {path} must be one number; got {tuple(rate.shape)}")
    return float(rate.item())


def folder_sets(path: Path) -> list[StoredSet]:
    """Return the set of the pictures in ``path/<class>/``, 8 bits per channel, with the names of the folders."""
    folders = sorted(folder for folder in _visible(path) if folder.is_dir())
    images, labels = [], []
    for label, folder in enumerate(folders):
        for file in _visible(folder):
            images.append(_picture(file))
            labels.append(label)
    if not images:
        raise ValueError(f"{path} holds no pictures in <class>/*.png")
    if len(shapes := {tuple(image.shape) for image in images}) > 1:
        raise ValueError(f"the pictures in {path} must have one size and be all grey or all coloured; found {shapes}")
    return [StoredSet(torch.stack(images), torch.tensor(labels), names=tuple(folder.name for folder in folders))]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _picture(path: Path) -> Tensor:
    """Return a picture as bytes (C, H, W); raise ValueError for another file or more than 8 bits per channel."""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"{path} does not end in {', '.join(PICTURE_SUFFIXES)}: convert or remove it")
    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "P", "RGB"):
            raise ValueError(f"{path} is a picture of mode {picture.mode}; save it as 8-bit grey or RGB, without alpha")
        pixels = np.array(picture.convert("RGB" if picture.mode in ("P", "RGB") else "L"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


MTT_FORMATS = ("mtt", "ftd", "datm", "fred")
CANVAS_FORMATS = ("idc", "dream")  # pixels in [0, 1], several images per canvas
READERS: dict[str, Callable[[Path], list[StoredSet]]] = {
    **dict.fromkeys(("dc", "dsa", "dm"), dc_sets),
    **dict.fromkeys(MTT_FORMATS, mtt_sets),
    **dict.fromkeys((*CANVAS_FORMATS, "rfad", "kip", "arrays"), pair_sets),
    "folder": folder_sets,
}


def detected_format(path: Path) -> str:
    """Return the format of a file or folder; raise ValueError, naming the option, if it is ambiguous."""
    if path.is_dir():
        return "mtt" if list(path.glob("*images*.pt")) else "folder"
    if path.suffix in (".npz", ".npy", ".safetensors"):
        return "arrays"
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{path} has no known suffix; give format, one of {', '.join(READERS)}")
    content = read_torch(path)
    if _is_dc(content):
        return "dc"
    if isinstance(content, Tensor):
        return "mtt"
    if isinstance(content, dict):
        return "arrays"
    raise ValueError(
        f"{path} holds a list, as IDC's files and others do: give format='idc' (pixels that are not normalised, packed "
        "by a factor), or format='arrays' (any other images with labels)"
    )
