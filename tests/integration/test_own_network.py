"""A residual network that this file defines, of plain modules: adaptable, trained, exported, profiled, personalised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.cloud.module import CloudConfig, CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.base import OptimiserConfig
from lit_mmpg.device.contract import DeviceModel, DynamicConfig, Shapes, build_network
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.errors import UserError
from lit_mmpg.export.guard import runner
from lit_mmpg.export.source import open_source
from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.parameters import ENCODE, MODEL
from lit_mmpg.profiling.cli import main as profile
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig
from lit_mmpg.profiling.harness import Harness, Instruments
from lit_mmpg.profiling.inputs import adapted_parameters
from lit_mmpg.profiling.meters.latency import LatencyConfig
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.plan import Cell
from lit_mmpg.runtime.adaptation import judge
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.verify import verify
from lit_mmpg.serving.app import create_app
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.settings import to_plain
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, pixel_data
from tests.serving.test_connections import running

LAYERS = ["stem.conv", "stem.norm", "neck", "head"]
FORM = {"*norm": "film", "time": "shift", "*": "low_rank"}


PROFILE = """
name: quick
engines: [{engine: onnxruntime, precisions: [fp32]}]
scenarios: [answer, adapt]
encoder: with
latency: {warmup: 1, min_count: 4, min_time_s: 0.0, max_time_s: 2.0, attempts: 1}
measure_memory: false
measure_energy: false
links: []
"""


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Stem(nn.Module):
    """From pixels to a quarter of their size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Residual(DeviceModel):
    """Stem, one block, a mean over places; a bag of words; one linear layer for the answers."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None, width: int = 8) -> None:
        super().__init__(shapes, dynamic)
        self.width = width
        self.stem, self.block, self.neck = Stem(width), Block(width), nn.Linear(width, width)
        self.time = nn.LayerNorm(width)
        self.words = nn.Embedding(shapes.words, width, padding_idx=0)
        self.head = nn.Linear(2 * width, shapes.answers)

    @property
    def feature_width(self) -> int:
        return self.width

    @property
    def anchor_width(self) -> int:
        return self.width

    def encode_frames(self, frames: Tensor) -> Tensor:
        pictures = frames.flatten(0, -4).float() / 255
        return self.block(self.stem(pictures)).mean((-1, -2)).unflatten(0, frames.shape[:-3])

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        return self.neck(features).tanh()

    def contextualise(self, projected: Tensor, mask: Tensor) -> Tensor:
        return self.time(projected)

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        weight = mask.unsqueeze(-1).to(frames.dtype)
        seen = (frames * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        return self.head(torch.cat([seen, self.words(text.squeeze(-2)).sum(-2)], -1))


SHAPES = Shapes("open_ended", (3, 24, 24), 10, 5, 6)


def made(**dynamic: object) -> Residual:
    settings = {"layers": tuple(LAYERS), "form": FORM, "rank": 2} | dynamic
    network = build_network(Residual, SHAPES, DynamicConfig(**settings))  # type: ignore[arg-type]
    return network.eval()  # type: ignore[return-value]


def random_parameters(network: DeviceModel, devices: int, size: float = 0.3) -> tuple[Tensor, ...]:
    parts = [part for layer in network.dynamic_layers().values() for part in layer.parts()]
    return tuple(
        torch.stack([part.start.draw(part.shape) + size * torch.randn(part.shape) for _ in range(devices)])
        for part in parts
    )


def test_layers_of_plain_modules_are_named_by_globs_and_know_their_graph() -> None:
    network = made(layers=("stem.*", "neck", "time", "head"))
    graphs = {entry.name.rsplit(".", 1)[0]: entry.graph for entry in network.spec}
    assert graphs == {"stem.conv": ENCODE, "stem.norm": ENCODE, "neck": MODEL, "time": MODEL, "head": MODEL}
    assert network.encodes_personally and not made(layers=("head",)).encodes_personally
    assert list(network.state_dict()) == list(Residual(SHAPES, None).state_dict())


@pytest.mark.parametrize("form", [FORM, "full", FORM | {"*": "basis"}])
def test_several_devices_equal_each_alone_and_none_equals_the_static_network(form: str | dict[str, str]) -> None:
    torch.manual_seed(0)
    network, plain = made(form=form, input_layer=InputLayer(grid=(2, 2))), Residual(SHAPES, None).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("fixed.")})
    frames = torch.randint(0, 256, (3, 2, 4, 3, 24, 24), dtype=torch.uint8)
    mask, text = torch.ones(3, 2, 4, dtype=torch.bool), torch.randint(1, 10, (3, 2, 1, 6))
    assert torch.equal(network(frames, mask, text), plain(frames, mask, text))
    parameters = random_parameters(network, 3)
    together = network(frames, mask, text, parameters)
    assert not torch.allclose(together, plain(frames, mask, text), atol=1e-3)
    for g in range(3):
        alone = network(frames[g], mask[g], text[g], tuple(p[g] for p in parameters))
        torch.testing.assert_close(together[g], alone)
    # Every layer moves the answers on its own, the pixels' included.
    neutral = [p.start.neutral(p.shape) for layer in network.dynamic_layers().values() for p in layer.parts()]
    for name in network.dynamic_layers():
        own = [
            p[0] if entry.name.rsplit(".", 1)[0] == name else n
            for entry, p, n in zip(network.spec, parameters, neutral, strict=True)
        ]
        moved = network(frames[0], mask[0], text[0], own)
        assert not torch.allclose(moved, plain(frames[0], mask[0], text[0]), atol=1e-4), name


class Corrected(Residual):
    """Takes features, which a first layer corrects."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, dynamic)
        self.correction = nn.Linear(8, 8)

    def encode_frames(self, frames: Tensor) -> Tensor:
        return self.correction(frames)


