"""The site: that every page opens from a folder, whole and readable, and fetches nothing.

The book is built once a run. Pages are opened in headless Chromium, where there is one.
"""

import base64
import html.parser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from filelock import FileLock

from lab import files
from lab.evidence import links, slider
from lab.tools import book
from lab.world import scenes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Pages that are made from code are alike, so accessibility is asked of one of a kind
MADE_FROM_CODE = ("_modules/", "api/")
SAMPLE_OF_CODE = ("_modules/sare_min/sam.html", "api/sare_min.html")


def has(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


needs_sphinx = pytest.mark.skipif(
    not has("sphinx", "myst_nb", "furo"), reason="sphinx, myst-nb or furo is not installed"
)
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and has("playwright", "axe_playwright_python")),
    reason="no chromium on the PATH, or playwright or axe-playwright-python is not installed",
)


def made_up_strip(n_scenes: int = 12, at=(0, 8, 64, 256)) -> dict:
    """What figures/04_strip.json looks like. EFUF invents again from the second count on, SARE
    from the last; nothing in it was measured.
    """
    chosen = scenes.split_scenes(0, some=n_scenes)["some"]

    def says(scene, is_relapsed: bool) -> list:
        found = [[" a", 0.99, "plain"], [f" {scene.place}", 1.0, "plain"], [" with", 1.0, "plain"]]
        extra = scenes.absent(scene)[:1] if is_relapsed else []
        for noun in (*scene.objects, *extra):
            kind = "invented" if noun in extra else "true"
            found += [[",", 0.6, "plain"], [" a", 0.9, "plain"], [f" {noun}", 0.8, kind]]
        return [*found, [".", 0.98, "plain"]]

    def moments(relapse: int) -> list:
        return [[says(scene, n >= relapse) for scene in chosen] for n in at]

    return {
        "seed": 1001,
        "at": list(at),
        "scenes": [{"place": s.place, "objects": s.objects, "cells": s.cells} for s in chosen],
        "chair_s": {
            "base": [0.98],
            "EFUF": [float(n >= at[1]) for n in at],
            "SARE": [float(n >= at[-1]) for n in at],
        },
        "says": {"base": moments(0)[:1], "EFUF": moments(at[1]), "SARE": moments(at[-1])},
    }


@pytest.fixture(scope="session")
def figures(tmp_path_factory):
    """The committed figures, with a made-up strip if there is none yet."""
    folder = tmp_path_factory.mktemp("book") / "figures"
    shutil.copytree(files.ROOT / "figures", folder)
    if not (folder / slider.NAME).exists():
        strip = {"results": made_up_strip(), "caption": "Made up.", "preset": "full"}
        (folder / slider.NAME).write_text(json.dumps(strip))
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory, figures):
    """Two builds side by side, in folders and with hashes of their own: (one, other)."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home  # workers share it
    names = [home / "site-one/book", home / "site-other/book"]
    with FileLock(f"{home}/site.lock"):
        if not (home / "site.done").exists():
            started = [
                subprocess.Popen(
                    [sys.executable, "-m", "lab.tools.book", str(name), str(figures)],
                    cwd=files.CHAPTERS,
                    env=os.environ | {"PYTHONHASHSEED": str(i)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for i, name in enumerate(names)
            ]
            said = [process.communicate()[0] for process in started]
            assert not any(process.returncode for process in started), said[0]
            (home / "site.done").touch()
    return names


class Page(html.parser.HTMLParser):
    """The ids of a page, and where its links, pictures, scripts and styles lead."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.parts = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loads = given.get("src") or (given.get("href") if tag == "link" else None)
        if loads:
            self.parts.append(loads)


def broken_links(root: Path, paths) -> list[str]:
    """The links and parts of pages that lead to no file or no anchor, or a part that is fetched;
    links into the repository's own address must name files that it has.
    """
    pages = {path.resolve(): Page(path) for path in root.rglob("*.html")}
    found, ours = [], re.compile(re.escape(book.address()) + r"/(?:blob|tree)/main/([^#]*)")
    for path in paths:
        for target in [*pages[path.resolve()].links, *pages[path.resolve()].parts]:
            url = urllib.parse.urlparse(target)
            if url.scheme == "data" or (url.scheme and target in pages[path.resolve()].links):
                inside = ours.match(target)
                if inside and not (files.ROOT / urllib.parse.unquote(inside[1])).exists():
                    found.append(f"{path.name}: {target} is no file of the repository")
                continue
            if url.scheme or url.netloc:
                found.append(f"{path.name}: {target} would be fetched")
                continue
            there = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            is_page = there.resolve() in pages
            if not there.exists() or (there.is_dir() and url.path):
                found.append(f"{path.name}: {target} leads nowhere")
            elif is_page and url.fragment and url.fragment not in pages[there.resolve()].ids:
                found.append(f"{path.name}: {target} has no such anchor")
    return found


