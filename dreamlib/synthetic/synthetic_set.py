"""The distilled set: canvases and labels, and the safetensors file that stores them."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from dreamlib._engine.files import find_above, write_atomically
from dreamlib.data.whitening import EPSILON
from dreamlib.synthetic import frequency
from dreamlib.synthetic.checks import (
    check_bounds,
    check_probabilities,
    check_shapes,
    check_soft_shape,
    check_values,
    count_classes,
)
from dreamlib.synthetic.decode import decode, formation, tile

FORMAT = "dreamlib-set-1"


@dataclass(frozen=True)
class _LabelFacts:
    """Facts derived from the labels; ``replace`` passes them on while the label tensors are unchanged."""

    labels: Tensor
    soft_labels: Tensor | None
    class_sizes: tuple[int, ...]


@dataclass
class SyntheticSet:
    """Stored canvases with labels: what a distillation learns and a user trains on.

    canvases: (N, C, H, W). Pixels in [0, 1] if ``bounded``, else normalised or whitened pixels; under the rule 'dct',
        unbounded DCT coefficients (FreD).
    labels: (N,) integers, the class of each canvas. Classes may have unequal numbers of canvases, or none.
    num_classes: K.
    factor, rule: how a canvas is decoded; see ``dreamlib.synthetic.decode.formation``.
    soft_labels: (M, K) probabilities, one row per decoded image, those of a canvas one after the other; M = N·f² under
        the rules 'single' and 'dct'. None for a set with hard labels.
    extras: learned tensors by name, such as a step size.
    info: metadata, written to the file. Known keys give the units of the canvases: 'bounded'; 'mean' and 'std';
        'whitening' and 'zca_epsilon'; 'clamped', False for pixels that may lie a little outside [0, 1].
    frequencies: (k,) positions in H·W of the stored coefficients, for the rule 'dct' only.

    Canvases in another order are sorted by class, each with its rows of soft labels, and keep their order within a
    class. Raise ValueError, with the remedy, for invalid shapes or values (see ``dreamlib.synthetic.checks``).
    ``dataclasses.replace`` does not check the values of new canvases, so that a loop does not wait for a GPU; ``save``,
    ``open`` and ``evaluate`` check them.

    >>> made = SyntheticSet(torch.tensor([0.75, 0.25, 0.5]).view(3, 1, 1, 1), torch.tensor([2, 0, 2]), num_classes=3)
    >>> images, labels = made.decode()
    >>> images.flatten().tolist(), labels.tolist(), made.class_sizes
    ([0.25, 0.75, 0.5], [0, 2, 2], (1, 0, 2))
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
    _label_facts: "_LabelFacts | None" = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        check_shapes(self)
        facts = self._label_facts
        if facts is None or facts.labels is not self.labels or len(facts.class_sizes) != self.num_classes:
            self.labels = self.labels.long()
            self._label_facts = _LabelFacts(self.labels, self.soft_labels, count_classes(self.labels, self.num_classes))
            self._check_soft_labels()
            self._sort_by_class()
            check_values(self)
        else:
            self._check_soft_labels()
            if facts.soft_labels is not self.soft_labels:
                self._label_facts = replace(facts, soft_labels=self.soft_labels)
                if self.soft_labels is not None:
                    check_probabilities(self.soft_labels)

    def _check_soft_labels(self) -> None:
        if self.soft_labels is not None:
            check_soft_shape(self.soft_labels, sum(self.decoded_sizes), self.num_classes)

    def _sort_by_class(self) -> None:
        """Sort canvases, labels and rows of soft labels by class, unless they are sorted."""
        order = self.labels.argsort(stable=True)
        if torch.equal(order, torch.arange(len(order), device=order.device)):
            return
        soft_labels = self.soft_labels
        if soft_labels is not None:
            counts = torch.empty_like(order)  # (N,) rows of soft labels of each canvas, before the sorting
            counts[order] = order.new_tensor(self.factors).square()
            parts = soft_labels.split(counts.tolist())
            soft_labels = torch.cat([parts[row] for row in order.tolist()])
        self.canvases, self.labels, self.soft_labels = self.canvases[order], self.labels[order], soft_labels
        self._label_facts = _LabelFacts(self.labels, soft_labels, self.class_sizes)

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """Number of canvases of each class."""
        return self._label_facts.class_sizes

    @property
    def ipc(self) -> float:
        """Stored images per class: a whole number unless classes have unequal numbers, else their mean."""
        mean = len(self.canvases) / self.num_classes
        return int(mean) if mean.is_integer() else mean

    @property
    def whitening(self) -> str:
        """'none' or 'zca': the whitening of the stored images; real images used with them must be whitened alike."""
        return self.info.get("whitening", "none")

    @property
    def zca_epsilon(self) -> float:
        """Epsilon of the ZCA whitening of a whitened set."""
        return self.info.get("zca_epsilon", EPSILON)

    @property
    def bounded(self) -> bool:
        """Whether canvases hold pixels in [0, 1]; otherwise they are already normalised or whitened for the network."""
        return self.info.get("bounded", self.whitening == "none")

    def as_pixels(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) of a normalised set as pixels, not clipped; those of other sets unchanged."""
        if self.bounded or self.whitening != "none":
            return images
        mean, std = (torch.tensor(self.info[name], device=images.device).view(1, -1, 1, 1) for name in ("mean", "std"))
        return images * std + mean

    @property
    def factors(self) -> tuple[int, ...]:
        """The factor of each canvas."""
        return tuple(factor for label in range(self.num_classes) for factor in self.class_factors(label))

    def class_factors(self, label: int) -> tuple[int, ...]:
        """Return the factor of each canvas of one class."""
        return formation(self.class_sizes[label], self.factor, self.rule)

    @property
    def decoded_sizes(self) -> tuple[int, ...]:
        """Number of images that the canvases of each class decode to."""
        by_size = {size: sum(f**2 for f in formation(size, self.factor, self.rule)) for size in set(self.class_sizes)}
        return tuple(by_size[size] for size in self.class_sizes)

    @property
    def stored_floats(self) -> int:
        """Number of 32-bit floats in the set: pixels and soft labels.

        Under the rule 'dct', coefficients in place of pixels, and one bit per frequency for the mask of stored ones.
        ``learned_floats`` are not included.

        >>> SyntheticSet(torch.zeros(10, 1, 28, 28), torch.arange(10), 10, factor=2).stored_floats
        7840
        """
        soft = 0 if self.soft_labels is None else self.soft_labels.numel()
        images = self.canvases.numel()
        if self.frequencies is not None:
            _, channels, height, width = self.canvases.shape
            coefficients = len(self.canvases) * self.factor**2 * channels * len(self.frequencies)
            images = coefficients + frequency.mask_floats(height, width)
        return images + soft

    @property
    def learned_floats(self) -> int:
        """Number of learned floats other than images and labels, such as step sizes."""
        return sum(t.numel() for t in self.extras.values())

    def rows_of_class(self, label: int) -> slice:
        """Return the rows of one class's canvases."""
        first = sum(self.class_sizes[:label])
        return slice(first, first + self.class_sizes[label])

    def decode_class(self, label: int) -> Tensor:
        """Return one class's training images (n, C, H, W), differentiable with respect to the canvases."""
        canvases = self.canvases[self.rows_of_class(label)]
        if self.frequencies is not None:
            return frequency.unpack(canvases, self.frequencies, self.factor)
        factors, parts, start = self.class_factors(label), [canvases[:0]], 0
        for f in sorted(set(factors), reverse=True):  # formation() lists large factors first
            count = factors.count(f)
            parts.append(decode(canvases[start : start + count], f))
            start += count
        return parts[-1] if len(parts) <= 2 else torch.cat(parts)

    def decode(self) -> tuple[Tensor, Tensor]:
        """Return all training images (M, C, H, W) and class numbers (M,), class by class.

        M = N·f² under the rules 'single' and 'dct'.
        """
        if self.rule != "bound":
            return self.decode_images(), self.labels.repeat_interleave(self.factor**2)
        classes = [self.labels.new_full((size,), label) for label, size in enumerate(self.decoded_sizes)]
        return self.decode_images(), torch.cat(classes)

    def decode_images(self) -> Tensor:
        """Return the images of ``decode``, differentiable with respect to the canvases."""
        return torch.cat([self.decode_class(label) for label in range(self.num_classes)])

    def pictures(self) -> Tensor:
        """Return the canvases for display, (N, C, H, W); under the rule 'dct', the decoded images tiled.

        Tiled pictures are larger than H×W if the factor does not divide the side.
        """
        return self.canvases if self.frequencies is None else tile(self.decode()[0].detach(), self.factor, whole=True)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the file: ``info`` and what is derived from the tensors."""
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
        """Write one safetensors file atomically and return its SHA-256; equal sets give equal bytes.

        Raise ValueError, and write nothing, for invalid values (see ``dreamlib.synthetic.checks``).
        """
        check_values(self)
        check_bounds(self)
        tensors = {"canvases": self.canvases.detach().float(), "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels.detach().float()
        if self.frequencies is not None:
            tensors["frequencies"] = self.frequencies
        tensors |= {f"extra.{name}": t.detach().float() for name, t in self.extras.items()}
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        # A single metadata key, because safetensors does not keep the order of several and the bytes must not vary.
        payload = save(tensors, metadata={"dreamlib": json.dumps(self.metadata(), sort_keys=True)})
        write_atomically(path, payload)
        return hashlib.sha256(payload).hexdigest()

    @classmethod
    def open(cls, path: str | Path) -> "SyntheticSet":
        """Read a file written by ``save``.

        Raise FileNotFoundError if there is none, ValueError if it is damaged or of another format.
        """
        path = Path(path)
        if not path.is_file():
            hint = f', or give an ipc: load("{path}", ipc=1)' if path.suffix == "" else ""
            raise FileNotFoundError(f"no distilled set at {path}; make it with `dvc repro`, or check the path{hint}")
        try:
            with safe_open(path, "pt") as file:
                if "dreamlib" not in (metadata := file.metadata() or {}):
                    raise ValueError("it has no dreamlib metadata")
                info = json.loads(metadata["dreamlib"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if info["format"] != FORMAT:
                raise ValueError(f"its format is {info['format']}")
            required = (tensors["canvases"], tensors["labels"], info["num_classes"], info["factor"], info["decode"])
            extras = {name.removeprefix("extra."): t for name, t in tensors.items() if name.startswith("extra.")}
            opened = cls(*required, tensors.get("soft_labels"), extras, info, tensors.get("frequencies"))
            check_bounds(opened)
            return opened
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a complete distilled set of format {FORMAT} ({error}); restore it with `git checkout` "
                "or make it again with `dvc repro`"
            ) from error

    def to(self, device: torch.device | str) -> "SyntheticSet":
        """Return the set on another device."""
        labels = self.labels.to(device)
        soft_labels = None if self.soft_labels is None else self.soft_labels.to(device)
        return replace(
            self,
            canvases=self.canvases.to(device),
            labels=labels,
            soft_labels=soft_labels,
            extras={name: t.to(device) for name, t in self.extras.items()},
            frequencies=None if self.frequencies is None else self.frequencies.to(device),
            _label_facts=_LabelFacts(labels, soft_labels, self.class_sizes),
        )


class DecodedDataset(Dataset[tuple[Tensor, Tensor]]):
    """A decoded set as a map-style torch data set of (image, label) pairs.

    source: the distilled set, also available as attribute ``set``.
    normalise: return images normalised for the networks; otherwise pixels, which lie in [0, 1] if ``set.bounded``.
        Whitened images (``set.whitening``) are returned as stored in both cases.

    Attributes: ``images`` (M, C, H, W); ``labels``, (M,) class numbers or, for a set with soft labels, (M, K)
    probabilities. Raise ValueError if images are to be normalised and the set has no statistics.
    """

    def __init__(self, source: SyntheticSet, normalise: bool = True) -> None:
        self.set = source
        images, hard = source.decode()
        if not normalise:
            images = source.as_pixels(images)
        elif source.bounded:
            if "mean" not in source.info:
                raise ValueError(
                    "the set has no normalisation statistics: import it with data=NAME, or pass normalise=False"
                )
            mean, std = (torch.tensor(source.info[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
            images = (images - mean) / std
        self.images = images
        self.labels = hard if source.soft_labels is None else source.soft_labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.labels[row]


BEST_FOLDER = Path("results") / "best"  # holds the best set of each data set and ipc


def best_path(dataset: str, ipc: int) -> Path:
    """Return the file of the best set of a data set at ``ipc`` stored images per class.

    Search the nearest folder results/best at or above the working directory or, if there is none, that of this
    library's source tree. Raise FileNotFoundError, listing the available sets, if the set is missing.
    """
    folder = find_above(BEST_FOLDER) or Path(__file__).parents[2] / BEST_FOLDER
    path = folder / f"{dataset}-ipc{ipc}.safetensors"
    if not path.is_file():
        available = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no set {path.stem} in {BEST_FOLDER}; available: {available}. Load any other set by its path"
        )
    return path


def load(path: str | Path, normalise: bool = True, *, ipc: int | None = None) -> DecodedDataset:
    """Return the decoded images and labels of a distilled set, ready for a ``DataLoader``.

    path: the set's file or, with ``ipc``, the name of a data set.
    normalise: see ``DecodedDataset``.
    ipc: stored images per class: ``load("fashion_mnist", ipc=10)`` loads the best known set (see ``best_path``).

    A network trained on a set whose ``set.whitening`` is 'zca' expects whitened images: whiten real ones by
    ``ZCA.fit(training_images, set.zca_epsilon).apply(images)`` (``dreamlib.data.whitening``); do not normalise them.

    Raise FileNotFoundError for a missing file, ValueError for a damaged file or one of another format.
    """
    return DecodedDataset(SyntheticSet.open(path if ipc is None else best_path(str(path), ipc)), normalise)
