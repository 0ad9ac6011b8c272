"""The user's profile as a fifth pattern, and patterns that are not learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from patterns_setup import MINIMAL, load
from pipeline import MadeUpUsers, environment, module, trainer

from rpp import charts
from rpp.learners.rpp import RPP
from rpp.llms.controls import copies_the_list
from rpp.prompts.compose import Display, compose
from rpp.prompts.options import ProfilePattern
from rpp.prompts.patterns import load_patterns
from rpp.prompts.static import draw_static_prompts
from rpp.tuning.instructions import draw_instruction
from rpp.types import InputError, Item

FILE = "conf/patterns/movies_profile.yaml"
PATTERNS = load_patterns(FILE)
PROFILE = """\
profile:
  gender: "I am {gender}."
  age: "Age: {age}."
  occupation: "Job: {occupation}."
"""
MANUAL = "manual: {role: 1, history: 4, reasoning: 2, format: 1}\n"


@pytest.fixture
def patterns(tmp_path):
    return load(tmp_path, MINIMAL + PROFILE + MANUAL)


def person(user):
    return {
        "gender": "female" if user % 2 else "male",
        "age": f"{20 + user}",
        "occupation": f"worker {user}",
    }


SAID = ["", "I am male.", "Age: 24.", "I am male. Age: 24.", "Job: worker 4.",
        "I am male. Job: worker 4.", "Age: 24. Job: worker 4.",
        "I am male. Age: 24. Job: worker 4."]  # fmt: skip


@pytest.mark.parametrize("action", range(8))
def test_every_subset_is_an_action_and_a_text(patterns, tiny_episodes, action):
    assert patterns.n_actions == (2, 3, 2, 2, 8)
    episode = replace(tiny_episodes[4], profile=person(4))
    (prompt,) = compose([episode], patterns, [[0, 0, 0, 0, action]], [1], Display())
    lines = prompt.text.split("\n")
    assert lines[0] == "You know films."
    assert lines[1 : lines.index("Seen:")] == ([SAID[action]] if SAID[action] else [])
    assert prompt.sentences == ("You know films.", "1", "Rank them.", "Write titles.", SAID[action])


def test_a_profile_is_the_users_own(patterns, tiny_episodes):
    episodes = [replace(e, profile=person(e.user)) for e in tiny_episodes]
    prompts = compose(episodes, patterns, [[0, 0, 0, 0, 7]] * 12, [1] * 12, Display())
    for user, prompt in enumerate(prompts):
        told = f"I am {person(user)['gender']}. Age: {20 + user}. Job: worker {user}."
        assert told in prompt.text.split("\n")
        assert prompt.text.count("Job: ") == 1


def test_what_is_not_known_of_a_user_is_left_out(patterns, tiny_episodes):
    episode = replace(tiny_episodes[0], profile={"gender": "male", "occupation": "in\n A. show"})
    (prompt,) = compose([episode], patterns, [[1, 0, 0, 0, 7]], [1], Display())
    assert prompt.text.startswith("I am male. Job: in A. show.\nSeen:")
    nobody = replace(episode, profile={})
    (prompt,) = compose([nobody], patterns, [[1, 0, 0, 0, 7]], [1], Display())
    assert prompt.text.startswith("Seen:")


def test_history_first_puts_the_profile_behind_what_prompts_share(patterns, tiny_episodes):
    episode = replace(tiny_episodes[4], profile=person(4))
    display = Display(layout="history_first")
    (prompt,) = compose([episode], patterns, [[0, 0, 0, 0, 1]], [1], display)
    assert prompt.text.split("\n")[-4:-2] == ["You know films.", "I am male."]


def test_refiners_never_see_a_profile(patterns, tiny_episodes):
    seen = []
    episode = replace(tiny_episodes[4], profile=person(4))
    compose(
        [episode], patterns, [[0, 0, 0, 0, 7]], [1], Display(), refine=lambda s: seen.append(s) or s
    )
    assert seen == ["You know films.", "Rank them.", "Write titles."]


def test_parts_and_choices_can_be_fewer(tmp_path):
    two = load(tmp_path, MINIMAL + 'profile: {gender: "{gender}.", age: "{age}."}\n')
    assert two.profile.actions == ((), ("gender",), ("age",), ("gender", "age"))
    given = load(tmp_path, MINIMAL + PROFILE + "  choices: [[], [gender, age]]\n")
    assert given.n_actions[-1] == 2
    assert given.profile.sentence(1, person(4)) == "I am male. Age: 24."
    assert given.describe("profile", 1) == "gender, age"
    assert given.describe("profile", 0) == "nothing"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("profile: {}\n", "the profile tells nothing"),
        ('profile: {gender: "Hello."}\n', "write {gender} once"),
        ('profile: {gender: "{age}"}\n', "write {gender} once"),
        ('profile: {sex: "{sex}"}\n', "unknown key 'sex'"),
        ("profile: I am\n", "expected the keys gender, age, occupation"),
        (PROFILE + "  choices: [[height]]\n", "the profile has no 'height'"),
        ("manual: {role: 3, history: 4, reasoning: 2, format: 1}\n", "manual role is 3"),
        ("manual: {role: 0, history: 4, reasoning: 2, format: 1}\n", "manual role is 0"),
        ("manual: {role: 1, history: 0, reasoning: 2, format: 1}\n", "manual history is 0"),
        ("manual: {role: 1, history: 4, reasoning: 2}\n", "missing key 'format'"),
        (MANUAL.replace("}", ", profile: [age]}"), "manual profile tells 'age'"),
    ],
)
def test_mistakes_are_named(tmp_path, section, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, MINIMAL + section)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_file_can_be_based_on_another(tmp_path):
    whole = load(tmp_path, MINIMAL)
    (tmp_path / "more.yaml").write_text(f"based_on: mine.yaml\n{PROFILE}")
    more = load_patterns(tmp_path / "more.yaml")
    assert replace(more, profile=None) == whole
    assert more.fingerprint != whole.fingerprint
    (tmp_path / "third.yaml").write_text("based_on: more.yaml\n")
    with pytest.raises(InputError, match=r"third\.yaml: based_on: more\.yaml must be a whole"):
        load_patterns(tmp_path / "third.yaml")
    (tmp_path / "third.yaml").write_text("based_on: gone.yaml\n")
    with pytest.raises(InputError, match=r"no patterns file .*gone\.yaml"):
        load_patterns(tmp_path / "third.yaml")


def test_fingerprint_knows_the_profile_and_not_the_manual_prompt(tmp_path):
    plain = load(tmp_path, MINIMAL).fingerprint
    assert plain == "6e0a350f2a79c849"  # what checkpoints of four patterns have written down
    assert load(tmp_path, MINIMAL + MANUAL).fingerprint == plain
    told = load(tmp_path, MINIMAL + PROFILE).fingerprint
    assert told != plain
    reworded = PROFILE.replace("Age:", "Years:")
    assert load(tmp_path, MINIMAL + reworded).fingerprint not in (plain, told)


# Patterns that are not learnt


def test_what_is_not_learnt_is_the_manual_prompt(patterns, tiny_episodes):
    learnt = patterns.learning(["profile"])
    assert (learnt.names, learnt.n_actions) == (("profile",), (8,))
    episode = replace(tiny_episodes[4], profile=person(4))
    (prompt,) = compose([episode], learnt, [[2]], [4], Display())
    assert prompt.sentences == ("You know films.", "4", "Rank all 10.", "Write titles.", "Age: 24.")
    assert learnt.history.next_length(1, 0) == 4
    role = patterns.learning(["role"])
    assert role.names == ("role",)
    (prompt,) = compose([episode], role, [[1]], [4], Display())
    assert prompt.sentences == ("", "4", "Rank all 10.", "Write titles.", "")
    assert len({p.fingerprint for p in (patterns, learnt, role)}) == 3


def test_a_manual_prompt_can_tell_the_profile(tmp_path, tiny_episodes):
    manual = MANUAL.replace("}", ", profile: [occupation]}")
    patterns = load(tmp_path, MINIMAL + PROFILE + manual).learning(["role"])
    episode = replace(tiny_episodes[4], profile=person(4))
    (prompt,) = compose([episode], patterns, [[1]], [4], Display())
    assert prompt.text.startswith("Job: worker 4.\nSeen:")


def test_learning_everything_changes_nothing(patterns, tmp_path):
    everything = patterns.learning(patterns.parts)
    assert everything.n_actions == patterns.n_actions
    assert everything.fingerprint == patterns.fingerprint
    with pytest.raises(InputError, match="no pattern 'rolle' to learn: the file has role, history"):
        patterns.learning(["rolle"])
    with pytest.raises(InputError, match="add a section `manual`"):
        load(tmp_path, MINIMAL).learning(["role"])
    nothing = RPP(patterns=FILE, learn=[])  # a comparison may hold one and not run it
    with pytest.raises(InputError, match="there is nothing to choose"):
        nothing.build(MadeUpUsers(2, 1, 1), torch.device("cpu"))


def test_static_prompts_cover_any_number_of_patterns(patterns):
    prompts = draw_static_prompts(patterns, 10_000, n_steps=2, seed=0)
    assert len(set(prompts)) == len(prompts) == 2 * 2 * 2 * 8 * 5
    assert {prompt.actions[4] for prompt in prompts} == set(range(8))
    assert {prompt.actions[1] for prompt in prompts} == {0}
    alone = draw_static_prompts(patterns.learning(["profile"]), 10_000, n_steps=2, seed=0)
    assert {(prompt.actions, prompt.length) for prompt in alone} == {((k,), 4) for k in range(8)}


def test_instructions_for_tuning_tell_the_profile(patterns):
    items = [Item(k, f"Film {k}") for k in range(60)]
    texts = [
        draw_instruction(
            items[:12], items, frozenset(range(12)), patterns, np.random.default_rng(seed),
            profile=person(4),
        ).prompt
        for seed in range(200)
    ]  # fmt: skip
    for said in SAID[1:]:
        assert any(said in text.split("\n") for text in texts)
    assert any("I am" not in text and "Age" not in text and "Job" not in text for text in texts)


# The whole pipeline


class WithProfiles(MadeUpUsers):
    """Made-up users who have a profile, or but a gender."""

    def __init__(self, keys=("gender", "age", "occupation"), **options):
        super().__init__(**options)
        for split, episodes in self._episodes.items():
            self._episodes[split] = [
                replace(e, profile={key: person(e.user)[key] for key in keys}) for e in episodes
            ]


def with_encoder(model):
    model.encoder = module().encoder
    return model


@pytest.mark.parametrize(("learn", "n_agents"), [(None, 5), (["profile"], 1)])
def test_the_pipeline_with_a_profile(tmp_path, learn, n_agents):
    users = WithProfiles(n_train=20, n_validation=10, n_test=20, batch_size=20)
    model = with_encoder(RPP(patterns=FILE, learn=learn, n_steps=2, n_static_prompts=3))
    run = trainer(tmp_path, environment(copies_the_list), max_epochs=1)
    run.fit(model, users)
    assert len(model.agents.actors) == len(model.static.actions) == n_agents
    assert "loss/actor_profile" in run.callback_metrics
    run.test(model, users, verbose=False)
    steps = model.test_results.last_steps
    actions = torch.cat([step.actions for step in steps])
    assert actions.shape == (20, n_agents)
    for step in steps:
        for episode, prompt, chosen in zip(step.episodes, step.prompts, actions, strict=True):
            said = PATTERNS.profile.sentence(int(chosen[-1]), person(episode.user))
            assert prompt.sentences[-1] == said
            assert not said or said in prompt.text.split("\n")
            if learn:
                assert prompt.n_history == PATTERNS.manual.history
    figure = charts.user_distribution(actions, [p.n_history for p in step.prompts], model.patterns)
    titles = [axis.get_title("left").split(":")[0] for axis in figure.axes]
    assert titles == list(model.patterns.names)
    row = run.predict(model, users)[0][0]
    assert set(row["sentences"]) == {"role", "history", "reasoning", "format", "profile"}
    assert "chosen" not in row


@pytest.mark.parametrize(("keys", "missing"), [((), "age"), (("gender", "age"), "occupation")])
def test_a_data_set_without_profiles_is_refused(tmp_path, keys, missing):
    users = WithProfiles(keys, n_train=4, n_validation=2, n_test=2)
    model = with_encoder(RPP(patterns=FILE))
    message = f"the prompts tell the user's {missing}, but the data set 'made-up' knows no"
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, environment(copies_the_list), max_epochs=1).fit(model, users)


def test_a_profile_that_is_fixed_to_nothing_needs_no_profiles(tmp_path):
    users = WithProfiles((), n_train=4, n_validation=2, n_test=2)
    model = with_encoder(RPP(patterns=FILE, learn=["role"], n_steps=1, n_static_prompts=1))
    trainer(tmp_path, environment(copies_the_list), max_epochs=1).fit(model, users)
    (step,) = model.train_steps
    assert {prompt.sentences[-1] for prompt in step.prompts} == {""}  # of the profile
    assert {prompt.sentences[0] for prompt in step.prompts} <= set(PATTERNS.role)
    assert len(step.prompts) == 4


def test_profile_pattern_by_hand():
    pattern = ProfilePattern(age="Age {age}.", occupation="Job {occupation}.")
    assert pattern.parts == ("age", "occupation")
    assert pattern.actions == ((), ("age",), ("occupation",), ("age", "occupation"))
