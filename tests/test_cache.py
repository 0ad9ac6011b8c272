"""Replies and scores on disk: nothing lost, nothing stops the run."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from filelock import FileLock
from helpers import Recorder

from rpp.llms.cache import FILE, ReplyCache, main
from rpp.llms.cached import CHUNK, CachedLanguageModel
from rpp.types import InputError


@pytest.mark.parametrize("content", [b"no database at all, but long enough" * 40, b"\0" * 4096])
def test_damaged_file_is_moved_aside(tmp_path, content):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged .* moved to .*replies\.corrupt"):
        cache = ReplyCache(tmp_path)
    assert path.with_suffix(".corrupt").read_bytes() == content
    llm = CachedLanguageModel(Recorder(), cache)
    assert llm.generate(["a"]) == llm.generate(["a"])
    assert llm.meter.n_calls == 1


def test_file_cut_short_is_moved_aside(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.put({f"{k}": "x" * 2000 for k in range(50)})
    cache._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    path = tmp_path / "replies.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * 4000 + data[4100:])
    with pytest.warns(UserWarning, match="damaged"):
        assert len(ReplyCache(tmp_path)) == 0


def test_full_disk_costs_the_cache_and_not_the_run(tmp_path):
    cache = ReplyCache(tmp_path)
    cache._connection.execute("PRAGMA max_page_count = 4")
    llm = CachedLanguageModel(Recorder(lambda prompt: prompt * 30_000), cache)
    with pytest.warns(UserWarning, match="cannot be written .*full.*: the run goes on"):
        assert llm.generate(["a", "b"]) == ["a" * 30_000, "b" * 30_000]
    assert llm.generate(["c" * 9]) == ["c" * 270_000]  # warned once, works on


def test_file_that_cannot_be_written_costs_the_cache_and_not_the_run(tmp_path):
    cache = ReplyCache(tmp_path)
    cache.put({"k": "v"})
    cache._connection.execute("PRAGMA query_only = ON")  # chmod does not stop root
    llm = CachedLanguageModel(Recorder(), cache)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert llm.generate(["a"]) == ["reply to a"]
    assert cache.get(["k"]) == {"k": "v"}


def test_a_file_damaged_during_the_run_costs_the_cache_and_not_the_run(tmp_path):
    cache = ReplyCache(tmp_path, max_gb=1.0)
    cache.put({f"{k}": "x" * 2000 for k in range(50)})
    cache._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache._connection.execute("PRAGMA cache_size = 0")
    size = cache.path.stat().st_size
    with cache.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    llm = CachedLanguageModel(Recorder(), cache)
    with pytest.warns(UserWarning, match="cannot be (read|written) .*: the run goes on"):
        assert llm.generate(["a"]) == ["reply to a"]
    assert llm.generate(["b"]) == ["reply to b"]  # warned once, works on


def test_one_process_after_the_other_opens_the_file(tmp_path):
    """The change to a write-ahead log waits for no lock: of openers at once some were refused."""
    opened = threading.Event()

    def open_it():
        ReplyCache(tmp_path).close()
        opened.set()

    with FileLock(tmp_path / f"{FILE}.lock"):
        thread = threading.Thread(target=open_it)
        thread.start()
        assert not opened.wait(0.3)
    assert opened.wait(10)
    thread.join()


def test_many_keys_at_once():
    cache = ReplyCache(None)
    cache.put({f"k{k}": k for k in range(1300)})
    assert cache.get([f"k{k}" for k in range(1400)]) == {f"k{k}": k for k in range(1300)}


WRITER = """
import sys, time
from rpp.llms.base import ScriptedLanguageModel
from rpp.llms.cache import ReplyCache
from rpp.llms.cached import CHUNK, CachedLanguageModel

folder, start, stop, pause = sys.argv[1], *map(int, sys.argv[2:5])

class Logged(ScriptedLanguageModel):
    def generate(self, prompts):
        with open(folder + "/asked.txt", "a") as log:
            log.write("".join(p + chr(10) for p in prompts))
        if pause and prompts[0] >= f"{2 * CHUNK:05}":
            print("third chunk", flush=True)
            time.sleep(60)
        return super().generate(prompts)

llm = CachedLanguageModel(Logged(lambda p: "r" + p), ReplyCache(folder))
prompts = [f"{k:05}" for k in range(start, stop)]
for _ in range(1 if pause else 3):
    assert llm.generate(prompts) == ["r" + p for p in prompts]
