"""The options of ``lipcert finetune`` that say what is trained and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lipcert.cli.shared import SAMPLES

if TYPE_CHECKING:
    from lipcert.train.recipe import Recipe

_DATA = SAMPLES
_AIM = "What to train for"
_HOW = "How to train"

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
    Literal["auto", "none", "crop-flip"],
    typer.Option(help="auto: crops and flips of photographs.", rich_help_panel=_DATA),
]
Bound = Annotated[
    Literal["global", "local", "anchored", "dual"],
    typer.Option(
        help="The bound inside the loss: global, the product of norms, whose steps are the fastest; "
        "local, the published one; anchored and dual are tighter and take longer.",
        rich_help_panel=_AIM,
    ),
]
Loss = Annotated[
    Literal["gloro", "bcp", "margin", "emma", "annealed", "offset"],
    typer.Option(
        help="gloro: a class 'not certified'; bcp: cross-entropy of the worst logits; margin: "
        "a hinge on the certified margin; emma: rivals raised by at most what they need to "
        "overtake; annealed: cross-entropy of the worst logits that forgets samples with room; "
        "offset: for networks whose every layer is 1-Lipschitz.",
        rich_help_panel=_AIM,
    ),
]
Activation = Annotated[
    Literal["keep", "clipped", "maxmin-clipped"],
    typer.Option(
        help="clipped: ReLU and MaxMin get thresholds that are learned; maxmin-clipped: ReLU "
        "becomes clipped MaxMin, which costs a pretrained model its accuracy at the start.",
        rich_help_panel=_AIM,
    ),
]
Thresholds = Annotated[
    Literal["neuron", "channel"],
    typer.Option(help="One threshold a neuron, or a channel.", rich_help_panel=_AIM),
]
Percentile = Annotated[
    float,
    typer.Option(
        help="Of the training images' activations, where thresholds start.",
        rich_help_panel=_AIM,
    ),
]
Sparsity = Annotated[float, typer.Option(help="Weight of the sparsity loss.", rich_help_panel=_AIM)]
Kappa = Annotated[
    float,
    typer.Option(
        help="bcp, margin, annealed: the clean loss's weight after the ramp.", rich_help_panel=_AIM
    ),
]
Gap = Annotated[
    float, typer.Option(help="margin: the margin that is asked for.", rich_help_panel=_AIM)
]
Temperature = Annotated[
    Literal["fixed", "learned"],
    typer.Option(
        help="learned: the loss finds its own scale of the logits; the exported file has none.",
        rich_help_panel=_AIM,
    ),
]
Select = Annotated[
    str,
    typer.Option(
        help="Which epoch's weights are exported, by the validation: certified, clean, "
        "clean>=0.75 (the most certified with that accuracy) or certified>=0.5.",
        rich_help_panel=_AIM,
    ),
]
EpsFactor = Annotated[float, typer.Option(help="Train at this times eps.", rich_help_panel=_AIM)]
Epochs = Annotated[int, typer.Option(help="In all.", rich_help_panel=_HOW)]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Time of the training by the clock, in place of --epochs: as many epochs as fit, "
        "--warmup and --ramp in proportion. Certifying the result comes after it.",
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
Warmup = Annotated[float, typer.Option(help="Epochs at eps 0.", rich_help_panel=_HOW)]
Ramp = Annotated[
    float | None,
    typer.Option(
        help="Epochs in which eps rises and κ falls; half of all if not given.",
        rich_help_panel=_HOW,
    ),
]
BatchSize = Annotated[
    int, typer.Option(help="Images a step, over all processes.", rich_help_panel=_HOW)
]
Optimiser = Annotated[
    Literal["adam", "adamw"], typer.Option(rich_help_panel=_HOW, help="Which Adam.")
]
Rate = Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=_HOW)]
LastRate = Annotated[float, typer.Option(help="Learning rate at the end.", rich_help_panel=_HOW)]
RateSchedule = Annotated[
    Literal["exponential", "cosine"],
    typer.Option(help="exponential: constant at first.", rich_help_panel=_HOW),
]
WeightDecay = Annotated[float, typer.Option(help="Of all parameters.", rich_help_panel=_HOW)]
ClipNorm = Annotated[
    float, typer.Option(help="The largest norm of a gradient.", rich_help_panel=_HOW)
]
Ema = Annotated[
    float,
    typer.Option(
        help="Decay a step of the averaged weights, which are validated and exported; 0: none.",
        rich_help_panel=_HOW,
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        help="Of the layers of lip-patch in a step: bfloat16 takes half the time where the "
        "processor has it. Validation and the exported file are in float32.",
        rich_help_panel=_HOW,
    ),
]
PowerSteps = Annotated[
    int, typer.Option(help="Power iterations of each sample's norms.", rich_help_panel=_HOW)
]

# A recipe, once its radius and its images are known.
TrainingOptions = Callable[..., Any]


def training(
    bound: Bound = "local",
    loss: Loss = "gloro",
    activation: Activation = "clipped",
    thresholds: Thresholds = "neuron",
    percentile: Percentile = 99.5,
    sparsity: Sparsity = 0.01,
    kappa: Kappa = 0.0,
    gap: Gap = 1.0,
    temperature: Temperature = "fixed",
    select: Select = "certified",
    eps_factor: EpsFactor = 1.25,
    epochs: Epochs = 20,
    minutes: Minutes = None,
    patience: Patience = None,
    warmup: Warmup = 0.0,
    ramp: Ramp = None,
    batch_size: BatchSize = 256,
    optimiser: Optimiser = "adam",
    lr: Rate = 1e-3,
    lr_end: LastRate = 1e-5,
    lr_schedule: RateSchedule = "exponential",
    weight_decay: WeightDecay = 0.0,
    clip_norm: ClipNorm = 10.0,
    ema: Ema = 0.995,
    power_steps: PowerSteps = 2,
    precision: Precision = "float32",
    seed: Annotated[
        int,
        typer.Option(
            help="Of all that is random, but the coins of certificates.", rich_help_panel=_HOW
        ),
    ] = 0,
) -> TrainingOptions:
    """The group of options, see ``lipcert.cli.groups``."""

    def recipe(**chosen: Any) -> Recipe:
        from lipcert.train.recipe import Recipe
        from lipcert.train.selection import Selection

        return Recipe(
            eps_factor=eps_factor,
            bound=bound,
            loss=loss,
            activation=activation,
            thresholds=thresholds,
            percentile=percentile,
            epochs=epochs,
            warmup=warmup,
            ramp=max(0.0, epochs - warmup) / 2 if ramp is None else ramp,
            kappa=kappa,
            gap=gap,
            temperature=temperature,
            select=Selection.parse(select),
            patience=patience,
            minutes=minutes,
            sparsity=sparsity,
            batch_size=batch_size,
            optimiser=optimiser,
            rate=lr,
            last_rate=lr_end,
            rate_schedule=lr_schedule,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            power_steps=power_steps,
            ema=ema,
            precision=precision,
            seed=seed,
            **chosen,
        )

    return recipe
