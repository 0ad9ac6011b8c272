"""What a GPU could change: batches, trees, memory, collectives, whole runs: ``pytest -m gpu``.

Every test runs on a CPU as well, as part of the normal suite, except where it is about a GPU's
memory. Bounds: in float32 a log-probability may differ by 1e-3 between batches, and replies and
rankings not at all; between float32 and bfloat16 by 0.3 (the tiny model's vary by 25). A resumed
fit ends with the weights of a whole one up to rounding, a fit of the same seeds with the very same.
"""

from __future__ import annotations

import gc
import os
import weakref
from unittest import mock

import pytest
import torch
from contracts import OPTIONS, PROMPTS, LanguageModelContract
from helpers import LETTERS, PEFT
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline import PATTERNS, MadeUpUsers
from tiny_models import save_llm
from torch import distributed
from tuning_setup import draw

from rpp import processes
from rpp.callbacks.environment import RewardEnvironment
from rpp.learners.rpp import RPP
from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.plan import Batch
from rpp.tuning.losses import encode, likelihood_loss
from rpp.tuning.module import RankingAdapter

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
SAME = 1e-3
HALF = 0.3


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def llm_on(tiny_llm_folder):
    """Make a language model of the tiny folder on a device."""

    def make(device, **options):
        settings = {"dtype": "float32", "max_new_tokens": 12, "device": device} | options
        return HuggingFaceLanguageModel(str(tiny_llm_folder), **settings)

    return make


def prompts_of(n_users, n_sentences, n_films=8):
    """Prompts of a few users that differ at their ends alone."""
    return [
        f"You know films.\n{user} has seen\n"
        + "".join(f"{k}. Red Harbour {user}\n" for k in range(n_films))
        + f"Rank {number}."
        for user in range(n_users)
        for number in range(n_sentences)
    ]


def assert_close(rows, others, bound):
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, abs=bound)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
class TestOnGPU(LanguageModelContract):
    @pytest.fixture
    def llm(self, llm_on, temperature):
        return llm_on("cuda", temperature=temperature, top_p=0.9, seed=3)


def test_batches_and_trees_change_nothing(llm_on, device):
    prompts, options = prompts_of(2, 3), [LETTERS[:4]] * 6
    shared, alone = llm_on(device), llm_on(device, share_prefixes=False)
    shared.decoder.pair_cost = 0.0  # on a network this small attention would outweigh the gain
    expected = [alone.score([p], [o])[0] for p, o in zip(prompts, options, strict=True)]
    assert_close(alone.score(prompts, options), expected, SAME)
    assert_close(shared.score(prompts, options), expected, SAME)
    replies = [alone.generate([prompt])[0] for prompt in prompts]
    assert alone.generate(prompts) == shared.generate(prompts) == replies
    orders = [
        alone.generate_permutation([p], [o])[0] for p, o in zip(prompts, options, strict=True)
    ]
    assert alone.generate_permutation(prompts, options) == orders
    assert shared.generate_permutation(prompts, options) == orders


def test_a_device_scores_like_the_cpu_and_bfloat16_nearly_so(llm_on, device):
    expected = llm_on("cpu").score(PROMPTS, OPTIONS)
    assert_close(llm_on(device).score(PROMPTS, OPTIONS), expected, SAME)
    halved = llm_on(device, dtype="bfloat16")
    assert next(halved.network.parameters()).dtype == torch.bfloat16
    assert_close(halved.score(PROMPTS, OPTIONS), expected, HALF)


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
def test_the_same_seeds_give_the_same_replies(llm_on, device, temperature):
    first, second = (llm_on(device, temperature=temperature, seed=5) for _ in range(2))
    assert first.generate(PROMPTS) == second.generate(PROMPTS)
    assert first.score(PROMPTS, OPTIONS) == second.score(PROMPTS, OPTIONS)


