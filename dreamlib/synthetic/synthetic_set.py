"""The distilled set: stored canvases, how they decode into training images, and the file that carries them."""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dreamlib._engine.files import write_atomically
from dreamlib.synthetic import frequency
from pipeline.params import find_root

FORMAT = "dreamlib-set-1"
BOUND = 128  # decoded images per class that the 'bound' rule never exceeds (IDC's released setting)
DECODE_RULES = ("single", "bound", "dct")


def formation(ipc: int, factor: int, rule: str = "single", bound: int = BOUND) -> tuple[int, ...]:
    """The factor each of a class's ``ipc`` canvases is cut by.

    'single' cuts every canvas by ``factor``. 'bound' (IDC, for large f and ipc) cuts some canvases by ``factor``, the
    next by factor − 1 and so on, so that a class never decodes to more than ``bound`` images; how many of each is the
    released code's rule. 'dct' counts as 'single'.

    >>> formation(3, 2), formation(40, 3, "bound")[8:14]
    ((2, 2, 2), (3, 2, 2, 2, 2, 1))
    """
    if rule not in DECODE_RULES:
        raise ValueError(f"decode must be one of {', '.join(DECODE_RULES)}; got '{rule}'")
    if rule != "bound":
        return (factor,) * ipc
    factors: list[int] = []
    for f in range(factor, 0, -1):
        left = ipc - len(factors)
        # Every canvas left yields at least one image; the room beyond that pays for cutting some of them finer.
        room = bound - sum(g * g for g in factors) - left
        factors += [f] * (left if f == 1 else min(left, max(0, room // (f * f))))
    return tuple(factors)


def decode(canvases: Tensor, factor: int) -> Tensor:
    """Cut each canvas into factor² crops (row-major), each enlarged to the canvas's size (multi-formation, IDC §4).

    (N, C, H, W) → (N·factor², C, H, W), the crops of one canvas in a row; differentiable. A side that ``factor`` does
    not divide is padded with 0.5 at the bottom and right.

    >>> decode(torch.arange(16.).view(1, 1, 4, 4), 4)[6].unique().item()
    6.0
    """
    if factor == 1:
        return canvases
    n, c, h, w = canvases.shape
    crop_h, crop_w = math.ceil(h / factor), math.ceil(w / factor)
    padded = F.pad(canvases, (0, crop_w * factor - w, 0, crop_h * factor - h), value=0.5)
    crops = padded.view(n, c, factor, crop_h, factor, crop_w).permute(0, 2, 4, 1, 3, 5)  # (N, f, f, C, h, w)
    crops = crops.reshape(n * factor**2, c, crop_h, crop_w)
    return F.interpolate(crops, size=(h, w), mode="bilinear", align_corners=False)


def tile(images: Tensor, factor: int, shrink: str = "area", *, whole: bool = False) -> Tensor:
    """factor² images in a row → one canvas: each shrunk to 1/factor and laid row-major; undone by ``decode``.

    (n·factor², C, H, W) → (n, C, H, W). 'area' averages pixels; 'nearest' drops them, as the released code does. Where
    factor does not divide the side, the canvas keeps the top-left H×W of the tiling, or with ``whole`` all of it.

    >>> tile(torch.arange(4.).view(4, 1, 1, 1).expand(4, 1, 2, 2), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    if factor == 1:
        return images
    _, c, h, w = images.shape
    size = (math.ceil(h / factor), math.ceil(w / factor))
    small = F.interpolate(images, size=size, mode=shrink)
    grid = small.view(-1, factor, factor, c, *size).permute(0, 3, 1, 4, 2, 5)  # (n, C, f, h, f, w)
    grid = grid.reshape(-1, c, size[0] * factor, size[1] * factor)
    return grid if whole else grid[:, :, :h, :w].contiguous()


@dataclass
class SyntheticSet:
    """K·ipc stored canvases with labels; what a distillation run changes and what a user takes away.

    ``canvases`` (K·ipc, C, H, W) ordered by class, in [0, 1] if ``bounded``, else normalised or whitened pixels without
    bounds; ``labels`` (K·ipc,). Under the rule 'dct' they hold coefficients without bounds, of the ``frequencies`` (k,)
    that all images keep (FreD). ``soft_labels``, when a method stores them, is (K·ipc·f², K) probabilities, one row per
    decoded image. ``extras`` holds learned scalars such as a step size. ``info`` is the metadata written into the file.
    """

    canvases: Tensor
    labels: Tensor
    num_classes: int
    factor: int = 1
    rule: str = "single"
    soft_labels: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    frequencies: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.rule == "dct") != (self.frequencies is not None):
            raise ValueError(f"frequencies belong to the rule 'dct' and to no other; the rule is '{self.rule}'")

    @property
    def ipc(self) -> int:
        """Stored images per class."""
        return len(self.canvases) // self.num_classes

    @property
    def whitening(self) -> str:
        """What the stored images went through, 'none' or 'zca': real images to go with them must go through it too."""
        return self.info.get("whitening", "none")

    @property
    def bounded(self) -> bool:
        """Whether canvases hold pixels in [0, 1]; otherwise they are normalised by the statistics of ``info``, or
        whitened, and go to networks as they are.
        """
        return self.info.get("bounded", self.whitening == "none")

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return images in the units of the canvases without their normalisation, where they have one; not clipped."""
        if self.bounded or self.whitening != "none":
            return images
        mean, std = (torch.tensor(self.info[name], device=images.device).view(1, -1, 1, 1) for name in ("mean", "std"))
        return images * std + mean

    @property
    def factors(self) -> tuple[int, ...]:
        """The factor of each canvas of one class."""
        return formation(self.ipc, self.factor, self.rule)

    @property
    def decoded_per_class(self) -> int:
        """How many images the canvases of one class decode to."""
        return sum(factor**2 for factor in self.factors)

    @property
    def stored_floats(self) -> int:
        """Numbers the set stores: pixels, plus soft labels where there are any.

        Under 'dct' coefficients in place of pixels, and the mask of kept frequencies, a bit for each.
        ``learned_floats`` come on top under a protocol that uses them.

        >>> SyntheticSet(torch.zeros(10, 1, 28, 28), torch.arange(10), 10, factor=2).stored_floats
        7840
        """
        soft = 0 if self.soft_labels is None else self.soft_labels.numel()
        images = self.canvases.numel()
        if self.frequencies is not None:
            _, channels, height, width = self.canvases.shape
            kept = len(self.canvases) * self.factor**2 * channels * len(self.frequencies)
            images = kept + frequency.mask_floats(height, width)
        return images + soft

    @property
    def learned_floats(self) -> int:
        """Numbers learned beside images and labels, such as step sizes."""
        return sum(t.numel() for t in self.extras.values())

    def rows_of_class(self, label: int) -> slice:
        """Where one class's canvases lie."""
        return slice(label * self.ipc, (label + 1) * self.ipc)

    def decode_class(self, label: int) -> Tensor:
        """One class's training images (n, C, H, W), differentiable with respect to the canvases."""
        canvases = self.canvases[self.rows_of_class(label)]
        if self.frequencies is not None:
            return frequency.unpack(canvases, self.frequencies, self.factor)
        factors, parts, start = self.factors, [], 0
        for f in sorted(set(factors), reverse=True):  # formation() lists large factors first
            count = factors.count(f)
            parts.append(decode(canvases[start : start + count], f))
            start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self) -> tuple[Tensor, Tensor]:
        """All training images (M, C, H, W) and labels (M,), class by class; M = K·ipc·f² under the 'single' rule."""
        classes = torch.arange(self.num_classes, device=self.canvases.device)
        return self.decode_images(), classes.repeat_interleave(self.decoded_per_class)

    def decode_images(self) -> Tensor:
        """The images of ``decode`` alone, differentiable with respect to the canvases."""
        return torch.cat([self.decode_class(label) for label in range(self.num_classes)])

    def pictures(self) -> Tensor:
        """The canvases as a person may look at them, (K·ipc, C, H, W): coefficients decoded, shrunk and tiled.

        Tiles of a factor that does not divide the side are kept whole, in pictures that much larger.
        """
        return self.canvases if self.frequencies is None else tile(self.decode()[0].detach(), self.factor, whole=True)

    def metadata(self) -> dict[str, Any]:
        """What the file says of itself."""
        return {
            **self.info,
            "format": FORMAT,
            "num_classes": self.num_classes,
            "ipc": self.ipc,
            "factor": self.factor,
            "decode": self.rule,
            "label_kind": "hard" if self.soft_labels is None else "soft",
            "stored_floats": self.stored_floats,
        }

    def save(self, path: str | Path) -> str:
        """Write one safetensors file atomically; returns its SHA-256. The same set gives the same bytes."""
        tensors = {"canvases": self.canvases.detach().float(), "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels.detach().float()
        if self.frequencies is not None:
            tensors["frequencies"] = self.frequencies
        tensors |= {f"extra.{name}": t.detach().float() for name, t in self.extras.items()}
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        # One metadata key only: safetensors does not keep the order of several, and the bytes must not vary.
        payload = save(tensors, metadata={"dreamlib": json.dumps(self.metadata(), sort_keys=True)})
        write_atomically(path, payload)
        return hashlib.sha256(payload).hexdigest()

    @classmethod
    def open(cls, path: str | Path) -> "SyntheticSet":
        """Read a file written by ``save``; raises FileNotFoundError or ValueError that say what to do."""
        path = Path(path)
        if not path.is_file():
            named = f', or name an ipc: load("{path}", ipc=1)' if path.suffix == "" else ""
            raise FileNotFoundError(f"no distilled set at {path}; make it with `dvc repro`, or check the path{named}")
        try:
            with safe_open(path, "pt") as file:
                if "dreamlib" not in (metadata := file.metadata() or {}):
                    raise ValueError("it does not say that it is one")
                info = json.loads(metadata["dreamlib"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if info["format"] != FORMAT:
                raise ValueError(f"its format is {info['format']}")
            parts = (tensors["canvases"], tensors["labels"], info["num_classes"], info["factor"], info["decode"])
            extras = {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}
            return cls(*parts, tensors.get("soft_labels"), extras, info, tensors.get("frequencies"))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a whole distilled set of format {FORMAT} ({error}); restore it with `git checkout` "
                "or make it again with `dvc repro`"
            ) from error

    def to(self, device: torch.device | str) -> "SyntheticSet":
        """The set on another device."""
        soft = None if self.soft_labels is None else self.soft_labels.to(device)
        extras = {name: t.to(device) for name, t in self.extras.items()}
        kept = None if self.frequencies is None else self.frequencies.to(device)
        moved = {"canvases": self.canvases.to(device), "labels": self.labels.to(device), "frequencies": kept}
        return replace(self, **moved, soft_labels=soft, extras=extras)


class DecodedDataset(Dataset[tuple[Tensor, Tensor]]):
    """A distilled set as an ordinary map-style data set of (image, label) pairs.

    ``images`` (M, C, H, W) and ``labels``, (M,) class numbers or (M, K) probabilities for soft-label sets; ``set`` is
    what they were decoded from. Images are normalised as the networks expect. A set that is not ``bounded`` stores them
    so, and gives the stored tensor. With ``normalise=False`` they are pixels, within [0, 1] only if ``set.bounded``;
    whitened images (``set.whitening``) come as they are stored either way.
    """

    def __init__(self, source: SyntheticSet, normalise: bool = True) -> None:
        self.set = source
        images, hard = source.decode()
        if not normalise:
            images = source.as_pixels(images)
        elif source.bounded:
            if "mean" not in source.info:
                raise ValueError("the set carries no normalisation statistics; pass normalise=False")
            shape = (1, -1, 1, 1)
            images = (images - torch.tensor(source.info["mean"]).view(shape)) / torch.tensor(source.info["std"]).view(
                shape
            )
        self.images = images
        self.labels = hard if source.soft_labels is None else source.soft_labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.labels[row]


BEST = Path("results") / "best"  # where the project keeps the best set of each data set and ipc


def best_path(dataset: str, ipc: int, root: Path | None = None) -> Path:
    """The file of the best set the project has for a data set at ``ipc`` stored images a class.

    Raises FileNotFoundError naming those there are.
    """
    try:
        folder = (root or find_root()) / BEST
    except FileNotFoundError:  # outside a project: the one this library was installed from
        folder = find_root(__file__) / BEST
    path = folder / f"{dataset}-ipc{ipc}.safetensors"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"no set {path.stem} in {BEST}; there are: {found}. Any other set loads by its path")
    return path


def load(path: str | Path, normalise: bool = True, *, ipc: int | None = None) -> DecodedDataset:
    """Decoded images and labels of a distilled set, ready for a ``DataLoader``.

    ``path`` is a set's file or, with ``ipc``, a data set's name: ``load("fashion_mnist", ipc=10)`` is the best set that
    the project around the current directory has for it, or else the one the library was installed from. A network
    trained on a set whose ``set.whitening`` is 'zca' knows whitened images only: ask it about real ones after
    ``dreamlib.data.whitening.ZCA.fit(training images).apply(…)``, without normalising them.

    Raises FileNotFoundError or ValueError with the remedy when the file is missing, torn or foreign.
    """
    return DecodedDataset(SyntheticSet.open(path if ipc is None else best_path(str(path), ipc)), normalise)
