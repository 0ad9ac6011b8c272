"""Lightning data module: episodes of disjoint user splits, prepared if missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from data_prep.prepare import CustomFiles, DataSettings, prepare
from data_prep.tables import load_summary
from rpp.data.directory import Directory, load_directory
from rpp.data.episodes import load_episodes
from rpp.data.interactions import load_titles, load_training_pairs
from rpp.data.lightgcn import LightGCNSettings
from rpp.data.pretrained import load_or_train
from rpp.data.shares import SharedBatches
from rpp.data.vectors import CollaborativeVectors
from rpp.types import SPLITS, Episode, InputError, Item, Split


class EpisodeDataModule(LightningDataModule):
    """User episodes of one data set.

    The prepared folder ``data_dir/name`` is made if it is missing or was made with other
    settings, and LightGCN is trained for it once.

    Args:
        name: ``ml-100k``, ``ml-1m``, ``games``, ``lastfm``, or ``custom`` for your own files.
        data_dir: Parent folder of the prepared folders.
        raw_dir: Folder with the raw files; without it they are looked for in the folder
            ``$RPP_MIRROR/NAME`` and then downloaded.
        min_interactions: Users and items with fewer interactions are removed; 0 keeps all.
        n_candidates: Number ``M`` of candidates, the target included.
        candidates: ``uniform``: drawn from the catalogue; ``authors``: the published lists.
        order: What orders a user's interactions; Lastfm knows ``play_count`` and ``tag_time``.
        n_train_users: Users who train the policy.
        n_validation_users: Users who choose the number of steps and the checkpoint.
        n_test_users: Users in the reported figures.
        n_targets: Targets of each training user, the latest first; each is an episode with
            candidates of its own, and no model is fitted to these interactions.
        years: Whether titles of films contain the year; without, prompts are a third shorter.
        seed: Of user splits, candidates, their order and the order of training users.
        custom: Files and columns of the data set ``custom``.
        batch_size: Episodes per update, over all processes; a user has ``n_targets`` of them.
        reshuffle: Draw a new candidate order for training users in every epoch.
        lightgcn: How the collaborative vectors are trained.
    """

    def __init__(
        self,
        name: str = "ml-100k",
        data_dir: str = "data",
        raw_dir: str | None = None,
        min_interactions: int = 5,
        n_candidates: int = 10,
        candidates: Literal["uniform", "authors"] = "uniform",
        order: Literal["time", "play_count", "tag_time"] = "time",
        n_train_users: int = 200,
        n_validation_users: int = 100,
        n_test_users: int = 200,
        n_targets: int = 1,
        years: bool = True,
        seed: int = 0,
        custom: CustomFiles | None = None,
        batch_size: int = 200,
        reshuffle: bool = True,
        lightgcn: LightGCNSettings = LightGCNSettings(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size is {batch_size}: at least 1 is needed")
        self.settings = DataSettings(
            name, raw_dir, min_interactions, n_candidates, candidates, order,
            n_train_users, n_validation_users, n_test_users, n_targets, years, seed, custom,
        )  # fmt: skip
        self.folder = Path(data_dir) / name
        self.batch_size = batch_size
        self.reshuffle = reshuffle
        self.lightgcn = lightgcn
        self._episodes: dict[Split, list[Episode]] = {}

    def prepare_data(self) -> None:
        """Prepare the folder and the collaborative vectors if they are missing."""
        prepare(self.settings, self.folder)
        load_or_train(self.folder, self.lightgcn)

    def setup(self, stage: str) -> None:
        """Read the episodes and the vectors."""
        self._episodes = {split: load_episodes(self.folder, split) for split in SPLITS}
        self.vectors: CollaborativeVectors = load_or_train(self.folder, self.lightgcn)

    @property
    def summary(self) -> dict[str, Any]:
        """Summary of the preparation: settings, sources, counts, seeds."""
        return load_summary(self.folder)

    @cached_property
    def catalogue(self) -> list[Item]:
        """All items; the index in the list is the item's number."""
        return [Item(index, title) for index, title in enumerate(load_titles(self.folder))]

    @cached_property
    def directory(self) -> Directory:
        """Ids and titles of items and users."""
        return load_directory(self.folder)

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """Training interactions of every item."""
        _, items = load_training_pairs(self.folder)
        return np.bincount(items, minlength=len(self.catalogue))

    def episodes(self, split: Split) -> list[Episode]:
        """All episodes of one user set."""
        return self._episodes[split]

    @cached_property
    def train_groups(self) -> dict[tuple[int, ...], int]:
        """Number of every training episode, a user on a target, by :attr:`Episode.key`."""
        return {episode.key: number for number, episode in enumerate(self.episodes("train"))}

    def people(self) -> Iterator[Mapping[str, str]]:
        """The attributes of each user, of all three splits."""
        return (episode.profile for split in SPLITS for episode in self.episodes(split))

    def train_dataloader(self) -> DataLoader[Episode]:
        """Training users, in a new order per epoch, drawn from the data seed."""
        return self._loader(self._episodes["train"], shuffle_seed=self.settings.seed)

    def val_dataloader(self) -> DataLoader[Episode]:
        """Validation users."""
        return self._loader(self._episodes["validation"])

    def test_dataloader(self) -> DataLoader[Episode]:
        """Test users."""
        return self._loader(self._episodes["test"])

    def predict_dataloader(self) -> DataLoader[Episode]:
        """Test users; their targets are not read."""
        return self._loader(self._episodes["test"])

    def _loader(self, rows: list[Any], *, shuffle_seed: int | None = None) -> DataLoader[Any]:
        trainer = self.trainer
        batches = SharedBatches(
            len(rows),
            self.batch_size,
            shuffle=shuffle_seed is not None,
            seed=shuffle_seed or 0,
            rank=0 if trainer is None else trainer.global_rank,
            n_processes=1 if trainer is None else trainer.world_size,
        )
        return DataLoader(Rows(rows), batch_size=None, sampler=batches, collate_fn=list)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw new candidate orders for training users."""
        if self.reshuffle and self.trainer is not None and self.trainer.training:
            return shuffle_candidates(batch, self.settings.seed, self.trainer.current_epoch)
        return batch

    def transfer_batch_to_device(
        self, batch: list[Episode], device: torch.device, dataloader_idx: int
    ) -> list[Episode]:
        """Episodes stay as they are: they hold no tensors."""
        return batch


class Rows(Dataset[Any]):
    """A list that returns several entries at once."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __getitem__(self, places: Sequence[int]) -> list[Any]:
        """The entries at the given indices, in order."""
        return [self.rows[place] for place in places]

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.rows)


def shuffle_candidates(episodes: Sequence[Episode], seed: int, epoch: int) -> list[Episode]:
    """The same episodes with a new candidate order for each of them and epoch."""
    shuffled = []
    for episode in episodes:
        rng = np.random.default_rng([seed, epoch, *episode.key])
        order = rng.permutation(len(episode.candidates))
        shuffled.append(
            replace(
                episode,
                candidates=tuple(episode.candidates[k] for k in order),
                withheld=int(np.flatnonzero(order == episode.withheld)[0]),
            )
        )
    return shuffled
