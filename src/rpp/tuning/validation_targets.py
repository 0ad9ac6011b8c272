"""Ranking instructions whose targets are validation interactions of users who are in no episode."""

from __future__ import annotations

import numpy as np

from rpp.baselines.evidence import RecommenderEvidence, read_fitting_data
from rpp.data.interactions import load_pairs
from rpp.prompts.evidence import EvidencePattern
from rpp.tuning.datamodule import InstructionDataModule
from rpp.types import SPLITS, Episode


class ValidationTargetDataModule(InstructionDataModule):
    """Instructions that look like the policy's prompts, evidence included.

    Recommenders are fitted to training interactions, so the validation interaction of a user is
    new to them: evidence is by the recommenders of the policy's prompts, and none is fitted again.
    Users of an episode are left out, and those on whom settings of recommenders are chosen. An
    epoch has one sequence of every other user.

    Args:
        *args: As :class:`InstructionDataModule`; ``n_folds`` has no effect.
        **kwargs: Likewise.
    """

    targets = "validation"

    def _read_sequences(self) -> None:
        """Training interactions and then the validation interaction; none of the user's is new."""
        users, items, splits = load_pairs(self.folder)
        taken = {e.user for split in SPLITS for e in self._episodes[split]}
        self._fitted_to = read_fitting_data(self.folder)
        chosen_on = {e.user for e in self._fitted_to.validation}
        able = set(users[splits == "validation"].tolist()) - taken - chosen_on
        told = splits != "test"
        self.sequences = {
            user: own
            for user, own in self._by_user(users[told], items[told]).items()
            if len(own) > 1 and user in able
        }
        everything = self._by_user(users, items)
        self.seen = {user: frozenset(i.index for i in everything[user]) for user in self.sequences}

    def _set_up_evidence(self, pattern: EvidencePattern | None) -> None:
        """The recommenders of the policy's prompts; a target that one knows is refused."""
        self.evidence = RecommenderEvidence(pattern, self._fitted_to)
        targets = [
            Episode(user, tuple(own[:-1]), (own[-1],), 0, "validation")
            for user, own in self.sequences.items()
        ]
        self.evidence.check([*(e for split in SPLITS for e in self.episodes(split)), *targets])

    def n_sequences(self, user: int) -> int:
        """One."""
        return 1

    def draw_start(self, user: int, rng: np.random.Generator) -> int:
        """Such that the sequence ends with the target."""
        return max(0, len(self.sequences[user]) - self.n_items)

    def evidence_for(self, user: int) -> RecommenderEvidence | None:
        """Recommenders that know the user's history, and not the target."""
        return self.evidence
