"""How fast: packing, SARE against EFUF, cached features, batched generation, scoring, two peers.
`make bench` writes figures/bench.*.

Speed is a ratio taken in one run: the cases take turns (A B A B), each round gives one ratio, and
the median and the quartiles of the rounds are reported. Seconds belong to one machine, ratios
travel better. The model is a LLaVA with random weights and the image tokens of LLaVA-1.5 (576):
time and memory do not depend on what the weights have learnt. All but the vision tower trains.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from pytorch_optimizer import SAM
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from sare_min.captions import DESCRIBE, Captions, encode, render
from sare_min.llava import embed_images, set_trainable, trainable
from sare_min.losses import Method, counts, method_losses
from sare_min.unlearn import METHODS, gradient

from .. import files, jobs
from ..evidence import figures, looks, report
from ..experiments import cheaper
from ..llava.speech import generate
from ..metrics.chair import Span, read_synonyms
from ..world import models
from ..world.curate import curate
from ..world.models import World
from ..world.scenes import OBJECTS, Scene, a, draw, split_scenes
from .rounds import BY_TRUTH, FIND, Step, compare, processor_for, sampled

LOSSES = {"neg": "lambda_neg", "pos": "lambda_pos", "sent": "lambda_sent"}
RATIOS = {  # name -> (case above, case below)
    "rows_over_packed_4": ("one row each, 4", "packed, 4"),
    "rows_over_packed": ("one row each, 8", "packed, 8"),
    "rows_over_packed_12": ("one row each, 12", "packed, 12"),
    "sare_over_efuf": ("SARE", "EFUF"),
    "sare_over_released": ("SARE", "EFUF, one row each"),
    "sam_over_efuf": ("EFUF+SAM", "EFUF"),
    "wrapper_over_sam": ("SAM of pytorch_optimizer", "EFUF+SAM"),
    "wrapper_over_sare": ("SAM of pytorch_optimizer", "SARE"),
    "four_copies_over_sare": ("four copies", "SARE"),
    "kept_over_sare": ("SARE, eps kept", "SARE"),
    "sampled_over_sare": ("SARE, eps from a quarter", "SARE"),
    "projector_over_sare": ("SARE, eps of the projector", "SARE"),
    "features_over_efuf": ("image features", "EFUF"),
    "one_by_one_over_batched": ("generate, one by one", "generate, batched"),
}
SAID = {  # how the figure calls a case, where its name alone says too little
    "packed, 4": "4 sub-sentences in one row",
    "packed, 8": "8 in one row",
    "packed, 12": "12 in one row",
    "one row each, 4": "One row a sub-sentence",
    "one row each, 8": "One row a sub-sentence",
    "one row each, 12": "One row a sub-sentence",
    "EFUF, one row each": "EFUF, one row a sub-sentence",
    "EFUF+SAM": "untargeted SAM",
    "SAM of pytorch_optimizer": "SAM as pytorch_optimizer has it",
    "four copies": "SARE with four copies of the weights",
    "SARE, eps kept": "SARE, eps* kept from the step before",
    "SARE, eps from a quarter": "SARE, eps* from a quarter of the rows",
    "SARE, eps of the projector": "SARE, eps* of the projector alone",
    "image features": "Reading the pictures",
    "generate, one by one": "Captions one by one",
    "generate, batched": "in a batch",
}
AIMS = {
    "rows_over_packed": ("at least", 5.0),
    "memory_rows_over_packed": ("at least", 5.0),
    "sare_over_efuf": ("at most", 2.3),
    "sare_over_released": ("at most", 0.6),
    "memory_sare_over_efuf": ("at most", 1.15),
}


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults take a few minutes on one core."""

    side: int = 336  # pixels of a picture
    patch: int = 14  # pixels of a vision patch: (side / patch)^2 = 576 image tokens
    width: int = 128
    layers: int = 4
    # Of one caption, packed or one row each, in one forward
    sub_sentences: tuple[int, ...] = (4, 8, 12)
    captions: int = 16  # of a batch, for the methods
    micro_batch: int = 8  # rows in one forward, the same for all methods
    pictures: int = 8  # described by generation
    new_tokens: int = 24
    # Answers to score, and captions; as in COCO, five human captions tell of each picture
    scored: int = 3000
    rounds: int = 5


