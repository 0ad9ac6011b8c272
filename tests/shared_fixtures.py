"""What the tests share: episodes, tiny models made on the spot, raw files of a small data set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Server
from cli_setup import command, lay_out
from matplotlib.figure import Figure
from patterns_setup import MINIMAL, load
from rich.console import Console
from tiny_models import TITLES, byte_level_tokenizer, save_llm
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from data_prep.prepare import CustomFiles, DataSettings, prepare
from rpp import assets
from rpp.baselines.sequential import train
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.prompts.patterns import Patterns
from rpp.types import Episode, Item

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture
def tiny_episodes() -> list[Episode]:
    """Twelve training users with 10 candidates and 4 to 9 past items; no two share an item.

    User ``u`` has the titles ``20 u`` to ``20 u + 19``: the first ten are the past (the longest
    history has 9), the last ten the candidates, each user's in another order.
    """
    items = [Item(index, title) for index, title in enumerate(TITLES)]
    episodes = []
    for user in range(12):
        own = items[20 * user : 20 * user + 20]
        order = np.random.default_rng(user).permutation(10)
        episodes.append(
            Episode(
                user=user,
                history=tuple(own[: 4 + user % 6]),
                candidates=tuple(own[10 + k] for k in order),
                withheld=(3 * user + 1) % 10,
                user_id=f"u{user}",
                profile={"gender": "female" if user % 2 else "male"},
            )
        )
    return episodes


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random causal language model with a chat template."""
    return save_llm(tmp_path_factory.mktemp("tiny_llm"))


@pytest.fixture(scope="session")
def make_llm(tiny_llm_folder: Path) -> Callable[..., HuggingFaceLanguageModel]:
    """Make a language model of the tiny folder with other settings."""

    def make(**options):
        settings = {"dtype": "float32", "max_new_tokens": 12} | options  # exact on any machine
        return HuggingFaceLanguageModel(str(tiny_llm_folder), **settings)

    return make


@pytest.fixture(scope="session")
def tiny_llm(make_llm: Callable[..., HuggingFaceLanguageModel]) -> HuggingFaceLanguageModel:
    """The language model of the tiny folder."""
    return make_llm()


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT, 24 wide."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(list(TITLES), ["[PAD]"], 400), pad_token="[PAD]"
    )
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=512,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=0.3,
            )
        )
    network.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class CustomCsv:
    """Raw files of a synthetic data set in the columns of the data set ``custom``."""

    interactions: Path
    titles: Path
    profiles: Path

    @property
    def files(self) -> CustomFiles:
        """As the data preparation takes them."""
        return CustomFiles(str(self.interactions), str(self.titles), str(self.profiles))


