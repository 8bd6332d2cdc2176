"""Every registered network keeps one contract; the ConvNet answers to torch's functions and to finite differences."""

import copy
import pkgutil

import pytest
import torch
import torch.nn.functional as F

from dreamlib import networks
from dreamlib.data.types import DatasetInfo
from dreamlib.errors import UnknownNameError
from dreamlib.networks import NETWORKS, build

NORMS = ("instance", "batch", "group", "layer", "none")


def info(channels=3, size=16, classes=10):
    return DatasetInfo("toy", tuple(map(str, range(classes))), channels, size, (0.0,) * channels, (1.0,) * channels)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pixels(count, channels, size, seed=1):
    return torch.randn(count, channels, size, size, generator=rng(seed))


def count(network):
    return sum(p.numel() for p in network.parameters())


def matching(network, x, labels):
    """Half of the squared length of the parameter gradient, differentiable in x: what gradient matching needs."""
    loss = F.cross_entropy(network(x), labels)
    return sum(g.square().sum() for g in torch.autograd.grad(loss, list(network.parameters()), create_graph=True)) / 2


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [
        ("convnet", 1, 28, 317_706),  # METHODS.md section 1, and the released code's printout
        ("convnet", 3, 32, 320_010),
        ("mlp", 1, 28, 784 * 128 + 128 + 128 * 128 + 128 + 1290),
        ("lenet", 1, 28, 61_706),  # LeNet-5's well-known count
        ("lenet", 3, 32, 62_006),
        ("vgg11", 3, 32, 9_231_114),  # the common CIFAR counts of these networks
        ("resnet18", 3, 32, 11_173_962),
        ("densenet", 3, 32, 1_000_618),
    ],
)
def test_parameter_counts_are_the_published_ones(name, channels, size, parameters):
    assert count(build(name, info(channels, size), rng())) == parameters


def test_every_module_of_the_package_registers_a_family():
    modules = {m.name for m in pkgutil.iter_modules(networks.__path__) if not m.name.startswith("_")}
    assert {NETWORKS[name].__module__.rsplit(".", 1)[1] for name in NETWORKS} == modules


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 28), (3, 28), (3, 32), (3, 64)])
def test_shapes_or_a_clear_refusal(name, channels, size):
    network, refusal = None, ""
    try:
        network = build(name, info(channels, size), rng()).eval()
    except ValueError as error:
        refusal = str(error)
    if network is None:
        assert size == 8
        assert "at least" in refusal
        assert "use" in refusal
        return
    x = pixels(2, channels, size)
    with torch.no_grad():
        features, logits = network.features(x), network(x)
    assert features.ndim == 2
    assert logits.shape == (2, 10)
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # dead maps leave the bias and rounding, 1e-5
    last = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert torch.allclose(last(features), logits, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 28)])
def test_every_parameter_gets_a_gradient(name, channels, size):
    network = build(name, info(channels, size), rng())
    F.cross_entropy(network(pixels(4, channels, size)), torch.tensor([0, 1, 2, 3])).backward()
    for key, p in network.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        # A bias in front of a norm has an exactly zero derivative; a weight, a norm's included, never.
        assert key.endswith("bias") or p.grad.abs().max() > 1e-8, key


@pytest.mark.parametrize("name", NETWORKS.names())
def test_second_derivative_agrees_with_finite_differences(name):
    network = build(name, info(), rng()).double()
    labels = torch.tensor([0, 1])
    x = pixels(2, 3, 16).double().requires_grad_()
    along = pixels(2, 3, 16, seed=2).double()
    slope = (torch.autograd.grad(matching(network, x, labels), x)[0] * along).sum().item()
    step = 1e-8  # small: deep networks have a kink (ReLU, max pooling) every 1e-6 or so along a line
    ahead, behind = (matching(network, x.detach() + s * along, labels).item() for s in (step, -step))
    assert slope != 0
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_same_generator_same_network_and_global_state_untouched(name):
    before = torch.get_rng_state()
    one, two, other = (build(name, info(), rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(99)  # the global seed has no say
    assert torch.equal(next(one.parameters()), next(build(name, info(), rng(5)).parameters()))


@pytest.mark.parametrize("name", NETWORKS.names())
def test_training_mode_draws_nothing_and_half_precision_gives_float32_logits(name):
    network, x = build(name, info(), rng()), pixels(4, 3, 16)
    before = torch.get_rng_state()
    assert torch.equal(network(x), network(x))  # no dropout
    assert torch.equal(before, torch.get_rng_state())
    logits = network(x.bfloat16())
    assert logits.dtype == torch.float32
    assert (logits - network(x)).norm() < 0.05 * network(x).norm()
    assert network.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 28, 3), (3, 32, 1), (1, 8, 1)])
