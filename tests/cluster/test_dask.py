"""Cells and clips as tasks of a real Dask cluster, of which a worker is killed in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.data.features import FeatureFile
from lit_mmpg.errors import UserError
from lit_mmpg.launcher import LOST, SKIPPED, Piece, connected
from lit_mmpg.profiling.benchmarks.services import free_port
from tests.cluster.conftest import ROOT
from tests.extract.test_extract import encoder, videos
from tests.integration import tiny
from tests.integration.conftest import write_experiment

pytestmark = pytest.mark.cluster
__all__ = ["encoder", "videos"]
WORKERS = 3


def until(found: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 600) -> object:
    """Wait for something true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before: {process.communicate()[0]}")
        time.sleep(0.05)
    return value


@dataclass
class Running:
    """A scheduler and its workers, each a process."""

    address: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    scheduler: subprocess.Popen[bytes] | None = None

    def tasks(self, *words: str) -> dict[int, int]:
        """Process of a task whose command has the words -> its worker's process."""
        own, found = {worker.pid for worker in self.workers}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            (parent,) = [word.partition("=")[2] for word in command if word.startswith("--child-of=")] or ["0"]
            if int(parent) in own and all(word in command for word in words):
                found[int(entry.name)] = int(parent)
        return found

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        next(worker for worker in self.workers if worker.pid == pid).wait(30)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("the package distributed is not installed here (pip install -e '.[cluster]')")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    monkeypatch.setenv("LIT_MMPG_TEST_STEP_SECONDS", "0.6")  # of the workers' tasks: long enough to be killed in
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    running = Running(f"tcp://127.0.0.1:{free_port()}")
    port = running.address.rpartition(":")[2]
    around = ["--no-dashboard"]
    started = [["scheduler", "--host", "127.0.0.1", "--port", port, *around]]
    started += [["worker", running.address, "--nthreads", "1", "--no-nanny", *around]] * WORKERS
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i, words in enumerate(started):
            scratch = tmp_path / f"dask{i}"
            scratch.mkdir()
            with (tmp_path / f"dask{i}.log").open("wb") as log:
                command = [sys.executable, "-m", "dask", *words]
                processes.append(subprocess.Popen(command, cwd=scratch, stdout=log, stderr=log))
        running.scheduler, running.workers = processes[0], processes[1:]
        until(lambda: all("Registered to" in (tmp_path / f"dask{i + 1}.log").read_text() for i in range(WORKERS)))
        yield running
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(30)


