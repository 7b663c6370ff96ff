"""Controls that work on pixels: colours aligned before the encoder, and a small JPEG sent up instead of parameters."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_mmpg.batch import Frames
from lit_mmpg.device.anchors import select_anchors
from lit_mmpg.device.evaluation import Cost
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, State, Subject
from lit_mmpg.methods.normalisation import training_frames

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


def channel_moments(frames: Frames) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each colour channel over all real frames of a device.

    Args:
        frames: ``[B, M, T, 3, H, W]`` uint8.

    Returns:
        ``[B, 3]`` each, in grey levels 0 to 255; 0 for a device without frames.
    """
    values = frames.values.to(torch.float32)
    weight = frames.mask.to(torch.float32)
    count = weight.sum((1, 2)).clamp(min=1).unsqueeze(1)
    mean = (values.mean((-2, -1)) * weight.unsqueeze(-1)).sum((1, 2)) / count
    square = (values.square().mean((-2, -1)) * weight.unsqueeze(-1)).sum((1, 2)) / count
    return mean, (square - mean.square()).clamp(min=0).sqrt()


class PixelColourAlignment(AdaptationMethod):
    """Each device's colour channels are matched to those of training before the encoder sees a frame.

    ``moments``: mean and standard deviation of each channel over the support (Reinhard et al., "Color Transfer between
    Images", 2001, in RGB). ``grey_world``: the channels' means are made as unequal as those of training, without
    touching brightness and contrast (Buchsbaum, "A spatial processor model for object colour perception", 1980).
    ``strength`` blends with the frames as they are.
    """

    name = "pixel_colour_alignment"
    paper = "control (Reinhard et al. 2001; Buchsbaum 1980)"
    setting = "control"
    needs_pixels = True
    grid: ClassVar = {"rule": ("moments", "grey_world"), "strength": (0.5, 1.0)}

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        means, squares, count = torch.zeros(3), torch.zeros(3), 0.0
        for frames in training_frames(data):
            mean, deviation = channel_moments(frames)
            frames_here = float(frames.mask.sum())
            means += frames_here * mean[0]
            squares += frames_here * (deviation[0].square() + mean[0].square())
            count += frames_here
        self.mean = means / count
        self.deviation = (squares / count - self.mean.square()).clamp(min=0).sqrt()

    def adapt(self, support: Episode, options: Options) -> State:
        """Gain and offset of each channel, ``[G, 3]`` each."""
        frames = support.batch.frames
        mean, deviation = channel_moments(frames)
        if options["rule"] == "moments":
            gain = (self.deviation + 1) / (deviation + 1)
            offset = self.mean - gain * mean
        else:
            wanted = self.mean / self.mean.mean()
            gain = wanted * mean.mean(1, keepdim=True) / mean.clamp(min=1)
            offset = torch.zeros_like(gain)
        strength = float(options["strength"])
        known = frames.mask.flatten(1).any(1, keepdim=True)
        return {
            "gain": torch.where(known, 1 + strength * (gain - 1), 1.0),
            "offset": torch.where(known, strength * offset, 0.0),
        }

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers on the aligned frames."""
        frames = query.batch.frames
        shape = (-1, 1, 1, 3, 1, 1)
        aligned = frames.values.to(torch.float32) * state["gain"].reshape(shape) + state["offset"].reshape(shape)
        pixels = aligned.round().clamp(0, 255).to(torch.uint8)
        return self.subject.answer(Episode(replace(query.batch, frames=Frames(pixels, frames.mask)), query.parameters))


def jpeg(pixels: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
    """A frame ``[3, H, W]`` uint8 after JPEG of a quality of 1 to 95, and its bytes."""
    with io.BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "JPEG", quality=quality)
        size = file.tell()
        return np.asarray(Image.open(file, formats=["JPEG"])).transpose(2, 0, 1), size


class AnchorJpegUpload(AdaptationMethod):
    """No adaptation: a few anchor frames of each clip go up as JPEG, and the cloud answers.

    The checkpoint is what the cloud answers with; it may be far larger than a device could run. Bytes are those of the
    JPEG files, counted per clip that is asked about; a device's adaptation costs its bytes once for all its clips.
    """

    name = "anchor_jpeg_upload"
    paper = "control"
    setting = "control"
    knows = "nothing"
    needs_pixels = True
    answers_in = "cloud"
    bytes_per = "clip"
    grid: ClassVar = {"anchors": (1,), "quality": (60,)}

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        self._bytes = self._clips = 0

    def sent_bytes(self) -> Cost:
        """Mean bytes of the JPEG files of a clip."""
        return Cost(upload_bytes=self._bytes / max(1, self._clips))

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers from the decoded anchors."""
        frames = query.batch.frames
        flat = frames.values.flatten(3)
        chosen, _, mask = select_anchors(flat, frames.mask, int(options["anchors"]), "uniform")
        pixels = chosen.reshape(*chosen.shape[:3], *frames.values.shape[3:]).numpy().astype(np.uint8)
        for place in np.argwhere(mask.numpy()):
            at = tuple(place)
            pixels[at], size = jpeg(pixels[at], int(options["quality"]))
            self._bytes += size
        self._clips += int(mask.any(-1).sum())
        arrived = Frames(torch.from_numpy(pixels), mask)
        return self.subject.answer(Episode(replace(query.batch, frames=arrived), query.parameters))
