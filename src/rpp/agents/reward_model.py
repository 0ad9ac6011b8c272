r"""Additive model of the reward, fitted to logged rewards in closed form.

.. math:: r(u, \tau, a) = \mu_{u\tau} + \sum_k \left( m_k[a_k] + \mathbf{w}_k[a_k]^\top \phi(u)
    + e_{u\tau k}[a_k] \right) + e_{u\tau}[a] + \epsilon

The level of a user :math:`u` on a target :math:`\tau` is most of the variance and depends on no
prompt. What an option adds for everyone (:math:`m`) and for users like this one
(:math:`\mathbf{w}`) is learnt. What it adds on one target alone (:math:`e`) is luck and is modelled
as such: two prompts of a target that share an option share its luck, and a prompt that is asked
twice tells nothing new. All terms are normal. Their variances are estimated by marginal likelihood,
so that personal effects are used only as far as users really differ (a linear mixed model;
Henderson 1975, Patterson & Thompson 1971).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rpp.optimise import minimise

LOG_VARIANCES = (-16.0, 2.0)
"""Bounds of a variance's logarithm: standard deviations from 0.0003 to 2.7."""

START = -9.0
"""The least logarithm of a variance to begin with: from a smaller one the slope leads nowhere."""

TOLERANCE = 1e-6
"""Of the likelihood of hundreds of rewards: less than 0.01, which changes no prompt."""

PERSONAL_SCALE = 0.02
"""A personal effect's variance is exponential a priori with the square of this as its mean."""


@dataclass(frozen=True)
class LoggedRewards:
    """Rewards and what they were paid for.

    Attributes:
        actions: Index into each pattern's options, ``(n, P)``.
        features: What is known of the user, ``(n, Q)``.
        groups: Number of the user and target, from 0, ``(n,)``.
        rewards: NDCG of the ranking, in [0, 1], finite; ``(n,)``.
    """

    actions: Tensor
    features: Tensor
    groups: Tensor
    rewards: Tensor


