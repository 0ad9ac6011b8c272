"""Episodes and rankings refuse nonsense; test targets are guarded."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rpp.types import (
    Episode,
    InputError,
    Item,
    Ranking,
    TargetAccessError,
    failed_ranking,
    final_scoring,
    normalise,
    status_of,
)

ROOT = Path(__file__).parents[1]
PAST = (Item(9, "Speed"),)
CANDIDATES = (Item(0, "Heat"), Item(1, "Casino"), Item(2, "Ronin"))


def test_episode_needs_a_history():
    with pytest.raises(InputError, match="user 7 has an empty history: raise min_interactions"):
        Episode(user=7, history=(), candidates=CANDIDATES, withheld=0)


@pytest.mark.parametrize("withheld", [-1, 3])
def test_episode_needs_a_target_in_the_list(withheld):
    with pytest.raises(InputError, match=f"target position {withheld} is not among 3 candidates"):
        Episode(user=7, history=PAST, candidates=CANDIDATES, withheld=withheld)


def test_episode_refuses_an_item_twice():
    with pytest.raises(InputError, match="user anna has an item twice"):
        Episode(7, PAST, (*CANDIDATES, Item(1, "Other")), 0, user_id="anna")


@pytest.mark.parametrize("twin", ["Heat", "heat", " HEAT!"])
def test_episode_refuses_titles_that_cannot_be_told_apart(twin):
    with pytest.raises(InputError, match="two candidates with the title 'heat': rename one"):
        Episode(7, PAST, (*CANDIDATES, Item(3, twin)), 0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_targets_are_open(split):
    assert Episode(0, PAST, CANDIDATES, 2, split).target == 2


def test_test_target_is_guarded():
    episode = Episode(0, PAST, CANDIDATES, 2, "test", user_id="anna")
    with pytest.raises(TargetAccessError, match="test target of user anna"):
        _ = episode.target
    with final_scoring():
        assert episode.target == 2
    with pytest.raises(TargetAccessError):
        _ = episode.target


def test_guard_is_back_after_an_error():
    with pytest.raises(KeyError), final_scoring():
        raise KeyError
    with pytest.raises(TargetAccessError):
        _ = Episode(0, PAST, CANDIDATES, 2, "test").target


def test_episode_does_not_print_its_target():
    text = repr(Episode(0, PAST, CANDIDATES, 2))
    assert "withheld" not in text


def test_the_guarded_field_is_read_nowhere_else():
    """The guard holds only while nobody goes round it."""
    readers = set()
    for folder in ("src", "data_prep"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                read = isinstance(node, ast.Attribute) and node.attr == "withheld"
                named = isinstance(node, ast.Constant) and node.value == "withheld"
                if read or named:  # an attribute, or getattr and asdict by name
                    readers.add(path.relative_to(ROOT).as_posix())
    assert readers <= {"src/rpp/types.py", "src/rpp/data/datamodule.py"}
    assert "src/rpp/types.py" in readers


@pytest.mark.parametrize(
    ("order", "n_named", "status"),
    [
        ((0, 0, 1), 3, "valid"),
        ((0, 1, 3), 3, "valid"),
        ((1, 2, 3), 3, "valid"),
        ((0, 1, 2), 2, "valid"),
        ((0, 1, 2), 3, "repaired"),
        ((0, 1, 2), 0, "repaired"),
        ((0, 1, 2), 0, "failed"),
        ((), 0, "unusable"),
    ],
)
def test_ranking_refuses(order, n_named, status):
    with pytest.raises(ValueError, match=r"not a permutation|contradicts"):
        Ranking(order, n_named, status)


@pytest.mark.parametrize("n_named", [-1, 4])
def test_ranking_refuses_impossible_numbers_of_names(n_named):
    with pytest.raises(ValueError, match="contradicts status"):
        Ranking((0, 1, 2), n_named, "repaired")


@pytest.mark.parametrize(
    ("n_named", "n_candidates", "status"),
    [(3, 3, "valid"), (2, 3, "repaired"), (0, 3, "unusable"), (0, 0, "failed")],
)
def test_status(n_named, n_candidates, status):
    assert status_of(n_named, n_candidates) == status
    assert not Ranking(tuple(range(3)), 3, "valid").failed
    assert failed_ranking("timeout").failed
    assert failed_ranking("timeout").reply == "timeout"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Matrix (1999)", "the matrix 1999"),
        ("  WALL·E ", "wall e"),
        ("Straße", "strasse"),
        ("Amélie", "amélie"),
        ("...", "..."),
        ("七人の侍", "七人の侍"),
        (" !!! \n", "!!!"),
        ("\N{CLAPPER BOARD}", "\N{CLAPPER BOARD}"),
        ("\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "\N{HEAVY BLACK HEART}"),
        ("Muse \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "muse"),
        ("e\N{COMBINING ACUTE ACCENT}", "é"),
        ("\N{COMBINING ACUTE ACCENT}a", "a"),
        (" ", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    "titles",
    [("!!!", "???", "÷", "#####"), ("कि", "का", "की", "क"), ("กิ", "กี"), ("\N{CLAPPER BOARD}", "♥")],
    ids=["signs", "Hindi", "Thai", "emoji"],
)
def test_titles_without_letters_or_with_other_marks_stay_apart(titles):
    """Titles of signs alone, and letters that differ in their vowel signs, were all alike."""
    assert len({normalise(title) for title in titles}) == len(titles)
    items = tuple(Item(index, title) for index, title in enumerate(titles))
    assert Episode(0, PAST, items, 0).candidates == items
