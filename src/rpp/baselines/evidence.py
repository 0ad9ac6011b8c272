"""Recommenders as evidence: they rank a user's candidates for the sentences of a prompt.

No leak, by construction:

- Recommenders are fitted to the training interactions, which hold no target of any episode;
  :meth:`RecommenderEvidence.check` refuses episodes of which that is not so.
- Settings of a recommender are chosen on users who are in no episode (:func:`spare_episodes`), so
  no target of a training or validation user has a part in its own evidence.
- A recommender is asked about :func:`blinded` episodes: the order displayed is not in them, and
  reading a target raises.
- Ties are broken by neither display nor target, see :func:`rpp.baselines.base.rank`.

At request time there is no target, and a candidate may be an item that the user has had before. It
is scored like any other: a recommender that counts an item as its own neighbour (item-kNN) ranks it
first, one that does not (EASE) need not. Whoever asks decides whether to offer it.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor
from torch.nn import functional

from rpp.baselines.base import ARTIFACTS_FOLDER, Recommender, TrainingData, rank
from rpp.baselines.blend import z_scores
from rpp.baselines.factorisation import collaborative_vectors
from rpp.data.episodes import draw_negatives, load_episodes
from rpp.data.interactions import load_pairs, load_titles
from rpp.data.lightgcn import LightGCNSettings
from rpp.prompts.evidence import EvidencePattern, EvidenceSource, Order
from rpp.types import SPLITS, UNKNOWN, Episode, InputError, Item, Request, TargetAccessError

N_SPARE = 300
"""Users on whom settings of recommenders are chosen, at most."""

MAX_KEPT = 100_000
"""Orders kept in memory for each source."""

LEAST = -1.0
"""The smallest cosine."""

Key = bytes
"""Hash of what an order depends on besides the source: user, history, set of candidates."""

Scores = dict[int, float]
"""Z-scores of a user's candidates by item, the best first."""


