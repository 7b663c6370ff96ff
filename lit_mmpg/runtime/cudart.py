"""The little of CUDA's runtime that an engine without torch needs: memory, copies, a stream, events, graphs; by ctypes.

Written after the CUDA Runtime API reference (versions 12 and 13). Not verified on hardware.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from lit_mmpg import sysfs
from lit_mmpg.errors import UserError

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12")
_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
_WHEELS = ("nvidia/cuda_runtime/lib", "nvidia/cu13/lib")
"""Where the wheels of the CUDA runtime put the library, relative to site-packages."""

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureMode
_ATTRIBUTES = {"multiprocessors": 16, "major": 75, "minor": 76}  # cudaDeviceAttr
_DEVICE = 0  # ordinal of the GPU that is used
_NAME_BYTES = 256
_PROPERTIES_BYTES = 8192  # more than cudaDeviceProp of any version; its first field is the name


@cache
def load_library() -> ctypes.CDLL | None:
    """The CUDA runtime; ``None`` where there is none."""
    wheels = [Path(entry) / folder for entry in sys.path for folder in _WHEELS if entry]
    folders = [*map(Path, _FOLDERS), *wheels]
    paths = [*_NAMES, *(str(folder / name) for folder in folders for name in _NAMES if (folder / name).is_file())]
    for path in paths:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def why_no_gpu() -> str | None:
    """Why CUDA cannot be used here; ``None`` where it can."""
    library = load_library()
    if library is None:
        return "the CUDA runtime (libcudart) was not found; install CUDA, or on a board use JetPack's"
    count = ctypes.c_int(0)
    status = library.cudaGetDeviceCount(ctypes.byref(count))
    if status:
        return f"there is no usable NVIDIA GPU ({_error_text(library, status)})"
    return None if count.value else "there is no NVIDIA GPU"


def _error_text(library: ctypes.CDLL, status: int) -> str:
    library.cudaGetErrorString.restype = ctypes.c_char_p
    text: bytes | None = library.cudaGetErrorString(status)
    return f"{text.decode(errors='replace')}, CUDA error {status}" if text else f"CUDA error {status}"


def gpu_identity() -> str:
    """Name, compute capability and number of multiprocessors of the GPU.

    Raises:
        UserError: If CUDA cannot be used here, or refuses the question.
    """
    library = _library()
    values = {}
    for name, attribute in _ATTRIBUTES.items():
        value = ctypes.c_int()
        _call(library, "cudaDeviceGetAttribute", ctypes.byref(value), attribute, _DEVICE)
        values[name] = value.value
    # CUDA 12 exports the current layout as _v2 beside an older one.
    function = "cudaGetDeviceProperties"
    if hasattr(library, f"{function}_v2"):
        function += "_v2"
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    _call(library, function, properties, _DEVICE)
    name = properties.raw[:_NAME_BYTES].split(b"\0", 1)[0].decode(errors="replace")
    return f"{name} sm{values['major']}{values['minor']} x{values['multiprocessors']}"


def driver_version() -> str | None:
    """Version of NVIDIA's kernel module where it tells, and of CUDA that the driver offers: ``540.4.0, CUDA 12.6``."""
    library = load_library()
    version = ctypes.c_int(0)
    found = [sysfs.text(Path("/sys/module/nvidia/version"))]
    if library is not None and library.cudaDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
        found.append(f"CUDA {version.value // 1000}.{version.value % 1000 // 10}")
    return ", ".join(filter(None, found)) or None


def _library() -> ctypes.CDLL:
    reason = why_no_gpu()
    library = load_library()
    if reason or library is None:
        raise UserError(f"CUDA cannot be used: {reason}")
    return library


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of the runtime; every status but success is an error."""
    status = getattr(library, function)(*arguments)
    if status:
        raise UserError(f"{function} failed: {_error_text(library, status)}")


class Cuda:
    """The GPU with one stream. What it allocates is its own: :meth:`close` gives all of it back.

    Raises:
        UserError: If CUDA cannot be used here; any method, where CUDA answers with an error.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._memory: dict[int, ctypes.c_void_p] = {}
        self._events: list[ctypes.c_void_p] = []
        self._graphs: list[ctypes.c_void_p] = []
        self._call("cudaSetDevice", _DEVICE)
        self.stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def _call(self, function: str, *arguments: object) -> None:
        _call(self._library, function, *arguments)

    def allocate(self, size: int) -> ctypes.c_void_p:
        """Device memory of ``size`` bytes."""
        pointer = ctypes.c_void_p()
        try:
            self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        except UserError as error:
            raise UserError(f"{size} bytes of GPU memory: {error}; use a smaller batch, or free the GPU") from error
        if pointer.value is None:
            raise UserError(f"{size} bytes of GPU memory: cudaMalloc gave none and named no error")
        self._memory[pointer.value] = pointer
        return pointer

    def free(self, pointer: ctypes.c_void_p) -> None:
        """Give device memory back."""
        self._memory.pop(pointer.value or 0, None)
        self._call("cudaFree", pointer)

    def upload(self, target: ctypes.c_void_p, source: np.ndarray) -> None:
        """Copy a contiguous array to the device, in the order of the stream."""
        self._copy(target, ctypes.c_void_p(source.ctypes.data), source.nbytes, _HOST_TO_DEVICE)

    def download(self, target: np.ndarray, source: ctypes.c_void_p) -> None:
        """Copy from the device into a contiguous array, in the order of the stream; complete after the next wait."""
        self._copy(ctypes.c_void_p(target.ctypes.data), source, target.nbytes, _DEVICE_TO_HOST)

    def _copy(self, target: ctypes.c_void_p, source: ctypes.c_void_p, size: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", target, source, ctypes.c_size_t(size), kind, self.stream)

    def synchronise(self) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the device in bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def event(self) -> ctypes.c_void_p:
        """A new event."""
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        self._events.append(event)
        return event

    def record(self, event: ctypes.c_void_p) -> None:
        """Record an event in the stream."""
        self._call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Milliseconds between two recorded events; waits for the second."""
        self._call("cudaEventSynchronize", end)
        elapsed = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed), start, end)
        return elapsed.value

    def capture(self, work: Callable[[], None]) -> ctypes.c_void_p:
        """Record what ``work`` puts into the stream, without running it, as a graph for :meth:`launch`."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamBeginCapture", self.stream, _CAPTURE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with suppress(UserError):  # the stream has to leave the capture, whatever it holds
                self._call("cudaStreamEndCapture", self.stream, ctypes.byref(graph))
            raise
        self._call("cudaStreamEndCapture", self.stream, ctypes.byref(graph))
        try:
            self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: ctypes.c_void_p) -> None:
        """Run a captured graph in the order of the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def drop(self, graph: ctypes.c_void_p) -> None:
        """Give a captured graph back."""
        self._graphs.remove(graph)
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Give back memory, graphs, events and the stream; one that CUDA refuses does not keep the others.

        Raises:
            UserError: If CUDA refused one, after all have been tried.
        """
        owned: list[tuple[str, ctypes.c_void_p]] = [("cudaFree", pointer) for pointer in self._memory.values()]
        owned += [("cudaGraphExecDestroy", graph) for graph in self._graphs]
        owned += [("cudaEventDestroy", event) for event in self._events]
        owned += [("cudaStreamDestroy", self.stream)] if self.stream.value else []
        self._memory, self._graphs, self._events, self.stream = {}, [], [], ctypes.c_void_p()
        refused: UserError | None = None
        for function, handle in owned:
            try:
                self._call(function, handle)
            except UserError as error:
                refused = refused or error
        if refused:
            raise refused
