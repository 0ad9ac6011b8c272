"""Instructions an adapter learns from: what they hold, and from whom they are drawn."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from tuning_setup import CATALOGUE, OWN, PATTERNS, SEEN, draw
from tuning_setup import data as data

from rpp.data.interactions import load_training_pairs
from rpp.prompts.compose import Display
from rpp.tuning.datamodule import InstructionDataModule
from rpp.tuning.instructions import draw_instruction
from rpp.types import InputError


def parts(text, spans):
    return [text[a:b] for a, b in spans]


def test_packed_history_goes_on_where_the_prompt_ends():
    lengths = set()
    for seed in range(40):
        made = draw(seed, max_history=5)
        shown = parts(made.prompt, made.prompt_spans)
        told = parts(made.output, made.output_spans)
        assert [*shown, *told] == [f" {item.title}\n" for item in OWN]
        assert made.candidates[0] == told[0].strip()
        assert made.output.startswith(f"1. {told[0].strip()}\n2. ")
        lengths.add(len(shown))
    assert lengths == {1, 2, 3, 4, 5}


def test_rankings_name_the_target_first_and_learn_the_output_alone():
    firsts = set()
    for seed in range(40):
        made = draw(seed, display=Display(show_candidates=True))
        assert made.prompt_spans == ()
        told = [part.strip() for part in parts(made.output, made.output_spans)]
        assert told == list(made.candidates)
        assert told[0] == OWN[-1].title
        listed = [
            line[3:] for line in made.prompt.split("\n") if line[1:3] == ". " and line[0] > "9"
        ]
        assert sorted(listed) == sorted(told)
        firsts.add(listed.index(told[0]))
    assert len(firsts) > 5  # the target's position varies


def test_rankings_by_identifier():
    made = draw(display=Display(show_candidates=True, answer="identifiers"))
    told = [part.strip() for part in parts(made.output, made.output_spans)]
    assert sorted(told) == list("ABCDEFGHIJ")
    by_letter = dict(
        line.split(". ", 1)
        for line in made.prompt.split("\n")
        if line[1:3] == ". " and line[0] > "9"
    )
    assert [by_letter[letter] for letter in told] == list(made.candidates)


def test_negatives_are_new_to_the_user_and_different():
    for seed in range(20):
        made = draw(seed)
        others = made.candidates[1:]
        assert len(set(made.candidates)) == 10
        assert all(int(title.split()[1]) not in SEEN for title in others)


def test_prompts_cover_the_whole_action_space():
    texts = [draw(seed).prompt for seed in range(300)]
    for sentence in (*PATTERNS.role, *PATTERNS.reasoning, *(f.titles for f in PATTERNS.format)):
        shown = sentence.replace("{n_candidates}", "10")
        assert any(shown in text for text in texts)


def test_nobody_who_validates_or_tests_is_learnt_from(data):
    held_out = {e.user for split in ("validation", "test") for e in data.episodes(split)}
    assert held_out.isdisjoint(data.sequences)
    assert {e.user for e in data.episodes("train")} <= set(data.sequences)
    users, items = load_training_pairs(data.folder)
    for user in list(data.sequences)[:50]:
        assert [item.index for item in data.sequences[user]] == items[users == user].tolist()


def test_an_epoch_covers_the_interactions_once_and_differs_from_the_next(data):
    loader = data.train_dataloader()
    stretches = [stretch for batch in loader for stretch in batch]
    assert len(stretches) == len(set(stretches))
    expected = sum(math.ceil(len(items) / 12) for items in data.sequences.values())
    assert len(stretches) == expected
    user = next(user for user, items in data.sequences.items() if len(items) > 15)
    assert data.draw(user, 0, 0) == data.draw(user, 0, 0)
    assert data.draw(user, 0, 0) != data.draw(user, 0, 1)
    assert data.draw(user, 0, 0) != data.draw(user, 1, 0)


def test_another_draw_seed_draws_anew_from_the_same_users(data):
    user = next(user for user, items in data.sequences.items() if len(items) > 15)
    before, drawn = list(chain(*data.train_dataloader())), data.draw(user, 0, 0)
    held_out = data.left_out
    data.draw_seed = 4
    assert data.draw(user, 0, 0) != drawn
    after = list(chain(*data.train_dataloader()))
    assert after != before
    assert sorted(after) == sorted(before)
    data.setup("fit")
    assert data.left_out == held_out


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_draw_seed_out_of_range(seed):
    with pytest.raises(InputError, match=f"draw_seed is {seed}: give a number from 0 to"):
        InstructionDataModule(name="ml-100k", draw_seed=seed)


def test_nobody_left_to_tune_on(data, monkeypatch):
    monkeypatch.setattr(
        "rpp.tuning.datamodule.load_training_pairs",
        lambda folder: (np.zeros(0, dtype=int), np.zeros(0, dtype=int)),
    )
    with pytest.raises(InputError, match=r"no user of .* is left to tune on"):
        data.setup("fit")


@pytest.mark.parametrize("wrong", [{"n_items": 1}, {"max_history": 0}])
def test_stretches_too_short_are_refused(wrong):
    with pytest.raises(InputError, match="at least 2 and 1 are needed"):
        InstructionDataModule(**wrong)


def test_a_catalogue_smaller_than_the_list():
    few = CATALOGUE[:6]
    made = draw_instruction(few[:3], few, {0, 1, 2}, PATTERNS, np.random.default_rng(0),
                            n_candidates=10, display=Display(answer="identifiers"))  # fmt: skip
    assert len(made.candidates) == 4
