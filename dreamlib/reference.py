"""DREAM on one page: what the library computes, as the papers describe it, eagerly and one class after the other.

Representative matching (DREAM, Liu et al., ICCV 2023) on multi-formation (IDC, Kim et al., ICML 2022).
S are the synthetic images, T the real ones, θ the weights of a network, ℓ its loss, D a distance of gradients.
"""

import torch
from torch import Generator, Tensor, nn
from torch.optim import SGD

from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build
from dreamlib.sampling.kmeans import kmeans, squared_distances
from dreamlib.settings import DistillParams
from dreamlib.synthetic.decode import decode, tile
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation
from dreamlib.training.cutmix import cutmix


def representatives(net: nn.Module, images: Tensor, k: int, rng: Generator, start: str, steps: int) -> Tensor:
    """Return the rows (k,) of the images nearest to the centres of k clusters of features (DREAM §3.3)."""
    with torch.no_grad():
        features = torch.cat([net.features(part) for part in images.split(128)]).float()[None]  # (1, n, D)
    clusters = kmeans(features, k, rng, start=start, max_iterations=steps)
    in_other_cluster = clusters.assignment[0, :, None] != torch.arange(k)  # (n, k)
    distances = squared_distances(features, clusters.centers)[0].masked_fill(in_other_cluster, torch.inf)
    return distances.topk(1, dim=0, largest=False).indices[0]  # argmin, where a tie is broken as in the library


def matching_loss(net: nn.Module, real: Tensor, synthetic: Tensor, label: int, distance: str = "mse") -> Tensor:
    """Return D(∇ℓ(real), ∇ℓ(synthetic)), ∇ with respect to the convolutions' weights, for images of one class (IDC)."""
    weights, gradients = [weight for weight in net.parameters() if weight.ndim == 4], []
    for images in (real, synthetic):
        loss = nn.functional.cross_entropy(net(images), torch.full((len(images),), label, device=images.device))
        gradients.append(torch.autograd.grad(loss, weights, create_graph=images is synthetic))
    entrywise = {"mse": torch.square, "l1": torch.abs}[distance]
    return torch.stack([entrywise(a - b).sum() for a, b in zip(*gradients, strict=True)]).sum()


def training_step(net: nn.Module, optimizer: SGD, x: Tensor, y: Tensor, p: float, rng: Generator) -> Tensor:
    """Take a step on prepared images x, mixed by CutMix with probability p; return the loss before it."""
    x, a, b, share = cutmix(x, y, rng, probability=p)
    logits = net(x)
    loss = share * nn.functional.cross_entropy(logits, a) + (1 - share) * nn.functional.cross_entropy(logits, b)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def dream(
    data: LabeledImages, info: DatasetInfo, settings: DistillParams, network: tuple[str, dict], ipc: int, seed: int
) -> SyntheticSet:
    """Distil ``ipc`` canvases per class as DREAM, with ``image_update`` 'per_class' and a constant ``image_lr``."""
    s, factor, images = settings, settings.factor, info.normalise(data.images)  # (N, C, H, W)
    shape, members = tuple(images.shape[1:]), [data.of_class(c) for c in range(info.num_classes)]
    matching_ops, training_ops = Augmentation.parse(s.augmentation), Augmentation.parse(s.network_augmentation)

    # A canvas initially holds factor² images: representatives of its class, in an untrained network's features.
    net = build(network[0], info, generator(seed, "clustering-network"), network[1]).to(images.dtype)
    tiles, count = [], ipc * factor**2
    for c, rows in enumerate(members):
        rng = generator(seed, "init-kmeans", c, count)
        tiles.append(tile(data.pixels(rows[representatives(net, images[rows], count, rng, "k-means++", 50)]), factor))
    canvases = torch.cat(tiles).requires_grad_()  # S: (K·ipc, C, H, W) pixels in [0, 1]
    image_optimizer, chosen = SGD([canvases], s.image_lr, s.image_momentum), dict[int, Tensor]()

    for outer in range(s.outer_iterations):
        net = build(network[0], info, generator(seed, "network", outer), network[1]).to(images.dtype)  # θ
        optimizer = SGD(net.parameters(), s.network_lr, s.network_momentum, weight_decay=s.network_weight_decay)
        for t in range(outer * s.inner_iterations, (outer + 1) * s.inner_iterations):
            for c, rows in enumerate(members):
                if t % s.inner_iterations % s.interval == 0:  # choose T, the real batch, anew
                    rng, k, steps = generator(seed, "cluster", c, t), s.real_batch, 10
                    chosen[c] = rows[representatives(net, images[rows], k, rng, "random", steps)]
                synthetic = info.normalise(decode(canvases[c * ipc : (c + 1) * ipc], factor))  # multi-formation
                draw = matching_ops.draw(1, shape, generator(seed, "augment", c, t))  # siamese
                pair = [matching_ops.apply(x, draw) for x in (images[chosen[c]], synthetic)]
                (canvases.grad,) = torch.autograd.grad(matching_loss(net, *pair, c, **s.options), canvases)
                image_optimizer.step()
            rng, per_epoch = generator(seed, "train", t), len(images) // s.network_batch
            for step in range(t * s.network_steps, (t + 1) * s.network_steps):  # train θ on real images
                order = torch.randperm(len(images), generator=generator(seed, "network-order", step // per_epoch))
                batch = order.split(s.network_batch)[step % per_epoch]
                x = training_ops.apply(images[batch], training_ops.draw(len(batch), shape, rng))
                training_step(net, optimizer, x, data.labels[batch], s.cutmix, rng)
        canvases.data.clamp_(0, 1)
    return SyntheticSet(canvases.detach(), torch.arange(len(members)).repeat_interleave(ipc), len(members), factor)
