"""RPP+: a language model rewrites each sentence an agent can choose (paper, section 3.5).

Between the agents' choice and the ranker every chosen role, reasoning and format sentence is
replaced by its rewriting. What is the user's own (profile, history, candidates) never passes
through the refiner. A rewriting that would break the prompt is refused and the original kept;
:func:`refusal` has the rules.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.options import Answer
from rpp.prompts.patterns import SENTENCES, Patterns, load_patterns
from rpp.types import LanguageModelError

INSTRUCTION = """\
Reword this instruction so that a language model that follows it recommends better. Keep its \
meaning, and copy anything in curly braces as it is. Reply with the new instruction alone.

Instruction: {sentence}
New instruction:"""
"""What the refiner is asked, in the spirit of the paper's "Please refine this sentence ..."."""

ANOTHER = "This is attempt number {number}: word it differently from the attempts before.\n"
"""Stands before it for every draw but the first: a greedy model has another answer then too."""

MAX_GROWTH = 3
"""A rewriting may have this many times the signs of the original."""


@dataclass(frozen=True)
class Refinement:
    """One sentence and what became of it.

    Attributes:
        pattern: The pattern it belongs to.
        sentence: The sentence of the patterns file.
        reply: What the refiner answered.
        reason: Why the original is kept; empty if the rewriting is sent.
    """

    pattern: str
    sentence: str
    reply: str
    reason: str

    @property
    def rewritten(self) -> str:
        """The reply, cleaned."""
        return clean(self.reply)

    @property
    def sent(self) -> str:
        """The sentence that prompts hold."""
        return self.sentence if self.reason else self.rewritten


class Refiner:
    """Rewrites the sentences of a patterns file, each once: calls a function from text to text.

    All sentences are asked for together when the first is needed. The language model's cache
    knows each by sentence, model and draw, so that there are never more calls than sentences.

    Args:
        llm: The language model that rewrites.
        patterns: The sentences.
        answer: Which wording of the output formats is in use.
        draw: Another number gives other rewritings.
    """

    def __init__(
        self, llm: CachedLanguageModel, patterns: Patterns, answer: Answer, draw: int = 0
    ) -> None:
        self.llm = llm
        self.draw = draw
        self.patterns_of: dict[str, str] = {}  # an empty sentence says nothing: nothing to rewrite
        for pattern in SENTENCES:
            for option in range(patterns.n_options(pattern)):
                if sentence := patterns.describe(pattern, option, answer):
                    self.patterns_of[sentence] = pattern
        self._kept: Mapping[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Names the model and the draw."""
        return f"{self.llm.fingerprint} draw {self.draw}"

    @cached_property
    def refinements(self) -> dict[str, Refinement]:
        """Every sentence and what became of it.

        Raises:
            LanguageModelError: If the refiner fails on a sentence: a later run could get an
                answer, and would send other prompts than this one.
        """
        unknown = [sentence for sentence in self.patterns_of if sentence not in self._kept]
        replies = self.llm.generate([request(sentence, self.draw) for sentence in unknown])
        for reply in replies:
            if isinstance(reply, LanguageModelError):
                raise LanguageModelError(f"the refiner did not answer ({reply}): run again")
        known = {**self._kept, **dict(zip(unknown, map(str, replies), strict=True))}
        return {
            sentence: judge(pattern, sentence, known[sentence])
            for sentence, pattern in self.patterns_of.items()
        }

    @property
    def answers(self) -> dict[str, str]:
        """What the refiner said so far to each sentence: kept with the policy it was learnt on."""
        if "refinements" not in self.__dict__:
            return dict(self._kept)
        return {sentence: each.reply for sentence, each in self.refinements.items()}

    def recall(self, answers: Mapping[str, str]) -> None:
        """Take answers of an earlier run instead of asking anew."""
        self._kept = answers
        self.__dict__.pop("refinements", None)

    @property
    def counts(self) -> dict[str, int]:
        """How many sentences are sent rewritten, and how many as they were."""
        n_kept = sum(bool(each.reason) for each in self.refinements.values())
        return {"refined": len(self.refinements) - n_kept, "kept": n_kept}

    def __call__(self, sentence: str) -> str:
        """The sentence to send in the place of one of the patterns file."""
        return self.refinements[sentence].sent if sentence else sentence


def request(sentence: str, draw: int = 0) -> str:
    """The prompt that asks for a rewriting."""
    again = ANOTHER.format(number=draw + 1) if draw else ""
    return again + INSTRUCTION.replace("{sentence}", sentence)


def judge(pattern: str, sentence: str, reply: str) -> Refinement:
    """A refiner's reply, accepted or refused."""
    return Refinement(pattern, sentence, reply, refusal(pattern, sentence, clean(reply)))


_LEAD_IN = re.compile(r"\A[^\n]*:[ \t]*\n+")
_QUOTES = ('""', "''", "“”", "‘’", "**", "``")


def clean(reply: str) -> str:
    """Take off a first line that ends in a colon, and signs of quotation around the whole."""
    text = _LEAD_IN.sub("", reply.strip()).strip()
    while len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1].strip("*"):
        text = text[1:-1].strip()
    return text


