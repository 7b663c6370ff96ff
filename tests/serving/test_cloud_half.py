"""The cloud half: the bits of the offline computation, whoever else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.cloud.exchange import Anchors
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.errors import UserError
from lit_mmpg.serving.cloud_half import CloudHalf, stack
from lit_mmpg.serving.config import ContextLimits
from lit_mmpg.serving.errors import Refused
from tests.serving.making import make_uploads, offline, same_bits


@pytest.fixture(scope="module")
def half(checkpoint: Path) -> CloudHalf:
    return CloudHalf.load(checkpoint, device="cpu")


def info(half: CloudHalf) -> dict:
    return {
        "anchor_width": half.width,
        "checkpoint_digest": half.checkpoint_digest,
        "spec_digest": half.spec_digest,
    }


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_any_batch_gives_the_bits_of_the_offline_exchange(half: CloudHalf, module: CloudModule, codec: str) -> None:
    half.download_codec = codec
    uploads = make_uploads(70, info(half))
    expected = offline(module, uploads, codec)
    assert half.batches
    for size in (1, 2, 3, 7, 31, 70):
        order = random.Random(size).sample(range(len(uploads)), len(uploads))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for row, download in zip(rows, half.generate([uploads[r] for r in rows]), strict=True):
                download.check_answers(uploads[row])
                assert same_bits(download.parameters(half.spec), expected[row]), (size, row)
    # Different devices do get different parameters, so the comparison means something.
    assert len({p["head.c"].tobytes() for p in expected}) == len(uploads)


def test_a_plain_forward_pass_would_not(half: CloudHalf, module: CloudModule) -> None:

    def plain(anchors: Anchors) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            reconstruction, mask = module.reconstruct(anchors)
            return module.adaptor(module.pool(reconstruction, mask))

    uploads = make_uploads(40, info(half), seed=3)
    together = plain(stack(uploads))
    alone = [plain(stack([upload])) for upload in uploads]
    found = half.compute(stack(uploads))
    for entry, (whole, ours) in enumerate(zip(together, found, strict=True)):
        torch.testing.assert_close(whole, ours, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole, torch.cat([single[entry] for single in alone]), rtol=1e-4, atol=1e-5)
    differs = [not torch.equal(w, torch.cat([a[e] for a in alone])) for e, w in enumerate(together)]
    if not any(differs):
        pytest.skip("on this machine even plain forward passes agree in every bit")


def test_contexts_without_anchors_or_frames_in_some_clips(
    half: CloudHalf, module: CloudModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "download_codec", "fp32")
    upload = make_uploads(1, info(half), clips=(5, 5), anchors=(3, 3))[0]
    mask, frames = upload.anchor_mask.copy(), upload.num_frames.copy()
    mask[1], mask[3], frames[3] = False, False, 0  # a clip that says only how long it is, and an empty one
    odd = type(upload).encode(
        anchors=upload.anchors, anchor_mask=mask, positions=upload.positions, num_frames=frames, device_id="odd",
        codec="fp32", checkpoint_digest=half.checkpoint_digest, spec_digest=half.spec_digest,
    )  # fmt: skip
    with torch.inference_mode():
        reconstruction, seen = module.reconstruct(stack([odd]))
        expected = module.adaptor(module.pool(reconstruction, seen))
    found = half.generate([odd, *make_uploads(5, info(half))])[0].parameters(half.spec)
    for entry, tensor in zip(half.spec, expected, strict=True):
        np.testing.assert_allclose(found[entry.name], tensor[0].numpy(), rtol=1e-4, atol=1e-5)


def test_devices_without_a_context_are_served_the_same(module: CloudModule) -> None:
    """An evaluation may batch devices that know nothing yet; what the cloud makes of nothing is one thing."""
    width = module.network.anchor_width
    empty = Anchors(
        torch.zeros(3, 2, 2, width), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.bool),
        torch.zeros(3, 2, dtype=torch.int64),
    )  # fmt: skip
    with torch.inference_mode():
        found, expected = module.serve(empty), module.generate(empty)
    for tensor, other in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(tensor[0], tensor[2])


def test_nobody_asks_nobody_is_answered(half: CloudHalf) -> None:
    assert half.generate([]) == []


@pytest.mark.parametrize("other", ["checkpoint_digest", "spec_digest"])
def test_other_halves_are_refused(half: CloudHalf, other: str) -> None:
    uploads = [*make_uploads(1, info(half)), *make_uploads(1, info(half) | {other: "0" * 64})]
    with pytest.raises(Refused, match="export the bundle again") as caught:
        half.generate(uploads)
    assert (caught.value.status, caught.value.error) == (409, "model")


def test_contexts_that_cost_too_much_are_refused(half: CloudHalf, checkpoint: Path) -> None:
    small = CloudHalf.load(checkpoint, device="cpu", limits=ContextLimits(clips=3, anchors=2, frames=40))
    shapes = {
        "clips": {"clips": (4, 4)},
        "anchors": {"anchors": (3, 3), "clips": (2, 2)},
        "frames": {"frames": (21, 21), "clips": (2, 2), "anchors": (1, 1)},
    }
    for over in shapes.values():
        with pytest.raises(Refused, match="at most") as caught:
            small.check(make_uploads(1, info(half), **over)[0])
        assert caught.value.status == 422
    small.check(make_uploads(1, info(half), clips=(2, 2), frames=(20, 20), anchors=(2, 2))[0])
    # 64 thousand frames of every clip cost nothing to ask for: they must cost nothing to refuse.
    with pytest.raises(Refused, match="65535 frames"):
        half.check(make_uploads(1, info(half), frames=(65535, 65535), clips=(1, 1))[0])
    wide = make_uploads(1, info(half) | {"anchor_width": half.width + 1})[0]
    with pytest.raises(Refused, match=f"expects {half.width}"):
        half.check(wide)


def test_mistakes_are_told_plainly(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; choose from"):
        CloudHalf.load(checkpoint, download_codec="zip")
    with pytest.raises(UserError, match="not usable here"):
        CloudHalf.load(checkpoint, device="cuda:99")
    with pytest.raises(UserError, match="does not exist"):
        CloudHalf.load(tmp_path / "none.ckpt")
    device = next(p for p in checkpoint.parents[2].glob("*/checkpoints/best.ckpt") if p != checkpoint)
    with pytest.raises(UserError, match="holds the device half, expected the cloud half"):
        CloudHalf.load(device)
