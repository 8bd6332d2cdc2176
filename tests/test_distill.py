"""The loop: the same bits whatever interrupts it, pixels stepped as the papers step them, failures that say why."""

import functools
import itertools
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dreamlib._engine import ranks, strategies
from dreamlib._engine import threads as engine_threads
from dreamlib._engine.checkpoint import Checkpoint
from dreamlib._engine.compute import Compute
from dreamlib._engine.losses import DistillationDivergedError
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.distill import Distiller, snapshot_iterations
from dreamlib.matching import OBJECTIVES, MatchState, Objective
from dreamlib.settings import DistillParams
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.synthetic.learned_set import effective_image_lr
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.trainer import Trainer

NETWORK = ("convnet", {"width": 8, "depth": 1})
SMALL = {
    "factor": 2,
    "real_batch": 6,
    "synthetic_batch": 5,
    "interval": 3,
    "outer_iterations": 3,
    "inner_iterations": 4,
    "network_steps": 2,
    "network_batch": 8,
    "image_lr": 0.02,
    "checkpoint_every_s": 1e-9,
}
VARIANTS = {
    "adam": {"image_optimizer": "adam", "image_lr_schedule": "halved"},
    "per_class dream": {"image_update": "per_class", "sampler": "representative", "pool": 9},
    "boundary": {"sampler": "boundary"},
    "fixed features": {"sampler": "representative", "cluster_features": "random", "pool": 9},
    "batched dsa": {"image_update": "batched", "augmentation_mode": "dsa", "pretrain_epochs": 0.5},
    "once_equivalent": {"image_update": "once_equivalent", "train_on": "synthetic"},
    "frequencies": {"decode": "dct", "image_optimizer": "adam"},
}


