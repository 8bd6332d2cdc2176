"""Our networks against numbers of the released IDC, DREAM and VICO code (tests/golden/README.md)."""

import json

import pytest
import torch
import torch.nn.functional as F
from golden_numbers import FOLDER, assert_near, convnet, golden, plain_info

from dreamlib.data.types import DatasetInfo
from dreamlib.networks import build
from dreamlib.networks.convnet import FirstConv2d

SIZES = json.loads((FOLDER / "network_sizes.json").read_text())["parameters"]

# name: channels, side in pixels, classes
SHAPES = {
    "fashion_mnist": (1, 28, 10),
    "mnist": (1, 28, 10),
    "svhn": (3, 32, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tinyimagenet": (3, 64, 200),
    "imagenet10": (3, 224, 10),
}
# entry of network_sizes.json: our network and its options
NETWORKS = {
    "idc_convnet3_width128": ("convnet", {"depth": 3}),
    "idc_convnet4_width128": ("convnet", {"depth": 4}),
    "idc_resnet10_instance": ("resnet10", {}),
    "idc_resnet10_batch": ("resnet10", {"norm": "batch"}),
    "idc_resnet10_ap_instance": ("resnet10_ap", {}),
    "idc_resnet18_batch": ("resnet18", {"norm": "batch"}),
    "idc_densenet": ("densenet", {"norm": "batch"}),
    "vico_convnet3_width128": ("convnet", {"depth": 3}),
    "vico_mlp": ("mlp", {}),
    "vico_lenet": ("lenet", {}),
    "vico_alexnet": ("alexnet", {}),
    "vico_vgg11": ("vgg11", {}),
    "vico_resnet18": ("resnet18", {}),
}
NOT_COUNTS = {"idc_resnet10_stage_widths", "idc_resnet10_stem_width", "idc_resnet10_stage_sides", "image_side"}


def dataset_info(name, channels, size, classes):
    return DatasetInfo(name, tuple(map(str, range(classes))), channels, size, (0.0,) * channels, (1.0,) * channels)


def our_network(name, info, **options):
    return build(name, info, torch.Generator().manual_seed(0), options)


# ---- ConvNet-3: outputs and gradients --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["1x28x28", "3x32x32"])
def recorded(request):
    """Name → tensor of one of the two recorded networks."""
    return golden("networks", f"convnet3.{request.param}.")


def weights_of(recorded):
    return {name.removeprefix("weights."): w for name, w in recorded.items() if name.startswith("weights.")}


@pytest.fixture
def our_convnet(recorded):
    """Our ConvNet-3 with the recorded weights, in float64, and its parameters by their recorded names."""
    weights = weights_of(recorded)
    network = convnet(weights, plain_info(recorded["images"], classes=10))
    modules = {"linear": network.classifier}
    for number, block in enumerate(network.blocks, 1):
        modules |= {f"conv{number}": block.conv, f"norm{number}": block.norm}
    parameters = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
    assert parameters.keys() == weights.keys()
    assert len(parameters) == len(list(network.parameters()))
    return network, parameters


def with_loss(recorded, parameters, after_block1, features, logits):
    """Add the loss and its gradients to a network's outputs, all by their recorded names."""
    loss = F.cross_entropy(logits, recorded["labels"])
    # The first convolution's bias has no part in the fast path, because its norm takes the bias away.
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    outputs = {"after_block1": after_block1, "features": features, "logits": logits, "loss": loss}
    return outputs | {f"weight_gradient.{name}": g for name, g in zip(parameters, gradients, strict=True)}


def assert_recorded(outputs, recorded):
    inputs = {name for name in recorded if name in ("images", "labels") or name.startswith("weights.")}
    assert outputs.keys() == recorded.keys() - inputs
    for name, result in outputs.items():
        assert result.dtype == torch.float64, name
        assert_near(result, recorded[name], 1e-9)


def test_torchs_own_layers_give_the_recorded_numbers(recorded):
    parameters = {name: weight.clone().requires_grad_() for name, weight in weights_of(recorded).items()}
    x, after = recorded["images"], []
    for number in (1, 2, 3):
        conv, norm = ([parameters[f"{part}{number}.{key}"] for key in ("weight", "bias")] for part in ("conv", "norm"))
        padding = 3 if number == 1 and x.shape[1] == 1 else 1
        x = F.avg_pool2d(F.group_norm(F.conv2d(x, *conv, padding=padding), len(conv[0]), *norm).relu(), 2)
        after.append(x)
    features = x.flatten(1)
    logits = F.linear(features, parameters["linear.weight"], parameters["linear.bias"])
    assert_recorded(with_loss(recorded, parameters, after[0], features, logits), recorded)


def test_convnet_gives_the_recorded_numbers(recorded, our_convnet):
    network, parameters = our_convnet
    images = recorded["images"]
    outputs = network.blocks[0](images), network.features(images), network(images)
    assert_recorded(with_loss(recorded, parameters, *outputs), recorded)


@pytest.mark.parametrize("training", [True, False])
def test_convnets_compiled_path_gives_the_recorded_numbers(recorded, our_convnet, monkeypatch, training):
    """The operations that torch.compile sees, run uncompiled in float64: with the fast first block and without it."""
    calls, convolved_and_normed = [], FirstConv2d.convolved_and_normed

    def counted(conv, x, norm):
        calls.append(conv)
        return convolved_and_normed(conv, x, norm)

    monkeypatch.setattr(FirstConv2d, "convolved_and_normed", counted)
    network, parameters = our_convnet
    network.train(training)
    images = recorded["images"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        outputs = network.blocks[0](images), network.features(images), network(images)
    assert calls == [network.blocks[0].conv] * (3 if training else 0)
    assert_recorded(with_loss(recorded, parameters, *outputs), recorded)


# ---- Parameter counts, widths and sides ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "entry"), [(dataset, entry) for dataset in SIZES for entry in SIZES[dataset] if entry not in NOT_COUNTS]
)
def test_parameter_counts_are_the_released_ones(dataset, entry):
    info = dataset_info(dataset, *SHAPES[dataset])
    assert info.size == SIZES[dataset].get("image_side", info.size)
    name, options = NETWORKS[entry]
    if entry == "idc_resnet18_batch" and dataset.startswith("cifar"):
        options = options | {"width": 32}  # our default, 64, is that of DC and its successors
    expected = SIZES[dataset][entry]
    assert sum(p.numel() for p in our_network(name, info, **options).parameters()) == expected


def stages(network, info):
    """Return the width of the stem and, for the stem and the four stages, the widths and sides of their output."""
    x = torch.zeros(1, info.channels, info.size, info.size)
    outputs, stem = [], None
    with torch.no_grad():
        for name, layer in network.eval().body.named_children():
            x = layer(x)
            if name.startswith("layer"):
                outputs.append(x)
            elif name != "pool":
                stem = x
    outputs = [stem, *outputs]
    return [x.shape[1] for x in outputs], [x.shape[2] for x in outputs]


@pytest.mark.parametrize("dataset", [d for d in SIZES if "idc_resnet10_stage_widths" in SIZES[d]])
def test_resnet10_has_the_released_widths_and_sides(dataset):
    info = dataset_info(dataset, *SHAPES[dataset])
    widths, sides = stages(our_network("resnet10", info), info)
    sizes = SIZES[dataset]
    assert widths == [sizes["idc_resnet10_stem_width"], *sizes["idc_resnet10_stage_widths"]]
    assert sides == sizes["idc_resnet10_stage_sides"]


@pytest.mark.parametrize("name", ["resnet10", "resnet10_ap"])
@pytest.mark.parametrize(("size", "kernel", "sides"), [(96, 3, [48, 48, 24, 12, 6]), (224, 7, [56, 56, 28, 14, 7])])
def test_resnet10_halves_or_quarters_large_images_in_the_stem(name, size, kernel, sides):
    info = dataset_info("imagenet10", 3, size, 10)
    network = our_network(name, info)
    assert network.body.conv1.kernel_size == (kernel, kernel)
    assert stages(network, info) == ([64, 64, 128, 256, 512], sides)
    strides = {m.stride for m in network.modules() if isinstance(m, torch.nn.Conv2d)}
    poolings = {type(m).__name__ for m in network.modules() if "Pool2d" in type(m).__name__} - {"AdaptiveAvgPool2d"}
    assert (strides == {(1, 1)}) == (name == "resnet10_ap")
    assert poolings == {"AvgPool2d" if name == "resnet10_ap" else "MaxPool2d"}
