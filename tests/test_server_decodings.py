"""Decodings through a chat server: first tokens, grammars."""

from __future__ import annotations

import itertools
import math

import pytest
from helpers import prompts_for

from rpp.llms.grammar import permutation_grammar
from rpp.ranker import Ranker
from rpp.types import InputError, arbitrary_order


def test_first_tokens_by_hand(server, make_openai):
    """Spellings with a space count together; what is not named is minus infinity."""
    server.first_tokens = [
        ("B", math.log(0.4)),
        ("The", math.log(0.2)),
        (" A", math.log(0.15)),
        ("\u2581B", math.log(0.1)),
        ("AB", math.log(0.05)),
    ]
    (row,) = make_openai().score(["p"], [["A", "B", "C"]])
    assert row == pytest.approx([math.log(0.15), math.log(0.5), -math.inf])
    asked = server.seen[0]
    assert (asked["max_tokens"], asked["temperature"], asked["top_logprobs"]) == (1, 0, 20)


def test_candidates_that_are_not_named_come_last_in_arbitrary_order(
    server, make_openai, tiny_episodes
):
    server.first_tokens = [("D", -0.5), ("The", -1.0), ("B", -2.0)]
    ranker = Ranker(make_openai(), "first_token", seed=3)

    episodes = tiny_episodes[:4]
    for _ in range(2):  # the second time from the cache
        rankings = ranker.rank(prompts_for(episodes, "identifiers"), episodes)
        for ranking, episode in zip(rankings, episodes, strict=True):
            rest = [k for k in arbitrary_order(episode, 3) if k not in (1, 3)]
            assert ranking.order == (3, 1, *rest)
            assert (ranking.n_named, ranking.status) == (2, "repaired")
    assert ranker.counters.repaired == 8
    assert ranker.counters.calls == 4


def test_a_reply_that_ends_at_once_names_nobody(server, make_openai):
    server.first_tokens = []
    server.faults = ["empty"]
    assert make_openai().score(["p"], [["A", "B"]]) == [[-math.inf, -math.inf]]
    assert len(server.seen) == 1


def test_a_server_without_log_probabilities_is_refused(make_openai):
    with pytest.raises(InputError, match=r"gives no log-probabilities.*decoding: generate"):
        make_openai().score(["p"], [["A", "B"]])


def test_likelihood_is_refused(make_openai):
    with pytest.raises(InputError, match=r"likelihood needs .*decoding: generate.*first_token"):
        make_openai().score(["p"], [[" Heat"]], ["1."])


def test_constrained_needs_a_grammar(make_openai):
    with pytest.raises(InputError, match=r"init_args\.grammar to llama.cpp or vllm"):
        make_openai().generate_permutation(["p"], [["A", "B"]])


@pytest.mark.parametrize("way", ["llama.cpp", "vllm"])
def test_a_server_that_ignores_the_grammar_is_refused(server, make_openai, way):
    """``transformers serve`` takes unknown fields without a word."""
    with pytest.raises(InputError, match="does not keep to a grammar"):
        make_openai(grammar=way).generate_permutation(["p"], [["A", "B"]])
    sent = server.seen[0] if way == "llama.cpp" else server.seen[0]["structured_outputs"]
    assert sent["grammar"] == permutation_grammar(["A", "B"])


def test_grammar_by_hand():
    assert permutation_grammar(["B", 'a "b"']) == (
        'root ::= s3\ns1 ::= "B"\ns2 ::= "a \\"b\\""\ns3 ::= "B\\n" s2 | "a \\"b\\"\\n" s1\n'
    )


def texts_of(grammar):
    """All texts of a grammar whose rules stand one a line."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def expand(rule):
        for choice in rules[rule].split(" | "):
            text, _, rest = choice.partition('" ')
            text = text.strip('"').replace("\\n", "\n")
            yield from (text + end for end in (expand(rest) if rest else [""]))

    return list(expand(rules["root"]))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_grammar_has_every_permutation_and_nothing_else(n):
    texts = texts_of(permutation_grammar("ABCDE"[:n]))
    assert sorted(texts) == ["\n".join(order) for order in itertools.permutations("ABCDE"[:n])]


def test_a_grammar_has_one_rule_per_subset_and_a_limit():
    assert permutation_grammar("ABCDEFGHIJKL").count("::=") == 2**12  # root and 2^12 - 1
    with pytest.raises(InputError, match="cannot order 13 candidates: use at most 12"):
        permutation_grammar("ABCDEFGHIJKLM")
