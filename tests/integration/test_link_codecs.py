"""A measurement may choose the codecs of the link; product quantisation comes with the checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.cloud.codebooks import from_checkpoint
from lit_mmpg.errors import UserError


def measured(folder, checkpoint, *flags) -> dict:
    output = folder / "rows.json"
    arguments = ["test", "--ckpt_path", str(checkpoint), "--output", str(output), "--trainer.logger", "false", *flags]
    assert main(arguments) == 0
    rows = json.loads(output.read_text())["rows"]
    return next(row for row in rows if row["method"] == "cdc_mmpg" and row["metric"] == "accuracy")


def test_codecs_of_a_test(trained, monkeypatch, tmp_path):
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    quantiser = from_checkpoint(read_checkpoint(run.cloud)["lit_mmpg"])
    assert quantiser.width == 16 and len(quantiser.codebooks) == 12
    bytes_up = {}
    for codec in ("int8", "int4", "pq"):
        row = measured(tmp_path, run.cloud, f"--model.link.upload_codec={codec}", "--model.link.download_codec=int8")
        bytes_up[codec] = row["upload_bytes"]
        assert 0 <= row["value"] <= 1
    # Two anchors of 16 values of each clip that is there: 16, 8 and 12 bytes each; two for the scale of integers.
    clips = (bytes_up["int8"] - bytes_up["int4"]) / (2 * 8)
    assert 1 <= clips <= 3
    assert bytes_up["int8"] - bytes_up["pq"] == pytest.approx(clips * (2 * 4 + 2))


def test_codebooks_are_learnt_on_what_training_devices_upload(trained, monkeypatch):
    run = trained("retrieval")
    monkeypatch.chdir(run.folder)
    from lit_mmpg.training.evaluation import restore

    module, data = restore(run.cloud)
    clips = [c for timeline in data._timelines("train").values() for c in timeline]
    contexts = list(data.training_contexts())
    assert sum(frames.mask.any(-1).sum().item() for frames in contexts) == len(clips)
    quantiser = module.quantiser
    for frames in contexts:
        anchors, _ = module.select(frames)
        vectors = anchors.features[anchors.mask].numpy()
        decoded = quantiser.decode(quantiser.encode(vectors, None), vectors.shape, None)
        np.testing.assert_allclose(decoded, vectors, atol=1e-5)  # fewer anchors than words: each is a word


def test_pq_without_codebooks_is_refused(trained, monkeypatch, tmp_path, capsys):
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    checkpoint = read_checkpoint(run.cloud)
    del checkpoint["lit_mmpg"]["codebooks"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    flags = ["--model.link.upload_codec", "pq", "--trainer.logger", "false"]
    assert main(["test", "--ckpt_path", str(tmp_path / "old.ckpt"), *flags]) == 2
    assert "has no codebooks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([torch.zeros(2, 4)], "those of an older version; train the cloud half again"),
        ({"codebook000": torch.zeros(2, 4)}, "damaged .*train the cloud half again"),
    ],
)
def test_codebooks_of_an_older_version_are_refused(stored, message):
    with pytest.raises(UserError, match=message):
        from_checkpoint({"codebooks": stored})
