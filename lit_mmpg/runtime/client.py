"""The cloud as a device sees it: one request, one checked answer, and errors that say what to do."""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from types import TracebackType
from typing import Protocol, TypeVar
from urllib.parse import quote, quote_plus

import httpcore

from lit_mmpg.errors import UserError
from lit_mmpg.link import PROTOCOL_VERSION, Download, LinkError, Upload
from lit_mmpg.link.camera import VERSION, CameraAnswer, CameraQuery
from lit_mmpg.link.messages import DEFAULT_MAX_BYTES
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.network import Budget, TooMuchError, connections, is_loopback, parse_address
from lit_mmpg.texts import printable

ADAPT_PATH, CAMERA_PATH = "/v1/adapt", "/v1/camera"
KEY_VARIABLE = "LIT_MMPG_API_KEY"
DEFAULT_TIMEOUT_S, LONGEST_TIMEOUT_S = 5.0, 86400.0
OVERHEAD_BYTES = 1 << 18
"""What may come beside the answer itself: headers, framing, TLS with its certificates, a proxy's part."""
REFUSAL_BYTES = 1 << 12
"""How much of a refusal is read."""
CAMERA_BYTES = 1 << 13
"""Largest answer about a camera that is read."""

LASTING = {
    401: f"set {KEY_VARIABLE} to a key that this cloud knows",
    403: "use a key that is made for this device id, over https",
    404: "check the address: there is no cloud for devices",
    405: "check the address: there is no cloud for devices",
    409: "this bundle and the cloud's checkpoint belong to different trainings; export the bundle from that checkpoint",
}
"""Statuses that no repetition changes, and their remedy; redirects are others."""


NO_MEMORY = "ask a cloud that holds one, or let the device hold it (--camera-memory FILE)"
"""Remedy where a cloud knows no cameras."""

_BROKEN = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, TooMuchError)


class CloudError(Exception):
    """The cloud gave no usable answer; the device goes on with what it has.

    Args:
        reason: See below.
        message: For people; texts of the cloud in it are made printable and cut.
        lasting: See below.

    Attributes:
        reason: Short name for counting: ``unreachable``, ``timeout``, ``refused``, ``busy``, ``garbage``.
        lasting: Whether asking again changes nothing before somebody mends something.
    """

    def __init__(self, reason: str, message: str, lasting: bool = False) -> None:
        super().__init__(printable(message)[:500])
        self.reason, self.lasting = reason, lasting


@dataclass(frozen=True)
class Traffic:
    """Bytes of one adaptation, or of one camera query.

    Attributes:
        upload_payload_bytes: Encoded tensors of the upload.
        download_payload_bytes: Encoded tensors of the download.
        upload_message_bytes: The whole upload message.
        download_message_bytes: The whole download message.
        upload_wire_bytes: Bytes written to sockets: the message with HTTP, and TLS and CONNECT where used (with
            the handshake of a new connection); without TCP and IP.
        download_wire_bytes: Bytes read from sockets, likewise.
    """

    upload_payload_bytes: int
    download_payload_bytes: int
    upload_message_bytes: int
    download_message_bytes: int
    upload_wire_bytes: int
    download_wire_bytes: int


_Answer = TypeVar("_Answer", Download, CameraAnswer)


@dataclass(frozen=True)
class _Way:
    """What differs between the questions to a cloud: path, largest answer in bytes, version that is spoken."""

    path: str
    most: int
    version: int


class Cloud(Protocol):
    """Whoever answers uploads: a service (:class:`CloudClient`), or a cloud half in this process."""

    def adapt(self, upload: Upload) -> tuple[Download, Traffic]:
        """The download that answers an upload, and the bytes that crossed.

        Raises:
            CloudError: If there is none.
        """


def clean_key(key: str) -> str:
    """An API key without the blanks and line ends around it.

    Raises:
        UserError: If it is empty or cannot be sent in a header. The key is not shown.
    """
    key = key.strip()
    if not key:
        raise UserError(f"the API key is empty; set {KEY_VARIABLE} to the key, or unset it")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            "the API key holds a blank, a control character or a letter beyond ASCII; copy it again, as one word"
        )
    return key


