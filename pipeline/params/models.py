"""params.yaml as records, and what a method, an ipc and a budget come to."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from dreamlib.errors import ParameterError, unknown
from dreamlib.settings import (
    RELEASED_CLUSTERING,
    ClusteringParams,
    ComputeParams,
    DistillParams,
    EvaluationParams,
    ExpertParams,
    Natural,
    NetworkParams,
    Positive,
    Strict,
)
from pipeline.params.layers import at_ipc, borrowed, build, mapping, merged, not_above


class DataParams(Strict):
    """Where the data lies, and a data set's own options. How many images are held out is a budget's to say."""

    directory: str = "data"
    options: dict[str, Any] = Field(default_factory=dict)


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


class BudgetSections(Strict):
    """What a budget, or its block for a data set, may set; the keys inside are checked where they are used.

    ``validation_per_class`` training images of each class are held out, on which settings are chosen; 0 trains on all
    images and draws no curves.
    """

    validation_per_class: Natural | None = None
    clustering: dict[str, Any] = Field(default_factory=dict)
    distillation: dict[str, Any] = Field(default_factory=dict)
    experts: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)


class DatasetSections(BudgetSections):
    """A budget's overrides for a data set.

    ``by_factor`` holds sections for a factor and those above it, up to the next entry.
    """

    by_factor: dict[int, BudgetSections] = Field(default_factory=dict)


class Budget(BudgetSections):
    """A named budget: how much work each stage does, on which network, and overrides for single data sets.

    ``network`` is matched, and evaluates where the evaluation names no others.
    """

    network: NetworkParams = NetworkParams()
    by_dataset: dict[str, DatasetSections] = Field(default_factory=dict)


class Params(Strict):
    """All of params.yaml."""

    dataset: str
    ipc: Annotated[list[Positive], Field(min_length=1)]
    methods: Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]], Field(min_length=1)]  # in file names
    seeds: Annotated[list[Natural], Field(min_length=1)]
    budget: str
    compute: ComputeParams = ComputeParams()
    data: DataParams = DataParams()
    method: dict[str, dict[str, Any]]
    budgets: dict[str, Budget]

    def distillation(self, method: str, ipc: int) -> DistillParams:
        """Return what ``method`` does at ``ipc`` under the chosen budget.

        Later layers win: the budget's ``distillation``, the budget's block for the data set, the method's own keys, the
        method's block named after the budget. Within a block, entries under ``by_factor`` and ``by_dataset`` follow its
        own keys. A value given as a mapping from ipc to value means: the entry of the largest ipc not above this one.
        """
        where = f"method {method}, budget {self.budget}"
        how = build(DistillParams, self._layers("distillation", method, self._factor(method, ipc)), ipc, where)
        return how if how.init != "released" else how.model_copy(update={"shrink": "nearest"})

    def evaluation(self, method: str, ipc: int) -> EvaluationParams:
        """Return the protocol that ``method`` is evaluated by at ``ipc``; layers as in ``distillation``."""
        where = f"evaluation of {method}, budget {self.budget}"
        return build(EvaluationParams, self._layers("evaluation", method, self._factor(method, ipc)), ipc, where)

    def borrowed(self, section: str, method: str, ipc: int) -> dict[str, int]:
        """Return which settings of 'distillation' or 'evaluation' have no entry for ``ipc`` → the ipc of the one used.

        Settings with one value for every ipc are not among them.
        """
        return borrowed(merged(self._layers(section, method, self._factor(method, ipc))), ipc)

    def _factor(self, method: str, ipc: int) -> int:
        """Return the factor that chooses among ``by_factor`` sections, as set outside of them."""
        values = merged(self._layers("distillation", method))
        factor = values.get("factor", DistillParams.model_fields["factor"].default)
        return at_ipc("factor", factor, ipc, f"method {method}, budget {self.budget}")

    def clustering(self, method: str | None = None) -> ClusteringParams:
        """Return how the clustering stage works, for all methods or for one that sets ``clustering`` of its own."""
        where = f"clustering{f' of {method}' if method else ''}, budget {self.budget}"
        how = build(ClusteringParams, self._layers("clustering", method), None, where)
        init = merged(self._layers("distillation", method)).get("init") if method else None
        if isinstance(init, Mapping):
            raise ParameterError(f"params.yaml ({where}): init is one for every ipc; give one value, not {dict(init)}")
        return RELEASED_CLUSTERING if init == "released" else how

    def experts(self) -> ExpertParams:
        """Return the expert trajectories under the chosen budget."""
        return build(ExpertParams, self._layers("experts"), None, f"experts, budget {self.budget}")

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

    @property
    def _budget(self) -> Budget:
        return self._of(self.budgets, "budget", self.budget)

    def _layers(self, section: str, method: str | None = None, factor: int | None = None) -> list[dict[str, Any]]:
        """The layers of one section, those that win last."""
        layers = list(self._budget_layers(self._budget, section, factor))
        if method:
            layers += self._method_layers(self._of(self.method, "method", method), section, factor, f"method.{method}")
        return layers

    def _budget_layers(self, budget: Budget, section: str, factor: int | None) -> Iterator[dict[str, Any]]:
        special = budget.by_dataset.get(self.dataset, DatasetSections())
        for block in (budget, special, not_above(special.by_factor, factor)):
            if block is not None:
                yield getattr(block, section)

    def _method_layers(self, block: Any, section: str, factor: int | None, path: str) -> Iterator[dict[str, Any]]:
        """The layers a method's block has for a section: its keys are those of ``distillation``, but for sections."""
        block = mapping(block, path)
        nested = {"clustering", "evaluation", "by_factor", "by_dataset", *self.budgets}
        if section == "distillation":
            yield {key: value for key, value in block.items() if key not in nested}
        elif section in block:
            yield dict(mapping(block[section], f"{path}.{section}"))
        by_factor = mapping(block.get("by_factor", {}), f"{path}.by_factor")
        if not all(isinstance(key, int) for key in by_factor):
            raise ParameterError(
                f"params.yaml: {path}.by_factor must map whole numbers to sections, got {dict(by_factor)}"
            )
        if (chosen := not_above(by_factor, factor)) is not None:
            yield from self._method_layers(chosen, section, factor, f"{path}.by_factor")
        by_dataset = mapping(block.get("by_dataset", {}), f"{path}.by_dataset")
        for key, under in ((self.dataset, by_dataset), (self.budget, block)):
            if key in under:
                yield from self._method_layers(under[key] or {}, section, factor, f"{path}.{key}")

    @staticmethod
    def _of(table: Mapping[str, Any], kind: str, name: str) -> Any:
        if name not in table:
            raise ParameterError(str(unknown(kind, name, sorted(table))))
        return table[name]
