r"""Losses of tuning: likelihood of the learnt tokens, and of the target among the candidates.

The listwise loss is

.. math:: -\log \frac{\exp(s_0 / \tau)}{\sum_k \exp(s_k / \tau)}, \quad
    s_k = \log p(\text{title}_k \mid \text{prompt})
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rpp.llms.huggingface import HuggingFaceLanguageModel
from rpp.llms.tree import Tree
from rpp.ranker import REPLY_START
from rpp.tuning.instructions import Instruction
from rpp.types import InputError

Encoded = tuple[list[int], list[bool]]
"""Tokens of prompt and reply, and which of them are in the loss."""


def check_losses(likelihood_weight: float, listwise_weight: float, temperature: float) -> None:
    """Refuse losses that teach nothing.

    Raises:
        InputError: If both weights are 0, one is negative, or the temperature is not above 0.
    """
    if min(likelihood_weight, listwise_weight) < 0 or likelihood_weight + listwise_weight == 0:
        raise InputError(
            f"likelihood_weight is {likelihood_weight:g} and listwise_weight"
            f" {listwise_weight:g}: one must be above 0 and none below"
        )
    if temperature <= 0:
        raise InputError(f"listwise_temperature is {temperature:g}: give more than 0")


def encode(llm: HuggingFaceLanguageModel, instruction: Instruction, max_tokens: int) -> Encoded:
    """Tokens of prompt and reply, and which of them are in the loss."""
    prompt = llm.prompt_tokenizer.render(instruction.prompt)
    text = prompt + instruction.output
    shift = prompt.index(instruction.prompt)
    spans = [(a + shift, b + shift) for a, b in instruction.prompt_spans]
    spans += [(a + len(prompt), b + len(prompt)) for a, b in instruction.output_spans]
    ids, starts = llm.prompt_tokenizer.encode_with_starts(text)
    learnt = [any(a <= start < b for a, b in spans) for start in starts]
    end = llm.tokenizer.eos_token_id
    if instruction.is_whole and end is not None:  # else the model would never stop
        ids.append(int(end))
        learnt.append(True)
    if not any(learnt[1:max_tokens]):
        raise InputError(
            f"an instruction of {len(ids)} tokens has nothing to be learnt among its first"
            f" {max_tokens}: raise model.max_tokens, or lower data.n_items"
        )
    return ids[:max_tokens], learnt[:max_tokens]


def likelihood_loss(
    llm: HuggingFaceLanguageModel, encoded: Sequence[Encoded], device: torch.device
) -> Tensor:
    """Mean negative log-likelihood of the tokens in the loss."""
    tokens = [torch.tensor(ids) for ids, _ in encoded]
    targets = [
        ids.where(torch.tensor(learnt), -100)
        for ids, (_, learnt) in zip(tokens, encoded, strict=True)
    ]
    ids = pad_sequence(tokens, True, llm.decoder.pad).to(device)
    labels = pad_sequence(targets, True, -100).to(device)
    # padding stands at the end, where a causal decoder's other tokens do not see it
    decoder = llm.network.get_decoder()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    chosen = wanted >= 0
    return functional.cross_entropy(llm.decoder.logits(hidden[chosen]), wanted[chosen])


def listwise_loss(
    llm: HuggingFaceLanguageModel, batch: Sequence[Instruction], temperature: float = 1.0
) -> Tensor:
    """Negative log-probability of the target, the first candidate, among all of them; the mean.

    Args:
        llm: The model.
        batch: ``B`` instructions: a tree each, one pass for all.
        temperature: ``tau``.
    """
    trees, wanted = zip(*(_candidate_tree(llm, each) for each in batch), strict=True)
    scores = llm.decoder.log_probs(trees, wanted).split([len(each) for each in wanted])
    return torch.stack([-(each / temperature).log_softmax(0)[0] for each in scores]).mean()


def _candidate_tree(
    llm: HuggingFaceLanguageModel, instruction: Instruction
) -> tuple[Tree, list[tuple[list[int], list[int]]]]:
    """The prompt with every candidate's title, and of each the nodes and tokens to be scored."""
    prompt_ids = llm.prompt_tokenizer.encode(instruction.prompt, REPLY_START)
    continuation_ids = [
        llm.prompt_tokenizer.continuation(f" {title}\n", after=REPLY_START[-1:])
        for title in instruction.candidates
    ]
    tree = Tree()
    for ids in continuation_ids:
        tree.add(prompt_ids + ids[:-1])
    wanted = [
        (path[len(prompt_ids) - 1 :], ids)
        for path, ids in zip(tree.paths, continuation_ids, strict=True)
    ]
    return tree, wanted
