"""What uploaded anchors give away: two small attacks, for each upload codec and for noise, beside the accuracy.

    python -m lit_mmpg.profiling.benchmarks.privacy --ckpt CKPT

Both attackers are trained on anchors of the *training* devices as they arrive (with the same codec and noise) and
attack devices that nobody has seen:

- **inversion**: a small network draws the frame from its anchor. Reported: the share of the pixels' variance that it
  explains (against the mean training picture), and how often its drawing finds the true frame among 100 frames of
  other clips.
- **re-identification**: a linear map, learnt to tell training devices apart, compares a device's first eight clips with
  the later ones of all unseen devices. Reported: how often the nearest one is the same device.

Noise is Gaussian, drawn once per clip on the device before anything is encoded (repeated uploads of one clip do not
average it away); its size is a share of the anchors' root mean square. These attacks are small: what they cannot do, a
stronger one may.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from lit_mmpg.cloud.codebooks import resolve
from lit_mmpg.cloud.exchange import Anchors, Exchange, state_digest
from lit_mmpg.data.batches import Query
from lit_mmpg.device.evaluation import Evaluation
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.link.codecs import decode, encode
from lit_mmpg.link.product import PQ
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.trained import Trained, command
from lit_mmpg.tasks import find_task

NOISES = (0.0, 0.25, 0.5, 1.0, 2.0)
CODECS = ("fp32", "int8", "int4")
SIDE = 16
"""Height and width of the pictures that the inversion draws."""
GALLERY = 100
EARLY = 8
"""Clips of a device that the attacker knows under its name."""
STEPS = 1500


@dataclass(frozen=True)
class Seen:
    """Anchors of some clips and the frames behind them.

    Attributes:
        anchors: ``[N, H]`` one anchor per row, exact.
        pictures: ``[N, 3 * SIDE * SIDE]`` the frame, small, 0 to 1.
        clip: ``[N]`` number of the clip.
        device: ``[N]`` number of the device.
    """

    anchors: Tensor
    pictures: Tensor
    clip: Tensor
    device: Tensor


def collect(trained: Trained, group: str, most: int) -> Seen:
    """Anchors and frames of at most ``most`` devices of a group.

    Raises:
        UserError: If the data has no pixels, or the group too few devices.
    """
    data, module = trained.data, trained.module
    if len(module.network.shapes.frame) != 3:
        raise UserError("the inversion needs the frames themselves; name a checkpoint of a model that takes pixels")
    timelines = data.device_table.timelines.get(group, {})
    if len(timelines) < 2:
        raise UserError(f"group {group} has {len(timelines)} devices; re-identification needs two")
    index = {clip: i for i, clip in enumerate(data.clip_ids)}
    collate = data.eval_batches(group, with_context=False).collate
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    clips = 0
    with torch.inference_mode():
        for device, names in list(timelines.items())[:most]:
            batch = collate([Query(device, tuple(index[name] for name in names), ())], [[]])
            anchors, _ = module.select(batch.frames)
            mask = anchors.mask[0]
            frame = (anchors.times[0] * (batch.frames.mask[0].sum(-1, keepdim=True) - 1).clamp(min=1)).round().long()
            pixels = batch.frames.values[0][torch.arange(len(mask)).unsqueeze(1), frame].float() / 255
            small = nn.functional.interpolate(pixels.flatten(0, 1), (SIDE, SIDE), mode="area").flatten(1)
            number = (clips + torch.arange(len(mask))).unsqueeze(1).expand_as(mask)
            rows.append(
                (anchors.features[0][mask], small[mask.flatten()], number[mask], torch.full((int(mask.sum()),), device))
            )
            clips += len(mask)
    return Seen(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


def arrive(seen: Seen, codec: str, noise: float, seed: int) -> Tensor:
    """Anchors as the cloud gets them, ``[N, H]``."""
    generator = torch.Generator().manual_seed(seed)
    spread = seen.anchors.square().mean().sqrt()
    noisy = seen.anchors + noise * spread * torch.randn(seen.anchors.shape, generator=generator)
    received = torch.empty_like(noisy)
    for clip in seen.clip.unique():  # as in a message, where each clip has a scale of its own
        rows = seen.clip == clip
        sent = noisy[rows].unsqueeze(0).numpy()
        received[rows] = torch.from_numpy(decode(codec, encode(codec, sent, axis=0), sent.shape, axis=0)[0])
    return received


def invert(train: Tensor, pictures: Tensor, attack: Tensor, truth: Tensor, clip: Tensor) -> dict[str, float]:
    """Train the inversion and attack.

    Returns:
        ``explained``: share of the variance of the pixels; ``found``: share of frames that are found among GALLERY.
    """
    torch.manual_seed(0)
    mean, spread = train.mean(0), train.std(0) + 1e-6
    base = pictures.mean(0)
    net = nn.Sequential(
        nn.Linear(train.shape[1], 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, len(base))
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    inputs, target = (train - mean) / spread, pictures - base
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (128,))
        loss = (net(inputs[rows]) - target[rows]).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        drawn = net((attack - mean) / spread) + base
    explained = 1 - float((drawn - truth).square().sum() / (truth - base).square().sum())
    rng = np.random.default_rng(0)
    hits = []
    for i in range(len(drawn)):
        others = np.flatnonzero((clip != clip[i]).numpy())
        gallery = rng.choice(others, min(GALLERY - 1, len(others)), replace=False)
        own = float((drawn[i] - truth[i]).square().sum())
        hits.append(own < float((drawn[i] - truth[gallery]).square().sum(1).min()))
    return {"explained": explained, "found": float(np.mean(hits)), "found_by_chance": 1 / GALLERY}


def reidentify(train: Tensor, owner: Tensor, attack: Tensor, seen: Seen) -> dict[str, float]:
    """Learn what tells training devices apart (linear discriminant analysis) and match the unseen ones.

    Returns:
        ``same``: share of devices whose later clips are nearest to their own first ones.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(train.numpy(), owner.numpy())
    projected = model.transform(attack.numpy())
    early, late = [], []
    for device in seen.device.unique():
        rows = (seen.device == device).numpy()
        clips = seen.clip.numpy()[rows]
        known = np.isin(clips, np.unique(clips)[:EARLY])
        early.append(projected[rows][known].mean(0))
        late.append(projected[rows][~known].mean(0))
    distance = np.linalg.norm(np.stack(late)[:, None] - np.stack(early)[None], axis=-1)
    return {"same": float((distance.argmin(1) == np.arange(len(late))).mean()), "same_by_chance": 1 / len(late)}


