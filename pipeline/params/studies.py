"""studies/params.yaml as records."""

from typing import Annotated, Any

from pydantic import Field

from dreamlib.settings import Natural, Positive, Strict
from pipeline.params.models import Name


class BatchesParams(Strict):
    """How kinds of batches are compared: after how many training steps, among how many images a class, how often drawn.

    ``pool`` images of each class stand for the class; ``shown`` is the class whose batches are pictured.
    """

    points: Annotated[list[Natural], Field(min_length=1)]
    pool: Positive = 640
    draws: Annotated[int, Field(ge=2)] = 3
    shown: Natural = 0


class CostParams(Strict):
    """How training on the full data is followed: after how many steps of ``batch`` images, by how many networks."""

    points: Annotated[list[Positive], Field(min_length=1)]
    batch: Positive = 64
    repeats: Positive = 3


class ClaimsParams(Strict):
    """The section ``claims`` of studies/params.yaml: what the study of claims measures besides its runs."""

    batches: BatchesParams
    cost: CostParams


class StudiesFile(Strict):
    """All of studies/params.yaml; a study's sections are validated with those of params.yaml that they join."""

    studies: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    claims: ClaimsParams | None = None
