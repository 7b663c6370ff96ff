"""AnchorFrame Distribution Reasoner (ADR): from a few anchor frames to the distribution of the whole clip's features.

Reconstruction: the paper names the module and its purpose; the equations here are ours. A conditional variational model
per clip: a posterior that sees all frames (training only), a prior that sees the anchors, and a decoder that places a
mean and a variance at every frame time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What the reasoner says about clips.

    Attributes:
        mean: ``[..., T, H]`` reconstructed features at the times of all frames.
        variance: ``[..., T, H]`` their variances.
        kl: ``[...]`` KL(posterior || prior) per clip in nats, or ``None`` outside training.
        posterior: Mean and variance decoded from a sample of the posterior, or ``None`` outside training.
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor | None
    posterior: tuple[Tensor, Tensor] | None


class _ClipGaussian(nn.Module):
    """A diagonal Gaussian over the clip latent, from a set of frames with their times."""

    def __init__(self, width: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(width + 1, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.output = nn.Sequential(nn.GELU(), nn.Linear(hidden, 2 * latent))

    def forward(self, frames: Tensor, times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.frame(torch.cat([frames, times.unsqueeze(-1)], -1))
        weight = mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        mean, log_variance = self.output(pooled).chunk(2, -1)
        return mean, log_variance.clamp(-8, 8)


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) of diagonal Gaussians, summed over the last dimension, in nats."""
    ratio = (log_variance_q - log_variance_p).exp()
    distance = (mean_q - mean_p).square() / log_variance_p.exp()
    return 0.5 * (ratio + distance - 1 - log_variance_q + log_variance_p).sum(-1)


class AnchorFrameDistributionReasoner(nn.Module):
    """ADR: anchors in, the distribution of all frames out.

    The mean starts as an interpolation of the anchors in time (a softmax over time distances with a learned width) and
    the decoder learns a correction that is zero at first, so an untrained reasoner is never worse than interpolation.

    Args:
        width: Width H of the projected features.
        hidden: Width of the hidden layers.
        latent: Size of the clip latent z; 0 makes a deterministic reasoner without posterior, prior and KL.
    """

    def __init__(self, width: int, hidden: int = 128, latent: int = 16) -> None:
        super().__init__()
        self.latent = latent
        if latent:
            self.prior = _ClipGaussian(width, hidden, latent)
            self.posterior = _ClipGaussian(width, hidden, latent)
        self.log_sharpness = nn.Parameter(torch.tensor(3.0))
        self.decoder = nn.Sequential(
            nn.Linear(2 * width + 3 + latent, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.correction = nn.Linear(hidden, width)
        self.log_variance = nn.Linear(hidden, width)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -2.0)

    def forward(
        self,
        anchors: Tensor,
        anchor_times: Tensor,
        anchor_mask: Tensor,
        frame_times: Tensor,
        frame_mask: Tensor,
        frames: Tensor | None = None,
    ) -> Reconstruction:
        """Reconstruct clips.

        Args:
            anchors: ``[..., K, H]`` anchor features.
            anchor_times: ``[..., K]`` times of the anchors, 0 to 1.
            anchor_mask: ``[..., K]``.
            frame_times: ``[..., T]`` times of all frames (they travel with the anchors).
            frame_mask: ``[..., T]``.
            frames: ``[..., T, H]`` true features; given in training only. ``mean`` is decoded
                from the prior mean even then: it is what inference will have.

        Returns:
            The reconstruction.
        """
        gap = (frame_times.unsqueeze(-1) - anchor_times.unsqueeze(-2)).abs()
        score = (-self.log_sharpness.exp() * gap).masked_fill(~anchor_mask.unsqueeze(-2), -1e4)
        base = torch.matmul(score.softmax(-1), anchors)
        weight = anchor_mask.unsqueeze(-1).to(anchors.dtype)
        centre = (anchors * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
        nearest = gap.masked_fill(~anchor_mask.unsqueeze(-2), 1.0).amin(-1, keepdim=True)
        times = frame_times.unsqueeze(-1)
        known = torch.cat([base, centre.expand_as(base), times, times * times, nearest], -1)
        if not self.latent:
            return Reconstruction(*self._decode(base, known, None), None, None)
        mean_p, log_variance_p = self.prior(anchors, anchor_times, anchor_mask)
        mean, variance = self._decode(base, known, mean_p)
        if frames is None:
            return Reconstruction(mean, variance, None, None)
        mean_q, log_variance_q = self.posterior(frames, frame_times, frame_mask)
        sample = mean_q + (0.5 * log_variance_q).exp() * torch.randn_like(mean_q)
        kl = gaussian_kl(mean_q, log_variance_q, mean_p, log_variance_p)
        return Reconstruction(mean, variance, kl, self._decode(base, known, sample))

    def _decode(self, base: Tensor, known: Tensor, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        if latent is not None:
            known = torch.cat([known, latent.unsqueeze(-2).expand(*known.shape[:-1], self.latent)], -1)
        hidden = self.decoder(known)
        # The variance reads the trunk but does not steer it: its likelihood has steep gradients that would drown those
        # of the mean (measured: with them the mean does not improve on interpolation at all).
        return base + self.correction(hidden), self.log_variance(hidden.detach()).clamp(-8, 4).exp()


def reconstruction_loss(reconstruction: Reconstruction, frames: Tensor, mask: Tensor) -> Tensor:
    """Masked mean of the squared error, plus the Gaussian likelihood that fits the variance to that error.

    In training with a latent, both the decode from the prior mean (what inference uses) and the one from a posterior
    sample (what the KL term ties to it) are scored.

    Args:
        reconstruction: Output of the reasoner.
        frames: ``[..., T, H]`` true features (normalised, so errors are in standard units).
        mask: ``[..., T]``.

    Returns:
        Scalar.
    """
    weight = mask.unsqueeze(-1).to(frames.dtype).expand_as(frames)
    total = weight.sum().clamp(min=1)
    decodes = [(reconstruction.mean, reconstruction.variance)]
    if reconstruction.posterior is not None:
        decodes.append(reconstruction.posterior)
    loss = frames.new_zeros(())
    for mean, variance in decodes:
        error = (frames - mean).square()
        # The likelihood moves the variance only: through the mean it would let large variances excuse poor means.
        likelihood = 0.5 * (variance.log() + error.detach() / variance)
        loss = loss + ((error + likelihood) * weight).sum() / total
    return loss / len(decodes)