def toys(classes=3, per_class=12, dtype=torch.float32):
    """(info, data): noise on a ramp that differs from class to class."""
    info = DatasetInfo("toy", tuple("abcdefghijkl"[:classes]), 1, 8, (0.4,), (0.25,), flip=False)
    labels = torch.arange(classes).repeat(per_class)
    ramp = torch.linspace(0, 1, 8) * ((labels + 1) / classes).view(-1, 1, 1, 1)
    noise = torch.rand(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return info, LabeledImages((0.5 * noise + 0.5 * ramp).to(dtype), labels, classes)


def distiller(
    seed=0, classes=3, per_class=12, double=False, start=None, compute=None, network=NETWORK, **changes
):  # fmt: skip
    """A small run: three classes, two canvases each, 3 × 4 iterations of a width-8 network."""
    info, data = toys(classes, per_class, torch.float64 if double else torch.float32)
    settings = DistillParams(**{**SMALL, **changes})
    start = start or fill(data, random_rows(data, 2 * settings.factor**2, 0), 2, settings.factor, settings.decode)
    compute = compute or (Compute(dtype=torch.float64) if double else Compute())
    return Distiller(start, data, info, settings, network, compute, seed)


def test_what_is_learned_besides_pixels_follows_the_schedule_too():
    options = {"steps": 1, "passes": 2, "real_batch": 6, "recompute": False}
    run = distiller(
        objective="unrolled", options=options, factor=1, augmentation="none", train_on="none", image_lr=0.4,
        learned_lr=0.08, image_optimizer="adam", image_update="batched", image_lr_schedule="halved", inner_iterations=1,
        outer_iterations=10, start=fill(toys()[1], random_rows(toys()[1], 2, 0), 2, 1, "single"),
    )  # fmt: skip
    for _ in range(3):
        run.step()
    assert [group["lr"] for group in run.learned.optimizer.param_groups] == [0.4 / 4, 0.08 / 4]


@functools.cache
def uninterrupted(variant):
    return distiller(**VARIANTS[variant]).run()


def same(a, b):
    """Whether two results are the same bits."""
    return (
        torch.equal(a.synthetic.canvases, b.synthetic.canvases)
        and a.history == b.history
        and a.snapshots.keys() == b.snapshots.keys()
        and all(torch.equal(a.snapshots[i], b.snapshots[i]) for i in a.snapshots)
    )


class Killed(BaseException):
    """Stands for whatever ends a process; nothing may catch it."""


class KilledAfter(Checkpoint):
    """A checkpoint that is saved ``saves`` times and then ends the run."""

    def __init__(self, folder, key, saves):
        super().__init__(folder, key)
        self.left = saves

    def save(self, state):
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


# ---- repeatability --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_bits_other_seed_other_bits(variant, global_generators_untouched):
    first, (again, other) = uninterrupted(variant), (distiller(seed, **VARIANTS[variant]).run() for seed in (0, 1))
    assert same(first, again)
    assert not torch.equal(first.synthetic.canvases, other.synthetic.canvases)
    assert [iteration for iteration, _ in first.history] == list(range(12))
    assert all(math.isfinite(loss) for _, loss in first.history)


def test_the_start_and_the_data_stay_as_they_were():
    run = distiller()
    start, images = run.start.canvases.clone(), run.data.images.clone()
    result = run.run()
    assert torch.equal(run.start.canvases, start)
    assert torch.equal(run.data.images, images)
    assert not torch.equal(result.synthetic.canvases, start)
    assert not result.synthetic.canvases.requires_grad


# 1 and 5 lie within an outer iteration and within an interval, 8 at a boundary of the first only.
@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_is_bit_identical(tmp_path, variant, stop):
    with pytest.raises(Killed):
        distiller(**VARIANTS[variant]).run(KilledAfter(tmp_path, "key", stop))
    resumed = distiller(**VARIANTS[variant])
    steps, step = [], resumed.step
    resumed.step = lambda: (steps.append(resumed.iteration), step())
    result = resumed.run(Checkpoint(tmp_path, "key"))
    assert steps == list(range(stop, 12)), "it goes on where it stopped"
    assert same(result, uninterrupted(variant))


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_the_fast_path_repeats_and_resumes_to_the_bit(tmp_path):
    """Compiled, half precision, a pool of images clustered."""
    fast = {"compute": Compute(dtype=torch.bfloat16, compile=True), "sampler": "representative", "pool": 9}
    first = distiller(**fast).run()
    assert same(first, distiller(**fast).run())
    with pytest.raises(Killed):
        distiller(**fast).run(KilledAfter(tmp_path, "key", 5))
    resumed = distiller(**fast)
    result = resumed.run(Checkpoint(tmp_path, "key"))
    assert resumed.kernels.compile and same(result, first)


SIDE_BY_SIDE = {
    "dream": {"sampler": "representative", "pool": 9, "pretrain_epochs": 0.5},
    "statistics": {"network": ("convnet", {"width": 8, "depth": 1, "norm": "batch"})},  # training changes buffers
    "synthetic": {"image_update": "once_equivalent", "train_on": "synthetic"},  # trained after matching, not beside it
    "uncertain": {"sampler": "boundary", "pool": 9, "interval": 2},
    "features": {"options": {"feature_weight": 0.1}},
    "distribution": {"objective": "distribution", "train_on": "none"},
    "frequencies": {"decode": "dct"},
    "attention": {
        "network": ("vit", {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}),
        "options": {"layers": "conv_linear"},
        "network_steps": 0,
    },
}


@pytest.mark.parametrize(
    ("variant", "threads"), [*((variant, 2) for variant in SIDE_BY_SIDE), ("dream", 4), ("statistics", 4)]
)
def test_classes_side_by_side_are_those_one_by_one(
    tmp_path, variant, threads, threads_restored, spread_over, threads_of_a_new_thread
):
    """On one thread each, bit for bit, also where a run is interrupted."""
    changes = SIDE_BY_SIDE[variant]
    torch.set_num_threads(1)
    apart = distiller(**changes).run()
    torch.set_num_threads(threads)
    changes = changes | {"parallel_classes": threads}  # on four threads two at once too: three would leave one idle
    together = distiller(**changes).run()
    assert torch.get_num_threads() == threads_of_a_new_thread() == threads
    if threads == 2:  # else classes are on two threads each, which may round otherwise
        assert same(together, apart)
    assert spread_over() > 1
    with pytest.raises(Killed):
        distiller(**changes).run(KilledAfter(tmp_path, "key", 5))
    assert same(distiller(**changes).run(Checkpoint(tmp_path, "key")), together)


@pytest.fixture
def spread_over(monkeypatch):
    """On how many threads classes have been matched at most at the same time, as a function to call.

    The first class that another may join, which is none of iteration 0, where tasks run one by one, waits for it.
    """
    met, inside, most, waiting = threading.Condition(), 0, 0, True
    drawn = MatchState.draw

    def watched(self, label):
        nonlocal inside, most, waiting
        with met:
            inside += 1
            most = max(most, inside)
            met.notify_all()
            if waiting and self.iteration and len(self.classes) == 1:
                met.wait_for(lambda: most > 1, timeout=10)
                waiting = False
            inside -= 1
        return drawn(self, label)

    monkeypatch.setattr(MatchState, "draw", watched)
    return lambda: most


def test_classes_of_more_sizes_than_compile_are_matched_one_by_one(monkeypatch, threads_restored):
    torch.set_num_threads(2)
    info, data = toys()
    uneven = data.subset(torch.cat([data.of_class(label)[: 8 + label] for label in range(3)]))

    def parallel_classes(data):
        start = fill(data, random_rows(data, 8, 0), 2, 2, "single")
        run = Distiller(start, data, info, DistillParams(**SMALL, parallel_classes=2), NETWORK, Compute(), 0)
        return run.strategy.workers.parallel

    assert (parallel_classes(data), parallel_classes(uneven)) == (2, 2)
    monkeypatch.setattr(strategies, "SHAPES", 4)  # half of them: two sizes
    assert (parallel_classes(data), parallel_classes(uneven)) == (2, 1)


def test_workers_of_unequal_shares_compute_on_as_many_threads(monkeypatch, threads_restored):
    """Or the networks each trains by itself would round apart."""
    torch.set_num_threads(4)
    monkeypatch.setattr(ranks, "world", lambda: 3)
    results = set()
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        run = distiller(classes=10, parallel_classes=4, image_update="once_equivalent")
        workers = run.strategy.workers
        results.add((len(run.strategy.classes), workers.parallel, workers.threads))
    assert results == {(4, 2, 2), (3, 2, 2)}  # by itself the first would do four at once on one thread each


def test_a_network_trains_beside_the_classes_that_are_matched(monkeypatch, threads_restored):
    """Training waits for a class to be matched, which one after the other would never be."""
    torch.set_num_threads(2)
    run, matched, waited = distiller(parallel_classes=2, train_on="real"), threading.Event(), []
    drawn, train = MatchState.draw, run.matched.train

    def draw(self, label):
        matched.set()
        return drawn(self, label)

    def waiting(*given):
        if run.iteration == 1:
            matched.clear()
            waited.append(matched.wait(timeout=30))
        train(*given)

    monkeypatch.setattr(MatchState, "draw", draw)
    run.matched.train = waiting
    assert same(run.run(), distiller(parallel_classes=2).run())
    assert waited == [True]


def test_the_first_time_nothing_runs_side_by_side(monkeypatch, threads_restored):
    """Where it would compile; after a resumption too, and for training when it first comes."""
    torch.set_num_threads(2)
    run, used = distiller(parallel_classes=2), []
    real = engine_threads.in_order

    def watched(tasks, parallel, *rest):
        used.append((run.iteration, parallel))
        return real(tasks, parallel, *rest)

    monkeypatch.setattr(engine_threads, "in_order", watched)
    run.iteration = 3  # the last of its outer iteration: no training there
    run.matched.renew(0)
    run.run()
    assert used[:4] == [(3, 1), (4, 1), (5, 2), (6, 2)]


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_the_fast_path_is_the_same_side_by_side(threads_restored):
    results = []
    for threads, parallel_classes in ((1, 1), (2, 2)):
        torch.set_num_threads(threads)
        compute = Compute(dtype=torch.bfloat16, compile=True)
        results.append(
            distiller(compute=compute, sampler="representative", pool=9, parallel_classes=parallel_classes).run()
        )
    assert same(*results)


def test_an_objective_deaf_to_the_class_it_is_asked_for_is_told_so(toy_objective, threads_restored):
    torch.set_num_threads(2)
    every = range(3)
    toy_objective(
        lambda self, state: (
            (c, state.synthetic.canvases.sum()) for c in (every if state.iteration == 2 else state.classes)
        )
    )
    message = r"'toy' gave losses of classes \[0, 1, 2\], expected \[0\]: loop over"
    with pytest.raises(RuntimeError, match=message):
        distiller(objective="toy", parallel_classes=2).run()


@pytest.mark.parametrize("iteration", [0, 2])  # nothing runs side by side yet; it does
def test_divergence_side_by_side_names_the_class(toy_objective, threads_restored, iteration, threads_of_a_new_thread):
    torch.set_num_threads(2)

    def losses(self, state):
        for label in state.classes:
            bad = label == 1 and state.iteration == iteration
            yield label, state.synthetic.decode_class(label).sum() * (float("nan") if bad else 1.0)

    toy_objective(losses)
    with pytest.raises(match=rf"class 1 \(b\).*iteration {iteration}"):
        distiller(objective="toy", parallel_classes=2).run()
    assert threads_of_a_new_thread() == 2


@pytest.mark.parametrize("iteration", [0, 2])
def test_a_failing_objective_ends_a_run_side_by_side(
    toy_objective, threads_restored, iteration, threads_of_a_new_thread
):
    torch.set_num_threads(2)

    def losses(self, state):
        if state.iteration == iteration:
            raise ValueError("of its own")
        yield from ((label, state.synthetic.decode_class(label).sum()) for label in state.classes)

    toy_objective(losses)
    with pytest.raises(ValueError, match="of its own"):
        distiller(objective="toy", parallel_classes=2).run()
    assert threads_of_a_new_thread() == 2


def test_what_is_learned_besides_pixels_adds_up_side_by_side(toy_objective, threads_restored):
    """The gradients of classes to one value that all share, of which autograd gives views."""
    torch.set_num_threads(2)

    def losses(self, state):
        for label in state.classes:
            yield label, state.synthetic.extras["rates"].sum() * (label + 1) + state.synthetic.decode_class(label).sum()

    toy_objective(losses, learned=lambda self, start: {"rates": torch.ones(2)})
    result = distiller(objective="toy", parallel_classes=2, learned_lr=0.01, image_update="once_equivalent").run()
    assert result.synthetic.extras["rates"].tolist() == pytest.approx([1 - 12 * 0.01 * (1 + 2 + 3)] * 2, rel=1e-5)


def test_classes_in_turn_are_not_matched_side_by_side(threads_restored):
    torch.set_num_threads(2)
    results = [
        distiller(image_update="per_class", parallel_classes=parallel_classes).run() for parallel_classes in (1, 2)
    ]
    assert same(*results)


def test_two_interruptions_are_as_good_as_none(tmp_path):
    changes = VARIANTS["per_class dream"]
    for saves in (3, 4):
        with pytest.raises(Killed):
            distiller(**changes).run(KilledAfter(tmp_path, "key", saves))
    assert same(distiller(**changes).run(Checkpoint(tmp_path, "key")), uninterrupted("per_class dream"))


def test_what_passed_before_an_interruption_counts(tmp_path):
    class Slow(KilledAfter):
        """As if an hour had gone by before each of its saves."""

        def save(self, state):
            state["seconds"]["matching"] += 3600
            super().save(state)

    with pytest.raises(Killed):
        distiller(**VARIANTS["adam"]).run(Slow(tmp_path, "key", 2))
    result = distiller(**VARIANTS["adam"]).run(Checkpoint(tmp_path, "key"))
    assert 7200 < sum(result.seconds.values()) < 10800
    assert result.clock.keys() == result.snapshots.keys() == {0, 1, 3, 6, 12}
    assert result.clock[1] < 3600 < result.clock[3] < result.clock[6] < result.clock[12]


def test_a_torn_checkpoint_means_from_the_beginning(tmp_path):
    with pytest.raises(Killed):
        distiller(**VARIANTS["adam"]).run(KilledAfter(tmp_path, "key", 5))
    path = tmp_path / "key.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    assert same(distiller(**VARIANTS["adam"]).run(Checkpoint(tmp_path, "key")), uninterrupted("adam"))


VICTIM = {"outer_iterations": 8, "image_update": "per_class", "sampler": "representative"}


def victim(folder, threads):
    """What the killed process runs: slow enough to be killed on the way."""
    torch.set_num_threads(threads)
    run = distiller(**VICTIM)
    step = run.step
    run.step = lambda: (time.sleep(0.1), step())
    run.run(Checkpoint(folder, "key"))


def test_kill_minus_nine_then_resume_gives_the_same_bits(tmp_path):
    code = f"import test_distill; test_distill.victim({str(tmp_path)!r}, {torch.get_num_threads()})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint, reached = Checkpoint(tmp_path, "key"), 0
    try:
        deadline = time.monotonic() + 240
        while reached < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            reached = (checkpoint.load() or {"iteration": 0})["iteration"]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was killed on the way, not done or failed"
    assert 5 <= checkpoint.load()["iteration"] < 32
    assert same(distiller(**VICTIM).run(checkpoint), distiller(**VICTIM).run())


# ---- how pixels step ------------------------------------------------------------------------------------------------

TEN = {"classes": 10, "double": True, "train_on": "none", "image_momentum": 0.5, "synthetic_batch": 128}


def test_the_first_per_class_iteration_falls_short_of_the_collapsed_step_by_a_known_part():
    """Class c of K steps by lr·g at its own turn and lr·g/2, lr·g/4, … in the K − 1 − c turns that follow.

    That is 2·lr·g·(1 − 2^-(K − c)) of the once_equivalent step 2·lr·g, and what the momentum still gives in the c turns
    before its next visit, lr·buffer·(1 − 2^-c) of buffer = g·2^-(K − 1 − c), leaves 2^-K of it for every class.
    """
    runs = {update: distiller(**TEN, image_update=update) for update in ("per_class", "once_equivalent")}
    begun = runs["once_equivalent"].synthetic.canvases.detach().clone()
    moved = {}
    for update, run in runs.items():
        run.step()
        moved[update] = (run.synthetic.canvases.detach() - begun).view(10, 2, 1, 8, 8)
    k, c = 10, torch.arange(10).view(10, 1, 1, 1, 1)
    share = 1 - 2.0 ** -(k - c)
    torch.testing.assert_close(moved["per_class"], share * moved["once_equivalent"], rtol=1e-9, atol=1e-15)
    per_class = runs["per_class"]
    buffer = per_class.learned.optimizer.state[per_class.synthetic.canvases]["momentum_buffer"].view(10, 2, 1, 8, 8)
    to_come = -per_class.learned.lr * buffer * (1 - 2.0**-c)
    whole = (1 - 2.0**-k) * moved["once_equivalent"]
    torch.testing.assert_close(moved["per_class"] + to_come, whole, rtol=1e-9, atol=1e-15)


def test_per_class_at_the_second_visit_is_the_collapsed_run_to_two_to_the_minus_k():
    """Recorded where it counts: a class's canvases when its turn comes again."""
    seen = {}
    for update in ("per_class", "once_equivalent"):
        run, at_turn = distiller(**TEN, image_update=update), []
        original = run.objective.losses

        def losses(state, original=original, run=run, at_turn=at_turn):
            for label, loss in original(state):
                rows = run.synthetic.rows_of_class(label)
                at_turn.append(run.synthetic.canvases.detach()[rows].clone())
                yield label, loss

        object.__setattr__(run.objective, "losses", losses)
        run.step()
        run.step()
        seen[update] = at_turn
    for label in range(10):
        begun = seen["once_equivalent"][label]
        moved = {update: turns[10 + label] - begun for update, turns in seen.items()}
        torch.testing.assert_close(moved["per_class"], (1 - 2.0**-10) * moved["once_equivalent"], rtol=1e-9, atol=1e-15)


def toy_gradient(run):
    """The first iteration's summed gradient, from the objective itself."""
    probe = distiller(image_update="batched", image_lr=1.0, image_momentum=0.0, double=True)
    probe.step()
    return run.start.canvases - probe.synthetic.canvases.detach()


@pytest.mark.parametrize(("update", "multiple"), [("batched", 1.0), ("once_equivalent", 2.0)])
def test_the_first_step_is_the_rate_times_the_gradient(update, multiple):
    run = distiller(image_update=update, image_lr=1e-3, double=True)
    gradient = toy_gradient(run)
    run.step()
    expected = run.start.canvases - multiple * 1e-3 * gradient
    torch.testing.assert_close(run.synthetic.canvases.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("update", ["batched", "per_class"])
def test_pixels_are_clamped_at_the_end_of_an_outer_iteration_and_only_there(update):
    run, outside = distiller(image_update=update, image_lr=5.0), []
    for _ in range(8):
        run.step()
        canvases = run.synthetic.canvases.detach()
        outside.append(bool((canvases < 0).any() or (canvases > 1).any()))
    assert outside[:3] == [True] * 3
    assert not outside[3]
    assert outside[4:7] == [True] * 3
    assert not outside[7]


def test_idc_and_dream_meet_where_the_batch_is_the_whole_class():
    """With every image of a class in every batch, which sampler chose them can only change the order of a sum."""
    runs = {s: distiller(sampler=s, real_batch=12, double=True).run() for s in ("random", "representative")}
    a, b = (runs[s].synthetic.canvases for s in ("random", "representative"))
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    few = {s: distiller(sampler=s, real_batch=6, double=True).run() for s in ("random", "representative")}
    assert not torch.allclose(*(run.synthetic.canvases for run in few.values()), atol=1e-4)


@pytest.mark.parametrize("space", ["current", "random", "pixels"])
def test_batches_are_chosen_in_the_features_asked_for(space):
    """Pixels as they are; one untrained network for the whole run; or the network as it is by then."""
    run, seen = distiller(sampler="representative", interval=10, cluster_features=space), []
    choose, images = run.sampler.choose, run.data.images[:5]

    def watched(label, members, rng, embed, predict):
        if label == 0:
            seen.append(embed(images))
        return choose(label, members, rng, embed, predict)

    run.sampler.choose = watched
    run.run()
    assert len(seen) == 3  # once an outer iteration of 4, each with a network of its own
    assert torch.equal(seen[0], seen[1]) == (space != "current")
    assert torch.equal(seen[0], images.flatten(1)) == (space == "pixels")


@pytest.mark.parametrize("sampler", ["representative", "released"])
def test_the_released_sampler_sees_images_without_their_normalisation(sampler):
    run, seen = distiller(sampler=sampler), []
    images, choose = run.data.images[:5], run.sampler.choose

    def watched(label, members, rng, embed, predict):
        shown = images if sampler == "released" else (images - 0.4) / 0.25
        seen.append((embed(images), run.matched.model.eval().features(shown)))
        return choose(label, members, rng, embed, predict)

    run.sampler.choose = watched
    run.step()
    for got, expected in seen:
        torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-6)


def shown_to_networks(run):
    """Iteration → the real images of each step of its network's training, as row numbers."""
    shown, train = {}, Trainer.train

    def watched(self, images, labels, draw_rows, steps, rng):
        def drawn():
            shown.setdefault(run.iteration, []).append(draw_rows())
            return shown[run.iteration][-1]

        train(self, images, labels, drawn, steps, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", watched)
        run.run()
    return shown


def test_networks_see_the_real_images_in_one_endless_pass():
    """Four batches of 9 are a pass of the 36 images, and two iterations; the last of a network trains nothing."""
    shown = shown_to_networks(distiller(network_batch=9))
    assert sorted(shown) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    passes = [torch.cat(shown[i] + shown[i + 1]) for i in (0, 4, 8)]
    assert all(rows.sort().values.tolist() == list(range(36)) for rows in passes)
    assert not torch.equal(passes[0], passes[1])


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_networks_are_trained_before_their_first_matching(epochs, steps):
    """On a pass of their own, or a part of one, and on the endless one after it."""
    shown, without = (shown_to_networks(distiller(network_batch=9, pretrain_epochs=e)) for e in (epochs, 0))
    first, later = (torch.cat(shown[i][:steps]) for i in (0, 4))
    assert len(first) == len(first.unique()) == 9 * steps
    assert not torch.equal(first, later)
    for iteration in without:
        own = shown[iteration][steps if iteration % 4 == 0 else 0 :]
        assert torch.equal(torch.stack(own), torch.stack(without[iteration]))


def test_the_clock_runs_with_the_snapshots():
    result = distiller(snapshots=2).run()
    assert list(result.clock) == list(result.snapshots) == [0, 6, 12]
    assert result.clock[0] == 0 < result.clock[6] < result.clock[12] == sum(result.seconds.values())


def test_a_fresh_network_begins_every_outer_iteration():
    run, weights = distiller(), []
    for _ in range(12):
        run.step()
        weights.append(run.matched.model.classifier.weight.detach().clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    # steps 1–3 train, and the last of an outer iteration does not: its network is thrown away
    assert changed == [True, True, False, True, True, True, False, True, True, True, False]


def test_train_on_none_leaves_the_network_alone():
    run, weights = distiller(train_on="none"), []
    for _ in range(4):
        run.step()
        weights.append(run.matched.model.classifier.weight.detach().clone())
    assert all(torch.equal(weights[0], w) for w in weights)


# ---- rates and snapshots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ipc", "rate"), [(1, 7.66e-6), (10, 7.66e-5), (50, 3.83e-4)])
def test_effective_image_rate_on_fashion_mnist(ipc, rate):
    info = DatasetInfo("fashion_mnist", ("a", "b"), 1, 28, (0.3,), (0.3,))
    settings = DistillParams(image_lr=1e-4, image_lr_rule="scaled")
    assert effective_image_lr(settings, ipc, info) == pytest.approx(rate, rel=1e-3)
    assert effective_image_lr(DistillParams(image_lr=1e-4), ipc, info) == 1e-4


@pytest.mark.parametrize(
    ("name", "size", "base", "ipc", "rate"),
    [("mnist", 28, 1e-4, 10, 1e-4), ("cifar10", 32, 5e-3, 1, 5e-4), ("tiny", 64, 5e-3, 10, 2e-2)],
)
def test_effective_image_rate_elsewhere(name, size, base, ipc, rate):
    info = DatasetInfo(name, ("a", "b"), 1, size, (0.3,), (0.3,))
    assert effective_image_lr(DistillParams(image_lr=base, image_lr_rule="scaled"), ipc, info) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(100, 3, [0, 25, 50, 100]), (12, 4, [0, 1, 3, 6, 12]), (1, 4, [0, 1]), (0, 4, [0])]
)
def test_where_snapshots_are_taken(total, count, expected):
    assert snapshot_iterations(total, count) == expected


def test_snapshots_are_the_canvases_of_their_moment():
    seen, run = {}, distiller(image_lr=5.0, snapshots=4)
    step = run.step

    def watched():
        step()
        seen[run.iteration] = run.synthetic.canvases.detach().clone()

    run.step = watched
    result = run.run()
    assert sorted(result.snapshots) == [0, 1, 3, 6, 12]
    assert torch.equal(result.snapshots[0], run.start.canvases)
    for iteration in (1, 3, 6, 12):
        assert torch.equal(result.snapshots[iteration], seen[iteration].clamp(0, 1))
    assert torch.equal(result.snapshots[12], result.synthetic.canvases)


def test_no_iterations_give_the_start_back():
    result = distiller(outer_iterations=0).run()
    assert result.history == []
    assert torch.equal(result.snapshots[0], result.synthetic.canvases)


# ---- failures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_objective():
    """Register an objective of the given losses for one test."""
    names = []

    def register(losses, learned=lambda self, start: {}):
        kind = type("Toy", (Objective,), {"losses": losses, "learned": learned, "__dataclass_fields__": {}})
        OBJECTIVES.register("toy")(kind)
        names.append("toy")

    yield register
    for name in names:
        OBJECTIVES.pop(name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_iteration_class_and_rate_and_keeps_the_last_good_checkpoint(tmp_path, toy_objective, bad):
    def losses(self, state):
        for label in range(3):
            fine = state.iteration < 5 or label == 0
            yield label, state.synthetic.canvases.square().sum() * (1.0 if fine else bad)

    toy_objective(losses)
    checkpoint, run = Checkpoint(tmp_path, "key"), distiller(objective="toy", image_lr=0.02, image_update="per_class")
    with pytest.raises(match=r"class 1 \(b\).*iteration 5.*image_lr 0\.02: lower"):
        run.run(checkpoint)
    kept = checkpoint.load()
    assert kept["iteration"] == 5
    assert bool(kept["canvases"].isfinite().all())


def test_a_step_that_breaks_the_pixels_never_becomes_the_checkpoint(tmp_path, toy_objective):
    """The loss is finite and its gradient is not: what is kept must still be worth going on from."""

    def losses(self, state):
        x = state.synthetic.canvases
        yield 0, (x.abs().sum() + 1).sqrt() if state.iteration < 3 else (x - x.detach()).clamp_min(0).sqrt().sum()

    toy_objective(losses)
    checkpoint = Checkpoint(tmp_path, "key")
    with pytest.raises(DistillationDivergedError):
        distiller(objective="toy").run(checkpoint)
    assert bool(checkpoint.load()["canvases"].isfinite().all())


def test_a_broken_learned_value_is_named_with_its_own_rate(toy_objective):
    def losses(self, state):
        rate = state.synthetic.extras["rate"]
        yield -1, (rate - rate.detach()).clamp_min(0).sqrt() + state.synthetic.canvases.square().sum()

    toy_objective(losses, learned=lambda self, start: {"rate": torch.tensor(1.0)})
    with pytest.raises(match=r"learned 'rate' .* with learned_lr 0\.01: lower learned_lr"):
        distiller(objective="toy", learned_lr=0.01, image_update="once_equivalent").run()


def test_a_loss_of_all_classes_is_not_blamed_on_one(toy_objective):
    """An objective that gives one loss for the whole set gives it as class −1."""

    def losses(self, state):
        yield -1, state.synthetic.canvases.sum() * float("nan")

    toy_objective(losses)
    with pytest.raises(DistillationDivergedError) as caught:
        distiller(objective="toy").run()
    assert "(c)" not in str(caught.value), "class −1 is not the last class"


def test_what_is_learned_besides_pixels_steps_at_its_own_rate_and_is_resumed(tmp_path, toy_objective):
    def losses(self, state):
        yield -1, state.synthetic.extras["rate"] * 3.0 + state.synthetic.canvases.square().sum()

    toy_objective(losses, learned=lambda self, start: {"rate": torch.tensor(1.0)})
    changes = {"objective": "toy", "learned_lr": 0.01, "image_update": "once_equivalent"}
    result = distiller(**changes).run()
    assert result.synthetic.extras["rate"].item() == pytest.approx(1 - 12 * 0.01 * 3, rel=1e-5)
    assert (result.synthetic.stored_floats, result.synthetic.learned_floats) == (6 * 64, 1)
    with pytest.raises(Killed):
        distiller(**changes).run(KilledAfter(tmp_path, "key", 5))
    resumed = distiller(**changes).run(Checkpoint(tmp_path, "key"))
    assert same(resumed, result)
    assert torch.equal(resumed.synthetic.extras["rate"], result.synthetic.extras["rate"])


def test_soft_labels_of_the_start_are_kept():
    _, data = toys()
    start = fill(data, random_rows(data, 8, 0), 2, 2, "single")
    soft = SyntheticSet(start.canvases, start.labels, 3, 2, soft_labels=torch.full((24, 3), 1 / 3))
    assert torch.equal(distiller(start=soft).run().synthetic.soft_labels, soft.soft_labels)
