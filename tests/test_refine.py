"""RPP+: what the refiner is asked, which rewritings are refused, and what then is sent."""

from __future__ import annotations

import re

import pytest
import torch
from pipeline import MadeUpUsers, environment, module, trainer

from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.controls import copies_the_list
from rpp.prompts.compose import Display, compose
from rpp.prompts.patterns import load_patterns
from rpp.prompts.refine import INSTRUCTION, Refiner, clean, judge, refusal, request
from rpp.types import LanguageModelError

PATTERNS = load_patterns("conf/patterns/movies.yaml")
N_SENTENCES = 3 + 9 + 5

RANK = "Rank the {n_candidates} films by my taste."
PLACE = "Compare the {n_candidates} films with my taste and put the closest match first."
LETTERS = "Answer with the letters of the films, one on each line."
EXAMPLE = "Write every line of the ranking like this: x. film title"


@pytest.mark.parametrize(
    ("pattern", "sentence", "rewritten", "reason"),
    [
        ("role", "You know films.", "You are an expert on films.", ""),
        ("role", "You know films.", "", "nothing came back"),
        ("role", "You know films.", "You know films.", "it is the original"),
        ("role", "You know films.", "You know.\nFilms.", "it is more than one paragraph"),
        ("role", "You know films.", "1. You know.", "it looks like an entry of a list"),
        ("role", "You know films.", "A. You know.", "it looks like an entry of a list"),
        ("role", "You know films.", "- You know.", "it looks like an entry of a list"),
        ("role", "You know films.", "A fan of films.", ""),
        ("role", "1234567890", "x" * 30, ""),
        ("role", "1234567890", "x" * 31, "it is more than 3 times as long"),
        ("role", "You know films.", "You know {genre} films.", "its placeholders are not"),
        ("role", "You know films.", "You know }films.", "its placeholders are not"),
        ("role", "You know films.", "The sentence: know films!", "it talks about the rewriting"),
        ("role", "You know films.", "The new instruction is: know!", "it talks about the rewr"),
        ("role", "You know films.", "You answer promptly about films.", ""),
        ("role", "A prompt expert.", "You are an expert on prompts.", ""),
        ("reasoning", RANK, "By my taste, rank all {n_candidates} films.", ""),
        ("reasoning", RANK, "By my taste, rank all 10 films.", "its placeholders are not"),
        ("reasoning", RANK, "By my taste, rank all {n_candidate} films.", "its placeholders"),
        ("reasoning", RANK, "Sort all {n_candidates} films by my taste.", ""),
        ("reasoning", RANK, "Put all {n_candidates} films in order of taste.", ""),
        ("reasoning", RANK, "Describe the {n_candidates} films.", "it does not ask for a ranking"),
        (
            "reasoning",
            RANK,
            "In order to enjoy {n_candidates} films.",
            "it does not ask for a rank",
        ),
        ("reasoning", RANK, "Which of {n_candidates} films is best?", "it does not ask"),
        ("reasoning", PLACE, "Best of {n_candidates} films first, by taste.", ""),
        ("reasoning", PLACE, "Rank {n_candidates} films by similarity.", ""),
        ("reasoning", PLACE, "Compare {n_candidates} films.", "it does not ask for a ranking"),
        ("reasoning", "Ordne sie.", "Sortiere sie.", ""),
        ("format", "Write a numbered list.", "Give me one title a line.", ""),
        ("format", "Write a numbered list.", "Tell me a story.", "it does not ask for the form"),
        ("format", LETTERS, "Name each film by its letter, a line each.", ""),
        ("format", LETTERS, "List the titles, a line each.", "it does not ask for the form"),
        ("format", EXAMPLE, "Each line must look like this: x. film title", ""),
        ("format", EXAMPLE, "Rank the films, a line each.", "it does not ask for the form"),
        ("format", EXAMPLE, "Each line of the ranking: x. title", "it does not ask for the form"),
    ],
)
def test_what_is_refused_and_why(pattern, sentence, rewritten, reason):
    found = refusal(pattern, sentence, rewritten)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
    made = judge(pattern, sentence, rewritten)
    assert made.sent == (sentence if reason else rewritten)


