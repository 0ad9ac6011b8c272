"""Titles, and language models made on the spot with random weights."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ADJECTIVES = (
    "Red", "Silent", "Golden", "Broken", "Hidden", "Last", "Cold", "Burning", "Lost", "Secret",
    "Wild", "Iron", "Crystal", "Empty", "Distant", "Savage", "Gentle", "Crooked", "Hollow", "Blue",
)  # fmt: skip
NOUNS = (
    "Harbour", "River", "Garden", "Letter", "Mountain", "Bridge", "Winter", "Engine", "Station",
    "Mirror", "Island", "Orchard",
)  # fmt: skip
TITLES = tuple(f"{adjective} {noun}" for noun, adjective in product(NOUNS, ADJECTIVES))
"""240 titles; none is part of another."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level_tokenizer(texts: list[str], special: list[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer trained on a few texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def save_llm(
    folder: Path, *, chat_template: str | None = CHAT_TEMPLATE, seed: int = 0, width: int = 32
) -> Path:
    """Save a randomly initialised Llama of 2 layers and a tokenizer of 400 tokens."""
    special = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(
            [f"{k}. {title}\n" for k, title in enumerate(TITLES)], special, 400
        ),
        pad_token="<pad>",
        eos_token="<|end|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.3,  # far from uniform, so that mistakes show
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        )
    network.save_pretrained(folder)
    return folder
