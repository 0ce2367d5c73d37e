"""Published figures, and what the model says to them.

Supervised ResNet-50: NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/resnet50v1.5, README, "Training
performance" (container 21.03), images/s; batch sizes and layouts from its configs.yml. Self-supervised runs: their
authors' READMEs (facebookresearch/swav, facebookresearch/moco).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import recipes
from ..config import Config
from .chips import EFFICIENCY, Precision, chip
from .losses import loss_work
from .network import networks
from .predict import Plan, Prediction, Site
from .roofline import Machine, roofline

IMAGENET = 1_281_167
"""Training images."""


@dataclass(frozen=True)
class SupervisedRow:
    """images/s of supervised ResNet-50 as NVIDIA states them."""

    gpu: str
    kind: str
    """AMP, TF32 or FP32."""
    gpus: int
    images_per_second: float
    batch: int
    """Images a GPU that pass together."""

    @property
    def precision(self) -> Precision:
        return "bf16" if self.kind == "AMP" else "fp32"

    @property
    def channels_last(self) -> bool:
        """Only mixed precision ran in that layout."""
        return self.kind == "AMP"


SUPERVISED = (
    SupervisedRow("a100-80", "AMP", 1, 2470, 256),
    SupervisedRow("a100-80", "AMP", 8, 16_621, 256),
    SupervisedRow("a100-80", "TF32", 1, 938, 256),
    SupervisedRow("a100-80", "TF32", 8, 7248, 256),
    SupervisedRow("v100-32", "AMP", 1, 1156, 256),
    SupervisedRow("v100-32", "AMP", 8, 8056, 256),
    SupervisedRow("v100-32", "FP32", 1, 356, 112),
    SupervisedRow("v100-32", "FP32", 8, 2766, 112),
    SupervisedRow("v100-16", "AMP", 1, 1200, 256),
    SupervisedRow("v100-16", "AMP", 8, 8322, 256),
    SupervisedRow("v100-16", "FP32", 1, 367, 112),
    SupervisedRow("v100-16", "FP32", 8, 2855, 112),
)
CALIBRATION = SUPERVISED[0]
"""The one row that `EFFICIENCY` is fitted on."""


@dataclass(frozen=True)
class SelfSupervisedRow:
    """A published run: `seconds` for `epochs` passes over ImageNet."""

    method: str
    recipe: str
    gpu: str
    gpus: int
    seconds: float
    epochs: int
    precision: Precision
    said: str
    """The figure in its source's words."""

    @property
    def images_per_second(self) -> float:
        return IMAGENET * self.epochs / self.seconds


SELF_SUPERVISED = (
    SelfSupervisedRow("swav", "imagenet-800ep", "v100-32", 64, 220, 1, "bf16", "3 min 40 s an epoch"),
    SelfSupervisedRow("swav", "imagenet-200ep-batch256", "v100-32", 4, 3130, 1, "bf16", "52 min 10 s an epoch"),
    SelfSupervisedRow("mocov2", "imagenet-200ep", "v100-32", 8, 53 * 3600, 200, "fp32", "200 epochs in 53 h"),
    SelfSupervisedRow("mocov2", "imagenet-200ep", "v100-32", 8, 53 * 3600, 200, "bf16", "200 epochs in 53 h"),
)
"""SwAV ran in mixed precision. MoCo's code has none: its second row holds the same run to what tensor cores can do."""


@dataclass(frozen=True)
class Compared:
    """A published figure of supervised training beside the prediction."""

    row: SupervisedRow
    predicted: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.row.images_per_second


@dataclass(frozen=True)
class Implied:
    """What a published self-supervised run made of its GPUs, as shares."""

    row: SelfSupervisedRow
    multiple: float
    """FLOPs of an image over those of supervised training."""
    of_supervised: float
    """images/s · multiple / supervised images/s, published for one GPU of the same kind: design's roofline fraction."""
    of_roofline: float
    """Seconds that the step's operations take at best over those that it took: the model's efficiency."""
    of_peak: float
    """FLOP/s over the chip's tensor rate."""


def predict(row: SupervisedRow, efficiency: float = EFFICIENCY) -> Prediction:
    """The row's run."""
    result = _plan(row, efficiency).on(row.gpus)
    assert isinstance(result, Prediction)
    return result


def _plan(row: SupervisedRow, efficiency: float) -> Plan:
    config = recipes.supervised()
    config = replace(config, train=replace(config.train, batch_size=row.batch * row.gpus, norm_ranks=1))
    it = chip(row.gpu)
    machine = Machine(it, row.precision, efficiency, row.channels_last)
    return Plan(config, Site(machine, it.intra, it.inter), images=IMAGENET)


def compare(efficiency: float = EFFICIENCY) -> list[Compared]:
    return [Compared(row, predict(row, efficiency).images_per_second) for row in SUPERVISED]


def implied() -> list[Implied]:
    return [_implied(row) for row in SELF_SUPERVISED]


def _implied(row: SelfSupervisedRow) -> Implied:
    config: Config = recipes.get(row.method, row.recipe)
    machine = Machine(chip(row.gpu), row.precision)
    walked = networks(config, images=IMAGENET, precision=row.precision)
    supervised = networks(recipes.supervised(), images=IMAGENET, precision=row.precision)
    kind = "AMP" if row.precision == "bf16" else "FP32"
    (alone,) = (r for r in SUPERVISED if (r.gpu, r.kind, r.gpus) == (row.gpu, kind, 1))
    share, rate = config.train.batch_size // row.gpus, row.images_per_second / row.gpus
    multiple = walked.flops / supervised.flops
    best = roofline((*walked.forward, *walked.backward, *walked.targets), share, machine)
    best += roofline([loss_work(config, row.gpus)], 1, machine)
    return Implied(
        row,
        multiple,
        rate * multiple / alone.images_per_second,
        best * rate / share,
        rate * walked.flops / machine.chip.rate(row.precision),
    )
