"""Layers injected into modules that are not ours: each sentence of the contract is a test."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lit_mmpg
from lit_mmpg import InputLayer, adaptable
from lit_mmpg.cloud.adaptor import FastDomainAdaptor
from lit_mmpg.errors import UserError
from lit_mmpg.forms.injection import Adaptable

FORMS = ("full", "low_rank", "core", "basis", "film", "shift")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pw = nn.Conv2d(width, width, 1)
        self.group = nn.GroupNorm(2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.group(self.pw(F.relu(self.norm(self.dw(x)))))


class Residual(nn.Module):
    """A small residual network; its one dense convolution is wide enough to have every kind of geometry."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.last_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.grouped(F.relu(self.stem(pixels)))))
        return self.head(self.last_norm(x.mean((-2, -1))))


def residual() -> Residual:
    torch.manual_seed(0)
    network = Residual()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return network.eval()


PICTURES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
KINDS = {
    "dense": ["stem"],
    "grouped": ["grouped"],
    "depthwise": ["blocks.*.dw"],
    "pointwise": ["blocks.*.pw"],
    "linear": ["head"],
    "batch_norm": ["blocks.*.norm"],
    "group_norm": ["blocks.*.group"],
    "layer_norm": ["last_norm"],
}


def weights_of(net: Adaptable, own: dict[str, torch.Tensor], form: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias that parameters of one device stand for, from the formula of the form."""
    layer = net.module.get_submodule(name)
    weight, bias = layer.weight, layer.bias if layer.bias is not None else torch.zeros(len(layer.weight))
    matrix = weight.flatten(1) if weight.dim() > 1 else weight
    p = {key.removeprefix(f"{name}."): value for key, value in own.items() if key.startswith(f"{name}.")}
    fixed = net.layers[name].fixed
    if form == "full":
        return p["weight"], p["bias"]
    if form == "film":
        scale = 1 + p["scale"]
        return (scale[:, None] * matrix if matrix.dim() > 1 else scale * matrix).reshape(
            weight.shape
        ), scale * bias + p["shift"]
    if form == "shift":
        return weight, bias + p["shift"]
    if form == "low_rank":
        return weight + (p["u"] @ p["v"].T).reshape(weight.shape), bias + p["c"]
    middle = p["core"] if form == "core" else torch.diag(p["coefficients"])
    offset = p["c"] if form == "core" else fixed["fixed_bias"] @ p["coefficients"]
    return weight + (fixed["fixed_out"] @ middle @ fixed["fixed_in"].T).reshape(weight.shape), bias + offset


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_on_every_kind_of_layer(kind: str, form: str) -> None:
    """One device equals a copy with the weights of the form, a batch equals the loop, static is bit for bit."""
    network = residual()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    static = network(PICTURES)
    if form == "full" and kind == "depthwise":
        with pytest.raises(UserError, match=r"target blocks\.0\.dw: .*depthwise.*use film"):
            adaptable(network, KINDS[kind], form)
        return
    if "norm" in kind and form in ("low_rank", "core", "basis"):
        with pytest.raises(UserError, match=r"needs a weight matrix.*use film, shift or full"):
            adaptable(network, KINDS[kind], form)
        assert type(network.stem) is nn.Conv2d, "a refusal leaves the module as it was"
        return
    net = adaptable(network, KINDS[kind], form, rank=2)
    assert torch.equal(net(PICTURES), static)
    assert list(network.state_dict()) == list(before)
    assert net.verify(PICTURES).batch and net.devices == "batch"

    parameters = net.random_parameters(3, seed=5)
    pictures = torch.randn(3, 2, 3, 9, 9)
    together = net(pictures, parameters=parameters)
    net.devices = "loop"
    torch.testing.assert_close(net(pictures, parameters=parameters), together, atol=1e-4, rtol=1e-4)

    own = {name: p[1] for name, p in zip(net.spec.names, parameters, strict=True)}
    copied = residual()
    with torch.no_grad():
        for name in net.layers:
            layer = copied.get_submodule(name)
            weight, bias = weights_of(net, own, form, name)
            layer.weight = nn.Parameter(weight)
            layer.bias = nn.Parameter(bias)
    torch.testing.assert_close(net(pictures[1], parameters=own), copied(pictures[1]), atol=1e-4, rtol=1e-4)
    assert torch.equal(net(PICTURES), static)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_input_layer_acts_where_pixels_become_numbers() -> None:
    network = residual()
    static = network(PICTURES)
    net = adaptable(network, input_layer=InputLayer(grid=(2, 3), kernel=3))
    assert net.spec.names == ("input.gain", "input.bias", "input.colour", "input.kernel")
    assert torch.equal(net(PICTURES), static) and net.verify(PICTURES).batch
    zero = [torch.zeros(entry.shape) for entry in net.spec]
    torch.testing.assert_close(net(PICTURES, parameters=zero), static)
    gain, bias, colour, kernel = own = net.random_parameters()
    mixed = F.conv2d(PICTURES, torch.eye(3)[..., None, None] + colour[..., None, None])
    expected = torch.zeros_like(PICTURES)
    spots = F.pad(PICTURES, (1, 1, 1, 1))
    for c in range(3):
        each = torch.zeros_like(PICTURES[:, 0])
        for i in range(3):
            own_kernel = kernel[i] + F.pad(torch.ones(1, 1), (1, 1, 1, 1))
            for dy in range(3):
                for dx in range(3):
                    shifted = spots[:, i, dy : dy + 9, dx : dx + 9]
                    each = each + (float(c == i) + colour[c, i]) * own_kernel[dy, dx] * shifted
        expected[:, c] = each
    up = [F.interpolate(p[None], size=(9, 9), mode="bilinear", align_corners=False) for p in (gain, bias)]
    torch.testing.assert_close(net(PICTURES, parameters=own), residual()((1 + up[0]) * expected + up[1]))
    only = adaptable(residual(), input_layer=InputLayer(use=("colour",)))
    torch.testing.assert_close(only(PICTURES, parameters=[colour]), residual()(mixed))
    named = adaptable(residual(), ["stem"], "shift", input_layer=InputLayer(at="stem", use=("gain",)))
    assert named.verify(pixels=PICTURES).batch
    assert named.spec.names == ("input.gain", "stem.shift")
    with pytest.raises(UserError, match=r"floating point are needed, not torch\.uint8"):
        only(PICTURES.to(torch.uint8), parameters=[colour])
    with pytest.raises(UserError, match="has no centre"):
        adaptable(residual(), input_layer=InputLayer(kernel=2))


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (["stem", "head"], ["stem", "head"]),
        (["blocks.*.pw"], ["blocks.0.pw", "blocks.1.pw"]),
        (["pw"], ["blocks.0.pw", "blocks.1.pw"]),
        (r"blocks\.[01]\.pw|head", ["blocks.0.pw", "blocks.1.pw", "head"]),
        ([re.compile(r".*\.1\.pw")], ["blocks.1.pw"]),
        ("all-linear", ["head"]),
    ],
)
def test_targets_are_names_globs_and_expressions(targets: object, chosen: list[str]) -> None:
    assert list(adaptable(residual(), targets, "shift").layers) == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["hea"], r"target 'hea' names nothing in Residual; did you mean 'head'\?"),
        (["*9*"], r"names nothing in Residual; it has layers of .*Linear"),
        (["blocks"], r"target 'blocks': blocks is Sequential, and forms act on Linear"),
        ("blocks.(", "no regular expression"),
        ([], "neither targets nor an input layer"),
    ],
)
def test_targets_that_name_nothing_are_refused(targets: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adaptable(residual(), targets)  # type: ignore[arg-type]


def test_forms_may_differ_by_layer_and_parameters_are_checked() -> None:
    net = adaptable(residual(), ["stem", "blocks.*.norm"], {"*.norm": "film", "*": "low_rank"}, rank=2)
    assert net.spec.names[:5] == ("stem.u", "stem.v", "stem.c", "blocks.0.norm.scale", "blocks.0.norm.shift")
    parameters = net.random_parameters()
    by_name = dict(zip(net.spec.names, parameters, strict=True))
    assert torch.equal(net(PICTURES, parameters=by_name), net(PICTURES, parameters=parameters))
    with pytest.raises(UserError, match=r"missing \['stem.u'\], unknown \['x'\]"):
        net(PICTURES, parameters={"x" if k == "stem.u" else k: v for k, v in by_name.items()})
    with pytest.raises(UserError, match=r"stem\.v has the shape \[1\], expected \[27, 2\]"):
        net(PICTURES, parameters=[parameters[0], torch.zeros(1), *parameters[2:]])
    with pytest.raises(UserError, match="are of 3 devices, an input has the shape"):
        net(PICTURES, parameters=net.random_parameters(3))
    with pytest.raises(UserError, match="adaptable already"):
        adaptable(net.module, ["head"])
    with pytest.raises(UserError, match="no glob matches the target stem"):
        adaptable(residual(), ["stem"], {"head": "film"})


def test_batching_is_never_guessed() -> None:
    """A sequence-first layout divides as well as any, and mixes devices."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    net = adaptable(SequenceFirst(), ["inner"], rank=2)
    x, parameters = torch.randn(3, 2, 6, 4), net.random_parameters(3)
    with pytest.raises(UserError, match="has not been verified"):
        net.devices = "batch"
    found = net.verify(x[0])
    assert not found.batch and net.devices == "loop" and "rows mix devices" in found.reason
    looped = net(x, parameters=parameters)
    for g in range(3):
        torch.testing.assert_close(looped[g], net(x[g], parameters=[p[g] for p in parameters]))
    unverified = adaptable(SequenceFirst(), ["inner"], devices="batch")
    with pytest.raises(UserError, match="has not been verified"):
        unverified(x, parameters=unverified.random_parameters(3))


@pytest.mark.parametrize("kind", ["logits", "loss"])
def test_logits_and_losses_across_the_batch_are_not_batched(kind: str) -> None:
    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.image(x)
            return {"out": y @ y.T if kind == "logits" else y.square().mean()}

    net = adaptable(Contrast(), ["image"])
    found = net.verify(torch.randn(2, 4))
    assert not found.batch and "use devices='loop'" in found.reason
    out = net(torch.randn(3, 2, 4), parameters=net.random_parameters(3))["out"]
    assert out.shape == ((3, 2, 2) if kind == "logits" else (3,))


def test_targets_that_are_not_called_or_do_nothing_are_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.lost = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + 0 * self.lost(x)

    net = adaptable(Idle(), ["used", "unused"])
    with pytest.raises(UserError, match=r"targets were not called.*: unused; leave them out"):
        net(torch.randn(2, 4), parameters=net.random_parameters())
    with pytest.raises(UserError, match="do not change the output: lost"):
        adaptable(Idle(), ["used", "lost"]).verify(torch.randn(2, 4))


def test_fused_paths_are_named() -> None:
    torch.manual_seed(0)
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with pytest.raises(UserError, match=r"nn\.MultiheadAttention, which reads its weights"):
        adaptable(network, ["self_attn.out_proj"])
    net = adaptable(network, "all-linear", rank=2)
    assert list(net.layers) == ["linear1", "linear2"]
    parameters, x = net.random_parameters(), torch.randn(2, 3, 8)
    with torch.no_grad(), pytest.raises(UserError, match=r"linear1, linear2; .*set_fastpath_enabled\(False\)"):
        net(x, parameters=parameters)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert net.verify(x).batch
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_statistics_of_the_batch_are_refused() -> None:
    network = residual().train()
    net = adaptable(network, ["head"])
    net(PICTURES)
    with pytest.raises(UserError, match=r"BatchNorm computes with the statistics of the batch.*eval\(\)"):
        net(PICTURES, parameters=net.random_parameters())
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="statistics of the batch"):
        net.verify(PICTURES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    random = adaptable(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), ["0"])
    with pytest.raises(UserError, match=r"something else at each call.*eval\(\)"):
        random.verify(torch.randn(2, 4))


