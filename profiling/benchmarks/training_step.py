"""Speed of training: the cloud stage against the static stage, and batched dynamic layers against the alternatives.

    python -m lit_mmpg.profiling.benchmarks.training_step [--output FILE.json] [--threads 1] [--with-hyper-nn]

What is compared takes turns in one process (A B A B ...) after a check that it computes the same. A ratio is the median
of the ratios within the rounds; its range goes from the 10th to the 90th percentile.

The JSON file holds:

``environment``
    ``cpu``, ``cores``, ``threads`` (of torch), ``python``, ``torch``, ``lightning``, ``system``.
``rows``
    One entry per pair: ``comparison`` (``training step`` or ``dynamic layers``), ``case``, ``devices`` (in the batch),
    ``part`` (``step``: forward, backward and optimiser; ``forward``; ``forward+backward``), ``implementation``,
    ``median_ms``, ``reference``, ``reference_median_ms``, ``ratio_median``, ``ratio_low``, ``ratio_high``
    (implementation over reference), ``rounds``, ``target`` and ``target_met`` (null where there is no target).
``data``
    Per stage: ``stage``, ``batch_ms`` (median time to gather one batch, no part of the steps), ``encode_once_s`` (to
    encode all frames before the first epoch; null where pixels are handed out), ``steps_per_epoch``.
``hyper_nn``
    ``measured``, ``skipped: ...`` or ``failed: ...`` with the reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonargparse
import lightning as L
import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from lit_mmpg import sysfs
from lit_mmpg.batch import Batch
from lit_mmpg.checkpoint import hand_on
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.data.batches import TrainBatches
from lit_mmpg.data.datamodule import DeviceData
from lit_mmpg.device.base import AnsweringModule
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.profiling.benchmarks import in_a_line, layers
from lit_mmpg.profiling.benchmarks.timing import interleave
from lit_mmpg.report import wide_console
from lit_mmpg.training.config import find_config, load_config

STEP_TARGET = 2.0
"""The cloud stage's step is to take at most this many times as long as the static one."""

HYPER_NN = "hyper-nn==0.2.2"
HYPER_NN_FOLDER = Path("outputs/hyper-nn")
BATCHES = 4
"""Different batches that the steps cycle through."""


class _Runner(L.Fabric):
    """Stands in for the trainer, so that the steps of two modules can take turns.

    Lightning lets a module run under Fabric and looks up ``module.trainer`` there.
    """

    def __init__(self, module: AnsweringModule, data: DeviceData) -> None:
        super().__init__(accelerator="cpu", devices=1)
        self.estimated_stepping_batches = 1000
        module.fabric = self
        data.trainer = self  # type: ignore[assignment]


class Stage:
    """One training stage: its module, its data and its optimiser.

    Args:
        module: Class and settings of the stage's module.
        data: Data of its own (a cloud stage makes it hand out encoded frames).
    """

    def __init__(self, module: dict[str, Any], data: DeviceData) -> None:
        data.setup("fit")
        settings = {"data": data.meta} | module.get("init_args", {})
        self.module: AnsweringModule = _instance(AnsweringModule, module | {"init_args": settings})
        self.data = data
        self.runner = _Runner(self.module, data)  # the module refers to it weakly
        self.module.prepare(data)
        self.module.setup("fit")
        configured = self.module.configure_optimizers()
        self.optimiser, self.scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]

    def loader(self) -> TrainBatches:
        """Training batches as the trainer would get them."""
        return self.data.train_dataloader()

    def step(self, batch: Batch) -> float:
        """One optimiser step; returns the loss."""
        self.module.train()
        self.optimiser.zero_grad()
        loss = self.module.training_step(batch, 0)
        assert isinstance(loss, Tensor)
        loss.backward()
        self.optimiser.step()
        self.scheduler.step()
        return float(loss.detach())