LOOK = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const all = (what) => Array.from(document.querySelectorAll(what));
  const undrawn = all(".math").filter((e) => {
    const svg = e.querySelector("mjx-container svg");
    return !svg || !svg.getBoundingClientRect().width || e.querySelector("[data-mjx-error]");
  });
  return {
    undrawn: undrawn.map((e) => e.textContent.slice(0, 60)),
    formulas: all(".math").length,
    scrolling: all("pre").filter((e) => e.scrollWidth > e.clientWidth)
      .map((e) => e.textContent.slice(0, 60)),
    missing: all("img").filter((e) => !e.complete || !e.naturalWidth).map((e) => e.src),
  };
}"""

# One of each kind of token is enough for axe, which takes seconds over thousands of them
MARK_SEEN = """() => {
  const seen = new Set();
  for (const e of document.querySelectorAll(".highlight span")) {
    const kind = e.className + "/" + e.closest(".highlight").parentElement.className;
    e.classList.toggle("seen-before", seen.has(kind));
    seen.add(kind);
  }
}"""


def look(tab, path: Path, axe=None) -> dict[str, list[str]]:
    """Open a page at 1280 pixels; what is wrong with it, by kind."""
    found = {"requests": [], "errors": []}
    tab.on("request", lambda r: found["requests"].append(r.url))
    tab.on("pageerror", lambda e: found["errors"].append(str(e)))
    tab.on("console", lambda m: found["errors"].append(m.text) if m.type == "error" else None)
    tab.goto(path.as_uri())
    found |= tab.evaluate(LOOK)
    n_formulas = found.pop("formulas")
    found["requests"] = [u for u in found["requests"] if not u.startswith(("file:", "data:"))]
    found["axe"], context = [], {"exclude": [[".seen-before"]]}
    tab.evaluate(MARK_SEEN)
    for theme in ("light", "dark") if axe else ():
        tab.evaluate("(theme) => { document.body.dataset.theme = theme }", theme)
        # Without preload: axe would fetch the style sheets again, which a folder refuses
        options = {"resultTypes": ["violations"], "preload": False}
        if theme == "dark":  # a theme changes colours alone
            options["runOnly"] = ["color-contrast"]
        for rule in axe.run(tab, context, options).response["violations"]:
            if rule["impact"] in ("serious", "critical"):
                where = [node["target"] for node in rule["nodes"]][:3]
                found["axe"].append(f"{theme}: {rule['id']} {len(rule['nodes'])} times, {where}")
    return found | {"formulas": n_formulas}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


@needs_sphinx
@needs_browser
def test_every_page_opens_and_fetches_nothing(built, browser):
    """Fails on a request outside, an error in the console, a formula that is not drawn, code that
    scrolls sideways, a missing picture, or a serious finding of axe, on any page.
    """
    from axe_playwright_python.sync_playwright import Axe

    root, axe = built[0], Axe()
    paths, wrong, n_formulas = sorted(root.rglob("*.html")), [], 0
    for path in paths:
        name = str(path.relative_to(root))
        is_asked = not name.startswith(MADE_FROM_CODE) or name in SAMPLE_OF_CODE
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = look(page, path, axe if is_asked else None)
        page.close()
        n_formulas += found.pop("formulas")
        wrong += [f"{name}: {kind}: {what}" for kind, row in found.items() for what in row]
    print(f"\n{len(paths)} pages, {n_formulas} formulas, {len(wrong)} findings")
    assert n_formulas > 5 and len(paths) > 30
    assert not wrong, "\n".join(wrong)


@needs_sphinx
def test_every_link_leads_somewhere(built):
    """Fails on a link or picture without a file, an anchor that is not there, a part that would be
    fetched, or a link to a file that the repository does not have.
    """
    paths = list(built[0].rglob("*.html"))
    assert not broken_links(built[0], paths)


@needs_sphinx
def test_two_builds_give_the_same_pages(built):
    """Fails if a date, an address in memory, a folder's name or a set's order gets into a page."""
    one, other = ({p.relative_to(r): p.read_bytes() for p in r.rglob("*.html")} for r in built)
    assert one.keys() == other.keys()
    assert [str(name) for name in one if one[name] != other[name]] == []


PLANTED = """<!doctype html><html lang="en"><title>planted</title><body>
<script src="_static/mathjax-3.2.2-tex-svg-full.js"></script>
<h1>planted</h1>{}</body></html>"""


@needs_sphinx
@needs_browser
@pytest.mark.parametrize(
    "kind, body",
    [
        ("requests", '<img src="https://example.invalid/x.png" alt="x">'),
        ("errors", "<script>console.error('planted')</script>"),
        ("errors", "<script>throw new Error('planted')</script>"),
        ("missing", '<img src="not_there.png" alt="x">'),
        ("undrawn", r'<span class="math">\(\nosuchmacro{\)</span>'),
        ("undrawn", '<span class="math">no delimiters</span>'),
        ("scrolling", f"<pre style='overflow:auto'>{'x' * 400}</pre>"),
        ("axe", '<img src="_static/file.png">'),
        ("axe", '<p style="color:#aaa;background:#fff">pale</p>'),
    ],
)
def test_a_planted_fault_is_found(built, tab, kind, body):
    """Fails if the check above could not fail: each fault must be seen, and a sound page not."""
    from axe_playwright_python.sync_playwright import Axe

    path = built[0] / f"planted_{os.getpid()}.html"
    try:
        path.write_text(PLANTED.format(body))
        assert look(tab, path, Axe() if kind == "axe" else None)[kind]
        path.write_text(PLANTED.format(r'<p class="math">\(x\)</p><pre>short</pre>'))
        assert not look(tab, path, Axe())[kind]
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "body, message",
    [
        ('<a href="nowhere.html">x</a>', "nowhere.html leads nowhere"),
        ('<a href="#nowhere">x</a>', "#nowhere has no such anchor"),
        ('<a href="other.html#nowhere">x</a>', "other.html#nowhere has no such anchor"),
        ('<img src="nowhere.png">', "nowhere.png leads nowhere"),
        ('<script src="https://example.invalid/x.js"></script>', "would be fetched"),
        ('<link rel="stylesheet" href="//example.invalid/x.css">', "would be fetched"),
        (f'<a href="{book.address()}/blob/main/nowhere.py">x</a>', "is no file of the repository"),
    ],
)
def test_a_planted_link_is_found(tmp_path, body, message):
    """Fails if the link check passes over a broken link of this kind."""
    (tmp_path / "other.html").write_text('<p id="here">x</p>')
    page = tmp_path / "page.html"
    page.write_text(f'{body}<a href="other.html#here">fine</a><a href="https://arxiv.org">fine</a>')
    (found,) = broken_links(tmp_path, [page])
    assert message in found


@needs_sphinx
@needs_browser
def test_search_works_from_a_folder(built, tab):
    """Fails if searching finds nothing, or needs to fetch a page."""
    wrong = []
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    tab.goto((built[0] / "search.html").as_uri() + "?q=erasure")
    tab.wait_for_selector("#search-results li a")
    assert tab.locator("#search-results li").count() > 3 and not wrong


@needs_sphinx
@needs_browser
@pytest.mark.parametrize("name", ["index", "chapters/03_targeted_sam", "slider", "figures/claims"])
def test_a_phone_shows_the_page_without_sideways_scrolling(built, tab, name):
    """Fails if something is wider than a screen of 375 pixels and does not scroll by itself."""
    tab.set_viewport_size({"width": 375, "height": 700})
    tab.goto((built[0] / f"{name}.html").as_uri())
    width = tab.evaluate("document.documentElement.scrollWidth")
    assert width <= 375


BOXES = """() => Array.from(document.querySelectorAll(".relapse .card, .relapse .says, .control *"))
  .map((e) => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })"""
SHIFTS = """() => { window.shifts = 0; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shifts += entry.value;
}).observe({type: "layout-shift"}) }"""
VISIBLE = """() => Array.from(document.querySelectorAll(".relapse .layer"))
  .filter((e) => getComputedStyle(e).visibility === "visible")
  .map((e) => e.textContent).join("|")"""


@needs_sphinx
@needs_browser
@pytest.mark.parametrize("width", [375, 1280])
def test_the_slider_moves_words_and_nothing_else(built, tab, width):
    """Fails if keys do not move it, the words stay, a box moves, or a reader's ear is not told."""
    tab.set_viewport_size({"width": width, "height": 800})
    tab.goto((built[0] / "slider.html").as_uri())
    tab.focus("#samples")
    tab.evaluate(SHIFTS)
    boxes, words = tab.evaluate(BOXES), [tab.evaluate(VISIBLE)]
    n = int(tab.get_attribute("#samples", "max"))
    for step in range(1, n + 1):
        tab.keyboard.press("ArrowRight")
        tab.wait_for_timeout(30)
        at = tab.get_attribute("#samples", "data-at").split()[step]
        assert tab.get_attribute("#samples", "aria-valuetext") == f"{at} samples"
        assert tab.inner_text("#count") == at
        words.append(tab.evaluate(VISIBLE))
        moved = [b for a, b in zip(boxes, tab.evaluate(BOXES)) if a[:2] + a[3:] != b[:2] + b[3:]]
        assert not [b for b in moved if b[2] > 0 and b[3] > 14]  # a bar's filling may change
    assert len(set(words)) > 1 and "invent" not in words[0]
    assert tab.evaluate("window.shifts") == 0
    assert tab.inner_text("#spoken") == ""  # not while it moves
    tab.wait_for_timeout(900)
    assert tab.inner_text("#spoken").startswith(f"CHAIR_s after {at} samples: base")


