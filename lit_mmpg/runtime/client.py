"""The cloud as a device sees it: one request, one checked answer, and errors that say what to do."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from lit_mmpg.errors import UserError
from lit_mmpg.link import Download, LinkError, Upload
from lit_mmpg.link.messages import DEFAULT_MAX_BYTES

ADAPT_PATH = "/v1/adapt"
MEDIA_TYPE = "application/octet-stream"


class CloudError(Exception):
    """The cloud gave no usable parameters; the device goes on with what it has.

    Attributes:
        reason: Short name for counting: ``unreachable``, ``timeout``, ``refused``, ``busy``, ``garbage``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Traffic:
    """Bytes of one adaptation; the three counts are never mixed.

    Attributes:
        upload_payload_bytes: Encoded tensors of the upload.
        download_payload_bytes: Encoded tensors of the download.
        upload_message_bytes: The whole upload message.
        download_message_bytes: The whole download message.
        upload_wire_bytes: The message and the HTTP request line and headers (without TLS, TCP and IP).
        download_wire_bytes: The message and the HTTP status line and headers (likewise).
    """

    upload_payload_bytes: int
    download_payload_bytes: int
    upload_message_bytes: int
    download_message_bytes: int
    upload_wire_bytes: int
    download_wire_bytes: int


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class CloudClient:
    """Asks a cloud for personal parameters.

    Args:
        url: Address of the service, such as ``https://cloud.example:8443``.
        api_key: Key of this device; never sent over plain HTTP beyond this machine.
        timeout_s: Longest silence that is waited for, and longest time for the connection; an answer that trickles in
            may take four times as long in all.
        max_bytes: Largest answer that is read.

    Raises:
        UserError: If the address is not usable, or a key would travel in the clear.
    """

    def __init__(
        self, url: str, api_key: str | None = None, timeout_s: float = 5.0, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"cloud address '{url}' is not a URL; write http://HOST:PORT or https://HOST:PORT")
        if api_key and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise UserError(f"the API key would travel unencrypted to {parts.hostname}; use https://")
        self.url, self.max_bytes, self.patience_s = url.rstrip("/"), max_bytes, 4 * timeout_s
        headers = {"content-type": MEDIA_TYPE} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self._client = httpx.Client(timeout=timeout_s, headers=headers, follow_redirects=False)

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def adapt(self, upload: Upload) -> tuple[Download, Traffic]:
        """Send a context, receive the parameters that answer it.

        Raises:
            CloudError: If the cloud cannot be reached, is too slow, refuses, or answers with anything else than the
                undamaged download that belongs to this upload.
        """
        body = upload.to_bytes()
        try:
            with self._client.stream("POST", self.url + ADAPT_PATH, content=body) as response:
                data = self._read(response)
                wire = _wire_bytes(response, len(body), len(data))
                if response.status_code != 200:
                    raise _refusal(response.status_code, data)
        except httpx.TimeoutException as error:
            raise CloudError("timeout", f"no answer from {self.url} in time") from error
        except httpx.HTTPError as error:
            raise CloudError("unreachable", f"{self.url} cannot be reached ({error})") from error
        try:
            download = Download.from_bytes(data, max_bytes=self.max_bytes)
            download.check_answers(upload)
        except LinkError as error:
            raise CloudError("garbage", f"{self.url} answered with something else: {error}") from error
        traffic = Traffic(upload.payload_bytes, download.payload_bytes, len(body), len(data), *wire)
        return download, traffic

    def _read(self, response: httpx.Response) -> bytes:
        parts, size, until = [], 0, time.monotonic() + self.patience_s
        for part in response.iter_bytes():
            if time.monotonic() > until:
                raise CloudError("timeout", f"the answer of {self.url} trickles in too slowly")
            size += len(part)
            if size > self.max_bytes:
                raise CloudError("garbage", f"{self.url} answers with more than {self.max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)


def _refusal(status: int, data: bytes) -> CloudError:
    text = data[:200].decode("utf-8", "replace")
    if status in (429, 503):
        return CloudError("busy", f"the cloud is busy ({status}): {text}")
    return CloudError("refused", f"the cloud refused ({status}): {text}")


def _wire_bytes(response: httpx.Response, sent: int, received: int) -> tuple[int, int]:
    """Bytes of HTTP/1.1: start line, headers, the empty line, and the body."""
    request = response.request
    start = len(f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n")
    status = len(f"HTTP/1.1 {response.status_code} {response.reason_phrase}\r\n")

    def size(headers: httpx.Headers) -> int:
        return sum(len(key) + len(value) + 4 for key, value in headers.raw) + 2

    return start + size(request.headers) + sent, status + size(response.headers) + received
