"""params.yaml as records, and the settings that result for a method, ipc and budget."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from dreamlib.errors import unknown
from dreamlib.settings import (
    RELEASED_CLUSTERING,
    ClusteringParams,
    ComputeParams,
    DistillParams,
    EvaluationParams,
    ExpertParams,
    Natural,
    NetworkParams,
    Strict,
)
from pipeline.params.errors import KeyPath, SettingError, mapping
from pipeline.params.layers import Layer, applicable_factor, at_ipc, build, inherited_ipcs, merge, origin

# The sections of a budget. A method's entry holds the keys of `distillation` directly, and two sections.
SECTIONS = {
    "clustering": ClusteringParams,
    "distillation": DistillParams,
    "evaluation": EvaluationParams,
    "experts": ExpertParams,
}
METHOD_SECTIONS = ("clustering", "evaluation")
OVERRIDES = ("by_factor", "by_dataset")


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", value):
        raise ValueError(
            "the name is used in files and stages: begin with a letter and use letters, digits, _ and - only"
        )
    return value


def _once(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("a value is listed twice, and DVC would run it twice: remove one")
    return values


Name = Annotated[str, BeforeValidator(_name)]
OnceEach = (Field(min_length=1), AfterValidator(_once))


class DataParams(Strict):
    """The folder of the data, and a data set's own options. The budget sets how many images are held out."""

    directory: str = "data"
    """Folder of the data."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the data set."""


class BudgetSections(Strict):
    """The sections of a budget, or of its block for a data set."""

    validation_per_class: Natural | None = None
    """Training images per class held out for choosing settings; 0 holds out none and draws no curves."""
    clustering: dict[str, Any] = Field(default_factory=dict)
    """Section, see `clustering`."""
    distillation: dict[str, Any] = Field(default_factory=dict)
    """Section, see `distillation`."""
    experts: dict[str, Any] = Field(default_factory=dict)
    """Section, see `experts`."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Section, see `evaluation`."""


class DatasetSections(BudgetSections):
    """A budget's overrides for a data set."""

    by_factor: dict[int, BudgetSections] = Field(default_factory=dict)
    """Sections by factor; an entry applies to its factor and larger ones, up to the next entry."""


class Budget(BudgetSections):
    """A named budget: how much work each stage does, on which network, and overrides for single data sets."""

    compile: bool = True
    """Compile the inner loops, if `compute.compile` allows it; worth it from hundreds of iterations."""
    network: NetworkParams = NetworkParams()
    """Section, see `network`."""
    by_dataset: dict[str, DatasetSections] = Field(default_factory=dict)
    """The same sections for single data sets, each with `by_factor` for a factor and larger ones."""