def accuracy(trained: Trained, group: str, codec: str, noise: float) -> dict[str, float]:
    """Primary metric of the unseen devices with anchors of this codec and noise, and of the static model."""
    module, data = trained.module, trained.data
    link = resolve(replace(module.link, upload_codec=codec), module.quantiser)
    exchange = Exchange(link, module.network.spec, state_digest(module.network))
    evaluation = Evaluation([data.group(group)], ["own", "static"])
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for batch in data.eval_batches(group):
            features = module.network.encode(batch.frames.values)
            anchors, _ = module.select(batch.context)
            spread = anchors.features[anchors.mask].square().mean().sqrt()
            added = noise * spread * torch.randn(anchors.features.shape, generator=generator)
            noisy = Anchors(
                (anchors.features + added) * anchors.mask.unsqueeze(-1), anchors.times, anchors.mask, anchors.num_frames
            )
            parameters = exchange(noisy, [trained.name(int(d)) for d in batch.device], module.generate)
            evaluation.update(group, "own", batch, answer_batch(module.network, batch, features, parameters))
            evaluation.update(group, "static", batch, answer_batch(module.network, batch, features))
    metric = find_task(data.task).primary.name
    return {name: float(evaluation.items(group, name).values[metric].mean()) for name in ("own", "static")}


def measure(trained: Trained, group: str, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Both attacks and the accuracy for each codec and each noise."""
    told("collecting anchors")
    known, seen = collect(trained, "train", 128), collect(trained, group, 128)
    codecs = [*CODECS, *([PQ] if trained.module.quantiser else [])]
    settings = [(codec, 0.0) for codec in codecs] + [("int8", noise) for noise in NOISES if noise]
    rows = []
    for codec, noise in settings:
        told(f"{codec}, noise {noise:g}")
        name = trained.module.quantiser.name if codec == PQ and trained.module.quantiser else codec
        train, attack = arrive(known, name, noise, 0), arrive(seen, name, noise, 1)
        row: dict[str, Any] = {"codec": codec, "noise": noise, **accuracy(trained, group, codec, noise)}
        row |= invert(train, known.pictures, attack, seen.pictures, seen.clip)
        row |= reidentify(train, known.device, attack, seen)
        rows.append(row)
    facts = {"train_anchors": len(known.anchors), "attacked_anchors": len(seen.anchors)}
    return {"group": group, "metric": find_task(trained.data.task).primary.name, **facts, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    first = result["rows"][0]
    lines = [
        f"Checkpoint `{result['checkpoint']}`, unseen devices of {result['group']}; static model "
        f"{100 * first['static']:.1f} %. Attackers trained on {result['train_anchors']} anchors of training devices.",
        "",
        f"| upload | {result['metric']} | pixels explained | frame found among {GALLERY} | device re-identified |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        name = row["codec"] + (f", noise {row['noise']:g}" if row["noise"] else "")
        shares = [f"{100 * row[key]:.1f} %" for key in ("own", "explained", "found", "same")]
        lines.append(f"| {' | '.join([name, *shares])} |")
    chance = f"{100 * first['found_by_chance']:.0f} % | {100 * first['same_by_chance']:.1f} %"
    lines.append(f"| by chance | | 0 % | {chance} |")
    return "\n".join(lines)


def screen_table(result: dict[str, Any]) -> Table:
    """The result for the screen."""
    table = Table("upload", "noise", result["metric"], "pixels explained", f"found among {GALLERY}", "re-identified")
    for row in result["rows"]:
        shares = [f"{row[key]:.1%}" for key in ("own", "explained", "found", "same")]
        table.add_row(row["codec"], f"{row['noise']:g}", *shares)
    return table


@working("privacy", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write ``privacy.json`` and ``privacy.md``."""
    return command(
        "privacy",
        __doc__,
        lambda trained, options, told: measure(trained, "test_unseen", told),
        markdown,
        screen_table,
        argv,
        ckpt="checkpoint of a cloud half whose data has pixels",
    )


if __name__ == "__main__":
    sys.exit(main())
