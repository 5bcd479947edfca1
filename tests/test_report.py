"""Pages for people who would rather look: what is in them, and how a real browser shows them."""

from __future__ import annotations

import html
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pdfplumber
import pypdfium2
import pytest
from browser import DESK, PHONE, chromium, showing
from playwright.sync_api import Browser

from vecbridge import planner, report
from vecbridge.candidates import Aim, candidates
from vecbridge.errors import InputError
from vecbridge.evaluate import Report
from vecbridge.evidence import MOST, SHOWN, Curve, Evidence
from vecbridge.explain import describe, grouped, why
from vecbridge.manifest import Manifest, Tuned
from vecbridge.planner import Plan
from vecbridge.recall import Recall
from vecbridge.report import figures
from vecbridge.report.values import FAMILIES
from vecbridge.sizes import estimate
from vecbridge.tuning import Step
from vecbridge.types import Element, Index, IndexState, Layout, Shorten, Space


def recall(mean: float, queries: int = 500) -> Recall:
    half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.002) / queries)
    return Recall(mean, max(mean - half, 0.0), min(mean + half, 1.0), queries)


def curve(element: Element, shorten: Shorten | None, missed: float, *, trend: float = 0.0) -> Curve:
    """A representation that misses this share without oversampling, and less and less with more of it."""
    found = tuple(recall(1 - missed / size ** (0.6 + 1.2 * (1 - missed))) for size in range(1, MOST + 1))
    return Curve(element, shorten, found, (trend,) * MOST, 10_000)


def evidence(dim: int = 3584, *, held_out: bool = True, rows: int = 10_000, trend: float = -0.12) -> Evidence:
    """Evidence with fixed numbers, as long-tailed text vectors give it."""
    sizes = [size for size in (64, 128, 256, 512, 1024, 2048) if size < dim]
    curves = [
        curve("float16", None, 0.001),
        curve("int8", None, 0.012, trend=trend),
        curve("bit", None, 0.37, trend=trend),
    ]
    for size in sizes:
        share = (size / dim) ** 0.5
        curves += [
            curve("float16", Shorten("truncate", size), 0.97 * (1 - share), trend=trend),
            curve("float16", Shorten("pca", size), 0.80 * (1 - share) ** 1.4, trend=trend),
            curve("float16", Shorten("pca", size, centred=True), 0.66 * (1 - share) ** 1.4, trend=trend),
        ]
    weights = [1 / (one + 3) for one in range(min(dim, 2048))]
    return Evidence(
        k=10, rows=rows, queries=500, dim=dim, held_out=held_out, seed=7,
        curves=tuple(replace(one, rows=rows) for one in curves),
        spectrum=tuple(0.93 * one / sum(weights) for one in weights), mean_energy=0.31, seconds=21.4,
    )  # fmt: skip


def manifest(*, tuned: bool = True, index: Index | None = None) -> Manifest:
    index = index or Index("hnsw", "bit", ef_search=200)
    return Manifest(
        "abstracts", Space(3584, "cosine", model="bge-multilingual-gemma2"),
        Layout(index=index, oversample=8), rows=250_000, recall=0.95,
        tuned=Tuned(0.95, 10, recall(0.957, 100), 240_000, held_out=True, seed=3) if tuned else None,
    )  # fmt: skip


def result(
    found: float = 0.957, *, where: Mapping[str, Any] | None = None, selectivity: float = 1.0
) -> Report:
    interval = recall(found, 200)
    return Report(
        k=10, rows=250_000, queries=200, recall=interval.mean, low=interval.low, high=interval.high,
        p50_ms=6.2, p95_ms=11.9, p99_ms=19.3, exact_p50_ms=412.0, exact_p95_ms=498.5, exact_p99_ms=530.1,
        short=0, index=IndexState("ready", used=True), against="stored float32 vectors",
        source="stored records, each left out of its own results, seed 3", seed=3, where=where,
        matching=round(250_000 * selectivity), selectivity=selectivity, drift=None, tuned=manifest().tuned,
    )  # fmt: skip


def steps(name: str = "ef_search") -> list[Step]:
    kind = "hnsw" if name == "ef_search" else "ivfflat"
    found = []
    for oversample in (1, 4, 8):
        for width in (40, 80, 200, 400):
            if width >= 10 * oversample:
                index = replace(Index(kind, "bit", lists=1000), **{name: width})
                layout = Layout(index=index, oversample=oversample)
                share = 1 - 0.37 / oversample**0.9 - 0.4 / width
                found.append(Step(layout, recall(share, 100), 1 + width / 40, 2 + width / 18, 0))
    return found


