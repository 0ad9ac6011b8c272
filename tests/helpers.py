"""What several test files use: letters, a key, prompts, a language model that takes notes."""

from __future__ import annotations

from collections import Counter

import pytest

from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.tree import Tree
from rpp.prompts.compose import Prompt

# peft 0.21 reads an attribute that transformers 5 has renamed
PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LETTERS = tuple("ABCDEFGHIJ")

KEY = "sk-planted-4f9Qz81Xw"


def tree_of(*sequences):
    """The prompt tree of some token sequences."""
    tree = Tree()
    for sequence in sequences:
        tree.add(sequence)
    return tree


def prompts_for(episodes, answer="titles"):
    texts = ["\n".join([f"user {e.user}", *(i.title for i in e.candidates)]) for e in episodes]
    return [Prompt(text, (), answer) for text in texts]


class Recorder(ScriptedLanguageModel):
    """A script that remembers what it was asked."""

    def __init__(self, reply=lambda prompt: f"reply to {prompt}", name="scripted"):
        super().__init__(reply, scorer=lambda p, text: -len(p) - len(text) / 100, name=name)
        self.asked = Counter()
        self.batches = []

    def generate(self, prompts):
        self.asked.update(prompts)
        self.batches.append(list(prompts))
        return super().generate(prompts)

    def score(self, prompts, continuations, response_prefixes=None):
        self.batches.append([list(row) for row in continuations])
        return super().score(prompts, continuations, response_prefixes)
