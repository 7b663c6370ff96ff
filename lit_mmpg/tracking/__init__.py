"""MLflow: where runs are kept, the logger, and the web page."""

from __future__ import annotations

import os

# Before the first import of mlflow, which starts sending usage data.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
