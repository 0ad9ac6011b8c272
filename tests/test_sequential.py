"""Sequence models: masking, windows, losses, text representations, published weights."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from rpp.baselines.sasrec import SASRec, SASRecModel
from rpp.baselines.sequential import SequenceEncoder, seeded, similarity
from rpp.baselines.unisrec import Adaptor, UniSRec, UniSRecModel
from rpp.baselines.vqrec import VQRec, VQRecModel, assign_codes, fit_quantiser
from rpp.baselines.weights import read_weights, translate_encoder
from rpp.baselines.windows import PAD, WindowBatches, cut_windows
from rpp.data.episodes import load_episodes
from rpp.encoders import PromptEncoder
from rpp.types import InputError


def encoder(dim=8, seed=0, **options):
    with seeded(seed):
        made = SequenceEncoder(dim, inner_dim=16, **options)
        for weights in made.parameters():
            torch.nn.init.normal_(weights, std=0.5)  # far from uniform, so that mistakes show
    return made.eval()


def test_a_later_item_cannot_change_an_earlier_prediction():
    net = encoder()
    vectors = torch.randn(2, 6, 8)
    changed = vectors.clone()
    changed[:, 4] = torch.randn(2, 8)
    before, after = net(vectors), net(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert ((after - before)[:, 4:].abs().amax(dim=2) > 1e-3).all()


def test_filling_at_the_end_changes_nothing():
    net = encoder()
    vectors = torch.randn(2, 6, 8)
    torch.testing.assert_close(net(vectors)[:, :3], net(vectors[:, :3]))


def test_order_of_the_history_matters():
    net = encoder()
    vectors = torch.randn(1, 4, 8)
    swapped = vectors[:, [1, 0, 2, 3]]
    assert (net(swapped)[:, 3] - net(vectors)[:, 3]).abs().max() > 1e-3


@torch.no_grad()
def test_scores_read_the_last_items_of_a_history(tiny_episodes):
    net = encoder(max_length=5)
    model = SASRecModel(240, net).eval()
    scores = model.score(tiny_episodes)
    episode = tiny_episodes[5]  # 9 past items
    items = torch.tensor([[item.index for item in episode.history[-5:]]])
    hidden = net(model.items(items))[0, -1]
    for k, item in enumerate(episode.candidates):
        assert scores[5, k].item() == pytest.approx(
            float(hidden @ model.items.weight[item.index]), abs=1e-5
        )


def test_cosine_is_taken_over_the_width_of_a_vector():
    """Published code normalised candidates over the wrong axis of (users, candidates, width)."""
    hidden = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
    vectors = torch.tensor([[[6.0, 8.0], [4.0, -3.0]], [[0.0, 2.0], [5.0, 5.0]]])
    expected = torch.tensor([[[1.0, 0.0]], [[0.0, math.sqrt(0.5)]]]) / 0.07
    torch.testing.assert_close(similarity(hidden, vectors, 0.07), expected)
    torch.testing.assert_close(similarity(hidden, 9 * vectors, 0.07), expected)
    torch.testing.assert_close(
        similarity(hidden, vectors, None), torch.tensor([[[50.0, 0.0]], [[0.0, 5.0]]])
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["UniSRec", "VQ-Rec"])
def test_text_models_score_by_cosine_of_each_candidate(kind, tiny_episodes):
    generator = torch.Generator().manual_seed(0)
    encodings = torch.randn(240, 8, generator=generator)
    if kind == "UniSRec":
        model = UniSRecModel(encoder(), Adaptor(8, 8, 3), 1e-3, 0.07)
    else:
        model = VQRecModel(encoder(), 8, 4, 16, 0.75, 1e-3, 0.07)
        model.rotation, model.centroids = fit_quantiser(encodings, 4, 16)
    model.eval()
    model.catalogue = model.describe(encodings)
    scores = model.score(tiny_episodes)
    for row, episode in zip(scores, tiny_episodes, strict=True):
        history = torch.tensor([[item.index for item in episode.history]])
        hidden = model.encoder(model.vectors(history))[0, -1]
        for score, item in zip(row, episode.candidates, strict=True):
            vector = model.vectors(torch.tensor(item.index))
            cosine = functional.cosine_similarity(hidden, vector, dim=0)
            assert score.item() == pytest.approx(cosine.item() / 0.07, abs=1e-3)


def test_loss_is_the_mean_over_real_predictions_only():
    model = SASRecModel(6, encoder()).eval()
    model.log = lambda *_, **__: None
    batch = torch.tensor([[0, 1, 2], [3, 4, PAD]])
    loss = model.training_step(batch, 0)
    losses = []
    for read, target in (([0], 1), ([0, 1], 2), ([3], 4)):
        hidden = model.encoder(model.items(torch.tensor([read])))[0, -1]
        losses.append(functional.cross_entropy(hidden @ model.items.weight.T, torch.tensor(target)))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_sampled_pool_holds_every_target_once():
    model = SASRecModel(50, encoder(), n_negatives=5)
    targets = torch.tensor([7, 3, 7, 40])
    vectors, places = model.pool(targets)
    assert len(vectors) <= 4 + 5
    torch.testing.assert_close(vectors[places], model.items(targets))
    assert places[0] == places[2]


def test_windows_predict_everything_but_the_first_once():
    users = np.repeat([0, 1, 2, 4], [13, 2, 1, 5])
    for seed in range(20):
        begins, lengths = cut_windows(users, 4, np.random.default_rng(seed))
        assert lengths.min() >= 2
        assert lengths.max() <= 5
        predicted = []
        for begin, length in zip(begins, lengths, strict=True):
            window = np.arange(begin, begin + length)
            assert len(set(users[window])) == 1
            predicted += window[1:].tolist()
        firsts = {0, 13, 15, 16}
        assert sorted(predicted) == [k for k in range(21) if k not in firsts]
        assert 5 in lengths[users[begins] == 4]  # a sequence that fits is not cut


def test_sequences_of_one_item_teach_nothing():
    with pytest.raises(InputError, match="no user has two training interactions"):
        WindowBatches([(np.arange(5), np.arange(5))])


def test_cuts_differ_from_one_epoch_to_the_next():
    rng = np.random.default_rng(0)
    users = np.zeros(100, dtype=np.int64)
    assert len({tuple(cut_windows(users, 10, rng)[0]) for _ in range(10)}) > 1


def test_batches_hold_everything_and_repeat_themselves():
    rng = np.random.default_rng(1)
    users = np.sort(rng.integers(30, size=400))
    items = rng.integers(1000, size=400)
    runs = [list(WindowBatches([(users, items)], 10, 64, seed=5)) for _ in "12"]
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    batches = WindowBatches([(users, items)], 10, 64, seed=5)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == len(batches) == round(370 / 64)
    assert not all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    for epoch in (first, second):
        targets = sorted(t for batch in epoch for t in batch[:, 1:].flatten().tolist() if t != PAD)
        assert targets == sorted(items[np.flatnonzero(np.diff(users, prepend=-1) == 0)].tolist())


def test_a_large_source_does_not_drown_a_small_one():
    large = np.repeat(np.arange(300), 5), np.arange(1500)
    small = np.repeat(np.arange(20), 5), np.arange(5000, 5100)
    batches = WindowBatches([large, small], 10, 64, max_windows=30)
    seen = torch.cat([batch.flatten() for batch in batches])
    assert (seen >= 5000).sum() == 100
    assert ((seen >= 0) & (seen < 5000)).sum() == 150


def test_adaptor_by_hand():
    adaptor = Adaptor(2, 3, 2).eval()
    with torch.no_grad():
        adaptor.shifts.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        adaptor.weights.copy_(torch.arange(12.0).view(2, 2, 3))
        adaptor.gate.copy_(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    x = torch.tensor([[1.0, 1.0]])
    first, second = (
        torch.tensor([3.0, 4.0, 5.0]),
        torch.tensor([6.0, 7.0, 8.0]) - torch.tensor([9.0, 10.0, 11.0]),
    )  # (0, 1) and (1, -1) through rows of the two weights
    torch.testing.assert_close(adaptor(x)[0], 0.25 * first + 0.75 * second)


def test_codes_by_hand():
    rotation = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # swaps the two parts
    centroids = torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]])
    encodings = torch.tensor([[0.9, 7.0], [-3.0, 1.0]])
    assert assign_codes(encodings, rotation, centroids).tolist() == [[1, 1], [0, 0]]


def test_quantiser_finds_clusters_and_repeats_itself():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 8, generator=generator)
    encodings = centres[torch.arange(240) % 12] + 0.05 * torch.randn(240, 8, generator=generator)
    rotation, centroids = fit_quantiser(encodings, 2, 16)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(8), atol=1e-4, rtol=0)
    codes = assign_codes(encodings, rotation, centroids)
    meant = torch.cat([centroids[k, codes[:, k]] for k in range(2)], dim=1) @ rotation
    assert (meant - encodings).square().mean() < 0.02 * encodings.var()
    again = fit_quantiser(encodings, 2, 16)
    assert torch.equal(again[0], rotation)
    assert torch.equal(again[1], centroids)


@pytest.mark.parametrize(("n_items", "n_parts", "n_codes"), [(8, 2, 16), (40, 3, 16), (40, 2, 12)])
def test_quantiser_refuses_what_cannot_be_cut(n_items, n_parts, n_codes):
    with pytest.raises(InputError, match="cannot be cut"):
        fit_quantiser(torch.randn(n_items, 8), n_parts, n_codes)


def test_an_item_is_the_mean_of_its_codes_vectors_and_fakes_are_negatives():
    model = VQRecModel(encoder(), 8, 2, 4, 1.0, 1e-3, 0.07)
    codes = torch.tensor([[1, 3], [0, 2]])
    table = model.codes.weight.view(2, 4, 8)
    torch.testing.assert_close(model.represent(codes)[0], (table[0, 1] + table[1, 3]) / 2)
    model.catalogue = codes
    vectors, places = model.pool(torch.tensor([1, 0, 1]))
    assert vectors.shape == (4, 8)
    assert places.tolist() == [1, 0, 1]
    torch.testing.assert_close(vectors[:2], model.represent(codes))


def test_pooling_of_the_text_encoder(tiny_bert_folder):
    first = PromptEncoder(str(tiny_bert_folder), pooling="cls")
    tokens = first.tokenizer(["Red Harbour"], return_tensors="pt")
    hidden = first.network(**tokens).last_hidden_state[0]
    torch.testing.assert_close(first(["Red Harbour"])[0], hidden[0])
    mean = PromptEncoder(str(tiny_bert_folder))
    torch.testing.assert_close(mean(["Red Harbour"])[0], hidden.mean(dim=0))


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