def many() -> Plan:
    """A plan with a target, several places, and layouts refused for every reason there is."""
    return planner.plan(
        3584, rows=5_000_000, on=["pgvector", "qdrant"], recall=0.95, memory="16GB", sample=evidence()
    )


def unmeasured() -> Plan:
    return planner.plan(3584, rows=5_000_000, on=["pgvector", "qdrant"], memory="16GB")


def missed() -> Plan:
    """A plan made before the sample was measured, which then tells that it finds too little."""
    made = planner.plan(768, rows=1_000_000, on="pgvector")
    poor = Layout(index=Index("hnsw", "bit", ef_search=200), oversample=2)
    return replace(made, layout=poor, target=0.95, evidence=evidence(768))


def evaluation(**changes: Any) -> str:
    filters = [
        result(0.94, where={"lang": "de"}, selectivity=0.4),
        result(0.99, where={"journal": "A rather long name of a journal"}, selectivity=0.002),
    ]
    given: dict[str, Any] = {"filtered": filters, "steps": steps(), "manifest": manifest(), **changes}
    return report.evaluation_page("abstracts", "postgresql://localhost/papers", result(), **given)


PAGES: dict[str, Callable[[], str]] = {
    "many": lambda: report.plan_page(many()),
    "unmeasured": lambda: report.plan_page(unmeasured()),
    "missed": lambda: report.plan_page(missed()),
    "given queries": lambda: report.plan_page(
        planner.plan(
            1536, rows=2_000_000, on="qdrant", nodes=3, recall=0.9, memory="4GB",
            model="text-embedding-3-small", sample=evidence(1536, held_out=False),
        )
    ),
    # no target, hence many sizes
    "crowded": lambda: report.plan_page(
        planner.plan(3584, rows=1_000_000, on="pgvector", memory="3GB", sample=evidence())
    ),
    "exact": lambda: report.plan_page(planner.plan(384, rows=1000, on="flat", sample=evidence(384))),
    "evaluation": evaluation,
    "lists": lambda: evaluation(
        steps=steps("probes"),
        manifest=manifest(tuned=False, index=Index("ivfflat", "bit", lists=1000, probes=80)),
    ),
    "untried": lambda: evaluation(steps=(), filtered=(), manifest=manifest(tuned=False)),
}  # fmt: skip
# a page is made once: drawing takes a second
PAGES = {name: cache(make) for name, make in PAGES.items()}
DRAWN = {"many": 3, "missed": 3, "given queries": 3, "exact": 3, "crowded": 3, "evaluation": 1, "lists": 1}


