"""Collaborative vectors: of a batch of users, and of a prepared folder, trained once."""

import json
import logging

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from rpp.data import artifacts, pretrained
from rpp.data.lightgcn import LightGCNSettings, train_lightgcn
from rpp.data.pretrained import VECTORS_FILE, load_or_train
from rpp.data.vectors import CollaborativeVectors
from rpp.types import InputError

N = 12
SHORT = LightGCNSettings(dim=8, n_epochs=2, batch_size=16)


def checkerboard():
    """Users and items of the same parity have met, except on the diagonal."""
    pairs = [(u, i) for u in range(N) for i in range(N) if u % 2 == i % 2 and u != i]
    return np.array(pairs).T


@pytest.fixture
def vectors():
    return CollaborativeVectors(
        users=torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 6.0]]),
        items=torch.tensor([[1.0, 1.0], [3.0, 5.0], [9.0, 9.0]]),
    )


@pytest.mark.parametrize(
    ("user", "history", "expected"),
    [
        (2, [0], [3.0, 6.0]),
        (1, [0, 1], [2.0, 3.0]),
        (7, [1], [3.0, 5.0]),
        (-1, [1, 2, 1], [5.0, 19 / 3]),
        (1, [99, -1, 1], [3.0, 5.0]),
        (1, [], [2.0, 4.0]),
        (7, [99], [2.0, 4.0]),
    ],
    ids=["known", "no vector", "beyond", "nobody", "unknown items", "no history", "nothing known"],
)
def test_vector_of_a_user(vectors, user, history, expected):
    torch.testing.assert_close(vectors.for_users([user], [history]), torch.tensor([expected]))


def test_vectors_of_a_batch(vectors):
    batch = vectors.for_users([1, 0, 7, 0], [[0], [2], [], [1]])
    expected = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 4.0], [1.0, 2.0]])
    torch.testing.assert_close(batch, expected)
    batch.zero_()  # a copy: the table stays as it was
    assert vectors.users[0].tolist() == [1.0, 2.0]
    assert vectors.for_users([], []).shape == (0, 2)
    with pytest.raises(ValueError, match="2 users but 1 histories"):
        vectors.for_users([0, 1], [[0]])


def test_vectors_must_fit_together():
    with pytest.raises(InputError, match="train them together"):
        CollaborativeVectors(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="not finite"):
        CollaborativeVectors(torch.full((2, 3), torch.nan), torch.zeros(2, 3))


@pytest.fixture
def folder(tmp_path):
    """A prepared folder: the checkerboard in training, the diagonal withheld."""
    write_folder(tmp_path, *checkerboard())
    return tmp_path


def write_folder(folder, users, items, withheld=tuple(range(N)), fingerprint="first"):
    rows = [(u, i, place, "train") for place, (u, i) in enumerate(zip(users, items, strict=True))]
    rows += [(u, i, len(rows), "validation") for u, i in enumerate(withheld)]
    rows += [(u, N - 1 - i, len(rows), "test") for u, i in enumerate(withheld)]
    schema = {"user": pl.UInt32, "item": pl.UInt32, "position": pl.UInt32, "split": pl.String}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    table.sample(fraction=1, shuffle=True, seed=1).write_parquet(folder / "interactions.parquet")
    names = [str(number) for number in range(N)]
    numbers = pl.Series(range(N), dtype=pl.UInt32)
    counts = pl.Series(np.bincount(items, minlength=N), dtype=pl.UInt32)
    pl.DataFrame(
        {"item": numbers, "item_id": names, "title": names, "n_train": counts}
    ).write_parquet(folder / "items.parquet")
    profile = {name: [None] * N for name in ("gender", "age", "occupation")}
    pl.DataFrame(
        {"user": numbers, "user_id": names, "role": ["train"] * N, **profile}
    ).write_parquet(folder / "users.parquet")
    lists = pl.Series([[item] for item in withheld], dtype=pl.List(pl.UInt32))
    pl.DataFrame(
        {
            "user": numbers,
            "split": ["train"] * N,
            "history": lists,  # is not read
            "candidates": lists,
            "target": pl.Series([0] * N, dtype=pl.UInt32),
        }
    ).write_parquet(folder / "episodes.parquet")
    (folder / "summary.json").write_text(json.dumps({"train_fingerprint": fingerprint}))


