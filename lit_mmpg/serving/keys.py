"""API keys: who may ask for which devices. Only digests of keys are stored.

The file is JSON::

    {"keys": [{"name": "kitchen fleet", "sha256": "<64 hexadecimal digits>", "devices": ["robot-1", "kitchen-*"]}]}

``devices`` are device ids, or beginnings of device ids that end in ``*``. Keys are random (256 bits), so a plain
SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError, nearest

_log = logging.getLogger("lit_mmpg.serving")
_HEX_64 = re.compile("[0-9a-f]{64}")
_SCHEME = b"bearer "


@dataclass(frozen=True)
class ApiKey:
    """One key.

    Attributes:
        name: What it is called in logs and metrics.
        sha256: Digest of the key, hexadecimal.
        devices: Device ids, or beginnings of ids with ``*`` at the end.
    """

    name: str
    sha256: str
    devices: tuple[str, ...]

    def allows(self, device_id: str) -> bool:
        """Whether the key may ask for this device."""
        return any(
            device_id.startswith(pattern[:-1]) if pattern.endswith("*") else device_id == pattern
            for pattern in self.devices
        )


class KeyRing:
    """The keys of a service.

    Args:
        keys: At least one key, of different names.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)
        self._digests = [bytes.fromhex(key.sha256) for key in self.keys]

    @classmethod
    def load(cls, path: str | Path) -> KeyRing:
        """Read a file of keys.

        Raises:
            UserError: If it is missing, malformed, or readable by everybody.
        """
        path = Path(path)
        keys = _read(path)
        if not keys:
            raise UserError(f"--keys {path} holds no key; make one with --new-key NAME")
        if os.name == "posix" and path.stat().st_mode & 0o007:
            raise UserError(f"--keys {path} is open to every user of this machine; run chmod 600 {path}")
        return cls(keys)

    def find(self, authorization: bytes | None) -> ApiKey | None:
        """The key that an ``Authorization: Bearer KEY`` header holds, if it is one of ours.

        Takes the same time whichever key it is: digests of equal length are compared, all of them, in constant time.
        """
        value = b"" if authorization is None or authorization[:7].lower() != _SCHEME else authorization[7:].strip()
        digest = hashlib.sha256(value).digest()
        found = None
        for key, own in zip(self.keys, self._digests, strict=True):
            if hmac.compare_digest(own, digest):
                found = key
        return found


class WatchedKeys:
    """The keys of a file as it is now: keys that are added or removed count without a restart.

    A file that has become unusable is logged and changes nothing: the keys read last stay valid until it is mended.

    Args:
        path: File of keys.
        every_s: How often the file is looked at, at most.
        clock: Seconds from a clock that never goes back.

    Raises:
        UserError: If the file is not usable at the start.
    """

    def __init__(self, path: str | Path, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.every_s, self._clock = Path(path), every_s, clock
        self._version, self._looked = self._stat(), clock()
        self._ring = KeyRing.load(self.path)

    def find(self, authorization: bytes | None) -> ApiKey | None:
        """As :meth:`KeyRing.find`."""
        if self._clock() - self._looked >= self.every_s:
            self._look()
        return self._ring.find(authorization)

    def _look(self) -> None:
        self._looked = self._clock()
        version = self._stat()
        if version == self._version:
            return
        self._version = version
        try:
            self._ring = KeyRing.load(self.path)
        except UserError as error:
            _log.error("keys not read", extra={"event": "keys", "detail": f"{error}; the keys read last stay valid"})
        else:
            _log.info("keys read", extra={"event": "keys", "detail": f"{len(self._ring.keys)} keys"})

    def _stat(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def add_key(path: str | Path, name: str, devices: Sequence[str]) -> str:
    """Make a key and write its digest to the file, which is made (mode 600) if it does not exist.

    Returns:
        The key itself: it is shown once and stored nowhere.

    Raises:
        UserError: If the name is taken or no device is named.
    """
    if not name or not devices or any(not d or "*" in d[:-1] for d in devices):
        raise UserError("--new-key needs a name and --devices ID [ID ...]; '*' is allowed at the end of an id only")
    if not all(map(_is_text, (name, *devices))):
        raise UserError("the name of a key and the ids of its devices are printable text")
    try:
        with _locked(Path(path)) as file:
            keys = _read(file) if file.exists() else []
            if any(key.name == name for key in keys):
                raise UserError(f"{path} has a key called '{name}' already; choose another name, or remove its entry")
            secret = secrets.token_urlsafe(32)
            keys.append(ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), tuple(devices)))
            content = {"keys": [{"name": k.name, "sha256": k.sha256, "devices": list(k.devices)} for k in keys]}
            _replace(file, json.dumps(content, indent=2) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"--keys {path} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    return secret


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The file behind a path and its links, while no other process adds a key to it."""
    import fcntl

    file = Path(os.path.realpath(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file of its own: the file of keys is another one after each replacement.
    with os.fdopen(os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file


def _replace(file: Path, text: str) -> None:
    """Write a file in one step; mode and owner stay, and a new one is for its owner alone."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as new:
            with suppress(FileNotFoundError):
                before = file.stat()
                os.fchmod(new.fileno(), stat.S_IMODE(before.st_mode))
                with suppress(PermissionError):
                    os.fchown(new.fileno(), before.st_uid, before.st_gid)
            new.write(text)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _read(path: Path) -> list[ApiKey]:
    try:
        if not path.is_file():
            raise UserError(f"--keys {path} does not exist or is no file{nearest(path)}; make one with --new-key NAME")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
        if not isinstance(content, dict) or set(content) != {"keys"} or not isinstance(content["keys"], list):
            raise ValueError('expected {"keys": [...]}')
        keys = [_entry(entry) for entry in content["keys"]]
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--keys {path} is not a file of keys ({reason}); make one with --new-key NAME") from error
    if len({key.name for key in keys}) < len(keys) or len({key.sha256 for key in keys}) < len(keys):
        raise UserError(f"--keys {path} holds a name or a key twice; remove one of them")
    return keys


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is given twice")
    return found


def _entry(entry: Any) -> ApiKey:
    if not isinstance(entry, dict) or set(entry) != {"name", "sha256", "devices"}:
        raise ValueError("an entry needs name, sha256 and devices, and nothing else")
    name, digest, devices = entry["name"], entry["sha256"], entry["devices"]
    if not _is_text(name):
        raise ValueError(f"name {name!r:.50} is not printable text")
    if not isinstance(digest, str) or not _HEX_64.fullmatch(digest):
        raise ValueError(f"sha256 of '{name}' is not 64 hexadecimal digits")
    if not isinstance(devices, list) or not devices or not all(map(_is_text, devices)):
        raise ValueError(f"devices of '{name}' is not a list of device ids")
    return ApiKey(name, digest, tuple(devices))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()
