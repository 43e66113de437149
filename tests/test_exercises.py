"""The exercises: an empty answer is told so, each solution is right, each typical mistake is known
by its name.
"""

import ast
import builtins
import linecache
import re
from contextlib import contextmanager

import jupytext
import pytest
import torch
from conftest import tiny_llava

from lab.exercises import (
    ascent,
    erasure,
    hallucination,
    real_thing,
    relearning,
    sharpness,
    targeted_sam,
)
from lab.exercises.verdict import NotYet, exercise
from lab.experiments import attacks, erasures, presets
from lab.tools.execute import CHAPTERS, NAMES
from lab.world import encoded
from lab.world import kit as kits
from lab.world.kit import Kit
from sare_min.captions import token_nll
from sare_min.sam import perturbed
from sare_min.sam import targeted_sam as library

HEADING = re.compile(r"^### (\d) · (.+?) \*\((.+)\)\*$", re.MULTILINE)
SECTION = re.compile(r"^### (\d\d\.\d) · (.+)$", re.MULTILINE)


def source(name):
    return jupytext.read(CHAPTERS / f"{name}.py").cells


def exercises(name):
    """{"00.1": (title, kind, the exercise cell's source or None)} of one chapter."""
    found, last = {}, None
    for cell in source(name):
        if cell.cell_type == "markdown":
            for number, title, kind in HEADING.findall(cell.source):
                last = f"{name[:2]}.{number}"
                found[last] = [title, kind, None]
        elif "exercise" in cell.metadata.get("tags", []):
            assert found[last][2] is None, f"{last} has two cells: give each its heading"
            found[last][2] = cell.source
    return found


def solutions():
    """{"00.1": (title, its python block or None)}"""
    parts = SECTION.split((CHAPTERS / "solutions.md").read_text())[1:]
    blocks = [re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in parts[2::3]]
    assert all(len(found) <= 1 for found in blocks)
    return {
        number: (title, found[0] if found else None)
        for number, title, found in zip(parts[::3], parts[1::3], blocks, strict=True)
    }


def said(capsys, check, *answers):
    check(*answers)
    return capsys.readouterr().out


def test_every_exercise_has_its_solution():
    """Fails if a chapter has other exercises than solutions.md, by number and title, if one with a
    check has no code there, or an open one has.
    """
    asked = {number: row for name in NAMES for number, row in exercises(name).items()}
    answered = solutions()
    assert list(asked) == sorted(asked) == list(answered)
    for number, (title, kind, cell) in asked.items():
        assert answered[number][0] == title
        assert (cell is None) == (kind == "open") == (answered[number][1] is None), number


@pytest.mark.parametrize("name", NAMES)
def test_each_chapter_opens_with_easy_ones(name):
    """Fails if a chapter has not three to five exercises, begins with a hard one, or leaves more
    than two open.
    """
    kinds = [kind for _, kind, _ in exercises(name).values()]
    assert 3 <= len(kinds) <= 5 and kinds[0] == "easy" and kinds.count("open") <= 2


@pytest.mark.parametrize("name", NAMES)
def test_empty_answers_are_not_yet_and_solutions_are_right(name, capsys):
    """Fails if an empty answer passes, prints anything else, or a solution does not pass the check
    of its exercise. A solution stands in the place of the cell's empty answer.
    """
    answered, here = solutions(), {"__name__": "__main__"}
    for number, (_, _, cell) in exercises(name).items():
        if cell is None:
            continue
        tags = [c.metadata.tags for c in source(name) if c.source == cell]
        assert tags == [["exercise", "nbval-check-output"]]
        exec(cell, here)
        out = capsys.readouterr().out
        assert out.startswith("not yet: ") and out.count("\n") == 1, number
        exec(answered[number][1], here)
        exec(ast.unparse(ast.parse(cell).body[-1]), here)  # the call of the check
        out = capsys.readouterr().out
        assert out.startswith("right: ") and out.count("\n") == 1, f"{number}: {out}"


# Typical mistakes, each with the words by which it must be known.

