r"""Collaborative vectors of users and items: the state before the first prompt.

.. math:: \mathbf{u}, \mathbf{i} = f(user, item)

where ``f`` is LightGCN (paper, section 3.3, Eq. 3; He et al., 2020), trained by the pairwise BPR
loss on the training interactions of *all* users and frozen afterwards. No validation or test
interaction is used: the number of epochs is fixed.

Not specified in the paper: width 64 and 2 layers are as in the released code; the other defaults
were selected by validation NDCG@10 on ML-100K and ML-1M. Negatives are drawn uniformly from the
items the user has no training interaction with, again in every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from rpp.data.graph import Graph, build_graph, propagate
from rpp.data.vectors import CollaborativeVectors
from rpp.types import MAX_SEED, InputError


@dataclass(frozen=True)
class LightGCNSettings:
    """How LightGCN is trained.

    Attributes:
        dim: Width of the vectors.
        n_layers: Propagation layers; the result is the mean of all layers' outputs and the input.
        lr: Learning rate of Adam.
        batch_size: Training interactions in one step.
        n_epochs: Passes over the training interactions.
        weight_decay: Factor of the squared length of the input vectors a step uses, per
            interaction. With few interactions a user (Games), 0.002 and 10 epochs are better.
        seed: Of the initial vectors, the order of the interactions and the negatives.

    Raises:
        InputError: If a number is out of its range.
    """

    dim: int = 64
    n_layers: int = 2
    lr: float = 0.01
    batch_size: int = 4096
    n_epochs: int = 30
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be trained with."""
        for name in ("dim", "batch_size", "n_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"LightGCN's {name} is {getattr(self, name)}: choose 1 or more")
        for name in ("n_layers", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"LightGCN's {name} is {getattr(self, name)}: choose 0 or more")
        if self.seed > MAX_SEED:
            raise InputError(f"LightGCN's seed is {self.seed}: choose at most {MAX_SEED}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"LightGCN's lr is {self.lr}: choose a positive number")


class LightGCN(torch.nn.Module):
    r"""LightGCN (He et al., 2020): the only weights are the input vectors.

    .. math:: \mathbf{X} = \frac{1}{K + 1} \sum_{k=0}^{K} A^k \mathbf{X}^{(0)}

    Args:
        n_nodes: Number of users and items together.
        settings: Width, number of layers, weight decay and seed.
    """

    def __init__(self, n_nodes: int, settings: LightGCNSettings) -> None:
        super().__init__()
        self.n_layers = settings.n_layers
        self.weight_decay = settings.weight_decay
        self.inputs = torch.nn.Parameter(torch.empty(n_nodes, settings.dim))
        generator = torch.Generator().manual_seed(settings.seed)
        torch.nn.init.xavier_uniform_(self.inputs, generator=generator)

    def forward(self, graph: Graph) -> Tensor:
        r"""Propagated vectors :math:`\mathbf{X}`, shape ``(n_nodes, dim)``."""
        share = 1 / (self.n_layers + 1)
        nodes: Tensor = self.inputs
        mean = nodes * share
        for _ in range(self.n_layers):
            nodes = propagate(nodes, graph)
            mean = mean + nodes * share
        return mean

    def loss(self, graph: Graph, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """BPR loss of a batch of triples, with the weight decay of the vectors it uses.

        Args:
            graph: The training interactions.
            users: Nodes of the users, shape ``(B,)``.
            items: Nodes of items they interacted with, shape ``(B,)``.
            negatives: Nodes of items they did not, shape ``(B,)``.
        """
        nodes = self(graph)
        user_vectors = nodes[users]
        positive_scores = (user_vectors * nodes[items]).sum(dim=1)
        negative_scores = (user_vectors * nodes[negatives]).sum(dim=1)
        used = self.inputs[torch.cat([users, items, negatives])]
        decay: Tensor = self.weight_decay * used.norm().square() / len(users)
        return decay - functional.logsigmoid(positive_scores - negative_scores).mean()


def draw_negatives(
    users: NDArray[np.int64], n_items: int, pairs: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each user a uniformly drawn item without a training interaction.

    Args:
        users: Shape ``(n,)``; each must have at least one such item.
        n_items: Number of items.
        pairs: The training interactions as ``user * n_items + item``, sorted.
        rng: Source of randomness.

    Returns:
        Shape ``(n,)``.
    """
    negatives = rng.integers(n_items, size=len(users))
    open_places = np.arange(len(users))
    while True:
        drawn = users[open_places] * n_items + negatives[open_places]
        found = np.searchsorted(pairs, drawn).clip(max=len(pairs) - 1)
        open_places = open_places[pairs[found] == drawn]
        if not len(open_places):
            return negatives
        negatives[open_places] = rng.integers(n_items, size=len(open_places))


def train_lightgcn(
    users: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    n_users: int,
    n_items: int,
    settings: LightGCNSettings | None = None,
) -> CollaborativeVectors:
    r"""Train LightGCN and return the propagated vectors.

    .. math::
        -\frac{1}{B} \sum_{(u, i, j)} \Big( \ln \sigma(\mathbf{u}^\top \mathbf{i} -
        \mathbf{u}^\top \mathbf{j}) - \lambda (|\mathbf{u}^{(0)}|^2 + |\mathbf{i}^{(0)}|^2 +
        |\mathbf{j}^{(0)}|^2) \Big)

    One seed gives the same vectors on one machine.

    Args:
        users: Users of the training interactions, from 0; shape ``(n_interactions,)``.
        items: Items of the training interactions, from 0; shape ``(n_interactions,)``.
        n_users: Number of users, with or without training interactions.
        n_items: Number of items, with or without training interactions.
        settings: How to train; the defaults if left out.

    Raises:
        InputError: If there is nothing to learn from, or a number lies outside its table.
    """
    settings = settings or LightGCNSettings()
    pairs = _distinct_pairs(users.astype(np.int64), items.astype(np.int64), n_users, n_items)
    known_users, known_items = np.divmod(pairs, n_items)
    graph = build_graph(known_users, known_items, n_users, n_items)
    degrees = np.bincount(known_users, minlength=n_users)
    # a user with all items has no negatives
    learnable = pairs[degrees[known_users] < n_items]
    if not len(learnable):
        raise InputError("every user has interacted with every item: nothing can be learnt")
    with _one_thread():
        model = LightGCN(n_users + n_items, settings)
        _fit(model, graph, learnable, n_users, n_items, settings)
        with torch.no_grad():
            nodes = model(graph)
    nodes[:n_users][torch.from_numpy(degrees == 0)] = 0  # untrained: only its random start
    return CollaborativeVectors(nodes[:n_users].clone(), nodes[n_users:].clone())


def _distinct_pairs(
    users: NDArray[np.int64], items: NDArray[np.int64], n_users: int, n_items: int
) -> NDArray[np.int64]:
    """Interactions as ``user * n_items + item``, sorted, each once, checked.

    Their order in the file therefore does not matter.
    """
    if users.shape != items.shape or users.ndim != 1:
        raise InputError(f"users and items have the shapes {users.shape} and {items.shape}")
    if not len(users):
        raise InputError("there are no training interactions: lower min_interactions")
    for name, numbers, size in (("user", users, n_users), ("item", items, n_items)):
        if numbers.min() < 0 or numbers.max() >= size:
            wrong = numbers.min() if numbers.min() < 0 else numbers.max()
            raise InputError(
                f"{name} {wrong} is not one of the {size} in the {name}s table: prepare the data"
                " again"
            )
    return np.unique(users * n_items + items)


def _fit(
    model: LightGCN,
    graph: Graph,
    pairs: NDArray[np.int64],
    n_users: int,
    n_items: int,
    settings: LightGCNSettings,
) -> None:
    """Minimise the BPR loss over ``pairs``, given as in :func:`draw_negatives`."""
    users, items = np.divmod(pairs, n_items)
    rng = np.random.default_rng(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    with _progress_bar() as bar:
        task = bar.add_task(
            "", total=settings.n_epochs, size=f"{len(users):,}", epoch=0, loss=float("nan")
        )
        for epoch in range(1, settings.n_epochs + 1):
            negatives = draw_negatives(users, n_items, pairs, rng)
            triples = torch.from_numpy(np.stack([users, items + n_users, negatives + n_users]))
            order = torch.from_numpy(rng.permutation(len(users)))
            total = 0.0
            for batch in order.split(settings.batch_size):
                loss = model.loss(graph, *triples[:, batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
                bar.advance(task, len(batch) / len(users))
            bar.update(task, epoch=epoch, loss=total / len(users))


def _progress_bar() -> Progress:
    """Progress bar of the training: interactions, epoch, loss, time left."""
    return Progress(
        TextColumn("Training LightGCN on {task.fields[size]} interactions"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, so that gradients of one row are always added in the same order.

    A step takes some hundredths of a second, too short for several threads: on two idle cores an
    epoch of ML-100K took .22 s with one thread and .19 with two, with two other busy processes
    .31 and .88.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
