"""Run by a test: the contrastive loss over embeddings gathered from two processes, and in one on the whole batch."""

from __future__ import annotations

import sys

import torch
import torch.multiprocessing as mp

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.device.model import DeviceModel, DeviceModelConfig, Shapes
from lit_mmpg.device.outputs import answer_batch, task_loss


def build() -> tuple[DeviceModel, list[Batch]]:
    torch.manual_seed(0)
    model = DeviceModel(Shapes("retrieval", (6,), words=13), DeviceModelConfig(width=8))
    for parameter in model.parameters():  # nothing may hide behind a zero
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.constant_(model.log_temperature, 1.0)
    batches = []
    for rank in range(2):
        clip = torch.arange(6).reshape(2, 3) + 6 * rank
        clip[1, 2] = -1
        frames = Frames(torch.randn(2, 3, 4, 6), torch.ones(2, 3, 4, dtype=torch.bool))
        text_clip = torch.tensor([[0, 1, 2], [0, 1, 1]])
        text_mask = torch.tensor([[True, True, True], [True, True, False]])
        text = torch.randint(1, 13, (2, 3, 1, 5))
        zeros = torch.zeros(2, 3, dtype=torch.long)
        batches.append(Batch(frames, frames, text, text_mask, text_clip, zeros, zeros, clip, torch.arange(2), zeros))
    return model, batches


def join(batches: list[Batch]) -> Batch:
    def cat(name: str) -> torch.Tensor:
        return torch.cat([getattr(b, name) for b in batches])

    frames = Frames(torch.cat([b.frames.values for b in batches]), torch.cat([b.frames.mask for b in batches]))
    names = ("text", "text_mask", "text_clip", "answer", "item", "clip", "device", "kind")
    return Batch(frames, frames, **{name: cat(name) for name in names})


def worker(rank: int, port: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, batches = build()
    parallel = torch.nn.parallel.DistributedDataParallel(Step(model), find_unused_parameters=True)
    parallel(batches[rank]).backward()
    if rank == 0:
        torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, f"{folder}/two.pt")
    torch.distributed.destroy_process_group()


class Step(torch.nn.Module):
    def __init__(self, model: DeviceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        from lightning.fabric.utilities.distributed import _all_gather_ddp_if_available

        def gather(tensor: torch.Tensor) -> torch.Tensor:  # what LightningModule.all_gather does
            return _all_gather_ddp_if_available(tensor, sync_grads=tensor.is_floating_point()).flatten(0, 1)

        outputs = answer_batch(self.model, batch, self.model.encode(batch.frames.values))
        return task_loss(self.model, batch, outputs, gather=gather)


if __name__ == "__main__":
    model, batches = build()
    whole = join(batches)
    task_loss(model, whole, answer_batch(model, whole, model.encode(whole.frames.values))).backward()
    torch.save({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, f"{sys.argv[2]}/one.pt")
    mp.spawn(worker, args=(sys.argv[1], sys.argv[2]), nprocs=2)
