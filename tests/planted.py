"""Rewards of made-up users whose variances are known."""

from __future__ import annotations

import numpy as np


def world(
    seed, n_users=60, n_targets=2, n_prompts=16, n_options=(3, 4, 9, 5), lasting=0.0, luck=0.112,
    rest=0.047, level=0.27, best=0.039,
):  # fmt: skip
    """Rewards, actions, main effects; luck is that of the second pattern on a single target.

    What lasts is a standard deviation over all patterns, evenly spread; the best common prompt
    stands ``best`` above the mean.
    """
    rng = np.random.default_rng(seed)
    main = [effects - effects.mean() for effects in map(rng.normal, map(np.zeros, n_options))]
    scale = best / sum(effects.max() for effects in main)
    actions = np.array([
        [
            np.transpose(np.unravel_index(
                rng.choice(np.prod(n_options), n_prompts, replace=False), n_options
            ))
            for _ in range(n_targets)
        ]
        for _ in range(n_users)
    ])  # fmt: skip
    shape = actions.shape[:3]
    rewards = level * rng.normal(size=(*shape[:2], 1)) + rest * rng.normal(size=shape)
    for k, n in enumerate(n_options):
        personal = lasting / len(n_options) ** 0.5 * rng.normal(size=(n_users, 1, n))
        lucky = luck * (k == 1) * rng.normal(size=(n_users, n_targets, n))
        main[k] = main[k] * scale
        rewards += np.take_along_axis(main[k] + personal + lucky, actions[..., k], 2)
    return rewards, actions, main