@pytest.mark.parametrize(
    ("reply", "cleaned"),
    [
        ("  You know films.\n", "You know films."),
        ('"You know films."', "You know films."),
        ("“You know films.”", "You know films."),
        ("**You know films.**", "You know films."),
        ('Sure, here it is:\n\n"You know films."', "You know films."),
        ('"Heat" and "Ran" are films.', '"Heat" and "Ran" are films.'),
        ("Do this: rank them.", "Do this: rank them."),
        ("You know films.\n\nI made it shorter.", "You know films.\n\nI made it shorter."),
        ('"', '"'),
    ],
)
def test_cleaning(reply, cleaned):
    assert clean(reply) == cleaned


def test_the_refiner_is_asked_for_every_sentence_once_and_nothing_else():
    asked = []
    llm = ScriptedLanguageModel(reply=lambda prompt: asked.append(prompt) or "")
    cache = ReplyCache(None)
    for _ in range(2):  # a second refiner pays nothing
        refiner = Refiner(CachedLanguageModel(llm, cache), PATTERNS, "titles")
        for sentence in PATTERNS.reasoning:
            assert refiner(sentence) == sentence
        assert refiner.counts == {"refined": 0, "kept": N_SENTENCES}
    sentences = [*PATTERNS.role, *PATTERNS.reasoning, *(f.titles for f in PATTERNS.format)]
    assert sorted(asked) == sorted(INSTRUCTION.replace("{sentence}", s) for s in sentences)
    again = Refiner(CachedLanguageModel(llm, cache), PATTERNS, "titles", draw=1)
    again(PATTERNS.role[0])
    assert len(asked) == 2 * N_SENTENCES  # another draw is another request
    assert request(PATTERNS.role[0], 1) in asked
    assert again.fingerprint != refiner.fingerprint


def test_an_empty_sentence_stays_empty(tmp_path):
    text = "history_heading: H\ncandidates_heading: C\nrole: ['', R]\nhistory: {increments: [0]}\n"
    (tmp_path / "p.yaml").write_text(text + "reasoning: [Rank.]\nformat: [List.]\n")
    llm = CachedLanguageModel(ScriptedLanguageModel(reply="Rank a list."), ReplyCache(None))
    refiner = Refiner(llm, load_patterns(tmp_path / "p.yaml"), "titles")
    assert refiner("") == ""
    assert refiner("R") == "R"  # twelve signs are more than three times one
    assert refiner("Rank.") == "Rank a list."
    assert set(refiner.patterns_of) == {"R", "Rank.", "List."}
    assert llm.meter.n_calls == 3


def test_a_refiner_that_fails_ends_the_run():
    llm = ScriptedLanguageModel(reply=lambda prompt: LanguageModelError("connection lost"))
    refiner = Refiner(CachedLanguageModel(llm, ReplyCache(None)), PATTERNS, "titles")
    with pytest.raises(LanguageModelError, match=r"did not answer \(connection lost\)"):
        refiner(PATTERNS.role[0])
    assert refiner.answers == {}


def shout(prompt):
    """Rewrites every sentence by an exclamation, but forgets the placeholder of the last one."""
    sentence = re.search(r"^Instruction: (.*)$", prompt, re.MULTILINE)[1]
    if sentence == PATTERNS.reasoning[-1]:
        return "Rank them!"
    return f"Oh, {sentence}"


def test_prompts_hold_the_refined_sentence_and_the_users_own_lists_untouched(tiny_episodes):
    llm = CachedLanguageModel(ScriptedLanguageModel(reply=shout), ReplyCache(None))
    refiner = Refiner(llm, PATTERNS, "titles")
    actions = [[0, 2, 0, 0], [0, 2, 8, 0]]
    episodes = tiny_episodes[:2]
    plain = compose(episodes, PATTERNS, actions, [3, 3], Display())
    refined = compose(episodes, PATTERNS, actions, [3, 3], Display(), refine=refiner)
    for before, after, action in zip(plain, refined, (0, 8), strict=True):
        said = PATTERNS.reasoning[action].replace("{n_candidates}", "10")
        kept = action == 8
        assert after.sentences[2] == (said if kept else f"Oh, {said}")
        assert after.chosen == before.sentences
        assert after.text.replace("Oh, ", "") == before.text
        assert after.text.count("Oh, ") == (2 if kept else 3)
    assert refiner.counts == {"refined": N_SENTENCES - 1, "kept": 1}