@needs_sphinx
@needs_browser
def test_less_motion_is_respected(built, browser):
    """Fails if the bars glide for those who asked for less motion."""
    url, speeds = (built[0] / "slider.html").as_uri(), {}
    for wish in ("reduce", "no-preference"):
        page = browser.new_page(reduced_motion=wish)
        page.goto(url)
        script = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
        speeds[wish] = page.evaluate(script)
        page.close()
    assert speeds == {"reduce": "0s", "no-preference": "0.2s"}


# --- staging, without a browser


@pytest.mark.parametrize(
    "target, source, expected",
    [
        (
            "02_fragile_erasure.ipynb",
            "chapters/01_sharp_and_flat.ipynb",
            "02_fragile_erasure.ipynb",
        ),
        ("glossary.md#nll", "chapters/01_sharp_and_flat.ipynb", "glossary.md#nll"),
        ("../figures/claims.md", "chapters/04_relearning.ipynb", "../figures/claims.md"),
        ("../00_hallucination.ipynb", "chapters/site/index.md", "chapters/00_hallucination.ipynb"),
        ("../README.md", "chapters/04_relearning.ipynb", "../index.md"),
        ("../figures/bench.png", "chapters/04_relearning.ipynb", "../figures/bench.png"),
        ("../sare_min/sam.py", "chapters/glossary.md", "../_modules/sare_min/sam.html"),
        ("lab/evidence/stats.py", "chapters/glossary.md", "../_modules/lab/evidence/stats.html"),
        ("lab/jobs.py", "chapters/glossary.md", f"{book.address()}/blob/main/chapters/lab/jobs.py"),
        ("../sare_min", "chapters/glossary.md", f"{book.address()}/tree/main/sare_min"),
        ("../LICENSE#L3", "chapters/glossary.md", f"{book.address()}/blob/main/LICENSE#L3"),
        ("https://arxiv.org/abs/2601.16527", "LOG.md", "https://arxiv.org/abs/2601.16527"),
        ("#here", "LOG.md", "#here"),
    ],
)
def test_links_lead_on(target, source, expected):
    """Fails if a link that works in the repository leads elsewhere on the site."""
    assert book.resolve(target, source) == expected


