# %% [markdown]
# # Adapt a device
#
# A trained system in this process: a device observes what it films, the cloud half generates its personal parameters
# from a few anchor frames, and the device answers with them. No backward pass runs.
#
# `best.ckpt` is what `lit-mmpg fit` ends with, here of a model that answers questions and starts from pixels; `clips`
# is a folder of video files. A model that was trained on features of a frame encoder takes
# `load("best.ckpt", frame_encoder="FOLDER")`.

# %%
import os
from pathlib import Path

import lit_mmpg

system = lit_mmpg.load("best.ckpt")
clips = sorted(Path("clips").glob("*.mp4"))
question = "what is mine"

# %%
device = system.new_device("kitchen")
before = device.answer(clips[0], question)
for clip in clips:
    device.observe(clip)
outcome = device.personalise()
after = device.answer(clips[0], question)
print(f"{before.text} ({before.confidence:.0%}), then {after.text} ({after.confidence:.0%})")

# %% [markdown]
# What it cost: the anchors of the latest clips went up, the parameters came down. The digest says which parameters an
# answer is of.

# %%
print(outcome.traffic.upload_message_bytes, "bytes up,", outcome.traffic.download_message_bytes, "bytes down")
print(f"{outcome.cloud_ms:.0f} ms in the cloud, parameters {outcome.digest[:12]}")
assert after.parameters == outcome.digest

# %% [markdown]
# The same against a service, which `lit-mmpg serve --ckpt best.ckpt` starts: the parameters are the same to the bit.

# %%
address = os.environ.get("CLOUD")  # such as http://127.0.0.1:8400
if address:
    remote = device.personalise(cloud=address)
    print(remote.traffic.upload_wire_bytes, "bytes up on the wire")
    assert remote.digest == outcome.digest

# %% [markdown]
# The static model again, which remembers nothing of the clips.

# %%
device.reset()
assert device.answer(clips[0], question) == before
