"""The page on a rewrite: read by a parser of its own, beside the JSON document it is made from."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr.delivery import RewriteResult
from onnxlr.errors import VerificationError
from onnxlr.plan import Plan
from onnxlr.planning import Contender, Findings, RoundRecord
from onnxlr.reporting import to_document
from onnxlr.runtime import Footprint, Footprints, Latency
from tests.classifier import classifier, samples

pytest.importorskip("jinja2", reason="pages need the extra onnxlr[report]")

from onnxlr.reporting.page import Origin, page_of, page_with_spectra

VOID = {"meta", "br", "wbr", "img", "input", "link", "hr"}
NAMES = {
    "first": "<script>alert(1)</script>",
    "second": "\"><img src=x onerror='alert(2)'>/a&amp;b",
    "head": "{{ 7*7 }}\u202e\x1b[31m</td></table>",
}


@dataclass
class Element:
    """A tag, its attributes, and what is inside."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, tag: str, **attributes: str) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                wanted = all(child.attributes.get(k) == v for k, v in attributes.items())
                if child.tag == tag and wanted:
                    yield child
                yield from child.all(tag, **attributes)

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found


class Parser(HTMLParser):
    """Builds the tree, and fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(text: str) -> Element:
    parser = Parser()
    parser.feed(text)
    parser.close()
    (root,) = parser.open
    return root


def named(names: dict[str, str] = NAMES) -> onnx.ModelProto:
    """Return the classifier with other names of its nodes."""
    model = classifier()
    for node in model.graph.node:
        node.name = names.get(node.name, node.name)
    return model


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a model of hostile names, and the document of its rewrite, one layer left alone."""
    folder = tmp_path_factory.mktemp("page")
    onnx.save(named(), folder / "m.onnx")
    result = onnxlr.rewrite(
        folder / "m.onnx",
        rank=4,
        skip=["*7[*]7*"],
        data={"x": samples(64)},
        tolerance="cosine>=0.9",
        isolate=False,
    )
    return folder / "m.onnx", to_document("rewrite", result)


@pytest.fixture(scope="module")
def page(rewritten: tuple[Path, dict[str, Any]]) -> str:
    path, document = rewritten
    origin = Origin(path, {"--rank": "4", "--skip": "<b>"})
    return page_with_spectra(json.loads(json.dumps(document)), origin)


def test_it_is_well_formed_and_its_links_lead_somewhere(page: str) -> None:
    assert page.startswith("<!DOCTYPE html>")
    root = parsed(page)
    everything = list(elements(root))
    ids = Counter(e.attributes["id"] for e in everything if "id" in e.attributes)
    assert set(ids.values()) == {1}
    links = [link.attributes["href"] or "" for link in root.all("a")]
    assert len(links) >= 5
    for link in links:
        assert link[0] == "#"
        assert link[1:] in ids
    for element in everything:
        label = element.attributes.get("aria-labelledby")
        assert label is None or label in ids
    tables = list(root.all("table"))
    assert len(tables) == len(list(root.all("caption"))) >= 4
    assert root.one("html").attributes["lang"] == "en"


def elements(root: Element) -> Iterator[Element]:
    for child in root.children:
        if isinstance(child, Element):
            yield child
            yield from elements(child)


def test_nothing_is_fetched(page: str) -> None:
    root = parsed(page)
    for element in elements(root):
        assert element.tag not in {
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "use",
        }
        assert not {"src", "srcset", "style", "data", "action", "xlink:href"} & set(
            element.attributes
        )
        assert not any(name.startswith("on") for name in element.attributes)
        for name, value in element.attributes.items():
            assert "//" not in (value or "") or name == "content", (name, value)
    assert "url(" not in root.one("style").text
    assert "@import" not in root.one("style").text
    for word in ("fetch", "XMLHttpRequest", "import(", "innerHTML", "eval", "//"):
        assert word not in root.one("script").text