def test_convnet_is_the_equation(channels, size, padding):
    network, x = build("convnet", info(channels, size), rng(), {"width": 12}), pixels(5, channels, size)
    out = x
    for number, block in enumerate(network.blocks):
        out = F.conv2d(out, block.conv.weight, block.conv.bias, padding=padding if number == 0 else 1)
        out = F.instance_norm(out, weight=block.norm.weight, bias=block.norm.bias)
        out = F.avg_pool2d(out.clamp(min=0), 2)
    assert out.shape[2] >= 2
    assert torch.allclose(network.features(x), out.flatten(1), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_convnet_gradgradcheck(norm):
    options = {"width": 4, "depth": 2, "norm": norm, "activation": "silu"}
    network = build("convnet", info(1, 8, 3), rng(), options).double()
    if norm == "batch":  # the running statistics would change between evaluations
        network.eval()
    x = pixels(2, 1, 8).double().requires_grad_()
    weight = network.blocks[0].conv.weight.detach().clone().requires_grad_()

    def f(x, weight):
        return torch.func.functional_call(network, {"blocks.0.conv.weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(f, (x, weight), fast_mode=True)


@pytest.mark.parametrize("norm", NORMS)
def test_convnet_bfloat16_computes_in_bfloat16_on_float32_parameters(norm):
    network = build("convnet", info(3, 32), rng(), {"width": 32, "norm": norm})
    x, labels = pixels(32, 3, 32), torch.arange(32) % 10
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        cast = x.to(dtype).requires_grad_()
        assert network.features(cast).dtype == dtype
        gradients.append(torch.autograd.grad(F.cross_entropy(network(cast), labels), network.blocks[1].conv.weight)[0])
        (pixel_gradient,) = torch.autograd.grad(matching(network, cast, labels), cast)
        assert pixel_gradient.dtype == dtype
        assert pixel_gradient.isfinite().all()
        assert pixel_gradient.abs().max() > 0
    assert gradients[1].dtype == torch.float32
    assert F.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99


def test_convnet_under_vmap_equals_the_loop():
    nets = [build("convnet", info(3, 16), rng(seed), {"width": 8}) for seed in range(3)]
    parameters, _ = torch.func.stack_module_state(nets)
    x, labels = pixels(4, 3, 16), torch.arange(4)

    def squared_gradient(p, x):
        def loss(p):
            return F.cross_entropy(torch.func.functional_call(nets[0], p, (x,)), labels)

        return sum(g.square().sum() for g in torch.func.grad(loss)(p).values()) / 2

    together = torch.vmap(torch.func.grad(squared_gradient, argnums=1), in_dims=(0, None))(parameters, x)
    for net, got in zip(nets, together, strict=True):
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(matching(copy.deepcopy(net), leaf, labels), leaf)[0]
        assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max().item())


def test_options_are_validated_at_the_door():
    with pytest.raises(UnknownNameError, match="did you mean 'convnet'"):
        build("convnets", info(), rng())
    with pytest.raises(UnknownNameError, match="did you mean 'width'"):
        build("convnet", info(), rng(), {"widht": 8})
    with pytest.raises(UnknownNameError, match="did you mean 'instance'"):
        build("convnet", info(), rng(), {"norm": "instanse"})
    with pytest.raises(UnknownNameError, match="did you mean 'batch'"):
        build("resnet18", info(), rng(), {"norm": "bach"})
    with pytest.raises(ValueError, match="greater than or equal to 1, got 0"):
        build("resnet18", info(), rng(), {"width": 0})
    with pytest.raises(ValueError, match="depth between 1 and 3"):
        build("convnet", info(3, 8), rng(), {"depth": 4})
    with pytest.raises(ValueError, match="divisible by 4"):
        build("convnet", info(), rng(), {"width": 6, "norm": "group"})
    with pytest.raises(ValueError, match="patches of 4"):
        build("vit", info(3, 30), rng())
    with pytest.raises(ValueError, match="multiple of heads"):
        build("vit", info(), rng(), {"heads": 3})


@pytest.mark.parametrize("training", [True, False])
def test_the_transformers_attention_is_torchs_fused_one_written_out(training):
    """And it leaves torch's choice of kernels, which is the process's, alone."""
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    network = build("vit", info(3, 8), rng(), {"depth": 1, "dim": 16, "heads": 2}).double().train(training)
    block = next(m for m in network.modules() if isinstance(m, torch.nn.MultiheadAttention))
    x = torch.randn(3, 5, 16, generator=rng(), dtype=torch.float64)
    q, k, v = (x @ block.in_proj_weight.T + block.in_proj_bias).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = block.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 16))
    torch.testing.assert_close(block(x, x, x, need_weights=False)[0], expected)
    matching(network, pixels(2, 3, 8).double().requires_grad_(True), torch.arange(2)).backward()
    assert before == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())