def test_weights_are_freed_by_close(tmp_path, device, llm_on):
    warm = llm_on(device)  # what a device's libraries keep for themselves
    warm.generate(PROMPTS)
    warm.score(PROMPTS, OPTIONS)
    warm.close()
    llm = HuggingFaceLanguageModel(
        str(save_llm(tmp_path, width=256)), dtype="float32", device=device, max_new_tokens=4
    )
    before = allocated(device)
    llm.generate(PROMPTS)
    llm.score(PROMPTS, OPTIONS)
    network = weakref.ref(llm.network)
    size = sum(weight.nbytes for weight in llm.network.parameters())
    if device == "cuda":
        assert allocated(device) >= before + size
    llm.close()
    gc.collect()
    assert network() is None
    assert allocated(device) < before + 0.1 * size


def allocated(device):
    gc.collect()
    return torch.cuda.memory_allocated() if device == "cuda" else 0


@pytest.fixture
def little_memory():
    """Let PyTorch have only so many bytes of the GPU more than it has now."""

    def limit(n_bytes):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved() + n_bytes
        torch.cuda.set_per_process_memory_fraction(allowed / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
def test_a_batch_that_a_gpu_has_no_room_for_is_halved(llm_on, little_memory, monkeypatch):
    """The allocator's own error, not a made-up one; the estimate is told of too much memory."""
    halves, halved = Batch.halves, []
    monkeypatch.setattr(Batch, "halves", lambda batch: halved.append(1) or halves(batch))
    prompts, options = prompts_of(96, 1, n_films=100), [OPTIONS[2]] * 96
    llm = llm_on("cuda", share_prefixes=False)
    expected = llm.score(prompts, options)
    assert not halved
    llm.place(torch.device("cuda"), memory_gb=1000.0)
    little_memory(256 * 2**20)
    found = llm.score(prompts, options)
    assert halved
    assert all(isinstance(row, list) for row in found)
    assert_close(found, expected, SAME)


@pytest.fixture(params=[("gloo", "cpu"), pytest.param(("nccl", "cuda"), marks=GPU)], ids=str)
def one_process(request, tmp_path, monkeypatch):
    """The device of a process that talks to itself through a backend."""
    backend, device = request.param
    distributed.init_process_group(
        backend, init_method=f"file://{tmp_path}/store", world_size=1, rank=0
    )
    monkeypatch.setattr(processes, "is_single_process", lambda: False)  # talk all the same
    yield device
    distributed.destroy_process_group()


def test_a_process_alone_gathers_what_it_gave(one_process):
    values = torch.tensor([1.0, 2.0, 4.0], device=one_process)
    assert processes.all_reduce_sum(values).tolist() == [1, 2, 4]
    assert processes.all_reduce_mean(values, 3).tolist() == [1, 2, 4]
    assert processes.gather_rows(torch.tensor([[0.5], [0.25]])).tolist() == [[0.5], [0.25]]
    assert processes.gather({"user": ["ü"]}) == [{"user": ["ü"]}]
    assert processes.ask_together(lambda: 3) == 3
    weight = torch.nn.Parameter(torch.zeros(3, device=one_process))
    weight.grad = values.clone()
    processes.average_gradients([weight], 2)
    assert weight.grad.tolist() == [1, 2, 4]


class Devices(Callback):
    """The kinds of device that the policy's weights and the language model's were on."""

    def __init__(self, llm):
        self.llm = llm
        self.seen = set()

    def on_train_epoch_end(self, trainer, pl_module):
        weights = [*pl_module.parameters(), *self.llm.network.parameters()]
        self.seen |= {weight.device.type for weight in weights}


def run(device, folder, llm_on, **options):
    """A trainer with the tiny language model, and the devices it has used."""
    seed_everything(0, verbose=False)
    llm = llm_on("auto")
    environment = RewardEnvironment(llm, "first_token", cache_dir=None)
    devices = Devices(llm)
    made = Trainer(
        default_root_dir=folder, accelerator="gpu" if device == "cuda" else "cpu", devices=1,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[environment, devices, ModelCheckpoint(folder, "last")],
        **options,
    )  # fmt: skip
    return made, devices


def policy(encoder):
    return RPP(patterns=PATTERNS, prompt_encoder=str(encoder), n_steps=2, n_static_prompts=2)


def users():
    return MadeUpUsers(n_train=8, n_validation=4, n_test=4, batch_size=4)


@pytest.fixture
def own_environment():
    """What Lightning leaves in the environment, and its process group, do not outlive the test."""
    with mock.patch.dict(os.environ):
        yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.usefixtures("own_environment")
@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_fit_test_and_resume(tmp_path, device, llm_on, tiny_bert_folder, strategy):
    """Two epochs at once end with the weights of one epoch and another."""
    options = {"strategy": strategy}
    whole, halves = policy(tiny_bert_folder), policy(tiny_bert_folder)
    made, devices = run(device, tmp_path / "whole", llm_on, max_epochs=2, **options)
    made.fit(whole, users())
    assert devices.seen == {device}
    made.test(whole, users(), verbose=False)
    assert len(whole.test_results.ranks["RPP"]) == 4
    run(device, tmp_path / "half", llm_on, max_epochs=1, **options)[0].fit(halves, users())
    resumed = policy(tiny_bert_folder)
    again, _ = run(device, tmp_path / "half", llm_on, max_epochs=2, **options)
    again.fit(resumed, users(), ckpt_path=tmp_path / "half" / "last.ckpt", weights_only=True)
    assert_same_weights(resumed, whole, rtol=1e-4, atol=1e-6)


def test_the_same_seeds_learn_the_same_weights(tmp_path, device, llm_on, tiny_bert_folder):
    first, second = policy(tiny_bert_folder), policy(tiny_bert_folder)
    for name, made in (("a", first), ("b", second)):
        run(device, tmp_path / name, llm_on, max_epochs=1)[0].fit(made, users())
    assert_same_weights(first, second, rtol=0, atol=0)


def assert_same_weights(made: LightningModule, other: LightningModule, **bounds: float):
    expected = {name: weight.cpu() for name, weight in other.state_dict().items()}
    found = {name: weight.cpu() for name, weight in made.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, **bounds, msg=name)


@PEFT
@pytest.mark.parametrize("precision", [None, "4bit", "8bit"])
def test_an_adapter_is_tuned_and_used(device, wide_llm_folder, tmp_path, precision):
    """Gradients reach the adapter alone, also through quantised weights; it is loaded again."""
    if precision is not None:
        pytest.importorskip("bitsandbytes")
    settings = {"dtype": "float32", "device": device, "quantization": precision}
    llm = HuggingFaceLanguageModel(str(wide_llm_folder), **settings)
    made = RankingAdapter(llm, str(tmp_path / "unused"), rank=8, lr=0.02)
    kind = "gpu" if device == "cuda" else "cpu"
    made.trainer = Trainer(accelerator=kind, devices=1, logger=False, enable_checkpointing=False)
    made.configure_model()
    trained = [p for p in made.network.parameters() if p.requires_grad]
    assert {weight.device.type for weight in trained} == {device}
    optimizer = torch.optim.AdamW(trained, 0.02)
    encoded = [encode(llm, draw(seed), 1024) for seed in (0, 1)]
    losses = []
    for _ in range(8):
        loss = likelihood_loss(llm, encoded, torch.device(device))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5
    made.network.save_pretrained(tmp_path / "adapter")
    made.network.eval()
    theirs = llm.score(["Rank"], [LETTERS[:4]])
    loaded = HuggingFaceLanguageModel(
        str(wide_llm_folder), **settings, adapter=str(tmp_path / "adapter")
    )
    assert_close(loaded.score(["Rank"], [LETTERS[:4]]), theirs, 0.05)
