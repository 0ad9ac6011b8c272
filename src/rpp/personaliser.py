"""A fitted policy at request time: one user or many, from Python, without trainer or data set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import torch

from rpp.callbacks.environment import RewardEnvironment
from rpp.data.directory import Directory, Named
from rpp.learners.base import PromptLearner, finite
from rpp.prompts.compose import Prompt, compose
from rpp.prompts.options import filled
from rpp.prompts.patterns import SENTENCES
from rpp.ranker import Counters
from rpp.recommendation import (
    ChosenOption,
    Cost,
    Option,
    PersonalPrompt,
    Query,
    RankedItem,
    Recommendation,
)
from rpp.restore import find_checkpoint, restore_environment, restore_learner
from rpp.rollout import Environment, Transition, rollout
from rpp.types import PROFILE, UNKNOWN, Episode, InputError, Ranking, Request

MIN_CANDIDATES, MAX_CANDIDATES = 2, 100
"""Length of a list to rank."""


@dataclass(frozen=True)
class _Asked:
    """A query in the policy's own terms.

    Attributes:
        request: The user and the items.
        ids: Id of every candidate.
    """

    request: Request
    ids: tuple[str | None, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Titles of items without a vector."""
        items = (*self.request.history, *self.request.candidates)
        return tuple(dict.fromkeys(item.title for item in items if item.index == UNKNOWN))


