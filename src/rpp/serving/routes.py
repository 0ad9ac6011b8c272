"""What the server answers, and what it refuses: the routes beside LitServe's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from litserve.server import LitServer, RegularRequestHandler
from litserve.specs.base import LitSpec
from pydantic import BaseModel, ConfigDict, Field

from rpp.personaliser import MAX_CANDIDATES, MIN_CANDIDATES
from rpp.recommendation import Cost, PersonalPrompt, Query, RankedItem, Recommendation
from rpp.serving import feedback
from rpp.serving.worker import Job
from rpp.types import ReplyStatus

MAX_HISTORY = 10_000
"""Items of a history in one request."""

Name = Annotated[str, Field(min_length=1, max_length=1000)] | int
"""An id or a title."""


class NamedItem(BaseModel):
    """An item by its id and its title; a known id decides."""

    model_config = ConfigDict(extra="forbid")
    id: Name | None = None
    title: Annotated[str, Field(min_length=1, max_length=1000)]


class PromptRequest(BaseModel):
    """One user with a history and some candidates; items by id, title, or both."""

    model_config = ConfigDict(extra="forbid")
    history: list[Name | NamedItem] = Field(default=[], max_length=MAX_HISTORY)
    candidates: list[Name | NamedItem] = Field(min_length=MIN_CANDIDATES, max_length=MAX_CANDIDATES)
    user: Name | None = None
    profile: dict[str, Name] | None = Field(default=None, max_length=3)

    @property
    def query(self) -> Query:
        """The same for the policy."""
        return Query(_named(self.history), _named(self.candidates), self.user, self.profile)


class StepsRequest(PromptRequest):
    """The same, with the number of steps; with 1 the language model is not asked."""

    n_steps: int | None = Field(default=None, ge=1)


class Feedback(BaseModel):
    """What a user chose from a ranking."""

    model_config = ConfigDict(extra="forbid")
    request_id: str = Field(min_length=1, max_length=100)
    chosen: Name


class Ranked(BaseModel):
    """A ranking; its id is for the feedback."""

    request_id: str
    ranking: list[RankedItem]
    status: ReplyStatus
    reply: str
    prompt: PersonalPrompt
    cost: Cost


class Routes(LitSpec):  # type: ignore[misc]  # LitServe has no types
    """Ranking and prompts by the worker; feedback to a log.

    Args:
        log: The log of rankings and choices; ``None``: there is none.
    """

    def __init__(self, log: Path | None) -> None:
        super().__init__()
        self.api_path = "/rank"
        self.log = log
        self.add_endpoint("/rank", self.rank, ["POST"])
        self.add_endpoint("/prompt", self.prompt, ["POST"])
        self.add_endpoint("/feedback", self.feedback, ["POST"])

    def setup(self, server: LitServer) -> None:
        """The worker needs nothing of the server."""

    def decode_request(self, request: Any, context_kwargs: Any = None) -> Any:
        """Jobs travel as they are."""
        return request

    def encode_response(self, output: Any, context_kwargs: Any = None) -> Any:
        """So do outcomes."""
        return output

    async def rank(self, given: PromptRequest) -> Ranked:
        """Rank a user's candidates; without the language model only the prompt, with status 503."""
        found: Recommendation = await self._done(Job(given.query))
        if found.status == "failed":
            detail = {"message": f"no answer: {found.reply}", "prompt": asdict(found.prompt)}
            raise HTTPException(503, detail)
        request_id = str(uuid4())
        if self.log is not None:
            feedback.append(self.log, feedback.ranked(request_id, given.query, found))
        return Ranked(request_id=request_id, **vars(found))

    async def prompt(self, given: StepsRequest) -> PersonalPrompt:
        """The prompt for a user, and why it was chosen."""
        made: PersonalPrompt = await self._done(Job(given.query, False, given.n_steps))
        return made

    async def feedback(self, given: Feedback) -> dict[str, str]:
        """Note what a user chose from a ranking."""
        if self.log is None:
            raise HTTPException(404, "no feedback is kept: start the server with --serve.feedback")
        feedback.append(self.log, feedback.chosen(given.request_id, given.chosen))
        return {"status": "kept"}

    async def _done(self, job: Job) -> Any:
        """What the worker makes of a job.

        Raises:
            HTTPException: If it cannot understand it.
        """
        server = self._server
        (lit_api,) = server.litapi_connector
        outcome = await RegularRequestHandler(lit_api, server).handle_request(job, Job)
        if isinstance(outcome, str):
            raise HTTPException(422, outcome)
        return outcome


def _named(items: list[Name | NamedItem]) -> list[Any]:
    return [each.model_dump() if isinstance(each, NamedItem) else each for each in items]


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """One sentence for a request of the wrong form."""
    assert isinstance(error, RequestValidationError)
    deepest = max(error.errors(), key=lambda each: len(each["loc"]))
    place = ".".join(str(part) for part in deepest["loc"][1:] if not _is_kind(part))
    words = f"{place}: {deepest['msg']}" if place else str(deepest["msg"])
    return JSONResponse({"detail": words}, status_code=422)


def _is_kind(part: object) -> bool:
    """Whether a part of an error's place is one of the forms an item may have, not a field."""
    return isinstance(part, str) and (
        part == "NamedItem" or part.startswith(("constrained", "int"))
    )
