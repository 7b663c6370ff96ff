"""Fine-tuning on the device, for its cost alone: what one adaptation takes in time, energy and memory.

The labels are drawn at random, for cost does not depend on them; accuracies of fine-tuning, and the number of steps
that an accuracy takes, come from ``lit-mmpg compare``. All weights are trained, by AdamW. Needs torch and a bundle
that was exported with ``--torch``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.tasks import find_task
from lit_mmpg.tasks.graphs import AnswerGraph
from lit_mmpg.torch_engines.base import load_network


class OnDeviceTraining:
    """Adaptations by fine-tuning, each from the weights of the bundle.

    Args:
        bundle: The bundle.
        inputs: What its graph ``model`` takes: the labelled clips of a step.
        steps: Optimiser steps of one adaptation.
        lr: Learning rate.

    Raises:
        UserError: If the bundle holds no weights, or its task has no labels of this kind.
    """

    def __init__(self, bundle: Bundle, inputs: Arrays, steps: int, lr: float) -> None:
        task = find_task(bundle.manifest.task)
        if task.searches:
            raise UserError("scenario finetune is for questions; retrieval has no labelled clips here")
        torch.set_num_threads(1)
        self._network = load_network(bundle)
        self._steps, self._lr = steps, lr
        self._inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
        static = bundle.static_parameters()
        self._parameters = tuple(torch.from_numpy(static[entry.name]) for entry in bundle.spec)
        choices = inputs["text"].shape[1] if task.takes_options else len(bundle.manifest.answers)
        self._labels = torch.randint(choices, (len(inputs["text"]),), generator=torch.Generator().manual_seed(0))

    def adapt(self) -> float:
        """One adaptation; returns the last loss."""
        graph: Any = AnswerGraph(copy.deepcopy(self._network)).train().requires_grad_(True)
        optimiser = torch.optim.AdamW(graph.parameters(), lr=self._lr)
        loss = torch.zeros(())
        for _ in range(self._steps):
            optimiser.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(graph(**self._inputs, parameters=self._parameters), self._labels)
            loss.backward()
            optimiser.step()
        return float(loss.detach())
