"""Whether a data set has enough images for all settings of the matrix, and which changes would make them suffice."""

from itertools import takewhile

from torch import Tensor

from dreamlib.data.types import DatasetInfo
from dreamlib.errors import ParameterError, listed
from dreamlib.synthetic.initial import INITS, images_needed
from pipeline.params.models import Params

MAX_LISTED = 6  # maximum number of settings named in a message


def check_images(params: Params, info: DatasetInfo, counts: Tensor) -> None:
    """Raise one ParameterError for all settings that need more images than the smallest class has.

    counts: (K,) training images of each class, before ``validation_per_class`` of them are held out.
    """
    smallest, held_out = int(counts.argmin()), params.validation_per_class
    count = int(counts[smallest])
    needed = {(method, ipc): n for ipc in params.ipc for method, n in _needed(params, ipc).items()}
    short = [f"{method} at ipc {ipc} needs {n}" for (method, ipc), n in needed.items() if n > count - held_out]
    if short:
        raise ParameterError(
            f"params.yaml: class '{info.classes[smallest]}' of {params.dataset} has {count} training images, less "
            f"{held_out} for validation (budgets.{params.budget}.validation_per_class): too few for {len(short)} of "
            f"{len(needed)} settings ({listed(short, MAX_LISTED)}): {' or '.join(_remedies(params, count))}, or add "
            "images"
        )


def _needed(params: Params, ipc: int) -> dict[str, int]:
    """Return how many images per class each method needs at ``ipc``, at least one to train on.

    Below the smallest listed ipc, parameters may be undefined, so that ipc's factor is used.
    """
    distillations = {method: params.distillation(method, max(ipc, min(params.ipc))) for method in params.methods}
    return {
        method: images_needed(ipc, settings.factor, settings.decode) if INITS[settings.init].needs_images else 1
        for method, settings in distillations.items()
    }


def _remedies(params: Params, count: int) -> list[str]:
    """Return the changes that make ``count`` images per class suffice for every setting."""
    most = {ipc: max(_needed(params, ipc).values()) for ipc in range(1, max(params.ipc) + 1)}

    def largest_ipc(images: int) -> int:
        return max(takewhile(lambda ipc: most[ipc] <= images, most), default=0)

    remedies = []
    if ipc := largest_ipc(count - params.validation_per_class):
        remedies.append(f"choose ipc ≤ {ipc}, which fits every method")
    if (needed := max(most[ipc] for ipc in params.ipc)) <= count:
        remedies.append(f"set validation_per_class to at most {count - needed}")
    elif not ipc and (ipc := largest_ipc(count)):
        remedies.append(f"choose ipc ≤ {ipc} and set validation_per_class to at most {count - most[ipc]}")
    return remedies or ["choose a smaller factor"]
