"""The number format for one model: the processor's, unless the model is too narrow to gain from it."""

from __future__ import annotations

import torch

from services.trainer.recipes.crew import Crew
from services.trainer.recipes.precision import ChosenPrecision, choose_precision
from shared.contracts.recipes import Precision

NARROWEST_FOR_BF16 = 128
"""On a processor with AMX a step of 1024 tokens took (one core, 4 layers, fp32 / bf16) 0.045 / 0.09 s at a width of 64,
0.25 / 0.21 at 128, 0.49 / 0.31 at 256, 1.24 / 0.64 at 512. Below, conversions cost more than they save."""


def precision_for(wanted: Precision, hidden_size: int, crew: Crew) -> ChosenPrecision:
    """`choose_precision`, but `auto` keeps fp32 for narrow models on a processor, and where a rank has nothing else.

    Raises PeersLost.
    """
    chosen = choose_precision(wanted)
    with crew.noticing_loss():
        all_have_it = crew.least(int(chosen.bf16))
    if not all_have_it and chosen.bf16:
        return ChosenPrecision("float32", "fp32: another rank's machine has no units for bf16")
    if wanted != "auto" or not chosen.bf16 or torch.cuda.is_available() or hidden_size >= NARROWEST_FOR_BF16:
        return chosen
    reason = f"fp32: with a width of {hidden_size} the conversions to bf16 would cost more than they save"
    return ChosenPrecision("float32", reason)