WRONG = [
    (hallucination.chair_by_hand, (2 / 5, 1 / 2), "my_chair_s is CHAIR_i"),
    (hallucination.chair_by_hand, (1.0, 2 / 5), "counts a caption once"),
    (hallucination.chair_by_hand, (50, 40), "not a percentage"),
    (hallucination.chair_by_hand, (1 / 2, 1 / 2), "my_chair_i is CHAIR_s again"),
    (hallucination.chair_by_hand, (1 / 2, 1 / 4), "the bowl is named twice"),
    (hallucination.chair_by_hand, (1 / 2, 1 / 3), "mean of shares"),
    (hallucination.chair_by_hand, (1 / 2, None), "in place of None in my_chair_i"),
    (hallucination.chair_by_hand, ("half", 1), "to be a number, not 'half'"),
    (hallucination.greedy_and_sampled, (0.4, 0.4), "does not draw"),
    (hallucination.greedy_and_sampled, (1, 0.4), "if the comma were the likelier"),
    (hallucination.greedy_and_sampled, (0, 0.6), "stop in time"),
    (hallucination.greedy_and_sampled, (0, 0), "now and then"),
    (hallucination.probability, (0.25,), "2 bits"),
    (hallucination.probability, (0.01,), "base 10"),
    (hallucination.probability, (7.389,), "at most 1"),
    (sharpness.length, (216,), "L1"),
    (sharpness.length, (0.001,), "L-infinity"),
    (sharpness.length, (0.216,), "*squared* length"),
    (sharpness.flips_at, (0.04,), "rho squared"),
    (sharpness.flips_at, (0.1732,), "The wide one rises, too"),
    (sharpness.flips_at, (0.12,), "difference in depth"),
    (sharpness.sam_step, (0.8,), "the plain step"),
    (sharpness.sam_step, (1.2,), "used at home"),
    (sharpness.sam_step, (0.9,), "goes *down*"),
    (sharpness.sam_step, (0.6,), "normalised"),
    (sharpness.sam_step, (1.5,), "step down is missing"),
    (sharpness.sharp_and_random, (100, 0.01), "my_sharp lacks the half"),
    (sharpness.sharp_and_random, (50, 50), "is not the sharp one"),
    (sharpness.sharp_and_random, (50, 0.5), "the share of the *length*"),
    (sharpness.sharp_and_random, (50, 0), "Not quite zero"),
    (erasure.cut, (["a street with a car;", " a bus,", " a truck!"],), "*before* them"),
    (erasure.cut, (["a street with a car", " a bus", " a truck"],), "separators are gone"),
    (erasure.cut, (["a street with a car", "; a bus", ", a truck!"],), "the last mark opens"),
    (erasure.cut, (4,), "to be a list"),
    (erasure.marks, (["mouse"], ["book"]), "forgotten as a whole"),
    (erasure.marks, (["mouse", "clock"], ["book"]), "between the thresholds"),
    (erasure.marks, (["laptop", "mouse", "clock"], ["book"]), "between the thresholds"),
    (erasure.marks, (["laptop", "mouse"], ["book", "laptop"]), "cannot be retained and forgotten"),
    (erasure.marks, (["laptop", "mouse"], ["office"]), "'office' is no object"),
    (erasure.loss_by_hand, (0.9,), "teach the model to say it"),
    (erasure.loss_by_hand, (-1.3,), "lambda_neg weighs the forget part"),
    (erasure.loss_by_hand, (-0.2,), "forget part alone"),
    (targeted_sam.sign, ("-",), "CE itself goes up"),
    (targeted_sam.sign, ("plus",), '"+" or "-"'),
    (targeted_sam.work, (2, 5.5), "counts a backward as 1"),
    (targeted_sam.work, (3, 8), "all rows pay"),
    (targeted_sam.work, (3, 6), "untargeted SAM's"),
    (targeted_sam.work, (3, 4.5), "lacks a backward"),
    (targeted_sam.work, (3, 5), "lacks the second forward"),
    (relearning.passes_half, (128,), "*measured*"),
    (relearning.passes_half, (64,), "last measured"),
    (relearning.passes_half, (80,), "from 0 samples"),
    (relearning.restricted_mean, (160,), "left the two censored runs out"),
    (relearning.restricted_mean, (96,), "as 0"),
    (relearning.paired_interval, (-16.8, -3.2), "1.96"),
    (relearning.paired_interval, (-28.4, 8.4), "takes the two lists apart"),
    (relearning.paired_interval, (-29.5, 9.5), "Welch"),
    (relearning.paired_interval, (-18.6, -1.4), "divide by n - 1"),
    (relearning.paired_interval, (-31.4, 11.4), "spread of one seed"),
    (relearning.paired_interval, (0.4, 19.6), "sign is turned round"),
    (relearning.verdicts, (["supported", "no difference", "no difference", "refuted"],), "-9 is"),
    (relearning.verdicts, (["supported", "undecided", "undecided", "refuted"],), "it is decided"),
    (relearning.verdicts, (["supported", "supported", "undecided", "refuted"],), "spans zero"),
    (relearning.verdicts, (["refuted", "no difference", "undecided", "refuted"],), "other side"),
    (relearning.verdicts, (["for", "no difference", "undecided", "refuted"],), "is no verdict"),
    (real_thing.efuf_target, (", a fork",), "how this book cuts it"),
    (real_thing.efuf_target, ("a fork",), "a space is one"),
    (real_thing.efuf_target, ("a kitchen with a cup,",), "*before* the position"),
    (real_thing.pope_reading, ([True, False, False, False],), "looks for a no"),
    (real_thing.pope_reading, ([True, False, True, True],), "'not' is one of the words"),
    (real_thing.threshold, (23,), "EFUF's own"),
    (real_thing.threshold, (0.2,), "that is the share itself"),
    (real_thing.threshold, (27,), "forgets 7 of ten"),
    (real_thing.shared_step, ([0.1, 0.0],), "first process alone"),
    (real_thing.shared_step, ([0.1, 0.1],), "its length is not rho"),
    (real_thing.shared_step, ([0.05, 0.05],), "m-SAM"),
    (real_thing.shared_step, ([0.3, 0.4],), "not normalised"),
    (real_thing.shared_step, ([-0.06, -0.08],), "sign is turned round"),
]


