"""params.yaml at the door: every mistake is one line with what is wrong and the way out, nothing passes unread."""

import copy
import datetime
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dreamlib.errors import ParameterError
from dreamlib.settings import digest
from pipeline import fetch_data
from pipeline import launch_notebook as launcher
from pipeline.params import find_root, read_params
from pipeline.params.check import check_names
from pipeline.project import Project

ROOT = Path(__file__).parents[1]
IDC_EVALUATION = "flip_color_crop_scale_rotate"
LONGEST = 900  # characters; a line that lists all known keys is long, one that prints whole sections is too long


def values():
    """Return what the project's own two files hold together."""
    params, methods = (YAML(typ="safe", pure=True).load(ROOT / name) for name in ("params.yaml", "methods.yaml"))
    params["budgets"]["paper"]["by_dataset"] = methods["budgets"]["paper"]["by_dataset"]
    return {**params, "method": methods["method"]}


# A small file of the same shape, so that tests of mistakes do not hang on the values of the day.
SMALL = """
dataset: fashion_mnist
ipc: [1, 10]
methods: [idc, dream]
seeds: [0]
budget: quick
compute: {precision: float32}
method:
  idc: {init: random, sampler: random}
  dream: {init: kmeans, sampler: representative}
budgets:
  quick:
    network: {name: convnet, options: {width: 8}}
    clustering: {features: random}
    distillation: {options: {distance: mse}, image_optimizer: adam, real_batch: 64, pool: 512}
    evaluation: {epochs: {1: 300, 10: 60}}
  paper:
    distillation: {options: {distance: mse}}
    by_dataset:
      fashion_mnist:
        distillation: {options: {distance: l1}}
"""


@pytest.fixture(autouse=True)
def no_further_methods(tmp_path):
    """An empty methods.yaml: what these tests change lies in params.yaml."""
    (tmp_path / "methods.yaml").write_text("{}")


def reader(folder, tree):
    """Changes at dotted paths → the parameters read from a file with those changes."""

    def read(changes=None, **simple):
        changed = copy.deepcopy(tree)
        for path, value in {**(changes or {}), **simple}.items():
            put(changed, path, value)
        with open(folder / "params.yaml", "w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(changed, file)
        return read_params(folder, extra_check=check_names)

    return read


def put(tree, path, value):
    *way, last = path.split(".")
    for key in way:
        tree = tree.setdefault(key, {})
    tree[last] = value


@pytest.fixture
def reading(tmp_path):
    return reader(tmp_path, YAML(typ="safe", pure=True).load(SMALL))


@pytest.fixture
def own(tmp_path):
    return reader(tmp_path, values())


def refused(call):
    with pytest.raises(ValueError, match=r".+") as caught:  # ParameterError and UnknownNameError are ValueErrors
        call()
    message = str(caught.value)
    assert "\n" not in message, "an error is one line"
    assert len(message) < LONGEST
    return message


def test_the_projects_own_file_is_valid_for_every_budget_and_data_set(own):
    for budget in values()["budgets"]:
        for dataset in ("fashion_mnist", "digits", "mnist", "svhn", "cifar10", "cifar100"):
            own(budget=budget, dataset=dataset, ipc=[1, 10, 50])


QUICK = "budgets.quick.distillation"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (f"{QUICK}.factor", 0, "greater than or equal to 1, got 0"),
        (f"{QUICK}.image_lr", -1.0, "greater than 0, got -1"),
        (f"{QUICK}.image_lr", float("nan"), "nan"),
        (f"{QUICK}.image_lr", float("inf"), "inf"),
        (f"{QUICK}.image_momentum", 1.5, "less than.* 1, got 1.5"),
        (f"{QUICK}.image_optimizer", "agd", "'sgd' or 'adam', got 'agd'"),
        (f"{QUICK}.real_batch", 1.5, "integer.*got"),
        (f"{QUICK}.inner_iterations", "many", "integer.*'many'"),
        ("ipc", [0], "greater than or equal to 1, got 0"),
        ("ipc", [], "at least one"),
        ("ipc", "ten", "list.*'ten'"),
        ("seeds", [-1], "greater than or equal to 0, got -1"),
        ("compute.threads", -2, "greater than or equal to 0, got -2"),
        ("compute.precision", "float16", "'auto', 'float32', 'bfloat16' or 'float64', got 'float16'"),
        ("budgets.quick.validation_per_class", -1, "greater than or equal to 0, got -1"),
    ],
)
def test_out_of_range_names_the_key_the_value_and_the_limit(reading, path, value, said):
    message = refused(lambda: reading({path: value}))
    assert path.rsplit(".", 1)[-1] in message
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{QUICK}.per_cluster": 3}, ("per_cluster = 3", "divide", "real_batch = 64")),
        ({f"{QUICK}.pool": 10}, ("pool = 10", "real_batch = 64", "set it to 0")),
        ({f"{QUICK}.image_update": "per_class"}, ("image_update = per_class", "sgd", "batched")),
    ],
)
def test_settings_that_contradict_each_other(reading, changes, words):
    message = refused(lambda: reading(changes, methods=["dream"], budget="quick"))
    assert all(word in message for word in words)
    assert "{" not in message, "the whole section is not part of the message"