def test_layers_are_called_as_their_class_is() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return super().forward(input) * scale

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.more = nn.Linear(4, 4), Scaled(4, 4), {"scale": 2.0}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(input=x), **self.more)

    network, x = Named(), torch.randn(2, 4)
    expected = network(x)
    net = adaptable(network, ["first", "second"])
    assert torch.equal(net(x), expected)
    with pytest.raises(UserError, match="second is called with 2 arguments"):
        net(x, parameters=net.random_parameters())
    network.more = {}
    assert net.verify(x).batch


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    net = adaptable(Checkpointed(), ["inner"])
    x = torch.randn(2, 4, requires_grad=True)
    y = net(x, parameters=net.random_parameters())
    with pytest.raises(UserError, match="gradient checkpointing does not go with generated parameters"):
        y.sum().backward()
    net(x).sum().backward()  # the static module may


def test_a_shared_weight_with_two_biases_is_refused_where_the_bias_is_generated() -> None:
    def tied() -> nn.Sequential:
        module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        module[1].weight = module[0].weight
        return module

    with pytest.raises(UserError, match="0 and 1 share a weight, but not the bias"):
        adaptable(tied(), ["0", "1"], form="full")
    module, x = tied(), torch.randn(4, 6)
    net = adaptable(copy.deepcopy(module), ["0", "1"], form="low_rank", rank=2)
    start = tuple(part.start.neutral(part.shape) for site in net._sites for part in site.parts())
    torch.testing.assert_close(net(x, parameters=start), module(x))


