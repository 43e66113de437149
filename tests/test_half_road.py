"""Chapter 05's whole road on a Qwen2 and SigLIP LLaVA in fp16, as on a T4: probe, erasure, saving,
loading in another process, attack, scores.
"""

import json
import re
from dataclasses import replace

import jupytext
import matplotlib
import pytest
import torch
from test_families import siglip_qwen2

from lab import files
from lab.field import devices
from lab.field.export import export
from lab.field.probe import FURTHER
from lab.llava.checkpoints import save
from lab.world.models import build_clip
from lab.world.scenes import absent, caption, draw, split_scenes
from sare_min.captions import encode, sentence_nll
from sare_min.llava import embed_images, set_trainable, trainable

N_TRAIN, N_VAL, LEARNS = 100, 4, 220


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(DATA, CHECKPOINT): a model that has learnt captions with one wrong object each. It hardly
    sees, for its tower is random: so all scenes are alike.
    """
    alike = [s for s in split_scenes(0, all=1500)["all"] if {"cup", "fork"} <= set(s.objects)]
    split = {"train": alike[:N_TRAIN], "val": alike[N_TRAIN : N_TRAIN + N_VAL]}
    texts = [caption(scene, absent(scene)[:1]) for scene in split["train"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = build_clip().eval()
        model, processor = siglip_qwen2()
        model = set_trainable(model, "all")
        seen = embed_images(model, processor, [draw(scene) for scene in split["train"]])
        data, optimizer = encode(processor, seen, texts), torch.optim.AdamW(trainable(model), 3e-3)
        for _ in range(LEARNS):
            optimizer.zero_grad()
            sentence_nll(model, data[torch.randint(N_TRAIN, (32,))]).backward()
            optimizer.step()
    place = tmp_path_factory.mktemp("road")
    model.eval().requires_grad_(False)
    folder = export(place / "data", split, clip, model, processor, texts)
    return folder, save(model, processor, place / "llava")


def cells():
    """The chapter's code, an exercise's aside."""
    chapter = jupytext.read(files.CHAPTERS / "05_real_thing.py")
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    return [cell for cell in code if "exercise" not in cell.metadata.get("tags", [])]


def test_chapter_05_goes_its_whole_road_in_fp16(checkpoint, tmp_path, monkeypatch, capsys):
    """Fails if a cell takes fp32 for granted (a probe that underflows, an adapter that is rounded
    on its way through the disk, a merge, a score), or this family's tokens, template or tower.
    """
    matplotlib.use("agg")
    monkeypatch.setattr(devices, "compute_dtype", lambda: torch.float16)
    monkeypatch.setattr(files, "figures_folder", lambda *_: tmp_path)
    folder, llava = checkpoint
    given = {"data": str(folder), "checkpoint": str(llava), "into": str(tmp_path), "seeds": "0"}
    given |= {"rows_at_once": 32, "probed": True, "images": N_TRAIN}
    ran: dict = {"__name__": "road"}
    for cell in cells():
        exec(compile(cell.source, "05_real_thing.py", "exec"), ran)
        if "parameters" in cell.metadata.get("tags", []):
            ran |= given
        if "training = Training(" in cell.source:  # not 240 of 32: that it forgets is enough
            ran["training"] = replace(ran["training"], steps=32, batch_size=8)
    said = capsys.readouterr().out
    assert ran["model"].dtype == torch.float16
    assert said.count("same words True; same CHAIR and POPE True; and not the base") == 2
    levels = [float(level) for level in re.findall(r"steps, forget level ([\d.]+) nats", said)]
    assert len(levels) == 3 and min(levels) > ran["stop_nll"] - FURTHER + 0.05, "it must forget"
    figure = json.loads((tmp_path / "05_real_thing.json").read_text())
    assert all(figure["results"]["scores"][name]["chair_s"] >= 0 for name in ("base", "EFUF"))
