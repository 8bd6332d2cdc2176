"""The house rules that can be checked by reading the source: data flows one way, nothing global, nothing silent."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("dreamlib", "pipeline")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def test_layers_import_lower_ones_only():
    """The contracts are in pyproject.toml; every package and module of the library has a layer there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name for contract in contracts for layer in contract["layers"] for name in layer.split(" | ")}
    parts = {name.split(".")[1] for name in TREES if name.count(".")}
    assert parts - layers == set(), "give the new package or module a layer in pyproject.toml"
    assert layers - parts - {"dreamlib", "pipeline"} == set(), "pyproject.toml names layers that are gone"
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_nothing_imports_a_notebook_a_test_or_a_benchmark():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            kept_apart = {"tests", "notebooks", "conftest"}
            if name != "pipeline.pages":  # which writes docs/speed.md from the benchmarks' results
                kept_apart.add("benchmarks")
            assert not {m.split(".")[0] for m in modules} & kept_apart, name


def calls(tree):
    """(dotted name, call) for every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def constants(call):
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return {value.value for value in given if isinstance(value, ast.Constant)}


def test_only_evaluate_reads_the_test_split():
    """Data sets know their files; to the rest of the library 'test' is a word that evaluate.py alone may load by."""
    readers, users = set(), set()
    for name, tree in TREES.items():
        if name.startswith("dreamlib.data"):
            continue
        for function, call in calls(tree):
            last = function.rsplit(".", 1)[-1]
            if last in ("load_split", "load", "read", "split") and "test" in constants(call):
                readers.add(name)
            if last == "test_split":
                users.add(name)
    assert readers == {"dreamlib.evaluation"}
    assert users == {"pipeline.stages.evaluation"}
    library = {name: tree for name, tree in TREES.items() if name.startswith("dreamlib.")}
    mentions = {
        name
        for name, tree in library.items()
        if not name.startswith("dreamlib.data")
        and any(isinstance(node, ast.Constant) and node.value == "test" for node in ast.walk(tree))
    }
    assert mentions == {"dreamlib.evaluation"}


GLOBAL = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "exit",
    "quit",
    "os._exit",
    "os.abort",
    "torch.set_default_dtype",
    "torch.set_default_device",
}


def script_part(tree):
    """The nodes below ``if __name__ == "__main__"``, where a process may end itself."""
    guards = [n for n in tree.body if isinstance(n, ast.If) and "__main__" in ast.unparse(n.test)]
    return {id(node) for guard in guards for node in ast.walk(guard)}


def test_nothing_global_is_set_and_nothing_ends_the_process():
    for name, tree in TREES.items():
        allowed = script_part(tree)
        with_its_starter = {"os._exit"} if name == "pipeline.worker" else set()
        assert {function for function, _ in calls(tree)} & GLOBAL == with_its_starter, name
        assert [c.lineno for f, c in calls(tree) if f == "sys.exit" and id(c) not in allowed] == [], name


def test_no_error_is_swallowed():
    """A bare ``except`` is ruff's to find."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                silent = all(isinstance(line, ast.Pass) for line in node.body)
                broad = ast.unparse(node.type) in ("Exception", "BaseException")
                assert not (silent and broad), f"{name}:{node.lineno} swallows everything"


def test_no_random_number_comes_from_a_global_generator():
    """torch.rand and its kin take ``generator=``, in every call."""
    drawing = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
    for name, tree in TREES.items():
        for function, call in calls(tree):
            module, _, last = function.rpartition(".")
            if module == "torch" and last in drawing:
                assert "generator" in {keyword.arg for keyword in call.keywords}, f"{name}:{call.lineno}"
            if module in ("np.random", "numpy.random", "random"):
                assert last in ("default_rng", "Generator", "fork_rng"), f"{name}:{call.lineno}"


def test_notebooks_define_nothing():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        for text in source:
            plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
            for node in ast.walk(ast.parse(plain)):
                kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
                assert not isinstance(node, kinds), f"{path.name} defines something: move it to dreamlib"
        parameters = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        assert len(parameters) == 1, f"{path.name} has {len(parameters)} cells tagged 'parameters'"


@pytest.mark.parametrize(
    ("module", "costly"),
    [
        ("pipeline.launch_notebook", ["torch", "pandas"]),
        ("pipeline.stages.distillation", ["sklearn", "torchvision", "torch._dynamo"]),
        ("pipeline.stages.evaluation", ["sklearn", "torchvision", "torch._dynamo"]),
        ("pipeline.report.figures", ["torchvision"]),
    ],
)
def test_what_starts_with_every_stage_waits_for_no_library_it_does_not_use(module, costly):
    """Each of them takes seconds to import, and `make repro` starts a launcher and a kernel twenty times."""
    asked = f"import sys, {module}; print(*sorted(set({costly}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
