"""ZCA whitening: pixels made uncorrelated and of one scale, turned back so that images stay images (MTT's input)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamlib.data.types import DatasetInfo

EPSILON = 0.1  # MTT's, for pixels in [0, 1] that are not normalised otherwise
CHUNK = 4096  # images widened to float64 at a time; bounds memory


@dataclass(frozen=True)
class ZCA:
    """x → (x − mean) · U (Λ + ε)^(−1/2) Uᵀ, with U Λ Uᵀ the covariance of the pixels it was fitted on.

    ``mean`` is (D,), ``matrix`` and ``inverse`` are (D, D), float64, D = C·H·W. A direction of variance λ gets variance
    λ / (λ + ε): strong ones nearly 1, weak ones are not blown up, and constant pixels do no harm.

    >>> images = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> zca = ZCA.fit(images)
    >>> zca.apply(images).shape, torch.allclose(zca.undo(zca.apply(images)), images)
    (torch.Size([50, 1, 4, 4]), True)
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, images: Tensor, epsilon: float = EPSILON) -> "ZCA":
        """The whitening of (N, C, H, W) images, by the sample covariance (over N − 1) of their pixels.

        Fit it on training images only: what it knows of others would leak into every network that sees its output.
        Raises ValueError for fewer than 2 images or an ``epsilon`` that is not positive.
        """
        if len(images) < 2:
            raise ValueError(f"whitening needs at least 2 images to know a covariance; got {len(images)}")
        if not epsilon > 0:
            raise ValueError(
                f"epsilon = {epsilon} must be above 0, for example {EPSILON}: constant pixels divide by it"
            )
        parts = images.flatten(1).split(CHUNK)
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(images)  # (D,)
        covariance = mean.new_zeros(len(mean), len(mean))  # (D, D)
        for part in parts:
            centred = part.double() - mean
            covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / (len(images) - 1))
        scale = (variances.clamp_min(0) + epsilon).sqrt()  # rounding can leave a variance of −1e-17
        return cls(mean, (directions / scale) @ directions.T, (directions * scale) @ directions.T)

    def apply(self, images: Tensor) -> Tensor:
        """Whitened (N, C, H, W) images, of the dtype and on the device of those given; no longer within [0, 1]."""
        return self._mapped(images, lambda x: (x - self.mean.to(x.device)) @ self.matrix.to(x.device))

    def undo(self, images: Tensor) -> Tensor:
        """The images that ``apply`` would whiten into the given ones; of a distilled image, perhaps outside [0, 1]."""
        return self._mapped(images, lambda x: x @ self.inverse.to(x.device) + self.mean.to(x.device))

    def _mapped(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        pixels = images[0].numel() if len(images) else len(self.mean)
        if pixels != len(self.mean):
            raise ValueError(
                f"the whitening is of {len(self.mean)} pixels; the images {tuple(images.shape)} have {pixels}"
            )
        parts = [function(part.double()).to(images.dtype) for part in images.flatten(1).split(CHUNK)]
        return torch.cat(parts).view(images.shape)


def whitened_info(info: DatasetInfo) -> DatasetInfo:
    """The data set after whitening: nothing is left to normalise, and pixels have no bounds.

    >>> info = DatasetInfo("toy", ("a", "b"), 1, 2, mean=(0.5,), std=(0.25,))
    >>> whitened_info(info).normalise(torch.ones(1, 1, 1, 1)).item(), whitened_info(info).bounded
    (1.0, False)
    """
    return replace(info.unbounded(), whitening="zca")
