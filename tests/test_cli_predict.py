"""``predict``: data that have grown since the fit, users of a file."""

from __future__ import annotations

import json

import pytest
import yaml
from cli_setup import command

from rpp.cli import main, run
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


def test_a_policy_outlives_its_data(growing, caplog):
    """One user and one item more once made every checkpoint useless."""
    main(command("fit", "--trainer.max_epochs", "1"))
    with (growing / "titles.csv").open("a") as titles:
        titles.write("new,A film from tomorrow\n")
    with (growing / "interactions.csv").open("a") as interactions:
        for user in ("u1", "u2", "u3", "u4", "u5", "newcomer"):
            interactions.write(f"{user},new,2000000\n")
        for item in range(8):
            interactions.write(f"newcomer,i{item},{2_000_001 + item}\n")
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
