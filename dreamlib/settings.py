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
    """Device, number format and parallelism; see ``Compute.resolve``.

    device: 'auto', 'cpu', 'cuda' or 'cuda:<number>'.
    precision: format of activations; 'auto' is bfloat16 on a GPU that has it, and on a CPU that has it if loops are
        compiled, else float32.
    threads: CPU threads, shared by the workers; 0 leaves torch's default.
    compile: compile the inner loops with torch.compile.
    workers: processes that share the classes of a distillation and the networks of an evaluation.
    """

    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    threads: Natural = 0
    compile: bool = False
    workers: Positive = 1


class NetworkParams(Strict):
    """A network's registered name and its options."""

    name: str = "convnet"
    options: dict[str, Any] = {}

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
    """The clustering whose representatives fill the initial canvases.

    features: space of the clustering: 'pixels', an untrained network's features ('random'), the same of images that are
        not normalised ('random_unnormalised'), or a trained network's ('trained').
    pick: 'members' or 'released'; see ``dreamlib.sampling.representatives.cluster_class``.
    epochs: passes over the real images, or a fraction of one, to train the network of 'trained'.
    pool: random images per class that are clustered; 0 takes all.
    max_iterations: maximum number of Lloyd iterations of k-means.
    """

    features: Literal["pixels", "random", "random_unnormalised", "trained"] = "random"
    pick: Literal["members", "released"] = "members"
    epochs: Rate = 1.0
    pool: Natural = 0
    max_iterations: Positive = 50


# DREAM's released code (``init: released``).
RELEASED_CLUSTERING = ClusteringParams(features="random_unnormalised", pick="released", max_iterations=100)


