"""Patterns from YAML, prompts made of them, static prompts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rpp.prompts.compose import Display, compose, identifier
from rpp.prompts.options import FormatSentence, HistoryPattern
from rpp.prompts.patterns import Patterns, load_patterns
from rpp.prompts.static import draw_static_prompts
from rpp.types import InputError

FOLDER = Path(__file__).parents[1] / "conf" / "patterns"

MINIMAL = """\
history_heading: "Seen:"
candidates_heading: "Choose among {n_candidates}:"
role: ["You know films.", ""]
history: {start: 1, increments: [0, 1, 2]}
reasoning: ["Rank them.", "Rank all {n_candidates}."]
format:
  - titles: "Write titles."
    identifiers: "Write letters."
  - "Be brief."
"""


def load(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_patterns(path)


@pytest.fixture
def patterns(tmp_path) -> Patterns:
    return load(tmp_path, MINIMAL)


# Files


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_patterns(path):
    patterns = load_patterns(path)
    with_profile = path.stem == "movies_profile"
    assert patterns.n_actions == ((3, 3, 9, 5, 8) if with_profile else (3, 3, 9, 5))
    assert patterns.manual is not None
    assert (patterns.history.start, patterns.history.increments) == (1, (0, 1, 2))
    for name in ("role", "reasoning", "format"):
        for answer in ("titles", "identifiers"):
            options = [
                patterns.describe(name, k, answer) for k in range(len(getattr(patterns, name)))
            ]
            assert len(set(options)) == len(options)
    assert any("{n_candidates}" in sentence for sentence in patterns.reasoning)


def test_there_are_patterns_for_every_domain_of_the_paper():
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= {"movies", "games", "music"}
    fingerprints = {load_patterns(path).fingerprint for path in FOLDER.glob("*.yaml")}
    assert len(fingerprints) == len(list(FOLDER.glob("*.yaml")))


def test_options_are_read_in_order(patterns):
    assert patterns.n_actions == (2, 3, 2, 2)
    assert patterns.describe("role", 1) == ""
    assert patterns.describe("history", 2) == "+2"
    assert patterns.describe("format", 0) == "Write titles."
    assert patterns.describe("format", 0, "identifiers") == "Write letters."
    assert patterns.format[1] == FormatSentence("Be brief.", "Be brief.")


def test_fingerprint_knows_wording_and_order(patterns, tmp_path):
    assert load(tmp_path, "# a remark\n" + MINIMAL).fingerprint == patterns.fingerprint
    for old, new in [
        ("You know films.", "You know movies."),
        ('"Rank them.", "Rank all {n_candidates}."', '"Rank all {n_candidates}.", "Rank them."'),
        ("[0, 1, 2]", "[0, 1, 3]"),
        ("Seen:", "Watched:"),
    ]:
        assert load(tmp_path, MINIMAL.replace(old, new)).fingerprint != patterns.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reasoning:", "reasonning:", "unknown key 'reasonning': did you mean 'reasoning'?"),
        ("increments:", "increment:", "unknown key 'increment': did you mean 'increments'?"),
        ("identifiers:", "identifier:", "unknown key 'identifier': did you mean 'identifiers'?"),
        ("role:", "zzz:", "unknown key 'zzz': known are history_heading"),
        ('history_heading: "Seen:"\n', "", "missing key 'history_heading'"),
        ('\n    identifiers: "Write letters."', "", "missing key 'identifiers'"),
        ('["Rank them.", "Rank all {n_candidates}."]', "[]", "pattern 'reasoning' has no sentence"),
        ('["You know films.", ""]', "", "pattern 'role' has no sentence"),
        ("{n_candidates}:", "{n_items}:", "unknown placeholder {n_items} in"),
        ("Write letters.", "Write {letter}s.", "unknown placeholder {letter}"),
        ('"You know films."', "12", "expected a sentence, found 12: put it in quotes"),
        ('"Rank them."', "yes", "expected a sentence, found True"),
        ('"Rank them."', "{a: b}", "expected a sentence, found {'a': 'b'}"),
        ('"Rank them."', "null", "expected a sentence, found None"),
        ('["You know films.", ""]', "7", "expected a list, found 7"),
        ('["You know films.", ""]', "One role.", "expected a list, found 'One role.'"),
        ('["You know films.", ""]', "{a: b}", "expected a list, found {'a': 'b'}"),
        ("[0, 1, 2]", "3", "expected a list, found 3"),
        ("[0, 1, 2]", "[0, 1.5]", "expected a whole number, found 1.5"),
        ("[0, 1, 2]", "[0, yes]", "expected a whole number, found True"),
        ("[0, 1, 2]", "[0, -1]", "must be 0 or more"),
        ("[0, 1, 2]", "[]", "either `increments` or `lengths`"),
        ("[0, 1, 2]", "[0, many]", "expected a whole number, found 'many'"),
        ("start: 1", "start: soon", "expected a whole number, found 'soon'"),
        ("[0, 1, 2]}", "[0, 1], lengths: [1]}", "either `increments` or `lengths`"),
        ("start: 1", "start: 0", "history start is 0"),
        ("{start: 1, increments: [0, 1, 2]}", "3", "expected the keys start"),
        ('"Seen:"', '"Seen:', "line "),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, old, new, message):
    """A role that was one sentence, not a list, once gave an action per letter."""
    assert old in MINIMAL
    with pytest.raises(InputError) as caught:
        load(tmp_path, MINIMAL.replace(old, new, 1))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_malformed_yaml_names_the_line(tmp_path):
    with pytest.raises(InputError, match=r"mine\.yaml, line 4: not valid YAML"):
        load(tmp_path, MINIMAL.replace('["You know films.", ""]', "\n  - say: this: that"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "only text"])
def test_no_mapping_is_no_patterns_file(tmp_path, text):
    with pytest.raises(InputError, match="expected the keys history_heading"):
        load(tmp_path, text)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(InputError, match=r"no patterns file .*gone\.yaml: name one"):
        load_patterns(tmp_path / "gone.yaml")
    path = tmp_path / "latin.yaml"
    path.write_bytes(MINIMAL.replace("films", "d\xe9j\xe0 vu").encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_patterns(path)


def test_history_pattern_by_hand():
    growing = HistoryPattern(start=1, increments=(0, 1, 2))
    assert [growing.next_length(4, action) for action in range(3)] == [4, 5, 6]
    absolute = HistoryPattern(lengths=(1, 5, 20))
    assert [absolute.next_length(4, action) for action in range(3)] == [1, 5, 20]
    assert absolute.n_actions == 3


# Prompts


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
    texts = set()
    for agent, n in enumerate(patterns.n_actions):
        for action in range(n):
            actions = [0] * len(patterns.names)
            actions[agent] = action
            length = patterns.history.next_length(1, patterns.chosen(actions)["history"])
            (prompt,) = compose([episode], patterns, [actions], [length], Display(answer=answer))
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


# Static prompts


def test_static_prompts_are_different_and_reachable(patterns):
    prompts = draw_static_prompts(patterns, n_prompts=40, n_steps=2, seed=0)
    assert len(set(prompts)) == 40
    for prompt in prompts:
        assert all(0 <= a < n for a, n in zip(prompt.actions, patterns.n_actions, strict=True))
        assert 1 <= prompt.length <= 5  # 1 + 2 steps of at most 2
    assert prompts == draw_static_prompts(patterns, 40, 2, 0)
    assert prompts != draw_static_prompts(patterns, 40, 2, 1)


def test_static_prompts_cover_everything_when_asked_for_more(patterns):
    prompts = draw_static_prompts(patterns, n_prompts=1000, n_steps=2, seed=0)
    assert len(set(prompts)) == len(prompts) == 2 * 2 * 2 * 5
    assert {prompt.length for prompt in prompts} == {1, 2, 3, 4, 5}
    assert {prompt.actions for prompt in prompts} == {
        (role, 0, reasoning, answer)
        for role in range(2)
        for reasoning in range(2)
        for answer in range(2)
    }


def test_static_prompts_with_absolute_lengths(tmp_path):
    patterns = load(tmp_path, MINIMAL.replace("increments: [0, 1, 2]", "lengths: [1, 5, 20]"))
    prompts = draw_static_prompts(patterns, n_prompts=1000, n_steps=7, seed=0)
    assert len(prompts) == 24
    assert all((1, 5, 20)[prompt.actions[1]] == prompt.length for prompt in prompts)


# The first sentences of each pattern


@pytest.mark.parametrize("n", range(1, 11))
def test_the_first_sentences(n):
    """Of 3, 9 and 5: no more than n, the manual prompt's always, and nested."""
    patterns = load_patterns(FOLDER / "movies.yaml")  # manual: role 2, reasoning 5, format 1
    fewer, more = patterns.first(n), patterns.first(n + 1)
    for name, size in (("role", 3), ("reasoning", 9), ("format", 5)):
        assert fewer.n_options(name) == min(n, size)
        assert set(getattr(fewer, name)) <= set(getattr(more, name))
    assert fewer.learning([]) == patterns.learning([])
    assert (fewer.fingerprint == patterns.fingerprint) == (n >= 9)
    if n >= 5:
        assert fewer.reasoning == patterns.reasoning[:n]
    else:
        assert fewer.reasoning == (*patterns.reasoning[: n - 1], patterns.reasoning[4])
    assert fewer.history == patterns.history


def test_the_first_of_a_file_without_a_manual_prompt(patterns):
    assert patterns.manual is None
    assert patterns.first(1).role == patterns.role[:1]
    with pytest.raises(InputError, match="n_sentences is 0: keep at least 1"):
        patterns.first(0)


def test_history_lengths_of_ones_own_take_the_place_of_the_files():
    patterns = load_patterns("conf/patterns/movies.yaml").with_lengths([1, 20])
    assert patterns.n_actions == (3, 2, 9, 5)
    assert patterns.history.next_length(7, 1) == 20
    assert patterns.fingerprint != load_patterns("conf/patterns/movies.yaml").fingerprint
    for wrong in ([], [0]):
        with pytest.raises(InputError, match="history"):
            patterns.with_lengths(wrong)
