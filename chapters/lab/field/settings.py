"""Chapter 05 on released checkpoints: two settings, as large as the device takes, and what they may
cost. No torch here.

Neither has been run: nobody here had the weights. Memory and minutes are *estimates*, by the
arithmetic below. Learning rate, rho and level do not stand here, since no table knows them:
probe.py reads them off the first steps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

STEPS = 43 + 97 + 2.3 * 58  # of EFUF's: the chapter's three erasures, SARE's at its dearer price
BATCH = 32  # captions a step
NAMES = 6  # models that describe and answer: base, two erased, both again, and one pushed further
ANSWERS = 18  # questions that POPE asks about an image
TOKENS = 100  # of question and caption, beside the image's
DECODED = 64  # tokens of a caption, at most
AT = (0, 64, 128, 256, 384, 512, 768)  # relearning samples, as far as hallucinated captions reach


@dataclass(frozen=True)
class Setting:
    """A row: what chapter 05 is given, and what its cost is estimated from."""

    checkpoint: str  # on the hub; the released one
    images: int  # training images: 46 % for the erasure, the rest for the attacker
    tested: int  # of POPE's images; 500 are all
    rows: int  # captions in one forward; activations are computed anew below 64
    bits: int  # of the language model's weights
    gigabytes: int  # of the GPU's memory that it should fit into
    weights: float  # of the language model, the published number
    image_tokens: int
    flops: float  # a second that may be sustained: a quarter to a third of the data sheet's
    decode: float  # seconds of a forward for one new token: launching kernels, mostly


SETTINGS = {
    # A free Colab's T4: no bf16, so fp16 with its scale (devices.scaled). SigLIP, 27 x 27 tokens.
    "t4": Setting(
        "llava-hf/llava-interleave-qwen-0.5b-hf",
        images=600,
        tested=100,
        rows=8,
        bits=16,
        gigabytes=16,
        weights=0.46e9,
        image_tokens=729,
        flops=18e12,
        decode=0.04,
    ),
    # 40 to 80 GB: bf16. With BITS=4 the weights take 4 GB instead of 14, for a GPU of 16 GB.
    "gpu": Setting(
        "llava-hf/llava-1.5-7b-hf",
        images=2224,
        tested=500,
        rows=4,
        bits=16,
        gigabytes=40,
        weights=6.7e9,
        image_tokens=576,
        flops=100e12,
        decode=0.035,
    ),
}


def get_setting(name: str, checkpoint: str = "", bits: int = 0) -> Setting:
    """SETTINGS[name], with another checkpoint of its size or other bits if they are given; raises
    ValueError naming the settings there are, or the bits.
    """
    if name not in SETTINGS:
        raise ValueError(f"PRESET={name}: the real settings are {', '.join(SETTINGS)}.")
    if bits not in (0, 4, 16):
        raise ValueError(f"BITS={bits}: give 16, or 4 for a 7B model on a GPU of 16 GB.")
    found = asdict(SETTINGS[name])
    if checkpoint:
        found["checkpoint"] = checkpoint
    if bits == 4:  # two rows: the activations of one layer, and the logits, must fit beside them
        found |= {"bits": 4, "rows": 2, "gigabytes": 16}
    return Setting(**found)


def parameters(setting: Setting, data: str) -> dict:
    """Chapter 05's parameters. The full preset's attack, on a seed that is none of the book's."""
    own = {key: getattr(setting, key) for key in ("checkpoint", "images", "tested", "bits")}
    own["rows_at_once"] = setting.rows
    return own | {"data": data, "preset": "full", "seeds": "0", "probed": True}


def estimate(setting: Setting) -> dict[str, float]:
    """Minutes of each part, estimated and not measured: FLOPs over what may be sustained, and the
    kernels of each new token. The number of steps is what the microworld took.

    A forward of a row is 2 FLOPs a weight and token; a step costs four (two for the gradient, one
    for activations computed anew), and the look at the forget level another. Left out: fetching
    and loading, features, CLIP, the attacker's few steps.
    """
    row = 2 * setting.weights * (setting.image_tokens + TOKENS) / setting.flops  # seconds
    reach = 0.54 * setting.images / 2 - 32  # if every other caption hallucinates
    measured = sum(n <= reach for n in AT)
    captions = setting.images + setting.tested * (NAMES + 2 * measured)
    seconds = {
        "captions": captions * (row + DECODED * setting.decode / setting.rows),
        "answers": ANSWERS * setting.tested * NAMES * row,
        "erasures": STEPS * BATCH * 5 * row,
    }
    return {part: value / 60 for part, value in seconds.items()}
