"""LoRA tuning of a frozen language model on rankings (paper, section 4.1: Alpaca).

The loss is a weighted sum of two (see ``rpp.tuning.losses``): the mean negative log-likelihood of
the tokens in the spans of an instruction, and that of the target among the candidates.

Not specified in the paper: rank, layers, learning rate and all other settings below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig
from torch import Tensor
from torchmetrics import CatMetric
from transformers import get_cosine_schedule_with_warmup

from rpp.llms.cache import ReplyCache
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tuned import DATA, EARLIER, LEFT_OUT, left_out, marks
from rpp.metrics import METRICS, mean_interval, target_ranks
from rpp.processes import all_reduce_sum, gather_rows, leave_at_exit
from rpp.prompts.compose import compose
from rpp.prompts.patterns import load_patterns
from rpp.ranker import Decoding, Ranker
from rpp.tuning.adapter import with_adapter
from rpp.tuning.export import card, note_curve, put_in_place, write_metadata
from rpp.tuning.instructions import Instruction
from rpp.tuning.losses import Encoded, check_losses, encode, likelihood_loss, listwise_loss
from rpp.types import Episode, InputError

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a Llama layer."""


class RankingAdapter(LightningModule):
    """Tunes a causal language model on ranking instructions; its own weights stay frozen.

    Args:
        llm: The model to tune, with its template, precision and quantisation (``4bit``: QLoRA).
        adapter_dir: Folder of the best adapter, in peft's format.
        start: Folder of an adapter to continue from, with its rank and layers.
        start_scale: What the initial adapter adds to the frozen weights is multiplied by this.
        patterns: YAML file with the sentences of each pattern, for validation.
        decoding: How validation ranks.
        show_candidates: Whether validation prompts list the candidates.
        per_character: Whether ``likelihood`` divides a title's log-probability by its length.
        n_history: Items a validation prompt shows.
        evidence: Number of the option of evidence in validation prompts, from 1.
        rank: Rank of the adapter.
        alpha: Scale of the adapter: its output is multiplied by ``alpha / rank``.
        dropout: Dropout before the adapter.
        n_layers: Number of upper layers that are adapted; 0 means all. Layers below need no
            gradient, which saves time.
        target_modules: Names of the linear maps that are adapted.
        lr: Maximum learning rate: linear warm-up over 3 % of the steps, cosine decay to 0.
        weight_decay: Of AdamW.
        likelihood_weight: Weight of the likelihood of the tokens; 0 saves its pass.
        listwise_weight: Weight of the listwise loss, which costs a pass over all candidates.
        listwise_temperature: ``tau``. Log-probabilities of titles are some 10 apart where a model
            is not calibrated; with 1 a few lists of which it is wrongly sure are all of the loss.
        max_grad_norm: Gradients are clipped to this norm.
        max_tokens: Longer instructions are cut at the end.
        gradient_checkpointing: Recompute the activations of each layer in the backward pass: a
            third more time for a fraction of the memory.

    Raises:
        InputError: If there is no adapter to start from, the model is on several devices, both
            losses have weight 0, or the temperature is not above 0.
    """

    def __init__(
        self,
        llm: HuggingFaceLanguageModel,
        adapter_dir: str,
        start: str | None = None,
        start_scale: float = 1.0,
        patterns: str = "conf/patterns/movies.yaml",
        decoding: Decoding = "likelihood",
        show_candidates: bool = False,
        per_character: bool = False,
        n_history: int = 10,
        evidence: int = 1,
        rank: int = 32,
        alpha: int = 64,
        dropout: float = 0.0,
        n_layers: int = 0,
        target_modules: Sequence[str] = LINEAR,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        likelihood_weight: float = 1.0,
        listwise_weight: float = 0.0,
        listwise_temperature: float = 1.0,
        max_grad_norm: float = 1.0,
        max_tokens: int = 1024,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if start is not None and not Path(start, "adapter_config.json").is_file():
            raise InputError(
                f"there is no adapter in {start}: tune that one first, or set"
                " model.init_args.start to null"
            )
        if llm.device_map is not None:
            raise InputError(
                "a model is tuned on one device: set model.init_args.llm.init_args.device_map to"
                " null; quantization: 4bit and gradient_checkpointing take less memory"
            )
        check_losses(likelihood_weight, listwise_weight, listwise_temperature)
        self.strict_loading = False  # a checkpoint has only the adapter
        self.llm = llm
        self.adapter_dir = Path(adapter_dir)
        self.start = start
        self.start_scale = start_scale
        self.patterns = load_patterns(patterns)
        self.decoding: Decoding = decoding
        self.show_candidates = show_candidates
        self.per_character = per_character
        self.n_history = n_history
        if not 1 <= evidence <= max(1, self.patterns.n_options("evidence")):
            raise InputError(
                f"model.evidence is {evidence}: choose an option of evidence of the patterns file"
            )
        self.options = [evidence - 1 if name == "evidence" else 0 for name in self.patterns.names]
        self.lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(target_modules),
            task_type="CAUSAL_LM",
        )
        self.n_layers = n_layers
        self.lr = lr
        self.weight_decay = weight_decay
        self.likelihood_weight = likelihood_weight
        self.listwise_weight = listwise_weight
        self.listwise_temperature = listwise_temperature
        self.max_grad_norm = max_grad_norm
        self.max_tokens = max_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self.val_ranks = CatMetric(nan_strategy="disable", sync_on_compute=False)
        self.curve: list[dict[str, float]] = []  # score by number of sequences
        self.n_sequences = 0

    def configure_model(self) -> None:
        """Load the frozen model and put the adapter around its layers."""
        if hasattr(self, "network"):
            return
        self.llm.place(self.trainer.strategy.root_device)
        base = self.llm.network
        if self.gradient_checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
        if self.n_layers:
            depth = base.config.num_hidden_layers
            self.lora.layers_to_transform = list(range(max(0, depth - self.n_layers), depth))
        self.network = with_adapter(base, self.lora, self.start, self.start_scale)
        # a name any user can load it by, not a local folder
        self.network.peft_config["default"].base_model_name_or_path = self.llm.model_name

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter; warm-up and cosine decay over the whole fit."""
        weights = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.lr, weight_decay=self.weight_decay)
        n_steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, round(0.03 * n_steps), n_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Find the users left out, both here and by the initial adapter."""
        leave_at_exit()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.left_out_earlier = {} if self.start is None else left_out(self.start)
        own = set(marks(data.left_out))
        self.left_out = own & self.left_out_earlier.pop(data.summary["settings"]["name"], own)

    # -- losses ------------------------------------------------------------------------------

    def training_step(self, batch: list[Instruction], batch_idx: int) -> Tensor:
        """Likelihood of the tokens in the loss, and of the target among the candidates."""
        loss = torch.zeros((), device=self.device)
        if self.likelihood_weight:
            likelihood = self._likelihood([self.encode(instruction) for instruction in batch])
            self.log("train/loss", likelihood, prog_bar=True, batch_size=len(batch))
            loss = loss + self.likelihood_weight * likelihood
        if self.listwise_weight:
            listwise = self._listwise(batch)
            self.log("train/listwise", listwise, prog_bar=True, batch_size=len(batch))
            loss = loss + self.listwise_weight * listwise
        counts = torch.tensor([len(batch), not loss.isfinite()], device=self.device)
        n_sequences, n_broken = all_reduce_sum(counts).tolist()
        if n_broken:  # in every process, else the others would wait for this one
            raise self._broken("the loss is")
        self.n_sequences += n_sequences
        self.log("train/sequences", float(self.n_sequences), batch_size=len(batch))
        return loss

    def _broken(self, what: str) -> InputError:
        return InputError(
            f"{what} not finite after {self.n_sequences} sequences: lower model.lr, which is"
            f" {self.lr:g}, or use trainer.precision 32-true; what {self.adapter_dir} holds is"
            " untouched"
        )

    def encode(self, instruction: Instruction) -> Encoded:
        """Tokens of prompt and reply, and which of them are in the loss."""
        return encode(self.llm, instruction, self.max_tokens)

    def _likelihood(self, encoded: Sequence[Encoded]) -> Tensor:
        return likelihood_loss(self.llm, encoded, self.device)

    def _listwise(self, batch: Sequence[Instruction]) -> Tensor:
        return listwise_loss(self.llm, batch, self.listwise_temperature)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients."""
        self.clip_gradients(optimizer, self.max_grad_norm, "norm")

    # -- validation --------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """A fresh ranker: what the model answered before it changed is of no use.

        Raises:
            InputError: If weights are not finite: there is nothing to be ranked or kept.
        """
        weights = (weight for name, weight in self.network.named_parameters() if "lora_" in name)
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise self._broken("weights of the adapter are")
        self.val_ranker = Ranker(
            self.llm,
            self.decoding,
            show_candidates=self.show_candidates,
            per_character=self.per_character,
            cache=ReplyCache(None),
        )

    def validation_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Rank with one static prompt."""
        lengths = [self.n_history] * len(batch)
        prompts = compose(
            batch,
            self.patterns,
            [self.options] * len(batch),
            lengths,
            self.val_ranker.display,
            fits=self.val_ranker.fits,
            evidence=self.trainer.datamodule.evidence,  # type: ignore[attr-defined]
        )
        self.val_ranks.update(target_ranks(self.val_ranker.rank(prompts, batch), batch))

    def on_validation_epoch_end(self) -> None:
        """Log the scores; save the adapter if it is the best so far."""
        ranks = gather_rows(self.val_ranks.compute().reshape(-1))
        self.val_ranks.reset()
        for name, metric in METRICS.items():
            score = float(metric(ranks).nanmean())  # nccl takes no tensor on the CPU
            self.log(f"val/{name}", score, prog_bar=name == "ndcg@10", sync_dist=True)
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        reached = float(METRICS["ndcg@10"](ranks).nanmean())
        best = max((point["ndcg@10"] for point in self.curve), default=0.0)
        self.curve.append({"sequences": self.n_sequences, "ndcg@10": reached})
        if not self.trainer.is_global_zero:
            return
        if reached > best:
            self._export(ranks, is_first=len(self.curve) == 1)
        else:
            note_curve(self.adapter_dir, self.curve)

    def _export(self, ranks: Tensor, *, is_first: bool) -> None:
        """Write the adapter in peft's format, in half precision, and what it is."""
        state = {
            name: weight.detach().to(torch.bfloat16)
            for name, weight in self.network.state_dict().items()
            if "lora_" in name
        }
        metadata = self._metadata(ranks)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        text = card(metadata, shows_candidates=data.display.show_candidates)

        def write(folder: Path) -> None:
            # embeddings are never tuned: peft need not look up whether they have grown
            self.network.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
            write_metadata(folder, metadata, text)

        put_in_place(self.adapter_dir, write, is_first=is_first)

    def _metadata(self, ranks: Tensor) -> dict[str, Any]:
        """What ``tuning.json`` tells; ranks of the validation targets, ``(n_users,)``."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {
            "base_model": self.llm.model_name,
            "started_from": self.start,
            "start_scale": self.start_scale,
            "likelihood_weight": self.likelihood_weight,
            "listwise_weight": self.listwise_weight,
            "listwise_temperature": self.listwise_temperature,
            DATA: data.summary["settings"]["name"],
            "prepared_data": data.summary["fingerprint"],
            "n_users": len(data.sequences),
            "targets": data.targets,
            "seed": data.settings.seed,
            "draw_seed": data.draw_seed,
            "n_sequences": self.n_sequences,
            "steps": self.trainer.global_step,
            "validation": {
                name: mean_interval(metric(ranks))._asdict() for name, metric in METRICS.items()
            },
            "curve": self.curve,
            LEFT_OUT: sorted(self.left_out),
            EARLIER: {name: sorted(users) for name, users in self.left_out_earlier.items()},
        }

    # -- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save only the adapter; the frozen weights are loaded again."""
        checkpoint["state_dict"] = {
            name: weight for name, weight in checkpoint["state_dict"].items() if "lora_" in name
        }
        checkpoint["tuning"] = {
            "curve": self.curve, "n_sequences": self.n_sequences, "lr": self.lr,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters.

        Raises:
            InputError: If the checkpoint is not of a tuned adapter.
        """
        if "tuning" not in checkpoint:
            raise InputError("this checkpoint was not written by RankingAdapter: fit one first")
        lr = checkpoint["tuning"].get("lr", self.lr)
        if self.trainer.state.fn == "fit" and lr != self.lr:
            raise InputError(
                f"the run to go on with has the learning rate {lr:g} and a schedule under way, and"
                f" model.lr is {self.lr:g}: set it to {lr:g}, or start anew from its adapter"
                " (model.start)"
            )
        self.curve = checkpoint["tuning"]["curve"]
        self.n_sequences = checkpoint["tuning"]["n_sequences"]
