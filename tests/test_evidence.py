"""The pattern of evidence: its options, its sentences in a prompt, what it changes and not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence_setup import EVIDENCE, WITH_EVIDENCE, Fixed
from patterns_setup import MINIMAL, load

from rpp.prompts.compose import Display, compose
from rpp.prompts.patterns import load_patterns
from rpp.prompts.static import draw_static_prompts
from rpp.types import InputError

MANUAL = "\nmanual: {role: 1, history: 4, reasoning: 2, format: 1}\n"
ORDERS = {"first": (3, *range(3), *range(4, 10)), "second": (5, 7, *range(5), 6, 8, 9)}


@pytest.fixture
def patterns(tmp_path):
    return load(tmp_path, WITH_EVIDENCE)


@pytest.mark.parametrize(
    ("option", "words", "said"),
    [
        (0, "nothing", []),
        (1, "first top 1", ["They saw: {3}."]),
        (2, "second top 2", ["Near: {5}; {7}!"]),
        (3, "first top 1, second top 1", ["They saw: {3}.", "Near: {5}!"]),
    ],
)
@pytest.mark.parametrize("answer", ["titles", "identifiers"])
@pytest.mark.parametrize("show", [True, False])
def test_evidence_stands_before_the_reasoning(
    patterns, tiny_episodes, option, words, said, answer, show
):
    """Whatever the decoding; the list keeps its order; each source has a line of its own."""
    episode = tiny_episodes[0]
    evidence = Fixed(**ORDERS)
    display = Display(show, answer)
    (prompt,) = compose(
        [episode], patterns, [[0, 0, 1, 0, option]], [2], display, evidence=evidence
    )
    titles = [item.title for item in episode.candidates]
    lines = [line.format(*titles) for line in said]
    (plain,) = compose([episode], without_evidence(patterns), [[0, 0, 1, 0]], [2], display)
    before, after = plain.text.split("\nRank all 10.")
    assert prompt.text == "\n".join([before, *lines, f"Rank all 10.{after}"])
    assert prompt.sentences == (*plain.sentences, " ".join(lines))
    assert patterns.describe("evidence", option) == words


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ("very: 2, rather: 1.5, so-so: 0.5", ["{3}, very", "{0}, so-so"]),  # 2.5, 1.5 and 0.5
        ("very: 2.5", []),  # a bound is not above itself, and without a title there is no sentence
    ],
)
def test_grades_tell_how_strongly_titles_are_recommended(tmp_path, tiny_episodes, bounds, said):
    """The word with the highest bound below the z-score; nothing of what is below all."""
    graded = EVIDENCE.replace('"They saw: {titles}."', f'"Saw: {{titles}}.", grades: {{{bounds}}}')
    patterns = load(tmp_path, MINIMAL + graded.replace("first: 1", "first: 3"))
    episode = tiny_episodes[0]
    (prompt,) = compose(
        [episode], patterns, [[0, 0, 1, 0, 3]], [2], Display(), evidence=Fixed(**ORDERS)
    )
    titles = [item.title for item in episode.candidates]
    sentences = [f"Saw: {'; '.join(said)}."] if said else []
    assert prompt.sentences[-1] == " ".join([*sentences, "Near: {5}!"]).format(*titles)


def without_evidence(patterns):
    """The same patterns without evidence."""
    return replace(patterns, evidence=None)


def test_each_source_is_asked_once_for_the_users_who_need_it(patterns, tiny_episodes):
    evidence = Fixed(**ORDERS)
    options = [0, 1, 2, 3, 3, 0]
    actions = [[0, 0, 0, 0, option] for option in options]
    prompts = compose(tiny_episodes[:6], patterns, actions, [1] * 6, Display(), evidence=evidence)
    assert evidence.asked == [("first", 3), ("second", 3)]
    for episode, prompt, option in zip(tiny_episodes[:6], prompts, options, strict=True):
        assert (f"They saw: {episode.candidates[3].title}." in prompt.text) == (option in (1, 3))
    nothing = [[0, 0, 0, 0, 0]] * 2
    compose(tiny_episodes[:2], patterns, nothing, [1, 1], Display())  # needs no recommenders
    with pytest.raises(InputError, match="candidates of first, but no recommenders are at hand"):
        compose(tiny_episodes[:1], patterns, actions[1:2], [1], Display())


def test_prompts_share_what_stands_before_the_evidence(patterns, tiny_episodes):
    episodes = tiny_episodes[:1] * 4
    actions = [[0, 0, 0, 0, option] for option in (0, 1, 3, 2)]
    for layout in ("paper", "history_first"):
        texts = [
            prompt.text
            for prompt in compose(
                episodes, patterns, actions, [4] * 4, Display(layout=layout),
                evidence=Fixed(**ORDERS),
            )
        ]  # fmt: skip
        before = len(texts[0].split("Rank them.")[0])
        assert all(text.startswith(texts[0][:before]) for text in texts[1:])
        # the second source's sentence follows the first one's
        assert texts[2].startswith(texts[1].split("Rank them.")[0])


def test_refiners_never_see_evidence(patterns, tiny_episodes):
    def refine(sentence):
        assert "{titles}" not in sentence
        assert "They saw" not in sentence
        return sentence.upper()

    (prompt,) = compose(
        tiny_episodes[:1], patterns, [[0, 0, 0, 0, 1]], [1], Display(), refine=refine,
        evidence=Fixed(**ORDERS),
    )  # fmt: skip
    assert "They saw: " in prompt.text
    assert prompt.chosen[-1] == prompt.sentences[-1]


def test_four_patterns_stay_four(patterns, tmp_path):
    """A file without the section has neither a fifth agent nor another fingerprint."""
    plain = load(tmp_path, MINIMAL)
    assert plain.names == ("role", "history", "reasoning", "format")
    assert plain.fingerprint == "6e0a350f2a79c849"  # as checkpoints have written down
    assert patterns.fingerprint == "93baafa69f8f277c"  # the same without grades
    assert patterns.names == (*plain.names, "evidence")
    assert patterns.n_actions == (*plain.n_actions, 4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("They saw", "Others saw"),
        ("seed: 1", "seed: 2"),
        ("AtRandom}", "AllAlike}"),
        ("second: 2", "second: 3"),
        ("seed: 1}}", "seed: 1}, grades: {very: 1}}"),
    ],
    ids=["sentence", "argument", "class", "k", "grades"],
)
def test_a_policy_fits_only_its_own_evidence(patterns, tmp_path, old, new):
    other = load(tmp_path, MINIMAL + EVIDENCE.replace(old, new, 1))
    assert other.fingerprint != patterns.fingerprint


def test_what_is_not_learnt_names_nothing_or_the_manual_option(tmp_path, tiny_episodes):
    learnt = load(tmp_path, WITH_EVIDENCE + MANUAL).learning(["role"])
    assert learnt.names == ("role",)
    (prompt,) = compose(tiny_episodes[:1], learnt, [[0]], [4], Display())
    assert prompt.sentences[-1] == ""
    other = load(tmp_path, WITH_EVIDENCE + MANUAL.replace("}", ", evidence: 2}"))
    (prompt,) = compose(
        tiny_episodes[:1], other.learning(["role"]), [[0]], [4], Display(),
        evidence=Fixed(**ORDERS),
    )  # fmt: skip
    assert prompt.sentences[-1].startswith("They saw")
    alone = other.learning(["evidence"])
    drawn = draw_static_prompts(alone, 100, n_steps=2, seed=0)
    assert {(each.actions, each.length) for each in drawn} == {((k,), 4) for k in range(4)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("They saw: {titles}.", "They saw some.", r"write \{titles\} once"),
        ("{first: 1}", "{third: 1}", "no source 'third': it has first, second"),
        ("{first: 1}", "{first: 0}", "the first 0 of first: name at least 1"),
        ("options: [{}, ", "options: [3, ", "expected keys and values, found 3"),
        ("[{}, {first: 1}, {second: 2}, {first: 1, second: 1}]", "[]", "has no options"),
        ("class_path", "class", "did you mean 'class_path'"),
        ("seed: 1}}", "seed: 1}, grades: {a: 0, b: 1}}", "give the highest z-score first"),
        ("seed: 1}}", "seed: 1}, grades: {a: 1, b: 1}}", "give the highest z-score first"),
        ("seed: 1}}", "seed: 1}, grades: {a: high}}", "expected a number, found 'high'"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, MINIMAL + EVIDENCE.replace(old, new, 1))


def test_a_manual_option_must_exist(tmp_path):
    with pytest.raises(InputError, match="manual evidence is 5"):
        load(tmp_path, WITH_EVIDENCE + MANUAL.replace("}", ", evidence: 5}"))


@pytest.mark.parametrize(
    "name", ["movies_evidence", "movies_graded", "games_evidence", "music_evidence"]
)
def test_the_project_has_evidence_for_every_domain(name):
    patterns = load_patterns(f"conf/patterns/{name}.yaml")
    assert patterns.describe("evidence", 0) == "nothing"
    assert patterns.names[-1] == "evidence"
    assert patterns.manual is not None
