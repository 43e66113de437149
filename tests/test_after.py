"""Looks that no plan named: from the rows alone, over the seeds that they say."""

import pytest

from lab import files
from lab.evidence import after, ledger
from lab.evidence.observations import Observation
from lab.evidence.plan import load
from lab.evidence.tables import ATTACK_IDS

PLAN = load()


def pair(values, seeds):
    """A baseline at 50 and an arm that differs by the values."""
    arms = ([50.0] * len(values), [50.0 + value for value in values])
    return tuple(
        [Observation(s, 0, 0, v, 8.0, True) for s, v in zip(seeds, arm, strict=True)]
        for arm in arms
    )


def recorded(folder, name, seeds, **rows):
    path = folder / name
    ledger.seen.write(path, {id: pair(values, seeds) for id, values in rows.items()}, PLAN)


def test_blocks_are_put_together_seed_by_seed(tmp_path):
    """Fails if a block is lost, seeds of one row are matched with another's, or the seven attacks
    that do not fine-tune on hallucinated captions hold one that does.
    """
    book, second = PLAN.seeds[:3], PLAN.second[:2]
    ids = {
        kind: [-9.0, -6.0, -3.0] if kind in after.TUNED else [1.0, 2.0, 3.0] for kind in ATTACK_IDS
    }
    rows = {ATTACK_IDS[kind]: values for kind, values in ids.items()}
    recorded(tmp_path, "rows.csv", book, **rows, C3a=[1, 2, 3], C6a=[-1, -2, -3], C8a=[0, 5, 1])
    recorded(tmp_path, "rows_seeds-from-1101.csv", second, C6a=[-4, -5], C7b=[7, 7], C7c=[1, 1])
    found = after.look(tmp_path, PLAN)
    assert found["primaries"]["C6a"] == pytest.approx([-1, -2, -3, -4, -5])
    assert found["primaries"]["C1a"] == []
    assert found["C7"]["relearning"]["the book"] == pytest.approx([-9, -6, -3])
    assert found["C7"]["the others"]["the book"] == pytest.approx([1, 2, 3])
    assert found["C7"]["the others"]["seeds-from-1101"] == []  # C7e and others were not made there
    assert found["C3a and C6a"]["the book"] == {
        "r": pytest.approx(-1),
        "p": pytest.approx(0, abs=1e-6),
        "n": 3,
    }
    assert found["C3a and C6a"]["seeds-from-1101"] == {}


def test_the_books_looks_are_those_of_its_rows():
    """Fails if after.json is edited by hand, or `make evidence` was not run."""
    folder = files.ROOT / "figures"
    kept = files.read_json(folder / "after.json")
    assert kept == {"results": files.rounded(after.look(folder, PLAN))}
    seven = set(ATTACK_IDS) - set(after.TUNED)
    assert len(seven) == 7 and set(after.PROMPTS) <= seven
