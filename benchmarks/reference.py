"""The obvious way: class by class, eager, plain autograd. What the fast path is held against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamlib.objectives import MatchState


def conv_weights(network: nn.Module) -> list[Tensor]:
    """The weights IDC and DREAM match: those of convolutions."""
    return [p for p in network.parameters() if p.ndim == 4]


def matching_gradient(state: MatchState, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Σ over classes of the squared gradient distance (IDC's 'mse'), and its gradient to the canvases.

    The draws are the state's own, so that the fast path given the same state does the same work. Returns a scalar and
    a tensor of the canvases' shape.
    """
    canvases, weights = state.synthetic.canvases, conv_weights(state.network)
    total, pixels = torch.zeros((), dtype=dtype), torch.zeros_like(canvases)
    for label in range(state.info.num_classes):
        draw = state.draw(label)

        def gradient(
            images: Tensor, label: int = label, draw: object = draw, create_graph: bool = False
        ) -> tuple[Tensor, ...]:
            x = state.augmentation.apply(state.info.normalise(images), draw).to(dtype)
            loss = F.cross_entropy(state.network(x), state.targets(label, len(x)))
            return torch.autograd.grad(loss, weights, create_graph=create_graph)

        target = gradient(state.real_images(label))
        ours = gradient(state.synthetic_images(label), create_graph=True)
        loss = torch.stack([(a - b).square().sum() for a, b in zip(ours, target, strict=True)]).sum()
        pixels += torch.autograd.grad(loss, canvases)[0]
        total += loss.detach()
    return total, pixels


def training_step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One eager SGD step on prepared images; returns the loss before it."""
    loss = F.cross_entropy(network(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
