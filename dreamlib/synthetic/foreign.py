"""Distilled sets of other projects, opened as ``SyntheticSet``; missing information is never guessed."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from dreamlib import data as datasets
from dreamlib.data.types import DatasetInfo, Statistics
from dreamlib.errors import unknown
from dreamlib.synthetic.checks import OVERSHOOT, are_probabilities
from dreamlib.synthetic.foreign_files import CANVAS_FORMATS, MTT_FORMATS, READERS, StoredSet, detected_format
from dreamlib.synthetic.synthetic_set import SyntheticSet

# RFAD and KIP centre and scale each image first, and their epsilon is relative to the mean variance.
OTHER_WHITENING = ("rfad", "kip")


def import_set(
    path: str | Path,
    *,
    format: str | None = None,
    data: str | DatasetInfo | None = None,
    normalised: str | Statistics | None = None,
    zca_epsilon: float | None = None,
    num_classes: int | None = None,
    labels: Literal["classes", "probabilities", "logits"] | None = None,
    factor: int | None = None,
    decode: Literal["single", "bound"] = "single",
    step_size: float | Literal["none"] | None = None,
    experiment: int | None = None,
) -> SyntheticSet | list[SyntheticSet]:
    """Return a distilled set written by another project, with the values of its images unchanged.

    Files of this library are opened as they are.

    path: a file or a folder; docs/sets.md lists the layouts.
    format: 'dc' (also 'dsa', 'dm'), 'mtt' ('ftd', 'datm', 'fred'), 'idc' ('dream'), 'rfad' ('kip'), 'folder' or
        'arrays'. By default it is detected if unambiguous.
    data: registered name, or description, of the data set: its classes, shape and statistics.
    normalised: how the stored images are normalised: by the statistics 'literature' or 'per_pixel' of ``data``, or by
        two sequences (mean, std); 'zca', whitened; 'none', pixels in [0, 1]. Needed unless images are 8-bit or the
        format is IDC's.
    zca_epsilon: epsilon of the whitening, for normalised='zca'; MTT, FTD and DATM use 0.1.
    num_classes: K, if neither ``data`` nor labels (N, K) determine it.
    labels: 'classes' (for (N, K), the largest), 'probabilities' or 'logits', whose softmax is taken. Needed for labels
        (N, K) that are neither one-hot, one-hot minus 1/K, nor probabilities; those of the format 'datm' are logits.
    factor, decode: how a stored image is cut into training images, as in ``SyntheticSet``. IDC's format needs a factor.
    step_size: learned with the set, or 'none'; needed for MTT's format if the file lr.pt is missing.
    experiment: index of one of a file's sets; by default all are returned, in a list if there are several.

    Raise FileNotFoundError for a missing file; ValueError for content that is not a set, for a file that could be read
    only by running code in it, and for missing information, naming the argument.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}; check the path")
    if format is None and _is_ours(path):
        return SyntheticSet.open(path)
    if format is not None and format not in READERS:
        raise unknown("format", format, sorted(READERS))
    format = format or detected_format(path)
    info = datasets.info(data) if isinstance(data, str) else data
    stored = READERS[format](path)
    if experiment is not None and not 0 <= experiment < len(stored):
        raise ValueError(f"experiment = {experiment}, but {path} has sets 0..{len(stored) - 1}")
    if format in CANVAS_FORMATS and factor is None:
        raise ValueError(
            f"{path} does not specify how many training images a stored image holds: give factor (f for f × f of "
            "them; 1 for one)"
        )
    source, sets = {"file": path.name, "format": format, "sha256": _sha256(path)}, []
    for index in range(len(stored)) if experiment is None else [experiment]:
        images = _images(stored[index].images, info, path)  # (N, C, H, W), floats or bytes
        hard, soft, classes = _labels(stored[index], format, info, num_classes, labels, path)
        metadata = _units(images, format, info, normalised, zca_epsilon, path)
        metadata |= _description(stored[index], info) | {"source": source | {"experiment": index}}
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        extras = _extras(stored[index], format, step_size, path)
        sets.append(SyntheticSet(images, hard, classes, factor or 1, decode, soft, extras, metadata))
    return sets[0] if len(sets) == 1 else sets


