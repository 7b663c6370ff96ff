"""Device models from pretrained encoders: folders that this file writes, small and with weights at random."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lit_mmpg.data.vocabulary import Vocabulary, tokenize
from lit_mmpg.device import DualEncoder
from lit_mmpg.device.contract import DynamicConfig, Shapes, build_network, network_factory
from lit_mmpg.device.dual import PretrainedText, _bare
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.errors import UserError
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.parameters import MODEL
from lit_mmpg.runtime.engines.tensorrt import Library, build_engine
from lit_mmpg.settings import to_plain

transformers = pytest.importorskip("transformers")

SENTENCES = ["which paint covers the toy", "what form does the toy have", "what is mine", "a toy is a toy"]
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "wh", "##at", "##ich", "is", "paint", "cover", "##s", "the", "toy"),
    *("form", "do", "##es", "have", "mi", "##ne"),
]
VOCABULARY = Vocabulary.build(SENTENCES)


def write_text(folder: Path, config: Any = None) -> Path:
    """A sentence encoder with word pieces, as BERT or another configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = config or transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_vision(folder: Path, kind: str = "mobile", size: int = 24) -> Path:
    """A backbone with its image processor's settings."""
    torch.manual_seed(0)
    if kind == "mobile":
        config = transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=size, finegrained_output=False)
    else:
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=size,
            patch_size=8,
        )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    settings = {"size": {"height": size, "width": size}, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "text": str(write_text(root / "text")),
        "mobile": str(write_vision(root / "mobile")),
        "vit": str(write_vision(root / "vit", "vit")),
    }


def made(
    folders: dict[str, str], vision: str | None, task: str, layers: tuple[str, ...], **over: object
) -> DualEncoder:
    torch.manual_seed(0)
    shapes = Shapes(task, (3, 20, 20) if vision else (6,), len(VOCABULARY), 5, 6)
    settings = {"vision": folders[vision] if vision else None, "text": folders["text"], "width": 16, "tokens": 12}
    dynamic = DynamicConfig(layers, {"*norm*": "film", "*": "low_rank"}, rank=2)
    network = build_network(partial(DualEncoder, **(settings | over)), shapes, dynamic)
    assert isinstance(network, DualEncoder) and isinstance(network.text_encoder, PretrainedText)
    network.text_encoder.tokenise.fill(
        transformers.AutoTokenizer.from_pretrained(folders["text"]), VOCABULARY, SENTENCES
    )
    return network.eval()


def words(*texts: str, length: int = 6) -> torch.Tensor:
    rows = [VOCABULARY.encode(text, length) for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def test_tokens_are_those_of_the_tokenizer(folders: dict[str, str]) -> None:
    network = made(folders, None, "retrieval", ("head",))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["text"])
    texts = [*SENTENCES, "what zebra is mine"]
    for length in (6, 9):  # padding changes nothing
        tokens, mask = network.text_encoder.tokenise(words(*texts, length=length))
        for row, attended, text in zip(tokens, mask, texts, strict=True):
            assert row[attended].tolist() == tokenizer(" ".join(tokenize(text)))["input_ids"]
    long, mask = network.text_encoder.tokenise(words("what what what what what what"))
    assert mask.all() and long[0, -1] == 3 and long.shape == (1, 12), "cut behind, with its end kept"
    # The sentence encoder itself is asked the same.
    model = transformers.AutoModel.from_pretrained(folders["text"]).eval()
    given = tokenizer([texts[1]], return_tensors="pt")
    expected = model(**{name: given[name] for name in ("input_ids", "attention_mask")}).last_hidden_state.mean(1)
    torch.testing.assert_close(network.text_encoder.pooled(words(texts[1])), expected)


LAYERS = {
    "mobile": ("first_conv.convolution", "frame_projection", "head"),
    "vit": ("encoder.model*.layernorm_before", "text_encoder.model*.query", "frame_projection", "head"),
}


