"""Inputs of a measurement: rows of the bundle's own reference, repeated to the size of the batch."""

from __future__ import annotations

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import STATIC_CASE, Arrays, Bundle


def role_inputs(bundle: Bundle, role: str, batch: int) -> Arrays:
    """Inputs of a role.

    Args:
        bundle: The bundle.
        role: The graph.
        batch: Rows; the reference's rows are taken in turn.

    Returns:
        ``[batch, ...]`` arrays by name.

    Raises:
        UserError: If the reference holds no inputs for the role.
    """
    samples = bundle.reference().roles.get(role)
    if samples is None or not samples.inputs:
        raise UserError(f"{bundle.path}: reference.safetensors holds no inputs for '{role}'; export the bundle again")
    return {name: np.ascontiguousarray(array[np.arange(batch) % len(array)]) for name, array in samples.inputs.items()}


def adapted_parameters(bundle: Bundle, number: int = 0) -> Arrays | None:
    """Personal parameters of one of the reference's devices; None where the model takes none."""
    cases = sorted(name for name in bundle.reference().parameters if name != STATIC_CASE)
    if not len(bundle.spec) or not cases:
        return None
    return bundle.reference().parameters[cases[number % len(cases)]]
