"""The study of claims read back, on results written by hand: gains by seed, shares, costs, verdicts, the record."""

import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from dreamlib._engine.files import read_json, write_atomically, write_json
from dreamlib.errors import ParameterError
from dreamlib.evaluation import Evaluation, PartialResults
from dreamlib.settings import ComputeParams, EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet, load
from pipeline.params import Params, find_root, read_params
from pipeline.project import Project, Setting
from pipeline.report.claims import CLAIMS_FILE, read_claim_list
from pipeline.report.results import CLAIM_STUDIES, Claims
from pipeline.report.statistics import HOLDS, NOT, PARTLY, operations_saved, real_training
from pipeline.studies import best_sets as stage_best
from pipeline.studies import claims as stage_claims
from pipeline.studies import verdicts as stage_verdicts
from pipeline.studies.training_cost import FULL

ROOT = find_root()
NETWORK, SEEDS = "convnet (width 64)", (0, 1, 2)
# test accuracy by method and seed; whatever is not listed is 0.60 for every seed
ABLATION = {
    "neither": (0.50, 0.51, 0.52),
    "init_only": (0.55, 0.50, 0.56),
    "batches_only": (0.56, 0.57, 0.58),
    "both": (0.62, 0.62, 0.62),
    "center": (0.55, 0.63, 0.55),
    "boundary": (0.40, 0.40, 0.40),
    "interval_5": (0.61, 0.61, 0.61),
}
FACTOR = {1: {"dream_f1": 0.5, "dream_f2": 0.6}, 10: {}, 50: {"dream_f1": 0.7, "dream_f2": 0.7}}
TRAINING = {"idc_same_batch": 0.6, "dream": 0.7}
LEVERS = {"ridge": (0.71, 0.72, 0.73), "ridge_penalty": (0.75, 0.75, 0.72)}
CURVES = {"idc_same_batch": {0: 0.3, 40: 0.5, 160: 0.6}, "dream": {0: 0.4, 40: 0.6, 160: 0.7}}


CURVE_SECONDS = {"idc_same_batch": {"0": 0.0, "40": 10.0, "160": 40.0}, "dream": {"0": 0.0, "40": 20.0, "160": 80.0}}


def write(project, method, ipc, seed, accuracy, views=()):
    """The files of one setting: its accuracy on the matched network, on others and in other views, and its curve."""
    setting = Setting(method, ipc, seed)
    seen = [(NETWORK, "protocol", accuracy), *views]
    evaluation = {
        "accuracies": [accuracy], "accuracy": accuracy, "label_kind": "hard", "method": method, "ipc": ipc,
        "seed": seed, "protocol": "idc", "epochs": 9, "stored_floats": 7840,
        "factor": project.params.distillation(method, ipc).factor,
        "views": [{"network": n, "view": v, "accuracies": [a], "accuracy": a, "std": 0.0} for n, v, a in seen],
    }  # fmt: skip
    write_json(project.file("evaluation", setting, ".json"), evaluation)
    write_json(project.file("distillation", setting, ".json"), {"iterations": 9, "training_images": 40})
    curve = CURVES.get(method, {}) if project.study == "claims_curves" else {}
    table = pd.DataFrame({"iteration": curve.keys(), "accuracy": [a + 0.01 * seed for a in curve.values()]})
    write_atomically(project.file("curves", setting, ".csv"), table.to_csv(index=False).encode())


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """The results written by hand, read once; ``copied`` is for tests that change them."""
    tmp_path = tmp_path_factory.mktemp("claims")
    for name in ("params.yaml", "methods.yaml", "studies/params.yaml", CLAIMS_FILE, "notebooks/published.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    given = {
        "claims_ablation": lambda method, ipc, seed: ABLATION.get(method, (0.6,) * 3)[seed],
        "claims_factor": lambda method, ipc, seed: FACTOR[ipc].get(method, 0.6),
        "claims_training": lambda method, ipc, seed: TRAINING.get(method, 0.65 + 0.01 * seed),
        "claims_curves": lambda method, ipc, seed: {"random": 0.5, "idc_same_batch": 0.6, "dream": 0.7}[method],
        "levers": lambda method, ipc, seed: LEVERS.get(method, (0.7,) * 3)[seed],
        "methods": lambda method, ipc, seed: 0.6 + 0.01 * seed * method.endswith("dream"),
    }
    record = {}
    for study, accuracy in given.items():
        project = Project(tmp_path, read_params(tmp_path, study), study)
        for setting in project.settings:
            base, views = accuracy(setting.method, setting.ipc, setting.seed), []
            if study == "claims_curves":
                views = [("mlp", "protocol", base - 0.1), ("lenet", "protocol", 0.3), (NETWORK, "plain", base - 0.2)]
                times = CURVE_SECONDS.get(setting.method, {})
                first = {k: v + 100 * (setting.seed == 0 and k != "0") for k, v in times.items()}
                record[f"{study}/distillation-{setting.name}"] = {"seconds": {"total": 90.0}, "snapshots_s": first}
            write(project, setting.method, setting.ipc, setting.seed, base, views)
    folder = tmp_path / "results" / "claims"
    folder.mkdir()
    batches(folder)
    cost(folder, record)
    write_json(folder / "record.json", record)
    return Claims.open(tmp_path)


