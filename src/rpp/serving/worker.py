"""The process that holds policy and language model, and answers requests in batches."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from queue import Queue
from time import monotonic
from typing import Any, NamedTuple

import torch
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop
from litserve.specs.base import LitSpec
from litserve.transport.base import MessageTransport

from rpp.arguments import remade
from rpp.callbacks.environment import RewardEnvironment
from rpp.personaliser import Personaliser
from rpp.recommendation import PersonalPrompt, Query, Recommendation
from rpp.types import InputError

TOKEN = "RPP_TOKEN"
"""Environment variable of the bearer token that requests must have; without one all may ask."""

IDLE = 1.0
"""Seconds after which waiting for a request is begun anew."""


class Job(NamedTuple):
    """A request for the worker.

    Attributes:
        query: The user.
        ranks: Whether the language model is to rank, or the prompt is all that is wanted.
        n_steps: For a prompt: steps to play.
    """

    query: Query
    ranks: bool = True
    n_steps: int | None = None


Outcome = Recommendation | PersonalPrompt | str
"""The answer to a job, or what is wrong with it in a sentence."""


class WaitingLoop(BatchedLoop):  # type: ignore[misc]  # LitServe has no types
    """Waits for a request without polling, then takes what has come meanwhile into the batch."""

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue[Any], transport: MessageTransport
    ) -> tuple[list[Any], list[Any]]:
        """The next batch, and the requests that have waited for too long."""
        taken: list[Any] = []
        wait: float = IDLE
        while len(taken) < lit_api.max_batch_size:
            one = self.get_request(request_queue, block=wait > 0, timeout=max(wait, 0))
            if one is None:
                break
            if not taken:
                end = monotonic() + lit_api.batch_timeout
            taken.append(one)
            wait = end - monotonic()
        oldest = monotonic() - float(lit_api.request_timeout or 0)
        in_time = [(place, uid, job) for place, uid, since, job in taken if since > oldest]
        return in_time, [(place, uid) for place, uid, since, _ in taken if since <= oldest]


class PolicyAPI(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """A policy for LitServe: loaded once per worker, asked in batches.

    Args:
        checkpoint: The policy's checkpoint.
        settings: Class and arguments of the environment, see :func:`rpp.arguments.described`.
        spec: The routes.
        max_batch_size: Requests that are answered together.
        linger: Seconds for which the first request of a batch waits for others.
    """

    def __init__(
        self,
        checkpoint: str,
        settings: Mapping[str, Any],
        spec: LitSpec,
        max_batch_size: int,
        linger: float,
    ) -> None:
        super().__init__(max_batch_size, linger, loop=WaitingLoop(), spec=spec)
        self.checkpoint = checkpoint
        self.settings = settings

    def setup(self, device: str) -> None:
        """Load policy and language model."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which drains
        environment = remade(self.settings, RewardEnvironment)
        self.personaliser = Personaliser.load(self.checkpoint, environment, torch.device(device))
        _ = getattr(self.personaliser.environment.ranker.llm.model, "network", None)  # load it now

    def authorize(
        self,
        request: Request,
        given: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False)),  # noqa: B008
    ) -> None:
        """Refuse a request without the token, if there is one; all may ask for the health."""
        token = os.environ.get(TOKEN)
        if not token or request.url.path == "/health":
            return
        said = given.credentials if given else ""
        if not secrets.compare_digest(said.encode(), token.encode()):
            raise HTTPException(
                401, "the bearer token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )

    def decode_request(self, request: Job) -> Job:
        """Jobs travel as they are."""
        return request

    def encode_response(self, output: Any) -> Any:
        """So do outcomes."""
        return output

    def predict(self, x: Sequence[Job]) -> list[Outcome]:
        """Answer a batch; what is wrong with one request keeps no other from its answer."""
        outcomes: dict[int, Outcome] = {}
        for row, job in enumerate(x):
            try:
                self.personaliser.understand(job.query)
            except InputError as error:
                outcomes[row] = str(error)
        kinds = {(job.ranks, job.n_steps) for row, job in enumerate(x) if row not in outcomes}
        for kind in kinds:
            rows = [k for k, job in enumerate(x) if job[1:] == kind and k not in outcomes]
            outcomes.update(zip(rows, self._answer([x[k].query for k in rows], *kind), strict=True))
        return [outcomes[row] for row in range(len(x))]

    def _answer(
        self, queries: Sequence[Query], ranks: bool, n_steps: int | None
    ) -> Sequence[Outcome]:
        """Answers of one kind; asked one by one where a prompt does not fit the model."""
        try:
            if ranks:
                return self.personaliser.rank_many(queries)
            return self.personaliser.prompt_many(queries, n_steps)
        except InputError as error:
            if len(queries) == 1:
                return [str(error)]
            return [each for one in queries for each in self._answer([one], ranks, n_steps)]
