"""A policy over prompts: how it is made, how it is played, what its weights belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from rpp.agents.state import Observation
from rpp.arguments import RecordsArguments
from rpp.baselines import carried
from rpp.baselines.evidence import RecommenderEvidence
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.vectors import CollaborativeVectors
from rpp.learners import checkpoint as checkpoints
from rpp.learners import portable
from rpp.learners.checks import check_smallest
from rpp.learners.client import RankerClient
from rpp.processes import leave_at_exit
from rpp.prompts.patterns import load_patterns
from rpp.rollout import C, Policy, Step, Transition, rollout, uniforms
from rpp.types import Episode, InputError


class PromptPolicy(RecordsArguments, RankerClient, ABC, Generic[C]):
    """Chooses an option of every pattern for every user.

    Args:
        patterns: YAML file with the sentences of each pattern, or its content.
        n_candidates: Number ``M`` of candidates; the reward is NDCG@M.
        n_steps: Steps ``T`` of an episode in training and validation; inference plays as many of
            them as rank the validation users best.
        policy_seed: Of the initial weights and of exploration.
        learn: The patterns that are personalised, for example ``[reasoning]``; all others say what
            the section ``manual`` of the patterns file says. ``null``: every pattern.
        n_sentences: Sentences of role, reasoning and format to choose from: the first ones and
            that of the section ``manual``. ``null``: all of the file.
        history_lengths: Absolute history lengths to choose from in every step. ``null``: what the
            patterns file has; the paper adds 0 to 2 interactions a step to a single one, for which
            an episode needs many steps.

    Attributes:
        trained_in: The environment of the checkpoint the weights come from.
        moved: Finds the policy's rows of users and items; ``None``: they are those of the data.
    """

    inference_steps: Tensor

    def __init__(
        self,
        patterns: str | dict[str, Any] = "conf/patterns/movies.yaml",
        n_candidates: int = 10,
        n_steps: int = 15,
        policy_seed: int = 0,
        learn: list[str] | None = None,
        n_sentences: int | None = None,
        history_lengths: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_smallest(
            n_candidates=(n_candidates, 2),
            n_steps=(n_steps, 1),
            policy_seed=(policy_seed, 0),
        )
        self.patterns_file = patterns if isinstance(patterns, str) else "patterns"
        self.patterns = load_patterns(patterns, n_sentences, history_lengths)
        if learn is not None:
            self.patterns = self.patterns.learning(learn)
        self.n_candidates = n_candidates
        self.n_steps = n_steps
        self.policy_seed = policy_seed
        self.register_buffer("inference_steps", torch.tensor(n_steps))
        self.is_built = False
        self.trained_in: dict[str, str] = {}
        self.n_epochs_done = 0  # of the checkpoint
        self.moved: portable.Moved | None = None

    # -- what a subclass says ----------------------------------------------------------------

    @property
    def title(self) -> str:
        """Name of the learner in tables; the weights of one learner fit no other."""
        return type(self).__name__

    @abstractmethod
    def act(
        self, state: Tensor, number: int, episodes: Sequence[Episode], draws: Tensor | None
    ) -> C:
        """Choose an option of every pattern for every user.

        Args:
            state: ``(B, D)``.
            number: The step's number in its episode, from 0.
            episodes: ``B`` users.
            draws: Numbers in [0, 1) that decide what is drawn from the policy, ``(B, P)``;
                ``None`` asks for the best choice.
        """

    def probabilities(
        self, state: Tensor, number: int, episodes: Sequence[Episode]
    ) -> Tensor | None:
        """Probability of every option, ``(B, P, A)``; ``None``: the policy has none.

        ``A`` is the largest number of options; a pattern with fewer has zeros behind them.

        Args:
            state: ``(B, D)``.
            number: The step's number in its episode, from 0.
            episodes: ``B`` users.
        """
        return None

    def build_policy(self, device: torch.device) -> None:
        """Make what is learnt; :attr:`patterns` and :attr:`vectors` are known.

        Args:
            device: Where frozen parts work.
        """

    def first_state(self, episodes: Sequence[Episode]) -> Tensor:
        """The users' collaborative vectors, ``(B, D)``."""
        users = [episode.user for episode in episodes]
        histories = [[item.index for item in episode.history] for episode in episodes]
        return self.vectors.for_users(users, histories).to(self.device)

    def observe(self, step: Step) -> Observation:
        """What a step leaves behind for the next state; only asked for with several steps."""
        raise NotImplementedError(f"{type(self).__name__} has no later state: set n_steps to 1")

    def next_state(self, observation: Observation) -> Tensor:
        """The state after a step, ``(B, D)``."""
        raise NotImplementedError(f"{type(self).__name__} has no later state: set n_steps to 1")

    # -- set-up ------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build the policy for the data set's vectors.

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
                f"{self.title} cannot share its users among {self.trainer.world_size} processes"
                " this way: set trainer.strategy to ddp, or trainer.devices to 1"
            )
        leave_at_exit()
        if not self.is_built:
            self.build(self.data, self.trainer.strategy.root_device)

    def build(self, data: EpisodeDataModule, device: torch.device) -> None:
        """Make the policy, untrained.

        Args:
            data: The users, and the vectors the state begins with.
            device: Where frozen parts work.

        Raises:
            InputError: If prompts tell what the data set does not know of its users, if there is
                no choice in them, or if the data have another number of candidates.
        """
        if not self.patterns.names:
            raise InputError(
                "there is nothing to choose: every pattern to learn in"
                f" {self.patterns_file} has a single option"
            )
        name = str(data.summary["settings"]["name"])
        n_listed = data.summary["settings"]["n_candidates"]
        if n_listed != self.n_candidates:
            raise InputError(
                f"users of {name} have {n_listed} candidates and model.n_candidates is"
                f" {self.n_candidates}: set both alike"
            )
        self.patterns.check_profiles(data.people(), name)
        self.build_for(data.vectors, data.summary, device)

    def build_for(
        self, vectors: CollaborativeVectors, data_summary: dict[str, Any], device: torch.device
    ) -> None:
        """Make the policy, untrained, without a look at the users.

        Args:
            vectors: The vectors the state begins with.
            data_summary: Summary of the data set they are of.
            device: Where frozen parts work.
        """
        self.vectors = vectors
        self.data_summary = data_summary
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.policy_seed)
            self.build_policy(device)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            # DDP and Lightning's count of updates want a parameter, even one that never moves
            self.unmoved = torch.nn.Parameter(torch.zeros(1))
        self.is_built = True

    # -- playing -----------------------------------------------------------------------------

    def greedy(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> C:
        """The best choice."""
        return self.act(state, number, episodes, None)

    def explore(self, state: Tensor, number: int, episodes: Sequence[Episode]) -> C:
        """A choice drawn from the policy, anew in every epoch."""
        return self.drawn(self.current_epoch, state, number, episodes)

    def drawn(self, key: int, state: Tensor, number: int, episodes: Sequence[Episode]) -> C:
        """A choice drawn from the policy; the key tells one draw from another."""
        return self.act(state, number, episodes, self.draws(key, number, episodes))

    def draws(self, key: int, number: int, episodes: Sequence[Episode]) -> Tensor:
        """Numbers in [0, 1) for drawing options, ``(B, P)``, see :func:`rpp.rollout.uniforms`."""
        return uniforms((self.policy_seed, key, number), episodes, len(self.patterns.names))

    def rollout(
        self, episodes: Sequence[Episode], policy: Policy[C], n_steps: int | None = None
    ) -> Iterator[Transition[C]]:
        """Play one episode per user, see :func:`rpp.rollout.rollout`; by default ``T`` steps."""
        return rollout(self.environment, self, policy, episodes, n_steps or self.n_steps)

    @torch.no_grad()
    def play(
        self, episodes: Sequence[Episode], policy: Policy[C], n_steps: int | None = None
    ) -> list[Step]:
        """Play without learning; by default as many steps as rank validation users best."""
        n_steps = n_steps or int(self.inference_steps)
        return [each.step for each in self.rollout(episodes, policy, n_steps)]

    # -- checkpoints -------------------------------------------------------------------------

    @property
    def provenance(self) -> dict[str, str]:
        """What a checkpoint fits: data set, vectors, patterns, learner; by fingerprint."""
        return {
            "data set": str(self.data_summary["fingerprint"]),
            "collaborative vectors": checkpoints.tensor_fingerprint(self.vectors.items),
            "patterns": self.patterns.fingerprint,
            "learner": self.title,
            "data name": str(self.data_summary["settings"]["name"]),
            "patterns file": self.patterns_file,
        }

    @property
    def environment_metadata(self) -> dict[str, str]:
        """What ranks, and who refines; empty without a ranker."""
        return {} if self.ranker is None else self.environment.metadata

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the weights belong to."""
        checkpoint[checkpoints.PROVENANCE] = self.provenance
        checkpoint[checkpoints.ENVIRONMENT] = self.environment_metadata
        checkpoint[portable.POLICY] = portable.pack(self, self.data.directory)
        if isinstance(self.evidence, RecommenderEvidence):
            checkpoint[carried.EVIDENCE] = carried.pack(self.evidence)
        if self.refiner is not None:
            checkpoint[checkpoints.REFINEMENTS] = self.refiner.answers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that belong to something else.

        Raises:
            InputError: If the checkpoint is none of a prompt learner, or of other data, patterns
                or settings.
        """
        theirs = checkpoints.read_provenance(checkpoint)
        self.trained_in = checkpoint.get(checkpoints.ENVIRONMENT, {})
        self.n_epochs_done = int(checkpoint["epoch"]) + 1
        self._check_epochs()
        refiner = self.refiner
        if refiner is not None and self.trained_in.get("refiner") == refiner.fingerprint:
            refiner.recall(checkpoint[checkpoints.REFINEMENTS])
        if self.trainer.state.fn == "predict":
            self._outlive_data(checkpoint)
        changes = checkpoints.environment_changes(self.trained_in, self.environment_metadata)
        if self.ranker is not None and changes:
            rank_zero_info(
                f"This policy was trained in another environment ({changes}): what follows shows"
                " how well it transfers."
            )
        checkpoints.check_provenance(theirs, self.provenance)
        checkpoints.check_shapes(checkpoint["state_dict"], self.state_dict())

    def _outlive_data(self, checkpoint: dict[str, Any]) -> None:
        """Keep the vectors of the fit where users, items or interactions have come since.

        Another data set is refused as everywhere, by the provenance.
        """
        now = self.data_summary
        if portable.POLICY not in checkpoint:
            return
        policy = portable.unpack(checkpoint)
        then = policy.summary
        is_same_set = then["settings"]["name"] == now["settings"]["name"]
        if not is_same_set or then["fingerprint"] == now["fingerprint"]:
            return
        self.evidence = portable.recall_evidence(checkpoint, self.patterns, self.data.folder)
        self.moved = portable.Moved.between(self.data.directory, policy.directory)
        rank_zero_info(f"The data have changed since the fit: {self.moved} are new to the policy.")
        self.build_for(policy.vectors, then, self.trainer.strategy.root_device)

    def _check_epochs(self) -> None:
        n_epochs = self.trainer.max_epochs
        if self.trainer.state.fn != "fit" or n_epochs is None:
            return
        if 0 <= n_epochs < self.n_epochs_done:
            raise InputError(
                f"the checkpoint has done {self.n_epochs_done} epochs and trainer.max_epochs is"
                f" {n_epochs}: raise it to go on"
            )
