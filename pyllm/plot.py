"""Charts: matplotlib, the extra `plot`, drawing into files."""


def pyplot(file):
    """-> matplotlib.pyplot, which needs no screen then; None, said with a hint, where it is not installed. file: what is not drawn."""
    try:
        import matplotlib
    except ImportError:
        print(f"chart      none. Hint: pip install matplotlib (the extra `plot`) for {file}")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