@dataclass(frozen=True)
class Bench:
    """What the cases share. features: (n pictures, N, D), the frozen tower's output."""

    size: Size
    model: LlavaForConditionalGeneration
    processor: ProcessorMixin
    scenes: list[Scene]
    pictures: list[Image.Image]
    features: Tensor


def build(size: Size, device: str = "cpu") -> Bench:
    """A LLaVA with random weights, its processor, and as many pictures as a batch has captions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = models.build_llava(World(width=size.width, layers=size.layers)).config
        config.vision_config.image_size, config.vision_config.patch_size = size.side, size.patch
        config.text_config.max_position_embeddings = (size.side // size.patch) ** 2 + 256
        model = set_trainable(LlavaForConditionalGeneration(config).eval().to(device), "all")
    processor = processor_for(size.side, size.patch)
    n = max(size.captions, size.pictures)
    scenes = split_scenes(0, some=100 + 20 * n)["some"]
    few, many = ([scene for scene in scenes if len(scene.objects) == k] for k in (2, 3))
    # Lengths that vary: padding brings a mask, which costs time and memory
    scenes = [(many if i % 4 else few)[i] for i in range(n)]
    pictures = [draw(scene, size.side) for scene in scenes]
    return Bench(size, model, processor, scenes, pictures, embed_images(model, processor, pictures))


def alternating(n: int) -> tuple[list[str], list[dict[str, list[Span]]]]:
    """One caption of n sub-sentences, in turn kept and forgotten, with its spans."""
    text = f"a kitchen with {', '.join(map(a, OBJECTS[:n]))}."
    return [text], curate(
        [text],
        [{noun: float(i % 2 == 0) for i, noun in enumerate(OBJECTS[:n])}],
        FIND,
        BY_TRUTH,
    )


def one_row_each(
    texts: Sequence[str], spans: Sequence[dict[str, list[Span]]]
) -> tuple[list[str], list[dict[str, list[Span]]], list[int]]:
    """The layout of EFUF's released code: a row per marked sub-sentence, the caption cut at its
    end; texts, spans, each row's caption.
    """
    rows = [
        (text[:end], {kind: [(start, end)]}, i)
        for i, (text, kinds) in enumerate(zip(texts, spans, strict=True))
        for kind, pieces in kinds.items()
        for start, end in pieces
    ]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def both_layouts(
    bench: Bench, texts: Sequence[str], spans: Sequence[dict[str, list[Span]]]
) -> tuple[Captions, Captions]:
    """The same captions packed and one row each."""
    texts_each, spans_each, image = one_row_each(texts, spans)
    packed = encode(bench.processor, bench.features, texts, spans, image=range(len(texts)))
    each = encode(bench.processor, bench.features, texts_each, spans_each, image=image)
    return packed[:].to(bench.model.device), each[:].to(bench.model.device)


def backward(
    model: nn.Module,
    batch: Captions,
    method: Method,
    n: Mapping[str, int],
    names: Sequence[str],
    micro_batch: int,
) -> None:
    """Leave the gradient of the named losses' weighted sum in .grad; n: the batch's counts."""
    model.zero_grad()
    for rows in torch.arange(len(batch)).split(micro_batch):
        found = method_losses(model, batch[rows], method, n)
        loss = sum(getattr(method, LOSSES[name]) * found[name] for name in names if name in found)
        if torch.is_tensor(loss):
            loss.backward()


def wrapped_sam(model: nn.Module, batch: Captions, method: Method, micro_batch: int) -> None:
    """Ordinary SAM on the whole loss by the wrapper of the pytorch_optimizer package, around SGD at
    a learning rate of 0.

    Leaves the gradient at theta + eps in .grad, as `gradient` does for METHODS["EFUF+SAM"].
    """
    n, optimizer = (
        counts(batch, method.per),
        SAM(trainable(model), torch.optim.SGD, rho=method.rho, lr=0.0),
    )

    def closure() -> None:
        backward(model, batch, method, n, tuple(LOSSES), micro_batch)

    closure()
    optimizer.step(closure)


def four_copies(model: nn.Module, batch: Captions, method: Method, micro_batch: int) -> None:
    """Targeted-SAM by the public two-backward recipe: each stage's gradient is kept, and eps is
    subtracted again.

    Leaves the same gradient as `gradient` in .grad up to rounding. Written from a description of
    Unlearn-Smooth's SAM trainer, which keeps perturb, eps, forget and retain; forget rows and all
    rows are separate forwards there.
    """
    params, n, hallucinated = trainable(model), counts(batch, method.per), batch.split_forget()[0]

    def kept(rows: Captions, *names: str) -> list[Tensor]:
        backward(model, rows, method, n, names, micro_batch)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]

    perturb = kept(hallucinated, "neg")
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in perturb]))
    eps = [method.rho * g / norm for g in perturb]
    with torch.no_grad():
        torch._foreach_add_(params, eps)
    forget = kept(hallucinated, "neg")
    with torch.no_grad():
        torch._foreach_sub_(params, eps)
    retain = kept(batch, "pos", "sent")
    for p, g_forget, g_retain in zip(params, forget, retain, strict=True):
        p.grad = g_forget + g_retain


def packing_cases(bench: Bench) -> dict[str, Step]:
    """EFUF's gradient on one caption, packed and one row each, all rows in one forward."""
    cases = {}
    for n in bench.size.sub_sentences:
        for layout, batch in zip(
            ("packed", "one row each"), both_layouts(bench, *alternating(n)), strict=True
        ):
            cases[f"{layout}, {n}"] = lambda batch=batch: gradient(
                bench.model, batch, METHODS["EFUF"], len(batch)
            )
    return cases


