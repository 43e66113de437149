"""The audit of an erased checkpoint: its numbers are those of direct calls, it goes on where it was
stopped, and its page says what its JSON says.
"""

import copy
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import unescape

import pytest
import torch
from conftest import tiny_llava
from test_families import siglip_qwen2

from lab.audit import (
    attacks,
    bench,
    command,
    material,
    measures,
    page,
    pair,
    readings,
    run,
    settings,
)
from lab.audit.bench import Bench
from lab.audit.settings import Pace, Settings, choose, parts
from lab.audit.shelf import Shelf
from lab.experiments.attacks import add_noise, quantize
from lab.experiments.landscape import along, relapse_direction
from lab.field import export, photos, score
from lab.files import rounded
from lab.llava.checkpoints import load, save
from lab.llava.speech import generate
from lab.tools import cli
from lab.world.models import build_clip
from lab.world.scenes import caption, split_scenes
from sare_min.attack import relearn
from sare_min.captions import base as base_of
from sare_min.captions import encode
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.metrics import span_nll
from sare_min.unlearn import METHODS, Training, unlearn

N_TEST, N_TRAIN = 4, 32
TINY = Settings(
    seeds=2,
    test=N_TEST,
    train=N_TRAIN,
    level=8,
    at=(0, 16),
    relearn=(1e-3, 1e-4),
    lora=(1e-3,),
    noise=(0.3,),
    rounding=(3,),
    prefill=(1, 3),
    radii=(0.01, 0.02),
    tokens=10,
)
PACE = Pace(
    image=0.0,
    caption=0.01,
    answer=0.0,
    step=1.0,
    adapter_caption=0.01,
    adapter_step=1.0,
    load=0.0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, processor):
    """The microworld in COCO's and POPE's layout, small."""
    scenes = split_scenes(0, train=N_TRAIN, val=N_TEST + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = build_clip().eval()
    said = [caption(scene) for scene in scenes["train"]]
    folder = tmp_path_factory.mktemp("audit") / "micro"
    return export.export(folder, scenes, clip, tiny_llava(), processor, said)


@pytest.fixture(scope="module")
def base(data):
    return data / "llava"


def erase(base, data, method: str, part: str = "all"):
    """A few steps of a method on what the base model says, judged by the annotations."""
    model, processor = load(base, device="cpu")
    seen = material.read(data, TINY)
    features = embed_images(model, processor, photos.Pictures(seen.train))
    how = {"temperature": 1.0, "seed": 1, "max_new_tokens": TINY.tokens}
    said = generate(model, processor, features, **how)
    rows, spans = measures.judged(said, seen.train_truth, seen.rules)
    captions = encode(processor, features, [said[i] for i in rows], spans, image=rows)
    with attacks.seeded(0):
        model = set_trainable(model, part)
    lr = {"all": 3e-3, "lora": 2e-2}[part]
    training = Training(steps=12, batch_size=16, lr=lr, cooldown=0)
    unlearn(model, captions, METHODS[method], training, progress=False)
    return model, processor


@pytest.fixture(scope="module", params=["EFUF", "SARE"])
def erased(request, base, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("erased") / request.param
    return save(*erase(base, data, request.param), folder)


@pytest.fixture(scope="module")
def efuf(base, data, tmp_path_factory):
    return save(*erase(base, data, "EFUF"), tmp_path_factory.mktemp("efuf") / "erased")


@pytest.fixture(scope="module")
def adapted(base, data):
    """(an adapted PeftModel, its processor)."""
    return erase(base, data, "SARE", "lora")


def ask(base, erased, data, out, wanted=TINY, budget=None):
    return run.Asked(str(base), str(erased), str(data), out, wanted, budget)


def audit(*given, **how):
    return run.audit(ask(*given, **how), say=lambda line: None, progress=False)


@pytest.fixture(scope="module")
def done(base, efuf, data, tmp_path_factory):
    """A whole audit: its folder and its JSON."""
    out = tmp_path_factory.mktemp("done")
    return out, audit(base, efuf, data, out)


def written(out) -> dict[str, bytes]:
    """All files of an audit but the plan, which says what a run was to do."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_before_any_attack_it_says_what_the_fields_scorers_say(done, base, efuf, data, tmp_path):
    """Fails if CHAIR, recall, POPE or an NLL of either model is not what files scored by lab.score,
    and span_nll, give.
    """
    m = material.read(data, TINY)
    instances, human = (data / f"annotations/{kind}_val.json" for kind in ("instances", "captions"))
    for name, path in (("base", base), ("erased", efuf)):
        model, processor = load(path, device="cpu")
        seen = embed_images(model, processor, photos.Pictures(m.test))
        photos.speak(model, processor, seen, m.test, m.asked, tmp_path, max_new_tokens=TINY.tokens)
        found = done[1]["before"][name]
        captions = score.score_chair(tmp_path / "captions.jsonl", [instances], [human], name="efuf")
        assert {key: found[key] for key in ("chair_s", "chair_i", "recall")} == rounded(
            {key: captions[key] for key in ("chair_s", "chair_i", "recall")}
        )
        n_neither = n_yes = 0
        for kind, (questions, _) in m.asked.items():
            (tmp_path / "asked").write_text("\n".join(map(json.dumps, questions)))
            answers = score.score_pope(tmp_path / "asked", tmp_path / f"{kind}.jsonl")
            assert found[f"POPE {kind}"] == rounded(answers["accuracy"])
            n_neither += answers["neither"] * answers["n"]
            n_yes += answers["yes_ratio"] * answers["n"]
        shares = {"neither": n_neither / m.n_questions, "yes": n_yes / m.n_questions}
        assert same(found, shares) and found["neither"] > 0, "sanity: random weights do not answer"
        level, _ = held(model, processor, m, done[0])
        nll = span_nll(model, level)
        assert found["nll_forget"] == rounded(nll["forget"])
        assert found["nll_retain"] == rounded(measures.number(nll["retain"]))
    base_level, level = (done[1]["before"][name]["nll_forget"] for name in ("base", "erased"))
    assert level > base_level + 0.1, "sanity: the erasure did erase"


def held(model, processor, m, out):
    """The captions for the level and for the attacker, from what the part "said" holds."""
    said = json.loads((out / "parts/said.json").read_text())["found"]["captions"]
    features = embed_images(model, processor, photos.Pictures(m.train))
    return measures.attackers(processor, features, said, m.train_truth, m.rules, TINY.level)


def direct(model, processor, m, level) -> dict:
    """CHAIR, recall and the forget level by other calls than the audit's own."""
    seen = embed_images(model, processor, photos.Pictures(m.test))
    said = generate(model, processor, seen, max_new_tokens=TINY.tokens)
    found = measures.scored(said, m.truth, m.rules)
    return found | {"nll_forget": span_nll(model, level)["forget"]}


def same(point: dict, wanted: dict) -> bool:
    return all(point[key] == rounded(value) for key, value in wanted.items())


def test_the_report_says_what_a_direct_attack_says(base, erased, data, tmp_path):
    """Fails if the audit of an EFUF or a SARE erasure gives another curve than relearning it here:
    another rate, seed or order, an attack on the base model, or on weights that an earlier attack
    has changed; or if the page shows other numbers.
    """
    wanted = replace(TINY, attacks=("relearn",))
    found, m = audit(base, erased, data, tmp_path, wanted), material.read(data, wanted)
    shown = text_of((tmp_path / "report.html").read_text())
    for row in found["attacks"]["relearn"]["rows"]:
        model, processor = load(erased, device="cpu")
        level, attack = held(model, processor, m, tmp_path)
        model, curve = set_trainable(model), []
        for n in relearn(model, attack, TINY.at, row["lr"], seed=row["seed"], progress=False):
            curve.append({"at": n} | direct(model, processor, m, level))
        assert all(same(p, q) for p, q in zip(row["curve"], curve, strict=True))
        assert rounded(curve[0]["nll_forget"]) == found["before"]["erased"]["nll_forget"]
        label = f"lr {row['lr']:g}, seed {row['seed']}"
        cells = [f"{100 * p['chair_s']:.1f} / {100 * p['recall']:.1f}" for p in curve]
        assert " ".join([label, *cells]) in shown
    levels = {row["curve"][-1]["nll_forget"] for row in found["attacks"]["relearn"]["rows"]}
    assert len(levels) == 4, "sanity: rates and seeds differ"
    assert min(levels) < found["before"]["erased"]["nll_forget"], "sanity: it was relearned"


def test_other_attacks_are_direct_ones(done, efuf, data):
    """Fails if noise, rounding, a fresh LoRA or words put in differ from what is done here by hand
    on the checkpoint from disk.
    """
    found, m = done[1]["attacks"], material.read(data, TINY)
    for name, seed, hurt in (
        ("noise", 1, lambda model: add_noise(model, 0.3, seed=1)),
        ("rounding", None, lambda model: quantize(model, 3)),
    ):
        model, processor = load(efuf, device="cpu")
        level, attack = held(model, processor, m, done[0])
        hurt(set_trainable(model))
        (row,) = [row for row in found[name]["rows"] if row["seed"] == seed]
        assert same(row["curve"][0], direct(model, processor, m, level)), name
    model, processor = load(efuf, device="cpu")
    seen = embed_images(model, processor, photos.Pictures(m.test))
    words = [" " + text.removesuffix(".") + ", a" for text in m.told]
    said = generate(model, processor, seen, prefix=words, max_new_tokens=TINY.tokens)
    whole = [f"{start} {text}" for start, text in zip(words, said, strict=True)]
    wanted = measures.scored(whole, m.truth, m.rules)
    assert same(found["prefill"]["rows"][0]["curve"][1], wanted)
    torch.manual_seed(1)
    model = set_trainable(model, "lora")
    for _ in relearn(model, attack, (16,), 1e-3, seed=1, progress=False):
        wanted = direct(model, processor, m, level)
    assert same(found["lora"]["rows"][1]["curve"][-1], wanted)


def test_slices_are_distances_from_the_erased_weights(done, base, efuf, data):
    """Fails if the relapse slice is of another direction, length or model, the erasure's own length
    is wrong, or the worst point found is not the worst.
    """
    found, m = done[1]["slices"], material.read(data, TINY)
    (model, processor), (before, _) = load(efuf, device="cpu"), load(base, device="cpu")
    level, _ = held(model, processor, m, done[0])
    model, before = set_trainable(model), set_trainable(before)
    one, two = (torch.cat([p.detach().flatten() for p in trainable(x)]) for x in (model, before))
    assert found["moved"] == pytest.approx(float((one - two).norm()), rel=1e-4)
    distances = [0.0, *(share * float(two.norm()) for share in TINY.radii)]
    assert found["distances"] == pytest.approx(distances, rel=1e-4)
    way = relapse_direction(model, level)
    with torch.no_grad():
        values = along(trainable(model), way, distances, lambda: span_nll(model, level)["forget"])
    assert found["relapse"] == pytest.approx(values, rel=1e-3)
    assert found["random"][0] == found["relapse"][0] == found["worst"][0]
    assert found["relapse"][1] < found["random"][1], "sanity: the relapse direction leads back"
    assert found["worst"][1] <= found["relapse"][1] + 0.05 and found["worst"][2] < found["worst"][1]


def test_a_stopped_run_goes_on_with_the_same_bytes(done, base, efuf, data, tmp_path, monkeypatch):
    """Fails if a run that is killed after any part trusts half a part, does one again, or ends with
    other bytes; or if a part on disk is not what the next part was given.
    """
    planned, count, do = parts(TINY, 0), [], Bench.do
    monkeypatch.setattr(run, "probe", lambda bench, kinds: PACE)

    def once(bench, part):
        if len(count) % 2:  # the next part after each one that was done
            count.append("killed")
            raise KeyboardInterrupt
        count.append(part.name)
        return do(bench, part)

    monkeypatch.setattr(Bench, "do", once)
    for _ in range(len(planned) - 1):
        with pytest.raises(KeyboardInterrupt):
            audit(base, efuf, data, tmp_path)
    audit(base, efuf, data, tmp_path)
    assert [name for name in count if name != "killed"] == [part.name for part in planned]
    assert written(tmp_path) == written(done[0]) and len(planned) == 14
    audit(base, efuf, data, tmp_path)
    assert len(count) == 2 * len(planned) - 1, "nothing is measured twice"


def test_what_is_not_to_be_trusted_is_measured_anew(done, base, efuf, data, tmp_path, monkeypatch):
    """Fails if an edited or cut-off part is believed, an untouched one is redone, or either is not
    named.
    """
    shutil.copytree(done[0], tmp_path / "out")
    monkeypatch.setattr(run, "probe", lambda bench, kinds: PACE)
    shelf, told, redone, do = Shelf(tmp_path / "out/parts"), [], [], Bench.do
    edited = json.loads(shelf.path("rounding").read_text())
    edited["found"]["curve"][0]["chair_s"] = 0.0123
    shelf.path("rounding").write_text(json.dumps(edited))
    cut = shelf.path("noise seed 1").read_bytes()[:-20]
    shelf.path("noise seed 1").write_bytes(cut)
    monkeypatch.setattr(Bench, "do", lambda bench, p: redone.append(p.name) or do(bench, p))
    run.audit(ask(base, efuf, data, tmp_path / "out"), say=told.append, progress=False)
    assert redone == ["rounding", "noise seed 1"]
    assert sum("is broken: 'rounding' is measured anew" in line for line in told) == 1
    assert sum("is broken: 'noise seed 1' is measured anew" in line for line in told) == 1
    assert written(tmp_path / "out") == written(done[0])


def test_another_checkpoint_is_another_audit(done, base, efuf, data, tmp_path, monkeypatch):
    """Fails if results of an old checkpoint are kept under a new one, or the base model's are
    thrown away with them.
    """
    shutil.copytree(done[0], tmp_path / "out")
    model, processor = load(efuf, device="cpu")
    set_trainable(model)
    add_noise(model, 0.05)
    other, told, asked = save(model, processor, tmp_path / "other"), [], []
    monkeypatch.setattr(Bench, "do", lambda bench, p: asked.append(p.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.audit(ask(base, other, data, tmp_path / "out"), say=told.append, progress=False)
    assert asked == ["erased"], "the base model's parts stand"
    assert sum("was measured for another erased:" in line for line in told) == 12


def test_a_budget_drops_further_seeds_first():
    """Fails if a budget drops a worthier part before a less worthy one, one that a report needs, or
    one that is done already; or keeps more than it can pay.
    """
    planned = parts(Settings(), 100)
    names = [part.name for part in planned]
    assert names[:4] == ["said", "base", "erased", "relearn lr 0.0002 seed 0"]
    assert names.index("slices") < names.index("relearn lr 0.0002 seed 1")
    assert names[-1] == "noise seed 2" and len(set(names)) == len(names)
    total = sum(map(PACE.seconds, planned))
    for budget in (None, total, 0.9 * total, 0.5 * total, 0.2 * total, 0.0):
        kept, dropped = choose(planned, PACE, budget)
        assert [*kept, *dropped] == planned, "from the end"
        is_least = [part.kind for part in kept] == ["said", "base", "erased"]
        spent = sum(map(PACE.seconds, kept))
        assert budget is None or spent <= budget or is_least
        if dropped:
            assert spent + PACE.seconds(dropped[0]) > budget, "not more than must be"
    kept, dropped = choose(planned, PACE, 0.0, done=names[-2:])
    assert [part.name for part in kept][-2:] == names[-2:] and len(kept) == 5


def test_the_estimate_counts_what_is_done(base, efuf, data, tmp_path, monkeypatch):
    """Fails if a part looks at images, captions or answers more than the estimate of its time
    knows, or less.
    """
    wanted = replace(TINY, attacks=("lora", "noise", "prefill"), seeds=1)
    done, see, do = Counter(), Bench.see, Bench.do
    monkeypatch.setattr(run, "probe", lambda bench, kinds: PACE)

    def seen(bench, model, photos):
        done["images"] += len(photos)
        return see(bench, model, photos)

    def said(model, processor, features, *args, **how):
        is_lora = "adapter_" * hasattr(base_of(model), "peft_config")
        kind = "answers" if how["max_new_tokens"] == photos.ANSWER_TOKENS else "captions"
        done[f"{is_lora}{kind}"] += len(features)
        return generate(model, processor, features, *args, **how)

    def measured(bench, part):
        done.clear()
        found, work = do(bench, part), vars(part.work)
        for kind in ("images", "captions", "answers", "adapter_captions"):
            assert done[kind] == work[kind], (part.name, kind)
        return found

    for place in (bench, measures):
        monkeypatch.setattr(place, "generate", said)
    monkeypatch.setattr(Bench, "see", seen)
    monkeypatch.setattr(Bench, "do", measured)
    audit(base, efuf, data, tmp_path, wanted)


def test_what_a_budget_drops_is_said(base, efuf, data, tmp_path, monkeypatch):
    """Fails if parts beyond the budget are measured, or are not named in the JSON, on the page and
    before the work; or if a second run takes them up.
    """
    pace, told = replace(PACE, load=100.0), []
    monkeypatch.setattr(run, "probe", lambda bench, kinds: pace)
    wanted = replace(TINY, attacks=("rounding", "noise"), train=24)
    for _ in range(2):
        asked = ask(base, efuf, data, tmp_path, wanted, 450.0)
        found = run.audit(asked, say=told.append, progress=False)
        assert [row["part"] for row in found["dropped"]] == ["rounding", "slices", "noise seed 1"]
        assert [*found["attacks"]] == ["noise"] and found["slices"] is None
    first = first_page((tmp_path / "report.html").read_text())
    for name in ("rounding", "slices", "noise seed 1"):
        assert f"{name} (beyond the budget)" in first
        assert f"Left out: {name} (beyond the budget)." in told
    assert told[0] == "About 7 min for 4 of 7 parts, as a probe has it."


def text_of(html: str) -> str:
    """What a reader sees, tags and double spaces aside."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html.split("</style>")[1])).split())


def first_page(html: str) -> str:
    return text_of("</style>" + html.split('<section class="first">')[1].split("</section>")[0])


def test_the_page_shows_the_numbers_and_the_limits(done):
    """Fails if a number of the JSON is missing on the page, a limit is not on the first one, or the
    page asks for anything from outside.
    """
    html, found = (done[0] / "report.html").read_text(), done[1]
    shown, first = text_of(html), first_page(html)
    assert all(limit in first for limit in found["limits"]) and len(found["limits"]) == 6
    for words in ("One erasure was audited", "Few seeds", "One data set", "These attackers only"):
        assert words in first
    assert found["answer"]["says"] in first and found["rule"] in shown
    for model in ("base", "erased"):
        for key, (_, is_share) in page.BEFORE.items():
            value = found["before"][model][key]
            wanted = (
                "none" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.2f}"
            )
            assert wanted in first, key
    for attack in found["attacks"].values():
        assert attack["verdict"] in first
        for row in attack["rows"]:
            cells = [f"{100 * p['chair_s']:.1f} / {100 * p['recall']:.1f}" for p in row["curve"]]
            assert " ".join(cells) in shown
        for rate in attack["rates"] if attack["rates"][0]["lr"] else ():
            assert f"{rate['lr']:g} 2 {100 * rate['mean_chair_s']:.1f} %" in shown
    for way in ("distances", "random", "relapse", "worst"):
        assert " ".join(f"{value:.2f}" for value in found["slices"][way]) in shown
    for print_of in (found["base"]["print"], found["erased"]["print"], found["data"]["print"]):
        assert print_of in shown
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert "http" not in html and "<script" not in html and outside == ["data:,"]
    assert found == json.loads((done[0] / "audit.json").read_text())


# In a browser: charts without a line, texts that leave their chart, texts cut off, and how wide
LOOK = """() => {
  const charts = [...document.querySelectorAll(".charts svg")];
  const leaves = (svg, text) => {
    const a = svg.getBoundingClientRect(), b = text.getBoundingClientRect();
    return b.left < a.left - 1 || b.right > a.right + 1 || b.top < a.top - 1 ||
      b.bottom > a.bottom + 1;
  };
  const cut = e => getComputedStyle(e).overflowX !== "auto" && e.scrollWidth > e.clientWidth + 1;
  return {
    charts: charts.length,
    empty: charts.filter(svg => ![...svg.querySelectorAll("path.strong")].some(
      path => path.getTotalLength() > 50)).length,
    leaving: charts.flatMap(svg => [...svg.querySelectorAll("text")].filter(
      text => leaves(svg, text)).map(text => text.textContent)),
    cut: [...document.querySelectorAll("p, li, h1, h2, div, section")].filter(cut).map(
      e => e.textContent),
    width: document.documentElement.scrollWidth,
    top: document.querySelector(".answer").getBoundingClientRect().top,
  };
}"""


def opened(browser, url: str, width: int, scheme: str) -> dict:
    """A page in a browser: LOOK, with what it "said" on the console, what it "asked" for, and what
    axe finds "hard" to read.
    """
    from axe_playwright_python.sync_playwright import Axe

    tab = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(url)
    found = tab.evaluate(LOOK) | {"said": said, "asked": asked}
    response = Axe().run(tab, options={"resultTypes": ["violations"], "preload": False}).response
    hard = [(rule["id"], rule["nodes"][0]["target"]) for rule in response["violations"]]
    tab.close()
    return found | {"hard": hard}


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("axe_playwright_python")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("no chromium")
    with sync.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 375])
def test_the_page_in_a_browser(done, browser, width, scheme):
    """Fails if a browser complains about the page, or the page asks it to fetch anything; if a
    chart holds no line, a text leaves its chart, is cut off or hard to read, by day and by night,
    on a wide and a narrow screen; or if the answer does not stand on top.
    """
    url = (done[0] / "report.html").as_uri()
    found = opened(browser, url, width, scheme)
    assert not found["said"] and found["asked"] == [url]
    assert found["charts"] == 11 and not found["empty"]
    assert {kind: found[kind] for kind in ("leaving", "cut", "hard")} == {
        "leaving": [],
        "cut": [],
        "hard": [],
    }
    assert found["width"] <= width and found["top"] < 300


def point(at, chair_s, recall=1.0):
    return {"at": at, "chair_s": chair_s, "recall": recall}


BASE, ERASED = point(0, 0.9), point(0, 0.1)


def curve(lr, *points, seed=0):
    return {"lr": lr, "seed": seed, "curve": [ERASED, *points]}


def test_the_worst_rate_keeps_recall():
    """Fails if the worst learning rate is one that breaks the model, the mildest, or is judged by
    one seed alone; worked by hand.
    """
    rows = [
        curve(1e-4, point(8, 0.2), point(16, 0.3)),
        curve(1e-3, point(8, 0.5), point(16, 0.9), seed=0),
        curve(1e-3, point(8, 0.3), point(16, 0.5), seed=1),
        curve(1e-2, point(8, 0.9, 0.5), point(16, 1.0, 0.1)),
    ]
    found = readings.of_attack("relearn", rows, ERASED, BASE)
    assert found["worst"] == 1e-3 and found["verdict"] == readings.BREAKS
    assert found["peak"] == {"at": 16, "chair_s": 0.7, "recall": 1.0, "lr": 1e-3}
    mild, worst, wild = found["rates"]
    assert worst["mean_chair_s"] == pytest.approx((0.25 + 0.55) / 2) and worst["n"] == 2
    assert worst["halfway"] == pytest.approx(8 + 8 * (0.5 - 0.4) / 0.3)
    assert mild["halfway"] is None and not wild["keeps_recall"] and wild["peak"] is None
    assert wild["lowest_recall"] == pytest.approx(0.1)
    assert "keeps 95 % of recall: 0.001.</p>" in page.sentence("relearn", found)
    edge = readings.of_attack("relearn", rows[:2], ERASED, BASE)
    assert "It is the highest tried" in page.sentence("relearn", edge)
    none = readings.of_attack("relearn", rows[3:], ERASED, BASE)
    assert "No learning rate keeps 95 %" in page.sentence("relearn", none)
    assert none["worst"] is None and none["verdict"] == readings.LOSES
    held = readings.of_attack("relearn", [curve(1e-4, point(8, 0.2))], ERASED, BASE)
    assert held["verdict"] == readings.HOLDS, "a rise of ten points, not more"


@pytest.mark.parametrize(
    ("before", "rows", "lasts", "says"),
    [
        (point(0, 0.85), [], None, "By this measure nothing was erased. Before"),
        (ERASED, [], None, "Not attacked."),
        (ERASED, [curve(1e-4, point(8, 0.1))], True, "It held under what was tried here"),
        (ERASED, [curve(1e-4, point(8, 0.9, 0.2))], True, "It held"),
        (ERASED, [curve(1e-4, point(8, 0.5))], False, "It does not last."),
    ],
)
def test_the_answer_is_the_numbers(before, rows, lasts, says):
    """Fails if the sentence on top calls a broken model a relapse, an attack that was not made
    survived, or a failed erasure an erasure.
    """
    tried = {"relearn": readings.of_attack("relearn", rows, before, BASE)} if rows else {}
    found = readings.answer(BASE, before, tried)
    assert found["lasts"] is lasts and found["says"].startswith(says)


def changed(base, folder, **config):
    """A copy of a checkpoint with another config.json."""
    shutil.copytree(base, folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


def bad_pairs(base, efuf, tmp_path):
    """(base, erased, what is said of it)."""
    shape = json.loads((base / "config.json").read_text())["text_config"] | {"hidden_size": 32}
    words = shutil.copytree(base, tmp_path / "words")
    found = json.loads((words / "tokenizer.json").read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary["zzz"] = vocabulary.pop("kitchen")
    (words / "tokenizer.json").write_text(json.dumps(found))
    model, processor = load(base, device="cpu")
    adapter = save(set_trainable(model, "lora"), processor, tmp_path / "adapter")
    nameless = shutil.copytree(adapter, tmp_path / "nameless")
    (nameless / "adapter_config.json").write_text("{}")
    return [
        (tmp_path / "no", efuf, "--base .*no: no checkpoint"),
        (base, tmp_path / "no", "--erased .*no: no checkpoint"),
        (changed(base, tmp_path / "gpt", model_type="gpt2"), efuf, "a gpt2, not a llava"),
        (base, changed(base, tmp_path / "s", text_config=shape), "text_config.hidden_size is 32"),
        (base, words, "another tokenizer .* differ in 'kitchen'"),
        (base, shutil.copytree(base, tmp_path / "copy"), "nothing was erased"),
        (efuf, adapter, "an adapter for .*llava, not for --base"),
        (base, nameless, "adapter_config.json: names no base"),
    ]


def test_pairs_that_are_none_are_refused_first(base, efuf, data, tmp_path, monkeypatch):
    """Fails if a wrong pair of checkpoints is found out only after the data are read, or without
    its name.
    """
    monkeypatch.setattr(material, "read", lambda *_: pytest.fail("the data were read first"))
    for one, two, says in bad_pairs(base, efuf, tmp_path):
        with pytest.raises(ValueError, match=says):
            audit(one, two, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_words_and_files_are_refused_first(base, efuf, data, tmp_path, monkeypatch, capsys):
    """Fails if a wrong word on the command line or a missing file is found out only after a model
    was loaded, is not named, or ends without exit code 1.
    """
    monkeypatch.setattr(pair, "load_erased", lambda *_: pytest.fail("a model was loaded first"))
    monkeypatch.setattr(pair, "load_base", lambda *_: pytest.fail("a model was loaded first"))
    lacks = shutil.copytree(data, tmp_path / "lacks")
    (lacks / "pope/coco_pope_popular.json").unlink()
    given = {"--base": base, "--erased": efuf, "--data": data, "--out": tmp_path / "out"}
    given["--train-images"] = 8
    for changes, says in (
        ({"--attacks": "relearn,prun"}, "--attacks 'prun': no such attack: there are relearn"),
        ({"--attacks": "noise,noise"}, "give each once"),
        ({"--seeds": "0"}, "seeds=0: give a whole number from 1"),
        ({"--budget": "soon"}, "--budget 'soon': give a time as 90s, 20m or 1h30m"),
        ({"--lrs": "1e-4,fast"}, "learning rate 'fast'"),
        ({"--lrs": "-1"}, "relearn: learning rates .-1.0,."),
        ({"--data": lacks}, "coco_pope_popular.json: no such file"),
        ({"--train-images": "99"}, f"{N_TRAIN} images are left after 0, and 99 were asked for"),
        ({"--out": base / "config.json"}, "--out .*config.json: cannot be written"),
        ({"--base": tmp_path / "no"}, "--base .*no: no checkpoint"),
        ({"--skip": "30"}, "2 images are left after 30"),
    ):
        words = [f"{name}={value}" for name, value in (given | changes).items()]
        assert cli.main(["audit", *words]) == 1
        captured = capsys.readouterr()
        assert re.search(says, captured.err), captured.err
        assert not captured.out and captured.err.count("\n") == 1


def test_too_few_hallucinations_are_named(base, efuf, data, tmp_path):
    """Fails if an attack on next to no captions is reported as one."""
    with pytest.raises(
        ValueError, match=r"of 8 captions of the base model hallucinate.*20 are needed: give m"
    ):
        audit(base, efuf, data, tmp_path, replace(TINY, train=8, level=12))


def test_the_command_audits(base, efuf, data, tmp_path, monkeypatch, capsys):
    """Fails if the command does other work than `audit` with the same words, or does not say where
    the report lies.
    """
    monkeypatch.setattr(command, "_settings", lambda given: replace(TINY, attacks=("rounding",)))
    words = ["--base", base, "--erased", efuf, "--data", data, "--out", tmp_path]
    assert cli.main(["audit", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert f"The report: {tmp_path / 'report.html'}" in captured.out
    assert "About " in captured.err and "for 5 of 5 parts" in captured.err
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["answer"]["says"] in captured.out


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_adapter_is_merged_and_audited(base, data, adapted, tmp_path, is_ours):
    """Fails if an adapter, ours or one of stock peft without a processor, is not found, is left
    out, or counts twice.
    """
    model, processor = adapted
    folder = save(model, processor, tmp_path / "adapter") if is_ours else tmp_path / "adapter"
    if not is_ours:
        model.save_pretrained(folder)
    wanted = replace(TINY, attacks=("rounding",), seeds=1)
    found, m = audit(base, folder, data, tmp_path / "out", wanted), material.read(data, wanted)
    assert found["erased"]["is_adapter"]
    merged = copy.deepcopy(model).merge_and_unload()
    level, _ = held(merged, processor, m, tmp_path / "out")
    wanted = direct(merged, processor, m, level)
    assert same(found["before"]["erased"], {k: v for k, v in wanted.items() if k != "nll_forget"})
    assert found["before"]["erased"]["nll_forget"] == pytest.approx(wanted["nll_forget"], rel=1e-5)
    lifted = found["before"]["erased"]["nll_forget"] - found["before"]["base"]["nll_forget"]
    assert lifted > 0.01, "sanity: the adapter does something"


def test_another_family_of_llava(data, tmp_path):
    """Fails if something here knows CLIP and Llama only: SigLIP and Qwen2, tied embeddings, no
    BOS.
    """
    with attacks.seeded(0):
        model, processor = siglip_qwen2()
    base = save(model.eval(), processor, tmp_path / "base")
    set_trainable(model)
    add_noise(model, 0.2)
    erased = save(model, processor, tmp_path / "erased")
    wanted = replace(TINY, attacks=("relearn", "lora", "prefill"), seeds=1, relearn=(1e-3,))
    found = audit(base, erased, data, tmp_path / "out", wanted)
    model, m = set_trainable(load(erased, device="cpu")[0]), material.read(data, wanted)
    level, attack = held(model, processor, m, tmp_path / "out")
    for _ in relearn(model, attack, (16,), 1e-3, progress=False):
        last = direct(model, processor, m, level)
    curve = found["attacks"]["relearn"]["rows"][0]["curve"]
    assert same(curve[-1], last) and curve[0] != curve[-1] and found["slices"]["moved"] > 0


def test_weights_come_back_after_rounding(data, base):
    """Fails if noise or rounding leaves a trace, so that the next strength attacks a broken
    model.
    """
    model = set_trainable(load(base, device="cpu")[0])
    before, seen = [p.detach().clone() for p in trainable(model)], []

    def measure(model):
        seen.append(any(not torch.equal(p, q) for p, q in zip(trainable(model), before)))
        return {}

    for kind, at in (("rounding", (3, 2)), ("noise", (0.5, 0.1))):
        attacks.hurt(model, measure, kind, at)
    assert seen == [True] * 4, "sanity: they were changed"
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))


def test_times_are_read_and_spelled():
    """Fails if a budget is taken for another time."""
    assert [settings.read_budget(t) for t in ("90s", "20m", "1h30m")] == [90, 1200, 5400]
    assert [settings.spell_time(t) for t in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
    for text in ("", "20", "m", "20 m", "-5m"):
        with pytest.raises(ValueError, match="--budget"):
            settings.read_budget(text)
