"""Networks of other libraries, built from configurations; and their graphs with parameters as inputs."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from lit_mmpg import InputLayer, adaptable
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.forms.injection import Adaptable
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.profiling.benchmarks import adaptable as adaptable_benchmark
from tests.forms.test_injection import PICTURES, residual


def mobile() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=32, finegrained_output=False)
    model = transformers.MobileNetV2Model(config).eval()

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixels).pooler_output

    return Features()


def adapted_mobile() -> tuple[Adaptable, torch.Tensor]:
    network = mobile()
    pixels = torch.randn(2, 3, 32, 32)
    static = network(pixels)
    keys = list(network.state_dict())
    targets = ["first_conv.convolution", "conv_3x3.convolution", "reduce_1x1.convolution", "conv_3x3.normalization"]
    forms = {"*layer*conv_3x3.convolution": "film", "*.normalization": "shift", "*": "low_rank"}
    net = adaptable(network, targets, forms, rank=2, input_layer=InputLayer())
    assert torch.equal(net(pixels), static) and list(network.state_dict()) == keys
    assert len(net.layers) > 40
    found = net.verify(pixels)
    assert found.batch, found.reason
    assert found.largest_difference is not None and found.largest_difference < 1e-4
    return net, pixels


def test_mobilenet_is_adapted_and_batched() -> None:
    adapted_mobile()


@pytest.mark.soak
def test_mobilenet_is_exported() -> None:
    net, pixels = adapted_mobile()
    exported_equals_torch(net, {"pixels": pixels})


def test_every_kind_of_layer_is_exported_with_parameters_as_inputs() -> None:
    forms = {"blocks.0.*": "film", "blocks.1.dw": "low_rank", "last_norm": "full", "*": "core"}
    targets = ["stem", "grouped", "blocks.0.dw", "blocks.0.norm", "blocks.1.dw", "last_norm", "head"]
    net = adaptable(residual(), targets, forms, rank=2, input_layer=InputLayer())
    exported_equals_torch(net, {"pixels": PICTURES})


class Graph(torch.nn.Module):
    """The exporter wants inputs by name."""

    def __init__(self, net: Adaptable) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: dict[str, torch.Tensor], parameters: tuple[torch.Tensor, ...] = ()) -> torch.Tensor:
        outputs = self.net(**inputs, parameters=parameters)
        return torch.cat(outputs, -1) if isinstance(outputs, tuple) else outputs


class Named(Graph):
    def forward(self, pixels: torch.Tensor, parameters: tuple[torch.Tensor, ...] = ()) -> torch.Tensor:
        return super().forward({"pixels": pixels}, parameters)


class Pairs(Graph):
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        parameters: tuple[torch.Tensor, ...] = (),
    ) -> torch.Tensor:
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return super().forward(inputs, parameters)


def exported_equals_torch(
    net: Adaptable, inputs: dict[str, torch.Tensor], named: type[Graph] = Named, sizes: tuple[float, ...] = (0.05, 0.1)
) -> None:
    module = named(net).eval()
    spec = GraphSpec("model", module, inputs, {name: {0: "N"} for name in inputs}, "features", personal=True)
    graph = export_graph(spec, net)
    assert [value.name for value in graph.graph.input] == [*inputs, *net.spec.names]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        x = {
            name: torch.randn(rows, *t.shape[1:]) if t.is_floating_point() else t[torch.arange(rows) % len(t)]
            for name, t in inputs.items()
        }
        for size in sizes:
            own = net.random_parameters(size=size)
            given = {**x, **dict(zip(net.spec.names, own, strict=True))}
            (got,) = session.run(["features"], {name: t.numpy() for name, t in given.items()})
            expected = module(**x, parameters=own).detach().numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    trt = pytest.importorskip("tensorrt_rtx")
    from lit_mmpg.runtime.engines.tensorrt import Library, build_engine

    assert len(build_engine(Library(trt), graph.SerializeToString(), {"N": 2})[0]) > 10_000


def test_a_vision_text_model_is_adapted() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 40, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    network = transformers.CLIPModel(config).eval()
    inputs = {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "input_ids": torch.tensor([[1, 5, 6, 2], [1, 7, 2, 2]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    static = network(**inputs)
    targets = ["q_proj", "v_proj", "patch_embedding", "*layer_norm2"]
    net = adaptable(network, targets, {"*norm2": "film", "*": "low_rank"}, rank=2)
    assert torch.equal(net(**inputs).logits_per_image, static.logits_per_image)
    found = net.verify(**inputs)
    assert not found.batch and "across the batch" in found.reason, "images are compared with the texts of all devices"

    class Embeddings(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = transformers.CLIPModel(config).eval()

        def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            both = self.clip(**inputs)
            return both.image_embeds, both.text_embeds

    towers = adaptable(Embeddings(), targets, {"*norm2": "film", "*": "low_rank"}, rank=2)
    found = towers.verify(**inputs)
    assert found.batch, found.reason
    exported_equals_torch(towers, inputs, Pairs)


def test_networks_of_timm_are_adapted() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
    net = adaptable(network, ["conv_stem", "conv_pwl"], rank=2)
    assert net.verify(torch.randn(2, 3, 32, 32)).batch


@pytest.mark.soak
def test_the_benchmark_of_injected_layers_measures_every_kind() -> None:
    found = adaptable_benchmark.inputs(1, 1, ["input layer"]) + adaptable_benchmark.wrapping(2)
    assert [row[0] for row in found] == ["inputs over baked", "wrapping"]
    assert all(float(row[2]) > 0 for row in found)
