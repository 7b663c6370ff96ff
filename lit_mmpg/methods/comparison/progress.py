"""How far a comparison is, and about how long it still takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from lit_mmpg.heartbeat import tell
from lit_mmpg.texts import duration


class Progress:
    """One line before each cell.

    A cell to come is expected to take as long as the cells of its row with other seeds took (whenever that was), and as
    the mean of all cells where the row is new.

    Args:
        names: Row of each cell, in the order in which they are computed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.count = list(names), 0
        self.begun = time.monotonic()
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def start(self, name: str, seed: int) -> None:
        """Print which cell begins."""
        left = self.left()
        self.count += 1
        text = f"[{self.count}/{len(self.names)}] {name}, seed {seed}"
        if left is not None:
            text += f"   ({duration(time.monotonic() - self.begun)} so far, about {duration(left)} to go)"
        print(text, flush=True)
        tell(f"{name}, seed {seed}")

    def done(self, name: str, seconds: float) -> None:
        """Note how long a cell took when it was computed."""
        self.seconds[name].append(seconds)

    def left(self) -> float | None:
        """Seconds to go; None before the first cell is done."""
        known = [value for values in self.seconds.values() for value in values]
        if not known:
            return None
        mean = sum(known) / len(known)
        own = {name: sum(values) / len(values) for name, values in self.seconds.items() if values}
        return sum(own.get(name, mean) for name in self.names[self.count :])
