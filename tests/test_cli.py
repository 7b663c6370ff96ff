from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from lit_mmpg import __version__, cli
from lit_mmpg.data.readers.files import require_path
from lit_mmpg.errors import UserError, nearest
from lit_mmpg.export.write import bundle_folder, check_target
from lit_mmpg.writing import write_text

BLOCK = "import sys; sys.modules.update(dict.fromkeys(['torch', 'lightning', 'mlflow', 'jsonargparse']));"


def fail_plainly(argv: list[str]) -> int:
    raise UserError(f"{argv[0]} is missing; make it")


def fail_wrapped(argv: list[str]) -> int:
    try:
        fail_plainly(argv)
    except UserError as error:
        raise ValueError("a library's own words") from error
    return 0


def fail_badly(argv: list[str]) -> int:
    raise KeyError(argv[0])


class MlflowException(Exception):
    """By its name, as the command line knows it without importing MLflow."""


def fail_to_record(argv: list[str]) -> int:
    raise MlflowException("too many 500 error responses")


def be_ended(argv: list[str]) -> int:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)  # by a manager that sends it until the process is gone
    return 0


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fail_plainly", "fail_wrapped", "fail_badly", "fail_to_record", "be_ended"):
        monkeypatch.setitem(cli.VERBS, name, cli.Verb(f"{__name__}:{name}", "for the test"))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[fail_badly.__module__])


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = f"{BLOCK} from lit_mmpg.cli import main; sys.exit(main(['{option}']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("usage: lit-mmpg" if option == "--help" else __version__) in done.stdout


def test_module_entry() -> None:
    done = subprocess.run([sys.executable, "-m", "lit_mmpg", "--version"], capture_output=True, text=True)
    assert done.stdout.split() == ["lit-mmpg", __version__]


def test_help_lists_every_verb_and_every_verb_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == list(cli.VERBS)
    missing = [v.target for v in cli.VERBS.values() if find_spec(v.target.split(":")[0]) is None]
    assert not missing


def test_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predicct"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'predicct'; did you mean 'predict'?\n"


@pytest.mark.parametrize("verb", ["fail_plainly", "fail_wrapped"])
def test_user_error_is_one_line(verb: str, verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    assert cli.main([verb, "folder"]) == 2
    assert capsys.readouterr().err == "error: folder is missing; make it\n"
    assert sys.argv == before


@pytest.mark.parametrize("arguments", [["--state", ""], ["--state="], ["--options", "a", ""]])
def test_an_option_without_a_value_is_not_taken_for_none(
    arguments: list[str], verbs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fail_plainly", "--model.name", "", "--model.name=", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {arguments[0].strip('=')}: its value is empty; give one")


def test_defects_keep_their_traceback(verbs: None) -> None:
    with pytest.raises(KeyError):
        cli.main(["fail_badly", "x"])


def test_a_store_that_fails_is_one_line(verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail_to_record"]) == 2
    said = (
        "error: the MLflow store has failed: it answers with error 500; see to it, then: the same command starts anew\n"
    )
    assert capsys.readouterr().err == said


def test_sigterm_ends_long_work_with_a_line(
    verbs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "LONG", {"be_ended"})
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["be_ended"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command starts anew\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_keeps_a_state_does_not_say_that_it_starts_anew() -> None:
    assert all("state folder" in cli.VERBS[name].again for name in ("device", "search"))


def test_memory_that_runs_out_is_one_line(
    verbs: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (MemoryError(), RuntimeError("CUDA out of memory."), MemoryError("Unable to allocate 7 TiB for it")):
        monkeypatch.setattr(cli, "_run", lambda verb, arguments, error=error: (_ for _ in ()).throw(error))
        assert cli.main(["fail_badly"]) == 2
        said = f" ({error})" if str(error) else ""
        assert capsys.readouterr().err.startswith(f"error: there is not enough memory{said}; lower the sizes")


def test_a_closed_output_ends_no_run() -> None:
    found = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m lit_mmpg methods tent >&-"], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_an_error_shows_no_password_that_a_library_quotes(verbs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail_plainly", "'{uri: http://me:hidden@host/}'"]) == 2
    assert capsys.readouterr().err == "error: '{uri: http://***@host/}' is missing; make it\n"


def test_a_link_to_a_file_or_a_bundle_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("rows.json", "bundle"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    for text in ("new", "newer"):
        write_text(tmp_path / "rows.json", text)
        with bundle_folder(tmp_path / "bundle") as folder:
            (folder / "manifest.json").write_text(text)
        assert (tmp_path / "far/rows.json").read_text() == (tmp_path / "far/bundle/manifest.json").read_text() == text
        assert (tmp_path / "rows.json").is_symlink() and (tmp_path / "bundle").is_symlink()
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["bundle", "rows.json"]


def test_an_older_bundle_with_something_else_in_it_stays(tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx", "weights.safetensors", ".DS_Store"):
        (tmp_path / name).touch()
    check_target(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "answers.jsonl").touch()  # of a device with its state in the bundle
    with pytest.raises(UserError, match=r"holds answers.jsonl, state, which would be lost with the older bundle"):
        check_target(tmp_path)


def test_a_link_to_nothing_is_called_so(tmp_path: Path) -> None:
    for name in ("gone", "loop"):
        (tmp_path / name).symlink_to(name if name == "loop" else "nowhere")
        said = f" ({tmp_path / name} is a link to something that does not exist)"
        assert nearest(tmp_path / name) == nearest(tmp_path / name / "best.ckpt") == said
        for path in (tmp_path / name, tmp_path / name / "clips.csv"):
            with pytest.raises(UserError) as caught:
                require_path(path, "clip list")
            assert str(caught.value) == f"clip list: {path} does not exist{said}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_key_that_cannot_be_shown_is_told(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    command = [sys.executable, "-m", "lit_mmpg", "serve", "--keys", keys, "--new-key", "kitchen", "--devices", "a"]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert f"remove its entry from {keys} and make it again" in found.stderr


def test_a_file_that_found_no_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_mmpg.writing.os.getpid", lambda: "full")
    (tmp_path / ".rows.json.full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "rows.json", "text")
    assert caught.value.filename == str(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("module", "argv", "name"),
    [
        ("lit_mmpg.methods.compare", "--config c.yaml --seeds {} --seeds {}", "seeds"),
        ("lit_mmpg.methods.compare", "--config c.yaml --only {} --only {}", "only"),
        ("lit_mmpg.runtime.answer", "--bundle b --clip c --question q --options {} --options {}", "options"),
        ("lit_mmpg.runtime.device", "--bundle b --clips {} --clips {}", "clips"),
        ("lit_mmpg.serving.verb", "--devices {} --devices {}", "devices"),
        ("lit_mmpg.export.verb", "--ckpt c --output o --precisions fp16 --precisions int8", "precisions"),
        ("lit_mmpg.profiling.cli", "run --bundle b --config c --engines {} --engines {}", "engines"),
        ("lit_mmpg.profiling.cli", "run --bundle b --config c --scenarios {} --scenarios {}", "scenarios"),
    ],
)
def test_an_option_of_several_values_that_is_given_twice_has_all(module: str, argv: str, name: str) -> None:
    options, _ = import_module(module)._parser().parse_known_args(argv.format(3, 4).split())
    assert [str(value) for value in getattr(options, name)] in (["3", "4"], ["fp16", "int8"])
