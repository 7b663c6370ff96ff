"""The client against clouds that mean harm or are broken, odd addresses and keys, proxies; what reaches a screen."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import random
import re
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpcore
import pytest

from lit_mmpg import report
from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.link import PROTOCOL_VERSION, Upload
from lit_mmpg.pages.blocks import Picture
from lit_mmpg.profiling.config import CloudConfig
from lit_mmpg.runtime import network
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient, CloudError
from lit_mmpg.runtime.network import Backend, Budget, parse_address
from lit_mmpg.runtime.search import search_page
from lit_mmpg.texts import masked, printable
from tests.profiling.bundles import make_bundle
from tests.runtime.hostile import KINDS, LATE, Kind, hostile, make_upload, refusal
from tests.serving.conftest import make_certificate

KEY = "s3cret-key"
PROXIES = [f"{name}_PROXY" for name in ("HTTP", "HTTPS", "ALL", "NO")]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.lower, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR", "LIT_MMPG_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def failure(client: CloudClient) -> CloudError:
    with pytest.raises(CloudError) as error:
        client.adapt(make_upload())
    return error.value


# -- hostile clouds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_whatever_a_cloud_sends_ends_in_an_answer_or_a_clean_reason(name: str) -> None:
    kind = KINDS[name]
    with (
        hostile(kind) as server,
        CloudClient(server.url, KEY, 0.15 if kind.stalls else 0.5 if kind.reasons >= LATE else 5.0, 1 << 16) as client,
    ):
        for number in range(2):  # a kept connection is none the worse
            try:
                client.adapt(make_upload(number))
                reason = "ok"
            except CloudError as error:
                reason = error.reason
                assert str(error).isprintable() and len(str(error)) <= 500 and KEY not in str(error)
            if name != "two answers at once" or number == 0:
                assert reason in kind.reasons, reason
        client.close()
        server.finish()  # the device hung up on all that would not end
        if kind.stalls:
            assert server.hung_up == len(server.requests) if kind.reads else server.hung_up == 2
        assert all(b"accept-encoding: identity" in head for head in server.requests)


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "503 Service Unavailable"])
@pytest.mark.parametrize("form", ["page", "detail", "other"])
def test_a_page_that_quotes_the_request_shows_no_key(status: str, form: str) -> None:
    key = "k/1&2+'3'"
    forms = (key, html.escape(key), quote(key), quote_plus(key))
    body = {
        "page": f"<pre>POST /v1/adapt\nauthorization: Bearer {key}</pre>",
        "detail": json.dumps({"error": "x", "detail": " ".join(forms)}),
        "other": 'headers={"Authorization": "Bearer another-0"} bearer token missing, Proxy-Authorization: Basic dTpw',
    }[form]
    with hostile(refusal(status, body.encode())) as server, CloudClient(server.url, key) as client:
        said = str(failure(client))
    assert "***" in said and ("bearer token missing" in said or form != "other")
    for secret in (*forms, "another-0", "dTpw", "k/1"):
        assert secret not in said


@pytest.mark.parametrize(("spoken", "older"), [(2, "the cloud"), (PROTOCOL_VERSION + 1, "this device")])
def test_a_cloud_of_another_version_is_one_error_that_names_what_to_upgrade(spoken: int, older: str) -> None:
    said = f"message has protocol version {PROTOCOL_VERSION}, this side speaks {spoken}; update this side"
    body = json.dumps({"error": "protocol_version", "detail": said}).encode()
    with hostile(refusal("409 Conflict", body)) as server, CloudClient(server.url) as client:
        error = failure(client)
    assert error.lasting and str(error).endswith(f"upgrade lit-mmpg on {older}") and "export" not in str(error)


def test_a_bomb_is_not_even_unpacked() -> None:
    import tracemalloc

    with hostile("two layers of gzip") as server, CloudClient(server.url, timeout_s=5.0) as client:
        tracemalloc.start()
        with pytest.raises(CloudError, match="content encoding"):
            client.adapt(make_upload())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


def test_a_connection_that_died_in_the_meantime_is_replaced_once() -> None:
    served: list[int] = []

    def parts(upload: Upload, rng: random.Random) -> Iterable[bytes]:
        served.append(int(upload.num_frames[1]) - 3)
        if len(served) == 2:
            raise BrokenPipeError  # the server closes the connection instead of answering
        return KINDS["right"].parts(upload, rng)

    with hostile(Kind({"ok"}, parts, "keep")) as server, CloudClient(server.url) as client:
        client.adapt(make_upload(1))
        client.adapt(make_upload(2))
        assert served == [1, 2, 2]
        client.close()
        served[:] = [0]
        assert failure(client).reason == "unreachable"
        assert served == [0, 0]  # a fresh connection that fails is not tried again


def test_wire_bytes_are_what_crosses_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile("right, chunked") as server, CloudClient(server.url) as client:
        _, traffic = client.adapt(make_upload())
        sent = len(server.requests[0]) + 4 + traffic.upload_message_bytes
        assert traffic.upload_wire_bytes == sent
        framed = b"".join(KINDS["right, chunked"].parts(make_upload(), server.rng))
        assert traffic.download_wire_bytes == len(framed)
    key, certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with hostile("right", context) as server, CloudClient(server.url, KEY) as client:
        first, second = (client.adapt(make_upload(n))[1] for n in range(2))
        assert b"Bearer " + KEY.encode() in server.requests[0]
    assert first.download_wire_bytes > second.download_wire_bytes + 300  # the handshake, once
    assert second.upload_message_bytes < second.upload_wire_bytes < second.upload_payload_bytes + 300
    monkeypatch.delenv("SSL_CERT_FILE")
    with hostile("right", context) as server, CloudClient(server.url) as client:
        assert "certificate is not trusted" in str(failure(client))


@contextlib.contextmanager
def silent(backlog: int) -> Iterator[int]:
    """A port that takes connections and does nothing with them."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        yield listener.getsockname()[1]


