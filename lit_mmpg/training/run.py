"""The verbs fit, validate, test and predict."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from lit_mmpg.checkpoint import require_checkpoint, require_trained
from lit_mmpg.errors import UserError
from lit_mmpg.report import check_output, json_alone, rows_text
from lit_mmpg.texts import masked
from lit_mmpg.training.config import DEMO, Request, read_request
from lit_mmpg.trust import VARIABLE, to_trust


def fit(argv: Sequence[str]) -> int:
    """Train one half, or the device half and then the cloud half."""
    request = read_request("fit", argv)
    if request.options["ckpt_path"] not in (None, "last"):
        require_checkpoint(str(request.options["ckpt_path"]))
    if not _asks_help(request):
        if "model" not in request.config and not any(name.startswith("model") for name in request.overridden()):
            raise UserError(
                f"fit needs a configuration; name one with --config, as {DEMO} (the embedded data), or see fit --help"
            )
        device = request.flag("model.device_ckpt")
        if device not in (None, "null"):
            require_trained(str(device))
        request.arguments()  # an unset variable and faults of the data are answered before torch is imported
        check_data(request)
        from lit_mmpg.training.stages import train

        best = train(request)
        if best and all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):
            shown = shlex.quote(os.path.relpath(best) if Path(best).is_relative_to(Path.cwd()) else best)
            modules = to_trust()  # the checkpoint alone gets nothing imported
            own = f"{VARIABLE}={modules} " if modules else ""
            print(f"next: {own}lit-mmpg test --ckpt_path {shown}")
            print(f"  or: {own}lit-mmpg export --ckpt {shown} --output bundle")
    return 0


def validate(argv: Sequence[str]) -> int:
    """Measure a checkpoint on the validation devices."""
    return _measure(read_request("validate", argv))


def test(argv: Sequence[str]) -> int:
    """Measure a checkpoint on the test devices."""
    return _measure(read_request("test", argv))


def predict(argv: Sequence[str]) -> int:
    """Write a checkpoint's answers."""
    request = read_request("predict", argv)
    if not _asks_help(request):
        _check_checkpoint(request)
        output = str(request.options["output"] or "")
        if not output.endswith((".csv", ".jsonl")):
            raise UserError("predict writes its answers to a file; name it with --output FILE.csv or FILE.jsonl")
        from lit_mmpg.training.evaluation import answer

        answer(request)
    return 0


def _measure(request: Request) -> int:
    if not _asks_help(request):
        _check_checkpoint(request)
        check_output(request.options["output"])
        with json_alone(request.options["json"]) as write:
            from lit_mmpg.training.evaluation import measure

            module = measure(request)
            if module.trainer.is_global_zero:
                write(rows_text(module.result_rows))
    return 0


def _check_checkpoint(request: Request) -> None:
    """Cheap checks first: importing torch takes seconds, a typing mistake should not."""
    path = request.options["ckpt_path"]
    if path is None:
        raise UserError(f"{request.verb} needs a checkpoint; name it with --ckpt_path FILE.ckpt")
    require_checkpoint(path)


def check_data(request: Request) -> None:
    """Report what is wrong with the files of the user's own data, before anything heavy is imported.

    Raises:
        UserError: One report of all faults.
    """
    if "data" in request.overridden():
        return  # another file or class: the parser knows what it says
    data = request.section("data")
    settings = data.get("init_args")
    if str(data.get("class_path")).split(".")[-1] != "VideoData" or not isinstance(settings, dict):
        return
    if not all(isinstance(settings.get(key), str) for key in ("root", "features")):
        return  # the parser says what is missing
    from lit_mmpg.data.video_files import check_video_data

    try:
        check_video_data(settings, request.verb)
    except (TypeError, ValueError, AttributeError):
        return  # a setting of another type: the parser says so


def _asks_help(request: Request) -> bool:
    """Print the help of the verb, or of one class (``--model.help CLASS``), if that is what was asked."""
    if not request.overridden() & {"help", "model.help", "data.help", "print_config"} and "-h" not in request.flags:
        return False
    from lit_mmpg.training.lightning_cli import CLI

    if not any(name.startswith("print_config") for name in request.overridden()):
        CLI(request)
        return True
    shown = io.StringIO()  # often becomes a file, in which no password is wanted
    try:
        with redirect_stdout(shown):
            CLI(request)
    finally:
        print(masked(shown.getvalue()), end="")
    return True