class CloudClient(contextlib.AbstractContextManager["CloudClient"]):
    """Requests personal parameters, and corrections of camera artefacts, from a service.

    A request never exceeds its time limit, whatever the service does. An answer never takes more memory than
    ``max_bytes`` plus a fixed amount for HTTP. Content encodings and redirects are not accepted.

    Args:
        url: Address of the service, such as ``https://cloud.example:8443``.
        api_key: Key of this device. It is sent over plain HTTP to this machine only, and through a proxy only in TLS.
        timeout_s: Time limit of a request, from connecting to the last byte of the answer, seconds. Resolving the host
            name cannot be interrupted and is not included.
        max_bytes: Largest accepted answer, bytes.

    Raises:
        UserError: If the address, the key, the time limit or an environment variable (``HTTPS_PROXY``,
            ``SSL_CERT_FILE``, ...) is not usable, or a key would be sent unencrypted.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        address = parse_address(url, "cloud address")
        self.url, self.max_bytes, self.timeout_s = str(address), max_bytes, check_timeout(timeout_s)
        headers = {
            b"host": address.authority.encode(),
            b"accept-encoding": b"identity",
        }  # and no more: beside an upload of 242 bytes every header counts
        plain = address.scheme == "http"
        if api_key is not None:
            if plain and not is_loopback(address.host):
                raise UserError(f"the API key would travel unencrypted to {address.host}; use https://")
            headers[b"authorization"] = b"Bearer " + clean_key(api_key).encode()
        self._headers, self._budget = headers, Budget()
        self._targets = {
            path: httpcore.URL(
                scheme=address.scheme.encode(),
                host=address.host.encode(),
                port=address.port,
                target=(address.path + path).encode(),
            )
            for path in (ADAPT_PATH, CAMERA_PATH)
        }
        self._pool = connections(address, self._budget, loopback_only=plain and api_key is not None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()

    def adapt(self, upload: Upload) -> tuple[Download, Traffic]:
        """Send an upload and return the download with the personal parameters. One request at a time.

        Raises:
            CloudError: If the service cannot be reached, is too slow or refuses, or the answer is not a complete
                download for this upload.
        """

        def checked(data: bytes) -> Download:
            download = Download.parse(data, max_bytes=self.max_bytes)
            download.check_answers(upload)
            return download

        return self._post(upload, checked, _Way(ADAPT_PATH, self.max_bytes, PROTOCOL_VERSION))

    def recognise(self, query: CameraQuery) -> tuple[CameraAnswer, Traffic]:
        """Send a picture of the static content of a camera's frames and return the correction of its artefacts.

        Raises:
            CloudError: As in :meth:`adapt`, or if the service has no memory of camera models.
        """

        def checked(data: bytes) -> CameraAnswer:
            answer = CameraAnswer.from_bytes(data)
            if (answer.query, answer.size) != (query.digest, query.size):
                raise LinkError("it belongs to another query")
            answer.correction()  # pictures that cannot be decoded are no answer
            return answer

        return self._post(query, checked, _Way(CAMERA_PATH, CAMERA_BYTES, VERSION))

    def _post(
        self, message: Upload | CameraQuery, checked: Callable[[bytes], _Answer], way: _Way
    ) -> tuple[_Answer, Traffic]:
        body, budget = message.to_bytes(), self._budget
        budget.start(self.timeout_s, way.most + OVERHEAD_BYTES)
        try:
            data = self._ask(body, way)
        except httpcore.TimeoutException as error:
            raise CloudError("timeout", f"no answer from {self.url} within {self.timeout_s:g} s") from error
        except (httpcore.NetworkError, httpcore.ProxyError) as error:
            raise CloudError("unreachable", f"{self.url} cannot be reached ({error})") from error
        except httpcore.ProtocolError as error:  # its text quotes what was sent
            raise CloudError("unreachable", f"{self.url} hung up in mid-answer, or does not speak HTTP") from error
        except TooMuchError as error:
            raise CloudError("garbage", f"{self.url} answers with more than {way.most} bytes") from error
        try:
            answer = checked(data)
        except LinkError as error:
            told = self._masked(str(error))
            raise CloudError("garbage", f"{self.url} answered with something else: {told}") from error
        wire = budget.sent, budget.received
        return answer, Traffic(message.payload_bytes, answer.payload_bytes, len(body), len(data), *wire)

    def _ask(self, body: bytes, way: _Way) -> bytes:
        """The body of the answer. A kept connection that turns out to be dead is replaced, once, in the same time."""
        opened = self._budget.connections
        try:
            return self._exchange(body, way)
        except (httpcore.NetworkError, httpcore.ProtocolError):
            if self._budget.connections > opened:
                raise
            return self._exchange(body, way)

    def _exchange(self, body: bytes, way: _Way) -> bytes:
        headers = self._headers | {b"content-length": str(len(body)).encode()}
        patience = {"timeout": {"pool": self.timeout_s}}  # all other waiting is the budget's
        target = self._targets[way.path]
        response = self._pool.handle_request(
            httpcore.Request(b"POST", target, headers=[*headers.items()], content=body, extensions=patience)
        )
        try:
            return self._read(response, way)
        finally:
            response.close()

    def _read(self, response: httpcore.Response, way: _Way) -> bytes:
        coding = b",".join(value for name, value in response.headers if name.lower() == b"content-encoding")
        encoded = coding.strip().lower() not in (b"", b"identity")
        if response.status != 200:
            text = b""
            with contextlib.suppress(*_BROKEN):  # that it refuses is known
                text = b"" if encoded else self._body(response, REFUSAL_BYTES)
            raise _refusal(response.status, self._masked(text.decode("utf-8", "replace")), way.version)
        if encoded:
            raise CloudError("garbage", f"{self.url} answers in a content encoding that nobody asked for")
        data = self._body(response, way.most + 1)
        if len(data) > way.most:
            raise TooMuchError
        return data

    def _masked(self, text: str) -> str:
        """A text of somebody else's without keys: who answers may quote what it was sent."""
        key = self._headers.get(b"authorization", b"").removeprefix(b"Bearer ").decode()
        for form in {key, quote(key), quote_plus(key), html.escape(key), json.dumps(key)[1:-1]} - {""}:
            text = text.replace(form, "***")
        return _KEY.sub(r"\1***", text)

    def _body(self, response: httpcore.Response, most: int) -> bytes:
        assert isinstance(response.stream, Iterable)
        data = bytearray()
        for part in response.stream:
            self._budget.seconds()  # many small parts may come in one reading
            data += part
            if len(data) >= most:
                break
        return bytes(data[:most])