def method_cases(bench: Bench) -> dict[str, Step]:
    """One batch's gradient by each method and peer; all forwards have size.micro_batch rows at
    most.
    """
    model, micro = bench.model, bench.size.micro_batch
    packed, each = both_layouts(bench, *sampled(bench.scenes[: bench.size.captions]))
    ours = {
        name: lambda name=name: gradient(model, packed, METHODS[name], micro)
        for name in ("EFUF", "SARE", "EFUF+SAM")
    }
    rough = {
        "SARE, eps kept": cheaper.kept(
            10**9
        ),  # after the first step, which warms up: what the steps between cost
        "SARE, eps from a quarter": cheaper.sampled(0.25),
        "SARE, eps of the projector": cheaper.over(
            list(model.model.multi_modal_projector.parameters())
        ),
    }
    rough = {name: replace(METHODS["SARE"], step=step) for name, step in rough.items()}
    return (
        ours
        | {
            name: lambda method=method: gradient(model, packed, method, micro)
            for name, method in rough.items()
        }
        | {
            "EFUF, one row each": lambda: gradient(model, each, METHODS["EFUF"], micro),
            "SAM of pytorch_optimizer": lambda: wrapped_sam(
                model, packed, METHODS["EFUF+SAM"], micro
            ),
            "four copies": lambda: four_copies(model, packed, METHODS["SARE"], micro),
            "image features": lambda: embed_images(
                model, bench.processor, bench.pictures[: bench.size.captions]
            ),
        }
    )


def generation_cases(bench: Bench) -> dict[str, Step]:
    """Describing pictures, from pixels on: our features and one batch, against transformers'
    generate called picture by picture.
    """
    model, processor, pictures, new = (
        bench.model,
        bench.processor,
        bench.pictures[: bench.size.pictures],
        bench.size.new_tokens,
    )

    @torch.no_grad()
    def one_by_one() -> list[str]:
        answers = []
        for picture in pictures:
            inputs = processor(
                text=render(processor, DESCRIBE), images=picture, return_tensors="pt"
            ).to(model.device)
            out = model.generate(
                **inputs,
                max_new_tokens=new,
                do_sample=False,
                suppress_tokens=[model.config.image_token_id],
                pad_token_id=processor.tokenizer.pad_token_id,
            )
            answers.append(
                processor.decode(
                    out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                ).strip()
            )
        return answers

    return {
        "generate, batched": lambda: generate(
            model, processor, embed_images(model, processor, pictures), max_new_tokens=new
        ),
        "generate, one by one": one_by_one,
    }


