"""Errors of memory that ran out, by the CPU's allocator, an accelerator's, or Python's own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; the CPU allocator raises a plain RuntimeError, accelerators a kind of it."""
    if isinstance(error, MemoryError):
        return True
    texts = ("memory: you tried to allocate", "out of memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
