"""Open a set to be judged, check its data set and choose its protocol."""

from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML, YAMLError

from dreamlib import data as datasets
from dreamlib._engine.files import read_json
from dreamlib.data.types import DatasetInfo
from dreamlib.errors import ParameterError, unknown
from dreamlib.matching.unrolled import UNROLLED
from dreamlib.settings import PROTOCOL_INDEPENDENT, PROTOCOLS, EvaluationParams
from dreamlib.synthetic.foreign import import_set
from dreamlib.synthetic.foreign_files import CANVAS_FORMATS, MTT_FORMATS
from dreamlib.synthetic.synthetic_set import BEST_FOLDER, SyntheticSet, best_path
from pipeline.params import Budget, DataParams, Params, read_params
from pipeline.project import Project

PAPER = "paper"  # the budget whose settings are those of the released code
STORED = "STORED= (make) or --stored"
GIVE_STORED = f" (give these as key=value with {STORED})"
# Protocol by file layout, for layouts of a single family.
PROTOCOL_OF_LAYOUT = {
    **dict.fromkeys(MTT_FORMATS, "mtt"),
    **dict.fromkeys(CANVAS_FORMATS, "idc"),
    "dsa": "dsa",
    "dm": "dm",
}


def judging_project(root: Path, dataset: str) -> Project:
    """Return a project on all training images of ``dataset``, with the compute and the data folder of params.yaml.

    From methods.yaml it takes the released evaluations only. The network is the protocols' ConvNet. Raise
    UnknownNameError for an unknown data set.
    """
    project_params = read_params(root)
    options = project_params.data.options if project_params.dataset == dataset else {}
    datasets.create(dataset, options)
    released = project_params.budgets.get(PAPER, Budget()).by_dataset.items()
    by_dataset = {name: block.model_copy(update={"validation_per_class": 0}) for name, block in released}
    params = Params(
        dataset=dataset, ipc=[1], methods=[*project_params.method][:1], seeds=[0], budget=PAPER,
        compute=project_params.compute, method=project_params.method,
        data=DataParams(directory=project_params.data.directory, options=options),
        budgets={PAPER: Budget(validation_per_class=0, by_dataset=by_dataset)},
    )  # fmt: skip
    return Project(root, params)


def open_sets(root: Path, path: str, dataset: str, ipc: int, stored: str) -> tuple[Path, list[SyntheticSet]]:
    """Return the file and the sets in it, one for each experiment.

    path: a file or folder of any project, relative to ``root``; or, with ``ipc``, the name of a data set, for its best
        set in results/best.
    stored: what another project's file does not specify, as ``key=value`` options of ``dreamlib.import_set``.

    Raise as ``import_set`` and ``import_options`` do.
    """
    file, options = root / path, import_options(stored)
    if ipc and not file.exists():
        file = best_path(path, ipc)
    try:
        sets = import_set(file, data=dataset, **options)
    except ValueError as error:
        raise ParameterError(f"{error}{'' if stored else GIVE_STORED}") from error
    sets = sets if isinstance(sets, list) else [sets]
    if options and "format" in sets[0].info:
        raise ParameterError(f"{path} is a set of this library, which specifies how it is stored; leave out {STORED}")
    return file, sets


def import_options(text: str) -> dict[str, Any]:
    """Return ``key=value`` pairs, values as in YAML, as options of ``dreamlib.import_set``.

    Raise UnknownNameError or ParameterError, naming the option.

    >>> import_options("normalised=zca zca_epsilon=0.1")
    {'normalised': 'zca', 'zca_epsilon': 0.1}
    """
    hints, options = get_type_hints(import_set), {}
    known = [name for name in signature(import_set).parameters if name not in ("path", "data")]
    for pair in text.split():
        key, sign, value = pair.partition("=")
        if not sign:
            raise ParameterError(f"'{pair}' is not of the form key=value, such as normalised=literature")
        if key not in known:
            raise unknown("option", key, known, "a stored set")
        try:
            options[key] = TypeAdapter(hints[key]).validate_python(YAML(typ="safe", pure=True).load(value))
        except (ValidationError, YAMLError) as error:
            raise ParameterError(f"option {key} of a stored set cannot be {value!r}; see docs/sets.md") from error
    return options


