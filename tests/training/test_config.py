from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from lit_mmpg import trust
from lit_mmpg.errors import UserError
from lit_mmpg.files import parse_yaml, shipped_configs
from lit_mmpg.training.config import find_config, load_config, merge, read_request


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = {
        "data/clips.yaml": {"class_path": "Clips", "init_args": {"root": "${CLIPS_ROOT}/all", "batch": {"size": 4}}},
        "trainer/slow.yaml": {"max_epochs": 100, "accelerator": "cpu"},
        "experiment/device.yaml": {"model": {"class_path": "Device"}, "trainer": {"max_epochs": 5}},
        "experiment/both.yaml": {
            "device_stage": "device.yaml",
            "model": {"class_path": "Cloud"},
            "data": ["../data/clips.yaml", {"init_args": {"batch": {"shuffle": True}}}],
            "trainer": ["../trainer/slow.yaml", {"max_epochs": 2}],
        },
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(content))
    return tmp_path


def test_groups_compose_relative_to_the_file(folder: Path) -> None:
    config = load_config(Path("experiment/both.yaml"))
    assert config["trainer"] == {"max_epochs": 2, "accelerator": "cpu"}
    assert config["data"]["init_args"] == {"root": "${CLIPS_ROOT}/all", "batch": {"size": 4, "shuffle": True}}
    assert config["device_stage"] == str(folder / "experiment/device.yaml")


def test_another_class_replaces_the_arguments() -> None:
    base = {"class_path": "A", "init_args": {"x": 1}}
    assert merge(base, {"init_args": {"y": 2}}) == {"class_path": "A", "init_args": {"x": 1, "y": 2}}
    assert merge(base, {"class_path": "B"}) == {"class_path": "B"}


def test_later_files_and_the_device_stage(folder: Path) -> None:
    Path("mine.yaml").write_text("{trainer: {max_epochs: 7}, ckpt_path: x.ckpt}")
    flags = ["--model.width", "3", "--data.root", "here", "--model=Other", "--seed_everything=4"]
    request = read_request("fit", ["--config", "experiment/both.yaml", "-c", "mine.yaml", *flags])
    assert request.config["trainer"]["max_epochs"] == 7
    assert request.options == {"ckpt_path": "x.ckpt", "device_stage": str(folder / "experiment/device.yaml")}
    assert request.flags == flags
    assert [request.flag(name) for name in ("model.width", "data.root", "seed_everything", "data.x")] == [
        "3", "here", "4", None,
    ]  # fmt: skip
    device = request.derive(Path(str(request.options["device_stage"])))
    assert device.flags == ["--data.root", "here", "--seed_everything=4"]
    assert device.config["model"] == {"class_path": "Device"}
    assert device.config["data"] == request.config["data"]
    assert device.config["trainer"] == {"max_epochs": 5}


def test_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPS_ROOT", raising=False)
    asked = ["--config", "experiment/both.yaml"]
    with pytest.raises(UserError, match=r"CLIPS_ROOT is not set; set it or pass --data\.root"):
        read_request("fit", asked).arguments()
    for flag in (["--data.root=x"], ["--data.init_args.root", "x"]):
        config = json.loads(read_request("fit", asked + flag).arguments()[0].removeprefix("--config="))
        assert "root" not in config["data"]["init_args"]
    Path("other.yaml").write_text("trainer: {max_epochs: '${oc.env:EPOCHS,3}'}")
    with pytest.raises(UserError, match=r"'trainer\.max_epochs' is .*no other interpolation \(as OmegaConf's\)"):
        read_request("fit", ["--config", "other.yaml"]).arguments()
    monkeypatch.setenv("CLIPS_ROOT", "/clips")
    config = json.loads(read_request("fit", asked).arguments()[0].removeprefix("--config="))
    assert config["data"]["init_args"]["root"] == "/clips/all"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("experiment/boht.yaml", r"experiment/boht\.yaml does not exist; did you mean experiment/both\.yaml\?"),
        ("experimnt/both.yaml", r"did you mean experiment\?"),
        ("experiment", r"experiment is a folder; name a file in it"),
        ("a" * 5000, r"^configuration file a{60}\.\.\. is too long for a path"),
        ("configs/trainer/defalt.yaml", r"did you mean .*configs/trainer/default\.yaml\?"),
    ],
)
def test_wrong_path_names_the_nearest(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_config(name)


def test_shipped_files_are_found_from_anywhere_but_the_own_come_first(folder: Path) -> None:
    assert find_config("configs/trainer/default.yaml") == shipped_configs() / "trainer/default.yaml"
    own = folder / "configs/trainer/default.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_config("configs/trainer/default.yaml").absolute() == own


@pytest.mark.parametrize("text", ["a: [", "- 1", "trainer: 3", ""])
def test_malformed_file(folder: Path, text: str) -> None:
    Path("bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_config(Path("bad.yaml"))


def test_yaml_is_what_json_has(tmp_path: Path) -> None:
    read = partial(parse_yaml, where="run.yaml")
    assert read("{a: 1e-3, b: 2020-01-01, 2020-01-02: c, d: '1e-3', e: 1e}") == {
        "a": 0.001, "b": "2020-01-01", "2020-01-02": "c", "d": "1e-3", "e": "1e"
    }  # fmt: skip
    for twice in ("{true: 1, yes: 2}", "{1: a, 0x1: b}", "{null: 1, ~: 2}"):
        with pytest.raises(UserError, match=r"run\.yaml, line 1: key .* is given a second time"):
            read(twice)
    assert read("{base: &base {a: 1, b: 2}, own: {<<: *base, a: 3}, 1: x, '1': y}") == {
        "base": {"a": 1, "b": 2}, "own": {"a": 3, "b": 2}, 1: "x", "1": "y"
    }  # fmt: skip
    for value in ("!!set {a, b}", "!!binary aGVsbG8="):
        with pytest.raises(UserError, match=r"run\.yaml is not valid YAML: could not determine a constructor"):
            read(f"a: {value}")


def test_every_shipped_file_is_a_mapping() -> None:
    for path in shipped_configs().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        variants = content.get("variants", ()) if isinstance(content, dict) else ()
        names = [path.with_name(f"{path.name}#{name}") for name in variants] or [path]
        assert all(load_config(name) for name in names) if isinstance(content, dict) else path.stem == "links"


def test_the_next_command_is_told_which_modules_the_configurations_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.setenv(trust.VARIABLE, "known")
    Path("experiment/own.yaml").write_text(
        "data: {class_path: my_data.Toys}\nmodel: {class_path: known.Cloud}\n"
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.Timer}]}\n"
        "device_stage: {model: {class_path: DeviceModule, init_args: {network: {class_path: nets.small.Net}}}}\n"
    )
    request = read_request("fit", ["--config", "experiment/own.yaml"])
    request.derive(request.options["device_stage"])
    assert trust.to_trust() == "my_data,nets.small"


