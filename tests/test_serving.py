"""The policy over HTTP: routes in this process, with the worker beside them; the whole server."""

from __future__ import annotations

import math
from queue import Queue

import pytest
from fastapi.testclient import TestClient
from serving_setup import SETTINGS, by_number, fit, made_up

from rpp.learners.rpp import RPP
from rpp.recommendation import Query
from rpp.serve import ServerSettings, make_server
from rpp.serving import feedback
from rpp.serving.worker import Job, WaitingLoop
from rpp.types import InputError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_bert_folder):
    learner = RPP(**SETTINGS, prompt_encoder=str(tiny_bert_folder), history_lengths=[1, 4])
    return fit(learner, tmp_path_factory.mktemp("fitted"), by_number())


@pytest.fixture
def client(checkpoint, monkeypatch):
    """Make a client of a server whose worker is in this process."""
    monkeypatch.delenv("RPP_TOKEN", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the worker's Ctrl-C is this process's
    made = []

    def make(settings=None, **options):
        server = make_server(checkpoint, by_number(**options), settings or ServerSettings())
        (api,) = server.litapi_connector
        api.setup("cpu")
        api.personaliser.learner.inference_steps.fill_(2)
        made.append(api.personaliser)

        async def done(handler, job, kind):
            return api.predict([job])[0]

        monkeypatch.setattr("rpp.serving.routes.RegularRequestHandler.handle_request", done)
        return TestClient(server.app)

    yield make
    for each in made:
        each.close()


ASKED = {"history": made_up(1, 2), "candidates": ["i30", {"id": "n1", "title": "New 7"}, "i20"]}


def test_a_ranking_and_its_prompt(client):
    served = client()
    answer = served.post("/rank", json=ASKED | {"user": "u3", "profile": {"age": 30}})
    assert answer.status_code == 200
    found = answer.json()
    assert [(item["id"], item["score"]) for item in found["ranking"]] == [
        ("n1", -7.0),
        ("i20", -20.0),
        ("i30", -30.0),
    ]
    assert (found["status"], found["prompt"]["is_final"]) == ("valid", True)
    role = found["prompt"]["patterns"]["role"]
    assert sum(option["probability"] for option in role["options"]) == pytest.approx(1)
    prompt = served.post("/prompt", json=ASKED | {"user": "u3", "profile": {"age": 30}}).json()
    assert prompt == found["prompt"]
    first = served.post("/prompt", json=ASKED | {"n_steps": 1}).json()
    assert (first["n_steps"], first["is_final"]) == (1, False)
    schema = served.get("/openapi.json").json()
    assert {"/rank", "/prompt", "/feedback", "/health"} <= schema["paths"].keys()
    assert served.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"candidates": ["i1"]}, "candidates: List should have at least 2 items"),
        ({"candidates": ["i1"] * 101}, "candidates: List should have at most 100 items"),
        ({"candidates": "i1"}, "candidates: Input should be a valid list"),
        ({"candidates": ["i1", {"id": 3}]}, "candidates.1.title: Field required"),
        ({"candidates": ["i1", ""]}, "candidates.1"),
        ({"candidates": ["i1", "i2"], "history": ["x"] * 10_001}, "history: List should have"),
        ({"candidates": ["i1", "i2"], "item": 1}, "item: Extra inputs are not permitted"),
        ({"candidates": ["i1", 999]}, "the item 999 is not in the catalogue: give its title"),
        ({"candidates": ["i1", "i1"]}, "the user has an item twice among the candidates"),
        ({"candidates": ["i1", "i2"], "profile": {"height": 2}}, "profile has 'height'"),
        ({"candidates": ["i1", "i2"], "n_steps": 9}, "n_steps is 9: give 1 to 2"),
    ],
)
def test_bad_input_is_told_in_one_sentence(client, body, words):
    answer = client().post("/prompt", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(words)


def test_no_json_and_too_much_of_it(client):
    served = client(ServerSettings(max_request_kb=1))
    assert served.post("/rank", content="{").status_code == 422
    large = served.post("/rank", json={"candidates": ["x" * 900, "y" * 900]})
    assert large.status_code == 413


def test_a_model_that_is_down(client):
    served = client(down=True)
    answer = served.post("/rank", json=ASKED)
    assert answer.status_code == 503
    detail = answer.json()["detail"]
    assert detail["message"] == "no answer: nobody there"
    assert detail["prompt"] == served.post("/prompt", json=ASKED).json()
    assert not detail["prompt"]["is_final"]


def test_a_token_is_asked_for_where_there_is_one(client, monkeypatch):
    served = client()
    monkeypatch.setenv("RPP_TOKEN", "s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
        assert served.post("/rank", json=ASKED, headers=headers).status_code == 401
        assert served.post("/feedback", json={}, headers=headers).status_code == 401
    right = {"Authorization": "Bearer s3cret"}
    assert served.post("/rank", json=ASKED, headers=right).status_code == 200


def test_what_a_user_chose_becomes_a_reward(client, tmp_path):
    log = tmp_path / "feedback.jsonl"
    served = client(ServerSettings(feedback=str(log)))
    ids = [served.post("/rank", json=ASKED | {"user": "u1"}).json()["request_id"] for _ in "ab"]
    for request_id, chosen in ((ids[0], "i20"), (ids[1], "New 7"), (ids[0], "i1"), ("x", "i1")):
        told = served.post("/feedback", json={"request_id": request_id, "chosen": chosen})
        assert told.status_code == 200
    second, first = feedback.rewards(log)
    assert second["reward"] == pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert (first["reward"], first["user"], first["item"]) == (1.0, "u1", "New 7")
    assert first["actions"].keys() == {"role", "history", "reasoning", "format"}
    assert first["candidates"] == ASKED["candidates"]
    assert log.stat().st_mode & 0o077 == 0
    without = client()
    refused = without.post("/feedback", json={"request_id": "x", "chosen": "i1"})
    assert refused.status_code == 404


@pytest.fixture
def api(checkpoint, monkeypatch):
    """The worker's side of a server."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (made,) = make_server(checkpoint, by_number(), ServerSettings()).litapi_connector
    made.setup("cpu")
    yield made
    made.personaliser.close()


def test_what_waits_shares_a_batch_and_what_waited_too_long_is_given_up(api):
    waiting = Queue()
    for k in range(70):
        waiting.put((0, str(k), 0.0 if k == 1 else math.inf, k))
    batch, late = WaitingLoop().get_batch_requests(api, waiting, None)
    assert (len(batch), late) == (63, [(0, "1")])
    assert waiting.qsize() == 6


def test_one_bad_request_spoils_no_batch(api):
    good = Job(Query(made_up(1), made_up(4, 3)))
    bad = Job(Query(made_up(1), ["i4", 999]))
    prompt = Job(Query(made_up(1), made_up(4, 3)), False, 1)
    first, wrong, made, steps, last = api.predict(
        [good, bad, prompt, prompt._replace(n_steps=9), good]
    )
    assert first == last
    assert [item.id for item in first.ranking] == ["i3", "i4"]
    assert wrong.startswith("the item 999")
    assert steps.startswith("n_steps is 9")
    assert made.n_steps == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 80}, "serve.port is 80"),
        ({"max_batch_size": 0}, "serve.max_batch_size is 0"),
        ({"linger_ms": -1}, "serve.linger_ms is -1"),
    ],
)
def test_settings_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        ServerSettings(**options)
