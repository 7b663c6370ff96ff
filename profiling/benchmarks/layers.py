"""Ways to run a batch of devices, each with its own parameters, through one model.

=================== =================================================================================================
implementation      what it does
=================== =================================================================================================
batched             the dynamic layers of this package: parameters with a leading device dimension, one call
functional_call     one ``torch.func.functional_call`` per device with that device's own weights, made from its factors
vmap                the same weights for all devices at once, then ``torch.func.vmap`` over ``functional_call``
vmap_factors        ``torch.func.vmap`` over the unbatched dynamic layers: factors, no weights
hyper_nn            one call of a hyper-nn network per device with that device's own weights in one vector
hyper_nn_vmap       ``torch.func.vmap`` over the same
=================== =================================================================================================

Needs torch and this package only, so it also runs in the environment that holds hyper-nn; run as a module it prints the
rows of the layers with hyper-nn as JSON on one line.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, DynamicConfig, Shapes
from lit_mmpg.forms.base import entries
from lit_mmpg.heartbeat import working
from lit_mmpg.parameters import ParameterEntry
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.timing import interleave

BATCHED = "batched"
LOOP_TARGET = 10.0
"""The per-device loop is to take at least this many times as long as the batched layers."""

Implementation = Callable[[Sequence[Tensor]], Tensor]
"""Personal parameters, each ``[G, ...]``, to outputs ``[G, ...]``."""


@dataclass(frozen=True)
class LayerCase:
    """A dynamic linear layer.

    Attributes:
        name: Name in the results.
        inputs: Width of the input.
        outputs: Width of the output.
        rows: Rows per device.
        rank: Rank of the low-rank form.
    """

    name: str
    inputs: int
    outputs: int
    rows: int
    rank: int = 8


LAYER_CASES = (
    LayerCase("128 -> 64, 16 frames", 128, 64, 16),
    LayerCase("64 -> 22, 1 question", 64, 22, 1),
    LayerCase("1280 -> 256, 16 frames", 1280, 256, 16),
)
"""Frame projection and head of the demo, and the projection of wide features; one clip or question per device."""


@dataclass(frozen=True)
class Problem:
    """Something to compute for G devices.

    Attributes:
        dynamic: Takes the inputs and the personal parameters.
        static: The same without dynamic layers; takes the inputs.
        layers: The dynamic layers by the prefix of their weights in ``static``.
        inputs: Tensors ``[G, ...]``.
        parameters: Personal parameters, low-rank form, ``[G, ...]``.
    """

    dynamic: nn.Module
    static: nn.Module
    layers: Mapping[str, DynamicLinear]
    inputs: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]

    @property
    def devices(self) -> int:
        """Number of devices G."""
        return len(self.inputs[0])

    def weights(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Ordinary weights and biases of the dynamic layers, of one device or of all at once."""
        made = {}
        for i, (prefix, layer) in enumerate(self.layers.items()):
            u, v, c = parameters[3 * i : 3 * i + 3]
            made[f"{prefix}weight"] = layer.weight + u @ v.mT
            made[f"{prefix}bias"] = layer.bias + c
        return made


def layer_problem(case: LayerCase, devices: int) -> Problem:
    """One dynamic layer with random weights, parameters and inputs."""
    dynamic = DynamicLinear(case.inputs, case.outputs, "low_rank", case.rank)
    static = nn.Linear(case.inputs, case.outputs)
    static.load_state_dict(dynamic.state_dict())
    x = torch.randn(devices, case.rows, case.inputs)
    return _problem(dynamic, static, {"": dynamic}, (x,), entries("layer", dynamic.parts()))


def model_problem(devices: int, frames: int = 16, words: int = 7) -> Problem:
    """The device model in the sizes of the demo on encoded frames: one clip and one question per device."""
    shapes = Shapes(task="open_ended", frame=(128,), words=71, answers=22, max_words=20)
    config = DeviceModelConfig()
    dynamic = DeviceNetwork(shapes, config, DynamicConfig())
    with torch.no_grad():
        for parameter in dynamic.parameters():  # some layers start at zero, which would hide differences
            parameter.add_(0.05 * torch.randn_like(parameter))
    static = DeviceNetwork(shapes, config)
    static.load_state_dict(dynamic.state_dict())
    inputs = (
        torch.randn(devices, frames, 128),
        torch.ones(devices, frames, dtype=torch.bool),
        torch.randint(1, shapes.words, (devices, 1, words)),
    )
    own = dynamic.dynamic_layers().items()
    layers = {f"{name}.": layer for name, layer in own if isinstance(layer, DynamicLinear)}
    return _problem(dynamic, static, layers, inputs, tuple(dynamic.spec))


def _problem(
    dynamic: nn.Module,
    static: nn.Module,
    layers: Mapping[str, DynamicLinear],
    inputs: tuple[Tensor, ...],
    entries: tuple[ParameterEntry, ...],
) -> Problem:
    # Frozen static layers in evaluation mode, as in the cloud stage.
    dynamic.requires_grad_(False).eval()
    static.requires_grad_(False).eval()
    parameters = tuple(0.3 * torch.randn(len(inputs[0]), *entry.shape) * entry.shape[0] ** -0.5 for entry in entries)
    return Problem(dynamic, static, layers, inputs, tuple(p.requires_grad_() for p in parameters))


