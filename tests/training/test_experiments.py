from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.files import shipped_configs
from lit_mmpg.methods.comparison.cells import CellStore
from lit_mmpg.methods.comparison.plan import is_template, read_comparison
from lit_mmpg.methods.comparison.work import Work
from lit_mmpg.training import stages
from lit_mmpg.training.config import read_request
from lit_mmpg.training.lightning_cli import CLI, _refusals

FILES = sorted((shipped_configs() / "experiment").glob("*.yaml"))
CONTENT = {path: yaml.safe_load(path.read_text()) for path in FILES}
COMPARISONS = [str(path) for path in FILES if "runs" in CONTENT[path] and not is_template(CONTENT[path])]
TEMPLATES = [str(path) for path in FILES if is_template(CONTENT[path])]
EXPERIMENTS = [
    f"{path}{variant}"
    for path in FILES
    if "runs" not in CONTENT[path]
    for variant in [f"#{name}" for name in CONTENT[path].get("variants", ())] or [""]
]
PUBLIC = [name for name in EXPERIMENTS if "\ntitle:" in Path(name.partition("#")[0]).read_text() or "#" in name]
PAIRS = [(kind, name) for name in PUBLIC for kind in TEMPLATES if ("retrieval" in kind) == ("retrieval" in name)]


def short(name: object) -> str:
    return str(name).rpartition("/")[2]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=short)
def test_every_shipped_experiment_parses(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MMPG_DATA", str(tmp_path))
    request = read_request("fit", ["--config", path])
    assert CLI(request).record["model"]["class_path"].startswith("lit_mmpg.")
    stage = request.options["device_stage"]
    if stage is not None:
        assert CLI(request.derive(stage)).record["model"]["class_path"] == "lit_mmpg.device.module.DeviceModule"


@pytest.mark.parametrize(("path", "data"), [*((path, None) for path in COMPARISONS), *PAIRS], ids=short)
def test_every_run_of_a_shipped_comparison_parses(
    path: str, data: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_MMPG_DATA", str(tmp_path))
    comparison = read_comparison(path, data)
    assert comparison.title and (data is None or comparison.about)
    assert comparison.runs and comparison.seeds
    Work(comparison, CellStore(tmp_path), []).check()  # every run's flags, every adapted row's method and options
    known = set(comparison.row_names)
    for claim in comparison.claims:
        assert {claim.method, *claim.rivals} <= known, claim.id


def network_of(*flags: str, config: str = "configs/experiment/dual_encoder.yaml") -> dict[str, Any]:
    record = CLI(read_request("fit", ["--config", config, "--stage", "device", *flags])).record
    network: dict[str, Any] = record["model"]["init_args"]["network"]
    return network


def test_flags_of_a_network_of_ones_own_are_its_own() -> None:
    network = network_of("--model.network.init_args.width=32", "--model.network.frozen", "false")
    assert network["class_path"] == "lit_mmpg.device.DualEncoder"
    assert (network["init_args"]["width"], network["init_args"]["frozen"]) == (32, False)
    with pytest.raises(UserError, match="Option 'encoder_channels' is not accepted") as caught:
        network_of("--model.network.encoder_channels=2")  # which only the shipped network has
    assert "Subclasses are disabled" not in str(caught.value)
    demo = "configs/experiment/demo.yaml"
    assert network_of("--model.network.width=32", config=demo)["width"] == 32
    chosen = ("--model.network=lit_mmpg.device.DualEncoder", "--model.network.width=32")
    assert network_of(*chosen, config=demo)["init_args"]["width"] == 32


@pytest.mark.parametrize("given", ["--model.device_ckpt=d.ckpt", '--model={"device_ckpt": "d.ckpt"}', "--model=m.yaml"])
def test_a_device_half_that_is_given_is_not_trained(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began(stage: stages._Stage, *_: object, **__: object) -> None:
        raise KeyError(stage.name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages._Stage, "run", began)
    Path("m.yaml").write_text("init_args: {device_ckpt: d.ckpt}")
    demo = ["--config", "configs/experiment/demo.yaml"]
    for flag, first in ((given, "stage"), ("--model.device_ckpt=null", "device")):
        with pytest.raises(KeyError, match=first):
            stages.train(read_request("fit", [*demo, flag]))
    with pytest.raises(UserError, match="DeviceModule has no device_ckpt"):
        stages.train(read_request("fit", [*demo, "--model=DeviceModule"]))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.freeze_static=null", "model.freeze_static is null"),
        ("--model.losses=null", "model.losses is null"),
        ("--data.task=null", "data.task is null"),
        ("--seed_everything=false", "seed_everything is False; give a number"),
    ],
)
def test_what_is_no_value_is_refused(flag: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        CLI(read_request("fit", ["--config", "configs/experiment/demo.yaml", flag]))


class Faulty:
    def __init__(self, size: int = 1) -> None:
        raise ValueError("no matrix")


def test_what_a_class_of_somebodys_own_raises_is_left_as_it_is() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=Faulty | None)
    config = parser.parse_object({"made": {"class_path": f"{__name__}.Faulty"}})
    with pytest.raises(ValueError, match=r"^no matrix$"), _refusals():
        parser.instantiate(config)


def test_every_shipped_group_file_is_used() -> None:
    named = " ".join(path.read_text() for path in FILES)
    groups = [p for folder in ("data", "model") for p in (shipped_configs() / folder).glob("*.yaml")]
    assert groups and all(f"../{path.parent.name}/{path.name}" in named for path in groups)


def test_a_template_takes_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["compare", "--config", "configs/experiment/compare_retrieval.yaml", "--list", f"--data.root={tmp_path}"]
    assert main([*asked, "--data", "msvd.yaml#retrieval"]) == 0  # also beside the template
    assert "MSVD retrieval: rows" in capsys.readouterr().out
    assert main([*asked, "--data", "msvd.yaml#search"]) == 2
    assert "no variant 'search'; it has qa, retrieval" in capsys.readouterr().err
    assert main(asked) == 2 and "is a template" in capsys.readouterr().err
    assert read_comparison(asked[2], "msvd.yaml#retrieval").name == "compare_retrieval_msvd_retrieval"


def test_there_are_few_files() -> None:
    assert len(PAIRS) == 8 and len(list(shipped_configs().rglob("*.yaml"))) <= 35


def test_help_shows_every_flag_that_the_documents_name(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    classes = {"model": ("CloudModule", "DeviceModule"), "data": ("VideoData", "PersonalClipsData", "CameraClipsData")}
    asked = [f"--{part}.help={name}" for part, names in classes.items() for name in names]
    for argument in ("--help", *asked):
        with pytest.raises(SystemExit) as ended:
            main(["fit", argument])
        assert ended.value.code == 0
        said += capsys.readouterr().out
    assert all(f"--{part}.help" in said and name in said for part, names in classes.items() for name in names)
    pages = "".join(page.read_text(encoding="utf-8") for page in (Path(__file__).parents[2] / "docs").glob("*.md"))
    flags = set(re.findall(r"--(?:model|data|trainer|tracking)\.[a-z_]+(?:\.[a-z_]+)*", pages)) - {
        "--model.help",
        "--data.help",
    }
    assert len(flags) > 15
    assert not sorted(flag for flag in flags if flag not in said)
