"""What learners find with few rewards: ``python -m benchmarks.learners --out learners.md``.

Every learner runs as it is, through the trainer, in planted worlds and on a table of real rewards
(:mod:`benchmarks.worlds`), for many seeds and without a call to a language model. Printed are the
gain over random prompts on users it has not seen, its 95 % interval over seeds, its lowest
twentieth, and the calls of the fit; a chart shows the same.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning import Trainer
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks.worlds import (
    LENGTHS,
    PATTERNS,
    KnownEnvironment,
    PlantedWorld,
    Spreads,
    TableWorld,
    World,
    WorldUsers,
)
from rpp.evaluation import best_static_prompt
from rpp.learners.base import PromptLearner
from rpp.learners.logged import RewardModelLearner
from rpp.learners.ppo import PPO
from rpp.learners.rpp import RPP
from rpp.metrics import mean_interval
from rpp.prompts.static import draw_static_prompts
from rpp.types import Choice, Episode, Split

TABLE = Path("benchmarks/rewards.parquet")
"""Rewards of SmolLM2 with and without its adapter, see :mod:`benchmarks.reward_table`."""

N_EPOCHS = 4
N_VALIDATION = 40


@dataclass(frozen=True)
class Budget:
    """Training users and prompts asked for each of them in all.

    Attributes:
        users: Training users.
        draws: Prompts for each user and target, over all epochs.
        targets: Targets of each user.
    """

    users: int = 80
    draws: int = 8
    targets: int = 1

    @property
    def calls(self) -> int:
        """Rewards paid for."""
        return self.users * self.draws * self.targets


Policy = Callable[[Sequence[Episode]], Tensor]
"""From users to actions, ``(B, P)``."""

Chooser = Callable[[World, WorldUsers, Budget, int], tuple[Policy, int]]
"""From a world, its users, the budget and a seed to a policy and the calls it took."""


def learner(make: type[PromptLearner[Any]], per_epoch: str | None, **options: Any) -> Chooser:
    """A learner of the project; ``per_epoch`` names the option that says how often it asks."""

    def choose(world: World, users: WorldUsers, budget: Budget, seed: int) -> Any:
        environment = KnownEnvironment.of(world)
        kind = type(make.__name__, (make,), {"environment": environment})
        n_epochs = N_EPOCHS if per_epoch else budget.draws
        asked = {per_epoch: budget.draws // N_EPOCHS} if per_epoch else {}
        made = kind(
            patterns=PATTERNS, history_lengths=list(LENGTHS), n_static_prompts=1,
            policy_seed=seed, **asked, **options,
        )  # fmt: skip
        made.patterns = world.patterns
        made.static_actions = torch.full((len(world.patterns.names),), -1)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=n_epochs,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(made, users)

        def policy(episodes: Sequence[Episode]) -> Tensor:
            with torch.no_grad():
                choice: Choice = made.greedy(made.first_state(episodes), 0, episodes)
            return choice.actions

        return policy, sum(environment.n_asked)

    return choose


def static(n_prompts: int) -> Chooser:
    """The best of some static prompts on validation users."""

    def choose(world: World, users: WorldUsers, budget: Budget, seed: int) -> Any:
        environment = KnownEnvironment.of(world)
        drawn = draw_static_prompts(world.patterns, n_prompts, 1, seed)
        best, _ = best_static_prompt(environment, drawn, users.episodes("validation"))
        actions = torch.tensor(best.actions)
        return lambda episodes: actions.expand(len(episodes), -1), sum(environment.n_asked)

    return choose


RPP_OPTIONS = {"n_steps": 1, "prompt_encoding": "parts"}

CHOOSERS: dict[str, Chooser] = {
    "RPP, reward model": learner(RewardModelLearner, "n_draws"),
    "RPP, reward model, common": learner(RewardModelLearner, "n_draws", personal=False),
    "RPP, reward model, uniform draws": learner(
        RewardModelLearner, "n_draws", exploration="uniform"
    ),
    "RPP, baseline by user, replay": learner(RPP, "n_draws", n_passes=4, **RPP_OPTIONS),
    "RPP, baseline by user": learner(RPP, "n_draws", **RPP_OPTIONS),
    "RPP of the paper": learner(RPP, None, baseline="critic", **RPP_OPTIONS),
    "PPO-4": learner(PPO, None, lr=0.01, **RPP_OPTIONS),
    "PPO-1": learner(PPO, None, lr=0.01, n_prompts=32, **RPP_OPTIONS),
    "best of 8 static": static(8),
    "best of 64 static": static(64),
}


def play(name: str, world: World, budget: Budget, seed: int) -> tuple[float, int]:
    """Gain over random prompts on unseen users, and the calls it took."""
    n_users = len(world.vectors)
    order = np.random.default_rng([seed, 5]).permutation(n_users).tolist()
    n_seen = budget.users + N_VALIDATION
    split: dict[Split, list[int]] = {
        "train": order[: budget.users],
        "validation": order[budget.users : n_seen],
        "test": order[n_seen:],
    }
    users = WorldUsers(world, split, budget.targets, batch_size=20)
    policy, n_calls = CHOOSERS[name](world, users, budget, seed)
    test = users.episodes("test")
    return world.gain(torch.tensor(order[n_seen:]), policy(test).cpu()), n_calls


def measure(
    title: str, world_of: Callable[[int], World], budget: Budget, names: Sequence[str],
    n_seeds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a learner."""
    rows = []
    for name in names:
        played = [play(name, world_of(seed), budget, seed) for seed in range(n_seeds)]
        gains = torch.tensor([gain for gain, _ in played], dtype=torch.float64)
        mean = mean_interval(gains)
        rows.append(
            {
                "world": title, "learner": name, "calls": played[0][1], "gain": mean.mean,
                "low": mean.low, "high": mean.high,
                "lowest twentieth": float(gains.quantile(0.05)), "seeds": n_seeds,
            }
        )  # fmt: skip
        print(_line(rows[-1]), flush=True)  # noqa: T201
    return rows


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['world']} | {row['learner']} | {row['calls']:,} | {row['gain']:+.4f}"
        f" [{row['low']:+.4f}, {row['high']:+.4f}] | {row['lowest twentieth']:+.4f} |"
        f" {row['seeds']} |"
    )


