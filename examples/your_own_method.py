# %% [markdown]
# # Your own adaptation method
#
# A method gets a finished checkpoint and the clips that a device has seen before, and answers for the device from then
# on. What it may see is enforced: the answers of these clips are hidden unless the method says that it is supervised.
#
# This one estimates how often the model gives each answer on the device's clips, and holds back answers that it gives
# too often (logit adjustment). The validation devices choose how much.

# %%
import lightning as L

from lit_mmpg.batch import Outputs
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.methods.adapted import evaluate_adapted, load
from lit_mmpg.methods.base import AdaptationMethod


class HoldBack(AdaptationMethod):
    """Logits minus the logarithm of how often the device's clips get each answer."""

    name, paper, setting = "hold_back", "this notebook", "episodic"
    needs = ("classes",)
    grid = {"strength": (0.0, 0.3, 1.0)}  # noqa: RUF012

    def adapt(self, support, options):  # G devices with their earlier clips
        shares = self.subject.answer(support).logits.softmax(-1)  # [G, N, A]
        real = support.batch.text_mask.unsqueeze(-1)
        share = (shares * real).sum(1) / real.sum(1).clamp(min=1)
        return {"log_share": options["strength"] * share.clamp(min=1e-6).log()}  # [G, A]

    def respond(self, query, state, options):  # row b of the state belongs to row b of the query
        return Outputs(logits=self.subject.answer(query).logits - state["log_share"].unsqueeze(1))


# %% [markdown]
# A small device model on very few embedded clips, and the method beside two that are there already. Each gets the same
# checkpoint, clips and questions; `cost` says what an adaptation takes.

# %%
clips = PersonalClipsConfig(
    train_devices=4, val_devices=2, test_devices=2, train_clips=6, seen_clips=2, unseen_clips=4, image_size=24
)
data = PersonalClipsData(clips, "clips", batch=BatchShape(devices=2, clips=2, items_per_clip=3, context_clips=2))
network = DeviceModelConfig(width=16, heads=2, encoder_features=8, encoder_channels=4)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = L.Trainer(max_epochs=2, accelerator="cpu", **quiet)
trainer.fit(DeviceModule.for_data(data, network=network), datamodule=data)
trainer.save_checkpoint("small.ckpt")

# %%
loaded = load("small.ckpt")
results = {}
for method in ("unadapted", "t3a", HoldBack):
    found = results[method] = evaluate_adapted(loaded, method, groups=["test_unseen"])
    score = next(row["value"] for row in found.rows if row["metric"] == "accuracy")
    print(f"{found.name:>10}: {score:.1%}, {found.cost.adapt_flops / 1e6:.2f} MFLOP to adapt, chosen: {found.chosen}")