@pytest.mark.parametrize("check, answers, says", WRONG)
def test_typical_mistakes_are_known_by_name(check, answers, says, capsys):
    """Fails if a wrong answer passes, or its hint is another mistake's."""
    out = said(capsys, check, *answers)
    assert out.startswith("not yet: ") and says in out, out


def test_no_two_mistakes_look_alike():
    """Fails if two mistakes give one number: the second one's hint could never be told."""
    _, found = hallucination._misread(*hallucination._toy_row())
    for values in (list(found.values()), list(relearning._half_widths().values())):
        values = sorted(values)
        assert min(b - a for a, b in zip(values, values[1:], strict=False)) > 2e-2


# Chapter 00: the NLL of some words.


def test_the_solution_is_the_gauge_of_the_book(model, data):
    """Fails if exercise 00.4 teaches another NLL than the library's."""
    here = {}
    exec(solutions()["00.4"][1], here)
    row = data[:1]
    with torch.no_grad():
        embedded = model.get_input_embeddings()(row.input_ids)
        is_image = row.input_ids == model.config.image_token_id
        image = model.model.multi_modal_projector(row.features[row.image])
        inputs = embedded.masked_scatter(is_image[..., None], image)
        logits = model(inputs_embeds=inputs, attention_mask=row.attention_mask).logits
        expected = token_nll(model, row)[row.forget].mean()
    got = here["my_nll"](logits[0], row.input_ids[0], row.forget[0])
    torch.testing.assert_close(got, expected)


def nll(shift, mask_shift=0, sign=-1.0):
    def my_nll(logits, ids, mask):
        places = mask.nonzero()[:, 0]
        logp = logits.log_softmax(1)
        return sign * logp[places + shift, ids[places + mask_shift]].mean()

    return my_nll


