"""What a GPU does with this code, measured and checked in parts, those of most worth first.

`tests/on_gpu.sh` runs it; by hand, from chapters/: `python -m lab.tools.gpu`. Nothing is fetched,
and nothing is imported but what torch, transformers and peft bring. Each part writes its rows to
gpu.json as they come, so that whatever cuts the run leaves what was found until then.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from sare_min.llava import set_trainable

from .. import files, jobs
from ..field.devices import compute_dtype, four_bit
from ..llava.checkpoints import load
from . import agreement, seven, short

Row = tuple[str, dict]
SECONDS = 450  # of the whole run: under eight minutes with its start
# Real image tokens and a tower of full size, in a language model that also fits in fp32.
MIDDLE = seven.Size(width=1024, mlp=2752, layers=8, heads=16)


class Skipped(Exception):
    """A part that cannot be done here; its text says why."""


def dtype_on(device: str) -> torch.dtype:
    """The device's 16 bits; on a CPU bf16, so that a rehearsal mixes dtypes as a GPU does."""
    return compute_dtype() if device == "cuda" else torch.bfloat16


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def step_at_7b(device: str, is_tiny: bool, how: str = "") -> Iterator[Row]:
    """Steps on 16-bit weights by LoRA; how: "TF32" for the adapter's products, "recomputing"."""
    size = seven.TINY if is_tiny else seven.Size()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if how == "TF32" else before)
    try:
        model = seven.random_llava(size, dtype_on(device), device)
        data = seven.batch(model, size)
        model, peak = set_trainable(model, "lora"), seven.peak_flops(name_of(device))
        found = seven.measure(model, data, size, peak, recomputing=how == "recomputing")
    finally:
        torch.set_float32_matmul_precision(before)
    yield from found.items()


def in_four_bits(device: str, is_tiny: bool) -> Iterator[Row]:
    """Steps on 4-bit weights by LoRA with activations computed anew: what a T4 has to do."""
    if find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    size, dtype = seven.TINY if is_tiny else seven.Size(), dtype_on(device)
    with tempfile.TemporaryDirectory() as folder:
        path = seven.random_checkpoint(size, Path(folder, "7b"), dtype, device)
        if device == "cuda":
            torch.cuda.empty_cache()
        model, _ = load(path, device=device, dtype=dtype, **four_bit(dtype))
    data = seven.batch(model, size)
    model = set_trainable(model, "lora")
    yield from seven.measure(model, data, size, is_counted=False, recomputing=True).items()


def same_as_on_a_cpu(device: str, is_tiny: bool) -> Iterator[Row]:
    yield from agreement.given_back(device)
    yield from agreement.on_both(device, ("lora",) if is_tiny else ("all", "projector", "lora"))


def in_half(device: str, is_tiny: bool) -> Iterator[Row]:
    yield from agreement.half(device, seven.TINY if is_tiny else MIDDLE)


def microworld(device: str, is_tiny: bool) -> Iterator[Row]:
    yield from short.erase_and_attack(device, short.TINY if is_tiny else short.Size())


# Name -> (what it does, its limit in seconds); those of most worth first.
PARTS: dict[str, tuple[Callable[..., Iterator[Row]], int]] = {
    "7B in 16 bits": (step_at_7b, 150),
    "same as on a CPU": (same_as_on_a_cpu, 100),
    "fp16": (in_half, 90),
    "7B in 4 bits": (in_four_bits, 150),
    "microworld": (microworld, 170),
    "7B in 16 bits, TF32": (lambda *where: step_at_7b(*where, how="TF32"), 100),
    "7B in 16 bits, recomputing": (lambda *where: step_at_7b(*where, how="recomputing"), 100),
}


