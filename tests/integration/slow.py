"""Callbacks of the tests: steps long enough to be interrupted, and a record of what was trained on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_mmpg.batch import Batch


class Slow(Callback):
    """Sleeps after each batch for LIT_MMPG_TEST_STEP_SECONDS."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(float(os.environ.get("LIT_MMPG_TEST_STEP_SECONDS", 0)))


class Record(Callback):
    """Appends the epoch and the clips and items of each training batch to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        entry = {"epoch": trainer.current_epoch, "clips": batch.clip.tolist(), "items": batch.item.tolist()}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class FirstStep(Callback):
    """Saves what each process had before, and what it got from, its first backward pass: ``FOLDER/RANK.pt``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.batch = batch

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            return
        batch = self.batch
        names = ("text", "text_mask", "text_clip", "answer", "item", "clip", "device", "kind")
        state = {
            "batch": {name: getattr(batch, name) for name in names},
            "frames": [batch.frames.values, batch.frames.mask],
            "weights": pl_module.state_dict(),
            "gradients": {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None},
        }
        self.folder.mkdir(exist_ok=True)
        torch.save(state, self.folder / f"{trainer.global_rank}.pt")