@dataclass(frozen=True)
class Stages:
    """Both stages on the same batches.

    Attributes:
        static: Stage 1.
        cloud: Stage 2 over the untrained device half of stage 1 (the values of the weights do not matter for time).
        pixels: Batches with pixels, context included.
        features: The same batches with encoded frames.
        encode_once_s: Seconds to encode all frames once (and to gather these batches).
    """

    static: Stage
    cloud: Stage
    pixels: list[Batch]
    features: list[Batch]
    encode_once_s: float


def read_configs() -> dict[str, dict[str, Any]]:
    """The shipped configurations of the demo: data, device half and cloud half."""
    config = load_config(find_config("configs/experiment/demo.yaml"))
    return {"data": config["data"], "device": config["device_stage"]["model"], "cloud": config["model"]}


def build_stages(configs: Mapping[str, dict[str, Any]]) -> Stages:
    """Build both stages and gather some batches.

    Args:
        configs: ``data``, ``device`` and ``cloud`` as class_path and init_args.
    """
    torch.manual_seed(0)
    static = Stage(configs["device"], _instance(DeviceData, configs["data"]))
    settings = configs["cloud"].get("init_args", {}) | {"device_ckpt": hand_on(static.module)}
    cloud = Stage(configs["cloud"] | {"init_args": settings}, _instance(DeviceData, configs["data"]))
    module = cloud.module
    cloud.data.encode_once(None, None)
    pixels = _first(cloud.loader())
    module.setup("fit")  # encoded frames again
    start = time.perf_counter()
    features = _first(cloud.loader())
    encode_once_s = time.perf_counter() - start
    return Stages(static, cloud, pixels, features, encode_once_s)


def _instance(base: type, config: dict[str, Any]) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "it")
    return parser.instantiate(parser.parse_object({"it": config})).it


def _first(loader: TrainBatches) -> list[Batch]:
    return [batch for _, batch in zip(range(BATCHES), loader, strict=False)]


def check_stages(stages: Stages) -> None:
    """Check, before any step, that all that is timed answers the same.

    The static model on pixels, the same on encoded frames, and the device model with the parameters that the untrained
    cloud half generates give the same scores; batches of the static stage's own loader hold the same questions and
    clips.

    Raises:
        AssertionError: If not.
    """
    static, cloud = stages.static.module, stages.cloud.module
    assert isinstance(static, DeviceModule)
    assert isinstance(cloud, CloudModule)
    static.eval()
    cloud.eval()
    for own, pixels, features in zip(_first(stages.static.loader()), stages.pixels, stages.features, strict=True):
        assert torch.equal(own.frames.values, pixels.frames.values)
        assert torch.equal(own.text, features.text)
        assert torch.equal(own.clip, features.clip)
        with torch.no_grad():
            expected = answer_batch(static.network, own, static.network.encode(own.frames.values)).logits
            assert expected is not None
            encoded = static.network.encode(features.frames.values)
            found = [answer_batch(static.network, features, encoded).logits]
            for batch in (pixels, features):
                parameters = cloud.generate(cloud.select(batch.context)[0])
                encoded = cloud.network.encode(batch.frames.values)
                found.append(answer_batch(cloud.network, batch, encoded, parameters).logits)
        real = own.text_mask
        for logits in found:
            assert logits is not None
            # A clip of padding is zeros among features but a grey image among pixels: no item asks about it.
            torch.testing.assert_close(logits[real], expected[real], rtol=1e-3, atol=1e-3)


