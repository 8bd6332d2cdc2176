"""studies/params.yaml as records."""

from typing import Annotated, Any

from pydantic import Field

from dreamlib.settings import Natural, Positive, Strict
from pipeline.params.models import Name


class BatchesParams(Strict):
    """Settings of the comparison of batches."""

    points: Annotated[list[Natural], Field(min_length=1)]
    """Training steps after which batches are compared."""
    pool: Positive = 640
    """Images that represent each class."""
    draws: Annotated[int, Field(ge=2)] = 3
    """Batches of each randomly drawn kind."""
    shown: Natural = 0
    """Class whose batches are shown."""


class CostParams(Strict):
    """Settings of training on the full data, for its cost."""

    points: Annotated[list[Positive], Field(min_length=1)]
    """Training steps on the full data after which accuracy is measured."""
    batch: Positive = 64
    """Images in a step."""
    repeats: Positive = 3
    """Number of networks."""


class ClaimsParams(Strict):
    """The section ``claims`` of studies/params.yaml: measurements of the study of claims in addition to its runs."""

    batches: BatchesParams
    cost: CostParams


class StudiesFile(Strict):
    """All of studies/params.yaml; a study's sections are validated once merged with those of params.yaml."""

    studies: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    claims: ClaimsParams | None = None