def test_the_policy_allows_this_style_and_this_script_alone(page: str) -> None:
    root = parsed(page)
    (policy,) = root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(
        rule.strip().split(" ", 1) for rule in (policy.attributes["content"] or "").split(";")
    )
    assert rules["default-src"] == "'none'"
    for kind in ("style", "script"):
        digest = hashlib.sha256(root.one(kind).text.encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{b64encode(digest).decode()}'"


def legible(text: str) -> str:
    return text.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")


def test_names_are_text_whatever_is_in_them(page: str) -> None:
    root = parsed(page)
    assert len(list(root.all("script"))) == 1
    assert "alert" not in root.one("script").text
    assert list(root.all("img")) == []
    assert not any(c in page for c in "\u202e\x1b")
    heads = [" ".join(h.text.split()) for h in root.all("th", **{"class": "layer"})]
    operators = {"first": "MatMul", "second": "MatMul", "head": "Gemm"}
    assert sorted(heads) == sorted(f"{legible(NAMES[k])} {operators[k]}" for k in NAMES)
    assert "--skip <b>" in [code.text for code in root.all("code")]
    plan = json.loads(root.one("pre").text.replace("\\u202e", "\u202e"))
    assert list(plan["layers"]) == list(NAMES.values())


def test_each_layer_is_in_one_table_once_and_in_the_order_of_the_graph(
    page: str, rewritten: tuple[Path, dict[str, Any]]
) -> None:
    root = parsed(page)
    numbers = {}
    for name in ("layer-table", "kept-table"):
        rows = list(root.one("table", id=name).one("tbody").all("tr"))
        numbers[name] = [next(row.all("td")).attributes["data-value"] for row in rows]
        (sorted_by,) = root.one("table", id=name).all("th", **{"aria-sort": "ascending"})
        assert sorted_by.text == "#"
    assert numbers == {"layer-table": ["1", "2"], "kept-table": ["3"]}
    why = rewritten[1]["layers"][2]["choice"]["reason"]
    assert why in root.one("table", id="kept-table").text


KEYS = {
    "weight error": "error",
    "output error": "output_error",
    "plain fit": "plain_error",
    "numbers": "ratio",
    "before": "bytes_before",
    "after": "bytes_after",
}


def test_numbers_are_those_of_the_document(
    page: str, rewritten: tuple[Path, dict[str, Any]]
) -> None:
    _, document = rewritten
    table = parsed(page).one("table", id="layer-table")
    titles = [head.text for head in table.one("thead").all("th")]
    assert {"weight error", "numbers", "before", "after"} <= set(titles)
    records = [r for r in document["layers"] if r["choice"]["method"] != "keep"]
    rows = list(table.one("tbody").all("tr"))
    assert len(rows) == len(records) == 2
    for row, record in zip(rows, records, strict=True):
        cells = [c for c in row.children if isinstance(c, Element)]
        values = dict(zip(titles, cells, strict=True))
        for title, key in KEYS.items():
            if title in titles:
                assert float(values[title].attributes["data-value"] or "") == record[key]
        assert float(values["shape"].attributes["data-value"] or "") == np.prod(record["shape"])
        part = record["bytes_after"] / record["bytes_before"]
        assert float(values["of before"].attributes["data-value"] or "") == part
        bar = list(values["of before"].all("rect"))[1].attributes["width"] or ""
        assert float(bar.rstrip("%")) == pytest.approx(100 * part, abs=1e-3)


def test_sizes_and_proofs_are_those_of_the_document(
    page: str, rewritten: tuple[Path, dict[str, Any]]
) -> None:
    _, document = rewritten
    root = parsed(page)
    size = next(root.one("table", id="pairs").one("tbody").all("tr"))
    found = [float(cell.attributes["data-value"] or "") for cell in size.all("td")]
    before, after = document["bytes_before"], document["bytes_after"]
    assert found == [before, after, after / before]
    comparisons = [c for k in document["report"]["checks"] for c in k["comparisons"]]
    rows = list(root.one("table", id="proof-table").one("tbody").all("tr"))
    assert len(rows) == len(comparisons) == 4
    for row, comparison in zip(rows, comparisons, strict=True):
        cells = list(row.all("td"))
        assert float(cells[3].attributes["data-value"] or "") == comparison["cosine"]
        assert cells[-1].text.strip() == "✓ passed"
    assert parsed(page).one("head").one("title").text == "Verified: m.onnx"


def test_marks_of_errors_are_where_the_axis_says(
    page: str, rewritten: tuple[Path, dict[str, Any]]
) -> None:
    chart = parsed(page).one("section", id="errors").one("figure")
    ticks = {
        float(t.text): float((t.attributes["y"] or "").rstrip("%"))
        for t in chart.all("text", **{"class": "tick left"})
    }
    (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
    assert (bottom, top) == (100, 0)
    errors = [r["error"] for r in rewritten[1]["layers"] if r["error"] is not None]
    marks = [c for c in chart.all("circle") if "cx" in c.attributes and "%" in str(c.attributes)]
    assert len(marks) == len(errors) == 2
    for mark, error in zip(marks, errors, strict=True):
        height = 100 * (1 - np.log10(error / low) / np.log10(high / low))
        assert float((mark.attributes["cy"] or "").rstrip("%")) == pytest.approx(height, abs=0.01)


def test_spectra_say_what_numpy_says(page: str) -> None:
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in classifier().graph.initializer
        if tensor.name in ("w1", "w2")
    ]
    cards = list(parsed(page).all("figure", **{"class": "card"}))
    assert len(cards) == len(weights) == 2
    for card, weight in zip(cards, weights, strict=True):
        squares = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
        kept = squares[:4].sum() / squares.sum()
        assert f"rank 4 keeps {kept:.1%}" in card.text
        rank = card.one("line", **{"class": "rank"}).attributes["x1"] or ""
        assert float(rank.rstrip("%")) == pytest.approx(400 / len(squares), abs=1e-3)
        points = (card.one("polyline").attributes["points"] or "").split()
        assert len(points) == len(squares)


def test_the_same_document_makes_the_same_page(
    page: str, rewritten: tuple[Path, dict[str, Any]]
) -> None:
    path, document = rewritten
    assert page_with_spectra(document, Origin(path, {"--rank": "4", "--skip": "<b>"})) == page


def test_a_refused_model_says_why_and_where(tmp_path: Path) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    with pytest.raises(VerificationError) as refused:
        onnxlr.rewrite(tmp_path / "m.onnx", rank=1, data={"x": samples(32)}, isolate=False)
    document = to_document("rewrite", refused.value.result)
    root = parsed(page_with_spectra(document, Origin(tmp_path / "m.onnx")))
    assert root.one("head").one("title").text == "Refused: m.onnx"
    assert root.one("p", **{"class": "verdict bad"}).text.startswith("✗ Refused")
    failures = [li.text for li in root.one("ul", **{"class": "failures"}).all("li")]
    assert failures == document["report"]["failures"]
    drifts = [th.text for th in root.one("table", id="drifts").one("tbody").all("th")]
    assert drifts == [drift["layer"] for drift in document["report"]["drifts"]]
    held = [td.text.strip() for td in root.one("table", id="outputs").one("tbody").all("td")]
    assert held[-1] == "✗ does not hold"


def test_a_model_that_failed_and_was_kept(rewritten: tuple[Path, dict[str, Any]]) -> None:
    path, document = rewritten
    failed = json.loads(json.dumps(document))
    failed["report"]["passed"] = False
    words = parsed(page_of(failed, Origin(path), spectra_none())).one("head").one("title").text
    assert words == "Failed: m.onnx"


def spectra_none() -> Any:
    from onnxlr.reporting.page import Spectra

    return Spectra(notes=("no <i>spectra</i>",))


DROPS = {"cosine": 0.0123, "<b>:accuracy": -0.002}
FOUND = Findings(
    "the smallest file; cosine may drop by 0.02",
    (
        Contender(
            "original", 10_000_000, 1.0, 12.0, 1.0, 0.99, 1.01, dict.fromkeys(DROPS, 0.0), True
        ),
        Contender("MatMulNBits", problem="it has <i>no</i> table"),
        Contender("static int8", 2_500_000, 0.25, drops={"cosine": 0.5}, is_stock=True),
        Contender("onnxlr", 2_000_000, 0.2, 6.0, 0.5, 0.48, 0.52, DROPS, meets=True, chosen=True),
    ),
    (
        RoundRecord(90, 0.2, 0.5, 0.02, 0.25, 0.55, DROPS, meets=False),
        RoundRecord(91, 0.22, 0.52, 0.0201, None, None, {}, False, "it cannot be loaded"),
    ),
    700,
    20,
)


def result_of(**changed: Any) -> RewriteResult:
    plan = Plan({}, None, "onnx", 0, "1", None, False, None)
    return RewriteResult(Path("o.onnx"), plan, (), None, 100, 100, **changed)


def test_what_was_compared_is_said_in_words_numbers_and_bars() -> None:
    document = to_document("rewrite", result_of(findings=FOUND))
    root = parsed(page_of(document, Origin(Path("m.onnx")), spectra_none()))
    rows = list(root.one("table", id="contest").one("tbody").all("tr"))
    assert [row.one("th").text for row in rows] == [c.name for c in FOUND.contenders]
    assert [list(row.all("td"))[-1].text.strip() for row in rows] == [
        "meets the goal",
        "it has <i>no</i> table",
        "✗ misses the goal",
        "✓ chosen",
    ]
    for row, contender in zip(rows, FOUND.contenders, strict=True):
        cells = [cell.attributes.get("data-value") for cell in row.all("td")]
        expected = (contender.size, contender.latency, *(contender.drops.get(k) for k in DROPS))
        assert cells[:-1] == [None if e is None else str(e) for e in expected]
    built = list(root.one("table", id="rounds").one("tbody").all("tr"))
    size = list(built[0].all("td"))[1]
    marks = [c.attributes["cx"] for c in size.all("circle")]
    assert marks == ["20.0%", "25.0%"]
    assert "0.200 → 0.250" in size.text
    missing = list(built[1].all("td"))[1]
    assert len(list(missing.all("circle"))) == 1
    assert "0.220 → –" in missing.text
    assert root.one("head").one("title").text == "Copied: m.onnx"
    assert "no <i>spectra</i>" in root.one("section", id="spectra").text


def test_a_goal_that_is_not_met_has_findings_only() -> None:
    document = to_document("findings", FOUND)
    root = parsed(page_with_spectra(document, Origin(Path("m.onnx"))))
    assert root.one("head").one("title").text == "Goal not met: m.onnx"
    assert FOUND.goal in root.one("section", id="compared").text
    assert list(root.all("section", id="layers")) == []


def test_footprints_are_bars_where_they_were_measured() -> None:
    pace = Latency(2e-3, 1.0, 1.0, 1.0)
    before = Footprint(100, 0.5, 4000, None, pace)
    after = Footprint(100, 0.25, None, None, Latency(1e-3, 0.5, 0.4, 0.6))
    document = to_document("rewrite", result_of(footprints=Footprints(before, after)))
    root = parsed(page_of(document, Origin(Path("m.onnx")), spectra_none()))
    rows = {
        row.one("th").text: [cell.text.strip() for cell in row.all("td")]
        for row in root.one("table", id="pairs").one("tbody").all("tr")
    }
    assert rows["time to load"] == ["500 ms", "250 ms", "50.0%"]
    assert rows["memory when loaded"] == ["4 kB", "–", ""]
    assert rows["peak of memory"] == ["–", "–", ""]
    assert rows["time of a run, one thread"] == ["2 ms", "1 ms", "50.0%"]


def test_a_path_that_is_no_text_is_written_as_one() -> None:
    document = to_document("findings", FOUND)
    text = page_with_spectra(document, Origin(Path("m\udcff.onnx")))
    assert "m\\udcff.onnx" in text
    text.encode("utf-8")


def test_colours_of_the_dark_are_for_screens_only(page: str) -> None:
    style = parsed(page).one("style").text
    dark = re.findall(r"@media ([^{]*prefers-color-scheme: dark[^{]*)", style)
    assert dark == ["screen and (prefers-color-scheme: dark) "]
    defined = set(re.findall(r"(--\w+):", style))
    assert set(re.findall(r"var\((--\w+)\)", style)) == defined


SORTS = """
const table = document.getElementById("layer-table");
const found = [];
for (const column of [4, 4, 1]) {
  const head = table.tHead.rows[0].cells[column];
  head.querySelector("button").click();
  const rows = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  found.push([head.getAttribute("aria-sort"), ...rows].join(" "));
}
document.body.dataset.found = found.join("|");
"""


def browsed(folder: Path, *arguments: str) -> str:
    """Run a browser without a window, and return what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("there is no Chromium to run the page in")
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/b")
    command = [browser, *flags, *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    return ended.stdout


def test_print_unfolds_the_plan_and_no_cell_of_a_table(
    rewritten: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, document = rewritten
    sheets = []
    for rejected, lines in ((0, 1), (300, 1), (0, 1500)):
        made = json.loads(json.dumps(document))
        for record in made["layers"]:
            record["choice"]["rejected"] = {f"candidate {k}": "costs more" for k in range(rejected)}
        made["plan"]["lines"] = list(range(lines))
        (tmp_path / "p.html").write_text(page_with_spectra(made, Origin(model)), "utf-8")
        browsed(tmp_path, f"--print-to-pdf={tmp_path}/p.pdf", (tmp_path / "p.html").as_uri())
        sheets.append(len(re.findall(rb"/Type /Page\b", (tmp_path / "p.pdf").read_bytes())))
    plain, with_candidates, with_a_long_plan = sheets
    assert 0 < plain == with_candidates
    assert with_a_long_plan >= plain + 10


def test_headings_sort_in_a_browser(page: str, tmp_path: Path) -> None:
    # The page's own policy lets no other script run: it is taken off to look from inside.
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    file = tmp_path / "page.html"
    file.write_text(open_page.replace("</body>", f"<script>{SORTS}</script></body>"), "utf-8")
    dom = browsed(tmp_path, "--dump-dom", file.as_uri())
    errors = [row.all("td") for row in parsed(page).one("table", id="layer-table").all("tr")]
    values = {
        cells[0].text: float(cells[3].attributes["data-value"] or "")
        for cells in map(list, errors)
        if cells
    }
    rising = sorted(values, key=lambda number: values[number])
    by_name = sorted(values, key=lambda number: legible(list(NAMES.values())[int(number) - 1]))
    (found,) = re.findall('data-found="([^"]*)"', dom)
    assert found.split("|") == [
        " ".join(("ascending", *rising)),
        " ".join(("descending", *rising[::-1])),
        " ".join(("ascending", *by_name)),
    ]
