"""One actor and one critic per pattern, all reading the same state (paper, section 3.4, Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rpp.types import Choice

IMPOSSIBLE = -1e9
"""Logit of padding actions; their probability is exactly 0."""


@dataclass(frozen=True)
class Decision(Choice):
    """Choices of the agents for ``B`` users, with log-probabilities, entropies and values.

    Attributes:
        actions: Index into each pattern's options, ``(B, P)``.
        log_prob: Log-probability of each action, ``(B, P)``.
        entropy: Entropy of each policy in nats, ``(B, P)``.
        value: Each critic's value of the state, ``(B, P)``.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class ActorCritic(nn.Module):
    """The agents: two-layer fully connected actors and critics.

    Without batch normalisation, which would couple users and fail for a single one.

    Args:
        n_actions: Number of options of each of the ``P`` patterns.
        state_dim: Width ``D`` of the state.
        hidden_dim: Width of the hidden layers.
    """

    def __init__(self, n_actions: Sequence[int], state_dim: int = 64, hidden_dim: int = 64) -> None:
        super().__init__()
        self.n_actions = tuple(n_actions)
        self.actors = nn.ModuleList(mlp(state_dim, hidden_dim, n) for n in self.n_actions)
        self.critics = nn.ModuleList(mlp(state_dim, hidden_dim, 1) for _ in self.n_actions)
        for actor in self.actors:
            begin_uniform(actor[-1])  # type: ignore[index]

    def log_probs(self, state: Tensor) -> Tensor:
        """Log-probabilities of all actions, ``(B, P, A)`` with ``A`` the largest number of options.

        Args:
            state: ``(B, D)``.
        """
        return padded_log_probs([actor(state) for actor in self.actors])

    def value(self, state: Tensor, horizon: float = 1.0) -> Tensor:
        """Values of a state, one per agent, ``(B, P)``.

        The critic network predicts the mean reward per step. The value is this prediction times
        the discounted number of remaining steps, because the state does not contain the step
        number. A critic without it diverges: every step but the last raises its prediction.

        Args:
            state: ``(B, D)``.
            horizon: Discounted number of remaining rewards, see ``losses.horizon``.
        """
        return horizon * torch.cat([critic(state) for critic in self.critics], dim=1)

    def forward(
        self,
        state: Tensor,
        uniforms: Tensor | None = None,
        horizon: float = 1.0,
        actions: Tensor | None = None,
    ) -> Decision:
        """Choose an action per agent and user, or evaluate given actions.

        Args:
            state: ``(B, D)``.
            uniforms: Uniform numbers in [0, 1) for sampling, ``(B, P)``; ``None`` takes the most
                probable actions.
            horizon: Discounted number of remaining rewards.
            actions: The actions to evaluate, ``(B, P)``.
        """
        log_probs = self.log_probs(state)
        if actions is None:
            if uniforms is None:
                actions = log_probs.argmax(dim=-1)
            else:
                actions = inverse_cdf(log_probs.exp(), uniforms)
        return Decision(
            actions=actions,
            log_prob=log_probs.gather(-1, actions[..., None]).squeeze(-1),
            entropy=-(log_probs.exp() * log_probs).sum(dim=-1),
            value=self.value(state, horizon),
        )


def padded_log_probs(logits: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of policies with ``A_1 ... A_P`` actions, ``(B, P, A)``.

    Args:
        logits: ``P`` tensors, each ``(B, A_k)``; ``A`` is the largest of the ``A_k``.
    """
    widest = max(each.shape[-1] for each in logits)
    padded = [
        nn.functional.pad(each, (0, widest - each.shape[-1]), value=IMPOSSIBLE) for each in logits
    ]
    return torch.stack(padded, dim=1).log_softmax(dim=-1)


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """First action whose cumulative probability exceeds the number, ``(B, P)``.

    Args:
        probs: ``(B, P, A)``.
        uniforms: ``(B, P)``.

    Returns:
        Actions on the device of ``probs``.
    """
    cumulative = probs.detach().cpu().double().cumsum(dim=-1)  # not every device has doubles
    scaled = uniforms.cpu().double()[..., None] * cumulative[..., -1:]
    first = (cumulative <= scaled).sum(dim=-1).clamp(max=probs.shape[-1] - 1)
    return first.to(probs.device)


def begin_uniform(last: nn.Linear) -> None:
    """Initialise a policy's last layer close to uniform, so that exploration is not biased."""
    nn.init.orthogonal_(last.weight, gain=0.01)
    nn.init.zeros_(last.bias)


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """A fully connected network with one hidden layer."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))