def test_a_first_layer_of_features_is_personal_wherever_they_are_encoded() -> None:
    torch.manual_seed(0)
    shapes = Shapes("open_ended", (8,), 10, 5, 6)
    network = build_network(Corrected, shapes, DynamicConfig(("correction", "head"), "low_rank", 2)).eval()
    assert network.encodes_personally and {entry.graph for entry in network.spec} == {MODEL}
    frames, mask, text = torch.randn(3, 2, 4, 8), torch.ones(3, 2, 4, dtype=torch.bool), torch.ones(3, 2, 1, 6).long()
    own = random_parameters(network, 3)
    encoded = network.encode(frames, own)
    assert not torch.allclose(encoded, network.encode(frames), atol=1e-3)
    answered = network.answer(network.mix(network.project(encoded, own), mask, own), mask, text, own)
    torch.testing.assert_close(network(frames, mask, text, own), answered)
    head_alone = build_network(Corrected, shapes, DynamicConfig(("head",), "low_rank", 2))
    assert not head_alone.encodes_personally


class Mixing(Residual):
    """Compares each clip with the others of its call, which would be those of other devices."""

    def contextualise(self, projected: Tensor, mask: Tensor) -> Tensor:
        return self.time(projected - projected.mean(0, keepdim=True))


class Tiled(Residual):
    """Does not keep the rows of a device together."""

    def encode_frames(self, frames: Tensor) -> Tensor:
        order = torch.arange(frames.shape[:-3].numel())
        order = torch.cat([order[::2], order[1::2]])
        pictures = frames.flatten(0, -4).float()[order] / 255
        return self.block(self.stem(pictures)).mean((-1, -2))[order.argsort()].unflatten(0, frames.shape[:-3])


