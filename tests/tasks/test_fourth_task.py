"""A fourth task is one class: nothing else of the package is changed, and it trains, is tested, exported and asked.

Its answers are no classes: the model says an angle, the loss is one on the circle, and the metric is in degrees, of
which fewer are better.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Outputs, masked_mean
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import DIRECTIONS, PersonalClipsConfig
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.errors import UserError
from lit_mmpg.export.bundle import write_bundle
from lit_mmpg.export.source import Source
from lit_mmpg.methods.comparison.table import lower_is_better
from lit_mmpg.methods.registry import applicability
from lit_mmpg.metrics.states import GatheredMetric
from lit_mmpg.records import Question
from lit_mmpg.report import print_rows
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.guard import odd_outputs
from lit_mmpg.runtime.manifest import Guard
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.tasks import Figure, ItemResults, Metric, QuestionTask, find_task, register
from lit_mmpg.tasks.registry import TASKS

NAMES = tuple(DIRECTIONS)
ANGLES = np.array([np.arctan2(y, x) for x, y in DIRECTIONS.values()])


class Degrees(GatheredMetric):
    """Mean angle between what was said and what is true."""

    def __init__(self) -> None:
        super().__init__({"error": torch.float64, "device_index": torch.long, "item": torch.long})

    def update(self, error: Tensor, device: Tensor, item: Tensor) -> None:
        self.append(error=error, device_index=device, item=item)

    def compute(self) -> dict[str, Tensor]:
        return {"degrees": self.state("error").mean()}


class Heading(QuestionTask):
    """Which way does it go? The answer is a unit vector."""

    name = "heading"
    primary = Metric("degrees", "angle, degrees", "Mean angle to the true direction; lower is better.", True)
    lacks: ClassVar = {"shared_classes": "a direction is no class", "frequent_answer": "a direction is no class"}
    figures: ClassVar = {"turn": Figure("mean turn from the static model", 5.0, least=0.0)}

    def takes(self, text: Any, split: str) -> bool:
        return isinstance(text, Question) and text.type == "direction" and text.answer in NAMES

    def candidates(self, text: Any) -> list[str]:
        return [text.text]

    def target(self, text: Any, index: Any) -> int:
        return NAMES.index(text.answer)

    def head_width(self, answers: int) -> int:
        return 2

    def _error(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Angle to the truth ``[B, N]``, radians."""
        assert outputs.logits is not None
        wanted = torch.from_numpy(ANGLES).to(outputs.logits)[batch.answer.clamp(min=0)]
        turn = torch.atan2(outputs.logits[..., 1], outputs.logits[..., 0]) - wanted
        return torch.atan2(turn.sin(), turn.cos()).abs()

    def loss(self, network: Any, batch: Batch, outputs: Outputs, label_smoothing: Any = 0.0, gather: Any = None) -> Any:
        return (1 - self._error(batch, outputs).cos())[batch.text_mask & (batch.answer >= 0)].mean()

    def device_loss(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        return masked_mean(1 - self._error(batch, outputs).cos(), batch.text_mask & (batch.answer >= 0))

    def choices(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        assert outputs.logits is not None
        places = torch.from_numpy(np.stack([np.cos(ANGLES), np.sin(ANGLES)])).to(outputs.logits)
        return outputs.logits @ places

    def new_metric(self, kinds: Any, gallery: Any) -> Degrees:
        return Degrees()

    def update_metric(self, metric: Any, batch: Batch, outputs: Outputs) -> None:
        mask = batch.text_mask
        device = batch.device.unsqueeze(1).expand_as(mask)
        metric.update(self._error(batch, outputs).rad2deg()[mask], device[mask], batch.item[mask])

    def item_results(self, metric: Any, item_clip: np.ndarray) -> ItemResults:
        device, item, error = (metric.state(name).cpu().numpy() for name in ("device_index", "item", "error"))
        return ItemResults(device, item_clip[item], item, {"degrees": error})

    def prediction(self, text: Any, batch: Batch, outputs: Outputs, place: Any, answers: Any, clips: Any) -> Any:
        return {"question": text.text, "answer": text.answer, "off": float(self._error(batch, outputs)[place])}

    def decode(self, scores: np.ndarray, options: Any, answers: Any) -> list[tuple[str, float]]:
        near = (1 + np.cos(np.arctan2(scores[1], scores[0]) - ANGLES)) / 2
        return [(NAMES[i], float(near[i])) for i in np.argsort(-near)]

    def output_figures(self, static: np.ndarray, personal: np.ndarray) -> dict[str, float]:
        angles = [np.arctan2(vector[:, 1], vector[:, 0]) for vector in (static, personal)]
        return {"turn": float(np.rad2deg(np.abs(np.angle(np.exp(1j * (angles[0] - angles[1]))))).mean())}

    def text_dims(self) -> dict[int, str]:
        return {0: "B", 2: "L"}


@pytest.fixture
def heading() -> Iterator[Heading]:
    """The task, known for one test."""
    task = Heading()
    register(task)
    yield task
    TASKS.forget(task.name)


def test_a_fourth_task_from_data_to_an_answer_on_a_device(heading: Heading, tmp_path: Path, capsys: Any) -> None:
    clips = PersonalClipsConfig(
        train_devices=4, val_devices=2, test_devices=2, train_clips=6, seen_clips=2, unseen_clips=4, image_size=24
    )
    data = PersonalClipsData(clips, str(tmp_path), "heading", BatchShape(2, 2, 3, 2))
    network = DeviceModelConfig(width=16, heads=2, encoder_features=8, encoder_channels=4)
    module = DeviceModule.for_data(data, network=network)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, enable_checkpointing=False, log_every_n_steps=1, **quiet)
    trainer.fit(module, datamodule=data)
    degrees = float(trainer.callback_metrics["val/degrees"])
    assert 0 < degrees < 180 and float(trainer.callback_metrics["val/score"]) == pytest.approx(-degrees)
    assert module.network.head.out_features == 2

    trainer.test(module, datamodule=data, verbose=False)
    rows = [row for row in module.result_rows if row["split"] == "test_unseen"]
    assert [(row["metric"], row["method"]) for row in rows] == [("degrees", "static")] and rows[0]["low"] is not None
    print_rows(rows)
    assert "degrees" in capsys.readouterr().out  # a metric of its own has a column, too

    predicted = trainer.predict(module, datamodule=data)
    assert predicted and {row["answer"] for part in predicted for row in part} <= set(NAMES)

    source = Source(tmp_path / "best.ckpt", module.eval(), {"half": "device", "data": data.meta}, data)
    write_bundle(source, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    with DeviceSession(bundle) as session:
        features = session.encode(np.zeros((4, 3, 24, 24), np.uint8))
        answer = session.answer(features, "which way does it move")
        assert {name for name, _ in answer.ranking} == set(NAMES) and 0 <= answer.confidence <= 1
        with pytest.raises(UserError, match="answers freely; leave options out"):
            session.answer(features, "which way does it move", ["left", "right"])


def test_the_matrix_claims_and_the_guard_of_a_device_know_a_fourth_task(heading: Heading) -> None:
    rows = {row["method"]: row["heading"] for row in applicability(["unadapted", "majority", "t3a", "tent"])}
    no = "a direction is no class"
    assert rows == {"unadapted": "yes", "majority": no, "t3a": no, "tent": "yes"}
    assert lower_is_better("degrees_minus_static") and not lower_is_better("accuracy_minus_static")
    guard = Guard(8, (1,), 0.5, [], {}, {1: {"turn": (0.0, 5.0)}})
    east, north = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert odd_outputs(guard, east, east, 1, "heading") is None
    assert odd_outputs(guard, east, north, 1, "heading") == "mean turn from the static model is 90, expected 0 to 5"
    assert find_task("heading") is heading
    register(Heading())  # again: the same class
    with pytest.raises(UserError, match="there is a task 'heading' already"):
        register(type("Heading", (Heading,), {})())