@pytest.fixture(scope="session")
def custom_csv(tmp_path_factory: pytest.TempPathFactory) -> CustomCsv:
    """700 users, 150 items, 8 to 25 interactions each, two taste groups.

    Users with an even number take nine in ten of their items from the first 75, the others from
    the last 75; so collaborative vectors tell the groups apart.
    """
    folder = tmp_path_factory.mktemp("custom_csv")
    rng = np.random.default_rng(7)
    n_users, n_items, half = 700, 150, 75
    interactions = ["user,item,timestamp"]
    profiles = ["user,gender,age,occupation"]
    for user in range(n_users):
        weights = np.full(n_items, 0.1 / half)
        own = slice(0, half) if user % 2 == 0 else slice(half, n_items)
        weights[own] = 0.9 / half
        n = int(rng.integers(8, 26))
        for place, item in enumerate(rng.choice(n_items, n, replace=False, p=weights)):
            interactions.append(f"u{user},i{item},{1_000_000 + 60 * place + user}")
        profiles.append(f"u{user},{'FM'[user % 2]},{20 + user % 50},worker {user % 5}")
    titles = ["item,title", *(f"i{item},{TITLES[item]}" for item in range(n_items))]
    files = CustomCsv(*(folder / f"{name}.csv" for name in ("interactions", "titles", "profiles")))
    for path, lines in zip(
        (files.interactions, files.titles, files.profiles),
        (interactions, titles, profiles),
        strict=True,
    ):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and what it was prepared with."""

    folder: Path
    settings: DataSettings
    csv: CustomCsv


MakePrepared = Callable[[int, int, int], Prepared]


@pytest.fixture(scope="session")
def make_prepared(custom_csv: CustomCsv, tmp_path_factory: pytest.TempPathFactory) -> MakePrepared:
    """Prepare the synthetic data set for given numbers of users; each combination once.

    The folder is called ``custom``, so that its parent serves as ``data_dir``. Treat it as
    read-only: other tests get the same one.
    """
    made: dict[tuple[int, int, int], Prepared] = {}

    def make(n_train: int = 40, n_validation: int = 20, n_test: int = 20) -> Prepared:
        key = (n_train, n_validation, n_test)
        if key not in made:
            folder = tmp_path_factory.mktemp("prepared") / "custom"
            settings = DataSettings(
                "custom",
                n_train_users=n_train,
                n_validation_users=n_validation,
                n_test_users=n_test,
                custom=custom_csv.files,
            )
            prepare(settings, folder, Console(quiet=True))
            made[key] = Prepared(folder, settings, custom_csv)
        return made[key]

    return make


@pytest.fixture(scope="session")
def prepared_folder(make_prepared: MakePrepared) -> Path:
    """The synthetic data set with 40, 20 and 20 users."""
    return make_prepared(40, 20, 20).folder


@pytest.fixture
def server(monkeypatch):
    """A running chat server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def no_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mirror and no cache but the test's own; no proxy before a local server; no wheels."""

    def refuse(*_: object) -> Path:
        raise AssertionError("the test tried to fetch a wheel")

    monkeypatch.delenv("RPP_MIRROR", raising=False)
    monkeypatch.setenv("RPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(assets, "fetch_wheel", refuse)


@pytest.fixture
def no_key(monkeypatch):
    """Neither key nor address of a server in the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_openai(server, no_key):
    """Make a language model behind the chat server."""
    from rpp.llms.openai import OpenAILanguageModel  # the GPU tests do without the package

    made = []

    def make(**options):
        made.append(OpenAILanguageModel("m", server.url, **{"timeout": 5.0} | options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture
def hasty(monkeypatch):
    """First pauses last at most a fiftieth of a second, so that many faults take little."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr("rpp.llms.chat.PAUSE", 0.01)


@pytest.fixture
def here(tmp_path, monkeypatch, custom_csv, tiny_bert_folder):
    """A working folder with the project's conf/, the made-up data set and a scripted model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])  # arguments are given in the call
    lay_out(tmp_path, custom_csv, tiny_bert_folder)
    return tmp_path


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory, custom_csv, tiny_bert_folder):
    """Such a folder and a copy of it after a fit of an epoch; a checkpoint knows its folder."""
    from rpp.cli import main

    parent = tmp_path_factory.mktemp("fitted")
    folder, copy = parent / "here", parent / "copy"
    folder.mkdir()
    lay_out(folder, custom_csv, tiny_bert_folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr("sys.argv", ["train.py"])
        main(command("fit", "--trainer.max_epochs", "1"))
    return folder, copytree(folder, copy, symlinks=True)


@pytest.fixture
def fitted(fitted_once, monkeypatch):
    """A working folder like ``here`` after a fit of an epoch; every test finds it as it was."""
    folder, copy = fitted_once
    rmtree(folder)
    copytree(copy, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return folder


@pytest.fixture
def hasty_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recommenders of sequences stop after two epochs."""

    def hasty(*args: Any, **options: Any) -> float:
        return train(*args, **options | {"max_epochs": 2})

    for module in ("sasrec", "text"):
        monkeypatch.setattr(f"rpp.baselines.{module}.train", hasty)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made, but written empty: half of what a test of a small run takes is drawing."""

    def write(_: Figure, file: str | Path | StringIO, **__: object) -> None:
        if isinstance(file, StringIO):
            file.write('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')
        else:
            Path(file).touch()

    monkeypatch.setattr(Figure, "savefig", write)


@pytest.fixture(scope="module")
def wide_llm_folder(tmp_path_factory):
    return save_llm(tmp_path_factory.mktemp("wide_llm"), width=64)


@pytest.fixture(scope="session")
def checkerboard(tmp_path_factory):
    """Users and items of one parity meet, user ``u`` meeting ``u + 2`` and ``u`` last.

    All items are equally popular, and the negatives of a user are all of the other parity.
    """
    folder = tmp_path_factory.mktemp("checkerboard")
    lines = ["user,item,timestamp"]
    for user in range(24):
        own = [item for item in range(user % 2, 24, 2) if item not in (user, (user + 2) % 24)]
        own = [*np.random.default_rng(user).permutation(own).tolist(), (user + 2) % 24, user]
        lines += [f"u{user},i{item},{place}" for place, item in enumerate(own)]
    (folder / "interactions.csv").write_text("\n".join(lines))
    titles = ["item,title", *(f"i{item},{TITLES[item]}" for item in range(24))]
    (folder / "titles.csv").write_text("\n".join(titles))
    files = CustomFiles(str(folder / "interactions.csv"), str(folder / "titles.csv"))
    settings = DataSettings(
        "custom", min_interactions=0, n_train_users=4, n_validation_users=8, n_test_users=12,
        custom=files,
    )  # fmt: skip
    prepare(settings, folder / "custom", Console(quiet=True))
    return folder / "custom"


@pytest.fixture
def patterns(tmp_path) -> Patterns:
    return load(tmp_path, MINIMAL)
