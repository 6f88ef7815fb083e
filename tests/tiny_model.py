"""A Llama of under a million parameters with its tokenizer and chat template, and LoRA adapters for it.

Real files of the real formats, made in a second from the standard library's own text: tests need no download.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, LAYERS, HEADS, CONTEXT = 64, 2, 2, 512
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_llama(folder: Path, *, seed: int = 0, hidden: int = HIDDEN) -> Path:
    """A random Llama in `folder`, as `save_pretrained` writes it. Same seed, same model."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # far from uniform, so that an adapter changes what is said
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_tiny_lora(
    folder: Path, *, rank: int = 8, seed: int = 1, targets: Sequence[str] = ("q_proj", "v_proj")
) -> Path:
    """A random LoRA adapter for the tiny Llama, as peft writes it. It changes the answers: nothing in it is zero."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        for target in targets:
            module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{module}.lora_A.weight"] = torch.randn(rank, HIDDEN, generator=random)
            weights[f"{module}.lora_B.weight"] = torch.randn(HIDDEN, rank, generator=random)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    text = [topics[name] for name in sorted(topics)[:20]]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
