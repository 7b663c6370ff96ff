"""The parts of the service one by one: batches, rates, keys, and what the verb says about mistakes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import json
import logging
import resource
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.serving.app import create_app, from_environment
from lit_mmpg.serving.batcher import Batcher
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ENVIRONMENT, ServeConfig
from lit_mmpg.serving.errors import Refused
from lit_mmpg.serving.keys import KeyRing, WatchedKeys, add_key
from lit_mmpg.serving.limits import (
    MOST_CLIENTS,
    Budget,
    RateLimiter,
    affordable_connections,
    read_body,
    spare_connections,
)
from lit_mmpg.serving.logs import JsonFormatter
from lit_mmpg.serving.protocol import ServiceLoop
from tests.serving.making import make_uploads

# -- batches -----------------------------------------------------------------------------------------------------


def test_who_asks_while_a_batch_is_computed_is_in_the_next_one_and_order_is_kept() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def compute(questions: Sequence[int]) -> list[int]:
        sizes.append(len(questions))
        assert gate.wait(10)
        return [10 * question for question in questions]

    async def run() -> list[int]:
        batcher = Batcher(compute, max_batch=8, max_wait_ms=0)
        batcher.start()
        first = batcher.enqueue(0)
        while not sizes:
            await asyncio.sleep(0.001)
        rest = [batcher.enqueue(number) for number in range(1, 21)]
        await asyncio.sleep(0.01)
        gate.set()
        answers = await asyncio.gather(first, *rest)
        await batcher.stop()
        return answers

    assert asyncio.run(run()) == [10 * number for number in range(21)]
    assert sizes == [1, 8, 8, 4]


def test_one_upload_that_cannot_be_computed_takes_no_other_with_it() -> None:
    def compute(questions: Sequence[int]) -> list[int]:
        if 3 in questions:
            raise ZeroDivisionError
        return list(questions)

    async def run() -> list[object]:
        batcher = Batcher(compute, max_batch=8, max_wait_ms=20)
        batcher.start()
        answers = await asyncio.gather(*map(batcher.enqueue, range(6)), return_exceptions=True)
        await batcher.stop()
        return list(answers)

    answers = asyncio.run(run())
    refusal = answers.pop(3)
    assert isinstance(refusal, Refused) and refusal.status == 500
    assert answers == [0, 1, 2, 4, 5]


def test_a_full_queue_refuses_and_nothing_is_computed_for_those_who_left() -> None:
    seen: list[int] = []

    async def run() -> None:
        batcher = Batcher(lambda questions: seen.extend(questions) or list(questions), max_wait_ms=30, max_queue=2)
        batcher.start()
        await asyncio.sleep(0)  # the batcher waits before anybody asks
        staying, leaving = batcher.enqueue(1), batcher.enqueue(2)
        with pytest.raises(Refused) as caught:
            batcher.enqueue(3)
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        leaving.cancel()
        assert await staying == 1
        await batcher.stop()

    asyncio.run(run())
    assert seen == [1]


# -- rates and bodies --------------------------------------------------------------------------------------------


def test_a_client_may_burst_and_then_waits_for_its_own_tokens_only() -> None:
    now = [0.0]
    limiter = RateLimiter(2.0, 3, clock=lambda: now[0])
    for _ in range(3):
        limiter.take("a")
    with pytest.raises(Refused) as caught:
        limiter.take("a")
    assert caught.value.status == 429 and caught.value.retry_after_s == pytest.approx(0.5)
    limiter.take("b")
    now[0] += 0.5
    limiter.take("a")
    with pytest.raises(Refused):
        limiter.take("a")
    now[0] += 1e6
    for _ in range(3):
        limiter.take("a")
    for client in range(MOST_CLIENTS + 50):
        limiter.take(f"client {client}")
    assert len(limiter._buckets) == MOST_CLIENTS


def test_bodies_are_read_up_to_the_limit_and_no_further() -> None:
    def body(*parts: bytes, declared: bytes | None = None) -> tuple[bytes | Refused, int]:
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages[-1]["more_body"] = False
        read = []

        async def receive() -> dict:
            read.append(1)
            return messages[len(read) - 1]

        try:
            return asyncio.run(read_body(receive, declared, 10)), len(read)
        except Refused as refused:
            return refused, len(read)

    assert body(b"12345", b"67890", declared=b"10") == (b"1234567890", 2)
    for parts, declared, reads in (
        ((b"12345", b"678901", b"x"), None, 2),
        ((b"x",), b"11", 0),
        ((b"x",), b"-1", 0),
        ((b"x",), b"9" * 400, 0),
    ):
        refused, count = body(*parts, declared=declared)
        assert isinstance(refused, Refused) and (refused.status, count) == (413, reads)


def test_bodies_that_are_held_at_once_have_a_limit() -> None:
    budget = Budget(10)
    with budget.holding() as first:
        first(6)
        with budget.holding() as second, pytest.raises(Refused) as caught:
            second(4)
            second(1)
        assert (caught.value.status, budget.held) == (503, 6)
    assert budget.held == 0


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "raised"),
    [
        (1024, 20_000, 4000, 4000, 4564),
        (8192, 20_000, 4000, 4000, 8192),
        (256, 256, 4000, 170, 256),
        (256, 256, 40, 40, 256),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4000, 4000, resource.RLIM_INFINITY),
        (1024, resource.RLIM_INFINITY, 4000, 4000, 4564),
    ],
)
def test_the_limit_of_open_files_is_raised_or_fewer_are_let_in(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, allowed: int, raised: int
) -> None:
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.__setitem__(slice(None), pair))
    assert affordable_connections(wanted) == allowed
    assert limits == [raised, hard]
    assert raised == resource.RLIM_INFINITY or allowed + spare_connections(allowed) + 64 <= raised


def test_too_few_descriptors_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: None)
    with pytest.raises(UserError, match="ulimit -n"):
        affordable_connections(40)


def test_no_descriptor_left_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = ServiceLoop()
    for _ in range(100):
        loop.call_exception_handler({"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")})
    loop.call_exception_handler({"message": "something else"})
    loop.close()
    assert [record.name for record in caplog.records] == ["lit_mmpg.serving", "asyncio"]


def test_log_lines_are_one_line_of_ascii() -> None:
    record = logging.makeLogRecord({"msg": "a\nb\x1b[2J\x9b2J\u2028\u202e", "device": "K\u00fcche"})
    line = JsonFormatter().format(record)
    assert line.isascii() and line.isprintable() and json.loads(line)["device"] == "K\u00fcche"


# -- keys --------------------------------------------------------------------------------------------------------


def test_keys_are_stored_as_digests_and_found_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.json"
    kitchen = add_key(path, "kitchen", ["kitchen", "kitchen-*"])
    everybody = add_key(path, "everybody", ["*"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kitchen not in path.read_text() and everybody not in path.read_text()
    ring = KeyRing.load(path)
    found = ring.find(f"Bearer {kitchen}".encode())
    assert found is not None and found.name == "kitchen"
    allowed = {name: found.allows(name) for name in ("kitchen", "kitchen-7", "kitchen2", "bath", "")}
    assert allowed == {"kitchen": True, "kitchen-7": True, "kitchen2": False, "bath": False, "": False}
    for header in (None, b"", b"Bearer", b"Bearer ", f"Basic {kitchen}".encode(), kitchen.encode()):
        assert ring.find(header) is None
    with pytest.raises(UserError, match="has a key called 'kitchen' already"):
        add_key(path, "kitchen", ["x"])
    with pytest.raises(UserError, match="at the end of an id only"):
        add_key(path, "other", ["*kitchen"])


GOOD = '{"name": "a", "sha256": "%s", "devices": ["x"]}' % ("0" * 64)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{"name": "a", "sha256": "00", "devices": ["x"]}]}', b"\xff{}",
        b"[" * 100_000, b'{"keys": ' + b"[" * 100_000, b'{"keys": 1' + b"0" * 5000 + b"}", b'{"keys": NaN}', b"null",
        b'{"keys": {"a": 1}}', b'{"keys": [1]}', b'{"keys": ["a"]}', f'{{"keys": [{GOOD}], "keys": [{GOOD}]}}'.encode(),
        f'{{"keys": [{GOOD}, {GOOD}]}}'.encode(), GOOD.replace('"a"', "1").encode(),
        f'{{"keys": [{GOOD}]}}'.replace('"a"', r'"\ud800"').encode(),
        f'{{"keys": [{GOOD}]}}'.replace('"x"', "NaN").encode(),
    ],
)  # fmt: skip
def test_files_of_keys_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match=r"keys\.json") as caught:
        KeyRing.load(path)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    with pytest.raises(UserError, match="does not exist or is no file"):
        KeyRing.load(tmp_path)


def test_keys_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        secrets = list(threads.map(lambda number: add_key(path, f"key {number}", ["*"]), range(24)))
    ring = KeyRing.load(path)
    assert len(ring.keys) == 24 and all(ring.find(f"Bearer {secret}".encode()) for secret in secrets)


def test_a_key_is_added_behind_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "secrets" / "real.json", tmp_path / "keys.json"
    add_key(real, "first", ["*"])
    real.chmod(0o640)
    link.symlink_to(Path("secrets") / "real.json")
    add_key(link, "second", ["*"])
    assert link.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [key.name for key in KeyRing.load(real).keys] == ["first", "second"]
    with pytest.raises(UserError, match="cannot be written"):
        add_key(real / "keys.json", "third", ["*"])
    for name in ("\x1b[2J", "\ud800"):
        with pytest.raises(UserError, match="printable"):
            add_key(link, name, ["*"])


# -- the verb ----------------------------------------------------------------------------------------------------


def test_a_new_key_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert main(["serve", "--keys", str(path), "--new-key", "kitchen", "--devices", "kitchen-*"]) == 0
    secret = capsys.readouterr().out.strip()
    assert KeyRing.load(path).find(f"Bearer {secret}".encode()) is not None
    assert json.loads(path.read_text())["keys"][0]["devices"] == ["kitchen-*"]


def test_mistakes_are_said_before_anything_is_loaded(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*options: str) -> str:
        assert main(["serve", *options]) == 2
        return capsys.readouterr().err

    ckpt = ("--ckpt", str(checkpoint))
    keys = tmp_path / "keys.json"
    add_key(keys, "a", ["*"])
    assert "--ckpt is missing" in error()
    assert "does not exist" in error("--ckpt", str(tmp_path / "none.ckpt"))
    assert "open to other machines" in error(*ckpt, "--host", "0.0.0.0")
    assert "cannot listen" in error(*ckpt, "--host", "203.0.113.1", "--keys", str(keys))
    assert "go together" in error(*ckpt, "--ssl-certfile", str(keys))
    assert "does not exist" in error(*ckpt, "--ssl-certfile", "none.pem", "--ssl-keyfile", "none.pem")
    assert "does not exist; choose from" in error(*ckpt, "--download-codec", "zip")
    assert "out of range" in error(*ckpt, "--rate", "-1")
    for option in ("--threads", "--workers", "--keep-alive-s", "--drain-s"):
        assert f"{option} 1000000000000 is out of range" in error(*ckpt, option, "1000000000000")
    assert "--keys FILE" in error("--new-key", "kitchen")
    assert "limit no service" in error(*ckpt, "--devices", "kitchen")
    assert "cannot be used" in error(*ckpt, "--ssl-certfile", str(keys), "--ssl-keyfile", str(keys))
    assert "out of range" in error(*ckpt, "--request-timeout-s", "0")
    keys.chmod(0o644)
    assert "chmod 600" in error(*ckpt, "--keys", str(keys))
    device = next(p for p in checkpoint.parents[2].glob("*/checkpoints/best.ckpt") if p != checkpoint)
    assert "holds the device half, expected the cloud half" in error("--ckpt", str(device))


def test_keys_of_a_running_service_follow_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "keys.json", [0.0]
    first = f"Bearer {add_key(path, 'first', ['*'])}".encode()
    keys = WatchedKeys(path, clock=lambda: now[0])
    second = f"Bearer {add_key(path, 'second', ['*'])}".encode()
    assert keys.find(first) and keys.find(second) is None, "looked at before its time"
    now[0] = 1.0
    assert keys.find(first) and keys.find(second)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"keys": content["keys"][1:]}))
    now[0] = 2.0
    assert keys.find(first) is None and keys.find(second), "a key that was removed is still taken"
    for broken in ("{", json.dumps({"keys": []}), "[" * 100_000, None):
        path.unlink() if broken is None else path.write_text(broken)
        now[0] += 1
        caplog.clear()
        with caplog.at_level(logging.ERROR, "lit_mmpg.serving"):
            assert keys.find(second), "a slip of the pen locks every device out"
            now[0] += 1
            assert keys.find(second)
        assert len(caplog.records) == 1, "one line for each version of the file"


def test_a_batch_that_never_ends_is_seen_by_the_liveness_probe(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, gate = CloudHalf.load(str(checkpoint), None, "cpu", ServeConfig("").context), threading.Event()
    app = create_app(half, ServeConfig(str(checkpoint), stuck_s=0.02))
    monkeypatch.setattr(app.state.batcher, "_compute", lambda questions: [b"" for _ in questions if gate.wait(10)])

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            app.state.batcher.start()
            found = [(await client.get("/healthz")).status_code]
            asked = app.state.batcher.enqueue(None)
            await asyncio.sleep(0.1)
            found.append((await client.get("/healthz")).status_code)
            gate.set()
            await asked
            found.append((await client.get("/healthz")).status_code)
            await app.state.batcher.stop()
        return found

    assert asyncio.run(run()) == [200, 503, 200]


def test_a_fault_of_ours_is_an_error_in_json_and_a_line_in_the_log(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    half = CloudHalf.load(str(checkpoint), None, "cpu", ServeConfig("").context)
    app = create_app(half, ServeConfig(str(checkpoint)))
    digests = {key: getattr(half, key) for key in ("checkpoint_digest", "spec_digest")}
    (upload,) = make_uploads(1, digests | {"anchor_width": half.width})

    def broken(upload: object) -> None:
        raise RuntimeError("secret of the machine")

    monkeypatch.setattr(half, "check", broken)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.post("/v1/adapt", content=upload.to_bytes())

    with caplog.at_level(logging.ERROR, "lit_mmpg.serving"):
        answer = asyncio.run(run())
    assert answer.status_code == 500 and answer.json() == {"error": "internal", "detail": "see the log"}
    assert any(record.exc_info and "secret" in str(record.exc_info[1]) for record in caplog.records)


@pytest.mark.parametrize(("good", "threads", "batches"), [({1, 2}, 2, True), ({1}, 1, True), (set(), 2, False)])
def test_one_thread_computes_where_only_that_allows_batches(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, good: set[int], threads: int, batches: bool
) -> None:
    monkeypatch.setattr(CloudHalf, "can_batch", lambda half: torch.get_num_threads() in good)
    monkeypatch.setattr("lit_mmpg.serving.app.configure", lambda level: None)
    monkeypatch.setenv(ENVIRONMENT, "")
    ServeConfig(str(checkpoint), device="cpu", threads=2).export()
    before = torch.get_num_threads()
    try:
        app = from_environment()
        assert (torch.get_num_threads(), app.state.half.batches) == (threads, batches)
    finally:
        torch.set_num_threads(before)
