"""GRIPS: search for a better instruction by edits, without gradients.

Prasad et al., "GrIPS: Gradient-free, Edit-based Instruction Search for Prompting Large Language
Models", EACL 2023. The paper compares with it without saying what it is scored on for a single
user; there are two ways, and they are not the same thing: :class:`PersonalGRIPS` is honest,
:class:`OracleGRIPS` looks at the answer. Departure from the publication: the score is NDCG@10,
without the entropy of predicted labels, which rankings do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.comparison.edits import (
    Instruction,
    Rewording,
    draw_edit,
    draw_wordless_edit,
    paraphrase,
)
from rpp.data.episodes import draw_negatives
from rpp.metrics import ndcg, target_ranks
from rpp.prompts.compose import compose
from rpp.prompts.refine import request
from rpp.types import (
    Episode,
    InputError,
    Item,
    LanguageModelError,
    LanguageModelStop,
    Ranking,
    final_scoring,
)

Tried = tuple[int, Instruction]
"""An instruction and the search, of several that run side by side, that tries it."""

Score = Callable[[Sequence[Tried]], NDArray[np.float64]]
"""From instructions to how well each ranks, in [0, 1]; higher is better."""

K = 10
"""The score is NDCG@K."""

FEW = 3
"""So many users may all go without an answer, and keep the instruction they had, before the
language model counts as gone."""

SEARCH, NEGATIVES = 1, 2
"""What a generator is for: no draw of one purpose tells anything of another's."""


class GRIPS(PromptMethod):
    """One instruction for all users, found by edits of the manual prompt's role and reasoning.

    In every round some edits of the best instruction so far are scored on the validation users.
    The best of them takes its place if its NDCG is higher.

    Args:
        n_edits: Edited instructions tried in a round, ``m``.
        patience: Rounds without improvement, one after another, after which a search ends.
        n_rounds: Rounds at most.
        n_paraphrases: Different wordings that the language model may be asked for one phrase; 0:
            phrases are not reworded.
    """

    name = "GRIPS, per task"

    def __init__(
        self, n_edits: int = 5, patience: int = 2, n_rounds: int = 10, n_paraphrases: int = 10
    ) -> None:
        if min(n_edits, patience, n_rounds) < 1 or n_paraphrases < 0:
            raise InputError(
                f"GRIPS with n_edits {n_edits}, patience {patience}, n_rounds {n_rounds} and"
                f" n_paraphrases {n_paraphrases}: the first three are at least 1, the last 0"
            )
        self.n_edits = n_edits
        self.patience = patience
        self.n_rounds = n_rounds
        self.n_paraphrases = n_paraphrases

    def learn(self, task: Task) -> Ranks:
        """Search once, by the mean NDCG of the validation users.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        users = task.data.episodes("validation")

        def score(tried: Sequence[Tried]) -> NDArray[np.float64]:
            episodes = [user for _ in tried for user in users]
            rankings = ask(task, episodes, [each for _, each in tried for _ in users])
            by_user = rewards(rankings, episodes).reshape(len(tried), len(users))
            return np.asarray(by_user.mean(axis=1))

        (found,) = self.search(task, [0], score)
        return lambda episodes: ask(task, episodes, [found] * len(episodes))

    def max_calls(self, task: Task, n_users: int) -> int:
        """Every instruction tried for every validation user, paraphrases, one for every user."""
        n_tried = self.n_rounds * self.n_edits
        n_scored = (1 + n_tried) * len(task.data.episodes("validation"))
        return n_scored + self._n_paraphrased(n_tried) + n_users

    def _n_paraphrased(self, n_tried: int) -> int:
        return n_tried if self.n_paraphrases else 0

    def search(self, task: Task, keys: Sequence[int], score: Score) -> list[Instruction]:
        """The best instruction of every search.

        Searches know nothing of each other. They go on round by round side by side, so that each
        round asks the language model once; one that can get no better, at a score of 1, ends.

        Args:
            task: The task.
            keys: Number of every search, for its draws.
            score: Tells how well instructions rank.
        """
        rngs = [np.random.default_rng([task.seed, SEARCH, key]) for key in keys]
        best = [start(task) for _ in keys]
        scores = score(list(enumerate(best)))
        n_failed = np.zeros(len(keys), dtype=int)
        for _ in range(self.n_rounds):
            going = np.flatnonzero((n_failed < self.patience) & (scores < 1)).tolist()
            if not going:
                break
            tried = self._edited(task, {k: best[k] for k in going}, rngs)
            values = score(tried).reshape(len(going), self.n_edits)
            for row, k in enumerate(going):
                column = int(values[row].argmax())
                if values[row, column] > scores[k]:
                    best[k] = tried[row * self.n_edits + column][1]
                    scores[k], n_failed[k] = values[row, column], 0
                else:
                    n_failed[k] += 1
        return best

    def _edited(
        self, task: Task, best: Mapping[int, Instruction], rngs: Sequence[np.random.Generator]
    ) -> list[Tried]:
        """``m`` edits of every instruction; a paraphrase that is refused becomes another edit."""
        llm = task.ranker.llm if task.refiner is None else task.refiner.llm
        drawn = [
            (k, draw_edit(instruction, rngs[k], self.n_paraphrases))
            for k, instruction in best.items()
            for _ in range(self.n_edits)
        ]
        requests = [
            request(best[k].at(edit.place), edit.draw)
            for k, edit in drawn
            if isinstance(edit, Rewording)
        ]
        replies = iter(llm.generate(requests))
        tried = []
        for k, edit in drawn:
            if isinstance(edit, Rewording):
                worded = paraphrase(best[k], edit.place, next(replies))
                edit = worded or draw_wordless_edit(best[k], rngs[k])
            tried.append((k, edit))
        return tried


class PersonalGRIPS(GRIPS):
    """An instruction for every user, found on the user's own validation interaction.

    That is the last item of the history, which the ranker has to find among items the user does
    not know. Users with one past item keep the manual prompt. Arguments are those of
    :class:`GRIPS`.
    """

    name = "GRIPS, per user"

    def learn(self, task: Task) -> Ranks:
        """There is nothing to learn but from the users themselves.

        Raises:
            InputError: If the patterns file has no manual prompt.
        """
        manual = start(task)

        def ranks(episodes: Sequence[Episode]) -> list[Ranking]:
            scored = [self.scored_on(task, episode) for episode in episodes]
            rows = [row for row, episode in enumerate(scored) if episode is not None]
            own = [episode for episode in scored if episode is not None]

            def score(tried: Sequence[Tried]) -> NDArray[np.float64]:
                users = [own[k] for k, _ in tried]
                try:
                    rankings = ask(task, users, [each for _, each in tried])
                except LanguageModelError as error:
                    n_left = len({k for k, _ in tried})
                    if isinstance(error, LanguageModelStop) or n_left > FEW:
                        raise
                    return np.zeros(len(tried))  # the model may refuse just these users
                return self.rewards(rankings, users)

            found = self.search(task, [episode.user for episode in own], score)
            instruction_of = dict(zip(rows, found, strict=True))
            chosen = [instruction_of.get(row, manual) for row in range(len(episodes))]
            return ask(task, episodes, chosen)

        return ranks

    def max_calls(self, task: Task, n_users: int) -> int:
        """Every instruction tried for its user, paraphrases, one for the user's candidates."""
        n_tried = self.n_rounds * self.n_edits
        return n_users * (1 + n_tried + self._n_paraphrased(n_tried) + 1)

    def scored_on(self, task: Task, episode: Episode) -> Episode | None:
        """What a user's instructions are scored on, if there is something."""
        return validation_episode(episode, task.data.catalogue, task.seed)

    def rewards(
        self, rankings: Sequence[Ranking], episodes: Sequence[Episode]
    ) -> NDArray[np.float64]:
        """NDCG of every ranking."""
        return rewards(rankings, episodes)