@pytest.mark.parametrize(("kind", "together"), [(Residual, True), (Mixing, False), (Tiled, False)])
def test_devices_are_computed_together_only_where_that_changes_nothing(kind: type[Residual], together: bool) -> None:
    torch.manual_seed(0)
    layers = DynamicConfig(tuple(LAYERS), FORM, 2, InputLayer(grid=(2, 2)))
    network = build_network(kind, SHAPES, layers).eval()
    frames = torch.randint(0, 256, (3, 2, 4, 3, 24, 24), dtype=torch.uint8)
    mask, text = torch.ones(3, 2, 4, dtype=torch.bool), torch.randint(1, 10, (3, 2, 1, 6))
    parameters = random_parameters(network, 3)
    calls: list[object] = []
    network.stem.register_forward_hook(lambda *call: calls.append(call))
    network.train()
    for norm in network.modules():
        norm.train(not isinstance(norm, nn.BatchNorm2d))
    before = torch.get_rng_state()
    network(frames, mask, text, parameters)  # tried at the first call
    assert torch.equal(before, torch.get_rng_state()) and network.training
    calls.clear()
    found = network(frames, mask, text, parameters)
    assert len(calls) == (1 if together else 3)
    for g in range(3):
        alone = network(frames[g], mask[g], text[g], tuple(p[g] for p in parameters))
        torch.testing.assert_close(found[g], alone)
    assert network.verify().batch == together


def test_parameters_are_gone_after_a_call_that_fails() -> None:
    network = made()
    parameters = tuple(p[0] for p in random_parameters(network, 1))
    with pytest.raises(RuntimeError):
        network.encode(torch.zeros(2, 4, 24, 24, dtype=torch.uint8), parameters)
    frames = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    assert torch.equal(network.encode(frames), network.encode(frames))
    assert network._holder is not None and network._holder.values is None


def test_what_cannot_be_dynamic_is_refused() -> None:
    with pytest.raises(UserError, match=r"'nek'.*do not exist"):
        made(layers=("nek",))
    with pytest.raises(UserError, match="forms act on Linear"):
        made(layers=("words",))
    network = made().train()
    with pytest.raises(UserError, match="BatchNorm"):
        network.encode(torch.zeros(2, 3, 24, 24, dtype=torch.uint8), tuple(p[0] for p in random_parameters(network, 1)))
    with pytest.raises(UserError, match="not pixels"):
        build_network(
            lambda shapes, dynamic: lit_network(shapes, dynamic),
            Shapes("open_ended", (12,), 10, 5, 6),
            DynamicConfig(("head",), input_layer=InputLayer()),
        )


class Tied(Residual):
    """One weight in two layers, a layer of two names, and a buffer that is part of a larger one."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, dynamic)
        self.again, self.alias = nn.Linear(8, 8), self.neck
        self.again.weight = self.neck.weight
        self.register_buffer("part", torch.arange(8.0)[2:5])


class Halved(Residual):
    """A layer in another precision."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, dynamic)
        self.neck.half()

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        return self.neck(features.half()).float()


class Taken(Residual):
    """A layer under a name that the contract uses."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, dynamic)
        self.prefix = nn.Linear(8, 8)  # type: ignore[assignment]


class Short(Residual):
    """Fewer scores than there are answers."""

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        return super().answer(frames, mask, text, parameters)[..., :3]


class Named(Residual):
    """Scores in a dictionary."""

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        return {"scores": super().answer(frames, mask, text, parameters)}  # type: ignore[return-value]


class Dropped(Residual):
    """Hands no dynamic layers on."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, None)


class Narrow(Residual):
    """Features of another width than it says."""

    feature_width = 7  # type: ignore[assignment]


class Wide(Residual):
    """Anchors of another width than it says."""

    anchor_width = 9  # type: ignore[assignment]


class Forgetful(Residual):
    """Calls a layer that should be personal without parameters."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None) -> None:
        super().__init__(shapes, dynamic)
        self.head = self.linear("head", 16, shapes.answers)


class Untyped(Residual):
    """Arguments that no parser can read again."""

    def __init__(self, shapes, dynamic=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(shapes, dynamic)


class Listed(Residual):
    """Layers in a plain list, which torch does not look into."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None, frozen: bool = False) -> None:
        super().__init__(shapes, dynamic)
        self.necks = [nn.Linear(self.width, self.width).requires_grad_(not frozen)]
        self.block.by_name = {"scale": torch.ones(1, requires_grad=not frozen)}  # type: ignore[assignment]

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        return super().project(self.necks[0](features))


