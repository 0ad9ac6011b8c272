"""Constrained decoding as bookkeeping, by hand."""

from __future__ import annotations

from rpp.llms.lines import Lines


def test_allowed_tokens_by_hand():
    lines = Lines([[1, 9], [1, 2, 9], [3, 9]])
    assert lines.allowed() == [1, 3]
    lines.write(1)
    assert lines.allowed() == [2, 9]
    lines.write(9)
    assert lines.order == [0]
    assert lines.allowed() == [1, 3]
    lines.write(1)
    assert lines.allowed() == [2]
    assert lines.force() == []  # only [3, 9] could follow: the order is known
    assert lines.finished
    assert lines.order == [0, 1, 2]


def test_the_first_line_may_be_spelt_in_another_way():
    lines = Lines([[1, 9], [2, 9]], first=[[7, 1, 9], [8, 2, 9]])
    assert lines.allowed() == [7, 8]
    lines.write(8)
    assert lines.force() == []  # one line is left: the order is known
    assert lines.order == [1, 0]
    three = Lines([[1, 9], [2, 9], [3, 9]], first=[[7, 1, 9], [7, 2, 9], [8, 9]])
    for token in (7, 2, 9):
        three.write(token)
    assert three.allowed() == [1, 3]


def test_what_is_no_choice_is_forced():
    lines = Lines([[5, 6, 1, 9], [5, 6, 2, 9], [7, 8, 9]])
    assert lines.force() == []
    lines.write(5)
    assert lines.force() == [6]
    lines.write(1)
    assert lines.force() == [9]
    assert lines.allowed() == [5, 7]
    alike = Lines([[4, 1, 9], [4, 2, 9]])
    assert alike.force() == [4]
    assert not alike.finished
