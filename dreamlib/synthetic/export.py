"""Distilled sets exported for other projects: the files of MTT and DC, pictures, and arrays."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamlib._engine.files import write_atomically
from dreamlib.data.whitening import ZCA
from dreamlib.errors import unknown
from dreamlib.synthetic.synthetic_set import DecodedDataset, SyntheticSet

Files = dict[str, bytes]  # content by name in the folder; a single file has the name ''


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    files: their paths.
    read_back: arguments with which ``import_set`` reads them: what the layout does not specify.
    lost: what the layout does not preserve, one phrase per item.
    """

    files: tuple[Path, ...]
    read_back: dict[str, Any]
    lost: tuple[str, ...]


def export_set(synthetic: SyntheticSet, path: str | Path, format: str, *, zca: ZCA | None = None) -> Exported:
    """Write the decoded images and labels of a set in a layout that other projects read.

    path: a new folder for 'mtt' and 'png', a file for 'dc' and 'npz'.
    format: 'mtt': images_best.pt, labels_best.pt (class numbers, or logits as DATM has them) and lr.pt, if a step
        size was learned. 'dc': one file res_*.pt with one experiment. 'npz': images, labels and, if the set has
        them, soft_labels, mean, std and classes. 'png': pictures in <class number>/.
    zca: the whitening of the training images, required for pictures of a whitened set.

    Images are written as networks take them, normalised or whitened, because other projects' evaluations do not
    normalise; pictures hold pixels. Before anything is written, raise ValueError for a set that the layout cannot hold,
    and FileExistsError for a folder that is not empty.
    """
    if format not in WRITERS:
        raise unknown("format", format, sorted(WRITERS))
    path = Path(path)
    if format in ("mtt", "png") and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder: give the path of a new one")
    files, read_back = WRITERS[format](synthetic, zca)
    read_back |= {"num_classes": synthetic.num_classes}
    if format == "png":
        read_back |= {"data": synthetic.info["dataset"]} if "dataset" in synthetic.info else {}
    elif synthetic.whitening != "none":
        read_back |= {"normalised": synthetic.whitening, "zca_epsilon": synthetic.zca_epsilon}
    else:
        read_back |= {"normalised": (tuple(synthetic.info["mean"]), tuple(synthetic.info["std"]))}
    rate = synthetic.extras.get("step_size")
    if rate is not None and format != "mtt":
        read_back |= {"step_size": float(rate)}
    written = tuple(path / name for name in files)
    for target, content in zip(written, files.values(), strict=True):
        write_atomically(target, content)
    return Exported(written, read_back, tuple(_lost(synthetic, format, zca)))


def _network_images(synthetic: SyntheticSet) -> DecodedDataset:
    """Return the decoded images in the units of networks; raise ValueError if the set does not specify them."""
    if synthetic.bounded and "mean" not in synthetic.info:
        raise ValueError("the set does not specify the mean and std of its normalisation: add them to its info")
    return DecodedDataset(synthetic)


def _torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _mtt(synthetic: SyntheticSet, zca: ZCA | None) -> tuple[Files, dict[str, Any]]:
    decoded, read_back = _network_images(synthetic), {"format": "mtt"}
    labels = decoded.labels
    if synthetic.soft_labels is not None:
        labels = labels.clamp_min(torch.finfo(labels.dtype).tiny).log()  # logits, whose softmax is taken
        read_back |= {"labels": "logits"}
    files = {"images_best.pt": _torch_bytes(_plain(decoded.images)), "labels_best.pt": _torch_bytes(_plain(labels))}
    if "step_size" in synthetic.extras:
        return files | {"lr.pt": _torch_bytes(_plain(synthetic.extras["step_size"]))}, read_back
    return files, read_back | {"step_size": "none"}


