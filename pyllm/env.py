"""The only reader of os.environ: the three variables that README tabulates."""
import os


def isa():
    """PYLLM_ISA: the kernel table to force, or None to take the best the CPU has."""
    return os.environ.get("PYLLM_ISA") or None


def threads():
    """PYLLM_THREADS: an upper limit for threads, or None."""
    text = os.environ.get("PYLLM_THREADS")
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ImportError(f"PYLLM_THREADS={text!r}: expected a whole number of at least 1")
    return int(text)


def debug():
    """PYLLM_DEBUG: 0 nothing, 1 a profile at exit, 2 NaN check naming the op, 3 the graph as dot."""
    text = os.environ.get("PYLLM_DEBUG") or "0"
    if text not in ("0", "1", "2", "3"):
        raise ImportError(f"PYLLM_DEBUG={text!r}: expected 0, 1, 2 or 3")
    return int(text)