def scoring_cases(folder: Path, n: int) -> dict[str, Step]:
    """`python -m lab.score` on n POPE answers, and on n captions by CHAIR, from start to end.

    The files are written to the folder: captions of about 25 words, human captions of about 10.
    """
    ids, nouns = range(1, n + 1), list(dict.fromkeys(read_synonyms().values()))

    def named(i: int, k: int) -> str:
        return " and ".join(a(nouns[(i * (j + 3) + k) % len(nouns)]) for j in range(k))

    told = [
        {"image_id": i, "caption": f"{named(i + k, 2)} stand in a quiet room."}
        for i in ids
        for k in range(5)
    ]
    contents = {
        "questions": [{"question_id": i, "text": "?", "label": "yes"} for i in ids],
        "answers": [{"question_id": i, "answer": "Yes, there is."} for i in ids],
        "captions": [
            {"image_id": i, "caption": f"We see {named(i, 4)}. Nearby stands {named(i, 3)}."}
            for i in ids
        ],
        "instances": {"images": [{"id": i} for i in ids], "annotations": [], "categories": []},
        "human": {"images": [{"id": i} for i in ids], "annotations": told},
    }
    for name, rows in contents.items():
        (folder / name).write_text(json.dumps(rows))

    def score(kind: str, *names: str, how: Sequence[str] = ()) -> None:
        given = [str(part) for name in names for part in (f"--{name}", folder / name)]
        command = [sys.executable, "-m", "lab.score", kind, *given, *how]
        subprocess.run(command, check=True, cwd=files.CHAPTERS, stdout=subprocess.DEVNULL)

    by_efuf = ("--convention", "efuf")
    return {
        "answers": partial(score, "pope", "questions", "answers"),
        "captions": partial(score, "chair", "captions", "instances", "human", how=by_efuf),
    }


def scoring(size: Size) -> dict[str, dict]:
    """Seconds to score `size.scored` rows of each kind, start of the command included."""
    with tempfile.TemporaryDirectory() as folder:
        found, _ = compare(scoring_cases(Path(folder), size.scored), size.rounds, {})
    return {
        name: {"n": size.scored, "seconds": row["median"], "spread": row["spread"]}
        for name, row in found.items()
    }


@contextmanager
def only_new(model: nn.Module) -> Iterator[None]:
    """No gradients at first, and nothing that was there before is collected as garbage or shows up
    in gc.get_objects.
    """
    model.zero_grad()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def peak_memory(model: nn.Module, step: Step) -> float:
    """MB (10^6 bytes) that a step allocates at its peak, on top of weights, data and what else was
    there before it.

    On a CPU this is torch's own record of each allocation and release, so it is the same in every
    run; scratch space that a library takes from the system behind torch's back is not in it. On
    CUDA it is the caching allocator's peak.
    """
    if model.device.type == "cuda":
        with only_new(model):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with (
        only_new(model),
        profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as recorded,
    ):
        step()
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    events = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in trace if event.get("name") == "[memory]"
    )
    return float(np.cumsum([n_bytes for _, n_bytes in events]).max(initial=0)) / 1e6


def on_weights(model: nn.Module, step: Step) -> dict[str, float]:
    """What a step that only computes a gradient leaves and needs: {"restore_error",
    "extra_copies"}.

    restore_error: the largest |difference| of a weight before and after. extra_copies: tensors in
    the shape of trained weights, beside these and their .grad, that live when a forward begins
    (1.0: one for every weight), at most. A copy made after the last forward, as the fourth of
    `four_copies`, is not among them.
    """
    params, shapes, alive = trainable(model), {p.shape for p in trainable(model)}, []

    def count(*_) -> None:
        ours = {p.grad.data_ptr() for p in params if p.grad is not None}
        found = {
            t.data_ptr(): t.numel()
            for t in gc.get_objects()
            if type(t) in (Tensor, nn.Parameter) and t.shape in shapes
        }
        alive.append(sum(size for at, size in found.items() if at not in ours))

    theta, hook = (
        nn.utils.parameters_to_vector(params).detach().clone(),
        model.register_forward_pre_hook(count),
    )
    try:
        with only_new(model):
            step()
    finally:
        hook.remove()
    error = (nn.utils.parameters_to_vector(params).detach() - theta).abs().max()
    return {"restore_error": float(error), "extra_copies": max(alive, default=0) / len(theta)}


