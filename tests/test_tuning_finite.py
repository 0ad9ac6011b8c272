"""A tuning run whose numbers are not finite stops and keeps nothing."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import PEFT
from pipeline import trainer
from tuning_setup import data as data

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.tuning.module import RankingAdapter
from rpp.types import InputError

pytestmark = PEFT


class Breaking(RankingAdapter):
    """Becomes not a number in the third step, in its loss or in its weights."""

    what = "loss"

    def _likelihood(self, encoded):
        loss = super()._likelihood(encoded)
        return loss * math.nan if self.what == "loss" and self.trainer.global_step == 2 else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.what == "weights" and batch_idx == 2:
            with torch.no_grad():
                next(p for p in self.network.parameters() if p.requires_grad).fill_(math.inf)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", "the loss is not finite after 16"),
        ("weights", "weights of the adapter"),
    ],
)
def test_a_run_that_is_not_finite_stops_and_exports_nothing(
    tiny_llm_folder, tmp_path, data, what, message
):
    """It went on, told a best score and exported an adapter that is no numbers."""
    llm = HuggingFaceLanguageModel(str(tiny_llm_folder), dtype="float32")
    broken = Breaking(llm, str(tmp_path / "adapter"), n_history=3, rank=4, lr=1e-4)
    broken.what = what
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, max_epochs=1, limit_train_batches=3).fit(broken, datamodule=data)
    assert not (tmp_path / "adapter").exists()
