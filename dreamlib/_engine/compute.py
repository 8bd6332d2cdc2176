"""Device, number format and threads of the arithmetic."""

import ctypes
import logging
import platform
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamlib._engine.compilation import compilation_failed, compilation_works, unwritable_cache
from dreamlib.settings import DEVICE

_log = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Compute:
    """Where and how to compute.

    device: a device that this machine has.
    dtype: number format of activations; parameters are float32, or float64 if this is float64.
    compile: whether inner functions are compiled (``dreamlib._engine.compiled_network``).

    >>> Compute.resolve("cpu", "float32", threads=0).dtype
    torch.float32
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compile: bool = False

    @classmethod
    def resolve(
        cls, device: str = "auto", precision: str = "float32", threads: int = 0, compile: bool = False
    ) -> "Compute":
        """Pick the device ('auto': CUDA if available) and set the number of CPU threads (0: unchanged).

        A ``precision`` of 'auto' is bfloat16 on a GPU with instructions for it (``bfloat16_is_native``), and on a CPU
        with such instructions if inner functions are compiled; else float32. Raise ValueError for a device that this
        machine lacks or that is not auto, cpu, cuda or cuda:<number>.
        """
        keep_freed_memory()
        unwritable_cache()
        if threads:
            torch.set_num_threads(threads)
        if not re.fullmatch(DEVICE, device):
            raise ValueError(f"compute.device is '{device}'; choose auto, cpu, cuda or cuda:<number>")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"compute.device is '{device}' but torch sees no CUDA device; use 'auto' or 'cpu'")
        if place.type == "cuda" and (place.index or 0) >= (device_count := torch.cuda.device_count()):
            raise ValueError(
                f"compute.device is '{device}' but torch sees {device_count} devices: use cuda:0 to "
                f"cuda:{device_count - 1}"
            )
        if precision == "auto":
            # Uncompiled on a CPU, every operation converts its input, which takes longer than the arithmetic saves.
            faster = place.type == "cuda" or (compile and compilation_works(place))
            precision = "bfloat16" if bfloat16_is_native(place) and faster else "float32"
        elif precision == "bfloat16" and not bfloat16_is_native(place):
            _log.warning(
                "%s has no bfloat16 instructions, so bfloat16 is many times slower than float32; set precision: auto",
                place,
            )
        return cls(place, _DTYPES[precision], compile)

    @property
    def precision(self) -> str:
        """The name of ``dtype``.

        >>> Compute(dtype=torch.bfloat16).precision
        'bfloat16'
        """
        return str(self.dtype).removeprefix("torch.")

    def place(self, network: nn.Module) -> nn.Module:
        """Return the network on the device, channels-last: the layout in which convolutions are fastest."""
        network = network.to(self.device, memory_format=torch.channels_last)
        return network.double() if self.dtype == torch.float64 else network

    def cast(self, images: Tensor) -> Tensor:
        """Return (N, C, H, W) images on the device in the working format; differentiable."""
        return images.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def describe(self) -> dict[str, str | int]:
        """Return device, precision, whether functions are compiled, threads and versions, for a run's record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return {
            "device": f"{self.device.type} ({name})",
            "precision": self.precision,
            "compiled": self.compile and not compilation_failed(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def bfloat16_is_native(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16.

    Without them a GPU emulates the format, and a CPU falls back from oneDNN to slow code: convolutions take seven times
    as long as in float32 (AVX2, 128 images, 128 to 128 maps of 16 × 16), matrix products seventy times.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86, then ARM
    return torch.backends.mkldnn.is_available() and any(capabilities.get(name, False) for name in names)


def keep_freed_memory() -> None:
    """Make this process keep freed memory, if the C library (glibc) supports that.

    Otherwise every activation of more than some megabytes is returned to the system when it is freed and fetched again,
    page by page, at the next step, which takes up to half the time of an embedding.
    """
    trim_threshold, mmap_max = -1, -4  # from malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and mallopt(mmap_max, 0):
        mallopt(trim_threshold, 2**31 - 1)


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage starts a process with the peak of its parent
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
