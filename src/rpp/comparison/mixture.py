r"""Scores of the language model and of recommenders, added up: what an engineer would do.

.. math:: s(u, c) = \sum_j w_j \, z_j(u, c)

with :math:`z_j` the z-scores of source :math:`j` over the candidates of a user. The weights are
those of a softmax over the candidates (conditional logit) with a ridge penalty, fitted to the
targets of the validation users. Where a decoding gives no scores, ranks are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rpp.baselines.base import Recommender, rank
from rpp.baselines.blend import z_scores
from rpp.baselines.evidence import fit_apart, read_fitting_data
from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.optimise import minimise
from rpp.prompts.static import only_prompt
from rpp.types import Episode, InputError, Ranking


class Mixture(PromptMethod):
    """The manual prompt's scores and those of recommenders, with weights.

    Recommenders choose their settings on users of no episode, so the validation users are new to
    all sources.

    Args:
        recommenders: The recommenders.
        name: Name in tables.
        ridge: Penalty of the squared weights, per user.
    """

    def __init__(
        self,
        recommenders: list[Recommender],
        name: str = "LM + recommenders",
        ridge: float = 0.01,
    ) -> None:
        if not recommenders:
            raise InputError(f"{name} has no recommenders: name at least one")
        if ridge <= 0:
            raise InputError(f"{name} has the ridge {ridge}: choose a number above 0")
        self.recommenders = recommenders
        self.name = name
        self.ridge = ridge
        self.weights = torch.zeros(0)

    def learn(self, task: Task) -> Ranks:
        """Fit the recommenders, then the weights on validation users.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        data = read_fitting_data(task.data.folder)
        for recommender in self.recommenders:
            fit_apart(recommender, data)
        users = task.data.episodes("validation")
        targets = torch.tensor([episode.target for episode in users])
        features = self._features(users, _ask(task, users))
        self.weights = softmax_weights(features, targets, self.ridge)

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            answers = _ask(task, episodes)
            scores = self._features(episodes, answers) @ self.weights
            mixed = rank(scores, episodes, task.seed)
            return [
                answer if answer.failed else each
                for answer, each in zip(answers, mixed, strict=True)
            ]

        return ranks

    def _features(self, episodes: Sequence[Episode], answers: Sequence[Ranking]) -> Tensor:
        """Z-scores of the language model and of every recommender, ``(B, M, 1 + J)``."""
        own = torch.tensor([answer_scores(a, e) for a, e in zip(answers, episodes, strict=True)])
        each = [own, *(recommender.score(episodes) for recommender in self.recommenders)]
        return torch.stack([z_scores(scores.double()) for scores in each], dim=-1)

    def max_calls(self, task: Task, n_users: int) -> int:
        """One for each validation and test user."""
        return len(task.data.episodes("validation")) + n_users

    def notes(self, ranks: Tensor) -> list[str]:
        """The weights."""
        names = ["language model", *(each.name for each in self.recommenders)]
        told = ", ".join(
            f"{name} {weight:.2f}"
            for name, weight in zip(names, self.weights.tolist(), strict=True)
        )
        return [f"{self.name}: weights of z-scores, fitted to the validation users: {told}."]


def _ask(task: Task, episodes: Sequence[Episode]) -> Sequence[Ranking]:
    manual = task.manual
    return manual.step_static(episodes, [only_prompt(manual.patterns)]).rankings


def answer_scores(ranking: Ranking, episode: Episode) -> list[float]:
    """Scores of a user's candidates: the decoding's, else from the ranks; zeros of a failed call.

    Args:
        ranking: The language model's answer.
        episode: The user.
    """
    if ranking.scores:
        return list(ranking.scores)
    scores = [0.0] * len(episode.candidates)
    for place, k in enumerate(ranking.order):
        scores[k] = -float(min(place, ranking.n_named))  # what was not named shares a place
    return scores


def softmax_weights(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    r"""Weights of the features by which the targets are most probable, with a ridge penalty.

    .. math:: \min_w \; -\frac{1}{B} \sum_u \log \frac{\exp w^\top z_{u t_u}}
        {\sum_c \exp w^\top z_{uc}} + \lambda |w|^2

    Args:
        features: :math:`z`, shape ``(B, M, J)``.
        targets: Place of each target, :math:`t_u`, shape ``(B,)``.
        ridge: :math:`\lambda`.

    Returns:
        Shape ``(J,)``.
    """

    def loss(weights: Tensor) -> Tensor:
        return cross_entropy(features @ weights, targets) + ridge * weights.square().sum()

    with torch.inference_mode(False):  # what a test step made has no gradients
        features, targets = features.clone(), targets.clone()
    return minimise(loss, np.zeros(features.shape[-1]))
