#!/usr/bin/env bash
# Installs lit-mmpg on a Jetson: one virtual environment that sees JetPack's own TensorRT, and no torch.
#
#   jetson/install.sh [--venv FOLDER] [--wheels FOLDER] [--cpu] [--python PYTHON]
#
#   --venv FOLDER    where the environment goes (default: .venv-jetson in the current folder)
#   --wheels FOLDER  install from wheels in this folder and not from a network (see README.md, "Without a network")
#   --cpu            add ONNX Runtime's processor engine beside TensorRT
#   --python PYTHON  interpreter; it must be the one that JetPack's TensorRT was built for (default: python3)
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv=".venv-jetson"
wheels=""
cpu=0
python="python3"

fail() {
    echo "error: $1" >&2
    exit 2
}

while [[ $# -gt 0 ]]; do
    case "$1" in
        --venv) venv="${2:?--venv needs a folder}"; shift 2 ;;
        --wheels) wheels="${2:?--wheels needs a folder}"; shift 2 ;;
        --cpu) cpu=1; shift ;;
        --python) python="${2:?--python needs an interpreter}"; shift 2 ;;
        -h | --help) sed -n '2,9p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
        *) fail "there is no option $1; see $0 --help" ;;
    esac
done

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$python is not Python 3.10 or newer; name one with --python"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make environments; run: sudo apt install python3-venv"
[[ -z "$wheels" || -d "$wheels" ]] || fail "--wheels $wheels is not a folder"

# --system-site-packages: JetPack installs its TensorRT as a Debian package, for the system's interpreter only.
"$python" -m venv --system-site-packages "$venv"
pip=("$venv/bin/python" -m pip install --quiet)
if [[ -n "$wheels" ]]; then
    pip+=(--no-index --find-links "$wheels")
    package="lit-mmpg"
    # By force and before what it needs: two builds have the same version, and pip keeps what has the same version.
    "${pip[@]}" --force-reinstall --no-deps "$package"
else
    package="$here"
fi
if [[ "$cpu" == 1 ]]; then
    package+="[board-cpu]"
fi
"${pip[@]}" "$package"

if [[ "$(id -u)" == 0 && -n "${SUDO_UID:-}" ]]; then
    chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$venv"
fi

if "$venv/bin/python" -c 'import tensorrt' 2>/dev/null; then
    "$venv/bin/python" -c 'import tensorrt; print("TensorRT", tensorrt.__version__)'
else
    echo "note: this Python sees no TensorRT. On JetPack: sudo apt install nvidia-jetpack (or python3-libnvinfer)" >&2
    [[ "$cpu" == 1 ]] || echo "note: without it no engine runs here; --cpu adds ONNX Runtime on the processor" >&2
fi
"$venv/bin/lit-mmpg" profile engines
echo
echo "Next: $venv/bin/lit-mmpg profile run --bundle BUNDLE --config configs/profile/jetson.yaml#orin_nano"
