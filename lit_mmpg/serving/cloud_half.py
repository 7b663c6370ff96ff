"""The cloud half of a checkpoint, ready to answer uploads: reasoner and adaptor, no device model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_mmpg.checkpoint import load_module
from lit_mmpg.cloud.adaptor import ContextPool
from lit_mmpg.cloud.codebooks import resolve
from lit_mmpg.cloud.exchange import Anchors
from lit_mmpg.cloud.generation import generate, is_invariant
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.errors import UserError
from lit_mmpg.link import codec_names, model_digest
from lit_mmpg.link.messages import Download, Upload
from lit_mmpg.link.product import PQ
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.serving.config import ContextLimits
from lit_mmpg.serving.errors import Refused


class CloudHalf:
    """Answers uploads. Keeps nothing between calls, so any replica can answer any device.

    A device's download has the same bits whatever else is in the batch, and the same as in
    :class:`lit_mmpg.cloud.exchange.Exchange` (see :mod:`lit_mmpg.cloud.generation`). Where the machine does not allow
    it (measured at the start), uploads are computed one at a time.

    Args:
        module: Cloud module with its weights.
        download_codec: Codec of the parameters; the checkpoint's own by default.
        device: Where to compute; a GPU if there is one by default.
        limits: How much context an upload may bring.
        run_id: MLflow run that trained it.

    Raises:
        UserError: If the codec or the device does not exist, or the module uses no context of the device.
    """

    def __init__(
        self,
        module: CloudModule,
        download_codec: str | None = None,
        device: str | None = None,
        limits: ContextLimits = ContextLimits(),
        run_id: str | None = None,
    ) -> None:
        self.download_codec = module.link.download_codec if download_codec is None else download_codec
        if not isinstance(module.pool, ContextPool) or module.cloud_config.place == "device":
            raise UserError("this checkpoint is a control that no device sends anything to; serve a trained cloud half")
        if self.download_codec not in codec_names() or self.download_codec.startswith(PQ):
            raise UserError(
                f"--download-codec {self.download_codec} does not exist; choose from {', '.join(codec_names())}"
            )
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device!r} is not usable here ({error}); use cpu") from error
        self.limits = limits
        self.spec: ParameterSpec = module.network.spec
        self.spec_digest, self.checkpoint_digest = self.spec.digest(), module.digest()
        self.model_digest = model_digest(self.checkpoint_digest, self.spec_digest)
        self.upload_codec = resolve(module.link, module.quantiser).upload_codec
        self.width: int = module.network.anchor_width
        self.run_id = run_id
        self._reasoner = None if module.reasoner is None else module.reasoner.to(self.device)
        self._pool: ContextPool = module.pool.to(self.device)
        self._adaptor = module.adaptor.to(self.device)
        self.batches = self.can_batch()

    @classmethod
    def load(
        cls,
        path: str | Path,
        download_codec: str | None = None,
        device: str | None = None,
        limits: ContextLimits = ContextLimits(),
    ) -> CloudHalf:
        """Load a checkpoint of the cloud half.

        Raises:
            UserError: If the checkpoint, the codec or the device is not usable.
        """
        module, run_id = load_module(path, CloudModule)
        return cls(module, download_codec, device, limits, run_id)

    def can_batch(self) -> bool:
        """Whether several uploads have the same bits together as alone, with this machine and as many threads."""
        with torch.inference_mode():
            return is_invariant(self.compute, self.width, self.device)

    def compute(self, anchors: Anchors) -> tuple[Tensor, ...]:
        """Parameters from anchors; see :func:`lit_mmpg.cloud.generation.generate`."""
        return generate(self._reasoner, self._pool, self._adaptor, anchors)

    def check(self, upload: Upload) -> None:
        """Check that this checkpoint can answer an upload.

        Raises:
            Refused: 409 for another checkpoint or specification, 422 for a context of another width or too large.
        """
        if upload.model != self.model_digest:
            raise Refused(
                409,
                "model",
                f"the device holds model {upload.model[:12]}, this service has {self.model_digest[:12]} (checkpoint "
                f"{self.checkpoint_digest[:12]}); export the bundle again from that checkpoint",
            )
        clips, anchors, width = upload.anchor_shape
        if width != self.width:
            raise Refused(422, "width", f"anchors have {width} values, this checkpoint expects {self.width}")
        frames = int(upload.num_frames.sum())
        limits = self.limits
        if clips > limits.clips or anchors > limits.anchors or frames > limits.frames:
            raise Refused(
                422,
                "context_too_large",
                f"{clips} clips with {anchors} anchors and {frames} frames; at most {limits.clips} clips, "
                f"{limits.anchors} anchors per clip and {limits.frames} frames are accepted",
            )

    def generate(self, uploads: Sequence[Upload]) -> list[Download]:
        """Answer uploads of any mixture of context lengths and anchor counts.

        Raises:
            Refused: If :meth:`check` refuses one of them.
        """
        for upload in uploads:
            self.check(upload)
        if not uploads:
            return []
        downloads: list[Download] = []
        for group in [uploads] if self.batches else [[upload] for upload in uploads]:
            with torch.inference_mode():
                tensors = [tensor.cpu().numpy() for tensor in self.compute(stack(group).to(self.device))]
            parameters = dict(zip(self.spec.names, tensors, strict=True))
            downloads += Download.answer_all(group, self.spec, parameters, codec=self.download_codec)
        return downloads


def stack(uploads: Sequence[Upload]) -> Anchors:
    """The anchors of several uploads in one batch, padded to the largest."""
    shapes = [upload.anchor_shape for upload in uploads]
    clips, count = max(s[0] for s in shapes), max(s[1] for s in shapes)
    features = np.zeros((len(uploads), clips, count, shapes[0][2]), np.float32)
    times = np.zeros(features.shape[:3], np.float32)
    mask = np.zeros(features.shape[:3], bool)
    num_frames = np.zeros(features.shape[:2], np.int64)
    for row, (upload, (c, k, _)) in enumerate(zip(uploads, shapes, strict=True)):
        features[row, :c, :k], times[row, :c, :k] = upload.anchors, upload.positions
        mask[row, :c, :k], num_frames[row, :c] = upload.anchor_mask, upload.num_frames
    return Anchors(*(torch.from_numpy(array) for array in (features, times, mask, num_frames)))
