"""The exchange of messages: what a device loads, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_mmpg.cloud.codebooks import learn_codebooks
from lit_mmpg.cloud.exchange import Anchors, Exchange, LinkConfig, state_digest
from lit_mmpg.errors import UserError
from lit_mmpg.link.messages import Download, Upload
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

SPEC = ParameterSpec((ParameterEntry("head.u", (3, 2)), ParameterEntry("head.c", (3,))))
K, H = 2, 4


def make_anchors(clips: list[int], width: int = 3) -> Anchors:
    """Devices with these numbers of clips of five frames."""
    rng = torch.Generator().manual_seed(0)
    real = torch.arange(width) < torch.tensor(clips)[:, None]
    mask = real.unsqueeze(-1).expand(-1, -1, K)
    features = torch.randn(len(clips), width, K, H, generator=rng) * mask.unsqueeze(-1)
    return Anchors(features, torch.tensor([0.0, 1.0]) * mask, mask, 5 * real)


def generate(anchors: Anchors) -> tuple[Tensor, ...]:
    """Parameters from which one can tell what arrived: the sum over all anchors, and a constant."""
    total = anchors.features.sum((1, 2, 3)) + 1
    return total[:, None, None].expand(-1, 3, 2), (anchors.num_frames.sum(1, keepdim=True)).expand(-1, 3).float()


def test_parameters_are_those_of_what_arrived() -> None:
    exchange = Exchange(LinkConfig("fp32", "fp32"), SPEC, "d" * 64)
    anchors = make_anchors([3, 1])
    u, c = exchange(anchors, ["a", "b"], generate)
    expected = generate(anchors)
    torch.testing.assert_close(u, expected[0].contiguous())
    torch.testing.assert_close(c, expected[1].contiguous())
    assert exchange.adaptations == 2


def test_bytes_are_the_lengths_of_the_messages() -> None:
    exchange = Exchange(LinkConfig(), SPEC, "d" * 64)
    anchors = make_anchors([2])
    parameters = exchange(anchors, ["a"], generate)
    upload = Upload.encode(
        anchors=anchors.features[0, :2].numpy(),
        anchor_mask=anchors.mask[0, :2].numpy(),
        positions=anchors.times[0, :2].numpy(),
        num_frames=anchors.num_frames[0, :2].numpy(),
        device_id="a",
        codec="int8",
        checkpoint_digest="d" * 64,
        spec_digest=SPEC.digest(),
    )
    own = {e.name: t[0].numpy() for e, t in zip(SPEC, parameters, strict=True)}
    assert exchange.upload_bytes == len(upload.to_bytes())
    assert exchange.upload_payload_bytes == upload.payload_bytes
    assert exchange.download_payload_bytes == 2 * 3 * 2 + 2 * 3  # fp16: u and c
    assert exchange.download_bytes == len(Download.answer(upload, SPEC, own, codec="fp16").to_bytes())


def test_a_device_without_context_sends_nothing() -> None:
    mixed, alone = (Exchange(LinkConfig("fp32", "fp32"), SPEC, "d" * 64) for _ in range(2))
    u, c = mixed(make_anchors([2, 0]), ["a", "b"], generate)
    alone(make_anchors([2]), ["a"], generate)
    assert mixed.adaptations == alone.adaptations == 1
    assert mixed.upload_bytes == alone.upload_bytes and mixed.download_bytes == alone.download_bytes
    np.testing.assert_array_equal(u[1], np.ones((3, 2)))
    assert not c[1].any() and c[0].any()
    nobody = Exchange(LinkConfig(), SPEC, "d" * 64)
    assert nobody(make_anchors([0, 0]), ["a", "b"], generate)[0].shape == (2, 3, 2)
    assert nobody.adaptations == 0 and nobody.upload_bytes == 0


def test_the_digest_follows_the_weights() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    before = state_digest(layer)
    assert before == state_digest(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert state_digest(layer) != before


def test_a_network_that_diverged_is_said_before_codebooks_are_learnt() -> None:
    anchors = np.ones((40, 8), np.float32)
    anchors[3, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        learn_codebooks([anchors[:20], anchors[20:]], LinkConfig(codebooks=4))