def test_connecting_handshake_and_sending_end_with_the_deadline() -> None:
    with silent(4) as port, CloudClient(f"https://127.0.0.1:{port}", timeout_s=0.1) as client:
        assert failure(client).reason == "timeout"  # nobody shakes hands
    with silent(4) as port:
        budget = Budget()
        budget.start(0.2, 100)
        stream = Backend(budget, False).connect_tcp("127.0.0.1", port)
        with pytest.raises(httpcore.TimeoutException):  # nobody reads
            stream.write(bytes(1 << 26))
        assert 0 < budget.sent < 1 << 26
        stream.close()
    with silent(0) as port, contextlib.ExitStack() as stack:
        for _ in range(2):  # nobody accepts: the queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with CloudClient(f"http://127.0.0.1:{port}", timeout_s=0.1) as client:
            assert failure(client).reason == "timeout"


# -- proxies, keys, addresses ---------------------------------------------------------------------------------------


def test_plain_http_never_goes_through_a_proxy_and_netrc_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with hostile("hung up") as proxy, hostile("right") as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with CloudClient(server.url) as client:
            client.adapt(make_upload())
        with CloudClient(server.url, f"  {KEY}\n") as client:
            client.adapt(make_upload())
        assert not proxy.requests
    assert b"authorization" not in server.requests[0].lower()
    assert f"authorization: Bearer {KEY}".encode() in server.requests[1]