def compare_steps(stages: Stages, rounds: int) -> list[dict[str, object]]:
    """Time a step of the cloud stage against a step of the static stage.

    As run, the cloud stage gets frames that were encoded once; the static stage encodes (and learns to encode) pixels.
    The other rows give both the same kind of frames; from pixels the cloud stage then also encodes the context clips.
    """
    check_stages(stages)
    without_context = [replace(b, context=_none_of(b)) for b in stages.pixels]
    without_context_features = [replace(b, context=_none_of(b)) for b in stages.features]
    rounds_of = {
        "static, pixels": (stages.static, without_context),
        "cloud, encoded once": (stages.cloud, stages.features),
        "cloud, pixels": (stages.cloud, stages.pixels),
        "static, encoded once": (stages.static, without_context_features),
    }
    timings = interleave({name: _cycle(stage, batches) for name, (stage, batches) in rounds_of.items()}, rounds)
    rows: list[dict[str, object]] = []
    for case, name, reference, target in (
        ("as run", "cloud, encoded once", "static, pixels", STEP_TARGET),
        ("pixels in both", "cloud, pixels", "static, pixels", None),
        ("encoded once in both", "cloud, encoded once", "static, encoded once", None),
    ):
        ratio = timings.ratio(name, reference)
        rows.append(
            {
                "comparison": "training step",
                "case": case,
                "devices": len(stages.pixels[0]),
                "part": "step",
                **timings.comparison(name, reference),
                "target": None if target is None else f"<= {target:g}",
                "target_met": None if target is None else ratio.median <= target,
            }
        )
    return rows


def _none_of(batch: Batch) -> Any:
    frames = batch.frames
    return replace(frames, values=frames.values[:, :0], mask=frames.mask[:, :0])


def _cycle(stage: Stage, batches: Sequence[Batch]) -> Any:
    count = 0

    def step() -> None:
        nonlocal count
        stage.step(batches[count % len(batches)])
        count += 1

    return step


def measure_data(stages: Stages, most: int = 24) -> list[dict[str, object]]:
    """Time to gather batches, apart from the steps."""
    rows: list[dict[str, object]] = []
    for name, stage, encode_once_s in (
        ("static, pixels", stages.static, None),
        ("cloud, encoded once", stages.cloud, stages.encode_once_s),
    ):
        loader = stage.loader()
        batches = iter(loader)
        times = []
        for _ in range(min(most, len(loader))):
            start = time.perf_counter()
            next(batches)
            times.append(time.perf_counter() - start)
        rows.append(
            {
                "stage": name,
                "batch_ms": float(np.median(times)) * 1e3,
                "encode_once_s": encode_once_s,
                "steps_per_epoch": len(loader),
            }
        )
    return rows


def run_hyper_nn(threads: int, rounds: int, devices: Sequence[int]) -> list[dict[str, object]]:
    """Make an environment with hyper-nn (once) and compare with it there.

    The environment adds hyper-nn, jax and flax to the packages of this one and leaves this one as it is: same torch.

    Raises:
        UserError: If the environment cannot be made or the comparison fails there.
    """
    folder = HYPER_NN_FOLDER.absolute()
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.is_file():
        print(f"installing {HYPER_NN} (with jax and flax) into {HYPER_NN_FOLDER}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], "an environment for hyper-nn could not be made")
        own, ours = (sysconfig.get_path("purelib", vars={"base": str(p)}) for p in (folder, sys.prefix))
        (Path(own) / "shared.pth").write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
        _run([str(python), "-m", "pip", "install", "--quiet", HYPER_NN], f"{HYPER_NN} could not be installed")
        ready.touch()
    command = [str(python), "-m", "lit_mmpg.profiling.benchmarks.layers", "--threads", str(threads)]
    command += ["--rounds", str(rounds), "--devices", *map(str, devices)]
    output = _run(command, "the comparison with hyper-nn failed")
    rows = json.loads(output.splitlines()[-1])
    assert isinstance(rows, list)
    return rows


def _run(command: list[str], complaint: str) -> str:
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"{complaint}: {last}; delete {HYPER_NN_FOLDER} to make it anew, or leave --with-hyper-nn out")
    return done.stdout