_RANK = re.compile(r"\b(rank|rerank|arrang|sort|prioriti|order(?!\s+to\b))", re.IGNORECASE)
_PLACE = re.compile(r"\b(first|top|highest|best|closest)\b", re.IGNORECASE)
_LIST = re.compile(r"\b(number|list|rank|line|order(?!\s+to\b))", re.IGNORECASE)
_LETTER = re.compile(r"\bletters?\b", re.IGNORECASE)
_ABOUT_ITSELF = re.compile(
    r"\b(instruction|sentence|prompts?\b|reword|rewrit|rephras|language model)", re.IGNORECASE
)
_LIST_ENTRY = re.compile(r"(\d+|[A-Z]{1,2})[.):]\s|[-*•]\s")


def refusal(pattern: str, sentence: str, rewritten: str) -> str:
    """Why a rewriting cannot take its sentence's place; empty if it can.

    Of every sentence: something is said, it is new, in one paragraph that does not look like an
    entry of the prompt's lists, of at most three times the length; exactly the placeholders of
    the original stand in it; it does not talk about the rewriting.

    Words the original is recognised by must be there again. A reasoning sentence that asks to
    rank (or order, sort, arrange, prioritise) does so still; one that asks only for a place (the
    best first) asks for that or for a ranking. A format sentence still names a list (number,
    list, rank, order, line) or the letters; the letters if the original did, for they are what is
    then parsed; and an example that ends it after a colon is repeated as it is. A sentence in
    another language is bound by the first paragraph alone.

    Args:
        pattern: ``role``, ``reasoning`` or ``format``.
        sentence: The original.
        rewritten: The cleaned reply.
    """
    if not rewritten:
        return "nothing came back"
    if rewritten == sentence:
        return "it is the original"
    if "\n" in rewritten:
        return "it is more than one paragraph"
    if _LIST_ENTRY.match(rewritten):
        return "it looks like an entry of a list"
    if len(rewritten) > MAX_GROWTH * len(sentence):
        return f"it is more than {MAX_GROWTH} times as long"
    if sorted(set(_braces(rewritten))) != sorted(set(_braces(sentence))):
        return "its placeholders are not those of the original"
    if _ABOUT_ITSELF.search(rewritten) and not _ABOUT_ITSELF.search(sentence):
        return "it talks about the rewriting"
    if pattern == "reasoning" and not _still_ranks(sentence, rewritten):
        return "it does not ask for a ranking"
    if pattern == "format" and not _still_parses(sentence, rewritten):
        return "it does not ask for the form that can be read"
    return ""


def _braces(text: str) -> list[str]:
    """Placeholders, and single braces that belong to none."""
    return re.findall(r"{[^{}]*}|[{}]", text)


def _still_ranks(sentence: str, rewritten: str) -> bool:
    if _RANK.search(sentence):
        return bool(_RANK.search(rewritten))
    if _PLACE.search(sentence):
        return bool(_RANK.search(rewritten) or _PLACE.search(rewritten))
    return True


def _still_parses(sentence: str, rewritten: str) -> bool:
    _, colon, example = sentence.rpartition(": ")
    if colon and example not in rewritten:
        return False
    if _LETTER.search(sentence):
        return bool(_LETTER.search(rewritten))
    return bool(_LIST.search(rewritten)) or not _LIST.search(sentence)


def table(refinements: Sequence[Refinement]) -> str:
    """Sentences before and after in Markdown, with the reasons of those that are kept."""
    rows = [
        (each.pattern, each.sentence, _short(each.reply), each.reason or "**sent**")
        for each in refinements
    ]
    head = [("pattern", "sentence", "answer of the refiner", "verdict"), ("---",) * 4]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])


def _short(text: str, n: int = 160) -> str:
    """A text on one line that fits a cell."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= n else f"{line[:n]} ..."


def main(arguments: Sequence[str] | None = None) -> None:
    """Show what a language model makes of the sentences of a patterns file."""
    parser = argparse.ArgumentParser(prog="python -m rpp.prompts.refine", description=main.__doc__)
    parser.add_argument("patterns", help="a file such as conf/patterns/movies.yaml")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="folder or hub id")
    parser.add_argument("--draw", type=int, default=0)
    given = parser.parse_args(arguments)
    llm = CachedLanguageModel(HuggingFaceLanguageModel(given.model), ReplyCache(None))
    patterns = load_patterns(given.patterns)
    wordings: tuple[Answer, Answer] = ("titles", "identifiers")
    judged = {
        each.sentence: each
        for answer in wordings
        for each in Refiner(llm, patterns, answer, given.draw).refinements.values()
    }
    reasons = Counter(each.reason for each in judged.values())
    verdicts = "".join(f"\n- {n}: {reason or 'sent'}" for reason, n in reasons.most_common())
    sys.stdout.write(f"{len(judged)} sentences:{verdicts}\n\n{table([*judged.values()])}\n")


if __name__ == "__main__":
    main()
