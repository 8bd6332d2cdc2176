"""Coresets: real images selected once for each class, the baselines that distil nothing.

``herding`` and ``k_center`` select among the features of one class; ``select`` applies one of them to every class.
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
    """Return rows (count,) of features (n, D), each of which brings the mean of the selected closest to that of all.

    Greedy, no row twice, ties to the lower row (Welling, ICML 2009, in iCaRL's form). Raise ValueError unless
    1 ≤ count ≤ n.

    The mean of the example is 4; the means of the selected are 4, (4 + 3) / 2 and (4 + 3 + 9) / 3:

    >>> herding(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()
    [2, 1, 3]
    """
    _check(features, count)
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    selected: list[int] = []
    for k in range(1, count + 1):
        distances = ((total + features) / k - mean).square().sum(1)  # (n,)
        distances[selected] = torch.inf
        selected.append(int(distances.argmin()))
        total = total + features[selected[-1]]
    return torch.tensor(selected, device=features.device)


@SELECTIONS.register("k_center")
def k_center(features: Tensor, count: int) -> Tensor:
    """Return rows (count,) of features (n, D): the nearest to the mean, then each the farthest from those before it.

    Greedy k-center: the largest distance to a selected row is at most twice the optimum (Gonzalez 1985; Sener and
    Savarese, ICLR 2018). No row twice, ties to the lower row. Raise ValueError unless 1 ≤ count ≤ n.

    The mean of the example is 4; 9 is the farthest from 4, and then 0 from both:

    >>> k_center(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), 3).tolist()
    [2, 3, 0]
    """
    _check(features, count)
    features = features.double()
    selected = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[selected[0]]).square().sum(1)  # (n,): squared distance to the nearest selected row
    while len(selected) < count:
        nearest[selected] = -1.0  # below the 0 of a duplicate image, so that no row is selected twice
        selected.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[selected[-1]]).square().sum(1))
    return torch.tensor(selected, device=features.device)


def select(data: LabeledImages, count: int, rule: str, seed: int, embed: Embed, pool: int = 0) -> Tensor:
    """Return rows (K, count) of ``data``, selected from each class.

    data: the real images.
    count: images of each class.
    rule: registered name of a selection.
    seed: source of the random numbers, which only ``pool`` needs.
    embed: images (n, C, H, W) → features (n, D).
    pool: random images of a class to select from; 0 takes all.

    Raise UnknownNameError for an unknown rule, ValueError for a class, or a pool, of fewer than ``count`` images.

    >>> data = LabeledImages(torch.tensor([0.0, 1.0, 5.0, 2.0]).view(4, 1, 1, 1), torch.tensor([0, 1, 1, 1]), 2)
    >>> select(data, 1, "herding", 0, lambda images: images.flatten(1)).tolist()
    [[0], [3]]
    """
    selection, rows = SELECTIONS[rule], []
    for label in range(data.num_classes):
        members = class_pool(data, label, pool, generator(seed, "init-selection", label, count))
        rows.append(members[selection(embed(data.pixels(members)), count).to(members.device)])
    return torch.stack(rows)
