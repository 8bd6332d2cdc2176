"""Checks of a distilled set: its shapes, its values, and its agreement with real images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamlib.data.types import DatasetInfo
from dreamlib.data.whitening import EPSILON
from dreamlib.synthetic.decode import formation

if TYPE_CHECKING:
    from dreamlib.synthetic.synthetic_set import SyntheticSet

ROUNDING = 1e-4  # how far pixels may lie outside [0, 1]
OVERSHOOT = 0.5  # the same for pixels that were never clamped; normalised images exceed it
SUM_ROUNDING = 5e-3  # how far a sum of probabilities may be from 1; bfloat16 rounds to 2^-9


def check_shapes(synthetic: "SyntheticSet") -> None:
    """Raise ValueError unless canvases, labels, factor and frequencies fit each other; read no values."""
    canvases, labels, factor = synthetic.canvases, synthetic.labels, synthetic.factor
    if canvases.ndim != 4 or not canvases.is_floating_point() or not canvases.numel():
        raise ValueError(
            f"canvases must be at least one image (N, C, H, W) of floats; got {canvases.dtype} {tuple(canvases.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != canvases.shape[:1]:
        raise ValueError(
            f"labels must be class numbers (N,), one per canvas ({len(canvases)}); got {labels.dtype} "
            f"{tuple(labels.shape)}; probabilities belong in soft_labels"
        )
    if synthetic.num_classes < 1:
        raise ValueError(f"num_classes = {synthetic.num_classes} must be at least 1")
    formation(1, factor, synthetic.rule)  # rejects an unknown rule
    height, width = canvases.shape[2:]
    if not 1 <= factor <= min(height, width):
        raise ValueError(f"factor = {factor} must lie between 1 and the side of the canvases, {min(height, width)}")
    if (height % factor or width % factor) and not synthetic.bounded:
        raise ValueError(
            f"factor = {factor} does not divide the side of the {height}×{width} canvases: the rest is filled with "
            "grey 0.5, which requires canvases of pixels in [0, 1]"
        )
    frequencies = synthetic.frequencies
    if (synthetic.rule == "dct") != (frequencies is not None):
        raise ValueError(f"frequencies belong to the rule 'dct' and to no other rule; the rule is '{synthetic.rule}'")
    if frequencies is not None and len(frequencies) * factor**2 > height * width:
        raise ValueError(
            f"{len(frequencies)} frequencies of {factor**2} images do not fit into {height}×{width} canvases"
        )


def count_classes(labels: Tensor, num_classes: int) -> tuple[int, ...]:
    """Return the number of canvases of each class; raise ValueError for labels outside [0, K)."""
    lowest, highest = _range(labels)
    if lowest < 0 or highest >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), the number of classes; got {lowest}..{highest}")
    return tuple(labels.bincount(minlength=num_classes).tolist())


def check_soft_shape(soft_labels: Tensor, images: int, num_classes: int) -> None:
    """Raise ValueError unless there is one row of K floats per decoded image."""
    if tuple(soft_labels.shape) != (images, num_classes) or not soft_labels.is_floating_point():
        raise ValueError(
            f"soft_labels must be floats ({images}, {num_classes}), one row per decoded image; got "
            f"{soft_labels.dtype} {tuple(soft_labels.shape)}"
        )


def are_probabilities(labels: Tensor) -> bool:
    """Return whether all rows (n, K) are non-negative and sum to 1, up to rounding."""
    sums = labels.double().sum(1)
    return bool((labels >= 0).all() and ((sums - 1).abs() <= SUM_ROUNDING).all())


def check_probabilities(soft_labels: Tensor) -> None:
    """Raise ValueError unless the rows (n, K) are probabilities; for logits, the message has the remedy."""
    if not are_probabilities(soft_labels):
        (low, high), (low_sum, high_sum) = _range(soft_labels), _range(soft_labels.sum(1))
        raise ValueError(
            "soft_labels must be probabilities, non-negative and with a sum of 1 in each row; got values in "
            f"[{low:.4g}, {high:.4g}] and sums in [{low_sum:.4g}, {high_sum:.4g}]; for logits, store logits.softmax(1)"
        )


def check_values(synthetic: "SyntheticSet") -> None:
    """Raise ValueError unless values are finite, soft labels probabilities, and the metadata valid.

    Pixels must lie in [0, 1] if the metadata has the key 'bounded' (see ``check_bounds``). Synchronises with a GPU.
    """
    tensors = {"canvases": synthetic.canvases, **synthetic.extras}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ValueError(f"{count} of {tensor.numel()} numbers in {name} are infinite or not a number")
    if synthetic.soft_labels is not None:
        check_probabilities(synthetic.soft_labels)
    frequencies, pixels = synthetic.frequencies, synthetic.canvases[0, 0].numel()
    if frequencies is not None:
        lowest, highest = _range(frequencies)
        if not 0 <= lowest <= highest < pixels:
            raise ValueError(f"frequencies must be positions below {pixels}, H·W; got {lowest}..{highest}")
    check_info(synthetic)
    if "bounded" in synthetic.info:
        check_bounds(synthetic)


def _range(tensor: Tensor) -> tuple[float, float]:
    lowest, highest = tensor.detach().aminmax()
    return lowest.item(), highest.item()


def check_info(synthetic: "SyntheticSet") -> None:
    """Raise ValueError for invalid whitening, bounds or statistics."""
    info, channels = synthetic.info, synthetic.canvases.shape[1]
    if synthetic.whitening not in ("none", "zca"):
        raise ValueError(f"whitening must be 'none' or 'zca'; got '{synthetic.whitening}'")
    if synthetic.whitening != "none" and synthetic.bounded:
        raise ValueError("whitened canvases have no bounds: set bounded to False, or whitening to 'none'")
    for name in ("mean", "std"):
        values = info.get(name, [1.0] * channels)
        if len(values) != channels or not torch.tensor(values).isfinite().all():
            raise ValueError(f"{name} must be one number per channel ({channels}); got {values}")
    if min(info.get("std", [1.0])) <= 0:
        raise ValueError(f"std must be above 0 in every channel; got {info['std']}")


def check_bounds(synthetic: "SyntheticSet") -> None:
    """Raise ValueError if pixels of a bounded set lie outside [0, 1], or far outside if they were never clamped."""
    if synthetic.rule == "dct" or not synthetic.bounded:
        return
    lowest, highest = _range(synthetic.canvases)
    margin = ROUNDING if synthetic.info.get("clamped", True) else OVERSHOOT
    if lowest < -margin or highest > 1 + margin:
        raise ValueError(
            f"the canvases must hold pixels in [0, 1]; got [{lowest:.4g}, {highest:.4g}]: normalised or whitened "
            "canvases need bounded: False in the set's info, and the statistics they were normalised by"
        )


def check_units(synthetic: "SyntheticSet", info: DatasetInfo) -> None:
    """Raise ValueError unless real images described by ``info`` are in the units of the set's decoded images.

    Number of classes, shape, bounds, whitening with its epsilon, mean and std are compared, each if both specify it.
    A set without metadata is taken to be in the units of the real images.
    """
    shape, real_shape = tuple(synthetic.canvases.shape[1:]), (info.channels, info.size, info.size)
    if synthetic.num_classes != info.num_classes or shape != real_shape:
        raise ValueError(
            f"the set has {synthetic.num_classes} classes of {shape} images, {info.name} has {info.num_classes} of "
            f"{real_shape}: evaluate the set on the data that it was distilled from"
        )
    if info.bounded:
        check_bounds(synthetic)
    if not synthetic.info:
        return
    if synthetic.whitening != info.whitening:
        _differ("whitening", synthetic.whitening, info.whitening)
    if synthetic.whitening != "none" and synthetic.zca_epsilon != (info.zca_epsilon or EPSILON):
        _differ("epsilon of the ZCA whitening", synthetic.zca_epsilon, info.zca_epsilon or EPSILON)
    if synthetic.bounded != info.bounded:
        units = {True: "pixels in [0, 1]", False: "normalised or whitened pixels"}
        _differ("units", units[synthetic.bounded], units[info.bounded])
    statistics = (info.mean, info.std) if info.bounded else info.normalised_by
    if synthetic.whitening != "none" or "mean" not in synthetic.info or statistics is None:
        return
    for name, values in zip(("mean", "std"), statistics, strict=True):
        if not _close(synthetic.info[name], values):
            _differ(name, list(synthetic.info[name]), list(values))


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    return torch.allclose(*(torch.tensor(list(v), dtype=torch.float64) for v in (first, second)), rtol=0, atol=1e-6)


def _differ(what: str, set_value: object, real_value: object) -> None:
    raise ValueError(
        f"{what} of the set and of the real images differ: {set_value} and {real_value}; bring the real images into "
        "the units of the set: normalise by its info['mean'] and info['std'], or whiten by "
        "ZCA.fit(training_images, set.zca_epsilon).apply(images); then describe them by info.unbounded() or "
        "whitened_info(info, set.zca_epsilon)"
    )
