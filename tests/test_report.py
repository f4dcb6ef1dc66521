"""The page, its JSON and their schemas; `python -m tests.test_report` writes docs/json.md's tables again."""

import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from fusion_onnx.testing.matrix import Cell, Matrix, Problem, RuntimeInfo, Worst
from fusion_onnx.testing.matrix import matrix as run_matrix
from fusion_onnx.verification import report
from fusion_onnx.verification.locate import Location
from fusion_onnx.verification.report import Checked, html, write_html
from fusion_onnx.verification.verdict import Finding, Verdict

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "fusion_onnx" / "verification" / "schemas"
DOCS = ROOT / "docs" / "json.md"
START, END = "<!-- fields: written by `python -m tests.test_report` from the schemas -->\n", "<!-- end of fields -->"
VOID = {"meta", "link", "br", "wbr", "input", "img"}
HOSTILE = """<script>alert("1")</script> '"><img src=http://evil.example/x onerror=alert(2)> {{ 7 * 7 }} & &lt;"""
LONG = "unbroken_" * 3 + "x" * 3000


class Page(HTMLParser):
    """What a page holds: every tag with its attributes, and the text of what has an id, of tables and of headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.tables, self.texts = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append((tag, attrs))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "td" in inside or "th" in inside:
            self.tables[-1][-1][-1] += data
        for tag, attrs in self.open:
            key = attrs.get("id", tag)
            self.texts[key] = self.texts.get(key, "") + data

    def table(self, *heads):
        """The rows, as dicts, of the tables that have these headings."""
        found = []
        for head, *rows in self.tables:
            if set(heads) <= {words(cell) for cell in head}:
                found += [dict(zip(map(words, head), map(words, row), strict=True)) for row in rows]
        return found

    def text(self, key):
        return words(self.texts.get(key, ""))


def words(text):
    return " ".join(text.split())


def problem(kind="differs", values="normal", failed="error", detail="at [1, 2] the model gives 3, eager 4", known=""):
    return Problem(kind, "Case(dims=(4, 4))", values, failed, detail, known)


def synthetic():
    """A matrix with a cell of every verdict, known and not."""
    worst = [Worst("Case(dims=(4, 4))", f"values {i}", (i, 1), 0.5, 0.25, 1.0, i / 30) for i in range(1, 6)]
    shown = {"compared": 3, "elements": 1200, "histogram": (1000, 100, 50, 30, 20, 0, 0)}
    cells = [
        Cell("sum", "here", "float32", "equal", 3, 1200, True, 0.0, (1200, 0, 0, 0, 0, 0, 0)),
        Cell("sum", "there", "float32", "equal", **shown, ratio=0.1666, worst=tuple(worst[::-1])),
        Cell("max", "here", "float32", "partly", **shown, same_bits=True, problems=(problem("cannot", failed="run"),)),
        Cell("max", "there", "float32", "partly", **shown, ratio=0.25, problems=(problem("cannot", known="empty"),)),
        Cell("min", "here", "float32", "differs", **shown, ratio=float("inf"), problems=(problem(), problem())),
        Cell("min", "there", "float32", "differs", **shown, ratio=2.5, problems=(problem(known="ties"),)),
        Cell("prod", "here", "float32", "cannot", problems=(problem("cannot", failed="load", detail="no Mul"),)),
        Cell("prod", "there", "float32", "cannot", problems=(problem("cannot", known="no-mul"),)),
        *(Cell(s, "away", "float32", "missing") for s in ("sum", "max", "min", "prod")),
    ]
    runtimes = (
        RuntimeInfo("here", "Here, CPU", "1.2", ""),
        RuntimeInfo("there", "There", "3.4", ""),
        RuntimeInfo("away", "Away", "", "not installed: pip install away"),
    )
    return Matrix(tuple(cells), runtimes, {"torch": "2.13.0", "python": "3.11"})


def hostile():
    cells = [
        Cell(
            text,
            "here",
            "float32",
            "differs",
            2,
            12,
            False,
            float("nan"),
            (0, 0, 0, 0, 0, 0, 12),
            (Worst(text, text, (0,), float("nan"), float("-inf"), 0.0, float("inf")),),
            (Problem("differs", text, text, "error", text, text),),
        )
        for text in (HOSTILE, LONG)
    ]
    return Matrix(tuple(cells), (RuntimeInfo("here", HOSTILE, LONG, ""),), {HOSTILE: LONG})


def finding(case="batch 5", failed="", detail="", ratio=0.5, **more):
    return Finding(case, "y", (5, 3), "float32", failed, detail, 1e-6, 2e-6, ratio, (1, 2), **more)


def failing():
    lost = Finding("NaN in x1", "", (), "", "run", "the runtime's words", float("inf"), 0.0, float("inf"), ())
    drifted = finding("batch 11", "error", "at [1, 2] the model gives 3", 3.5, eager_ratio=0.25, model_ratio=6.75)
    return Verdict((finding(undetermined=4), drifted, lost), ("CPUExecutionProvider",), "E(eager) + E(model)")


def location():
    return Location("merge/min_2", "merge", "median", "body", "batch 11", "the body alone gives 3, eager 4.")


@functools.cache
def every_page():
    return {
        "matrix": html(matrix=synthetic()),
        "hostile": html(matrix=hostile(), title=HOSTILE),
        "verdict": html(verdict=failing(), location=location()),
        "hostile verdict": html(
            verdict=Verdict((finding(HOSTILE, HOSTILE, HOSTILE), finding(LONG, "error", LONG)), (LONG,), LONG),
            location=SimpleNamespace(
                **dict.fromkeys(("node", "fusion", "strategy", "fault", "case", "detail"), HOSTILE)
            ),
        ),
        "checks": html(checks=[Checked(HOSTILE, failing()), Checked("fine", Verdict((finding(),), ("CPU",), "rule"))]),
        "none": html(checks=[]),
        "both": html(matrix=synthetic(), verdict=failing()),
    }


# --- a matrix -------------------------------------------------------------------------------------------------------


def test_a_real_matrix_is_shown_and_written_as_it_is():
    runtimes = ["torch_eager", "onnx_reference", "onnxruntime_cpu"]
    real = run_matrix(["sum", "low_rank_concatenation"], runtimes, cases=1)
    validate("matrix", json.loads(real.to_json()))
    page = Page(html(matrix=real))
    check(page)
    rows = {row["strategy"]: row for row in page.table("strategy", "torch_eager", "onnx_reference")}
    assert list(rows) == real.strategies
    for cell in real.cells:
        share = "same bits" if cell.same_bits else f"{cell.ratio:.2g}"
        assert cell.verdict == "equal"
        assert rows[cell.strategy][cell.runtime] == f"✓ {share}"
    assert "2 strategies × 3 runtimes × 1 dtype, 6 cells: 6 equal" in page.text("header")
    detailed = page.table("strategy", "runs", "worst on")
    assert {(r["strategy"], r["runs"], r["entries"]) for r in detailed} == {
        (c.strategy, f"{c.compared:,}", f"{c.elements:,}") for c in real.cells
    }
    worst = sorted((w for c in real.cells for w in c.worst), key=lambda w: -w.ratio)
    shown = page.table("place", "eager", "allowed")
    assert len(shown) == min(len(worst), report.TOP) > 0
    for row, entry in zip(shown, worst, strict=False):
        assert float(row["eager"]) == pytest.approx(entry.eager, rel=1e-8)
        assert (row["place"], row["values"], row["case"]) == (str(list(entry.at)), entry.values, entry.case)
    assert [r["version"] for r in page.table("runtime", "version")] == [r.version for r in real.runtimes]
    for name, value in real.environment.items():
        assert name in page.texts["dl"]
        assert value in page.texts["dl"]


def test_every_verdict_has_its_words_and_its_look():
    text = html(matrix=synthetic())
    page = Page(text)
    rows = [(r["strategy"], r["here"], r["there"]) for r in page.table("strategy", "here", "there")]
    assert rows == [
        ("sum", "✓ same bits", "✓ 0.17"),
        ("max", "◐ partly same bits", "◐ partly 0.25 (known)"),
        ("min", "✗ differs ∞", "✗ differs 2.5 (known)"),
        ("prod", "⊘ cannot", "⊘ cannot (known)"),
    ]
    looks = [a["class"] for tag, a in page.tags if tag == "td" and a.get("title")]
    assert " ".join(look.removeprefix("v ") for look in looks) == (
        "equal equal partly known differs known cannot known"
    )
    assert "2 equal (1 of them in every bit), 2 partly, 2 differ, 2 cannot, 4 missing." in page.text("header")
    assert "FAILED" in page.text("header")
    assert page.table("runtime", "here?")[2]["here?"] == "missing: not installed: pip install away"
    assert "Left out, for they are missing here: away." in words(page.texts["main"])


def test_a_matrix_with_known_problems_alone_has_passed():
    cells = (Cell("min", "here", "float32", "differs", 1, 1, False, 2.5, problems=(problem(known="ties"),)),)
    found = Matrix(cells, (RuntimeInfo("here", "Here", "1", ""),))
    page = Page(html(matrix=found))
    assert found.passed
    assert page.text("header").count("passed") == 1
    assert "Every problem is a documented difference" in page.text("header")


def test_alike_problems_are_together_and_the_unknown_come_first():
    details = [f"{n} entries; at [{n}, 1] the model gives {n}e-3, eager nan" for n in (1, 2, 3)]
    cells = tuple(
        Cell(
            s, "here", d, "differs", problems=(problem(detail="ties", known="k"), *(problem(detail=t) for t in details))
        )
        for s in ("min", "max")
        for d in ("float32", "float16")
    )
    rows = Page(html(matrix=Matrix(cells, (RuntimeInfo("here", "Here", "1", ""),)))).table("problem", "known?")
    assert [(r["problem"], r["known?"], r["runtime, dtypes"]) for r in rows] == [
        ("P1", "unknown", "here, float32, float16"),
        ("P2", "known: k", "here, float32, float16"),
    ]
    assert rows[0]["what it says"] == details[0]
    assert rows[0]["where"].startswith("12 times, in min, max")
    assert rows[1]["where"].startswith("4 times, in min, max")


def test_histograms_are_drawn_on_a_logarithmic_scale():
    page = Page(html(matrix=synthetic()))
    charts = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert charts[1].endswith(
        "share 0: 3,000; share ≤ 0.01: 300; share ≤ 0.1: 150; share ≤ 0.25: 90; "
        "share ≤ 0.5: 60; share ≤ 1: 0; share > 1: 0"
    )
    heights = report._chart([1, 10, 100, 0, 0, 0, 1000])["bars"]
    steps = [heights[i + 1]["height"] - heights[i]["height"] for i in range(2)]
    assert steps[0] == pytest.approx(steps[1])
    assert heights[0]["height"] > 0
    assert heights[3]["height"] == 0
    for counts in ([0] * 7, [1] * 7, [10**12] * 7):
        assert all(20 < bar["y"] <= 156 for bar in report._chart(counts)["bars"])


def test_only_the_twenty_worst_are_listed_of_all_runtimes():
    worst = [tuple(Worst("c", f"v{i}", (0,), 1.0, 2.0, 3.0, (5 * k + i) / 100) for i in range(5)) for k in range(6)]
    cells = tuple(Cell("sum", f"r{k}", "float32", "equal", 1, 1, worst=w) for k, w in enumerate(worst))
    infos = tuple(RuntimeInfo(f"r{k}", f"R{k}", "1", "") for k in range(6))
    rows = Page(html(matrix=Matrix(cells, infos))).table("place", "eager", "allowed")
    assert [float(row["ρ"]) for row in rows] == [i / 100 for i in range(29, 9, -1)]


# --- a verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [location(), location().to_dict(), None], ids=["object", "mapping", "none"])
def test_a_verdict_is_shown_as_it_is(where):
    verdict = failing()
    page = Page(html(verdict=verdict, location=where))
    rows = page.table("case", "largest error", "undetermined")
    assert [(r["case"], r["output"], r["shape"], r["dtype"]) for r in rows] == [
        ("batch 5", "y", "[5, 3]", "float32"),
        ("batch 11", "y", "[5, 3]", "float32"),
        ("NaN in x1", "all", "[]", "–"),
    ]
    assert [r["verdict"] for r in rows] == ["✓ equal", "✗ differs: error", "✗ differs: run"]
    assert [(r["ρ"], r["allowed"], r["at"]) for r in rows] == [
        ("0.5", "2e-06", "[1, 2]"),
        ("3.5", "2e-06", "[1, 2]"),
        ("∞", "0", "–"),
    ]
    assert [(r["eager, float64"], r["model, float64"], r["undetermined"]) for r in rows] == [
        ("–", "–", "4"),
        ("0.25", "6.75", "0"),
        ("–", "–", "0"),
    ]
    main = words(page.texts["main"])
    for text in (*verdict.reasons, verdict.rule, *verdict.providers):
        assert text in main
    assert ("Where it starts" in main) == (where is not None)
    if where is not None:
        assert all(value in main for value in location().to_dict().values())


def test_several_verdicts_are_listed_each_with_its_findings():
    fine = Verdict((finding(),), ("CPUExecutionProvider",), "rule")
    page = Page(html(checks=[Checked("tests/a.py::one", fine), Checked("two", failing(), location())]))
    assert [(r["check"], r["verdict"], r["outputs"]) for r in page.table("check", "verdict")] == [
        ("tests/a.py::one", "✓ passed", "1 output compared, all equal"),
        ("two", "✗ FAILED", "3 outputs compared, 2 failed"),
    ]
    assert "2 checks: 1 passed, 1 failed." in page.text("header")
    assert ["open" in a for tag, a in page.tags if tag == "details"] == [False, True]
    assert "Nothing was compared." in Page(html(checks=[])).text("header")


# --- any page -------------------------------------------------------------------------------------------------------


def check(page):
    """Check that a page is whole, accessible, and fetches and runs nothing."""
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "img", "iframe", "object", "base"} & set(tags)
    assert tags.count("link") == 1  # the empty icon, so that browsers ask for none
    for tag, attrs in page.tags:
        assert not [key for key in attrs if key.startswith("on")], (tag, attrs)
        for key in {"src", "href", "srcset", "action", "data", "xlink:href"} & set(attrs):
            assert attrs[key].startswith("#") or attrs[key] == "data:,", (tag, attrs)
    assert not re.search(r"url\(|@import", page.texts["style"])
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} <= set(ids)
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), levels


@pytest.mark.parametrize("name", every_page())
def test_pages_are_whole_accessible_and_fetch_nothing(name):
    check(Page(every_page()[name]))


def test_hostile_text_is_shown_and_nothing_more():
    for name in ("hostile", "hostile verdict", "checks"):
        page = Page(every_page()[name])
        assert HOSTILE in page.texts["body"], name
        assert "49" not in page.texts["h1"]
    assert LONG in every_page()["hostile verdict"]


def test_the_same_page_comes_from_json():
    assert html(matrix=json.loads(synthetic().to_json())) == html(matrix=synthetic())
    data = json.loads(failing().to_json())
    assert html(verdict=data, location=location()) == html(verdict=failing(), location=location())
    assert html(verdict={**data, "location": location().to_dict()}) == html(verdict=failing(), location=location())


def test_numbers():
    shown = [report.number(v) for v in (None, 0, 0.123456, float("nan"), "nan", "inf", float("-inf"), 1e-300)]
    assert shown == ["–", "0", "0.123", "NaN", "NaN", "∞", "−∞", "1e-300"]


def test_write_html_writes_the_page_and_refuses_what_it_cannot(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    assert write_html(target, verdict=failing(), title="caf\u00e9 \udc80") == target
    assert "café \\udc80" in target.read_text(encoding="utf-8")
    write_html(str(target), verdict=failing())
    assert target.read_text(encoding="utf-8") == html(verdict=failing())
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist; make it first"):
        write_html(tmp_path / "nowhere" / "page.html", verdict=failing())
    with pytest.raises(ValueError, match=r"a matrix, a verdict or checks; got none of them"):
        write_html(tmp_path / "none.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2.*pip install"):
        html(verdict=failing())
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


# --- JSON -----------------------------------------------------------------------------------------------------------


def schema(name):
    found = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def validate(name, data):
    jsonschema.Draft202012Validator(schema(name)).validate(data)


def test_what_is_written_fits_the_schemas():
    for found in (synthetic(), hostile()):
        validate("matrix", json.loads(found.to_json()))
    for verdict in (failing(), Verdict((), (), "rule")):
        data = json.loads(verdict.to_json())
        validate("verdict", data)
        for where in (None, location().to_dict()):
            validate("verdict", {**data, "location": where})


def objects(node):
    """Every object with properties in a schema."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        for value in node.values():
            yield from objects(value)


