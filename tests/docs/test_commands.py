"""``make test-docs``: the commands and the Python of every page, word for word, in the order in which they stand.

Only this is different: trainings, comparisons and measurements are short, ports are free ones, names in capitals stand
for something, and of ``make`` and ``pip`` only a dry run is tried.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from lit_mmpg.profiling.benchmarks.services import free_port
from tests import forked, shared
from tests.docs.pages import NEEDS, PAGES, ROOT, Block, blocks
from tests.extract.test_extract import encoder, write_clip

__all__ = ["encoder"]

pytestmark = pytest.mark.docs

FIRST = (
    "lit-mmpg fit --config configs/experiment/demo.yaml",
    "lit-mmpg test --ckpt_path CKPT",
    "lit-mmpg export --ckpt CKPT --output bundle",
)
JUDGES = ("--fail-on", "benchmarks.agreement")
SHIM = r"""#!{python}
import os, subprocess, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
short = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.limit_train_batches=4"]
few = {{"train_devices": 16, "val_devices": 8, "test_devices": 4, "train_clips": 8, "seen_clips": 2, "unseen_clips": 8}}
measured = ["latency.min_count=5", "latency.min_time_s=0.1", "energy.min_window_s=1", "energy.idle_s=1"]
if name == "lit-mmpg":
    if arguments[0] in ("fit", "compare"):
        arguments += short
        if "demo" in " ".join(arguments):
            arguments += [f"--data.clips.{{name}}={{value}}" for name, value in few.items()]
    if arguments[:2] == ["profile", "run"] or "--interleave" in arguments:
        arguments += [part for setting in measured for part in ("--set", setting)]
        arguments += [] if "--engines" in arguments else ["--engines", "onnxruntime"]
        arguments += ["--rounds", "6"] if "--interleave" in arguments else []
    if arguments[0] in ("serve", "ui", "extract") or "ddp" in arguments:  # which start processes of their own
        os.execv(sys.executable, [sys.executable, "-m", "lit_mmpg", *arguments])
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests import forked, shared
    shared.FOLDER = Path({shared!r})
    sys.exit(forked.Process(arguments).wait() % 256)
if name == "python":
    os.execv(sys.executable, [sys.executable, *arguments])
if name == "make":
    os.environ["PATH"] = os.environ["REAL_PATH"]
    sys.exit(subprocess.call(["make", "-n", "-C", {root!r}, *arguments], stdout=2))
sys.exit(0)  # pip: extras are checked by test_pages.py
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs as the commands name them; ``lit-mmpg`` is a fork of one that has imported torch already."""
    folder = tmp_path_factory.mktemp("bin")
    forked.start()
    for name in ("lit-mmpg", "python", "pip", "make"):
        text = SHIM.format(python=sys.executable, root=str(ROOT), shared=str(shared.FOLDER))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def trained(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands that many pages begin with were typed, once for all of them."""
    folder = tmp_path_factory.mktemp("trained")
    fit, *rest = FIRST
    shutil.copy(folder / checkpoint(run(fit, folder, tools).stdout), folder / "best.ckpt")
    for line in rest:
        run(line.replace("CKPT", "best.ckpt"), folder, tools)
    return folder


def checkpoint(said: str) -> str:
    found = re.findall(r"--(?:ckpt_path|ckpt) (\S+)", said)
    assert found, said
    return str(found[-1])


