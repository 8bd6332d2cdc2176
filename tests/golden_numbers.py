"""What the tests against the released code's numbers share; tests/golden/README.md says what each number is."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching import MatchState, Objective
from dreamlib.networks import build
from dreamlib.sampling.real_batches import Sampler
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.augment import Augmentation

FOLDER = Path(__file__).parent / "golden"
FLOAT64 = Compute(torch.device("cpu"), torch.float64)


def golden(topic: str, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a topic whose names begin with ``prefix``, by the rest of their names."""
    result = load_file(FOLDER / f"{topic}.safetensors")
    return {name.removeprefix(prefix): value for name, value in result.items() if name.startswith(prefix)}


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare by the largest absolute difference; NaN and another shape fail."""
    torch.testing.assert_close(result.detach(), expected, rtol=0, atol=tolerance, check_dtype=False)


def assert_near_relative(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """The same, with the tolerance in units of the largest absolute value of ``wanted``."""
    assert_near(result, expected, tolerance * float(expected.abs().max()))


def plain_info(images: Tensor, classes: int) -> DatasetInfo:
    """A data set of (N, C, H, W) images that networks see as they are."""
    _, channels, side, _ = images.shape
    names = tuple(str(label) for label in range(classes))
    return DatasetInfo("golden", names, channels, side, (0.0,) * channels, (1.0,) * channels)


def convnet(weights: dict[str, Tensor], info: DatasetInfo) -> nn.Module:
    """A ConvNet-3 in float64 with the released code's weights; without ``linear.*`` the last layer stays as built."""
    network = build("convnet", info, torch.Generator(), {"width": len(weights["conv1.weight"])}).double()
    own = {}
    for name, value in weights.items():
        layer, kind = name.split(".")
        own[f"classifier.{kind}" if layer == "linear" else f"blocks.{int(layer[-1]) - 1}.{layer[:-1]}.{kind}"] = value
    unknown = network.load_state_dict(own, strict=False).unexpected_keys
    assert not unknown, unknown
    return network


class WholeClasses(Sampler):
    """All real images of a class at every iteration; classes without images are allowed."""

    def __post_init__(self) -> None:
        """Check nothing."""

    def rows(self, label: int, iteration: int) -> Tensor:
        return self.data.of_class(label)


def matching_state(
    objective: Objective,
    network: nn.Module,
    info: DatasetInfo,
    canvases: Tensor,
    real: LabeledImages,
    classes: tuple[int, ...] = (),
) -> MatchState:
    """A state at iteration 0 without augmentation; ``canvases`` (K·ipc, C, H, W) becomes a leaf, at factor 1."""
    labels = torch.arange(info.num_classes).repeat_interleave(len(canvases) // info.num_classes)
    synthetic = SyntheticSet(canvases.clone().requires_grad_(), labels, info.num_classes)
    learned = objective.learned(synthetic)
    synthetic.extras = {name: value.clone().requires_grad_() for name, value in learned.items()}
    return MatchState(
        synthetic=synthetic, network=network, kernels=CompiledNetwork(network, FLOAT64),
        sampler=WholeClasses(real, 128, 0), info=info, augmentation=Augmentation.parse("none"),
        seed=0, iteration=0, synthetic_batch=128, classes=classes,
    )  # fmt: skip
