"""What messages would cost on named links: a model with its sources, never a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.settings import within


@dataclass(frozen=True)
class LinkModel:
    """A link.

    ``time = round trips x rtt + bits / rate``; ``energy = (base_w + w_per_mbit_s x rate) x transfer time + base_w x
    waiting + tail_w x tail_s``: the linear model of Huang et al., "A Close Examination of Performance and Power
    Characteristics of 4G LTE Networks", MobiSys 2012. The tail is the time that a radio stays awake after a transfer.
    Of the figures in the shipped configurations the rates are those of its abstract; the powers were not compared with
    its tables, which every row says.

    Attributes:
        name: For tables.
        up_mbit_s: Rate up.
        down_mbit_s: Rate down.
        rtt_ms: Round trip.
        source: Where these figures come from.
        base_w: Power of the radio while it is connected and transfers, without the share that grows with the rate.
        up_w_per_mbit_s: Power for each Mbit/s up.
        down_w_per_mbit_s: The same down.
        tail_w: Power of the radio's tail.
        tail_s: Length of the tail.
        energy_source: Where the power figures come from; None where none are given: energy is then null.
        round_trips: Round trips of one request on a connection that is open.
    """

    name: str
    up_mbit_s: float
    down_mbit_s: float
    rtt_ms: float
    source: str
    base_w: float | None = None
    up_w_per_mbit_s: float | None = None
    down_w_per_mbit_s: float | None = None
    tail_w: float = 0.0
    tail_s: float = 0.0
    energy_source: str | None = None
    round_trips: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not self.source:
            raise UserError(f"links: '{self.name}' needs a name and the source of its figures")
        if min(self.up_mbit_s, self.down_mbit_s) <= 0 or self.rtt_ms < 0:
            raise UserError(f"links: {self.name} needs positive rates and an rtt_ms that is not negative")
        powers = (self.base_w, self.up_w_per_mbit_s, self.down_w_per_mbit_s)
        amounts = ("base_w", "up_w_per_mbit_s", "down_w_per_mbit_s", "tail_w", "tail_s", "round_trips")
        within(f"links: {self.name}: ", 0, **{name: getattr(self, name) for name in amounts})
        if (self.energy_source is None) != (None in powers):
            raise UserError(
                f"links: {self.name} needs base_w, up_w_per_mbit_s, down_w_per_mbit_s, energy_source, or none of them"
            )


@dataclass(frozen=True)
class LinkCost:
    """Modelled cost of one exchange.

    Attributes:
        link: Name of the link.
        time_ms: Time on the network, the cloud's own time not included.
        energy_j: Energy of the device's radio, tail included; None where the link states no power.
        tail_j: Share of the tail in it, which several exchanges in a row would pay once.
        model: Always True: nothing was sent.
        source: Sources of the figures.
    """

    link: str
    time_ms: float
    energy_j: float | None
    tail_j: float | None
    source: str
    model: bool = True


def cost(link: LinkModel, upload_bytes: int, download_bytes: int) -> LinkCost:
    """Model one exchange.

    Args:
        link: The link.
        upload_bytes: Bytes of the message up.
        download_bytes: Bytes of the message down.
    """
    up_s = upload_bytes * 8 / (link.up_mbit_s * 1e6)
    down_s = download_bytes * 8 / (link.down_mbit_s * 1e6)
    waiting_s = link.round_trips * link.rtt_ms / 1e3
    energy = tail = None
    if link.base_w is not None and link.up_w_per_mbit_s is not None and link.down_w_per_mbit_s is not None:
        tail = link.tail_w * link.tail_s
        energy = (
            (link.base_w + link.up_w_per_mbit_s * link.up_mbit_s) * up_s
            + (link.base_w + link.down_w_per_mbit_s * link.down_mbit_s) * down_s
            + link.base_w * waiting_s
            + tail
        )
    sources = dict.fromkeys([link.source, *([link.energy_source] if link.energy_source else [])])
    return LinkCost(link.name, (waiting_s + up_s + down_s) * 1e3, energy, tail, "; ".join(sources))


def costs(links: Sequence[LinkModel], upload_bytes: int, download_bytes: int) -> list[dict[str, Any]]:
    """Model one exchange over each link."""
    return [asdict(cost(link, upload_bytes, download_bytes)) for link in links]
