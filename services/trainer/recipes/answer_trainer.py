"""TRL's SFTTrainer with our own rows, and a loss that computes logits only where something is learnt."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional
from trl import SFTTrainer

from services.trainer.recipes.chat_rendering import IGNORED
from services.trainer.recipes.training import Measured

SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
"""Configs with one of these do more to the logits than one multiplication: their loss is left to TRL."""


class AnswerTrainer(Measured, SFTTrainer):  # type: ignore[misc]  # trl is not followed by mypy
    """On a processor, TRL's loss computes the logits of every position, its entropy among them: with a vocabulary of
    49,152 that is a third of a small model's work. Here only the answers' tokens get logits. Accelerators keep TRL's.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs or model is not self.model or not self._plain(inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        causal = model.get_base_model() if isinstance(model, PeftModel) else model
        labels = inputs["labels"][:, 1:]
        learnt = labels != IGNORED
        with self.accelerator.autocast():
            body = {key: value for key, value in inputs.items() if key != "labels"}
            hidden = causal.base_model(**body, use_cache=False).last_hidden_state[:, :-1]
            logits = causal.get_output_embeddings()(hidden[learnt])
        loss = functional.cross_entropy(logits.float(), labels[learnt], reduction="sum")
        count = learnt.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / torch.as_tensor(count).clamp(min=1)

    def _plain(self, inputs: dict[str, Any]) -> bool:
        config = self.model.config.get_text_config()
        scaled = any(getattr(config, name, None) not in (None, 1) for name in SCALED_LOGITS)
        return inputs["input_ids"].device.type == "cpu" and not scaled and not self.aux_loss_enabled

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: it would hold paths of this machine."""


def isolates(model: Any) -> bool:
    """Whether restarting positions keep this model's attention within a sample: a change in the first of two samples
    must not be seen by the second."""
    vocabulary = model.config.get_text_config().vocab_size
    first = torch.arange(8, device=model.device) % vocabulary
    second = torch.arange(8, 16, device=model.device) % vocabulary
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    training = model.training
    model.eval()
    with torch.no_grad():
        seen = [
            model(input_ids=torch.cat([before, second])[None], position_ids=positions, use_cache=False).logits[0, 8:]
            for before in (first, first.flip(0))
        ]
    model.train(training)
    return bool(torch.allclose(seen[0].float(), seen[1].float(), atol=1e-4, rtol=1e-4))