@pytest.mark.parametrize(
    ("vision", "task"),
    [
        pytest.param("vit", "open_ended", marks=pytest.mark.soak),
        pytest.param("vit", "multiple_choice", marks=pytest.mark.soak),
        pytest.param("mobile", "retrieval", marks=pytest.mark.soak),
    ],
)
def test_graphs_with_parameters_as_inputs_equal_torch(vision: str, task: str, folders: dict[str, str]) -> None:
    layers = tuple(n for n in LAYERS[vision] if task != "retrieval" or "text" not in n)
    network = made(folders, vision, task, layers)
    assert network.encodes_personally and network.frozen_encoder and len(network.spec.of(MODEL))
    static = build_network(network.factory, network.shapes).eval()  # made again from what a checkpoint keeps
    static.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("fixed.")})
    frames = torch.randint(0, 256, (2, 3, 3, 20, 20), dtype=torch.uint8)
    mask, text = torch.ones(2, 3, dtype=torch.bool), words(SENTENCES[0], SENTENCES[1]).unsqueeze(1)
    if task == "multiple_choice":
        text = text.repeat(1, 3, 1)
    assert torch.equal(network(frames, mask, text), static(frames, mask, text))
    generator = torch.Generator().manual_seed(0)
    parts = [part for layer in network.dynamic_layers().values() for part in layer.parts()]
    own = [p.start.draw(p.shape, generator) + 0.2 * torch.randn(p.shape, generator=generator) for p in parts]
    assert not torch.allclose(network(frames, mask, text, own), static(frames, mask, text), atol=1e-4)
    by_name = dict(zip(network.spec.names, own, strict=True))
    # The words become tokens by operations that a GPU's parser has to know, too.
    built = {"text": pytest.importorskip("tensorrt_rtx")} if task == "retrieval" else {}
    for spec in graph_specs(network, 3, 3):
        graph = export_graph(spec, network)
        entries, inputs = spec.entries(network.spec), dict(spec.example)
        for name, value in inputs.items():
            if name == "text":
                inputs[name] = text if value.dim() == 3 else text[:, 0]
            elif name == "pixels":
                inputs[name] = frames[0]
            elif value.is_floating_point():
                inputs[name] = torch.randn(value.shape, generator=generator)
        if spec.role in built:
            sizes = {"B": 2, "N": 2, "T": 3, "L": 6, "O": 3}
            assert len(build_engine(Library(built[spec.role]), graph.SerializeToString(), sizes)[0]) > 10_000
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        feed = {**inputs, **{entry.name: by_name[entry.name] for entry in entries}}
        (got,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
        arguments = {**inputs, "parameters": tuple(by_name[e.name] for e in entries)} if len(entries) else inputs
        with torch.no_grad():
            expected = spec.module(**arguments).numpy()
        np.testing.assert_allclose(
            got, expected, rtol=1e-3, atol=1e-4 * max(1.0, np.abs(expected).max()), err_msg=spec.role
        )


def test_what_it_is_made_of_needs_no_folder(folders: dict[str, str]) -> None:
    network = made(folders, "vit", "open_ended", ("head",))
    plain = json.loads(json.dumps(to_plain(network.factory)))
    assert not any(folder in json.dumps(plain) for folder in folders.values())
    again = build_network(network_factory(plain), network.shapes, network.dynamic).eval()
    again.load_state_dict(network.state_dict())
    frames, mask = torch.randint(0, 256, (1, 2, 3, 20, 20), dtype=torch.uint8), torch.ones(1, 2, dtype=torch.bool)
    text = words(SENTENCES[2]).unsqueeze(1)
    assert torch.equal(again(frames, mask, text), network(frames, mask, text))


def test_a_folder_that_timm_wrote(folders: dict[str, str], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0).eval()
    timm.models.save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    network = made(folders | {"timm": str(tmp_path / "timm")}, "timm", "open_ended", ("*.conv_stem",))
    assert network.encodes_personally
    frames = torch.randint(0, 256, (1, 2, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(network.encode(frames)[0], model((frames[0] / 255 - mean) / std))
    again = build_network(
        network_factory(json.loads(json.dumps(to_plain(network.factory)))), network.shapes, network.dynamic
    )
    again.load_state_dict(network.state_dict())


def test_what_learns(folders: dict[str, str]) -> None:
    frozen = made(folders, "mobile", "open_ended", ("head",)).train()
    learning = {name.split(".")[0] for name, p in frozen.named_parameters() if p.requires_grad}
    assert {"head", "frame_projection", "text_encoder"} <= learning and "encoder" not in learning
    assert not frozen.text_encoder.model.training and frozen.fusion.training
    whole = made(folders, "mobile", "open_ended", ("head",), frozen=False).train()
    assert not whole.frozen_encoder and whole.text_encoder.model.training
    norms = [m for m in whole.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms), "statistics of a batch would mix devices"
    frames, mask = torch.randint(0, 256, (1, 2, 3, 20, 20), dtype=torch.uint8), torch.ones(1, 2, dtype=torch.bool)
    whole(frames, mask, words(SENTENCES[2]).unsqueeze(1)).sum().backward()
    silent = [name for name, p in whole.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, "two processes would wait for them"


def test_what_cannot_be_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network\.vision .*none is not a folder"):
        made(folders | {"mobile": str(tmp_path / "none")}, "mobile", "open_ended", ("head",))
    with pytest.raises(UserError, match="features, not pixels"):
        build_network(partial(DualEncoder, vision=folders["mobile"]), Shapes("open_ended", (6,), 9, 5, 6))
    bad = write_text(tmp_path / "pickled")
    (bad / "model.safetensors").unlink()
    torch.save({}, bad / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"network\.text .*cannot be loaded"):
        made(folders | {"text": str(bad)}, None, "open_ended", ("head",))
    with pytest.raises(UserError, match=r"not called.*text_encoder.*sentences are embedded without"):
        made(folders, None, "retrieval", ("text_encoder.model*.query", "head"))
    from tokenizers import Tokenizer, models

    pieces = [("<unk>", -9.0), ("e toy", -0.1), *((letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz ")]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)), unk_token="<unk>"
    )
    network = made(folders, None, "open_ended", ("head",))
    with pytest.raises(UserError, match=r"cuts words by their neighbours \('which paint covers the toy'\)"):
        network.text_encoder.tokenise.fill(tokenizer, VOCABULARY, SENTENCES)


def small(kind: str, **more: object) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.AutoConfig.for_model(kind, **(sizes | {"vocab_size": len(PIECES)} | more))


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("fnet", {}, "depends on the padding"),  # mixes padding into every token
        (
            "roberta",
            {"max_position_embeddings": 10},
            r"no features of texts of 10 tokens.*fewer model\.network\.tokens",
        ),
        ("vit", {"image_size": 16, "patch_size": 8}, "no features of texts"),
    ],
)
def test_a_text_encoder_is_tried(
    kind: str, more: dict[str, Any], reason: str, folders: dict[str, str], tmp_path: Path
) -> None:
    folder = write_text(tmp_path, small(kind, **more))
    with pytest.raises(UserError, match=rf"network\.text.*{reason}"):
        made(folders | {"text": str(folder)}, None, "open_ended", ("head",))


def test_pooling_is_that_of_the_folder(folders: dict[str, str], tmp_path: Path) -> None:
    folder = write_text(tmp_path)
    (folder / "1_Pooling").mkdir()
    for said, pooling in (
        ({"pooling_mode_cls_token": True, "include_prompt": True}, "first"),
        ({"pooling_mode": "mean"}, "mean"),
    ):
        (folder / "1_Pooling/config.json").write_text(json.dumps(said))
        network = made(folders | {"text": str(folder)}, None, "open_ended", ("head",))
        assert network.text_encoder.pooling == pooling
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(UserError, match=r"pools by lasttoken \(1_Pooling/config.json\).*model\.network\.pooling"):
        made(folders | {"text": str(folder)}, None, "open_ended", ("head",))
    assert made(folders | {"text": str(folder)}, None, "open_ended", ("head",), pooling="mean")


@pytest.mark.parametrize("pair", [True, False])
def test_an_encoder_that_was_saved_without_its_decoder(pair: bool, folders: dict[str, str], tmp_path: Path) -> None:
    config = small("t5", d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    folder = write_text(tmp_path, config)
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(folder)
    model.config.is_encoder_decoder = pair  # sentence encoders on the hub say both
    model.config.save_pretrained(folder)
    network = made(folders | {"text": str(folder)}, None, "open_ended", ("head",))
    given = transformers.AutoTokenizer.from_pretrained(folder)("what is mine", return_tensors="pt")
    with torch.no_grad():
        expected = model(given["input_ids"], given["attention_mask"]).last_hidden_state.mean(1)
        torch.testing.assert_close(network.text_encoder.pooled(words("what is mine")), expected)
    again = build_network(network.factory, network.shapes).eval()
    again.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("fixed.")})
    torch.testing.assert_close(again.text_encoder.pooled(words("what is mine")), expected)


def test_a_tokenizer_that_fails_is_named(tmp_path: Path) -> None:
    folder = write_text(tmp_path)
    table = json.loads((folder / "tokenizer.json").read_text())
    table["model"]["unk_token"] = "[GONE]"
    (folder / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"network\.text: its tokenizer fails \(.*tokenizer\.json"):
        _bare(transformers.AutoTokenizer.from_pretrained(folder), ["zebra"])