# The whole pipeline


@pytest.fixture
def users():
    return MadeUpUsers(n_train=20, n_validation=10, n_test=20, batch_size=20)


def test_every_row_and_the_state_see_the_refined_sentences(users, tmp_path):
    """The ranker, the state encoder and the rows random and static get the same prompts."""
    prompts, encoded = set(), set()
    env = environment(lambda p: prompts.add(p) or copies_the_list(p))
    env.refiner = ScriptedLanguageModel(reply=shout, name="refiner")
    model = module(n_steps=2, n_static_prompts=3)
    encode = model.encoder

    class Noting(type(encode)):
        def __call__(self, texts):
            encoded.update(texts)
            return super().__call__(texts)

    model.encoder = Noting()
    run = trainer(tmp_path, env, max_epochs=1)
    run.fit(model, users)
    run.test(model, users, verbose=False)
    assert encoded <= prompts
    opening = {prompt.split("\n")[0] for prompt in prompts}
    assert opening == {f"Oh, {role}" for role in PATTERNS.role}
    rows = run.predict(model, users)[0]
    for row in rows:
        assert row["sentences"]["role"] == f"Oh, {row['chosen']['role']}"
        assert row["sentences"]["role"] in row["prompt"]
    assert model.refiner is None  # handed back


def test_the_same_model_is_asked_through_the_ranker(users, tmp_path):
    for refiner in ("same", ScriptedLanguageModel(reply=shout)):  # one of the same fingerprint
        env = environment(copies_the_list, refiner=refiner)
        model = module(n_steps=1)
        env.setup(trainer(tmp_path, env, max_epochs=1), model, "fit")
        assert model.refiner.llm is model.ranker.llm
        model.refiner(PATTERNS.role[0])
        assert env.ranker.counters.calls == N_SENTENCES
    env = environment(copies_the_list, refiner=ScriptedLanguageModel(reply=shout, name="other"))
    env.setup(trainer(tmp_path, env, max_epochs=1), model, "fit")
    assert model.refiner(PATTERNS.role[0]) == f"Oh, {PATTERNS.role[0]}"
    assert env.ranker.counters.calls == N_SENTENCES  # one count for both


def test_a_checkpoint_keeps_the_words_it_was_trained_with(users, tmp_path):
    """A refiner that never says the same twice: the test must not meet other prompts."""
    said = iter(range(10_000))

    def fickle(prompt):
        return shout(prompt).replace("Oh,", f"Oh {next(said)},")

    env = environment(copies_the_list, refiner=ScriptedLanguageModel(reply=fickle, name="refiner"))
    model = module(n_steps=1, n_static_prompts=1)
    run = trainer(tmp_path, env, max_epochs=1)
    run.fit(model, users)
    run = trainer(tmp_path, env, max_epochs=1)
    env.setup(run, model, "test")
    checkpoint = {"epoch": 0}
    first = {s: model.refiner(s) for s in PATTERNS.role}
    model.on_save_checkpoint(checkpoint)
    env.teardown(run, model, "test")
    env.setup(run, model, "test")
    torch.save(checkpoint, tmp_path / "written.ckpt")
    checkpoint = torch.load(tmp_path / "written.ckpt", weights_only=True)
    checkpoint |= {"state_dict": model.state_dict()}
    model.on_load_checkpoint(checkpoint)
    assert {s: model.refiner(s) for s in PATTERNS.role} == first
    env.refine_draw = 1  # another refinement is no refinement of that run
    env.setup(run, model, "test")
    model.on_load_checkpoint(checkpoint)
    assert {s: model.refiner(s) for s in PATTERNS.role} != first


def test_the_budget_counts_the_refiner(users, tmp_path):
    env = environment(copies_the_list, refiner="same")
    model = module(n_steps=2, n_static_prompts=3)
    run = trainer(tmp_path, env, max_epochs=2)
    model.trainer = run
    run.datamodule = users
    without = model.max_calls("fit")
    assert without == 2 * (20 + 10) * 2 + 3 * 10
    env.setup(run, model, "fit")
    assert model.max_calls("fit") == without + N_SENTENCES