@pytest.mark.parametrize("name", ["verdict", "matrix"])
def test_schemas_admit_no_other_field_and_describe_each(name):
    for found in objects(schema(name)):
        assert found["additionalProperties"] is False
        assert set(found["properties"]) - set(found["required"]) <= {"location"}
        assert found["description"]
        assert all(part["description"].endswith((".", "?")) for part in found["properties"].values())
    for change in (
        lambda data, inner: data.update(more=1),
        lambda data, inner: inner.update(more=1),
        lambda data, inner: inner.pop("ratio"),
        lambda data, inner: inner.update(ratio="0.5"),
        lambda data, inner: data.update(schema="fusion-onnx/other/1"),
    ):
        data = json.loads((synthetic() if name == "matrix" else failing()).to_json())
        validate(name, data)
        change(data, data["cells" if name == "matrix" else "findings"][0])
        with pytest.raises(jsonschema.ValidationError):
            validate(name, data)


def test_schemas_have_the_fields_of_the_classes():
    def fields(cls):
        return {field.name for field in dataclasses.fields(cls)}

    parts = schema("matrix")["$defs"]
    for cls, part in ((Cell, "cell"), (Problem, "problem"), (Worst, "worst"), (RuntimeInfo, "runtime")):
        assert fields(cls) == set(parts[part]["properties"])
    parts = schema("verdict")["$defs"]
    assert fields(Finding) | {"passed"} == set(parts["finding"]["properties"])
    assert fields(Location) == set(parts["location"]["properties"])