def test_layers_that_torch_does_not_know_of_are_refused_unless_they_are_frozen() -> None:
    with pytest.raises(UserError, match=r"Listed keeps .* in necks, block.by_name, .* nn.ModuleList"):
        build_network(Listed, SHAPES)
    assert "necks" not in " ".join(build_network(partial(Listed, frozen=True), SHAPES).state_dict())


def test_a_network_that_could_not_go_on_later_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"neck computes in torch.float16, .* call float\(\) on it"):
        build_network(Halved, SHAPES, DynamicConfig(("neck",)))
    with pytest.raises(UserError, match=r"Short answers two texts .* by \(2, 3\); a tensor of shape \(2, 5\)"):
        build_network(Short, SHAPES)
    with pytest.raises(UserError, match=r"Named answers two texts .* by dict"):
        build_network(Named, SHAPES, DynamicConfig(("head",)))
    with pytest.raises(UserError, match=r"Dropped does not hand on .* super\(\).__init__\(shapes, dynamic\)"):
        build_network(Dropped, SHAPES, DynamicConfig(("head",)))
    with pytest.raises(UserError, match=r"Narrow.encode_frames makes .* \(2, 2, 8\); .* \(2, 2, 7\) .* feature_width"):
        build_network(Narrow, SHAPES)
    with pytest.raises(UserError, match=r"Wide.anchor_features .* \(2, 2, 8\); .* \(2, 2, 9\) .* anchor_width"):
        build_network(Wide, SHAPES)
    with pytest.raises(UserError, match=r"Forgetful do not depend on .*\['head'\]; .*self.own\('head', parameters\)"):
        build_network(Forgetful, SHAPES, DynamicConfig(("head",)))
    with pytest.raises(UserError, match="Taken calls a layer or tensor prefix, which DeviceModel itself uses"):
        build_network(Taken, SHAPES)
    with pytest.raises(UserError, match=r"argument shapes of .*Untyped has no type.* write shapes: TYPE"):
        to_plain(partial(Untyped), "network")


def test_tied_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    init_args = pixel_data()["init_args"]
    clips, batch = PersonalClipsConfig(**init_args["clips"]), BatchShape(**init_args["batch"])
    module = DeviceModule.for_data(PersonalClipsData(clips, batch=batch), network=Tied)
    module.save_pretrained(tmp_path)
    again = DeviceModule.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    assert again.network.again.weight is again.network.neck.weight  # type: ignore[union-attr]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written .*name another folder"):
        module.save_pretrained(tmp_path / "file")


def lit_network(shapes: Shapes, dynamic: DynamicConfig | None) -> DeviceModel:
    from lit_mmpg.device.model import DeviceModelConfig

    return DeviceModelConfig(width=8, heads=2)(shapes, dynamic)


def test_what_is_dynamic_changes_no_weight_that_is_drawn() -> None:
    for build in (Residual, lit_network):
        drawn = []
        for dynamic in (None, DynamicConfig(("head",), "film")):
            torch.manual_seed(0)
            drawn.append(build_network(build, SHAPES, dynamic).state_dict())
        assert drawn[0].keys() == drawn[1].keys()
        assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