class RewardModel(nn.Module):
    """What every option adds to the reward: for everyone, and for users with given features.

    Args:
        n_actions: Number of options of each of the ``P`` patterns.
        n_features: Number ``Q`` of features of a user; 0 leaves out personal effects.
        pairs: Whether pairs of options of two patterns have an effect of their own.
    """

    mean: Tensor
    root: Tensor
    log_variances: Tensor
    prompts: Tensor
    pairs_of_prompts: Tensor

    def __init__(
        self, n_actions: Sequence[int], n_features: int = 0, *, pairs: bool = False
    ) -> None:
        super().__init__()
        self.n_actions = tuple(n_actions)
        self.n_features = n_features
        self.pairs = pairs and len(self.n_actions) > 1
        self.sizes = self._sizes()
        n_effects = sum(self.sizes.values())
        self.register_buffer("mean", torch.zeros(n_effects))
        self.register_buffer("root", torch.eye(n_effects))  # of the posterior covariance
        n_variances = len(self.sizes) + len(self.n_actions) + 3
        self.register_buffer("log_variances", torch.full((n_variances,), -8.0))
        if self.pairs:
            every = [torch.arange(n) for n in self.n_actions]
            self.register_buffer("prompts", torch.cartesian_prod(*every), persistent=False)
            design = self.design(self.prompts, torch.zeros(1, n_features)).float()
            own = design[:, -self.sizes["pairs"] :]
            self.register_buffer("pairs_of_prompts", own, persistent=False)

    def _sizes(self) -> dict[str, int]:
        """Number of effects that share a variance, by name."""
        numbers = [*enumerate(self.n_actions)]
        sizes = {f"common_{k}": n for k, n in numbers}
        if self.n_features:
            sizes |= {f"personal_{k}": n * self.n_features for k, n in numbers}
        if self.pairs:
            sizes["pairs"] = sum(a * b for a, b in combinations(self.n_actions, 2))
        return sizes

    @property
    def deviations(self) -> dict[str, float]:
        """Estimated standard deviation of every kind of effect, by name."""
        luck = [f"target_{k}" for k in range(len(self.n_actions))]
        names = [*self.sizes, *luck, "prompt", "level", "rest"]
        return dict(zip(names, self.log_variances.exp().sqrt().tolist(), strict=True))

    def design(self, actions: Tensor, features: Tensor) -> Tensor:
        """Which effects every reward contains, ``(n, F)``.

        Args:
            actions: ``(n, P)``.
            features: ``(n, Q)``.
        """
        chosen = [
            functional.one_hot(actions[:, k], n).double() for k, n in enumerate(self.n_actions)
        ]
        parts = list(chosen)
        if self.n_features:
            scaled = features.double() / self.n_features**0.5
            parts += [(each[:, :, None] * scaled[:, None]).flatten(1) for each in chosen]
        if self.pairs:
            parts += [(a[:, :, None] * b[:, None]).flatten(1) for a, b in combinations(chosen, 2)]
        return torch.cat(parts, dim=1)

    def fit(self, logged: LoggedRewards) -> None:
        """Estimate the variances and the posterior of the effects.

        Args:
            logged: At least one reward.
        """
        effects = self.design(logged.actions, logged.features)
        likelihood = _Likelihood(effects, logged, list(self.sizes.values()))
        is_personal = torch.tensor([name.startswith("personal") for name in self.sizes])

        def loss(log_variances: Tensor) -> Tensor:
            personal = log_variances[: len(is_personal)][is_personal].exp().sum()
            return likelihood(log_variances)[0] + personal / PERSONAL_SCALE**2

        begin = self.log_variances.double().clamp(min=START).cpu().numpy()
        variances = minimise(loss, begin, [LOG_VARIANCES] * len(begin), TOLERANCE)
        mean, root = likelihood.posterior(variances)
        self.mean.copy_(mean)
        self.root.copy_(root)
        self.log_variances.copy_(variances)

    def best(self, features: Tensor, normals: Tensor | None = None) -> Tensor:
        """The best prompt of every user, ``(B, P)``.

        Args:
            features: ``(B, Q)``.
            normals: Standard normal numbers ``(B, F)`` that draw the effects from their posterior
                (Thompson sampling); ``None`` takes their means.
        """
        effects = self.mean.expand(len(features), -1)
        if normals is not None:
            effects = self.mean + normals.to(effects) @ self.root.T
        values = self._values(effects, features)
        if not self.pairs:
            return torch.stack([each.argmax(dim=-1) for each in values], dim=-1)
        whole = sum(each[:, self.prompts[:, k]] for k, each in enumerate(values))
        whole = whole + effects[:, -self.sizes["pairs"] :] @ self.pairs_of_prompts.T
        return self.prompts[whole.argmax(dim=1)]

    def best_by_draws(self, features: Tensor, normals: Tensor) -> Tensor:
        """The best prompt of every user by each of some draws from the posterior, ``(n, B, P)``.

        Args:
            features: ``(B, Q)``.
            normals: Standard normal numbers ``(n, F)``; users share a draw.
        """
        if self.pairs:  # whole prompts are compared, and there may be many
            return torch.stack([self.best(features, z.expand(len(features), -1)) for z in normals])
        return self.best(features, normals[:, None]).expand(-1, len(features), -1)

    def _values(self, effects: Tensor, features: Tensor) -> list[Tensor]:
        """What every option adds, ``(..., B, A_k)`` by pattern; effects are ``(..., B, F)``."""
        parts = effects.split(list(self.sizes.values()), dim=-1)
        values = list(parts[: len(self.n_actions)])
        if not self.n_features:
            return values
        scaled = features.to(effects) / self.n_features**0.5
        personal = parts[len(values) : 2 * len(values)]
        return [
            common + (each.unflatten(-1, (n, -1)) * scaled[:, None]).sum(dim=-1)
            for common, each, n in zip(values, personal, self.n_actions, strict=True)
        ]


