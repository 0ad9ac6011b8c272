"""Collaborative vectors: what LightGCN learns, that it repeats itself, and how vectors are kept."""

import json
import logging
import math
import warnings

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from rpp.data import collaborative, kept
from rpp.data.collaborative import (
    VECTORS_FILE,
    CollaborativeVectors,
    GraphLayer,
    LightGCNSettings,
    build_graph,
    draw_negatives,
    load_or_train,
    train_lightgcn,
)
from rpp.types import InputError

N = 12
SHORT = LightGCNSettings(dim=8, n_epochs=2, batch_size=16)


def checkerboard():
    """Users and items of the same parity have met, except on the diagonal."""
    pairs = [(u, i) for u in range(N) for i in range(N) if u % 2 == i % 2 and u != i]
    return np.array(pairs).T


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
    (folder / "summary.json").write_text(json.dumps({"train_fingerprint": fingerprint}))


def same(one, other):
    return torch.equal(one.users, other.users) and torch.equal(one.items, other.items)


def test_finds_the_withheld_diagonal():
    """All items are equally popular, so only the pattern tells them apart."""
    vectors = train_lightgcn(*checkerboard(), N, N, LightGCNSettings(n_epochs=60, batch_size=16))
    scores = vectors.users @ vectors.items.T
    for user in range(N):
        strangers = scores[user, (user + 1) % 2 :: 2]
        assert scores[user, user] > strangers.max()


def test_repeats_itself_for_one_seed():
    users, items = checkerboard()
    first = train_lightgcn(users, items, N, N, SHORT)
    assert first.users.shape == first.items.shape == (N, 8)
    torch.manual_seed(99)  # the global generator must not matter
    assert same(first, train_lightgcn(users, items, N, N, SHORT))
    other = LightGCNSettings(dim=8, n_epochs=2, batch_size=16, seed=1)
    assert not same(first, train_lightgcn(users, items, N, N, other))


def test_order_and_repetition_of_the_rows_do_not_matter():
    users, items = checkerboard()
    order = np.random.default_rng(0).permutation(len(users))
    order = np.concatenate([order, order[:5]])
    first = train_lightgcn(users, items, N, N, SHORT)
    assert same(first, train_lightgcn(users[order], items[order], N, N, SHORT))


