"""The README: short, and its lines of code do what they say on a checkpoint from disk."""

import re

import pytest
import torch

from lab import files
from lab.field.images import open_image
from lab.llava.checkpoints import load
from lab.world.scenes import Scene, draw

TEXT = (files.ROOT / "README.md").read_text()
CODE = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]


def test_it_is_read_in_a_minute():
    """Fails if the README grows past 700 words, without code, markup and the table of claims."""
    table = r"<!-- claims:.*?-->.*?<!-- claims:.*?-->"
    prose = re.sub(f"{table}|<!--.*?-->|```.*?```", "", TEXT, flags=re.DOTALL)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    assert len(re.findall(r"\w[\w'.%-]*", prose)) <= 700


def test_its_numbers_come_from_files():
    """Fails if a result is typed into the README, which a new run would leave behind."""
    table = r"<!-- claims:.*?-->.*?<!-- claims:.*?-->"
    marked = r"<!-- (?:C\d|fig:).*?<!-- / -->"
    typed = re.sub(f"```.*?```|{table}|{marked}", "", TEXT, flags=re.DOTALL)
    settings = ("rho = 0.2", "640 relearning samples", "Apache-2.0", "GPL-3.0", "95 % intervals")
    for setting in settings:
        typed = typed.replace(setting, "")
    typed = re.sub(r"\]\([^)]*\)|arXiv \d+\.\d+", "", typed)
    found = re.findall(r"\d+\.\d+|\d+ %|\d+ points|\d+ samples", typed)
    assert not found, found


def test_what_it_links_to_is_there():
    """Fails if a file that the README names has moved."""
    named = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    missing = [link for link in named if not (files.ROOT / link).exists()]
    assert len(named) > 10 and not missing


@pytest.mark.filterwarnings("ignore")
def test_its_code_is_safe_to_copy(saved, tmp_path, monkeypatch):
    """Fails if the lines do not run as they stand, go past their level, or save no adapter."""
    assert len([line for line in CODE.splitlines() if line and "import" not in line]) <= 12
    monkeypatch.chdir(tmp_path)
    draw(Scene("kitchen", ("cup", "bowl"), (1, 6))).convert("RGB").save("kitchen.jpg")
    assert open_image("kitchen.jpg").mode == "RGB"
    looked, code = [], CODE.replace("path/or/hub-name", str(saved))
    # Random weights forget little by an adapter
    code = code.replace("lr=1e-5", "lr=1e-2, cooldown=0").replace(
        '["forget"] + 3', '["forget"] + 0.1'
    )
    code = code.replace("stop=stop", "stop=lambda step: looked.append(step) or stop(step)")
    here = {"looked": looked}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), here)
    assert 0 < len(looked) < here["Training"]().steps, "it did not stop by itself"
    adapter = tmp_path / "erased"
    assert (adapter / "adapter_config.json").exists()
    assert load(adapter, device="cpu")