class Params(Strict):
    """params.yaml merged with methods.yaml.

    Numbers of the DVC matrix are strict: DVC names runs after the value as written, such as 10.0 or true.
    """

    dataset: str
    """Data set to distil."""
    ipc: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], *OnceEach]
    """Stored images per class; every value is a run."""
    methods: Annotated[list[Name], *OnceEach]
    """Entries of `method` to run."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], *OnceEach]
    """Seeds; each is a whole run with its own clusters, canvases, batches and networks."""
    budget: str
    """Entry of `budgets` to use."""
    compute: ComputeParams = ComputeParams()
    """Section, see `compute`."""
    data: DataParams = DataParams()
    """Section, see `data`."""
    method: dict[Name, dict[str, Any]]
    """Methods by name: keys of `distillation`, sections `clustering` and `evaluation`, overrides."""
    budgets: dict[Name, Budget]
    """Budgets by name."""

    def distillation(self, method: str, ipc: int) -> DistillParams:
        """Return the distillation settings of ``method`` at ``ipc`` under the chosen budget.

        Later layers win: the budget's ``distillation``, the budget's block for the data set, the method's own keys, the
        method's block named after the budget. Within a block, entries under ``by_factor`` and ``by_dataset`` follow its
        own keys. For a mapping from ipc to value, the entry of the largest ipc not above ``ipc`` is used.
        """
        where, layers = f"method {method}, budget {self.budget}", self._layers
        settings = build(DistillParams, layers("distillation", method, self.value("factor", ipc, method)), ipc, where)
        return settings if settings.init != "released" else settings.model_copy(update={"shrink": "nearest"})

    def evaluation(self, method: str, ipc: int) -> EvaluationParams:
        """Return the protocol under which ``method`` is evaluated at ``ipc``; layers as in ``distillation``."""
        where, layers = f"evaluation of {method}, budget {self.budget}", self._layers
        return build(EvaluationParams, layers("evaluation", method, self.value("factor", ipc, method)), ipc, where)

    def value(self, key: str, ipc: int, method: str | None = None) -> Any:
        """Return one value of ``distillation``, by default the budget's, as set outside of ``by_factor`` sections."""
        layers = [(keys, {key: values[key]}) for keys, values in self._layers("distillation", method) if key in values]
        return getattr(build(DistillParams, layers, ipc, f"budget {self.budget}"), key)

    def inherited_ipcs(self, section: str, method: str, ipc: int) -> dict[str, int]:
        """Map each setting of 'distillation' or 'evaluation' whose value comes from a lower ipc's entry to that ipc.

        Settings with one value for every ipc are not included.
        """
        return inherited_ipcs(merge(self._layers(section, method, self.value("factor", ipc, method))), ipc)

    def clustering(self, method: str | None = None) -> ClusteringParams:
        """Return the clustering settings shared by all methods, or those of a method that may override them."""
        where = f"clustering of {method}, budget {self.budget}"
        settings = build(ClusteringParams, self._layers("clustering", method), None, where)
        layers = self._layers("distillation", method) if method else []
        init = at_ipc(merge(layers).get("init"), None, origin(layers, "init"))
        return RELEASED_CLUSTERING if init == "released" else settings

    def experts(self) -> ExpertParams:
        """Return the settings of the expert trajectories under the chosen budget."""
        return build(ExpertParams, self._layers("experts"), None, f"experts, budget {self.budget}")

    @property
    def compile(self) -> bool:
        """Whether inner loops are compiled under the chosen budget."""
        return self.compute.compile and self._budget.compile

    @property
    def network(self) -> NetworkParams:
        """The matched network under the chosen budget."""
        return self._budget.network

    @property
    def validation_per_class(self) -> int:
        """Training images of each class held out under the chosen budget and data set; 0 for none."""
        budget = self._budget
        special = budget.by_dataset.get(self.dataset, DatasetSections()).validation_per_class
        return (budget.validation_per_class or 0) if special is None else special

    def with_network(self, network: NetworkParams) -> "Params":
        """Return the parameters with another network under the chosen budget."""
        budget = self._budget.model_copy(update={"network": network})
        return self.model_copy(update={"budgets": {**self.budgets, self.budget: budget}})

    @property
    def _budget(self) -> Budget:
        return self._of(self.budgets, "budget", self.budget)

    def _layers(self, section: str, method: str | None = None, factor: int | None = None) -> list[Layer]:
        """Return the layers of one section; later ones win."""
        budget = self._budget.model_dump(exclude_unset=True)
        sections = list(self._sections(budget, ("budgets", self.budget), factor))
        if method:
            sections += self._sections(self._of(self.method, "methods", method), ("method", method), factor)
        return [layer for kind, layer in sections if kind == section]

    def every_section(self) -> Iterator[tuple[str, Layer]]:
        """Yield the kind and the layer of each section of budgets and methods, whether used or not."""
        for name, budget in self.budgets.items():
            yield from self._sections(budget.model_dump(exclude_unset=True), ("budgets", name), all_blocks=True)
        for name, block in self.method.items():
            yield from self._sections(block, ("method", name), all_blocks=True)

    def _sections(
        self, block: Any, keys: KeyPath, factor: int | None = None, all_blocks: bool = False
    ) -> Iterator[tuple[str, Layer]]:
        """Yield a block's sections, each after those it overrides: the active ones at ``factor``, or all."""
        block = mapping(block, keys)
        by_factor, by_dataset = (mapping(block.get(key, {}), (*keys, key)) for key in OVERRIDES)
        if not all(isinstance(key, int) for key in by_factor):
            raise SettingError(((*keys, "by_factor"), f"factors are integers, got {list(by_factor)}"))
        by_budget = {name: block[name] for name in self.budgets if name in block}
        kinds: Sequence[str] = tuple(SECTIONS)
        if keys[0] == "method":
            kinds, others = METHOD_SECTIONS, {*METHOD_SECTIONS, *OVERRIDES, *by_budget}
            yield "distillation", (keys, {key: value for key, value in block.items() if key not in others})
        for kind in kinds:
            yield kind, ((*keys, kind), mapping(block.get(kind, {}), (*keys, kind)))
        for above, table, active in (
            ((*keys, "by_factor"), by_factor, applicable_factor(by_factor, factor)),
            ((*keys, "by_dataset"), by_dataset, [self.dataset]),
            (keys, by_budget, [self.budget]),
        ):
            for name in table if all_blocks else {*table} & {*active}:
                yield from self._sections(table[name] or {}, (*above, name), factor, all_blocks)

    @staticmethod
    def _of(table: Mapping[str, Any], key: str, name: str) -> Any:
        if name not in table:
            raise SettingError(((key,), str(unknown(key.removesuffix("s"), name, sorted(table)))))
        return table[name]