_KEY = re.compile(
    r"""((?i:\bauthorization)["']?\s*[:=]\W{0,4}(?i:bearer\s+|basic\s+)?|(?i:\bbearer)\s+(?=\S*[0-9A-Z_-]))[^\s"'<>,;]+"""
)
"""Where pages and logs quote a key, whoever's it is."""


def check_timeout(seconds: float) -> float:
    """The time of a request.

    Raises:
        UserError: If it is no time.
    """
    if not isinstance(seconds, Real) or not 0 < seconds <= LONGEST_TIMEOUT_S:  # NaN is neither
        raise UserError(f"a request cannot take {seconds!r} s; give more than 0, at most {LONGEST_TIMEOUT_S:g}")
    return seconds


def _refusal(status: int, text: str, version: int) -> CloudError:
    reason = ""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # unless it is not our service's form
        told = json.loads(text)
        text = str(told["detail"])
        reason = str(told["error"])
    text = text.strip()[:200] or "no reason given"
    if status in (429, 503):
        return CloudError("busy", f"the cloud is busy ({status}): {text}")
    if 300 <= status < 400:
        return CloudError("refused", f"the cloud sends elsewhere ({status}); name the address it ends at", lasting=True)
    own = {"protocol_version": _other_version(text, version), "camera": NO_MEMORY}
    remedy = own.get(reason, LASTING.get(status))
    return CloudError(
        "refused", f"the cloud refused ({status}): {text}" + (f"; {remedy}" if remedy else ""), remedy is not None
    )


def _other_version(text: str, version: int) -> str:
    """What to do when the cloud speaks another version, by its own words in any version of this program."""
    spoken = re.search(r"this side speaks (\d{1,5})\b", text)
    where = "this device" if spoken and int(spoken[1]) > version else "the cloud"
    return f"this device speaks {version}: upgrade lit-mmpg on {where}"


# -- options of verbs ----------------------------------------------------------------------------------------------


def open_cloud(options: argparse.Namespace, bundle: Bundle) -> CloudClient | None:
    """The cloud that the options name, with the key of the environment; ``None``: none.

    Raises:
        UserError: If it cannot be used, or cannot adapt the bundle.
    """
    if options.cloud is None:
        return None
    if not len(bundle.spec):
        raise UserError(f"{bundle.path} holds a static model, which no cloud can adapt; leave --cloud out")
    return CloudClient(options.cloud, os.environ.get(KEY_VARIABLE), options.timeout)


def count(text: str) -> int:
    """A number of things on the command line, 1 or more.

    Raises:
        UserError: If it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < 2**31:
        raise UserError(f"'{text}' is not a number from 1 on")
    return number
