"""Faults: what an exception says of the device, by its class, code and text.

    fatal      the context is gone: all that follows fails the same way until the process is another
    doubtful   it speaks of the device, and may or may not mean that; a canary finds out
    memory     it did not fit; once others are through it may

The texts are those of `cudaGetErrorString` (libcudart 12.9 and 13.0), which torch puts behind
`CUDA error: `; HIP's begin with `HIP error: `. CUDA's own header says of each fatal code that the
process must be terminated and relaunched, but for the four marked below. What is merely a
RuntimeError is doubtful at most, whatever its text: it may quote a caller's words.
docs/gpu.md has the table with its evidence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

Kind = Literal["fatal", "doubtful", "memory"]

FATAL = {
    214: "uncorrectable ECC error encountered",  # not in so many words
    220: "uncorrectable NVLink error detected during the execution",  # not in so many words
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",  # not in so many words
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
    911: "an async error has occured in external entity outside of CUDA",  # so spelt
}
MEMORY = {2: "out of memory"}
MEMORY_SIGNS = (
    "CUDA out of memory", "HIP out of memory", "XPU out of memory", "MPS backend out of memory", "CUDA error: out of memory",
    "HIP error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED", "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.", "CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation",
    "RESOURCE_EXHAUSTED: Out of memory", "Failed to allocate memory for requested buffer",  # XLA, onnxruntime
    "Triton Error [CUDA]: out of memory", "DefaultCPUAllocator: can't allocate memory",
)  # fmt: skip
DEVICE_SIGNS = re.compile(
    r"(?:CUDA|HIP|cuDNN|NCCL|Triton|CUDNN|CUBLAS) (?:[Ee]rror|[Ff]ailure)|CU(?:BLAS|DNN|SOLVER|SPARSE|FFT)_|CUDA_ERROR_|cudaError|nccl\w+Error"
)
DEAD_GROUP = ("ncclUnhandledCudaError", "ncclSystemError", "ncclInternalError", "ncclRemoteError")
OF_DEVICES = ("cupy", "cupy_backends", "jaxlib", "onnxruntime", "triton", "numba", "pycuda", "tensorrt")  # raise classes of their own
LONGEST_REASON = 300


class Fault(msgspec.Struct, frozen=True):
    kind: Kind
    reason: str


def fault_of(error: BaseException | None) -> Fault | None:
    """The worst that `error`, or what it came of, says of the device; None when it says nothing."""
    found = {fault.kind: fault for each in _chain(error) if (fault := _fault(each)) is not None}
    return found.get("fatal") or found.get("memory") or found.get("doubtful")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and its causes; what was merely being handled when it was raised counts too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _fault(error: BaseException) -> Fault | None:
    if isinstance(error, MemoryError):
        return Fault("memory", _reason(error))
    if not isinstance(error, Exception):
        return None
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return Fault("memory", _reason(error))
    of_device = "AcceleratorError" in names or type(error).__module__.partition(".")[0] in OF_DEVICES
    if not of_device and not isinstance(error, RuntimeError):
        return None
    text, code = str(error), getattr(error, "error_code", None)
    if code in MEMORY or any(sign in text for sign in MEMORY_SIGNS):
        return Fault("memory", _reason(error))
    if "DistBackendError" in names:
        return Fault("fatal", _reason(error)) if any(sign in text for sign in DEAD_GROUP) else None
    if not of_device and not DEVICE_SIGNS.search(text):
        return None
    if of_device and (code in FATAL or any(sign in text for sign in FATAL.values())):
        return Fault("fatal", _reason(error))
    return Fault("doubtful", _reason(error))


def _reason(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:LONGEST_REASON] if first else type(error).__name__
