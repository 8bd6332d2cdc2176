"""The settings of the library as records: every knob typed, ranged, with its default, and explained."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dreamlib._engine.registry import unknown


class ParameterError(ValueError):
    """params.yaml (or a stage's coordinate) asks for something that cannot be done; the message says what can."""


Positive = Annotated[int, Field(ge=1)]


Natural = Annotated[int, Field(ge=0)]


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Momentum = Annotated[float, Field(ge=0, lt=1)]


Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A section that refuses keys it does not know and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"  # what compute.device may be


class ComputeParams(Strict):
    """Where and how precisely to compute; see ``Compute.resolve``.

    ``workers`` processes share the classes of a distillation and the networks of an evaluation
    (``dreamlib._engine.ranks``); ``threads`` are then shared too.
    """

    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    threads: Natural = 0
    compile: bool = False
    workers: Positive = 1


class NetworkParams(Strict):
    """A registered network and its options."""

    name: str = "convnet"
    options: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """As tables show it.

        >>> NetworkParams(name="convnet", options={"norm": "batch"}).label
        'convnet (norm batch)'
        """
        return self.name + (f" ({', '.join(f'{k} {v}' for k, v in self.options.items())})" if self.options else "")


# A network without options may be written as its name.
NetworkList = Annotated[
    list[Annotated[NetworkParams, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]],
    BeforeValidator(lambda v: v if isinstance(v, list) else [v]),
]


class ClusteringParams(Strict):
    """How the canvases' representatives are found; ``pool`` bounds how many random images of a class enter (0: all).

    ``features`` 'trained' are those of a network trained on the real images for ``epochs`` passes, or a part of one, as
    the distillation's networks are. ``RELEASED_CLUSTERING`` is DREAM's released code (``init: released``).
    """

    features: Literal["pixels", "random", "random_unnormalised", "trained"] = "random"
    pick: Literal["members", "released"] = "members"
    epochs: Rate = 1.0
    pool: Natural = 0
    max_iterations: Positive = 50


RELEASED_CLUSTERING = ClusteringParams(features="random_unnormalised", pick="released", max_iterations=100)


class DistillParams(Strict):
    """One distillation, whole: what is matched, from where, against which images, for how long.

    DREAM and IDC differ in ``init`` and ``sampler`` alone. ``image_lr`` is multiplied by ipc/10 · (side/32)² when
    ``image_lr_rule`` is 'scaled' (side/28 for MNIST; IDC and DREAM), used as it is when 'fixed'. Canvases hold pixels
    in [0, 1] and are clamped after each outer iteration when ``bounded`` (IDC, DREAM); otherwise they hold normalised
    pixels that are never clamped, and ``image_lr`` is a step in those units (DC, DSA, DM, MTT, DD, FRePo).
    ``statistics`` 'dc' normalises by DC's mean and standard deviation where they differ from IDC's. ``image_update``
    says when pixels step: 'per_class', after every class on one shared momentum buffer (the released code);
    'once_equivalent', once an iteration with the plain step that equals it to momentum^K where an objective has a loss
    for each of K classes; 'batched', once with momentum. ``learned_lr`` is the step size of whatever an objective
    learns besides pixels. ``cluster_features`` is the space real batches are chosen in: the 'current' network's
    features (DREAM), the same averaged over space ('spatial_mean'), those of one untrained network kept for the run
    ('random'), or 'pixels'; ``warm_start`` goes on from the last clustering's centres. ``decode`` 'dct' keeps factor²
    images a canvas as their strongest frequencies (FreD; see ``dreamlib.synthetic.frequency``): ``image_lr`` is then
    the step size on orthonormal coefficients, and ``shrink`` plays no part. ``image_lr_schedule`` 'cosine' lets the
    step size on pixels fall to zero at the last iteration, 'cosine_to_tenth' to a tenth (FRePo), 'halved' halves it
    after every tenth of the run (DD). ``pretrain_epochs`` passes over the real images, or a part of one, train each
    network before its first matching. ``whitening`` 'zca' is MTT's: real images whitened by the statistics of the
    training images, evaluation on test images whitened alike (``dreamlib.data.whitening``). On a CPU, up to
    ``parallel_classes`` classes, a number that divides the threads, are clustered and matched side by side, and a
    network that trains on real images does so beside the matching: less time, more memory, another rounding. That needs
    an objective with a loss for each class, and no ``image_update`` 'per_class'.
    """

    objective: str = "gradient"
    options: dict[str, Any] = {}
    init: str = "random"
    shrink: Literal["area", "nearest"] = "area"
    factor: Positive = 2
    decode: Literal["single", "bound", "dct"] = "single"
    sampler: str = "random"
    real_batch: Positive = 128
    per_cluster: Positive = 1
    interval: Positive = 10
    pool: Natural = 0
    cluster_iterations: Positive = 10
    cluster_start: Literal["random", "k-means++"] = "random"
    cluster_features: Literal["current", "spatial_mean", "random", "pixels"] = "current"
    warm_start: bool = False
    synthetic_batch: Positive = 128
    outer_iterations: Natural = 2000
    inner_iterations: Positive = 100
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    image_lr: Rate = 5e-3
    image_lr_rule: Literal["fixed", "scaled"] = "fixed"
    image_lr_schedule: Literal["constant", "cosine", "cosine_to_tenth", "halved"] = "constant"
    bounded: bool = True
    statistics: Literal["idc", "dc"] = "idc"
    image_momentum: Momentum = 0.5
    image_update: Literal["per_class", "once_equivalent", "batched"] = "batched"
    learned_lr: Rate = 1e-5
    augmentation: str = "color_crop_cutout"
    augmentation_mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "idc"
    train_on: Literal["real", "synthetic", "none"] = "real"
    network_steps: Natural = 4
    network_batch: Positive = 128
    network_lr: Rate = 0.01
    network_momentum: Momentum = 0.9
    network_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    network_augmentation: str = "color_crop"
    cutmix: Fraction = 0.5
    pretrain_epochs: Annotated[float, Field(ge=0)] = 0.0
    labels: Literal["hard", "assigned"] = "hard"
    temperature: Rate = 1.0
    whitening: Literal["none", "zca"] = "none"
    teacher_epochs: Positive = 20
    parallel_classes: Positive = 1
    checkpoint_every_s: Rate = 30.0
    snapshots: Natural = 4

    @model_validator(mode="after")
    def _consistent(self) -> "DistillParams":
        if self.sampler in ("representative", "released") and self.real_batch % self.per_cluster:
            raise ValueError(f"per_cluster = {self.per_cluster} must divide real_batch = {self.real_batch}")
        if self.whitening != "none" and self.factor != 1:
            raise ValueError(
                f"whitening = {self.whitening} is of whole images, and factor = {self.factor} lays several on a "
                "canvas: set factor: 1, or whitening: none"
            )
        if self.whitening != "none" and self.bounded:
            raise ValueError(f"whitening = {self.whitening} leaves pixels without bounds: set bounded: false")
        if self.decode == "dct" and not self.bounded:
            raise ValueError("decode = dct keeps pixels in [0, 1]: set bounded: true, or decode: single")
        if self.image_optimizer == "adam" and self.image_update != "batched":
            raise ValueError(f"image_update = {self.image_update} is defined for sgd only; use batched with adam")
        if self.sampler != "random" and 0 < self.pool < self.real_batch:
            raise ValueError(
                f"pool = {self.pool} is smaller than real_batch = {self.real_batch}; raise it, or 0 for all"
            )
        return self


_SIAMESE = {"augmentation": "flip_color_crop_scale_rotate_cutout", "augmentation_mode": "dsa", "cutmix": 0.0}


_DC = {"epochs": 301, "batch": 256, "augmentation": "none", "cutmix": 0.0, "decay": "tenth"}


_DSA = {"epochs": 1001, "batch": 256, "decay": "tenth", **_SIAMESE}


# Keys of an evaluation that do not describe how a network is trained: they hold whatever the protocol is.
OF_EVERY_PROTOCOL = ("networks", "repeats", "parallel_networks", "views", "curve_networks", "curve_epochs")


# What each published evaluation sets apart from IDC's, whose values are the defaults of EvaluationParams. The loops of
# DC and its successors count to ``epochs`` inclusively, hence 301 and 1001. 'dd' trains as the unrolled objective did.
# 'ridge' is this project's: the last layer is fitted as the objective 'ridge' fits it, for which the best sets are
# made.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "idc": {},
    "dc": _DC,
    "dsa": _DSA,
    "dm": _DSA,
    "mtt": {**_DSA, "learned_lr": True},
    "dd": {"replay": True},
    "ridge": {"clean_share": 0.25, "last_layer": "ridge"},
}


