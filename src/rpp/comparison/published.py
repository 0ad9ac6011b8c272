"""The paper's figures beside ours: NDCG@1, @5, @10 with LLaMA-2-7B-chat (Tables 2, 5, 6 and 8).

Other users, other candidate lists, another language model: to look at, not to test against.
"""

from __future__ import annotations

Figures = tuple[float, float, float]

ML_1M: dict[str, Figures] = {
    "Pop": (0.26, 0.60, 0.63),
    "BPR-MF": (0.44, 0.71, 0.74),
    "LightGCN": (0.33, 0.62, 0.65),
    "SASRec": (0.68, 0.84, 0.85),
    "BM25": (0.08, 0.20, 0.43),
    "UniSRec": (0.12, 0.35, 0.47),
    "VQ-Rec": (0.10, 0.33, 0.47),
    "manual prompt": (0.03, 0.35, 0.41),
    "best of 8 static": (0.04, 0.36, 0.42),
    "GRIPS, per user": (0.43, 0.70, 0.73),
    "RPP": (0.82, 0.85, 0.87),
    "RPP+": (0.82, 0.85, 0.87),
    "RPP, role alone": (0.76, 0.80, 0.84),
    "RPP, history alone": (0.65, 0.72, 0.77),
    "RPP, reasoning alone": (0.78, 0.81, 0.84),
    "RPP, format alone": (0.74, 0.77, 0.82),
    "RPP+, role alone": (0.75, 0.82, 0.84),
    "RPP+, history alone": (0.67, 0.73, 0.78),
    "RPP+, reasoning alone": (0.78, 0.83, 0.85),
    "RPP+, format alone": (0.72, 0.77, 0.80),
    "RPP, mean pooling": (0.80, 0.84, 0.86),
}

GAMES: dict[str, Figures] = {
    "Pop": (0.39, 0.61, 0.67),
    "BPR-MF": (0.57, 0.75, 0.78),
    "LightGCN": (0.47, 0.70, 0.73),
    "SASRec": (0.69, 0.83, 0.85),
    "BM25": (0.27, 0.45, 0.57),
    "UniSRec": (0.25, 0.45, 0.56),
    "VQ-Rec": (0.14, 0.33, 0.48),
    "manual prompt": (0.04, 0.30, 0.35),
    "best of 8 static": (0.04, 0.34, 0.37),
    "GRIPS, per user": (0.62, 0.67, 0.72),
    "RPP": (0.79, 0.82, 0.85),
    "RPP+": (0.83, 0.85, 0.86),
    "RPP, role alone": (0.66, 0.72, 0.76),
    "RPP, history alone": (0.67, 0.71, 0.76),
    "RPP, reasoning alone": (0.74, 0.78, 0.80),
    "RPP, format alone": (0.67, 0.71, 0.76),
    "RPP+, role alone": (0.74, 0.79, 0.82),
    "RPP+, history alone": (0.66, 0.74, 0.81),
    "RPP+, reasoning alone": (0.74, 0.78, 0.81),
    "RPP+, format alone": (0.76, 0.79, 0.80),
    "RPP, mean pooling": (0.76, 0.79, 0.81),
}

LASTFM: dict[str, Figures] = {
    "Pop": (0.78, 0.86, 0.88),
    "BPR-MF": (0.71, 0.80, 0.84),
    "LightGCN": (0.79, 0.82, 0.88),
    "SASRec": (0.81, 0.88, 0.89),
    "manual prompt": (0.05, 0.39, 0.43),
    "best of 8 static": (0.05, 0.40, 0.44),
    "GRIPS, per user": (0.19, 0.64, 0.66),
    "RPP": (0.87, 0.89, 0.91),
    "RPP+": (0.93, 0.94, 0.95),
    "RPP, role alone": (0.84, 0.87, 0.89),
    "RPP, history alone": (0.81, 0.85, 0.87),
    "RPP, reasoning alone": (0.85, 0.88, 0.89),
    "RPP, format alone": (0.83, 0.86, 0.89),
    "RPP+, role alone": (0.86, 0.89, 0.90),
    "RPP+, history alone": (0.79, 0.86, 0.89),
    "RPP+, reasoning alone": (0.83, 0.84, 0.88),
    "RPP+, format alone": (0.84, 0.87, 0.91),
    "RPP, mean pooling": (0.90, 0.92, 0.93),
}

PAPER = (
    "paper: what the publication reports, with LLaMA-2-7B-chat, other users and other candidates,"
    " and in rows of RPP its four agents: to look at, not to test against."
)
"""Stands below a table that shows them."""

PUBLISHED = {"ml-1m": ML_1M, "games": GAMES, "lastfm": LASTFM}
"""By name of the data set and of the method."""