@pytest.fixture
def copied(claims, tmp_path):
    shutil.copytree(claims.root, tmp_path, dirs_exist_ok=True)
    copy = Claims.open(tmp_path)
    copy.__dict__["results"] = claims.results  # no test changes the evaluations
    return copy


def batches(folder):
    """Two points, two classes; representative twice as good as random in distance, worse in the norm's deviation."""
    rows = []
    for seed in SEEDS:
        for point in (0, 10):
            for label in (0, 1):
                base = {"point": point, "class": label, "seed": seed, "images": 8, "full_norm": 1.0, "variance": 0.1}
                for kind, d, n, s, near, hit in (
                    ("random", 0.4, 1.0 + label, 0.1, 0.8, 0.5),
                    ("representative", 0.2, 1.0, 0.2, 0.6, 0.9),
                    ("center", 0.5, 0.5, math.nan, 0.9, 0.2),
                    ("boundary", 0.9, 3.0, math.nan, 0.9, 0.3),
                ):
                    rows.append(
                        base | {"batch": kind, "distance": d + 0.01 * seed, "norm": n, "norm_std": s}
                        | {"nearest_distance": near, "clusters_hit": hit}
                    )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "batches.csv", index=False)


def cost(folder, record):
    """The sets reach 0.5 with 100 and 900 operations; all data 0.5 after 600 (0.1 at 0, 0.4 at 400, 0.6 at 800)."""
    rows, taken = [], {}
    for repeat in SEEDS:
        for data, ipc, step, operations, size, accuracy, seconds in (
            ("dream ipc 1", 1, 5, 100, 40, 0.5, 1.0),
            ("dream ipc 10", 10, 9, 900, 400, 0.5, 7.0),
            (FULL, 0, 4, 400, 4000, 0.4, 4.0),
            (FULL, 0, 8, 800, 4000, 0.6, 8.0),
        ):
            rows.append({"data": data, "ipc": ipc, "repeat": repeat, "step": step, "seen": 10 * step,
                         "operations": operations, "stored_bytes": size, "accuracy": accuracy})  # fmt: skip
            taken[f"{data}, step {step}, network {repeat}"] = seconds
    pd.DataFrame(rows).to_csv(folder / "cost.csv", index=False)
    record["claims_curves/cost"] = {"training_s": taken}


def test_gains_are_taken_seed_by_seed(claims):
    gains = stage_claims.ablation_gains(claims)
    assert gains.loc["init_only"].round(6).tolist() == [0.05, -0.01, 0.04]
    table = stage_claims.ablation_table(claims)
    assert table.loc["boundary", "gain"] == "-22.0 points (-22.0 to -22.0)"
    assert table.loc["center", "test accuracy (%)"] == "57.7 ± 4.6"


