"""Replies to candidate positions."""

from __future__ import annotations

import pytest

from rpp.parsing import parse_reply
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
        (("...", "Heat"), "1. ...\n...\n2. Heat", [1], 1),  # nothing to compare: names nobody
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
