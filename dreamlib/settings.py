"""The library's settings as immutable records: type, range, default and meaning of each."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dreamlib.errors import unknown

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """An immutable record that rejects unknown keys, suggesting the nearest match."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise unknown("key", key, sorted(cls.model_fields))
        return values


DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"  # valid values of compute.device


class ComputeParams(Strict):
    """Device, number format and parallelism; see ``Compute.resolve``."""

    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    """`auto`, `cpu`, `cuda` or one GPU, such as `cuda:1`."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    """Number format of activations, not of parameters; `auto` is bfloat16 on a GPU that has it, and on a CPU that has
    it if loops are compiled; else float32."""
    threads: Natural = 0
    """CPU threads, shared by the workers; 0 uses torch's number."""
    compile: bool = False
    """Let budgets compile their inner loops by torch.compile; needs a C++ compiler."""
    workers: Positive = 1
    """Processes that share a distillation's classes and an evaluation's networks."""


class NetworkParams(Strict):
    """A network's registered name and its options."""

    name: str = "convnet"
    """Matched network, and the evaluation network unless `evaluation.networks` lists others."""
    options: dict[str, Any] = {}
    """Options of the network."""

    @property
    def label(self) -> str:
        """Name and options as shown in tables.

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
    """The clustering whose representatives fill the initial canvases."""

    features: Literal["pixels", "random", "random_unnormalised", "trained"] = "random"
    """Feature space: `pixels`, an untrained network (`random`), the same on images that are not normalised, or a
    network trained for `epochs`."""
    pick: Literal["members", "released"] = "members"
    """Image per cluster: nearest of its members, or nearest of all as in DREAM's released code."""
    epochs: Rate = 1.0
    """Training before clustering with `features: trained`, in passes over the real images."""
    pool: Natural = 0
    """Training images per class that are clustered, drawn at random; 0 uses all."""
    max_iterations: Positive = 50
    """Maximum number of Lloyd steps of k-means."""


# DREAM's released code (``init: released``).
RELEASED_CLUSTERING = ClusteringParams(features="random_unnormalised", pick="released", max_iterations=100)


