"""The data sets: which files may hold each table, official addresses, published counts.

A data set is an entry of :data:`SOURCES`. No other code knows data sets by name; a new one is a new
entry, and your own files need none (:class:`CustomFiles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from data_prep.files import Kind, RawFile
from rpp.types import PROFILE, InputError

Order = Literal["time", "play_count", "tag_time"]


class Counts(NamedTuple):
    """Size of a data set."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class Download:
    """An official file: its address and, where one was published, its SHA-256.

    An address ``pypi:NAME==VERSION`` is a wheel, of which only the members asked for are unpacked.
    """

    url: str
    sha256: str | None


@dataclass(frozen=True)
class Source:
    """A data set: files in the accepted formats, official addresses, published counts.

    Attributes:
        interactions: Files that may hold the interactions; the first one present is read.
        titles: The same for the titles.
        profiles: The same for user attributes, if there are any.
        profiles_required: Whether it is an error if there are no profiles.
        tags: The same for the tag assignments, the source of the order ``tag_time``.
        orders: The available orders, the default first.
        downloads: Official files.
        lists: Stem of the files with the authors' users and candidates, empty if there are none.
        paper: Table 1 of the paper.
        reasons: Why a count, such as ``("items", 3706)``, differs from the paper's.
        otherwise: Why a count without an entry in ``reasons`` may differ.
        meanings: Codes in the profiles to words; ``None``: unknown.
        untitled: What to do with an item without a title.
        years: Whether titles end in a year.
    """

    interactions: tuple[RawFile, ...]
    titles: tuple[RawFile, ...]
    profiles: tuple[RawFile, ...] = ()
    profiles_required: bool = False
    tags: tuple[RawFile, ...] = ()
    orders: tuple[Order, ...] = ("time",)
    downloads: tuple[Download, ...] = ()
    lists: str = ""
    paper: Counts | None = None
    reasons: Mapping[tuple[str, int], str] = field(default_factory=dict)
    otherwise: str = "this copy of the data is not the public one"
    meanings: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    untitled: Literal["refuse", "drop"] = "refuse"
    years: bool = False


@dataclass(frozen=True)
class CustomFiles:
    """The user's own data: CSV (plain or gzipped) or Parquet.

    Args:
        interactions: File with a row for each interaction.
        titles: File with the title of each item.
        profiles: Optional file with any of the columns gender, age, occupation for each user.
        user_column: Name of the column with the user, in the interactions and the profiles.
        item_column: Name of the column with the item, in the interactions and the titles.
        timestamp_column: Name of the column that orders a user's interactions: a number, a date,
            or a date and time (without a zone taken as UTC).
        title_column: Name of the column with the title.
        separator: Between the fields of CSV files.
        encoding: Of CSV files.
        timestamp_format: How dates are written in the column of times, such as ``%m/%d/%Y`` or
            ``%d.%m.%Y %H:%M`` (as in strftime); numbers and dates that begin with year, month and
            day need none.
        articles: ``front`` makes ``A Dogs`` of ``Dogs, A``, as films are listed; ``keep`` does not.
    """

    interactions: str
    titles: str
    profiles: str | None = None
    user_column: str = "user"
    item_column: str = "item"
    timestamp_column: str = "timestamp"
    title_column: str = "title"
    separator: str = ","
    encoding: str = "utf-8"
    timestamp_format: str | None = None
    articles: Literal["front", "keep"] = "front"

    def __post_init__(self) -> None:
        """Refuse a separator, an encoding or a place of articles that cannot be one."""
        if self.articles not in ("front", "keep"):
            raise InputError(f"custom: articles is {self.articles!r}: choose front or keep")
        if not self.separator or set(self.separator) & set('"\r\n'):
            raise InputError(f"custom: {self.separator!r} cannot separate the fields of a line")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise InputError(f"custom: {self.encoding!r} is no known encoding") from error

    def source(self) -> Source:
        """The files as a data set like those of :data:`SOURCES`."""
        user, item = ("user_id", (self.user_column,)), ("item_id", (self.item_column,))
        order, title = ("order", (self.timestamp_column,)), ("title", (self.title_column,))
        profile = {key: (key,) for key in PROFILE}
        return Source(
            interactions=(self._file(self.interactions, dict([user, item, order])),),
            titles=(self._file(self.titles, dict([item, title])),),
            profiles=(self._file(self.profiles, dict([user]) | profile),) if self.profiles else (),
            profiles_required=self.profiles is not None,
        )

    def _file(self, name: str, columns: Mapping[str, tuple[str, ...]]) -> RawFile:
        kind: Kind = "parquet" if name.endswith((".parquet", ".pq")) else "delimited"
        return RawFile(
            name, columns, kind, self.separator, None, self.encoding, '"', self.timestamp_format
        )


_ATOMIC_PROFILE = {
    "user_id": ("user_id",),
    "gender": ("gender",),
    "age": ("age",),
    "occupation": ("occupation",),
}
_ATOMIC_MOVIE = {
    "item_id": ("item_id",),
    "title": ("movie_title", "title"),
    "year": ("release_year",),
}
_ATOMIC_INTERACTION = {
    "user_id": ("user_id",),
    "item_id": ("item_id",),
    "order": ("timestamp",),
}
_TIMED = {"user_id": ("user",), "item_id": ("item",), "order": ("timestamp",)}
_TITLED = {"item_id": ("item",), "title": ("title",)}
_HETREC = {"user_id": ("userID",), "item_id": ("artistID",)}
_GENDERS: dict[str, str | None] = {"F": "female", "M": "male"}
_ML_1M_AGES: dict[str, str | None] = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}
_ML_1M_OCCUPATIONS: dict[str, str | None] = {
    "0": None,
    "1": "academic or educator",
    "2": "artist",
    "3": "clerical or administrative worker",
    "4": "college student",
    "5": "customer service worker",
    "6": "doctor or health care worker",
    "7": "executive or manager",
    "8": "farmer",
    "9": "homemaker",
    "10": "school student",
    "11": "lawyer",
    "12": "programmer",
    "13": "retired",
    "14": "sales or marketing worker",
    "15": "scientist",
    "16": "self-employed",
    "17": "technician or engineer",
    "18": "tradesman or craftsman",
    "19": "unemployed",
    "20": "writer",
}

