"""The hot functions against a plain autograd loop; compiled against uncompiled; half precision against float64."""

import copy
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dreamlib._engine.compiled_network import CompiledNetwork, weights_of
from dreamlib._engine.compute import Compute
from dreamlib._engine.release_python_lock import release_python_lock
from dreamlib.matching.distribution import squared
from dreamlib.matching.gradient import absolute, matched_weights, row_cosine

needs_compiler = pytest.mark.usefixtures("compiler")
# torch.compile imports parts of torch that torch itself deprecates.
torchs_own_warning = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
DISTANCES = [squared, absolute, row_cosine]


def batch(count, seed, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=rng, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (count,), generator=rng)


def plain(network, distance, x, real, y, layers="conv"):
    """(weight gradient of the real batch, loss, pixel gradient), by the tape: .backward() twice through the module."""
    smallest = {"conv": 4, "conv_linear": 2}[layers]
    weights = {name: p for name, p in network.named_parameters() if p.ndim >= smallest}
    gradients = torch.autograd.grad(F.cross_entropy(network(real), y), list(weights.values()))
    target = dict(zip(weights, gradients, strict=True))
    x = x.detach().clone().requires_grad_()
    loss = F.cross_entropy(network(x), y[: len(x)])
    ours = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    value = sum(distance(target[name], g) for name, g in zip(weights, ours, strict=True))
    return target, value.detach(), torch.autograd.grad(value, x)[0]


def ours(kernels, network, distance, x, real, y, layers="conv"):
    matched, fixed = matched_weights(network, layers)
    target = kernels.weight_gradient(matched, fixed, real, y)
    x = x.detach().clone().requires_grad_()
    value = kernels.match(distance, x, y[: len(x)], matched, fixed, target)
    value.backward()
    return target, value.detach(), x.grad


@pytest.mark.parametrize("layers", ["conv", "conv_linear"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("double", "rtol", "atol"), [(True, 1e-9, 1e-12), (False, 2e-3, 1e-5)])
def test_gradient_and_match_equal_the_tape(tiny, double, rtol, atol, distance, layers):
    dtype = torch.float64 if double else torch.float32
    network = tiny(double=double)
    kernels = CompiledNetwork(network, Compute(dtype=dtype))
    (real, y), (x, _) = batch(6, 0, dtype), batch(4, 1, dtype)
    expected, got = (f(distance, x, real, y, layers) for f in (
        lambda *a: plain(network, *a), lambda *a: ours(kernels, network, *a)))  # fmt: skip
    assert set(got[0]) == set(expected[0])
    for name in expected[0]:
        torch.testing.assert_close(got[0][name], expected[0][name], rtol=rtol, atol=atol)
    torch.testing.assert_close(got[1], expected[1], rtol=rtol, atol=atol)
    torch.testing.assert_close(got[2], expected[2], rtol=rtol, atol=atol * float(expected[2].abs().max()) + atol)


def test_training_loss_logits_and_features_are_the_networks(tiny):
    network = tiny(double=True, norm="batch")
    other = tiny(double=True, norm="batch", seed=1)
    kernels = CompiledNetwork(other, Compute(dtype=torch.float64))
    (x, a), b = batch(6, 0, torch.float64), torch.tensor([2, 1, 0, 2, 1, 0])
    lam = torch.tensor(0.3, dtype=torch.float64)
    reference = copy.deepcopy(network).train()
    logits = reference(x)
    expected = 0.3 * F.cross_entropy(logits, a) + 0.7 * F.cross_entropy(logits, b)
    got = kernels.training_loss(weights_of(network), x, a, b, lam)
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for (name, p), q in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(kernels.logits(weights_of(network), x), reference.eval()(x))
        torch.testing.assert_close(kernels.features(weights_of(network), x), reference.features(x))


def test_the_gradient_of_a_scaled_loss_is_scaled(tiny):
    network = tiny(double=True)
    kernels = CompiledNetwork(network, Compute(dtype=torch.float64))
    (real, y), (x, _) = batch(5, 0, torch.float64), batch(5, 1, torch.float64)
    matched, fixed = matched_weights(network, "conv")
    target = kernels.weight_gradient(matched, fixed, real, y)
    x.requires_grad_()
    loss = kernels.match(squared, x, y, matched, fixed, target)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(thrice, 3 * once)


def test_no_gradient_reaches_the_networks_own_parameters(tiny):
    network = tiny()
    ours(CompiledNetwork(network, Compute()), network, squared, *(b for b in (batch(4, 1)[0], *batch(4, 0))))
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_stays_close_to_float64(tiny, distance):
    """Activations in bfloat16 (8 bits of mantissa), weights in float32: norms agree to some percent."""
    network = tiny()
    arbiter = tiny(double=True)
    (real, y), (x, _) = batch(32, 0, torch.float64), batch(16, 1, torch.float64)
    expected = plain(arbiter, distance, x, real, y)
    half = CompiledNetwork(network, Compute(dtype=torch.bfloat16))
    got = ours(half, network, distance, x.bfloat16(), real.bfloat16(), y)
    for name, gradient in got[0].items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[0][name]).norm() < 0.15 * expected[0][name].norm()
    assert got[1].item() == pytest.approx(expected[1].item(), rel=0.05)
    assert F.cosine_similarity(got[2].double().flatten(), expected[2].flatten(), dim=0) > (
        0.9 if distance is absolute else 0.97
    )


