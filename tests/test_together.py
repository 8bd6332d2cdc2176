"""All classes at once: against class by class, and on a GPU the recorded graphs against the plain loop."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.reference import matching_gradient
from benchmarks.work import fast_matching_gradient, matching_state
from dreamlib._engine.compiled_network import CompiledNetwork, weights_of
from dreamlib._engine.compute import Compute
from dreamlib._engine.cuda_graphs import CudaGraphed, on_another_stream
from dreamlib._engine.losses import DistillationDivergedError
from dreamlib._engine.strategies import LOSSES_READ_EVERY, RunAhead, Strategy
from dreamlib.data.types import DatasetInfo
from dreamlib.distill import Distiller
from dreamlib.matching import make
from dreamlib.sampling import kmeans
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import DistillParams
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.training import augment
from dreamlib.training import trainer as training
from dreamlib.training.augment import OPS, Augmentation, augmentation_for
from dreamlib.training.features import embed, predict
from dreamlib.training.trainer import STEPS_RECORDED, Trainer, TrainSettings

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
# torch.compile imports parts of torch that torch itself deprecates, and advises TF32 where float32 is asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
]
NETWORK = ("convnet", {"width": 8, "depth": 2})


def both_ways(state, options, objective="gradient"):
    """(loss of each class, pixel gradient) class by class, and all at once."""
    results = []
    for together in (False, True):
        state.together, canvases = together, state.synthetic.canvases
        canvases.grad, losses = None, []
        for _, loss in make(objective, options).losses(state):
            loss.sum().backward(inputs=[canvases])
            losses += loss.detach().reshape(-1).tolist()
        results.append((losses, canvases.grad.clone()))
    return results


@pytest.mark.parametrize(
    "options", [{"distance": "mse"}, {"distance": "l1"}, {"distance": "cosine"} | {"layers": "conv_linear"}]
)
@pytest.mark.parametrize("ipc", [1, 3])
def test_all_classes_at_once_match_as_one_by_one(options, ipc):
    state = matching_state(Compute(dtype=torch.float64), ipc, real=6, width=4)
    (apart, pixels), (once, same) = both_ways(state, options)
    assert len(once) == len(apart) == 10
    assert once == pytest.approx(apart, rel=1e-9)
    torch.testing.assert_close(same, pixels, rtol=1e-7, atol=1e-10 * float(pixels.abs().max()))


RGB = DatasetInfo("random", tuple("0123456789"), 3, 8, (0.5, 0.4, 0.3), (0.3, 0.2, 0.25))


@pytest.mark.parametrize("synthetic_batch", [128, 7])
@pytest.mark.parametrize(("objective", "options"), [("gradient", {}), ("ridge", {"penalty": 0.1})])
@pytest.mark.parametrize("rule", ["single", "dct"])
def test_a_part_of_the_distilled_images_is_the_same_part(objective, options, synthetic_batch, rule):
    state = matching_state(Compute(dtype=torch.float64), 3, real=6, width=4, info=RGB)
    state.synthetic_batch = synthetic_batch
    if rule == "dct":
        state.synthetic = replace(state.synthetic, rule="dct", frequencies=torch.arange(14))
    (apart, pixels), (once, same) = both_ways(state, options, objective)
    assert once == pytest.approx(apart, rel=1e-9)
    torch.testing.assert_close(same, pixels, rtol=1e-7, atol=1e-10 * float(pixels.abs().max()))


@pytest.mark.parametrize("op", OPS)
def test_an_augmentation_without_branches_is_the_one_with(op, rng):
    augmentation, x = Augmentation.parse(op), torch.rand(12, 2, 9, 7, generator=rng(0), dtype=torch.float64)
    draw = augmentation.draw(12, (2, 9, 7), rng(1))
    active = torch.arange(12) % 3 != 0
    values, transform = draw.values[op], augment._OPS[op][1]
    expected = augment._transform_active(x, active, values, transform)
    result = augment._transform_all_and_select(x, active, values, transform)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(expected[::3], x[::3]) and not torch.equal(expected, x)


@pytest.mark.parametrize("ops", ["none", "flip", "flip_color_crop_scale_rotate_cutout"])
def test_a_table_holds_the_whole_draw(ops, rng):
    augmentation, x = Augmentation.parse(ops), torch.rand(8, 1, 8, 8, generator=rng(0))
    draw = augmentation.draw(8, (1, 8, 8), rng(1))
    back = augmentation.from_table(draw.table(), (8, 8))
    assert torch.equal(augmentation.apply(x, back), augmentation.apply(x, draw))
    assert (back.count, back.size) == (draw.count, draw.size)


@pytest.mark.parametrize("soft", [False, True])
def test_the_recorded_training_step_is_the_step(digits, toy_info, tiny, monkeypatch, soft, rng):
    info, weights = toy_info(classes=10, name="digits"), []
    augmentation = augmentation_for(info, "flip_color_crop_cutout")
    settings = TrainSettings(32, augmentation=augmentation, cutmix=0.7)
    for recorded in (False, True):
        monkeypatch.setattr(CompiledNetwork, "uses_cuda_graphs", recorded)
        network = tiny(info, double=True)
        trainer = Trainer(network, info, settings, CompiledNetwork(network, Compute(dtype=torch.float64)))
        for step, size in enumerate((32, 32, 7, 1, 32)):
            rows = torch.randint(len(digits.labels), (size,), generator=rng(step))
            labels = digits.labels[rows]
            if soft:
                labels = torch.nn.functional.one_hot(labels, 10).double() * 0.7 + 0.03
            trainer.step(digits.images[rows].double(), labels, rng(step))
        weights.append(weights_of(network))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("momentum", "cutmix"), [(0.9, 0.5), (0.0, 0.0)])
def test_steps_recorded_together_are_the_steps(digits, toy_info, tiny, monkeypatch, momentum, cutmix, rng):
    info, results = toy_info(classes=10, name="digits"), []
    settings = TrainSettings(16, momentum=momentum, augmentation=augmentation_for(info, "color_crop"), cutmix=cutmix)
    for recorded in (False, True):
        monkeypatch.setattr(CompiledNetwork, "uses_cuda_graphs", recorded)
        network, draws = tiny(info, double=True), rng(0)
        trainer = Trainer(network, info, settings, CompiledNetwork(network, Compute(dtype=torch.float64)))
        draw_rows = lambda draws=draws: torch.randint(300, (16,), generator=draws)  # noqa: E731
        for steps in (STEPS_RECORDED + 3, 2):  # more than one recording holds, then on from there
            trainer.train(digits.images.double(), digits.labels, draw_rows, steps, draws)
            trainer.start_epoch(1, 2, lambda lr, epoch, epochs: lr / 2)
        state = trainer.optimizer.state_dict()["state"]
        buffers = [state[i]["momentum_buffer"] for i in sorted(state) if momentum]
        results.append((list(weights_of(network).values()) + buffers, draws.get_state()))
    assert torch.equal(results[0][1], results[1][1])  # the same numbers were drawn
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", ["random", "k-means++"])
@pytest.mark.parametrize(("most", "tolerance"), [(1, 1e-4), (3, 1e-4), (50, 1e-4), (50, 0.5)])
def test_k_means_without_waiting_is_k_means(most, tolerance, start, rng, monkeypatch):
    monkeypatch.setattr(kmeans, "TOLERANCE", tolerance)
    points = torch.rand(4, 60, 5, generator=rng(0), dtype=torch.float64) + 3
    steps = partial(kmeans.lloyd_steps, most=most)
    expected, result = (
        kmeans.kmeans(points, 6, rng(1), max_iterations=most, start=start, lloyd=lloyd) for lloyd in (None, steps)
    )
    assert result.iterations == expected.iterations <= most
    assert torch.equal(result.assignment, expected.assignment)
    torch.testing.assert_close(result.centers, expected.centers)
    torch.testing.assert_close(result.inertia, expected.inertia)


def test_k_means_without_waiting_fills_an_empty_cluster_as_k_means_does(rng):
    points = torch.rand(2, 30, 3, generator=rng(0), dtype=torch.float64)
    start = points[:, :1].expand(-1, 4, -1)  # of four equal centres the first gets all points
    asked = []

    def steps(*given):
        asked.append(kmeans.lloyd_steps(*given, most=9))
        return asked[-1]

    expected, result = (kmeans.kmeans(points, 4, rng(1), max_iterations=9, start=start, lloyd=f) for f in (None, steps))
    assert bool(asked[0][-1])  # it says that a cluster was empty
    assert torch.equal(result.assignment, expected.assignment) and torch.equal(result.centers, expected.centers)
    assert result.assignment[0].bincount(minlength=4).min() > 0
    with pytest.raises(ValueError, match="keep_empty"):
        kmeans.kmeans(points, 4, rng(1), keep_empty=True, lloyd=steps)


def test_losses_weighted_by_class_reach_their_own_pixels():
    state = matching_state(Compute(dtype=torch.float64), 2, real=4, width=4)
    state.together, canvases = True, state.synthetic.canvases
    ((label, losses),) = make("gradient", {}).losses(state)
    assert label == -1
    (all_of_them,) = torch.autograd.grad(losses.sum(), canvases, retain_graph=True)
    (third,) = torch.autograd.grad(5 * losses[2], canvases)
    torch.testing.assert_close(third[4:6], 5 * all_of_them[4:6])
    assert third[:4].abs().sum() == third[6:].abs().sum() == 0


def test_classes_of_unequal_size_are_matched_one_by_one(digits, toy_info, tiny):
    few = digits.subset(torch.cat([digits.of_class(c)[: 4 + c] for c in range(10)]))
    state = matching_state(Compute(), 1, real=4, width=4)
    info = toy_info(classes=10, name="digits")
    synthetic = fill(few, random_rows(few, 1, 0), 1, 1, "single")
    synthetic.canvases.requires_grad_(True)
    network = tiny(info)
    state.synthetic, state.info, state.network, state.kernels = (
        synthetic,
        info,
        network,
        CompiledNetwork(network, Compute()),
    )
    state.sampler, state.together = SAMPLERS["random"](few, 8, 0), True
    assert [label for label, _ in make("gradient", {}).losses(state)] == list(range(10))


def test_one_clustering_of_all_classes_chooses_as_one_of_each(digits):
    sampler = SAMPLERS["representative"](digits, 8, 0)
    members = {c: digits.of_class(c)[:40] for c in range(10)}
    pixels = lambda images: images.flatten(1)  # noqa: E731
    chosen = []
    for choose in (
        lambda rngs: sampler.choose_all(members, rngs, pixels, pixels),
        lambda rngs: sampler.choose_together(members, rngs, pixels),
    ):
        result = choose({c: torch.Generator().manual_seed(c) for c in members})
        chosen.append({label: rows.sort().values for label, rows in result.items()})
    assert list(chosen[0]) == list(chosen[1]) == list(range(10))
    assert all(set(chosen[0][c].tolist()) <= set(members[c].tolist()) for c in members)
    same = [torch.equal(chosen[0][c], chosen[1][c]) for c in members]
    assert sum(same) >= 9  # one stops when all have, which can move the last centre of another


def distiller(digits, toy_info, strategy=None, **settings):
    """A run of six iterations, executed by a kind of strategy for ten classes."""
    info = toy_info(classes=10, name="digits")
    strategy = strategy and strategy(training.compiled_network(NETWORK, info, Compute()), range(10), 10)
    values = {
        "objective": "gradient", "factor": 1, "real_batch": 16, "outer_iterations": 2, "inner_iterations": 3,
        "image_lr": 0.05, "augmentation": "color_crop_cutout", "network_batch": 16, "network_steps": 1, "snapshots": 2,
    } | settings  # fmt: skip
    start = fill(digits, random_rows(digits, 2, 0), 2, 1, "single")
    return Distiller(start, digits, info, DistillParams(**values), NETWORK, Compute(), 0, strategy=strategy)


@pytest.fixture
def recorded(monkeypatch):
    """As on a GPU, with all that is recorded there: called as it is here."""
    monkeypatch.setattr(CompiledNetwork, "uses_cuda_graphs", True)


def test_a_run_that_reads_its_losses_late_is_the_same_run(digits, toy_info, monkeypatch):
    at_once = distiller(digits, toy_info).run()
    monkeypatch.setattr(CompiledNetwork, "uses_cuda_graphs", True)
    late = distiller(digits, toy_info, RunAhead).run()
    assert [row[0] for row in late.history] == [row[0] for row in at_once.history] == list(range(6))
    assert [row[1] for row in late.history] == pytest.approx([row[1] for row in at_once.history], rel=1e-3)
    torch.testing.assert_close(late.synthetic.canvases, at_once.synthetic.canvases, rtol=0, atol=1e-4)
    assert sorted(late.clock) == sorted(at_once.clock)
    # What is saved half-way knows every loss so far, and goes on to the same end.
    half, on = distiller(digits, toy_info, RunAhead), distiller(digits, toy_info, RunAhead)
    half.step(), half.step()
    assert half.history == []
    saved = copy.deepcopy(half.state())
    assert len(saved["history"]) == 2
    on.load_state(saved)
    done = on.run()
    assert done.history == late.history
    assert torch.equal(done.synthetic.canvases, late.synthetic.canvases)


def test_matching_beside_training_reads_no_weight_that_training_changes(digits, toy_info, recorded):
    disturbed = []

    class Disturbed(Strategy):
        def _match(self, step, job=None):
            model = run.matched.model
            kept = copy.deepcopy(model.state_dict())
            if step.network is not model:  # the last iteration of a network has no training beside it
                disturbed.append(run.iteration)
                for weight in model.parameters():
                    weight.detach().fill_(float("nan"))
            yield from super()._match(step, job)
            model.load_state_dict(kept)

    class DisturbedRunAhead(RunAhead, Disturbed):
        pass

    undisturbed, run = distiller(digits, toy_info, RunAhead).run(), distiller(digits, toy_info, DisturbedRunAhead)
    result = run.run()
    assert disturbed == [0, 1, 3, 4]
    assert result.history == undisturbed.history
    assert torch.equal(result.synthetic.canvases, undisturbed.synthetic.canvases)


def test_a_late_reader_names_the_class_and_iteration_that_broke(digits, toy_info, recorded):
    longer = {"inner_iterations": LOSSES_READ_EVERY + 10, "outer_iterations": 1}
    run = distiller(digits, toy_info, RunAhead, image_lr=1e30, **longer)
    with pytest.raises(DistillationDivergedError, match=r"class 0 .* at inner iteration 1, with image_lr 1e\+30"):
        run.run()
    assert run.iteration < LOSSES_READ_EVERY


def test_the_graphs_of_a_run_end_with_it_and_those_of_its_architecture_stay(digits, toy_info, recorded, monkeypatch):
    forgotten = []
    monkeypatch.setattr(CudaGraphed, "forget", lambda graph: forgotten.append(graph))
    training._shared_kernels.cache_clear()
    run = distiller(digits, toy_info, RunAhead)
    run.run()
    of_run, of_architecture = run.strategy.graphs._graphs, run.kernels.graphs._graphs
    assert [name.partition(" ")[0] for name in of_run] == ["gradient"]
    assert forgotten == list(of_run.values())
    assert {key[0] for key in of_architecture} == {"training"}
    training_graphs = dict(of_architecture)
    other = distiller(digits, toy_info, RunAhead)
    other.run()
    assert other.kernels.graphs._graphs == training_graphs, "the next run's networks are trained by the same graphs"
    assert not set(other.strategy.graphs._graphs.values()) & set(of_run.values()), "but matched by graphs of its own"


# ---- on a GPU -------------------------------------------------------------------------------------------------------


def on_gpu(dtype="float32", compile=True):
    return Compute.resolve("cuda", dtype, compile=compile)


@pytest.fixture
def full_float32():
    """Convolutions in float32 as it is, not in TF32, whose 10 bits would hide an error of the same size."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@needs_gpu