@pytest.mark.parametrize(
    "my_nll, says",
    [
        (nll(0), "off by one"),
        (nll(1), "shifted the wrong way"),
        (nll(0, 1), "the mask is not"),
        (nll(-1, sign=1.0), "the sign is turned round"),
        (lambda logits, ids, mask: 2 * nll(-1)(logits, ids, mask), "sum over the marked"),
        (lambda logits, ids, mask: logits, "returns 35 numbers"),
        (lambda logits, ids, mask: torch.tensor(float("nan")), "returns nan"),
        (lambda logits, ids, mask: None, "returns nothing yet"),
    ],
)
def test_misread_logits_are_known_by_name(my_nll, says, capsys):
    """Fails if the shift by one, or another slip, passes as right or is not named."""
    assert says in said(capsys, hallucination.span_nll, my_nll)


# Chapter 03: the reader's ascent step, wrong in each typical way.


def norm_of(direction):
    return torch.cat([g.reshape(-1) for g in direction]).norm()


def ascent_step(scale, back=None, is_safe=True):
    """A step: scale(g, direction, rho) is each tensor's eps; back(p, theta, eps) gives it back."""

    @contextmanager
    def step(params, direction, rho):
        direction, theta = list(direction), [p.detach().clone() for p in params]
        eps = [scale(g, direction, rho) for g in direction]

        def home():
            with torch.no_grad():
                for p, start, e in zip(params, theta, eps, strict=True):
                    back(p, start, e) if back else p.copy_(start)

        with torch.no_grad():
            for p, e in zip(params, eps, strict=True):
                p.add_(e)
        if not is_safe:
            yield
            home()
            return
        try:
            yield
        finally:
            home()

    return step


def right_eps(g, direction, rho):
    return rho * g / norm_of(direction)


@contextmanager
def swallows(params, direction, rho):
    try:
        with perturbed(params, direction, rho):
            yield
    except BaseException:
        pass


def no_decorator(params, direction, rho):
    yield


@contextmanager
def no_yield(params, direction, rho):
    pass


@contextmanager
def does_nothing(params, direction, rho):
    yield


RIGHT_STEPS = {"library": perturbed, "by hand": ascent_step(right_eps)}
WRONG_STEPS = {
    "wrong sign": (ascent_step(lambda g, d, rho: -right_eps(g, d, rho)), "the wrong sign"),
    "not normalised": (ascent_step(lambda g, d, rho: rho * g), "not normalised: the step is rho"),
    "by tensor": (ascent_step(lambda g, d, rho: rho * g / g.norm()), "tensor by tensor"),
    "no rho": (ascent_step(lambda g, d, rho: right_eps(g, d, 1.0)), "length 1 and not rho"),
    "squared norm": (ascent_step(lambda g, d, rho: rho * g / norm_of(d) ** 2), "times as long"),
    "sign only": (ascent_step(lambda g, d, rho: rho * g.sign()), "does not point along"),
    "subtracts": (ascent_step(right_eps, lambda p, _, e: p.sub_(e)), "Keep a copy"),
    "stays": (ascent_step(right_eps, lambda p, *_: None), "after the block the weights stay"),
    "no finally": (ascent_step(right_eps, is_safe=False), "belongs into a `finally`"),
    "swallows": (swallows, "swallowed"),
    "no decorator": (no_decorator, "does @contextmanager stand above it"),
    "no yield": (no_yield, "does not yield"),
    "empty": (does_nothing, "nothing has moved them"),
}


@pytest.mark.parametrize("name", RIGHT_STEPS)
def test_a_right_step_passes(name, capsys):
    """Fails if the exercise asks for more than the library's own step does."""
    assert said(capsys, targeted_sam.step, RIGHT_STEPS[name]).startswith("right: ")


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_wrong_step_is_known_by_name(name, capsys):
    """Fails if a step that is wrong in a typical way passes, or is told another reason."""
    step, says = WRONG_STEPS[name]
    out = said(capsys, targeted_sam.step, step)
    assert out.startswith("not yet: ") and says in out, out


def test_a_step_that_only_looks_right_has_no_gradient_inside():
    """Fails if the closed form would not notice weights that move elsewhere than autograd looks."""

    @contextmanager
    def late(params, direction, rho):
        yield
        with perturbed(params, direction, rho):
            pass

    with pytest.raises(NotYet, match="not that at theta"):
        ascent.check_closed_form(late)


