"""The adapter that is tuned: with fresh weights, or those of another."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def with_adapter(
    network: PreTrainedModel, lora: LoraConfig, start: str | None, start_scale: float = 1.0
) -> PeftModel:
    """Put an adapter around the layers of a frozen model, for training.

    With a scale below 1 the weights begin between those of the frozen model and the tuned one
    (Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022). A frozen model copies
    from its prompt by nature, and so reads evidence; packed histories, in which no title stands
    twice, unteach that.

    Args:
        network: The frozen model.
        lora: Rank and layers of an adapter with fresh weights.
        start: Folder of the adapter to begin with, in the place of fresh weights.
        start_scale: What that adapter adds to the frozen weights is multiplied by this.
    """
    if start is None:
        fresh: PeftModel = get_peft_model(network, lora)
        return fresh.train()
    adapted = PeftModel.from_pretrained(network, start, is_trainable=True)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data *= start_scale
    return adapted.train()