class _Likelihood:
    """Negative log marginal likelihood of the rewards, and the posterior of the effects.

    The rewards of a group are padded to equal number; a padded entry is independent of all others
    and 0.

    Args:
        effects: Design of the effects, ``(n, F)``.
        logged: The rewards.
        sizes: Numbers of effects that share a variance, in their order.
    """

    def __init__(self, effects: Tensor, logged: LoggedRewards, sizes: list[int]) -> None:
        _, groups, counts = logged.groups.unique(return_inverse=True, return_counts=True)
        order = groups.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        at = groups[order], torch.arange(len(order)) - starts[groups[order]]
        shape = len(counts), int(counts.max())
        centred = logged.rewards.double() - logged.rewards.double().mean()
        intercept = torch.ones(len(effects), 1, dtype=torch.float64)
        self.n_kinds = len(sizes)
        self.owner = torch.arange(self.n_kinds).repeat_interleave(torch.tensor(sizes))
        self.rows = torch.zeros(*shape, effects.shape[1] + 2, dtype=torch.float64)
        self.rows[at] = torch.cat([effects, intercept, centred[:, None]], dim=1)[order]
        actions = torch.full((*shape, logged.actions.shape[1]), -1)
        actions[at] = logged.actions[order]
        here = actions[..., 0] >= 0
        self.together = (here[:, :, None] & here[:, None]).double()
        same = actions[:, :, None] == actions[:, None]
        by_pattern = same.double().unbind(dim=-1)
        self.same = [each * self.together for each in (*by_pattern, same.all(dim=-1).double())]

    def __call__(self, log_variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, and factors of the posterior: its Cholesky root, its right side, the scale."""
        variances = log_variances.exp()
        whitened, loss = self._whiten(variances[self.n_kinds :])
        rows, rewards = whitened[:, :-1], whitened[:, -1]
        flat = variances.new_tensor([1e2])  # of the mean over all groups
        scale = torch.cat([variances[: self.n_kinds][self.owner], flat]).sqrt()
        precision = scale[:, None] * (rows.T @ rows) * scale
        root = torch.linalg.cholesky(precision + torch.eye(len(scale), dtype=torch.float64))
        side = torch.linalg.solve_triangular(
            root, (scale * (rows.T @ rewards))[:, None], upper=False
        )
        loss = loss + root.diagonal().log().sum()
        loss = loss + (rewards.square().sum() - side.square().sum()) / 2
        return loss, root, side, scale

    def _whiten(self, variances: Tensor) -> tuple[Tensor, Tensor]:
        """Design and rewards with independent noise, ``(n, F + 2)``, and half the log determinant.

        Args:
            variances: Of each pattern's luck, of the whole prompt's, of the level, of the rest.
        """
        *luck, level, rest = variances.unbind()
        noise = rest * torch.eye(self.rows.shape[1], dtype=torch.float64) + level * self.together
        for variance, same in zip(luck, self.same, strict=True):
            noise = noise + variance * same
        root = torch.linalg.cholesky(noise)
        rows = torch.linalg.solve_triangular(root, self.rows, upper=False)
        here = self.together.diagonal(dim1=1, dim2=2)
        return rows.flatten(0, 1), (root.diagonal(dim1=1, dim2=2).log() * here).sum()

    def posterior(self, log_variances: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(F,)`` of the effects and a root ``(F, F)`` of their covariance."""
        _, root, side, scale = self(log_variances)
        inverse = torch.linalg.solve_triangular(
            root, torch.eye(len(root), dtype=torch.float64), upper=False
        )
        mean = scale * (inverse.T @ side)[:, 0]
        covariance = scale[:, None] * (inverse.T @ inverse) * scale
        kept = covariance[:-1, :-1]  # without the mean over all groups
        return mean[:-1], torch.linalg.cholesky(kept)