def kind(part):
    """What a field holds, in a few words."""
    if "$ref" in part:
        return part["$ref"].rpartition("/")[2]
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "oneOf" in part:
        return " or ".join(map(kind, part["oneOf"]))
    if "enum" in part:
        return ", ".join(f"`{json.dumps(value)}`" for value in part["enum"])
    if part["type"] == "array":
        return f"array of {kind(part['items'])}"
    if part["type"] == "object":
        return f"object of {kind(part['additionalProperties'])}"
    return part["type"]


def fields_documented():
    """docs/json.md's tables, from the schemas."""
    lines = []
    for name in ("verdict", "matrix"):
        found = schema(name)
        parts = {k: part for k, part in found["$defs"].items() if "properties" in part}
        for title, part in {f"{found['title']}": found, **parts}.items():
            level = "##" if part is found else "###"
            lines += ["", f"{level} {title if part is found else f'{name}: {title}'}", "", part["description"], ""]
            lines += ["| field | holds | what it is |", "|---|---|---|"]
            for key, field in part["properties"].items():
                optional = "" if key in part["required"] else " (optional)"
                cells = (f"`{key}`{optional}", kind(field), field["description"])
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", ""])


def generated(text):
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{fields_documented()}{END}{after}"


def test_the_docs_list_exactly_the_fields_of_the_schemas():
    text = DOCS.read_text(encoding="utf-8")
    assert text == generated(text), "docs/json.md is out of date: run `python -m tests.test_report`"
    listed = re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
    assert listed == [
        key for name in ("verdict", "matrix") for part in objects(schema(name)) for key in part["properties"]
    ]


