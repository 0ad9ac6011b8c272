"""What the tests of the command line share: commands, checkpoints, files that hold a text."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
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


def lay_out(folder, custom_csv, tiny_bert_folder):
    """Give a folder the project's conf/ and settings of the made-up data and a scripted model."""
    (folder / "conf").symlink_to(ROOT / "conf")
    small = {
        "model": {
            "class_path": "rpp.learners.rpp.RPP",
            "init_args": {
                "prompt_encoder": str(tiny_bert_folder),
                "prompt_encoding": "parts",
                "n_steps": 2,
            },
        },
        "data": {
            "init_args": {
                "name": "custom",
                "custom": {
                    "interactions": str(custom_csv.interactions),
                    "titles": str(custom_csv.titles),
                    "profiles": str(custom_csv.profiles),
                },
                "order": "time",
                "n_train_users": 12,
                "n_validation_users": 6,
                "n_test_users": 20,
                "batch_size": 6,
                "lightgcn": {"n_epochs": 1, "dim": 8},
            }
        },
        "environment": {
            "llm": {
                "class_path": "rpp.llms.base.ScriptedLanguageModel",
                "init_args": {"reply": "1. I have no idea"},
            },
            "decoding": "generate",
            "show_candidates": True,
            "cache_dir": None,
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
