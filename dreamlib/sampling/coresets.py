"""Coresets: which real images stand for a class, chosen once and never changed (the selection baselines).

``herding`` and ``k_center`` choose among one class's features; ``select`` does so for every class.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dreamlib._engine.registry import Registry
from dreamlib._engine.seeding import generator
from dreamlib.data.types import LabeledImages
from dreamlib.sampling.real_batches import Embed, class_pool

SELECTIONS: Registry[Callable[[Tensor, int], Tensor]] = Registry("selection")


def _check(features: Tensor, count: int) -> None:
    if not 1 <= count <= len(features):
        raise ValueError(f"cannot select {count} of {len(features)} images of a class; ask for 1 to {len(features)}")


@SELECTIONS.register("herding")
def herding(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of features (n, D) picked so that the mean of the picked stays closest to the mean of all.

    Greedy, no row twice, ties to the lower row (Welling, ICML 2009, in the form of iCaRL). Raises ValueError unless
    1 ≤ count ≤ n.

    >>> herding(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()  # mean 4: then 4, then (4 + 3)/2, (4 + 3 + 9)/3
    [2, 1, 3]
    """
    _check(features, count)
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    picked: list[int] = []
    for k in range(1, count + 1):
        distances = ((total + features) / k - mean).square().sum(1)  # (n,)
        distances[picked] = torch.inf
        picked.append(int(distances.argmin()))
        total = total + features[picked[-1]]
    return torch.tensor(picked, device=features.device)


@SELECTIONS.register("k_center")
def k_center(features: Tensor, count: int) -> Tensor:
    """Rows (count,) of features (n, D), each the one farthest from those before it; the first is nearest to the mean.

    The greedy answer to "no image far from a picked one", within twice the best radius (Gonzalez 1985; Sener and
    Savarese, ICLR 2018). No row twice, ties to the lower row. Raises ValueError unless 1 ≤ count ≤ n.

    >>> k_center(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()  # 4 is the mean, 9 is farthest, then 0
    [2, 3, 0]
    """
    _check(features, count)
    features = features.double()
    picked = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[picked[0]]).square().sum(1)  # (n,) to the nearest picked row
    while len(picked) < count:
        nearest[picked] = -1.0  # copies of a picked image lie at 0: they come last, a picked row never
        picked.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[picked[-1]]).square().sum(1))
    return torch.tensor(picked, device=features.device)


def select(data: LabeledImages, count: int, rule: str, seed: int, embed: Embed, pool: int = 0) -> Tensor:
    """Rows (K, count) of ``data`` that the named rule picks from each class, in the features of ``embed``.

    ``pool`` bounds how many random images of a class enter (0: all); nothing else is random. Raises UnknownNameError
    for an unknown rule, ValueError when a class has (or ``pool`` leaves) fewer than ``count`` images.

    >>> data = LabeledImages(torch.tensor([0.0, 1.0, 5.0, 2.0]).view(4, 1, 1, 1), torch.tensor([0, 1, 1, 1]), 2)
    >>> select(data, 1, "herding", 0, lambda images: images.flatten(1)).tolist()
    [[0], [3]]
    """
    choose, chosen = SELECTIONS[rule], []
    for label in range(data.num_classes):
        members = class_pool(data, label, pool, generator(seed, "init-selection", label, count))
        chosen.append(members[choose(embed(data.images[members]), count).to(members.device)])
    return torch.stack(chosen)
