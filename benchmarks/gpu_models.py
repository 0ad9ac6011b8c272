"""Language models of a given shape with random weights, and users to rank for: nothing to fetch.

The weights are made on the device. The tokenizer is a byte-level BPE trained on the prompts' own
sentences and titles and padded to the model's vocabulary, so a title has about as many tokens as
in a trained model's tokenizer. Random weights never end a reply: every reply has the full length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.compose import Prompt, compose
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Ranker
from rpp.types import Episode, Item

PATTERNS = load_patterns("conf/patterns/movies.yaml")
N_HISTORY = 10
GRID = [
    (0, 0, reasoning, form)
    for reasoning in range(len(PATTERNS.reasoning))
    for form in range(len(PATTERNS.format))
]
"""Every reasoning and format sentence: the prompts of one user in the grid."""

WORDS = (
    "Red Silent Golden Broken Hidden Last Cold Burning Lost Secret Wild Iron Crystal Empty Distant",
    "Harbour River Garden Letter Mountain Bridge Winter Engine Station Mirror Island Orchard",
)
CATALOGUE = [
    Item(index, f"{adjective} {noun} ({year})")
    for index, (adjective, noun, year) in enumerate(
        product(WORDS[0].split(), WORDS[1].split(), range(1984, 2000))
    )
]
N_TOKENS = 1500
"""Vocabulary of the tokenizer before it is padded."""


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama.

    Attributes:
        name: Name in the tables.
        hidden: Width.
        intermediate: Width of the feed-forward maps.
        n_layers: Layers.
        n_heads: Attention heads; as many of keys and values.
        vocabulary: Tokens.
    """

    name: str
    hidden: int
    intermediate: int
    n_layers: int
    n_heads: int
    vocabulary: int

    @property
    def config(self) -> LlamaConfig:
        """Configuration of the network."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )

    @property
    def n_weights(self) -> int:
        """Weights of the layers, which every token is multiplied with."""
        maps = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.n_layers * maps


LLAMA2_7B = Shape("LLaMA-2-7B", 4096, 11008, 32, 32, 32000)
SMALL = Shape("small", 64, 128, 2, 4, 2048)


def make_network(
    shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PreTrainedModel:
    """A frozen network with random weights, made on the device."""
    torch.manual_seed(seed)
    with torch.device(device):
        network: PreTrainedModel = AutoModelForCausalLM.from_config(shape.config, dtype=dtype)
    frozen: PreTrainedModel = network.eval().requires_grad_(False)
    return frozen


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save a byte-level tokenizer of this many tokens."""
    sentences = Path("conf/patterns/movies.yaml").read_text(encoding="utf-8").splitlines()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        [*sentences, *(f"1. {item.title}\n" for item in CATALOGUE)],
        trainers.BpeTrainer(
            vocab_size=N_TOKENS,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    content = json.loads(trained.to_str())
    known = content["model"]["vocab"]
    known |= {f"filler{number}": number for number in range(len(known), vocabulary)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def save_files(shape: Shape, folder: Path) -> None:
    """Save configuration and tokenizer, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shape.config.save_pretrained(folder)
    save_tokenizer(folder, shape.vocabulary)


def make_llm(
    folder: Path, device: torch.device, network: PreTrainedModel | None = None, **options: Any
) -> HuggingFaceLanguageModel:
    """The project's language model of a folder, with this network in place of saved weights."""
    llm = HuggingFaceLanguageModel(
        str(folder), **{"template": "alpaca", "device": str(device)} | options
    )
    if network is not None:
        llm.network = network
    return llm


def make_episodes(n: int, seed: int = 0) -> list[Episode]:
    """Users with random histories, ten candidates each."""
    made = []
    for user in range(n):
        rng = np.random.default_rng([seed, user])
        items = [CATALOGUE[k] for k in rng.choice(len(CATALOGUE), N_HISTORY + 10, replace=False)]
        target = int(rng.integers(10))
        made.append(Episode(user, tuple(items[10:]), tuple(items[:10]), target))
    return made


def make_prompts(
    ranker: Ranker, n: int, *, grid: bool = False
) -> tuple[list[Prompt], list[Episode]]:
    """Prompts as a ranker asks them, and their users.

    Args:
        ranker: Its decoding decides what a prompt shows.
        n: Users.
        grid: All prompts of the grid for every user, instead of one.
    """
    actions = GRID if grid else [(0, 0, 1, 0)]
    episodes = [episode for episode in make_episodes(n) for _ in actions]
    lengths = [N_HISTORY] * len(episodes)
    return compose(episodes, PATTERNS, actions * n, lengths, ranker.display), episodes
