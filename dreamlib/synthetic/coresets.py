"""Coresets: real images selected once per class by their features, as baselines without distillation."""

from abc import abstractmethod

import torch
from torch import Tensor

from dreamlib._engine.seeding import generator
from dreamlib.sampling.real_batches import class_pool
from dreamlib.synthetic.initial import INITS, RealImages, StartState


class SelectedImages(RealImages):
    """Real images that a subclass selects by their features, one class at a time."""

    uses_pool = True

    def rows(self, state: StartState) -> Tensor:
        """See ``RealImages.rows``; raise ValueError for a class, or a pool, with too few images."""
        embed, rows, count = state.embedder(), [], state.count
        for label in range(state.data.num_classes):
            rng = generator(state.seed, "init-selection", label, count)
            members = class_pool(state.pixels, label, state.pool, rng)
            if count > len(members):
                raise ValueError(f"cannot select {count} of {len(members)} images of a class; select at most as many")
            selected = self.select(embed(state.pixels.pixels(members)), count)
            rows.append(members[selected.to(members.device)])
        return torch.stack(rows)

    @abstractmethod
    def select(self, features: Tensor, count: int) -> Tensor:
        """Return ``count`` rows (count,) of the features (n, D) of a class, 1 ≤ count ≤ n, no row twice."""


@INITS.register("herding")
class Herding(SelectedImages):
    """Real images whose mean feature is closest to the class's (Welling, ICML 2009, in iCaRL's form)."""

    def select(self, features: Tensor, count: int) -> Tensor:
        """Select rows greedily so that their mean stays closest to the overall mean; ties go to the lower row.

        The mean of the example is 4; the means of the selected are 4, (4 + 3) / 2 and (4 + 3 + 9) / 3:

        >>> Herding().select(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()
        [2, 1, 3]
        """
        features = features.double()
        mean, total = features.mean(0), torch.zeros_like(features[0])
        selected: list[int] = []
        for k in range(1, count + 1):
            distances = ((total + features) / k - mean).square().sum(1)  # (n,)
            distances[selected] = torch.inf
            selected.append(int(distances.argmin()))
            total = total + features[selected[-1]]
        return torch.tensor(selected, device=features.device)


@INITS.register("k_center")
class KCenter(SelectedImages):
    """Real images such that no image of the class is far from all of them: greedy k-center.

    The largest distance to a selected image is at most twice the optimum (Gonzalez 1985; Sener and Savarese, ICLR
    2018).
    """

    def select(self, features: Tensor, count: int) -> Tensor:
        """Return the row nearest to the mean, then repeatedly the row farthest from those selected (ties: the lower).

        The mean of the example is 4; 9 is the farthest from 4, and then 0 from both:

        >>> KCenter().select(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()
        [2, 3, 0]
        """
        features = features.double()
        selected = [int((features - features.mean(0)).square().sum(1).argmin())]
        nearest = (features - features[selected[0]]).square().sum(1)  # (n,): squared distance to the nearest selected
        while len(selected) < count:
            nearest[selected] = -1.0  # below the 0 of a duplicate image, so that no row is selected twice
            selected.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, (features - features[selected[-1]]).square().sum(1))
        return torch.tensor(selected, device=features.device)
