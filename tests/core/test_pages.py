"""What a page holds, before any browser has seen it."""

import re
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from sanov.core import charts, pages
from sanov.core.cells import shown, shown_column
from sanov.core.pages import Figure, Page, Passage, Passages, Section, Table, Text, fragment, render

EVIL = '"><script>alert(1)</script>\u2028'
CHART = {"$schema": "https://vega.github.io/x.json", "data": {"values": [{"a": 1}]}, "mark": "point"}
TABLE = pl.DataFrame({"name": ["a", "b"], "value": [0.25, -1.5], "n": [1, 2]})


class Reader(HTMLParser):
    """Collects elements and the text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.scripts, self.inside = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        (self.scripts if self.inside in ("script", "style") else self.texts).append(data)

    def text(self):
        return " ".join(" ".join(self.texts).split())

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_sentence_comes_first_then_what_was_dropped_then_the_rest():
    page = Page(
        "title", "The sentence.", ["a note"], [Text("heading", ["a paragraph"])], {"version": "1.2", "input": "ab"}
    )
    text = Reader(render(page)).text()
    order = [
        text.index(part) for part in ("The sentence.", "a note", "heading", "a paragraph", "version", "1.2", "input")
    ]
    assert order == sorted(order)


def test_nothing_is_loaded_and_nothing_could_be():
    reader = Reader(render(Page("t", "s", [], [Figure("f", CHART), Table("t", TABLE)])))
    assert [attrs for attrs in reader.of("script") if "src" in attrs] == []
    assert reader.of("link") == [{"rel": "icon", "href": "data:,"}]
    assert {tag for tag, _ in reader.tags} & {"img", "iframe", "object", "embed", "base", "form"} == set()
    policy = next(
        attrs["content"] for attrs in reader.of("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    styles = " ".join(reader.scripts[0].split())
    assert "url(" not in styles
    assert "@import" not in styles


def page_of(word):
    """A page on which every piece of text that a user can supply is the same."""
    table = pl.DataFrame({word: [word]})
    chart = {"data": {"values": [{word: word}]}, "mark": "point"}
    blocks = [
        Text(word, [word]),
        Table(word, table, word),
        Figure(word, chart, word),
        Section(word, word, word, [Table(word, table)]),
        Passages(word, [Passage(word, word, [word], [0.5])], word),
        Section(word, "holds"),
    ]
    return Page(word, word, [word], blocks, {word: word})


def test_whatever_a_user_supplies_is_text():
    html = render(page_of(EVIL))
    assert "<script>alert(1)" not in html
    evil, harmless = Reader(html), Reader(render(page_of("x")))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in harmless.tags]
    assert evil.text().count("<script>alert(1)</script>") >= 14


def test_tokens_are_shaded_by_their_numbers():
    values = [None, 0.0, 0.2, -0.2, 1.0, -40.0]
    block = Passages("s", [Passage("p", "one", list("abcdef"), values), Passage("p", "two", ["x"], [None])])
    html = render(Page("t", "s", [], [block]))
    spans = re.findall(r"<span([^>]*)>(\w)</span>", html)
    assert spans == [
        ("", "a"), (' title="+0.00"', "b"), (' class="more-1" title="+0.20"', "c"), (' class="less-1" title="-0.20"', "d"),
        (' class="more-3" title="+1.00"', "e"), (' class="less-4" title="-40.00"', "f"), ("", "x"),
    ]  # fmt: skip
    assert html.count("<details") == 1
    assert "abcdef" in fragment(Page("t", "s", [], [block]), 5)


def test_scripts_come_only_with_charts():
    assert len(render(Page("t", "s", [], [Table("t", TABLE)]))) < 30_000
    assert "vegaEmbed" in render(Page("t", "s", [], [Section("claim", "holds", "", [Figure("f", CHART)])]))


def test_the_bundle_closes_no_script_element():
    assert "</script" not in charts.javascript().lower()


def test_every_panel_has_its_buttons():
    reader = Reader(render(Page("t", "s", [], [Table("t", TABLE), Section("c", "fails", "", [Figure("f", CHART)])])))
    assert [attrs["data-form"] for attrs in reader.of("button")] == ["csv", "png"] * 2


def test_numbers_stand_right_with_their_exact_value_at_hand():
    html = render(Page("t", "s", [], [Table("t", pl.DataFrame({"name": ["a", "b"], "x": [1 / 3, -2 / 3]}))]))
    assert '<th class="n" scope="col">x</th>' in html
    assert '<td class="n" data-exact="0.3333333333333333">0.3333</td>' in html
    assert '<td class="n" data-exact="-0.6666666666666666">\u22120.6667</td>' in html
    assert "<td>a</td>" in html


def test_a_long_table_is_cut_and_says_so():
    html = render(Page("t", "s", [], [Table("t", pl.DataFrame({"i": range(501)}))]))
    assert "The first 500 of 501 rows." in html
    assert html.count("<tr>") == 501


@pytest.mark.parametrize(
    ("badge", "kind"),
    [
        ("holds", "holds"),
        ("fails", "fails"),
        ("inconclusive (3 seeds)", "inconclusive"),
        ("not run", "not-run"),
        ("new", "other"),
    ],
)
def test_a_badge_has_the_class_of_its_verdict(badge, kind):
    assert f'<span class="badge {kind}">{badge}</span>' in render(Page("t", "s", [], [Section("claim", badge)]))


def test_two_claims_have_a_list_of_contents():
    reader = Reader(render(Page("t", "s", [], [Section("one", "holds"), Section("two", "holds")])))
    targets = [attrs["href"].removeprefix("#") for attrs in reader.of("a")]
    assert targets == [attrs["id"] for attrs in reader.of("section")] == ["section-1", "section-2"]


def test_claims_of_one_heading_are_told_apart():
    """Two that are equal so far make Python compare their tables, whose truth has no single value."""
    sections = [Section("one", "holds", "", [Table("t", TABLE)]) for _ in range(2)]
    reader = Reader(render(Page("t", "s", [], [Text("", ["x"]), *sections])))
    targets = [attrs["href"].removeprefix("#") for attrs in reader.of("a")]
    found = [attrs["id"] for attrs in reader.of("section") if "id" in attrs]
    assert targets == found
    assert len(set(found)) == 2


def test_every_type_of_column_has_a_page():
    table = pl.DataFrame({"t": [timedelta(seconds=1)], "b": [b"x"], "d": [date(2024, 1, 1)], "n": [Decimal("1.5")]})
    assert 'data-exact="1.0"' in render(Page("t", "s", [], [Table("t", table)]))


# -- charts -----------------------------------------------------------------------------------------------------------


def test_a_figure_must_hold_its_data():
    for spec in (
        {"data": {"url": "http://example.invalid/x.csv"}, "mark": "point"},
        {"layer": [{"mark": "point", "data": {"url": "x.csv"}}]},
        {"mark": "point", "transform": [{"lookup": "a", "from": {"data": {"url": "x.csv"}, "key": "a"}}]},
    ):
        with pytest.raises(ValueError, match="hold its data"):
            charts.embeddable(spec)


def test_a_column_may_be_called_data_or_url():
    rows = [{"data": {"url": "x"}, "url": "y"}]
    assert charts.embeddable({"data": {"values": rows}, "mark": "point"})["data"]["values"] == rows


def test_a_figure_becomes_plain_json_as_wide_as_its_panel():
    figure = charts.embeddable({**CHART, "data": {"values": [{"a": np.float64("nan"), "b": np.int64(2)}]}})
    assert figure["data"]["values"] == [{"a": None, "b": 2}]
    assert figure["width"] == "container"
    assert "$schema" not in figure
    assert charts.embeddable({**CHART, "width": 100})["width"] == 100
    assert "width" not in charts.embeddable({"hconcat": [CHART, CHART], "data": {"values": []}})


def test_a_picture_has_real_colours():
    curve = {
        "data": {"values": [{"a": 1, "b": 2}]},
        "mark": "point",
        "encoding": {"x": {"field": "a", "type": "quantitative"}},
    }
    svg = charts.svg(curve)
    assert "var(" not in svg
    assert charts.LIGHT["c1"] in svg


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [charts.LIGHT, charts.DARK], ids=["light", "dark"])
def test_text_can_be_read_and_marks_can_be_told_from_the_ground(colours):
    """Contrast of WCAG 2.2: 4.5 for text, 3 for the marks of a chart (c6, for large areas, excepted in light)."""

    def contrast(name):
        one, two = sorted((_luminance(colours[name]), _luminance(colours["ground"])))
        return (two + 0.05) / (one + 0.05)

    assert colours.keys() == charts.LIGHT.keys()
    assert {
        name: contrast(name) for name in ("ink", "muted", "accent", "good", "bad", "open") if contrast(name) < 4.5
    } == {}
    assert {name: contrast(name) for name in ("c1", "c2", "c3", "c5") if contrast(name) < 3} == {}


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (True, "yes"),
        (np.bool_(False), "no"),
        (1599, "1599"),
        (0.0, "0"),
        (1 / 3, "0.3333"),
        (np.float32(2.5), "2.5"),
        (12345.678, "12346"),
        (1.5e-7, "1.500e-07"),
        (2.5e11, "2.500e+11"),
        (float("-inf"), "-inf"),
        ([0.25, None], "0.25, "),
        ({"a": 0.5}, "a: 0.5"),
        ("text", "text"),
    ],
    ids=str,
)
def test_a_value_is_shown_with_four_digits(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ([0.021, -0.001, 0.03], ["0.021", "-0.001", "0.030"]),
        ([1 / 3, 20 / 3], ["0.333", "6.667"]),
        ([1.0, 250.0], ["1", "250"]),
        ([1234.5, 0.25], ["1234.50", "0.25"]),
        ([1e-9, 1e5], ["1.000e-09", "100000"]),
        ([None, 0.5, float("inf")], ["", "0.5", "inf"]),
        ([0.0, 0.0], ["0", "0"]),
        ([None, None], ["", ""]),
    ],
    ids=str,
)
def test_a_column_has_the_same_decimals(column, texts):
    assert shown_column(pl.Series(column, dtype=pl.Float64)) == texts


def test_templates_are_part_of_the_package():
    assert re.search(r"prefers-color-scheme: dark", render(Page("t", "s")))
    assert pages._environment().list_templates() == ["fragment.html.j2", "page.css", "page.html.j2", "page.js"]