SOURCES: dict[str, Source] = {
    "ml-100k": Source(
        years=True,
        interactions=(
            RawFile("u.data", _TIMED, header=("user", "item", "rating", "timestamp")),
            RawFile("ml-100k.inter", _ATOMIC_INTERACTION),
        ),
        titles=(
            RawFile("u.item", _TITLED, separator="|", header=("item", "title"), encoding="latin-1"),
            RawFile("ml-100k.item", _ATOMIC_MOVIE),
        ),
        profiles=(
            RawFile(
                "u.user",
                _ATOMIC_PROFILE,
                separator="|",
                header=("user_id", "age", "gender", "occupation", "zip"),
                encoding="latin-1",
            ),
            RawFile("ml-100k.user", _ATOMIC_PROFILE),
        ),
        downloads=(
            Download(
                "pypi:recbole==1.2.1",
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            ),
        ),
        meanings={"gender": _GENDERS, "occupation": {"other": None, "none": None}},
    ),
    "ml-1m": Source(
        years=True,
        interactions=(
            RawFile(
                "ratings.dat",
                _TIMED,
                separator="::",
                header=("user", "item", "rating", "timestamp"),
                encoding="latin-1",
            ),
            # In some copies "timestamp" is the place in the user's stable time order; the same.
            RawFile("ml-1m.inter", _ATOMIC_INTERACTION),
        ),
        titles=(
            RawFile(
                "movies.dat",
                _TITLED,
                separator="::",
                header=("item", "title", "genres"),
                encoding="latin-1",
            ),
            RawFile("ml-1m.item", _ATOMIC_MOVIE),
        ),
        profiles=(
            RawFile(
                "users.dat",
                _ATOMIC_PROFILE,
                separator="::",
                header=("user_id", "gender", "age", "occupation", "zip"),
                encoding="latin-1",
            ),
            RawFile("ml-1m.user", _ATOMIC_PROFILE),
        ),
        downloads=(
            Download(
                "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ),
        ),
        lists="ml-1m",
        paper=Counts(6040, 3885, 1000210),
        reasons={
            ("items", 3706): (
                "the public set lists 3,883 movies and 3,706 of them are rated; 3,885 is neither"
            ),
            ("interactions", 1000209): "the paper counts the header line as an interaction",
        },
        meanings={"gender": _GENDERS, "age": _ML_1M_AGES, "occupation": _ML_1M_OCCUPATIONS},
    ),
    "games": Source(
        interactions=(
            RawFile(
                "Video_Games_5.json",
                {"user_id": ("reviewerID",), "item_id": ("asin",), "order": ("unixReviewTime",)},
                kind="json",
            ),
            RawFile(
                "Games.test.inter",
                {
                    "user_id": ("user_id",),
                    "item_id_list": ("item_id_list",),
                    "item_id": ("item_id",),
                },
                kind="sequences",
            ),
            RawFile("Games.inter", _ATOMIC_INTERACTION),
        ),
        titles=(
            RawFile(
                "meta_Video_Games.json", {"item_id": ("asin",), "title": ("title",)}, kind="json"
            ),
            RawFile("Games.item", {"item_id": ("item_id",), "title": ("title",)}),
        ),
        # No checksum of these files is published: summary.json records their SHA-256.
        downloads=(
            Download(
                "http://deepyeti.ucsd.edu/jianmo/amazon/categoryFilesSmall/Video_Games_5.json.gz",
                None,
            ),
            Download(
                "http://deepyeti.ucsd.edu/jianmo/amazon/metaFiles2/meta_Video_Games.json.gz", None
            ),
        ),
        lists="Games",
        paper=Counts(50545, 16858, 389718),
        reasons={
            ("users", 50546): "the paper's figure is one short of the authors' own files",
            ("items", 16859): "the paper's figure is one short of the authors' own files",
            ("interactions", 440264): (
                "the paper leaves out the last interaction of each of the 50,546 users"
            ),
        },
        otherwise=(
            "the paper's files are a later selection of the public ones, with sequences cut at 50"
        ),
        untitled="drop",
    ),
    "lastfm": Source(
        interactions=(
            RawFile("user_artists.dat", _HETREC | {"order": ("weight",)}),
            # Here "timestamp" is the play count as well.
            RawFile(
                "lastfm.inter",
                {
                    "user_id": ("user_id",),
                    "item_id": ("item_id", "artist_id"),
                    "order": ("timestamp", "weight"),
                },
            ),
        ),
        titles=(
            RawFile("artists.dat", {"item_id": ("id",), "title": ("name",)}),
            RawFile("lastfm.item", {"item_id": ("item_id", "artist_id"), "title": ("name",)}),
        ),
        tags=(RawFile("user_taggedartists-timestamps.dat", _HETREC | {"order": ("timestamp",)}),),
        orders=("play_count", "tag_time"),
        downloads=(
            Download(
                "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
                "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
            ),
        ),
        lists="lastfm",
        paper=Counts(2100, 17632, 92835),
        reasons={
            ("users", 1892): "2,100 is the largest user id, not the number of users",
            ("interactions", 92834): "the paper counts the header line as an interaction",
        },
    ),
}
NAMES = (*SOURCES, "custom")