def test_repeats_itself_at_the_size_where_threads_disagree():
    """Several threads add the gradients of a row used often in any order: training uses one."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(300, size=20_000), rng.integers(40, size=20_000)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs = [train_lightgcn(users, items, 300, 40, LightGCNSettings(n_epochs=1)) for _ in "123"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_leaves_global_state_alone():
    state = torch.get_rng_state()
    train_lightgcn(*checkerboard(), N, N, SHORT)
    assert torch.equal(state, torch.get_rng_state())


def test_an_epoch_count_is_obeyed_and_training_moves_the_vectors():
    users, items = checkerboard()
    one, two = (
        train_lightgcn(users, items, N, N, LightGCNSettings(dim=8, n_epochs=n)) for n in (1, 2)
    )
    assert not same(one, two)


def test_graph_by_hand():
    """User 0 met items 0 and 1, user 1 met item 1; item 2 met nobody."""
    graph = build_graph(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3)
    dense = graph.multiply(torch.eye(5))
    expected = torch.zeros(5, 5)
    expected[0, 2] = expected[2, 0] = 1 / math.sqrt(2 * 1)
    expected[0, 3] = expected[3, 0] = 1 / math.sqrt(2 * 2)
    expected[1, 3] = expected[3, 1] = 1 / math.sqrt(1 * 2)
    torch.testing.assert_close(dense, expected)


def test_layer_passes_the_gradient_through_itself():
    graph = build_graph(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3, 2)
    graph = graph._replace(weights=graph.weights.double())
    nodes = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda nodes: GraphLayer()(nodes, graph), (nodes,))


def test_embedding_and_gradient_agree_with_the_library():
    """The fast layers against ``torch_geometric``'s own on its own graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script at import
        from torch_geometric.nn import LightGCN

    users, items = (torch.from_numpy(numbers) for numbers in checkerboard())
    theirs = LightGCN(2 * N, 8, 2)
    edges = torch.stack([torch.cat([users, items + N]), torch.cat([items + N, users])])
    ours = collaborative._initial_model(2 * N, LightGCNSettings(dim=8))
    ours.load_state_dict(theirs.state_dict())
    weights = torch.randn(2 * N, 8)
    results = []
    for model, graph in (
        (theirs, edges),
        (ours, build_graph(users.numpy(), items.numpy(), N, N)),
    ):
        embedding = model.get_embedding(graph)
        (embedding * weights).sum().backward()
        results.append((embedding.detach(), model.embedding.weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_negatives_are_even_over_what_was_never_met():
    pairs = np.array([0 * 5 + 0, 0 * 5 + 3, 1 * 5 + 4])  # of 5 items, user 0 met 0 and 3
    users = np.repeat([0, 1], 6000)
    negatives = draw_negatives(users, 5, pairs, np.random.default_rng(0))
    counts = np.bincount(negatives[:6000], minlength=5), np.bincount(negatives[6000:], minlength=5)
    assert counts[0][[0, 3]].tolist() == [0, 0]
    assert counts[1][4] == 0
    assert np.abs(counts[0][[1, 2, 4]] - 2000).max() < 200  # 5 standard deviations
    assert np.abs(counts[1][:4] - 1500).max() < 175


def test_user_without_training_interactions_has_no_vector():
    users, items = checkerboard()
    kept = users != 3
    vectors = train_lightgcn(users[kept], items[kept], N + 1, N, SHORT)
    assert vectors.users.any(dim=1).tolist() == [user not in (3, N) for user in range(N + 1)]
    assert vectors.items.any(dim=1).all()


def test_user_who_met_every_item_can_be_trained_with():
    vectors = train_lightgcn(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 2, SHORT)
    assert vectors.users.any(dim=1).all()


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dim", 0), ("batch_size", 0), ("n_epochs", 0), ("n_layers", -1), ("lr", 0.0)),
        *(("lr", math.nan), ("lr", math.inf), ("weight_decay", -0.1), ("seed", -1)),
    ],
)
def test_settings_refuse_nonsense(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}: choose"):
        LightGCNSettings(**{name: value})


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([], [], "no training interactions"),
        ([0, 1], [0], "shapes"),
        ([0, 2], [0, 1], "user 2 is not one of the 2"),
        ([0, 1], [0, 5], "item 5 is not one of the 3"),
        ([0, -1], [0, 1], "user -1"),
        ([0, 0, 0], [0, 1, 2], "every user has interacted with every item"),
    ],
)
def test_training_refuses_nonsense(users, items, message):
    with pytest.raises(InputError, match=message):
        train_lightgcn(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64), 2, 3)


@pytest.fixture
def trainings(monkeypatch):
    """Counts trainings."""
    calls = []

    def counted(*args):
        calls.append(args)
        return train_lightgcn(*args)

    monkeypatch.setattr(collaborative, "train_lightgcn", counted)
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
    about = {"train_fingerprint": "first", "settings": json.dumps(vars(SHORT), sort_keys=True)}
    path = folder / VECTORS_FILE
    kept.write(path, {"users": torch.zeros(N, 8)}, about)
    return SHORT


def shrink(folder):
    about = {"train_fingerprint": "first", "settings": json.dumps(vars(SHORT), sort_keys=True)}
    small = {"users": torch.zeros(N - 1, 8), "items": torch.zeros(N, 8)}
    kept.write(folder / VECTORS_FILE, small, about)
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
def test_kept_vectors_that_do_not_fit_are_replaced(folder, trainings, caplog, change, reason):
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

    monkeypatch.setattr(collaborative, "train_lightgcn", interrupt)
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

    monkeypatch.setattr(kept, "FileLock", refuse)
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
