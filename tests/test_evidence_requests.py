"""Evidence at request time: from a checkpoint alone, for users and items of any kind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from evidence_setup import AsTold, AtRandom, Slow
from patterns_setup import MINIMAL
from pipeline import trainer
from serving_setup import fit

import rpp
from rpp.baselines import carried
from rpp.baselines.evidence import RecommenderEvidence, read_fitting_data
from rpp.callbacks.environment import RewardEnvironment
from rpp.data.datamodule import EpisodeDataModule
from rpp.data.lightgcn import LightGCNSettings
from rpp.learners.logged import RewardModelLearner
from rpp.prompts.evidence import EvidencePattern, EvidenceSource, evidence_sentences
from rpp.serve import ServerSettings, make_server
from rpp.serving.worker import Job
from rpp.types import UNKNOWN, InputError, Item, Request

PATTERNS = yaml.safe_load(
    MINIMAL
    + """
selection: [recent, similar]
evidence:
  sources:
    EASE:
      sentence: "Taste: {titles}."
      class_path: rpp.baselines.neighbours.EASE
      init_args: {regularisations: [5.0], lengths: [1, 0]}
    near:
      sentence: "Near: {titles}."
      class_path: rpp.baselines.neighbours.ItemKNN
      init_args: {lengths: [2, 5]}
    vectors: {sentence: "Like: {titles}.", class_path: rpp.baselines.factorisation.LightGCN}
    slow: {sentence: "Many: {titles}.", class_path: evidence_setup.Slow}
  options: [{EASE: 1}, {near: 2, vectors: 1}, {slow: 3, EASE: 2}]