def test_networks_trained_as_released_are_set_beside_those_trained_as_before_seed_by_seed(claims):
    table = stage_claims.training_table(claims)
    assert list(table.index) == ["idc_same_batch", "dream"]
    assert table.iloc[:, 0].tolist() == ["60.0 ± 0.0", "70.0 ± 0.0"]
    assert table.iloc[:, 1].tolist() == ["66.0 ± 1.0"] * 2
    assert table.iloc[:, 2].tolist() == ["-6.0 points (-7.0 to -5.0)", "+4.0 points (+3.0 to +5.0)"]


def test_share_and_seconds_by_hand(claims):
    row = stage_claims.share_table(claims).loc[1]
    assert row["share"] == pytest.approx(40 / 160)  # DREAM stands at IDC's final 0.6 after 40 of 160 iterations
    assert row["idc, validation at the end (%)"] == "61.0 ± 1.0" and row.verdict == HOLDS
    # In seconds (medians leave the first seed's compilation out): 20 of 40.
    assert row["share of seconds"] == pytest.approx(0.5)
    untimed = stage_claims.share_table(Claims(claims.root, {}))
    assert math.isnan(untimed.loc[1, "share of seconds"]) and untimed.loc[1, "share"] == row["share"]


def test_batches_are_averaged_over_classes_and_points_before_seeds(claims):
    table = stage_claims.batch_table(claims)
    assert table.loc["random", "norm"] == "1.500 ± 0.000"
    assert table.loc["representative", "distance"] == "0.210 ± 0.010"
    assert table.loc["center", "norm_std"] == "–"
    points = stage_claims.batches_by_point(claims)
    assert len(points[points.measure == "norm"]) == 4 * 2


def test_cost_by_hand(claims):
    costs = claims.costs
    assert real_training(costs, 0.5, 0, chance=0.1) == pytest.approx(600)
    assert real_training(costs, 0.25, 0, chance=0.1) == pytest.approx(200)  # half way from chance
    assert real_training(costs, 0.9, 0, chance=0.1) == math.inf
    assert operations_saved(costs, 1, chance=0.1) == pytest.approx([1 - 100 / 600] * 3)
    assert operations_saved(costs, 10, chance=0.1) == pytest.approx([1 - 900 / 600] * 3)
    table = stage_claims.cost_table(claims)
    # all data takes 6 s to 0.5; making took 80 s (the median): 80 / (6 − 1), and 7 s a training saves nothing
    assert table["trainings until it pays"].tolist() == ["16", "never", "–"]
    assert table["seconds"].tolist() == ["1.0", "7.0", "8.0"] and set(table["joules"]) == {"not reported"}


def test_verdicts_follow_the_numbers(claims):
    result = stage_verdicts.verdicts(claims).verdict
    expected = {
        "Representative batches stand": PARTLY,  # nearer and more even, but their norm varies more
        "Boundary batches have larger": HOLDS,
        "Representative batches have smaller": HOLDS,
        "DREAM first reaches": HOLDS,
        "DREAM's final": HOLDS,
        "Each ingredient helps": PARTLY,  # one seed lost by the start alone
        "Both together": HOLDS,
        "Representative batches beat": PARTLY,  # centre-most won one seed
        "Re-clustering every 5": NOT,
        "Factor 2 helps": PARTLY,  # helps at 1, makes no difference at 50
        "The two ingredients": PARTLY,  # no gain with the first seed
        "DREAM's lead": PARTLY,  # none on LeNet
        "A set takes": HOLDS,
        "Training on a set": PARTLY,
    }
    for start, verdict in expected.items():
        assert result[result.index.str.startswith(start)].tolist() == [verdict], start
    message = stage_verdicts.answer(stage_verdicts.verdicts(claims))
    counts = [list(result).count(verdict) for verdict in (HOLDS, PARTLY, NOT)]
    told = "Claims that hold at this budget: {} of {}; partly: {}; not: {}.".format(counts[0], len(result), *counts[1:])
    assert message.startswith(told) and sum(counts) == len(result)
    assert "25 % of IDC's 160 iterations" in message and "*Re-clustering every 5" in message
    assert stage_verdicts.as_markdown(stage_verdicts.verdicts(claims)).count("\n") == 2 + len(result)


