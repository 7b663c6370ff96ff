"""What injected layers cost: wrapping, several devices at once, and parameters as inputs of an exported graph.

    python -m lit_mmpg.profiling.benchmarks.adaptable [--output FILE.json] [--rounds 15] [--sessions 10]

``wrapping``
    The static module after injection over the same before it, eager.
``batch``
    Several devices looped over, over the same devices in one call, for each kind of layer.
``inputs``
    An exported graph with parameters as inputs over the same with the parameters baked in: ONNX Runtime, one thread,
    medians of fresh sessions that take turns.

The mobile encoder is a MobileNetV2 of the transformers library with random weights, 224 x 224, one picture.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lit_mmpg import InputLayer, adaptable
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.forms.injection import Adaptable
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.timing import interleave
from lit_mmpg.results import markdown, result, write_result
from lit_mmpg.runtime.baking import bake

WRAPPING_TARGET, INPUTS_TARGET, DEVICES, RANK = 1.03, 1.10, 8, 4

KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear 256 -> 64": (nn.Linear(256, 64), (4, 16, 256)),
    "convolution 3 x 3, 3 -> 32": (nn.Conv2d(3, 32, 3, 2, 1), (4, 3, 64, 64)),
    "convolution 3 x 3, 32 -> 32": (nn.Conv2d(32, 32, 3, 1, 1), (4, 32, 28, 28)),
    "convolution 1 x 1, 96 -> 24": (nn.Conv2d(96, 24, 1), (4, 96, 28, 28)),
    "depthwise 3 x 3, 96": (nn.Conv2d(96, 96, 3, 1, 1, groups=96), (4, 96, 28, 28)),
    "layer norm 256": (nn.LayerNorm(256), (4, 16, 256)),
}
PLACES: dict[str, dict[str, Any]] = {
    "input layer": {"input_layer": InputLayer()},
    "stem, low_rank": {"targets": ["first_conv.convolution"]},
    "stem, full": {"targets": ["first_conv.convolution"], "form": "full"},
    "stem, film": {"targets": ["first_conv.convolution"], "form": "film"},
    "depthwise convolutions, film": {"targets": ["conv_3x3.convolution"], "form": "film"},
    "last convolutions of blocks, low_rank": {"targets": ["reduce_1x1.convolution"]},
}


class Encoder(nn.Module):
    """A mobile encoder: pictures to pooled features."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import MobileNetV2Config, MobileNetV2Model

        self.model = MobileNetV2Model(MobileNetV2Config()).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, D]``."""
        features: Tensor = self.model(pixel_values=pixels).pooler_output
        return features


class Graph(nn.Module):
    """An adaptable encoder with named inputs, as the exporter wants them."""

    def __init__(self, net: Adaptable) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """The encoder."""
        features: Tensor = self.net(pixels, parameters=parameters)
        return features


@torch.no_grad()
def wrapping(rounds: int) -> list[list[Any]]:
    """Rows of the static module."""
    network, x = Encoder().eval(), torch.randn(1, 3, 224, 224)
    plain = copy.deepcopy(network)
    targets = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    net = adaptable(network, targets, {"*.normalization": "film", "*": "shift"}, input_layer=InputLayer())
    assert torch.equal(net(x), plain(x))
    ratio = interleave({"wrapped": lambda: net(x), "plain": lambda: plain(x)}, rounds).ratio("wrapped", "plain")
    return [["wrapping", f"{len(targets)} layers and the input layer", *_shown(ratio.median, ratio.low, ratio.high),
             f"<= {WRAPPING_TARGET}"]]  # fmt: skip


@torch.no_grad()
def batching(rounds: int) -> list[list[Any]]:
    """Rows of several devices."""
    rows = []
    for name, (module, shape) in KINDS.items():
        for form in ("full", "low_rank", "film"):
            if (form == "full" and "depthwise" in name) or (form == "low_rank" and "norm" in name):
                continue
            net = adaptable(copy.deepcopy(module), "", form, RANK)
            x, own = torch.randn(DEVICES, *shape), net.random_parameters(DEVICES)
            net.verify(x[0])
            batch, loop = copy.deepcopy(net), net
            loop.devices = "loop"

            def call(one: Adaptable, x: Tensor = x, own: tuple[Tensor, ...] = own) -> Tensor:
                output: Tensor = one(x, parameters=own)
                return output

            calls = {"loop": lambda loop=loop, call=call: call(loop), "batch": lambda b=batch, call=call: call(b)}
            ratio = interleave(calls, rounds).ratio("loop", "batch")
            rows.append(
                [f"loop over batch, {DEVICES} devices", f"{name}, {form}", *_shown(ratio.median, ratio.low, ratio.high),
                 ">= 1"]
            )  # fmt: skip
    return rows


def inputs(sessions: int, runs: int = 15, places: Sequence[str] = tuple(PLACES)) -> list[list[Any]]:
    """Rows of exported graphs."""
    rows = []
    pixels = torch.randn(1, 3, 224, 224)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name in places:
        torch.manual_seed(0)
        net = adaptable(Encoder().eval(), rank=RANK, **PLACES[name])
        spec = GraphSpec("model", Graph(net).eval(), {"pixels": pixels.repeat(2, 1, 1, 1)}, {"pixels": {0: "N"}}, "y",
                         personal=True)  # fmt: skip
        graph = export_graph(spec, net)
        own = {n: t.numpy() for n, t in zip(net.spec.names, net.random_parameters(size=0.05), strict=True)}
        both = {"inputs": (graph.SerializeToString(), own), "baked": (bake(graph, own), {})}
        medians: dict[str, list[float]] = {kind: [] for kind in both}
        for _ in range(sessions):
            for kind, (data, given) in both.items():
                session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
                feed = {"pixels": pixels.numpy(), **given}
                seconds = []
                for i in range(runs + 3):
                    start = time.perf_counter()
                    session.run(None, feed)
                    if i >= 3:
                        seconds.append(time.perf_counter() - start)
                medians[kind].append(float(np.median(seconds)))
        ratios = np.array(medians["inputs"]) / np.array(medians["baked"])
        wanted = f"<= {INPUTS_TARGET}" if name.startswith(("input", "stem")) else None
        rows.append(["inputs over baked", name, *_shown(*np.percentile(ratios, [50, 10, 90])), wanted])
    return rows


def _shown(median: float, low: float, high: float) -> tuple[str, str]:
    return f"{median:.3f}", f"{low:.3f} to {high:.3f}"


def _commit() -> str | None:
    """The commit, where nothing was changed since."""
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    if changed:
        return None
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description="what injected layers cost")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--only", choices=["wrapping", "batch", "inputs"])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {"wrapping": lambda: wrapping(arguments.rounds), "batch": lambda: batching(arguments.rounds),
             "inputs": lambda: inputs(arguments.sessions)}  # fmt: skip
    commit = _commit()
    if arguments.output and commit is None:
        print("error: --output needs a checkout without changes", file=sys.stderr)
        return 2
    rows = [row for name, part in parts.items() if arguments.only in (None, name) for row in part()]
    found = result(
        "What injected layers cost",
        "python -m lit_mmpg.profiling.benchmarks.adaptable "
        f"--rounds {arguments.rounds} --sessions {arguments.sessions}"
        + (f" --only {arguments.only}" if arguments.only else ""),
        ["comparison", "case", "ratio, median", "10th to 90th percentile", "target"],
        rows,
        commit,
        ["One thread. MobileNetV2 with random weights, 224 x 224, one picture; single layers with 4 rows a device."],
    )
    print(markdown(found))
    if arguments.output:
        write_result(arguments.output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
