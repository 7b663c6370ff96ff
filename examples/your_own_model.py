# %% [markdown]
# # Your own device model
#
# Any network that keeps the contract of `lit_mmpg.device.contract` can be adapted: it says how frames become features,
# what may be uploaded, and how questions are answered. Layers that `self.linear` makes take generated parameters where
# the configuration says so. No file of lit-mmpg changes.

# %%
from functools import partial

import lightning as L
import torch
from torch import nn

import lit_mmpg
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.contract import DeviceModel, DynamicConfig, Shapes
from lit_mmpg.device.module import DeviceModule


class Colours(DeviceModel):
    """Mean colours of each frame, and a bag of words."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None = None, width: int = 8):  # the types are read
        super().__init__(shapes, dynamic)
        self.colours = self.linear("colours", 3, width)
        self.words = nn.Embedding(shapes.words, width, padding_idx=0)
        self.answers = self.linear("answers", 2 * width, shapes.answers)

    feature_width = 3  # of one frame, raw
    anchor_width = property(lambda self: self.words.embedding_dim)  # of one frame, uploaded

    def encode_frames(self, frames):  # [..., 3, H, W] uint8 to [..., 3]
        return frames.float().mean((-1, -2)) / 255

    def project(self, features, parameters=(), corrected=True):  # [..., T, 3] to [..., T, width]
        return self.colours(features, self.own("colours", parameters)).tanh()

    def answer(self, frames, mask, text, parameters=()):  # to [..., answers]
        weight = mask.unsqueeze(-1).to(frames.dtype)
        seen = (frames * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        asked = self.words(text.squeeze(-2)).sum(-2)
        return self.answers(torch.cat([seen, asked], -1), self.own("answers", parameters))


# %% [markdown]
# Both halves are trained by a plain Lightning trainer, here for seconds on very few embedded clips: first the device
# model alone, then the cloud half that generates parameters for two of its layers.

# %%
clips = PersonalClipsConfig(
    train_devices=4, val_devices=2, test_devices=2, train_clips=6, seen_clips=2, unseen_clips=4, image_size=24
)
data = PersonalClipsData(clips, "clips", batch=BatchShape(devices=2, clips=2, items_per_clip=3, context_clips=2))


def train(module, checkpoint):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(checkpoint)


train(DeviceModule.for_data(data, network=partial(Colours, width=6)), "device.ckpt")
dynamic = DynamicConfig(("colours", "answers"), "low_rank", rank=2)
cloud = CloudModule.for_data(data, device_ckpt="device.ckpt", dynamic=dynamic)
train(cloud, "cloud.ckpt")
print(cloud.network.spec.size, "generated numbers for each device:", *cloud.network.spec.names)

# %% [markdown]
# A folder of JSON and safetensors holds it all. It names the class, and a program that loads it has to import the
# module of the class first: files never decide what is imported.

# %%
cloud.save_pretrained("colours")
device = lit_mmpg.load("colours").new_device("kitchen")
frames = data.corpus.frames
film = [frames.frames(clip) for clip in frames.ids()[:3]]  # [T, 3, H, W] uint8 each
before = device.answer(film[0], "what is mine")
for clip in film:
    device.observe(clip)
outcome = device.personalise()
after = device.answer(film[0], "what is mine")
print(f"{before.text} ({before.confidence:.1%}), then {after.text} ({after.confidence:.1%})")
assert after.parameters == outcome.digest and after.scores != before.scores
