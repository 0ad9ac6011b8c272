"""Tuning on validation interactions, with the recommenders of the policy's prompts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from rpp.baselines import evidence
from rpp.data.interactions import load_pairs
from rpp.tuning import validation_targets
from rpp.tuning.validation_targets import ValidationTargetDataModule
from rpp.types import SPLITS, TargetAccessError

FILE = "conf/patterns/movies_graded.yaml"


@pytest.fixture
def data(prepared_folder, custom_csv, tmp_path, monkeypatch, hasty_sequences):
    """Instructions of some 600 users; the folder may be written to."""
    monkeypatch.setattr(evidence, "N_SPARE", 30)
    shutil.copytree(prepared_folder, tmp_path / "custom")
    made = ValidationTargetDataModule(
        name="custom", data_dir=str(tmp_path), patterns=FILE, custom=custom_csv.files,
        n_train_users=40, n_validation_users=20, n_test_users=20, batch_size=8, n_items=6,
        max_history=4,
    )  # fmt: skip
    made.prepare_data()
    return made


def test_a_sequence_ends_with_the_validation_interaction(data):
    data.setup("fit")
    users, items, splits = load_pairs(data.folder)
    for user in list(data.sequences)[:50]:
        own = items[users == user]
        roles = splits[users == user]
        (target,) = own[roles == "validation"]
        told = [item.index for item in data.sequences[user]]
        assert told == [*own[roles == "train"], target]
        made = data.draw(user, 0, 0)
        title = data.catalogue[target].title
        assert made.candidates[0] == title
        assert made.output == f"1. {title}\n"
        shown = [made.prompt[a:b].strip() for a, b in made.prompt_spans]
        assert shown == [data.catalogue[k].title for k in told[-1 - len(shown) : -1]]
        assert 1 <= len(shown) <= 4
        new = set(made.candidates[1:])
        assert new.isdisjoint(data.catalogue[k].title for k in own)  # nor the test interaction
    assert len(data.train_dataloader()) == -(-len(data.sequences) // 8)


def test_who_is_tuned_on(data):
    """Everybody but the policy's users and those on whom recommenders' settings are chosen."""
    data.setup("fit")
    users, _, splits = load_pairs(data.folder)
    policy = {e.user for split in SPLITS for e in data.episodes(split)}
    chosen_on = {episode.user for episode in data.evidence.data.validation}
    assert (len(policy), len(chosen_on)) == (80, 30)
    assert set(data.sequences) == set(users[splits == "validation"]) - policy - chosen_on


def test_evidence_is_that_of_the_policys_prompts(data):
    data.setup("fit")
    pattern = data.patterns.evidence
    assert data.folds == []
    assert data.evidence_for(next(iter(data.sequences))) is data.evidence
    own = evidence.RecommenderEvidence.read(pattern, data.folder)
    assert data.evidence.fingerprint == own.fingerprint
    prompts = [data.draw(user, 0, 0).prompt for user in list(data.sequences)[:30]]
    assert 0.2 < np.mean(["People with my taste" in prompt for prompt in prompts]) < 0.9


def test_recommenders_that_know_a_target_are_refused(data, monkeypatch):
    """Planted: what is fitted includes one validation interaction."""
    data.setup("fit")
    user, own = next(iter(data.sequences.items()))

    def leaking(folder):
        read = evidence.read_fitting_data(folder)
        at = int(np.searchsorted(read.users, user))
        return replace(
            read,
            users=np.insert(read.users, at, user),
            items=np.insert(read.items, at, own[-1].index),
        )

    monkeypatch.setattr(validation_targets, "read_fitting_data", leaking)
    with pytest.raises(TargetAccessError, match=f"with the candidate {own[-1].title!r}"):
        data.setup("fit")
