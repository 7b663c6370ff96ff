#!/usr/bin/env bash
# Profiles a bundle on an emulated aarch64 processor: a board's Python, wheels and instruction set, without a board.
#
#   jetson/emulate.sh FOLDER BUNDLE [OPTION OF 'profile run' ...]
#
# FOLDER is filled once: Debian's qemu-user-static and an arm64 Python, both unpacked there and not installed, and the
# wheels that a board takes. Needs Debian (apt) and a network the first time. What it proves is that the board's path runs
# on aarch64; its times say nothing about any board, so energy and memory are not measured.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ $# -ge 2 ]] || { sed -n '2,8p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 2; }
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
bundle="$(realpath "$2")"
shift 2
python="${PYTHON:-$here/.venv/bin/python}"
# The version that boards with Python 3.10 get; much newer ones crash under Debian 12's emulator when they are imported.
engine="onnxruntime==1.23.*"
packages=(
    libc6 libpython3-stdlib python3 python3-minimal libstdc++6 libgcc-s1 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0
    liblzma5 libsqlite3-0 libuuid1 libncursesw6 libtinfo6 libreadline8 libcrypt1
)
qemu="$folder/host/usr/bin/qemu-aarch64-static"
root="$folder/root"

if [[ ! -e "$folder/.filled" ]]; then
    command -v apt-get > /dev/null || { echo "error: no apt-get here; this script unpacks Debian's packages" >&2; exit 2; }
    echo "filling $folder (once)"
    mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,packages,host,root,site}
    touch "$folder/state/status"
    apt=(apt-get -qq -o "Dir::State=$folder/state" -o "Dir::State::status=$folder/state/status"
        -o "Dir::Cache=$folder/cache" -o Debug::NoLocking=1 -o "APT::Sandbox::User=$(id -un)")
    arm=("${apt[@]}" -o APT::Architecture=arm64 -o APT::Architectures=arm64)
    "${arm[@]}" update
    version="$("${arm[@]/apt-get/apt-cache}" depends python3 2> /dev/null | sed -n 's/.*Depends: python\(3\.[0-9]*\)$/\1/p' | head -1)"
    packages+=("python$version-minimal" "libpython$version-minimal" "libpython$version-stdlib")
    (cd "$folder/packages" && "${arm[@]}" download "${packages[@]}")
    for file in "$folder"/packages/*_arm64.deb "$folder"/packages/*_all.deb; do
        [[ ! -e "$file" ]] || dpkg-deb -x "$file" "$root"
    done
    (cd "$folder/packages" && apt-get -qq -o "APT::Sandbox::User=$(id -un)" download qemu-user-static && dpkg-deb -x qemu-user-static_*.deb "$folder/host")
    platforms=()
    for platform in manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux_2_17_aarch64 manylinux2014_aarch64; do
        platforms+=(--platform "$platform")
    done
    "$python" "$here/jetson/requirements.py" --engine none > "$folder/requirements.txt"
    echo "$engine" >> "$folder/requirements.txt"
    "$python" -m pip install --quiet --quiet --target "$folder/site" --only-binary=:all: --implementation cp \
        --python-version "$version" "${platforms[@]}" --requirement "$folder/requirements.txt"
    touch "$folder/.filled"
fi

interpreter="$(find "$root/usr/bin" -name 'python3.[0-9]*' -type f | head -1)"
export PYTHONPATH="$here:$folder/site"
"$qemu" -L "$root" "$interpreter" -c 'import platform, onnxruntime
print("Python", platform.python_version(), "on emulated", platform.machine(), "with ONNX Runtime", onnxruntime.__version__)'
"$qemu" -L "$root" "$interpreter" -m lit_mmpg.profiling run --bundle "$bundle" --config "$here/configs/profile/generic_cpu.yaml" \
    --engines onnxruntime --output "$folder/profile" --no-record --set measure_energy=false --set measure_memory=false \
    --set latency.min_count=20 --set latency.min_time_s=0 --set stream.clips=4 --set stream.adapt_every=2 "$@"