def test_replayed_is_the_function_for_every_shape_and_value():
    replayed = CudaGraphed(lambda x, other: {"sum": x + other["y"], "product": x * other["y"]})
    for size in (3, 5, 3):
        for seed in (0, 1):
            x, y = torch.rand(2, size, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
            result = replayed(x, {"y": y})
            torch.testing.assert_close(result["sum"], x + y)
            torch.testing.assert_close(result["product"], x * y)


@needs_gpu
@pytest.mark.parametrize(("dtype", "close"), [("float32", 0.9999), ("bfloat16", 0.97)])
def test_recorded_matching_is_the_plain_loops(dtype, close, full_float32):
    arbiter = matching_state(Compute(dtype=torch.float64), 2, 32, width=32)
    value, pixels = matching_gradient(arbiter, torch.float64)
    state = matching_state(on_gpu(dtype), 2, 32, width=32)
    for iteration in (0, 1, 0):  # another draw in between, through the same recording
        state.iteration = iteration
        loss, result = fast_matching_gradient(state)
    assert float(loss) == pytest.approx(float(value), rel=0.002 if dtype == "float32" else 0.05)
    assert torch.cosine_similarity(result.cpu().double().flatten(), pixels.flatten(), dim=0) > close


@needs_gpu
def test_recorded_ridge_regression_is_the_plain_one(full_float32):
    results = []
    for compute in (Compute(dtype=torch.float64), on_gpu()):
        state = matching_state(compute, 2, 16, width=16)
        for iteration in (0, 1, 0):
            state.iteration, canvases = iteration, state.synthetic.canvases
            canvases.grad = None
            ((_, loss),) = make("ridge", {"penalty": 0.1}).losses(state)
            loss.backward(inputs=[canvases])
        results.append((loss.item(), canvases.grad.cpu().double()))
    (value, pixels), (again, same) = results
    assert again == pytest.approx(value, rel=1e-3)
    torch.testing.assert_close(same, pixels, rtol=2e-2, atol=1e-2 * float(pixels.abs().max()))


@needs_gpu
def test_recorded_training_follows_the_plain_one(digits, toy_info, tiny, full_float32):
    info, rng = toy_info(classes=10, name="digits"), torch.Generator
    settings = TrainSettings(32, augmentation=augmentation_for(info, "color_crop_cutout"), cutmix=0.5)
    networks = []
    for compute in (on_gpu(), on_gpu(compile=False)):
        network = compute.place(tiny(info))
        trainer, data = Trainer(network, info, settings, CompiledNetwork(network, compute)), digits.to("cuda")
        assert trainer.kernels.uses_cuda_graphs == compute.compile
        for epoch, steps in enumerate((STEPS_RECORDED + 3, 1, 8)):  # the rate changes between recordings and replays
            trainer.start_epoch(epoch, 3, lambda lr, epoch, epochs: lr / (epoch + 1))
            draws = rng().manual_seed(epoch)
            draw_rows = lambda draws=draws: torch.randint(len(digits.labels), (32,), generator=draws)  # noqa: E731
            trainer.train(data.images, data.labels, draw_rows, steps, draws)
        networks.append((network, predict(network, data.images, info, trainer.kernels)))
    for a, b in zip(weights_of(networks[0][0]).values(), weights_of(networks[1][0]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(networks[0][1], networks[1][1], rtol=1e-2, atol=1e-2)


@needs_gpu
@pytest.mark.parametrize("sampler", ["random", "representative"])
def test_a_whole_run_on_the_gpu_resumes(digits, toy_info, sampler, full_float32):
    info, settings = toy_info(classes=10, name="digits"), DistillParams(
        objective="gradient", factor=2, real_batch=16, outer_iterations=2, inner_iterations=20, image_lr=0.01,
        augmentation="color_crop_cutout", network_batch=32, network_steps=2, snapshots=2, sampler=sampler,
    )  # fmt: skip
    start = fill(digits, random_rows(digits, 4, 0), 1, 2, "single")
    make_run = lambda: Distiller(start, digits, info, settings, NETWORK, on_gpu(), 0)  # noqa: E731
    done, half = make_run().run(), make_run()
    assert len(done.history) == 40 and done.synthetic.canvases.device.type == "cpu"
    for _ in range(7):
        half.step()
    saved, on = copy.deepcopy(half.state()), make_run()
    on.load_state(saved)
    again = on.run()
    assert [i for i, _ in again.history] == list(range(40))
    moved = float((done.synthetic.canvases - start.canvases).abs().max())
    assert moved > 0.05
    torch.testing.assert_close(again.synthetic.canvases, done.synthetic.canvases, rtol=0, atol=moved / 10)


@needs_gpu
@pytest.mark.parametrize("pretrained", [0, 0.2])  # steps alone, which are then recorded outside
def test_training_on_a_stream_beside_matching_is_training_after_it(
    digits, toy_info, monkeypatch, full_float32, pretrained
):
    info, settings = toy_info(classes=10, name="digits"), DistillParams(
        objective="gradient", factor=2, real_batch=128, outer_iterations=2, inner_iterations=15, image_lr=0.01,
        augmentation="color_crop_cutout", network_batch=128, network_steps=2, pretrain_epochs=pretrained, snapshots=2,
    )  # fmt: skip
    start, results, beside = fill(digits, random_rows(digits, 4, 0), 1, 2, "single"), [], []
    for context in (on_another_stream, lambda device: nullcontext(nullcontext())):
        training._shared_kernels.cache_clear()  # with all that was recorded before
        counted = lambda *a, c=context: (beside.append(c), c(*a))[1]  # noqa: E731
        monkeypatch.setattr("dreamlib._engine.strategies.on_another_stream", counted)
        results.append(Distiller(start, digits, info, settings, ("convnet", {}), on_gpu(), 0).run())
    assert len(beside) == 2 * 2 * 14  # all but the last iteration of each network
    early = [[loss for _, loss in run.history[:4]] for run in results]
    assert early[0] == pytest.approx(early[1], rel=1e-2)
    moved = float((results[1].synthetic.canvases - start.canvases).abs().max())
    assert moved > 0.05
    torch.testing.assert_close(results[0].synthetic.canvases, results[1].synthetic.canvases, rtol=0, atol=moved / 10)


@needs_gpu
def test_embeddings_do_not_depend_on_the_batch(digits, toy_info, tiny, full_float32):
    info = toy_info(classes=10, name="digits")
    network, compute = tiny(info), on_gpu()
    here = embed(network, digits.images, info, CompiledNetwork(network, Compute()))
    there = embed(
        compute.place(copy.deepcopy(network)), digits.images, info, CompiledNetwork(compute.place(network), compute)
    )
    torch.testing.assert_close(there.cpu(), here, rtol=1e-2, atol=1e-2)
