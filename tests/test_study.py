"""Studies under parameters of their own, through the pipeline's stages, on digits."""

import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from torch.nn import functional as F

from dreamlib._engine.files import read_json
from dreamlib._engine.seeding import generator
from dreamlib.data import create
from dreamlib.errors import ParameterError
from dreamlib.networks import NETWORKS, build
from dreamlib.sampling.representatives import cluster_class
from pipeline.params import find_root, read_params
from pipeline.params.check import check_names
from pipeline.project import Project, Setting
from pipeline.stages import experts as stage_experts
from pipeline.stages.clustering import representatives
from pipeline.stages.distillation import run_distillation
from pipeline.stages.evaluation import run_evaluation
from pipeline.studies import run as study

ROOT = find_root(Path(__file__).parent)
STUDIES_FILE = "studies/params.yaml"
STUDIES = YAML(typ="safe", pure=True).load(ROOT / STUDIES_FILE)["studies"]
TINY = {
    "dataset": "digits",
    "network": {"name": "convnet", "options": {"width": 8}},
    "ipc": [1],
    "methods": ["random", "dream", "kmeans_kd"],
    "seeds": [0, 1],
    "budget": "tiny",
    "compute": {"compile": False, "precision": "float32", "threads": 1},
    "method": {"kmeans_kd": {"teacher_epochs": 1}},
    "budgets": {
        "tiny": {
            "validation_per_class": 20,
            "clustering": {"features": "random", "pool": 40},
            "distillation": {
                "outer_iterations": 1, "inner_iterations": 2, "real_batch": 8, "pool": 40, "image_optimizer": "adam",
                "image_lr": 0.05, "network_steps": 1,
            },
            "evaluation": {
                "networks": ["convnet", "mlp"], "repeats": 1, "epochs": 3, "curve_networks": 0,
                "views": ["plain", "hard_labels"],
            },
            "experts": {"images": 10, "count": 1, "epochs": 1, "batch": 32},
        }
    },
}  # fmt: skip
MTT = {
    "options": {"experts": "results/small/experts", "synthetic_steps": 1, "expert_epochs": 1, "max_start": 1},
    "outer_iterations": 2,
    "image_lr": 0.05,
}
EXPERTS = {"images": 10, "count": 2, "epochs": 1, "batch": 32}
SMALL = {
    "dataset": "digits",
    "network": {"name": "convnet", "options": {"width": 8}},
    "ipc": [1],
    "methods": ["mtt"],
    "seeds": [0],
    "budget": "small",
    "compute": {"device": "cpu", "compile": False, "precision": "float32", "threads": 1},
    "method": {"mtt": {"small": MTT}},
    "budgets": {
        "small": {
            "validation_per_class": 20,
            "evaluation": {"protocol": "mtt", "networks": ["mlp"], "repeats": 1, "epochs": 2, "curve_networks": 0},
            "experts": EXPERTS,
        }
    },
}
RANDOM = Setting("random", 1, 0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with two small studies, as the current directory."""
    for name in ("params.yaml", "methods.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "dreamlib", tmp_path / "dreamlib", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path, SMALL)
    create("digits").fetch(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root, small):
    (root / "studies").mkdir(exist_ok=True)
    YAML().dump({"studies": {"tiny": TINY, "small": small}}, root / STUDIES_FILE)


def test_a_study_joins_sections_and_replaces_the_rest(root):
    params, usual = read_params(root, "tiny"), read_params(root)
    assert (params.dataset, params.seeds, params.compute.threads) == ("digits", [0, 1], 1)
    assert params.data.directory == usual.data.directory  # not named by the study
    assert params.method["dream"] == usual.method["dream"]
    assert params.method["kmeans_kd"] == usual.method["kmeans_kd"] | {"teacher_epochs": 1}
    assert set(params.budgets) == {*usual.budgets, "tiny"} and usual.dataset == "fashion_mnist"


def test_lists_are_replaced_and_sections_keep_what_the_study_does_not_name(root):
    before = (root / "params.yaml").read_bytes()
    usual, small = read_params(root), read_params(root, "small")
    assert (small.methods, small.seeds, small.ipc) == (["mtt"], [0], [1])
    assert small.method["mtt"] == usual.method["mtt"] | {"small": MTT}
    assert small.budgets["quick"] == usual.budgets["quick"] and "small" not in usual.budgets
    nested = {"budgets": {"quick": {"evaluation": {"networks": ["mlp"]}}}}
    write(root, nested)
    joined = read_params(root, "small").budgets["quick"]
    assert joined.evaluation == usual.budgets["quick"].evaluation | {"networks": ["mlp"]}
    assert joined.distillation == usual.budgets["quick"].distillation
    assert (root / "params.yaml").read_bytes() == before


def test_a_study_has_nothing_of_another_network_or_data_set(root):
    yaml, path = YAML(), root / "params.yaml"
    params = yaml.load(path)
    params["budgets"]["quick"]["network"] = {"name": "convnet", "options": {"depth": 2}}
    params["data"]["options"] = {"path": "elsewhere"}
    params["dataset"] = "folder"
    yaml.dump(params, path)
    study = {"dataset": "digits", "network": {"name": "convnet", "options": {"width": 8}}}
    write(root, study)
    result = read_params(root, "small")
    assert result.network.options == {"width": 8} and result.data.options == {}
    assert result.data.directory == params["data"]["directory"]
    write(root, {"seeds": [7]})  # the same data and network: theirs are kept
    result = read_params(root, "small")
    assert result.network.options == {"depth": 2} and result.data.options == {"path": "elsewhere"}


def test_an_unknown_study_and_a_missing_file_are_said(root):
    with pytest.raises(ParameterError, match="did you mean 'tiny'"):
        read_params(root, "tinny")
    (root / STUDIES_FILE).unlink()
    with pytest.raises(ParameterError, match=r"studies/params.yaml is missing; restore it with `git checkout"):
        read_params(root, "tiny")


def test_one_project_has_results_of_its_own_for_each_study(root):
    names = (None, "tiny", "small")
    usual, tiny, small = (Project(root, read_params(root, name), name) for name in names)
    assert [p.results.relative_to(root).as_posix() for p in (usual, tiny, small)] == [
        "results", "results/tiny", "results/small",
    ]  # fmt: skip
    dream, mtt = Setting("dream", 1, 0), Setting("mtt", 1, 0)
    assert usual.file("sets", dream, ".x") == root / "results" / "sets" / "dream-ipc1-seed0.x"
    assert tiny.file("sets", dream, ".x") == root / "results" / "tiny" / "dream" / "sets" / "dream-ipc1-seed0.x"
    assert [p.file("curves", mtt, ".csv").relative_to(root).as_posix() for p in (usual, small)] == [
        "results/curves/mtt-ipc1-seed0.csv",
        "results/small/mtt/curves/mtt-ipc1-seed0.csv",
    ]


def test_a_study_runs_every_seed_and_the_first_meets_every_network(root):
    def run():
        for method in TINY["methods"]:
            assert study.main(["tiny", "run", method]) == 0
        return {p.name: p.read_bytes() for p in (root / "results" / "tiny").rglob("*") if p.is_file()}

    assert study.main(["tiny", "clusters"]) == 0
    first = run()
    assert not (root / "results" / "sets").exists()
    asked = [
        [(v["network"], v["view"]) for v in read_json(path)["views"]]
        for path in sorted((root / "results" / "tiny" / "dream" / "evaluation").iterdir())
    ]
    views = [("convnet", "plain"), ("convnet", "hard_labels")]
    assert asked == [
        [("convnet", "protocol"), ("mlp", "protocol"), *views],
        [("convnet", "protocol"), *views],
    ]
    second = read_json(root / "results" / "tiny" / "dream" / "evaluation" / "dream-ipc1-seed1.json")
    by_view = {view["view"]: view["accuracies"] for view in second["views"]}
    assert by_view["hard_labels"] == by_view["protocol"] != by_view["plain"]
    soft = read_json(root / "results/tiny/kmeans_kd/evaluation/kmeans_kd-ipc1-seed0.json")
    assert soft["label_kind"] == "soft" and soft["stored_floats"] > 640
    assert run() == first, "the same parameters give the same bits"
    assert sorted(p.stem for p in (root / ".dream" / "runs" / "tiny").glob("distillation-dream*")) == [
        "distillation-dream-ipc1-seed0", "distillation-dream-ipc1-seed1",
    ]  # fmt: skip


@pytest.fixture
def evaluating(root):
    """The study of one set of real images, distilled already, with keys of its evaluation; again for other keys."""

    def opened(**settings):
        settings = {"validation_per_class": 20, "evaluation": {"repeats": 1, "curve_networks": 0} | settings}
        write(root, SMALL | {"methods": ["random"], "budgets": {"small": settings}})
        project = Project.open(root, study="small")
        if not project.file("sets", RANDOM, ".safetensors").is_file():
            run_distillation(project, RANDOM)
        return project

    return opened


def evaluated(project):
    """What the evaluation stage writes of that set."""
    run_evaluation(project, RANDOM)
    return read_json(project.file("evaluation", RANDOM, ".json"))


def test_a_fitted_last_layer_stands_beside_the_trained_one(evaluating):
    settings = {"repeats": 2, "epochs": 20, "views": ["plain"]}
    fitted = evaluated(evaluating(last_layer="ridge", **settings))
    trained = evaluated(evaluating(last_layer="trained", **settings))
    assert [view["as_trained"] for view in fitted["views"]] == [view["accuracies"] for view in trained["views"]]
    assert fitted["accuracies"] != trained["accuracies"] and "as_trained" not in trained["views"][0]
    with pytest.raises(ParameterError, match="last_layer: Input should be 'trained' or 'ridge', got 'rigde'"):
        evaluating(last_layer="rigde", **settings)


def test_snapshots_are_read_for_a_curve_alone_and_before_any_training(evaluating, monkeypatch):
    project = evaluating(epochs=1)
    project.file("snapshots", RANDOM, ".safetensors").unlink()
    done, points = run_evaluation(project, RANDOM)
    assert len(done.accuracies) == 1 and points.empty
    trained = []
    monkeypatch.setattr("pipeline.stages.evaluation.evaluate", lambda *given, **named: trained.append(given))
    with pytest.raises(FileNotFoundError, match="run the stage that makes it"):
        run_evaluation(evaluating(epochs=1, curve_networks=1), RANDOM)
    assert not trained


def test_methods_start_from_the_clusters_of_the_features_they_name(root):
    """All features by hand: an untrained network's, of normalised or of plain images, and pixels."""
    methods = {
        "usual": {"init": "kmeans"},
        "own": {"init": "kmeans", "clustering": {"features": "pixels"}},
        "theirs": {"init": "released"},
    }
    budget = {"validation_per_class": 20, "clustering": {"features": "random", "max_iterations": 9},
              "distillation": {"outer_iterations": 0, "factor": 2}, "evaluation": {"curve_networks": 0}}  # fmt: skip
    write(root, SMALL | {"methods": list(methods), "method": methods, "budgets": {"small": budget}})
    assert study.main(["small", "clusters"]) == 0
    project = Project.open(root, "small")
    train, info = project.split("train"), project.info
    network = build("convnet", info, generator(0, "clustering-network"), {"width": 8}).eval()

    def features(images):
        with torch.no_grad():
            return network.features(images)

    for method, embed, most, pick in (
        ("usual", lambda x: features(info.normalise(x)), 9, "members"),
        ("own", lambda x: x.flatten(1), 9, "members"),
        ("theirs", features, 100, "released"),
    ):
        setting = Setting(method, 1, 0)
        rows = representatives(project, setting, 4)
        for label, result in enumerate(rows):
            assert torch.equal(result, cluster_class(train, label, 4, 0, embed, 0, most, pick).representatives)
        made = run_distillation(project, setting).synthetic.canvases
        first = train.images[rows[0, 0], 0]
        shrunk = first[::2, ::2] if method == "theirs" else F.avg_pool2d(first[None], 2)[0]
        torch.testing.assert_close(made[0, 0, :4, :4], shrunk)


def test_experts_of_a_study_are_its_own_and_see_the_images_it_allows(root, monkeypatch):
    seen, train = [], stage_experts.train_experts
    monkeypatch.setattr(
        stage_experts, "train_experts", lambda folder, data, *a, **k: (seen.append(data), train(folder, data, *a, **k))
    )
    assert study.main(["small", "experts"]) == 0
    assert seen[0].labels.bincount().tolist() == [10] * 10
    assert sorted(p.name for p in (root / "results").rglob("*.safetensors")) == [
        f"expert-00{i}.safetensors" for i in (0, 1)
    ]
    assert study.main(["small", "run", "mtt"]) == 0
    folder = root / "results" / "small" / "mtt"
    metrics = read_json(folder / "evaluation" / "mtt-ipc1-seed0.json")
    assert (metrics["protocol"], metrics["network"], metrics["networks"]) == ("mtt", "mlp", 1)
    with safe_open(folder / "sets" / "mtt-ipc1-seed0.safetensors", "pt") as saved:
        assert any("step_size" in key for key in saved.keys())  # noqa: SIM118 (not a mapping)
    assert metrics["stored_floats"] == 10 * 64 + 1


def test_experts_that_are_not_all_there_are_not_followed(root, capsys):
    assert study.main(["small", "experts"]) == 0
    experts = sorted((root / "results" / "small" / "experts").iterdir())
    other = experts[1].read_bytes()
    experts[1].unlink()
    assert study.main(["small", "run", "mtt"]) == 1
    assert "holds 1 experts of 1 epochs; params.yaml specifies 2 of 1" in capsys.readouterr().err
    write(root, SMALL | {"budgets": {"small": SMALL["budgets"]["small"] | {"experts": {**EXPERTS, "lr": 0.02}}}})
    assert study.main(["small", "experts"]) == 0
    experts[1].write_bytes(other)
    assert study.main(["small", "run", "mtt"]) == 1
    assert "made with different settings or data: run `python -m pipeline.stages.experts`" in capsys.readouterr().err
    experts[1].write_bytes(b"torn")
    assert study.main(["small", "run", "mtt"]) == 1
    assert "not a complete expert trajectory" in capsys.readouterr().err
    assert not (root / "results" / "small" / "mtt" / "sets").exists()


def test_without_experts_the_run_says_how_to_make_them(root, capsys):
    assert study.main(["small", "run", "mtt"]) == 1
    message = capsys.readouterr().err
    assert "error: " in message and "experts" in message
    assert not (root / "results" / "small" / "mtt" / "sets").exists()


@pytest.mark.parametrize(
    ("arguments", "change", "part"),
    [
        (["smal", "clusters"], {}, "did you mean 'small'?"),
        (["small", "run"], {}, "part 'run' needs at least one method: mtt"),
        (["small", "run", "dream"], {}, "lists ['mtt']"),
        (["tiny", "run", "idc"], {}, "lists ['random', 'dream', 'kmeans_kd']"),
        (["small", "run", "mtt"], {"methods": ["mttt"]}, "did you mean 'mtt'?"),
        (
            ["small", "clusters"],
            {"datset": "digits"},
            "studies/params.yaml: studies.small.datset: unknown key 'datset'",
        ),
        (["small", "clusters"], {"compute": "fast"}, "compute"),
    ],
)
def test_a_mistake_is_one_line_and_status_one_and_nothing_is_written(root, capsys, arguments, change, part):
    write(root, SMALL | change)
    assert study.main(arguments) == 1
    message = capsys.readouterr().err
    assert part in message and message.startswith("error: ") and len(message.strip().splitlines()) == 1
    assert not (root / "results").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_the_projects_own_studies_can_be_run(name):
    params = read_params(ROOT, name)
    check_names(params)
    for ipc in params.ipc:
        for method in params.methods:
            assert all(network.name in NETWORKS for network in params.evaluation(method, ipc).networks)
            settings = params.distillation(method, ipc)
            if settings.objective == "trajectory":
                assert settings.options["experts"] == f"results/{name}/experts", "the study's own"
                assert settings.options["max_start"] - 1 + settings.options["expert_epochs"] <= params.experts().epochs


def test_every_parameter_that_a_stage_of_the_studies_depends_on_exists():
    """DVC refuses to run a stage otherwise."""
    values = {
        name: YAML(typ="safe", pure=True).load(ROOT / name) for name in ("params.yaml", "methods.yaml", STUDIES_FILE)
    }
    stages = YAML(typ="safe", pure=True).load(ROOT / "studies" / "dvc.yaml")["stages"].values()
    for entry in (entry for stage in stages for entry in stage.get("params", [])):
        for file, names in entry.items() if isinstance(entry, dict) else [("params.yaml", [entry])]:
            for name in (name for name in names or [] if "${item." not in name):
                found = values[file]
                for key in name.replace("${budget}", values["params.yaml"]["budget"]).split("."):
                    found = found[key]


def test_all_does_clusters_and_every_method_and_keeps_what_is_small(root, monkeypatch):
    """Every seed meets every network; only the first seed's set stays, at few stored images a class."""
    quick = {"outer_iterations": 1, "inner_iterations": 2, "real_batch": 8, "pool": 40, "snapshots": 1}
    section = SMALL | {
        "ipc": [1, 2],
        "methods": ["random", "dream"],
        "seeds": [0, 1],
        "budgets": {
            "small": {
                "validation_per_class": 20,
                "clustering": {"pool": 40},
                "distillation": quick | {"image_optimizer": "adam", "image_lr": 0.05},
                "evaluation": {"networks": ["convnet", "mlp"], "repeats": 1, "epochs": 1, "curve_epochs": 1},
            }
        },
    }
    write(root, section)
    monkeypatch.setattr(study, "MAX_STORED_IPC", 1)
    assert study.main(["small", "all"]) == 0
    folder = root / "results" / "small" / "dream"
    assert [p.name for p in (folder / "sets").iterdir()] == ["dream-ipc1-seed0.safetensors"]
    assert not (folder / "snapshots").exists()
    evaluations = sorted((folder / "evaluation").iterdir())
    assert len(evaluations) == 4
    assert {tuple(v["network"] for v in read_json(path)["views"]) for path in evaluations} == {("convnet", "mlp")}
    curve = (folder / "curves" / "dream-ipc2-seed1.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curve] == ["iteration", "0", "2"]
    runs = root / ".dream" / "runs" / "small"
    assert set(read_json(runs / "distillation-dream-ipc1-seed0.json")["snapshots_s"]) == {"0", "2"}


def test_a_study_of_one_method_keeps_its_set_however_large(root, monkeypatch):
    tiny = {"distillation": {"outer_iterations": 0}, "evaluation": {"repeats": 1, "epochs": 1, "curve_networks": 0}}
    write(root, SMALL | {"ipc": [2], "methods": ["random"], "seeds": [0, 1], "budgets": {"small": tiny}})
    monkeypatch.setattr(study, "MAX_STORED_IPC", 1)
    assert study.main(["small", "all"]) == 0
    kept = [p.name for p in (root / "results" / "small" / "random" / "sets").iterdir()]
    assert kept == ["random-ipc2-seed0.safetensors"]


def test_several_methods_run_in_one_process_and_a_wrong_one_stops_all(root, capsys):
    tiny = {"distillation": {"outer_iterations": 0}, "evaluation": {"repeats": 1, "epochs": 1, "curve_networks": 0}}
    write(root, SMALL | {"methods": ["random", "herding"], "budgets": {"small": tiny}})
    assert study.main(["small", "run", "random", "dream"]) == 1
    assert "dream" in capsys.readouterr().err and not (root / "results").exists()
    assert study.main(["small", "run", "random", "herding"]) == 0
    assert sorted(p.name for p in (root / "results" / "small").iterdir()) == ["herding", "random"]