def _is_ours(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            return "dreamlib" in (file.metadata() or {})
    except SafetensorError:
        return False


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder in the order of their paths."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def _description(stored: StoredSet, info: DatasetInfo | None) -> dict[str, Any]:
    """Return the metadata other than the units."""
    metadata = {"dataset": info.name, "classes": list(info.classes)} if info else {}
    return metadata | ({"stored_accuracies": stored.accuracies} if stored.accuracies else {})


def _images(images: Tensor, info: DatasetInfo | None, path: Path) -> Tensor:
    """Return images as (N, C, H, W), which may be stored as (N, H, W) or with the channels last."""
    images = images.unsqueeze(1) if images.ndim == 3 else images
    channels = (info.channels,) if info else (1, 3)
    if images.ndim == 4 and images.shape[1] not in channels and images.shape[3] in channels:
        images = images.permute(0, 3, 1, 2)
    numbers = images.is_floating_point() or images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[1] not in channels or not numbers or not len(images):
        raise ValueError(
            f"the images in {path} must be (N, C, H, W) or (N, H, W, C) floats or bytes, C = "
            f"{' or '.join(map(str, channels))}; got {images.dtype} {tuple(images.shape)}"
        )
    if info and tuple(images.shape[2:]) != (info.size, info.size):
        raise ValueError(f"the images in {path} are {tuple(images.shape[2:])} pixels, those of {info.name} {info.size}")
    return images.contiguous()


def _units(
    images: Tensor,
    format: str,
    info: DatasetInfo | None,
    normalised: str | Statistics | None,
    zca_epsilon: float | None,
    path: Path,
) -> dict[str, Any]:
    """Return the metadata that specifies the units of the images."""
    eight_bit = images.dtype == torch.uint8
    if normalised is None and not eight_bit and format not in CANVAS_FORMATS:
        raise ValueError(
            f"{path} does not specify how its images are normalised: give normalised='literature' or 'per_pixel' and "
            "data, or (mean, std), or 'zca' and zca_epsilon, or 'none' for pixels in [0, 1]"
        )
    normalised = "none" if normalised is None else normalised
    if eight_bit and normalised != "none":
        raise ValueError(f"the images in {path} are bytes, which are pixels: leave normalised out")
    if (normalised == "zca") != (zca_epsilon is not None):
        raise ValueError(
            "normalised='zca' and zca_epsilon belong together: give both or neither; MTT, FTD and DATM whiten with 0.1"
        )
    if normalised == "zca" and format in OTHER_WHITENING:
        raise ValueError(
            f"RFAD and KIP whiten differently from this library, so the set in {path} could not be compared with "
            "real images: undo the whitening with their code and give normalised='none'"
        )
    if zca_epsilon is not None and not zca_epsilon > 0:
        raise ValueError(f"zca_epsilon = {zca_epsilon} must be above 0, for example 0.1")
    low, high = (value.item() for value in images.float().aminmax())
    channels = images.shape[1]
    if normalised == "none":
        if not eight_bit and not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
            raise ValueError(
                f"the images in {path} lie in [{low:.4g}, {high:.4g}], so they are not pixels in [0, 1]: give "
                "normalised='literature' or 'per_pixel' and data, (mean, std), or 'zca' and zca_epsilon"
            )
        statistics = {"mean": list(info.mean), "std": list(info.std)} if info else {}
        return statistics | {"bounded": True} | ({} if eight_bit or 0 <= low <= high <= 1 else {"clamped": False})
    mean, std = ((0.0,) * channels, (1.0,) * channels) if normalised == "zca" else _statistics(normalised, format, info)
    units: dict[str, Any] = {"bounded": False, "mean": list(mean), "std": list(std)}
    if normalised == "zca":
        units |= {"whitening": "zca", "zca_epsilon": zca_epsilon}
    if 0 <= low <= high <= 1 and (normalised == "zca" or max(map(abs, mean)) > 0):
        raise ValueError(
            f"the images in {path} lie in [{low:.4g}, {high:.4g}], as pixels do and normalised images do not: give "
            "normalised='none'"
        )
    return units


def _statistics(normalised: str | Statistics, format: str, info: DatasetInfo | None) -> Statistics:
    """Return mean and std per channel, given by name or as numbers."""
    if not isinstance(normalised, str):
        mean, std = (tuple(float(value) for value in values) for values in normalised)
        return mean, std
    if normalised not in ("literature", "per_pixel"):
        raise unknown("normalised", normalised, ["literature", "per_pixel", "zca", "none"])
    if info is None:
        raise ValueError(f"normalised='{normalised}' are statistics of a data set: give data, or (mean, std)")
    statistics = (info.mean, info.std)
    if normalised == "per_pixel":
        return info.pixel_statistics or statistics
    return statistics if format in CANVAS_FORMATS else info.dc_statistics or statistics


def _labels(
    stored: StoredSet, format: str, info: DatasetInfo | None, num_classes: int | None, kind: str | None, path: Path
) -> tuple[Tensor, Tensor | None, int]:
    """Return class numbers (N,), probabilities (N, K) or None, and K."""
    known = {count for count in (num_classes, info.num_classes if info else None) if count is not None}
    values = stored.labels.squeeze(1) if stored.labels.ndim == 2 and stored.labels.shape[1] == 1 else stored.labels
    if stored.names:
        numbers, count = _named(stored.names, info, path)
        values, known = torch.tensor(numbers)[values], known or {count}
    elif values.ndim == 2:
        known.add(values.shape[1])
    if len(known) > 1:
        raise ValueError(
            f"the labels {tuple(values.shape)} of {path}, num_classes and data disagree on the number of classes: "
            f"{sorted(known)}"
        )
    if not known:
        raise ValueError(f"{path} does not specify the number of classes: give num_classes, or data")
    if values.ndim not in (1, 2) or len(values) != len(stored.images):
        raise ValueError(
            f"{path} must have labels (N,) or (N, K) for its {len(stored.images)} images; got {tuple(values.shape)}"
        )
    if values.ndim == 1:
        if kind not in (None, "classes") or not torch.equal(values, values.long().to(values.dtype)):
            raise ValueError(
                f"the labels in {path} have shape (N,), so they must be class numbers: leave labels out, or give "
                "labels='classes'"
            )
        return values.long(), None, known.pop()
    kind = kind or ("logits" if format == "datm" else _label_kind(values, path))
    values = values.float()
    soft = {"classes": None, "probabilities": values, "logits": values.softmax(1)}
    if kind not in soft:
        raise unknown("labels", kind, list(soft))
    return values.argmax(1) if stored.classes is None else stored.classes, soft[kind], known.pop()


def _label_kind(values: Tensor, path: Path) -> str:
    """Return the kind of labels (N, K); raise ValueError if it is ambiguous."""
    rounding = 1e-3 if values.dtype in (torch.float16, torch.bfloat16) else 1e-6
    one_hot = F.one_hot(values.argmax(1), values.shape[1]).double()
    for hard in (one_hot, one_hot - 1 / values.shape[1]):
        if torch.allclose(values.double(), hard, rtol=0, atol=rounding):
            return "classes"
    if are_probabilities(values):
        return "probabilities"
    raise ValueError(
        f"the labels {tuple(values.shape)} in {path} are neither class numbers nor probabilities: give labels='logits' "
        "(their softmax is taken, as DATM does) or labels='classes' (the largest)"
    )


def _named(names: tuple[str, ...], info: DatasetInfo | None, path: Path) -> tuple[list[int], int]:
    """Return each folder's class number (by class name, number or order) and K."""
    if info and set(names) <= set(info.classes):
        return [info.classes.index(name) for name in names], info.num_classes
    if all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        return numbers, max(len(names), max(numbers) + 1)
    if info is None:
        return list(range(len(names))), len(names)
    raise ValueError(
        f"the folders of {path} are {', '.join(names[:5])}, …: name them as the classes of {info.name} "
        f"({', '.join(info.classes[:5])}, …) or by class number"
    )


def _extras(stored: StoredSet, format: str, step_size: float | str | None, path: Path) -> dict[str, Tensor]:
    """Return the learned step size, by its name in a set's extras."""
    if step_size is None and format in MTT_FORMATS and stored.step_size is None:
        raise ValueError(
            f"{path} has no file lr*.pt next to its images: give step_size, which was learned with them, or 'none'"
        )
    value = stored.step_size if step_size is None else step_size
    return {} if value in (None, "none") else {"step_size": torch.tensor(float(value))}
