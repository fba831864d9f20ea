"""Vega-Lite charts that hold their own data: for a page in light and dark, and as a picture.

Colours are names of CSS variables. A page resolves them to the reader's scheme, also while it is open and when it is
printed; a picture resolves them to the light one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sanov.core import files

__all__ = ["CONFIG", "DARK", "LIGHT", "embeddable", "javascript", "svg"]

# Okabe and Ito's palette, which the colour-blind can tell apart; lightened for a dark ground.
LIGHT = {
    "ground": "#ffffff",
    "panel": "#ffffff",
    "ink": "#1d1f21",
    "muted": "#5b6168",
    "line": "#d9dce0",
    "grid": "#eceef0",
    "accent": "#0b5cad",
    "good": "#0a7a4b",
    "bad": "#b3261e",
    "open": "#8a5a00",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#b08800",
    "c6": "#56b4e9",
}
DARK = {
    "ground": "#15171a",
    "panel": "#1b1e22",
    "ink": "#e7e9ec",
    "muted": "#a3a9b1",
    "line": "#3a3f46",
    "grid": "#2a2e33",
    "accent": "#7db8f0",
    "good": "#5fd0a0",
    "bad": "#ff8f86",
    "open": "#e6b450",
    "c1": "#5aa9e6",
    "c2": "#f08a4b",
    "c3": "#4fc49f",
    "c4": "#e09cc4",
    "c5": "#e3c04b",
    "c6": "#9ad5f5",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT = 560, 280  # pixels of a picture; on a page a chart is as wide as its panel


def _ink(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "var(--ink)")


CONFIG: dict[str, Any] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None, "continuousHeight": HEIGHT, "discreteHeight": {"step": 26}},
    "mark": {"color": "var(--c1)", "tooltip": True},
    "rule": {"color": "var(--muted)"},
    "text": {"color": "var(--ink)"},
    "range": {
        "category": [f"var(--c{i})" for i in range(1, 7)],
        "ramp": {"scheme": "viridis"},
        "heatmap": {"scheme": "viridis"},
        "ordinal": {"scheme": "viridis"},
    },
    "axis": {
        **_ink("titleColor"),
        "labelColor": "var(--muted)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--grid)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "labelLimit": 220,
    },
    "legend": {**_ink("titleColor", "labelColor"), "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500},
    "header": {**_ink("titleColor", "labelColor"), "labelFontSize": 12, "titleFontSize": 12},
    "title": {**_ink("color", "subtitleColor"), "fontSize": 13, "fontWeight": 600, "anchor": "start"},
}


def embeddable(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification that a page can hold: plain JSON, as wide as its panel, with no address inside.

    Raises
    ------
    ValueError
        The figure names data by address instead of holding them.
    """
    figure: dict[str, Any] = files.plain(spec)
    figure.pop("$schema", None)
    if any("url" in data for data in _data(figure)):
        raise ValueError("a figure must hold its data, not their address")
    if "mark" in figure or "layer" in figure:
        figure.setdefault("width", "container")
        if figure["width"] == "container":
            figure.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    return figure


def _data(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every `data` entry of a specification, at any depth."""
    if isinstance(tree, dict):
        if isinstance(tree.get("data"), dict):
            yield tree["data"]
        tree = [branch for name, branch in tree.items() if name not in ("values", "datasets")]
    if isinstance(tree, list):
        for branch in tree:
            yield from _data(branch)


def svg(spec: Mapping[str, Any]) -> str:
    """Return the chart as a picture in light colours."""
    import vl_convert

    figure = embeddable(spec)
    if figure.get("width") == "container":
        figure |= {"width": WIDTH, "autosize": "pad"}
    picture: str = vl_convert.vegalite_to_svg(_resolved(figure), config=_resolved(CONFIG))
    return picture


def _resolved(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _resolved(branch) for name, branch in tree.items()}
    if isinstance(tree, list):
        return [_resolved(branch) for branch in tree]
    if isinstance(tree, str):
        return re.sub(r"var\(--(\w+)\)", lambda found: LIGHT.get(found[1], found[0]), tree)
    return tree


@functools.cache
def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that can stand inside an HTML page."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return re.sub("</script", r"<\\/script", bundle, flags=re.IGNORECASE)
