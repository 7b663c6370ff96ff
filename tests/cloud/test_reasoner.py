"""ADR against an independent NumPy computation, and the properties that inference relies on."""

from __future__ import annotations

import numpy as np
import torch

from lit_mmpg.batch import frame_positions
from lit_mmpg.cloud.adaptor import ContextPool
from lit_mmpg.cloud.reasoner import (
    AnchorFrameDistributionReasoner,
    Reconstruction,
    gaussian_kl,
    reconstruction_loss,
)
from lit_mmpg.device.anchors import select_anchors


def clips(lengths: list[int], frames: int = 8, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(frames) < torch.tensor(lengths).unsqueeze(-1)
    return torch.randn(len(lengths), frames, width) * mask.unsqueeze(-1), mask


def test_kl_against_monte_carlo_and_zero_on_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_q, log_q, mean_p, log_p = (0.5 * torch.randn(3, generator=generator) for _ in range(4))
    z = mean_q + (0.5 * log_q).exp() * torch.randn(400_000, 3, generator=generator)

    def log_density(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((z - mean) ** 2 / log_variance.exp() + log_variance).sum(-1)

    estimate = (log_density(mean_q, log_q) - log_density(mean_p, log_p)).mean()
    torch.testing.assert_close(gaussian_kl(mean_q, log_q, mean_p, log_p), estimate, atol=0.01, rtol=0.01)
    assert gaussian_kl(mean_q, log_q, mean_q, log_q) == 0


def test_untrained_mean_is_the_soft_interpolation_of_the_anchors() -> None:
    torch.manual_seed(0)
    frames, mask = clips([8, 5])
    anchors, times, valid = select_anchors(frames, mask, 3)
    reasoner = AnchorFrameDistributionReasoner(6, hidden=16, latent=4)
    result = reasoner(anchors, times, valid, frame_positions(mask), mask)
    sharpness = np.exp(3.0)
    for b in range(2):
        t = frame_positions(mask)[b].numpy()
        weight = np.exp(-sharpness * np.abs(t[:, None] - times[b].numpy()[None])) * valid[b].numpy()
        expected = weight / weight.sum(1, keepdims=True) @ anchors[b].numpy()
        np.testing.assert_allclose(result.mean[b].detach().numpy(), expected, atol=1e-5)
    assert result.kl is None and (result.variance > 0).all()


def test_reconstruction_loss_against_numpy() -> None:
    torch.manual_seed(1)
    frames, mask = clips([8, 5])
    mean, variance = torch.randn_like(frames), torch.rand_like(frames) + 0.1
    loss = reconstruction_loss(Reconstruction(mean, variance, None, None), frames, mask)
    real = mask.numpy()
    error = (frames - mean).numpy()[real] ** 2
    expected = np.mean(error + 0.5 * (np.log(variance.numpy()[real]) + error / variance.numpy()[real]))
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


def test_training_beats_interpolation_on_clips_with_structure() -> None:
    """Clips move on a circle whose phase and speed the anchors tell: a decoder can do better than interpolation."""
    torch.manual_seed(2)
    reasoner = AnchorFrameDistributionReasoner(4, hidden=48, latent=4)
    optimiser = torch.optim.Adam(reasoner.parameters(), 1e-2)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.linspace(0, 1, 12)
        phase, speed = torch.rand(count, 1) * 6.28, 4 + 2 * torch.rand(count, 1)
        angle = phase + speed * t
        return torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), speed.expand_as(angle)], -1), torch.ones(
            count, 12, dtype=torch.bool
        )

    def error(frames: torch.Tensor, mask: torch.Tensor) -> float:
        anchors, times, valid = select_anchors(frames, mask, 4)
        with torch.no_grad():
            result = reasoner(anchors, times, valid, frame_positions(mask), mask)
        return float((result.mean - frames).square().mean())

    held_out = draw(256)
    before = error(*held_out)
    for _ in range(300):
        frames, mask = draw(64)
        anchors, times, valid = select_anchors(frames, mask, 4)
        result = reasoner(anchors, times, valid, frame_positions(mask), mask, frames)
        loss = reconstruction_loss(result, frames, mask) + 1e-3 * result.kl.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert error(*held_out) < 0.5 * before


def test_pool_gives_exact_mixture_moments_and_ignores_padding() -> None:
    torch.manual_seed(3)
    mean, mask = clips([4, 4, 0], frames=4, width=3)
    variance = torch.rand_like(mean)
    pool = ContextPool(3, embedding=0)
    pooled = pool(Reconstruction(mean[None], variance[None], None, None), mask[None])[0]
    samples = mean[:2].reshape(-1, 3).numpy()
    np.testing.assert_allclose(pooled[:3], samples.mean(0), atol=1e-6)
    total = variance[:2].reshape(-1, 3).numpy().mean(0) + samples.var(0)
    np.testing.assert_allclose(pooled[3:], np.sqrt(total), rtol=1e-4)
    noisy = torch.where(mask[..., None], mean, 99.0)
    again = ContextPool(3, 0)(Reconstruction(noisy[None], variance[None], None, None), mask[None])[0]
    torch.testing.assert_close(pooled, again)
