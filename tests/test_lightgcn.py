"""LightGCN: its graph, its loss, what it learns, and that it repeats itself."""

import math

import numpy as np
import pytest
import torch

from rpp.data.graph import build_graph, propagate
from rpp.data.lightgcn import LightGCN, LightGCNSettings, draw_negatives, train_lightgcn
from rpp.types import InputError

N = 12
SHORT = LightGCNSettings(dim=8, n_epochs=2, batch_size=16)


def checkerboard():
    """Users and items of the same parity have met, except on the diagonal."""
    pairs = [(u, i) for u in range(N) for i in range(N) if u % 2 == i % 2 and u != i]
    return np.array(pairs).T


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
    assert torch.autograd.gradcheck(lambda nodes: propagate(nodes, graph), (nodes,))


def test_propagated_vectors_and_loss_by_hand():
    """One user met the first of two items: vectors 1 and 2, the stranger's is 4; two layers."""
    model = LightGCN(3, LightGCNSettings(dim=1, n_layers=2, weight_decay=0.5))
    with torch.no_grad():
        model.inputs.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    graph = build_graph(np.array([0]), np.array([0]), 1, 2)
    user, item, stranger = (1 + 2 + 1) / 3, (2 + 1 + 2) / 3, 4 / 3  # the edge weighs 1
    torch.testing.assert_close(model(graph), torch.tensor([[user], [item], [stranger]]))
    loss = model.loss(graph, *torch.tensor([[0, 0], [1, 1], [2, 2]]))
    log_sigmoid = -math.log(1 + math.exp(user * stranger - user * item))
    decay = 0.5 * (1 + 4 + 16)  # per triple
    assert loss.item() == pytest.approx(decay - log_sigmoid)
    loss.backward()
    slope = 1 / (1 + math.exp(user * item - user * stranger))  # of log sigmoid, at the margin
    assert model.inputs.grad is not None
    # the stranger's vector reaches the loss through a third of itself, and its own decay
    assert model.inputs.grad[2].item() == pytest.approx(slope * user / 3 + 0.5 * 2 * 4)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dim", 0), ("batch_size", 0), ("n_epochs", 0), ("n_layers", -1), ("lr", 0.0)),
        *(
            ("lr", math.nan),
            ("lr", math.inf),
            ("weight_decay", -0.1),
            ("seed", -1),
            ("seed", 2**63),
        ),
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
