"""The pipeline as a whole: dvc.yaml against the code, the launcher, and one real `dvc repro` on digits in a copy."""

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill import PapermillExecutionError
from PIL import Image
from ruamel.yaml import YAML

from dreamlib._engine import files
from dreamlib._engine.files import read_json
from dreamlib.data import create
from dreamlib.errors import ParameterError, UnknownNameError
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline import launch_notebook as launcher
from pipeline.params import Params, find_root, read_params
from pipeline.project import Project, Setting
from pipeline.report.cells import small_class_note
from pipeline.report.figures import write_contact_sheet
from pipeline.report.notebooks import check, cleaned
from pipeline.stages.clustering import cluster_counts, run_clustering
from pipeline.stages.distillation import run_distillation
from pipeline.stages.evaluation import run_evaluation
from pipeline.stages.experts import run_experts

ROOT = find_root(Path(__file__).parent)
STAGES = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
STUDIES = YAML(typ="safe", pure=True).load(ROOT / "studies" / "dvc.yaml")["stages"]
# Packages that draw, report or launch: they cannot change a number.
PRESENTATION = ("pipeline.report", "pipeline.launch_notebook", "pipeline.worker", "pipeline.failures")
NOTEBOOK_STAGES = {name: f"pipeline.stages.{name}" for name in ("clustering", "distillation", "evaluation")}


def module_of(stage):
    """Return the module that does a stage's work: of a notebook's stage, or what ``python -m`` runs."""
    if stage in NOTEBOOK_STAGES:
        return NOTEBOOK_STAGES[stage]
    words = STUDIES[stage]["cmd"].split()
    return words[words.index("-m") + 1]