def test_momentum_one_never_reaches_the_division_by_one_minus_momentum(reading):
    sgd = {
        f"{QUICK}.image_optimizer": "sgd",
        f"{QUICK}.image_update": "once_equivalent",
        f"{QUICK}.image_momentum": 1.0,
    }
    assert "image_momentum" in refused(lambda: reading(sgd, budget="quick"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{QUICK}.options", "mse"),
        (QUICK, [1]),
        ("budgets.quick", 3),
        ("method.dream", "idc"),
        ("method.dream.quick", 3),
        ("method.dream.evaluation", 3),
        ("method.dream.by_factor", 3),
        ("method.dream.by_factor", {"two": {"interval": 3}}),
        ("method.dream.quick.by_dataset", 3),
        ("budgets.quick.by_dataset", 3),
        ("budgets.quick.network.options", "width"),
        (f"{QUICK}.image_lr", {"ten": 0.1}),
        (f"{QUICK}.image_lr", {}),
    ],
)
def test_a_value_where_a_section_belongs_and_the_reverse(reading, path, value):
    message = refused(lambda: reading({path: value}, budget="quick"))
    assert any(part in message for part in path.split(".")[-2:])


LISTS = [
    ({key: value}, f"{key}: expected a list, one item per line after `- `, got {value!r}")
    for key, value in (("seeds", 0), ("methods", "dream"), ("ipc", 10), ("ipc", None), ("ipc", {1: 10}))
]
# Numbers that YAML, and with it DVC, reads as others than meant: 1e1 is 10.0
NUMBERS = [({key: [value]}, f"{key}.0: Input should be a valid integer, got {value!r}")
           for key, value in (("ipc", 10.0), ("ipc", 1.5), ("ipc", True), ("ipc", "10"), ("seeds", 0.0))]  # fmt: skip
RENAME = "the name is used in files and stages: begin with a letter and use letters, digits, _ and - only"
# What YAML makes of 1e3, null and a date is no text; the other names do not survive DVC's interpolation or a shell.
NAMES = [({"methods": [name]}, f"methods.0: {RENAME}, got {name!r}")
         for name in (1000.0, 12, None, True, datetime.date(2026, 1, 2), "my.dream", "my dream", "my/dream", "a@b", "",
                      "1e3", "-dream", "träum", "dream\n")]  # fmt: skip
TABLES = [
    ({"method": {**YAML(typ="safe").load(SMALL)["method"], name: {}}}, f"method.{name}: {RENAME}, got {name!r}")
    for name in ("my.dream", "my dream", 1000.0)
] + [({"budgets": {**YAML(typ="safe").load(SMALL)["budgets"], "v1.5": {}}}, f"budgets.v1.5: {RENAME}, got 'v1.5'")]


@pytest.mark.parametrize(("changes", "said"), LISTS + NUMBERS + NAMES + TABLES)
def test_what_dvc_would_read_otherwise_is_refused(reading, changes, said):
    assert refused(lambda: reading(changes)) == f"params.yaml: {said}"


