"""The cloud half in the process of its devices: what a service answers, without a service."""

from __future__ import annotations

from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.link import Download, Upload
from lit_mmpg.runtime.client import CloudError, Traffic
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.errors import Refused


class CloudHere:
    """The cloud half of a checkpoint in this process. Messages are encoded and checked as those of a service are.

    Args:
        module: The cloud half with its weights, on the CPU.
    """

    def __init__(self, module: CloudModule) -> None:
        self._module = module
        self._half: CloudHalf | None = None

    def adapt(self, upload: Upload) -> tuple[Download, Traffic]:
        """The download that answers an upload; nothing crosses a wire.

        Raises:
            CloudError: If the cloud half refuses the upload.
            UserError: If it is a control that no device sends anything to.
        """
        if self._half is None:
            self._half = CloudHalf(self._module, device="cpu")
        body = upload.to_bytes()
        try:
            data = self._half.generate([Upload.from_bytes(body)])[0].to_bytes()
        except Refused as error:
            raise CloudError("refused", error.detail, lasting=True) from error
        download = Download.parse(data)
        download.check_answers(upload)
        return download, Traffic(upload.payload_bytes, download.payload_bytes, len(body), len(data), 0, 0)
