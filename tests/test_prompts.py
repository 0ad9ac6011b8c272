"""Prompts made of patterns: what each holds, and what it depends on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from evidence_setup import Fixed

from rpp.prompts.compose import Display, compose, identifier
from rpp.prompts.patterns import load_patterns
from rpp.types import InputError

FOLDER = Path(__file__).parents[1] / "conf" / "patterns"


def history_lines(text):
    return [line.split(". ", 1)[1] for line in text.split("\n") if re.match(r"\d+\. ", line)]


def candidate_lines(text):
    return [
        tuple(line.split(". ", 1)) for line in text.split("\n") if re.match(r"[A-Z]{1,2}\. ", line)
    ]


def test_whole_prompt(patterns, tiny_episodes):
    episode = tiny_episodes[0]
    (prompt,) = compose([episode], patterns, [[0, 2, 1, 0]], [2], Display())
    shown = [
        f"{letter}. {item.title}"
        for letter, item in zip("ABCDEFGHIJ", episode.candidates, strict=True)
    ]
    assert prompt.text.split("\n") == [
        "You know films.",
        "Seen:",
        f"1. {episode.history[-2].title}",
        f"2. {episode.history[-1].title}",
        "Choose among 10:",
        *shown,
        "Rank all 10.",
        "Write titles.",
    ]
    assert prompt.sentences == ("You know films.", "2", "Rank all 10.", "Write titles.")
    assert (prompt.n_history, prompt.n_dropped, prompt.answer) == (2, 0, "titles")
    assert prompt.parts == (
        "You know films.",
        "Seen:",
        *(item.title for item in episode.history[-2:]),
        "Choose among 10:",
        *(item.title for item in episode.candidates),
        "Rank all 10.",
        "Write titles.",
    )


@pytest.mark.parametrize("display", [Display(), Display(False), Display(answer="identifiers")])
def test_parts_are_the_lines_of_the_prompt_without_numbers(patterns, tiny_episodes, display):
    actions = [[k % 2, k % 3, k % 2, (k // 2) % 2] for k in range(12)]  # one role is empty
    for prompt in compose(
        tiny_episodes, patterns, actions, [1 + k % 4 for k in range(12)], display
    ):
        lines = [re.sub(r"^(\d+|[A-Z])\. ", "", line) for line in prompt.text.split("\n")]
        assert list(prompt.parts) == lines


@pytest.mark.parametrize("length", [1, 3, 7, 50])
def test_every_prompt_holds_its_own_users_lists(patterns, tiny_episodes, length):
    prompts = compose(
        tiny_episodes, patterns, [[0, 0, 0, 0]] * 12, [length] * 12, Display(answer="identifiers")
    )
    for prompt, episode in zip(prompts, tiny_episodes, strict=True):
        own = [item.title for item in episode.history][-length:]
        assert history_lines(prompt.text) == own
        assert prompt.n_history == len(own)
        assert candidate_lines(prompt.text) == [
            (identifier(k), item.title) for k, item in enumerate(episode.candidates)
        ]
        for other in tiny_episodes:
            if other is not episode:
                assert not any(i.title in prompt.text for i in other.history + other.candidates)


def test_prompts_do_not_depend_on_the_batch(patterns, tiny_episodes):
    actions = [[k % 2, k % 3, k % 2, (k // 2) % 2] for k in range(12)]
    lengths = [1 + k % 4 for k in range(12)]
    together = compose(tiny_episodes, patterns, actions, lengths, Display())
    turned = compose(tiny_episodes[::-1], patterns, actions[::-1], lengths[::-1], Display())
    assert turned == together[::-1]
    for k in range(12):
        assert compose([tiny_episodes[k]], patterns, [actions[k]], [lengths[k]], Display()) == [
            together[k]
        ]


def test_prompt_does_not_know_the_target(patterns, tiny_episodes):
    episodes = [replace(tiny_episodes[0], withheld=k, split="test") for k in range(10)]
    prompts = compose(episodes, patterns, [[0, 0, 0, 0]] * 10, [3] * 10, Display())
    assert len(set(prompts)) == 1


@pytest.mark.parametrize("name", sorted({path.stem for path in FOLDER.glob("*.yaml")}))
@pytest.mark.parametrize("answer", ["titles", "identifiers"])
def test_changing_one_action_changes_the_prompt(name, answer, tiny_episodes):
    patterns = load_patterns(FOLDER / f"{name}.yaml")
    profile = {"gender": "female", "age": "25-34", "occupation": "writer"}
    episode = replace(tiny_episodes[5], profile=profile)
    sources = patterns.evidence.sources if patterns.evidence else ()
    evidence = Fixed(**dict.fromkeys(sources, tuple(range(10))))
    texts = set()
    for agent, n in enumerate(patterns.n_actions):
        for action in range(n):
            actions = [0] * len(patterns.names)
            actions[agent] = action
            length = patterns.history.next_length(1, patterns.chosen(actions)["history"])
            (prompt,) = compose(
                [episode], patterns, [actions], [length], Display(answer=answer), evidence=evidence
            )
            texts.add(prompt.text)
            assert "{" not in prompt.text
    assert len(texts) == 1 + sum(n - 1 for n in patterns.n_actions)


def test_history_first_puts_the_role_behind_what_a_users_prompts_share(patterns, tiny_episodes):
    episode = tiny_episodes[0]
    display = Display(layout="history_first")
    actions = [[role, 0, 1, 0] for role in range(2)]
    first, second = (compose([episode], patterns, [a], [2], display)[0].text for a in actions)
    assert first.split("\n")[0] == "Seen:"
    assert first.split("\n")[-3:] == ["You know films.", "Rank all 10.", "Write titles."]
    assert first.split("\n")[:-3] == second.split("\n")[: len(first.split("\n")) - 3]


def test_candidates_can_be_hidden(patterns, tiny_episodes):
    episode = tiny_episodes[0]
    (prompt,) = compose([episode], patterns, [[0, 0, 0, 0]], [2], Display(show_candidates=False))
    assert "Choose among" not in prompt.text
    assert not any(item.title in prompt.text for item in episode.candidates)


def test_empty_sentence_leaves_no_empty_line(patterns, tiny_episodes):
    (prompt,) = compose(tiny_episodes[:1], patterns, [[1, 0, 0, 0]], [1], Display())
    assert prompt.text.startswith("Seen:\n1. ")
    assert "\n\n" not in prompt.text
    assert prompt.sentences[0] == ""


def test_context_shortens_the_history_and_never_the_candidates(patterns, tiny_episodes):
    episode = tiny_episodes[5]  # nine past items
    actions = [[0, 0, 0, 0]]
    (whole,) = compose([episode], patterns, actions, [9], Display())
    (six,) = compose([episode], patterns, actions, [6], Display())
    limit = len(six.text)
    (short,) = compose(
        [episode], patterns, actions, [9], Display(), fits=lambda text: len(text) <= limit
    )
    assert (whole.n_history, whole.n_dropped) == (9, 0)
    assert (short.n_history, short.n_dropped) == (6, 3)
    assert short.text == six.text
    assert short.sentences[1] == "6"
    assert history_lines(short.text) == [item.title for item in episode.history[-6:]]
    assert len(candidate_lines(short.text)) == 10


def test_prompt_that_never_fits_is_refused(patterns, tiny_episodes):
    with pytest.raises(InputError, match=r"prompt of user u5 does not fit .* fewer candidates"):
        compose(
            [tiny_episodes[5]], patterns, [[0, 0, 0, 0]], [9], Display(), fits=lambda text: False
        )


def test_refine_sees_sentences_only(patterns, tiny_episodes):
    seen = []

    def refine(sentence):
        seen.append(sentence)
        return f"Please: {sentence}"

    episode = tiny_episodes[0]
    (prompt,) = compose([episode], patterns, [[0, 0, 1, 0]], [4], Display(), refine=refine)
    assert seen == ["You know films.", "Rank all {n_candidates}.", "Write titles."]
    assert "Please: Rank all 10." in prompt.text
    (plain,) = compose([episode], patterns, [[0, 0, 1, 0]], [4], Display())
    assert prompt.text.replace("Please: ", "") == plain.text


def test_number_of_users_must_agree(patterns, tiny_episodes):
    with pytest.raises(ValueError, match="argument"):
        compose(tiny_episodes[:2], patterns, [[0, 0, 0, 0]], [1, 1], Display())
    with pytest.raises(ValueError, match="argument"):
        compose(tiny_episodes[:1], patterns, [[0, 0, 0]], [1], Display())


def test_identifiers():
    assert [identifier(k) for k in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "B", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip
    assert len({identifier(k) for k in range(2000)}) == 2000
