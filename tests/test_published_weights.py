"""Weights of sequence models: published ones mean the same here, and what is refused."""

import json
import math
import shutil

import pytest
import torch
from torch.nn import functional

from rpp.baselines.sasrec import SASRec
from rpp.baselines.sequential import SequenceEncoder
from rpp.baselines.unisrec import UniSRec
from rpp.baselines.vqrec import VQRec
from rpp.baselines.weights import read_weights, translate_encoder
from rpp.data.episodes import load_episodes
from rpp.encoders import PromptEncoder
from rpp.types import InputError


def published_weights(dim, inner, n_layers, extra):
    """Random weights under the names of the published files."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    weights = {"position_embedding.weight": draw(50, dim)}
    weights |= {f"LayerNorm.{part}": draw(dim) for part in ("weight", "bias")}
    for k in range(n_layers):
        layer = f"trm_encoder.layer.{k}"
        for name in ("query", "key", "value", "dense"):
            weights[f"{layer}.multi_head_attention.{name}.weight"] = draw(dim, dim)
            weights[f"{layer}.multi_head_attention.{name}.bias"] = draw(dim)
        for norm in ("multi_head_attention", "feed_forward"):
            weights[f"{layer}.{norm}.LayerNorm.weight"] = draw(dim)
            weights[f"{layer}.{norm}.LayerNorm.bias"] = draw(dim)
        weights[f"{layer}.feed_forward.dense_1.weight"] = draw(inner, dim)
        weights[f"{layer}.feed_forward.dense_1.bias"] = draw(inner)
        weights[f"{layer}.feed_forward.dense_2.weight"] = draw(dim, inner)
        weights[f"{layer}.feed_forward.dense_2.bias"] = draw(dim)
    return weights | {name: draw(*shape) for name, shape in extra.items()}


def recbole_encoder(weights, vectors, n_layers, n_heads):
    """The published forward pass, written from its definition."""

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12
        )

    length, dim = vectors.shape
    x = norm(vectors + weights["position_embedding.weight"][:length], "LayerNorm")
    for k in range(n_layers):
        at, ff = (
            f"trm_encoder.layer.{k}.{part}" for part in ("multi_head_attention", "feed_forward")
        )
        q, key, v = (
            linear(x, f"{at}.{kind}").view(length, n_heads, -1).transpose(0, 1)
            for kind in ("query", "key", "value")
        )
        logits = q @ key.mT / math.sqrt(dim / n_heads)
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(length, dim)
        x = norm(linear(mixed, f"{at}.dense") + x, f"{at}.LayerNorm")
        inner = functional.gelu(linear(x, f"{ff}.dense_1"))
        x = norm(linear(inner, f"{ff}.dense_2") + x, f"{ff}.LayerNorm")
    return x


def test_published_transformer_weights_mean_the_same_here():
    weights = published_weights(8, 16, 2, {})
    ours = translate_encoder(weights, 2)
    net = SequenceEncoder(8, inner_dim=16).eval()
    net.load_state_dict({name.removeprefix("encoder."): value for name, value in ours.items()})
    vectors = torch.randn(5, 8)
    expected = recbole_encoder(weights, vectors, 2, 2)
    torch.testing.assert_close(net(vectors[None])[0], expected, rtol=1e-4, atol=1e-4)


UNISREC = {
    **{f"moe_adaptor.experts.{k}.bias": (24,) for k in range(8)},
    **{f"moe_adaptor.experts.{k}.lin.weight": (8, 24) for k in range(8)},
    "moe_adaptor.w_gate": (24, 8),
    "moe_adaptor.w_noise": (24, 8),
}
VQREC = {"pq_code_embedding.weight": (4 * 17, 8), "trans_matrix": (4, 17, 17)}
SIZES = {"dim": 8, "inner_dim": 16, "pooling": "cls"}


@pytest.fixture
def folder(prepared_folder, tmp_path):
    return shutil.copytree(prepared_folder, tmp_path / "custom")


def test_published_weights_are_used(folder, tmp_path, tiny_bert_folder):
    episodes = load_episodes(folder, "test")
    weights = published_weights(8, 16, 2, UNISREC)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "UniSRec.pth")
    method = UniSRec(
        weights=str(tmp_path / "UniSRec.pth"), text_model=str(tiny_bert_folder), **SIZES
    )
    method.fit(folder)
    encode = PromptEncoder(str(tiny_bert_folder), pooling="cls")

    def item_vectors(items):
        x = encode([item.title for item in items])
        gates = (x @ weights["moe_adaptor.w_gate"]).softmax(-1)
        names = [f"moe_adaptor.experts.{k}" for k in range(8)]
        experts = [(x - weights[f"{n}.bias"]) @ weights[f"{n}.lin.weight"].T for n in names]
        return sum(gates[:, [k]] * expert for k, expert in enumerate(experts))

    hidden = recbole_encoder(weights, item_vectors(episodes[0].history), 2, 2)[-1]
    cosines = functional.cosine_similarity(item_vectors(episodes[0].candidates), hidden, dim=-1)
    torch.testing.assert_close(
        method.score(episodes[:1])[0].float() * 0.07, cosines, rtol=1e-3, atol=1e-3
    )


def test_published_code_vectors_are_used(folder, tmp_path, tiny_bert_folder):
    weights = published_weights(8, 16, 2, VQREC)
    torch.save(weights, tmp_path / "VQRec.pth")
    method = VQRec(
        n_parts=4, n_codes=16, weights=str(tmp_path / "VQRec.pth"),
        text_model=str(tiny_bert_folder), **SIZES,
    )  # fmt: skip
    ours = method.translate(weights)["codes.weight"].view(4, 16, 8)
    table = weights["pq_code_embedding.weight"]
    torch.testing.assert_close(ours[2, 5], table[2 * 17 + 1 + 5])
    method.fit(folder)
    assert method.score(load_episodes(folder, "test")).shape == (20, 10)


def test_own_weights_can_be_carried_to_another_folder(
    folder, prepared_folder, tmp_path, tiny_bert_folder
):
    source = shutil.copytree(prepared_folder, tmp_path / "source")
    options = {"text_model": str(tiny_bert_folder), "n_experts": 2, "dim": 8, "inner_dim": 16}
    first = UniSRec(sources=(str(source),), max_epochs=1, max_windows=50, **options)
    first.fit(folder)
    kept = shutil.copy(folder / "baselines" / "unisrec.safetensors", tmp_path / "mine.safetensors")
    second = UniSRec(weights=str(kept), **options)
    second.fit(folder)
    episodes = load_episodes(folder, "test")
    assert torch.equal(first.score(episodes), second.score(episodes))


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_files_of_weights_that_are_refused(tmp_path, capsys, folder, tiny_bert_folder):
    with pytest.raises(InputError, match="there is no file of weights"):
        read_weights(str(tmp_path / "absent.pth"))
    torch.save({"state_dict": {}, "config": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "number.pth")
    torch.save([1], tmp_path / "list.pth")
    for name in ("harmful.pth", "noise.pth", "noise.safetensors", "number.pth", "list.pth"):
        with pytest.raises(InputError, match="save its state_dict alone"):
            read_weights(str(tmp_path / name))
    assert capsys.readouterr().out == ""
    for content, message in (
        ({"position_embedding.weight": torch.zeros(50, 8)}, "lacks the weights"),
        ({"encoder.positions.weight": torch.zeros(50, 8)}, "do not fit the model"),
    ):
        torch.save(content, tmp_path / "part.pth")
        method = UniSRec(
            weights=str(tmp_path / "part.pth"), text_model=str(tiny_bert_folder), **SIZES
        )
        with pytest.raises(InputError, match=message):
            method.fit(folder)


def test_training_on_the_set_that_is_compared_on_is_refused(folder, tiny_bert_folder):
    method = UniSRec(sources=(str(folder),), text_model=str(tiny_bert_folder))
    with pytest.raises(InputError, match="take it out of sources"):
        method.fit(folder)


def test_the_same_set_in_another_folder_is_refused(folder, tiny_bert_folder, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(folder, tmp_path / name)
        path = tmp_path / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["settings"]["name"] = "games"
        path.write_text(json.dumps(summary))
    method = UniSRec(sources=(str(tmp_path / "one"),), text_model=str(tiny_bert_folder))
    with pytest.raises(InputError, match=r"other and cannot train on .*one, the same data set"):
        method.fit(tmp_path / "other")


def test_weights_that_are_no_numbers_are_refused(folder):
    with pytest.raises(InputError, match=r"learning rate 1e\+30: lower it"):
        SASRec(dim=8, n_layers=1, max_epochs=1, learning_rates=(1e30,)).fit(folder)
