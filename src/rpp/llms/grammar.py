"""Grammar of all permutations, for servers with grammar-constrained decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from rpp.types import InputError

MAX_LINES = 12
"""Largest number of lines of a grammar: it has a rule per subset, 4,095 for 12 lines."""


def permutation_grammar(lines: Sequence[str]) -> str:
    r"""Grammar of the texts that contain every line exactly once.

    After each line follows the rule of the remaining lines, so there is one rule per subset,
    :math:`2^n - 1` in all. Valid for llama.cpp (GBNF) and for vLLM (EBNF of xgrammar).

    Args:
        lines: ``n`` different lines, in any order.

    Raises:
        InputError: If there are more than :data:`MAX_LINES`.
    """
    if len(lines) > MAX_LINES:
        raise InputError(
            f"a server's grammar cannot order {len(lines)} candidates: use at most {MAX_LINES}"
            " (data.init_args.n_candidates) or environment.decoding: generate"
        )
    return _grammar(tuple(sorted(lines)))


@lru_cache(maxsize=64)
def _grammar(lines: tuple[str, ...]) -> str:
    rules = [f"root ::= s{(1 << len(lines)) - 1:x}"]
    for left in range(1, 1 << len(lines)):
        choices = []
        for k, line in enumerate(lines):
            if left >> k & 1:
                rest = left ^ 1 << k
                quoted = json.dumps(line + "\n" * (rest > 0), ensure_ascii=False)
                choices.append(f"{quoted} s{rest:x}" if rest else quoted)
        rules.append(f"s{left:x} ::= {' | '.join(choices)}")
    return "\n".join(rules) + "\n"
