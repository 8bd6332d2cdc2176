"""Two processes give what one gives: distilled sets, accuracies, resumed runs; what cannot be shared is refused."""

import os
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
import torch
import torch.multiprocessing
from ruamel.yaml import YAML
from torch import distributed

from dreamlib._engine import ranks as parallel
from dreamlib._engine.checkpoint import Checkpoint
from dreamlib._engine.compute import Compute
from dreamlib._engine.progress import PROGRESS_FILE
from dreamlib.data import create, info, load_split
from dreamlib.data.types import LabeledImages
from dreamlib.distill import Distiller
from dreamlib.errors import ParameterError
from dreamlib.evaluation import evaluate
from dreamlib.matching import OBJECTIVES, Objective
from dreamlib.settings import DistillParams, EvaluationParams
from dreamlib.synthetic.initial import fill, random_rows
from pipeline.params import find_root
from pipeline.project import Project, Setting
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import read_result, run_distillation
from pipeline.stages.evaluation import run_evaluation

ROOT = find_root(Path(__file__).parent)
NETWORK = ("convnet", {"width": 8})
COMPUTE = Compute(dtype=torch.float64)
SMALL = {
    "real_batch": 8,
    "synthetic_batch": 5,
    "interval": 2,
    "outer_iterations": 2,
    "inner_iterations": 3,
    "network_steps": 1,
    "network_batch": 16,
    "image_lr": 0.02,
    "checkpoint_every_s": 1e-9,
}
RUNS = {
    "random": {"image_optimizer": "adam"},
    "representative": {"sampler": "representative", "pool": 30, "image_update": "once_equivalent"},
    "every iteration": {"sampler": "representative", "cluster_features": "random", "interval": 1},
    "distribution": {"objective": "distribution", "train_on": "none", "image_momentum": 0.9},
    # One loss of the whole set: done alike by everyone.
    "unrolled": {"objective": "unrolled", "options": {"steps": 1, "passes": 2, "real_batch": 0}, "train_on": "none"},
}
HOW = EvaluationParams(epochs=4, repeats=3, batch=20)


def digits(folder):
    """(info, training images), in float64."""
    data = load_split("digits", "train", Path(folder), validation_per_class=20, seed=0)
    return info("digits"), LabeledImages(data.images.double(), data.labels, data.num_classes)


def distiller(folder, name, **changes):
    about, data = digits(folder)
    start = fill(data, random_rows(data, 4, 0), 1, 2, "single")
    settings = DistillParams(**{**SMALL, **RUNS[name], **changes})
    return Distiller(start, data, about, settings, NETWORK, COMPUTE, 0)


def evaluated(folder):
    about, data = digits(folder)
    start = fill(data, random_rows(data, 2, 0), 2, 1, "single")
    return evaluate(start, data, about, HOW, NETWORK, COMPUTE, seed=3, split="train").accuracies


def told(result):
    """What is compared of a result."""
    return result.synthetic.canvases, result.synthetic.extras, result.history, result.snapshots


class Careless(Objective):
    """Looks at all classes, whatever its share."""

    __dataclass_fields__ = MappingProxyType({})

    def losses(self, state):
        for label in range(state.info.num_classes):
            yield label, state.synthetic.canvases.square().sum()


def second(_, folder):
    """What the second process runs."""
    torch.set_num_threads(1)
    torch.save(member(1, folder), Path(folder) / "found.pt")


def member(rank, folder):
    """One of two processes: what they find together."""
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    results = {name: told(distiller(folder, name).run()) for name in RUNS}
    torch.set_num_threads(2)
    results["side by side"] = told(distiller(folder, "representative", parallel_classes=2).run())
    torch.set_num_threads(1)
    for name in ("every iteration", "representative"):
        half = distiller(folder, name)
        for _ in range(5):
            half.step()
        state, checkpoint = half.state(), Checkpoint(folder, name)
        if rank == 0:
            checkpoint.save(state)
        distributed.barrier()
        results[f"resumed {name}"] = told(distiller(folder, name).run(checkpoint))
    results["clustered"] = sorted(half.sampler.chosen)
    results["kept"] = [len(state["sampler"]["chosen"][label]) for label in range(10)]
    results["accuracies"] = evaluated(folder)
    results["gathered"] = parallel.gather(parallel.my_share("abcde"))
    results["said"] = parallel.broadcast_from_first(rank == 0)
    OBJECTIVES.register("careless")(Careless)
    for key, changes in {"careless": {"objective": "careless"}, "per_class": {"image_update": "per_class"}}.items():
        try:
            distiller(folder, "distribution", **changes).step()
        except (ValueError, RuntimeError) as error:
            results[key] = str(error)
    OBJECTIVES.pop("careless")
    return results