def test_a_line_of_code_becomes_its_function():
    """Fails if a link to a line leads to the top of the page, or to one that is not listed."""
    path = "sare_min/sam.py"
    lines = files.read_text(files.ROOT / path).splitlines()
    at = next(i for i, line in enumerate(lines, 1) if line.startswith("def perturbed"))
    assert book.resolve(f"../{path}#L{at + 2}", "chapters/glossary.md").endswith("#perturbed")
    assert "#" not in book.resolve(f"../{path}#L1", "chapters/glossary.md")


@pytest.mark.parametrize("target", ["nowhere.ipynb", f"../{files.ROOT.name}/README.md"])
def test_a_link_that_leads_nowhere_is_named(target):
    """Fails if staging passes over a link to a file that is not there, or out of the repository."""
    with pytest.raises(ValueError, match=rf"LOG.md: the link \({re.escape(target)}\) leads to no"):
        book.relink(f"see [this]({target})", "LOG.md")


def test_code_keeps_its_brackets():
    """Fails if a call in code is taken for a link."""
    text = "`f[0](x)` and\n```python\nf[0](y)\n```\nand [log](LOG.md)"
    assert book.relink(text, "CONTRIBUTING.md") == text


def test_numbers_are_filled_and_markers_dropped():
    """Fails if a page shows a stale number, keeps a marker, or takes an unknown one."""
    folder = files.ROOT / "figures"
    found = book.markdown("in\n<!-- C6a.n -->99<!-- / --> seeds <!-- kept -->", "x.md", folder)
    assert re.fullmatch(r"in\n\d+ seeds <!-- kept -->", found) and "99" not in found
    with pytest.raises(ValueError, match="x.md: .*C6zz"):
        book.markdown("<!-- C6zz.n -->1<!-- / -->", "x.md", folder)