@pytest.mark.parametrize(
    ("swapped", "smaller", "edges"),
    [
        (("random", "representative"), NOT, HOLDS),
        (("random", "boundary"), HOLDS, PARTLY),  # boundary batches then have the smaller gradients
        (("center", "representative"), HOLDS, PARTLY),  # centre-most ones then leave less uncovered
    ],
)
def test_verdicts_on_batches_turn_with_the_batches(copied, tmp_path, swapped, smaller, edges):
    one, other = swapped
    path = tmp_path / "results" / "claims" / "batches.csv"
    keys, measures = ["point", "class", "seed", "batch"], ["norm", "nearest_distance"]
    table = pd.read_csv(path)
    turned = table.assign(batch=table.batch.replace({one: other, other: one})).set_index(keys)
    table = table.set_index(keys)
    table[measures] = turned[measures]
    table.reset_index().to_csv(path, index=False)
    result = stage_verdicts.verdicts(copied).verdict
    assert result[result.index.str.startswith("Representative batches have smaller")].tolist() == [smaller]
    assert result[result.index.str.startswith("Boundary batches have larger")].tolist() == [edges]


def test_what_verdicts_rest_on_is_told_in_numbers(claims):
    told = stage_verdicts.verdicts(claims).measured
    edges = "norm of boundary batches: boundary 3.000 ± 0.000, random 1.500 ± 0.000; distance to the nearest member: "
    assert told[told.index.str.startswith("Boundary")].tolist() == [
        edges + "center 0.900 ± 0.000, representative 0.600 ± 0.000"
    ]
    assert told[told.index.str.startswith("Training on a set")].tolist() == [
        "operations saved: ipc 1: +83 % (+83 to +83); ipc 10: -50 % (-50 to -50)"
    ]
    assert told[told.index.str.startswith("A set takes")].tolist() == [
        "ipc 1: 100 times fewer bytes; ipc 10: 10 times fewer bytes"
    ]


def test_every_claim_is_about_settings_that_its_study_lists():
    studies = {name: read_params(ROOT, name) for name in CLAIM_STUDIES}
    claims = read_claim_list(ROOT)
    assert len({claim["id"] for claim in claims}) == len(claims) and all(claim["source"] for claim in claims)
    for claim in claims:
        if claim["evidence"]["kind"] == "paired_gain":
            params = studies[claim["evidence"]["study"]]
            for part in claim["evidence"]["parts"]:
                assert {part["method"], part["over"]} <= set(params.methods) and part["ipc"] in params.ipc, claim["id"]
                protocol = params.evaluation(part["method"], part["ipc"])
                assert part.get("view", "protocol") in ("protocol", *protocol.views), claim["id"]
                assert part.get("network") in (None, *(network.label for network in protocol.networks)), claim["id"]


def test_a_margin_in_the_file_turns_a_verdict(copied):
    path, first = copied.root / CLAIMS_FILE, "DREAM's final accuracy is higher than IDC's"
    assert stage_verdicts.verdicts(copied).verdict[first] == HOLDS  # 0.7 against 0.6
    text = path.read_text()
    before, after = text.split("id: final_accuracy")
    path.write_text(f"{before}id: final_accuracy{after.replace('margin: 0', 'margin: 0.2', 1)}")
    result = stage_verdicts.verdicts(copied).verdict
    assert result[first] == NOT
    path.write_text(text.replace("kind: size_ratio", "kind: size_ration"))
    with pytest.raises(ValueError, match="did you mean 'size_ratio'"):
        stage_verdicts.verdicts(copied)


