"""Checkpoints are Lightning's: a notebook's trainer writes what every verb reads, and both halves load without data."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lit_mmpg
from lit_mmpg import trust
from lit_mmpg.checkpoint import load_module, read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.cloud.module import CloudConfig, CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.base import AnsweringModule
from lit_mmpg.device.contract import DeviceModel, DynamicConfig, Shapes, build_network, network_factory
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.errors import UserError
from lit_mmpg.methods import adapted
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.training.config import read_request
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, pixel_data

CLOUD = CloudConfig(latent=4, reasoner_hidden=16, embedding=8, adaptor_hidden=16)
DYNAMIC = DynamicConfig(("frame_projection", "head"), "low_rank", 2)


class Small(DeviceModel):
    """A network of somebody's own: mean colours of a frame, a bag of words, one hidden layer."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None, width: int = 4) -> None:
        super().__init__(shapes, dynamic)
        self.width = width
        self.colours = self.linear("colours", 3, width)
        self.words = nn.Embedding(shapes.words, width, padding_idx=0)
        self.answers = self.linear("answers", 2 * width, shapes.answers)

    @property
    def feature_width(self) -> int:
        return 3

    def encode_frames(self, frames: Tensor) -> Tensor:
        return frames.float().mean((-1, -2)) / 255

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        return self.colours(features, self.own("colours", parameters)).tanh()

    @property
    def anchor_width(self) -> int:
        return self.width

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        weight = mask.unsqueeze(-1).to(frames.dtype)
        seen = (frames * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        asked = self.words(text.squeeze(-2)).sum(-2)
        return self.answers(torch.cat([seen, asked], -1), self.own("answers", parameters))


class NotOne(nn.Module):
    """Takes the arguments, and is no device model."""

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None, size: int) -> None:
        super().__init__()


@dataclass(frozen=True)
class Notebook:
    """What a notebook left: the data's settings, both modules as trained, and their checkpoints."""

    folder: Path
    data: PersonalClipsData
    device: DeviceModule
    cloud: CloudModule
    device_ckpt: Path
    cloud_ckpt: Path


def make_data(folder: Path) -> PersonalClipsData:
    arguments = pixel_data()["init_args"]
    return PersonalClipsData(
        PersonalClipsConfig(**arguments["clips"]), str(folder / "clips"), batch=BatchShape(**arguments["batch"])
    )


def trainer() -> L.Trainer:
    return L.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    folder = tmp_path_factory.mktemp("notebook")
    data = make_data(folder)
    device = DeviceModule.for_data(data, network=DeviceModelConfig(**PIXEL_NETWORK))
    fitting = trainer()
    fitting.fit(device, datamodule=data)
    fitting.save_checkpoint(folder / "device.ckpt")
    cloud = CloudModule.for_data(data, device_ckpt=str(folder / "device.ckpt"), dynamic=DYNAMIC, cloud=CLOUD)
    fitting = trainer()
    fitting.fit(cloud, datamodule=data)
    fitting.save_checkpoint(folder / "cloud.ckpt")
    return Notebook(folder, data, device, cloud, folder / "device.ckpt", folder / "cloud.ckpt")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_both_halves_load_without_their_data_and_without_code_of_the_file(notebook: Notebook) -> None:
    raw = torch.load(notebook.cloud_ckpt, weights_only=True)  # refuses everything but tensors and plain data
    json.dumps(raw["hyper_parameters"])
    device = DeviceModule.load_from_checkpoint(notebook.device_ckpt)
    cloud = CloudModule.load_from_checkpoint(notebook.cloud_ckpt)
    assert same_weights(device, notebook.device) and same_weights(cloud, notebook.cloud)
    assert cloud.cloud_config == CLOUD and cloud.dynamic == DYNAMIC and cloud.network.config == device.network.config
    # As Lightning itself does it, too, and with a setting changed.
    plain = L.LightningModule.load_from_checkpoint.__func__(CloudModule, notebook.cloud_ckpt, weights_only=True)
    assert same_weights(plain, notebook.cloud)
    assert CloudModule.load_from_checkpoint(notebook.cloud_ckpt, label_smoothing=0.3).label_smoothing == 0.3


