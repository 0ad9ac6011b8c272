"""A small patterns file and how the tests load one."""

from __future__ import annotations

from rpp.prompts.patterns import load_patterns

MINIMAL = """\
history_heading: "Seen:"
candidates_heading: "Choose among {n_candidates}:"
role: ["You know films.", ""]
history: {start: 1, increments: [0, 1, 2]}
reasoning: ["Rank them.", "Rank all {n_candidates}."]
format:
  - titles: "Write titles."
    identifiers: "Write letters."
  - "Be brief."
"""


def load(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_patterns(path)
