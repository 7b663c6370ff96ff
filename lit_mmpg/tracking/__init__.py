"""MLflow: where runs are kept, the logger, and the web page."""

from __future__ import annotations

import os

# Before the first import of mlflow, which starts sending usage data. The verbs print the links themselves, and a server
# that is away costs seconds, not minutes.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}.items():
    os.environ.setdefault(_name, _value)