def test_a_cloud_half_needs_its_device_half_no_more(notebook: Notebook, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(notebook.cloud_ckpt)
    checkpoint["hyper_parameters"]["device_ckpt"] = "gone.ckpt"
    torch.save(checkpoint, tmp_path / "cloud.ckpt")
    assert same_weights(CloudModule.load_from_checkpoint(tmp_path / "cloud.ckpt"), notebook.cloud)


def test_a_loaded_module_is_tested_by_a_plain_trainer(notebook: Notebook) -> None:
    loaded = CloudModule.load_from_checkpoint(notebook.cloud_ckpt)
    data = make_data(notebook.folder)
    (first, *_) = trainer().test(loaded, datamodule=data, verbose=False)
    again = trainer()
    again.test(notebook.cloud, datamodule=make_data(notebook.folder), verbose=False)
    assert loaded.result_rows == notebook.cloud.result_rows and first
    assert {row["method"] for row in loaded.result_rows} == {"cdc_mmpg", "static", "shuffled_device"}
    # Loaders alone do, without a data module.
    alone = CloudModule.load_from_checkpoint(notebook.cloud_ckpt)
    trainer().test(alone, dataloaders=data.test_dataloader(), verbose=False)
    assert alone.result_rows == loaded.result_rows


def test_a_loaded_module_goes_on_learning_from_where_it_was(notebook: Notebook) -> None:
    data = make_data(notebook.folder)
    data.setup("fit")
    loaded = DeviceModule.load_from_checkpoint(notebook.device_ckpt).prepare(data)
    assert same_weights(loaded, notebook.device)
    trainer().fit(loaded, datamodule=data)
    assert not same_weights(loaded, notebook.device)


def test_a_module_without_start_values_is_not_trained(notebook: Notebook) -> None:
    bare = DeviceModule(notebook.data.meta, DeviceModelConfig(**PIXEL_NETWORK))
    with pytest.raises(UserError, match=r"DeviceModule\.for_data"):
        trainer().fit(bare, datamodule=notebook.data)


def test_the_verbs_take_what_a_notebook_wrote(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--trainer.logger=false", "--trainer.accelerator=cpu"]
    assert main(["test", "--ckpt_path", str(notebook.cloud_ckpt), "--output", "rows.json", *quick]) == 0
    rows = json.loads(Path("rows.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert any(row["method"] == "cdc_mmpg" for row in rows)
    assert main(["export", "--ckpt", str(notebook.cloud_ckpt), "--output", "bundle"]) == 0
    assert json.loads(Path("bundle/manifest.json").read_text())["task"] == "open_ended"
    half = CloudHalf.load(str(notebook.cloud_ckpt))
    assert half.width == notebook.cloud.network.anchor_width
    tiny.write_config(
        Path("one.yaml"), data=pixel_data(), model=tiny.device_config(), trainer=tiny.trainer_config(logger=False)
    )
    shutil.copy(notebook.device_ckpt, "own-0.ckpt")
    runs = {"static": {"config": "one.yaml", "checkpoint": "own-{seed}.ckpt"}}
    adapted = {"prior": {"method": "majority", "checkpoint": "static"}}
    tiny.write_config(Path("both.yaml"), seeds=[0], runs=runs, adapted=adapted)
    assert main(["compare", "--config", "both.yaml", "--output", "compared"]) == 0
    compared = json.loads(Path("compared/report.json").read_text())
    assert {row["method"] for row in compared["rows"]} >= {"static", "prior"}
    capsys.readouterr()
    for changed, kept in ((False, 2), (True, 0)):  # trained again under the same name: what starts from it, too
        if changed:
            own = torch.load("own-0.ckpt", weights_only=True)
            torch.save(own | {"state_dict": {n: 2 * t for n, t in own["state_dict"].items()}}, "own-0.ckpt")
        assert main(["compare", "--config", "both.yaml"]) == 0
        assert capsys.readouterr().out.count("finished before") == kept
    assert main(["compare", "--config", "both.yaml", "--seeds", "0", "1"]) == 2
    assert "checkpoint own-1.ckpt does not exist; did you mean own-0.ckpt?" in capsys.readouterr().err


def test_pretrained_folders_hold_json_and_safetensors(notebook: Notebook, tmp_path: Path) -> None:
    for module in (notebook.device, notebook.cloud):
        folder = tmp_path / module.half_name
        module.save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
        again = type(module).from_pretrained(folder)
        assert same_weights(again, module) and not again.training
        either, _ = load_module(folder, AnsweringModule)
        assert type(either) is type(module)
    with pytest.raises(UserError, match="device half, expected the cloud half"):
        CloudModule.from_pretrained(tmp_path / "device")
    (tmp_path / "cloud" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="save it again"):
        CloudModule.from_pretrained(tmp_path / "cloud")
    with pytest.raises(UserError, match=r"neither a folder|does not exist"):
        CloudModule.from_pretrained(tmp_path / "nowhere")


def test_codebooks_of_the_link_travel_with_the_folder(notebook: Notebook, tmp_path: Path) -> None:
    from lit_mmpg.cloud.exchange import LinkConfig

    data = make_data(notebook.folder)
    link = LinkConfig(codebooks=2)
    cloud = CloudModule.for_data(data, device_ckpt=str(notebook.device_ckpt), dynamic=DYNAMIC, cloud=CLOUD, link=link)
    trainer().fit(cloud, datamodule=data)
    cloud._fit_codebooks(again=False)
    assert cloud.quantiser is not None
    cloud.save_pretrained(tmp_path / "cloud")
    assert CloudModule.from_pretrained(tmp_path / "cloud").quantiser == cloud.quantiser


def test_checkpoints_of_older_versions_are_refused_in_one_line(notebook: Notebook, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(notebook.cloud_ckpt)
    del checkpoint["hyper_parameters"]
    checkpoint["lit_mmpg"] |= {"network": {"width": 16}, "config": "{}"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"another version of lit-mmpg.*train again"):
        load_module(tmp_path / "old.ckpt", CloudModule)
    assert main(["test", "--ckpt_path", str(tmp_path / "old.ckpt")]) != 0


def test_a_checkpoint_names_no_class_of_another_kind(notebook: Notebook, tmp_path: Path) -> None:
    for key, path in (("_class_path", "subprocess.Popen"), ("network", "torch.nn.Linear")):
        checkpoint = read_checkpoint(notebook.cloud_ckpt)
        value = path if key == "_class_path" else {"class_path": path, "init_args": {"in_features": 1}}
        checkpoint["hyper_parameters"] = checkpoint["hyper_parameters"] | {key: value}
        torch.save(checkpoint, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=path.rsplit(".", 1)[1]):
            load_module(tmp_path / "other.ckpt", AnsweringModule)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that Python finds and nobody imported; it leaves a trace when it is."""
    (tmp_path / "stranger_networks").mkdir()
    (tmp_path / "stranger_networks" / "__init__.py").touch()
    (tmp_path / "stranger_networks" / "small.py").write_text(
        f"from pathlib import Path\nfrom {__name__} import Small\nPath({str(tmp_path / 'trace')!r}).touch()\n"
        "class Own(Small):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trust, "_named", set())
    yield "stranger_networks.small"
    for name in [name for name in sys.modules if name.startswith("stranger_networks")]:
        del sys.modules[name]


OPENED: dict[str, Callable[[Path], object]] = {
    "load_module": lambda path: load_module(path, AnsweringModule),
    "load": lit_mmpg.load,  # the data is named by the file, too
    "test": lambda path: adapted.load(path),
}


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize(
    "place", ["_class_path", "network", "network by name", "optimiser", "optimiser by name", "data"]
)
def test_a_file_gets_no_module_imported(
    notebook: Notebook, tmp_path: Path, stranger: str, place: str, opened: str
) -> None:
    checkpoint = read_checkpoint(notebook.device_ckpt)
    settings = dict(checkpoint["hyper_parameters"])
    named = {"class_path": f"{stranger}.Own"}
    if place == "_class_path":
        settings[place] = named["class_path"]
    elif place.endswith(" by name"):
        settings[place.removesuffix(" by name")] = named["class_path"]
    elif place == "data":
        settings["data"] = settings["data"] | {"extra": named}
        checkpoint["datamodule_hyper_parameters"] = checkpoint["datamodule_hyper_parameters"] | {
            "_class_path": stranger
        }
    else:
        settings[place] = named
    checkpoint["hyper_parameters"] = settings
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(
        UserError, match=rf"other\.ckpt names the class {stranger}.*import .* before loading, or set LIT_"
    ):
        OPENED[opened](tmp_path / "other.ckpt")
    assert not (tmp_path / "trace").exists() and stranger not in sys.modules


@pytest.mark.parametrize("how", ["import", "variable", "configuration", "flag", "entry point"])
def test_what_the_user_names_is_trusted(
    notebook: Notebook, tmp_path: Path, stranger: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"class_path": f"{stranger}.Own", "init_args": {"width": 3}}
    with pytest.raises(UserError, match="before loading"):
        network_factory(plain)
    import stranger_networks  # noqa: F401  # the package alone is not its modules

    with pytest.raises(UserError, match="before loading"):
        network_factory(plain)
    assert not (tmp_path / "trace").exists()
    if how == "import":
        importlib.import_module(stranger)
    elif how == "variable":
        monkeypatch.setenv("LIT_MMPG_TRUST", "others, stranger_networks")
    elif how == "configuration":
        config = tiny.write_config(tmp_path / "own.yaml", model=tiny.device_config(network=plain))
        read_request("fit", ["--config", str(config)])
    elif how == "flag":
        read_request("test", ["--ckpt_path", "x.ckpt", f"--model.init_args.network.class_path={stranger}.Own"])
    else:
        info = tmp_path / "stranger-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lit_mmpg.networks]\nown = {stranger}:Own\n")
    network = build_network(network_factory(plain), Shapes("open_ended", (3, 8, 8), 5, 4))
    assert type(network).__name__ == "Own" and (tmp_path / "trace").exists()


def test_a_saved_folder_and_a_repository_are_systems(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook.cloud.save_pretrained(tmp_path / "cloud")
    clip = notebook.data.corpus.frames.frames(notebook.data.corpus.frames.ids()[0])
    outcomes = []
    for source in (notebook.cloud_ckpt, tmp_path / "cloud"):
        system = lit_mmpg.load(source)
        device = system.new_device("kitchen")
        static = device.answer(clip, "what is mine")
        device.observe(clip)
        outcomes.append((static, device.personalise().digest, device.answer(clip, "what is mine")))
    assert outcomes[0] == outcomes[1]
    # Every verb takes a folder, too, or says why not.
    folder, bundle = str(tmp_path / "cloud"), str(tmp_path / "bundle")
    assert CloudHalf.load(folder).checkpoint_digest == system.bundle.manifest.checkpoint_digest
    assert main(["export", "--ckpt", folder, "--output", bundle, "--samples", "synthetic"]) == 0
    assert lit_mmpg.load(bundle).bundle.manifest.checkpoint_digest == system.bundle.manifest.checkpoint_digest
    capsys.readouterr()
    for command, said in (
        (["export", "--ckpt", folder, "--output", bundle], "--samples synthetic"),
        (["test", "--ckpt_path", folder], "name the checkpoint file itself"),
        (["log-model", "--ckpt", folder], "does not name the run"),
    ):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert said in err and err.startswith(f"error: {folder}") and err.count("\n") == 1
    (tmp_path / "cloud" / "config.json").rename(tmp_path / "cloud" / "kept.json")
    with pytest.raises(UserError, match=r"without config\.json"):
        lit_mmpg.load(tmp_path / "cloud")

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"^kitchens/small is neither a folder .* nor a repository \(.+\)$"):
        lit_mmpg.load("kitchens/small")
    # What the hub's client keeps in its cache is found without the hub.
    commit, cached = "0" * 40, tmp_path / "cache" / "models--kitchens--small"
    notebook.cloud.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert lit_mmpg.load("kitchens/small").bundle.manifest.checkpoint_digest == system.bundle.manifest.checkpoint_digest
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint cloud/bset\.ckpt does not exist"):
        lit_mmpg.load("cloud/bset.ckpt")


def test_a_network_of_ones_own_is_trained_by_its_class_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = {"class_path": f"{__name__}.Small", "init_args": {"width": 6}}
    quick = tiny.trainer_config(logger=False, num_sanity_val_steps=0)
    data = pixel_data()
    config = tiny.write_config(Path("device.yaml"), data=data, model=tiny.device_config(network=network), trainer=quick)
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir=one"]) == 0
    (first,) = Path("one").rglob("best.ckpt")
    dynamic = {"layers": ["colours", "answers"], "form": "low_rank", "rank": 2}
    config = tiny.write_config(
        Path("cloud.yaml"), data=data, model=tiny.cloud_config(first, dynamic=dynamic), trainer=quick
    )
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir=two"]) == 0
    (second,) = Path("two").rglob("best.ckpt")
    device, cloud = DeviceModule.load_from_checkpoint(first), CloudModule.load_from_checkpoint(second)
    assert isinstance(device.network, Small) and isinstance(cloud.network, Small) and cloud.network.width == 6
    assert [entry.name for entry in cloud.network.spec][:3] == ["colours.u", "colours.v", "colours.c"]
    assert any(bool(g.weight.any()) for g in cloud.adaptor.layers["colours"].generators)  # it has learnt something
    assert main(["test", "--ckpt_path", str(second), "--output", "rows.json", "--trainer.logger=false"]) == 0
    assert main(["export", "--ckpt", str(second), "--output", "bundle", "--torch"]) == 0
    from lit_mmpg.runtime.bundle import Bundle
    from lit_mmpg.torch_engines.base import load_network

    assert same_weights(load_network(Bundle.open(Path("bundle"))), cloud.network)
    own = CloudModule(device.meta, network=partial(Small, width=5), dynamic=DynamicConfig(("colours",)), cloud=CLOUD)
    own.save_pretrained("own")
    assert same_weights(CloudModule.from_pretrained("own"), own)


def test_a_network_that_breaks_the_contract_is_refused(notebook: Notebook) -> None:
    with pytest.raises(UserError, match=r"retrieval.*embed_video, embed_text"):
        Small(Shapes("retrieval", (3, 8, 8), 5), None)
    with pytest.raises(UserError, match=r"'colour'.*do not exist"):
        CloudModule(notebook.data.meta, network=Small, dynamic=DynamicConfig(("colour",)))
    with pytest.raises(UserError, match="no device model"):
        DeviceModule(notebook.data.meta, network=partial(NotOne, size=3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a checkpoint cannot keep"):
        DeviceModule(notebook.data.meta, network=lambda shapes, dynamic: Small(shapes, dynamic))
