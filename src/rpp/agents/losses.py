r"""Returns and losses of the agents (paper, section 3.4), corrected.

Departures from the printed Eq. 7-9, which cannot work as they stand:

- the critic's residual is squared; as printed the loss has no lower bound;
- the actor's loss is :math:`-\log\pi \cdot A`; as printed the advantage stands inside the
  logarithm, and the sign would descend the reward;
- the value that bootstraps a return is that of the state reached, not of the one being left;
- the advantage passes no gradient to the critic;
- the mean runs over users and steps, every user with their own reward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def horizon(n_left: int, discount: float) -> float:
    r"""Discounted number of rewards still to come, :math:`\sum_{j=0}^{n-1} \gamma^j`.

    Args:
        n_left: Steps :math:`n` left in the episode; 0 after its last one.
        discount: :math:`\gamma`, in [0, 1].
    """
    return sum(discount**j for j in range(n_left))


def n_step_returns(rewards: Tensor, next_values: Tensor, discount: float, n: int) -> Tensor:
    r"""What each critic should have predicted at every step (paper Eq. 7).

    .. math:: G_t = \sum_{j=0}^{m-1} \gamma^j r_{t+j} + \gamma^m V(s_{t+m}), \quad
        m = \min(n, T - t)

    Args:
        rewards: :math:`r_t`, NDCG of each user's ranking, in [0, 1]; shape ``(T, B)``; ``nan``
            where the language model failed, which makes every return that needs it ``nan``.
        next_values: :math:`V(s_{t+1})`, value of the state reached by each step, 0 after the last
            one of an episode; shape ``(T, B, P)``. Held constant.
        discount: :math:`\gamma`, in [0, 1].
        n: Number of rewards before the value stands in for the rest.

    Returns:
        Shape ``(T, B, P)``, without gradient.

    Raises:
        ValueError: If the shapes do not belong together: broadcasting would silently mix users.
    """
    if rewards.shape != next_values.shape[:2] or next_values.dim() != 3:
        raise ValueError(f"shapes differ: {rewards.shape}, {next_values.shape}")
    if n < 1:
        raise ValueError(f"n is {n}: a return needs at least one reward")
    n_steps = len(rewards)
    returns = []
    for t in range(n_steps):
        end = min(t + n, n_steps)
        value = next_values[end - 1].detach()
        for reward in reversed(rewards[t:end].unbind()):
            value = reward[:, None] + discount * value
        returns.append(value)
    return torch.stack(returns)


def critic_loss(returns: Tensor, values: Tensor) -> Tensor:
    r"""Squared error of every critic (paper Eq. 8, squared).

    .. math:: L_c^{(k)} = \operatorname{mean}_{u,t} (G_t - V^{(k)}(s_t))^2

    Args:
        returns: :math:`G_t`, held constant; shape ``(..., P)``; ``nan`` entries are left out.
        values: :math:`V^{(k)}(s_t)`; the same shape.

    Returns:
        One loss per agent, shape ``(P,)``.
    """
    known = returns.isfinite()
    # filled before the subtraction: a masked nan would still poison the gradient
    residual = torch.where(known, returns.detach(), values.detach()) - values
    return _masked_mean(residual.square(), known)


def actor_loss(log_prob: Tensor, advantage: Tensor, entropy: Tensor, entropy_coef: float) -> Tensor:
    r"""Policy gradient of every actor with an entropy bonus (paper Eq. 9, corrected).

    .. math:: L_a^{(k)} = -\operatorname{mean}_{u,t} \left[ \log\pi_k(a_t \mid s_t) A_t
        + \beta H(\pi_k(\cdot \mid s_t)) \right]

    Args:
        log_prob: :math:`\log\pi_k(a_t \mid s_t)`; shape ``(..., P)``.
        advantage: :math:`A_t = G_t - V(s_t)`, held constant; ``nan`` entries are left out.
        entropy: :math:`H(\pi_k(\cdot \mid s_t))` in nats; the same shape.
        entropy_coef: :math:`\beta`.

    Returns:
        One loss per agent, shape ``(P,)``.
    """
    known = advantage.isfinite()
    gain = log_prob * advantage.detach().masked_fill(~known, 0) + entropy_coef * entropy
    return -_masked_mean(gain, known)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all but the last dimension of the entries under the mask; 0 if there are none."""
    if values.shape != mask.shape:
        raise ValueError(f"shapes differ: {values.shape}, {mask.shape}")
    over = tuple(range(values.dim() - 1))
    kept = torch.where(mask, values, torch.zeros_like(values)).sum(over)
    return kept / mask.sum(over).clamp(min=1)
