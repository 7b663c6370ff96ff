"""A callback that makes steps long enough to be interrupted."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback


class Slow(Callback):
    """Sleeps after each batch for LIT_MMPG_TEST_STEP_SECONDS."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(float(os.environ.get("LIT_MMPG_TEST_STEP_SECONDS", 0)))
