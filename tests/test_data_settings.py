"""Settings of a preparation, its command line and its summary."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_files import (
    N_ITEMS,
    N_USERS,
    QUIET,
    custom,
    ml_1m,
    rows,
    settings,
)

from data_prep.__main__ import main
from data_prep.prepare import CustomFiles, DataSettings, prepare
from data_prep.tables import load_summary
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "netflix"}, "unknown data set 'netflix'"),
        ({"n_candidates": 1}, "n_candidates is 1, but must be at least 2"),
        ({"min_interactions": -1}, "min_interactions is -1"),
        ({"n_train_users": 0}, "n_train_users is 0"),
        ({"n_targets": 0}, "n_targets is 0, but must be at least 1"),
        ({"seed": -3}, "seed is -3"),
        ({"seed": 2**63}, "seed is 9223372036854775808, but must be at most"),
        ({"order": "tag_time"}, "ml-1m has no order 'tag_time': choose time"),
        ({"name": "lastfm", "order": "time"}, "choose play_count or tag_time"),
        ({"name": "custom"}, "needs its files"),
        ({"custom": CustomFiles("a", "b")}, "the data set is 'ml-1m'"),
        ({"name": "ml-100k", "candidates": "authors"}, "no authors' lists for ml-100k"),
        ({"candidates": "best"}, "'best'"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        DataSettings(**({"name": "ml-1m"} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_train_users": 20},
            r"n_train_users 20, .* but 24 are left .* lower the",
        ),
        ({"n_candidates": 60}, "n_candidates=60 is too many: for user"),
        ({"min_interactions": 50}, "min_interactions=50"),
    ],
)
def test_settings_that_do_not_fit_the_data(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(settings("ml-1m", ml_1m(tmp_path / "raw"), **changes), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_summary(tmp_path):
    """Counts beside the paper's, a sentence for every difference, versions and checksums."""
    raw = ml_1m(tmp_path / "raw", [*rows(), rows()[0]])
    summary = prepare(settings("ml-1m", raw), tmp_path / "out", QUIET)
    assert summary == load_summary(tmp_path / "out")
    n_rows = len(rows()) + 1
    assert summary["counts"] == {
        "paper": {"users": 6040, "items": 3885, "interactions": 1000210},
        "raw": {"users": N_USERS, "items": N_ITEMS, "interactions": n_rows},
        "prepared": {"users": N_USERS, "items": N_ITEMS, "interactions": n_rows - 1},
    }
    text = " ".join(summary["explanations"])
    assert f"users: {N_USERS} and not 6,040" in text
    assert "1 interactions were left out because the user had the item before" in text
    assert [Path(file["path"]).name for file in summary["sources"]] == [
        "ratings.dat",
        "movies.dat",
        "users.dat",
    ]
    assert set(summary["versions"]) == {"python", "numpy", "polars"}
    assert summary["n_episodes"] == {"train": 8, "validation": 5, "test": 6}


def test_command_line(tmp_path, capsys):
    """A table on success; one line on standard error and exit code 2 otherwise."""
    raw, out = ml_1m(tmp_path / "raw"), tmp_path / "out"
    users = ["--n-train-users", "8", "--n-validation-users", "5", "--n-test-users", "6"]
    users += ["--n-targets", "2"]
    common = [*users, "--min-interactions", "0", "--out", str(out)]
    assert main(["ml-1m", "--raw", str(raw), *common]) == 0
    assert "1,000,210" in capsys.readouterr().out
    files = custom(tmp_path / "own")
    columns = ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]
    given = ["--interactions", files.interactions, "--titles", files.titles, *columns]
    assert main(["custom", *given, "--title-column", "name", *common]) == 0
    assert load_summary(out)["settings"]["custom"]["user_column"] == "who"
    assert load_summary(out)["n_episodes"]["train"] == 2 * 8
    capsys.readouterr()
    assert main(["lastfm", "--raw", str(raw), *common]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert main(["custom", "--titles", "x", *common]) == 2
    assert "both --interactions FILE and --titles FILE" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["ml-1m", "--raw", str(raw), *common[:-1], str(tmp_path / "file/out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