class RecommenderEvidence:
    """Orders of the candidates by the recommenders of a patterns file, each computed once.

    A recommender is fitted when it is first asked; what takes long is cached in the folder of the
    data. It knows users by their history, so it can be asked about users it has never seen.

    Args:
        pattern: The sources; ``None``: there are only similarities to be told.
        data: What the recommenders learn from, see :func:`read_fitting_data`.
        seed: Of the order among equal scores.

    Attributes:
        fingerprint: Identifies recommenders, their arguments, data, and the seed of ties.
        named: The sources that an option names.

    Raises:
        InputError: If a source is no recommender, or its arguments are wrong.
    """

    def __init__(self, pattern: EvidencePattern | None, data: TrainingData, seed: int = 0) -> None:
        self.data = data
        self.seed = seed
        sources, options = (pattern.sources, pattern.options) if pattern else ({}, ())
        self.named = {source for option in options for source in option}
        self.recommenders = {name: make_recommender(each) for name, each in sources.items()}
        self._fitted: set[str] = set()
        self._kept: dict[str, dict[Key, Scores]] = {name: {} for name in self.recommenders}
        # now: a recommender may keep in itself what it has learnt
        made = {name: identity(each) for name, each in self.recommenders.items()}
        self.fingerprint = digest([made, data.fingerprint, seed])

    @classmethod
    def read(
        cls,
        pattern: EvidencePattern | None,
        folder: Path,
        seed: int = 0,
        episodes: Sequence[Episode] = (),
        lightgcn: LightGCNSettings | None = None,
    ) -> RecommenderEvidence:
        """Evidence from the training interactions of a prepared folder.

        Args:
            pattern: The sources.
            folder: The folder.
            seed: Of the order among equal scores.
            episodes: Whom it will be asked about, see :meth:`check`.
            lightgcn: How collaborative vectors are trained that are not in the folder.
        """
        evidence = cls(pattern, replace(read_fitting_data(folder), lightgcn=lightgcn), seed)
        evidence.check(episodes)
        return evidence

    def orders(self, source: str, episodes: Sequence[Request]) -> list[Order]:
        """Order of every user's candidates by a source.

        Args:
            source: Name of the source.
            episodes: ``B`` users; neither their targets nor the displayed order are looked at.

        Returns:
            Positions in each user's ``candidates``, best first. Items that the data do not know
            are not among them; none is, for a user without any known past item.
        """
        return [tuple(scores) for scores in self.z_scores(source, episodes)]

    def z_scores(self, source: str, episodes: Sequence[Request]) -> list[dict[int, float]]:
        """Z-scores of the candidates that :meth:`orders` gives, by position, in its order.

        Args:
            source: Name of the source.
            episodes: ``B`` users; neither their targets nor the displayed order are looked at.
        """
        kept = self._kept[source]
        asked = [blinded(episode) for episode in episodes]
        keys = [None if each is None else _key(each) for each in asked]
        users = {key: each for key, each in zip(keys, asked, strict=True) if key and each}
        found = self._rank(source, {key: each for key, each in users.items() if key not in kept})
        known = ChainMap(found, kept)
        ranked = [known[key] if key else {} for key in keys]
        if len(kept) + len(found) <= MAX_KEPT:
            kept |= found
        return [_positions(e, scores) for e, scores in zip(episodes, ranked, strict=True)]

    def _rank(self, source: str, users: dict[Key, Episode]) -> dict[Key, Scores]:
        """Z-scores by item of every user's candidates, the best first."""
        ranked: dict[Key, Scores] = {}
        for size in sorted({len(episode.candidates) for episode in users.values()}):
            some = {k: each for k, each in users.items() if len(each.candidates) == size}
            asked = list(some.values())
            scores = self._recommender(source).score(asked)
            rankings = rank(scores, asked, self.seed)
            for key, episode, ranking, row in zip(
                some, asked, rankings, z_scores(scores.double()).tolist(), strict=True
            ):
                ranked[key] = {episode.candidates[k].index: row[k] for k in ranking.order}
        return ranked

    def _recommender(self, source: str) -> Recommender:
        recommender = self.recommenders[source]
        if source not in self._fitted:
            fit_apart(recommender, self.data)
            self._fitted.add(source)
        return recommender

    def fit(self) -> None:
        """Fit the recommenders that an option names now, so that nobody who asks has to wait."""
        for source in sorted(self.named):
            self._recommender(source)

    def similarities(self, episode: Request) -> list[float]:
        """Highest cosine of every past item to a candidate, by their collaborative vectors.

        An item that the data do not know has none: as a past item it is the least similar.
        """
        past = [item.index for item in episode.history]
        shown = _known(episode.candidates)
        if not shown:
            return [LEAST] * len(past)
        vectors = self._directions
        cosines = (vectors[past] @ vectors[[item.index for item in shown]].T).amax(dim=1).tolist()
        return [LEAST if k == UNKNOWN else each for k, each in zip(past, cosines, strict=True)]

    @cached_property
    def _directions(self) -> Tensor:
        """Vectors of the items with length 1, ``(n_items, dim)``."""
        own = replace(self.data, artifacts=f"{ARTIFACTS_FOLDER}/{digest(self.data.fingerprint)}")
        with torch.inference_mode(False), torch.enable_grad():  # a test step switches them off
            return functional.normalize(collaborative_vectors(own).items, dim=1)

    def check(self, episodes: Sequence[Episode]) -> None:
        """Refuse episodes whose target the recommenders may have been fitted on.

        No candidate may be among the user's fitted interactions; which one is the target is not
        looked at.

        Raises:
            TargetAccessError: For the first such episode.
        """
        for episode in episodes:
            known = self._fitted_items(episode.user)
            for item in episode.candidates:
                if item.index in known:
                    raise TargetAccessError(
                        f"evidence would be fitted on an interaction of user"
                        f" {episode.user_id or episode.user} with the candidate {item.title!r}:"
                        " leave targets out of what recommenders learn from"
                    )

    def _fitted_items(self, user: int) -> frozenset[int]:
        first, last = np.searchsorted(self.data.users, [user, user + 1])
        return frozenset(self.data.items[first:last].tolist())


