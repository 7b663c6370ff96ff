"""The command line: one table from verb to function.

A verb is imported when it is called, so ``lit-mmpg --help`` needs neither torch nor Lightning.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import NamedTuple

from lit_mmpg import __version__
from lit_mmpg.errors import UserError, closest, find_user_error, install_hint
from lit_mmpg.files import expand_home
from lit_mmpg.heartbeat import sigterm_interrupts, working
from lit_mmpg.texts import masked, printable_lines
from lit_mmpg.writing import FULL, give_up_output


class Verb(NamedTuple):
    """One verb.

    Attributes:
        target: ``module:function``; the function takes the arguments after the verb and returns the exit status.
        help: One line.
        again: How to go on when it was interrupted.
    """

    target: str
    help: str
    again: str = "the same command starts anew"


LAST = "the same command with --ckpt_path last goes on from what was saved; where nothing was, leave that out"
SAME = "the same command goes on; what is finished is kept"
KEPT = "the same command goes on behind the clips that its state folder knows; without one it starts anew"

VERBS = {
    "init-data": Verb("lit_mmpg.data.own:main", "make a data set of your own videos and one table of questions"),
    "fit": Verb("lit_mmpg.training.run:fit", "train the device half, the cloud half, or both in turn", LAST),
    "validate": Verb("lit_mmpg.training.run:validate", "measure a checkpoint on the validation devices"),
    "test": Verb("lit_mmpg.training.run:test", "measure a checkpoint on the test devices, on its own or on other data"),
    "predict": Verb("lit_mmpg.training.run:predict", "write a checkpoint's answers or ranks"),
    "devices": Verb("lit_mmpg.training.devices:main", "show the devices, their clips and their shift"),
    "extract": Verb("lit_mmpg.extract.verb:main", "frame features of a folder of videos, for training or a test", SAME),
    "export": Verb("lit_mmpg.export.verb:main", "write a checkpoint as a bundle that a device runs without torch"),
    "compare": Verb("lit_mmpg.methods.compare:main", "train and measure several methods on equal terms", SAME),
    "methods": Verb("lit_mmpg.methods.matrix:main", "list the methods of comparisons and the tasks they apply to"),
    "serve": Verb("lit_mmpg.serving.verb:main", "serve the cloud half of a checkpoint to devices over HTTP"),
    "profile": Verb("lit_mmpg.profiling.cli:main", "measure a bundle on this machine: latency, memory, energy, bytes"),
    "device": Verb(
        "lit_mmpg.runtime.device:main", "run a device over clips: ask the cloud if needed, answer always", KEPT
    ),
    "answer": Verb("lit_mmpg.runtime.answer:main", "answer a question about a video file with a bundle"),
    "search": Verb("lit_mmpg.runtime.search:main", "find the video files that fit a sentence with a bundle", KEPT),
    "memory": Verb("lit_mmpg.cloud.learning:main", "learn what the cameras of a fleet have in common from their clips"),
    "log-model": Verb("lit_mmpg.tracking.models:main", "log a checkpoint as an MLflow model, which MLflow serves"),
    "ui": Verb("lit_mmpg.tracking.ui:main", "open the recorded runs in MLflow's web page"),
}

LONG = {"fit", "validate", "test", "predict", "devices", "extract", "export", "compare", "profile", "search", "memory"}
"""Verbs that may take long: they give signs of life, and SIGTERM interrupts them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    ``sys.argv`` is left as it is: a distributed run starts its other processes with the same command line.

    Args:
        argv: Arguments after the program's name; ``sys.argv[1:]`` when None.

    Returns:
        Exit status: 0 for success, 2 for a mistake in what was asked, 130 when interrupted.
    """
    if argv is None:
        spare_imports()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    arguments = [expand_home(text) for text in (sys.argv[1:] if argv is None else argv)]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show ends no run
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lit-mmpg {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        return _fail(f"there is no command '{name}'{closest(name, VERBS) or '; see lit-mmpg --help'}")
    if option := _without_value(arguments):
        return _fail(f"{option}: its value is empty; give one, or leave it out (a variable of the shell is not set?)")
    module, function = VERBS[name].target.split(":")
    try:
        with ExitStack() as held:
            if name in LONG:
                held.enter_context(sigterm_interrupts())
                held.enter_context(working(name, bar=False))
            return _run(getattr(import_module(module), function), arguments[1:])
    except KeyboardInterrupt as error:
        hint = str(error) or VERBS[name].again
        print(f"interrupted; {hint}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if error.name is None or package == "lit_mmpg":
            raise
        return _fail(f"'lit-mmpg {name}' needs the package {package}; {install_hint('train')}")
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is not None:
            return _fail(str(mistake))
        if isinstance(error, OSError) and error.filename is not None:  # a full disk, a file that may not be read
            return _fail(f"{error.filename}: {error.strerror or type(error).__name__}")
        if type(error).__name__ == "MlflowException":
            from lit_mmpg.tracking.address import reason

            return _fail(f"the MLflow store has failed: {reason(error)}; see to it, then: {VERBS[name].again}")
        raise


def spare_imports() -> None:
    """Have what a process imports searched for garbage less: there is none, and that takes a third of the time."""
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)


def _run(verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        status = int(verb(arguments))
        sys.stdout.flush()
        return status
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        give_up_output()
        raise UserError(f"the output cannot be written ({error.strerror})") from error


def _without_value(arguments: Sequence[str]) -> str:
    """The first option with an empty value, which would be taken for none; of a configuration it may be one."""
    option = ""
    for text in arguments:
        name, given, value = text.partition("=")
        if text.startswith("--"):
            option = name if "." not in name else ""
        if option and (not text or (text.startswith("--") and given and not value)):
            return option
    return ""


def _fail(message: str) -> int:
    print(f"error: {printable_lines(masked(message))}", file=sys.stderr)  # a parser quotes what it was given
    return 2


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: lit-mmpg COMMAND [options]",
            "",
            "Adapt small multi-modal models on devices without backpropagation, by cloud-device collaboration.",
            "",
            *lines,
            "",
            "lit-mmpg COMMAND --help shows the options of a command, lit-mmpg --version the version.",
        ]
    )