@pytest.fixture(scope="module")
def together(tmp_path_factory, one_thread):
    """(folder, what each of two processes found)."""
    folder = tmp_path_factory.mktemp("workers")
    create("digits").fetch(folder)
    other = torch.multiprocessing.spawn(second, (str(folder),), nprocs=1, join=False)
    try:
        ours = member(0, str(folder))
        other.join()
    finally:
        for process in other.processes:
            process.kill()
        distributed.destroy_process_group()
    return folder, [ours, torch.load(folder / "found.pt", weights_only=True)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the two have: the order of a sum is then the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RUNS)
def test_two_distil_what_one_distils(together, name):
    folder, result = together
    alone = told(distiller(folder, name).run())
    for theirs in result:
        torch.testing.assert_close(theirs[name], alone, rtol=1e-12, atol=1e-14)
    assert not torch.equal(alone[0], alone[3][0]), "the pixels moved"


def test_each_matches_its_classes_side_by_side(together):
    for theirs in together[1]:
        torch.testing.assert_close(theirs["side by side"], theirs["representative"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["every iteration", "representative"])
def test_two_that_were_interrupted_end_where_the_uninterrupted_do(together, name):
    _, result = together
    for theirs in result:
        torch.testing.assert_close(theirs[f"resumed {name}"][:3], theirs[name][:3], rtol=0, atol=0)
        assert theirs["kept"] == [8] * 10, "a checkpoint holds every class's batch"


def test_each_clusters_its_own_classes_only(together):
    _, result = together
    assert [theirs["clustered"] for theirs in result] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_two_evaluate_to_the_accuracies_of_one_in_its_order(together):
    folder, result = together
    alone = evaluated(folder)
    assert len(set(alone)) > 1, "the order must show"
    assert [theirs["accuracies"] for theirs in result] == [alone, alone]


def test_shares_come_together_in_order_and_decisions_are_the_firsts(together):
    _, result = together
    assert [theirs["gathered"] for theirs in result] == [list("abcde")] * 2
    assert [theirs["said"] for theirs in result] == [True, True]


def test_what_cannot_be_shared_is_refused(together):
    _, result = together
    for theirs in result:
        assert "batched or once_equivalent" in theirs["per_class"]
        assert "loop over state.classes, or set by_class = False" in theirs["careless"]


# ---- from params.yaml ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project on digits with two workers."""
    folder, yaml = tmp_path_factory.mktemp("project"), YAML()
    for name in ("dvc.yaml", "methods.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for package in ("dreamlib", "pipeline"):
        (folder / package).symlink_to(ROOT / package)
    create("digits").fetch(folder / "data")
    params = yaml.load(ROOT / "params.yaml")
    params.update(dataset="digits", ipc=[1], methods=["dream"], seeds=[0])
    params["compute"].update(compile=False, precision="float32", threads=2, device="cpu", workers=2)
    quick = params["budgets"]["quick"]
    quick["network"]["options"] = {"width": 8}
    quick["distillation"].update(outer_iterations=1, inner_iterations=2, real_batch=8, pool=20, snapshots=1)
    quick["evaluation"].update(repeats=3, epochs=2, curve_epochs=2, last_layer="ridge")
    yaml.dump(params, folder / "params.yaml")
    return folder


def with_compute(root, **changes):
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["compute"].update(changes)
    yaml.dump(params, root / "params.yaml")
    return Project.open(root)


def test_a_failing_worker_is_one_error_and_working_ones_give_what_one_gives(root, capfd):
    setting, project = Setting("dream", 1, 0), Project.open(root)
    with pytest.raises(
        parallel.WorkerError, match=r"2 workers .*distillation.*FileNotFoundError.*run the stage that makes it"
    ):
        run_distillation(project, setting)
    assert "Traceback" in capfd.readouterr().err, "what the workers said is passed on"
    one = with_compute(root, workers=1, threads=1)
    run_clustering(one, 1, 0)
    made, read = run_distillation(one, setting), read_result(one, setting)
    torch.testing.assert_close(told(read), told(made), rtol=0, atol=0)
    assert sorted(read.seconds) == ["clustering", "matching", "network"]
    alone = run_evaluation(one, setting)
    shared = run_evaluation(with_compute(root, workers=2, threads=2), setting)
    assert shared[0] == alone[0] and len(shared[0].as_trained) == 3
    assert shared[1].equals(alone[1])


def test_workers_end_with_the_process_that_started_them(root, tmp_path, until_ended):
    """It is killed when they work, as a checkpoint shows. They write their progress to a file, as below a launcher."""
    before, yaml = (root / "params.yaml").read_bytes(), YAML()
    params = yaml.load(root / "params.yaml")
    params["methods"] = ["idc"]
    params["budgets"]["quick"]["distillation"].update(outer_iterations=10**6, checkpoint_every_s=0.01)
    program = (
        "import sys; from pathlib import Path; from dreamlib._engine.ranks import run_workers;"
        "arguments = ['distillation', '--method=idc', '--ipc=1', '--seed=0'];"
        "run_workers(2, 'pipeline.worker', arguments, Path(sys.argv[1]), 2)"
    )
    command = [sys.executable, "-c", program, str(root)]
    env = os.environ | {"PYTHONPATH": str(ROOT), PROGRESS_FILE: str(tmp_path / "progress")}
    try:
        yaml.dump(params, root / "params.yaml")
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as starter:
            deadline = time.monotonic() + 240
            begun = (root / ".dream" / "checkpoints").glob
            while starter.poll() is None and not list(begun("idc-*.ckpt")) and time.monotonic() < deadline:
                time.sleep(0.05)
            started = psutil.Process(starter.pid).children(recursive=True)
            starter.kill()
    finally:
        (root / "params.yaml").write_bytes(before)
    assert len(started) >= 3, "torchrun and two workers"
    until_ended(started)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 11}, r"compute.workers = 11 is more than the 10 classes .*use at most 10"),
        ({"workers": 2, "device": "cuda:1"}, "cuda:1 names one device; use auto, cuda or cpu"),
        ({"workers": 0}, "compute.workers"),
    ],
)
def test_impossible_workers_are_refused_at_the_door(root, changes, message):
    before = (root / "params.yaml").read_bytes()
    try:
        with pytest.raises(ParameterError, match=message):
            with_compute(root, **changes)
    finally:
        (root / "params.yaml").write_bytes(before)


def test_classes_in_turn_cannot_be_shared(root):
    before, yaml = (root / "params.yaml").read_bytes(), YAML()
    params = yaml.load(root / "params.yaml")
    params["compute"]["workers"] = 2
    params["budgets"]["quick"]["distillation"].update(image_optimizer="sgd", image_update="per_class")
    try:
        yaml.dump(params, root / "params.yaml")
        with pytest.raises(
            ParameterError, match=r"method dream: .*image_update: per_class.*batched or once_equivalent"
        ):
            Project.open(root)
    finally:
        (root / "params.yaml").write_bytes(before)


def test_more_workers_than_gpus_are_refused_before_they_meet(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for here in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda here=here: here)
        message = f"2 workers need a GPU each and this machine has {here}"
        with pytest.raises(ValueError, match=message), parallel.joined("cuda"):
            pass


def test_alone_everything_is_a_group_of_one():
    x = torch.ones(2)
    parallel.sum_over_workers([x])
    assert x.tolist() == [1, 1]
    assert (parallel.world(), parallel.rank(), parallel.my_share(range(3))) == (1, 0, [0, 1, 2])
    assert parallel.local_device("auto") == "auto"
