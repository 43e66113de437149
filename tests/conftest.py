"""A real, tiny LLaVA with random weights and captions that need no training; one thread, so that
repeats are equal to the bit.
"""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "chapters"))

from lab.llava.checkpoints import save  # noqa: E402
from lab.metrics.chair import exact  # noqa: E402
from lab.world.curate import Thresholds, curate  # noqa: E402
from lab.world.models import World, build_llava, build_processor  # noqa: E402
from lab.world.scenes import OBJECTS, absent, caption, draw, split_scenes  # noqa: E402
from sare_min.captions import encode  # noqa: E402
from sare_min.llava import embed_images, set_trainable  # noqa: E402
from sare_min.unlearn import with_reference  # noqa: E402

FIND = exact(OBJECTS).find  # what a caption of the microworld names, and where
torch.set_num_threads(1)
# Random cases are the same in every run, and a busy machine is no fault of theirs
hypothesis.settings.register_profile("book", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("book")


@pytest.fixture(scope="session")
def processor():
    return build_processor()


def tiny_llava(part: str = "all"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_llava(World(width=64, layers=2)).eval()
    return set_trainable(model, part)


@pytest.fixture
def model():
    return tiny_llava()


@pytest.fixture(scope="session")
def scenes():
    return split_scenes(0, some=8)["some"]


@pytest.fixture(scope="session")
def features(processor, scenes):
    return embed_images(tiny_llava(), processor, [draw(scene) for scene in scenes])


@pytest.fixture(scope="session")
def texts(scenes):
    """Six captions that end in an object that is not there, two that are true."""
    return [
        caption(scene, absent(scene)[:1] if row < 6 else ()) for row, scene in enumerate(scenes)
    ]


@pytest.fixture(scope="session")
def spans(texts, scenes):
    truth = [{noun: float(noun in scene.objects) for noun in OBJECTS} for scene in scenes]
    return curate(texts, truth, FIND, Thresholds(0.5, 0.5, 0.99))


@pytest.fixture(scope="session")
def data(processor, features, texts, spans):
    return with_reference(tiny_llava(), encode(processor, features, texts, spans))


@pytest.fixture(scope="session")
def saved(tmp_path_factory, processor):
    """A checkpoint on disk, as a hub would hold it."""

    return save(tiny_llava(), processor, tmp_path_factory.mktemp("checkpoint") / "llava")


@contextmanager
def disk_of(size: str, at: Path):
    """A file system of that size ("256k") in a new folder; the test is skipped where none may be
    mounted.
    """
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
