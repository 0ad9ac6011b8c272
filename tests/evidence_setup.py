"""What the tests of evidence share: patterns with it, fixed orders, recommenders that cheat."""

from __future__ import annotations

import hashlib
from zlib import crc32

import torch
from patterns_setup import MINIMAL

from rpp.baselines.base import Recommender, candidate_items
from rpp.llms.base import LanguageModel

EVIDENCE = """
evidence:
  sources:
    first: {sentence: "They saw: {titles}.", class_path: evidence_setup.AtRandom}
    second: {sentence: "Near: {titles}!", class_path: evidence_setup.AtRandom, init_args: {seed: 1}}
  options: [{}, {first: 1}, {second: 2}, {first: 1, second: 1}]
"""
WITH_EVIDENCE = MINIMAL + EVIDENCE


class Fixed:
    """Orders that a test has written down."""

    fingerprint = "fixed"

    def __init__(self, **orders):
        self.by_source = orders
        self.asked = []

    def orders(self, source, episodes):
        self.asked.append((source, len(episodes)))
        return [self.by_source[source]] * len(episodes)

    def z_scores(self, source, episodes):
        return [{k: 2.5 - n for n, k in enumerate(self.by_source[source])}] * len(episodes)

    def similarities(self, episode):
        return [float(-k) for k, _ in enumerate(episode.history)]


class _Scripted(Recommender):
    """Learns nothing; a subclass scores one episode."""

    n_scored = 0

    def learn(self, data):
        def scorer(episodes):
            type(self).n_scored += len(episodes)
            return torch.tensor([self.of(episode) for episode in episodes], dtype=torch.double)

        return scorer


class AtRandom(_Scripted):
    """A number that user and item decide."""

    name = "at random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def of(self, episode):
        keys = [f"{self.seed} {episode.user} {item.index}" for item in episode.candidates]
        return [int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) for key in keys]


class AllAlike(_Scripted):
    """One score for all: ties decide."""

    name = "all alike"

    def of(self, episode):
        return [0.0] * len(episode.candidates)


class IsTheTarget(_Scripted):
    """Looks the target up."""

    name = "the target"

    def of(self, episode):
        return [float(k == episode.target) for k in range(len(episode.candidates))]


class ByPlace(_Scripted):
    """Looks at what an episode holds besides history and items: order shown and target's place."""

    name = "by place"

    def of(self, episode):
        n = len(episode.candidates)
        return [float(k == episode.withheld) + (n - k) / (2 * n) for k in range(n)]


class Slow(Recommender):
    """Counts how often it has learnt anew."""

    name = "slow"
    n_made = 0

    def learn(self, data):
        def make():
            type(self).n_made += 1
            return {"counts": torch.bincount(torch.from_numpy(data.items), minlength=data.n_items)}

        return data.keep(
            "slow",
            self.arguments,
            make,
            lambda tensors: lambda episodes: tensors["counts"][candidate_items(episodes)],
        )


class AsTold(LanguageModel):
    """Ranks first what its prompt names."""

    fingerprint = "as told"

    def generate(self, prompts):
        raise NotImplementedError

    def score(self, prompts, continuations, response_prefixes=None):
        return [
            [float(text.strip() in prompt) - crc32(text.encode()) / 2**33 for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


class Fitted(Recommender):
    """Scores 1 for what the user has among the interactions learnt from."""

    name = "fitted"

    def learn(self, data):
        known = set(zip(data.users.tolist(), data.items.tolist(), strict=True))

        def scorer(episodes):
            rows = zip([e.user for e in episodes], candidate_items(episodes).tolist(), strict=True)
            return torch.tensor([[float((u, k) in known) for k in row] for u, row in rows])

        return scorer
