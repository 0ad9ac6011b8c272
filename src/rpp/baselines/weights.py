"""Weights from files: read without executing code, converted from the published layout."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rpp.types import InputError


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights and switch to evaluation.

    Raises:
        InputError: If they are of another shape or incomplete.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"the weights do not fit the model: {reason}") from error
    model.eval()


def read_weights(name: str) -> dict[str, Tensor]:
    """Tensors of a local file, read without executing code.

    Raises:
        InputError: If there is no such file or it holds anything but tensors.
    """
    path = weights_file(name)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        if all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, AttributeError, EOFError):
        pass
    raise InputError(
        f"{path} holds something else than tensors and is not opened: save its state_dict alone, as"
        " safetensors or with torch.save"
    )


def weights_file(name: str) -> Path:
    """Path of a file that must exist."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"there is no file of weights {path}")
    return path


def translate_encoder(published: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The transformer's weights, from RecBole's names and layout to :class:`SequenceEncoder`'s.

    Raises:
        KeyError: If one is missing.
    """
    ours = {"encoder.positions.weight": published["position_embedding.weight"]}
    parts = ("weight", "bias")
    for part in parts:
        ours[f"encoder.norm.{part}"] = published[f"LayerNorm.{part}"]
    for k in range(n_layers):
        theirs, own = f"trm_encoder.layer.{k}", f"encoder.layers.layers.{k}"
        names = {
            "multi_head_attention.dense": "self_attn.out_proj",
            "multi_head_attention.LayerNorm": "norm1",
            "feed_forward.dense_1": "linear1",
            "feed_forward.dense_2": "linear2",
            "feed_forward.LayerNorm": "norm2",
        }
        for part in parts:
            projections = [
                published[f"{theirs}.multi_head_attention.{kind}.{part}"]
                for kind in ("query", "key", "value")
            ]
            ours[f"{own}.self_attn.in_proj_{part}"] = torch.cat(projections)
            for name, translated in names.items():
                ours[f"{own}.{translated}.{part}"] = published[f"{theirs}.{name}.{part}"]
    return ours
