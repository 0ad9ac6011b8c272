"""Ranking instructions from training interactions, drawn again in every epoch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from data_prep.prepare import prepare
from rpp.baselines.evidence import RecommenderEvidence, read_fitting_data
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_training_pairs, load_users
from rpp.prompts.compose import Display
from rpp.prompts.evidence import EvidencePattern
from rpp.prompts.patterns import load_patterns
from rpp.tuning.instructions import Instruction, draw_instruction
from rpp.types import HELD_OUT, MAX_SEED, PROFILE, SPLITS, InputError, Item

Stretch = tuple[int, int]
"""A user and the number of one of their sequences."""


class InstructionDataModule(EpisodeDataModule):
    """Ranking instructions from users who are neither validation nor test users of the policy.

    An epoch draws as many sequences as cover their training interactions once, at random
    positions. Validation ranks episodes of the policy's training and validation users, each on
    their validation interaction.

    Args:
        *args: As :class:`rpp.data.datamodule.EpisodeDataModule`.
        patterns: YAML file with the sentences of each pattern.
        n_items: Items in a sequence.
        max_history: Longest history in a prompt.
        display: Parts of a prompt; without candidates *packed histories* are made.
        n_folds: Parts of the users to tune on. Evidence for the users of one part is by
            recommenders that are fitted without them.
        draw_seed: Seed of order and sampling; ``null``: ``seed``, which splits the users. The
            order of epoch ``k`` is that of ``draw_seed + k``. To continue from an adapter with new
            sequences, raise it by the number of epochs already trained.
        **kwargs: As :class:`rpp.data.datamodule.EpisodeDataModule`.
    """

    targets: Literal["training", "validation"] = "training"
    """Which interactions of a user the targets are."""

    def __init__(
        self,
        *args: Any,
        patterns: str = "conf/patterns/movies.yaml",
        n_items: int = 40,
        max_history: int = 20,
        display: Display = Display(show_candidates=False),  # noqa: B008 (frozen)
        n_folds: int = 4,
        draw_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if n_items < 2 or max_history < 1:
            raise InputError(
                f"n_items is {n_items} and max_history {max_history}: at least 2 and 1 are needed"
            )
        if n_folds < 2:
            raise InputError(
                f"n_folds is {n_folds}: recommenders are fitted without the users they give"
                " evidence for, which takes at least 2"
            )
        if draw_seed is not None and not 0 <= draw_seed <= MAX_SEED:
            raise InputError(f"draw_seed is {draw_seed}: give a number from 0 to {MAX_SEED}")
        self.patterns = load_patterns(patterns)
        self.n_items = n_items
        self.max_history = max_history
        self.display = display
        self.n_folds = n_folds
        self.evidence: RecommenderEvidence | None = None  # for validation
        self.folds: list[RecommenderEvidence] = []
        self.draw_seed = self.settings.seed if draw_seed is None else draw_seed

    def prepare_data(self) -> None:
        """Prepare the folder if it is missing; no collaborative vectors are needed."""
        prepare(self.settings, self.folder)

    def setup(self, stage: str) -> None:
        """Read the episodes, and the interactions of the users to train on."""
        self._episodes = {split: load_episodes(self.folder, split) for split in SPLITS}
        self.left_out = tuple(e.user_id for s in HELD_OUT for e in self._episodes[s])
        self._read_sequences()
        if not self.sequences:
            raise InputError(
                f"no user of {self.folder} is left to tune on: use fewer users for the policy"
            )
        people = load_users(self.folder).select(PROFILE).to_dicts()
        self.profiles = {
            user: {key: value for key, value in people[user].items() if value is not None}
            for user in self.sequences
        }
        self.patterns.check_profiles(self.profiles.values(), self.settings.name)
        if self.patterns.needs_evidence:
            self._set_up_evidence(self.patterns.evidence)

    def _read_sequences(self) -> None:
        """Training interactions of the users who are not held out; no negative is among them."""
        held_out = {e.user for s in HELD_OUT for e in self._episodes[s]}
        found = self._by_user(*load_training_pairs(self.folder))
        self.sequences = {
            user: items for user, items in found.items() if len(items) > 1 and user not in held_out
        }
        self.seen = {
            user: frozenset(item.index for item in items) for user, items in self.sequences.items()
        }

    def _by_user(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> dict[int, list[Item]]:
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        return {
            int(users[start]): [self.catalogue[k] for k in part]
            for start, part in zip(starts, np.split(items, starts)[1:], strict=True)
        }

    def _set_up_evidence(self, pattern: EvidencePattern | None) -> None:
        """Recommenders for validation, and for each part of the users some that do not know it."""
        data = read_fitting_data(self.folder)
        self.evidence = RecommenderEvidence(pattern, data)
        for split in SPLITS:
            self.evidence.check(self.episodes(split))
        order = np.random.default_rng(self.settings.seed).permutation(sorted(self.sequences))
        parts = [part.tolist() for part in np.array_split(order, self.n_folds)]
        self.folds = [RecommenderEvidence(pattern, data.without(part)) for part in parts]
        self.fold_of = {user: number for number, part in enumerate(parts) for user in part}

    def train_dataloader(self) -> DataLoader[Any]:
        """Every sequence of every user, in a new random order per epoch."""
        stretches = [
            (user, number) for user in self.sequences for number in range(self.n_sequences(user))
        ]
        return self._loader(stretches, shuffle_seed=self.draw_seed)

    def n_sequences(self, user: int) -> int:
        """Sequences of a user in an epoch."""
        return -(-len(self.sequences[user]) // self.n_items)

    def val_dataloader(self) -> DataLoader[Any]:
        """The policy's training and validation users."""
        return self._loader(self._episodes["train"] + self._episodes["validation"])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw the instructions of this epoch."""
        if self.trainer is None or not self.trainer.training:
            return batch
        epoch = self.trainer.current_epoch
        return [self.draw(user, number, epoch) for user, number in batch]

    def draw(self, user: int, number: int, epoch: int) -> Instruction:
        """The instruction from one sequence of one user in one epoch."""
        rng = np.random.default_rng([self.draw_seed, epoch, user, number])
        items = self.sequences[user]
        start = self.draw_start(user, rng)
        return draw_instruction(
            items[start : start + self.n_items],
            self.catalogue,
            self.seen[user],
            self.patterns,
            rng,
            n_candidates=self.settings.n_candidates,
            max_history=self.max_history,
            display=self.display,
            profile=self.profiles[user],
            past=items[:start],
            evidence=self.evidence_for(user),
            user=user,
            target_last=self.targets == "validation",
        )

    def draw_start(self, user: int, rng: np.random.Generator) -> int:
        """Where in the user's interactions a sequence begins."""
        return int(rng.integers(max(1, len(self.sequences[user]) - self.n_items + 1)))

    def evidence_for(self, user: int) -> RecommenderEvidence | None:
        """Recommenders that were fitted without the user."""
        return self.folds[self.fold_of[user]] if self.folds else None