@pytest.mark.parametrize(
    ("text", "slip", "said"),
    [
        ("claims:\n-", "claim:\n-", "claim: unknown key 'claim': did you mean 'claims'?"),
        ("  margin: 0\n", "  margn: 0\n", "representative_batches.margn: unknown key 'margn': did you mean 'margin'?"),
        ("  margin: 0\n", "", "representative_batches.margin: a value is missing"),
        (
            "size_ratio\n",
            "size_ration\n",
            "storage.evidence.kind: unknown kind of evidence 'size_ration': did you mean",
        ),
        ("target_name:", "targt_name:", "fewer_iterations.evidence.targt_name: unknown key 'targt_name': did you mean"),
        ("    study: claims_factor\n", "", "factor.evidence.study: a value is missing"),
        (
            "over: neither",
            "ovr: neither",
            "each_ingredient.evidence.parts.ovr: unknown key 'ovr': did you mean 'over'?",
        ),
        ("of: boundary, ", "", "extreme_batches.evidence.parts.of: a value is missing"),
        ("margin: 0\n", "margin: [\n", "not valid YAML, line"),
    ],
)
def test_a_slip_in_the_list_of_claims_is_one_line(tmp_path, text, slip, said):
    path, written = tmp_path / CLAIMS_FILE, (ROOT / CLAIMS_FILE).read_text()
    path.parent.mkdir()
    path.write_text(written[: (start := written.index("\nclaims:"))] + written[start:].replace(text, slip, 1))
    with pytest.raises(ParameterError, match=r"claims\.yaml") as caught:
        read_claim_list(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_factors_are_shown_with_their_iterations(claims):
    table = stage_claims.factor_table(claims)
    assert list(table.columns) == ["ipc 1, 9 iterations", "ipc 10, 9 iterations", "ipc 50, 9 iterations"]
    assert table.loc[2, "ipc 1, 9 iterations"] == "60.0 ± 0.0" and list(table.index) == [1, 2, 3]


def test_every_lever_is_set_beside_the_entry_it_changes_one_thing_of(claims):
    table = stage_claims.lever_table(claims)
    assert table.loc["ridge", ["compared with", "gain"]].tolist() == ["dream", "+2.0 points (+1.0 to +3.0)"]
    assert table.loc["ridge_penalty", ["compared with", "gain"]].tolist() == ["ridge", "+2.0 points (-1.0 to +4.0)"]
    assert table.loc["dream", ["test accuracy (%)", "compared with", "gain"]].tolist() == ["70.0 ± 0.0", "–", "–"]


def test_levers_differ_from_the_entries_beside_them_in_what_they_say():
    """The settings themselves: which knobs of the distillation are not the same. dream trains on real images."""
    params = read_params(ROOT, "levers")
    seen = {m: params.distillation(m, 1).model_dump() for m in params.methods}
    differ = {m: {k for k in seen[m] if seen[m][k] != seen[b][k]} for m, b in stage_claims.LEVERS.items()}
    assert list(differ) == params.methods[1:]
    assert differ.pop("ridge") >= {"objective", "sampler"}
    assert differ == {
        "ridge_representative": {"sampler"},
        "ridge_penalty": {"options"},
        "ridge_frequencies": {"decode", "image_lr"},
        "ridge_factor3": {"factor", "network_batch"},
    }


def test_pictures_show_what_was_picked():
    picture = pd.DataFrame({"row": range(20, 0, -1), "random": [0, 1] * 10, "representative": [1] + [0] * 19})
    picture["center"], picture["boundary"] = 1, 0
    images = torch.arange(21.0).view(21, 1, 1, 1)
    result = stage_claims.picked_images(picture, images)
    assert {k: v.flatten().tolist() for k, v in result.items()} == {
        "random": [*range(19, 0, -2)], "representative": [20], "center": [*range(20, 4, -1)], "boundary": [],
    }  # fmt: skip


def test_a_missing_table_says_how_to_make_it(claims):
    with pytest.raises(FileNotFoundError, match="make claims"):
        claims.table("nothing")


@pytest.fixture
def keep(tmp_path):
    """Write the numbers of a best set of Fashion-MNIST, with changes, beside the published ones."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "published.csv", tmp_path / "notebooks")
    ours = {"accuracies": [0.875, 0.88, 0.88, 0.88, 0.885], "networks": 5, "seeds": [3], "protocol": "ridge"}
    ours |= {"epochs": 700, "method": "ridge", "factor": 2, "iterations": 12345, "study": "best_ipc1"}
    ours |= {"stored_floats": 7840, "label_kind": "hard", "decode": "dct", "augmentation_mode": "idc"}

    def write_one(ipc, **changes):
        path = tmp_path / "results" / "best" / f"fashion_mnist-ipc{ipc}.json"
        write_json(path, {k: v for k, v in (ours | changes).items() if v is not None})

    return write_one


BY_IDC = {"accuracies": [0.808, 0.81, 0.812] * 2, "networks": 3, "seeds": 2}


def test_the_record_lays_ours_by_idcs_protocol_beside_the_published(tmp_path, keep):
    root = tmp_path
    assert "has no set of fashion_mnist yet" in stage_best.comparison_sentence(root, "fashion_mnist")
    keep(1, idc=BY_IDC)
    table = stage_best.comparison_table(root, "fashion_mnist").loc[1].reset_index(drop=True)
    compared = table[table.evaluation != "own evaluation: ridge, 700 epochs"]
    figures = [float(text.split()[0]) for text in compared["test accuracy (%)"]]
    assert figures == sorted(figures, reverse=True), "best first, among all that compare"
    row = compared[compared.method == "here: ridge"].iloc[0]
    assert (row["test accuracy (%)"], row.evaluation) == ("81.0 ± 0.2", "idc, 1000 epochs")
    assert (row["networks × seeds"], row.factor, row["stored floats"]) == ("3 × 2", "2 (frequencies)", "7,840")
    # 88 % under an evaluation of its own is no record: it stands below all of them.
    assert len(table) == len(compared) + 1
    assert (table.iloc[-1].method, table.iloc[-1]["test accuracy (%)"]) == ("here: ridge", "88.0 ± 0.4")
    published = pd.read_csv(root / "notebooks" / "published.csv")
    published = published[(published.dataset == "fashion_mnist") & (published.ipc == 1)]
    assert set(compared.method) == {*published[published.verified == "yes"].method, "here: ridge"}
    unverified = stage_best.unverified_table(root, "fashion_mnist")
    assert set(unverified[unverified[1] != "–"].index.get_level_values("method")) == {
        *published[published.verified == "no"].method
    }


def test_sets_with_soft_labels_are_marked(tmp_path, keep):
    keep(10, idc=BY_IDC, label_kind="soft")
    table = stage_best.comparison_table(tmp_path, "fashion_mnist")
    ours = table[table.method.str.startswith("here")]
    assert ours.evaluation.loc[10].tolist() == ["idc, 1000 epochs", "own evaluation: ridge, 700 epochs"]
    assert set(ours.method.loc[10]) == {"here: ridge, soft labels"}
    assert "reach ipc 10: 81.0 ± 0.2 %." in stage_best.comparison_sentence(tmp_path, "fashion_mnist")


def test_the_first_seeds_set_is_kept_and_evaluated_by_idcs_protocol(tmp_path, claims, monkeypatch):
    own = EvaluationParams(protocol="ridge", repeats=2, parallel_networks=2, augmentation_mode="idc_per_image")
    monkeypatch.setattr(Params, "evaluation", lambda self, method, ipc: own)
    project = replace(claims.project("claims_curves"), study="best_ipc1")
    changes = {"methods": ["dream"], "ipc": [1], "seeds": [4, 5], "compute": ComputeParams(compile=False)}
    p = project.params.model_copy(update=changes)
    project = replace(project, root=tmp_path, params=p)
    made, asked = {}, {}
    for seed, accuracies in ((4, [0.5, 0.6]), (5, [0.9, 1.0])):
        setting, k = Setting("dream", 1, seed), project.info.num_classes
        shape = (k, project.info.channels, project.info.size, project.info.size)
        made[seed] = SyntheticSet(torch.rand(shape), torch.arange(k), k)
        made[seed].save(project.file("sets", setting, ".safetensors"))
        numbers = {"protocol": "ridge", "epochs": 3, "method": "dream", "factor": 1, "stored_floats": 7, "networks": 2}
        numbers |= {"label_kind": "hard", "accuracies": accuracies, "network": "convnet"}
        views = {"protocol": accuracies, "plain": [0.1, 0.1]}
        numbers["views"] = [
            {"view": view, "network": "convnet", "accuracies": theirs} for view, theirs in views.items()
        ]
        write_json(project.file("evaluation", setting, ".json"), numbers)
        write_json(project.file("distillation", setting, ".json"), {"iterations": 40, "training_images": 10})
        write_atomically(project.file("curves", setting, ".csv"), b"iteration,accuracy,std,networks\n")

    def train(synthetic, images, info, protocol, network, compute, *, seed, split, label, partial):
        asked.update(canvases=synthetic.canvases, images=images, protocol=protocol, seed=seed, split=split)
        return Evaluation((0.3, 0.4), split, protocol.epochs)

    monkeypatch.setattr(stage_best, "evaluate", train)
    monkeypatch.setattr(stage_best, "partial_results", lambda *which: PartialResults())
    monkeypatch.setattr(stage_best, "seen_test_images", lambda project, synthetic: ("test images", project.info))
    result = stage_best.gather(project, 1)
    assert (result["accuracy"], result["networks"], result["seeds"]) == (pytest.approx(0.75), 2, [4, 5])
    assert result["std"] == pytest.approx((0.17 / 3) ** 0.5)  # deviations .25, .15, .15, .25
    assert torch.equal(asked["canvases"], made[4].canvases)
    assert (asked["images"], asked["seed"], asked["split"]) == ("test images", 4, "test")
    assert asked["protocol"] == EvaluationParams(repeats=2, parallel_networks=2)
    assert result["idc"]["accuracies"] == [0.3, 0.4] and result["idc"]["std"] == pytest.approx(0.005**0.5)
    assert (result["idc"]["accuracy"], result["idc"]["networks"], result["idc"]["seeds"]) == (0.35, 2, [4])
    kept = load(tmp_path / "results" / "best" / f"{p.dataset}-ipc1.safetensors", normalise=False)
    assert torch.equal(kept.images, made[4].canvases)
    assert (tmp_path / "results" / "best" / f"{p.dataset}-ipc1.png").is_file()
    with pytest.raises(ValueError, match="list only one"):
        stage_best.gather(replace(project, params=p.model_copy(update={"methods": ["dream", "idc"]})), 1)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "best").glob("fashion_mnist-ipc*.json")), ids=lambda p: p.stem
)
def test_the_kept_sets_store_no_more_than_so_many_images(path):
    numbers, ipc = read_json(path), int(path.stem.rpartition("-ipc")[2])
    kept = load("fashion_mnist", ipc=ipc)
    assert kept.set.stored_floats == numbers["stored_floats"]
    if numbers["decode"] == "dct":  # no room is left for one more coefficient of every image
        assert numbers["stored_floats"] <= 7840 * ipc < numbers["stored_floats"] + len(kept)
    else:
        assert numbers["stored_floats"] == 7840 * ipc
    assert numbers["label_kind"] == "hard"
    assert len(numbers["accuracies"]) == numbers["networks"] * len(numbers["seeds"])


def test_the_best_sets_command_says_what_is_wrong_in_one_line(capsys):
    assert stage_best.main(["7"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "best_ipc7" in message and message.count("\n") == 1
    with pytest.raises(SystemExit):
        stage_best.main(["seven"])
    assert "invalid int value" in capsys.readouterr().err
