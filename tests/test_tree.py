"""Prompt trees, by hand."""

from __future__ import annotations

import pytest
import torch
from helpers import tree_of

from rpp.llms.plan import Batch
from rpp.llms.tree import Tree, batch_trees, batches, common_length, group


@pytest.fixture
def tree():
    """Prompts 7 8 9 and 7 8 5 6, and one that begins otherwise."""
    return tree_of([7, 8, 9], [7, 8, 5, 6], [3])


def test_common_tokens_are_stored_once(tree):
    assert tree.tokens == [7, 8, 9, 5, 6, 3]
    assert tree.parents == [-1, 0, 1, 1, 3, -1]
    assert tree.depths == [0, 1, 2, 2, 3, 0]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [5]]


def test_a_token_sees_its_own_path_alone(tree):
    seen = [set(row.nonzero()[0].tolist()) for row in tree.visible()]
    assert seen == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 3, 4}, {5}]


def test_padding_is_seen_by_nothing(tree):
    other = Tree()
    other.add([1, 2])
    batch = batch_trees([tree, other], pad=0, dtype=torch.float32)
    assert batch.ids.tolist() == [[7, 8, 9, 5, 6, 3], [1, 2, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 3, 0], [0, 1, 0, 0, 0, 0]]
    assert batch.mask.shape == (2, 1, 6, 6)
    visible = batch.mask[1, 0] == 0
    expected = torch.eye(6, dtype=torch.bool)
    expected[1, 0] = True
    assert torch.equal(visible, expected)


def test_texts_that_do_not_branch_need_no_mask(tree):
    texts = [Tree(), Tree()]
    texts[0].add([7, 8, 9])
    texts[0].add([7, 8])  # all of it is part of the first
    texts[1].add([3])
    batch = batch_trees(texts, pad=0, dtype=torch.float32)
    assert batch.mask is None
    assert batch.ids.tolist() == [[7, 8, 9], [3, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2]] * 2
    assert batch_trees([*texts, tree], pad=0, dtype=torch.float32).mask is not None


def test_common_length():
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([5], [1]) == 0
    assert common_length([], [1]) == 0


def test_prompts_join_where_that_saves_more_than_it_costs():
    prompt_ids = [[1, 2, 3, 4, 5], [9, 9], [1, 2, 3, 4, 6], [1, 2, 3, 4, 5]]
    sizes = [len(head) for head in prompt_ids]
    free = group(prompt_ids, sizes, pair_cost=0, max_size=100)
    assert sorted(map(sorted, free)) == [[0, 2, 3], [1]]
    # rows 0 and 3 are one text: joined, 5 tokens are saved and no pair is added; row 2 would
    # save 4 tokens and make 6 * 6 pairs of 5 * 5 + 5 * 5
    assert sorted(map(sorted, group(prompt_ids, sizes, pair_cost=1e6, max_size=100))) == [
        [0, 2, 3], [1],
    ]  # fmt: skip
    assert sorted(map(sorted, group(prompt_ids, sizes, pair_cost=0, max_size=5))) == [
        [0, 3],
        [1],
        [2],
    ]


def test_long_suffixes_are_not_worth_a_short_beginning():
    """Two prompts of 10 tokens share 1: together 19 * 19 pairs, alone twice 10 * 10."""
    prompt_ids = [[0, *range(1, 10)], [0, *range(11, 20)]]
    added = 19**2 - 2 * 10**2
    assert len(group(prompt_ids, [10, 10], pair_cost=0.9 / added, max_size=100)) == 1
    assert len(group(prompt_ids, [10, 10], pair_cost=1.1 / added, max_size=100)) == 2


def test_batches_hold_similar_sizes_and_every_tree_once():
    sizes = [5, 1, 4, 2, 3]
    made = list(batches(sizes, lambda width, trees: width * len(trees) <= 6))
    assert made == [[1, 3], [4], [2], [0]]
    assert list(batches([], lambda width, trees: True)) == []


def of_rows(rows):
    tree = Tree()
    for row in rows:
        tree.add([9, row])
    return tree


def test_halving_a_batch_keeps_every_tree_and_its_rows():
    a, b, c = (Tree() for _ in range(3))
    batch = Batch([[a, b], [c]], [[4], [1, 2], [0]], build=of_rows)
    first, second = batch.halves()
    assert (first.passes, first.rows) == ([[a, b]], [4, 1, 2])
    assert (second.passes, second.rows) == ([[c]], [0])
    first, second = first.halves()
    assert (first.passes, first.rows) == ([[a]], [4])
    assert (second.passes, second.rows) == ([[b]], [1, 2])
    assert first.halves() == []
    first, second = second.halves()  # a tree of several prompts is built anew for each
    assert (first.passes, first.rows) == ([[of_rows([1])]], [1])
    assert (second.passes, second.rows) == ([[of_rows([2])]], [2])