def where(device: str, is_tiny: bool) -> dict:
    """What the numbers belong to."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    dtype = str(dtype_on(device)).removeprefix("torch.")
    return {"device": name_of(device), "dtype": dtype, "tiny": is_tiny, "versions": versions}


def one_line(error: BaseException) -> str:
    """The error as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def record(path: Path, part: str, found: dict, head: dict | None = None) -> None:
    """Write what was found into the part's place. Other parts stay if they belong to the same
    device and versions (head; None: to whatever stands there).
    """
    known = files.read_json(path) if path.exists() else {}
    head = {k: v for k, v in known.items() if k != "parts"} if head is None else head
    is_same = all(known.get(key) == value for key, value in head.items())
    parts = known.get("parts", {}) if is_same else {}
    files.write_json(path, head | {"parts": parts | {part: found}})


def do(part: str, device: str, is_tiny: bool, path: Path) -> str:
    """Do one part, recording each row as it comes; returns "done", "failed" or "skipped".

    It has failed if it raised, or if a row of it is not ok; `error` says which in one line.
    """
    head, rows, started = where(device, is_tiny), {}, time.perf_counter()

    def note(status: str, **more: str) -> str:
        seconds = time.perf_counter() - started
        record(path, part, {"status": status, **more, "seconds": seconds, "rows": rows}, head)
        return status

    note("running")
    try:
        for name, row in PARTS[part][0](device, is_tiny):
            rows[name] = row
            note("running")
    except Skipped as why:
        return note("skipped", error=str(why))
    except Exception as error:  # whatever it is, the other parts are worth having
        return note("failed", error=one_line(error))
    if bad := [name for name, row in rows.items() if not row.get("ok", True)]:
        return note("failed", error=f"not ok: {', '.join(bad)}"[:300])
    return note("done")


def do_apart(part: str, device: str, is_tiny: bool, path: Path, limit: float) -> str:
    """Do one part in a process of its own: a CUDA error spoils its process for all that follows,
    and a part that hangs can be ended.
    """
    told = ["--only", part, "--device", device, "--out", str(path.parent), "--tiny" * is_tiny]
    command = [sys.executable, "-m", "lab.tools.gpu", *filter(None, told)]
    # What an earlier run found is not this one's, should its process end before it says anything.
    record(path, part, {"status": "running", "rows": {}})
    try:
        code = subprocess.run(command, timeout=limit).returncode
        error = f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        error = f"ended after its {limit:.0f} seconds"
    known = files.read_json(path)["parts"][part]
    if known["status"] != "running":
        return known["status"]
    record(path, part, known | {"status": "failed", "error": error})
    return "failed"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.tools.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: sizes for a CPU")
    parser.add_argument("--out", type=Path, help="folder of gpu.json (figures/)")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="this part (may be repeated)"
    )
    parser.add_argument("--apart", action="store_true", help="each part in a process of its own")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    told = parser.parse_args(given)
    if told.device == "cpu" and told.out is None:
        parser.error("--device cpu is a rehearsal: give --out, figures/ is for a GPU's numbers.")
    if told.device == "cuda" and not torch.cuda.is_available():
        sys.exit("lab.tools.gpu: no GPU here, so nothing is measured or written.")
    return told


def main(given: Sequence[str] | None = None) -> int:
    """Do the parts in order while there is time; 0 if none has failed."""
    jobs.one_thread()
    told, ends, found = arguments(given), time.monotonic(), {}
    ends += told.seconds
    folder = told.out or files.ROOT / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    for part in told.only or PARTS:
        left = min(PARTS[part][1], ends - time.monotonic())
        if left < 1:
            why = {"status": "skipped", "error": "no time was left", "rows": {}}
            record(path, part, why)
            found[part] = "skipped"
        elif told.apart:
            found[part] = do_apart(part, told.device, told.tiny, path, left)
        else:
            found[part] = do(part, told.device, told.tiny, path)
        print(f"{part}: {found[part]}", flush=True)
    show(path, found)
    return int("failed" in found.values())


def show(path: Path, names: Sequence[str]) -> None:
    """Print the rows of these parts as they stand in the file."""
    for part in names:
        known = files.read_json(path)["parts"][part]
        print(f"\n{part}: {known['status']} {known.get('error', '')}".rstrip())
        for name, row in known["rows"].items():
            print(f"  {name}: {row}")


if __name__ == "__main__":
    sys.exit(main())
