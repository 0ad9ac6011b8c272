"""The comparison: ``python train.py test --config conf/compare.yaml``.

Controls first, then every method in turn: it learns on training and validation users, then ranks
all test users. Test targets tell whether the controls score chance, and are not looked at again
before all methods have ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from rpp.baselines.base import Recommender, rank
from rpp.comparison.base import PromptMethod, Ranks, Task
from rpp.comparison.chance import control_ranks, suspicious
from rpp.comparison.references import Enumeration, Manual, RandomPolicy
from rpp.learners.client import RankerClient, Stage
from rpp.metrics import target_ranks
from rpp.prompts.patterns import load_patterns
from rpp.results.rows import Expense
from rpp.terminal import log_progress
from rpp.types import (
    Episode,
    InputError,
    LanguageModelError,
    LanguageModelStop,
    Ranking,
    final_scoring,
)


@dataclass(frozen=True)
class Result:
    """What one method did.

    Attributes:
        method: The method.
        rankings: One per test user.
        expense: What it has used up.
    """

    method: Recommender | PromptMethod
    rankings: Sequence[Ranking]
    expense: Expense

    @property
    def is_oracle(self) -> bool:
        """Whether the method looks at the test targets."""
        return isinstance(self.method, PromptMethod) and self.method.is_oracle

    def notes(self, ranks: Tensor) -> list[str]:
        """What the method says of its row; ranks of all test targets, ``(n_users,)``."""
        return self.method.notes(ranks) if isinstance(self.method, PromptMethod) else []

    @property
    def valid(self) -> float | None:
        """Share of replies that named every candidate; ``None`` for a recommender."""
        if isinstance(self.method, Recommender):
            return None
        return sum(each.status == "valid" for each in self.rankings) / len(self.rankings)


def _reference_among(
    kept: Sequence[Recommender | PromptMethod], reference: str, known: Sequence[str]
) -> str:
    """The reference, or a kept method in its place: a static prompt, a method, a recommender."""
    names = [each.name for each in kept]
    if reference in names or reference not in known:
        return reference
    order = (Enumeration, Manual, PromptMethod, Recommender)
    chosen = next(each.name for kind in order for each in kept if isinstance(each, kind))
    log_progress(f"Differences are to {chosen}: {reference}, the reference, is not among `only`")
    return chosen


class Comparison(RankerClient):
    """Recommenders and prompt methods on the same users, candidates and order.

    Args:
        patterns: YAML file with the sentences of each pattern.
        recommenders: Methods without a language model.
        methods: Methods that ask one.
        n_steps: Steps of an RPP episode: as many calls may methods spend that repeat themselves.
        reference: The method that the others' differences are taken to; another one takes its
            place where ``only`` leaves it out.
        seed: Of what prompt methods draw.
        n_sentences: Sentences of role, reasoning and format that prompts are made of: the first
            ones and that of the section ``manual``. ``null``: all of the file.
        history_lengths: History lengths that prompts are made of. ``null``: those of the file.
        only: Names of the methods to run. ``null``: all of them.
    """

    starts_from_checkpoint = False

    def __init__(
        self,
        patterns: str = "conf/patterns/movies.yaml",
        recommenders: list[Recommender] | None = None,
        methods: list[PromptMethod] | None = None,
        n_steps: int = 3,
        reference: str = "best of 64 static",
        seed: int = 0,
        n_sentences: int | None = None,
        history_lengths: list[int] | None = None,
        only: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.patterns = load_patterns(patterns, n_sentences, history_lengths)
        self.compared: list[Recommender | PromptMethod] = [*(recommenders or []), *(methods or [])]
        names = [each.name for each in self.compared]
        if not names:
            raise InputError("there is nothing to compare: name recommenders or methods")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two methods are called {name!r}: leave one of them out")
        if only is not None:
            for name in only:
                if name not in names:
                    raise InputError(
                        f"there is no method {name!r}: name some of {', '.join(names)}"
                    )
            self.compared = [each for each in self.compared if each.name in only]
            reference = _reference_among(self.compared, reference, names)
            names = only
        self.methods = [each for each in self.compared if isinstance(each, PromptMethod)]
        if reference not in names:
            raise InputError(
                f"the reference {reference!r} is not compared: name one of {', '.join(names)}"
            )
        self.n_steps = n_steps
        self.reference = reference
        self.seed = seed
        self.users: list[Episode] = []
        self.control_ranks: dict[str, Tensor] = {}
        self.results: list[Result] = []
        self.not_run: dict[str, str] = {}  # why a method has no row

    def setup(self, stage: str) -> None:
        """Refuse what a comparison cannot do.

        Raises:
            InputError: On several devices, or for a data set without the profiles prompts tell.
        """
        if self.trainer.world_size > 1:
            raise InputError(
                f"a comparison runs in one process, not {self.trainer.world_size}: set"
                " trainer.devices to 1"
            )
        name = str(self.data.summary["settings"]["name"])
        self.patterns.check_profiles(self.data.people(), name)

    @property
    def task(self) -> Task:
        """What the prompt methods are given."""
        ranker = self.environment.ranker
        return Task(
            self.data, self.patterns, ranker, self.n_steps, self.seed, self.refiner, self.evidence
        )

    def max_calls(self, stage: Stage) -> int:
        """Largest number of calls to the language model; prompts of several methods count twice."""
        task = self.task
        n_users = len(task.data.episodes("test"))
        return self.n_refined + sum(method.max_calls(task, n_users) for method in self.methods)

    def calibrate(self, stage: Stage, n_prompts: int) -> None:
        """Ask some prompts that are asked anyway, if a method asks any."""
        if not self.methods:
            return
        manual = any(isinstance(method, Manual) for method in self.methods)
        method = Manual() if manual and self.patterns.manual else RandomPolicy()
        method.learn(self.task)(self.task.data.episodes("test")[:n_prompts])

    def on_test_start(self) -> None:
        """Forget an earlier test."""
        self.users, self.results, self.not_run = [], [], {}

    def test_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Gather the users: methods rank all of them at once, so that prompts share work."""
        self.users += batch

    def on_test_epoch_end(self) -> None:
        """Controls, then every method.

        Raises:
            InputError: If a control ranker does not score chance.
        """
        task = self.task
        self.control_ranks = control_ranks(task, self.users)
        faults = suspicious(self.control_ranks, len(self.users[0].candidates))
        if faults:
            raise InputError(
                f"there is no table, because a ranker without skill has some: {'; '.join(faults)}."
                " The candidates' order or the reading of replies knows the target"
            )
        for method in self.compared:
            self._run(method)

    def _run(self, method: Recommender | PromptMethod) -> None:
        """Let one method learn and rank; what it lacks is said and costs no other method."""
        log_progress(f"{method.name} ...")
        ranker = self.task.ranker
        before = ranker.counters
        started = perf_counter()
        try:
            rankings = self._learn(method)(self.users)
        except LanguageModelStop:
            raise
        except (InputError, LanguageModelError) as error:
            self.not_run[method.name] = str(error)
            log_progress(f"{method.name} is left out: {error}")
            return
        reused = method.n_prompts_reused if isinstance(method, PromptMethod) else 0
        expense = Expense.between(before, ranker.counters, perf_counter() - started, reused)
        self.results.append(Result(method, rankings, expense))

    def _learn(self, method: Recommender | PromptMethod) -> Ranks:
        if isinstance(method, PromptMethod):
            return method.learn(self.task)
        method.fit(self.task.data.folder)
        return lambda episodes: rank(method.score(episodes), episodes)

    @property
    def not_reached(self) -> list[str]:
        """Methods that had not ranked when the run was stopped."""
        done = {result.method.name for result in self.results} | self.not_run.keys()
        return [method.name for method in self.compared if method.name not in done]

    @property
    def complete(self) -> bool:
        """Whether every method ranked every user; if not, another run may add what is missing."""
        return (
            not self.not_run
            and not self.not_reached
            and not any(ranking.failed for result in self.results for ranking in result.rankings)
        )

    def target_ranks(self) -> dict[str, Tensor]:
        """Rank of every user's target by method, ``(B,)`` each: the final scoring."""
        with final_scoring():
            return {r.method.name: target_ranks(r.rankings, self.users) for r in self.results}

    def displayed_positions(self) -> Tensor:
        """Where the targets stood in the lists shown, from 1, ``(B,)``."""
        with final_scoring():
            return torch.tensor([episode.target + 1 for episode in self.users])