"""
)


def by_evidence(**options):
    llm = AsTold()
    return RewardEnvironment(llm, "likelihood", show_candidates=False, cache_dir=None, **options)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, prepared_folder, custom_csv):
    """A policy, what it predicts, and who was asked; its data are gone."""
    folder = tmp_path_factory.mktemp("evidence")
    shutil.copytree(prepared_folder, folder / "data" / "custom")
    users = EpisodeDataModule(
        "custom", str(folder / "data"), custom=custom_csv.files, n_train_users=40,
        n_validation_users=20, n_test_users=20, lightgcn=LightGCNSettings(dim=8, n_epochs=1),
    )  # fmt: skip
    learner = RewardModelLearner(patterns=PATTERNS, history_lengths=[1, 4], n_static_prompts=1)
    path = fit(learner, folder / "run", by_evidence(seed=3), users)
    run = trainer(folder, by_evidence(seed=3))
    rows = [row for part in run.predict(learner, users) for row in part]
    data = read_fitting_data(users.folder)
    episodes, item_ids = users.episodes("test"), users.directory.item_ids
    queries = [
        rpp.Query(*([item_ids[i.index] for i in each] for each in (e.history, e.candidates)))
        for e in episodes
    ]
    queries = [replace(q, user=e.user_id) for q, e in zip(queries, episodes, strict=True)]
    shutil.copytree(users.folder / "baselines", folder / "baselines")
    shutil.rmtree(folder / "data")
    return SimpleNamespace(path=path, rows=rows, queries=queries, data=data, episodes=episodes)


@pytest.fixture(scope="module")
def personaliser(fitted, tmp_path_factory):
    """The policy, loaded elsewhere."""
    elsewhere = shutil.copy(fitted.path, tmp_path_factory.mktemp("elsewhere"))
    with rpp.Personaliser.load(elsewhere, by_evidence()) as loaded:
        yield loaded


def told(prompt):
    """What a prompt says of the candidates."""
    return prompt.patterns["evidence"].sentence


def test_it_names_what_the_fitted_policy_names(fitted, personaliser):
    """Settings chosen on spare users included, whatever the seed of the environment given."""
    found = personaliser.rank_many(fitted.queries)
    assert [each.prompt.text for each in found] == [row["prompt"] for row in fitted.rows]
    assert [[i.id for i in each.ranking] for each in found] == [r["items"] for r in fitted.rows]
    for each, row in zip(found, fitted.rows, strict=True):
        chosen = each.prompt.patterns["evidence"]
        assert chosen.sentence == row["sentences"]["evidence"]
        assert chosen.sentence.replace(". ", ".\n") in each.prompt.text
        assert each.ranking[0].title in chosen.sentence  # the model believes it
        assert [option.text for option in chosen.options] == [
            "EASE top 1", "near top 2, vectors top 1", "slow top 3, EASE top 2",
        ]  # fmt: skip


def test_what_recommenders_are_fitted_to_comes_back_as_it_was(fitted, personaliser):
    data, again = fitted.data, personaliser.environment.evidence.data
    assert (again.users == data.users).all()
    assert (again.items == data.items).all()
    assert (again.n_users, again.titles, again.fingerprint) == (
        data.n_users, data.titles, data.fingerprint,
    )  # fmt: skip
    assert again.validation == data.validation
    content = torch.load(fitted.path, weights_only=True)
    assert personaliser.environment.evidence.fingerprint == content["environment"]["evidence"]
    sizes = [content[carried.EVIDENCE][name].nbytes for name in carried.TENSORS]
    assert sum(sizes) == 4 * (len(data.items) + data.n_users + 11 * len(data.validation))


def test_a_stranger_is_known_by_the_history(fitted, personaliser):
    """With a name that the policy does not know, or none."""
    evidence = personaliser.environment.evidence
    orders = []
    for name in ("as it is", "nobody", None):
        queries = fitted.queries
        if name != "as it is":
            queries = [replace(query, user=name) for query in queries]
        assert all(map(told, personaliser.prompt_many(queries)))
        requests = [personaliser.understand(query).request for query in queries]
        orders.append(evidence.orders("EASE", requests))
    assert orders[0] == orders[1] == orders[2]
    assert len({order[0] for order in orders[0]}) > 3


def test_neither_the_displayed_order_nor_other_users_matter(fitted, personaliser):
    """Lists of different length, one of them turned round."""
    lengths = [2, 10, 3, 10, 7]
    few = [
        replace(query, candidates=query.candidates[:n])
        for query, n in zip(fitted.queries, lengths, strict=False)
    ]
    turned = [replace(query, candidates=query.candidates[::-1]) for query in few]
    together = personaliser.rank_many([*few, *turned])
    for query, one, other in zip(few, together[:5], together[5:], strict=True):
        (alone,) = personaliser.rank_many([query])
        assert one.prompt.text == other.prompt.text == alone.prompt.text
        assert [i.title for i in one.ranking] == [i.title for i in other.ranking]
    assert together[0].ranking[0].title in told(together[0].prompt)


def test_unknown_items_are_never_named_and_change_nothing(fitted, personaliser):
    query = fitted.queries[0]
    new = ["A film from tomorrow", {"id": "x", "title": "Another one"}]
    mixed = replace(
        query, history=[new[0], *query.history, new[1]], candidates=[*new, *query.candidates]
    )
    made = personaliser.prompt(mixed.history, mixed.candidates, mixed.user)
    assert told(made) == fitted.rows[0]["sentences"]["evidence"]
    assert len(made.unknown) == 2
    (found,) = personaliser.rank_many([mixed])
    assert len(found.ranking) == 12


@pytest.mark.parametrize(
    ("history", "candidates"),
    [
        (["i1", "i2"], ["New one", "New two"]),
        (["New one"], ["i3", "i4"]),
        ([], ["i3", "i4"]),
    ],
    ids=["no candidate known", "no past item known", "no history"],
)
def test_without_anything_known_no_sentence_is_said(personaliser, history, candidates):
    """The option is still chosen, and described."""
    found = personaliser.rank(history, candidates)
    chosen = found.prompt.patterns["evidence"]
    assert chosen.sentence == ""
    assert "top" in chosen.text
    assert not any(word in found.prompt.text for word in ("Taste:", "Near:", "Like:", "Many:"))
    assert found.status == "valid"


def test_more_are_asked_for_than_are_known(personaliser):
    """An option that names three of one known candidate names it."""
    learner, evidence = personaliser.learner, personaliser.environment.evidence
    request = Request(UNKNOWN, (Item(1, "a"),), (Item(UNKNOWN, "x"), Item(4, "y"), Item(-1, "z")))
    orders = {name: evidence.orders(name, [request])[0] for name in ("EASE", "slow")}
    assert orders == {"EASE": (1,), "slow": (1,)}
    said = evidence_sentences(learner.patterns.evidence, [2], [request], evidence)
    assert said == [["Many: y.", "Taste: y."]]


def test_unknown_items_are_the_least_similar(personaliser):
    evidence = personaliser.environment.evidence
    past = (Item(3, "a"), Item(UNKNOWN, "new"), Item(5, "b"))
    shown = (Item(UNKNOWN, "newer"), Item(9, "c"), Item(UNKNOWN, "newest"))
    (first, new, last) = evidence.similarities(Request(UNKNOWN, past, shown))
    assert new == -1
    vectors = personaliser.learner.vectors.items
    for found, row in ((first, 3), (last, 5)):
        expected = torch.cosine_similarity(vectors[row], vectors[9], dim=0)
        assert found == pytest.approx(float(expected), abs=1e-6)
    # nothing can be told: of equally similar items the later ones are shown
    assert len(set(evidence.similarities(Request(UNKNOWN, past, shown[::2])))) == 1


def test_the_worker_of_a_server_has_it(fitted, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    server = make_server(fitted.path, by_evidence(), ServerSettings())
    (api,) = server.litapi_connector
    api.setup("cpu")
    (found,) = api.predict([Job(fitted.queries[1])])
    api.personaliser.close()
    assert found.prompt.text == fitted.rows[1]["prompt"]


# What takes long, and what is not as it was


def test_what_was_learnt_is_kept_beside_the_checkpoint(fitted, tmp_path, monkeypatch):
    path = shutil.copy(fitted.path, tmp_path)
    monkeypatch.setattr(Slow, "n_made", 0)
    for _ in range(2):
        rpp.Personaliser.load(path, by_evidence()).close()
    assert Slow.n_made == 1
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    rpp.Personaliser.load(path, by_evidence()).close()
    assert Slow.n_made == 1  # it is read all the same
    bare = shutil.copy(fitted.path, tmp_path / "read-only.ckpt")
    shutil.rmtree(tmp_path / "baselines")
    rpp.Personaliser.load(bare, by_evidence()).close()
    assert Slow.n_made == 2
    assert not (tmp_path / "baselines").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Slow, "n_made", 0)
    shutil.copytree(fitted.path.parents[1] / "baselines", tmp_path / "baselines")
    rpp.Personaliser.load(path, by_evidence()).close()
    assert Slow.n_made == 0  # as the fit has left it


def changed(content):
    content[carried.EVIDENCE]["items"][7] += 1


def cut(content):
    del content[carried.EVIDENCE]["spare_users"]


def missing(content):
    del content[carried.EVIDENCE]


def other(content):
    content[carried.EVIDENCE]["seed"] += 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (changed, "is damaged in the checkpoint: take another copy of it, or fit again"),
        (cut, "is damaged in the checkpoint"),
        (missing, "does not hold what they are fitted to.*: fit again"),
        (other, "are others than at its fit: restore their classes"),
    ],
)
def test_what_is_not_as_at_the_fit_is_told_with_the_remedy(fitted, tmp_path, spoil, words):
    content = torch.load(fitted.path, weights_only=True)
    spoil(content)
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=words):
        rpp.Personaliser.load(tmp_path, by_evidence())


def test_what_no_option_names_is_not_fitted(fitted, monkeypatch):
    """A policy that does not learn the pattern has all its sources, and one option."""
    monkeypatch.setattr(Slow, "n_made", 0)
    sources = {"slow": EvidenceSource("{titles}", "evidence_setup.Slow")}
    data = replace(fitted.data, keeps=False)
    RecommenderEvidence(EvidencePattern(sources, ({},)), data).fit()
    assert Slow.n_made == 0
    RecommenderEvidence(EvidencePattern(sources, ({}, {"slow": 1})), data).fit()
    assert Slow.n_made == 1


def test_a_recommender_that_keeps_something_in_itself_is_still_the_same(fitted, monkeypatch):
    """What it has learnt is no argument of it."""
    source = EvidenceSource("{titles}", "evidence_setup.AtRandom")
    made = RecommenderEvidence(EvidencePattern({"x": source}, ({"x": 1},)), fitted.data)
    monkeypatch.setattr(
        AtRandom, "learn", lambda self, data: setattr(self, "known", np.unique(data.items)) or len
    )
    made.fit()
    again = carried.unpack(
        carried.pack(made),
        EvidencePattern({"x": source}, ({"x": 1},)),
        fitted.data.titles,
        None,
        fitted.path.parent,
    )
    assert again.fingerprint == made.fingerprint


def test_sentences_hold_the_titles_as_the_catalogue_has_them(fitted, personaliser):
    """Not as the caller has written them."""
    titles = [item.title for item in fitted.episodes[2].candidates]
    query = replace(fitted.queries[2], candidates=[title.upper() for title in titles])
    made = personaliser.prompt(query.history, query.candidates, query.user)
    assert told(made) == fitted.rows[2]["sentences"]["evidence"]