class EvaluationParams(Strict):
    """The protocol that turns a set into an accuracy; the defaults are IDC's, ``protocol`` names another's.

    ``repeats`` fresh networks of each of ``networks`` are trained per set; none listed means the matched network, and
    the first listed is the one whose accuracy stands for the set. ``decay``: 'idc_steps' is × 0.2 at 2/3 and 5/6 of the
    epochs (IDC), 'tenth' × 0.1 after half of them with momentum anew (DC, DSA, DM, MTT), 'none' a constant rate.
    ``replay`` trains as the set was unrolled, by its own steps and learned rates (DD, RaT-BPTT): epochs, batches,
    augmentation and rates of the protocol then play no part. ``label_smoothing`` is the share of every label that is
    spread over all classes; the last ``clean_share`` of the epochs, a share too, go without CutMix and have mirror
    images as their only augmentation. ``last_layer``: 'trained' as all others, or 'ridge', then fitted anew by ridge
    regression on the set's features with ``last_layer_penalty``, as the objective 'ridge' assumes; the accuracy before
    is kept beside it. ``views`` asks the same set again: 'plain' without augmentation, 'idc' by IDC's protocol
    untouched, 'hard_labels' without the soft labels it stores and without smoothing. ``curve_epochs`` is the shorter
    protocol behind accuracy-against-iterations curves, on the validation split. On a CPU, up to ``parallel_networks``
    networks train side by side, each on its share of the threads: less time, and another rounding.

    >>> EvaluationParams(protocol="dc").epochs, EvaluationParams(protocol="dc", epochs=30).epochs
    (301, 30)
    """

    protocol: str = "idc"
    networks: NetworkList = []
    repeats: Positive = 3
    parallel_networks: Positive = 1
    views: list[Literal["plain", "hard_labels", "idc"]] = []
    decay: Literal["idc_steps", "tenth", "none"] = "idc_steps"
    epochs: Positive = 1000
    batch: Positive = 64
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    augmentation: str = "flip_color_crop_scale_rotate"
    augmentation_mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "idc"
    cutmix: Fraction = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clean_share: Fraction = 0.0
    last_layer: Literal["trained", "ridge"] = "trained"
    last_layer_penalty: Rate = 0.03
    learned_lr: bool = False
    replay: bool = False
    curve_networks: Natural = 1
    curve_epochs: Positive = 100

    @model_validator(mode="before")
    @classmethod
    def _with_protocol(cls, values: Any) -> Any:
        name = values.get("protocol", "idc")
        if not isinstance(name, str):
            raise ValueError(f"protocol must be one name, got {name!r}; choose from {', '.join(sorted(PROTOCOLS))}")
        if name not in PROTOCOLS:
            raise ValueError(str(unknown("evaluation protocol", name, sorted(PROTOCOLS))))
        return {**PROTOCOLS[name], **values}


class ExpertParams(Strict):
    """The trajectories MTT follows; the defaults are its own. See ``dreamlib.matching.experts.ExpertSettings``.

    ``images`` bounds the training images a class that the experts see (0: all).
    """

    images: Natural = 0
    count: Positive = 100
    epochs: Positive = 50
    batch: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    augmentation: str = "flip_color_crop_scale_rotate_cutout"
    mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "dsa"


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-able or pydantic values, for file names and provenance.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