class Parts(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def marks(page: str, width: str = "wide") -> list[dict[str, str]]:
    """The candidates that the first figure shows."""
    prefix = f"bytes-{width}-"
    found = [attributes for _, attributes in Parts(page).elements if "data-recall" in attributes]
    return [{k: v or "" for k, v in one.items()} for one in found if (one["id"] or "").startswith(prefix)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_refers_to_nothing_outside_itself_and_forbids_it(name: str) -> None:
    page = PAGES[name]()
    parts = Parts(page)
    refused = {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
        "source",
    }
    assert {tag for tag, _ in parts.elements} & refused == set()
    for tag, attributes in parts.elements:
        assert not any(key.startswith("on") for key in attributes), attributes
        for key in ("src", "href", "xlink:href", "srcset"):
            assert (attributes.get(key) or "#").startswith("#"), (tag, attributes)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page
    # the names of XML vocabularies are no addresses to go to
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    (policy,) = [
        attributes["content"]
        for tag, attributes in parts.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    identifiers = [one["id"] for _, one in parts.elements if "id" in one]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_plan_gives_the_same_bytes_whatever_matplotlib_is_told_to_do(tmp_path: Path) -> None:
    own = tmp_path / "matplotlibrc"
    own.write_text("font.size: 31\naxes.facecolor: red\nsvg.fonttype: path\nlines.linewidth: 9\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_report as t; "
        "sys.stdout.write(t.PAGES['many']() + t.PAGES['evaluation']())"
    )

    def made(**surroundings: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            capture_output=True, text=True, check=True, encoding="utf-8", env={**os.environ, **surroundings},
        )  # fmt: skip
        return done.stdout

    first = made(PYTHONHASHSEED="1")
    assert first == made(PYTHONHASHSEED="2", MATPLOTLIBRC=str(own), SOURCE_DATE_EPOCH="1")
    assert "<svg" in first


def test_every_candidate_stands_at_its_recall_and_its_bytes() -> None:
    plan = many()
    assert plan.evidence is not None
    assert plan.target is not None
    refused = [plan.layout, *(one.layout for one in plan.refused)]
    aim = Aim(plan.target, plan.evidence, plan.rows)
    # candidates that come to the same are one
    less = dict.fromkeys(candidates(plan.space, plan.rows, plan.limits, aim=aim)).keys() - {*refused}
    proved = replace(plan.space, nested=tuple(plan.evidence.sizes("truncate")))
    expected = {}
    numbers = {}
    for number, layout in enumerate(refused, 1):
        if plan.limits.objection(proved, layout) is None:
            expected[layout] = "refused" if number > 1 else "chosen"
            numbers[f"candidate-{number}" if number > 1 else "chosen"] = layout
    for layout in less:
        if plan.limits.objection(proved, layout) is None:
            expected[layout] = "spare"

    def values(layout: Layout) -> tuple[str, str, str]:
        assert plan.evidence is not None
        found = plan.evidence.recall(layout, rows=plan.rows)
        costs = estimate(plan.space, layout, rows=plan.rows, limits=plan.limits)
        assert found is not None
        return expected[layout], f"{found.mean:.6f}", str(costs.table_bytes + costs.index_bytes)

    assert Counter(expected.values()).keys() == {"chosen", "refused", "spare"}
    for width in ("wide", "narrow"):
        drawn = marks(PAGES["many"](), width)
        shown = {
            one["id"].removeprefix(f"bytes-{width}-"): (
                one["data-state"],
                one["data-recall"],
                one["data-bytes"],
            )
            for one in drawn
        }
        assert len(shown) == len(drawn)
        assert sorted(shown.values()) == sorted(map(values, expected))
        # the number beside a mark is that of the table
        for gid, layout in numbers.items():
            assert shown[gid] == values(layout)


@pytest.mark.parametrize("name", ["many", "missed", "given queries", "exact", "crowded"])
def test_the_chosen_comes_first_then_the_refused_then_what_is_preferred_less(name: str) -> None:
    page = PAGES[name]()
    rows = re.findall(r'<tr id="candidate-(\d+)".*?<td class="verdict">(.*?)</td></tr>', page)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    verdicts = [re.sub(r"<small>.*|<.*?>", "", verdict) for _, verdict in rows]
    assert verdicts[0] == "chosen"
    assert set(verdicts[1:]) <= {"refused", "not possible here", "preferred less"}
    less = verdicts.count("preferred less")
    assert less > 0
    assert verdicts[-less:] == ["preferred less"] * less
    assert f"{less:,} more are preferred less than the chosen one" in Parts(page).text
    # only what was refused would have been preferred
    refused = len(rows) - 1 - less
    assert refused == 0 or f"{refused:,} layouts would have been preferred" in Parts(page).text
    # a few are shown at once, many are folded away
    assert ('<details id="spare" open>' in page) == (less <= 8)


def test_the_legend_names_every_family_and_every_state_that_is_drawn() -> None:
    for name in ("many", "exact", "crowded", "given queries"):
        for width in ("wide", "narrow"):
            page = PAGES[name]()
            drawn = marks(page, width)
            states = {"chosen": "chosen", "refused": "refused", "spare": "preferred less"}
            expected = {states[one["data-state"]] for one in drawn} | {one["data-family"] for one in drawn}
            legend = re.search(rf'<g id="bytes-{width}-legend_1">.*?</svg>', page, re.DOTALL)
            assert legend is not None
            words = re.findall(r"<text[^>]*>([^<]+)</text>", legend[0])
            assert sorted(words) == sorted(expected)


def test_what_is_preferred_less_looks_other_than_what_was_refused_without_colour() -> None:
    page = PAGES["many"]()
    fills: dict[str, set[str]] = {}
    for one in marks(page):
        drawn = page[page.index(f'id="{one["id"]}"') :]
        style = re.search(r'<use [^>]*style="([^"]*)"', drawn)
        assert style is not None
        fill = re.search(r"fill: ([^;\"]*)", style[1])
        assert fill is not None
        fills.setdefault(one["data-state"], set()).add(fill[1])
    assert fills["refused"] == {"var(--ground)"}
    assert "var(--ground)" not in fills["spare"]


def test_a_plan_page_says_what_was_chosen_why_and_what_was_refused() -> None:
    plan = many()
    text = Parts(PAGES["many"]()).text
    for sentence in (
        describe(plan.layout, plan.space.dim), *why(plan), *plan.here, *plan.notes, *grouped(plan.refused),
        *(reason for other in plan.others for reason in other.reasons),
        *(describe(one.layout, plan.space.dim) for one in plan.refused),
    ):  # fmt: skip
        assert sentence in text
    assert plan.refused
    assert plan.others
    assert "held" not in text or "left out of the rest and chosen at random with seed 7" in text
    assert "500 queries" in text


def test_given_queries_are_called_given() -> None:
    text = Parts(PAGES["given queries"]()).text
    assert "queries: 500, given" in text
    assert "left out of the rest" not in text


def test_the_table_shows_every_representation_at_every_oversampling() -> None:
    plan = many()
    assert plan.evidence is not None
    page = PAGES["many"]()
    body = re.search(r'<table class="representations">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None
    rows = body[1].split("<tr")[1:]
    assert len(rows) == len(plan.evidence.curves)
    doublings = plan.evidence.doublings(plan.rows)
    for row, curve in zip(rows, plan.evidence.curves, strict=True):
        cells = re.findall(r"<td[^>]*>(?:<span[^>]*>✓</span>)?([\d.]+)<small>sample ([\d.]+)<", row)
        assert cells == [
            (f"{curve.at(size, doublings).mean:.3f}", f"{curve.found[size - 1].mean:.3f}") for size in SHOWN
        ]
        assert row.count("✓") == sum(curve.at(size, doublings).mean >= 0.95 for size in SHOWN)


def test_without_a_sample_no_figure_is_drawn_and_the_page_says_how_to_get_them() -> None:
    page = PAGES["unmeasured"]()
    assert "<svg" not in page
    text = Parts(page).text
    assert "vecbridge plan --sample vectors.npy --rows 5000000" in text
    assert "recall@" not in text


def test_a_target_that_is_met_and_one_that_is_missed_do_not_look_alike() -> None:
    met, short = PAGES["many"](), PAGES["missed"]()
    assert "meets the 0.95 wanted" in met
    assert "MISSES the 0.95 wanted" in short
    assert 'class="chosen missed"' in short
    assert 'class="chosen missed"' not in met


def test_an_evaluation_says_whether_the_index_is_used_and_the_width_tuned() -> None:
    tuned = Parts(PAGES["evaluation"]()).text
    assert "tuned for recall@10 of 0.95 and confirmed" in tuned
    assert "index used" in tuned
    assert '{"lang": "de"}' in tuned
    assert "40% 100,000 records" in tuned
    assert "0.20% 500 records" in tuned
    assert "19.3 ms" in tuned  # p99
    assert "530.1 ms" in tuned  # and of exact search
    broken = replace(result(0.4), index=IndexState("ready", used=False), short=17, tuned=None)
    page = report.evaluation_page("abstracts", "flat:/data", broken, manifest=manifest(tuned=False))
    said = Parts(page).text
    assert "index NOT used" in said
    assert "MISSES the 0.95 wanted" in said
    assert "short results 17" in said
    assert "was not tuned" in said
    assert "<svg" not in page


def test_a_report_on_nothing_is_a_page_too() -> None:
    nothing = replace(result(1.0), queries=0, rows=0, low=0.0, matching=0, index=IndexState("none"))
    text = Parts(report.evaluation_page("empty", "flat:/data", nothing, manifest=manifest(tuned=False))).text
    assert "no query has anything to find" in text
    assert "0 records" in text


ATTACK = (
    "</style></title><script>window.hacked=1</script><img src=x onerror=window.hacked=2>\"'>"
    "<svg onload=window.hacked=3>"
)


@cache
def hostile() -> tuple[str, str]:
    plan = many()
    plan = replace(
        plan,
        space=replace(plan.space, model=ATTACK),
        place=ATTACK,
        here=(ATTACK,),
        notes=(ATTACK,),
        others=tuple(replace(one, place=ATTACK, reasons=(ATTACK,)) for one in plan.others),
        refused=tuple(replace(one, reason=ATTACK) for one in plan.refused),
    )
    kept = manifest()
    one = replace(
        result(0.9, where={ATTACK: {"$eq": ATTACK}}, selectivity=0.1),
        source=ATTACK, against=ATTACK, index=IndexState("none", detail=ATTACK),
    )  # fmt: skip
    checked = report.evaluation_page(
        ATTACK, f"qdrant://host/{ATTACK}", one,
        filtered=[one], steps=steps(), manifest=replace(kept, space=replace(kept.space, model=ATTACK)),
    )  # fmt: skip
    return report.plan_page(plan), checked


def test_whatever_was_given_is_shown_and_never_run() -> None:
    for page in hostile():
        assert "<script" not in page
        assert "<img" not in page
        assert html.escape(ATTACK, quote=False).split("&gt;")[0] in page
        assert ATTACK in "".join(Parts(page).words)


def test_the_drawings_are_well_formed_and_say_what_they_show() -> None:
    for name in DRAWN:
        drawings = re.findall(r"<svg.*?</svg>", PAGES[name](), re.DOTALL)
        assert len(drawings) == 2 * DRAWN[name]
        for one in drawings:
            root = ElementTree.fromstring(one)
            assert root.get("role") == "img"
            assert root.get("aria-label")
            assert root.findtext("{http://www.w3.org/2000/svg}desc")
            # a colour in numbers would stay the same in the dark
            assert re.findall(r"#[0-9a-f]{6}", one) == []


def test_families_of_candidates_differ_in_more_than_colour() -> None:
    shapes = [figures.MARKS[name][0] for name in FAMILIES]
    assert len(set(shapes)) == len(shapes) == len(figures.MARKS)
    assert "*" not in shapes  # the chosen one's


def palette(theme: str) -> dict[str, tuple[float, float, float]]:
    """Linear light of each colour in style.css: "light", "dark" or "print"."""
    style = files("vecbridge.report").joinpath("templates/style.css").read_text()
    part = {"light": 0, "dark": 1, "print": 2}[theme]
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[part]

    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    return {
        name: (linear(int(code[0:2], 16)), linear(int(code[2:4], 16)), linear(int(code[4:6], 16)))
        for name, code in re.findall(r"--([a-z-]+): #([0-9a-f]{6})", block)
    }


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_words_and_marks_stand_out_by_the_rules_for_contrast(theme: str) -> None:
    colours = palette(theme)
    for behind in ("ground", "panel", "good-panel", "bad-panel"):
        assert contrast(colours["ink"], colours[behind]) >= 7
    for behind in ("ground", "panel"):
        assert contrast(colours["soft"], colours[behind]) >= 4.5
        assert contrast(colours["good"], colours[behind]) >= 4.5
    assert contrast(colours["good"], colours["good-panel"]) >= 4.5
    assert contrast(colours["bad"], colours["bad-panel"]) >= 4.5
    for name in ("blue", "orange", "green", "purple"):
        assert contrast(colours[name], colours["ground"]) >= 4.5


# linear light as people without one kind of cones see it. Source: Machado, Oliveira and Fernandes, A
# Physiologically-based Model for Simulation of Color Vision Deficiency (2009), severity 1.0
BLIND = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)
    ),
}  # fmt: skip


def lab(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """Oklab, in which distances are what eyes see. Source: B. Ottosson, A perceptual color space (2020)."""
    r, g, b = (max(part, 0.0) for part in colour)
    long = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    middle = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    short = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


@pytest.mark.parametrize("sight", ["all", *BLIND])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_that_cross_can_be_told_apart_by_the_colour_blind(theme: str, sight: str) -> None:
    colours = palette(theme)

    def seen(name: str) -> tuple[float, float, float]:
        one = colours[name]
        if sight == "all":
            return lab(one)
        r, g, b = (sum(a * b for a, b in zip(row, one, strict=True)) for row in BLIND[sight])
        return lab((r, g, b))

    # the lines of one figure: prefix, PCA with its mean and without
    for one, other in (("orange", "purple"), ("orange", "blue"), ("purple", "blue")):
        assert math.dist(seen(one), seen(other)) > 0.05, (one, other)


class TestFile:
    page = '<!doctype html><meta name="generator" content="vecbridge report">'

    def test_a_page_is_written_whole_and_over_an_earlier_one(self, tmp_path: Path) -> None:
        place = tmp_path / "plan.html"
        first = PAGES["unmeasured"]()
        assert report.write(place, first) == place
        assert place.read_text(encoding="utf-8") == first
        report.write(place, PAGES["exact"]())
        assert place.read_text(encoding="utf-8") == PAGES["exact"]()
        assert [one.name for one in tmp_path.iterdir()] == ["plan.html"]

    def test_a_file_of_somebody_else_stays(self, tmp_path: Path) -> None:
        for text in ("", "my notes", "<!doctype html><title>vecbridge report</title>"):
            place = tmp_path / "notes.html"
            place.write_text(text)
            with pytest.raises(InputError, match=r"notes\.html is there and is no report of vecbridge's"):
                report.write(place, self.page)
            assert place.read_text() == text
        assert [one.name for one in tmp_path.iterdir()] == ["notes.html"]

    def test_a_folder_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"expected a folder to write plan\.html to; .*/none is not there"
        ):
            report.write(tmp_path / "none" / "plan.html", self.page)

    def test_a_folder_in_the_way_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="expected a file to write the report to"):
            report.write(tmp_path, self.page)

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "pages").mkdir()
        link = tmp_path / "plan.html"
        link.symlink_to(tmp_path / "pages" / "plan.html")
        report.write(link, self.page)
        assert link.is_symlink()
        assert (tmp_path / "pages" / "plan.html").read_text() == self.page

    def test_a_full_disk_leaves_the_earlier_page_and_nothing_else(self, tmp_path: Path) -> None:
        place = tmp_path / "plan.html"
        report.write(place, self.page)
        code = (
            "import resource, sys; from vecbridge import report, errors\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "try:\n    report.write(sys.argv[1], 'x' * 100_000)\n"
            "except errors.InputError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, str(place)], capture_output=True, text=True, check=True
        )
        assert "plan.html cannot be written: File too large" in done.stdout
        assert place.read_text() == self.page
        assert [one.name for one in tmp_path.iterdir()] == ["plan.html"]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from vecbridge.errors import MissingExtra\n"
        "try:\n    import vecbridge.report\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(
        rf"reports need the package {package}\S*; install it with pip install 'vecbridge\[report\]'\n",
        done.stdout,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a page, made when it is asked for first."""
    folder = tmp_path_factory.mktemp("pages")

    def file(name: str) -> Path:
        place = folder / f"{name}.html"
        return place if place.exists() else report.write(place, PAGES[name]())

    return file


# every text in the drawings that are shown: where it is, how large, and in which colour
TEXTS = """() => [...document.querySelectorAll('figure svg')].filter(svg => svg.checkVisibility())
  .map(svg => {
  const box = r => ({left: r.left, top: r.top, right: r.right, bottom: r.bottom});
  const unit = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return {
    box: box(svg.getBoundingClientRect()),
    texts: [...svg.querySelectorAll('text')].map(text => ({
      ...box(text.getBoundingClientRect()), words: text.textContent,
      size: parseFloat(getComputedStyle(text).fontSize) * unit, colour: getComputedStyle(text).fill})),
    marks: [...svg.querySelectorAll('[data-recall]')].map(mark => ({
      ...box(mark.getBoundingClientRect()), id: mark.id,
      recall: +mark.dataset.recall, bytes: +mark.dataset.bytes})),
    leader: [...svg.querySelectorAll('[id$=chosen-leader]')].map(one => box(one.getBoundingClientRect()))[0]
      ?? null,
  };
})"""


def overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How far two boxes reach into each other, in pixels."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    along = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return max(min(across, along), 0.0)


def apart(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How far two boxes are from each other, in pixels."""
    beside = max(one["left"] - other["right"], other["left"] - one["right"], 0)
    above = max(one["top"] - other["bottom"], other["top"] - one["bottom"], 0)
    return math.hypot(beside, above)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_the_whole_page(
    browser: Browser, there: Callable[[str], Path], name: str, size: tuple[int, int]
) -> None:
    with showing(browser, there(name), size=size) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert shown.page.evaluate("matchMedia('(max-width: 640px)').matches") == (size == PHONE)
        drawn = shown.page.evaluate(TEXTS)
        assert len(drawn) == DRAWN.get(name, 0)
        for one in drawn:
            box = one["box"]
            assert box["right"] - box["left"] > 0.75 * min(size[0], 860)
            assert box["bottom"] - box["top"] > 150
            assert len(one["texts"]) > 5
            for number, text in enumerate(one["texts"]):
                assert text["words"].strip()
                assert text["right"] > text["left"]
                assert text["size"] >= 9.5, text
                for side, sign in (("left", 1), ("top", 1), ("right", -1), ("bottom", -1)):
                    assert sign * (text[side] - box[side]) >= -1, text
                for other in one["texts"][:number]:
                    assert overlap(text, other) < 2, (text, other)
        assert shown.said == []
        assert shown.asked == []


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["many", "missed", "given queries", "exact", "crowded"])
def test_the_chosen_layout_is_marked_and_named_where_it_belongs(
    browser: Browser, there: Callable[[str], Path], name: str, size: tuple[int, int]
) -> None:
    with showing(browser, there(name), size=size) as shown:
        figure = shown.page.evaluate(TEXTS)[0]
        chosen_label = [one for one in figure["texts"] if one["words"].startswith("chosen: ")]
    (chosen,) = [one for one in figure["marks"] if one["id"].endswith("-chosen")]
    others = [one for one in figure["marks"] if one is not chosen]
    assert others

    def centre(one: Mapping[str, float]) -> tuple[float, float]:
        return (one["left"] + one["right"]) / 2, (one["top"] + one["bottom"]) / 2

    x, y = centre(chosen)
    for one in others:
        # a fifth of a pixel for what is drawn in steps; and the middle of a star is not that of its box
        if one["bytes"] != chosen["bytes"]:
            assert (centre(one)[0] - x) * math.copysign(1, one["bytes"] - chosen["bytes"]) > -0.2
        if one["recall"] != chosen["recall"]:
            assert (y - centre(one)[1]) * math.copysign(1, one["recall"] - chosen["recall"]) > -2
        assert (one["right"] - one["left"]) < (chosen["right"] - chosen["left"])
    (label,) = chosen_label
    assert f"{chosen['recall']:.3f}" in label["words"]
    if figure["leader"] is None:
        assert apart(label, chosen) < 20
    else:
        # a line from the one to the other
        assert apart(label, figure["leader"]) < 8
        assert apart(chosen, figure["leader"]) < 8
    for one in others:
        assert overlap(label, one) < 1, one["id"]


