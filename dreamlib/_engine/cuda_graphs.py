"""CUDA graphs: capture a function's kernels once, then launch all of them with one call, without Python in between."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

STREAMS = 5  # streams of independent work inside a graph, so that small kernels of several classes overlap
_WARM_UP = 3  # calls before a capture, in which libraries choose algorithms and code is compiled


@dataclass
class _Capture:
    inputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    outputs: Any


class CudaGraphed:
    """A function of trees of tensors, captured as one CUDA graph per combination of input shapes.

    The function must launch the same kernels at every call: no branch on a value, no synchronisation, no randomness.
    Outputs lie in memory that the next call with the same shapes overwrites. For tensors that are not on a GPU the
    function is called directly.

    function: takes and returns trees of tensors.
    high_priority: capture on a high-priority stream, for graphs launched inside ``on_another_stream``. Two graphs
        captured on the same stream share a cuBLAS workspace and must not run at the same time; torch has one pool of
        streams per priority.

    >>> double = CudaGraphed(lambda x: {"twice": 2 * x})
    >>> double(torch.ones(2))["twice"].tolist()
    [2.0, 2.0]
    """

    def __init__(self, function: Callable[..., Any], high_priority: bool = False) -> None:
        self._function = function
        self._priority = -1 if high_priority else 0
        self._captures: dict[Any, _Capture] = {}

    def forget(self) -> None:
        """Free the memory of all graphs; the next call captures anew."""
        self._captures.clear()

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result for these arguments."""
        tensors, structure = tree_flatten(arguments)
        if not tensors[0].is_cuda:
            return self._function(*arguments)
        key = tuple((x.shape, x.dtype, x.stride()) for x in tensors)
        with torch.cuda.device(tensors[0].device):  # streams and graphs are the current device's
            if key not in self._captures:
                inputs = [x.detach().clone() for x in tensors]
                graph, outputs = _capture(lambda: self._function(*tree_unflatten(inputs, structure)), self._priority)
                self._captures[key] = _Capture(inputs, graph, outputs)
            capture = self._captures[key]
            _copy(capture.inputs, tensors)
            capture.graph.replay()
        return capture.outputs


class CudaGraphs:
    """CUDA graphs by key; variables that a function closes over must be the same for equal keys.

    Two of these exist, because graphs have two lifetimes. Those of a ``CompiledNetwork`` are functions of an
    architecture: they serve every network of the process. Those of a ``Strategy`` close over the set that one run
    distils, and hold memory of its size: they end with the run.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, CudaGraphed] = {}

    def get(self, key: Any, function: Callable[..., Any], high_priority: bool = False) -> CudaGraphed:
        """Return the graph for a key, created from ``function`` on first use (see ``CudaGraphed``)."""
        if key not in self._graphs:
            self._graphs[key] = CudaGraphed(function, high_priority)
        return self._graphs[key]

    def forget(self) -> None:
        """Free the memory of all graphs; they are captured anew when they are called again."""
        for graph in self._graphs.values():
            graph.forget()


def _capture(function: Callable[[], Any], priority: int) -> tuple[torch.cuda.CUDAGraph, Any]:
    warm_up_stream, graph = torch.cuda.Stream(priority=priority), torch.cuda.CUDAGraph()
    warm_up_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up_stream):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(warm_up_stream)
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(priority=priority)):
        outputs = function()
    return graph, outputs


def _copy(into: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy all tensors in a few kernels, one per number format."""
    for dtype in {x.dtype for x in tensors}:
        pairs = [(a, b.detach()) for a, b in zip(into, tensors, strict=True) if a.dtype == dtype]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def side_streams(items: Iterable[Any], on_cuda: bool) -> Iterator[tuple[Any, Any]]:
    """Yield each item with a context that runs its work on one of a few CUDA streams; join all streams at the end.

    Without ``on_cuda`` the context does nothing.

    >>> for item, stream in side_streams([1, 2], on_cuda=False):
    ...     with stream:
    ...         print(item)
    1
    2
    """
    items = list(items)
    if not on_cuda:
        yield from ((item, nullcontext()) for item in items)
        return
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(min(STREAMS, len(items)))]
    for stream in streams:
        stream.wait_stream(current)
    for number, item in enumerate(items):
        yield item, torch.cuda.stream(streams[number % len(streams)])
    for stream in streams:
        current.wait_stream(stream)


@contextmanager
def on_another_stream(device: torch.device) -> Iterator[Any]:
    """Yield a context whose work runs on a separate CUDA stream, at the same time as the rest of the block.

    That work may start as soon as the block is entered, even if it is launched last; work launched after the block
    waits for it. Neither side may write what the other reads. On other devices everything runs in order.

    >>> with on_another_stream(torch.device("cpu")) as other_stream:
    ...     print("current stream")
    ...     with other_stream:
    ...         print("other stream")
    current stream
    other stream
    """
    if device.type != "cuda":
        yield nullcontext()
        return
    with torch.cuda.device(device):
        stream, current = _high_priority_stream(device), torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        yield torch.cuda.stream(stream)
    finally:
        current.wait_stream(stream)


@cache
def _high_priority_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device, priority=-1)
