"""Adaptations as they really happen: anchors and parameters pass through the messages and codecs of the link.

Evaluation uses this, so the accuracy that is reported is the accuracy at the bytes that are reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from lit_mmpg.errors import UserError, closest
from lit_mmpg.link.codecs import codec_names, num_bytes
from lit_mmpg.link.messages import DEFAULT_MAX_BYTES, Download, Upload
from lit_mmpg.link.product import PQ
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.settings import within


@dataclass(frozen=True)
class LinkConfig:
    """Codecs of the link.

    Attributes:
        upload_codec: Codec of the anchors (see :mod:`lit_mmpg.link.codecs`); ``pq`` is the product quantiser that was
            learnt with the cloud half.
        download_codec: Codec of the parameters.
        codebooks: Parts of that quantiser: bytes of an anchor. 0 learns none. Validation measures no loss at
            the default (``docs/results/codebooks.json``).
    """

    upload_codec: str = "int8"
    download_codec: str = "fp16"
    codebooks: int = 12

    def __post_init__(self) -> None:
        """Refuse less than nothing, and codecs that are not there."""
        within("model.link.", 0, codebooks=self.codebooks)
        for way in ("upload", "download"):
            name = getattr(self, f"{way}_codec")
            known = [*codec_names(), *([PQ] if way == "upload" else [])]
            if name not in known:
                raise UserError(
                    f"model.link.{way}_codec is {name!r}{closest(name, known)}; choose from {', '.join(known)}"
                )


def check_download(link: LinkConfig, spec: ParameterSpec) -> None:
    """Check that the parameters of a device fit in a message, before any are learnt.

    Raises:
        UserError: If they do not.
    """
    size = sum(num_bytes(link.download_codec, entry.shape) for entry in spec)
    most = DEFAULT_MAX_BYTES - 64  # less what stands beside them in a message
    if size > most:
        raise UserError(
            f"model.dynamic: the parameters of a device take {size:,} bytes as {link.download_codec}, of which a "
            f"download holds at most {most:,}; lower model.dynamic.rank, or choose fewer layers or a smaller form"
        )


@dataclass(frozen=True, slots=True)
class Anchors:
    """Anchors of the contexts of several devices.

    Attributes:
        features: ``[B, C, K, H]``.
        times: ``[B, C, K]``.
        mask: ``[B, C, K]``.
        num_frames: ``[B, C]`` frames of each clip, 0 for padding.
    """

    features: Tensor
    times: Tensor
    mask: Tensor
    num_frames: Tensor

    def to(self, device: torch.device) -> Anchors:
        """The same on another device."""
        return Anchors(*(getattr(self, field.name).to(device) for field in fields(self)))

    def rows(self, index: list[int]) -> Anchors:
        """Some of the devices, in this order."""
        return Anchors(*(getattr(self, field.name)[index] for field in fields(self)))

    def trimmed(self) -> Anchors:
        """Without the clips and anchors that are padding for every device."""
        clips = int((self.num_frames > 0).any(0).sum())
        count = max(1, int(self.mask.any(0).any(0).sum()))
        features, times, mask = (t[:, :clips, :count] for t in (self.features, self.times, self.mask))
        return Anchors(features, times, mask, self.num_frames[:, :clips])


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's state, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else bytes(str(tensor.item()), "ascii")
        )
    return digest.hexdigest()


class Exchange:
    """Sends contexts up and parameters down, and counts the bytes.

    Args:
        link: Codecs.
        spec: Specification of the parameters.
        checkpoint_digest: Digest of the weights of both halves.
    """

    def __init__(self, link: LinkConfig, spec: ParameterSpec, checkpoint_digest: str) -> None:
        self.link, self.spec, self.checkpoint_digest = link, spec, checkpoint_digest
        self.adaptations = 0
        self._upload_bytes = 0
        self._download_bytes = 0
        self._upload_payload_bytes = 0
        self._download_payload_bytes = 0

    @property
    def upload_bytes(self) -> float:
        """Mean bytes of an upload message."""
        return self._upload_bytes / max(1, self.adaptations)

    @property
    def download_bytes(self) -> float:
        """Mean bytes of a download message."""
        return self._download_bytes / max(1, self.adaptations)

    @property
    def upload_payload_bytes(self) -> float:
        """Mean bytes of the encoded tensors of an upload."""
        return self._upload_payload_bytes / max(1, self.adaptations)

    @property
    def download_payload_bytes(self) -> float:
        """Mean bytes of the encoded tensors of a download."""
        return self._download_payload_bytes / max(1, self.adaptations)

    def __call__(
        self, anchors: Anchors, device_ids: list[str], generate: Callable[[Anchors], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Parameters for each device as it would load them.

        A device without a context sends nothing: it gets what the cloud generates from nothing, which is the same for
        all devices and needs no message.

        Args:
            anchors: What the devices know.
            device_ids: Their names.
            generate: The cloud's computation on the anchors as received.

        Returns:
            Tensors of the specification with leading dimension B.
        """
        known = (anchors.num_frames > 0).any(-1).tolist()
        uploads = {b: self._upload(anchors, b, name) for b, name in enumerate(device_ids) if known[b]}
        received = {b: Upload.from_bytes(data) for b, data in uploads.items()}
        device = anchors.features.device

        def stack(arrays: dict[int, np.ndarray], like: Tensor) -> Tensor:
            result = torch.zeros_like(like)
            for b, array in arrays.items():
                result[b, : len(array)] = torch.from_numpy(array).to(device=device, dtype=like.dtype)
            return result

        arrived = Anchors(
            stack({b: u.anchors for b, u in received.items()}, anchors.features),
            stack({b: u.positions for b, u in received.items()}, anchors.times),
            stack({b: u.anchor_mask for b, u in received.items()}, anchors.mask),
            stack({b: u.num_frames for b, u in received.items()}, anchors.num_frames),
        )
        generated = generate(arrived)
        loaded = []
        for b in range(len(device_ids)):
            own = {e.name: t[b].detach().cpu().numpy() for e, t in zip(self.spec, generated, strict=True)}
            if b not in received:
                loaded.append(own)
                continue
            upload = received[b]
            data = Download.answer(upload, self.spec, own, codec=self.link.download_codec).to_bytes()
            download = Download.parse(data)
            download.check_answers(upload)
            loaded.append(download.parameters(self.spec))
            self._upload_bytes += len(uploads[b])
            self._download_bytes += len(data)
            self._upload_payload_bytes += upload.payload_bytes
            self._download_payload_bytes += download.payload_bytes
            self.adaptations += 1
        return tuple(torch.stack([torch.from_numpy(own[e.name]) for own in loaded]).to(device) for e in self.spec)

    def _upload(self, anchors: Anchors, b: int, name: str) -> bytes:
        real = (anchors.num_frames[b] > 0).cpu().numpy()
        count = int(real.sum())  # padding of the context comes last and is never sent
        return Upload.encode(
            anchors=anchors.features[b, :count].detach().cpu().numpy(),
            anchor_mask=anchors.mask[b, :count].cpu().numpy(),
            positions=anchors.times[b, :count].detach().cpu().numpy(),
            num_frames=anchors.num_frames[b, :count].cpu().numpy(),
            device_id=name,
            codec=self.link.upload_codec,
            checkpoint_digest=self.checkpoint_digest,
            spec_digest=self.spec.digest(),
        ).to_bytes()
