"""Hugging Face language models, run in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import psutil
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rpp.llms.base import LanguageModel, check_sampling
from rpp.llms.content import content_name
from rpp.llms.decoder import Decoder
from rpp.llms.decoding import BatchDecoding, Sampling
from rpp.llms.templates import PromptTokenizer, Template
from rpp.llms.weights import (
    DeviceMap,
    ModelFiles,
    Precision,
    Quantization,
    free_bytes,
    load_network,
    resolve_device,
    resolve_dtype,
)
from rpp.types import InputError, LanguageModelError


class HuggingFaceLanguageModel(LanguageModel):
    """A causal language model from the Hugging Face hub, a local folder or the embedded default.

    Weights are loaded when first needed and stay frozen.

    Args:
        model: ``smollm2-135m-instruct`` (embedded, fetched once), a local folder, or a hub id.
        revision: Commit or tag of a hub model; pin it.
        adapter: Folder or hub id of a peft (LoRA) adapter.
        template: ``chat``: the model's own chat template; ``alpaca``: instruction and response;
            ``none``: the prompt unchanged.
        dtype: ``auto``: bfloat16 if the processor supports it (a GPU, or a CPU with AVX512-BF16
            or AMX), else float16 on a GPU and float32 on a CPU.
        quantization: ``4bit`` (nf4) or ``8bit`` weights by bitsandbytes.
        device: ``auto``: the trainer's device.
        device_map: Splits a model that is too large for one GPU, by ``accelerate``: ``auto``,
            ``balanced`` or ``sequential``, or the device of each named part; ``null``: the whole
            model is on ``device``. For one learner process, and not for tuning.
        temperature: 0 is greedy; the paper uses 0.2.
        top_p: Probability mass sampled from.
        max_new_tokens: Longest reply of ``generate``.
        seed: Seed of sampled replies, combined with each prompt.
        share_prefixes: Compute common prefixes of prompts once.
    """

    def __init__(
        self,
        model: str = "smollm2-135m-instruct",
        *,
        revision: str | None = None,
        adapter: str | None = None,
        template: Template = "chat",
        dtype: Precision = "auto",
        quantization: Quantization | None = None,
        device: str = "auto",
        device_map: DeviceMap | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 200,
        seed: int = 0,
        share_prefixes: bool = True,
    ) -> None:
        super().__init__()
        check_sampling(temperature, top_p, max_new_tokens, seed)
        self.model_name = model
        self.revision = revision
        self.files = ModelFiles(model, revision)
        self.adapter = adapter
        self.template = template
        self.dtype_name = dtype
        self.quantization = quantization
        self.device_name = device
        self.device_map = device_map
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.share_prefixes = share_prefixes
        self.memory_gb: float | None = None

    def place(self, device: torch.device, memory_gb: float | None = None) -> None:
        """Run on the trainer's device unless the configuration names one.

        Args:
            device: The trainer's.
            memory_gb: Memory for forward passes besides the weights, in 10^9 bytes; by default
                most of a GPU's free memory or a quarter of main memory.
        """
        if self.device_name == "auto":
            self.device_name = str(device)
        self.memory_gb = memory_gb

    def share(self, n_processes: int) -> None:
        """Run in each process.

        Raises:
            InputError: If several processes would each split a model over all GPUs.
        """
        if self.device_map is not None and n_processes > 1:
            raise InputError(
                f"device_map: {self.device_map} would lay a model of each of the {n_processes}"
                " processes over the same GPUs: set trainer.devices to 1, or device_map to null"
            )

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return resolve_device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights that are not quantised."""
        return resolve_dtype(self.dtype_name, self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Model, revision, adapter, template, precision, sampling; a hash of local files."""
        names: dict[str, str | float | None] = {
            "model": content_name(self.model_name),
            "revision": self.revision,
            "adapter": self.adapter and content_name(self.adapter),
            "template": self.template,
            "dtype": str(self.dtype),
            "quantization": self.quantization,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.temperature > 0:
            names |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return json.dumps(names, sort_keys=True)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left."""
        tokenizer: PreTrainedTokenizerBase = self.files.load(
            AutoTokenizer.from_pretrained, padding_side="left"
        )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InputError(
                    f"the tokenizer of {self.model_name!r} has neither an end-of-text nor a padding"
                    " token: name one as eos_token in its tokenizer_config.json"
                )
            tokenizer.pad_token = tokenizer.eos_token
        if self.template == "chat" and not tokenizer.chat_template:
            raise InputError(
                f"model {self.model_name!r} has no chat template: set template to alpaca or none"
            )
        return tokenizer

    @cached_property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """Chat template and tokenisation."""
        return PromptTokenizer(self.tokenizer, self.template)

    @cached_property
    def network(self) -> PreTrainedModel:
        """The frozen network."""
        return load_network(
            self.files,
            self.device,
            self.dtype,
            device_map=self.device_map,
            quantization=self.quantization,
            adapter=self.adapter,
        )

    @cached_property
    def decoder(self) -> Decoder:
        """Forward passes of the network."""
        return Decoder(self.network, int(self.tokenizer.pad_token_id))

    @cached_property
    def context_length(self) -> int | None:
        """Largest number of tokens the model was built for."""
        config = self.files.load(AutoConfig.from_pretrained)
        length = getattr(config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def max_reply_tokens(self) -> int:
        """``max_new_tokens``."""
        return self.max_new_tokens

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a prompt inside its template."""
        return len(self.prompt_tokenizer.encode(text))

    def close(self) -> None:
        """Free the weights."""
        self.__dict__.pop("decoder", None)
        self.__dict__.pop("network", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _max_bytes(self) -> int:
        """Bytes for forward passes, besides the weights."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9)
        if self.device.type == "cuda":
            gpus = {self.device}
            if self.device_map is not None:
                gpus = {p.device for p in self.network.parameters() if p.device.type == "cuda"}
            return int(free_bytes(gpus) * 0.8)
        return int(psutil.virtual_memory().available // 4)

    def _decoding(self) -> BatchDecoding:
        """Decoding in batches that fit the currently free memory."""
        return BatchDecoding(
            self.decoder,
            self.tokenizer,
            self.usage,
            self._max_bytes(),
            share_prefixes=self.share_prefixes,
        )

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Free text, greedy or sampled, independent of the batch."""
        prompt_ids = [self.prompt_tokenizer.encode(prompt) for prompt in prompts]
        sampling = Sampling(self.temperature, self.top_p, self.seed)
        return self._decoding().generate(prompts, prompt_ids, sampling, self.max_new_tokens)

    def generate_permutation(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained decoding: every token must continue an unused line."""
        spell = self.prompt_tokenizer.continuation
        prompt_ids = [self.prompt_tokenizer.encode(prompt) for prompt in prompts]
        first = [[spell(f"{text}\n") for text in texts] for texts in options]
        later = [[spell(f"{text}\n", after="\n") for text in texts] for texts in options]
        return self._decoding().generate_permutation(options, prompt_ids, first, later)

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        response_prefixes: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Log-probabilities of all continuations in one forward pass per batch."""
        prefixes = response_prefixes or [""] * len(prompts)
        prompt_ids = [
            self.prompt_tokenizer.encode(prompt, prefix)
            for prompt, prefix in zip(prompts, prefixes, strict=True)
        ]
        continuation_ids = [
            [self.prompt_tokenizer.continuation(text, after=prefix[-1:]) for text in texts]
            for texts, prefix in zip(continuations, prefixes, strict=True)
        ]
        for texts, row in zip(continuations, continuation_ids, strict=True):
            if [] in row:
                raise ValueError(f"nothing to score in {texts[row.index([])]!r}")
        return self._decoding().score(prompt_ids, continuation_ids)
