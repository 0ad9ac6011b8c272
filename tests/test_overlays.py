"""Every configuration file that is laid over conf/rpp.yaml is run at a tiny size."""

from __future__ import annotations

import inspect
import json
import re

import pytest
import torch
import yaml
from cli_setup import RAW, ROOT, command, files_with, weights

from rpp.callbacks.environment import RewardEnvironment
from rpp.cli import main, run
from rpp.learners.rpp import RPP
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_drawing")

LLMS = sorted(path.stem for path in (ROOT / "conf/llm").glob("*.yaml"))
CONTROLS = sorted(path.stem for path in (ROOT / "conf/controls").glob("*.yaml"))
ABLATIONS = sorted(path.stem for path in (ROOT / "conf/ablations").glob("*.yaml"))
SETS = sorted(path.stem for path in (ROOT / "conf/data").glob("*.yaml"))


@pytest.mark.parametrize("data", SETS)
def test_every_data_overlay(here, monkeypatch, custom_csv, data):
    """Each data set is prepared from raw files in its original form and trained on."""
    overlay = yaml.safe_load((here / "small.yaml").read_text())
    for key in ("name", "custom", "order"):
        del overlay["data"]["init_args"][key]
    if data == "custom":
        (here / "my_data").mkdir()
        (here / "my_data/interactions.csv").symlink_to(custom_csv.interactions)
        (here / "my_data/items.csv").symlink_to(custom_csv.titles)
    else:
        RAW[data](here / "raw")
        overlay["data"]["init_args"] |= {"raw_dir": "raw", "min_interactions": 0}
        overlay["data"]["init_args"] |= {"n_validation_users": 4, "n_test_users": 4}
    (here / "small.yaml").write_text(yaml.safe_dump(overlay))
    main(
        ["fit", "--config", "conf/rpp.yaml", "--config", f"conf/data/{data}.yaml",
         "--config", "small.yaml", "--trainer.fast_dev_run", "true"]
    )  # fmt: skip
    # each data set of the user's own has a folder of its own
    folder = here / "data" / ("custom/custom" if data == "custom" else data)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["settings"]["name"] == data


@pytest.mark.parametrize("llm", LLMS)
def test_every_llm_overlay(here, llm, tiny_llm_folder, server):
    """Each one's keys reach the model and the ranker, and it is asked; tiny weights stand in."""
    overlay = yaml.safe_load((ROOT / f"conf/llm/{llm}.yaml").read_text())
    kind = overlay["environment"]["llm"]["class_path"]
    options = ["--config", f"conf/llm/{llm}.yaml"]
    if kind.endswith("HuggingFaceLanguageModel"):
        options += ["--environment.llm.model", str(tiny_llm_folder)]
        options += ["--environment.llm.revision", "null", "--environment.llm.quantization", "null"]
        options += ["--environment.llm.max_new_tokens", "8", "--environment.llm.adapter", "null"]
    if kind.endswith("OpenAILanguageModel"):
        options += ["--environment.llm.base_url", f"http://127.0.0.1:{server.server_port}/v1"]
    made = main(command("fit", *options, "--trainer.fast_dev_run", "true"))
    (used,) = (c for c in made.trainer.callbacks if isinstance(c, RewardEnvironment))
    given = overlay["environment"]["llm"]["init_args"]
    kept = {"temperature", "template", "concurrency"} & given.keys()
    assert type(used.llm).__name__ == kind.rpartition(".")[2]
    assert {name: getattr(used.llm, name) for name in kept} == {name: given[name] for name in kept}
    assert used.decoding == overlay["environment"]["decoding"]
    assert len(made.model.train_steps) == made.model.n_steps
    rankings = [ranking for step in made.model.train_steps for ranking in step.rankings]
    assert len(rankings) == made.model.n_steps * 6
    assert not any(ranking.failed for ranking in rankings)
    assert all(ranking.reply for ranking in rankings)


@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_overlay(here, control):
    """Run as the README says: the control is what answers, and every row is written.

    An overlay once named its function where the parser wanted text; the model then answered with
    an error message, which scores chance too. That controls score chance: ``test_controls.py``.
    """
    overlay = yaml.safe_load((here / "small.yaml").read_text())
    del overlay["environment"]["llm"]
    (here / "small.yaml").write_text(yaml.safe_dump(overlay))
    options = ["--config", f"conf/controls/{control}.yaml", "--trainer.max_epochs", "1"]
    main(command("fit", *options))
    main(command("test", *options))
    record = json.loads((here / f"results/{control}/results.json").read_text())
    kind = {"says_nothing": "unusable", "names_one_position": "repaired"}.get(control, "valid")
    assert record["replies"] == {kind: 20}  # the control itself was asked
    assert {"RPP", "best static prompt"} <= {row["name"] for row in record["rows"]}


