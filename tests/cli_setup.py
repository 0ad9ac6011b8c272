"""What the tests of the command line share: commands, checkpoints, files that hold a text."""

from __future__ import annotations

from pathlib import Path

import torch
from raw_files import games, lastfm, ml_1m, ml_100k

ROOT = Path(__file__).parents[1]


def command(subcommand, *options):
    return [subcommand, "--config", "conf/rpp.yaml", "--config", "small.yaml", *options]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


RAW = {"ml-100k": ml_100k, "ml-1m": ml_1m, "games": games, "lastfm": lastfm}


def api(server, *options):
    """Options that put the chat server in the place of the scripted model."""
    llm = "--environment.llm"
    return (
        *(llm, "rpp.llms.openai.OpenAILanguageModel", f"{llm}.model", "m"),
        *(f"{llm}.base_url", server.url, "--environment.cache_dir", "replies", *options),
    )


def files_with(folder, text):
    """Every file that holds a text, whatever its kind; SQLite's and PyTorch's are not packed."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in paths if text.encode() in path.read_bytes()]
