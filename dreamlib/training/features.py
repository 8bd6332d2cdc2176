"""What a trained network computes: logits, features and accuracy; and the refit of its last layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib._engine.compiled_network import CompiledNetwork, weights_of
from dreamlib._engine.compute import Compute
from dreamlib.data.types import DatasetInfo

PREDICT_BATCH = 128  # images; bounds the memory of predictions and embeddings, results do not depend on it
GPU_PREDICT_BATCHES = 8  # batches joined into one on a GPU, which a single batch does not fill


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], images: Tensor, info: DatasetInfo, compute: Compute) -> Tensor:
    """Return ``function`` of all images, computed batch by batch; rows concatenated, float32 or wider.

    function: normalised images (n, C, H, W) → (n, …).
    images: (N, C, H, W), not yet normalised, in floating point or bytes.
    info: the statistics to normalise by.
    compute: device and number format.

    The last batch is padded to the full size, so that one compiled shape serves all batches.
    """
    results, batch_size = [], PREDICT_BATCH * GPU_PREDICT_BATCHES
    if compute.device.type != "cuda" or len(images) < batch_size:
        batch_size = PREDICT_BATCH
    for batch in images.split(batch_size):
        x = compute.cast(info.normalise(batch))
        if len(images) > batch_size > len(x):
            x = torch.cat([x, x.new_zeros(batch_size - len(x), *x.shape[1:])])
            x = compute.cast(x)
        results.append(function(x)[: len(batch)])
    result = torch.cat(results)
    return result.float() if result.dtype == torch.bfloat16 else result


def predict(network: nn.Module, images: Tensor, info: DatasetInfo, kernels: CompiledNetwork) -> Tensor:
    """Return logits (N, K) of images (N, C, H, W), in evaluation mode."""
    weights, logits = weights_of(network), kernels.graphed("logits")
    return in_batches(lambda x: logits(weights, x), images, info, kernels.compute)


def embed(network: nn.Module, images: Tensor, info: DatasetInfo, kernels: CompiledNetwork) -> Tensor:
    """Return features (N, D): the flattened output of the network's last block, in evaluation mode."""
    weights, features = weights_of(network), kernels.graphed("features")
    return in_batches(lambda x: features(weights, x), images, info, kernels.compute)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of rows whose largest logit is that of the label.

    >>> accuracy(torch.tensor([[0., 1.], [1., 0.], [0., 1.]]), torch.tensor([1, 0, 0]))
    0.6666666666666666
    """
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def last_linear(network: nn.Module) -> nn.Linear:
    """Return the linear layer that maps a network's features to logits; raise ValueError if there is none.

    >>> last_linear(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    Linear(in_features=3, out_features=2, bias=True)
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"last_layer 'ridge' fits a network's last linear layer, and {type(network).__name__} has none: use "
            "last_layer: trained"
        )
    return layers[-1]


@torch.no_grad()
def fit_last_layer(
    network: nn.Module, images: Tensor, labels: Tensor, info: DatasetInfo, kernels: CompiledNetwork, penalty: float
) -> None:
    """Refit the network's last layer, in place, by ridge regression from features to labels (FRePo).

    images: (N, C, H, W) in [0, 1], not augmented.
    labels: (N,) class numbers or (N, K) probabilities; the targets are the probabilities minus 1/K.
    penalty: on the squared weights, in units of the features' mean squared norm, as in ``dreamlib.matching.ridge``.

    The refitted layer has no bias: an existing one is set to zero.
    """
    layer = last_linear(network)
    features = embed(network, images, info, kernels).double().cpu().numpy()
    probabilities = labels if labels.is_floating_point() else F.one_hot(labels, info.num_classes)
    targets = probabilities.double().cpu().numpy() - 1 / info.num_classes
    from sklearn.linear_model import Ridge  # slow to import, and most stages do not refit

    ridge = Ridge(alpha=penalty * float((features**2).sum(1).mean()), fit_intercept=False).fit(features, targets)
    layer.weight.copy_(torch.from_numpy(ridge.coef_))
    if layer.bias is not None:
        layer.bias.zero_()
