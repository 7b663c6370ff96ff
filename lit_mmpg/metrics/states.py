"""What the metrics share: states that are gathered by concatenation, and the removal of repeated items."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def first_of_each(*keys: Tensor) -> Tensor:
    """Indices of the first occurrence of every distinct key, in ascending order of the key.

    Ascending order, rather than order of arrival, makes what follows independent of how the items were spread
    over processes.

    Args:
        keys: Integer tensors ``[n]``; together they form the key of an item.

    Returns:
        ``[u]`` int64 indices into the items.
    """
    table = torch.stack([key.long() for key in keys], dim=1)
    distinct, inverse = torch.unique(table, dim=0, return_inverse=True)
    arrival = torch.arange(len(table), device=table.device)
    first = torch.full((len(distinct),), len(table), dtype=torch.long, device=table.device)
    return first.scatter_reduce_(0, inverse, arrival, "amin")


class GatheredMetric(Metric):
    """Metric whose states are one-dimensional, typed lists that are concatenated over processes.

    Two things are taken care of here. A process that saw no item at all still takes part in the gathering with empty
    states of the right type (torchmetrics would send float32 whatever the others send). And results other than
    ``compute()`` can be had over all processes through :meth:`gathered`.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, states: dict[str, torch.dtype], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._state_types = states
        for name in states:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def append(self, **tensors: Tensor) -> None:
        """Add the values of one batch to the states, each flattened to one dimension."""
        for name, dtype in self._state_types.items():
            getattr(self, name).append(tensors[name].detach().to(device=self.device, dtype=dtype).flatten())

    def state(self, name: str) -> Tensor:
        """All values of one state, ``[n]``."""
        value = getattr(self, name)
        if isinstance(value, list) and not value:
            return torch.empty(0, dtype=self._state_types[name], device=self.device)
        return dim_zero_cat(value)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states over all processes."""
        for name in self._state_types:
            if isinstance(getattr(self, name), list):
                setattr(self, name, [self.state(name)])
        super().sync(*args, **kwargs)

    def gathered(self) -> AbstractContextManager[None]:
        """Context in which the states are those of all processes; every process has to enter it."""
        already = self._is_synced
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and not already, should_unsync=not already
        )


def require_same_length(**tensors: Tensor) -> None:
    """Check that all tensors describe the same number of items.

    Raises:
        ValueError: If the first dimensions differ.
    """
    lengths = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        raise ValueError(f"items do not match, first dimensions are {lengths}")