ANOTHER = {
    "pool": r"another pooling \(mean;.* than this run \(gru;",
    "ppo_1": r"another learner \(PPO-1 of 32 prompts;.* than this run \(RPP;",
    "ppo_4": r"another learner \(PPO-4;.* than this run \(RPP;",
    **dict.fromkeys(("role", "history", "reasoning", "format"), "another patterns"),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_overlay(here, ablation):
    """Trained, tested and used; RPP takes the checkpoints of those that have its agents."""
    overlay = f"conf/ablations/{ablation}.yaml"
    first = (here / overlay).read_text().splitlines()[0]
    assert first == f"# python train.py fit --config conf/rpp.yaml --config {overlay}"
    options = ("--config", overlay)
    made = main(command("fit", *options, "--trainer.max_epochs", "1")).model
    assert (made.n_steps, made.prompt_encoding) == (2, "parts")  # of the files before it
    rpp = inspect.signature(RPP).parameters
    rates = {made.lr} if ablation.startswith("ppo") else {made.actor_lr, made.critic_lr}
    assert rates == {rpp["actor_lr"].default}  # all learn as fast
    main(command("test", *options))
    main(command("predict", *options))
    folder = here / f"results/custom-{ablation}"
    record = json.loads((folder / "results.json").read_text())
    assert record["provenance"]["learner"] == made.title
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 20
    as_rpp = command("test", "--name", f"custom-{ablation}")
    if ablation in ("bandit", "paper"):
        assert made.discount == (0 if ablation == "bandit" else 0.95)
        main(as_rpp)
    else:
        with pytest.raises(InputError, match=ANOTHER[ablation]):
            main(as_rpp)


def test_rpp_plus_overlay(here, capsys):
    """Sentences are sent refined in every row, both texts are told, and the checkpoint has them."""
    plus = ("--config", "conf/rpp_plus.yaml", "--environment.llm.reply", "List and rank them.")
    main(command("fit", *plus, "--trainer.max_epochs", "1"))
    main(command("test", *plus))
    assert "RPP+: 7 sentences are sent refined, 10 as they were" in capsys.readouterr().out
    record = json.loads((here / "results/custom-plus/results.json").read_text())
    sent = {each["sentence"]: each["sent"] for each in record["refinements"]}
    assert len(sent) == 3 + 9 + 5
    role = "You know the world of film as well as a seasoned critic."
    assert sent[role] == "List and rank them."  # no placeholder to lose
    reasons = [each["reason"] for each in record["refinements"]]
    assert reasons.count("its placeholders are not those of the original") == 9
    assert reasons.count("it does not ask for the form that can be read") == 1  # no example
    assert record["trained_in"]["refiner"] == "scripted draw 0"
    told = files_with(here / "logs/custom-plus", "its placeholders are not those of the original")
    assert any("events" in path.name for path in told)
    main(command("predict", *plus))
    lines = (here / "results/custom-plus/predictions.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert sent[row["chosen"]["role"]] == row["sentences"]["role"]
        assert row["prompt"].startswith("List and rank them.")


def test_a_refiner_of_its_own(here):
    options = ("--environment.refiner", "rpp.llms.base.ScriptedLanguageModel")
    options += ("--environment.refiner.name", "other", "--environment.refiner.reply", "Rank.")
    main(command("fit", *options, "--trainer.max_epochs", "1"))
    checkpoint = torch.load(here / "checkpoints/ml-100k/last.ckpt", weights_only=True)
    assert checkpoint["environment"]["refiner"] == "other draw 0"
    assert set(checkpoint["refinements"].values()) == {"Rank."}


@pytest.mark.parametrize("learn", [None, "[profile]"])
def test_profile_overlay(here, learn):
    """Made-up users have profiles: those of each stand in their own prompts and no one else's."""
    options = ["--config", "conf/profile.yaml"] + (["--model.learn", learn] if learn else [])
    main(command("fit", *options, "--trainer.max_epochs", "1"))
    main(command("test", *options))
    main(command("predict", *options))
    lines = (here / "results/custom-profile/predictions.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        number = int(row["user"].removeprefix("u"))
        said = row["sentences"]["profile"]
        assert not said or said in row["prompt"].split("\n")
        for told in re.findall(r"(gender|age|occupation): ([^.]+)\.", said):
            own = {"age": f"{20 + number % 50}", "occupation": f"worker {number % 5}"}
            assert told[1] == own.get(told[0], "FM"[number % 2])
    names = weights(here / "checkpoints/custom-profile/last.ckpt")
    n_agents = len({name.split(".")[2] for name in names if name.startswith("agents.actors.")})
    assert n_agents == (1 if learn else 5)
    with pytest.raises(InputError, match="another patterns"):
        main(command("test", *options, "--model.learn", "[role, profile]"))


def test_a_profile_overlay_without_profiles_ends_in_one_sentence(here, capsys):
    overlay = yaml.safe_load((here / "small.yaml").read_text())
    del overlay["data"]["init_args"]["custom"]["profiles"]
    (here / "small.yaml").write_text(yaml.safe_dump(overlay))
    with pytest.raises(SystemExit) as stop:
        run(command("fit", "--config", "conf/profile.yaml"))
    assert stop.value.code == 2
    assert "the data set 'custom' knows no user's age" in capsys.readouterr().err


CELLS = [("ml-1m", "llama2-7b-chat"), ("games", "chatgpt"), ("lastfm", "alpaca-lora")]
"""Each data set and each language model of Table 4 once; their overlays do not touch."""


@pytest.mark.parametrize("plus", [False, True], ids=["rpp", "rpp_plus"])
@pytest.mark.parametrize(("data", "llm"), CELLS)
def test_cells_of_the_papers_tables(
    here, tiny_llm_folder, tiny_bert_folder, server, data, llm, plus
):
    """The command of conf/paper/setup.yaml on raw files, with tiny models in the weights' place."""
    RAW[data](here / "raw")
    model = "m" if llm == "chatgpt" else str(tiny_llm_folder)
    small = {
        "model": {"init_args": {"prompt_encoder": str(tiny_bert_folder), "n_static_prompts": 1}},
        "data": {"init_args": {"raw_dir": "raw", "min_interactions": 0, "n_train_users": 4,
                               "n_validation_users": 2, "n_test_users": 2,
                               "lightgcn": {"n_epochs": 1, "dim": 8}}},
        "environment": {"llm": {"init_args": {"model": model, "max_new_tokens": 4}},
                        "cache_dir": None},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip
    if llm == "chatgpt":
        small["environment"]["llm"]["init_args"]["base_url"] = server.url
    else:
        small["environment"]["llm"]["init_args"] |= {
            "revision": None, "adapter": None, "quantization": None
        }  # fmt: skip
    (here / "small.yaml").write_text(yaml.safe_dump(small))
    names = ["rpp", f"data/{data}", f"llm/{llm}", "paper/setup", "paper/rpp_plus"]
    options = [word for name in names[: 4 + plus] for word in ("--config", f"conf/{name}.yaml")]
    options += ["--config", "small.yaml", "--seed_everything", "3", "--trainer.max_epochs", "1"]
    made = main(["fit", *options])
    assert (made.model.n_steps, made.model.policy_seed, made.datamodule.batch_size) == (15, 3, 200)
    run_name = f"paper/{data}/{model}/{'rpp_plus' if plus else 'rpp'}/3"
    checkpoint = torch.load(f"checkpoints/{run_name}/last.ckpt", weights_only=True)
    assert ("refiner" in checkpoint["environment"]) == plus
    main(["test", *options])
    record = json.loads((here / f"results/{run_name}/results.json").read_text())
    assert record["seeds"] == {"data": 3, "policy": 3, "environment": 3}
    assert record["environment"]["decoding"] == "generate"


@pytest.mark.parametrize("name", ["four_patterns", "frozen", "graded", "graded_ml-1m"])
def test_overlays_of_other_adapters(here, hasty_sequences, name):
    """One that was tuned without evidence has none in its prompts; without one titles are long."""
    files = ("conf/rpp.yaml", f"conf/{name}.yaml", "small.yaml")
    words = [word for file in files for word in ("--config", file)]
    made = main(["fit", *words, "--trainer.fast_dev_run", "true"])
    paper = ("role", "history", "reasoning", "format")
    frozen = name == "frozen"
    assert made.model.patterns.names == (paper if name == "four_patterns" else (*paper, "evidence"))
    (used,) = (c for c in made.trainer.callbacks if isinstance(c, RewardEnvironment))
    assert used.per_character is frozen


def test_evidence_of_the_default(here):
    """Recommenders are told of in fit, test and predict; a policy belongs to its evidence."""
    told = command("fit", "--name", "told")[1:]
    made = main(["fit", *told, "--trainer.max_epochs", "1"]).model
    assert made.patterns.names[-1] == "evidence"
    assert made.evidence is None  # given back with the ranker
    main(["test", *told])
    main(["predict", *told])
    lines = (here / "results/told/predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    for each in predictions:
        assert each["sentences"]["evidence"] in each["prompt"].replace("\n", " ")
    record = json.loads((here / "results/told/results.json").read_text())
    assert "evidence" in record["environment"]
    with pytest.raises(InputError, match="another patterns"):
        main(["test", *told, "--model.patterns", "conf/patterns/movies.yaml"])