@contextlib.contextmanager
def connecting_proxy(target: int) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that answers CONNECT and joins whoever asks to one port; what it saw in the clear."""
    seen: list[bytes] = []

    def pump(source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen.append(data)
                drain.sendall(data)
            drain.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as near:
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(65536)
            seen.append(head)
            with socket.create_connection(("127.0.0.1", target)) as far:
                near.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], seen
    thread.join(10)


def test_https_goes_through_a_proxy_by_connect_and_the_proxy_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = make_certificate(tmp_path, "DNS:cloud.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with hostile("right", context) as server, connecting_proxy(int(server.url.rsplit(":", 1)[1])) as (port, seen):
        monkeypatch.setenv("https_proxy", f"http://me:pa%40ss@127.0.0.1:{port}")
        with CloudClient("https://cloud.test", KEY) as client:
            client.adapt(make_upload())
            client.adapt(make_upload())
        assert len(server.requests) == 2
    assert seen[0].startswith(b"CONNECT cloud.test:443 HTTP/1.1\r\n")
    assert b"proxy-authorization: basic bwu6cgfac3m=" in seen[0].lower()  # me:pa@ss
    assert KEY.encode() not in b"".join(seen)


def test_which_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def proxy(url: str, **variables: str) -> str | None:
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        found = network._proxy(parse_address(url, "address"))
        return None if found is None else str(found[0])

    outside = "https://cloud.example"
    assert proxy(outside) is None and proxy(outside, HTTP_PROXY="http://p:1") is None
    assert proxy(outside, HTTPS_PROXY="p:3128") == proxy(outside, ALL_PROXY="http://p:3128/") == "http://p:3128"
    assert proxy(outside, HTTPS_PROXY="https://q", ALL_PROXY="http://p:1") == "https://q"
    for excepted in ("cloud.example", "example", "*", "a.b, .example"):
        assert proxy(outside, HTTPS_PROXY="http://p:1", NO_PROXY=excepted) is None
    assert proxy(outside, HTTPS_PROXY="http://p:1", NO_PROXY="other.example") == "http://p:1"
    for here in ("https://localhost:1", "https://127.0.0.1", "https://[::1]:3"):
        assert proxy(here, HTTPS_PROXY="http://p:1") is None
    for odd in (
        "socks5://u:hidden@p:1",
        "http://u:hidden://x@:80",
        "u:hidden@p://x",
        "http://u:hidden@:80",
        "http://u:hidden@p:99999",
        "u:hidden@p:x",
    ):
        with pytest.raises(UserError, match="HTTPS_PROXY") as error:
            proxy(outside, HTTPS_PROXY=odd)
        assert "hidden" not in str(error.value)


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name, value in (("SSL_CERT_FILE", "none.pem"), ("SSL_CERT_FILE", "empty.pem"), ("SSL_CERT_DIR", "none")):
        with monkeypatch.context() as patched, pytest.raises(UserError, match=name):
            patched.setenv(name, str(tmp_path / value))
            CloudClient("https://cloud.example")
        CloudClient("http://cloud.example").close()  # which needs none


def test_a_key_goes_to_this_machine_or_into_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://cloud.example", "http://127.0.0.1.evil.example", "http://0.0.0.0", "http://localhost.evil:80",
                "http://[::2]", "http://2130706433"):  # fmt: skip
        with pytest.raises(UserError, match="unencrypted"):
            CloudClient(url, KEY)
    with hostile("right") as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]
        url = f"http://localhost:{address[1]}"
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            with CloudClient(url, KEY) as client:
                client.adapt(make_upload())
            found[0] = (*found[0][:4], ("192.0.2.1", address[1]))  # type: ignore[assignment]
            with CloudClient(url, KEY) as client:
                assert "is not this machine" in str(failure(client))


@pytest.mark.parametrize(
    "key", ["", " \n", "two words", "a\nb", "a\x00b", "schlüssel", "a\udce9", "a\x7fb", "a\u202eb"]
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UserError, match="API key") as error:
        CloudClient("https://cloud.example", key)
    assert not key.strip() or key not in str(error.value)


ADDRESSES = [
    "", "cloud.example:80", "http://", "http:///x", "ftp://cloud", "http://:80", "http://cloud:99999", "http://cloud:x",
    "http://cloud:0", "http://::1:80", "http://[::1", "http://[::g]", "http://a b", " http://a", "http://a\n",
    "http://exämple", "http://a\udce9", "http://a\x1b[2J", "http://a\\b", "http://a..b", "http://a?key=hidden",
    "http://a/#x", "http://me:hidden@a", "http://hidden@a", "me:hidden@a:80", "http://me:hid/den@a",
    "http://me:hid den@a", "//a", "http://a,b", "https://%41",
]  # fmt: skip


@pytest.mark.parametrize("url", ADDRESSES)
def test_odd_addresses_are_one_clear_error(url: str) -> None:
    with pytest.raises(UserError, match="cloud address") as error:
        CloudClient(url, KEY)
    assert str(error.value).isprintable() and "hid" not in str(error.value)
    if url:
        with pytest.raises(UserError, match=r"cloud\.url"):
            CloudConfig(url=url)


def test_addresses_that_are_fine() -> None:
    told = {"https://Cloud.Example:443/": "https://cloud.example", "http://[::1]:80": "http://[::1]"}
    told |= {url: url for url in ("http://a_b.c.:8/x/y", "http://[fe80::1%eth0]:1", "https://127.0.0.1:1/@x")}
    assert {url: str(parse_address(url, "address")) for url in told} == told


# -- options of the verbs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("network") / "bundle")


VERBS = {
    "answer": ["clip.mp4", "what?"],
    "search": ["a dog", "--clips", "."],
    "device": ["--clips", "clip.mp4", "--question", "what?"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_odd_values_of_the_shared_options_are_one_error(
    verb: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path)

    def error(*options: str) -> str:
        assert main([verb, *VERBS[verb], "--bundle", str(bundle), *options]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and said[:-1].isprintable(), said
        return said

    for seconds in ("0", "-1", "nan", "inf", "1e400", "1e300", "soon", ""):
        assert "--timeout" in error("--timeout", seconds)
    assert "--device-id: its value is empty" in error("--device-id", "")
    for name in ("x" * 129, "a\x1b[2J", "a\nb", "a\udce9", "a\u202eb"):
        assert "device_id" in error("--device-id", name)
    for count in ("0", "-3", "many", "9" * 5000):
        assert "number from 1 on" in error("--frames", count)
    if verb != "search":  # which this bundle cannot do
        assert "cloud address" in error("--cloud", "http://me:hidden@cloud:80")
        monkeypatch.setenv("LIT_MMPG_API_KEY", "hidden\x07word")
        said = error("--cloud", "https://cloud")
        assert "API key" in said and "hidden" not in said


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Rights of a user who owns nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_bundle_that_may_not_be_read_or_is_none_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = make_bundle(folder / "bundle")
        graph = next(made.glob("*.onnx"))
        for path, mode in ((graph, 0o000), (made / "manifest.json", 0o000), (made, 0o000)):
            before = path.stat().st_mode
            path.chmod(mode)
            with nobody(), pytest.raises(UserError, match=r"cannot be read .*Permission denied"):
                Bundle.open(made)
            path.chmod(before)
        with pytest.raises(UserError, match="is not a folder"):
            Bundle.open(graph)
        with pytest.raises(UserError, match="bundle"):
            Bundle.open(folder / ("x" * 300))
        (folder / "odd" / "manifest.json").mkdir(parents=True)
        with pytest.raises(UserError, match="no bundle"):
            Bundle.open(folder / "odd")


def test_files_of_the_user_that_cannot_be_used_are_one_error_of_any_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "made_up", type(sys)("made_up"))

    def full(_: object) -> int:
        raise OSError(28, "No space left on device", "/x/\x1b[2Jpage.html")

    monkeypatch.setattr(sys.modules["made_up"], "main", full, raising=False)
    monkeypatch.setattr("lit_mmpg.cli.VERBS", {"full": type("V", (), {"target": "made_up:main", "help": ""})})
    assert main(["full"]) == 2
    assert capsys.readouterr().err == "error: /x/\\x1b[2Jpage.html: No space left on device\n"


# -- what reaches a screen, a page, a log ------------------------------------------------------------------------------

NASTY = "a\x1b[2J\x9b31m\x07\r\n\u202egnp.\u2069\u2028\udce9[red]<b>"


def test_foreign_texts_reach_screen_and_page_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printable(NASTY)
    assert shown == r"a\x1b[2J\x9b31m\x07\r\n\u202egnp.\u2069\u2028\udce9[red]<b>" and shown.isprintable()
    assert printable("Füße 日本 می‌خواهم 👩‍🚀\u00a0x") == "Füße 日本 می‌خواهم 👩‍🚀\u00a0x"
    written = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", written)
    console = report.wide_console()
    console.print(report.escape(NASTY))
    console.print(f"[bold]{NASTY}[/bold]")  # somebody forgot
    written.flush()
    lines = written.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == shown and all(line.isprintable() for line in lines)
    page = search_page(NASTY, [Picture(NASTY, NASTY, 0.5, None)], [("note", NASTY)])
    assert page.encode() and page.replace("\n", "").isprintable() and "<b>\\" not in page and "[red]<b>" not in page


def test_credentials_in_texts_of_libraries_are_masked() -> None:
    said = "cannot open http://me:p@ss@db:1/x ('postgresql+psycopg://u:w@h/d')"
    assert masked(said) == "cannot open http://***@db:1/x ('postgresql+psycopg://***@h/d')"
    assert masked("http://me:p@h/x", "") == "http://h/x" and masked("sqlite:////home/a@b/c") == "sqlite:////home/a@b/c"


def test_there_is_one_way_to_show_a_text() -> None:
    own = re.compile(r"from (rich\.markup|html) import|\bConsole\(")
    root = Path(__file__).parents[2]
    files = [*root.glob("lit_mmpg/**/*.py"), *root.glob("profiling/**/*.py")]
    found = [path.name for path in files if own.search(path.read_text(encoding="utf-8"))]
    assert found == ["report.py"]
