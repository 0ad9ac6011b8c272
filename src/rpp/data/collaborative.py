r"""Collaborative vectors of users and items: the state before the first prompt.

.. math:: \mathbf{u}, \mathbf{i} = f(user, item)

where ``f`` is LightGCN (paper, section 3.3, Eq. 3; He et al., 2020), trained by the pairwise BPR
loss on the training interactions of *all* users and frozen afterwards. No validation or test
interaction takes part: the number of epochs is fixed.

Left open by the paper and chosen here: width 64 and 2 layers as in the released code; the other
defaults by validation NDCG@10 on ML-100K and ML-1M. Negatives are drawn evenly from the items
the user has no training interaction with, anew in every epoch.

Speed: with the graph as ``edge_index``, ``LGConv`` copies one vector per edge, and multiplication
by a sparse tensor is transposed again in every backward pass. The graph is fixed and symmetric, so
its layer is a sum of bags and the gradient of the layer is the layer itself. Forward and back, one
thread: ML-1M 15 ms, sparse tensor 187, ``edge_index`` 1537; Games 19, 62 and 397.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from rpp.data.interactions import (
    ITEMS_FILE,
    USERS_FILE,
    load_summary,
    load_training_pairs,
    scan_table,
)
from rpp.data.kept import load_or_make
from rpp.types import InputError

VECTORS_FILE = "collaborative.safetensors"
"""Name of the file in the prepared folder that keeps the trained vectors."""


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
        if not 0 < self.lr < math.inf:
            raise InputError(f"LightGCN's lr is {self.lr}: choose a positive number")


@dataclass(frozen=True)
class CollaborativeVectors:
    r"""Frozen vectors :math:`\mathbf{u}` and :math:`\mathbf{i}` of Eq. 3.

    Attributes:
        users: Shape ``(n_users, dim)``; all zeros for a user without training interactions.
        items: Shape ``(n_items, dim)``.

    Raises:
        InputError: If the two do not fit together.
    """

    users: Tensor
    items: Tensor

    def __post_init__(self) -> None:
        """Refuse vectors of different widths, of a wrong shape or that are not finite."""
        shapes = tuple(self.users.shape), tuple(self.items.shape)
        if self.users.ndim != 2 or self.items.ndim != 2 or shapes[0][1] != shapes[1][1]:
            raise InputError(
                f"user and item vectors have the shapes {shapes[0]} and {shapes[1]}: train them"
                " together"
            )
        if not (self.users.isfinite().all() and self.items.isfinite().all()):
            raise InputError("collaborative vectors are not finite: train with a smaller lr")

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.users.shape[1]

    def for_users(self, users: Sequence[int], histories: Sequence[Sequence[int]]) -> Tensor:
        """First state of a batch of users, shape ``(B, dim)``.

        A user without a vector, because nothing was known of them in training or because they are
        not in the table, gets the mean of the vectors of the items in their history; without any
        known item, the mean of all users with a vector.

        Args:
            users: Rows in the users table; any number outside it, such as -1, is an unknown user.
            histories: Items of each user; consulted for unknown users only.

        Raises:
            ValueError: If there is not one history per user.
        """
        if len(users) != len(histories):
            raise ValueError(f"{len(users)} users but {len(histories)} histories")
        rows = torch.as_tensor(list(users), dtype=torch.long, device=self.users.device)
        inside = (rows >= 0) & (rows < len(self.users))
        vectors = self.users[rows.where(inside, 0)]
        known = inside & vectors.any(dim=1)
        for place in (~known).nonzero().flatten().tolist():
            vectors[place] = self._stand_in(histories[place])
        return vectors

    def _stand_in(self, history: Sequence[int]) -> Tensor:
        """Vector of a user known by their history only, shape ``(dim,)``."""
        items = [item for item in history if 0 <= item < len(self.items)]
        if items:
            return self.items[items].mean(dim=0)
        return self.users[self.users.any(dim=1)].mean(dim=0).nan_to_num()


class Graph(NamedTuple):
    r"""The normalised adjacency, users first, then items; row by row (compressed sparse rows).

    .. math:: A_{ui} = A_{iu} = 1 / \sqrt{|N_u| |N_i|}

    Attributes:
        neighbours: Neighbour of each entry, shape ``(E,)``; every interaction makes two entries.
        offsets: First entry of each node, shape ``(n_users + n_items,)``.
        weights: Value of each entry, shape ``(E,)``.
    """

    neighbours: Tensor
    offsets: Tensor
    weights: Tensor

    def multiply(self, nodes: Tensor) -> Tensor:
        """``A @ nodes``, shape ``(n_users + n_items, dim)``."""
        return functional.embedding_bag(
            self.neighbours,
            nodes.contiguous(),
            self.offsets,
            mode="sum",
            per_sample_weights=self.weights,
        )


def build_graph(
    users: NDArray[np.int64], items: NDArray[np.int64], n_users: int, n_items: int
) -> Graph:
    """Graph of interactions, none of which may occur twice.

    Args:
        users: Shape ``(n_interactions,)``.
        items: Shape ``(n_interactions,)``.
        n_users: Number of users, with or without interactions.
        n_items: Number of items, with or without interactions.
    """
    heads = np.concatenate([users, items + n_users])
    tails = np.concatenate([items + n_users, users])
    order = np.argsort(heads, kind="stable")
    degrees = np.bincount(heads, minlength=n_users + n_items)
    weights = 1 / np.sqrt(degrees[heads].astype(np.float64) * degrees[tails])
    return Graph(
        torch.from_numpy(tails[order].astype(np.int32)),
        torch.from_numpy((degrees.cumsum() - degrees).astype(np.int32)),
        torch.from_numpy(weights[order].astype(np.float32)),
    )


class _Propagate(torch.autograd.Function):
    """One layer; the graph is symmetric, so the gradient passes through the same layer."""

    @staticmethod
    def forward(ctx: Any, nodes: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return graph.multiply(nodes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.multiply(grads[0]), None


class GraphLayer(torch.nn.Module):
    """Stands in for ``LGConv`` in ``torch_geometric.nn.LightGCN``, with a :class:`Graph`."""

    def forward(self, nodes: Tensor, graph: Graph, _weights: Tensor | None = None) -> Tensor:
        """Weighted sum of each node's neighbours, shape ``(n_users + n_items, dim)``."""
        return _Propagate.apply(nodes, graph)  # type: ignore[no-any-return]  # torch leaves it Any


