#!/usr/bin/env bash
# Profiles a bundle in several power modes of a Jetson. Power modes are set only here, and only because you name them.
#
#   sudo jetson/power_modes.sh --modes "0 1" [--clocks] -- PROFILE ARGUMENTS
#   sudo jetson/power_modes.sh --modes "0 1" -- --bundle bundle --config configs/profile/jetson.yaml#orin_nano
#
#   --modes "IDS"  numbers of nvpmodel, see /etc/nvpmodel.conf or "nvpmodel -p --verbose"
#   --build        only build the engines of each mode ("profile engines build"), so that later runs find them
#   --clocks       also fix the clocks of each mode with jetson_clocks
#   --output DIR   results go to DIR/mode-ID (default: outputs/profile)
#   --settle S     seconds to wait after a change (default: 20)
#
# The mode and clocks that were there before are restored at the end, also after Ctrl-C or kill. A mode that needs a
# restart of the board is refused (nvpmodel asks), reported and left out. Engines come from, and go to, the cache of the
# user who calls sudo.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
modes=""
clocks=0
build=0
output="outputs/profile"
settle=20

fail() {
    echo "error: $1" >&2
    exit 2
}

while [[ $# -gt 0 ]]; do
    case "$1" in
        --modes) modes="${2:?--modes needs numbers}"; shift 2 ;;
        --build) build=1; shift ;;
        --clocks) clocks=1; shift ;;
        --output) output="${2:?--output needs a folder}"; shift 2 ;;
        --settle) settle="${2:?--settle needs seconds}"; shift 2 ;;
        -h | --help) sed -n '2,16p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
        --) shift; break ;;
        *) fail "there is no option $1; see $0 --help" ;;
    esac
done
[[ "$modes" =~ ^[0-9]+(\ +[0-9]+)*$ ]] || fail "--modes needs one or more numbers, for example --modes \"0 1\""
[[ $# -gt 0 ]] || fail "the arguments of 'lit-mmpg profile run' are missing after --"
command -v nvpmodel >/dev/null || fail "nvpmodel is not installed: this is no Jetson, or JetPack is incomplete"
[[ "$(id -u)" == 0 ]] || fail "power modes can only be set by root; run it with sudo"

lit_mmpg="${LIT_MMPG:-}"
for candidate in .venv-jetson/bin/lit-mmpg "$here/.venv-jetson/bin/lit-mmpg"; do
    if [[ -z "$lit_mmpg" && -x "$candidate" ]]; then
        lit_mmpg="$candidate"
    fi
done
[[ -n "$lit_mmpg" ]] || fail "no .venv-jetson found; run jetson/install.sh, or set LIT_MMPG=/path/to/lit-mmpg"

if [[ -n "${SUDO_USER:-}" && -z "${XDG_CACHE_HOME:-}" ]]; then
    home="$(getent passwd "$SUDO_USER" | cut -d: -f6 || true)"
    [[ -z "$home" ]] || export XDG_CACHE_HOME="$home/.cache"
fi

present() {
    nvpmodel -q </dev/null | sed -n 's/^[[:space:]]*\([0-9][0-9]*\)[[:space:]]*$/\1/p' | tail -n 1
}

before="$(present || true)"
[[ -n "$before" ]] || fail "nvpmodel -q does not tell the present mode"
saved=""
child=""
if [[ "$clocks" == 1 ]]; then
    # A file that does not exist yet: jetson_clocks asks before it overwrites one.
    saved="$(mktemp -d)/clocks"
    jetson_clocks --store "$saved" </dev/null || {
        rm -rf "${saved%/clocks}"
        fail "jetson_clocks --store failed; nothing was changed"
    }
fi

# shellcheck disable=SC2317  # called by trap
restore() {
    trap - EXIT
    trap '' INT TERM HUP  # the clocks are restored before anything else ends this script
    [[ -z "$saved" ]] || { jetson_clocks --restore "$saved" </dev/null || true; rm -rf "${saved%/clocks}"; }
    nvpmodel -m "$before" </dev/null >/dev/null && echo "restored: power mode $before"
}
# shellcheck disable=SC2317  # called by trap
interrupted() {
    trap '' INT TERM HUP
    if [[ -n "$child" ]]; then
        kill -TERM "$child" 2>/dev/null || true  # 'profile run' keeps its finished rows
        wait "$child" || true
    fi
    exit "$1"
}
trap restore EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP

# Runs a command in the background, so that a signal reaches this script at once and not after the command.
waited() {
    local result=0
    "$@" &
    child=$!
    wait "$child" || result=$?
    child=""
    return "$result"
}

status=0
for mode in $modes; do
    [[ -z "$saved" ]] || jetson_clocks --restore "$saved" </dev/null
    # Without an answer to its question about a restart, nvpmodel leaves the mode as it is.
    nvpmodel -m "$mode" </dev/null >/dev/null || true
    now="$(present || true)"
    if ((10#${now:-999999} != 10#$mode)); then
        echo "left out: mode $mode (unknown to this board, or it needs a restart: nvpmodel -m $mode)" >&2
        status=1
        continue
    fi
    [[ "$clocks" == 0 ]] || jetson_clocks </dev/null
    waited sleep "$settle"
    echo "== power mode $mode =="
    if [[ "$build" == 1 ]]; then
        waited "$lit_mmpg" profile engines build "$@" || status=$?
    else
        waited "$lit_mmpg" profile run "$@" --output "$output/mode-$mode" || status=$?
    fi
done
exit "$status"
