"""The same cloud half behind LitServe, for comparison.

    python -m lit_mmpg.profiling.benchmarks.litserve_app CKPT PORT

Run by :mod:`lit_mmpg.profiling.benchmarks.serving_load` in an environment of its own; LitServe is no dependency of
this project. It reads annotations as objects, so they are not postponed here.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import litserve
import torch
from fastapi import Body
from fastapi.responses import Response

from lit_mmpg.link import Upload
from lit_mmpg.serving.cloud_half import CloudHalf

OCTETS = "application/octet-stream"


class Api(litserve.LitAPI):
    """Uploads in, downloads out, as bytes: nothing passes through JSON."""

    def setup(self, device: str) -> None:
        """Load the checkpoint in the inference process."""
        torch.set_num_threads(1)
        self.half = CloudHalf.load(sys.argv[1], device="cpu")

    def decode_request(self, request: Annotated[bytes, Body(media_type=OCTETS)]) -> Upload:
        """Parse one body."""
        return Upload.from_bytes(request)

    def batch(self, inputs: Sequence[Upload]) -> list[Upload]:
        """Uploads of any sizes go together."""
        return list(inputs)

    def predict(self, x: Sequence[Upload] | Upload) -> list[bytes]:
        """Answer a batch."""
        uploads = [x] if isinstance(x, Upload) else list(x)
        return [download.to_bytes() for download in self.half.generate(uploads)]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """One answer per upload."""
        return output

    def encode_response(self, output: Any) -> Response:
        """The bytes as they are."""
        return Response(output, media_type=OCTETS)


if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.001, api_path="/v1/adapt")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
