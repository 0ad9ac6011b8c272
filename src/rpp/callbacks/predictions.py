"""Predictions of a policy for every user, as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from rpp.processes import gather
from rpp.terminal import print_result


class Predictions(BasePredictionWriter):
    """Writes one JSON line per user: sentences, final prompt, ranking.

    Args:
        path: The file to write.
    """

    def __init__(self, path: str = "results/predictions.jsonl") -> None:
        super().__init__("epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the file, with every batch gathered from all processes."""
        of_each = gather(predictions)
        if not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(row, ensure_ascii=False)
            for parts in zip(*of_each, strict=True)
            for part in parts
            for row in part
        ]
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print_result(f"{len(lines)} users written to {self.path}")
