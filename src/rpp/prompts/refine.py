"""RPP+: a language model rewrites each sentence an agent can choose (paper, section 3.5).

Between the agents' choice and the ranker every chosen role, reasoning and format sentence is
replaced by its rewriting. Profile, history and candidates are not rewritten. A rewriting that
would break the prompt is rejected and the original is used; :func:`refusal` has the rules.
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
"""The request to the refiner, after the paper's "Please refine this sentence ..."."""

ANOTHER = "This is attempt number {number}: word it differently from the attempts before.\n"
"""Prefix of every draw but the first: it gives a greedy model other replies."""

MAX_GROWTH = 3
"""Largest length of a rewriting, relative to the original."""


@dataclass(frozen=True)
class Refinement:
    """A sentence, the refiner's reply and the verdict.

    Attributes:
        pattern: The pattern of the sentence.
        sentence: The sentence of the patterns file.
        reply: The refiner's reply.
        reason: Why the original is used; empty if the rewriting is.
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
        """The sentence used in prompts."""
        return self.sentence if self.reason else self.rewritten


class Refiner:
    """Rewrites the sentences of a patterns file, once each; callable from text to text.

    All sentences are rewritten together when the first one is needed. Replies are cached by
    sentence, model and draw, so there are never more calls than sentences.

    Args:
        llm: The language model that rewrites.
        patterns: The sentences.
        answer: The wording of the output formats in use.
        draw: Another number gives other rewritings.
    """

    def __init__(
        self, llm: CachedLanguageModel, patterns: Patterns, answer: Answer, draw: int = 0
    ) -> None:
        self.llm = llm
        self.draw = draw
        self.patterns_of: dict[str, str] = {}  # an empty sentence is not rewritten
        for pattern in SENTENCES:
            for option in range(patterns.n_options(pattern)):
                if sentence := patterns.describe(pattern, option, answer):
                    self.patterns_of[sentence] = pattern
        self._kept: Mapping[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Identifies the model and the draw."""
        return f"{self.llm.fingerprint} draw {self.draw}"

    @cached_property
    def refinements(self) -> dict[str, Refinement]:
        """The verdict on every sentence.

        Raises:
            LanguageModelError: If the refiner fails on a sentence: a later run could get a
                reply, and would use other prompts than this one.
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
        """Replies of the refiner so far, by sentence; saved with the policy trained on them."""
        if "refinements" not in self.__dict__:
            return dict(self._kept)
        return {sentence: each.reply for sentence, each in self.refinements.items()}

    def recall(self, answers: Mapping[str, str]) -> None:
        """Use the replies of an earlier run instead of asking again."""
        self._kept = answers
        self.__dict__.pop("refinements", None)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of rewritten and of original sentences in use."""
        n_kept = sum(bool(each.reason) for each in self.refinements.values())
        return {"refined": len(self.refinements) - n_kept, "kept": n_kept}

    def __call__(self, sentence: str) -> str:
        """The sentence used instead of one of the patterns file."""
        return self.refinements[sentence].sent if sentence else sentence


def request(sentence: str, draw: int = 0) -> str:
    """The prompt that asks for a rewriting."""
    again = ANOTHER.format(number=draw + 1) if draw else ""
    return again + INSTRUCTION.replace("{sentence}", sentence)


def judge(pattern: str, sentence: str, reply: str) -> Refinement:
    """The verdict on a reply of the refiner."""
    return Refinement(pattern, sentence, reply, refusal(pattern, sentence, clean(reply)))


_LEAD_IN = re.compile(r"\A[^\n]*:[ \t]*\n+")
_QUOTES = ('""', "''", "“”", "‘’", "**", "``")


def clean(reply: str) -> str:
    """Remove a first line that ends in a colon, and quotation marks around the reply."""
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
    """Why a rewriting is rejected; empty if it is accepted.

    Rules for every sentence: the rewriting is not empty and not the original; it is one paragraph,
    does not look like an entry of the prompt's lists and has at most three times the length; it
    has exactly the placeholders of the original; it does not talk about the rewriting.

    Key words of the original must be preserved. A reasoning sentence that asks to rank (or order,
    sort, arrange, prioritise) still does so; one that asks only for a position (the best first)
    asks for that or for a ranking. A format sentence still names a list (number, list, rank,
    order, line) or the letters; the letters if the original did, because they are parsed; an
    example after a final colon is repeated unchanged. For a sentence in another language only
    the rules of the first paragraph apply.

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
    """Placeholders, and unmatched braces."""
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
    """Sentences before and after in Markdown, with the reasons of rejections."""
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
    """Show a language model's rewritings of the sentences of a patterns file."""
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