class Personaliser:
    """Chooses prompts for users and ranks their candidates, as a checkpoint's policy does.

    Calls from several threads are in order. Where the language model takes several calls at once,
    only its answers are waited for together.

    Args:
        learner: The policy, built and with its weights.
        directory: Items and users of its vectors.
        environment: Ranks.
    """

    def __init__(
        self, learner: PromptLearner[Any], directory: Directory, environment: Environment
    ) -> None:
        self.learner = learner
        self.directory = directory
        self._lock = Lock()
        concurrency = environment.ranker.llm.model.concurrency
        self._threads = ThreadPoolExecutor(concurrency)
        if concurrency > 1:
            environment = _Sharing(
                environment.patterns, environment.ranker, environment.refiner,
                environment.evidence, environment.is_tolerant, self._lock,
            )  # fmt: skip
        self.environment = environment

    @classmethod
    def load(
        cls,
        path: str | Path,
        environment: RewardEnvironment | None = None,
        device: str | torch.device = "auto",
    ) -> Personaliser:
        """Load a policy from its checkpoint alone.

        Recommenders that its prompts name are fitted; what takes long is kept beside it.

        The checkpoint names the classes of learner and language model, which are imported: load
        none from a source you do not trust.

        Args:
            path: The checkpoint, or the folder of a run, whose best one is taken.
            environment: Language model and decoding; by default those of the fit.
            device: Where policy and language model work; ``auto``: a GPU if there is one.

        Raises:
            InputError: If there is no such checkpoint, or something it needs is missing.
        """
        path = Path(path)
        checkpoint, folder = find_checkpoint(path), path if path.is_dir() else path.parent
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        place = torch.device(device)
        learner, directory = restore_learner(checkpoint, place)
        made = restore_environment(checkpoint, learner, environment, place, folder)
        return cls(learner, directory, made)

    def __enter__(self) -> Self:
        """Use it as a context, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the language model and close the reply cache."""
        self._threads.shutdown()
        self.environment.ranker.llm.close()

    # -- one user ----------------------------------------------------------------------------

    def prompt(
        self,
        history: Sequence[Named],
        candidates: Sequence[Named],
        user: str | int | None = None,
        profile: Mapping[str, str | int] | None = None,
        n_steps: int | None = None,
    ) -> PersonalPrompt:
        """The prompt for a user; the language model is asked for the steps before the last.

        Args:
            history: Items by id or title, oldest first; an item that the catalogue does not know
                has its title alone.
            candidates: 2 to 100 items, likewise.
            user: The user's id.
            profile: What is known of gender, age and occupation.
            n_steps: Steps to play; by default those that ranked validation users best. With 1 the
                language model is not asked.

        Raises:
            InputError: If the request cannot be understood.
        """
        return self.prompt_many([Query(history, candidates, user, profile)], n_steps)[0]

    def rank(
        self,
        history: Sequence[Named],
        candidates: Sequence[Named],
        user: str | int | None = None,
        profile: Mapping[str, str | int] | None = None,
    ) -> Recommendation:
        """A user's candidates, ranked by the language model; see :meth:`prompt`."""
        return self.rank_many([Query(history, candidates, user, profile)])[0]

    async def aprompt(
        self,
        history: Sequence[Named],
        candidates: Sequence[Named],
        user: str | int | None = None,
        profile: Mapping[str, str | int] | None = None,
        n_steps: int | None = None,
    ) -> PersonalPrompt:
        """:meth:`prompt` without waiting."""
        queries = [Query(history, candidates, user, profile)]
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self._threads, self.prompt_many, queries, n_steps))[0]

    async def arank(
        self,
        history: Sequence[Named],
        candidates: Sequence[Named],
        user: str | int | None = None,
        profile: Mapping[str, str | int] | None = None,
    ) -> Recommendation:
        """:meth:`rank` without waiting."""
        queries = [Query(history, candidates, user, profile)]
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self._threads, self.rank_many, queries))[0]

    # -- many --------------------------------------------------------------------------------

    def prompt_many(
        self, queries: Sequence[Query], n_steps: int | None = None
    ) -> list[PersonalPrompt]:
        """Prompts for several users, whose lists may differ in length; see :meth:`prompt`."""
        asked = [self.understand(query) for query in queries]
        return self._prompts(asked, self._play(asked, n_steps, asks_last=False)) if asked else []

    def rank_many(self, queries: Sequence[Query]) -> list[Recommendation]:
        """Rankings for several users, whose prompts are sent together; see :meth:`prompt`."""
        asked = [self.understand(query) for query in queries]
        if not asked:
            return []
        before = self.environment.ranker.counters
        last = self._play(asked, None, asks_last=True)
        cost = _cost(before, self.environment.ranker.counters, len(asked))
        return [
            Recommendation(_ranked(own, ranking), ranking.status, ranking.reply, prompt, cost)
            for own, ranking, prompt in zip(
                asked, last.step.rankings, self._prompts(asked, last), strict=True
            )
        ]

    def understand(self, query: Query) -> _Asked:
        """Find a query's items and user.

        Raises:
            InputError: If it cannot be understood.
        """
        for name in ("history", "candidates"):
            if isinstance(getattr(query, name), str | Mapping):
                raise InputError(f"{name} is a single item: give a list")
        n = len(query.candidates)
        if not MIN_CANDIDATES <= n <= MAX_CANDIDATES:
            raise InputError(f"{n} candidates: give {MIN_CANDIDATES} to {MAX_CANDIDATES}")
        profile = query.profile or {}
        for name in profile:
            if name not in PROFILE:
                raise InputError(f"profile has {name!r}: known are {', '.join(PROFILE)}")
        found = [self.directory.find(each) for each in query.candidates]
        request = Request(
            self.directory.user(query.user),
            tuple(self.directory.find(each)[0] for each in query.history),
            tuple(item for item, _ in found),
            user_id="" if query.user is None else str(query.user),
            profile={name: str(value) for name, value in profile.items()},
        )
        return _Asked(request, tuple(name for _, name in found))

    def _play(
        self, asked: Sequence[_Asked], n_steps: int | None, asks_last: bool
    ) -> Transition[Any]:
        """The last step; an earlier one where the language model answered nobody."""
        n_steps = int(self.learner.inference_steps) if n_steps is None else n_steps
        if not 1 <= n_steps <= self.learner.n_steps:
            raise InputError(f"n_steps is {n_steps}: give 1 to {self.learner.n_steps}")
        # nothing that is played reads a target, which an episode has and a request has not
        episodes = cast("Sequence[Episode]", [each.request for each in asked])
        with self._lock, torch.no_grad():
            for transition in rollout(
                self.environment, self.learner, self.learner.greedy, episodes, n_steps, asks_last
            ):
                if all(ranking.failed for ranking in transition.step.rankings):
                    break
        return transition

    def _prompts(self, asked: Sequence[_Asked], last: Transition[Any]) -> list[PersonalPrompt]:
        """What was chosen and composed in a step."""
        step, shown = last.step, self.environment.ranker.display
        listing = step.prompts
        if not shown.show_candidates:
            listing = compose(
                step.episodes, self.learner.patterns, step.actions.tolist(), step.lengths,
                replace(shown, show_candidates=True), refine=self.environment.refiner or str,
                evidence=self.environment.evidence,
            )  # fmt: skip
        n_steps = last.number + 1
        is_final = n_steps >= int(self.learner.inference_steps)
        probabilities = self.learner.option_probabilities(last)
        return [
            PersonalPrompt(
                prompt.text,
                listed.text,
                shown.show_candidates,
                self._patterns(prompt, actions, probs, len(own.ids)),
                n_steps,
                is_final,
                own.unknown,
            )
            for own, prompt, listed, actions, probs in zip(
                asked, step.prompts, listing, step.actions.tolist(), probabilities, strict=True
            )
        ]

    def _patterns(
        self,
        prompt: Prompt,
        actions: Sequence[int],
        probabilities: Mapping[str, Sequence[float]],
        n_candidates: int,
    ) -> dict[str, ChosenOption]:
        patterns, refine = self.learner.patterns, self.environment.refiner or str
        answer = self.environment.ranker.display.answer

        def told(name: str, option: int) -> str:
            text = patterns.describe(name, option, answer)
            text = refine(text) if name in SENTENCES else text
            return filled(text, {"n_candidates": n_candidates})

        chosen = patterns.chosen(actions)
        by_pattern = {}
        for name, sentence in zip(patterns.parts, prompt.sentences, strict=True):
            texts = [told(name, option) for option in range(patterns.n_options(name))]
            probs: Sequence[float | None] = probabilities.get(name) or [None] * len(texts)
            options = tuple(map(Option, texts, probs))
            action = chosen[name]
            by_pattern[name] = ChosenOption(action, texts[action], sentence, options)
        return by_pattern


@dataclass(frozen=True)
class _Sharing(Environment):
    """Lets other calls choose their prompts while the language model answers this one's."""

    lock: Lock = field(default_factory=Lock)

    def _rank(self, prompts: Sequence[Prompt], episodes: Sequence[Episode]) -> list[Ranking]:
        with self._unlocked():
            return super()._rank(prompts, episodes)

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()


def _ranked(asked: _Asked, ranking: Ranking) -> tuple[RankedItem, ...]:
    candidates = asked.request.candidates
    return tuple(
        RankedItem(
            asked.ids[k],
            candidates[k].title,
            finite(ranking.scores[k]) if ranking.scores else None,
        )
        for k in ranking.order
    )


def _cost(before: Counters, after: Counters, n_users: int) -> Cost:
    """A user's part of what was spent in between."""
    then, now = asdict(before), asdict(after)
    names = [each.name for each in fields(Cost)]
    return Cost(**{name: (now[name] - then[name]) / n_users for name in names})
