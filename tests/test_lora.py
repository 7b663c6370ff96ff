"""LoRA adapters: what peft's documentation says an adapter computes is what the parameters compute, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg import adaptable, lora
from lit_mmpg.errors import UserError
from lit_mmpg.forms.injection import Adaptable
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

PREFIX = "base_model.model."
TARGETS = ["stem.conv", "head"]


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Net(nn.Module):
    """Two layers of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head = Stem(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


def made(targets: list[str] = TARGETS, form: str = "low_rank", rank: int = 2) -> Adaptable:
    return adaptable(Net().eval(), targets, form, rank)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def documented(config: dict[str, Any], tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """The documented sum: every layer, plus lora_B(lora_A(x)) times its scaling."""
    net = Net()

    def scaling(layer: str) -> float:
        alpha = config.get("alpha_pattern", {}).get(layer, config["lora_alpha"])
        return alpha / config["r"] ** (0.5 if config.get("use_rslora") else 1)

    def of(layer: str) -> tuple[Tensor, Tensor, Tensor | None]:
        a, b = (tensors[f"{PREFIX}{layer}.lora_{p}.weight"].float() for p in "AB")
        bias = tensors.get(f"{PREFIX}{layer}.lora_B.bias")
        return a, b, None if bias is None else bias.float()

    a, b, bias = of("stem.conv")
    hidden = net.stem.conv(x) + F.conv2d(F.conv2d(x, a, None, 2, 1), b, bias) * scaling("stem.conv")
    hidden = hidden.relu().mean((2, 3))
    a, b, bias = of("head")
    return net.head(hidden) + F.linear(F.linear(hidden, a), b, bias) * scaling("head")


def write(
    folder: Path, dtype: torch.dtype = torch.float32, with_bias: bool = True, rank: int = 2, **config: Any
) -> Path:
    """An adapter as peft writes it, with random tensors."""
    g = torch.Generator().manual_seed(5)
    shapes = {
        "stem.conv.lora_A.weight": (rank, 3, 3, 3),
        "stem.conv.lora_B.weight": (6, rank, 1, 1),
        "head.lora_A.weight": (rank, 6),
        "head.lora_B.weight": (5, rank),
    }
    shapes |= {"stem.conv.lora_B.bias": (6,), "head.lora_B.bias": (5,)} if with_bias else {}
    folder.mkdir(exist_ok=True)
    tensors = {f"{PREFIX}{name}": torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / lora.WEIGHTS)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 5,
        "lora_bias": with_bias,
        "target_modules": TARGETS,
        **config,
    }
    (folder / lora.CONFIG).write_text(json.dumps(settings))
    return folder


def test_what_is_written_has_peft_s_names_and_computes_the_same_and_is_read_back(tmp_path: Path, x: Tensor) -> None:
    net = made()
    parameters = net.random_parameters(seed=2)
    net.save_adapter(tmp_path / "adapter", parameters)
    config = json.loads((tmp_path / "adapter" / lora.CONFIG).read_text())
    tensors = load_file(tmp_path / "adapter" / lora.WEIGHTS)
    assert {name.removeprefix(PREFIX): tuple(t.shape) for name, t in tensors.items()} == {
        "stem.conv.lora_A.weight": (2, 3, 3, 3),
        "stem.conv.lora_B.weight": (6, 2, 1, 1),
        "stem.conv.lora_B.bias": (6,),
        "head.lora_A.weight": (2, 6),
        "head.lora_B.weight": (5, 2),
        "head.lora_B.bias": (5,),
    }
    personal = net(x, parameters=parameters)
    assert (personal - net(x)).abs().max() > 0.01
    torch.testing.assert_close(documented(config, tensors, x), personal)
    for saved, read in zip(parameters, net.load_adapter(tmp_path / "adapter"), strict=True):
        assert torch.equal(saved, read)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_dropout": 0.1, "bias": "none", "modules_to_save": None, "loftq_config": {}},
        {"with_bias": False, "alpha_pattern": {"head": 16}},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
)
def test_an_adapter_is_read_with_its_scaling_folded_in(tmp_path: Path, x: Tensor, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    folder = write(tmp_path, settings.pop("dtype", torch.float32), settings.pop("with_bias", True), **settings)
    net = made()
    expected = documented(json.loads((folder / lora.CONFIG).read_text()), load_file(folder / lora.WEIGHTS), x)
    torch.testing.assert_close(net(x, parameters=net.load_adapter(folder)), expected, rtol=1e-4, atol=1e-4)


def test_layers_of_other_ranks_and_alike_names_keep_theirs(tmp_path: Path) -> None:
    shapes = {"0": (3, 4, 2), "blocks.0": (5, 3, 1)}
    spec = ParameterSpec(
        tuple(
            ParameterEntry(f"{name}.{part}", shape)
            for name, (out, into, rank) in shapes.items()
            for part, shape in (("u", (out, rank)), ("v", (into, rank)), ("c", (out,)))
        )
    )
    values = {e.name: torch.randn(e.shape).numpy() for e in spec}
    lora.save(tmp_path, spec, values)
    for name, array in lora.load(tmp_path, spec).items():
        assert (array == values[name]).all()
    config = json.loads((tmp_path / lora.CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (2, {r"^blocks\.0": 1})


def rename(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / lora.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / lora.WEIGHTS)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"rank": 3}, None, "'stem.conv' is of rank 3, the model takes rank 2; train the adapter with r=2"),
        ({"r": 4}, None, "r is 4 for layer 'stem.conv', its tensors are of rank 2"),
        ({"lora_alpha": "many"}, None, "lora_alpha is 'many'"),
        ({"lora_alpha": 10**400}, None, "lora_alpha is 1000"),
        ({"use_dora": True}, None, "'use_dora' is True; an adapter that uses it computes otherwise"),
        ({"fan_in_fan_out": True}, None, "'fan_in_fan_out' is True"),
        ({"modules_to_save": ["head"]}, None, "'modules_to_save' is"),
        ({"some_day": {"new": 1}}, None, "'some_day' is"),
        ({"bias": "all"}, None, "bias is 'all', which replaces biases"),
        ({"init_lora_weights": "pissa"}, None, "changes the weights of the model itself"),
        ({"peft_type": "IA3"}, None, "peft_type is 'IA3'; only LORA"),
        ({"rank_pattern": {"(": 1}}, None, "is no pattern"),
        ({}, lambda t: t.pop(f"{PREFIX}head.lora_B.weight"), "it lacks base_model.model.head.lora_B.weight"),
        ({}, lambda t: t.update({f"{PREFIX}tail.lora_A.weight": torch.ones(2, 2)}), "no layer for .*tail.lora_A"),
        ({}, lambda t: t.update({f"{PREFIX}head.lora_A.weight": torch.ones(2, 7)}), r"\[2, 7\], expected \[2, 6\]"),
        ({}, lambda t: t.update({f"{PREFIX}head.lora_A.weight": torch.tensor(1.0)}), "its tensors are of rank 0"),
        ({}, lambda t: t.update({f"{PREFIX}head.lora_B.weight": torch.tensor(1.0)}), r"shape \[\], expected \[5, 2\]"),
        (
            {},
            lambda t: t.update({f"{PREFIX}stem.conv.lora_A.weight": torch.ones(2, 9, 3, 1)}),
            r"\[2, 9, 3, 1\], expected \[2, 3, 3, 3\]",
        ),
        ({}, lambda t: t[f"{PREFIX}head.lora_B.weight"].fill_(float("nan")), "head.u holds NaN"),
        ({}, lambda t: t.update({f"{PREFIX}head.lora_B.bias": torch.ones(5).int()}), "is of type I32"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any], change: Callable[[dict[str, Tensor]], object] | None, message: str
) -> None:
    folder = write(tmp_path, **settings)
    if change is not None:
        rename(folder, change)
    net = made()
    with pytest.raises(UserError, match=message):
        net.load_adapter(folder)


