"""``predict``: data that have grown since the fit, users of a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from cli_setup import command

from rpp import Personaliser, Query
from rpp.cli import main, run
from rpp.data.directory import load_directory
from rpp.data.episodes import load_episodes
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_drawing")

N_USERS = 150  # and items


@pytest.fixture
def growing(here, custom_csv):
    """The working folder with a small copy of the data that a test may change."""
    settings = yaml.safe_load((here / "small.yaml").read_text())
    files = settings["data"]["init_args"]["custom"]
    for name in ("interactions", "titles"):
        copy = here / f"{name}.csv"
        lines = getattr(custom_csv, name).read_text().splitlines(keepends=True)
        few = [line for line in lines[1:] if int(line[1:].split(",")[0]) < N_USERS]
        copy.write_text("".join([lines[0], *few]))
        files[name] = str(copy)
    (here / "small.yaml").write_text(yaml.safe_dump(settings))
    return here


def predictions(folder):
    lines = (folder / "results/ml-100k/predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def grow(folder):
    """One user and one item more."""
    with (folder / "titles.csv").open("a") as titles:
        titles.write("new,A film from tomorrow\n")
    with (folder / "interactions.csv").open("a") as interactions:
        for user in ("u1", "u2", "u3", "u4", "u5", "newcomer"):
            interactions.write(f"{user},new,2000000\n")
        for item in range(8):
            interactions.write(f"newcomer,i{item},{2_000_001 + item}\n")


def test_a_policy_outlives_its_data(growing, caplog):
    """One user and one item more once made every checkpoint useless."""
    main(command("fit", "--trainer.max_epochs", "1"))
    grow(growing)
    everybody = ("--data.n_test_users", str(N_USERS + 1 - 18))
    caplog.set_level("INFO")
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    main(command("predict", *everybody))
    assert "The data have changed since the fit: 1 users and 1 items are new" in caplog.text
    rows = predictions(growing)
    assert len(rows) == N_USERS + 1 - 18
    assert "newcomer" in {row["user"] for row in rows}
    assert any("A film from tomorrow" in row["prompt"] for row in rows)
    assert {name for row in rows for name in row["items"]} <= {f"i{k}" for k in range(N_USERS)} | {
        "new"
    }
    with pytest.raises(InputError, match="another data set"):
        main(command("test", *everybody))


EVIDENCE = """
based_on: conf/patterns/movies.yaml
selection: [similar]
evidence:
  sources:
    EASE:
      sentence: "People with my taste: {titles}."
      class_path: rpp.baselines.neighbours.EASE
    near:
      sentence: "Near: {titles}."
      class_path: rpp.baselines.neighbours.ItemKNN
      init_args: {lengths: [5]}
  options: [{EASE: 1}, {near: 9, EASE: 2}]
"""


def test_recommenders_outlive_the_data_as_well(growing):
    """They stay those of the fit: a prompt is the one that the checkpoint alone gives."""
    (growing / "mine.yaml").write_text(EVIDENCE)
    options = ("--model.patterns", "mine.yaml", "--model.n_steps", "1")
    main(command("fit", "--trainer.max_epochs", "1", *options))
    grow(growing)
    n_test_users = N_USERS + 1 - 18
    main(command("predict", "--data.n_test_users", str(n_test_users), *options))
    rows = predictions(growing)
    folder = growing / "data" / "custom"
    names = load_directory(folder).item_ids
    queries = [
        Query(*([names[i.index] for i in each] for each in (e.history, e.candidates)), e.user_id)
        for e in load_episodes(folder, "test")
    ]
    queries = [replace(each, **named(each)) for each in queries]
    with Personaliser.load(growing / "checkpoints/ml-100k") as personaliser:
        found = personaliser.rank_many(queries)
    assert [each.prompt.text for each in found] == [row["prompt"] for row in rows]
    said = {
        query.user: row["sentences"]["evidence"] for query, row in zip(queries, rows, strict=True)
    }
    assert all(said.values())
    assert not any("A film from tomorrow" in each for each in said.values())
    offered = [each for each in queries if NEW in each.candidates]
    assert offered
    assert "newcomer" in said


NEW = {"id": "new", "title": "A film from tomorrow"}


def named(query):
    """The lists of a query, with a title for what the policy cannot know."""
    lists = {"history": query.history, "candidates": query.candidates}
    return {key: [NEW if i == "new" else i for i in each] for key, each in lists.items()}


def test_users_of_a_file(fitted, capsys):
    users = [
        {"user": "u7", "history": ["i1", "i2"], "candidates": ["i3", "i4", "A new film"]},
        {"candidates": ["i5", "i6"]},
    ]
    (fitted / "users.jsonl").write_text("\n".join(map(json.dumps, users)))
    main(command("predict", "--input", "users.jsonl"))
    known, unknown = predictions(fitted)
    assert (known["user"], unknown["user"]) == ("u7", None)
    assert set(known["items"]) == {"i3", "i4", None}
    assert unknown["sentences"]["history"] == "0"
    assert sum(known["probabilities"]["role"]) == pytest.approx(1)
    assert known["status"] == "unusable"
    assert known["reply"] == "1. I have no idea"
    with pytest.raises(SystemExit):
        run(command("test", "--input", "users.jsonl"))
    assert "input is for the predict of a learner" in capsys.readouterr().err
