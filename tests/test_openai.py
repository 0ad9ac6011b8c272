"""The HTTP backend against a small server on loopback that can be made to fail."""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
import tracemalloc

import pytest
from chat_server import FAULTS
from contracts import LanguageModelContract
from test_ranker import prompts_for

from rpp.llms.base import Usage
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CachedLanguageModel
from rpp.llms.chat import Budget, without_key
from rpp.llms.grammar import permutation_grammar
from rpp.llms.openai import OpenAILanguageModel
from rpp.ranker import Ranker
from rpp.types import InputError, LanguageModelError, LanguageModelStop, arbitrary_order

KEY = "sk-planted-4f9Qz81Xw"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make(server):
    made = []

    def make(**options):
        made.append(OpenAILanguageModel("m", server.url, **{"timeout": 5.0} | options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture
def hasty(monkeypatch):
    """The client's first pause lasts a fiftieth of a second, so that many faults take little."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)


class TestOpenAI(LanguageModelContract):
    scores = False

    @pytest.fixture
    def llm(self, make):
        return make()


def test_replies_come_in_order_and_no_more_requests_at_once_than_asked(server, make):
    llm = make(concurrency=3)
    words = [f"w{k}" for k in range(20)]
    assert llm.generate([f"say {word}" for word in words]) == [f"1. {word}" for word in words]
    assert 1 < server.most_at_once <= 3
    assert llm.usage.prompt_tokens == 140
    assert llm.usage.reply_tokens == 60
    assert llm.cost(llm.usage) == 0
    assert server.seen[0]["temperature"] == 0.2
    assert server.seen[0]["max_tokens"] == 400


def test_a_straggler_keeps_nobody_waiting(server, make):
    """Chunks of 32 once waited for their slowest reply, so that 31 places stood empty."""
    server.faults, server.slow_seconds = ["slow"], 2.0
    llm = CachedLanguageModel(make(concurrency=8), ReplyCache(None))
    started = time.monotonic()
    replies = llm.generate([f"say w{k:03}" for k in range(200)])
    assert replies == [f"1. w{k:03}" for k in range(200)]
    # 199 replies of .02 s at 7 places take .57 s
    assert server.times[-1] - started < 2.0
    assert server.most_at_once == 8


def test_every_answer_is_kept_at_once_even_if_the_run_is_interrupted(server, make, monkeypatch):
    server.seconds = 0.1
    llm = CachedLanguageModel(make(concurrency=4), ReplyCache(None))
    calls = itertools.count()

    class Interrupted:
        """The progress bar stands in the loop in which Ctrl-C strikes."""

        def __init__(self, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def update(self, n):
            if next(calls) == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rpp.llms.cached.tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([f"say w{k:03}" for k in range(200)])
    assert 6 <= len(server.seen) <= 6 + 2 * 4  # nothing else was sent
    assert len(llm.cache) == len(server.seen)  # and what was under way is kept
    assert len(llm.generate([f"say w{k:03}" for k in range(20)])) == 20
    assert not server.asked_again.total()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_repeated(server, make, fault):
    server.faults = [fault]
    assert make(max_retries=2, timeout=0.4).generate(["say this"]) == ["1. this"]
    assert len(server.seen) == 2


def test_as_many_seconds_are_waited_as_the_server_says(server, make):
    server.faults, server.retry_after = ["429"], "1.3"
    assert make().generate(["say this"]) == ["1. this"]
    first, second = server.times
    assert 1.3 <= second - first < 2.5


@pytest.mark.parametrize("fault", ["500", "cut", "slow", "malformed", "empty", "400", "429"])
def test_one_lasting_fault_costs_no_other_prompt(server, make, fault):
    server.faults = [fault]
    llm = make(max_retries=0, concurrency=1, timeout=0.4)
    first, second = llm.generate(["say a", "say b"])
    assert isinstance(first, LanguageModelError)
    assert not isinstance(first, LanguageModelStop)
    assert second == "1. b"


def test_what_the_server_says_is_passed_on(server, make):
    server.faults, server.error = ["400"], {"message": "your prompt has 9000 tokens"}
    (refused,) = make().generate(["say a"])
    assert str(refused) == "the server answered with status 400: your prompt has 9000 tokens"


def test_many_faults_lose_nothing_and_ask_nothing_twice(server, make, hasty):
    """A tenth of the requests meets each of six faults."""
    server.shares, server.seconds = dict.fromkeys(FAULTS, 0.1), 0.005
    server.slow_seconds, server.retry_after = 0.6, "0.02"
    llm = CachedLanguageModel(make(concurrency=16, timeout=0.3, max_retries=12), ReplyCache(None))
    prompts = [f"say w{k:03}" for k in range(300)]
    assert llm.generate(prompts) == [f"1. w{k:03}" for k in range(300)]
    assert server.answered == dict.fromkeys(prompts, 1)
    assert not server.asked_again.total()
    assert len(server.seen) > 500
    assert len(llm.cache) == 300


def test_memory_does_not_grow_with_the_requests(server, make, hasty):
    server.shares, server.seconds = {"500": 0.1, "empty": 0.1}, 0.0
    llm = make(concurrency=8)
    server.seen = type("Nothing", (), {"append": lambda self, body: None})()

    def ask(n):
        for start in range(0, n, 50):
            llm.generate([f"say w{k}" for k in range(start, start + 50)])
        server.answered.clear()
        server.times.clear()

    ask(100)
    tracemalloc.start()
    try:
        ask(100)
        before = tracemalloc.get_traced_memory()[0]
        ask(400)
        assert tracemalloc.get_traced_memory()[0] - before < 200_000
    finally:
        tracemalloc.stop()


def test_a_token_budget_ends_the_run_and_keeps_what_is_answered(server, make):
    llm = CachedLanguageModel(make(concurrency=2, max_total_tokens=25), ReplyCache(None))
    prompts = [f"say w{k}" for k in range(50)]
    with pytest.raises(LanguageModelStop, match=r"budget of 25 tokens .* raise max_total_tokens"):
        llm.generate(prompts)
    assert 3 <= len(server.seen) <= 4  # of 10 tokens each; one may have been under way
    assert len(llm.cache) == len(server.seen)


def test_a_budget_in_the_place_of_replies(make):
    llm = make(concurrency=1, max_total_tokens=25)
    replies = llm.generate(["say a"] * 5)
    assert [isinstance(reply, str) for reply in replies] == [True, True, True, False, False]
    assert isinstance(replies[-1], LanguageModelStop)


def test_cost_by_hand():
    budget = Budget(max_cost=1.0, prompt_price=0.5, reply_price=1.5)
    assert budget.cost(Usage(1_000_000, 200_000)) == pytest.approx(0.5 + 0.3)
    budget.check(Usage(1_000_000, 333_333))
    with pytest.raises(LanguageModelStop, match=r"budget of 1 is spent .* max_cost"):
        budget.check(Usage(1_000_000, 333_334))


def test_a_money_budget_ends_the_run(server, make):
    # a reply costs (7 * 1 + 3 * 2) / 1e6 = 13e-6: after three 39e-6 are spent, of 30e-6
    llm = make(concurrency=1, max_cost=30e-6, prompt_price=1.0, reply_price=2.0)
    replies = llm.generate([f"say w{k}" for k in range(5)])
    assert [isinstance(reply, str) for reply in replies] == [True, True, True, False, False]
    assert len(server.seen) == 3


def test_money_spent_is_counted_once_and_a_repetition_is_free(make, tiny_episodes):
    ranker = Ranker(make(prompt_price=1.0, reply_price=2.0), "generate")
    for _ in range(2):
        ranker.rank(prompts_for(tiny_episodes[:2], "titles"), tiny_episodes[:2])
        assert ranker.counters.cost == pytest.approx(26e-6)  # two calls of 7 and 3 tokens


def test_a_budget_holds_where_the_server_does_not_count(server, make):
    server.counts_tokens = False
    llm = make(concurrency=1, max_total_tokens=100)
    replies = llm.generate([f"say {'word ' * 20}w{k}" for k in range(10)])
    assert 2 <= sum(isinstance(reply, str) for reply in replies) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1.0}, "prompt_price"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_senseless_settings_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("401", {}, "refused the key in OPENAI_API_KEY"),
        ("403", {}, "refused the key in OPENAI_API_KEY"),
        ("404", {}, "knows no model 'm'"),
        ("429", {"code": "insufficient_quota"}, "quota is used up"),
    ],
)
def test_what_no_prompt_can_mend_ends_the_run(server, make, monkeypatch, status, error, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.shares, server.error = {status: 1.0}, error
    llm = CachedLanguageModel(make(max_retries=0, concurrency=2), ReplyCache(None))
    with pytest.raises(LanguageModelStop, match=message) as stop:
        llm.generate([f"say w{k}" for k in range(200)])
    assert len(server.seen) < 20
    assert server.keys == {f"Bearer {KEY}"}
    assert "planted" not in str(stop.value)


def test_a_server_that_is_gone_ends_the_run(server, make):
    llm = CachedLanguageModel(make(max_retries=0, concurrency=2), ReplyCache(None))
    assert llm.generate(["say a"]) == ["1. a"]
    server.shares = {"cut": 1.0}
    with pytest.raises(LanguageModelStop, match=r"cannot be reached, \d prompts in a row"):
        llm.generate([f"say w{k}" for k in range(200)])
    assert len(server.seen) < 20


def test_no_server_at_all():
    llm = OpenAILanguageModel("m", "http://127.0.0.1:9/v1", max_retries=0)
    (reply,) = llm.generate(["say a"])
    assert str(reply) == "the server cannot be reached"
    llm.close()


def test_a_model_that_thinks_until_its_tokens_are_spent_is_asked_once(server, make):
    server.shares, server.finish_reason = {"empty": 1.0}, "length"
    (reply,) = make(max_new_tokens=9).generate(["say a"])
    assert "spent its 9 tokens before it wrote a word" in str(reply)
    assert len(server.seen) == 1


def test_fields_that_a_model_refuses_can_be_left_out(server, make):
    server.first_tokens = [("A", -0.1), ("B", -3.0)]
    llm = make(temperature=None, top_p=None)
    llm.generate(["say a"])
    llm.score(["say a"], [["A", "B"]])
    assert all("temperature" not in body and "top_p" not in body for body in server.seen)
    assert make(temperature=None).fingerprint != make().fingerprint
    make().score(["say b"], [["A", "B"]])
    assert server.seen[-1]["temperature"] == 0


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://localhost:8000/v1", "max_tokens"),
    ],
)
def test_openai_has_another_name_for_the_longest_reply(monkeypatch, url, name):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    llm = OpenAILanguageModel("m", url)
    sent = {}

    class Completions:
        @staticmethod
        def create(**fields):
            sent.update(fields)
            raise ValueError

    class Client:
        chat = type("Chat", (), {"completions": Completions})
        close = staticmethod(lambda: None)

    llm.chat._client = Client
    llm.generate(["say a"])
    assert sent["extra_body"] == {name: 400}


def test_learner_processes_have_equal_parts_of_a_budget(make):
    llm = make(max_total_tokens=30, max_cost=1.0, prompt_price=1e5)
    llm.share(3)
    assert llm.chat.budget == Budget(10, 1 / 3, 1e5, 0.0)
    replies = llm.generate(["say a", "say b"])  # 10 tokens each
    assert replies.count("1. a") + replies.count("1. b") >= 1
    with pytest.raises(LanguageModelStop, match="budget of 10 tokens"):
        CachedLanguageModel(llm, ReplyCache(None)).generate(["say c"])


def test_a_missing_key_is_named():
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        OpenAILanguageModel("gpt-3.5-turbo")


def test_the_address_may_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    llm = OpenAILanguageModel("m")
    assert llm.generate(["say a"]) == ["1. a"]
    assert server.url in llm.fingerprint
    llm.close()


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{KEY}@127.0.0.1:1/v1",
        f"http://127.0.0.1:1/v1?api_key={KEY}",
        f"http://127.0.0.1:1/v1#{KEY}",
        f"http://127.0.0.1:1/{KEY}/v1",
        f"ftp://{KEY}/v1",
        f"http://[{KEY}/v1",
        KEY,
    ],
)
@pytest.mark.parametrize("from_environment", [False, True])
def test_no_key_in_the_address(monkeypatch, url, from_environment):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if from_environment:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(InputError, match=r"base_url must be .* OPENAI_API_KEY") as refused:
        OpenAILanguageModel("m", None if from_environment else url)
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", [KEY, "gsk_4f9Qz81Xw", ""])
def test_a_key_in_the_place_of_its_variable(name):
    with pytest.raises(InputError, match="key_variable must be the name") as refused:
        OpenAILanguageModel("m", "http://127.0.0.1:1/v1", key_variable=name)
    assert not name or name not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"key {KEY} is wrong", "key *** is wrong"),
        (f"header 'Bearer {KEY}'", "header 'Bearer ***"),
        (f"key {KEY[:9]}... is wrong", "key *** is wrong"),
        (f"key ***{KEY[-7:].upper()} is wrong", "key *** is wrong"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_no_part_of_the_key_is_passed_on(text, left):
    assert without_key(text, KEY) == left
    assert without_key(text, None) == text


def test_fingerprint_tells_settings_apart(make):
    assert make().fingerprint == make().fingerprint
    others = [{"temperature": 0.0}, {"extra": {"reasoning_effort": "low"}}, {"seed": 1}]
    assert len({make(**other).fingerprint for other in [{}, *others]}) == 4


def test_extra_fields_are_sent(server, make):
    make(extra={"cache_prompt": False}).generate(["say a"])
    assert server.seen[0]["cache_prompt"] is False


# -- decodings ---------------------------------------------------------------------------------


def test_first_tokens_by_hand(server, make):
    """Spellings with a space count together; what is not named is minus infinity."""
    server.first_tokens = [
        ("B", math.log(0.4)),
        ("The", math.log(0.2)),
        (" A", math.log(0.15)),
        ("\u2581B", math.log(0.1)),
        ("AB", math.log(0.05)),
    ]
    (row,) = make().score(["p"], [["A", "B", "C"]])
    assert row == pytest.approx([math.log(0.15), math.log(0.5), -math.inf])
    asked = server.seen[0]
    assert (asked["max_tokens"], asked["temperature"], asked["top_logprobs"]) == (1, 0, 20)


def test_candidates_that_are_not_named_come_last_in_arbitrary_order(server, make, tiny_episodes):
    server.first_tokens = [("D", -0.5), ("The", -1.0), ("B", -2.0)]
    ranker = Ranker(make(), "first_token", seed=3)

    episodes = tiny_episodes[:4]
    for _ in range(2):  # the second time from the cache
        rankings = ranker.rank(prompts_for(episodes, "identifiers"), episodes)
        for ranking, episode in zip(rankings, episodes, strict=True):
            rest = [k for k in arbitrary_order(episode, 3) if k not in (1, 3)]
            assert ranking.order == (3, 1, *rest)
            assert (ranking.n_named, ranking.status) == (2, "repaired")
    assert ranker.counters.repaired == 8
    assert ranker.counters.calls == 4


def test_a_reply_that_ends_at_once_names_nobody(server, make):
    server.first_tokens = []
    server.faults = ["empty"]
    assert make().score(["p"], [["A", "B"]]) == [[-math.inf, -math.inf]]
    assert len(server.seen) == 1


def test_a_server_without_log_probabilities_is_refused(make):
    with pytest.raises(InputError, match=r"gives no log-probabilities.*decoding: generate"):
        make().score(["p"], [["A", "B"]])


def test_likelihood_is_refused(make):
    with pytest.raises(InputError, match=r"likelihood needs .*decoding: generate.*first_token"):
        make().score(["p"], [[" Heat"]], ["1."])


def test_constrained_needs_a_grammar(make):
    with pytest.raises(InputError, match=r"init_args\.grammar to llama.cpp or vllm"):
        make().generate_permutation(["p"], [["A", "B"]])


@pytest.mark.parametrize("way", ["llama.cpp", "vllm"])
def test_a_server_that_ignores_the_grammar_is_refused(server, make, way):
    """``transformers serve`` takes unknown fields without a word."""
    with pytest.raises(InputError, match="does not keep to a grammar"):
        make(grammar=way).generate_permutation(["p"], [["A", "B"]])
    sent = server.seen[0] if way == "llama.cpp" else server.seen[0]["structured_outputs"]
    assert sent["grammar"] == permutation_grammar(["A", "B"])


def test_grammar_by_hand():
    assert permutation_grammar(["B", 'a "b"']) == (
        'root ::= s3\ns1 ::= "B"\ns2 ::= "a \\"b\\""\ns3 ::= "B\\n" s2 | "a \\"b\\"\\n" s1\n'
    )


def texts_of(grammar):
    """All texts of a grammar whose rules stand one a line."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def expand(rule):
        for choice in rules[rule].split(" | "):
            text, _, rest = choice.partition('" ')
            text = text.strip('"').replace("\\n", "\n")
            yield from (text + end for end in (expand(rest) if rest else [""]))

    return list(expand(rules["root"]))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_grammar_has_every_permutation_and_nothing_else(n):
    texts = texts_of(permutation_grammar("ABCDE"[:n]))
    assert sorted(texts) == ["\n".join(order) for order in itertools.permutations("ABCDE"[:n])]


def test_a_grammar_has_one_rule_per_subset_and_a_limit():
    assert permutation_grammar("ABCDEFGHIJKL").count("::=") == 2**12  # root and 2^12 - 1
    with pytest.raises(InputError, match="cannot order 13 candidates: use at most 12"):
        permutation_grammar("ABCDEFGHIJKLM")


def test_no_thread_is_left(make):
    before = threading.active_count()
    make(concurrency=8).generate([f"say w{k}" for k in range(30)])
    ours = [thread.name for thread in threading.enumerate() if re.search("Pool", thread.name)]
    assert ours == []
    assert threading.active_count() <= before + 8  # the server's own, one a connection
