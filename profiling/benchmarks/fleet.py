"""A fleet of devices in front of two replicas behind nginx, over links that are slow, far and break.

    python -m lit_mmpg.profiling.benchmarks.fleet [--devices 100] [--ckpt OLD NEW] [--output outputs/fleet]

The cloud (nginx with the shipped configuration, two ``lit-mmpg serve``) is one host, the devices of each kind of link
are another (network namespaces; needs root, iproute2, nginx and openssl). Every device is a
:class:`~lit_mmpg.runtime.client.CloudClient` with a context of its own. Its bytes pass a relay that delays them and, on
the lossy link, resets connections; the rate is limited by the kernel. The kernel's netem is not used: lost packets, and
what TCP does about them, are not verified.

``links``     One device at a time: seconds and bytes of an adaptation, on a new connection and on a kept one. Bytes on
              the wire are counted by the kernel, with TLS, TCP and IP.
``steady``    All devices at once, each on a new connection: adaptations, and processor time of replicas and nginx.
``death``     A replica is killed in the middle, and comes back.
``rollout``   The replicas are restarted one after the other onto a new checkpoint; a device that is refused fetches the
              new bundle (here: takes the other digests) and asks again.
``outage``    The cables are pulled for a while.
``million``   What a million devices that adapt twice a day need, by arithmetic from ``links`` and ``steady``.

Each answer is compared by digest with what the checkpoint of the device's bundle computes for this device alone: one
that belongs to another device, or to the other checkpoint, counts as ``wrong``. Everything shares the cores of this
machine, the devices included: processor time means something elsewhere, seconds under load do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.profiling.benchmarks.namespaces import Host, star, why_not
from lit_mmpg.profiling.benchmarks.services import ROOT, Service, free_port
from lit_mmpg.profiling.benchmarks.serving_load import make_uploads, percentiles
from lit_mmpg.results import result, write_result
from lit_mmpg.runtime.client import CloudClient, CloudError

MODULE = "lit_mmpg.profiling.benchmarks.fleet"
TLS_PORT, RELAY_PORT = 8443, 9443
ALONE = 15
"""Adaptations of a device alone, on new connections and on a kept one."""
PAUSE_S, OFFERED_PER_S = 0.5, 40.0
"""Shortest mean pause of a device between two adaptations; most adaptations that all devices together ask for."""
SECONDS, PAUSES = 20.0, 4
"""A phase takes at least this long, and at least so many pauses."""
TIMEOUT_S = 10.0
MILLION, PER_DAY, PEAK = 1_000_000, 2, 5
BUSY = 0.7
"""Share of its one core for which a replica is planned, at the peak."""


@dataclass(frozen=True)
class Link:
    """A kind of network.

    Attributes:
        rate: Rate in each direction, shared by the devices of this kind.
        delay_ms: One way.
        reset: Share of connections that the relay resets after their first bytes.
    """

    rate: str
    delay_ms: float
    reset: float = 0.0


LINKS = {"wifi": Link("50mbit", 5), "lte": Link("10mbit", 35), "lossy": Link("1mbit", 100, 0.05)}


# -- devices: one process for each kind of link ------------------------------------------------------------------------


async def relay(listen: int, host: str, port: int, link: Link, seed: int) -> None:
    """Pass on what comes, later; reset some connections."""
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any] | None] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        doomed = chance.random() < link.reset
        tasks.add(asyncio.current_task())  # the loop itself holds them weakly
        try:
            far_reader, far_writer = await asyncio.wait_for(asyncio.open_connection(host, port), TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            writer.transport.abort()
            return

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    if doomed:
                        break
                    loop.call_later(link.delay_ms / 1e3, sink.write, data)
            except OSError:
                pass
            loop.call_later(link.delay_ms / 1e3, sink.transport.abort if doomed else sink.close)

        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
        tasks.discard(asyncio.current_task())

    server = await asyncio.start_server(accept, "127.0.0.1", listen)
    async with server:
        await server.serve_forever()


class Device:
    """A device with the bundle of one of two checkpoints."""

    def __init__(self, world: Devices, number: int) -> None:
        self.world, self.number = world, number
        self.bundle = self.published = 0
        self.client: CloudClient | None = None
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.payload = self.wire = (0, 0)

    def adapt(self, fresh: bool) -> bool:
        """One adaptation; True where it came."""
        if fresh and self.client is not None:
            self.client.close()
            self.client = None
        if self.client is None:
            self.client = CloudClient(self.world.url, self.world.key, TIMEOUT_S)
        begun = time.perf_counter()
        try:
            download, traffic = self.client.adapt(self.world.uploads[self.bundle][self.number])
        except CloudError as error:
            if error.reason == "refused" and error.lasting and self.world.published != self.bundle:
                self.bundle = self.world.published
                self.counts["refetched"] += 1
            else:
                self.counts[f"failed: {error.reason}"] += 1
            return False
        self.seconds.append(time.perf_counter() - begun)
        spec = self.world.spec
        own = spec.tensors_digest(download.parameters(spec)) == self.world.expected[self.bundle][self.number]
        self.counts["own" if own else "wrong"] += 1
        self.payload = (traffic.upload_payload_bytes, traffic.download_payload_bytes)
        self.wire = (traffic.upload_wire_bytes, traffic.download_wire_bytes)
        return own

    def live(self, stop: threading.Event, fresh: bool) -> None:
        """Adapt again and again; after a failure sooner."""
        chance, pause_s = random.Random(self.number), self.world.pause_s
        while not stop.wait(2 * chance.random() * pause_s):
            pause_s = self.world.pause_s / (1 if self.adapt(fresh) else 4)


class Devices:
    """All devices of a kind of link, told by lines of JSON what to do."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.url, self.key, self.expected = asked["url"], asked["key"], asked["expected"]
        self.pause_s = asked["pause_s"]
        self.spec = ParameterSpec.from_json(asked["spec"])
        shape = asked["clips"], asked["frames"], asked["anchors"]
        first, count = asked["first"], asked["count"]
        made = [make_uploads(SimpleNamespace(**half), first + count, *shape) for half in asked["halves"]]  # type: ignore[arg-type]
        self.uploads = [uploads[first:] for uploads in made]
        self.published = 0
        self.devices = [Device(self, number) for number in range(count)]

    def alone(self, fresh: bool) -> dict[str, Any]:
        """One device, once after the other."""
        device, tries = self.devices[0], 0
        device.seconds = []
        while len(device.seconds) < ALONE and tries < 10 * ALONE:
            device.adapt(fresh)
            tries += 1
        return {
            **percentiles(device.seconds),
            "payload_bytes": device.payload,
            "wire_bytes": device.wire,
            "tries": tries,
        }

    def together(self, stop: threading.Event, ended: Callable[[], Any], fresh: bool = True) -> dict[str, Any]:
        """All devices, until the time is over."""
        for device in self.devices:
            device.counts, device.seconds = Counter(), []
        threads = [threading.Thread(target=device.live, args=(stop, fresh)) for device in self.devices]
        for thread in threads:
            thread.start()
        ended()
        for thread in threads:
            thread.join()
        counts: Counter[str] = sum((device.counts for device in self.devices), Counter())
        seconds = [value for device in self.devices for value in device.seconds]
        return {
            "counts": dict(counts),
            "seconds": seconds,
            "never": sum(not device.counts["own"] for device in self.devices),
            "bundles": sum(device.bundle for device in self.devices),
        }

    def serve(self, lines: Iterator[str]) -> None:
        """Do what the lines say; answer each with one line."""
        for line in lines:
            order, argument = json.loads(line)
            answer: Any = None
            if order == "warm":
                self.devices[0].adapt(True)
            elif order == "alone":
                answer = self.alone(argument)
            elif order == "publish":
                self.published = 1
            elif order == "start":
                stop = threading.Event()

                def wait(stop: threading.Event = stop) -> None:
                    # Meanwhile a new bundle may be published.
                    for told in lines:
                        if json.loads(told)[0] == "publish":
                            self.published = 1
                            print("null", flush=True)
                        else:
                            break
                    stop.set()

                print("null", flush=True)
                answer = self.together(stop, wait)
            print(json.dumps(answer), flush=True)


