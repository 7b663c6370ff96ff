"""Code of our MLflow models: MLflow copies this file into the model and runs it; the weights lie beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import lit_mmpg


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
            model_input: Columns ``clip`` (path of a video, or features ``[T, D]``), ``question``, and where wanted
                ``options`` and ``context`` (clips of the device).
            params: None are known.

        Returns:
            Columns ``text``, ``confidence`` (0 to 1) and ``parameters`` (their digest, or ``static``).

        Raises:
            UserError: If a row is not usable; names the row.
        """
        rows = [self._answer(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        return pd.DataFrame(rows, columns=["text", "confidence", "parameters"])

    def _answer(self, number: int, row: Mapping[Any, Any]) -> dict[str, Any]:
        try:
            with self._system.new_device() as device:
                clips = _listed(row, "context")
                for clip in clips:
                    device.observe(clip)
                if clips:
                    device.personalise()
                answer = device.answer(row["clip"], row["question"], _listed(row, "options"))
        except lit_mmpg.UserError as error:
            raise lit_mmpg.UserError(f"row {number}: {error}") from error
        return {"text": answer.text, "confidence": answer.confidence, "parameters": answer.parameters}


def _listed(row: Mapping[Any, Any], column: str) -> list[Any]:
    """A column that may be missing, or empty in some rows, which pandas fills with NaN."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, (str, float, int)):
        raise lit_mmpg.UserError(f"{column} is no list; write [...]")
    return list(value)


set_model(PersonalAnswers())