def test_on_a_phone_candidates_are_folded_and_unfolded_and_none_is_cut_off(
    browser: Browser, there: Callable[[str], Path]
) -> None:
    with showing(browser, there("many"), size=PHONE) as shown:
        less = shown.page.locator("#spare tbody tr")
        assert less.count() > 10
        assert not less.first.is_visible()
        shown.page.locator("#spare summary").click()
        assert less.first.is_visible()
        # each stands within its table and the window, and its words do not run into each other
        cut = shown.page.evaluate(
            """() => [...document.querySelectorAll('.candidates tbody tr')].filter(row =>
              [...row.children].some(cell => cell.scrollWidth > cell.clientWidth + 1 ||
                cell.getBoundingClientRect().right > innerWidth)).map(row => row.id)"""
        )
        assert cut == []
        boxes = shown.page.evaluate(
            """() => [...document.querySelectorAll('.candidates tbody tr')].map(row =>
              [...row.children].map(cell => cell.getBoundingClientRect().toJSON()))"""
        )
        assert len(boxes) > less.count()
        for row in boxes:
            for number, cell in enumerate(row):
                for other in row[:number]:
                    assert overlap(cell, other) == 0


# every element that has words of its own: its colour, and the colours behind it
WORDS = """() => [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() &&
  one.tagName != 'title' && one.tagName != 'desc' &&
  [...one.childNodes].some(node => node.nodeType == 3 && node.textContent.trim())).map(one => {
    const behind = [];
    for (let up = one; up; up = up.parentElement) behind.push(getComputedStyle(up).backgroundColor);
    const style = getComputedStyle(one);
    return {words: one.textContent.trim().slice(0, 30), behind,
      colour: one instanceof SVGElement ? style.fill : style.color};
  })"""


