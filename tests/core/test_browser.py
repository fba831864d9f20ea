"""A rendered page in a real browser: it draws, it answers, it adapts, and it asks no host for anything."""

import base64
import re
import struct
from dataclasses import replace

import polars as pl
import pytest

from browser import look
from sanov.core import charts, pages
from sanov.core.answers import Answer

CURVE = {
    "data": {"values": [{"rows": n, "risk": 9 / n, "method": method} for n in (10, 20, 40) for method in ("a", "b")]},
    "mark": {"type": "line", "point": True},
    "encoding": {
        "x": {"field": "rows", "type": "quantitative"},
        "y": {"field": "risk", "type": "quantitative"},
        "color": {"field": "method", "type": "nominal"},
    },
}
EVIL = "</script><script>document.title='owned'</script>"
ANSWER = Answer(
    "pn",
    "40 rows are enough for 9 parameters: the risk is 0.225 (95 % 0.20 to 0.25).",
    {"rows": 40, "risk": 0.225},
    {"statistics": pl.DataFrame({f"name {EVIL}": ["mean", f'a "quoted", {EVIL}'], "value": [1 / 3, -2.0]})},
    {"risk by rows": CURVE},
    notes=(f"dropped the column {EVIL}",),
    provenance={"command": "sanov apply pn data.csv"},
)
SAVED = """
  const said = new Map(), make = URL.createObjectURL, links = {}, buttons = document.querySelectorAll("button");
  window.Blob = class extends Blob { constructor(parts, kind) { super(parts, kind); this.said = parts.join(""); } };
  URL.createObjectURL = blob => { const address = make(blob); said.set(address, blob.said); return address; };
  HTMLAnchorElement.prototype.click = function () { links[this.download] = said.get(this.href) ?? this.href; };
  buttons.forEach(button => button.click());
  while (Object.keys(links).length < buttons.length) await new Promise(done => setTimeout(done, 20));
  return links;
"""


@pytest.mark.parametrize(("scheme", "colours"), [("1", charts.LIGHT), ("0", charts.DARK)], ids=["light", "dark"])
def test_an_answers_page_draws_in_the_readers_scheme_and_asks_no_host(scheme, colours, tmp_path):
    probe = """
      const colour = (where, what) => getComputedStyle(document.querySelector(where))[what];
      return [document.title, colour("body", "backgroundColor"), colour("body", "color"),
              colour(".role-axis-label text", "fill"), colour(".mark-symbol path", "fill")];"""
    seen = look(pages.render(ANSWER.page()), tmp_path, f"--blink-settings=preferredColorScheme={scheme}", probe=probe)
    assert seen.console == []
    assert seen.requests == []
    title, *found = seen.probe
    assert title == "pn"  # no cell was run as a script
    assert found == [_rgb(colours[name]) for name in ("ground", "ink", "muted", "c1")]
    assert len(re.findall(r'<svg [^>]*class="marks"', seen.dom)) == 1


def test_buttons_save_the_rows_and_a_picture(tmp_path):
    seen = look(pages.render(ANSWER.page()), tmp_path, probe=SAVED)
    assert seen.console == []
    saved = seen.probe
    assert pl.read_csv(saved["risk-by-rows.csv"].encode()).to_dicts() == CURVE["data"]["values"]
    table = pl.read_csv(saved["statistics.csv"].encode())
    assert table.equals(ANSWER.tables["statistics"])  # every digit, not the four that are shown
    for name in ("risk-by-rows.png", "statistics.png", "numbers.png"):
        picture = base64.b64decode(saved[name].removeprefix("data:image/png;base64,"))
        width, height = struct.unpack(">II", picture[16:24])
        assert picture.startswith(b"\x89PNG")
        assert width > 200
        assert height > 100
        (tmp_path / name).write_bytes(picture)


def test_charts_answer_to_the_mouse(tmp_path):
    probe = """
      const mark = document.querySelector(".chart .mark-symbol path");
      const place = mark.getBoundingClientRect();
      const at = { bubbles: true, clientX: place.x + place.width / 2, clientY: place.y + place.height / 2 };
      for (const kind of ["pointerover", "pointermove", "mousemove"]) mark.dispatchEvent(new PointerEvent(kind, at));
      await new Promise(done => setTimeout(done, 100));
      const tip = document.querySelector("#vg-tooltip-element");
      return [tip.textContent, getComputedStyle(tip).visibility];"""
    text, visibility = look(pages.render(ANSWER.page()), tmp_path, probe=probe).probe
    assert visibility == "visible"
    assert "rows" in text
    assert "risk" in text


def _rgb(colour):
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_a_wide_table_scrolls_inside_its_box_on_a_phone(tmp_path):
    wide = pl.DataFrame({f"a long column name {i}": [1.0 / 3] for i in range(12)})
    answer = replace(ANSWER, tables={"wide": wide})
    probe = """
      const box = [...document.querySelectorAll(".scroll")].at(-1);
      return [innerWidth, document.documentElement.scrollWidth, box.scrollWidth > box.clientWidth];"""
    width, needed, scrolls = look(pages.render(answer.page()), tmp_path, "--window-size=390,844", probe=probe).probe
    assert width <= 500
    assert needed <= width
    assert scrolls


def test_claims_with_badges_draw(tmp_path):
    table = pages.Table("parts", pl.DataFrame({"part": ["transport wins"], "effect": [0.02]}))
    claims = [
        pages.Section("pn", "holds", "A statement.", [pages.Text("", ["Why."]), pages.Figure("curve", CURVE), table]),
        pages.Section("sinkd", "inconclusive (3 seeds)", "Another.", [pages.Figure("the same", CURVE)]),
    ]
    page = pages.Page("claims", "One of two claims holds.", ["Sizes are small."], claims, {"version": "1"})
    probe = """return [document.querySelectorAll("svg.marks").length,
                       [...document.querySelectorAll("nav a")].every(link => document.querySelector(link.hash))];"""
    seen = look(pages.render(page), tmp_path, probe=probe)
    assert (seen.console, seen.requests) == ([], [])
    assert seen.probe == [2, True]


def test_the_browser_would_have_told(tmp_path):
    """A page that does ask a host, and one whose script fails, are seen as what they are."""
    bad = """<html><body><img src="http://example.invalid/x.png"><script>nothing.here();</script></body></html>"""
    seen = look(bad, tmp_path)
    assert seen.requests == ["http://example.invalid/x.png"]
    assert len([line for line in seen.console if "ReferenceError" in line]) == 1


def test_a_page_cannot_ask_a_host_even_if_told_to(tmp_path):
    html = pages.render(pages.Page("t", "A sentence."))
    seen = look(html.replace("</main>", '<img src="http://example.invalid/x.png"></main>'), tmp_path)
    assert seen.requests == []
    assert "Content Security Policy" in " ".join(seen.console)
