"""Where an erasure ends: told when to stop, then landed on the forget level that was asked.

Steps are too coarse for a comparison: at its end an erasure moves by a few tenths of a nat a step,
and a method that stops half a nat higher looks the more robust for it. So the weights between the
last look below the level and the last one above it are bisected until the level is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sare_min.losses import Method

NEAR = 0.01  # nats a token; the ledger compares arms that are 0.1 apart at most


@dataclass
class Watch:
    """Looks at the forget level now and then, and keeps the weights last seen on each side."""

    params: Sequence[Tensor]
    level: Callable[[], float]  # nats a token, of the weights as they are
    asked: float
    seen: dict[bool, list[Tensor]] = field(default_factory=dict)  # is it at the level or above?

    def look(self) -> float:
        """The level now."""
        now = self.level()
        self.seen[now >= self.asked] = [p.detach().clone() for p in self.params]
        return now

    def land(self) -> dict[str, float | bool]:
        """Put the weights at the asked level, on the straight line from where they are to the last
        ones on its other side; they stay as they are if there are none.

        Returns {"level": nats a token, "reached": is it within NEAR, "share": how much of that line
        was gone, "distance": its length in L2}.
        """
        now, end = self.look(), [p.detach().clone() for p in self.params]
        start = self.seen.get(now < self.asked)
        step = [other - here for here, other in zip(end, start or end, strict=True)]
        is_above, share, near, far = now >= self.asked, 0.0, 0.0, 1.0
        while start and abs(now - self.asked) > NEAR and far - near > 1e-6:
            share = (near + far) / 2
            self._move(end, step, share)
            now = self.level()
            near, far = (share, far) if (now >= self.asked) == is_above else (near, share)
        length = torch.linalg.vector_norm(torch.cat([share * s.flatten() for s in step]))
        reached = abs(now - self.asked) <= NEAR
        return {"level": now, "reached": reached, "share": share, "distance": float(length)}

    def _move(self, home: list[Tensor], step: list[Tensor], share: float) -> None:
        with torch.no_grad():
            for parameter, here, way in zip(self.params, home, step, strict=True):
                parameter.copy_(here + share * way)


def at_speed(watch: Watch, cooldown: int) -> Callable[[int], bool]:
    """unlearn's `stop`: begin the cool-down when it will end at the asked level or just above.

    A cool-down goes as far as half of its steps at full speed. Looks are spaced by the pace so far.
    """
    look_again, cooled = 0, -1  # the next step to look after; that at which a cool-down ends
    last: tuple = ()  # the last look: its step and its level

    def stop(step: int) -> bool:
        nonlocal look_again, last, cooled
        if step < look_again:
            return False
        now = watch.look()
        pace = max(0.1, (now - last[1]) / (step - last[0])) if last else 0.4  # nats a step
        missing = watch.asked - now - (0.0 if step == cooled else pace * cooldown / 2)
        look_again, last = step + max(1, int(0.4 * missing / pace)), (step, now)
        cooled = -1 if missing > 0 else step + cooldown
        return missing <= 0

    return stop


@dataclass
class Held:
    """Two controls' ways to the level; they look after every step. Is the forget loss on?

    work: forget only while below the asked level, until so many forward passes are spent. peak:
    forget up to this level first, then only retain until the asked one is reached from above.
    """

    watch: Watch
    price: Callable[[bool], float]  # is the forget loss on? -> passes of a step
    cooldown: int
    work: float = 0.0
    peak: float | None = None
    spent: float = 0.0
    forgets: bool = True

    def stop(self, step: int) -> bool:
        """unlearn's `stop`: begin the cool-down when the rest of the work will do for it."""
        self.spent += self.price(self.forgets)
        level = self.watch.look()
        if self.peak is None:
            self.forgets = level < self.watch.asked
            return self.spent + self.cooldown * self.price(True) >= self.work
        self.forgets = self.forgets and level < self.peak
        return not self.forgets and level <= self.watch.asked

    def weights(self, method: Method) -> dict[str, float]:
        """The changes to the method for the next step. Without its loss there is no ascent step on
        the forget loss alone.
        """
        if self.forgets:
            return {}
        return {"lambda_neg": 0.0} | ({"rho": 0.0} if method.perturb == ("neg",) else {})