@pytest.fixture
def store() -> Iterator[str]:
    """An MLflow server over PostgreSQL; over sqlite where Debian's package or a driver is missing."""
    folder = Path(tempfile.mkdtemp(prefix="lit-mmpg-store-"))
    folder.chmod(0o755)
    server, database = None, None
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    try:
        uri = f"sqlite:///{folder}/mlflow.db"
        if found and importlib.util.find_spec("pg8000") is not None:
            who = {}
            if not os.geteuid():  # PostgreSQL refuses root
                who = {"user": "postgres", "group": "postgres"}
                os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
            binaries, data, port = found[-1].parent, folder / "data", free_port()
            words = [str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "lit", "--no-sync"]
            subprocess.run(words, check=True, capture_output=True, cwd=folder, **who)  # type: ignore[call-overload]
            words = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
            database = subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL, **who)  # type: ignore[call-overload]
            ready = [str(binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
            until(lambda: subprocess.run(ready, capture_output=True).returncode == 0)
            uri = f"postgresql+pg8000://lit@127.0.0.1:{port}/postgres"
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
        with (folder / "server.log").open("wb") as log:
            more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            server = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=os.environ | more
            )
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                return httpx.get(f"{address}/health", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        until(answers)
        yield address
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)
        if database is not None:
            database.send_signal(signal.SIGQUIT)
            database.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lit_mmpg", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def write_comparison(folder: Path) -> list[str]:
    """Two trained rows and an adapted one, in steps that can be stretched; returns the command's arguments."""
    folder.mkdir()
    write_experiment(folder, tiny.build_root(folder / "data"), "open_ended")
    runs = {"static": {"config": "device.yaml"}, "cloud": {"config": "both.yaml", "device_half": "static"}}
    slow = {"class_path": "tests.integration.slow.Slow"}
    for name in ("device.yaml", "both.yaml"):
        text = (folder / name).read_text().replace("device_stage: device.yaml", "")
        (folder / name).write_text(text)
    config = tiny.write_config(
        folder / "compare.yaml",
        seeds=[0, 1],
        runs=runs,
        adapted={"t3a": {"method": "t3a", "checkpoint": "static"}},
    )
    more = [f"--trainer.callbacks+={json.dumps(slow)}", "--trainer.max_epochs=3", "--save_every_n_steps=1"]
    return ["compare", "--config", str(config), *more]


def steps(folder: Path, seed: int) -> int:
    """Steps of the training with a seed that has a checkpoint."""
    for path in folder.glob("outputs/*/*/checkpoints/last.ckpt"):
        try:
            checkpoint = read_checkpoint(path)
        except Exception:  # being written at this moment
            continue
        if f"seed_everything: {seed}" in checkpoint["lit_mmpg"]["config"]:
            return int(checkpoint["global_step"])
    return 0


def values(path: Path) -> list[tuple]:
    rows = json.loads(path.read_text())["rows"]
    return [(row["method"], row["split"], row["metric"], row["value"], row["low"], row["high"]) for row in rows]


def test_a_comparison_on_a_cluster_is_that_of_one_machine(
    cluster: Running, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shared"
    arguments = write_comparison(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    on_cluster = [*arguments, "--launcher", "dask", "--cluster", cluster.address, "--output", "cluster.json"]
    process = start(*on_cluster)
    cells = folder / "outputs/compare/compare"
    task, worker = next(iter(until(lambda: cluster.tasks("--cell", "static"), process).items()))  # type: ignore[attr-defined]
    seed = Path(f"/proc/{task}/cmdline").read_text().split("\0--seeds\0")[1].split("\0")[0]
    until(lambda: steps(folder, int(seed)) > 1, process)  # in the middle
    cluster.kill(worker)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert not cluster.tasks(), "what a dead worker had started is gone, too"

    names = [f"{row}-seed{s}" for row in ("static", "cloud", "t3a") for s in (0, 1)]
    assert all((cells / f"{name}.json").is_file() for name in names)
    for line in (
        "[static seed 0] ",
        "[t3a seed 1] finished before: ",
        "[6/6] ",
        f"[static seed {seed}] resumed at step ",
    ):
        assert line in said, said
    reads = [json.loads(line) for line in (cells / "test_reads.jsonl").read_text().splitlines()]
    assert sorted((r["row"], r["seed"]) for r in reads) == sorted(
        (row, s) for row in ("static", "cloud", "t3a") for s in (0, 1)
    )
    # One parent, under it one training run for each cell; the cut one went on in its own run.
    client = MlflowClient(store)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=200)
    (parent,) = [run for run in runs if run.info.run_name == "compare compare"]
    assert parent.info.status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    expected = [(row, str(s)) for row in ("static", "cloud", "t3a") for s in (0, 1)]
    found = [(run.data.tags["lit_mmpg.row"], run.data.tags["lit_mmpg.seed"]) for run in children]
    assert sorted(found) == sorted(expected)
    assert all(run.info.status == "FINISHED" for run in children)
    (cut,) = [r for r in children if (r.data.tags["lit_mmpg.row"], r.data.tags["lit_mmpg.seed"]) == ("static", seed)]
    assert int(cut.data.tags["lit_mmpg.resumed_at_step"]) > 0

    # One machine, one process.
    monkeypatch.delenv("LIT_MMPG_TEST_STEP_SECONDS")
    alone = tmp_path / "alone"
    arguments = write_comparison(alone)
    monkeypatch.chdir(alone)
    assert main([*arguments, "--output", "alone.json"]) == 0
    assert values(folder / "cluster.json") == values(alone / "alone.json")


def test_nothing_goes_on_when_the_command_is_gone(
    cluster: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = write_comparison(tmp_path / "shared")
    monkeypatch.chdir(tmp_path / "shared")
    process = start(*arguments, "--trainer.max_epochs=100000", "--launcher", "dask", "--cluster", cluster.address)
    until(lambda: len(cluster.tasks("--cell", "static")) == 2, process)
    process.kill()
    process.communicate()
    until(lambda: not cluster.tasks())
    # A cell that fails is named, what needs it is not begun, and the others are there.
    config = Path("compare.yaml")
    config.write_text(config.read_text() + 'seed_flags: ["--data.batch.devices={seed}"]\n')
    done = start(*arguments, "--launcher", "dask", "--cluster", cluster.address)
    said, _ = done.communicate(timeout=600)
    assert done.returncode == 2 and "static seed 0 stopped with an error" in said, said
    assert Path("outputs/compare/compare/cloud-seed1.json").is_file()
    assert not Path("outputs/compare/compare/cloud-seed0.started").exists()


def test_clips_are_extracted_on_a_cluster(
    cluster: Running, videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "films"
    shutil.copytree(videos, folder)
    (folder / "torn.mp4").write_bytes((videos / "clip002.mp4").read_bytes()[:2000])
    words = ["extract", "--videos", str(folder), "--encoder", str(encoder), "--frames", "4"]
    process = start(*words, "--output", "cluster.h5", "--launcher", "dask", "--cluster", cluster.address)
    parts = tmp_path / "cluster.h5.parts"
    until(lambda: len(list(parts.glob("*.npy"))) > 5, process)
    worker = next(iter(until(cluster.tasks, process).values()))  # type: ignore[attr-defined]
    cluster.kill(worker)
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.npy")}
    seen: dict[Path, set[int]] = {path: {time_ns} for path, time_ns in kept.items()}
    while process.poll() is None:  # nothing that was finished is written again
        for path in kept:
            if path.exists():
                seen[path].add(path.stat().st_mtime_ns)
        time.sleep(0.02)
    said = process.communicate()[0]
    assert process.returncode == 1 and "torn.mp4" in said and "40 clips" in said, said
    assert kept and all(len(times) == 1 for times in seen.values())
    alone = start(*words, "--output", "alone.h5", "--workers", "2")
    assert alone.communicate(timeout=600) and alone.returncode == 1
    one, other = FeatureFile("cluster.h5").load(), FeatureFile("alone.h5").load()
    assert sorted(one.ids()) == sorted(other.ids()) and len(one.ids()) == 40
    for clip in other.ids():
        np.testing.assert_array_equal(one.frames(clip), other.frames(clip))


def test_pieces_that_fail_cost_nothing_but_themselves(
    cluster: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = "import pathlib, sys, time; print(sys.stdin.read()); pathlib.Path(sys.argv[1]).touch(); {}"

    def piece(name: str, *needs: str, then: str = "") -> Piece:
        return Piece(name, ("-c", program.format(then), name), needs, text=f"text of {name}")

    pieces = [
        piece("first", then="time.sleep(0.5)"),
        piece("second", "first", then="assert pathlib.Path('first').exists()"),
        piece("broken", then="sys.exit(3)"),
        piece("behind", "broken"),
        piece("last", "behind"),
    ]
    with connected(cluster.address, tmp_path) as found:
        assert len(found.hosts) == WORKERS and not found.other_hosts
        ended = {one.name: one for one in found.run(pieces)}
        codes = {name: one.code for name, one in ended.items()}
        assert codes == {"first": 0, "second": 0, "broken": 3, "behind": SKIPPED, "last": SKIPPED}
        assert ended["first"].lines == ("text of first",) and ended["first"].seconds > 0.5
        assert not Path("behind").exists() and not Path("last").exists()
        # Whatever kills its worker is given up before all workers are dead: here Dask's limit is one.
        deadly = piece("deadly", then="import os, signal; os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)")
        ended = {one.name: one for one in found.run([deadly, piece("other"), piece("after", "deadly")])}
        assert ended["deadly"].code == LOST and "workers died" in ended["deadly"].lines[0]
        assert ended["after"].code == SKIPPED
        assert ended["other"].code == 0
        until(lambda: sum(worker.poll() is None for worker in cluster.workers) == 1)
        with pytest.raises(UserError, match="the scheduler is gone"):
            threading.Thread(target=lambda: (until(cluster.tasks), cluster.scheduler.kill())).start()
            for _ in found.run([piece("endless", then="time.sleep(600)")]):
                pass
    until(lambda: not cluster.tasks())


def test_a_cluster_that_does_not_fit_is_refused(
    cluster: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_comparison(tmp_path / "shared")
    monkeypatch.chdir(tmp_path / "shared")
    monkeypatch.setattr("lit_mmpg.launcher.CONNECT_S", 2)

    def error(address: str) -> str:
        assert main([*arguments, "--launcher", "dask", "--cluster", address]) == 2
        return capsys.readouterr().err

    assert "does not answer" in error(f"tcp://127.0.0.1:{free_port()}")
    assert "no such scheduler file" in error("scheduler.json")
    monkeypatch.setattr("socket.gethostname", lambda: "desk")
    assert "must not write the file of the store" in error(cluster.address)
    monkeypatch.setattr("lit_mmpg.__version__", "99.0")
    assert "this is 99.0" in error(cluster.address)
