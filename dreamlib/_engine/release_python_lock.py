"""Let functions that torch.compile made for a CPU run without holding Python's global interpreter lock (GIL).

torch.compile turns a function into C++ and a small Python binding that calls it. The binding holds the GIL for the
whole call, so if two threads each run a compiled step, only one computes at a time, except inside the convolutions and
matrix products of torch's own libraries. torch has no option for this; the only way is to change the line of generated
source that calls the C++ function.

Depends on a private part of torch: the attribute ``call_entry_function`` of
``torch._inductor.codecache.CppPythonBindingsCodeCache``, with exactly the text it has in torch 2.13. If the
attribute or its text differs, nothing is changed and ``release_python_lock`` returns False. Results are then the same;
only ``parallel_classes`` and ``parallel_networks`` save less time.
"""

from functools import cache

EXPECTED_CALL = "kernel({}); Py_RETURN_NONE;"

# A guard object, so that the lock is taken again even if the function throws; torch catches exceptions outside it.
_GUARD = "struct Unlocked { PyThreadState* s = PyEval_SaveThread(); ~Unlocked() { PyEval_RestoreThread(s); } };"
_CALL_WITHOUT_LOCK = f"[](auto... a) {{ {_GUARD} Unlocked unlocked; kernel(a...); }}"


@cache
def release_python_lock() -> bool:
    """Make functions compiled from now on release the GIL while they run; return whether torch could be changed."""
    from torch._inductor import codecache  # here, because the import takes a second and most processes compile nothing

    bindings = getattr(codecache, "CppPythonBindingsCodeCache", None)
    if getattr(bindings, "call_entry_function", None) != EXPECTED_CALL:
        return False
    escaped = _CALL_WITHOUT_LOCK.replace("{", "{{").replace("}", "}}")  # the text is a template for str.format
    bindings.call_entry_function = escaped + "({}); Py_RETURN_NONE;"
    return True