@pytest.mark.parametrize("name", ["vgg11", "resnet10", "resnet10_ap", "densenet"])
def test_norm_is_the_one_named(name):
    for norm, present, absent in (("instance", "GroupNorm", "BatchNorm2d"), ("batch", "BatchNorm2d", "GroupNorm")):
        kinds = {type(m).__name__ for m in build(name, info(), rng(), {"norm": norm}).modules()}
        assert present in kinds
        assert absent not in kinds


def test_average_pooled_resnet_has_no_stride():
    strides = {m.stride for m in build("resnet10_ap", info(), rng()).modules() if isinstance(m, torch.nn.Conv2d)}
    assert strides == {(1, 1)}


# ---- the ConvNet's own layers against torch's ------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 28, 3), (3, 7, 1), (2, 5, 0)])
def test_the_first_convolution_is_torchs_with_both_its_gradients(channels, size, padding):
    ours = networks.convnet.FirstConv2d(channels, 4, 3, padding=padding).double()
    x = pixels(2, channels, size).double().requires_grad_(True)
    expected = F.conv2d(x, ours.weight, ours.bias, padding=padding)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    upstream, leaves = torch.randn_like(expected), [x, ours.weight, ours.bias]
    for a, b in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (ours(x), expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def first_and_norm(channels, padding):
    conv, norm = networks.convnet.FirstConv2d(channels, 4, 3, padding=padding), networks.convnet.InstanceNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0, 1.5]))
        norm.bias.copy_(torch.tensor([0.125, 0.0, 1.0, -0.5]))
    return conv.double(), norm.double()


@pytest.mark.parametrize(("channels", "size", "padding"), [(1, 28, 3), (3, 7, 1), (2, 5, 0)])
def test_a_convolution_normed_at_once_is_its_norm_with_all_gradients(channels, size, padding):
    conv, norm = first_and_norm(channels, padding)
    x = pixels(2, channels, size).double().requires_grad_(True)
    expected = F.group_norm(F.conv2d(x, conv.weight, conv.bias, padding=padding), 4, norm.weight, norm.bias)
    torch.testing.assert_close(conv.convolved_and_normed(x, norm), expected, rtol=1e-10, atol=1e-10)
    upstream, leaves = torch.randn_like(expected), [x, *conv.parameters(), *norm.parameters()]
    results = conv.convolved_and_normed(x, norm), expected
    for a, b in zip(*(torch.autograd.grad(y, leaves, upstream) for y in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_convolution_normed_at_once_is_differentiated_twice():
    conv, norm = first_and_norm(1, 1)
    x = pixels(2, 1, 4).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: conv.convolved_and_normed(x, norm), x)


def test_a_convolution_normed_at_once_keeps_faint_contrast_in_half_precision():
    conv, norm = first_and_norm(1, 1)
    x = (5 + 0.5 * pixels(4, 1, 16)).bfloat16()  # far from zero, as an image of one bright colour
    expected = norm(conv(x.double()))
    result = conv.convolved_and_normed(x, norm)
    assert result.dtype == torch.bfloat16
    assert (result.double() - expected).square().mean().sqrt() < 4e-3 * expected.square().mean().sqrt()


def test_an_image_of_one_colour_has_the_norms_bias():
    conv, norm = first_and_norm(1, 0)
    result = conv.convolved_and_normed(torch.full((1, 1, 6, 6), 0.3).double(), norm)
    torch.testing.assert_close(result, norm.bias.view(1, 4, 1, 1).expand_as(result), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [8, 7])
def test_average_pooling_is_torchs_also_of_an_odd_side(size):
    x = pixels(2, 3, size).double()
    torch.testing.assert_close(networks.convnet.AvgPool2d.over_view(x), F.avg_pool2d(x, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_instance_norm_in_steps_is_the_group_norm(dtype, rng):
    norm = networks.convnet.InstanceNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 1.0]))
    x = torch.rand(4, 3, 5, 6, generator=rng(0), dtype=torch.float64).to(dtype)
    expected, result = F.group_norm(x.double(), 3, norm.weight, norm.bias), norm.elementwise(x)
    assert result.dtype == dtype
    close = {torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=close, atol=close)
    if dtype == torch.float64:  # matching differentiates it twice
        assert torch.autograd.gradgradcheck(norm.elementwise, x[:2, :, :2].requires_grad_())
