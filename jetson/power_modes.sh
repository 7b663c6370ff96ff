#!/usr/bin/env bash
# Profiles a bundle in several power modes of a Jetson. Power modes are set only here, and only because you name them.
#
#   sudo jetson/power_modes.sh --modes "0 1" [--clocks] -- PROFILE ARGUMENTS
#   sudo jetson/power_modes.sh --modes "0 1" -- --bundle bundle --config configs/profile/orin_nano.yaml
#
#   --modes "IDS"  numbers of nvpmodel, see /etc/nvpmodel.conf or "nvpmodel -p --verbose"
#   --clocks       also fix the clocks of each mode with jetson_clocks
#   --output DIR   results go to DIR/mode-ID (default: outputs/profile)
#   --settle S     seconds to wait after a change (default: 20)
#
# The mode and clocks that were there before are restored at the end, also after Ctrl-C. A mode that needs a restart of
# the board is refused (nvpmodel asks), reported and left out.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
modes=""
clocks=0
output="outputs/profile"
settle=20

fail() {
    echo "error: $1" >&2
    exit 2
}

while [[ $# -gt 0 ]]; do
    case "$1" in
        --modes) modes="${2:?--modes needs numbers}"; shift 2 ;;
        --clocks) clocks=1; shift ;;
        --output) output="${2:?--output needs a folder}"; shift 2 ;;
        --settle) settle="${2:?--settle needs seconds}"; shift 2 ;;
        -h | --help) sed -n '2,14p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
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

before="$(nvpmodel -q | sed -n 's/^ *\([0-9][0-9]*\) *$/\1/p' | tail -n 1)"
[[ -n "$before" ]] || fail "nvpmodel -q does not tell the present mode"
saved=""
if [[ "$clocks" == 1 ]]; then
    saved="$(mktemp)"
    jetson_clocks --store "$saved"
fi

# shellcheck disable=SC2317  # called by trap
restore() {
    trap - EXIT INT TERM
    [[ -z "$saved" ]] || { jetson_clocks --restore "$saved" || true; rm -f "$saved"; }
    nvpmodel -m "$before" </dev/null >/dev/null && echo "restored: power mode $before"
}
trap restore EXIT
trap 'exit 130' INT TERM

status=0
for mode in $modes; do
    [[ -z "$saved" ]] || jetson_clocks --restore "$saved"
    # Without an answer to its question about a restart, nvpmodel leaves the mode as it is.
    nvpmodel -m "$mode" </dev/null >/dev/null || true
    now="$(nvpmodel -q | sed -n 's/^ *\([0-9][0-9]*\) *$/\1/p' | tail -n 1)"
    if [[ "$now" != "$mode" ]]; then
        echo "left out: mode $mode (unknown to this board, or it needs a restart: nvpmodel -m $mode)" >&2
        status=1
        continue
    fi
    [[ "$clocks" == 0 ]] || jetson_clocks
    sleep "$settle"
    echo "== power mode $mode =="
    "$lit_mmpg" profile run "$@" --output "$output/mode-$mode" || status=$?
done
exit "$status"