class DistillParams(Strict):
    """All settings of a distillation; DREAM adds its ``init`` and ``sampler`` to IDC."""

    objective: str = "gradient"
    """Quantity that is matched; see `dreamlib.matching.OBJECTIVES`."""
    options: dict[str, Any] = {}
    """Options of the objective."""
    init: str = "random"
    """Initialisation of the canvases; see `dreamlib.synthetic.initial.INITS`."""
    shrink: Literal["area", "nearest"] = "area"
    """How images are downscaled for a canvas: average or nearest pixel; not used with `decode: dct`."""
    factor: Positive = 2
    """A canvas holds factor² training images."""
    decode: Literal["single", "bound", "dct"] = "single"
    """Rule that decodes canvases: all alike, bounded per class (IDC), or from their strongest frequencies (FreD)."""
    sampler: str = "random"
    """Choice of the real images that are matched; see `dreamlib.sampling.real_batches.SAMPLERS`."""
    real_batch: Positive = 128
    """Real images per class in a matching step."""
    per_cluster: Positive = 1
    """Images taken from each cluster; divides `real_batch`."""
    interval: Positive = 10
    """Inner iterations between two clusterings."""
    pool: Natural = 0
    """Images per class clustered during distillation; a random subset if there are more; 0 uses all."""
    cluster_features: Literal["current", "random", "pixels"] = "current"
    """Feature space: current network (DREAM), an untrained network for the whole run, or pixels."""
    synthetic_batch: Positive = 128
    """Decoded images per class in a matching step; a random subset if there are more."""
    outer_iterations: Natural = 2000
    """Number of fresh networks."""
    inner_iterations: Positive = 100
    """Matching steps per fresh network."""
    image_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the canvases."""
    image_lr: Rate = 5e-3
    """Step size on pixels (normalised pixels with `bounded: false`), or on coefficients with `decode: dct`."""
    image_lr_rule: Literal["fixed", "scaled"] = "fixed"
    """`scaled` multiplies `image_lr` by ipc/10 · (side/32)² (28 in place of 32 on MNIST; IDC, DREAM)."""
    image_lr_schedule: Literal["constant", "cosine", "cosine_to_tenth", "halved"] = "constant"
    """Constant, cosine to zero or to a tenth (FRePo), or halved after every tenth of the run (DD)."""
    bounded: bool = True
    """Canvases hold pixels in [0, 1], clamped after each outer iteration (IDC, DREAM); else normalised pixels, never
    clamped (DC and its successors)."""
    statistics: Literal["idc", "dc"] = "idc"
    """Mean and deviation of the normalisation: IDC's or DC's."""
    image_momentum: Momentum = 0.5
    """Momentum of SGD on the canvases."""
    image_update: Literal["per_class", "once_equivalent", "batched"] = "batched"
    """A step per class with one momentum buffer for all (the released code), a single step without momentum that
    equals K of them up to momentumᴷ, or a single step with momentum."""
    learned_lr: Rate = 1e-5
    """Step size for what is learned in addition to pixels."""
    augmentation: str = "color_crop_cutout"
    """Operations on real and synthetic images in matching, joined by `_`."""
    augmentation_mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "idc"
    """How operations are combined, per batch or per image; see `dreamlib.training.augment.Augmentation`."""
    train_on: Literal["real", "synthetic", "none"] = "real"
    """Images that the network trains on between matching steps."""
    network_steps: Natural = 4
    """Training steps of the network after each matching step."""
    network_batch: Positive = 128
    """Images in a training step of the network."""
    network_lr: Rate = 0.01
    """Learning rate of the network's training."""
    network_momentum: Momentum = 0.9
    """Momentum of the network's training."""
    network_weight_decay: NonNegative = 5e-4
    """Weight decay of the network's training."""
    network_augmentation: str = "color_crop"
    """Augmentation in the network's training."""
    cutmix: Fraction = 0.5
    """Probability of CutMix in the network's training."""
    pretrain_epochs: NonNegative = 0.0
    """Passes over the real images, or a fraction of one, before a network's first matching step."""
    labels: str = "hard"
    """Source of the labels; see `dreamlib.matching.label_sources.LABELS`."""
    whitening: Literal["none", "zca"] = "none"
    """`zca` whitens images by the statistics of the training images (MTT); needs `factor: 1` and `bounded: false`."""
    teacher_epochs: Positive = 20
    """Passes that train the teacher, with `labels: assigned`."""
    parallel_classes: Positive = 1
    """Maximum number of classes clustered and matched in parallel on a CPU; the number used divides the number of
    threads. Faster, with more memory and different rounding. No effect if the objective has one loss for the whole set,
    or with `image_update: per_class`."""
    checkpoint_every_s: Rate = 30.0
    """Seconds between two checkpoints."""
    snapshots: Natural = 4
    """Canvases stored during distillation for accuracy curves, at iterations that double up to the last."""

    @model_validator(mode="after")
    def _consistent(self) -> "DistillParams":
        if self.sampler in ("representative", "released") and self.real_batch % self.per_cluster:
            divisor = next(m for m in range(self.per_cluster, 0, -1) if self.real_batch % m == 0)
            raise ValueError(
                f"per_cluster = {self.per_cluster} must divide real_batch = {self.real_batch}; try {divisor}"
            )
        if self.whitening != "none" and self.factor != 1:
            raise ValueError(
                f"whitening = {self.whitening} applies to whole images, and factor = {self.factor} stores several on "
                "a canvas: set factor: 1, or whitening: none"
            )
        if self.whitening != "none" and self.bounded:
            raise ValueError(f"whitening = {self.whitening} makes pixels unbounded: set bounded: false")
        if self.decode == "dct" and not self.bounded:
            raise ValueError("decode = dct decodes to pixels in [0, 1]: set bounded: true, or decode: single")
        if self.image_optimizer == "adam" and self.image_update != "batched":
            raise ValueError(f"image_update = {self.image_update} is defined for sgd only; use batched with adam")
        if self.sampler != "random" and 0 < self.pool < self.real_batch:
            raise ValueError(
                f"pool = {self.pool} is smaller than real_batch = {self.real_batch}; raise pool, or set it to 0 to use "
                "all images"
            )
        return self


