"""The worked examples of the guide are run as they stand there."""

from __future__ import annotations

import ast
import json
import re
import subprocess

import pytest
import yaml
from cli_setup import ROOT
from fastapi import HTTPException
from fastapi.testclient import TestClient
from serving_setup import SETTINGS, by_number, fit

from rpp.cli import main
from rpp.learners.rpp import RPP
from rpp.serve import ServerSettings, make_server
from rpp.serving.routes import Routes


def blocks(section: str, kind: str) -> list[str]:
    """The code blocks of one kind in a section of the guide."""
    guide = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    _, _, rest = guide.partition(f"## {section}\n")
    return re.findall(rf"```{kind}\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)


@pytest.fixture
def application(tmp_path, monkeypatch, tiny_bert_folder):
    """A working folder with a checkpoint of the name in the guide."""
    learner = RPP(**SETTINGS, prompt_encoder=str(tiny_bert_folder), history_lengths=[1, 4])
    path = fit(learner, tmp_path / "checkpoints/ml-100k", by_number())
    monkeypatch.chdir(tmp_path)
    return path


def titled(code: str) -> str:
    """The code with ids as titles: the made-up catalogue has other ids."""
    return re.sub(r'"(\d+)"', r'"Picture \1"', code)


def test_in_your_application(application, capsys):
    (code,) = blocks("In your application", "python")
    names: dict[str, object] = {}
    exec(titled(code), names)
    printed = capsys.readouterr().out
    assert "C. A film from next week" in printed
    assert "valid [(" in printed
    assert [len(each.ranking) for each in names["several"]] == [2, 3]


def test_the_request_over_http(application, monkeypatch):
    (command,) = blocks("In your application", "bash")
    body = json.loads(titled(re.search(r"-d '(.*)'", command, re.DOTALL)[1]))
    done = []

    async def take(self, job):
        done.append(job.query)
        raise HTTPException(404, "understood")

    monkeypatch.setattr(Routes, "_done", take)
    server = make_server(application, by_number(), ServerSettings())
    answer = TestClient(server.app).post("/rank", json=body)
    assert answer.json() == {"detail": "understood"}
    assert len(done[0].candidates) == 3


def test_your_own_model_and_data(here, monkeypatch, custom_csv, capsys):
    section = "Your own LLM and data in fifteen minutes"
    model, use = blocks(section, "python")
    (settings,) = blocks(section, "yaml")
    (commands,) = blocks(section, "bash")
    monkeypatch.syspath_prepend(here)
    (here / "my_llm.py").write_text(model)
    (here / "my.yaml").write_text(settings)
    (here / "interactions.csv").write_text(custom_csv.interactions.read_text())
    (here / "items.csv").write_text(custom_csv.titles.read_text())
    assert yaml.safe_load(settings)["environment"]["llm"]["class_path"] == "my_llm.Mine"
    sentences, *lines = commands.strip().splitlines()
    subprocess.run(sentences, shell=True, check=True, cwd=here)
    assert "movie" not in (here / "my_patterns.yaml").read_text()
    small = {"n_static_prompts": 2}
    quick = [f"--model.{name}={value}" for name, value in small.items()]
    quick += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.lightgcn.n_epochs=1"]
    quick += [f"--data.n_{name}_users=6" for name in ("train", "validation", "test")]
    quick += ["--trainer.enable_progress_bar=false", "--environment.cache_dir=null"]
    for line in lines:
        assert line.startswith("python train.py ")
        main([*line.split()[2:], *quick])
    capsys.readouterr()
    exec(use, {})
    titles = ast.literal_eval(capsys.readouterr().out)
    assert titles == sorted(titles)
    assert "A new book" in titles
