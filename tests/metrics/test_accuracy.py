from __future__ import annotations

import posixpath
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.metrics.accuracy import DeviceAccuracy, accuracy_metrics, group_accuracy, metric_names

KINDS = ("what", "who", "how", "never asked", "")


def random_items(seed: int, items: int = 400, devices: int = 37) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    device = rng.integers(devices, size=items) * 3 + 5
    correct = rng.random(items) < rng.random(devices * 3 + 5)[device]
    return correct, device, rng.choice([0, 1, 2, 4], size=items)


def reference(correct: np.ndarray, device: np.ndarray, kind: np.ndarray) -> dict[str, float]:
    by_device = sorted(correct[device == d].mean() for d in set(device.tolist()))
    worst = by_device[: max(1, int(len(by_device) * 0.1))]
    result = {
        "accuracy": correct.mean(),
        "accuracy_macro": np.mean(by_device),
        "accuracy_worst_decile": np.mean(worst),
    }
    for index in set(kind.tolist()):
        result[f"accuracy_kind/{KINDS[index] or 'unknown'}"] = correct[kind == index].mean()
    return result


@pytest.mark.parametrize("seed", range(5))
def test_equals_numpy_reference(seed: int) -> None:
    correct, device, kind = random_items(seed)
    actual = accuracy_metrics(*map(torch.from_numpy, (correct, device, kind)), KINDS)
    assert actual == pytest.approx(reference(correct, device, kind), abs=1e-12)
    assert "accuracy_kind/never asked" not in actual


@pytest.mark.parametrize(("devices", "worst"), [(1, 1), (9, 1), (16, 1), (20, 2), (64, 6)])
def test_worst_decile_holds_a_tenth_but_at_least_one_device(devices: int, worst: int) -> None:
    device = torch.arange(devices).repeat_interleave(devices)
    # Device d answers d of its items.
    correct = (torch.arange(devices)[None] < torch.arange(devices)[:, None]).flatten()
    expected = np.mean(np.arange(worst) / devices)
    assert accuracy_metrics(correct, device)["accuracy_worst_decile"] == pytest.approx(expected)


def test_macro_weighs_devices_and_micro_weighs_items() -> None:
    result = accuracy_metrics(torch.tensor([True, True, True, False]), torch.tensor([4, 4, 4, 9]))
    assert (result["accuracy"], result["accuracy_macro"], result["accuracy_worst_decile"]) == (0.75, 0.5, 0.0)


def test_group_accuracy_counts() -> None:
    rows = group_accuracy(torch.tensor([True, False, True]), torch.tensor([8, 8, -2]))
    assert rows.group.tolist() == [-2, 8]
    assert rows.accuracy.tolist() == [1.0, 0.5]
    assert rows.items.tolist() == [1, 2]


def test_class_equals_function_in_any_order_and_batching() -> None:
    correct, device, kind = map(torch.from_numpy, random_items(11))
    metric = DeviceAccuracy(KINDS)
    for part in torch.randperm(len(correct), generator=torch.Generator().manual_seed(0)).split(23):
        metric.update(correct[part], device[part], kind[part], part)
    expected = accuracy_metrics(correct, device, kind, KINDS)
    assert {k: float(v) for k, v in metric.compute().items()} == pytest.approx(expected, abs=1e-6)
    table = metric.per_device()
    assert sum(count for _, count in table.values()) == len(correct)
    for index, (accuracy, _) in table.items():
        assert accuracy == pytest.approx(float(correct[device == index].double().mean()))


def test_of_repeated_items_the_first_counts() -> None:
    metric = DeviceAccuracy()
    zero = torch.zeros(2, dtype=torch.long)
    metric.update(torch.tensor([True, False]), zero, zero, torch.tensor([0, 1]))
    metric.update(torch.tensor([True, False]), zero, zero, torch.tensor([1, 0]))
    assert float(metric.compute()["accuracy"]) == 0.5
    assert metric.items().correct.tolist() == [True, False]
    assert metric.per_device() == {0: (0.5, 2)}


def test_same_item_on_two_devices_counts_on_both() -> None:
    metric = DeviceAccuracy()
    zero = torch.zeros(2, dtype=torch.long)
    metric.update(torch.tensor([True, False]), torch.tensor([0, 1]), zero, zero)
    assert metric.per_device() == {0: (1.0, 1), 1: (0.0, 1)}


def test_reset_forgets() -> None:
    metric = DeviceAccuracy()
    one = torch.ones(1, dtype=torch.long)
    metric.update(torch.tensor([False]), one, one, one)
    metric.compute()
    metric.reset()
    metric.update(torch.tensor([True]), one, one, one)
    assert float(metric.compute()["accuracy"]) == 1.0


def test_faults() -> None:
    one = torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match="items do not match"):
        DeviceAccuracy().update(torch.tensor([True, False]), one, one, one)
    with pytest.raises(ValueError, match="no items"):
        accuracy_metrics(torch.zeros(0, dtype=torch.bool), one[:0])
    with pytest.raises(ValueError, match="question type 1 has no name"):
        accuracy_metrics(torch.tensor([True]), one, one, ["what"])
    with pytest.raises(ValueError, match="kind is needed"):
        accuracy_metrics(torch.tensor([True]), one, None, ["what"])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=300), unique=True, max_size=12))
def test_each_question_type_has_a_metric_name_of_its_own(kinds: list[str]) -> None:
    fixed = [
        "人物",
        "颜色",
        "",
        "unknown",
        "What",
        "what",
        "a/b",
        "a b",
        "a  b",
        "a.",
        "..",
        " a",
        "x" * 300,
        "x" * 301,
    ]
    for given_kinds in (kinds, fixed):
        names = metric_names(given_kinds)
        assert len({name.casefold() for name in names}) == len(given_kinds)
        for name in names:
            # What Lightning's logger leaves, and what names a file that means nothing else.
            assert (
                re.fullmatch(r"[A-Za-z0-9_. -]{1,60}", name) and name.strip(" .") and posixpath.normpath(name) == name
            )
    assert metric_names(["what", "how many", "v1.2", ""]) == ["what", "how many", "v1.2", "unknown"]
