"""Comparing a run with the committed record, the cost table, and the summary over networks and seeds."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from dreamlib._engine.files import read_json, write_json
from pipeline.report import record
from pipeline.stages.figures import summary, summary_markdown

PARAMS = """\
dataset: digits
ipc: [1]
methods: [{}]
seeds: [0]
budget: b
budgets: {{b: {{}}}}
"""
METHODS = "method: {dream: {}, idc: {}}\n"


@pytest.fixture
def committed(tmp_path):
    """A repository with one committed result."""
    (tmp_path / "params.yaml").write_text(PARAMS.format("dream"))
    (tmp_path / "methods.yaml").write_text(METHODS)
    write_json(tmp_path / "results" / "evaluation" / "dream-ipc1-seed0.json", {"accuracy": 0.7, "std": 0.01})
    (tmp_path / "results" / "sets").mkdir()
    (tmp_path / "results" / "sets" / "dream-ipc1-seed0.safetensors").write_bytes(b"set")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "results"], check=True)
    return tmp_path


def test_the_same_run_has_the_same_bits_and_lies_within(committed):
    table, good = record.compare(committed)
    assert good
    assert table.iloc[0]["distilled set"] == "same bits"
    assert table.iloc[0]["verdict"] == "within the spread"


@pytest.mark.parametrize(("accuracy", "good"), [(0.742, True), (0.743, False), (0.657, False)])
def test_an_accuracy_may_differ_by_three_joint_standard_deviations(committed, accuracy, good):
    # 3 · √(0.01² + 0.01²) = 0.0424
    write_json(committed / "results" / "evaluation" / "dream-ipc1-seed0.json", {"accuracy": accuracy, "std": 0.01})
    (committed / "results" / "sets" / "dream-ipc1-seed0.safetensors").write_bytes(b"other")
    table, found = record.compare(committed)
    assert found is good
    assert table.iloc[0]["distilled set"] == "other bits"


def test_a_setting_that_was_never_committed_is_said_and_is_no_failure(committed):
    write_json(committed / "results" / "evaluation" / "idc-ipc1-seed0.json", {"accuracy": 0.1, "std": 0.0})
    (committed / "params.yaml").write_text(PARAMS.format("dream, idc"))
    table, good = record.compare(committed)
    assert good
    assert set(table["distilled set"]) == {"same bits", "not committed"}


def test_only_what_params_yaml_asks_for_is_compared_and_all_of_it(committed):
    write_json(committed / "results" / "evaluation" / "idc-ipc1-seed0.json", {"accuracy": 0.1, "std": 0.0})
    assert list(record.compare(committed)[0]["setting"]) == ["dream-ipc1-seed0"]
    (committed / "results" / "evaluation" / "dream-ipc1-seed0.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dream-ipc1-seed0\.json is missing"):
        record.compare(committed)


def test_costs_are_added_up_by_stage():
    entry = {"seconds": {"matching": 60.4, "network": 10.2}, "peak_memory_bytes": 512 * 2**20, "device": "cpu (x)"}
    row = record.cost_table({"distillation-dream": entry}).iloc[0]
    assert row["seconds"] == 71
    assert row["peak memory (MiB)"] == 512
    assert record.cost_table({}).empty


def test_what_a_command_took_is_its_records_sum_and_largest(tmp_path):
    machine = {"device": "cpu (x)", "threads": 2, "precision": "float32"}
    first = {"seconds": {"matching": 80.0, "network": 10.0}, "peak_memory_bytes": 2000 * 2**20, **machine}
    second = {"seconds": {"total": 150.0}, "peak_memory_bytes": 500 * 2**20, **machine, "precision": "bfloat16"}
    write_json(tmp_path / "results" / "record.json", {"a": first, "b": first})
    write_json(tmp_path / "results" / "claims" / "record.json", {"a": first, "b": second})
    repro = "| `make repro` | 3 | 2 stages | 2,000 | cpu (x), 2 threads, float32 |"
    claims = "| `make claims` | 4 | 2 stages | 2,000 | cpu (x), 2 threads, bfloat16; cpu (x), 2 threads, float32 |"
    assert record.times_table(tmp_path).splitlines()[2:] == [repro, claims]
    assert record.times_table(tmp_path, ["make repro"]).splitlines()[2:] == [repro]


def test_what_the_tests_took_is_read_from_pytests_report(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS.format("dream"))
    (tmp_path / "methods.yaml").write_text(METHODS)
    record.write_tests_record(tmp_path)
    assert not (tmp_path / record.TESTS).exists()
    (tmp_path / ".dream").mkdir()
    (tmp_path / record.TEST_REPORT).write_text(
        '<testsuites><testsuite tests="7" time="123.4"/><testsuite tests="3" time="56.6"/></testsuites>'
    )
    record.write_tests_record(tmp_path)
    assert record.times_table(tmp_path).splitlines()[2].startswith("| `make test` | 3 | 10 tests | – | cpu (")


def test_summary_pools_networks_and_seeds():
    fixed = {"factor": 2, "iteration": 5, "training_images": 40, "stored_floats": 7840}
    fixed |= {"label_kind": "hard", "protocol": "idc", "epochs": 3}
    rows = pd.DataFrame(
        [
            {**fixed, "ipc": 1, "method": "dream", "seed": s, "accuracy": a}
            for s, a in [(0, 0.70), (0, 0.74), (1, 0.72), (1, 0.76)]
        ]
    )
    row = summary(rows).iloc[0]
    assert row.accuracy == pytest.approx(0.73)
    assert row["std"] == pytest.approx(np.std([0.70, 0.74, 0.72, 0.76], ddof=1))
    assert (row.networks, row.seeds) == (4, 2)
    assert "| 1 | dream | 73.0 ± 2.6 | 2 × 2 | idc, 3 epochs | hard | 2 | 40 | 7,840 | 5 |" in summary_markdown(
        summary(rows)
    )


def test_the_record_speaks_of_one_data_set(tmp_path):
    entry = {"seconds": {"total": 1.0}, "peak_memory_bytes": 2**20, "device": "cpu (x)"}
    write_json(
        tmp_path / record.RECORD, {"a": entry | {"dataset": "digits"}, "b": entry | {"dataset": "fashion_mnist"}}
    )
    assert list(record.record_table(tmp_path, "digits").stage) == ["a"]
    assert record.record_table(tmp_path, "svhn").empty


def test_a_studys_record_is_kept_apart(tmp_path, monkeypatch):
    write_json(tmp_path / record.RUNS / "distillation-a.json", {"seconds": {"matching": 1.0}})
    write_json(tmp_path / record.RUNS / "methods" / "distillation-b.json", {"seconds": {"matching": 2.0}})
    monkeypatch.setattr(record, "find_root", lambda: tmp_path)
    assert record.main(["write", "--study", "methods"]) == 0 == record.main(["write"])
    assert list(read_json(tmp_path / "results" / "methods" / "record.json")) == ["distillation-b"]
    assert list(read_json(tmp_path / "results" / "record.json")) == ["distillation-a"]


def test_a_record_takes_in_the_studies_named_after_it(tmp_path):
    runs = tmp_path / ".dream" / "runs"
    for name in ("top", "claims/cost", "claims_a/run", "claims_b/run", "claimsx/run"):
        write_json(runs / f"{name}.json", {"of": name})
    assert record.collect(tmp_path) == {"top": {"of": "top"}}
    assert list(record.collect(tmp_path, "claims")) == ["cost", "claims_a/run", "claims_b/run"]


def test_studies_run_elsewhere_keep_their_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "find_root", lambda: tmp_path)
    path = tmp_path / "results" / "claims" / "record.json"
    write_json(path, {"claims_a/run": {"of": "old"}, "claims_b/run": {"of": "old"}, "claims_b/gone": {"of": "old"}})
    for name in ("claims_b/run", "levers/run", "best_ipc1/run"):
        write_json(tmp_path / record.RUNS / f"{name}.json", {"of": "here"})
    assert record.main(["write", "--study", "claims", "levers"]) == 0
    assert {name: entry["of"] for name, entry in read_json(path).items()} == {
        "claims_a/run": "old", "claims_b/run": "here", "levers/run": "here",
    }  # fmt: skip


def test_seeds_run_elsewhere_keep_their_entries_while_their_results_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "find_root", lambda: tmp_path)
    path, study = tmp_path / "results" / "best" / "record.json", tmp_path / "results" / "best_ipc1"
    names = [f"{stage}-{seed}" for stage in ("distillation-a-ipc1", "clustering-ipc1", "cost-ipc1") for seed in (0, 1)]
    write_json(path, {f"best_ipc1/{name}": {"of": "old"} for name in names})
    write_json(study / "a" / "distillation" / "a-ipc1-0.json", {})
    write_json(study / "clusters" / "ipc1-0.json", {})
    write_json(study / "clusters" / "ipc1-1.json", {})
    write_json(tmp_path / record.RUNS / "best_ipc1" / "clustering-ipc1-1.json", {"of": "here"})
    assert record.main(["write", "--study", "best"]) == 0
    assert {name.partition("/")[2]: entry["of"] for name, entry in read_json(path).items()} == {
        "distillation-a-ipc1-0": "old", "clustering-ipc1-0": "old", "clustering-ipc1-1": "here",
    }  # fmt: skip
