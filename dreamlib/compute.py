"""Where and how precisely the arithmetic runs: device, number format, threads."""

import platform
import resource
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Compute:
    """A resolved place to compute; ``dtype`` is the format of activations, parameters stay float32.

    ``compile`` asks for compiled inner functions (see ``dreamlib.kernels``).

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
        """Pick the device ('auto': CUDA when there is one) and set the number of CPU threads (0: leave as is).

        Raises ValueError for a device this machine lacks.
        """
        if threads:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"compute.device is '{device}' but torch sees no CUDA device; use 'auto' or 'cpu'")
        return cls(torch.device(device), _DTYPES[precision], compile)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, channels-last: the layout its convolutions run fastest in."""
        network = network.to(self.device, memory_format=torch.channels_last)
        return network.double() if self.dtype == torch.float64 else network

    def cast(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images in the working format; differentiable."""
        return images.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def describe(self) -> dict[str, str | int]:
        """Device, format and versions, for a run's record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return {
            "device": f"{self.device.type} ({name})",
            "precision": str(self.dtype).removeprefix("torch."),
            "compiled": self.compile,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
