"""A chart as an element of a page: text stays text, and colours are those of the style sheet."""

from __future__ import annotations

import re
from io import StringIO
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

SVG = "{http://www.w3.org/2000/svg}"

COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "none",
    "#808080": "var(--muted)",
    "#cccccc": "var(--line)",
    "#1f77b4": "var(--first)",
    "#ff7f0e": "var(--second)",
    "#2ca02c": "var(--third)",
    "#d62728": "var(--fourth)",
}
"""Matplotlib's colours, and those of a page that has a light and a dark variant."""

ElementTree.register_namespace("", SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def inline(figure: Figure, name: str, label: str) -> Markup:
    """A chart as an element ``svg``.

    Args:
        figure: The chart.
        name: Tells its internal references from those of other charts of the page.
        label: What it shows, for those who do not see it.
    """
    stream = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, bbox_inches="tight")
    root = ElementTree.fromstring(stream.getvalue())
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    for child in [*root.findall("{*}metadata"), *root.findall("{*}defs[{*}style]")]:
        root.remove(child)  # the style would be that of the whole page
    for element in root.iter():
        if element.tag == f"{SVG}g":
            element.attrib.pop("id", None)  # other charts have the same ones
        if style := element.get("style"):
            element.set("style", re.sub("#[0-9a-f]{6}", _of_the_page, style))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _of_the_page(colour: re.Match[str]) -> str:
    return COLOURS.get(colour[0], colour[0])
