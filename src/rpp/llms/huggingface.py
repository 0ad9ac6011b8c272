"""Language models of the Hugging Face kind, run in this process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rpp.assets import resolve_model
from rpp.llms.base import LanguageModel, LanguageModelError
from rpp.llms.decoder import Decoder
from rpp.llms.lines import Lines
from rpp.llms.noise import GumbelNoise
from rpp.llms.plan import Batch, plan
from rpp.llms.tuned import ABOUT
from rpp.types import InputError

Template = Literal["chat", "alpaca", "none"]

ALPACA = "### Instruction:\n{prompt}\n\n### Response:\n"
"""How instruction-tuned LoRA models of the Alpaca kind expect a task."""


class HuggingFaceLanguageModel(LanguageModel):
    """A causal language model from the Hugging Face hub, a local folder or the embedded default.

    Weights are loaded when first needed and stay frozen.

    Args:
        model: ``smollm2-135m-instruct`` (embedded, fetched once), a local folder, or a hub id.
        revision: Commit or tag of a hub model; pin it.
        adapter: Folder or hub id of a peft (LoRA) adapter.
        template: ``chat``: the model's own chat template; ``alpaca``: instruction and response;
            ``none``: the prompt as it is.
        dtype: ``auto``: bfloat16 where the processor computes in it (a GPU, or a CPU with
            AVX512-BF16 or AMX), else float16 on a GPU and float32 on a CPU.
        quantization: ``4bit`` (nf4) or ``8bit`` weights by bitsandbytes.
        device: ``auto``: the trainer's device.
        device_map: Parts of a model too large for one GPU, by ``accelerate``: ``auto``,
            ``balanced`` or ``sequential``, or the device of each named part; ``null``: all of it
            is on ``device``. For one learner process, and not for tuning.
        temperature: 0 is greedy; the paper uses 0.2.
        top_p: Probability mass sampled from.
        max_new_tokens: Longest reply of ``generate``.
        seed: Seed of sampled replies, of each prompt on its own.
        share_prefixes: Compute what prompts have in common once.
    """

    def __init__(
        self,
        model: str = "smollm2-135m-instruct",
        *,
        revision: str | None = None,
        adapter: str | None = None,
        template: Template = "chat",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        quantization: Literal["4bit", "8bit"] | None = None,
        device: str = "auto",
        device_map: str | dict[str, str | int] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 200,
        seed: int = 0,
        share_prefixes: bool = True,
    ) -> None:
        super().__init__()
        self.model_name = model
        self.revision = revision
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
            memory_gb: Memory that passes may take beside the weights, in 10^9 bytes; without it
                most of a GPU's free memory or a quarter of the computer's.
        """
        if self.device_name == "auto":
            self.device_name = str(device)
        self.memory_gb = memory_gb

    def share(self, n_processes: int) -> None:
        """Run in each process.

        Raises:
            InputError: If several processes would each lay a model over all GPUs.
        """
        if self.device_map is not None and n_processes > 1:
            raise InputError(
                f"device_map: {self.device_map} would lay a model of each of the {n_processes}"
                " processes over the same GPUs: set trainer.devices to 1, or device_map to null"
            )

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        if self.device_name != "auto":
            return torch.device(self.device_name)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights that are not quantised."""
        if self.dtype_name != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
                self.dtype_name, torch.float16
            )
        if self.device.type == "cpu":
            able = torch.cpu.get_capabilities()
            native = able.get("avx512_bf16", False) or able.get("amx_bf16", False)
            return torch.bfloat16 if native else torch.float32
        if self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            return torch.float16
        return torch.bfloat16

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
    def path(self) -> str:
        """Local folder or hub id the files come from."""
        return resolve_model(self.model_name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left."""
        tokenizer: PreTrainedTokenizerBase = self._load(
            AutoTokenizer.from_pretrained, padding_side="left"
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if self.template == "chat" and not tokenizer.chat_template:
            raise InputError(
                f"model {self.model_name!r} has no chat template: set template to alpaca or none"
            )
        return tokenizer

    @cached_property
    def network(self) -> PreTrainedModel:
        """The frozen network."""
        quantization = None
        if self.quantization == "4bit":
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )
        elif self.quantization == "8bit":
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            quantization = BitsAndBytesConfig(load_in_8bit=True)
        network: Any = self._load(
            AutoModelForCausalLM.from_pretrained,
            dtype=self.dtype,
            quantization_config=quantization,
            device_map=self.device_map or {"": str(self.device)},
        )
        if self.adapter is not None:
            from peft import PeftModel

            if any(weight.is_meta for weight in network.parameters()):
                raise InputError(
                    f"the adapter {self.adapter!r} needs all of {self.model_name!r} on GPUs, and"
                    " device_map puts a part elsewhere: use more GPUs or quantization: 4bit, or"
                    " merge the adapter into the model first"
                )
            try:
                network = PeftModel.from_pretrained(network, self.adapter)
            except (OSError, ValueError, RuntimeError) as error:  # the last: of another model
                raise InputError(
                    f"cannot load the adapter {self.adapter!r}: {_first_line(error)}"
                ) from error
            network = (
                network.merge_and_unload() if quantization is None else network.get_base_model()
            )
        frozen: PreTrainedModel = network.eval().requires_grad_(False)
        return frozen

    def _load(self, load: Any, **options: Any) -> Any:
        try:
            return load(self.path, revision=self.revision, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load the language model {self.model_name!r}: {_first_line(error)}"
                " Check the name or folder; for a gated model accept its licence on huggingface.co"
                " and set HF_TOKEN; without network use the embedded smollm2-135m-instruct"
            ) from error

    @cached_property
    def context_length(self) -> int | None:
        """Largest number of tokens the model was built for."""
        config = self._load(AutoConfig.from_pretrained)
        length = getattr(config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def max_reply_tokens(self) -> int:
        """``max_new_tokens``."""
        return self.max_new_tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt inside its template."""
        return len(self.encode(text))

    def close(self) -> None:
        """Free the weights."""
        self.__dict__.pop("decoder", None)
        self.__dict__.pop("network", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def render(self, prompt: str) -> str:
        """A prompt inside its template, up to where the reply begins."""
        if self.template == "chat":
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        return ALPACA.format(prompt=prompt) if self.template == "alpaca" else prompt

    @property
    def _special(self) -> bool:
        """Whether the tokenizer adds its special tokens; a chat template writes them itself."""
        return self.template != "chat"

    def encode(self, prompt: str, begun: str = "") -> list[int]:
        """Token ids of a prompt inside its template and the beginning of its reply."""
        text = self.render(prompt) + begun
        return list(self.tokenizer(text, add_special_tokens=self._special).input_ids)

    def encode_with_starts(self, rendered: str) -> tuple[list[int], list[int]]:
        """Token ids of a rendered prompt, and the place in it at which each begins."""
        encoded = self.tokenizer(
            rendered, add_special_tokens=self._special, return_offsets_mapping=True
        )
        return list(encoded.input_ids), [start for start, _ in encoded.offset_mapping]

    def tokenize(self, text: str, after: str = "") -> list[int]:
        """Token ids of a text as it is spelt within a reply.

        Args:
            text: The text.
            after: What stands before it, the last character is enough: SentencePiece spells a
                text by itself in another way, with a blank before it.
        """
        before, both = self._plain_ids(after) if after else [], self._plain_ids(after + text)
        return both[len(before) :] if both[: len(before)] == before else self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    @cached_property
    def decoder(self) -> Decoder:
        """The network's passes."""
        return Decoder(self.network, int(self.tokenizer.pad_token_id))

    def _max_bytes(self) -> int:
        """Bytes that passes may take beside the weights."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9)
        if self.device.type == "cuda":
            gpus = {self.device}
            if self.device_map is not None:
                gpus = {p.device for p in self.network.parameters() if p.device.type == "cuda"}
            return int(min(map(_free_bytes, gpus)) * 0.8)
        return int(psutil.virtual_memory().available // 4)

    @torch.inference_mode()
    def _run(
        self,
        heads: Sequence[list[int]],
        tails: Sequence[Sequence[list[int]]],
        work: Callable[[Batch], None],
        answers: list[Any],
        room: int = 0,
    ) -> None:
        """Work through prompts in batches that fit the memory; halve those that do not after all.

        Args:
            heads: Tokens of each prompt.
            tails: Tokens that follow it, each on its own; ``[[]]`` for none.
            work: Handles a batch.
            answers: One place per prompt; it gets an error where there is no memory for a prompt.
            room: Tokens that may be written after each prompt.
        """
        waiting = plan(
            self.decoder, heads, tails, room=room, max_bytes=self._max_bytes(),
            share=self.share_prefixes,
        )  # fmt: skip
        while waiting:
            batch = waiting.pop(0)
            try:
                work(batch)
            except torch.OutOfMemoryError as error:
                if halves := batch.halves():
                    waiting[:0] = halves
                    continue
                for row in batch.rows:
                    answers[row] = _out_of_memory(error)

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Free text, greedy or sampled; a reply does not depend on the batch it was made in."""
        heads = [self.encode(prompt) for prompt in prompts]
        replies: list[str | LanguageModelError] = [LanguageModelError("not asked")] * len(prompts)

        def work(batch: Batch) -> None:
            rows = batch.rows
            processors = LogitsProcessorList()
            if self.temperature > 0:
                processors += [TemperatureLogitsWarper(self.temperature)]
                if self.top_p < 1:
                    processors += [TopPLogitsWarper(self.top_p)]
                some = [prompts[row] for row in rows]
                processors += [GumbelNoise(some, self.seed, self.decoder.device)]
            # the last token's keys and values are left out: its pass gives the first distribution
            known = self.decoder.prefill(batch.passes, self.max_new_tokens, last=False)
            width = known.ids.shape[1]
            ids = self.network.generate(  # type: ignore[operator]  # untyped mixin
                input_ids=known.ids,
                attention_mask=known.known.long(),
                past_key_values=known.cache,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.tokenizer.pad_token_id,
                max_new_tokens=self.max_new_tokens,
                logits_processor=processors,
                disable_compile=True,
            )
            new = ids[:, width:]
            self.usage.reply_tokens += int((new != self.tokenizer.pad_token_id).sum())
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                replies[row] = text

        self._run(heads, [[[]]] * len(heads), work, replies, self.max_new_tokens)
        self.usage.prompt_tokens += sum(map(len, heads))
        return replies

    def permute(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained decoding: at every token only the beginnings of unused lines are allowed."""
        heads = [self.encode(prompt) for prompt in prompts]
        first = [[self.tokenize(f"{text}\n") for text in texts] for texts in options]
        later = [[self.tokenize(f"{text}\n", after="\n") for text in texts] for texts in options]
        replies: list[str | LanguageModelError] = [LanguageModelError("not asked")] * len(prompts)

        def work(batch: Batch) -> None:
            rows = batch.rows
            states = [Lines(later[row], first[row]) for row in rows]
            known = self.decoder.prefill(batch.passes, longest, last=True)
            self.usage.reply_tokens += self.decoder.permute(known, states)
            for row, state in zip(rows, states, strict=True):
                replies[row] = "\n".join(options[row][k] for k in state.order)

        sizes = [
            max(map(len, begin), default=0) + sum(map(len, rest))
            for begin, rest in zip(first, later, strict=True)
        ]
        longest = max(sizes, default=0)
        self._run(heads, [[[]]] * len(heads), work, replies, longest)
        self.usage.prompt_tokens += sum(map(len, heads))
        return replies

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        begun: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Log-probabilities of all continuations in one forward pass a batch.

        Prompts with a common beginning and the continuations of each are one tree, in which
        every common token is computed once.
        """
        starts = begun or [""] * len(prompts)
        heads = [self.encode(p, b) for p, b in zip(prompts, starts, strict=True)]
        tails = [
            [self.tokenize(text, after=start[-1:]) for text in texts]
            for texts, start in zip(continuations, starts, strict=True)
        ]
        for texts, row in zip(continuations, tails, strict=True):
            if [] in row:
                raise ValueError(f"nothing to score in {texts[row.index([])]!r}")
        scores: list[list[float] | LanguageModelError] = [[] for _ in prompts]

        def work(batch: Batch) -> None:
            rows = batch.rows
            texts = iter([(row, tail) for row in rows for tail in tails[row]])
            found: list[float] = []
            for trees in batch.passes:
                wanted = [
                    [
                        (path[len(heads[row]) - 1 :], tail)
                        for path, (row, tail) in zip(tree.paths, texts, strict=False)
                    ]
                    for tree in trees
                ]
                found += self.decoder.log_probs(trees, wanted).tolist()
            for row in rows:
                scores[row] = found[: len(tails[row])]
                del found[: len(tails[row])]

        # nothing follows the last token of a continuation, so it need not pass
        self._run(heads, [[tail[:-1] for tail in row] for row in tails], work, scores)
        self.usage.prompt_tokens += sum(
            len(head) + sum(len(tail) - 1 for tail in row)
            for head, row in zip(heads, tails, strict=True)
        )
        return scores


def content_name(name: str) -> str:
    """A hub id as it is; a local folder by what lies in it."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        kinds = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
        if file.suffix in kinds and file.name != ABOUT:
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, file.stat().st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()


def _free_bytes(gpu: torch.device) -> int:
    """Memory of a GPU that is free, or kept by PyTorch for what comes next."""
    unused = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return int(torch.cuda.mem_get_info(gpu)[0] + unused)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _out_of_memory(error: Exception) -> LanguageModelError:
    return LanguageModelError(
        f"out of memory for a single prompt ({_first_line(error)}): use a quantised or smaller"
        " model, shorter histories, or another device"
    )
