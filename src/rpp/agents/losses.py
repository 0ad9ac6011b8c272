r"""Returns and losses of the agents (paper, section 3.4), corrected.

Departures from Eq. 7-9, which cannot work as printed:

- the critic's residual is squared; as printed the loss has no lower bound;
- the actor's loss is :math:`-\rho A` with the ratio :math:`\rho` of new to old policy, whose
  gradient in the first pass is that of :math:`-\log\pi \cdot A`; as printed the advantage stands
  inside the logarithm, and the sign would descend the reward;
- a return bootstraps from the value of the next state, not of the current one;
- no gradient flows through the advantage to the critic;
- the mean is over users and steps, with a reward per user.
"""

from __future__ import annotations

import torch
from torch import Tensor


def horizon(n_left: int, discount: float) -> float:
    r"""Discounted number of remaining rewards, :math:`\sum_{j=0}^{n-1} \gamma^j`.

    Args:
        n_left: Steps :math:`n` left in the episode; 0 after its last one.
        discount: :math:`\gamma`, in [0, 1].
    """
    return sum(discount**j for j in range(n_left))


def n_step_returns(rewards: Tensor, next_values: Tensor, discount: float, n: int) -> Tensor:
    r"""N-step returns, the regression targets of the critics (paper Eq. 7).

    .. math:: G_t = \sum_{j=0}^{m-1} \gamma^j r_{t+j} + \gamma^m V(s_{t+m}), \quad
        m = \min(n, T - t)

    Args:
        rewards: :math:`r_t`, NDCG of each user's ranking, in [0, 1]; shape ``(T, B)``; ``nan``
            where the language model failed, as are the returns that contain such a reward.
        next_values: :math:`V(s_{t+1})`, value of the state reached by each step, 0 after the last
            one of an episode; shape ``(T, B, P)``. Held constant.
        discount: :math:`\gamma`, in [0, 1].
        n: Number of rewards in a return before it bootstraps from the value.

    Returns:
        Shape ``(T, B, P)``, without gradient.

    Raises:
        ValueError: If the shapes do not match: broadcasting would silently mix users.
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
    # filled before the subtraction: a masked nan would still make the gradient nan
    residual = torch.where(known, returns.detach(), values.detach()) - values
    return _masked_mean(residual.square(), known)


def others_mean(rewards: Tensor, groups: Tensor, total: Tensor, n_total: Tensor) -> Tensor:
    r"""What a user gets on a target anyway: the mean of the rewards of all other draws, ``(B,)``.

    A leave-one-out baseline (RLOO; Kool et al. 2019, Ahmadian et al. 2024). It does not depend on
    the draw's own actions, so it changes no gradient's expectation. It is not divided by the
    standard deviation as in GRPO, which favours users for whom prompts hardly matter.

    Args:
        rewards: Of ``B`` draws in ``T`` steps, ``(T, B)``; ``nan`` where the model failed.
        groups: Number of each draw's user and target, ``(B,)``.
        total: Sum of the rewards by group, these and those of earlier epochs, ``(G,)``.
        n_total: Number of these rewards, ``(G,)``.

    Returns:
        For a draw without any other of its group the mean over the other groups; ``nan`` if there
        are none either.
    """
    own, n_own = rewards.nan_to_num(0).sum(0), rewards.isfinite().sum(0)
    others, n_others = total[groups] - own, n_total[groups] - n_own
    elsewhere, n_elsewhere = total.sum() - total[groups], n_total.sum() - n_total[groups]
    return torch.where(n_others > 0, others / n_others, elsewhere / n_elsewhere)


def gae(rewards: Tensor, values: Tensor, discount: float, gae_lambda: float) -> Tensor:
    r"""Generalised advantage estimates of a whole episode (Schulman et al. 2016, Eq. 16).

    .. math:: A_t = \delta_t + \gamma \lambda A_{t+1}, \quad
        \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \quad V(s_T) = A_T = 0

    A step with an unknown reward has no advantage. The sums of the steps before it are truncated
    there and bootstrap from the value of its state, as at the end of a truncated episode.

    Args:
        rewards: :math:`r_t`; shape ``(T, B)``; ``nan`` where the language model failed.
        values: :math:`V(s_t)` of the states the steps were taken in; shape ``(T, B, P)``. Held
            constant.
        discount: :math:`\gamma`, in [0, 1].
        gae_lambda: :math:`\lambda`, in [0, 1]: 0 gives the one-step temporal-difference error, 1
            the Monte Carlo return less the value.

    Returns:
        Shape ``(T, B, P)``, without gradient; ``nan`` where the reward is.

    Raises:
        ValueError: If shapes do not match: broadcasting would silently mix users.
    """
    if rewards.shape != values.shape[:2] or values.dim() != 3:
        raise ValueError(f"shapes differ: {rewards.shape}, {values.shape}")
    values = values.detach()
    following = torch.zeros_like(values[0])  # V(s_{t+1})
    advantage = torch.zeros_like(values[0])
    advantages = []
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        delta = reward[:, None] + discount * following - value
        advantage = delta + discount * gae_lambda * advantage.nan_to_num(nan=0.0)
        following = value
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


def normalised(advantage: Tensor, everyone: Tensor | None = None) -> Tensor:
    """Advantages standardised to mean 0 and standard deviation 1, per agent.

    Args:
        advantage: Shape ``(..., P)``; ``nan`` entries stay ``nan`` and are not counted. If all
            are equal they become 0.
        everyone: Advantages of all processes, ``(..., P)``, from which mean and standard
            deviation are taken; by default ``advantage`` itself.
    """
    everyone = advantage if everyone is None else everyone
    known = everyone.isfinite()
    mean = _masked_mean(everyone, known)
    deviation = _masked_mean((everyone - mean).square(), known).sqrt()
    return (advantage - mean) / deviation.clamp(min=1e-6)


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    entropy: Tensor,
    clip_range: float,
    entropy_coef: float,
) -> Tensor:
    r"""Clipped loss of every actor, with an entropy bonus (Schulman et al. 2017, Eq. 7 and 9).

    In the first pass over transitions the ratio is 1, and the gradient that of the policy gradient
    (paper Eq. 9, corrected).

    .. math:: L_a = -\operatorname{mean}_{u,t} \left[ \min\left(\rho_t A_t,
        \operatorname{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) A_t\right)
        + \beta H(\pi(\cdot \mid s_t)) \right], \quad
        \rho_t = \frac{\pi(a_t \mid s_t)}{\pi_\text{old}(a_t \mid s_t)}

    Args:
        log_prob: :math:`\log\pi(a_t \mid s_t)` of the current policy; shape ``(..., P)``. For
            jointly chosen actions the sum over the heads, so that the ratio is a product.
        old_log_prob: That of the policy that played the episodes; the same shape; held constant.
        advantage: :math:`A_t`, held constant; the same shape; ``nan`` entries are left out.
        entropy: :math:`H(\pi(\cdot \mid s_t))` in nats; the same shape.
        clip_range: :math:`\epsilon`.
        entropy_coef: :math:`\beta`.

    Returns:
        One loss per agent, shape ``(P,)``.

    Raises:
        ValueError: If the shapes differ.
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape == entropy.shape:
        raise ValueError(
            f"shapes differ: {log_prob.shape}, {old_log_prob.shape}, {advantage.shape},"
            f" {entropy.shape}"
        )
    known = advantage.isfinite()
    weight = advantage.detach().masked_fill(~known, 0)
    ratio = (log_prob - old_log_prob.detach()).exp()
    gain = torch.minimum(ratio * weight, ratio.clamp(1 - clip_range, 1 + clip_range) * weight)
    return -_masked_mean(gain + entropy_coef * entropy, known)