def test_without_the_module_sizes_are_checked(tmp_path: Path) -> None:
    """As on a device, which has a graph and no module."""
    folder, net = write(tmp_path), made()
    for known, unknown in zip(net.load_adapter(folder), lora.load(folder, net.spec).values(), strict=True):
        assert (known.numpy() == unknown).all()
    rename(folder, lambda t: t.update({f"{PREFIX}stem.conv.lora_A.weight": torch.ones(2, 3, 3, 2)}))
    with pytest.raises(UserError, match=r"\[2, 3, 3, 2\], expected \[2, 27\]"):
        lora.load(folder, net.spec)


def test_damaged_missing_and_pickled_files_are_refused(tmp_path: Path) -> None:
    net = made()
    with pytest.raises(UserError, match=r"adapter_config\.json does not exist"):
        net.load_adapter(tmp_path / "nowhere")
    folder = write(tmp_path / "adapter")
    weights = folder / lora.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        net.load_adapter(folder)
    weights.rename(folder / lora.PICKLED)
    with pytest.raises(UserError, match="is a pickle, which may run code"):
        net.load_adapter(folder)
    (folder / lora.CONFIG).write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        net.load_adapter(folder)
    with pytest.raises(UserError, match="cannot be written"):
        net.save_adapter(folder / lora.CONFIG, net.random_parameters())


def test_what_a_lora_adapter_cannot_express_is_not_written(tmp_path: Path) -> None:
    net = made(["head"], "film")
    with pytest.raises(UserError, match="layer 'head' takes scale, shift, which a LoRA adapter cannot hold"):
        net.save_adapter(tmp_path, net.random_parameters())
    grouped = adaptable(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), ["0"], "low_rank", 2)
    with pytest.raises(UserError, match="a convolution with groups"):
        grouped.save_adapter(tmp_path, grouped.random_parameters())
    net = made()
    with pytest.raises(UserError, match="of one device"):
        net.save_adapter(tmp_path, net.random_parameters(3))
    assert not list(tmp_path.iterdir())


def test_peft_itself_reads_and_writes_them(tmp_path: Path, x: Tensor) -> None:
    peft = pytest.importorskip("peft")
    net = made()
    parameters = net.random_parameters(seed=2)
    net.save_adapter(tmp_path / "ours", parameters)
    theirs = peft.PeftModel.from_pretrained(Net(), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs(x), net(x, parameters=parameters))
    for options in ({"lora_bias": True}, {"use_rslora": True}, {"alpha_pattern": {"head": 3}}):
        config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=TARGETS, **options)
        theirs = peft.get_peft_model(Net(), config).eval()
        with torch.no_grad():
            for name, tensor in theirs.named_parameters():
                if "lora_" in name:
                    tensor.normal_()
        theirs.save_pretrained(tmp_path / "theirs")
        personal = net(x, parameters=net.load_adapter(tmp_path / "theirs"))
        torch.testing.assert_close(personal, theirs(x), rtol=1e-4, atol=1e-4)
