"""What the tests of tuning share: instructions of a small catalogue, an adapter, its data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.patterns import load_patterns
from rpp.tuning.datamodule import InstructionDataModule
from rpp.tuning.instructions import draw_instruction
from rpp.tuning.module import RankingAdapter
from rpp.types import Item

PATTERNS = load_patterns("conf/patterns/movies.yaml")
CATALOGUE = [Item(k, f"Picture {k:03d}") for k in range(60)]
OWN = CATALOGUE[:12]
SEEN = frozenset(range(20))


def draw(seed=0, **options):
    rng = np.random.default_rng(seed)
    return draw_instruction(OWN, CATALOGUE, SEEN, PATTERNS, rng, **options)


@pytest.fixture
def data(make_prepared, custom_csv):
    prepared = make_prepared(40, 20, 20)
    made = InstructionDataModule(
        name="custom",
        data_dir=str(prepared.folder.parent),
        n_train_users=40,
        n_validation_users=20,
        n_test_users=20,
        custom=custom_csv.files,
        batch_size=8,
        n_items=12,
        max_history=6,
    )
    made.prepare_data()
    made.setup("fit")
    return made


@pytest.fixture
def adapter(wide_llm_folder, tmp_path):
    def make(**options):
        llm = HuggingFaceLanguageModel(str(wide_llm_folder), dtype="float32", device="cpu")
        settings = {"rank": 8, "alpha": 16, "lr": 0.02} | options
        return RankingAdapter(llm, str(tmp_path / "adapter"), **settings)

    return make


def loaded(made):
    """The adapter around its model, as the trainer would load it."""

    class Stub:
        class strategy:
            root_device = torch.device("cpu")

    made._trainer = Stub()
    made.configure_model()
    made._trainer = None
    return made
