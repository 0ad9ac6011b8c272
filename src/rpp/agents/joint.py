"""One agent that chooses the whole prompt: a policy of several heads and one critic.

For the paper's Figure 6a. The paper specifies only that a single PPO agent (Schulman et al. 2017)
selects the options of the four patterns, or the prompt as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rpp.agents.actor_critic import begin_uniform, inverse_cdf, mlp, padded_log_probs
from rpp.types import Choice


@dataclass(frozen=True)
class JointDecision(Choice):
    """Choices of the agent for ``B`` users, with log-probability, entropies and value.

    Attributes:
        actions: Index into each pattern's options, ``(B, P)``.
        choices: Index into each head's options, ``(B, H)``.
        log_prob: Joint log-probability of all choices, ``(B, 1)``.
        entropy: Entropy of each head in nats, ``(B, H)``; that of the policy is their sum.
        value: The critic's value of the state, ``(B, 1)``.
    """

    choices: Tensor
    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class JointActorCritic(nn.Module):
    r"""Several policy heads on a shared trunk, and one critic.

    .. math:: \pi(a \mid s) = \prod_h \pi_h(a^{(h)} \mid s)

    Args:
        n_actions: Number of options of each of the ``P`` patterns.
        state_dim: Width ``D`` of the state.
        hidden_dim: Width of the trunk and of the critic's hidden layer.
        prompts: The ``N`` whole prompts a single head chooses from, actions of ``(N, P)``; ``None``
            gives each pattern its own head.
    """

    prompts: Tensor | None

    def __init__(
        self,
        n_actions: Sequence[int],
        state_dim: int = 64,
        hidden_dim: int = 64,
        prompts: Tensor | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(n_actions) if prompts is None else (len(prompts),)
        self.register_buffer("prompts", prompts)  # the head's actions index into them
        self.trunk = nn.Sequential(nn.Linear(state_dim, hidden_dim), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(hidden_dim, n) for n in sizes)
        for head in self.heads:
            begin_uniform(head)  # type: ignore[arg-type]
        self.critic = mlp(state_dim, hidden_dim, 1)

    def log_probs(self, state: Tensor) -> Tensor:
        """Log-probabilities of all options, ``(B, H, A)`` with ``A`` the largest number of them.

        Args:
            state: ``(B, D)``.
        """
        hidden = self.trunk(state)
        return padded_log_probs([head(hidden) for head in self.heads])

    def marginals(self, state: Tensor, n_actions: Sequence[int]) -> Tensor:
        """Probability of every option of every pattern, ``(B, P, A)``.

        Args:
            state: ``(B, D)``.
            n_actions: Number of options of each of the ``P`` patterns.
        """
        probs = self.log_probs(state).exp()
        if self.prompts is None:
            return probs
        contains = nn.functional.one_hot(self.prompts, max(n_actions)).to(probs)  # (N, P, A)
        return torch.einsum("bn,npa->bpa", probs[:, 0], contains)

    def forward(
        self,
        state: Tensor,
        uniforms: Tensor | None = None,
        horizon: float = 1.0,
        choices: Tensor | None = None,
    ) -> JointDecision:
        """Choose for every user, or evaluate given choices.

        Args:
            state: ``(B, D)``.
            uniforms: Uniform numbers in [0, 1) for sampling, of which the first ``H`` columns are
                used; ``None`` takes the most probable options.
            horizon: Discounted number of remaining rewards, see ``ActorCritic.value``.
            choices: The choices to evaluate, ``(B, H)``.
        """
        log_probs = self.log_probs(state)
        if choices is None:
            if uniforms is None:
                choices = log_probs.argmax(dim=-1)
            else:
                choices = inverse_cdf(log_probs.exp(), uniforms[:, : len(self.heads)])
        return JointDecision(
            actions=choices if self.prompts is None else self.prompts[choices[:, 0]],
            choices=choices,
            log_prob=log_probs.gather(-1, choices[..., None]).sum(dim=1),
            entropy=-(log_probs.exp() * log_probs).sum(dim=-1),
            value=horizon * self.critic(state),
        )


def draw_prompts(n_actions: Sequence[int], n_prompts: int, seed: int | Sequence[int]) -> Tensor:
    """Different whole prompts, uniform over the product of the patterns' options.

    Args:
        n_actions: Number of options of each of the ``P`` patterns.
        n_prompts: How many to draw; fewer come back if there are no more.
        seed: Of the draw.

    Returns:
        Actions, ``(N, P)``.
    """
    total = int(np.prod(n_actions))
    numbers = np.random.default_rng(seed).choice(total, min(n_prompts, total), replace=False)
    return torch.from_numpy(np.stack(np.unravel_index(numbers, n_actions), axis=1))
