"""Sequence models: masking, losses, text representations."""

import math

import pytest
import torch
from torch.nn import functional

from rpp.baselines.sasrec import SASRecModel
from rpp.baselines.sequential import SequenceEncoder, seeded, similarity
from rpp.baselines.unisrec import Adaptor, UniSRecModel
from rpp.baselines.vqrec import VQRecModel, assign_codes, fit_quantiser
from rpp.baselines.windows import PAD
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