class DistillParams(Strict):
    """All settings of a distillation; DREAM adds its ``init`` and ``sampler`` to IDC.

    What is matched:
        objective, options: registered name of the objective, and its options.

    The canvases:
        init: registered name of the initialisation; see ``dreamlib.synthetic.initial``.
        factor: images along each side of a canvas.
        decode: 'single', 'bound' (see ``dreamlib.synthetic.decode.formation``), or 'dct', which stores the factor²
            images of a canvas as their strongest frequencies (FreD, ``dreamlib.synthetic.frequency``).
        shrink: how real images are reduced to 1/factor: 'area' or 'nearest'; not used by 'dct'.
        bounded: canvases hold pixels in [0, 1] and are clamped after each outer iteration (IDC, DREAM). Otherwise they
            hold normalised pixels and are never clamped (DC, DSA, DM, MTT, DD, FRePo).
        statistics: 'dc' normalises by DC's mean and standard deviation where they differ from IDC's.
        whitening: 'zca' whitens all images by the statistics of the training images (MTT,
            ``dreamlib.data.whitening``).

    The real images:
        sampler: registered name of the sampler; see ``dreamlib.sampling``.
        real_batch: images per class and inner iteration.
        per_cluster: images chosen from each cluster; must divide ``real_batch``.
        interval: inner iterations between two selections of real images.
        pool: random images per class to select from; 0 takes all.
        cluster_features: space of the clustering: features of the 'current' network (DREAM), their 'spatial_mean',
            features of one untrained network for the whole run ('random'), or 'pixels'.
        warm_start: start k-means from the previous clustering's centres while the network is the same.

    The images' update:
        synthetic_batch: decoded images per class and inner iteration.
        outer_iterations, inner_iterations: number of networks, and of image updates with each.
        image_optimizer, image_momentum: 'sgd' with momentum, or 'adam'.
        image_lr: step size, in the units of the canvases: pixels, normalised pixels, or orthonormal coefficients.
        image_lr_rule: 'scaled' multiplies ``image_lr`` by ipc/10 · (side/32)², for MNIST by ipc/10 · (side/28)² (IDC,
            DREAM).
        image_lr_schedule: 'cosine' decays the step size to zero at the last iteration, 'cosine_to_tenth' to a tenth
            (FRePo); 'halved' halves it after each tenth of the run (DD).
        image_update: 'per_class' updates after each class, with one momentum buffer for all (the released code).
            'once_equivalent' updates once an iteration, without momentum and at the step size that equals 'per_class'
            up to momentum^K for an objective with a loss for each of K classes. 'batched' updates once, with momentum.
        learned_lr: step size of everything an objective learns besides pixels.
        augmentation, augmentation_mode: augmentation of real and synthetic images alike; see
            ``dreamlib.training.augment.Augmentation``.

    The matched network:
        pretrain_epochs: passes over the real images, or a fraction of one, before a network is first matched.
        train_on: images it trains on between two inner iterations: 'real', 'synthetic' or 'none'.
        network_steps, network_batch, network_lr, network_momentum, network_weight_decay: SGD of that training.
        network_augmentation, cutmix: augmentation of that training, and probability of CutMix.

    The labels:
        labels: registered name of the label source; see ``dreamlib.matching.label_sources``.
        teacher_epochs: passes over the real images to train the teacher of 'assigned'.

    The run:
        parallel_classes: maximum number of classes that are clustered and matched at the same time on a CPU, along with
            the training on real images; as many run at a time as divide the threads evenly. Faster, with more memory
            and different rounding. No effect for an objective without a loss per class, or with ``image_update``
            'per_class'.
        checkpoint_every_s: seconds between two checkpoints.
        snapshots: sets to store for accuracy curves besides the initial one, at iterations that double up to the last.
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
    network_weight_decay: NonNegative = 5e-4
    network_augmentation: str = "color_crop"
    cutmix: Fraction = 0.5
    pretrain_epochs: NonNegative = 0.0
    labels: str = "hard"
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
                f"pool = {self.pool} is smaller than real_batch = {self.real_batch}; raise it, or 0 for all"
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

    protocol: a name from ``PROTOCOLS``, which replaces some of the defaults; the defaults are IDC's.
    networks: architectures to train; the first one's accuracy is reported for the set. Empty: the matched network.
    repeats: new networks of each architecture.
    parallel_networks: networks that train side by side on a CPU, each on its share of the threads. Faster, with
        different rounding.
    views: additional evaluations of the same set; see ``dreamlib.evaluation.apply_view``.
    epochs, batch, lr, momentum, weight_decay: SGD on the decoded images.
    decay: 'idc_steps' multiplies the rate by 0.2 at 2/3 and at 5/6 of the epochs (IDC); 'tenth' multiplies it by 0.1
        after half of them and resets momentum (DC, DSA, DM, MTT).
    augmentation, augmentation_mode: see ``dreamlib.training.augment.Augmentation``.
    cutmix: probability of CutMix for a batch.
    clean_share: fraction of the epochs, the last ones, without CutMix and with mirroring as the only augmentation.
    last_layer: 'ridge' refits the last layer, after training, by ridge regression on the set's features, as the
        objective 'ridge' assumes; the accuracy before the refit is reported too.
    last_layer_penalty: penalty of that regression; see ``dreamlib.training.features.fit_last_layer``.
    learned_lr: train at the step size learned with the set, if it has one (MTT).
    replay: train by the steps and learned rates of the unrolled objective (DD, RaT-BPTT), in place of the protocol's
        epochs, batches, augmentation and rates.
    curve_networks, curve_epochs: the shorter protocol of accuracy curves over iterations, on the validation split.

    >>> EvaluationParams(protocol="dc").epochs, EvaluationParams(protocol="dc", epochs=30).epochs
    (301, 30)
    """

    protocol: str = "idc"
    networks: NetworkList = []
    repeats: Positive = 3
    parallel_networks: Positive = 1
    views: list[Literal["plain", "hard_labels", "idc"]] = []
    decay: Literal["idc_steps", "tenth"] = "idc_steps"
    epochs: Positive = 1000
    batch: Positive = 64
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 5e-4
    augmentation: str = "flip_color_crop_scale_rotate"
    augmentation_mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "idc"
    cutmix: Fraction = 0.5
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
    """The expert trajectories that MTT matches; the defaults are MTT's. See ``dreamlib.matching.experts``.

    images: training images per class; 0 takes all.
    count: number of experts.
    epochs: passes over the images; the weights are stored after each.
    batch, lr, momentum, weight_decay: SGD.
    augmentation, mode: see ``dreamlib.training.augment.Augmentation``.
    """

    images: Natural = 0
    count: Positive = 100
    epochs: Positive = 50
    batch: Positive = 256
    lr: Rate = 0.01
    momentum: Momentum = 0.0
    weight_decay: NonNegative = 0.0
    augmentation: str = "flip_color_crop_scale_rotate_cutout"
    mode: Literal["idc", "dsa", "dc", "idc_per_image"] = "dsa"


def digest(*parts: Any) -> str:
    """Return a short stable hash of JSON-serialisable or pydantic values, for file names and provenance.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