def test_the_full_runs_figure_is_shown_and_described():
    """Fails if a page shows the fast preset's figure, or a picture without a description."""
    source, figures = "chapters/04_relearning.ipynb", files.ROOT / "figures"
    cells = book.notebook(files.ROOT / source, source, figures).cells
    shown = [c for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(shown) > 5 and all(c.metadata.mystnb["image"]["alt"] for c in shown)
    named = [c for c in shown if '"04_survival"' in c.source]
    facts = json.loads((figures / "04_survival.json").read_text())
    assert named[0].metadata.mystnb["image"]["alt"] == facts["caption"]
    stored = [o["data"]["image/png"] for o in named[0].outputs if "image/png" in o.get("data", {})]
    right = (figures / "04_survival.png").read_bytes()
    assert [base64.b64decode(png) for png in stored] == [right]


def test_docstrings_become_text_that_says_the_same():
    """Fails if a star, a bar or an underscore of a docstring is taken for markup."""
    found = book.to_rst(
        [
            "x: a `b_c` * |d| e_, *so so*, eps* of f*g*",
            "rho: more.",
            "",
            "    f * g",
            "",
            "- one",
            "  two",
        ]
    )
    assert found == [
        "",
        r"x: a \ ``b_c``\  \* \|d\| e\_, \ *so so*\ , eps\* of f\*g\*",
        "",
        "rho: more.",
        "",
        ".. code-block:: text",
        "",
        "    f * g",
        "",
        "",
        "- one",
        "  two",
        "",
    ]


def test_without_data_the_page_says_so(tmp_path, figures):
    """Fails if the book cannot be built before the strip is drawn, or hides that it is missing."""
    shutil.copytree(figures, tmp_path / "figures")
    (tmp_path / "figures" / slider.NAME).unlink()
    assert slider.MISSING in book.own_page("slider.md", tmp_path / "figures")
    assert 'type="range"' in book.own_page("slider.md", figures)


# --- the slider's words


def test_moving_the_widget_changes_the_words():
    """Fails if the slider in Jupyter shows one moment for ever."""
    pytest.importorskip("ipywidgets")
    box = slider.widget(made_up_strip(2))
    control, shown = box.children
    before = shown.value
    assert 'class="w invented' in before  # the base model's
    control.value = len(control.options) - 1
    assert shown.value != before and shown.value.count("<mark") > before.count("<mark")
    control.value = 0
    assert shown.value == before


def test_words_are_escaped_and_marked():
    """Fails if a word could become markup, or an invention is marked by colour alone."""
    caption = [[" a", 1, "plain"], [" <b>", 0.5, "true"], [",", 0.4, "invented"]]
    caption += [[" a", 0.9, "invented"], [" fork", 0.25, "invented"], [".", 1, "plain"]]
    found = slider.words(caption)
    assert "<b>" not in found and "&lt;b&gt;" in found
    assert re.findall(r"<mark class=\"([^\"]+)\"", found) == ["w invented"] * 2 + [
        "w invented cross"
    ]
    assert 'style="--p:0.25" data-p="25" title="25 % sure">fork<' in found


@pytest.mark.parametrize(
    "change, message",
    [
        ({"at": [0, 8]}, "EFUF has 4 moments, the slider 2"),
        ({"scenes": []}, "base says something of 12 scenes of 0"),
        (
            {"says": {"base": [[[[" a", 2.0, "true"]]] * 12]}},
            "a word of kind 'true', probability 2",
        ),
        ({"says": {"base": [[[[" a", 1.0, "odd"]]] * 12]}}, "a word of kind 'odd', probability 1"),
        ({"says": None}, "`says` is no table of methods"),
        ({"chair_s": {}}, "no 'base'"),
    ],
)
def test_a_broken_strip_is_named(tmp_path, change, message):
    """Fails if the page shows a strip whose parts do not fit each other."""
    results = made_up_strip() | change
    (tmp_path / slider.NAME).write_text(json.dumps({"results": results}))
    with pytest.raises(ValueError, match=f"{slider.NAME}: .*{message}"):
        slider.read(tmp_path)


def test_the_slider_needs_no_torch():
    """Fails if the page's data can no longer be drawn without torch."""
    code = "import sys, lab.evidence.slider; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=files.CHAPTERS).returncode == 0


# --- glossary and bibliography

TERMS = """CHAIR_s, CHAIR_i, Recall, POPE, NLL, Nat, Greedy decoding, Co-occurrence, Sub-sentence,
Curation, CLIP score, Oracle, Honest control, Base model, EFUF, GA, GradDiff, NPO,
SimNPO, SAM, Untargeted SAM, Targeted-SAM, SARE, Rho, Lambda_neg, Ascent step, Relapse
direction, Sharp and flat, Worst point, Hessian, Eigenvalue, Relapse radius, Forget
level, Landing, Pass, Relearning attack, Relearning sample, Half-life, Survival curve,
Censored, Interval, Seed, Order of erasure, Order of attack, Preset, Plan, Verdict,
Holm, Equivalence test, Margin, Kit, LoRA, Adapter, bf16, Microworld"""


def entries(name: str) -> dict[str, str]:
    """{heading: text} of the entries of glossary.md or bibliography.md."""
    text = (files.CHAPTERS / name).read_text()
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)[1:]
    return {key: re.split(r"^## ", body, flags=re.MULTILINE)[0] for key, body in batched(parts)}