# --- a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A function that runs headless Chromium with options on a page, and returns what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        why = f"no browser to look at the page with: none of {', '.join(names)} is installed"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    profile = tmp_path_factory.mktemp("profile")

    def run(page, *options):
        fixed = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}")
        command = [found, *fixed, *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def picture(path):
    """A PNG's width, height, first pixel and rows as they are filtered, of which one colour has no more than a few."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colours, *_ = struct.unpack(">IIBBBBB", data[16:29])
    assert depth == 8
    packed, at = b"", 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += 12 + size
    raw = zlib.decompress(packed)
    step = len(raw) // height
    assert step == 1 + width * {2: 3, 6: 4}[colours]
    return width, height, tuple(raw[1:4]), {raw[i : i + step] for i in range(0, len(raw), step)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 900), (500, 900)], ids=["wide", "narrow"])
def test_a_browser_shows_the_page(chromium, tmp_path, scheme, size):
    page = write_html(tmp_path / "page.html", matrix=synthetic(), verdict=failing(), location=location())
    shot = tmp_path / "shot.png"
    dark = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    chromium(page, dark, f"--window-size={size[0]},{size[1]}", f"--screenshot={shot}")
    width, height, corner, rows = picture(shot)
    assert (width, height) == size
    assert corner == {"light": (255, 255, 255), "dark": (0x14, 0x18, 0x1D)}[scheme]
    assert len(rows) > 100


def test_a_browser_builds_the_tables(chromium, tmp_path):
    page = write_html(tmp_path / "page.html", matrix=synthetic(), verdict=failing())
    dom = chromium(page, "--dump-dom")
    opened = re.findall(r"<table[^>]*>.*?</table>", dom, re.DOTALL)
    assert len(opened) == len(Page(page.read_text(encoding="utf-8")).tables)
    assert "differs 2.5 (known)" in opened[0]
    assert len(re.findall("<tr", opened[0])) == 5


@pytest.mark.parametrize("name", ["hostile", "hostile verdict", "checks", "both"])
def test_no_text_is_wider_than_a_narrow_window(chromium, tmp_path, name):
    """Tables scroll in their own boxes; measured by a script that the page itself would not let run."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", every_page()[name])
    script = "<script>document.body.dataset.wide = document.documentElement.scrollWidth</script></body>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", script), encoding="utf-8")
    dom = chromium(page, "--window-size=500,900", "--dump-dom")
    assert re.search(r'data-wide="(\d+)"', dom)[1] == "500"


if __name__ == "__main__":
    DOCS.write_text(generated(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
