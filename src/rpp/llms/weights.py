"""A causal network's weights: device, precision, quantisation and adapter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from rpp.assets import resolve_model
from rpp.llms.base import first_line
from rpp.types import InputError

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["4bit", "8bit"]
DeviceMap = str | dict[str, str | int]


UNREADABLE = (OSError, ValueError, SafetensorError, UnpicklingError, EOFError)
"""What reading files of weights raises where they are missing, damaged or something else."""


POINTER = b"version https://git-lfs"
"""How the pointers begin that a clone without git-lfs leaves in place of large files."""


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
        refuse_pointers(self.path)
        try:
            return load(self.path, revision=self.revision, **options)
        except UNREADABLE as error:
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
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    if any(weight.is_meta for weight in network.parameters()):
        raise InputError(
            f"the adapter {adapter!r} needs all of {model!r} on GPUs, and"
            " device_map puts a part elsewhere: use more GPUs or quantization: 4bit, or"
            " merge the adapter into the model first"
        )
    refuse_pointers(adapter)
    try:
        config = PeftConfig.from_pretrained(adapter)
        weights = load_peft_weights(adapter, device="cpu")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            adapted: Any = PeftModel.from_pretrained(network, adapter)
    except (*UNREADABLE, RuntimeError) as error:  # the last: of another model
        raise InputError(f"cannot load the adapter {adapter!r}: {first_line(error)}") from error
    places = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    _check_adapter(adapter, weights, places)
    if config.base_model_name_or_path and not _is_base(config.base_model_name_or_path, model):
        warnings.warn(
            f"the adapter {adapter!r} was tuned on {config.base_model_name_or_path!r}, and"
            f" environment.llm.init_args.model is {model!r}: unless these are the same weights, the"
            " scores are worth nothing",
            stacklevel=2,
        )
    return adapted.merge_and_unload() if merge else adapted.get_base_model()


def _check_adapter(adapter: str, weights: Mapping[str, torch.Tensor], places: set[str]) -> None:
    """Refuse an adapter of which a part has no place, or that is no numbers."""
    wanted = {name for name in places if "lora_" in name}
    given = {name for name in weights if "lora_" in name}
    if wanted != given:
        odd = min(given - wanted or wanted - given)
        raise InputError(
            f"the adapter {adapter!r} does not fit the model: {len(given - wanted)} of its"
            f" {len(given)} weights have no place in it and {len(wanted - given)} places stay"
            f" empty, {odd} for one; use the model it was tuned on"
        )
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(
                f"the adapter {adapter!r} holds weights that are not finite, {name} for one: tune"
                " it anew with a lower learning rate"
            )


def _is_base(named: str, model: str) -> bool:
    """Whether an adapter names a model as its base; folders and owners may differ."""
    return Path(named).name.casefold() == Path(model).name.casefold()


def refuse_pointers(name: str) -> None:
    """Refuse a folder in which pointers of git-lfs lie in place of files.

    Raises:
        InputError: If there is one.
    """
    files = [file for file in sorted(Path(name).glob("*")) if file.is_file()]
    for file in files:
        if file.stat().st_size < 1024 and file.read_bytes().startswith(POINTER):
            raise InputError(
                f"{file} is a pointer of git-lfs and not the file itself: run `git lfs pull` in its"
                " folder, or download it"
            )


def free_bytes(gpus: Iterable[torch.device]) -> int:
    """Smallest free memory of the GPUs, including memory cached by PyTorch."""

    def free(gpu: torch.device) -> int:
        unused = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
        return int(torch.cuda.mem_get_info(gpu)[0] + unused)

    return min(map(free, gpus))
