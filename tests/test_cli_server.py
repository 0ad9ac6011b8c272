"""The command line with a model behind a server: keys, budgets, what is left open."""

from __future__ import annotations

import pytest
from cli_setup import api, command, files_with
from helpers import KEY

from rpp.cli import main, run
from rpp.llms.cache import ReplyCache
from rpp.llms.chat import ChatClient

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_the_key_is_written_nowhere(here, server, monkeypatch, capfd, caplog):
    """Although the server repeats it in every refusal, and refuses all but every sixth request."""
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults, server.seconds = (["400"] * 5 + [""]) * 500, 0.0  # batches have six users
    for subcommand in ("fit", "test", "predict"):
        main(command(subcommand, *api(server, "--data.n_test_users", "18")))
    assert server.faults
    assert server.keys == {f"Bearer {KEY}"}
    told = files_with(here, "status 400: no: Bearer ***")
    assert any("events" in path.name for path in told)  # a reply that failed is shown there
    assert (here / "replies/replies.sqlite").stat().st_size > 0
    assert {path.suffix for path in here.rglob("*")} >= {".ckpt", ".yaml", ".json", ".jsonl"}
    printed = capfd.readouterr()
    for part in ("sk-planted", "4f9Qz81Xw"):
        assert files_with(here, part) == []
        assert part not in printed.out + printed.err
        assert not any(part in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@127.0.0.1:1/v1", f"http://a.b/v1?key={KEY}"])
def test_a_key_in_the_address_is_refused_and_not_repeated(here, server, capfd, url):
    with pytest.raises(SystemExit) as stop:
        run(command("fit", *api(server, "--environment.llm.base_url", url)))
    assert stop.value.code == 2
    printed = capfd.readouterr()
    assert "error: base_url must be of the form" in printed.err
    assert "planted" not in printed.out + printed.err
    assert files_with(here, "planted") == []


@pytest.mark.parametrize(
    ("options", "status"), [(("--environment.llm.max_total_tokens", "150"), {}), ((), {"401": 1.0})]
)
def test_a_run_that_ends_early_leaves_nothing_open(here, server, monkeypatch, options, status):
    """Lightning calls no ``teardown`` after an error, and the connection once stayed open.

    Its warning came at some later garbage collection, in a test that had nothing to do with it.
    """
    server.shares = status
    closed = []
    for kind in (ChatClient, ReplyCache):
        close = kind.close
        monkeypatch.setattr(
            kind, "close", lambda self, close=close: (closed.append(type(self)), close(self))
        )
    with pytest.raises(SystemExit):
        run(command("fit", *api(server, *options)))
    assert sorted(kind.__name__ for kind in closed) == ["ChatClient", "ReplyCache"]


def test_a_spent_budget_ends_in_one_sentence_and_nothing_is_paid_twice(here, server, capsys):
    budget = ("--environment.llm.max_total_tokens", "150")  # 15 replies of 10 tokens
    with pytest.raises(SystemExit) as stop:
        run(command("fit", *api(server, *budget)))
    assert stop.value.code == 2
    captured = capsys.readouterr().err
    assert captured.count("the budget of 150 tokens is spent: raise max_total_tokens") == 1
    assert "Traceback" not in captured
    assert 15 <= len(server.seen) <= 15 + 8
    main(command("fit", *api(server)))
    assert len(server.seen) > 30
    assert not server.asked_again.total()


def test_without_a_key_nothing_is_asked_and_further_fields_are_sent(
    here, server, monkeypatch, capsys
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        run(command("fit", "--config", "conf/llm/chatgpt.yaml"))
    assert "error: the environment variable OPENAI_API_KEY is not set" in capsys.readouterr().err
    fields = ("--environment.llm.extra", '{"cache_prompt": false, "kwargs": {"deep": 1}}')
    main(command("fit", *api(server, *fields), "--trainer.fast_dev_run", "true"))
    assert server.seen[0]["cache_prompt"] is False
    assert server.seen[0]["kwargs"] == {"deep": 1}


def test_a_refused_key_ends_in_one_sentence(here, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.shares = {"401": 1.0}
    with pytest.raises(SystemExit) as stop:
        run(command("fit", *api(server)))
    assert stop.value.code == 2
    captured = capsys.readouterr().err
    assert "error: the server refused the key in OPENAI_API_KEY (status 401" in captured
    assert "planted" not in captured
    assert len(server.seen) <= 8 * 2
