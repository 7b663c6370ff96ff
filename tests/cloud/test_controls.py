"""Trained controls of the cloud half: they train as any run does, and what must not differ does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from lit_mmpg.batch import Frames
from lit_mmpg.cli import main
from lit_mmpg.cloud.module import CloudConfig, CloudModule
from lit_mmpg.data.cameras import FAMILIES, SEVERITIES, Camera, camera_conditions, sample_camera
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.errors import UserError
from lit_mmpg.methods.adapted import Loaded, evaluate_adapted, load
from lit_mmpg.methods.costs import device_costs
from tests.integration import tiny
from tests.integration.conftest import Trained, best_checkpoint, trained
from tests.methods.conftest import pixel_world

__all__ = ["pixel_world", "trained"]

SMALL = {"latent": 4, "reasoner_hidden": 16, "embedding": 8, "adaptor_hidden": 16}
ON_DEVICE = {
    "cloud": {**SMALL, "reasoner": "none", "place": "device"},
    "anchors": {"count": 0},
    "dynamic": {"layers": ["frame_projection"], "form": "shift"},
    "freeze_static": False,
}
CONTROLS = {
    "constant": {"cloud": {**SMALL, "context": "constant"}},
    "frozen_random": {"cloud": {**SMALL, "generator": "frozen_random"}},
    "film": {"dynamic": {"layers": ["frame_projection", "head"], "form": "film"}},
    "concat_on_device": ON_DEVICE,
}


@pytest.fixture(scope="module")
def control(
    trained: Callable[[str], Trained],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Loaded]:
    """A control, trained for an epoch by the verb fit."""
    known: dict[str, Loaded] = {}

    def train(name: str) -> Loaded:
        if name not in known:
            run, folder = trained("open_ended"), tmp_path_factory.mktemp(name)
            model = tiny.cloud_config(run.device, **CONTROLS[name])
            config = tiny.write_config(
                folder / "control.yaml", data=tiny.data_config(run.root), model=model, trainer=tiny.trainer_config()
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                assert main(["fit", "--config", str(config)]) == 0
                known[name] = load(best_checkpoint(folder, "cloud"))
        return known[name]

    return train


def module_of(loaded: Loaded) -> CloudModule:
    assert loaded.subject.cloud is not None
    return loaded.subject.cloud


def personal(loaded: Loaded) -> tuple[torch.Tensor, ...]:
    batch = next(iter(loaded.data.eval_batches("test_unseen")))
    return loaded.subject.personal(batch.context, batch.device)


def test_a_constant_context_makes_all_devices_the_same_and_sends_nothing(control: Callable[[str], Loaded]) -> None:
    loaded = control("constant")
    assert "shuffled_device" not in module_of(loaded).methods
    parameters = personal(loaded)
    for tensor in parameters:
        assert torch.equal(tensor, tensor[:1].expand_as(tensor))
    assert any(bool(tensor.any()) for tensor in parameters)
    cost = evaluate_adapted(loaded, "unadapted").cost
    assert cost is not None and cost.upload_bytes == cost.download_bytes == 0
    # A comparison measures what its devices pay before it keeps the row.
    costs = device_costs(module_of(loaded), loaded.data)["cdc_mmpg"]
    assert costs["adapt_flops"] == 0 and costs["answer_flops"] > 0


def test_frozen_generators_are_random_and_stay_so(control: Callable[[str], Loaded]) -> None:
    """No optimiser may touch them, and what they generate still differs between devices."""
    module = module_of(control("frozen_random"))
    for layer in module.adaptor.layers.values():
        for generator in layer.generators:
            assert not generator.weight.requires_grad and bool(generator.weight.any())
    assert device_costs(module_of(control("frozen_random")), control("frozen_random").data)["cdc_mmpg"]["cloud_s"] > 0
    first, second = (tensor[:2] for tensor in personal(control("frozen_random"))[:2])
    assert not torch.equal(first[0], first[1]) and bool(second.any())


def test_film_sends_two_numbers_per_channel(control: Callable[[str], Loaded]) -> None:
    loaded = control("film")
    network = loaded.subject.network
    assert network.spec.size == 2 * (network.frame_projection.out_features + network.head.out_features)
    result = evaluate_adapted(loaded, "unadapted")
    assert result.cost is not None and result.cost.upload_bytes > 0
    assert device_costs(module_of(loaded), loaded.data)["cdc_mmpg"]["cloud_s"] > 0
    values = 2 * network.spec.size  # fp16
    assert values < result.cost.download_bytes < values + 1500


def test_a_context_on_the_device_differs_between_devices_and_sends_nothing(control: Callable[[str], Loaded]) -> None:
    loaded = control("concat_on_device")
    (shift,) = personal(loaded)
    assert not torch.equal(shift[0], shift[-1])
    cost = evaluate_adapted(loaded, "unadapted").cost
    assert cost is not None and cost.upload_bytes == cost.download_bytes == 0
    costs = device_costs(module_of(loaded), loaded.data)["cdc_mmpg"]
    assert costs["adapt_flops"] > 0 and costs["cloud_s"] is None  # the device generates
    static = trained_state(loaded)
    assert any(not torch.equal(tensor, static[name]) for name, tensor in loaded.subject.network.state_dict().items())


def trained_state(loaded: Loaded) -> dict[str, torch.Tensor]:
    from lit_mmpg.checkpoint import read_checkpoint

    path = str(module_of(loaded).device_ckpt)
    state = read_checkpoint(path)["state_dict"]
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


def test_conditions_are_zero_for_the_identity_and_of_order_one() -> None:
    assert not camera_conditions(Camera()).any()
    rng = np.random.default_rng(0)
    drawn = np.stack([camera_conditions(sample_camera(rng, 5)) for _ in range(200)])
    assert np.isfinite(drawn).all() and drawn.dtype == np.float32
    assert np.abs(drawn).max(0).min() > 0.3 and np.abs(drawn).max() < 4
    assert set(SEVERITIES) == set(FAMILIES)
    only_noise = camera_conditions(Camera(noise=0.05))
    assert np.flatnonzero(only_noise).tolist() == [8]


def test_the_oracle_is_told_the_camera_and_nothing_else(pixel_world: Loaded) -> None:
    data = pixel_world.data
    conditions = data.corpus.conditions
    assert conditions is not None and len(conditions) == len(data.device_table.devices)
    module = CloudModule(
        data.meta,
        network=pixel_world.subject.network.config,
        cloud=CloudConfig(context="conditions", latent=4, reasoner_hidden=16, adaptor_hidden=16),
    )
    module.know_conditions(conditions)
    with torch.no_grad():
        for layer in module.adaptor.layers.values():
            layer.generators[0].weight.normal_()
    batch = next(iter(data.eval_batches("test_unseen")))
    subject = type(pixel_world.subject)(module, [device.id for device in data.device_table.devices])
    own = subject.personal(batch.context, batch.device)
    blank = subject.personal(Frames(torch.zeros_like(batch.context.values), batch.context.mask), batch.device)
    assert all(torch.equal(a, b) for a, b in zip(own, blank, strict=True))
    swapped = subject.personal(batch.context, batch.device.flip(0))
    torch.testing.assert_close(swapped[0], own[0].flip(0))
    assert not torch.equal(own[0][0], own[0][-1])
    assert subject.upload_bytes == 0
    assert device_costs(module, data)["cdc_mmpg"]["adapt_flops"] == 0
    again = CloudModule(data.meta, network=module.network.config, cloud=replace(module.cloud_config))
    again.load_state_dict(module.state_dict())


def test_the_oracle_needs_data_that_knows_the_cameras(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    run = trained("open_ended")
    loaded = load(run.cloud)
    module = CloudModule(loaded.data.meta, str(run.device), cloud=CloudConfig(context="conditions"))
    with pytest.raises(UserError, match="does not know the cameras"):
        module.prepare(loaded.data)


def test_the_frozen_network_is_never_in_training_mode(
    trained: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(tmp_path)
    data = load(run.device).data
    network = DeviceModelConfig(width=16, heads=2, dropout=0.3, frame_dropout=0.3)
    small = CloudConfig(**SMALL)
    for frozen in (True, False):
        module = CloudModule.for_data(
            data, device_ckpt=str(run.device), network=network, cloud=small, freeze_static=frozen
        )
        modes = Modes()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        L.Trainer(
            max_epochs=2, limit_train_batches=1, limit_val_batches=1, accelerator="cpu", callbacks=modes, **quiet
        ).fit(module, datamodule=data)
        assert modes.seen == 2 * [({not frozen}, {True})]  # in the second epoch validation lies behind


class Modes(L.Callback):
    """Notes at each step in which modes the modules of both halves are."""

    def __init__(self) -> None:
        self.seen: list[tuple[set[bool], set[bool]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: object) -> None:
        assert isinstance(module, CloudModule)
        halves = (module.network, module.adaptor)
        self.seen.append(tuple({m.training for m in half.modules()} for half in halves))  # type: ignore[arg-type]


def test_noise_of_the_frozen_half_acts_on_asked_clips_alone(
    trained: Callable[[str], Trained], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(tmp_path)
    data = load(run.device).data
    network = DeviceModelConfig(width=16, heads=2, dropout=0.3, frame_dropout=0.3)
    small = CloudConfig(**SMALL | {"latent": 0})
    for noise in (True, False):
        module = CloudModule.for_data(
            data, device_ckpt=str(run.device), network=network, cloud=small, frozen_noise=noise
        ).train()
        monkeypatch.setattr(module, "log", lambda *a, **k: None)
        monkeypatch.setattr(module, "log_dict", lambda *a, **k: None)
        projected = []
        anchor_features = module.network.anchor_features
        monkeypatch.setattr(
            module.network, "anchor_features", lambda f, of=anchor_features, to=projected: to.append(of(f)) or to[-1]
        )
        batch = next(iter(data.train_dataloader()))
        losses = [module.training_step(batch, 0).item() for _ in range(2)]
        assert (losses[0] != losses[1]) == noise
        assert torch.equal(projected[0], projected[1]) and not module.network.training
