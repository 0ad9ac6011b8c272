"""A causal network's weights: device, precision, quantisation and adapter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from rpp.assets import resolve_model
from rpp.types import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]
DeviceMap = str | dict[str, str | int]


@dataclass(frozen=True)
class ModelFiles:
    """Source of a model's files.

    Attributes:
        name: The embedded default, a local folder or a hub id.
        revision: Commit or tag of a hub model.
    """

    name: str
    revision: str | None = None

    @cached_property
    def path(self) -> str:
        """Local folder or hub id."""
        return resolve_model(self.name)

    def load(self, load: Callable[..., Any], **options: Any) -> Any:
        """Call a ``from_pretrained`` of transformers.

        Raises:
            InputError: If there is no such model, or its files cannot be read.
        """
        try:
            return load(self.path, revision=self.revision, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the language model {self.name!r}: {first_line(error)}"
                " Check the name or folder; for a gated model accept its licence on huggingface.co"
                " and set HF_TOKEN; without network use the embedded smollm2-135m-instruct"
            ) from error


def resolve_device(name: str) -> torch.device:
    """Device by name; ``auto`` is a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(name: Precision, device: torch.device) -> torch.dtype:
    """Precision by name; ``auto`` is bfloat16 if the processor supports it."""
    if name != "auto":
        named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return named[name]
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        native = able.get("avx512_bf16", False) or able.get("amx_bf16", False)
        return torch.bfloat16 if native else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def load_network(
    files: ModelFiles,
    device: torch.device,
    dtype: torch.dtype,
    *,
    device_map: DeviceMap | None = None,
    quantization: Quantization | None = None,
    adapter: str | None = None,
) -> PreTrainedModel:
    """Load a frozen network.

    Args:
        files: The model.
        device: Its device, unless ``device_map`` splits it.
        dtype: Precision of the weights that are not quantised.
        device_map: Device of each part, as for ``accelerate``.
        quantization: Kind of quantised weights.
        adapter: Folder or hub id of a peft adapter.

    Raises:
        InputError: If model or adapter cannot be loaded.
    """
    network: Any = files.load(
        AutoModelForCausalLM.from_pretrained,
        dtype=dtype,
        quantization_config=_quantization_config(quantization, dtype),
        device_map=device_map or {"": str(device)},
    )
    if adapter is not None:
        network = _with_adapter(network, files.name, adapter, merge=quantization is None)
    frozen: PreTrainedModel = network.eval().requires_grad_(False)
    return frozen


def _quantization_config(
    quantization: Quantization | None, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "8bit":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def _with_adapter(network: PreTrainedModel, model: str, adapter: str, *, merge: bool) -> Any:
    """The network with an adapter, merged into the weights unless these are quantised."""
    from peft import PeftModel

    if any(weight.is_meta for weight in network.parameters()):
        raise InputError(
            f"the adapter {adapter!r} needs all of {model!r} on GPUs, and"
            " device_map puts a part elsewhere: use more GPUs or quantization: 4bit, or"
            " merge the adapter into the model first"
        )
    try:
        adapted: Any = PeftModel.from_pretrained(network, adapter)
    except (OSError, ValueError, RuntimeError) as error:  # the last: of another model
        raise InputError(f"cannot load the adapter {adapter!r}: {first_line(error)}") from error
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def free_bytes(gpus: Iterable[torch.device]) -> int:
    """Smallest free memory of the GPUs, including memory cached by PyTorch."""

    def free(gpu: torch.device) -> int:
        unused = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
        return int(torch.cuda.mem_get_info(gpu)[0] + unused)

    return min(map(free, gpus))


def first_line(error: Exception) -> str:
    """First line of an error's message, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