def devices_main() -> int:
    """The process of the devices of one kind of link."""
    asked = json.loads(sys.stdin.readline())
    link = Link(**asked["link"])
    threading.Thread(
        target=lambda: asyncio.run(relay(RELAY_PORT, asked["host"], TLS_PORT, link, 0)), daemon=True
    ).start()
    devices = Devices(asked)
    print(json.dumps("ready"), flush=True)
    devices.serve(iter(sys.stdin.readline, ""))
    return 0


class Kind:
    """The devices of a kind of link, as the cloud's host sees them."""

    def __init__(self, name: str, leaf: dict[str, str], asked: dict[str, Any], environment: dict[str, str]) -> None:
        self.name, self.interface, host, self.count = name, leaf["interface"], leaf["host"], asked["count"]
        command = ["ip", "netns", "exec", host, sys.executable, "-m", MODULE, "--kind", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self._send(asked)

    def _send(self, order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the devices on {self.name} have ended with status {self.process.wait()}")
        return json.loads(line)

    def ready(self) -> None:
        """Wait until they are there."""
        self._receive()

    def ask(self, order: str, argument: Any = None) -> Any:
        """Order something, and wait for the answer."""
        self._send([order, argument])
        return self._receive()

    def link_bytes(self) -> tuple[int, int]:
        """Bytes that came from the devices and that went to them, counted by the kernel, with TCP, IP and Ethernet."""
        folder = Path("/sys/class/net", self.interface, "statistics")
        return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())

    def stop(self) -> None:
        """End them."""
        self.process.kill()
        self.process.wait(20)


# -- the cloud ---------------------------------------------------------------------------------------------------------


class Replicas:
    """Two services, each of which can be killed and started again on either checkpoint."""

    def __init__(self, folder: Path, keys: Path, checkpoints: Sequence[Path]) -> None:
        self.folder, self.keys, self.checkpoints = folder, keys, checkpoints
        self.ports = (free_port(), free_port())
        self.services: list[Service | None] = [None, None]
        self.spent_s = 0.0

    def start(self, number: int, checkpoint: int = 0) -> None:
        """Start one, and wait until it is ready."""
        port = self.ports[number]
        command = [sys.executable, "-m", "lit_mmpg", "serve", "--ckpt", str(self.checkpoints[checkpoint])]
        command += ["--port", str(port), "--keys", str(self.keys), "--proxy-ips", "127.0.0.1", "--threads", "1"]
        log = self.folder / f"replica-{number}-{checkpoint}.log"
        self.services[number] = Service([*command, "--log-level", "warning"], port, log, "/readyz")

    def end(self, number: int, kill: bool = False) -> None:
        """End one: politely, or as when its power fails."""
        service = self.services[number]
        assert service is not None
        self.services[number] = None
        if kill:
            os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait(20)
        else:
            service.stop()

    def cpu_s(self) -> float:
        """Processor time so far of those that run."""
        return sum(service.cpu_s() for service in self.services if service is not None)

    def rss_bytes(self) -> int:
        """Resident memory of the larger one."""
        return max(service.rss_bytes() for service in self.services if service is not None)

    def stop(self) -> None:
        """End all."""
        for number, service in enumerate(self.services):
            if service is not None:
                self.end(number)


def start_nginx(folder: Path, ports: Sequence[int], key: Path, certificate: Path) -> Service:
    """Nginx with the shipped configuration, which is changed in its addresses alone."""
    nginx = shutil.which("nginx")
    assert nginx is not None
    text = (ROOT / "configs/serving/nginx.conf").read_text(encoding="utf-8")
    plain = free_port()
    changes = {
        "listen 8443 ssl;": f"listen {TLS_PORT} ssl; listen 127.0.0.1:{plain};",
        "127.0.0.1:8401": f"127.0.0.1:{ports[0]}",
        "127.0.0.1:8402": f"127.0.0.1:{ports[1]}",
        "/etc/lit-mmpg/tls.crt": str(certificate),
        "/etc/lit-mmpg/tls.key": str(key),
    }
    for old, new in changes.items():
        if text.count(old) != 1:
            raise UserError(f"configs/serving/nginx.conf no longer says {old}")
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = [nginx, "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"]
    return Service(command, plain, folder / "nginx.log", "/readyz")


def pause_s(devices: int) -> float:
    """Mean pause of a device between two adaptations."""
    return max(PAUSE_S, devices / OFFERED_PER_S)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Private key and certificate of the relays' address."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-keyout", str(key), "-out", str(certificate)]
    words += ["-subj", "/CN=fleet", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    return key, certificate


def train(folder: Path) -> list[Path]:
    """Two checkpoints, trained for a moment on the embedded data with different seeds; kept for the next run.

    What they answer is worth little, what it costs is the same as after a long training.
    """
    found = []
    small = ["--data.clips.train_devices=8", "--data.clips.val_devices=4", "--data.clips.test_devices=4"]
    small += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    for seed in (0, 1):
        where = folder / f"training-{seed}"
        kept = where / "checkpoint.txt"
        if not kept.is_file():
            where.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "lit_mmpg", "fit", "--config", str(ROOT / "configs/experiment/demo.yaml")]
            command += [*small, f"--seed_everything={seed}"]
            run = subprocess.run(
                command, cwd=where, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
            )
            if run.returncode:
                raise UserError(f"the training for the fleet has failed: {run.stderr[-1000:]}")
            kept.write_text(run.stdout.rpartition("lit-mmpg test --ckpt_path ")[2].splitlines()[0], encoding="utf-8")
        found.append(where / kept.read_text(encoding="utf-8"))
    return found


# -- what is measured --------------------------------------------------------------------------------------------------


class Fleet:
    """The fleet, from inside of the cloud's host."""

    def __init__(self, kinds: list[Kind], replicas: Replicas, nginx: Service, say: Callable[[str], None]) -> None:
        self.kinds, self.replicas, self.nginx, self.say = kinds, replicas, nginx, say

    def links(self) -> dict[str, Any]:
        """One device at a time on each link."""
        found = {}
        for kind in self.kinds:
            found[kind.name] = row = {**asdict(LINKS[kind.name])}
            kind.ask("warm")
            for name, fresh in (("new", True), ("kept", False)):
                before = kind.link_bytes()
                alone = kind.ask("alone", fresh)
                up, down = (b - a for a, b in zip(before, kind.link_bytes(), strict=True))
                row[name] = alone | {"link_bytes": (up / alone["tries"], down / alone["tries"])}
        return found

    @contextmanager
    def running(self, found: dict[str, Any]) -> Iterator[None]:
        """All devices adapt meanwhile; what became of it is put into ``found``."""
        for kind in self.kinds:
            kind.ask("start")
        begun = time.monotonic()
        yield
        spent = time.monotonic() - begun
        for kind in self.kinds:
            kind._send(["stop", None])
        parts = [kind._receive() for kind in self.kinds]
        counts: Counter[str] = sum((Counter(part["counts"]) for part in parts), Counter())
        found |= {
            "seconds": spent,
            "devices": sum(kind.count for kind in self.kinds),
            "counts": dict(counts),
            "wrong": counts["wrong"],
            "devices_without_an_adaptation": sum(part["never"] for part in parts),
            "devices_on_the_new_checkpoint": sum(part["bundles"] for part in parts),
            **percentiles([value for part in parts for value in part["seconds"]]),
        }

    def steady(self, seconds: float) -> dict[str, Any]:
        """Nothing happens."""
        found: dict[str, Any] = {}
        replicas, nginx = self.replicas.cpu_s(), self.nginx.cpu_s()
        with self.running(found):
            time.sleep(seconds)
        replicas, nginx = self.replicas.cpu_s() - replicas, self.nginx.cpu_s() - nginx
        count = found["counts"].get("own", 0)
        if not count:
            raise UserError(f"no device was answered: {found['counts']}")
        return found | {
            "adaptations_per_s": count / found["seconds"],
            "replica_cpu_ms": 1e3 * replicas / count,
            "nginx_cpu_ms": 1e3 * nginx / count,
            "adaptations_per_s_and_core": count / (replicas + nginx),
            "replica_rss_bytes": self.replicas.rss_bytes(),
            "nginx_rss_bytes": self.nginx.rss_bytes(),
        }

    def death(self, seconds: float) -> dict[str, Any]:
        """A replica is killed, and comes back."""
        found: dict[str, Any] = {}
        with self.running(found):
            time.sleep(seconds / 3)
            self.replicas.end(0, kill=True)
            time.sleep(seconds / 3)
            self.replicas.start(0)
            time.sleep(seconds / 3)
        return found

    def rollout(self, seconds: float) -> dict[str, Any]:
        """Both replicas get a new checkpoint, one after the other; the bundle is published with the first."""
        found: dict[str, Any] = {}
        with self.running(found):
            time.sleep(seconds / 4)
            for number in (0, 1):
                self.replicas.end(number)
                if number == 0:
                    for kind in self.kinds:
                        kind.ask("publish")
                self.replicas.start(number, checkpoint=1)
            time.sleep(seconds)
        return found

    def outage(self, seconds: float, outage_s: float) -> dict[str, Any]:
        """All cables are pulled; afterwards every device adapts again."""
        found: dict[str, Any] = {}
        after: dict[str, Any] = {}
        with self.running(found):
            for kind in self.kinds:
                subprocess.run(["ip", "link", "set", kind.interface, "down"], check=True)
            time.sleep(outage_s)
            for kind in self.kinds:
                subprocess.run(["ip", "link", "set", kind.interface, "up"], check=True)
        with self.running(after):
            time.sleep(seconds)
        return {"outage_s": outage_s, "during": found, "after": after}


def million(links: dict[str, Any], steady: dict[str, Any]) -> dict[str, Any]:
    """What a million devices need, each on a new connection, at ``PEAK`` times the mean rate of a day."""
    mean = MILLION * PER_DAY / 86400
    cpu_s = 1e-3 * (steady["replica_cpu_ms"] + steady["nginx_cpu_ms"])
    up, down = (max(row["new"]["link_bytes"][i] for row in links.values()) for i in (0, 1))
    cores = PEAK * mean * cpu_s
    replicas = max(2, math.ceil(PEAK * mean * 1e-3 * steady["replica_cpu_ms"] / BUSY))
    return {
        "devices": MILLION,
        "adaptations_per_day": PER_DAY,
        "mean_per_s": mean,
        "peak_over_mean": PEAK,
        "cores_at_peak": cores,
        "replicas": replicas,
        "replica_memory_bytes": replicas * steady["replica_rss_bytes"],
        "peak_bits_per_s": {"up": 8 * PEAK * mean * up, "down": 8 * PEAK * mean * down},
        "bytes_per_day": {"up": MILLION * PER_DAY * up, "down": MILLION * PER_DAY * down},
    }


def measure(options: argparse.Namespace, leaves: list[dict[str, str]], unverified: list[str]) -> dict[str, Any]:
    """Everything, from inside of the cloud's host."""
    import torch

    from lit_mmpg.checkpoint import read_checkpoint, trained_config
    from lit_mmpg.serving.cloud_half import CloudHalf
    from lit_mmpg.serving.keys import add_key

    torch.set_num_threads(1)
    folder = options.output.absolute()
    halves = [CloudHalf.load(path, device="cpu") for path in options.ckpt]
    if halves[0].checkpoint_digest == halves[1].checkpoint_digest or halves[0].spec_digest != halves[1].spec_digest:
        raise UserError("--ckpt OLD NEW: name two different checkpoints whose devices have the same dynamic layers")
    config = trained_config(options.ckpt[0], read_checkpoint(options.ckpt[0]))
    batch = config["data"]["init_args"].get("batch", {})
    clips, frames = int(batch.get("context_clips", 16)), int(batch.get("max_frames", 16))
    anchors = int(config["model"]["init_args"].get("anchors", {}).get("count", 2)) or frames
    tell("what each device should get")
    spec = halves[0].spec
    expected = []
    for half in halves:
        uploads = make_uploads(half, options.devices, clips, frames, anchors)
        expected.append([spec.tensors_digest(half.generate([one])[0].parameters(spec)) for one in uploads])
    keys = folder / "keys.json"
    keys.unlink(missing_ok=True)
    key = add_key(keys, "fleet", ["*"])
    private, certificate = make_certificate(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SSL_CERT_FILE": str(certificate), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        replicas = Replicas(folder, keys, options.ckpt)
        stack.callback(replicas.stop)
        for number in (0, 1):
            replicas.start(number)
        nginx = start_nginx(folder, replicas.ports, private, certificate)
        stack.callback(nginx.stop)
        kinds, first = [], 0
        for i, (name, leaf) in enumerate(zip(LINKS, leaves, strict=True)):
            count = (options.devices - first) // (len(LINKS) - i)
            asked = {
                "link": asdict(LINKS[name]), "host": leaf["cloud"], "url": f"https://127.0.0.1:{RELAY_PORT}",
                "key": key, "pause_s": pause_s(options.devices),
                "expected": [digests[first : first + count] for digests in expected], "spec": spec.to_json(),
                "halves": [
                    {n: getattr(half, n) for n in ("width", "upload_codec", "checkpoint_digest", "spec_digest")}
                    for half in halves
                ],
                "clips": clips, "frames": frames, "anchors": anchors, "first": first, "count": count,
            }  # fmt: skip
            kinds.append(Kind(name, leaf, asked, environment))
            stack.callback(kinds[-1].stop)
            first += count
        for kind in kinds:
            kind.ready()
        fleet = Fleet(kinds, replicas, nginx, tell)
        found: dict[str, Any] = {
            "context": {"clips": clips, "frames": frames, "anchors": anchors},
            "not_verified": unverified,
            "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
        }
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "links": fleet.links,
            "steady": lambda: fleet.steady(options.seconds),
            "death": lambda: fleet.death(options.seconds),
            "rollout": lambda: fleet.rollout(options.seconds),
            "outage": lambda: fleet.outage(options.seconds, options.outage_s),
        }
        for name, step in steps.items():
            print(f"{name}, {options.devices} devices", flush=True)
            tell(name)
            found[name] = step()
        found["million"] = million(found["links"], found["steady"])
    return found


def problems(found: dict[str, Any]) -> list[str]:
    """What must not happen and did."""
    told = []
    phases = {name: found[name] for name in ("steady", "death", "rollout")}
    phases |= {f"outage, {name}": found["outage"][name] for name in ("during", "after")}
    for name, phase in phases.items():
        if phase["wrong"]:
            told.append(f"{name}: {phase['wrong']} answers were another device's or another checkpoint's")
        if phase["devices_without_an_adaptation"] and name != "outage, during":
            told.append(f"{name}: {phase['devices_without_an_adaptation']} devices never got an answer")
    if found["rollout"]["devices_on_the_new_checkpoint"] != found["rollout"]["devices"]:
        told.append("rollout: not all devices have the new checkpoint")
    return told


def table(found: dict[str, Any], command: str) -> dict[str, Any]:
    """The report as a small result."""
    from lit_mmpg.tracking.address import git_commit

    rows = []
    for name, row in found["links"].items():
        new, kept = row["new"], row["kept"]
        rows.append(
            [
                f"{name} ({row['rate']}, {row['delay_ms']:g} ms one way)",
                " / ".join(f"{value:,}" for value in new["payload_bytes"]),
                *(" / ".join(f"{value:,.0f}" for value in one["link_bytes"]) for one in (new, kept)),
                *(f"{one['p50_ms'] / 1e3:.2f} s" for one in (new, kept)),
            ]
        )
    steady, far = found["steady"], found["million"]
    phases = ("steady", "death", "rollout")
    came = "; ".join(
        f"{name}: "
        + ", ".join(f"{key.removeprefix('failed: ')} {n:,}" for key, n in sorted(found[name]["counts"].items()))
        for name in phases
    )
    far_mbit = {name: f"{value / 1e6:.1f} Mbit/s {name}" for name, value in far["peak_bits_per_s"].items()}
    notes = [
        f"{steady['devices']} devices at once, each adaptation on a new TLS connection: "
        f"{steady['replica_cpu_ms']:.1f} ms of processor time in a replica and {steady['nginx_cpu_ms']:.1f} ms in "
        f"nginx, so {steady['adaptations_per_s_and_core']:.0f} adaptations a second and core.",
        f"A million devices that adapt twice a day: {far['mean_per_s']:.0f} adaptations a second on the average; at "
        f"{far['peak_over_mean']} times that {far['cores_at_peak']:.1f} cores, {far['replicas']} replicas with "
        f"{far['replica_memory_bytes'] / 2**30:.1f} GiB together, "
        f"{far_mbit['up']} and {far_mbit['down']}.",
        f"Answers of another device or checkpoint: {sum(found[name]['wrong'] for name in phases)}. What came of the "
        f"requests ('unreachable' without a cause: connections that the relay resets; 'refused' in the rollout: a new "
        f"bundle, an old replica): {came}.",
        f"Not verified: {'; '.join(found['not_verified'])}.",
    ]
    columns = ["link", "payload up / down", "on the link, new connection", "kept", "seconds, new", "kept"]
    return result("A fleet behind two replicas", command, columns, rows, git_commit(), notes, figures=found)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the hosts, measure, and write ``report.json``."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=100, help="devices (default: %(default)s)")
    parser.add_argument("--ckpt", type=Path, nargs=2, metavar=("OLD", "NEW"), help="default: two are trained")
    parser.add_argument("--output", type=Path, default=Path("outputs/fleet"), help="folder of the report")
    parser.add_argument(
        "--seconds", type=float, help=f"length of a phase (default: {SECONDS:g}, more for many devices)"
    )
    parser.add_argument("--outage-s", type=float, default=60.0, help="length of the outage")
    parser.add_argument("--kind", choices=tuple(LINKS), help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.kind is not None:
        return devices_main()
    options.seconds = options.seconds or max(SECONDS, PAUSES * pause_s(options.devices))
    if options.devices < len(LINKS) or min(options.seconds, options.outage_s) <= 0:
        parser.error(f"--devices must be at least {len(LINKS)}, --seconds and --outage-s positive")
    try:
        if options.inside is None:
            return _outside(options)
        asked = json.loads(options.inside)
        with working("fleet", bar=False):
            found = measure(options, asked["leaves"], asked["unverified"])
    except (UserError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = f"python -m {MODULE} --devices {options.devices}"
    made = table(found, command)
    write_result(options.output / "report.json", made)
    for note in made["notes"]:
        print(note)
    wrong = problems(found)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"report: {options.output / 'report.json'}")
    return 1 if wrong else 0


def _outside(options: argparse.Namespace) -> int:
    """Make the hosts, and go on inside of the cloud's."""
    reason = why_not()
    missing = [name for name in ("nginx", "openssl") if shutil.which(name) is None]
    if reason is None and missing:
        reason = f"{missing[0]} is not installed here (Debian: apt install {missing[0]})"
    if reason is not None:
        raise UserError(f"a fleet cannot be run here: {reason}")
    options.output.mkdir(parents=True, exist_ok=True)
    with working("training two checkpoints", bar=False):
        checkpoints = [path.absolute() for path in options.ckpt or train(options.output.absolute())]
    unverified = ["packets that are lost or arrive in another order (the kernel's netem)"]
    with star("cloud", list(LINKS)) as (cloud, *leaves):
        for leaf, link in zip(leaves, LINKS.values(), strict=True):
            failed = leaf.limit(cloud.name, link.rate) or cloud.limit(leaf.name, link.rate)
            if failed is not None:
                unverified.append(f"the rate of {link.rate} ({failed})")
        asked = {"unverified": unverified, "leaves": [_leaf(cloud, leaf) for leaf in leaves]}
        command = ["ip", "netns", "exec", cloud.name, sys.executable, "-m", MODULE, "--inside", json.dumps(asked)]
        command += ["--devices", str(options.devices), "--output", str(options.output)]
        command += ["--ckpt", *map(str, checkpoints)]
        command += ["--seconds", str(options.seconds), "--outage-s", str(options.outage_s)]
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


def _leaf(cloud: Host, leaf: Host) -> dict[str, str]:
    return {
        "host": leaf.name,
        "cloud": cloud.addresses[leaf.name],
        "interface": cloud.cables[leaf.name],
    }


if __name__ == "__main__":
    sys.exit(main())