def test_the_device_half_of_a_configuration_is_trained_alone(folder: Path) -> None:
    Path("experiment/one.yaml").write_text(
        "data: {class_path: Data}\nmodel: {class_path: Cloud}\ntrainer: {max_epochs: 3}\n"
        "device_stage: {model: ../model/device.yaml, trainer: {max_epochs: 5}}\ntitle: What it is\n"
    )
    Path("model").mkdir(exist_ok=True)
    Path("model/device.yaml").write_text("class_path: Device")
    both = read_request("fit", ["--config", "experiment/one.yaml", "--model.x=1"])
    alone = read_request("fit", ["--config", "experiment/one.yaml", "--stage", "device", "--model.x=1"])
    wanted = {"data": {"class_path": "Data"}, "model": {"class_path": "Device"}, "trainer": {"max_epochs": 5}}
    assert alone.config == both.derive(both.options["device_stage"]).config == wanted
    assert alone.flags == ["--model.x=1"] and alone.options["device_stage"] is None
    own = ["--device_stage.trainer.max_epochs=1", "--device_stage.model.width", "8", "--trainer.max_steps=3"]
    both = read_request("fit", ["--config", "experiment/one.yaml", *own])
    device = ["--trainer.max_steps=3", "--trainer.max_epochs=1", "--model.width", "8"]
    assert both.flags == ["--trainer.max_steps=3"] and both.derive(both.options["device_stage"]).flags == device
    assert read_request("fit", ["--config", "experiment/one.yaml", "--stage", "device", *own]).flags == device
    Path("twice.yaml").write_text("max_epochs: 1\nmax_epochs: 2\n")
    for arguments, told in (
        (["--config", "experiment/one.yaml", "--device_stage.trainer=twice.yaml"], r"twice\.yaml.*max_epochs"),
        (["--config", "experiment/one.yaml", "--stage", "cloud"], "--stage cloud: 'device' trains"),
        (["--config", "experiment/device.yaml", "--stage=device"], "no 'device_stage'"),
        (["--config", "experiment/device.yaml", *own], "--device_stage.trainer.max_epochs=1 sets what no device_stage"),
    ):
        with pytest.raises(UserError, match=told):
            read_request("fit", arguments)


def test_a_variant_is_the_common_part_with_its_own_over_it(folder: Path) -> None:
    Path("many.yaml").write_text(
        "trainer: {max_epochs: 3, devices: 1}\nvariants:\n  qa: {trainer: {max_epochs: 5}}\n  search: {data: {a: 1}}\n"
    )
    request = read_request("fit", ["--config", "many.yaml#qa"])
    assert request.config == {"trainer": {"max_epochs": 5, "devices": 1}} and request.name == "many_qa"
    Path("bad.yaml").write_text("variants: [1]")
    for name, told in (
        ("many.yaml", r"many\.yaml: name a variant, for example many\.yaml#qa; it has qa, search"),
        ("many.yaml#serch", r"no variant 'serch'; did you mean 'search'"),
        ("experiment/both.yaml#qa", r"both\.yaml holds no mapping of 'variants'"),
        ("bad.yaml#qa", r"bad\.yaml holds no mapping of 'variants'"),
        ("gone.yaml#qa", r"gone\.yaml does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            read_request("fit", ["--config", name])
