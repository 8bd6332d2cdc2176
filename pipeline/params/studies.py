"""studies/params.yaml as records."""

from typing import Annotated, Any

from pydantic import Field

from dreamlib.settings import Natural, Positive, Strict
from pipeline.params.models import Name


class BatchesParams(Strict):
    """Settings of the comparison of batches.

    points: training steps of the network after which batches are compared.
    pool: images that represent each class.
    draws: batches of each randomly drawn kind.
    shown: class whose batches are shown.
    """

    points: Annotated[list[Natural], Field(min_length=1)]
    pool: Positive = 640
    draws: Annotated[int, Field(ge=2)] = 3
    shown: Natural = 0


class CostParams(Strict):
    """Settings of training on the full data, for its cost.

    points: training steps after which accuracy is measured.
    batch: images per step.
    repeats: number of networks.
    """

    points: Annotated[list[Positive], Field(min_length=1)]
    batch: Positive = 64
    repeats: Positive = 3


class ClaimsParams(Strict):
    """The section ``claims`` of studies/params.yaml: measurements of the study of claims in addition to its runs."""

    batches: BatchesParams
    cost: CostParams


class StudiesFile(Strict):
    """All of studies/params.yaml; a study's sections are validated once merged with those of params.yaml."""

    studies: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    claims: ClaimsParams | None = None
