"""Two replicas behind nginx, of which one dies; and the Kubernetes manifest against the program that it starts."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.link import Upload
from lit_mmpg.profiling.benchmarks.services import free_port
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.serving import verb
from lit_mmpg.serving.keys import add_key
from tests.serving.conftest import ROOT, Guarded, Server, Start, make_certificate
from tests.serving.making import make_uploads, offline, same_bits

SERVING = ROOT / "configs" / "serving"


@pytest.fixture
def proxied(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str, tuple[Server, Server], subprocess.Popen[bytes]]]:
    """Address and key of two replicas behind the shipped nginx configuration, on other ports and with a certificate."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed here (Debian: apt install nginx-light)")
    key_file, certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    keys = tmp_path / "keys.json"
    key = add_key(keys, "fleet", ["*"])
    options = ("--keys", str(keys), "--proxy-ips", "127.0.0.1")
    first, second = (start(*options, wait=False) for _ in range(2))
    port = free_port()
    text = (SERVING / "nginx.conf").read_text()
    for old, new in {
        "listen 8443": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8401": f"127.0.0.1:{first.port}",
        "127.0.0.1:8402": f"127.0.0.1:{second.port}",
        "/etc/lit-mmpg/tls.crt": str(certificate),
        "/etc/lit-mmpg/tls.key": str(key_file),
    }.items():
        assert text.count(old) == 1, f"the shipped configuration no longer says {old}"
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    first.wait_ready()
    second.wait_ready()
    command = [nginx, "-p", str(tmp_path), "-c", "nginx.conf", "-g", "daemon off;"]
    with (tmp_path / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"https://127.0.0.1:{port}"
    context = ssl.create_default_context(cafile=certificate)
    deadline = time.monotonic() + 20
    while True:
        try:
            if httpx.get(f"{url}/readyz", verify=context).status_code == 200:
                break
        except httpx.TransportError:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "nginx.log").read_text()
            time.sleep(0.05)
    yield url, key, (first, second), process
    process.terminate()
    process.wait(20)


def answered(server: Server) -> int:
    found = re.search(r'requests_total\{reason="ok",status="200"\} (\S+)', server.get("/metrics").text)
    return int(float(found[1])) if found else 0


def test_devices_notice_nothing_when_a_replica_dies(proxied: Any, module: CloudModule) -> None:
    url, key, replicas, _ = proxied
    info = replicas[0].get("/v1/info").json()
    assert httpx.get(f"{url}/metrics", verify=ssl.create_default_context()).status_code == 403
    devices, stop = 6, threading.Event()
    uploads = make_uploads(devices, info, seed=70)
    expected = offline(module, uploads, info["download_codec"])
    problems: list[str] = []
    done = [0] * devices

    def device(number: int) -> None:
        upload: Upload = uploads[number]
        with CloudClient(url, key, timeout_s=30) as client:
            while not stop.is_set():
                try:
                    download, _ = client.adapt(upload)
                    if not same_bits(download.parameters(module.network.spec), expected[number]):
                        problems.append(f"device {number} got other parameters")
                except Exception as error:
                    problems.append(f"device {number}: {error}")
                done[number] += 1

    threads = [threading.Thread(target=device, args=(number,)) for number in range(devices)]
    for thread in threads:
        thread.start()
    try:

        def until(more: int) -> None:
            goal, deadline = [count + more for count in done], time.monotonic() + 60
            while any(count < wanted for count, wanted in zip(done, goal, strict=True)):
                assert time.monotonic() < deadline and not problems, problems
                time.sleep(0.02)

        until(10)
        assert min(map(answered, replicas)) > 0, "both replicas take part"
        replicas[0].kill()
        until(20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems


def test_the_kubernetes_manifest_fits_the_program() -> None:
    """Parsed and checked against the program; no cluster is run here."""
    items = yaml.safe_load((SERVING / "kubernetes.yaml").read_text())["items"]
    by_kind = {item["kind"]: item for item in items}
    pod = by_kind["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["lit-mmpg", "serve"]
    options = verb._parser().parse_args(container["args"])  # every flag exists and has a value that it takes
    assert options.drain_s + 10 <= pod["spec"]["terminationGracePeriodSeconds"]
    assert options.keys and options.ssl_certfile and options.ssl_keyfile, "open to others: keys and TLS"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["https"] == options.port
    paths = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for probe, path in paths.items():
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["scheme"], ports[asked["port"]]) == (path, "HTTPS", options.port)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for file in (options.ckpt, options.keys, options.ssl_certfile, options.ssl_keyfile):
        assert str(Path(file).parent) in mounted
    assert set(mounted.values()) == {volume["name"] for volume in pod["spec"]["volumes"]}
    service = by_kind["Service"]["spec"]
    assert service["ports"][0]["targetPort"] == "https"
    labels = pod["metadata"]["labels"]
    assert labels == service["selector"] == by_kind["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels == by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    scaler, deployment = by_kind["HorizontalPodAutoscaler"]["spec"], by_kind["Deployment"]
    target = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert scaler["scaleTargetRef"] == target and "replicas" not in deployment["spec"]
    assert scaler["minReplicas"] > by_kind["PodDisruptionBudget"]["spec"]["maxUnavailable"], "one is always left"
    assert int(scaler["metrics"][0]["pods"]["target"]["averageValue"]) < options.max_queue
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(options.port)


def test_the_kubernetes_manifest_is_what_the_api_takes() -> None:
    """Against the schemas of the API, unknown fields refused; offline."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing; install the extra dev")
    items = yaml.safe_load((SERVING / "kubernetes.yaml").read_text())["items"]
    for item in items:
        for version in ("1.30", schemas.latest_version()):
            schemas.validate(item, version, strict=True)
    broken = copy.deepcopy(items[0])
    broken["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["schema"] = "HTTPS"
    with pytest.raises(schemas.ValidationError, match="schema"):
        schemas.validate(broken, "1.30", strict=True)


def test_what_the_manifest_asks_a_pod_for_is_there(guarded: Guarded) -> None:
    by_kind = {item["kind"]: item for item in yaml.safe_load((SERVING / "kubernetes.yaml").read_text())["items"]}
    pod = by_kind["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert guarded.server.get(container[probe]["httpGet"]["path"]).status_code == 200
    exposed = guarded.server.get(pod["metadata"]["annotations"]["prometheus.io/path"]).text
    metric = by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert re.search(rf"^{metric} \d", exposed, re.MULTILINE) and f"# TYPE {metric} gauge" in exposed


def test_what_the_deployment_files_tell_to_type_exists() -> None:
    """Flags of 'lit-mmpg serve' in the comments of the shipped files."""
    for name in ("nginx.conf", "Containerfile"):
        text = (SERVING / name).read_text().replace("\\\n#", "")
        commands = re.findall(r"lit-mmpg serve\s+(--.*)", text)
        assert commands
        for command in commands:
            verb._parser().parse_args(shlex.split(command))