def numbers(colour: str) -> tuple[float, float, float]:
    """Linear light of a colour as a browser writes it."""

    def linear(text: str) -> float:
        share = float(text) / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    found = re.fullmatch(r"rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, [\d.]+)?\)", colour)
    assert found is not None, colour
    return linear(found[1]), linear(found[2]), linear(found[3])


@pytest.mark.parametrize("name", ["many", "missed", "unmeasured", "evaluation"])
def test_the_dark_page_is_dark_and_every_word_on_it_can_be_read(
    browser: Browser, there: Callable[[str], Path], name: str
) -> None:
    grounds, inks = {}, {}
    for scheme in ("light", "dark"):
        with showing(browser, there(name), scheme=scheme) as shown:
            grounds[scheme] = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
            words = shown.page.evaluate(WORDS)
            inks[scheme] = {one["colour"] for one in words}
        assert len(words) > 40
        for one in words:
            behind = next(colour for colour in one["behind"] if colour != "rgba(0, 0, 0, 0)")
            assert contrast(numbers(one["colour"]), numbers(behind)) >= 4.5, one
    assert numbers(grounds["light"])[1] > 0.9
    assert numbers(grounds["dark"])[1] < 0.02
    assert inks["light"] & inks["dark"] == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["many", "unmeasured", "evaluation"])
