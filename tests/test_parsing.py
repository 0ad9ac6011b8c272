"""Replies to candidate positions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpp.parsing import parse_reply
from rpp.prompts.compose import identifier
from rpp.types import Item

FILMS = ("Heat", "Casino", "Ronin", "The Matrix")
NUMBERS = ("1984", "12 Angry Men", "10", "Seven", "2001: A Space Odyssey", "300")
INITIALS = ("L.A. Confidential", "X-Men", "Titanic", "R.E.M. Live")
SHORT = ("It", "Up", "M", "E.T.")
NESTED = ("Star Wars", "Star Wars: The Empire Strikes Back", "Alien", "Aliens", "Toy Story 2")
DATED = ("Toy Story (1995)", "Alien (1979)", "Heat (1995)")
YEARS = ("Heat (1995)", "Heat (1972)", "Casino")


def read(titles, reply, identifiers=False):
    items = [Item(index, title) for index, title in enumerate(titles)]
    return parse_reply(reply, items, identifiers=identifiers)


@pytest.mark.parametrize(
    ("titles", "reply", "named", "unmatched"),
    [
        (FILMS, "1. Ronin\n2. Heat\n3. The Matrix\n4. Casino", [2, 0, 3, 1], 0),
        (FILMS, "1.Ronin\n2) Heat\n3: The Matrix\n[4] Casino", [2, 0, 3, 1], 0),
        (FILMS, "1. **The Matrix**\n2. __Heat__\n* *Ronin*", [3, 0, 2], 0),
        (FILMS, "1. \"Casino\"\n2) 'Ronin'\n3. “Heat”", [1, 2, 0], 0),
        (FILMS, "1. CASINO\n2. the matrix", [1, 3], 0),
        (FILMS, "B. Heat\n1. A. Ronin", [0, 2], 0),  # Heat is A: the title decides
        (FILMS, "B. Heat\nC. Casino", [0, 1], 0),
        (FILMS, "- Heat: because you like crime\n- Ronin – tense\n- Casino (long)", [0, 2, 1], 0),
        (FILMS, "1. Heat - better than Casino\n2. Ronin (unlike Heat)", [0, 2], 0),
        (FILMS, "Heat, Casino, Ronin, The Matrix", [0, 1, 2, 3], 0),
        (FILMS, "Ronin > The Matrix > Heat > Casino", [2, 3, 0, 1], 0),
        (FILMS, "1. Ronin 2. Heat 3. Casino", [2, 0, 1], 0),
        (FILMS, "1. Ronin (1998)\n2. The Matrix (1999)", [2, 3], 0),
        (FILMS, "Ronin (1998), Heat (1995), Casino (1995)", [2, 0, 1], 0),
        (FILMS, "1. Heat (1995) - like Casino", [0], 0),
        (FILMS, "1. Ronin\n2. Ronin\n3. Heat\n4. Ronin", [2, 0], 0),
        (FILMS, "Ronin, Heat, Ronin", [2, 0], 0),
        (FILMS, "1. Alien\n2. Heat\n3. Heatwave", [0], 2),
        (FILMS, "Sure! Here you are:\n\n1. Ronin\n\nEnjoy!", [2], 2),
        (FILMS, "B\nA\nC", [], 3),  # identifiers nobody asked for
        (FILMS, "1\n2\n3", [], 3),
        (FILMS, "2, 1, 4, 3", [], 1),
        (FILMS, "I cannot help with that.", [], 1),
        (FILMS, "", [], 0),
        (FILMS, " \n\n***\n---\n", [], 0),
        (FILMS, "1. Heat\r\n2. Casino\r\n", [0, 1], 0),
        (SHORT, "1. It\n2. **Up**\n3. M", [0, 1, 2], 0),
        (INITIALS, "X-Men\nTitanic\nL.A. Confidential\nR.E.M. Live", [1, 2, 0, 3], 0),
        (INITIALS, "A. X-Men\nB. L.A. Confidential", [1, 0], 0),
        (SHORT, "It is hard to say what is Up", [], 1),
        (SHORT, "1. It (2017)\n2. Up - balloons\n3. M (1931)", [0, 1, 2], 0),
        (SHORT, "M. Up", [1], 0),  # M is an identifier here
        (SHORT, "M — a city seeks a murderer", [2], 0),
        (SHORT, "1. E.T.\n2. It", [3, 0], 0),
        (SHORT, "1. E.T. (1982)", [3], 0),
        (SHORT, "A. E.T. - a classic", [3], 0),
        (NUMBERS, "1. 1984\n2. 12 Angry Men\n3. 10\n4. 300", [0, 1, 2, 5], 0),
        (NUMBERS, "1984\n12 Angry Men\n300\n10", [0, 1, 5, 2], 0),
        (NUMBERS, "10. Seven\n9. 10\n8. 300 (2006)", [3, 2, 5], 0),
        (NUMBERS, "10 - Seven (1995)\n10) Alien", [3], 1),  # 10 is the rank
        (NUMBERS, "300 (2006)\n1984 (1956)", [5, 0], 0),
        (NUMBERS, "1. 2001: A Space Odyssey\n2. 12 Angry Men (1957)", [4, 1], 0),
        (NUMBERS, "12. 12 Angry Men", [1], 0),
        (NUMBERS, "1. Ghostbusters (1984)\n2. The Terminator 1984", [], 2),
        (NUMBERS, "Seven (1995), 12 Angry Men (1957), Ghostbusters (1984)", [3, 1], 0),
        (NESTED, "1. Star Wars: The Empire Strikes Back\n2. Star Wars", [1, 0], 0),
        (NESTED, "Star Wars: The Empire Strikes Back, Alien", [1, 2], 0),
        (NESTED, "Star Wars, Star Wars: The Empire Strikes Back", [0, 1], 0),
        (NESTED, "1. Aliens\n2. Alien", [3, 2], 0),
        (NESTED, "Aliens and Alien", [3, 2], 0),
        (NESTED, "2. Toy Story 2\n1. Toy Story", [4], 1),
        (NESTED, "1. Star Wars: Episode IV", [0], 0),
        (YEARS, "1. Heat (1972)\n2. Heat (1995)\n3. Casino (1995)\n4. Heat", [1, 0, 2], 1),
        (DATED, "1. Alien\n2. Toy Story\n3. heat", [1, 0, 2], 0),
        (DATED, "Alien, Toy Story (1995), Heat", [1, 0, 2], 0),
        (FILMS, "As you love Heat, I suggest:\n1. Ronin\n2. Heat", [2, 0], 0),
        (FILMS, "1. Heat\n2. Ronin\nImproved:\n1. Ronin\n2. Heat", [2, 0], 1),
        (FILMS, "1. Heat\n2. Ronin\n3. Casino\nWhy:\n1. Ronin is tense", [0, 2, 1], 1),
        (FILMS, "1. Heat\n1. Ronin\n1. Casino", [0, 2, 1], 0),
        (("Amélie", "WALL·E", "Se7en"), "1. Ame\u0301lie\n2. Wall-E\n3. SE7EN", [0, 1, 2], 0),
        (("...", "Heat"), "1. ...\n...\n2. Heat", [0, 1], 0),
        (("!!!", "Muse", "÷"), "1. !!!\n2. ÷\n3. Muse", [0, 2, 1], 0),
        (FILMS, "1. Heat\n---\n2. Ronin", [0, 2], 0),
        (("七人の侍", "羅生門"), "1. 羅生門\n2. 七人の侍", [1, 0], 0),
    ],
)
def test_titles_are_read(titles, reply, named, unmatched):
    assert read(titles, reply) == (named, unmatched)


@pytest.mark.parametrize(
    ("reply", "named", "unmatched"),
    [
        ("B\nA\nD\nC", [1, 0, 3, 2], 0),
        ("1. B\n2. A\n3) D", [1, 0, 3], 0),
        ("B, A, D, C", [1, 0, 3, 2], 0),
        ("B > A > D", [1, 0, 3], 0),
        ("**B**\n(A)\n[D]", [1, 0, 3], 0),
        ("1. B 2. A", [1, 0], 0),
        ("B - because", [1], 0),
        ("B. Heat", [0], 0),  # a title on the line decides
        ("B\nB\nA", [1, 0], 0),
        ("E\nZ", [], 2),  # outside the candidates
        ("A good choice is the following", [], 1),
        ("I think so", [], 1),
        ("b\na", [], 2),
        ("BA", [], 1),
        ("", [], 0),
    ],
)
def test_identifiers_are_read_where_they_were_asked_for(reply, named, unmatched):
    assert read(FILMS, reply, identifiers=True) == (named, unmatched)


def test_double_letters_are_identifiers():
    titles = [f"Film number {k}" for k in range(28)]
    assert read(titles, "AB\nAA\nA", identifiers=True) == ([27, 26, 0], 0)


LIST = "1. Ronin\n2. Heat\n3. The Matrix\n4. Casino"
SHOWN = "- Heat\n- Casino\n- Ronin\n- The Matrix"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<THINK>", "</THINK>"),
        ("<thinking>", "</thinking>"),
        ('<thought type="long">', "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<reflection>", "</reflection>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<thinking>Hm. <reflection>No.</reflection>", "</thinking>\n<output>"),
        ("", "</think>"),  # the template of the prompt has begun it
    ],
)
@pytest.mark.parametrize(
    "draft", [SHOWN, SHOWN.replace("- ", ""), "1. Heat\n2. Casino", "Heat, Casino"]
)
def test_reasoning_is_no_answer(opening, closing, draft):
    """Reasoning that went through the candidates was once the ranking, in the order shown."""
    reply = f"{opening}\nThe list:\n{draft}\nHm.\n{closing}\n\n{LIST}"
    assert read(FILMS, reply)[0] == [2, 0, 3, 1]
    if opening:
        assert read(FILMS, f"{opening}\nThe list:\n{draft}\nLet me")[0] == []
        assert read(FILMS, f"{LIST}\n{opening}\n{draft}\n{closing}")[0] == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("titles", "reply", "named"),
    [
        (FILMS, f"{SHOWN}\n\nFinal ranking:\n{LIST}", [2, 0, 3, 1]),
        (FILMS, f"{SHOWN}\nSo:\n- Ronin\n- Heat\n- The Matrix\n- Casino", [2, 0, 3, 1]),
        (FILMS, "A. Heat\nB. Casino\nC. Ronin\nD. The Matrix\n" + LIST, [2, 0, 3, 1]),
        (FILMS, f"a) Heat\nb) Casino\nc) Ronin\nd) The Matrix\n\n{LIST}", [2, 0, 3, 1]),
        (FILMS, f"{SHOWN}\nRonin\nHeat\nThe Matrix\nCasino", [2, 0, 3, 1]),
        (FILMS, f"{SHOWN}\nFinal: Ronin > Heat > The Matrix > Casino", [2, 0, 3, 1]),
        (FILMS, f"{LIST}\n\nWhy:\n- Casino is last\n- Heat is tense", [2, 0, 3, 1]),
        (FILMS, f"{LIST}\n5. Ronin\n6. Heat", [2, 0, 3, 1]),  # a model that does not stop
        (FILMS, "1. Ronin\n   - like Heat\n2. Heat\n   - not Casino\n3. Casino", [2, 0, 1]),
        (FILMS, "- Heat\n- Casino\n\n1. Ronin\n2. The Matrix", [0, 1, 2, 3]),  # two tiers
        (("M. Butterfly (1993)", *FILMS), "Heat\nM. Butterfly (1993)\nRonin", [1, 0, 3]),
        (("M. Butterfly (1993)", *FILMS), "Heat - crime\nM. Butterfly - love", [1, 0]),
        (("13. Warrior", *FILMS), "Casino\nHeat\n13. Warrior\nRonin", [2, 1, 0, 3]),
        (("V - The Series", *FILMS), "Casino\nV - The Series\nRonin", [2, 0, 3]),
        (("13. Warrior", "Warrior"), "1. Warrior\n2. 13. Warrior", [1, 0]),
    ],
)
def test_the_last_complete_list_counts(titles, reply, named):
    """Drafts as bullets or letters, and titles that look like a list, were once the ranking."""
    assert read(titles, reply)[0] == named


def test_drafts_of_identifiers():
    reply = "First A, B, C, D.\n<think>A\nB</think>\n1. D\n2. A\n3. C\n4. B"
    assert read(FILMS, reply, identifiers=True)[0] == [3, 0, 2, 1]


ODD = ("M. Butterfly (1993)", "13. Warrior", "V - The Series", "It", "1984", "X-Men", "Alien")
EVERY = (*FILMS, *ODD, "Aliens", "Heat and Dust (1983)", "L.A. Confidential", "WALL·E", "羅生門")
MARKS = {
    "numbers": "{k}. {title}",
    "brackets": "{k}) {title}",
    "letters": "{letter}. {title}",
    "bullets": "- {title}",
    "stars": "* {title}",
    "plain": "{title}",
}


def written(titles, mark):
    return [
        MARKS[mark].format(k=k, letter=identifier(k - 1), title=title)
        for k, title in enumerate(titles, start=1)
    ]


@st.composite
def replies(draw):
    """Candidates, anything at all, and then one list of all of them."""
    titles = draw(st.lists(st.sampled_from(EVERY), min_size=2, max_size=7, unique=True))
    marks = st.sampled_from(sorted(MARKS))
    lists = st.builds(written, st.lists(st.sampled_from(titles), max_size=8), marks)
    line = st.one_of(st.text(), st.sampled_from(["", "So:", "<think>Heat</think>", "1.", "- "]))
    before = draw(st.lists(st.one_of(lists, line.map(lambda text: [text])), max_size=5))
    order = draw(st.permutations(range(len(titles))))
    last = written([titles[k] for k in order], draw(marks))
    return titles, "\n".join([*(text for some in before for text in some), *last]), list(order)


@given(replies())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_final_list_of_all_candidates_is_the_ranking_whatever_stands_before_it(given_reply):
    titles, reply, order = given_reply
    assert read(titles, reply)[0] == order


@given(st.one_of(st.text(), replies().map(lambda made: made[1])), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_reply_raises_or_names_a_position_twice(reply, identifiers):
    named, unmatched = read(EVERY, reply, identifiers)
    assert len(set(named)) == len(named)
    assert set(named) <= set(range(len(EVERY)))
    assert 0 <= unmatched <= len(reply.splitlines())
