"""The MLflow store's address, as commands are given it and as runs, checkpoints and bundles keep it; no MLflow here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import lit_mmpg
from lit_mmpg.errors import UserError, first_line
from lit_mmpg.texts import masked

SQLITE = "sqlite:///"
LOCAL = "mlruns/mlflow.db"
"""The store of a project folder."""
COMMIT_TAG = "mlflow.source.git.commit"
PROBE_S = 5
"""Longest wait for a tracking server that is asked whether it is there, in seconds."""


def store_uri(uri: str | None = None) -> str:
    """Absolute address of a store.

    User and password of a tracking server move to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, where MLflow
    looks for them, so that the address can be shown and stored.

    Args:
        uri: ``sqlite:///file.db`` or the address of a tracking server. When None: the environment variable
            MLFLOW_TRACKING_URI, else ``mlruns/mlflow.db`` in the current directory.

    Raises:
        UserError: If the address has no scheme, names a folder, or holds a password that is not escaped.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{LOCAL}"
    if uri.startswith(SQLITE):
        file = Path(uri[len(SQLITE) :]).expanduser().absolute()
        if os.path.isdir(file):
            raise UserError(f"tracking.uri {uri} names a folder; write {SQLITE}FILE.db")
        return SQLITE + str(file)
    if "://" not in uri and uri != "databricks":
        shown = uri.rpartition("@")[2]
        raise UserError(f"tracking.uri '{shown}' has no scheme; write {SQLITE}FILE.db or http://HOST:PORT")
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    login, _, host = parts.netloc.rpartition("@")
    if not re.fullmatch(r"[^:]+(:\d*)?|\[[^\]]*\](:\d*)?", host):
        raise UserError(
            f"tracking.uri {uri.split('://')[0]}://... has no valid host and port; write /, ?, # and @ in a user or "
            "password as %2F, %3F, %23 and %40"
        )
    if login:
        user, _, password = login.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = (
            unquote(user),
            unquote(password),
        )
    return urlunsplit(parts._replace(netloc=host))


def database(uri: str) -> Path | None:
    """File of an sqlite store, None for any other store."""
    return Path(uri[len(SQLITE) :]) if uri.startswith(SQLITE) else None


def address(uri: str) -> str:
    """Address of a store as SQLAlchemy reads it: to some versions percent signs quote, to all question marks do not."""
    file = database(uri)
    if file is None or not set("%?") & set(uri):
        return uri
    from sqlalchemy.engine import make_url

    # Slashes are quoted too: MLflow makes the folders that it sees in an address.
    quoted = quote(str(file), safe="")
    return SQLITE + (quoted if make_url(f"{SQLITE}%41").database == "A" else f"file:{quoted}?uri=true")


def project(uri: str) -> Path:
    """Folder that paths in a store are relative to, so that it can be moved: the one that holds ``mlruns``."""
    file = database(uri)
    if file is None:
        return Path.cwd()
    return file.parent.parent if file.parent.name == "mlruns" else file.parent


def portable(path: str | Path, folder: Path | None = None) -> str:
    """A path relative to a folder (the current one when None) if it lies in it, else as it is."""
    folder, absolute = Path.cwd() if folder is None else folder, Path(path).absolute()
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(path)


def kept_uri(uri: str) -> str:
    """A store's address as checkpoints and bundles keep it: without a password, and relative in a project folder."""
    file = database(uri)
    return masked(uri) if file is None else SQLITE + portable(file)


def reason(error: BaseException) -> str:
    """What went wrong with a store, in a line: the operating system's word where there is one."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:  # libraries wrap it as a cause, as an argument, or as a reason
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        waiting += [found.__cause__, found.__context__, getattr(found, "reason", None), *found.args]
    refused = re.search(r"too many (\d+) error responses", str(error))
    if refused:
        return f"it answers with error {refused.group(1)}"
    if "timed out" in str(error):
        return "no answer in time"
    return masked(first_line(error))


def stores(kept: str | None, near: str | Path) -> list[str]:
    """Where a run may be recorded whose checkpoint or bundle names a store.

    Args:
        kept: Address as :func:`kept_uri` wrote it.
        near: The checkpoint or bundle: a store that lies in a folder above it is found wherever that was moved.
    """
    found = [store_uri(kept)] if kept and "***" not in kept else []
    file = database(kept or SQLITE)
    if file is not None:
        relative = Path(LOCAL) if file.is_absolute() or file == Path() else file
        found += [SQLITE + str(folder / relative) for folder in Path(near).absolute().parents]
    return list(dict.fromkeys([*(uri for uri in found if (database(uri) or Path("/")).exists()), store_uri()]))


def runs_page(experiment_id: str) -> str:
    """Part of a link, behind the server's address, that shows the runs of an experiment (others show traces first)."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit of a checkout, with ``-dirty`` where tracked files differ from it; None outside a checkout.

    Args:
        folder: Folder in the checkout; the one that this package runs from when None.
    """
    where = Path(lit_mmpg.__file__).parent if folder is None else folder
    command = ["git", "-C", str(where), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def source_tags(verb: str) -> dict[str, str]:
    """Tags that say which program made a run: its name and the commit it ran from."""
    commit = git_commit()
    return {"mlflow.source.name": f"lit-mmpg {verb}"} | ({COMMIT_TAG: commit} if commit else {})


@contextmanager
def briefly() -> Iterator[None]:
    """No retries and a short timeout for requests to a server."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_S)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