def test_shared_and_tied_layers_have_one_entry() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = self.first
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.first.weight
            self.tied.bias = self.first.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.again(self.first(x)))

    network = Tied()
    before = network.first.weight.clone()
    net = adaptable(network, ["again", "first", "tied"], rank=2)
    assert list(net.layers) == ["first"]
    u, v, c = own = net.random_parameters()
    x = torch.randn(2, 4)
    expected = x
    for _ in range(3):
        expected = F.linear(expected, network.first.weight + u @ v.T, network.first.bias + c)
    torch.testing.assert_close(net(x, parameters=own), expected)
    assert torch.equal(network.first.weight, before)


def test_a_failed_call_leaves_no_parameters_behind() -> None:
    network = residual()
    net = adaptable(network, ["stem", "head"])
    static = net(PICTURES)
    with pytest.raises(RuntimeError):
        net(PICTURES[:, :2], parameters=net.random_parameters())
    assert torch.equal(net(PICTURES), static)


def test_hooks_types_and_copies_survive() -> None:
    network = residual()
    seen: list[torch.Size] = []
    network.head.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    net = adaptable(network, ["stem", "head"], input_layer=InputLayer())
    assert isinstance(network.head, nn.Linear) and isinstance(network, Residual)
    parameters = net.random_parameters()
    expected = net(PICTURES, parameters=parameters)
    assert seen == [torch.Size([2, 5])]
    network.head._forward_hooks.clear()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(PICTURES, parameters=parameters), expected)
        with torch.no_grad():
            other.module.head.weight.zero_()
        assert torch.equal(net(PICTURES, parameters=parameters), expected), "a copy has weights of its own"


