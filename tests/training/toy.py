"""The smallest modules that keep the contract between the real modules and the training package."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.data.corpus import Device, DeviceTable
from lit_mmpg.errors import UserError


class Loader:
    """Batches in an order that is a function of (seed, epoch), with a position that can be saved."""

    def __init__(self, x: Tensor, y: Tensor, size: int, rank: int, world: int, shuffle: bool) -> None:
        self.x, self.y, self.size, self.rank, self.world, self.shuffle = x, y, size, rank, world, shuffle
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self.x) // (self.size * self.world)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(len(self.x))
        if self.shuffle:
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        order = order[self.rank :: self.world]
        start, self.position = self.position, 0
        for i in range(start, len(self)):
            rows = order[i * self.size : (i + 1) * self.size]
            self.position = i + 1
            if self.position == len(self):
                self.epoch, self.position = self.epoch + 1, 0
            yield self.x[rows], self.y[rows]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class ToyData(L.LightningDataModule):
    def __init__(self, root: str = "nowhere", samples: int = 64, batch_size: int = 4) -> None:
        super().__init__()
        self.root, self.samples, self.batch_size = root, samples, batch_size
        self.trained: dict[str, Any] | None = None
        self.predict_device: str | None = None

    def use_meta(self, meta: dict[str, Any]) -> None:
        self.trained = meta

    @property
    def meta(self) -> dict[str, Any]:
        return {"task": "toy", "answers": ["yes", "no"]} if self.trained is None else self.trained

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.root.encode()).hexdigest()

    @property
    def device_table(self) -> DeviceTable:
        return DeviceTable((Device("cam-0"),), {"train": {0: ("a", "b")}}, {"rule": "column"})

    def setup(self, stage: str | None = None) -> None:
        if not Path(self.root).is_dir():
            raise UserError(f"data.root {self.root} does not exist")
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(self.samples, 6, generator=generator)
        self.y = (self.x[:, :1] > 0).float()

    def _loader(self, shuffle: bool = False) -> Loader:
        trainer = self.trainer
        assert trainer is not None
        return Loader(self.x, self.y, self.batch_size, trainer.global_rank, trainer.world_size, shuffle)

    def train_dataloader(self) -> Loader:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> Loader:
        return self._loader()

    test_dataloader = predict_dataloader = val_dataloader


class ToyDevice(L.LightningModule):
    half_name = "device"
    monitor = ("val/loss", "min")

    def __init__(self, width: int = 8, nan_at: int = -1) -> None:
        super().__init__()
        self.width, self.nan_at = width, nan_at
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 1))
        self.result_rows: list[dict[str, Any]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        marker = Path("kill")
        if marker.exists() and f"{self.half_name} {self.global_step}" == marker.read_text():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        interrupt = Path("interrupt")
        if interrupt.exists() and self.global_step >= int(interrupt.read_text()):
            interrupt.unlink()
            signal.raise_signal(signal.SIGINT)
        loss = nn.functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
        loss = loss * float("nan") if self.global_step == self.nan_at else loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = nn.functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
        self.log(f"{'test' if self.trainer.testing else 'val'}/loss", loss, sync_dist=True, batch_size=len(batch[0]))

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        scores = self.net(batch[0])[:, 0].tolist()
        return [{"item": batch_idx * len(scores) + i, "answer": "yes" if s > 0 else "no"} for i, s in enumerate(scores)]

    def _rows(self, split: str) -> None:
        value = float(self.trainer.callback_metrics[f"{split}/loss"])
        row = {"method": self.half_name, "split": split, "metric": "loss", "value": value, "low": None, "high": None}
        self.result_rows = [row | {"seeds": 1, "upload_bytes": 100, "download_bytes": 13312}]

    def on_validation_epoch_end(self) -> None:
        self._rows("val")

    def on_test_epoch_end(self) -> None:
        self._rows("test")

    def figures(self) -> dict[str, Any]:
        if not self.result_rows:
            return {}
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return {"line": figure}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault("lit_mmpg", {}).update(data=self.trainer.datamodule.meta, half=self.half_name)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert (
            self.trainer.estimated_stepping_batches
        )  # asked for by warm-up schedules; Lightning then loads data early
        return torch.optim.Adam(self.parameters(), 0.01)


class StopServer(L.Callback):
    """Kills a process before a step: the tracking server, to see what a training makes of that."""

    def __init__(self, pid: int, step: int) -> None:
        self.pid, self.step = pid, step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.killpg(self.pid, signal.SIGKILL)


class ToyCloud(ToyDevice):
    half_name = "cloud"

    def __init__(self, device_ckpt: str | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.device_ckpt = device_ckpt

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        if self.device_ckpt is None:
            raise UserError("model.device_ckpt is missing")
        self.load_state_dict(read_checkpoint(self.device_ckpt)["state_dict"])
