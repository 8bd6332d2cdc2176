"""A set that is to be judged: the file opened, what it stands for checked, and the protocol it is published under."""

from pathlib import Path

from dreamlib import data as datasets
from dreamlib._engine.files import read_json
from dreamlib.data.types import DatasetInfo
from dreamlib.errors import ParameterError, unknown
from dreamlib.matching.unrolled import UNROLLED
from dreamlib.settings import OF_EVERY_PROTOCOL, PROTOCOLS, EvaluationParams
from dreamlib.synthetic.synthetic_set import BEST, SyntheticSet, best_path
from pipeline.params import Budget, DataParams, Params, read_params
from pipeline.project import Project

METHOD = "random"  # a name that parameters need; no method runs


def judging_project(root: Path, dataset: str) -> Project:
    """Return a project on ``dataset`` with the compute and data folder of params.yaml, and all training images.

    The network is the protocols' ConvNet, whatever params.yaml names. Raise UnknownNameError for an unknown data set.
    """
    own = read_params(root)
    options = own.data.options if own.dataset == dataset else {}
    datasets.create(dataset, options)
    params = Params(
        dataset=dataset, ipc=[1], methods=[METHOD], seeds=[0], budget="judge", compute=own.compute,
        data=DataParams(directory=own.data.directory, options=options), method={METHOD: {}},
        budgets={"judge": Budget(validation_per_class=0)},
    )  # fmt: skip
    return Project(root, params)


def open_sets(root: Path, path: str, ipc: int) -> tuple[Path, list[SyntheticSet]]:
    """Return the file and the sets in it, one for each experiment; with ``ipc``, ``path`` may name a data set.

    Raise FileNotFoundError or ValueError for a file that cannot be read.
    """
    file = root / path
    if ipc and not file.exists():
        file = best_path(path, ipc)
    return file, [SyntheticSet.open(file)]


def check_set(synthetic: SyntheticSet, info: DatasetInfo, ipc: int, where: str) -> None:
    """Refuse a set that is not of the data set it is to be judged on, in one line that begins with ``where``."""
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


def own_protocol(root: Path, file: Path, synthetic: SyntheticSet, given: str) -> EvaluationParams:
    """Return the protocol that a set is published under.

    It is the ``given`` one, else that of the study which made a set of results/best, else the one its file names, else
    IDC's. Raise UnknownNameError for an unknown name, ParameterError for a set that cannot be replayed.
    """
    name = given or synthetic.info.get("protocol", "idc")
    if name not in PROTOCOLS:
        raise unknown("evaluation protocol", name, sorted(PROTOCOLS))
    how = EvaluationParams(protocol=name)
    if not given and file.parent == root / BEST:
        record = read_json(file.with_suffix(".json"))
        how = read_params(root, record["study"]).evaluation(record["method"], synthetic.ipc)
    if how.replay and UNROLLED not in synthetic.info:
        raise ParameterError(
            f"protocol '{how.protocol}' replays the training that a set was unrolled through, and {file.name} holds no "
            "such training; choose another protocol, such as idc"
        )
    execution = EvaluationParams(parallel_networks=2)
    return how.model_copy(update={key: getattr(execution, key) for key in OF_EVERY_PROTOCOL})