class OracleGRIPS(PersonalGRIPS):
    r"""An oracle, no method: it keeps the edits that rank each user's *test* target higher.

    It knows the answer, so that its figures tell how often a prompt can be found under which a
    ranker happens to be right, not how well anybody would be served. A ranker that answers every
    prompt at random reaches 0.77 / 0.91 / 0.91 (NDCG@1, 5, 10; 400 made-up users, ten
    candidates, default arguments) where chance is 0.10 / 0.30 / 0.45. Best of ``n`` prompts alone
    gives it :math:`1 - 0.9^n` at NDCG@1.
    """

    name = "grips_oracle"
    is_oracle = True

    def scored_on(self, task: Task, episode: Episode) -> Episode | None:
        """The very episode that is tested."""
        return episode

    def rewards(
        self, rankings: Sequence[Ranking], episodes: Sequence[Episode]
    ) -> NDArray[np.float64]:
        """NDCG of the test targets: what makes this an oracle."""
        with final_scoring():
            return super().rewards(rankings, episodes)


def start(task: Task) -> Instruction:
    """Role and reasoning of the manual prompt.

    Raises:
        InputError: If the patterns file has none.
    """
    manual = task.manual.patterns
    return Instruction.of(manual.role[0], manual.reasoning[0])


def ask(
    task: Task, episodes: Sequence[Episode], instructions: Sequence[Instruction]
) -> list[Ranking]:
    """Rank with the manual prompt, role and reasoning of which are those of an instruction."""
    manual, ranker = task.manual.patterns, task.ranker
    lengths = [manual.history.lengths[0]]
    prompts = []
    for episode, instruction in zip(episodes, instructions, strict=True):
        role, reasoning = instruction.texts
        worded = replace(manual, role=(role,), reasoning=(reasoning,))
        prompts += compose([episode], worded, [()], lengths, ranker.display, fits=ranker.fits)
    return ranker.rank(prompts, episodes)


def rewards(rankings: Sequence[Ranking], episodes: Sequence[Episode]) -> NDArray[np.float64]:
    """NDCG@10 by which instructions are compared, shape ``(B,)``; 0 where the model failed.

    Left out, failures would let an instruction win by the few users it got an answer for.
    """
    found: Tensor = ndcg(target_ranks(rankings, episodes), K)
    return np.asarray(found.nan_to_num(0).numpy())


def validation_episode(episode: Episode, catalogue: Sequence[Item], seed: int) -> Episode | None:
    """A user's last interaction before the target, to be found among items new to them.

    The target of the given episode is not read: as negatives all its candidates are left out.

    Args:
        episode: A user with candidates of their own.
        catalogue: All items.
        seed: Of the negatives and the order shown; both are the user's own.

    Returns:
        As many candidates as the episode has, or as there are; ``None`` for a user with a single
        past item.
    """
    *history, target = episode.history
    if not history:
        return None
    rng = np.random.default_rng([seed, NEGATIVES, *episode.key])
    known = {item.index for item in (*episode.history, *episode.candidates)}
    n_negatives = len(episode.candidates) - 1
    candidates = [target, *draw_negatives(target, catalogue, known, n_negatives, rng)]
    order = rng.permutation(len(candidates))
    return replace(
        episode,
        history=tuple(history),
        candidates=tuple(candidates[k] for k in order),
        withheld=int(np.flatnonzero(order == 0)[0]),
        split="validation",
    )