def batched(parts: list[str]) -> list[tuple[str, str]]:
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_the_glossary_is_complete_and_short():
    """Fails if a term is missing, explained at length, or leads to no chapter."""
    found = entries("glossary.md")
    known = {term.lower() for term in found}
    assert not {" ".join(term.lower().split()) for term in TERMS.split(",")} - known
    for term, text in found.items():
        assert len(text.split()) <= 70, term
        assert re.search(r"\]\(0\d_\w+\.ipynb\)", text), term


def test_the_glossarys_links_find_their_line():
    """Fails if a link into code names a line that no longer defines it (make evidence)."""
    path = files.CHAPTERS / "glossary.md"
    assert links.aimed(path.read_text(), path.parent) == path.read_text()


def test_every_paper_that_is_cited_is_listed():
    """Fails if a chapter, a docstring or a page cites an arXiv number that the bibliography lacks,
    or an entry does not say what it is good for.
    """
    arxiv = re.compile(r"(?:arXiv[\s#]+|arxiv\.org/abs/)(\d{4}\.\d{4,5})")
    sources = [*files.ROOT.glob("*.md"), *files.ROOT.glob("sare_min/*.py")]
    sources += [path for path in files.CHAPTERS.rglob("*.py") if ".cache" not in path.parts]
    cited = {n for path in sources for n in arxiv.findall(path.read_text())}
    found = entries("bibliography.md")
    listed = {n for text in found.values() for n in arxiv.findall(text)}
    assert len(cited) > 10 and not cited - listed, sorted(cited - listed)
    assert all(len(text.split("*")) >= 3 and text.strip().endswith(".") for text in found.values())
