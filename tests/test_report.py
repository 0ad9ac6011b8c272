"""The report: what the page says is what was measured, and a browser shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch
from browser import CHROMIUM, Browser
from comparison_setup import compare, policy
from patterns_setup import MINIMAL, load
from pipeline import MadeUpUsers, environment, module, trainer

from rpp.callbacks.report import reward_chart
from rpp.callbacks.results import ResultsTable
from rpp.callbacks.reward_log import RewardLog
from rpp.comparison.references import Manual
from rpp.learners.rpp import RPP
from rpp.llms.controls import answers_at_random
from rpp.metrics import METRICS, Interval
from rpp.results.publish import Results, publish
from rpp.results.report import Axis, Report, verdict
from rpp.results.rows import Row, make_row
from rpp.results.shares import option_shares, user_groups
from rpp.results.users import evenly_spaced
from rpp.rewards import environment_fingerprint
from rpp.types import Episode, Item, final_scoring

NASTY = "</li><script>document.title = 'ours'</script> & \"quoted\" 'too' <b>"
LONG = "Supercalifragilisticexpialidocious" * 4


def with_nasty_titles(episode: Episode) -> Episode:
    """The same user with titles that are no HTML, one of which fits on no line."""

    def renamed(item: Item) -> Item:
        return Item(item.index, f"{NASTY} {LONG if item.index % 7 == 0 else ''}{item.title}")

    return replace(
        episode,
        history=tuple(map(renamed, episode.history)),
        candidates=tuple(map(renamed, episode.candidates)),
        user_id=f"<{episode.user_id}>",
    )


@dataclass(frozen=True)
class Reported:
    """A test that has written its report."""

    folder: Path
    learner: RPP
    users: MadeUpUsers

    @property
    def path(self) -> Path:
        return self.folder / "results/report.html"

    @property
    def page(self) -> ElementTree.Element:
        """The page, which is well-formed XML as well."""
        return ElementTree.fromstring(self.path.read_text(encoding="utf-8"))

    def section(self, name: str) -> ElementTree.Element:
        found = self.page.find(f".//section[@id='{name}']")
        assert found is not None, name
        return found


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Reported:
    folder = tmp_path_factory.mktemp("report")
    users = MadeUpUsers(n_train=4, n_validation=2, n_test=30, batch_size=30)
    users._episodes["test"] = [with_nasty_titles(each) for each in users.episodes("test")]
    learner = module(n_steps=2, n_static_prompts=1)
    run = trainer(
        folder,
        environment(answers_at_random),
        RewardLog(str(folder / "rewards.parquet")),
        ResultsTable(str(folder / "results")),
        max_epochs=1,
    )
    run.fit(learner, users)
    learner.inference_steps.fill_(2)
    run.test(learner, users, verbose=False)
    return Reported(folder, learner, users)


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows_of(table: ElementTree.Element) -> list[list[str]]:
    return [[words(cell) for cell in row] for row in table.iterfind(".//tr")]


def test_its_table_is_that_of_the_other_files(reported):
    table = reported.section("results").find(".//table[@class='scores']")
    header, *lines = rows_of(table)
    written = pl.read_csv(reported.folder / "results/results.csv")
    assert [line[0] for line in lines] == written["method"].to_list()
    place = header.index("NDCG@10")
    for line, row in zip(lines[:-1], written.iter_rows(named=True), strict=False):
        shown = line[place].replace("[", "").replace("]", "").split()
        expected = [row["ndcg@10"], row["ndcg@10_low"], row["ndcg@10_high"]]
        assert [float(each) for each in shown] == pytest.approx(expected, abs=5e-4)
    text = (reported.folder / "results/results.md").read_text()
    for note in reported.section("results").iterfind(".//ul/li"):
        assert words(note) in " ".join(text.split())
    facts = dict(rows_of(reported.section("run").find(".//table")))
    assert facts["users"] == "4 for training, 2 for validation, 30 in the test"
    assert facts["checkpoint"] == "none: the weights of this process"
    record = json.loads((reported.folder / "results/results.json").read_text())
    assert facts["date"].replace(" ", "T") == record["date"]


def test_its_charts_are_those_of_the_run(reported):
    figures = reported.section("charts").iterfind(".//figure")
    charts = {words(figure.find("h3")): figure for figure in figures}
    assert set(charts) == {"Training reward by call", "NDCG@10 by step", "NDCG@10 by position"}
    rewards = pl.read_parquet(reported.folder / "rewards.parquet")
    caption = words(charts["Training reward by call"].find("figcaption"))
    assert f"NDCG of {rewards.height} training rewards" in caption
    assert "drawn at random" not in caption  # by a policy that learns
    svg = charts["NDCG@10 by step"].find("{*}svg")
    assert svg.get("role") == "img"
    assert "step" in words(svg)  # its text is text
    assert "#000000" not in ElementTree.tostring(svg, encoding="unicode")  # unseen in the dark


def test_the_target_is_marked_where_it_stands(reported):
    """In the answers to both prompts; what is shown is what was asked."""
    asked = {f"<u{each.user}>": each for each in reported.learner.test_results.users}
    episodes = {each.user_id: each for each in reported.users.episodes("test")}
    shown = reported.section("users").findall("details")
    assert len(shown) == 10
    gains = []
    for user in shown:
        name = words(user.find("summary/h3")).removeprefix("User ")
        own, other = user.iterfind("div[@class='answers']/div")
        ranks = []
        for answer, order, prompt in (
            (own, asked[name].order, asked[name].prompt),
            (other, asked[name].other_order, asked[name].other_prompt),
        ):
            titles = [words(each) for each in answer.iterfind("ol/li")]
            expected = [" ".join(episodes[name].candidates[k].title.split()) for k in order]
            marked = [k for k, each in enumerate(answer.iterfind("ol/li")) if len(each)]
            with final_scoring():
                ranks.append(list(order).index(episodes[name].target) + 1)
            assert marked == [ranks[-1] - 1]
            assert [title.removesuffix(" target") for title in titles] == expected
            assert "".join(answer.find("details/pre").itertext()) == prompt
        mine, theirs = (float(METRICS["ndcg@10"](torch.tensor(r))) for r in ranks)
        gains.append(mine - theirs)
        assert words(user.find("summary/span")) == (f"{gains[-1]:+.2f}" if gains[-1] else "±0")
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0 > gains[-1]


def test_options_are_told_with_their_probabilities(reported):
    names = reported.learner.patterns.names
    for user in reported.section("users").iterfind("details"):
        table = user.find(".//table")
        lines = table.findall("tbody/tr")
        assert [words(row.find("th")) for row in lines] == list(names)
        for row in lines:
            options = [words(each) for each in row.iterfind(".//ol/li")]
            percent = [int(each.rpartition("(")[2].removesuffix(" %)")) for each in options]
            assert sum(percent) == pytest.approx(100, abs=len(percent) / 2)
            number = int(words(row.find("td")).partition(":")[0])
            assert words(row.findall("td")[-1]) == f"{percent[number - 1]} %"


def test_shares_are_those_of_the_users(reported):
    table = reported.section("options").find(".//table")
    actions = np.array([each.actions for each in reported.learner.test_results.users])
    for k, body in enumerate(table.iterfind("tbody")):
        heading, *lines = rows_of(body)
        assert heading == [reported.learner.patterns.names[k]]
        shown = np.array([[int(cell.removesuffix(" %")) for cell in line[1:]] for line in lines])
        assert shown.shape[1] == 4  # all, and thirds by taste: all histories are equally long
        assert shown.sum(axis=0) == pytest.approx(100, abs=len(lines) / 2)
        counts = np.bincount(actions[:, k], minlength=len(lines)) / len(actions)
        assert shown[:, 0] == pytest.approx(100 * counts, abs=0.51)


def test_titles_are_text_and_nothing_else(reported):
    page = reported.page
    assert page.find(".//script") is None
    history = page.find(".//ol[@class='history']/li")
    assert words(history).startswith(" ".join(NASTY.split()))
    assert "<u" in words(page.find(".//summary/h3"))


def test_a_fault_in_the_report_loses_no_table(tmp_path, capsys):
    """An old report would be none of the new table."""
    (tmp_path / "report.html").write_text("that of an earlier run")
    row = make_row("the method", torch.tensor([1.0, 2.0]), None)
    results = Results("a title", [row], "the method", 10, ["a note"], {}, {})

    def broken() -> Report:
        raise ZeroDivisionError("of the report")

    with pytest.warns(UserWarning, match="was not written: ZeroDivisionError"):
        publish(results, tmp_path, "results", broken)
    assert "the method" in capsys.readouterr().out
    names = {"results.csv", "results.md", "results.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_log_of_another_run_is_not_drawn(tmp_path, reported):
    """Nor is a damaged one."""
    asked = {"language model": "m"}
    learner = SimpleNamespace(
        patterns=reported.learner.patterns, trained_in=asked, environment_metadata={},
        n_candidates=10,
    )  # fmt: skip
    log = pl.read_parquet(reported.folder / "rewards.parquet").with_columns(
        environment=pl.lit(environment_fingerprint(asked))
    )

    def drawn(log: pl.DataFrame) -> bool:
        log.write_parquet(tmp_path / "log.parquet", metadata={"rpp.patterns": "[]"})
        return "rewards" in reward_chart(learner, tmp_path / "log.parquet")

    assert drawn(log)
    assert not drawn(log.with_columns(patterns=pl.lit("other")))
    assert not drawn(log.with_columns(environment=pl.lit("other")))
    (tmp_path / "damaged.parquet").write_bytes(b"damaged")
    for name in ("damaged", "missing"):
        assert reward_chart(learner, tmp_path / f"{name}.parquet") == {}


@pytest.mark.parametrize(
    ("gain", "p", "said"),
    [
        (Interval(0.1, 0.05, 0.15), 0.001, "ours ranks better than theirs (+0.100"),
        (Interval(-0.1, -0.15, -0.05), 0.049, "ours ranks worse than theirs (-0.100"),
        (Interval(0.1, -0.01, 0.2), 0.05, "is within chance: 7 test users do not show"),
        (Interval(*[float("nan")] * 3), 1.0, "no user has an answer to both"),
    ],
)
def test_the_verdict_follows_the_figures(gain, p, said):
    assert said in verdict(Row("ours", {}, gain, p), "theirs", 7)


def test_an_axis_has_round_ends_around_its_values():
    axis = Axis.around([0.454, 0.803, float("nan")])
    assert (axis.low, axis.high) == pytest.approx((0.4, 0.9))
    assert axis.ticks == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert axis.at(0.65) == 50
    assert Axis.around([0.0]).at(0.0) == 0  # a single value has an axis too


def test_users_are_evenly_spaced_from_gain_to_loss():
    gains = [0.0] * 50 + [k / 20 for k in range(-10, 11)]
    chosen = [gains[k] for k in evenly_spaced(gains, 0)]
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1], len(chosen)) == (0.5, -0.5, 10)
    assert 0 not in chosen
    few = evenly_spaced([0.0] * 30 + [0.5], 0)  # too few differ: those who do not stand for them
    assert few[0] == 30
    assert len(set(few)) == 10
    assert few != evenly_spaced([0.0] * 30 + [0.5], 1)
    assert evenly_spaced([0.0, 0.1], 0) == [1, 0]


def test_shares_by_hand(tmp_path, tiny_episodes):
    patterns = load(tmp_path, MINIMAL)
    groups = user_groups(tiny_episodes)  # histories of 4 to 9 items
    assert [(group.name, group.n_users) for group in groups] == [
        ("all", 12), ("4 to 5", 4), ("6 to 7", 4), ("8 to 9", 4),
    ]  # fmt: skip
    lengths = np.array([len(each.history) for each in tiny_episodes])
    actions = np.zeros((12, len(patterns.names)), int)
    actions[:, 0] = lengths > 7
    shares = option_shares(actions, groups, patterns, 10, static=[1] * len(patterns.names))
    first = shares[patterns.names[0]]
    assert first[1].shares == pytest.approx([1 / 3, 0, 0, 1])
    assert [option.is_static for option in first][:2] == [False, True]
    assert all(
        sum(each) == pytest.approx(1)
        for options in shares.values()
        for each in zip(*(option.shares for option in options), strict=True)
    )
    popularity = np.arange(240)  # a user's items are as popular as the user's number says
    assert len(user_groups(tiny_episodes, popularity)) == 7
    assert len(user_groups(tiny_episodes, np.ones(240, int))) == 4  # all alike: no thirds


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    users = MadeUpUsers(n_train=4, n_validation=2, n_test=30)
    users.folder = folder / "made-up"
    compare(users, folder, [Manual(), policy(users, max_epochs=1)], answers_at_random)
    return folder / "results/report.html"


def test_a_comparison_tells_of_its_first_policy(compared):
    page = ElementTree.fromstring(compared.read_text(encoding="utf-8"))
    assert "RPP" in words(page.find(".//p[@class='verdict']"))
    assert "manual prompt" in words(page.find(".//p[@class='verdict']"))
    sections = [each.get("id") for each in page.iterfind(".//section")]
    assert sections == ["run", "results", "charts", "options", "users"]
    rows = [words(row.find("th")) for row in page.iterfind(".//table[@class='scores']/tbody/tr")]
    assert rows == ["manual prompt", "RPP", "chance"]
    assert len(page.findall(".//section[@id='users']/details")) == 10


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install Debian's package chromium")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def test_a_browser_shows_it(browser, reported, compared):
    """Nothing is fetched, nothing fails, nothing is wider than a phone's or a desk's window."""
    for path in (reported.path, compared):
        browser.open(path)
        browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        grounds = set()
        for width in (400, 1400):
            for scheme in ("light", "dark"):
                browser.look(width, scheme)
                root = "document.documentElement"
                assert browser.evaluate(f"{root}.scrollWidth") == width, (path, scheme)
                grounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2  # light and dark
        assert browser.evaluate("document.title") != "ours"
        assert [each["request"]["url"] for each in browser.of("Network.requestWillBeSent")] == [
            path.resolve().as_uri()
        ]
        said = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        assert browser.of(*said) == []