def blinded(request: Request) -> Episode | None:
    """An episode without displayed order and target; reading :attr:`Episode.target` raises.

    Items that the data do not know are left out; ``None`` if no past item or no candidate is left.
    """
    history, candidates = _known(request.history), _known(request.candidates)
    if not (history and candidates):
        return None
    return Episode(
        user=request.user,
        history=history,
        candidates=tuple(sorted(candidates, key=lambda item: item.index)),
        withheld=0,
        split="test",
        user_id=request.user_id,
        profile=request.profile,
        number=request.number,
    )


def make_recommender(source: EvidenceSource) -> Recommender:
    """The recommender of a source.

    Raises:
        InputError: If there is no such recommender, or its arguments are wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=Recommender)
    given = {"class_path": source.class_path, "init_args": dict(source.init_args)}
    try:
        made = parser.instantiate(parser.parse_object({"source": given}))
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"evidence by {source.class_path} is not possible: {reason}") from error
    recommender: Recommender = made.source
    return recommender


def fit_apart(recommender: Recommender, data: TrainingData) -> None:
    """Fit a recommender; other arguments or other data do not replace what it has learnt."""
    own = digest([identity(recommender), data.fingerprint])[:8]
    recommender.fit_to(replace(data, artifacts=f"{ARTIFACTS_FOLDER}/evidence-{own}"))


def identity(recommender: Recommender) -> dict[str, Any]:
    """Class and arguments of a recommender, and of those it is made of."""
    kind = type(recommender)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **recommender.arguments}


def digest(content: object) -> str:
    """Hash of plain values and recommenders."""

    def plain(value: object) -> object:
        return identity(value) if isinstance(value, Recommender) else repr(value)

    text = json.dumps(content, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_fitting_data(folder: Path) -> TrainingData:
    """Training interactions of all users; settings are chosen on users of no episode."""
    data = TrainingData.read(folder)
    taken = {e.user for split in SPLITS for e in load_episodes(folder, split)}
    name = f"{data.fingerprint} chosen on users of no episode"
    return replace(data, validation=tuple(spare_episodes(folder, taken)), fingerprint=name)


def spare_episodes(
    folder: Path, taken: Collection[int], n_candidates: int = 10, seed: int = 0
) -> list[Episode]:
    """Episodes of users who are in none: the validation interaction of each is the target.

    Args:
        folder: A prepared folder.
        taken: Users who are in an episode.
        n_candidates: Target and negatives, drawn from the items that are new to the user.
        seed: Of the choice of users and negatives.
    """
    catalogue = [Item(index, title) for index, title in enumerate(load_titles(folder))]
    users, items, splits = load_pairs(folder)
    rng = np.random.default_rng([seed, N_SPARE])
    able = np.setdiff1d(users[splits == "validation"], sorted(taken))
    episodes = []
    for user in rng.permutation(able)[:N_SPARE].tolist():
        first, last = np.searchsorted(users, [user, user + 1])
        own, roles = items[first:last], splits[first:last]
        history = [catalogue[k] for k in own[roles == "train"]]
        target = catalogue[int(own[roles == "validation"][0])]
        seen = frozenset(own.tolist())
        negatives = draw_negatives(target, catalogue, seen, n_candidates - 1, rng)
        if history and len(negatives) == n_candidates - 1:
            episodes.append(Episode(user, tuple(history), (target, *negatives), 0, "validation"))
    return episodes


def _known(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.index != UNKNOWN)


def _key(episode: Episode) -> Key:
    items = ([item.index for item in each] for each in (episode.history, episode.candidates))
    content = repr([episode.user, episode.user_id, *items])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _positions(episode: Request, scores: Scores) -> dict[int, float]:
    """The same by positions in a user's list."""
    place = {item.index: k for k, item in enumerate(episode.candidates)}
    return {place[item]: score for item, score in scores.items()}
