"""The tables of docs/parameters.md: ``python -m pipeline.report.parameters_page`` prints them.

Keys, types, defaults and meanings come from the pydantic models and the registered components. The meaning of a key is
the string below its field.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from dreamlib.data.base import DATASETS
from dreamlib.matching import OBJECTIVES
from dreamlib.matching.label_sources import LABELS
from dreamlib.networks import NETWORKS
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import (
    ClusteringParams,
    ComputeParams,
    DistillParams,
    EvaluationParams,
    ExpertParams,
    NetworkParams,
)
from dreamlib.synthetic.initial import INITS
from pipeline.params import BatchesParams, Budget, CostParams, DataParams, Params
from pipeline.report.tables import markdown

# Names of JSON schema's types and limits; a section has no type.
TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "object": "mapping", "null": "none"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

# Place of a section in the parameter files → its model.
SECTIONS: dict[str, type[BaseModel]] = {
    "Top level of `params.yaml`": Params,
    "`compute`": ComputeParams,
    "`data`": DataParams,
    "`network`": NetworkParams,
    "`budgets.<name>`": Budget,
    "`clustering`": ClusteringParams,
    "`distillation`, and an entry of `method`": DistillParams,
    "`evaluation`": EvaluationParams,
    "`experts`": ExpertParams,
    "`batches` of the study of claims": BatchesParams,
    "`cost` of the study of claims": CostParams,
}


def parameters() -> str:
    """Return a table per section: every key with its type, default and meaning."""
    return "\n".join(f"### {where}\n\n{_section(model)}" for where, model in SECTIONS.items())


def _section(model: type[BaseModel]) -> str:
    rows, meanings = [], meanings_of(model)
    for key, schema in model.model_json_schema()["properties"].items():
        field = model.model_fields[key]
        value = field.get_default(call_default_factory=True)
        default = "its defaults" if "$ref" in schema else "–" if value in (None, "") else f"`{_yaml(value)}`"
        default = "required" if field.is_required() else default
        rows.append((f"`{key}`", type_name(schema), default, meanings[key]))
    return markdown(("key", "type", "default", "meaning"), rows)


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings below a model's fields by key, read from its source because Python does not keep them."""
    meanings = {}
    for kind in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
        for field, below in pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                    meanings[key] = " ".join(text.split())
    return meanings


def type_name(schema: Mapping[str, Any]) -> str:
    """Return a type of JSON schema with its limits, formatted for the tables.

    >>> type_name({"type": "integer", "minimum": 1}), type_name({"enum": ["sgd", "adam"], "type": "string"})
    ('int ≥ 1', '`sgd`, `adam`')
    >>> type_name({"type": "array", "items": {"type": "number"}})
    'list of float'
    """
    if "anyOf" in schema:
        return " or ".join(map(type_name, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "items" in schema:
        return f"list of {'networks' if '$ref' in schema['items'] else type_name(schema['items'])}"
    limits = ", ".join(f"{sign} {schema[limit]:g}" for limit, sign in LIMITS.items() if limit in schema)
    return f"{TYPES[schema['type']] if 'type' in schema else 'section'} {limits}".strip()


def components() -> str:
    """Return the registered components by kind, with their options and defaults."""
    parts = []
    for kind, registry in (("objective", OBJECTIVES), ("network", NETWORKS), ("data set", DATASETS)):
        rows = []
        for name in registry.names():
            options = [f"`{option.name}: {_yaml(option.default)}`" for option in fields(registry[name])]
            rows.append((f"`{name}`", _summary(registry[name]), ", ".join(options) or "–"))
        parts.append(markdown((kind, "what it is", "options and their defaults"), rows))
    for kind, registry in (("init", INITS), ("sampler", SAMPLERS), ("labels", LABELS)):
        rows = [(f"`{name}`", _summary(registry[name])) for name in registry.names()]
        parts.append(markdown((kind, "what it is"), rows))
    return "\n".join(parts)


def _summary(component: type) -> str:
    return (component.__doc__ or "").splitlines()[0].replace("``", "`")


def _yaml(value: Any) -> str:
    """Return a default formatted as YAML."""
    names = {True: "true", False: "false", None: "null", "": '""'}
    plain = isinstance(value, bool | None) or value == ""
    return names[value] if plain else str(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    print(parameters(), components(), sep="\n")
