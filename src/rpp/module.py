"""RPP: four agents learn which prompt makes a frozen language model rank best for each user.

The training step is the paper's Algorithm 1 with the corrected losses of ``rpp.agents.losses``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import CatMetric

from rpp.agents.actor_critic import ActorCritic, Decision, random_choices, uniforms
from rpp.agents.losses import actor_loss, critic_loss, horizon, n_step_returns
from rpp.agents.state import Observation, Pooling, StateEncoder, encode_parts, shared_encoder
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.shares import share
from rpp.data.vectors import CollaborativeVectors
from rpp.metrics import METRICS, ndcg, target_ranks
from rpp.processes import ask_together, average_gradients, gather, gather_rows, means, sums
from rpp.prompts.compose import Prompt, compose
from rpp.prompts.patterns import load_patterns
from rpp.prompts.refine import Refiner
from rpp.prompts.static import StaticPrompt, draw_static_prompts
from rpp.ranker import Ranker
from rpp.terminal import remark
from rpp.types import SPLITS, Episode, InputError, Ranking, Split, final_scoring

Choose = Callable[[Tensor, int, Sequence[Episode]], Tensor]
"""A policy: state ``(B, D)``, step and users to actions ``(B, P)``."""

EPOCH_MEAN: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
"""How training numbers are logged; ``sync_dist`` although all processes log the same numbers, for
Lightning cannot know that they do."""


@dataclass(frozen=True)
class Step:
    """One turn of ``B`` episodes: what was chosen, sent and answered."""

    episodes: Sequence[Episode]
    actions: Tensor
    lengths: list[int]
    prompts: list[Prompt]
    rankings: list[Ranking]


def n_differing(own: Sequence[Step], others: Sequence[Step]) -> int:
    """How many users have another prompt in the second steps, of the same users, than in the first.

    Args:
        own: Steps.
        others: As many, with the same users in the same order.
    """
    return sum(
        prompt.text != other.text
        for turn, another in zip(own, others, strict=True)
        for prompt, other in zip(turn.prompts, another.prompts, strict=True)
    )


class RPPModule(LightningModule):
    """Reinforced Prompt Personalization (paper, section 3).

    Args:
        patterns: YAML file with the sentences of each pattern.
        n_candidates: Number ``M`` of candidates; the reward is NDCG@M.
        n_steps: Steps ``T`` of an episode in training and validation; inference plays as many of
            them as rank the validation users best.
        discount: How much a later reward counts; the paper uses 0.95.
        n_step_return: Rewards in a return before the critic stands in for the rest. With 1 the
            agents update after every step (the paper); with more, at the end of the episode.
        entropy_coef: Weight of the entropy bonus.
        value_coef: Weight of the critics' loss.
        actor_lr: Learning rate of the actors and the state encoder.
        critic_lr: Learning rate of the critics.
        max_grad_norm: Gradients are clipped to this norm.
        hidden_dim: Width of the agents' hidden layers.
        prompt_encoder: ``minilm-l6`` (embedded), a local folder, or a hub id such as the paper's
            ``bert-base-uncased``.
        prompt_encoding: ``whole``: the prompt as one text (the paper), which takes a CPU longer
            than all the rest of the learning. ``parts``: the mean over the encodings of a prompt's
            sentences and titles, each of which is encoded once.
        policy_seed: Of the agents' initial weights and their exploration.
        n_static_prompts: Prompts drawn for the row "best static prompt" of the test table.
        learn: The patterns that are personalised, for example ``[reasoning]``; all others say what
            the section ``manual`` of the patterns file says. ``null``: every pattern.
        pooling: What tells the agents the ranking: a ``gru``, or the ``mean`` of its items, which
            does not know their order (the paper's ablation RPP-pool, Table 8).
        n_sentences: Sentences of role, reasoning and format to choose from: the first ones and
            that of the section ``manual``. ``null``: all of the file.
        history_lengths: Absolute history lengths to choose from in every step. ``null``: what the
            patterns file has; the paper adds 0 to 2 interactions a step to a single one, for which
            an episode needs many steps.
    """

    inference_steps: Tensor
    static_actions: Tensor
    static_length: Tensor

    def __init__(
        self,
        patterns: str = "conf/patterns/movies.yaml",
        n_candidates: int = 10,
        n_steps: int = 15,
        discount: float = 0.95,
        n_step_return: int = 1,
        entropy_coef: float = 0.01,
        value_coef: float = 0.5,
        actor_lr: float = 0.01,
        critic_lr: float = 0.01,
        max_grad_norm: float = 1.0,
        hidden_dim: int = 64,
        prompt_encoder: str = "minilm-l6",
        prompt_encoding: Literal["parts", "whole"] = "whole",
        policy_seed: int = 0,
        n_static_prompts: int = 8,
        learn: list[str] | None = None,
        pooling: Pooling = "gru",
        n_sentences: int | None = None,
        history_lengths: list[int] | None = None,
    ) -> None:
        super().__init__()
        for name, given, smallest in (
            ("n_candidates", n_candidates, 2),
            ("n_steps", n_steps, 1),
            ("n_step_return", n_step_return, 1),
            ("hidden_dim", hidden_dim, 1),
            ("policy_seed", policy_seed, 0),
            ("n_static_prompts", n_static_prompts, 1),
        ):
            if given < smallest:
                raise InputError(f"model.{name} is {given}: at least {smallest} is needed")
        self.automatic_optimization = False
        self.patterns_file = patterns
        self.patterns = load_patterns(patterns, n_sentences, history_lengths)
        if learn is not None:
            self.patterns = self.patterns.learning(learn)
        self.n_candidates = n_candidates
        self.n_steps = n_steps
        self.discount = discount
        self.n_step_return = n_step_return
        self.entropy_coef = entropy_coef
        self.value_coef = value_coef
        self.actor_lr = actor_lr
        self.critic_lr = critic_lr
        self.max_grad_norm = max_grad_norm
        self.hidden_dim = hidden_dim
        self.encoder = shared_encoder(prompt_encoder)
        self.prompt_encoding = prompt_encoding
        self.policy_seed = policy_seed
        self.n_static_prompts = n_static_prompts
        self.pooling: Pooling = pooling
        self.ranker: Ranker | None = None  # handed over by RewardEnvironment
        self.refiner: Refiner | None = None  # likewise; None is RPP without the plus
        self.register_buffer("inference_steps", torch.tensor(n_steps))
        self.register_buffer("static_actions", torch.full((len(self.patterns.names),), -1))
        self.register_buffer("static_length", torch.tensor(0))
        self.val_ranks: Any = torch.nn.ModuleList(
            CatMetric(nan_strategy="disable", sync_on_compute=False) for _ in range(n_steps)
        )
        self.steps: list[Step] = []  # this process's, of the running epoch, for the logs
        self.results: dict[str, Tensor] = {}  # test ranks by method, (n_test_users,)
        self.replies: Counter[str] = Counter()  # how the replies behind the RPP row were read
        self.n_exchanged = 0  # test users whose own prompt is unlike the one they were given
        self.trained_with: dict[str, str] = {}  # the environment of the checkpoint
        self.n_epochs_done = 0  # of the checkpoint

    # -- set-up ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build agents and state encoder for the data set's vectors.

        Raises:
            InputError: On several devices with a strategy that splits weights or keeps the results
                in its child processes; if prompts tell what the data set does not know of its
                users.
        """
        strategy = self.trainer.strategy
        whole = isinstance(strategy, DDPStrategy) and not isinstance(
            strategy.launcher, _MultiProcessingLauncher
        )
        if self.trainer.world_size > 1 and not whole:
            raise InputError(
                f"RPP cannot share its users among {self.trainer.world_size} processes this way:"
                " set trainer.strategy to ddp, or trainer.devices to 1"
            )
        if not hasattr(self, "agents"):
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.build(data, self.trainer.strategy.root_device)

    def build(self, data: EpisodeDataModule, device: torch.device) -> None:
        """Make agents and state encoder, untrained.

        Args:
            data: The users, and the vectors the state begins with.
            device: Where the prompt encoder works.

        Raises:
            InputError: If prompts tell what the data set does not know of its users, if there is
                no choice in them, or if the data have another number of candidates.
        """
        if not self.patterns.names:
            raise InputError(
                "there is nothing to choose: every pattern to learn in"
                f" {self.patterns_file} has a single option"
            )
        self.vectors: CollaborativeVectors = data.vectors
        self.data_summary: dict[str, Any] = data.summary
        name = str(self.data_summary["settings"]["name"])
        n_listed = self.data_summary["settings"]["n_candidates"]
        if n_listed != self.n_candidates:
            raise InputError(
                f"users of {name} have {n_listed} candidates and model.n_candidates is"
                f" {self.n_candidates}: set both alike"
            )
        self.patterns.check_profiles(data.people(), name)
        if device.type != "cpu":
            self.encoder.place(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.policy_seed)
            dim = self.vectors.dim
            self.states = StateEncoder(self.vectors.items, self.encoder.dim, dim, self.pooling)
            self.agents = self.make_agents(dim)

    def make_agents(self, state_dim: int) -> Any:
        """The agents, which read states of the given width; a subclass may have others."""
        return ActorCritic(self.patterns.n_actions, state_dim, self.hidden_dim)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One Adam for actors and state encoder, one for critics."""
        actors = [*self.agents.actors.parameters(), *self.states.parameters()]
        return [
            torch.optim.Adam(actors, lr=self.actor_lr),
            torch.optim.Adam(self.agents.critics.parameters(), lr=self.critic_lr),
        ]

    # -- Algorithm 1 -------------------------------------------------------------------------

    def training_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play one episode per user; with one-step returns, update all agents after every step."""
        lengths = self.patterns.first_lengths(len(batch))
        state = self.states.initial(self._user_vectors(batch))
        transitions: list[tuple[Decision, Tensor, Tensor]] = []
        for step in range(self.n_steps):
            key = (self.policy_seed, self.current_epoch, step)
            n_left = self.n_steps - step
            decision = self.agents(
                state, self._draws(key, batch), horizon=horizon(n_left, self.discount)
            )
            turn = self._ask(batch, decision.actions, lengths)
            lengths = turn.lengths
            reward = self._reward(turn)
            self._log_turn(step, turn, reward)
            last = n_left == 1
            if last:
                next_value = torch.zeros_like(decision.value)
            else:
                observation = self._observe(turn)
                with torch.no_grad():
                    reached = self.states(observation)
                    next_value = self.agents.value(reached, horizon(n_left - 1, self.discount))
            transitions.append((decision, reward, next_value))
            if last or self.n_step_return == 1:
                self._update(transitions)
                transitions = []
            if not last:
                state = self.states(observation)  # again: the encoder may just have changed

    def _update(self, transitions: Sequence[tuple[Decision, Tensor, Tensor]]) -> None:
        """One gradient step of all agents and the state encoder on ``T'`` transitions."""
        decisions, rewards, next_values = zip(*transitions, strict=True)
        returns = n_step_returns(
            torch.stack(rewards), torch.stack(next_values), self.discount, self.n_step_return
        )
        values = torch.stack([decision.value for decision in decisions])
        log_prob = torch.stack([decision.log_prob for decision in decisions])
        entropy = torch.stack([decision.entropy for decision in decisions])
        actor = actor_loss(log_prob, returns - values.detach(), entropy, self.entropy_coef)
        critic = critic_loss(returns, values)
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        for optimizer in optimizers:
            optimizer.zero_grad()
        n_known = int(returns[..., 0].isfinite().sum())
        self._backward(actor.sum() + self.value_coef * critic.sum(), n_known)
        for optimizer in optimizers:
            self.clip_gradients(optimizer, self.max_grad_norm, "norm")  # type: ignore[arg-type]
            optimizer.step()
        losses = means(torch.stack([actor, critic]), n_known)
        entropies = means(entropy.mean((0, 1)), entropy[..., 0].numel())
        options: dict[str, Any] = EPOCH_MEAN | {"batch_size": 1}
        for k, name in enumerate(self.patterns.names):
            self.log(f"loss/actor_{name}", losses[0, k], **options)
            self.log(f"loss/critic_{name}", losses[1, k], **options)
            self.log(f"entropy/{name}", entropies[k], **options)

    def _backward(self, loss: Tensor, n: int) -> None:
        """Gradients of a loss that is a mean over ``n`` entries in this process, over all of them.

        DDP itself would count processes equally that have unequal numbers of users or failed
        calls, and wants a gradient of every weight; the state encoder has none in the first step.
        """
        strategy = self.trainer.strategy
        own = strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()
        with own:
            self.manual_backward(loss)
        average_gradients(self.parameters(), n)

    # -- playing without learning ------------------------------------------------------------

    @torch.no_grad()
    def play(self, episodes: Sequence[Episode], choose: Choose, n_steps: int) -> list[Step]:
        """Play without learning.

        Args:
            episodes: ``B`` users.
            choose: The policy.
            n_steps: Steps to play.

        Returns:
            The steps played.
        """
        lengths = self.patterns.first_lengths(len(episodes))
        state = self.states.initial(self._user_vectors(episodes))
        steps: list[Step] = []
        for step in range(n_steps):
            actions = choose(state, step, episodes)
            turn = self._ask(episodes, actions, lengths)
            lengths = turn.lengths
            steps.append(turn)
            if step < n_steps - 1:
                state = self.states(self._observe(turn))
        return steps

    @torch.no_grad()
    def exchange(self, played: Sequence[Step]) -> list[Step]:
        """Ask once more, every user with what another one ended with.

        The options are chosen as often as by the policy; which user has which has nothing to do
        with the user. What the policy gains over this is personal.

        Args:
            played: Steps in which every user stands once; of this process.

        Returns:
            A step for each, of the same users; none if there is only one user.
        """
        own = [
            (episode.user, actions, length)
            for turn in played
            for episode, actions, length in zip(
                turn.episodes, turn.actions.tolist(), turn.lengths, strict=True
            )
        ]
        chosen = {user: rest for part in gather(own) for user, *rest in part}
        if len(chosen) < 2:
            return []
        rng = np.random.default_rng([self.policy_seed, 1_000_003])
        ring = rng.permutation(sorted(chosen)).tolist()
        giver = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        steps = []
        for turn in played:
            given = [chosen[giver[episode.user]] for episode in turn.episodes]
            actions, lengths = zip(*given, strict=True)
            steps.append(self._send(turn.episodes, torch.tensor(actions), list(lengths)))
        return steps

    def greedy(self, state: Tensor, step: int, episodes: Sequence[Episode]) -> Tensor:
        """The most probable actions."""
        actions: Tensor = self.agents(state).actions
        return actions

    def sampled(self, state: Tensor, step: int, episodes: Sequence[Episode]) -> Tensor:
        """Actions drawn from the policy."""
        actions: Tensor = self.agents(
            state, self._draws((self.policy_seed, 1_000_001, step), episodes)
        ).actions
        return actions

    def validation_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play all steps greedily on validation users."""
        for ranks, turn in zip(
            self.val_ranks, self.play(batch, self.greedy, self.n_steps), strict=True
        ):
            ranks.update(target_ranks(turn.rankings, batch))

    def on_validation_epoch_end(self) -> None:
        """Choose how many steps inference plays: those after which NDCG is highest."""
        # sorted: who played where must not show in a sum
        by_step = [gather_rows(r.compute().reshape(-1)).sort().values for r in self.val_ranks]
        for ranks in self.val_ranks:
            ranks.reset()
        rewards = [ndcg(ranks, self.n_candidates) for ranks in by_step]
        # no answer counts 0 in the choice, else the users who got none would decide it
        best = int(torch.stack([each.nan_to_num(0).mean() for each in rewards]).argmax())
        self.inference_steps.fill_(best + 1)
        for name, metric in METRICS.items():
            shown = name in ("ndcg@10", "hr@5")
            # numbers, which are logged on the module's device: nccl takes no tensor on the CPU
            score = float(metric(by_step[best]).nanmean())
            self.log(f"val/{name}", score, prog_bar=shown, sync_dist=True)
        self.log("val/inference_steps", float(best + 1), sync_dist=True)
        for step, each in enumerate(rewards):
            self.log(f"val_ndcg_by_step/{step:02d}", float(each.nanmean()), sync_dist=True)

    def n_calls(self, stage: Literal["fit", "test"]) -> int | None:
        """Largest number of calls to the language model; ``None`` without ``max_epochs``."""
        n_users = {split: len(self._episodes(split)) for split in SPLITS}
        n_sentences = 0 if self.refiner is None else len(self.refiner.patterns_of)
        if stage == "test":  # greedy and sampled play all steps, the other three rows ask once
            return n_sentences + n_users["test"] * (2 * int(self.inference_steps) + 3)
        n_epochs = self.trainer.max_epochs
        if n_epochs is None or n_epochs < 0:
            return None
        an_epoch = (n_users["train"] + n_users["validation"]) * self.n_steps
        n_static = 0 if self.static_length > 0 else self.n_static_asked * n_users["validation"]
        return n_sentences + max(0, n_epochs - self.n_epochs_done) * an_epoch + n_static

    @property
    def n_static_asked(self) -> int:
        """Static prompts tried on every validation user: a single one leaves nothing to choose."""
        return self.n_static_prompts if self.n_static_prompts > 1 else 0

    def calibrate(self, stage: Literal["fit", "test"], n_prompts: int) -> None:
        """Ask some prompts that this process asks anyway, long ones where there is a choice."""
        if stage == "fit":
            static = max(self._static_prompts(), key=lambda each: each.length)
            episodes = self._own_validation_users()
        else:
            static = self.static
            loader = self.trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
            episodes = [episode for batch in loader for episode in batch]
        self._ask_static(episodes[:n_prompts], [static])

    def _episodes(self, split: Split) -> list[Episode]:
        episodes: list[Episode] = self.trainer.datamodule.episodes(split)  # type: ignore[attr-defined]
        return episodes

    def _own_validation_users(self) -> list[Episode]:
        """Whom this process asks for the best static prompt."""
        trainer = self.trainer
        return share(self._episodes("validation"), trainer.global_rank, trainer.world_size)

    def _static_prompts(self) -> list[StaticPrompt]:
        return draw_static_prompts(
            self.patterns, self.n_static_prompts, self.n_steps, self.policy_seed
        )

    @torch.no_grad()
    def on_train_start(self) -> None:
        """Choose the best of some static prompts on validation users: what RPP has to beat."""
        if self.static_length > 0:  # a resumed run has chosen already
            return
        drawn = self._static_prompts()
        best = 0
        if self.n_static_asked:
            # all at once, so that a user's prompts share work; rows of users, a column per prompt
            asked = self._ask_static(self._own_validation_users(), drawn)
            rewards = self._reward(asked).reshape(-1, len(drawn))
            # no answer counts 0: left out, a prompt could win by the few users it got one for
            scores = gather_rows(rewards).nan_to_num(0).mean(0)
            best = int(scores.argmax())
            if self.logger is not None:
                self.logger.log_metrics({"val/best_static_reward": float(scores[best])}, step=0)
        self.static_actions.copy_(torch.tensor(drawn[best].actions))
        self.static_length.fill_(drawn[best].length)

    @property
    def static(self) -> StaticPrompt:
        """The best static prompt."""
        return StaticPrompt(tuple(self.static_actions.tolist()), int(self.static_length))

    def on_test_start(self) -> None:
        """Forget the results of an earlier test."""
        self.results = {}
        self.replies = Counter()
        self.n_exchanged = 0
        self.steps = []

    def test_step(self, batch: list[Episode], batch_idx: int) -> None:
        """Play the policy greedily and sampled, a random one, and the best static prompt."""
        n_steps = int(self.inference_steps)
        greedy = self.play(batch, self.greedy, n_steps)
        rows = {
            "RPP": greedy[-1],
            "RPP, first step": greedy[0],
            "RPP, sampled": self.play(batch, self.sampled, n_steps)[-1],
            # what re-asking with other words is worth without learning
            "random policy": self._send(
                batch,
                *random_choices(self.patterns, batch, n_steps, (self.policy_seed, 1_000_002)),
            ),
            "best static prompt": self._ask_static(batch, [self.static]),
        } | {f"RPP, step {step}": turn for step, turn in enumerate(greedy)}
        self.steps.append(greedy[-1])
        with final_scoring():
            results = {name: target_ranks(turn.rankings, batch) for name, turn in rows.items()}
            results["RPP, unnamed target not retrieved"] = target_ranks(
                greedy[-1].rankings, batch, named_only=True
            )
            results["displayed position"] = torch.tensor([float(e.target + 1) for e in batch])
        for name, own in results.items():
            self._add_result(name, gather_rows(own))
        for replies in gather(Counter(ranking.status for ranking in greedy[-1].rankings)):
            self.replies.update(replies)

    def on_test_epoch_end(self) -> None:
        """Give every user the prompt of another, if there is another."""
        if len(self.results["RPP"]) < 2:
            return
        if self.trainer.is_global_zero:
            remark("Exchanging the users' prompts ...")
        exchanged = self.exchange(self.steps)
        self.n_exchanged = sum(gather(n_differing(self.steps, exchanged)))
        for turn in exchanged:
            with final_scoring():
                own = target_ranks(turn.rankings, turn.episodes)
            self._add_result("RPP, exchanged", gather_rows(own))

    def _add_result(self, name: str, ranks: Tensor) -> None:
        before = self.results.get(name)
        self.results[name] = ranks if before is None else torch.cat([before, ranks])

    def predict_step(self, batch: list[Episode], batch_idx: int) -> list[dict[str, Any]]:
        """Recommend: the sentences sent, the final prompt and the ranking of every user.

        With a refiner also the sentences chosen, which it reworded.
        """
        turn = self.play(batch, self.greedy, int(self.inference_steps))[-1]
        parts = self.patterns.parts
        return [
            {
                "user": episode.user_id,
                "sentences": dict(zip(parts, prompt.sentences, strict=True)),
                **(
                    {"chosen": dict(zip(parts, prompt.chosen, strict=True))} if self.refiner else {}
                ),
                "prompt": prompt.text,
                "ranking": [episode.candidates[k].title for k in ranking.order],
                "status": ranking.status,
            }
            for episode, prompt, ranking in zip(batch, turn.prompts, turn.rankings, strict=True)
        ]

    # -- parts of a step ---------------------------------------------------------------------

    def _draws(self, key: tuple[int, ...], episodes: Sequence[Episode]) -> Tensor:
        users = [episode.user for episode in episodes]
        return uniforms(key, users, len(self.patterns.names))

    def _user_vectors(self, episodes: Sequence[Episode]) -> Tensor:
        return self.vectors.for_users(
            [episode.user for episode in episodes],
            [[item.index for item in episode.history] for episode in episodes],
        ).to(self.device)

    def _ask(self, episodes: Sequence[Episode], actions: Tensor, lengths: Sequence[int]) -> Step:
        """Prompts from actions, rankings from prompts."""
        lengths = self.patterns.next_lengths(actions.tolist(), lengths)
        return self._send(episodes, actions, lengths)

    def _ask_static(self, episodes: Sequence[Episode], prompts: Sequence[StaticPrompt]) -> Step:
        """The same prompts for everybody, one after the other: ``len(episodes) * len(prompts)``."""
        asked = [episode for episode in episodes for _ in prompts]
        actions = torch.tensor([prompt.actions for prompt in prompts]).repeat(len(episodes), 1)
        lengths = [prompt.length for prompt in prompts] * len(episodes)
        return self._send(asked, actions, lengths)

    def _send(self, episodes: Sequence[Episode], actions: Tensor, lengths: list[int]) -> Step:
        ranker = self.ranker
        if ranker is None:
            raise RuntimeError("no ranker: add the RewardEnvironment callback to the trainer")

        def ask() -> Step:
            prompts = compose(
                episodes, self.patterns, actions.tolist(), lengths, ranker.display,
                fits=ranker.fits, refine=self.refiner or str,
            )  # fmt: skip
            return Step(episodes, actions, lengths, prompts, ranker.rank(prompts, episodes))

        return ask_together(ask)

    def _observe(self, turn: Step) -> Observation:
        if self.prompt_encoding == "parts":
            encodings = encode_parts(self.encoder, [prompt.parts for prompt in turn.prompts])
        else:
            encodings = self.encoder([prompt.text for prompt in turn.prompts])
        return self.states.observe(encodings, turn.rankings, turn.episodes)

    def _reward(self, turn: Step) -> Tensor:
        """NDCG@M of every ranking, ``(B,)`` (paper Eq. 6); ``nan`` where the model failed."""
        ranks = target_ranks(turn.rankings, turn.episodes)
        return ndcg(ranks, self.n_candidates).float().to(self.device)

    def _log_turn(self, step: int, turn: Step, reward: Tensor) -> None:
        self.steps.append(turn)
        known = reward[reward.isfinite()]
        total, n_known = sums(torch.stack([known.sum(), known.new_tensor(len(known))]))
        if n_known:
            options: dict[str, Any] = EPOCH_MEAN | {"batch_size": int(n_known)}
            self.log("train/reward", total / n_known, prog_bar=True, **options)
            self.log(f"train_reward_by_step/{step:02d}", total / n_known, **options)

    def on_train_epoch_start(self) -> None:
        """Forget the steps of the last epoch."""
        self.steps = []

    # -- checkpoints -------------------------------------------------------------------------

    @property
    def learner(self) -> str:
        """Names the kind of agents: the weights of one fit no other."""
        return "RPP"

    @property
    def belonging(self) -> dict[str, str]:
        """What a checkpoint fits: data set, vectors, patterns; by fingerprint."""
        vectors = hashlib.sha256(self.vectors.items.numpy().tobytes()).hexdigest()[:16]
        return {
            "data set": str(self.data_summary["fingerprint"]),
            "collaborative vectors": vectors,
            "patterns": self.patterns.fingerprint,
            "prompt encoder": self.encoder.model,
            "prompt encoding": self.prompt_encoding,
            "pooling": self.pooling,
            "learner": self.learner,
            "data name": str(self.data_summary["settings"]["name"]),
            "patterns file": self.patterns_file,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the weights belong to."""
        checkpoint["rpp"] = self.belonging
        checkpoint["trained_with"] = self.environment
        if self.refiner is not None:
            checkpoint["refinements"] = self.refiner.answers

    @property
    def environment(self) -> dict[str, str]:
        """What ranks, and who refines; empty without a ranker."""
        if self.ranker is None:
            return {}
        refiner = {"refiner": self.refiner.fingerprint} if self.refiner else {}
        return self.ranker.settings | refiner

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that belong to something else.

        Raises:
            InputError: If the checkpoint is not of RPP or belongs to other data or patterns.
        """
        theirs = checkpoint.get("rpp")
        if not isinstance(theirs, dict):
            raise InputError("this checkpoint was not written by RPPModule: fit one first")
        self.trained_with = checkpoint.get("trained_with", {})
        self.n_epochs_done = int(checkpoint["epoch"]) + 1
        if (
            self.refiner is not None
            and self.trained_with.get("refiner") == self.refiner.fingerprint
        ):
            self.refiner.recall(checkpoint["refinements"])
        if self.ranker is not None and self.trained_with != self.environment:
            here = self.environment
            differ = [
                f"{key} {self.trained_with.get(key)} and not {here.get(key)}"
                for key in sorted(self.trained_with.keys() | here.keys())
                if self.trained_with.get(key) != here.get(key)
            ]
            rank_zero_info(
                f"This policy was trained in another environment ({'; '.join(differ)}): what"
                " follows shows how well it transfers."
            )
        ours = self.belonging
        for key, remedy in {
            "data set": "use the data settings it was trained with",
            "patterns": "use its training's patterns file, unchanged, and likewise model.learn,"
            " n_sentences and history_lengths",
            "prompt encoder": "set model.init_args.prompt_encoder to it",
            "prompt encoding": "set model.init_args.prompt_encoding to the other value",
            "learner": "set model.class_path and n_prompts as in its training",
            "pooling": "set model.init_args.pooling to the other value",
            "collaborative vectors": "restore the collaborative.safetensors of the training run",
        }.items():
            if theirs.get(key) != ours[key]:
                raise InputError(
                    f"the checkpoint belongs to another {key} ({theirs.get(key, 'unknown')};"
                    f" {theirs.get('data name')}, {theirs.get('patterns file')}) than this run"
                    f" ({ours[key]}; {ours['data name']}, {ours['patterns file']}): {remedy},"
                    " or fit again"
                )
