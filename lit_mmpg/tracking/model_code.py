"""Code of our MLflow models: MLflow copies this file into the model and runs it; the weights lie beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import lit_mmpg

CLIPS = "LIT_MMPG_CLIPS"
"""Environment variable of the server: the folder of the videos that a request may name."""


class PersonalAnswers(PythonModel):  # type: ignore[misc]
    """Answers questions about clips; each row is a device of its own, personalised first where it has a context."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load both halves."""
        self._system = lit_mmpg.load(context.artifacts["system"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answers, a row each.

        Args:
            context: Of the model; not used.
            model_input: Columns ``clip`` (features ``[T, D]``, or the path of a video below the folder that the
                environment variable ``LIT_MMPG_CLIPS`` names), ``question``, and where wanted ``options`` and
                ``context`` (clips of the device).
            params: None are known.

        Returns:
            Columns ``text``, ``confidence`` (0 to 1) and ``parameters`` (their digest, or ``static``).

        Raises:
            UserError: If a row is not usable, or names another file; names the row.
        """
        rows = [self._answer(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        return pd.DataFrame(rows, columns=["text", "confidence", "parameters"])

    def _answer(self, number: int, row: Mapping[Any, Any]) -> dict[str, Any]:
        try:
            with self._system.new_device() as device:
                clips = _listed(row, "context")
                for clip in clips:
                    device.observe(_allowed(clip))
                if clips:
                    device.personalise()
                answer = device.answer(_allowed(row["clip"]), row["question"], _listed(row, "options"))
        except lit_mmpg.UserError as error:
            raise lit_mmpg.UserError(f"row {number}: {error}") from error
        return {"text": answer.text, "confidence": answer.confidence, "parameters": answer.parameters}


def _allowed(clip: Any) -> Any:
    """A clip that a request may name: whoever sends one must not have any file of the server opened."""
    if not isinstance(clip, (str, os.PathLike)):
        return clip
    folder = os.environ.get(CLIPS)
    if not folder:
        raise lit_mmpg.UserError(
            f"a clip is a path; set {CLIPS} to the folder of the videos where the model runs, or send features"
        )
    path = Path(folder, clip).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise lit_mmpg.UserError(f"a clip lies outside the folder that {CLIPS} names")
    return path


def _listed(row: Mapping[Any, Any], column: str) -> list[Any]:
    """A column that may be missing, or empty in some rows, which pandas fills with NaN."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, (str, float, int)):
        raise lit_mmpg.UserError(f"{column} is no list; write [...]")
    return list(value)


set_model(PersonalAnswers())