def file_of(module):
    """Return the module's file, or None for what is not a module of this project."""
    path = ROOT / module.replace(".", "/")
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def imported(module):
    """Return this project's modules that a module imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(file_of(module).read_text())):
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name for name in modules if name.split(".")[0] in ("dreamlib", "pipeline") and file_of(name)}


def closure(start):
    """Return the files of all modules that ``start`` imports, directly or not, itself included."""
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module not in seen and not module.startswith(PRESENTATION):
            seen.add(module)
            todo += imported(module)
    return {file_of(module).relative_to(ROOT) for module in seen}


def covered(file, deps):
    return any(file == Path(dep) or Path(dep) in file.parents for dep in deps)


COMPUTING = [*NOTEBOOK_STAGES, *(name for name, stage in STUDIES.items() if "launch_notebook" not in stage["cmd"])]


@pytest.mark.parametrize("stage", [name for name in COMPUTING if name != "best"])
def test_a_stage_depends_on_every_module_its_numbers_come_from(stage):
    deps = (STAGES.get(stage) or STUDIES[stage])["deps"]
    packages = {"__init__.py"}  # of a package's own file, which holds its docstring
    missing = {file for file in closure(module_of(stage)) if not covered(file, deps)}
    assert {str(file) for file in missing if not (file.name in packages and len(file.parts) == 2)} == set()


@pytest.mark.parametrize(("name", "stage"), [*STAGES.items(), *STUDIES.items()])
def test_every_dependency_in_the_code_exists_and_every_stage_says_what_it_does(name, stage):
    code = [dep for dep in stage["deps"] if dep.split("/")[0] in ("dreamlib", "pipeline", "notebooks")]
    assert [dep for dep in code if not (ROOT / dep).exists()] == []
    assert stage["desc"].endswith(".")


def test_a_plain_repro_knows_no_study():
    assert not set(STAGES) & set(STUDIES)
    made = {next(iter(out)) if isinstance(out, dict) else out for stage in STUDIES.values() for out in stage["outs"]}
    needed = {dep for stage in STAGES.values() for dep in stage["deps"]}
    assert [dep for dep in needed for out in made if Path(dep) in (Path(out), *Path(out).parents)] == []


def test_the_stages_of_the_claims_are_the_studies_named_so():
    studies = YAML(typ="safe", pure=True).load(ROOT / "studies" / "params.yaml")["studies"]
    named = [name for name in studies if name.startswith("claims_")]
    named.append("levers")
    assert STUDIES["claims_runs"]["matrix"]["study"] == named
    assert len({studies[name]["dataset"] for name in named}) == 1  # studies/dvc.yaml has one for all of them
    read = {dep.removeprefix("results/") for dep in STUDIES["claims"]["deps"] if dep.startswith("results/")}
    assert read >= {*named, *(f"methods/{m}" for m in studies["methods"]["methods"])}


def test_the_studys_report_depends_on_every_method_of_the_study_and_on_no_other():
    """A list of deps in dvc.yaml has no loop, so it names the methods again."""
    folders = [dep for dep in STUDIES["methods"]["deps"] if dep.startswith("results/") and not dep.endswith(".json")]
    assert folders == [f"results/methods/{method}" for method in read_params(ROOT, "methods").methods]


def test_committed_notebooks_are_clean_and_have_one_parameters_cell():
    assert check(ROOT) == []
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        tagged = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1, path.name


def test_cleaning_takes_out_outputs_and_editor_metadata_and_keeps_tags():
    cell = nbformat.v4.new_code_cell("x = 1", execution_count=3, metadata={"tags": ["parameters"], "scrolled": True})
    cell.outputs = [nbformat.v4.new_output("stream", text="hello")]
    done = cleaned(nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}}))
    assert done.cells[0].outputs == [] and done.cells[0].execution_count is None
    assert done.cells[0].metadata == {"tags": ["parameters"]} and "widgets" not in done.metadata


def notebook_with(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def test_launcher_refuses_a_parameter_the_notebook_does_not_have():
    cell = nbformat.v4.new_code_cell("ipc: int = 1  # a = b\nseed: int = 0", metadata={"tags": ["parameters"]})
    launcher.refuse_unknown(notebook_with(cell), {"ipc": 3}, "n.ipynb")
    with pytest.raises(UnknownNameError, match="did you mean 'ipc'"):
        launcher.refuse_unknown(notebook_with(cell), {"ipcs": 3}, "n.ipynb")
    with pytest.raises(ParameterError, match="exactly one cell"):
        launcher.refuse_unknown(notebook_with(), {}, "n.ipynb")


def test_launcher_arguments_keep_their_types():
    assert launcher.parse(["ipc=10", "method=dream"]) == {"ipc": 10, "method": "dream"}
    with pytest.raises(ParameterError, match="key=value"):
        launcher.parse(["ipc"])


@pytest.mark.parametrize("argument", ["ipc=one", "ipc=1.5", "ipc=", "seed=1e3", "ipc=10.0"])
def test_an_argument_that_is_no_whole_number_is_one_line_before_a_kernel_starts(monkeypatch, capsys, argument):
    monkeypatch.setattr(launcher, "prepare_kernel", lambda root: pytest.fail("a kernel would start"))
    assert launcher.main([str(ROOT / "notebooks" / "02_distillation.ipynb"), "out.ipynb", argument]) == 1
    key = argument.split("=")[0]
    said = f"error: {argument}: {key} is a whole number in 02_distillation.ipynb, such as {key}=1\n"
    assert capsys.readouterr().err == said


def test_executed_copies_keep_content_and_lose_what_differs_from_run_to_run():
    cell = nbformat.v4.new_code_cell("1")
    cell.metadata = {"execution": {"iopub.status.busy": "2026"}, "papermill": {"duration": 1.2}, "tags": ["a"]}
    stderr = nbformat.v4.new_output("stream", name="stderr", text="12 it/s")
    cell.outputs = [stderr, nbformat.v4.new_output("execute_result", {"text/plain": "1"})]
    done = launcher.normalise(nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"start_time": "now"}}))
    assert done.metadata == {} and done.cells[0].metadata == {"tags": ["a"]} and done.cells[0].id == "cell-0"
    assert [o.output_type for o in done.cells[0].outputs] == ["execute_result"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project set to digits and minutes turned into seconds; the tracked results are out of reach."""
    root = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "dreamlib", "pipeline"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "methods.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / "reports").mkdir()
    (root / "results").mkdir()
    (root / "results" / "record.json").write_text("{}")
    create("digits").fetch(root / "data")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params.update(dataset="digits", ipc=[1], methods=["dream", "ridge"], seeds=[0])
    short = {"real_batch": 16, "inner_iterations": 3, "image_lr": 0.1}
    methods = yaml.load(ROOT / "methods.yaml")
    methods["method"]["ridge"].update(decode="dct", bounded=True, quick=short)
    yaml.dump(methods, root / "methods.yaml")
    params["budgets"]["quick"]["network"]["options"] = {"width": 16}
    params["compute"].update(compile=False, precision="float32", threads=1)
    quick = params["budgets"]["quick"]
    quick["distillation"].update(outer_iterations=2, inner_iterations=3, real_batch=16, pool=40, snapshots=1)
    quick["evaluation"].update(repeats=2, epochs=20, curve_epochs=5)
    yaml.dump(params, root / "params.yaml")
    dvc(root, "init", "--no-scm", "-q")
    return root


