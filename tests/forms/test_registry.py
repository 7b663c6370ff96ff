"""Forms of this package and of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_mmpg import adaptable, plugins
from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import entries
from lit_mmpg.forms.layers import Conv2dLayer, LinearLayer
from lit_mmpg.forms.registry import BUILT_IN, find_form, form_names

FOREIGN = '''
import torch
from lit_mmpg.forms.base import Form, Part, Zero

class Rotate(Form):
    """``angle [1]``: turns neighbouring outputs."""
    name = "rotate"
    summary = "angle [1]: turns neighbouring outputs"
    def parts(self, layer, rank):
        return (Part("angle", (1,), Zero()),)
    def apply(self, layer, x, static, own, devices):
        y = layer.static(x)
        rows = y if devices is None else y.reshape(devices, -1, y.shape[-1])
        angle = own[0] if devices is None else own[0].unsqueeze(1)
        return (rows.cos() * angle.sin() + rows * angle.cos()).reshape(y.shape)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, as an installer lays it out, whose second form cannot be imported and whose third is none."""
    (tmp_path / "foreign_forms.py").write_text(FOREIGN)
    info = tmp_path / "foreign_forms-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-forms\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[lit_mmpg.forms]\nrotate = foreign_forms:Rotate\n"
        "broken = foreign_forms.gone:Gone\nnone = foreign_forms:torch\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins.found.cache_clear()
    yield
    plugins.found.cache_clear()


def test_a_form_of_another_package_is_one_file(installed: None) -> None:
    assert form_names() == (*BUILT_IN, "rotate", "broken", "none")
    layer = DynamicLinear(4, 6, "rotate")
    assert [(e.name, e.shape) for e in entries("head", layer.parts())] == [("head.angle", (1,))]
    x = torch.randn(3, 2, 4)
    assert torch.equal(layer(x, [torch.zeros(3, 1)]), layer(x))
    net = adaptable(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), ["0"], "rotate")
    assert net.verify(x[0]).batch


def test_a_form_that_cannot_be_used_names_its_package(installed: None) -> None:
    with pytest.raises(UserError, match=r"'broken'.*'foreign-forms 1\.2' cannot be loaded \(ModuleNotFoundError"):
        find_form("broken")
    with pytest.raises(
        UserError, match=r"'none' of the package 'foreign-forms 1\.2' cannot be used: it is no subclass"
    ):
        find_form("none")
    assert find_form("rotate").name == "rotate"


def test_unknown_forms_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"there is no form 'lowrank'; did you mean 'low_rank'\?; known are full, low_rank"
    ):
        find_form("lowrank")


def test_bytes_of_a_download() -> None:
    layer = LinearLayer(nn.Linear(1280, 256))
    assert find_form("low_rank").payload_bytes(layer, 8, 1) == 8 * (1280 + 256) + 256
    assert find_form("basis").payload_bytes(layer, 64) == 256
    convolution = Conv2dLayer(nn.Conv2d(3, 32, 3))
    assert find_form("low_rank").payload_bytes(convolution, 2) == 4 * (2 * 32 + 2 * 27 + 32)
    assert find_form("full").payload_bytes(convolution, 2) == 4 * (32 * 27 + 32)
