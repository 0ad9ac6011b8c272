"""Tuning on prompts with evidence: by recommenders that have not seen the user."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from evidence_setup import Fixed
from helpers import PEFT
from tuning_setup import CATALOGUE, OWN, SEEN, draw, loaded
from tuning_setup import adapter as adapter

from rpp.data.interactions import load_training_pairs
from rpp.prompts.patterns import load_patterns
from rpp.tuning.datamodule import InstructionDataModule
from rpp.tuning.instructions import draw_instruction
from rpp.types import InputError

pytestmark = PEFT

FILE = "conf/patterns/movies_evidence.yaml"
TOLD = re.compile(r"^(?:People with|These movies|Many people).*: (.+)\.$", re.MULTILINE)


@pytest.fixture
def data(prepared_folder, custom_csv, tmp_path):
    """Instructions with evidence; the folder may be written to."""
    shutil.copytree(prepared_folder, tmp_path / "custom")
    made = InstructionDataModule(
        name="custom", data_dir=str(tmp_path), patterns=FILE, custom=custom_csv.files,
        n_train_users=40, n_validation_users=20, n_test_users=20, batch_size=8, n_items=12,
        max_history=6, n_folds=3,
    )  # fmt: skip
    made.prepare_data()
    made.setup("fit")
    return made


def test_evidence_for_a_user_is_by_recommenders_that_do_not_know_the_user(data):
    """Their targets are training interactions: all of them are left out of what is fitted."""
    users, _ = load_training_pairs(data.folder)
    assert len(data.folds) == 3
    assert set(data.fold_of) == set(data.sequences)
    for user, number in data.fold_of.items():
        fitted = data.folds[number].data
        assert user not in fitted.users
        assert user in fitted.left_out
    others = set(users.tolist()) - set(data.sequences)
    for fold in data.folds:
        assert others <= set(fold.data.users.tolist())  # those held out are not tuned on
    sizes = Counter(data.fold_of.values())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    tuned = {episode.user for fold in data.folds for episode in fold.data.validation}
    assert tuned.isdisjoint(
        e.user for s in ("train", "validation", "test") for e in data.episodes(s)
    )


def test_instructions_draw_every_kind_of_evidence(data):
    """None, one, two and three titles; they are candidates, more often the target than chance."""
    found, right = Counter(), []
    for user in data.sequences:
        made = data.draw(user, 0, 0)
        named = [told.split("; ") for told in TOLD.findall(made.prompt)]
        found[tuple(map(len, named))] += 1
        assert set(chain(*named)) <= set(made.candidates)
        right += [titles[0] == made.candidates[0] for titles in named]
    assert set(found) == {(), (1,), (1, 1), (3,), (3, 3)}
    assert np.mean(right) > 0.15
    assert data.draw(user, 0, 0) == data.draw(user, 0, 0)


def test_a_packed_history_learns_its_own_titles_alone(data):
    """A title of the evidence is no part of the history, wherever else it stands."""
    for user in list(data.sequences)[:30]:
        made = data.draw(user, 0, 0)
        shown = [made.prompt[a:b].strip() for a, b in made.prompt_spans]
        own = [item.title for item in data.sequences[user]]
        told = [made.output[a:b].strip() for a, b in made.output_spans]
        start = own.index(shown[0])
        assert [*shown, *told] == own[start : start + len(shown) + len(told)]
        assert 1 <= len(shown) <= 6


def test_evidence_knows_the_history_that_the_prompt_does_not_tell():
    asked = []

    class Asked(Fixed):
        def orders(self, source, episodes):
            asked.extend(episodes)
            return super().orders(source, episodes)

    patterns = load_patterns(FILE)
    told = Asked(EASE=tuple(range(10)), **{"Item-kNN": tuple(range(10)), "Pop": tuple(range(10))})
    for seed in range(8):
        made = draw_instruction(
            OWN[4:], CATALOGUE, SEEN, patterns, np.random.default_rng(seed), past=OWN[:4],
            evidence=told, user=7, max_history=3,
        )  # fmt: skip
        assert OWN[3].title not in made.prompt
    assert asked
    for episode in asked:
        assert episode.history[:4] == tuple(OWN[:4])
        assert episode.user == 7
        assert episode.candidates[episode.target] == OWN[len(episode.history)]


def test_one_pass_for_all_candidates_of_a_batch(adapter):
    """The mean of each instruction's own loss, with gradients."""
    made = loaded(adapter(listwise_weight=1.0))
    batch = [draw(seed) for seed in range(3)]
    each = torch.stack([made._listwise([instruction]) for instruction in batch])
    together = made._listwise(batch)
    assert together.item() == pytest.approx(each.mean().item(), abs=1e-4)
    together.backward()
    assert any(p.grad is not None and p.grad.any() for p in made.network.parameters())


def test_an_option_of_validation_that_is_not_there(adapter):
    assert adapter(patterns=FILE, evidence=4).options == [0, 0, 0, 0, 3]
    for options in ({"patterns": FILE, "evidence": 9}, {"evidence": 2}, {"evidence": 0}):
        with pytest.raises(InputError, match=f"model.evidence is {options['evidence']}"):
            adapter(**options)


def test_folds_are_at_least_two():
    with pytest.raises(InputError, match="n_folds is 1"):
        InstructionDataModule(name="ml-100k", n_folds=1)
