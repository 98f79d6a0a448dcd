"""pyllm bench: this machine's limits, how near the kernels come, and what a training run would take."""


def add_arguments(parser):
    parser.add_argument("--parameters", default="10M", metavar="N", help="model size for the estimate, such as 10M or 0.1B (default 10M)")
    parser.add_argument("--tokens", default="100M", metavar="N", help="training tokens for the estimate (default 100M)")
    parser.add_argument("--json", action="store_true", help="one object a line")


def run(args):
    parameters, tokens = parse_count("--parameters", args.parameters), parse_count("--tokens", args.tokens)
    from pyllm import kernels as K
    from pyllm import measure

    peak, bandwidth = measure.peak_gflops(0.3), measure.read_gbs()
    show = _json if args.json else _line
    if not args.json:
        print(f"kernels {K.active()}, {K.num_threads()} threads: {peak:.0f} GFLOP/s float32, reading memory {bandwidth:.1f} GB/s\n")
    rates = []
    for name, shape, work, bytes_moved, call in _cases(K):
        seconds = measure.median_seconds(call)
        gflops, gbs = (work / seconds / 1e9, None) if work else (None, bytes_moved / seconds / 1e9)
        share = 100 * gflops / peak if work and peak else 100 * gbs / bandwidth if gbs else None
        if name.startswith("matmul"):
            rates.append(gflops)
        show(name=name, shape=shape, median_ms=round(1e3 * seconds, 3), gflops=gflops and round(gflops, 1), gbs=gbs and round(gbs, 1),
             pct_limit=share and round(share, 1))
    rate = sorted(rates)[len(rates) // 2]
    hours = 6.0 * parameters * tokens / (rate * 1e9) / 3600
    if args.json:
        _json(name="estimate", parameters=parameters, tokens=tokens, gflops=round(rate, 1), hours=round(hours, 3))
    else:
        print(f"\nestimate: {args.parameters} parameters on {args.tokens} tokens take about {_time(hours)} "
              f"(6 FLOP a parameter and token at {rate:.0f} GFLOP/s, the median matmul above)")
    return 0


def parse_count(option, text):
    """'10M' -> 10_000_000; ValueError names the option."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
    try:
        value = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
        if not 0 < value < 1e18:
            raise ValueError
    except ValueError:
        raise ValueError(f"{option} {text!r}: expected a count such as 1000000, 10M or 0.5B") from None
    return int(value)


def _cases(K):
    """-> name, shape, FLOP or 0, bytes, call."""
    import numpy as np

    draw = np.random.default_rng(0)
    array = lambda *shape: draw.standard_normal(shape, np.float32)
    for m, k, n in ((1024, 768, 768), (1024, 768, 3072), (768, 128, 512)):
        a, w, c = array(m, k), array(n, k), K.empty((m, n))
        yield "matmul", f"{m} x {k} x {n}", 2.0 * m * k * n, 0, lambda a=a, w=w, c=c: K.matmul(a, w, tb=True, out=c)
    q, k, v = array(4, 256, 12, 64), array(4, 256, 12, 64), array(4, 256, 12, 64)
    yield "attention", "B4 H12 T256 D64", 4.0 * 4 * 12 * 256 * 257 / 2 * 64, 0, lambda: K.attention(q, k, v)
    x, w, out = array(1, 4096), array(16384, 4096), K.empty((1, 16384))
    yield "one token x weights", "1 x 4096 x 16384", 0, w.nbytes, lambda: K.matmul(x, w, tb=True, out=out)
    p, g, m, s = (array(20_000_000) for _ in range(4))
    np.abs(s, out=s)
    yield "AdamW step", "20 M", 0, 28.0 * p.size, lambda: K.adamw(p, g, m, s, 1e-5, 0.9, 0.95, 1e-8, 0.1, 10)


def _line(name, shape, median_ms, gflops, gbs, pct_limit):
    rate = f"{gflops:8.1f} GFLOP/s" if gflops else f"{gbs:8.1f} GB/s   "
    share = f"{pct_limit:5.1f} % of the limit" if pct_limit else ""
    print(f"{name:<22}{shape:<20}{median_ms:>10.3f} ms {rate} {share}")


def _json(**values):
    import json

    print(json.dumps(values), flush=True)


def _time(hours):
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} seconds"
    return f"{60 * hours:.0f} minutes" if hours < 1 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
