"""The options of ``lipcert finetune`` that say what is trained and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lipcert.cli.shared import SAMPLES

if TYPE_CHECKING:
    from lipcert.options import Epsilon
    from lipcert.train.presets import Wanted

_DATA = SAMPLES
_AIM = "What to train for"
_HOW = "How to train"

Preset = Annotated[
    Literal["quick", "standard", "published"],
    typer.Option(
        help="Chooses every option of training that is not given. quick: 3 minutes, for "
        "photographs 10; standard: 15, for photographs 60; published: bound, loss and epochs of "
        "the paper, which take days for photographs.",
        rich_help_panel=_AIM,
    ),
]
TrainData = Annotated[
    str | None,
    typer.Option(
        help="Where the training images are, if not the split train of --data: anything that "
        "--data takes.",
        rich_help_panel=_DATA,
    ),
]
TrainLimit = Annotated[
    int | None,
    typer.Option(help="Use only so many training images, at random.", rich_help_panel=_DATA),
]
Validation = Annotated[
    float,
    typer.Option(
        help="Share of the training images held out, which picks the weights.",
        rich_help_panel=_DATA,
    ),
]
Augment = Annotated[
    Literal["auto", "none", "crop", "flip", "crop-flip"],
    typer.Option(
        help="crop: moved by up to 4 pixels; flip: mirrored or not; auto: both of photographs, "
        "flip alone for lip-patch, none of anything else.",
        rich_help_panel=_DATA,
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        help="How much the loss of a sample counts: balanced, in inverse proportion to the images "
        "of its class; or one number a class, such as 1,1,4.",
        rich_help_panel=_DATA,
    ),
]
Check = Annotated[
    int | None,
    typer.Option(
        help="Certify so many validation images by auto, effort fast, after every epoch, beside "
        "the training bound's estimate; the time comes on top of --minutes.",
        rich_help_panel=_HOW,
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        help="One training for each weight of the clean loss, such as 0,0.25,0.5, in a folder "
        "each; a table of clean and certified accuracy, and sweep.json.",
        rich_help_panel=_HOW,
    ),
]
Bound = Annotated[
    Literal["global", "local", "anchored", "dual", "tube"] | None,
    typer.Option(
        help="The bound inside the loss: global, the product of norms, whose steps are the "
        "fastest; local, the published one; anchored and dual are tighter and take longer; tube is "
        "what certifies deep networks, and takes 40 times as long as a step without a bound.",
        rich_help_panel=_AIM,
    ),
]
Loss = Annotated[
    Literal["gloro", "bcp", "margin", "emma", "annealed", "offset"] | None,
    typer.Option(
        help="gloro: a class 'not certified'; bcp: cross-entropy of the worst logits; margin: "
        "a hinge on the certified margin; emma: rivals raised by at most what they need to "
        "overtake; annealed: cross-entropy of the worst logits that forgets samples with room; "
        "offset: for networks whose every layer is 1-Lipschitz.",
        rich_help_panel=_AIM,
    ),
]
Activation = Annotated[
    Literal["keep", "maxmin", "clipped", "maxmin-clipped"] | None,
    typer.Option(
        help="maxmin: ReLU becomes MaxMin, which certifies better, and costs a pretrained model "
        "its accuracy at the start; clipped: ReLU and MaxMin get thresholds that are learned; "
        "maxmin-clipped: both.",
        rich_help_panel=_AIM,
    ),
]
Thresholds = Annotated[
    Literal["neuron", "channel"] | None,
    typer.Option(help="One threshold a neuron, or a channel.", rich_help_panel=_AIM),
]
Percentile = Annotated[
    float | None,
    typer.Option(
        help="Of the training images' activations, where thresholds start.",
        rich_help_panel=_AIM,
    ),
]
Sparsity = Annotated[
    float | None, typer.Option(help="Weight of the sparsity loss.", rich_help_panel=_AIM)
]
Kappa = Annotated[
    float | None,
    typer.Option(
        help="bcp, margin, annealed: the clean loss's weight after the ramp.", rich_help_panel=_AIM
    ),
]
Gap = Annotated[
    float | None, typer.Option(help="margin: the margin that is asked for.", rich_help_panel=_AIM)
]
Temperature = Annotated[
    Literal["fixed", "learned"] | None,
    typer.Option(
        help="learned: the loss finds its own scale of the logits; the exported file has none.",
        rich_help_panel=_AIM,
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        help="Which epoch's weights are exported, by the validation: certified, clean, "
        "clean>=0.75 (the most certified with that accuracy) or certified>=0.5.",
        rich_help_panel=_AIM,
    ),
]
Distil = Annotated[
    float | None,
    typer.Option(
        help="Weight of keeping to the logits of the model that came in, which falls to 0 as eps "
        "rises.",
        rich_help_panel=_AIM,
    ),
]
DistilFeatures = Annotated[
    float | None,
    typer.Option(
        help="Weight of keeping to the features of the model that came in, the direction of what "
        "its last layer is given, which falls to 0 as eps rises.",
        rich_help_panel=_AIM,
    ),
]
EpsFactor = Annotated[
    float | None, typer.Option(help="Train at this times eps.", rich_help_panel=_AIM)
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="How often every image is seen; with --minutes, at most.", rich_help_panel=_HOW
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Time of the training by the clock: as many epochs as fit, --warmup and --ramp in "
        "proportion. Certifying the result comes after it.",
        rich_help_panel=_HOW,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop where so many epochs after the ramp bring no better weights.",
        rich_help_panel=_HOW,
    ),
]
Warmup = Annotated[float | None, typer.Option(help="Epochs at eps 0.", rich_help_panel=_HOW)]
Ramp = Annotated[
    float | None,
    typer.Option(
        help="Epochs in which eps rises and κ falls; half of all if not given.",
        rich_help_panel=_HOW,
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Images a step, over all processes.", rich_help_panel=_HOW)
]
Optimiser = Annotated[
    Literal["adam", "adamw"] | None, typer.Option(rich_help_panel=_HOW, help="Which Adam.")
]
Rate = Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=_HOW)]
LastRate = Annotated[
    float | None, typer.Option(help="Learning rate at the end.", rich_help_panel=_HOW)
]
RateSchedule = Annotated[
    Literal["exponential", "cosine"] | None,
    typer.Option(help="exponential: constant at first.", rich_help_panel=_HOW),
]
WeightDecay = Annotated[float | None, typer.Option(help="Of all parameters.", rich_help_panel=_HOW)]
ClipNorm = Annotated[
    float | None, typer.Option(help="The largest norm of a gradient.", rich_help_panel=_HOW)
]
Ema = Annotated[
    float | None,
    typer.Option(
        help="Decay a step of the averaged weights, which are validated and exported; 0: none.",
        rich_help_panel=_HOW,
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        help="Of the layers of lip-patch in a step: bfloat16 takes half the time where the "
        "processor has it. Validation and the exported file are in float32.",
        rich_help_panel=_HOW,
    ),
]
PowerSteps = Annotated[
    int | None, typer.Option(help="Power iterations of each sample's norms.", rich_help_panel=_HOW)
]

# The options of training, once the radius and what is said of the images are known.
TrainingOptions = Callable[..., Any]


def training(
    preset: Preset = "standard",
    minutes: Minutes = None,
    epochs: Epochs = None,
    bound: Bound = None,
    loss: Loss = None,
    activation: Activation = None,
    thresholds: Thresholds = None,
    percentile: Percentile = None,
    sparsity: Sparsity = None,
    kappa: Kappa = None,
    gap: Gap = None,
    temperature: Temperature = None,
    select: Select = None,
    distil: Distil = None,
    distil_features: DistilFeatures = None,
    eps_factor: EpsFactor = None,
    patience: Patience = None,
    warmup: Warmup = None,
    ramp: Ramp = None,
    batch_size: BatchSize = None,
    optimiser: Optimiser = None,
    lr: Rate = None,
    lr_end: LastRate = None,
    lr_schedule: RateSchedule = None,
    weight_decay: WeightDecay = None,
    clip_norm: ClipNorm = None,
    ema: Ema = None,
    power_steps: PowerSteps = None,
    precision: Precision = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Of all that is random, but the coins of certificates.", rich_help_panel=_HOW
        ),
    ] = 0,
) -> TrainingOptions:
    """The group of options, see ``lipcert.cli.groups``."""

    def wanted(eps: Epsilon, **chosen: Any) -> Wanted:
        from lipcert.train.presets import Wanted
        from lipcert.train.selection import Selection

        given = {
            "minutes": minutes,
            "epochs": epochs,
            "bound": bound,
            "loss": loss,
            "activation": activation,
            "thresholds": thresholds,
            "percentile": percentile,
            "sparsity": sparsity,
            "kappa": kappa,
            "gap": gap,
            "temperature": temperature,
            "select": None if select is None else Selection.parse(select),
            "distil": distil,
            "distil_features": distil_features,
            "eps_factor": eps_factor,
            "patience": patience,
            "warmup": warmup,
            "ramp": ramp,
            "batch_size": batch_size,
            "optimiser": optimiser,
            "rate": lr,
            "last_rate": lr_end,
            "rate_schedule": lr_schedule,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,
            "ema": ema,
            "power_steps": power_steps,
            "precision": precision,
            "seed": seed,
        }
        made = Wanted(eps, preset, given | chosen)
        made.check()
        return made

    return wanted