def dvc(root, *arguments, fails=False):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(root)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(["dvc", *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def fetch(root):
    """What `make data` runs."""
    env = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-m", "pipeline.fetch_data"], cwd=root, env=env, capture_output=True, check=True)


def outputs_of(root):
    kept = [p for folder in ("results", "reports") for p in (root / folder).rglob("*") if p.is_file()]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in kept}


def test_the_pipeline_runs_repeats_bit_for_bit_and_reruns_only_what_changed(project):
    dvc(project, "repro")
    first = outputs_of(project)
    assert "up to date" in dvc(project, "repro")
    metrics = read_json(project / "results" / "evaluation" / "dream-ipc1-seed0.json")
    assert metrics["split"] == "test" and len(metrics["accuracies"]) == 2
    assert metrics["accuracy"] == pytest.approx(sum(metrics["accuracies"]) / 2)
    assert metrics["accuracy"] > 0.3, "a distilled set of digits must beat chance (0.1) by far"

    removed = [path for path in map(Path, first) if "dream" in path.name or path.name.startswith("04_")]
    assert {path.suffix for path in removed} == {".safetensors", ".png", ".json", ".csv", ".ipynb"}
    for path in removed:
        (project / path).unlink()
    dvc(project, "repro")
    assert outputs_of(project) == first

    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["budgets"]["quick"]["evaluation"]["epochs"] = 10
    yaml.dump(params, project / "params.yaml")
    said = dvc(project, "repro", "--dry")
    assert "Running stage 'evaluation" in said and "Running stage 'distillation" not in said


def test_a_change_of_methods_runs_their_stages_alone_and_a_seed_or_ipc_its_own(edited, project):
    """After the pipeline ran above; what is evaluated and shown follows what is distilled."""

    def stale(**values):
        edited(lambda p: p.update(values))
        changed = json.loads(dvc(project, "status", "--json"))
        return {name for name in changed if name.startswith(("clustering", "distillation"))}

    yaml, path = YAML(), project / "methods.yaml"
    original = path.read_bytes()
    methods = yaml.load(path)
    methods["method"]["ridge"]["interval"] = 7
    yaml.dump(methods, path)
    try:
        more = stale(methods=["ridge", "kmeans"])  # without dream, with kmeans, and ridge changed
    finally:
        path.write_bytes(original)
    assert more == {"distillation@ridge-1-0", "distillation@kmeans-1-0"}
    assert stale(methods=["dream", "ridge"], ipc=[1, 2], seeds=[0, 1]) == {
        f"{stage}{point}"
        for stage in ("clustering@", "distillation@dream-", "distillation@ridge-")
        for point in ("1-1", "2-0", "2-1")
    }


def declared_sections(stage):
    """Return what dvc.yaml lists under a stage's params, as budget sections, top-level keys and method blocks."""
    names = set()
    for entry in STAGES[stage]["params"]:
        if isinstance(entry, dict):
            names |= {"method of one" for keys in entry.values() if any(key.startswith("method.") for key in keys)}
        else:
            names.add(entry.removeprefix("budgets.${budget}."))
    return names


@pytest.mark.parametrize("stage", NOTEBOOK_STAGES)
def test_a_stage_declares_the_sections_it_reads(project, stage, monkeypatch):
    """What a stage reads of the parameters once they are open is noted while it runs."""
    opened, names = Project(project, read_params(project)), set()  # of which nothing has been read yet
    fields = {"dataset", "compute", "data", "network", "budget", "methods"}
    read_field, read_layers = Params.__getattribute__, Params._layers

    def noting_field(params, name):
        names.update({name} & {*fields, "validation_per_class", "compile"})
        return read_field(params, name)

    def noting_layers(params, section, method=None, factor=None):
        names.update({section, "by_dataset"})
        noted_methods.add(method)
        return read_layers(params, section, method, factor)

    noted_methods = set()
    monkeypatch.setattr(Params, "__getattribute__", noting_field)
    monkeypatch.setattr(Params, "_layers", noting_layers)
    monkeypatch.setattr(Project, "require_listed", lambda *_: None)  # a matrix's coordinates are no parameters of it
    setting = Setting("dream", 1, 0)
    if stage == "clustering":
        run_clustering(opened, 1, 0)
    elif stage == "distillation":
        run_distillation(opened, setting)
    else:
        run_evaluation(opened, setting)
    assert noted_methods <= {None, "dream"}
    names |= {"method of one"} if "dream" in noted_methods else set()
    if stage != "clustering":
        names.discard("methods")  # the matrix
    assert names == declared_sections(stage)


def test_canvases_of_frequencies_are_pictured_as_the_images_they_hold(project, tmp_path):
    """The contact sheet that notebook 02 wrote, after the pipeline ran above."""
    path = project / "results" / "sets" / "ridge-ipc1-seed0.safetensors"
    found = SyntheticSet.open(path)
    assert found.rule == "dct"
    for images, same in ((found.pictures(), True), (found.canvases, False)):
        write_contact_sheet(images, found.num_classes, tmp_path / "sheet.png")
        assert ((tmp_path / "sheet.png").read_bytes() == path.with_suffix(".png").read_bytes()) == same


@pytest.fixture
def edited(project):
    """Change params.yaml for one test."""
    yaml, path = YAML(), project / "params.yaml"
    original = path.read_bytes()

    def edit(change):
        """Change what params.yaml and methods.yaml hold; the methods may stand in params.yaml as well."""
        params = yaml.load(path)
        params["method"] = yaml.load(project / "methods.yaml")["method"]
        change(params)
        yaml.dump(params, path)
        return project

    yield edit
    path.write_bytes(original)


def listed(params, method, **changes):
    """The method, with changes under the budget in use, is the one listed."""
    params["methods"] = [method]
    settings = params["method"][method].setdefault("quick", {})
    settings.update({**changes, "options": {**settings.get("options", {}), **changes.get("options", {})}})


MISTAKES = [
    (lambda p: p.update(dataset="digitz"), "did you mean 'digits'"),
    (lambda p: p["budgets"]["quick"]["distillation"].update(factor=5), "choose factor ≤ 4"),
    (lambda p: p.update(ipc=[1, 500]), "choose ipc ≤"),
    (lambda p: p["budgets"]["quick"]["clustering"].update(pool=3), "raise the pool to 4, or set 0"),
    (
        lambda p: p["budgets"]["quick"]["clustering"].update(pool={1: 40}),
        "pool: give one value, which holds for every ipc",
    ),
    (lambda p: p["compute"].update(device="gpu"), "compute.device"),
    (lambda p: p["budgets"]["quick"]["by_dataset"]["digits"].update(validation_per_class=100000), "at most"),
    (lambda p: p["method"]["dream"].update(by_dataset={"digit": {"factor": 1}}), "did you mean 'digits'"),
    (lambda p: p["budgets"]["quick"]["experts"].update(augmentation="flipp_crop"), "did you mean 'flip'"),
    (lambda p: p["method"]["dream"].update(augmentation="colour"), "did you mean 'color'"),
    (lambda p: p["method"]["dream"].update(network_augmentation="rotat"), "did you mean 'rotate'"),
    (
        lambda p: p["budgets"]["quick"]["network"]["options"].update(width="big"),
        "option width of network 'convnet': Input should be a valid",
    ),
    (lambda p: p["budgets"]["quick"]["network"].update(name="mlp", options={}), "set options.layers: conv_linear"),
    (lambda p: listed(p, "dd", sampler="representative"), "or options.real_batch: 0, which takes its batches"),
    (lambda p: listed(p, "mtt", sampler="representative"), "set sampler: random"),
    (lambda p: listed(p, "dm", pretrain_epochs=3), "pretrain_epochs = 3 has no effect with train_on: none"),
    (lambda p: listed(p, "dd_kd", labels="assigned"), "set labels: hard, or learn_labels: false"),
    (lambda p: listed(p, "dd_kd", labels="asigned"), "unknown label source 'asigned': did you mean 'assigned'"),
    (lambda p: listed(p, "mtt", options={"max_start": 4}), "choose max_start ≤ 3, or train the experts longer"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_in_params_is_one_clear_error_before_any_work(edited, change, message):
    with pytest.raises(ValueError, match=r".") as caught:
        Project.open(edited(change))
    assert message in str(caught.value)


def test_the_papers_budget_is_one_setting_away(edited):
    project = edited(lambda p: p.update(budget="paper"))
    assert "Running stage 'distillation@dream-1-0'" in dvc(project, "repro", "--dry")


def test_images_of_ones_own_and_a_method_without_clusters_go_through_the_pipeline(edited, project, tmp_path):
    """The same digits as image files elsewhere, by way of the command that `make data` runs."""
    for split in ("train", "test"):
        digits = create("digits").load(split, project / "data")
        for label in range(3):
            (tmp_path / split / str(label)).mkdir(parents=True)
            for row in digits.of_class(label)[:12].tolist():
                image = Image.fromarray((digits.images[row, 0].numpy() * 255).astype("uint8"))
                image.save(tmp_path / split / str(label) / f"{row}.png")

    def change(p):
        p.update(dataset="folder", methods=["idc"])
        p["data"].update(options={"path": str(tmp_path), "size": 8, "channels": 1})
        p["budgets"]["quick"]["by_dataset"]["folder"] = {"validation_per_class": 2}
        p["budgets"]["quick"]["distillation"].update(real_batch=4, outer_iterations=1, inner_iterations=1)
        p["budgets"]["quick"]["evaluation"].update(repeats=1, epochs=1)

    root = edited(change)
    fetch(root)
    dvc(root, "repro")
    assert read_json(root / "results" / "evaluation" / "idc-ipc1-seed0.json")["ipc"] == 1
    shown = nbformat.read(root / "reports" / "01_clustering" / "ipc1-seed0.ipynb", 4)
    assert sum("image/png" in o.get("data", {}) for c in shown.cells for o in c.get("outputs", [])) >= 2
    assert "up to date" in dvc(root, "repro")
    next((tmp_path / "train" / "0").iterdir()).unlink()
    assert "Running stage 'data/dvc.yaml:images'" in dvc(root, "repro", "--dry")
    dvc(root, "repro", "data/dvc.yaml:images")
    said = dvc(root, "repro", "--dry")
    assert "Running stage 'clustering" in said and "Running stage 'data/dvc.yaml:images'" not in said


def test_experts_are_made_once_and_found_again(edited):
    root = edited(lambda p: p["budgets"]["quick"].update(experts={"count": 1, "epochs": 1}))
    try:
        made = run_experts(Project.open(root))
        stamps = [path.stat().st_mtime_ns for path in made]
        assert len(made) == 1
        assert [path.stat().st_mtime_ns for path in run_experts(Project.open(root))] == stamps
    finally:
        shutil.rmtree(root / "results" / "experts", ignore_errors=True)


def test_clusters_are_as_many_as_the_budget_needs_and_images_allow_whatever_the_methods(edited):
    def counts(pool, ipc, fewest, *methods):
        def change(p):
            p.update(methods=list(methods))
            p["budgets"]["quick"]["clustering"].update(pool=pool)

        return cluster_counts(read_params(edited(change)), ipc, fewest)

    assert counts(0, 10, 50, "random") == counts(0, 10, 50, "kmeans", "dream") == [10, 40]
    assert counts(0, 10, 6, "random") == [6]
    assert counts(4, 1, 50, "random") == [1, 4]
    assert counts(3, 1, 50, "random") == [1, 3]


@pytest.mark.parametrize("by", ["here", "kernel"])
def test_an_interruption_is_one_line_and_the_shells_status(project, capsys, monkeypatch, by):
    def run(*_):
        if by == "here":
            raise KeyboardInterrupt
        raise PapermillExecutionError(2, 2, "", "KeyboardInterrupt", "", [])

    monkeypatch.chdir(project)
    monkeypatch.setattr(launcher, "run", run)
    assert launcher.main(["notebooks/02_distillation.ipynb", "out.ipynb"]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue from the last checkpoint\n"


def test_a_stage_refused_for_its_parameters_loses_no_output(edited):
    root = edited(lambda p: p["budgets"]["quick"]["distillation"].update(factor=5))
    before = outputs_of(root)
    said = dvc(root, "repro", fails=True)
    assert "failed to reproduce 'clustering" in said
    assert said.count("choose factor ≤ 4") == 1 and "Traceback" not in said
    assert before and outputs_of(root) == before


STAGE_RUNS = {
    "clustering": lambda project: run_clustering(project, 1, 0),
    "distillation": lambda project: run_distillation(project, Setting("dream", 1, 0)),
    "evaluation": lambda project: run_evaluation(project, Setting("dream", 1, 0)),
    "experts": run_experts,
}


@pytest.mark.parametrize("stage", STAGE_RUNS)
def test_results_that_could_not_be_written_are_refused_before_any_work(project, stage, monkeypatch):
    """Below results/record.json, which is a file, nobody can write."""
    blocked = Project(project, read_params(project), study="record.json")
    monkeypatch.setattr(Project, "split", None)  # whoever reads images fails otherwise
    with pytest.raises(OSError, match=r"cannot write .*record.json.*Not a directory.*make the folder writable"):
        STAGE_RUNS[stage](blocked)


@pytest.mark.parametrize("stage", ["clustering", "distillation", "evaluation"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_fills_up_during_a_stage_leaves_the_old_files_whole(project, stage, written, monkeypatch):
    """With the results of the pipeline's run above; the first write fails, or the second."""
    run_clustering(Project.open(project), 1, 0)  # tests above may have clustered another data set
    before, writes, fsync = outputs_of(project), [], os.fsync

    def full(descriptor):
        writes.append(descriptor)
        if len(writes) > written:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    opened = Project.open(project)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device; existing files are unchanged"):
        STAGE_RUNS[stage](opened)
    assert outputs_of(project) == before and "results/sets/dream-ipc1-seed0.safetensors" in before


def test_files_persist_and_folders_are_emptied():
    kinds = {False: set(), True: set()}  # whether a path is a file → what is said of it
    for stage in [*STAGES.values(), *STUDIES.values()]:
        for out in (out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])):
            ((path, how),) = out.items() if isinstance(out, dict) else [(out, {})]
            kinds[Path(path).suffix[1:].isalnum()].add(how.get("persist", False))
    assert kinds == {True: {True}, False: {False}}


def test_a_batch_that_a_class_cannot_fill_is_said(edited):
    large = Project.open(edited(lambda p: p["budgets"]["quick"]["distillation"].update(real_batch=400, pool=0)))
    note = small_class_note(large, large.params.distillation("dream", 1))
    fewest = int(large.split("train").labels.bincount().min())
    assert f"`real_batch` is 400, but class `{large.info.classes[8]}` has {fewest} training images" in note
    assert small_class_note(large, large.params.distillation("random", 1)) == "", "it matches nothing"
    small = Project.open(edited(lambda p: p["budgets"]["quick"]["distillation"].update(real_batch=fewest)))
    assert small_class_note(small, small.params.distillation("dream", 1)) == ""


def test_a_mistake_stops_the_stage_with_one_line_and_leaves_nothing_behind(edited, capsys, monkeypatch):
    project = edited(lambda p: p["budgets"]["quick"]["distillation"].update(factor=5))
    monkeypatch.chdir(project)
    before, out = outputs_of(project), project / "reports" / "x.ipynb"
    assert launcher.main(["notebooks/02_distillation.ipynb", str(out), "method=dream", "ipc=1", "seed=0"]) == 1
    said = capsys.readouterr().err
    assert "choose factor ≤ 4" in said
    assert len(said.strip().splitlines()) == 1
    assert outputs_of(project) == before