def test_a_printed_page_has_everything_on_white_and_no_figure_is_split(
    browser: Browser, there: Callable[[str], Path], tmp_path: Path, name: str, scheme: str
) -> None:
    paper = tmp_path / "paper.pdf"
    with showing(browser, there(name), scheme="dark" if scheme == "dark" else "light") as shown:
        folded = shown.page.locator("#spare th[scope=row]").all_text_contents()
        headings = [one.strip() for one in shown.page.locator("h1, h2").all_inner_texts()]
        drawn = [
            (one.locator("h3").inner_text(), one.locator("figcaption").inner_text().split(".")[0])
            for one in shown.page.locator("figure").all()
        ]
        shown.page.pdf(path=paper, prefer_css_page_size=True)
    with pdfplumber.open(paper) as document:
        assert {(round(one.width), round(one.height)) for one in document.pages} == {(595, 842)}
        texts = [" ".join((one.extract_text() or "").split()) for one in document.pages]
    everything = " ".join(texts)
    for heading in headings:
        assert heading in everything
    # what is folded away on the screen is not on paper
    assert everything.count("preferred less") >= len(folded)
    assert len(drawn) == DRAWN.get(name, 0)
    for title, caption in drawn:
        # the axes lie between them
        assert [title in text and caption in text for text in texts].count(True) == 1, title
    pages = pypdfium2.PdfDocument(paper)
    try:
        assert len(pages) == len(texts)
        for page, text in zip(pages, texts, strict=True):
            picture = page.render(scale=1).to_pil().convert("L")
            assert picture.getpixel((3, 3)) == 255
            darker = sum(picture.histogram()[:128]) / (picture.width * picture.height)
            assert 0.0005 < darker < 0.3, text[:80]
    finally:
        pages.close()