def environment() -> dict[str, object]:
    """What the times depend on."""
    return {
        "cpu": sysfs.processor_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "system": platform.platform(),
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = wide_console()
    console.print(", ".join(f"{key} {value}" for key, value in result["environment"].items()), highlight=False)
    console.print(_steps_table([row for row in result["rows"] if row["comparison"] == "training step"]))
    console.print(_layers_table([row for row in result["rows"] if row["comparison"] == "dynamic layers"]))
    table = Table(title="data loading, apart from the steps")
    for title in ("stage", "ms per batch", "encoding once, s", "steps per epoch"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for row in result["data"]:
        once = "" if row["encode_once_s"] is None else f"{row['encode_once_s']:.1f}"
        table.add_row(row["stage"], f"{row['batch_ms']:.1f}", once, str(row["steps_per_epoch"]))
    console.print(table)
    console.print(f"hyper-nn: {result['hyper_nn']}", highlight=False)


def _steps_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="training step: forward, backward and optimiser")
    for title in ("frames", "cloud, ms", "static, ms"):
        table.add_column(title, justify="left" if title == "frames" else "right")
    table.add_column("cloud / static [10 %, 90 %]", justify="right")
    table.add_column("target")
    for row in rows:
        table.add_row(
            row["case"], f"{row['median_ms']:.1f}", f"{row['reference_median_ms']:.1f}", _ratio(row), _target(row)
        )
    return table


def _layers_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    lines: dict[tuple[str, int, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["case"], row["devices"], row["part"]), {})[row["implementation"]] = row
    columns = list(dict.fromkeys(row["implementation"] for row in rows))
    table = Table(
        title="batched dynamic layers: how many times as long the others take [10 %, 90 %]",
        caption=f"Target: functional_call takes >= {layers.LOOP_TARGET:g} times as long.",
        caption_justify="left",
    )
    for title in ("case", "devices", "part", "batched, ms", *columns):
        table.add_column(title, justify="left" if title in ("case", "part") else "right")
    previous = None
    for (case, devices, part), line in lines.items():
        if previous not in (None, devices):
            table.add_section()
        previous = devices
        first = next(iter(line.values()))
        cells = [_ratio(line[name]) + _mark(line[name]) if name in line else "" for name in columns]
        table.add_row(case, str(devices), part, f"{first['reference_median_ms']:.2f}", *cells)
    return table


def _ratio(row: Mapping[str, Any]) -> str:
    digits = 2 if row["ratio_high"] < 10 else 1
    low, high = f"{row['ratio_low']:.{digits}f}", f"{row['ratio_high']:.{digits}f}"
    return f"{row['ratio_median']:.{digits}f} [{low}, {high}]"


def _mark(row: Mapping[str, Any]) -> str:
    return " missed" if row["target_met"] is False else ""


def _target(row: Mapping[str, Any]) -> str:
    return f"{row['target']} {'met' if row['target_met'] else 'missed'}" if row["target"] else ""


@working("training step", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_mmpg.profiling.benchmarks.training_step", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each thing that is timed")
    parser.add_argument("--devices", type=int, nargs="+", default=[16, 64, 256], help="devices in a batch of layers")
    parser.add_argument("--with-hyper-nn", action="store_true", help="install hyper-nn beside this and compare with it")
    arguments = parser.parse_args(argv)
    for name in ("threads", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(arguments.devices) < 1:
        parser.error("--devices must be at least 1")
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    result = measure(arguments)
    print_result(result)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All comparisons; see the module's docstring for the keys."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stages = build_stages(read_configs())
    result: dict[str, Any] = {"environment": environment()}
    result["rows"] = compare_steps(stages, arguments.rounds)
    result["data"] = measure_data(stages)
    del stages
    result["rows"] += layers.compare_all(arguments.devices, arguments.rounds)
    result["hyper_nn"] = "skipped: give --with-hyper-nn to install it beside this package and compare with it"
    if arguments.with_hyper_nn:
        try:
            result["rows"] += run_hyper_nn(arguments.threads, arguments.rounds, arguments.devices)
            result["hyper_nn"] = "measured"
        except UserError as error:
            result["hyper_nn"] = f"failed: {error}"
    return result


if __name__ == "__main__":
    sys.exit(main())
