"""The benchmarks' baseline: the steps of ``dreamlib.reference``, the algorithm on one page, with torch's own layers."""

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from dreamlib._engine.seeding import derive, generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.evaluation import train_settings
from dreamlib.matching import MatchState
from dreamlib.networks import build
from dreamlib.networks.convnet import ConvNet, with_torchs_layers
from dreamlib.reference import matching_loss, training_step
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.schedules import SCHEDULES


def matching_gradient(state: MatchState, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Σ over classes of the squared gradient distance (IDC's 'mse'), and its gradient to the canvases.

    The draws are the state's own, so that the fast path given the same state does the same work. Returns a scalar and
    a tensor of the canvases' shape.
    """
    network, canvases = with_torchs_layers(state.network), state.synthetic.canvases
    total, pixels = torch.zeros((), dtype=dtype, device=canvases.device), torch.zeros_like(canvases)
    for label in range(state.info.num_classes):
        draw = state.draw(label)
        real, synthetic = (
            state.augmentation.apply(state.info.normalise(images), draw).to(dtype)
            for images in (state.real_images(label), state.synthetic_images(label))
        )
        loss = matching_loss(network, real, synthetic, label)
        pixels += torch.autograd.grad(loss, canvases)[0]
        total += loss.detach()
    return total, pixels


def representatives(network: ConvNet, images: Tensor, clusters: int, seed: int = 0) -> Tensor:
    """Rows of the images (n, C, H, W), normalised, nearest to each of ``clusters`` k-means centres of their features.

    Eager features of every image, and k-means from random rows, at most 10 iterations: scikit-learn's, or on a GPU
    Lloyd's steps one after the other.
    """
    with torch.no_grad():
        features = torch.cat([network.features(part) for part in images.split(256)])
    if features.is_cuda:
        return nearest_to_centers(features, clusters, seed)
    features = features.numpy()
    kmeans = KMeans(clusters, init="random", n_init=1, max_iter=10, random_state=seed).fit(features)
    return torch.from_numpy(kmeans.transform(features).argmin(0))


def nearest_to_centers(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Rows of the features (n, D) nearest to each centre after ten of Lloyd's steps from random rows."""
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:clusters]
    centers = features[rows.to(features.device)]
    for _ in range(10):
        member = nn.functional.one_hot(torch.cdist(features, centers).argmin(1), clusters).to(features.dtype)
        count = member.sum(0).unsqueeze(1)
        centers = torch.where(count > 0, member.T @ features / count.clamp_min(1), centers)
    return torch.cdist(features, centers).argmin(0)


def evaluation(
    synthetic: SyntheticSet,
    against: LabeledImages,
    info: DatasetInfo,
    protocol: EvaluationParams,
    width: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Accuracies of ``protocol.repeats`` ConvNets trained on a set, one eager step at a time.

    The networks, the order of the images and the draws are those of ``dreamlib.evaluation``.
    """
    images, labels = synthetic.decode()
    settings, accuracies = train_settings(info, protocol, synthetic), []
    for index in range(protocol.repeats):
        network_seed = derive(seed, "evaluation", index)
        built = build("convnet", info, generator(network_seed, "network"), {"width": width})
        assert isinstance(built, ConvNet)
        network = with_torchs_layers(built).to(dtype).train()
        optimizer = torch.optim.SGD(
            network.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        for epoch in range(protocol.epochs):
            optimizer.param_groups[0]["lr"] = SCHEDULES[protocol.decay](settings.lr, epoch, protocol.epochs)
            rng = generator(network_seed, "fit", epoch)
            for rows in torch.randperm(len(labels), generator=rng).split(settings.batch):
                x = info.normalise(images[rows])
                x = settings.augmentation.apply(x, settings.augmentation.draw(len(x), tuple(x.shape[1:]), rng))
                training_step(network, optimizer, x.to(dtype), labels[rows], settings.cutmix, rng)
        network.eval()
        with torch.no_grad():
            parts = [network(info.normalise(x).to(dtype)).argmax(1) for x in against.images.split(256)]
        accuracies.append(float((torch.cat(parts) == against.labels).double().mean()))
    return accuracies