# And the reader's gradient.


def whole(
    step=perturbed, loss=lambda t, r: t, kept=lambda t, r: r, there=lambda t, r: t, is_split=False
):
    """A gradient: a step along `loss` of the whole batch, `kept` at theta, `there` at theta + eps;
    is_split: a step per micro-batch.
    """

    def my_gradient(params, batches, losses, rho):
        groups = [[batch] for batch in batches] if is_split else [batches]
        for group in groups:
            direction = [torch.zeros_like(p) for p in params]
            for batch in group:
                pair = losses(batch)
                found = torch.autograd.grad(loss(*pair), params, retain_graph=True)
                direction = [d + g for d, g in zip(direction, found, strict=True)]
                (kept(*pair) + 0 * sum(p.sum() for p in params)).backward()
            with step(params, direction, rho):
                for batch in group:
                    there(*losses(batch)).backward()

    return my_gradient


def of_library(params, batches, losses, rho):
    library(params, batches, batches, losses, rho)


def plain(params, batches, losses, rho):
    for batch in batches:
        sum(losses(batch)).backward()


def nothing(params, batches, losses, rho):
    pass


WRONG_GRADIENTS = {
    "wrong sign": (whole(WRONG_STEPS["wrong sign"][0]), "the wrong sign"),
    "not normalised": (whole(WRONG_STEPS["not normalised"][0]), "not normalised"),
    "micro-batch": (whole(is_split=True), "m-SAM"),
    "untargeted": (
        whole(loss=lambda t, r: t + r, kept=lambda t, r: 0 * r, there=lambda t, r: t + r),
        "untargeted SAM. Only `target` is perturbed",
    ),
    "direction of all": (whole(loss=lambda t, r: t + r), "untargeted SAM. Only `target` gives"),
    "rest there": (
        whole(kept=lambda t, r: 0 * r, there=lambda t, r: t + r),
        "the gradient of `rest` is taken at theta + eps",
    ),
    "no rest": (whole(kept=lambda t, r: 0 * r), "the gradient of `rest` is missing"),
    "no target": (whole(there=lambda t, r: 0 * t), "only the gradient of `rest`"),
    "twice": (whole(kept=lambda t, r: t + r), "still in .grad"),
    "turned": (whole(there=lambda t, r: -t), "minus the target"),
    "stays": (whole(WRONG_STEPS["stays"][0]), "come back not at all"),
    "no finally": (whole(WRONG_STEPS["no finally"][0]), "when the forward at theta + eps fails"),
    "swallows": (whole(swallows), "swallowed"),
    "plain": (plain, "EFUF's"),
    "empty": (nothing, "no parameter has a .grad"),
}


@pytest.mark.parametrize("my_gradient", [of_library, whole()])
def test_a_right_gradient_passes(my_gradient, capsys):
    """Fails if the exercise asks for another gradient than the library's."""
    assert said(capsys, targeted_sam.gradient, my_gradient).startswith("right: ")


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_a_wrong_gradient_is_known_by_name(name, capsys):
    """Fails if a gradient that is wrong in a typical way passes, or is told another reason."""
    my_gradient, says = WRONG_GRADIENTS[name]
    out = said(capsys, targeted_sam.gradient, my_gradient)
    assert out.startswith("not yet: ") and says in out, out


def test_weights_that_come_back_nearly_are_seen_by_the_gradient_too():
    """Fails if eps may be subtracted inside of my_gradient."""
    params, _ = targeted_sam._toy_weights()
    rows = torch.randn(4, 500, generator=torch.Generator().manual_seed(2))

    def losses(batch):
        value = batch @ torch.cat([p.reshape(-1) for p in params])
        return torch.nn.functional.logsigmoid(value).sum(), (value**2).sum()

    step = WRONG_STEPS["subtracts"][0]
    with pytest.raises(NotYet, match="nearly, and not bit for bit"):
        ascent.check_gradient(whole(step), params, [rows], losses, 0.1)


# The reader's errors.


