"""The model that serving benchmarks answer with: a Llama of three million parameters, made on the spot."""

from __future__ import annotations

from pathlib import Path


def make_model(folder: Path) -> Path:
    """A random Llama with a tokenizer: small, so that what stands around the model shows beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.tiny_model import make_tiny_llama

    make_tiny_llama(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