def test_the_adaptor_generates_and_trains_parameters_of_any_module() -> None:
    net = adaptable(residual(), ["stem", "blocks.*.pw", "head"], rank=2, input_layer=InputLayer()).requires_grad_(False)
    net.verify(PICTURES)
    torch.manual_seed(0)
    adaptor = FastDomainAdaptor(net.layers, context=6, hidden=16)
    context, pictures = torch.randn(4, 6), torch.randn(4, 2, 3, 9, 9)
    static = net(pictures.flatten(0, 1)).unflatten(0, (4, 2))
    torch.testing.assert_close(net(pictures, parameters=adaptor(context)), static, atol=1e-5, rtol=1e-5)
    target = static + 1
    optimiser = torch.optim.Adam(adaptor.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = (net(pictures, parameters=adaptor(context)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_dynamo_captures_a_call_with_parameters() -> None:
    net = adaptable(residual(), ["stem", "blocks.*.pw", "head"], rank=2)
    net.verify(PICTURES)
    compiled = torch.compile(net, backend="eager")
    for devices in (None, 3):
        x = PICTURES if devices is None else PICTURES.expand(devices, -1, -1, -1, -1)
        own = net.random_parameters(devices)
        torch.testing.assert_close(compiled(x, parameters=own), net(x, parameters=own))
    torch.testing.assert_close(compiled(PICTURES), net(PICTURES))


def test_the_package_itself_names_what_it_offers() -> None:
    assert {"adaptable", "InputLayer"} <= set(dir(lit_mmpg))
    with pytest.raises(AttributeError, match="no attribute 'adaptible'"):
        lit_mmpg.adaptible  # noqa: B018


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal])
def test_parametrized_layers_keep_parameters_of_their_own(wrap: Any) -> None:
    """Their weights are computed at each look: identities of what is gone at once are no sign of a shared weight."""
    names = [str(i) for i in range(20)]
    network = nn.Sequential(*(wrap(nn.Linear(6, 6)) for _ in names)).eval()
    assert list(adaptable(network, targets=names).layers) == names


class Answering(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.values, self.answer = nn.Linear(6, 5), answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(self.values(x))


@pytest.mark.parametrize("answer", [lambda y: y.mean().item(), lambda y: y.detach().numpy(), lambda y: slice(y, 3)])
def test_outputs_that_are_no_tensors_are_not_taken_from_the_first_device(answer: Any) -> None:
    net = adaptable(Answering(lambda y: {"y": y, "other": answer(y)}), targets=["values"])
    rows = torch.randn(3, 2, 6)
    with pytest.raises(UserError, match=r"an output is \w+, which cannot be told apart by devices"):
        net(rows, parameters=net.random_parameters(3))
    with pytest.raises(UserError, match=r"an output is \w+, which cannot be told apart by devices"):
        net.verify(rows[0])
    net = adaptable(Answering(lambda y: {"y": y, "other": [None, 3, "a"]}), targets=["values"])
    assert net(rows, parameters=net.random_parameters(3))["other"] == [None, 3, "a"]


def test_a_single_device_verifies_nothing() -> None:
    net = adaptable(Answering(lambda y: y - y.mean(0)), targets=["values"])
    with pytest.raises(UserError, match=r"devices is 1; .* give 2 or more"):
        net.verify(torch.randn(4, 6), devices=1)
    assert not net.verify(torch.randn(4, 6)).batch


@pytest.mark.parametrize("form", FORMS)
def test_layers_may_be_called_as_the_methods_of_containers_are(form: str) -> None:
    net = adaptable(Answering(lambda y: y), targets=["values"], form=form)
    generated = FastDomainAdaptor(net.layers, 4)(torch.randn(2, 4))
    assert net(torch.randn(2, 3, 6), parameters=generated).shape == (2, 3, 5)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"rank": 0}, "rank is 0; give a whole number"),
    "rank a text": ({"rank": "4"}, "rank is '4'; give a whole number"),
    "a class for a name": ({"targets": [nn.Linear]}, "is no name, glob or compiled pattern"),
    "a number for a name": ({"targets": 3}, "target 3 is no name"),
    "a form that is none": ({"form": 3}, "3 is neither a name nor a Form"),
    "a way that is none": ({"devices": "bach"}, "devices is 'bach'; it is 'loop' or 'batch'"),
    "an input layer that is none": ({"input_layer": True}, "input_layer is True; give InputLayer"),
    "an input layer without a grid": ({"input_layer": InputLayer(grid=4)}, "grid=4.*two of them for the grid"),  # type: ignore[arg-type]
    "an input layer of nothing": ({"input_layer": InputLayer(channels=0)}, "channels=0.*from 1 on"),
    "no module": ({"module": "network"}, "str is no torch.nn.Module"),
    "sizes nobody knows": ({"module": nn.Sequential(nn.LazyLinear(3))}, "target 0: the sizes of LazyLinear"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_argument_is_named(mistake: str) -> None:
    given, said = WRONG[mistake]
    with pytest.raises(UserError, match=said):
        adaptable(**{"module": nn.Sequential(nn.Linear(6, 3)), "targets": ["0"], **given})


def test_parameters_of_another_kind_are_named(tmp_path: Path) -> None:
    net = adaptable(nn.Sequential(nn.Linear(6, 3), nn.LayerNorm(3)).half(), targets=["0"])
    net.module[1].float()  # type: ignore[index]
    own, x = net.random_parameters(), torch.randn(2, 6).half()
    for wrong, said in (
        (own[0], "not Tensor"),
        (iter(own), "not .*iterator"),
        ([p.numpy() for p in own], "0.u is ndarray"),
        ([p.double() for p in own], "0.u is torch.float64; its layer takes a tensor of torch.float16"),
    ):
        with pytest.raises(UserError, match=said):
            net(x, parameters=wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="devices is 0"):
        net.random_parameters(devices=0)
    half = adaptable(nn.Sequential(nn.Linear(6, 3)).half(), targets=["0"])
    half.save_adapter(tmp_path, own)
    assert all(torch.equal(a, b) for a, b in zip(half.load_adapter(tmp_path), own, strict=True))


class ChannelsSecond(nn.LayerNorm):
    """A norm over channels of pictures, as ConvNeXt has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("form", ["film", "shift"])
def test_a_layer_norm_whose_channels_are_second_is_adapted_there(form: str) -> None:
    """Pictures with as many columns as channels tell the two axes apart in no other way than by what they mean."""
    torch.manual_seed(0)
    norm = ChannelsSecond(3)
    net, pictures = adaptable(nn.Sequential(norm), ["0"], form), torch.randn(2, 3, 3, 3)
    static = net(pictures)
    for devices in (None, 2):
        own = net.random_parameters(devices=devices) if devices else net.random_parameters()
        given = pictures.expand(2, *pictures.shape) if devices else pictures
        scale, shift = [*own] if form == "film" else [torch.zeros(()), *own]
        wide = lambda t: t[..., None, None].unsqueeze(-4) if t.dim() else t  # noqa: E731
        torch.testing.assert_close(net(given, parameters=own), static * (1 + wide(scale)) + wide(shift))