def run_in_cell(code, **names):
    """Run code as a notebook does: in __main__, with its lines known to linecache."""
    linecache.cache["<a cell>"] = (len(code), None, code.splitlines(keepends=True), "<a cell>")
    exec(compile(code, "<a cell>", "exec"), {"__name__": "__main__", **names})


def test_the_readers_error_is_told_in_one_line(capsys):
    """Fails if a reader's error ends the notebook, or its line is not shown."""
    code = "def my_nll(logits, ids, mask):\n    return logits[ids].men()\n\n\ncheck(my_nll)\n"
    run_in_cell(code, check=hallucination.span_nll)
    out = capsys.readouterr().out
    assert out.startswith("not yet: your line 2, `return logits[ids].men()`, raised Attribute")
    assert out.count("\n") == 1


def test_an_error_inside_of_the_readers_step_is_told(capsys):
    """Fails if the line is lost behind contextlib: a leaf that is moved without no_grad."""
    code = (
        "@contextmanager\ndef my_step(params, direction, rho):\n"
        "    params[0].add_(direction[0])\n    yield\n\n\ncheck(my_step)\n"
    )
    run_in_cell(code, check=targeted_sam.step, contextmanager=contextmanager)
    assert "your line 3, `params[0].add_(direction[0])`, raised Runtime" in capsys.readouterr().out


def test_an_error_of_nobody_is_told_without_a_line(capsys):
    """Fails if an answer of the wrong kind, which no line of the reader's raised, ends the cell."""

    @exercise
    def check(answer):
        return "never: " + answer

    check(1)
    assert capsys.readouterr().out.startswith("not yet: your answer raised TypeError: ")


# Open exercises: their code must run.


def fragments(name):
    text = "\n".join(cell.source for cell in source(name) if cell.cell_type == "markdown")
    return re.findall(r"```python\n(.*?)```", text[text.index("## Exercises") :], re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_open_exercises_use_what_their_chapter_has(name):
    """Fails if printed code asks for a name that neither it nor its chapter defines, or does not
    compile.
    """
    code = "\n".join(
        cell.source
        for cell in source(name)
        if cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", [])
    )
    for text in fragments(name):
        tree = ast.parse(f"{code}\n{text}")
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and is_stored(n)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                stored |= {(a.asname or a.name).split(".")[0] for a in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                stored.add(node.name)
        used = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        assert not used - stored - set(dir(builtins)), used - stored


def is_stored(name):
    return isinstance(name.ctx, ast.Store)


def imported(name, text):
    """The names that a text needs and a chapter imports, as the chapter's own imports bind them."""
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    here = {}
    for cell in source(name):
        for node in ast.parse(cell.source).body if cell.cell_type == "code" else ():
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.names = [a for a in node.names if (a.asname or a.name) in used]
                exec(ast.unparse(node) if node.names else "", here)
    return here


@pytest.fixture
def kit(monkeypatch, processor, scenes, texts, features):
    """A kit of random weights with 32 captions, which the fragments get for their own."""
    found, splits = Kit.__new__(Kit), ("erase", "attack", "test")
    found.seed, found.model, found.processor = 0, tiny_llava(), processor
    found.features = dict.fromkeys(splits, features.repeat(4, 1, 1))
    found.said, found.scenes = dict.fromkeys(splits, 4 * texts), dict.fromkeys(splits, 4 * scenes)
    found.test_scenes, found.test_features = scenes, features
    monkeypatch.setattr(encoded, "N_STOP", 2)
    monkeypatch.setattr(kits, "get_kit", lambda seed: found)
    monkeypatch.setattr(attacks, "run_all", lambda runs: None)
    monkeypatch.setattr(erasures, "erased", lambda run: tiny_llava())
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] != "05"])
def test_open_exercises_run(name, kit, capsys):
    """Fails if printed code raises, or prints nothing to look at; at 8 samples, on a toy kit."""
    setting = presets.get_preset("fast")
    for text in fragments(name):
        exec(text.replace("(0, 64, 128, 256)", "(0, 8)"), imported(name, text) | locals())
        assert capsys.readouterr().out.count("\n") >= 2