def test_names_that_old_yaml_took_for_others_are_text(tmp_path):
    """YAML 1.2, which DVC reads too, takes `no` and `on` for text."""
    text = SMALL.replace("methods: [idc, dream]", "methods: [no, on, off, yes, y]")
    entries = "".join(f"  {name}: {{init: random}}\n" for name in ("no", "on", "off", "yes", "y"))
    (tmp_path / "params.yaml").write_text(text.replace("method:\n", f"method:\n{entries}"))
    assert read_params(tmp_path).methods == ["no", "on", "off", "yes", "y"]


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-4", "'1e-4'"])
def test_floats_may_be_written_in_every_way(tmp_path, number):
    own = f"image_lr: {number}, learned_lr: {{1: {number}}}, options: {{feature_weight: {number}}}"
    (tmp_path / "params.yaml").write_text(SMALL.replace("{init: kmeans,", f"{{{own}, init: kmeans,"))
    how = read_params(tmp_path, extra_check=check_names).distillation("dream", 1)
    assert (how.image_lr, how.learned_lr, float(how.options["feature_weight"])) == (1e-4, 1e-4, 1e-4)


MLP = {"name": "mlp", "options": {"widht": 8}}


@pytest.mark.parametrize(
    ("keys", "value", "nearest"),
    [
        ("dataste", "digits", "dataset"),
        (f"{QUICK}.image_rl", 0.1, "image_lr"),
        (f"{QUICK}.options.distence", "mse", "distance"),
        ("budgets.quick.validation_per_clas", 3, "validation_per_class"),
        ("budgets.quick.network.nmae", "convnet", "name"),
        ("budgets.quick.clustering.feature", "pixels", "features"),
        ("budgets.quick.evalution", {"epochs": 3}, "evaluation"),
        ("budgets.quick.by_datset", {"digits": {}}, "by_dataset"),
        ("budgets.paper.by_dataset.fashion_mnist.distilation", {"factor": 1}, "distillation"),
        ("budgets.paper.distillation.image_rl", 0.1, "image_lr"),  # the budget in force is quick
        ("budgets.paper.by_dataset.fashion_mnist.distillation.options.distence", "l1", "distance"),
        ("budgets.paper.by_dataset.mnits", {"validation_per_class": 3}, "mnist"),
        ("budgets.paper.by_dataset.mnist.by_factr", {}, "by_factor"),
        ("budgets.paper.by_dataset.mnist.by_factor", {2: {"evaluation": {"epoch": 3}}}, "epochs"),
        ("budgets.paper.experts.epoch", 3, "epochs"),
        ("budgets.paper.evaluation.networks", MLP, "width"),
        ("budgets.quick.evaluation.networks", ["convnet", MLP], "width"),
        ("budgets.quick.evaluation.networks", {1: "mlp", 100: [MLP]}, "width"),
        ("budgets.quick.evaluation.networks", [{"nam": "mlp"}], "name"),
        ("method.other.samplr", "random", "sampler"),  # a method that is not listed
        ("method.other.sampler", "randm", "random"),
        ("method.other.init", {1: "kmean"}, "kmeans"),
        ("method.other.objective", "gradeint", "gradient"),
        ("method.other.options", {"distence": "mse"}, "distance"),
        ("method.other.evalution", {}, "evaluation"),
        ("method.other.evaluation.epoch", 3, "epochs"),
        ("method.other.clustering.feature", "pixels", "features"),
        ("method.other.quik", {}, "quick"),
        ("method.other.paper.image_rl", 0.1, "image_lr"),
        ("method.other.paper.by_dataset.mnist.image_rl", 0.1, "image_lr"),
        ("method.other.by_dataset.mnits", {"image_lr": 0.1}, "mnist"),
        ("method.other.by_factor", {1: {"image_rl": 0.1}}, "image_lr"),
        ("data.optoins", {}, "options"),
        ("data.options.sise", 32, "size"),
        ("budgets.quick.network.options.widht", 8, "width"),
        ("budgets.paper.network", MLP, "width"),
        ("budgets.paper.network.nmae", "mlp", "name"),
        ("budgets.paper.network.name", "mpl", "mlp"),
        ("compute.precison", "float32", "precision"),
    ],
)
def test_a_key_misspelt_at_any_depth_is_found_in_force_or_not(reading, keys, value, nearest):
    message = refused(lambda: reading({keys: value}, dataset="folder" if keys.startswith("data.") else "fashion_mnist"))
    assert message.startswith(f"params.yaml: {keys}") and f"did you mean '{nearest}'" in message