def check_set(synthetic: SyntheticSet, info: DatasetInfo, ipc: int, where: str) -> None:
    """Reject a set made from another data set than ``info``, in one line that begins with ``where``."""
    shape, expected = tuple(synthetic.canvases.shape[1:]), (info.channels, info.size, info.size)
    about = synthetic.info
    if about.get("dataset", info.name) != info.name:
        raise ParameterError(f"{where} is a set of {about['dataset']}, not of {info.name}; set DATA={about['dataset']}")
    if synthetic.num_classes != info.num_classes:
        raise ParameterError(
            f"{where} has {synthetic.num_classes} classes, and {info.name} has {info.num_classes}; set DATA to its own "
            "data set"
        )
    if shape != expected:
        raise ParameterError(
            f"{where} holds images of (channels, height, width) {shape}, and {info.name}'s are {expected}; set DATA to "
            "its own data set"
        )
    if tuple(about.get("classes", info.classes)) != info.classes:
        raise ParameterError(
            f"{where} lists the classes {', '.join(about['classes'])}, and {info.name} lists "
            f"{', '.join(info.classes)}; store its images in that order"
        )
    if ipc and synthetic.ipc != ipc:
        raise ParameterError(f"{where} stores {synthetic.ipc} images per class, not {ipc}; set IPC={synthetic.ipc}")


def own_protocol(project: Project, file: Path, synthetic: SyntheticSet, name: str) -> EvaluationParams:
    """Return the protocol under which a set is published.

    It is ``name`` if given, else that of the study that made a set of results/best, else that of the layout of another
    project's file, else IDC's. Raise UnknownNameError for an unknown name; ParameterError for a file whose layout
    several methods share, and for a set that cannot be replayed.
    """
    if name and name not in PROTOCOLS:
        raise unknown("evaluation protocol", name, sorted(PROTOCOLS))
    if not name and file.parent == project.root / BEST_FOLDER:
        record = read_json(file.with_suffix(".json"))
        protocol = read_params(project.root, record["study"]).evaluation(record["method"], synthetic.ipc)
    else:
        protocol = _released(project.params, name or _protocol_of_layout(synthetic, file.name), synthetic)
    if protocol.replay and UNROLLED not in synthetic.info:
        raise ParameterError(
            f"protocol '{protocol.protocol}' replays the training that a set was unrolled through, and {file.name} "
            "stores no such training; choose another protocol, such as idc"
        )
    execution = EvaluationParams(parallel_networks=2)
    return protocol.model_copy(update={key: getattr(execution, key) for key in PROTOCOL_INDEPENDENT})


def _released(params: Params, name: str, synthetic: SyntheticSet) -> EvaluationParams:
    """Return a protocol as the released code defines it for the data set: for example, DC augments MNIST."""
    if name in params.method:
        budget = params.budgets[PAPER].model_copy(update={"distillation": {"factor": synthetic.factor}})
        protocol = params.model_copy(update={"budgets": {PAPER: budget}}).evaluation(name, synthetic.ipc)
        if protocol.protocol == name:
            return protocol
    return EvaluationParams(protocol=name)


def _protocol_of_layout(synthetic: SyntheticSet, name: str) -> str:
    if "source" not in synthetic.info:
        return "idc"
    layout = synthetic.info["source"]["format"]
    protocol = PROTOCOL_OF_LAYOUT.get(layout)
    if protocol is None:
        raise ParameterError(
            f"{name} does not specify the protocol under which its set is published (several methods share the layout "
            f"'{layout}'); choose one with PROTOCOL= (make) or --protocol: {', '.join(sorted(PROTOCOLS))}"
        )
    return protocol