@dataclass(frozen=True)
class Made:
    """A trained pair, and its bundle."""

    folder: Path
    ckpt: Path
    bundle: Bundle


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Both halves trained through the command line by class path, and exported."""
    folder = tmp_path_factory.mktemp("own")
    before = Path.cwd()
    os.chdir(folder)
    try:
        network = {"class_path": f"{__name__}.Residual", "init_args": {"width": 8}}
        quick = tiny.trainer_config(logger=False, num_sanity_val_steps=0, max_epochs=1)
        data = pixel_data()
        model = tiny.device_config(network=network)
        config = tiny.write_config(Path("device.yaml"), data=data, model=model, trainer=quick)
        assert main(["fit", "--config", str(config), "--trainer.default_root_dir=one"]) == 0
        (first,) = Path("one").rglob("best.ckpt")
        dynamic = {
            "layers": LAYERS,
            "form": FORM,
            "rank": 2,
            "input_layer": {"grid": [2, 2], "use": ["gain", "bias", "colour"]},
        }
        model = tiny.cloud_config(first, dynamic=dynamic, optimiser={"learning_rate": 0.02})
        config = tiny.write_config(Path("cloud.yaml"), data=data, model=model, trainer=quick)
        assert main(["fit", "--config", str(config), "--trainer.default_root_dir=two"]) == 0
        (second,) = Path("two").rglob("best.ckpt")
        assert main(["export", "--ckpt", str(second), "--output", "bundle", "--torch"]) == 0
        yield Made(folder, second.absolute(), Bundle.open(folder / "bundle"))
    finally:
        os.chdir(before)


def test_it_is_trained_by_its_class_path(own: Made) -> None:
    cloud = CloudModule.load_from_checkpoint(own.ckpt)
    assert isinstance(cloud.network, Residual) and cloud.network.encodes_personally
    for name in ("input", "stem/conv", "stem/norm", "neck", "head"):  # everything has learnt something
        generators = cloud.adaptor.layers[name].get_submodule("generators")
        assert all(bool(g.get_parameter("weight").any()) for g in generators.children()), name
    assert main(["test", "--ckpt_path", str(own.ckpt), "--output", "rows.json", "--trainer.logger=false"]) == 0
    rows = json.loads(Path("rows.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert {row["method"] for row in rows} == {"cdc_mmpg", "static", "shuffled_device"}


def test_each_graph_takes_its_own_parameters(own: Made) -> None:
    names = {role: {i.name for i in own.bundle.info(role).inputs} for role in own.bundle.roles}
    assert {"stem.conv.u", "stem.norm.weight", "input.gain"} & names["model"] == set()
    for role in (ENCODE, MODEL):
        assert set(own.bundle.spec.of(role).names) == names[role] & set(own.bundle.spec.names)
        assert len(own.bundle.spec.of(role)) > 0
    for engine in ("onnxruntime", "torch"):
        for role in own.bundle.roles:
            with create_engine(engine, own.bundle, role) as active:
                verdict = verify(active)
                assert verdict.ok, (engine, role, verdict.problems)
    # The reference holds cases that differ, so that an encoder which ignored its parameters would fail.
    cases = own.bundle.reference().roles[ENCODE].outputs
    assert not np.allclose(cases["probe"]["features"], cases["static"]["features"], atol=1e-3)


def test_its_profile_says_what_new_parameters_cost(own: Made) -> None:
    """An input layer, injected layers and an encoder that takes parameters: all are swapped, and all are baked."""
    meter = LatencyConfig(warmup=0, min_count=6, min_time_s=0.0, attempts=1)
    engines = (EngineSelection("onnxruntime"), EngineSelection("torch"))
    config = ProfileConfig(
        "t", engines, scenarios=("personalise",), measure_memory=False, measure_energy=False, latency=meter
    )
    harness = Harness(own.bundle, config, Instruments.open())
    for selection, baked in zip(engines, ("reload", "rebind"), strict=True):
        row = harness.measure(Cell(selection, "fp32", 1, "personalise", True))
        assert row["status"] == "ok", row["reason"]
        assert row["personalisation"]["baked_by"] == baked and row["personalisation"]["baked_ratio"] > 0
        assert {"encode", "model"} <= set(row["roles"]) and not any("would not show" in note for note in row["notes"])


def test_a_device_with_its_bundle_answers_as_torch_does(own: Made) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (3, 3, 24, 24), dtype=np.uint8) for _ in range(2)]
    system = lit_mmpg.load(own.ckpt)
    in_torch = system.new_device("kitchen")
    for clip in clips:
        in_torch.observe(clip)
    in_torch.personalise()
    loaded = in_torch.state.parameters
    assert loaded is not None
    network = CloudModule.load_from_checkpoint(own.ckpt).network.eval()
    parameters = tuple(torch.from_numpy(loaded[name].astype(np.float32)) for name in network.spec.names)
    with DeviceSession(own.bundle) as session:
        static_features, static = session.encode(clips[0]), session.answer(clips[0], "what is it")
        session.swap(loaded)
        answer = session.answer(clips[0], "what is it")
        assert answer.parameters == in_torch.parameters == session.digest
        np.testing.assert_allclose(answer.scores, in_torch.answer(clips[0], "what is it").scores, rtol=1e-3, atol=1e-4)
        assert not np.allclose(answer.scores, static.scores, atol=1e-5)
        # Contexts stay static, what is asked about is personal.
        np.testing.assert_array_equal(session.encode(clips[0]), static_features)
        with torch.inference_mode():
            personal = network.encode(torch.from_numpy(clips[0]), parameters).numpy()
        np.testing.assert_allclose(session.encode(clips[0], personal=True), personal, rtol=1e-3, atol=1e-4)
        assert not np.allclose(personal, static_features, atol=1e-6)
        with pytest.raises(UserError, match="give the video or its frames"):
            session.answer(static_features, "what is it")
        session.swap(None)
        assert session.answer(static_features, "what is it").scores == static.scores
        assert session.answer(clips[0], "what is it").scores == static.scores


def test_the_door_personalises_from_the_bundle_by_a_service(own: Made) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (3, 3, 24, 24), dtype=np.uint8) for _ in range(2)]
    here = lit_mmpg.load(own.ckpt).new_device("kitchen")
    app = create_app(CloudHalf.load(str(own.ckpt), device="cpu"), ServeConfig(""))
    state = DeviceState.open(own.bundle, None, "kitchen", "")
    with running(app) as service, PersonalDevice(DeviceSession(own.bundle), state) as device:
        static = device.answer(clips[0], "what is it")
        for clip in clips:
            device.observe(clip)
            here.observe(clip)
        assert [clip.shape[1:] for clip in device.state.latest] == [(3, 24, 24)] * 2  # judged by what parameters act on
        outcome = device.personalise(cloud=f"http://127.0.0.1:{service.port}")
        assert outcome.source == "cloud" and outcome.digest == here.personalise().digest
        personal = device.answer(clips[0], "what is it")
        assert personal.parameters == outcome.digest and personal.scores != static.scores
        expected = here.answer(clips[0], "what is it").scores
        np.testing.assert_allclose(personal.scores, expected, rtol=1e-3, atol=1e-4)
        # Bad parameters of the encoder alone are refused by what they do to the answers.
        bad = dict(device.state.parameters or {})
        bad["input.gain"] = np.full_like(bad["input.gain"], np.inf)
        assert judge(device.session, device.state, bad)[0] is not None
        device.session.swap(device.state.parameters)
        assert device.answer(clips[0], "what is it") == personal
        device.reset()
        assert device.answer(clips[0], "what is it") == static


def test_bounds_of_plausible_parameters_are_chosen_by_what_devices_compute(own: Made) -> None:
    source = open_source(own.ckpt)
    spec = next(graph for graph in graph_specs(source.network, 4, 1) if graph.role == MODEL)
    parameters = adapted_parameters(own.bundle)
    assert parameters is not None
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 24, 24), dtype=np.uint8)
    questions = np.ones((2, 1, 3), np.int64)
    with DeviceSession(own.bundle) as session:
        for own_parameters in ({}, parameters):
            session.swap(own_parameters or None)
            found = runner(source, spec, own_parameters)(pixels, questions)
            np.testing.assert_allclose(session.outputs(pixels, questions), found, rtol=1e-3, atol=1e-4)


def test_a_personal_encoder_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    settings = pixel_data()["init_args"]
    data = PersonalClipsData(
        PersonalClipsConfig(**settings["clips"]), "clips", "retrieval", BatchShape(**settings["batch"])
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    device = DeviceModule.for_data(data, network=DeviceModelConfig(**PIXEL_NETWORK))
    device.save_pretrained("device")
    layers = DynamicConfig(("encoder.stages.0", "head"), "low_rank", 2, InputLayer(grid=(2, 2), use=("gain", "bias")))
    small = CloudConfig(latent=4, reasoner_hidden=16, embedding=8, adaptor_hidden=16)
    cloud = CloudModule.for_data(
        data, device_ckpt="device", dynamic=layers, cloud=small, optimiser=OptimiserConfig(learning_rate=0.1)
    )
    L.Trainer(max_steps=4, accelerator="cpu", **quiet).fit(cloud, datamodule=data)
    cloud.save_pretrained("cloud")
    assert main(["export", "--ckpt", "cloud", "--output", "bundle", "--samples", "synthetic"]) == 0
    system = lit_mmpg.load("cloud")
    frames = data.corpus.frames
    films = [frames.frames(name) for name in frames.ids()[:3]]
    query = data.texts("train")[0].text
    network, found = CloudModule.from_pretrained("cloud").network, []
    for source in ("cloud", "bundle"):
        with lit_mmpg.load(source).new_device("kitchen") as finder:
            for film in films:
                finder.observe(film)
            static = finder.search(query)
            finder.personalise(system._cloud)
            with patch.object(finder.session, "encode", wraps=finder.session.encode) as encode:
                personal = finder.search(query)
                assert finder.search(query) == personal
            assert encode.call_count == len(films)  # each once with these parameters
            parameters = finder.state.parameters
            assert parameters is not None and {match.parameters for match in personal} == {finder.session.digest}
            own = tuple(torch.from_numpy(parameters[name].astype(np.float32)) for name in network.spec.names)
            text = torch.tensor([finder.session._tokens([query])[0].tolist()])
            with torch.inference_mode():
                for match in personal:
                    pixels = torch.from_numpy(films[match.number])[None]
                    mask = torch.ones(pixels.shape[:2], dtype=torch.bool)
                    score = network(pixels, mask, text[:, None], own)
                    assert match.score == pytest.approx(float(score), abs=1e-4)
            finder.session.swap(None)
            assert finder.search(query) == static
            scores = [{m.number: m.score for m in matches} for matches in (static, personal)]
            assert all(abs(scores[0][n] - scores[1][n]) > 1e-4 for n in range(3))
            found.append(scores[1])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_it_is_profiled(own: Made, tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(PROFILE)
    arguments = ["run", "--bundle", str(own.bundle.path), "--config", str(tmp_path / "quick.yaml"), "--no-record"]
    assert profile([*arguments, "--output", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "profile.json").read_text())
    assert [(row["scenario"], row["status"]) for row in document["rows"]] == [("answer", "ok"), ("adapt", "ok")]
    assert all(verdict["ok"] for row in document["rows"] for verdict in row["verdicts"])


def test_a_profile_loads_parameters_into_every_engine_that_has_entries(own: Made) -> None:
    cell = Cell(EngineSelection("onnxruntime"), "fp32", 1, "adapt", True)
    parameters = adapted_parameters(own.bundle)
    assert parameters is not None
    with Pipeline(own.bundle, cell, ["project"]) as pipeline:
        static, encoded = pipeline.answer(), pipeline.encode()
        pipeline.load(parameters)
        assert not np.allclose(pipeline.encode(), encoded, atol=1e-6)
        np.testing.assert_array_equal(pipeline.encode_context(), encoded)
        assert not np.allclose(pipeline.answer(), static, atol=1e-6)
        pipeline.load(None)
        np.testing.assert_array_equal(pipeline.answer(), static)
