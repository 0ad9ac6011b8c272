"""The command line: what a run leaves, and mistakes that end in one sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from cli_setup import command

from rpp.cli import SaveConfig, main, run


def test_fit_test_predict(here, capsys):
    main(command("fit"))
    assert (here / "checkpoints/ml-100k/best.ckpt").is_file()
    assert (here / "checkpoints/ml-100k/last.ckpt").is_file()
    assert list((here / "logs/ml-100k").glob("version_0/events*"))
    main(command("validate"))
    main(command("test"))
    printed = capsys.readouterr().out
    for row in ("RPP", "RPP, first step", "RPP, sampled", "random policy", "best static", "chance"):
        assert row in printed
    assert "\nRPP, prompts permuted  " in printed
    assert "…" not in printed  # nothing is cut off in a narrow terminal
    record = json.loads((here / "results/ml-100k/results.json").read_text())
    assert record["n_users"] == 20
    assert sum(record["replies"].values()) == 20
    assert record["trained_in"]["decoding"] == "generate"
    assert sum(record["target_position"]) == 20
    assert record["counters"]["unusable"] > 0
    assert {"data", "policy", "environment"} == set(record["seeds"])
    header, *rows = (here / "results/ml-100k/results.csv").read_text().splitlines()
    assert header.startswith("method,ndcg@1,ndcg@1_low")
    assert len(rows) == 7
    main(command("predict"))
    lines = (here / "results/ml-100k/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 20
    first = json.loads(lines[0])
    assert set(first["sentences"]) == {"role", "history", "reasoning", "format", "evidence"}
    assert len(first["ranking"]) == 10
    assert first["sentences"]["reasoning"] in first["prompt"]


def test_table_invariants(fitted, no_drawing):
    """SPEC 6.8: relations that every row satisfies whatever the ranker did."""
    main(command("test"))
    table = json.loads((fitted / "results/ml-100k/results.json").read_text())["rows"]
    for row in table:
        value = {name: cell["mean"] for name, cell in row["scores"].items()}
        assert value["ndcg@1"] <= value["mrr@5"] <= value["ndcg@5"] <= value["ndcg@10"]
        assert value["mrr@5"] <= value["mrr@10"]
        assert value["ndcg@5"] <= value["hr@5"]
        assert value["mrr@10"] - value["mrr@5"] <= (1 - value["hr@5"]) / 6 + 1e-9


@pytest.mark.parametrize(
    ("subcommand", "options", "message"),
    [
        ("test", (), "there is no checkpoint checkpoints/ml-100k/best.ckpt"),
        ("fit", ("--ckpt_path", "last"), "there is no checkpoint checkpoints/ml-100k/last.ckpt"),
        ("fit", ("--model.patterns", "nowhere.yaml"), "no patterns file nowhere.yaml"),
        ("fit", ("--data.n_train_users", "100000"), "100000"),
        ("fit", ("--data.custom.titles", "nowhere.csv"), "nowhere.csv"),
        ("fit", ("--environment.decoding", "nonsense"), "nonsense"),
        ("fit", ("--environment.show_candidates", "false"), "needs the candidates in the prompt"),
        ("fit", ("--model.n_step", "3"), "n_step"),
        ("fit", ("--model.n_steps", "0"), "model.n_steps is 0: at least 1 is needed"),
        ("fit", ("--model.n_static_prompts", "0"), "model.n_static_prompts is 0"),
        ("fit", ("--model.policy_seed", "-1"), "model.policy_seed is -1"),
        ("fit", ("--model.n_candidates", "5"), "have 10 candidates and model.n_candidates is 5"),
        ("fit", ("--data.batch_size", "0"), "data.batch_size is 0"),
        (
            "fit",
            ("--config", "conf/ablations/ppo_1.yaml", "--model.n_prompts", "1"),
            "n_prompts is 1",
        ),
        ("fit", ("--config", "conf/ablations/ppo_4.yaml", "--model.actor_lr", "1"), "actor_lr"),
    ],
)
def test_mistakes_end_in_one_sentence(here, capsys, subcommand, options, message):
    with pytest.raises(SystemExit) as stop:
        run(command(subcommand, *options))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_prompts_encoded_as_one_text(here, no_drawing):
    main(command("fit", "--trainer.max_epochs", "1", "--model.prompt_encoding", "whole"))
    main(command("test", "--model.prompt_encoding", "whole"))
    record = json.loads((here / "results/ml-100k/results.json").read_text())
    assert record["provenance"]["prompt encoding"] == "whole"


def test_malformed_yaml_is_named(here, capsys):
    (here / "small.yaml").write_text("model: [unclosed\n")
    with pytest.raises(SystemExit) as stop:
        run(command("fit"))
    assert stop.value.code == 2
    assert "small.yaml" in capsys.readouterr().err


def test_a_run_that_logs_nothing_leaves_no_configuration_in_the_top_folder(tmp_path):
    unlogged = SimpleNamespace(loggers=[], log_dir=str(tmp_path))
    SaveConfig(parser=None, config=None).setup(unlogged, None, "test")  # once wrote config.yaml
    assert not list(tmp_path.iterdir())