HEADER = "| world | learner | calls | gain [95 %] | lowest twentieth | seeds |\n" + "|---" * 6 + "|"


def chart(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Gain and lowest twentieth of every learner, one panel a world; calls are with the names."""
    frame = pl.DataFrame(rows)
    worlds = frame["world"].unique(maintain_order=True).to_list()
    size = (4 + 3.5 * len(worlds), 1 + 0.3 * frame["learner"].n_unique())
    figure, axes = plt.subplots(1, len(worlds), figsize=size, squeeze=False, sharey=True)
    for ax, world in zip(axes[0], worlds, strict=True):
        own = frame.filter(pl.col("world") == world)
        names = [f"{name}, {calls:,} calls" for name, calls in own["learner", "calls"].iter_rows()]
        gain = own["gain"].to_numpy()
        error = [gain - own["low"].to_numpy(), own["high"].to_numpy() - gain]
        ax.errorbar(gain, names, xerr=error, fmt="o", label="mean and 95 % interval")
        ax.plot(own["lowest twentieth"], names, "|", color="grey", label="lowest twentieth")
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set(title=world, xlabel="gain in NDCG@10 over random prompts")
    axes[0, 0].invert_yaxis()
    marks = axes[0, 0].get_legend_handles_labels()
    figure.legend(*marks, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=2, fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


PLANTED = (
    ("nothing personal", 0.0, Budget()),
    ("personal .03", 0.03, Budget()),
    ("personal .03, 3,200 calls", 0.03, Budget(200, 16)),
    ("personal .06, 3,200 calls", 0.06, Budget(200, 16)),
)


def _same(world: World, seed: int) -> World:
    """A table is the same for every seed, which splits its users."""
    return world


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all learners in all worlds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="on the real table")
    parser.add_argument("--worlds", type=int, default=40, help="planted worlds")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--learners", nargs="*", default=list(CHOOSERS))
    parser.add_argument("--out", type=Path, default=Path("learners.md"))
    given = parser.parse_args(arguments)
    print(HEADER)  # noqa: T201
    rows: list[dict[str, Any]] = []
    for title, personal, budget in PLANTED if given.worlds else ():
        spreads = replace(Spreads(), personal=personal)
        rows += measure(title, partial(PlantedWorld, spreads), budget, given.learners, given.worlds)
    models = pl.read_parquet(given.table)["model"].unique().sort() if given.table.is_file() else ()
    for model in models:
        world = TableWorld(given.table, model)
        budget = Budget(draws=4, targets=world.scores.shape[1])
        rows += measure(model, partial(_same, world), budget, given.learners, given.seeds)
    given.out.write_text("\n".join([HEADER, *map(_line, rows)]) + "\n", encoding="utf-8")
    chart(rows, given.out.with_suffix(".png"))


def _quieten() -> None:
    """Hide what Lightning says of every one of hundreds of fits."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


if __name__ == "__main__":
    _quieten()
    main()
