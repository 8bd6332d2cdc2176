"""ZCA whitening, which decorrelates pixels and equalises their variances, as MTT does to its images.

MTT, FTD and DATM whiten by kornia's ``ZCAWhitening(eps=0.1)``, which also divides the covariance by N − 1 and adds
epsilon to the variances.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamlib.data.types import DatasetInfo, allocate, as_float

EPSILON = 0.1  # MTT's value, for pixels in [0, 1]
CHUNK = 4096  # images converted to float64 at a time; bounds memory


@dataclass(frozen=True)
class ZCA:
    """The map x → (x − mean) · U (Λ + ε)^(−1/2) Uᵀ, where U Λ Uᵀ is the pixels' covariance.

    mean: (D,) float64, D = C·H·W.
    matrix: (D, D) float64, U (Λ + ε)^(−1/2) Uᵀ.
    inverse: (D, D) float64, its inverse.

    A principal direction of variance λ gets the variance λ / (λ + ε): close to 1 for large λ, while noise in directions
    of small λ is not amplified.

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
        """Return the whitening by the sample covariance, over N − 1, of images (N, C, H, W).

        Fit on training images only, so that nothing of the test images reaches a network. Raise ValueError for fewer
        than 2 images or an ``epsilon`` that is not positive.
        """
        if len(images) < 2:
            raise ValueError(f"the covariance of whitening needs at least 2 images; got {len(images)}")
        if not epsilon > 0:
            raise ValueError(
                f"epsilon = {epsilon} must be above 0, for example {EPSILON}: constant pixels are divided by it"
            )
        chunks = images.flatten(1).split(CHUNK)
        mean = torch.stack([as_float(chunk).double().sum(0) for chunk in chunks]).sum(0) / len(images)  # (D,)
        covariance = allocate("the pixels' covariances", (len(mean),) * 2, mean.dtype, mean.device).zero_()  # (D, D)
        for chunk in chunks:
            centred = as_float(chunk).double() - mean
            covariance += centred.T @ centred
        variances, directions = torch.linalg.eigh(covariance / (len(images) - 1))
        scale = (variances.clamp_min(0) + epsilon).sqrt()  # rounding may yield variances like −1e-17
        return cls(mean, (directions / scale) @ directions.T, (directions * scale) @ directions.T)

    def apply(self, images: Tensor) -> Tensor:
        """Return whitened images (N, C, H, W), unbounded: of the given images' dtype, or float32 for bytes."""
        return self._mapped(images, lambda x: (x - self.mean.to(x.device)) @ self.matrix.to(x.device))

    def undo(self, images: Tensor) -> Tensor:
        """Invert ``apply``; results for distilled images may lie outside [0, 1]."""
        return self._mapped(images, lambda x: x @ self.inverse.to(x.device) + self.mean.to(x.device))

    def _mapped(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        pixels = images[0].numel() if len(images) else len(self.mean)
        if pixels != len(self.mean):
            raise ValueError(
                f"the whitening is of {len(self.mean)} pixels; the images {tuple(images.shape)} have {pixels}"
            )
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
        chunks = [function(as_float(chunk).double()).to(dtype) for chunk in images.flatten(1).split(CHUNK)]
        return torch.cat(chunks).view(images.shape)


def whitened_info(info: DatasetInfo, epsilon: float = EPSILON) -> DatasetInfo:
    """Return the description of a data set's images whitened with ``epsilon``: mean 0, std 1, not bounded.

    >>> info = DatasetInfo("toy", ("a", "b"), 1, 2, mean=(0.5,), std=(0.25,))
    >>> whitened_info(info).normalise(torch.ones(1, 1, 1, 1)).item(), whitened_info(info).bounded
    (1.0, False)
    """
    return replace(info.unbounded(), whitening="zca", zca_epsilon=epsilon, normalised_by=None)