def environment(tools: Path) -> dict[str, str]:
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "REAL_PATH": os.environ["PATH"]}
    return os.environ | path | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(script: str, folder: Path, tools: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment(tools), capture_output=True, text=True)
    # A limit on speed is a verdict about this machine at this moment: here it has to be told, not to be kept.
    told = any(judge in script for judge in JUDGES) and "Traceback" not in done.stderr and "\u2502" in done.stdout
    assert done.returncode == 0 or (told and done.returncode == 1), (
        f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


@pytest.fixture
def place(trained: Path, encoder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What the commands of a page find in the folder where they run."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/cache").symlink_to(trained / "outputs/cache")
    for name in ("best.ckpt", "main.ckpt", "branch.ckpt"):
        shutil.copy(trained / "best.ckpt", tmp_path / name)
    for name in ("bundle", "mlruns"):
        shutil.copytree(trained / name, tmp_path / name)
    for folder in ("clips", "films"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate("abc"):
        write_clip(tmp_path / f"clips/{name}.mp4", i)
    rows = ["video,question,answer,owner"]
    for i in range(8):
        write_clip(tmp_path / f"films/clip{i}.mp4", i % 2)
        rows.append(f"clip{i}.mp4,which colour?,{('red', 'green')[i % 2]},owner{i // 2}")
    (tmp_path / "films/table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


class Session:
    """A reader who types one page."""

    def __init__(self, place: Path, tools: Path, encoder: Path) -> None:
        self.place, self.tools, self.services = place, tools, []  # type: ignore[var-annotated]
        self.names = {"CKPT": "best.ckpt", "CHECKPOINT": "best.ckpt", "FOLDER": "films", "ENCODER": str(encoder)}
        self.ports = {port: str(free_port()) for port in ("8400", "5000")}

    def meant(self, text: str) -> str:
        """A text with what its names in capitals stand for by now."""
        for name, value in {**self.names, **self.ports}.items():
            text = re.sub(rf"(?<![A-Za-z_]){name}\b", value, text)
        return text

    def type(self, block: Block) -> None:
        if block.language == "python":
            named = re.match(r"# file: (\S+)\n", block.text)
            if named:
                (self.place / named[1]).write_text(block.text)
            (self.place / "typed.py").write_text(block.text)
            run("python typed.py", self.place, self.tools)
        elif block.runs_on:
            self.start(self.meant(block.text))
        else:
            for line in block.commands:  # each may have found out what the next one means
                if line in FIRST and self.names["CKPT"] == "best.ckpt":
                    continue  # as it was typed for all pages
                done = run(self.meant(line), self.place, self.tools)
                if re.search(r"^(next: |best checkpoint)", done.stdout, re.MULTILINE) and "--ckpt" in done.stdout:
                    self.names["CKPT"] = checkpoint(done.stdout)

    def start(self, script: str) -> None:
        """A service, and wait until it answers."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {script.strip()}"],
            cwd=self.place,
            env=environment(self.tools),
            start_new_session=True,
        )
        self.services.append(process)
        port = re.search(r"--port (\d+)", script)
        assert port, script
        for _ in range(1200):
            assert process.poll() is None, script
            try:
                with urlopen(f"http://127.0.0.1:{port[1]}/{'readyz' if 'serve' in script else ''}", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"{script} does not answer")

    def end(self) -> None:
        for process in self.services:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture
def session(place: Path, tools: Path, encoder: Path) -> Iterator[Session]:
    made = Session(place, tools, encoder)
    yield made
    made.end()


def typed(page: Path) -> list[Block]:
    """What a reader of a page types."""
    return [block for block in blocks(page) if block.language in ("bash", "python")]


@pytest.mark.parametrize("page", list(filter(typed, PAGES)), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page(page: Path, session: Session) -> None:
    data = os.environ.get("LIT_MMPG_DATA")
    for block in typed(page):
        if block.needs:
            pretrained = Path(data or "").parent / "models/mobilenet_v2_1.0_224"
            if not NEEDS[block.needs] or not data or not pretrained.is_dir():
                continue
            session.names["ENCODER"] = str(pretrained)
        session.type(block)
    if page.name == "your_data.md":  # a stranger's eight videos have become a result
        store = MlflowClient(f"sqlite:///{session.place}/mlruns/mlflow.db")
        runs = store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])
        assert any(key.endswith("accuracy") for run in runs for key in run.data.metrics)