# ---- compiled -------------------------------------------------------------------------------------------------------


@needs_compiler
@torchs_own_warning
def test_compiled_equals_uncompiled(tiny):
    """One convolution and the hardest function: it holds the weight gradient and its derivative. C++ takes long."""
    network = tiny(depth=1, norm="none")
    fast, eager = CompiledNetwork(network, Compute(compile=True)), CompiledNetwork(network, Compute())
    assert fast.compile
    (real, y), (x, _) = batch(4, 0), batch(4, 1)
    matched, fixed = matched_weights(network, "conv")
    target, results = eager.weight_gradient(matched, fixed, real, y), []
    # In this process: starting torch's pool of compiling processes takes longer than compiling.
    with inductor().patch(compile_threads=1):
        for kernels in (fast, eager):
            pixels = x.clone().requires_grad_()
            value = kernels.match(squared, pixels, y, matched, fixed, target)
            value.backward()
            results.append((value.detach(), pixels.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@needs_compiler
@torchs_own_warning
def test_other_threads_of_python_run_beside_compiled_code(tiny, threads_restored):
    """A thread goes on ticking while one call computes; where the call held Python's lock it would wait for its end."""
    assert release_python_lock(), "torch compiles otherwise than it did"
    torch.set_num_threads(1)

    def slow(x):
        for _ in range(30):
            x = torch.sin(x) + 0.1
        return x

    x, ticks, done = torch.linspace(0, 1, 2**22), [], threading.Event()
    compiled = CompiledNetwork(tiny(), Compute(compile=True)).compiled("slow", slow)
    with inductor().patch(compile_threads=1):
        torch.testing.assert_close(compiled(x), slow(x), rtol=1e-4, atol=1e-5)
    ticking = threading.Thread(target=lambda: [ticks.append(1) for _ in iter(lambda: done.wait(0.001), True)])
    ticking.start()
    compiled(x)
    counted = len(ticks)
    done.set()
    ticking.join()
    assert counted >= 10


def inductor():
    from torch._inductor import config

    return config


@needs_compiler
@torchs_own_warning
def test_fresh_networks_are_served_without_tracing_again(tiny, traces):
    """What is counted is how often torch has to begin anew."""
    small = partial(tiny, depth=1, norm="none")
    kernels = CompiledNetwork(small(), Compute(compile=True))
    (real, y), (x, _) = batch(6, 0), batch(6, 1)

    def use(network):
        ours(kernels, network, squared, x, real, y)
        kernels.training_loss(weights_of(network), real, y, y, torch.tensor(0.5)).backward()
        with torch.no_grad():
            kernels.features(weights_of(network), real)

    use(small())
    before = traces()
    assert before >= 4
    for seed in (1, 2, 3):
        network = small(seed=seed)
        use(network)
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        use(network)
    with torch.no_grad():
        kernels.features(weights_of(network), real[:4])
    five = y[:5]  # one tensor in both places, as above
    kernels.training_loss(weights_of(network), real[:5], five, five, torch.tensor(0.5)).backward()
    assert traces() == before, "the number of images is not part of what was compiled"
    ours(kernels, network, squared, x[:3], real, y)
    assert traces() > before, "the counter counts: a double backward is compiled for each number of images"


def test_networks_that_do_not_ask_for_it_are_not_compiled(toy_info):
    from dreamlib.networks import build

    network = build("mlp", toy_info(), torch.Generator().manual_seed(0))
    assert not CompiledNetwork(network, Compute(compile=True)).compile