def _dc(synthetic: SyntheticSet, zca: ZCA | None) -> tuple[Files, dict[str, Any]]:
    if synthetic.soft_labels is not None:
        raise ValueError(
            "DC's evaluation takes class numbers and this set has soft labels: use format 'mtt', or drop them with "
            "dataclasses.replace(set, soft_labels=None)"
        )
    if synthetic.whitening != "none":
        raise ValueError("DC's evaluation does not whiten its test images and this set is whitened: use format 'mtt'")
    decoded = _network_images(synthetic)
    pair = [_plain(decoded.images), _plain(decoded.labels)]
    return {"": _torch_bytes({"data": [pair], "accs_all_exps": {}})}, {"format": "dc"}


def _npz(synthetic: SyntheticSet, zca: ZCA | None) -> tuple[Files, dict[str, Any]]:
    decoded, (_, hard) = _network_images(synthetic), synthetic.decode()
    arrays, read_back = {"images": _plain(decoded.images).numpy(), "labels": hard.cpu().numpy()}, {"format": "arrays"}
    if synthetic.soft_labels is not None:
        read_back |= {"labels": "probabilities"}
        arrays["soft_labels"] = _plain(synthetic.soft_labels).numpy()
    arrays |= {name: np.array(synthetic.info[name]) for name in ("mean", "std", "classes") if name in synthetic.info}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return {"": buffer.getvalue()}, read_back


def _png(synthetic: SyntheticSet, zca: ZCA | None) -> tuple[Files, dict[str, Any]]:
    if empty := [label for label, size in enumerate(synthetic.class_sizes) if not size]:
        raise ValueError(f"classes {empty} have no image, and folders without them would number the classes wrongly")
    files, digits = {}, len(str(synthetic.num_classes - 1))
    pixels, (_, hard) = _pixels(synthetic, zca), synthetic.decode()
    pictures = (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (M, H, W, C)
    for row, (picture, label) in enumerate(zip(pictures, hard.tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(buffer, "PNG")
        files[f"{label:0{digits}d}/{row:05d}.png"] = buffer.getvalue()
    return files, {"format": "folder"}


def _pixels(synthetic: SyntheticSet, zca: ZCA | None) -> Tensor:
    """Return the decoded images (M, C, H, W) as pixels, not clipped."""
    if synthetic.whitening == "none":
        return DecodedDataset(synthetic, normalise=False).images.detach()
    if zca is None:
        raise ValueError(
            "pictures of a whitened set need the whitening to undo: pass zca=ZCA.fit(training images, "
            f"{synthetic.zca_epsilon})"
        )
    return zca.undo(synthetic.decode_images().detach())


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy that other projects can read: on the CPU, float32 or int64, without gradient or shared storage."""
    return tensor.detach().cpu().to(torch.float32 if tensor.is_floating_point() else torch.int64).clone()


def _lost(synthetic: SyntheticSet, format: str, zca: ZCA | None) -> list[str]:
    """Return what a layout does not preserve."""
    stored, decoded = len(synthetic.canvases), sum(synthetic.decoded_sizes)
    lost = []
    if decoded != stored or synthetic.frequencies is not None:
        lost.append(f"that {decoded} images are stored as {stored} canvases ({synthetic.stored_floats:,} floats)")
    preserved = {"mtt": {"step_size"}}.get(format, set())
    if more := sorted(synthetic.extras.keys() - preserved):
        lost.append(f"the learned numbers {', '.join(more)}")
    if format == "mtt" and synthetic.soft_labels is not None:
        others = int((synthetic.soft_labels.argmax(1) != synthetic.decode()[1]).sum())
        lost += [f"the class of {others} images whose largest soft label is another one"] if others else []
    if format == "png":
        pixels = _pixels(synthetic, zca)
        outside = ((pixels < 0) | (pixels > 1)).float().mean().item()
        lost.append(f"more than 8 bits per channel, and what lies outside [0, 1], {100 * outside:.1f} % of the numbers")
        lost += ["the soft labels"] if synthetic.soft_labels is not None else []
    lost.append("the metadata, such as the method and the statistics" if format != "npz" else "the metadata")
    return lost


WRITERS: dict[str, Callable[[SyntheticSet, ZCA | None], tuple[Files, dict[str, Any]]]] = {
    "mtt": _mtt,
    "dc": _dc,
    "npz": _npz,
    "png": _png,
}