def measure(size: Size, device: str = "cpu", progress: bool = False) -> dict:
    """All cases on one device: {"cases", "ratio", "ratio_spread", "size"}."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    bench, cases, ratio, spread = build(size, device), {}, {}, {}
    for make in tqdm(
        (packing_cases, method_cases, generation_cases),
        desc=f"bench on {device}",
        disable=not progress,
    ):
        steps = make(bench)
        for name, step in steps.items():  # also warms up
            step()
            cases[name] = {"memory_mb": peak_memory(bench.model, step)}
            if make is method_cases and name != "image features":
                cases[name] |= on_weights(bench.model, step)
        seconds, ratios = compare(steps, size.rounds, RATIOS, clock)
        for name, found in seconds.items():
            cases[name] = {"seconds": found["median"], "spread": found["spread"]} | cases[name]
            if make is generation_cases:
                cases[name]["captions_per_second"] = size.pictures / found["median"]
        ratio |= {name: found["median"] for name, found in ratios.items()}
        spread |= {name: found["spread"] for name, found in ratios.items()}
    for name, (over, under) in RATIOS.items():
        if {over, under} <= set(cases):
            ratio[f"memory_{name}"] = cases[over]["memory_mb"] / cases[under]["memory_mb"]
    # Of a step that does not keep them
    ratio["features_share"] = ratio["features_over_efuf"] / (1 + ratio["features_over_efuf"])
    return {"cases": cases, "ratio": ratio, "ratio_spread": spread, "size": asdict(size)}


def where() -> dict[str, object]:
    """What the numbers belong to."""
    return {
        "processor": report.processor(),
        "threads": torch.get_num_threads(),
    } | {package: version(package) for package in ("torch", "transformers", "pytorch_optimizer")}


def fig_bench(results: Mapping, ax: Axes | None = None) -> Figure:
    """Ratios of time (dot, quartiles over rounds) and of peak memory (square), with what was aimed
    at. results: what `measure` returns.
    """
    names = [name for name in RATIOS if name in results["ratio"]]
    if ax is None:
        _, ax = plt.subplots(figsize=(looks.WIDTH, 0.31 * len(names) + 0.8))
    for y, name in enumerate(names):
        ax.plot(results["ratio_spread"][name], [y, y], color=looks.INK)
        for key, at, colour, marker, label in (
            (name, y, looks.INK, "o", "time"),
            (f"memory_{name}", y + 0.25, looks.PALE, "s", "peak memory"),
        ):
            ratio = results["ratio"][key]
            ax.plot(ratio, at, marker, color=colour, ms=6, label=None if y else label)
            if key in AIMS:
                side, bound = AIMS[key]
                mark = ">" if side == "at least" else "<"
                ax.plot(bound, at, mark, color=colour, markerfacecolor="none", ms=9)
    ax.axvline(1, color=looks.INK, linewidth=1, linestyle=(0, (5, 4)))
    labels = [", against ".join(SAID.get(case, case) for case in RATIOS[name]) for name in names]
    ax.set(
        xscale="log",
        yticks=range(len(names)),
        yticklabels=labels,
        ylim=(len(names) - 0.4, -0.6),
        xlabel="ratio (under 1: the first is cheaper)",
    )
    ax.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    ax.set_xticks([], minor=True)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right")
    return ax.figure


def picture(results: Mapping, path: Path) -> None:
    """Draw what main measured, with its title and caption, to a PNG."""
    ratio, size = results["ratio"], results["size"]
    title = (
        f"A step of SARE takes {ratio['sare_over_efuf']:.2g} times EFUF's time and"
        f" {ratio['memory_sare_over_efuf']:.2f} times its memory"
    )
    n_tokens = (size["side"] // size["patch"]) ** 2
    caption = (
        f"One gradient on {size['captions']} captions by a LLaVA with random weights and {n_tokens}"
        f" image tokens, on one core. Time: median and quartiles of {size['rounds']} rounds in"
        " turn; memory: the highest. Open triangle: the aim, pointing where it is met."
    )
    figures.save(fig_bench(results), path, title, caption)


def main(size: Size, folder: Path) -> None:
    """Measure, and write bench.json and bench.png to the folder."""
    jobs.one_thread()
    results = measure(size, progress=True) | {"where": where(), "gpu": "not measured"}
    results["scoring"] = scoring(size)
    if torch.cuda.is_available():
        results["gpu"] = {"name": torch.cuda.get_device_name()} | measure(
            size, "cuda", progress=True
        )
    files.write_json(folder / "bench.json", results)
    picture(results, folder / "bench.png")
    for name, ratio in results["ratio"].items():
        print(f"{name:32} {ratio:8.3f}", *AIMS.get(name, ()))
    for name, row in results["scoring"].items():
        print(f"{name:32} {row['seconds']:8.3f} s to score {row['n']}")
    for name, case in results["cases"].items():
        if "extra_copies" in case:
            print(
                f"{name:32} {case['extra_copies']:8.3f} extra weight copies, restore error"
                f" {case['restore_error']:.1e}"
            )


if __name__ == "__main__":
    main(Size(), files.ROOT / "figures")