def test_the_file_that_a_value_stands_in_is_named(reading, tmp_path):
    reading(budget="quick")
    methods, studies = tmp_path / "methods.yaml", tmp_path / "studies" / "params.yaml"
    studies.parent.mkdir()
    studies.write_text("studies: {a: {budgets: {quick: {distillation: {factor: 0}}}, network: {options: {widht: 3}}}}")
    assert refused(lambda: read_params(tmp_path, "a")).startswith(
        "studies/params.yaml: studies.a.budgets.quick.distillation.factor: Input should be greater"
    )
    studies.write_text("studies: {a: {budgets: {quick: {distillation: {factor: 1}}}, network: {options: {widht: 3}}}}")
    assert refused(lambda: read_params(tmp_path, "a", check_names)).startswith(
        "studies/params.yaml: studies.a.network.options.widht: unknown option 'widht' of network 'convnet'"
    )
    methods.write_text("method: {idc: {objective: gradient, options: {distance: l3}}}")
    assert refused(lambda: read_params(tmp_path, extra_check=check_names)).startswith(
        "methods.yaml: method.idc.options.distance: unknown distance 'l3' of objective 'gradient': "
    )
    methods.write_text("method: {idc: {interval: 0}}")
    assert refused(lambda: read_params(tmp_path)).startswith("methods.yaml: method.idc.interval: Input should be great")
    methods.write_text("method: {idc: {intervall: 1}}")
    assert refused(lambda: read_params(tmp_path)).startswith("methods.yaml: method.idc.intervall: unknown key")


@pytest.mark.parametrize(
    ("changes", "launched"),
    [({"seeds": 0}, True), ({f"{QUICK}.image_rl": 1}, True), ({"budgets.quick.network.name": "mpl"}, False)],
)
def test_every_command_says_the_same_in_one_line(reading, tmp_path, monkeypatch, capsys, changes, launched):
    """`make data`, the notebooks and the launcher, which leaves to the notebook what takes an import of torch."""
    message = refused(lambda: reading(changes))
    monkeypatch.chdir(tmp_path)
    assert refused(Project.open) == message
    assert fetch_data.main([]) == 1 and capsys.readouterr().err == f"error: {message}\n"
    monkeypatch.setattr(launcher, "run", lambda *_: print("run"))
    assert launcher.main([str(ROOT / "notebooks" / "02_distillation.ipynb"), "out.ipynb"]) == int(launched)
    assert capsys.readouterr() == (("", f"error: {message}\n") if launched else ("run\n", ""))