_SIAMESE = {"augmentation": "flip_color_crop_scale_rotate_cutout", "augmentation_mode": "dsa", "cutmix": 0.0}
_DC = {"epochs": 301, "batch": 256, "augmentation": "none", "cutmix": 0.0, "decay": "tenth"}
_DSA = {"epochs": 1001, "batch": 256, "decay": "tenth", **_SIAMESE}

# Keys of an evaluation that do not describe how a network is trained; a protocol does not change them.
PROTOCOL_INDEPENDENT = ("networks", "repeats", "parallel_networks", "views", "curve_networks", "curve_epochs")

# Differences of each published evaluation from IDC's, whose values are the defaults of EvaluationParams. The loops of
# DC and its successors include the last epoch number, hence 301 and 1001. 'dd' trains as the unrolled objective did.
# 'ridge' is specific to this project, for sets of the objective 'ridge': it fits the last layer as that objective does.
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
    """The evaluation of a set: how networks are trained on it, and how many.

    >>> EvaluationParams(protocol="dc").epochs, EvaluationParams(protocol="dc", epochs=30).epochs
    (301, 30)
    """

    protocol: str = "idc"
    """Evaluation protocol whose values are the defaults of the keys below."""
    networks: NetworkList = []
    """Networks trained on the set; the accuracy of the first is reported for the set. An empty list means `network`."""
    repeats: Positive = 3
    """Fresh networks of each kind."""
    parallel_networks: Positive = 1
    """Networks trained side by side on a CPU, each on its share of the threads: faster, with different rounding."""
    views: list[Literal["plain", "hard_labels", "idc"]] = []
    """Further evaluations: without augmentation and CutMix (`plain`), with hard labels in place of soft ones
    (`hard_labels`), under IDC's protocol (`idc`)."""
    decay: Literal["idc_steps", "tenth"] = "idc_steps"
    """Learning rate: × 0.2 at 2/3 and 5/6 of the epochs (IDC), or × 0.1 and momentum reset to zero after half of them
    (DC, DSA, DM, MTT)."""
    epochs: Positive = 1000
    """Passes over the set."""
    batch: Positive = 64
    """Images in a step."""
    lr: Rate = 0.01
    """Learning rate."""
    momentum: Momentum = 0.9
    """Momentum."""
    weight_decay: NonNegative = 5e-4
    """Weight decay."""
    augmentation: str = "flip_color_crop_scale_rotate"
    """Operations, joined by `_`."""
    augmentation_mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "idc"
    """How operations are combined, per batch or per image; see `dreamlib.training.augment.Augmentation`."""
    cutmix: Fraction = 0.5
    """Probability of CutMix for a batch."""
    clean_share: Fraction = 0.0
    """Final fraction of the epochs, without CutMix and with flips as the only augmentation."""
    last_layer: Literal["trained", "ridge"] = "trained"
    """`ridge` refits the last layer after training, by ridge regression on the set's features; the accuracy before is
    reported too."""
    last_layer_penalty: Rate = 0.03
    """Penalty of the regression of `last_layer: ridge`."""
    learned_lr: bool = False
    """Train with the step size learned with the set, if it has one (MTT)."""
    replay: bool = False
    """Train with the unrolled steps and the learned rates (DD, RaT-BPTT)."""
    curve_networks: Natural = 1
    """Networks for accuracy by iteration, on the validation images; 0 draws no curve."""
    curve_epochs: Positive = 100
    """Epochs of these networks."""

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
    """The expert trajectories that MTT matches; the defaults are MTT's. See ``dreamlib.matching.experts``."""

    images: Natural = 0
    """Training images per class; 0 uses all."""
    count: Positive = 100
    """Number of trajectories."""
    epochs: Positive = 50
    """Epochs of each; the weights are stored after each."""
    batch: Positive = 256
    """Images in a step."""
    lr: Rate = 0.01
    """Learning rate."""
    momentum: Momentum = 0.0
    """Momentum."""
    weight_decay: NonNegative = 0.0
    """Weight decay."""
    augmentation: str = "flip_color_crop_scale_rotate_cutout"
    """Operations, joined by `_`."""
    mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "dsa"
    """How operations are combined, per batch or per image; see `dreamlib.training.augment.Augmentation`."""


def digest(*parts: Any) -> str:
    """Return a short stable hash of JSON-serialisable or pydantic values, for file names and provenance.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
