"""The folder that the processes of one run share."""

from __future__ import annotations

import gc
import os
import signal

import pytest

from lit_mmpg.cli import spare_imports
from tests import shared

spare_imports()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # by a shell that started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    shared.FOLDER = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.FOLDER.mkdir(exist_ok=True)
    shared.keep_torchlib()
    shared.keep_tables()
    gc.collect()
    gc.freeze()  # what is imported stays: looking through it for garbage again and again took a tenth of the time
