"""What the tests of the service are made of: a checkpoint, uploads, and the offline answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lit_mmpg.cloud.exchange import Anchors, Exchange, LinkConfig
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.link import Download, Upload


def make_cloud_checkpoint(folder: Path, task: str = "open_ended", **cloud: object) -> Path:
    """Train both halves for an epoch on tiny data; returns the cloud half's checkpoint."""
    from tests.integration.conftest import best_checkpoint, fit_both

    fit_both(folder, task, epochs=3, **cloud)
    return best_checkpoint(folder, "cloud")


def make_uploads(
    count: int,
    info: dict,
    seed: int = 0,
    codec: str = "int8",
    clips: tuple[int, int] = (1, 8),
    frames: tuple[int, int] = (1, 24),
    anchors: tuple[int, int] = (1, 4),
    prefix: str = "device-",
) -> list[Upload]:
    """Uploads of devices with contexts of many sizes; ``info`` as ``/v1/info`` gives it."""
    rng = np.random.default_rng(seed)
    uploads = []
    for number in range(count):
        c, k = int(rng.integers(clips[0], clips[1] + 1)), int(rng.integers(anchors[0], anchors[1] + 1))
        num_frames = rng.integers(frames[0], frames[1] + 1, c)
        mask = np.arange(k) < np.minimum(num_frames, rng.integers(1, k + 1, c))[:, None]
        uploads.append(
            Upload.encode(
                anchors=rng.normal(size=(c, k, info["anchor_width"])),
                anchor_mask=mask,
                positions=np.sort(rng.random((c, k)), -1) * mask,
                num_frames=num_frames,
                device_id=f"{prefix}{number}",
                codec=codec,
                checkpoint_digest=info["checkpoint_digest"],
                spec_digest=info["spec_digest"],
            )
        )
    return uploads


def offline(module: CloudModule, uploads: Sequence[Upload], download_codec: str) -> list[dict[str, np.ndarray]]:
    """What each device loads when its anchors pass through the evaluation's own exchange, alone."""
    results = []
    for upload in uploads:
        link = LinkConfig(upload.codec, download_codec)
        exchange = Exchange(link, module.network.spec, "0" * 64)
        anchors = Anchors(
            torch.from_numpy(upload.anchors)[None],
            torch.from_numpy(upload.positions)[None],
            torch.from_numpy(upload.anchor_mask)[None],
            torch.from_numpy(upload.num_frames)[None],
        )
        with torch.inference_mode():
            loaded = exchange(anchors, [upload.device_id], module.serve)
        results.append({e.name: t[0].numpy() for e, t in zip(module.network.spec, loaded, strict=True)})
    return results


def same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    """Whether two sets of parameters agree in every bit."""
    return set(found) == set(expected) and all(found[n].tobytes() == expected[n].tobytes() for n in expected)


def loaded(answer: bytes, upload: Upload, module: CloudModule) -> dict[str, np.ndarray]:
    """What a device loads from the bytes of an answer; fails where it would refuse them."""
    download = Download.parse(answer)
    download.check_answers(upload)
    return download.parameters(module.network.spec)
