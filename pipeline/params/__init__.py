"""The parameters of the pipeline; every command first calls ``read_params``."""

from pipeline.params.models import Budget, DataParams, Params
from pipeline.params.read import find_root, read_claims, read_params, read_studies
from pipeline.params.studies import BatchesParams, ClaimsParams, CostParams

__all__ = [
    "BatchesParams",
    "Budget",
    "ClaimsParams",
    "CostParams",
    "DataParams",
    "Params",
    "find_root",
    "read_claims",
    "read_params",
    "read_studies",
]