"""


@pytest.fixture
def start_writer(tmp_path):
    """Start a process that asks for prompts through the cache in ``tmp_path``."""
    script = tmp_path / "writer.py"
    script.write_text(textwrap.dedent(WRITER))
    running = []

    def start(first, last, pause=0):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(first), str(last), str(pause)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_two_processes_write_at_once(tmp_path, start_writer):
    processes = [start_writer(0, 600), start_writer(400, 1000)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert len(ReplyCache(tmp_path)) == 1000


def test_killed_process_goes_on_where_it_was(tmp_path, start_writer):
    process = start_writer(0, 4 * CHUNK, pause=1)
    assert process.stdout.readline() == "third chunk\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(ReplyCache(tmp_path)) == 2 * CHUNK
    (tmp_path / "asked.txt").unlink()
    second = start_writer(0, 4 * CHUNK)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    asked = (tmp_path / "asked.txt").read_text().split()
    assert asked == [f"{k:05}" for k in range(2 * CHUNK, 4 * CHUNK)]


def test_waits_for_a_writer_instead_of_failing(tmp_path):
    cache = ReplyCache(tmp_path)
    other = sqlite3.connect(tmp_path / "replies.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.perf_counter()
    cache._connection.execute("PRAGMA busy_timeout = 200")
    with pytest.warns(UserWarning, match="locked"):
        cache.put({"a": 1})
    assert time.perf_counter() - started > 0.15
    other.execute("ROLLBACK")
    cache.put({"b": 2})
    assert cache.get(["a", "b"]) == {"b": 2}
    other.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "taken" / FILE).mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file/below", tmp_path / "taken"):
        with pytest.raises(InputError, match=f"{folder}.* set environment.cache_dir"):
            ReplyCache(folder)


def now(monkeypatch, seconds):
    monkeypatch.setattr("rpp.llms.cache.time", lambda: seconds)


def test_a_full_cache_drops_what_was_not_used_for_longest(tmp_path, monkeypatch):
    text = "x" * 5000
    cache = ReplyCache(tmp_path, max_gb=1e-3)  # room for 120 of them
    for k in range(150):
        now(monkeypatch, 1_000_000 + k)
        cache.put({f"key {k}": text})
    assert cache.n_bytes < 1e6
    now(monkeypatch, 2_000_000)
    assert cache.get(["key 0"]) == {"key 0": text}  # counts as used now
    for k in range(150, 250):
        now(monkeypatch, 2_000_000 + k)
        cache.put({f"key {k}": text})
    assert cache.n_bytes <= 1e6
    assert (tmp_path / "replies.sqlite").stat().st_size < 1.5e6
    kept = set(cache.get([f"key {k}" for k in range(250)]))
    assert "key 0" in kept
    assert "key 249" in kept
    assert "key 1" not in kept
    assert len(kept) > 100


def test_a_cache_of_an_earlier_version_is_read_on(tmp_path):
    connection = sqlite3.connect(tmp_path / "replies.sqlite")
    connection.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    connection.execute("""INSERT INTO replies VALUES ('a', '"old"')""")
    connection.commit()
    connection.close()
    cache = ReplyCache(tmp_path, max_gb=1)
    assert cache.get(["a"]) == {"a": "old"}
    cache.put({"b": "new"})
    assert ReplyCache(tmp_path).get(["a", "b"]) == {"a": "old", "b": "new"}


def test_stats_and_clear(tmp_path, capsys):
    main(["stats", "--cache_dir", str(tmp_path)])
    assert "no replies are kept in" in capsys.readouterr().out
    cache = ReplyCache(tmp_path)
    cache.put({f"key {k}": "x" * 1000 for k in range(1000)})
    cache.close()
    main(["stats", "--cache_dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "1,000 replies and scores, 1." in said
    assert "last used between 20" in said
    main(["clear", "--cache_dir", str(tmp_path)])
    assert "cleared" in capsys.readouterr().out
    assert len(ReplyCache(tmp_path)) == 0
    assert (tmp_path / "replies.sqlite").stat().st_size < 100_000


def test_a_value_that_cannot_be_read_costs_nothing_but_itself(tmp_path):
    """A row that was no JSON once ended the run with a traceback."""
    cache = ReplyCache(tmp_path)
    llm = CachedLanguageModel(Recorder(), cache)
    llm.generate(["a", "b"])
    key = llm._key("generate", "a")
    for damaged in ("{", "", None, b"\xff\xfe"):
        cache._connection.execute("UPDATE replies SET value = ? WHERE key = ?", (damaged, key))
        with pytest.warns(UserWarning, match="holds a value that cannot be read"):
            assert llm.generate(["a", "b"]) == ["reply to a", "reply to b"]
        assert llm.generate(["a", "b"]) == ["reply to a", "reply to b"]
