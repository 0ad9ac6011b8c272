"""The pattern of selection: which interactions of the history a prompt shows."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from evidence_setup import Fixed
from patterns_setup import MINIMAL, load
from tuning_setup import CATALOGUE, OWN, SEEN

from rpp.baselines.evidence import RecommenderEvidence, read_fitting_data
from rpp.data.episodes import load_episodes
from rpp.data.lightgcn import LightGCNSettings
from rpp.data.pretrained import load_or_train
from rpp.prompts.compose import Display, compose
from rpp.prompts.selection import SELECTIONS, select
from rpp.tuning.instructions import draw_instruction
from rpp.types import InputError, Item

SELECTION = MINIMAL + "\nselection: [recent, similar, spread]\n"
HISTORY = tuple(Item(k, f"Film {k}") for k in range(9))


@pytest.mark.parametrize(
    ("how", "n", "expected"),
    [
        ("recent", 3, [6, 7, 8]),
        ("similar", 3, [1, 5, 8]),
        ("similar", 4, [1, 5, 7, 8]),
        ("spread", 1, [8]),
        ("spread", 2, [0, 8]),
        ("spread", 3, [0, 4, 8]),
        ("spread", 5, [0, 2, 4, 6, 8]),
        *((how, 20, list(range(9))) for how in SELECTIONS),
    ],
)
def test_selections_by_hand(how, n, expected):
    """Oldest first, whatever is selected; of equally similar items the later ones."""
    similarity = [0, 9, 1, 0, 0, 3, 1, 1, 5]
    assert [item.index for item in select(HISTORY, n, how, lambda: similarity)] == expected


def test_spread_items_differ():
    for n in range(1, 10):
        assert len(set(select(HISTORY, n, "spread", list))) == n


def test_a_prompt_shows_what_is_selected(tmp_path, tiny_episodes):
    patterns = load(tmp_path, SELECTION)
    assert patterns.names == ("role", "history", "reasoning", "format", "selection")
    episode = tiny_episodes[5]  # nine past items
    for option, places in enumerate(([7, 8], [0, 1], [0, 8])):
        actions = [[0, 0, 0, 0, option]]
        (prompt,) = compose([episode], patterns, actions, [2], Display(), evidence=Fixed())
        shown = [item.title for item in prompt.history]
        assert shown == [episode.history[k].title for k in places]
        assert f"Seen:\n1. {shown[0]}\n2. {shown[1]}\n" in prompt.text
        assert prompt.sentences[-1] == SELECTIONS[option] == patterns.describe("selection", option)
    assert patterns.fingerprint != load(tmp_path, MINIMAL).fingerprint
    with pytest.raises(InputError, match=r"past items most similar .* no recommenders"):
        compose([episode], patterns, [[0, 0, 0, 0, 1]], [2], Display())
    compose([episode], patterns, [[0, 0, 0, 0, 1]], [9], Display())  # everything is shown anyway


def test_packed_histories_learn_the_items_that_are_shown(tmp_path):
    patterns = load(tmp_path, MINIMAL + "\nselection: [spread]\n")
    for seed in range(10):
        made = draw_instruction(
            OWN[6:],
            CATALOGUE,
            SEEN,
            patterns,
            np.random.default_rng(seed),
            past=OWN[:6],
            max_history=4,
        )
        shown = [made.prompt[a:b].strip() for a, b in made.prompt_spans]
        assert shown[0] == OWN[0].title or len(shown) == 1
        assert made.prompt.count("Picture") == len(shown)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[]", "selection has no options"),
        ("[latest]", "no selection 'latest': name any of recent, similar, spread"),
    ],
)
def test_mistakes_are_named(tmp_path, section, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, f"{MINIMAL}\nselection: {section}\n")


def test_similarities_are_cosines_to_the_nearest_candidate(prepared_folder, tmp_path):
    folder = shutil.copytree(prepared_folder, tmp_path / "custom")
    vectors = load_or_train(folder, LightGCNSettings(dim=8, n_epochs=1))
    made = RecommenderEvidence(None, read_fitting_data(folder))
    episode = load_episodes(folder, "test")[0]
    (found, *_) = made.similarities(episode)
    past = vectors.items[episode.history[0].index]
    each = [
        torch.cosine_similarity(past, vectors.items[item.index], dim=0)
        for item in episode.candidates
    ]
    assert found == pytest.approx(float(max(each)), abs=1e-6)