def same(one, other):
    return torch.equal(one.users, other.users) and torch.equal(one.items, other.items)


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings."""
    calls = []

    def counted(*args):
        calls.append(args)
        return train_lightgcn(*args)

    monkeypatch.setattr(pretrained, "train_lightgcn", counted)
    return calls


def test_vectors_are_trained_once_per_folder(folder, trainings):
    first = load_or_train(folder, SHORT)
    assert same(first, load_or_train(folder, SHORT))
    assert len(trainings) == 1
    assert same(first, train_lightgcn(*checkerboard(), N, N, SHORT))
    assert not [path for path in folder.iterdir() if path.is_dir()]  # no temporary folder left


def test_vectors_know_nothing_of_withheld_interactions(folder, trainings):
    first = load_or_train(folder, SHORT)
    write_folder(folder, *checkerboard(), withheld=(*range(1, N), 0), fingerprint="second")
    assert same(first, load_or_train(folder, SHORT))
    assert len(trainings) == 2


def change_fingerprint(folder):
    (folder / "summary.json").write_text(json.dumps({"train_fingerprint": "second"}))
    return SHORT


def truncate(folder):
    path = folder / VECTORS_FILE
    path.write_bytes(path.read_bytes()[:-10])
    return SHORT


def spoil_header(folder):
    (folder / VECTORS_FILE).write_bytes(b"nonsense")
    return SHORT


def forget_a_tensor(folder):
    metadata = {"train_fingerprint": "first", "settings": json.dumps(vars(SHORT), sort_keys=True)}
    path = folder / VECTORS_FILE
    artifacts.write(path, {"users": torch.zeros(N, 8)}, metadata)
    return SHORT


def shrink(folder):
    metadata = {"train_fingerprint": "first", "settings": json.dumps(vars(SHORT), sort_keys=True)}
    small = {"users": torch.zeros(N - 1, 8), "items": torch.zeros(N, 8)}
    artifacts.write(folder / VECTORS_FILE, small, metadata)
    return SHORT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_fingerprint, "other train fingerprint: making it again"),
        (lambda _: LightGCNSettings(dim=8, n_epochs=3), "other settings: making it again"),
        (truncate, "is damaged: making it again"),
        (spoil_header, "is damaged: making it again"),
        (forget_a_tensor, "is damaged: making it again"),
        (shrink, "is damaged: making it again"),
    ],
)
def test_saved_vectors_that_do_not_fit_are_replaced(folder, trainings, caplog, change, reason):
    load_or_train(folder, SHORT)
    settings = change(folder)
    with caplog.at_level(logging.WARNING):
        again = load_or_train(folder, settings)
    assert len(trainings) == 2
    assert caplog.text.count(reason) == 1
    assert same(again, load_or_train(folder, settings))
    assert len(trainings) == 2


def test_an_interrupted_training_keeps_no_file(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "train_lightgcn", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_or_train(folder, SHORT)
    assert not (folder / VECTORS_FILE).exists()


def test_a_folder_without_fingerprint_is_refused(folder):
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="prepare it again"):
        load_or_train(folder, SHORT)


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(
    folder, monkeypatch, trainings
):
    def refuse(*_):
        raise PermissionError(13, "no")

    monkeypatch.setattr(artifacts, "FileLock", refuse)
    with pytest.raises(InputError, match="cannot be written to"):
        load_or_train(folder, SHORT)
    assert not trainings


def test_without_settings_the_vectors_that_are_there_are_taken(folder, trainings):
    """A comparison once trained LightGCN anew with other settings than the data module's."""
    first = load_or_train(folder, SHORT)
    assert same(first, load_or_train(folder))
    assert len(trainings) == 1
    path = folder / "collaborative.safetensors"
    save_file({"users": first.users}, path, metadata={"settings": "{"})  # of nobody knows what
    assert load_or_train(folder).dim == LightGCNSettings().dim