def approx_kl(log_ratio: Tensor, known: Tensor) -> Tensor:
    r"""Approximate KL divergence, :math:`\operatorname{mean}(\rho - 1 - \ln\rho)`.

    An unbiased, non-negative estimate of the Kullback-Leibler divergence between the old and the
    new policy (Schulman 2020).

    Args:
        log_ratio: :math:`\ln\rho`, log-probability of a choice under the new policy less that
            under the old one; shape ``(..., P)``.
        known: Which entries count; the same shape.

    Returns:
        One number per agent, shape ``(P,)``.
    """
    return _masked_mean(log_ratio.exp() - 1 - log_ratio, known)


def clip_fraction(log_ratio: Tensor, known: Tensor, clip_range: float) -> Tensor:
    """Share of choices whose probability ratio lies outside the clip range.

    Args:
        log_ratio: As in :func:`approx_kl`; shape ``(..., P)``.
        known: Which entries count; the same shape.
        clip_range: Of :func:`clipped_surrogate`.

    Returns:
        One number per agent, shape ``(P,)``.
    """
    outside = (log_ratio.exp() - 1).abs() > clip_range
    return _masked_mean(outside.to(log_ratio), known)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    r"""Share of the returns' variance that the critic predicts.

    .. math:: 1 - \operatorname{Var}(G - V) / \operatorname{Var}(G)

    Args:
        values: :math:`V(s_t)`; any shape.
        returns: :math:`G_t`; the same shape; ``nan`` entries are left out.

    Returns:
        At most 1; 0 for a constant critic; ``nan`` if the returns do not vary.
    """
    known = returns.isfinite()
    residual = (returns - values)[known]
    variance = returns[known].var(correction=0)
    explained = 1 - residual.var(correction=0) / variance
    return torch.where(variance > 0, explained, torch.full_like(explained, torch.nan))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all but the last dimension of the entries under the mask; 0 if there are none."""
    if values.shape != mask.shape:
        raise ValueError(f"shapes differ: {values.shape}, {mask.shape}")
    over = tuple(range(values.dim() - 1))
    kept = torch.where(mask, values, torch.zeros_like(values)).sum(over)
    return kept / mask.sum(over).clamp(min=1)