@pytest.mark.parametrize("text", ["studies: {a: {seed: [0]}}", "studies: {a: {network: {name: mpl}}}"])
def test_make_data_checks_the_studies(reading, tmp_path, monkeypatch, capsys, text):
    reading()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert fetch_data.main(["digits"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("error: studies/params.yaml: studies.a.") and said.count("\n") == 1 and "did you mean" in said
    )


def test_a_budget_may_not_be_named_like_a_key_of_methods(reading):
    said = refused(lambda: reading({"budgets.options": {}}))
    assert said == "params.yaml: budgets.options: 'options' names both a key of methods and a budget; rename one"


def test_a_missing_section_is_named(tmp_path):
    tree = values()
    del tree["dataset"]
    with open(tmp_path / "params.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(tree, file)
    assert "dataset: Field required" in refused(lambda: read_params(tmp_path))


def test_a_missing_file_names_the_remedy(tmp_path):
    assert "git checkout" in refused(lambda: read_params(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1\nb: 2\n", "line 2"), ("ipc: 1\nipc: 2\n", "ipc"), ("a: b: c\n", "line 1"), ("\tx: 1\n", "line 1")],
)
def test_bad_yaml_names_file_and_line(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    message = refused(lambda: read_params(tmp_path))
    assert "params.yaml is not valid YAML" in message
    assert said in message


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- 1\n", "list"), ("hello\n", "str")])
def test_yaml_that_is_no_mapping(tmp_path, text, kind):
    (tmp_path / "params.yaml").write_text(text)
    assert f"must hold sections, got {kind}" in refused(lambda: read_params(tmp_path))


def test_names_that_nothing_answers_to(reading):
    assert "did you mean 'dream'" in refused(lambda: reading(methods=["draem"]))
    assert "did you mean 'paper'" in refused(lambda: reading(budget="papr"))


@pytest.mark.parametrize(("key", "twice"), [("ipc", [1, 10, 1]), ("methods", ["dream", "dream"]), ("seeds", [0, 0])])
def test_a_value_listed_twice_is_refused(reading, key, twice):
    message = refused(lambda: reading({key: twice}))
    assert key in message
    assert "twice" in message


def test_a_method_may_not_be_named_like_a_budget(reading):
    assert "'paper' names both a method and a budget" in refused(lambda: reading({"method.paper": {"init": "noise"}}))


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_a_mapping_from_ipc_takes_the_largest_entry_not_above(reading):
    params = reading({f"{QUICK}.image_lr": {1: 0.1, 10: 0.2}, f"{QUICK}.options": {"distance": {1: "l1", 20: "mse"}}},
                     budget="quick", ipc=[1, 9, 10, 50])  # fmt: skip
    got = [(h.image_lr, h.options["distance"]) for h in (params.distillation("idc", i) for i in (1, 9, 10, 50))]
    assert got == [(0.1, "l1"), (0.1, "l1"), (0.2, "l1"), (0.2, "mse")]


def test_a_mapping_that_starts_too_high_says_what_to_add(reading):
    message = refused(lambda: reading({f"{QUICK}.image_lr": {10: 0.1}}, budget="quick", ipc=[5]))
    assert f"params.yaml: {QUICK}.image_lr: no value for ipc 5" in message
    assert "'5:'" in message


def test_later_layers_win_in_the_order_that_is_documented(reading):
    """budget < its block for the data set < the method's own keys < the method's block named after the budget.

    In each block the entry of the factor follows its own keys, and the data set's follows that.
    """
    base = {"budgets": {"quick": {"distillation": {}}, "paper": {"distillation": {}}}, "method": {"m": {}},
            "methods": ["m"], "dataset": "digits", "budget": "quick"}  # fmt: skip
    layers = [
        ("budgets.quick.distillation.interval", 2),
        ("budgets.quick.by_dataset.digits.distillation.interval", 3),
        (
            "budgets.quick.by_dataset.digits.by_factor",
            {1: {"distillation": {"interval": 4}}, 2: {"distillation": {"interval": 99}}},
        ),
        ("method.m.interval", 5),
        ("method.m.by_factor", {1: {"interval": 6}, 2: {"interval": 99}}),
        ("method.m.by_dataset.digits.interval", 7),
        ("method.m.quick.interval", 8),
        ("method.m.quick.by_factor", {1: {"interval": 9}}),
        ("method.m.quick.by_dataset.digits.interval", 10),
    ]
    elsewhere = {"budgets.paper.distillation.interval": 90, "method.m.paper.interval": 91, "method.m.factor": 1,
                 "budgets.quick.by_dataset.mnist.distillation.interval": 92,
                 "method.m.by_dataset.mnist.interval": 93}  # fmt: skip
    assert reading({**base, **elsewhere}).distillation("m", 1).interval == 10  # the default
    for depth in range(1, len(layers) + 1):
        params = reading({**base, **elsewhere, **dict(layers[:depth])})
        assert params.distillation("m", 1).interval == depth + 1


def test_a_factors_entry_holds_for_it_and_those_above_up_to_the_next(reading):
    here = "budgets.quick.by_dataset.fashion_mnist"
    by_factor = {2: {"distillation": {"interval": 20}, "evaluation": {"batch": 20}}, 4: {"evaluation": {"batch": 40}}}
    found = []
    for factor in (1, 2, 3, 4):
        params = reading({f"{QUICK}.factor": {1: 7, 10: factor}, f"{here}.by_factor": by_factor})
        found.append((params.distillation("idc", 10).interval, params.evaluation("idc", 10).batch))
    assert found == [(10, 64), (20, 20), (20, 20), (10, 40)]


def test_a_layer_that_names_the_protocol_in_force_keeps_its_values(reading):
    params = reading({"method.dream.evaluation": {"protocol": "idc", "cutmix": 0.0}}, methods=["dream", "idc"])
    own, usual = params.evaluation("dream", 10).model_dump(), params.evaluation("idc", 10).model_dump()
    assert {key: own[key] for key in own if own[key] != usual[key]} == {"cutmix": 0.0}


def test_a_start_that_is_clustered_in_its_own_way_is_one_for_every_ipc(reading):
    message = refused(lambda: reading({"method.dream.init": {1: "released", 10: "kmeans"}}, methods=["dream"]))
    assert "params.yaml: method.dream.init: give one value, which holds for every ipc" in message


def test_a_method_may_have_an_evaluation_and_a_clustering_of_its_own(reading):
    params = reading({
        "method.dream.evaluation": {"protocol": "dc", "batch": 99},
        "method.dream.clustering": {"features": "trained"},
        "method.dream.quick": {"evaluation": {"epochs": 5}, "clustering": {"epochs": 0.5}, "interval": 3},
        "method.dream.by_dataset.fashion_mnist.evaluation.batch": 33,
        "budgets.quick.evaluation.repeats": 7,
    })  # fmt: skip
    usual, own = params.evaluation("idc", 10), params.evaluation("dream", 10)
    assert (usual.protocol, usual.epochs, usual.batch, usual.augmentation) == ("idc", 60, 64, IDC_EVALUATION)
    assert (own.protocol, own.epochs, own.batch, own.augmentation) == ("dc", 5, 33, "none")
    assert usual.repeats == own.repeats == 7, "no protocol says how many networks"
    assert params.clustering() == params.clustering("idc") != params.clustering("dream")
    assert (params.clustering("dream").features, params.clustering("dream").epochs) == ("trained", 0.5)
    assert params.distillation("dream", 10).interval == 3, "sections are no keys of the distillation"


def test_a_layer_with_another_protocol_begins_with_its_values(reading):
    """Epochs of the budget are the budget's protocol's; a layer with the same protocol keeps them."""
    quick = {"protocol": "dsa", "epochs": 9}
    found = {}
    for protocol in ("dsa", "dm"):
        params = reading({"budgets.quick.evaluation": quick, "method.dream.evaluation.protocol": protocol})
        found[protocol] = params.evaluation("dream", 1).epochs
    assert found == {"dsa": 9, "dm": 1001}


def test_the_released_start_brings_its_clustering_and_its_shrinking(reading):
    params = reading({"method.dream.init": "released", "budgets.quick.clustering.pool": 5}, budget="quick")
    assert params.distillation("dream", 1).shrink == "nearest" and params.distillation("idc", 1).shrink == "area"
    how = params.clustering("dream")
    assert (how.features, how.pick, how.pool, how.max_iterations) == ("random_unnormalised", "released", 0, 100)
    assert params.clustering("idc").pool == params.clustering().pool == 5


def test_images_are_held_out_as_the_budget_and_its_data_set_say(reading):
    changes = {"budgets.quick.validation_per_class": 500, "budgets.quick.by_dataset.digits.validation_per_class": 20}
    changes |= {"budgets.quick.by_dataset.mnist.distillation.factor": 1}
    found = {d: reading(changes, dataset=d).validation_per_class for d in ("fashion_mnist", "mnist", "digits")}
    assert found == {"fashion_mnist": 500, "mnist": 500, "digits": 20}
    assert reading(changes, budget="paper").validation_per_class == 0
    none = {**changes, "budgets.quick.by_dataset.digits.validation_per_class": 0}
    assert reading(none, dataset="digits").validation_per_class == 0


@pytest.mark.parametrize("machine", [True, False])
@pytest.mark.parametrize("budget", [True, False])
def test_loops_are_compiled_where_the_machine_and_the_budget_say_so(reading, machine, budget):
    params = reading({"compute.compile": machine, "budgets.quick.compile": budget}, budget="quick")
    assert params.compile == (machine and budget)
    assert reading({"compute.compile": machine}, budget="paper").compile == machine


def test_options_merge_key_by_key(reading):
    changes = {
        "budgets.quick.distillation.options": {"distance": "mse", "layers": "conv"},
        "method.idc.options": {"distance": "l1"},
    }
    params = reading(changes, budget="quick")
    assert params.distillation("idc", 1).options == {"distance": "l1", "layers": "conv"}


# ---- the project's own methods; tests/test_golden_settings.py has the published ones --------------------------------


@pytest.mark.parametrize("budget", list(values()["budgets"]))
def test_dream_differs_from_idc_of_the_same_batch_in_start_and_sampler_alone(own, budget):
    params = own(budget=budget, methods=["idc_same_batch", "dream"], ipc=[1, 10, 50])
    for ipc in (1, 10, 50):
        idc, dream = (params.distillation(method, ipc).model_dump() for method in params.methods)
        assert {key for key in idc if idc[key] != dream[key]} == {"init", "sampler"}


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
@pytest.mark.parametrize("budget", list(values()["budgets"]))
def test_dreams_ingredients_are_all_that_a_family_gets_from_it(own, budget, method):
    params = own(budget=budget, methods=[method, f"{method}_dream"], ipc=[1, 10, 50])
    for ipc in (1, 10, 50):
        plain, dream = (params.distillation(name, ipc).model_dump() for name in params.methods)
        assert {key for key in plain if plain[key] != dream[key]} == {"init", "sampler"}
        assert (dream["init"], dream["sampler"]) == ("kmeans", "representative")


def test_the_soft_label_track_starts_from_real_images_under_every_budget(own):
    for budget in values()["budgets"]:
        assert own(budget=budget, methods=["dd_kd"]).distillation("dd_kd", 1).init == "random"


def test_an_unknown_key_of_a_listed_network_is_told_its_nearest(reading):
    said = refused(lambda: reading({"budgets.quick.evaluation": {"networks": [{"nam": "mlp"}]}}))
    where = "params.yaml: budgets.quick.evaluation.networks.0.nam"
    assert f"{where}: unknown key 'nam': did you mean 'name'? Known: name, options" in said


def test_a_protocol_that_is_no_name(reading):
    said = refused(lambda: reading({"budgets.quick.evaluation": {"protocol": ["dc"]}}))
    assert "protocol must be one name, got ['dc']" in said
    assert "unknown evaluation protocol" in refused(lambda: reading({"budgets.quick.evaluation": {"protocol": "cd"}}))


def test_a_mistake_in_the_experts_shows_before_any_stage(reading):
    assert "epoch" in refused(lambda: reading({"budgets.quick.experts": {"epoch": 3}}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("studies:", "studies/params.yaml: studies: expected a mapping, such as `{key: value}`, got None"),
        ("studies: {}", "studies/params.yaml: studies: expected at least one entry, got {}"),
        ("studies:\n  a:", "studies/params.yaml: studies.a: expected a mapping, such as `{key: value}`, got None"),
        ("studies: {a: {}}\nclaim: {}", "studies/params.yaml: claim: unknown key 'claim': did you mean 'claims'?"),
        (
            "studies: {a/b: {}}",
            "studies/params.yaml: studies.a/b: the name is used in files and stages: begin with a letter",
        ),
    ],
)
def test_a_study_without_content(tmp_path, reading, text, said):
    reading()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "params.yaml").write_text(text)
    assert said in refused(lambda: read_params(tmp_path, "a"))


# ---- odds and ends --------------------------------------------------------------------------------------------------


def test_parameters_never_change(reading):
    with pytest.raises(ValueError, match="frozen"):
        reading().distillation("idc", 1).factor = 3


def test_the_root_is_found_from_below_and_missed_with_a_remedy(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_root(tmp_path / "a" / "b") == tmp_path.resolve()
    (tmp_path / "methods.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="run from inside the project"):
        find_root(tmp_path / "a" / "b")


def test_digests_see_every_parameter_and_no_order(reading):
    how = reading(budget="quick").distillation("idc", 1)
    assert digest(how) == digest(how.model_copy())
    assert digest(how) != digest(how.model_copy(update={"image_lr": how.image_lr * (1 + 1e-12)}))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_unknown_names_are_parameter_errors_too():
    assert issubclass(ParameterError, ValueError)
