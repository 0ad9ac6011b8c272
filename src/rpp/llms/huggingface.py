"""Language models of the Hugging Face kind, run in this process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rpp.assets import resolve_model
from rpp.llms.base import LanguageModel, LanguageModelError
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
        temperature: 0 is greedy; the paper uses 0.2.
        top_p: Probability mass sampled from.
        max_new_tokens: Longest reply of ``generate``.
        tokens_per_batch: Padded tokens sent through the model at once; bounds memory.
        seed: Seed of sampled replies, of each prompt on its own.
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
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 200,
        tokens_per_batch: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model_name = model
        self.revision = revision
        self.adapter = adapter
        self.template = template
        self.dtype_name = dtype
        self.quantization = quantization
        self.device_name = device
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed

    def place(self, device: torch.device) -> None:
        """Run on the trainer's device unless the configuration names one."""
        if self.device_name == "auto":
            self.device_name = str(device)

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
            "model": _content_name(self.model_name),
            "revision": self.revision,
            "adapter": self.adapter and _content_name(self.adapter),
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
            device_map={"": str(self.device)},
        )
        if self.adapter is not None:
            from peft import PeftModel

            try:
                network = PeftModel.from_pretrained(network, self.adapter)
            except (OSError, ValueError) as error:
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
        return len(self._encode(text))

    def close(self) -> None:
        """Free the weights."""
        self.__dict__.pop("network", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _encode(self, prompt: str, begun: str = "") -> list[int]:
        """Token ids of a prompt inside its template and the beginning of its reply."""
        if self.template == "chat":
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            return self._tokens(str(text) + begun)
        if self.template == "alpaca":
            prompt = ALPACA.format(prompt=prompt)
        return list(self.tokenizer(prompt + begun).input_ids)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _batches(self, lengths: Sequence[int], extra: int = 0) -> Iterator[list[int]]:
        """Rows in batches of similar length, at most ``tokens_per_batch`` padded tokens each."""
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
            if batch and (len(batch) + 1) * (lengths[row] + extra) > self.tokens_per_batch:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def generate(self, prompts: Sequence[str]) -> list[str | LanguageModelError]:
        """Free text, greedy or sampled; a reply does not depend on the batch it was made in."""
        encoded = [self._encode(prompt) for prompt in prompts]
        replies: list[str | LanguageModelError] = [LanguageModelError("not asked")] * len(prompts)
        for rows in self._batches([len(ids) for ids in encoded], extra=self.max_new_tokens):
            processors = LogitsProcessorList()
            if self.temperature > 0:
                processors += [TemperatureLogitsWarper(self.temperature)]
                if self.top_p < 1:
                    processors += [TopPLogitsWarper(self.top_p)]
                processors += [GumbelNoise([prompts[row] for row in rows], self.seed)]
            texts = self._continue(
                [encoded[row] for row in rows],
                max_new_tokens=self.max_new_tokens,
                logits_processor=processors,
            )
            for row, text in zip(rows, texts, strict=True):
                replies[row] = text
        return replies

    def permute(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[str | LanguageModelError]:
        """Constrained decoding: at every token only the beginnings of unused lines are allowed."""
        encoded = [self._encode(prompt) for prompt in prompts]
        line_end = self._tokens("\n")
        lines = [[self._tokens(text) + line_end for text in texts] for texts in options]
        replies: list[str | LanguageModelError] = [LanguageModelError("not asked")] * len(prompts)
        longest = max((sum(map(len, each)) for each in lines), default=0)
        for rows in self._batches([len(ids) for ids in encoded], extra=longest):
            width = max(len(encoded[row]) for row in rows)

            def allowed(
                batch_id: int, ids: Tensor, rows: list[int] = rows, width: int = width
            ) -> list[int]:
                following = _allowed(ids[width:].tolist(), lines[rows[batch_id]])
                return following or [int(self.tokenizer.eos_token_id)]

            texts = self._continue(
                [encoded[row] for row in rows],
                max_new_tokens=longest + 1,
                prefix_allowed_tokens_fn=allowed,
            )
            for row, text in zip(rows, texts, strict=True):
                replies[row] = text.rstrip("\n")
        return replies

    @torch.inference_mode()
    def _continue(self, encoded: Sequence[list[int]], **options: Any) -> list[str]:
        padded = self.tokenizer.pad({"input_ids": list(encoded)}, return_tensors="pt")
        batch = {name: tensor.to(self.device) for name, tensor in padded.items()}
        try:
            ids = self.network.generate(  # type: ignore[operator]  # untyped mixin
                **batch,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(error) from error
        new = ids[:, batch["input_ids"].shape[1] :]
        self.usage.prompt_tokens += sum(map(len, encoded))
        self.usage.reply_tokens += int((new != self.tokenizer.pad_token_id).sum())
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))

    def score(
        self,
        prompts: Sequence[str],
        continuations: Sequence[Sequence[str]],
        begun: Sequence[str] | None = None,
    ) -> list[list[float] | LanguageModelError]:
        """Log-probabilities of all continuations in one forward pass a batch.

        A prompt and its continuations are one sequence in which every continuation sees the
        prompt and itself alone, so the prompt is computed once.
        """
        starts = begun or [""] * len(prompts)
        heads = [self._encode(p, b) for p, b in zip(prompts, starts, strict=True)]
        tails = [[self._tokens(text) for text in texts] for texts in continuations]
        for texts, row in zip(continuations, tails, strict=True):
            if [] in row:
                raise ValueError(f"nothing to score in {texts[row.index([])]!r}")
        lengths = [
            len(head) + sum(len(tail) - 1 for tail in row)
            for head, row in zip(heads, tails, strict=True)
        ]
        scores: list[list[float] | LanguageModelError] = [[] for _ in prompts]
        for rows in self._batches(lengths):
            try:
                batch = self._score([heads[row] for row in rows], [tails[row] for row in rows])
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(error) from error
            for at, values in zip(rows, batch, strict=True):
                scores[at] = list(values)
        self.usage.prompt_tokens += sum(lengths)
        return scores

    @torch.inference_mode()
    def _score(
        self, heads: Sequence[list[int]], tails: Sequence[Sequence[list[int]]]
    ) -> list[list[float]]:
        width = max(
            len(head) + sum(len(tail) - 1 for tail in row)
            for head, row in zip(heads, tails, strict=True)
        )
        ids = torch.full((len(heads), width), int(self.tokenizer.pad_token_id))
        positions = torch.zeros_like(ids)
        visible = torch.eye(width, dtype=torch.bool).repeat(len(heads), 1, 1)
        batch_rows: list[int] = []  # where the distribution of each continuation token is found
        columns: list[int] = []
        targets: list[int] = []
        owners: list[int] = []  # which continuation, counted over the batch, the token belongs to
        n_tails = 0
        for b, (head, row) in enumerate(zip(heads, tails, strict=True)):
            end = len(head)
            ids[b, :end] = torch.tensor(head)
            positions[b, :end] = torch.arange(end)
            visible[b, :end, :end].fill_(True).tril_()
            start = end
            for tail in row:
                stop = start + len(tail) - 1  # nothing follows the last token
                ids[b, start:stop] = torch.tensor(tail[:-1])
                positions[b, start:stop] = torch.arange(end, end + len(tail) - 1)
                visible[b, start:stop, :end] = True
                visible[b, start:stop, start:stop].fill_(True).tril_()
                batch_rows += [b] * len(tail)
                columns += [end - 1, *range(start, stop)]
                targets += tail
                owners += [n_tails] * len(tail)
                n_tails += 1
                start = stop
        mask = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(
            ~visible, torch.finfo(self.dtype).min
        )
        hidden = self.network.get_decoder()(
            input_ids=ids.to(self.device),
            attention_mask=mask[:, None].to(self.device),
            position_ids=positions.to(self.device),
            use_cache=False,
        ).last_hidden_state[torch.tensor(batch_rows), torch.tensor(columns)]
        log_probs = torch.cat(
            [
                self._log_probs(some, wanted)
                for some, wanted in zip(
                    hidden.split(256), torch.tensor(targets).split(256), strict=True
                )
            ]
        )
        totals = torch.zeros(n_tails, dtype=torch.float64)
        totals.index_add_(0, torch.tensor(owners), log_probs)
        return [list(part) for part in _split(totals.tolist(), [len(row) for row in tails])]

    def _log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.network.get_output_embeddings()(hidden).float()
        chosen = logits.gather(1, targets.to(logits.device)[:, None]).squeeze(1)
        log_probs: Tensor = (chosen - logits.logsumexp(dim=1)).double().cpu()
        return log_probs


class GumbelNoise(LogitsProcessor):
    """Sampling as an argmax: standard Gumbel noise from a generator of each prompt's own.

    The most probable token after adding it is a draw from the distribution, so that a reply
    depends on its prompt and the seed, never on the batch it was made in.
    """

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        self.generators = [
            torch.Generator().manual_seed(
                int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:7], "big")
            )
            for prompt in prompts
        ]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with noise, shape ``(B, vocabulary)``."""
        noise = torch.stack(
            [-torch.empty(scores.shape[1]).exponential_(generator=g).log() for g in self.generators]
        )
        return scores + noise.to(scores)  # type: ignore[return-value]


def _allowed(written: list[int], lines: Sequence[list[int]]) -> list[int]:
    """Tokens that may follow: the next one of every unused line that begins like the open one."""
    left = list(lines)
    while True:
        done = next((line for line in left if written[: len(line)] == line), None)
        if done is None:
            break
        written = written[len(done) :]
        left.remove(done)
    return sorted({line[len(written)] for line in left if line[: len(written)] == written})


def _split(values: list[float], sizes: Sequence[int]) -> Iterator[list[float]]:
    start = 0
    for size in sizes:
        yield values[start : start + size]
        start += size


def _content_name(name: str) -> str:
    """A hub id as it is; a local folder by what lies in it."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(1 << 20))
                stream.seek(max(0, file.stat().st_size - (1 << 20)))
                digest.update(stream.read())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _out_of_memory(error: Exception) -> LanguageModelError:
    return LanguageModelError(
        f"out of memory ({_first_line(error)}): lower environment.llm.init_args.tokens_per_batch"
    )