def test_a_page_that_was_tampered_with_reaches_nothing(
    browser: Browser, there: Callable[[str], Path]
) -> None:
    with showing(browser, there("unmeasured")) as shown:
        with shown.page.expect_event("requestfailed"):
            shown.page.evaluate(
                """() => {
                  const image = document.createElement('img'); image.src = 'http://127.0.0.1:9/leak';
                  const script = document.createElement('script'); script.textContent = 'window.hacked = 1';
                  document.body.append(image, script);
                }"""
            )
        assert shown.page.evaluate("window.hacked") is None
        # forbidden by the page itself, not by the missing network
        assert shown.refused == {"http://127.0.0.1:9/leak": "csp"}
        assert sum("Content Security Policy" in one for one in shown.said) >= 2


@pytest.mark.parametrize("number", [0, 1], ids=["plan", "evaluation"])
def test_a_browser_runs_nothing_of_what_was_given(browser: Browser, tmp_path: Path, number: int) -> None:
    place = report.write(tmp_path / "page.html", hostile()[number])
    with showing(browser, place, size=PHONE) as shown:
        assert shown.page.evaluate("window.hacked") is None
        assert shown.page.locator("script, img").count() == 0
        assert "window.hacked=1" in shown.page.locator("main").inner_text()
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert shown.said == []
        assert shown.asked == []