def draw_negatives(
    users: NDArray[np.int64], n_items: int, pairs: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each user an item evenly drawn from those they have no training interaction with.

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
    heads, tails = np.divmod(pairs, n_items)
    graph = build_graph(heads, tails, n_users, n_items)
    degrees = np.bincount(heads, minlength=n_users)
    learnable = pairs[degrees[heads] < n_items]  # knowing every item leaves no negative to draw
    if not len(learnable):
        raise InputError("every user has interacted with every item: nothing can be learnt")
    with _one_thread():
        model = _initial_model(n_users + n_items, settings)
        _fit(model, graph, learnable, n_users, n_items, settings)
        with torch.no_grad():
            nodes = model.get_embedding(graph)
    nodes[:n_users][torch.from_numpy(degrees == 0)] = 0  # untrained: only its random start
    return CollaborativeVectors(nodes[:n_users].clone(), nodes[n_users:].clone())


def load_or_train(folder: Path, settings: LightGCNSettings | None = None) -> CollaborativeVectors:
    """Vectors for a prepared folder, trained once and kept in it as ``collaborative.safetensors``.

    The file is used again only for the same training interactions (their fingerprint stands in
    ``summary.json``) and the same settings.

    Args:
        folder: A folder written by ``python -m data_prep``.
        settings: How to train; if left out those of the vectors that are there, or the defaults.

    Raises:
        InputError: If the folder is incomplete or cannot be written to.
    """
    folder = Path(folder)
    settings = settings or _kept_settings(folder / VECTORS_FILE)
    fingerprint = load_summary(folder).get("train_fingerprint")
    if not fingerprint:
        raise InputError(f"{folder} has no fingerprint of its training data: prepare it again")
    about = {
        "train_fingerprint": str(fingerprint),
        "settings": json.dumps(asdict(settings), sort_keys=True),
    }
    sizes = _n_rows(folder, USERS_FILE), _n_rows(folder, ITEMS_FILE)

    def load(tensors: Mapping[str, Tensor]) -> CollaborativeVectors:
        vectors = CollaborativeVectors(tensors["users"], tensors["items"])
        if (len(vectors.users), len(vectors.items)) != sizes:
            raise InputError("vectors of other numbers of users or items")
        return vectors

    def make() -> Mapping[str, Tensor]:
        vectors = train_lightgcn(*load_training_pairs(folder), *sizes, settings)
        return {"users": vectors.users, "items": vectors.items}

    return load_or_make(folder / VECTORS_FILE, about, load, make)


def _kept_settings(path: Path) -> LightGCNSettings:
    """How the vectors of a file were trained; the defaults where that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return LightGCNSettings(**json.loads((file.metadata() or {})["settings"]))
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return LightGCNSettings()


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


def _initial_model(n_nodes: int, settings: LightGCNSettings) -> Any:
    """LightGCN with seeded initial vectors and the fast layers."""
    with warnings.catch_warnings():
        # torch_geometric 2.8 still calls the deprecated torch.jit.script when it is imported
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch_geometric.nn import LightGCN
    with torch.random.fork_rng(devices=[]):  # its constructor draws from the global generator
        model = LightGCN(n_nodes, settings.dim, settings.n_layers)
    model.convs = torch.nn.ModuleList(GraphLayer() for _ in range(settings.n_layers))
    generator = torch.Generator().manual_seed(settings.seed)
    torch.nn.init.xavier_uniform_(model.embedding.weight, generator=generator)
    return model


def _fit(
    model: Any,
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
    user_nodes, item_nodes = torch.from_numpy(users), torch.from_numpy(items + n_users)
    bar = Progress(
        TextColumn("Training LightGCN on {task.fields[size]} interactions"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(
            "", total=settings.n_epochs, size=f"{len(users):,}", epoch=0, loss=float("nan")
        )
        for epoch in range(1, settings.n_epochs + 1):
            drawn = draw_negatives(users, n_items, pairs, rng)
            negative_nodes = torch.from_numpy(drawn + n_users)
            order = torch.from_numpy(rng.permutation(len(users)))
            total = 0.0
            for batch in order.split(settings.batch_size):
                user, item, negative = user_nodes[batch], item_nodes[batch], negative_nodes[batch]
                nodes = model.get_embedding(graph)
                user_vectors = nodes[user]
                loss = model.recommendation_loss(
                    (user_vectors * nodes[item]).sum(dim=1),
                    (user_vectors * nodes[negative]).sum(dim=1),
                    node_id=torch.cat([user, item, negative]),
                    lambda_reg=settings.weight_decay,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
                bar.advance(task, len(batch) / len(users))
            bar.update(task, epoch=epoch, loss=total / len(users))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, so that gradients of one row are always added in the same order.

    A step takes some hundredths of a second, too short to share: on two quiet cores an epoch of
    ML-100K took .22 s with one thread and .19 with two, beside two busy processes .31 and .88.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _n_rows(folder: Path, name: str) -> int:
    """Number of rows of a prepared table."""
    return int(scan_table(folder, name).select(pl.len()).collect().item())
