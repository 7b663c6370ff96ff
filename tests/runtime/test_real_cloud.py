"""A device and the service itself: killed in the middle, started again, and nobody notices but the log."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import torch

from lit_mmpg.cloud.codebooks import resolve
from lit_mmpg.cloud.exchange import Anchors, Exchange
from lit_mmpg.profiling.benchmarks.services import free_port
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.policies import Always
from lit_mmpg.runtime.video import list_videos
from tests import forked
from tests.runtime.cloud_server import write_video
from tests.runtime.test_device import Hands


@contextlib.contextmanager
def service(checkpoint: Path, port: int, folder: Path) -> Iterator[forked.Process]:
    command = ["serve", "--ckpt", str(checkpoint), "--port", str(port), "--threads", "1"]
    with (folder / "serve.log").open("ab") as log:
        process = forked.Process(command, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0).status_code == 200:
                    break
            assert process.poll() is None, (folder / "serve.log").read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def test_device_and_service_survive_each_other(made, tmp_path: Path) -> None:
    codec, pair = "pq", made("pixels")
    bundle, port = Bundle.open(pair.bundle), free_port()
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(4):
        write_video(clips / f"c{i}.mp4", 4 + i)
    videos = list_videos(clips)
    with service(pair.cloud, port, tmp_path) as process:
        hands = Hands(bundle, f"http://127.0.0.1:{port}", Always(), tmp_path / "state", codec)
        first = hands.device.take(videos[0])
        assert (first.source, first.error) == ("cloud", None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        second = hands.device.take(videos[1])
        assert (second.source, second.reason) == ("cached", "unreachable") and second.replies
    hands.close()  # the device stops, too, and both come back
    with service(pair.cloud, port, tmp_path):
        hands = Hands(bundle, f"http://127.0.0.1:{port}", Always(), tmp_path / "state", codec)
        assert hands.device.source == "cached"
        third = hands.device.take(videos[2])
        assert third.source == "cloud" and third.number == 3
        state = hands.device.state
        hands.close()
    assert state.parameters is not None and len(state.clips) == 2
    for name, own in offline(pair.cloud, bundle, state.clips, codec).items():
        np.testing.assert_array_equal(state.parameters[name], own)


def offline(checkpoint: Path, bundle: Bundle, clips, codec: str) -> dict[str, np.ndarray]:
    """What the cloud half generates for a context without any service."""
    from dataclasses import replace

    from lit_mmpg.training.evaluation import restore

    module, _ = restore(checkpoint)
    link = replace(module.link, upload_codec=codec)
    stack = [np.stack([getattr(clip, name) for clip in clips]) for name in ("anchors", "times", "mask")]
    tensors = [torch.from_numpy(array)[None] for array in stack]
    anchors = Anchors(*tensors, torch.tensor([[clip.num_frames for clip in clips]]))
    exchange = Exchange(resolve(link, module.quantiser), module.network.spec, "0" * 64)
    with torch.inference_mode():
        parameters = exchange(anchors, ["kitchen"], module.generate)
    return {entry.name: tensor[0].numpy() for entry, tensor in zip(bundle.spec, parameters, strict=True)}