def implementations(problem: Problem) -> dict[str, Implementation]:
    """The implementations that need nothing but torch."""

    def batched(parameters: Sequence[Tensor]) -> Tensor:
        return problem.dynamic(*problem.inputs, parameters)

    def loop(parameters: Sequence[Tensor]) -> Tensor:
        outputs = []
        for g in range(problem.devices):
            own = problem.weights([p[g] for p in parameters])
            outputs.append(functional_call(problem.static, own, tuple(x[g] for x in problem.inputs)))
        return torch.stack(outputs)

    def mapped(parameters: Sequence[Tensor]) -> Tensor:
        def one(own: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
            return functional_call(problem.static, own, inputs)

        return vmap(one)(problem.weights(parameters), problem.inputs)

    def mapped_factors(parameters: Sequence[Tensor]) -> Tensor:
        def one(own: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
            return functional_call(problem.dynamic, {}, (*inputs, own))

        return vmap(one)(tuple(parameters), problem.inputs)

    return {BATCHED: batched, "functional_call": loop, "vmap": mapped, "vmap_factors": mapped_factors}


def hyper_nn_implementations(problem: Problem) -> dict[str, Implementation]:
    """The same through hyper-nn, which takes all weights of its target network as one vector per call."""
    from hypernn.torch import TorchLinearHyperNetwork

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it stands on functorch.make_functional
        network = TorchLinearHyperNetwork.from_target(problem.static)
    names = [name for name, _ in problem.static.named_parameters()]

    def vectors(parameters: Sequence[Tensor], dims: int) -> Tensor:
        weights = problem.weights(parameters)
        return torch.cat([weights[name].flatten(dims) for name in names], -1)

    def loop(parameters: Sequence[Tensor]) -> Tensor:
        outputs = []
        for g in range(problem.devices):
            vector = vectors([p[g] for p in parameters], 0)
            outputs.append(network(*(x[g] for x in problem.inputs), generated_params=vector))
        return torch.stack(outputs)

    def mapped(parameters: Sequence[Tensor]) -> Tensor:
        def one(vector: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            return network(*inputs, generated_params=vector)

        return vmap(one)(vectors(parameters, 1), problem.inputs)

    return {"hyper_nn": loop, "hyper_nn_vmap": mapped}


def check_equal(problem: Problem, candidates: Mapping[str, Implementation], upstream: Tensor) -> None:
    """Check that all implementations give the outputs and the parameter gradients of the batched one.

    Args:
        problem: The problem.
        candidates: Implementations, the batched one among them.
        upstream: Gradient of the outputs.

    Raises:
        AssertionError: If one differs by more than float32 rounding.
    """
    expected = candidates[BATCHED](problem.parameters)
    gradients = torch.autograd.grad(expected, problem.parameters, upstream)
    for name, candidate in candidates.items():
        found = candidate(problem.parameters)

        def message(text: str, name: str = name) -> str:
            return f"{name} differs from {BATCHED}: {text}"

        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=message)
        own = torch.autograd.grad(found, problem.parameters, upstream)
        for gradient, reference in zip(own, gradients, strict=True):
            scale = float(reference.abs().max())
            torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4 * max(1.0, scale), msg=message)


def compare(
    name: str, problem: Problem, candidates: Mapping[str, Implementation], rounds: int
) -> list[dict[str, object]]:
    """Check and time implementations, forward and forward with backward.

    Returns:
        Rows (see :mod:`lit_mmpg.profiling.benchmarks.training_step`) with the batched implementation as the reference.
    """
    upstream = torch.randn_like(candidates[BATCHED](problem.parameters))
    check_equal(problem, candidates, upstream)

    def forward(run: Implementation) -> object:
        with torch.no_grad():
            return run(problem.parameters)

    def both(run: Implementation) -> object:
        return torch.autograd.grad(run(problem.parameters), problem.parameters, upstream)

    rows: list[dict[str, object]] = []
    for part, act in (("forward", forward), ("forward+backward", both)):
        timings = interleave({n: partial(act, run) for n, run in candidates.items()}, rounds)
        for other in candidates:
            if other == BATCHED:
                continue
            ratio = timings.ratio(other, BATCHED)
            target = LOOP_TARGET if other == "functional_call" else None
            rows.append(
                {
                    "comparison": "dynamic layers",
                    "case": name,
                    "devices": problem.devices,
                    "part": part,
                    **timings.comparison(other, BATCHED),
                    "target": f">= {target:g}" if target else None,
                    "target_met": ratio.median >= target if target else None,
                }
            )
    return rows


def compare_all(devices: Sequence[int], rounds: int) -> list[dict[str, object]]:
    """All cases without hyper-nn."""
    rows = []
    for count in devices:
        torch.manual_seed(0)
        problem = model_problem(count)
        rows += compare("device model", problem, implementations(problem), rounds)
        for case in LAYER_CASES:
            problem = layer_problem(case, count)
            rows += compare(case.name, problem, implementations(problem), rounds)
    return rows


def compare_hyper_nn(devices: Sequence[int], rounds: int) -> list[dict[str, object]]:
    """The cases of single layers with hyper-nn; call it where hyper-nn is installed."""
    rows = []
    for count in devices:
        torch.manual_seed(0)
        for case in LAYER_CASES:
            problem = layer_problem(case, count)
            candidates = {BATCHED: implementations(problem)[BATCHED], **hyper_nn_implementations(problem)}
            rows += compare(case.name, problem, candidates, rounds)
    return rows


@working("layers", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows with hyper-nn as JSON."""
    parser = argparse.ArgumentParser(description="dynamic layers against hyper-nn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 64, 256])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print(json.dumps(compare_hyper_nn(arguments.devices, arguments.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
