"""pyllm bench: this machine's limits, how near the kernels and whole models come, and what a training run would take. About a minute."""
import sys

from pyllm import plot

STEP = 8.0  # seconds: a training step longer than that is measured on fewer rows, then on fewer layers


def add_arguments(parser):
    parser.add_argument("--model", metavar="PATH", help="estimate for this model: a model folder, a config.json, or pretrain's TOML file")
    parser.add_argument("--parameters", metavar="N", help="estimate for a GPT-2 of about this size, such as 124M or 0.1B (default 10M)")
    parser.add_argument("--tokens", default="100M", metavar="N", help="training tokens for the estimate (default %(default)s)")
    parser.add_argument("--chart", metavar="FILE.png", help="write bars of %% of the limit (needs the extra `plot`)")
    parser.add_argument("--json", action="store_true", help="one object a line")


def run(args):
    if args.model and args.parameters:
        raise ValueError("bench: --model and --parameters; expected one of them")
    tokens = parse_count("--tokens", args.tokens)
    config = read_config(args.model) if args.model else shaped(parse_count("--parameters", args.parameters or "10M"))
    if args.chart:
        check_chart(args.chart)
    from pyllm import kernels as K
    from pyllm import measure
    from pyllm.progress import Progress

    chosen = list(cases(config))
    with Progress(len(chosen) + 1, "bench", "row") as bar:
        limits = measure.limits()
        bar.update()
        heading = (f"kernels {K.active()}, {K.num_threads()} threads. Limits: " +
                   ", ".join(f"{name} {value:.0f} {unit}" for name, (value, unit) in limits.items()))
        if args.json:
            for name, (value, unit) in limits.items():
                _json(bar, name="limit", shape=name, threads=K.num_threads(), **{"gbs" if unit == "GB/s" else "gflops": value})
        else:
            bar.line(heading + "\n")
        rows = []
        for name, shape, precision, build in chosen:
            bar.note(row=name)
            rows.append(measured(name, shape, precision, build, limits))
            _json(bar, **rows[-1]) if args.json else bar.line(line(rows[-1]))
            bar.update()
        found = [estimate(config, tokens, row) for row in rows if row["name"] == STEPS]
        for each in found if args.json else ():
            _json(bar, **each)
    if not args.json:
        print("\n" + in_words(found))
    if args.chart:
        chart(rows, heading, args.chart)
        print(f"chart: {args.chart}", file=sys.stderr if args.json else sys.stdout)
    return 0


def parse_count(option, text):
    """'10M' -> 10_000_000; ValueError names the option."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
    try:
        value = float(text[:-1]) * units[text[-1].upper()] if text[-1:].upper() in units else float(text)
        if not 1 <= value < 1e18:
            raise ValueError
    except ValueError:
        raise ValueError(f"bench: {option} {text!r}; expected a count such as 1000000, 10M or 0.5B") from None
    return int(value)


# ---- the model of the estimate ---------------------------------------------------------------------------------------


def shaped(parameters):
    """-> the GPT2Config with about so many parameters: heads of 64, as near to 64 channels a layer as it can be (GPT-2 small's shape)."""
    from math import log

    from pyllm.models import GPT2Config

    if parameters < 200_000:
        raise ValueError(f"bench: --parameters {parameters}; expected at least 200K")
    vocabulary, context = (50257, 1024) if parameters >= 60e6 else (4096, 256) if parameters >= 3e6 else (256, 256)
    tables = vocabulary + context

    def layers(width):
        return max(1, round((parameters - tables * width) / (12 * width**2)))

    def miss(width):
        size = 12 * layers(width) * width**2 + tables * width
        return 20 * abs(log(size / parameters)) + abs(log(width / 64 / layers(width)))

    width = min(range(64, 20_000, 64), key=miss)
    return GPT2Config(vocab_size=vocabulary, n_positions=context, n_embd=width, n_layer=layers(width), n_head=width // 64)


def read_config(path):
    """path: a model folder, a config.json or a TOML file of pretrain -> the family's Config."""
    from pathlib import Path

    from pyllm import folders
    from pyllm.io.files import read_json

    if Path(path).suffix == ".toml":
        from pyllm.cli.config import read_toml, resolve
        from pyllm.cli.pretrain import build_model
        from pyllm.text import read_tokenizer

        settings = resolve(read_toml(path))
        kind = settings.tokenizer.kind
        size = {"bpe": settings.tokenizer.vocab_size, "chars": 128}.get(kind) or read_tokenizer(kind).vocab_size
        return build_model(settings, size).config
    if Path(path).suffix == ".json":
        return folders.build(read_json(path)).config
    from pyllm.cli.generate import model_folder

    return folders.build(read_json(model_folder(path) / "config.json")).config


def fitting(config, flops):
    """-> (config, rows, length): a step of 1024 tokens, or fewer rows, then layers: STEP seconds at `flops` a second, half the memory."""
    from dataclasses import replace

    from pyllm import folders
    from pyllm.cli.estimate import activation_bytes, step_flops

    length = min(config.size("context"), 256)
    rows, layers, memory = 1024 // length or 1, config.size("layers"), free_bytes() / 2
    while True:
        cut = config
        if layers < config.size("layers"):
            lists = {name: value[:layers] for name, value in vars(config).items() if name == "layer_types" and value}
            cut = replace(config, **{config.SIZES["layers"][0]: layers}, **lists)
        model = folders.build(cut)  # zeros that are never touched
        needed = 16 * model.num_parameters() + activation_bytes(model, rows * length)
        long = step_flops(model, rows, length) > STEP * flops
        if layers == rows == 1 or not long and needed <= memory:
            return cut, rows, length
        if rows > 1 and (long or layers == 1):
            rows //= 2
        else:
            layers = max(1, layers // 2)


def free_bytes():
    """-> memory that is free, infinite where the system does not tell."""
    import os

    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def estimate(config, tokens, row):
    """row: of a measured training step -> {"hours": of training the whole model on so many tokens, ...}."""
    from pyllm import folders
    from pyllm.cli.estimate import step_flops

    model = folders.build(config)
    work = step_flops(model, 1, row["length"]) / row["length"] * tokens
    return {"name": "estimate", "family": config.model_type, "parameters": model.num_parameters(), "tokens": tokens,
            "precision": row["precision"], "gflops": row["gflops"], "hours": round(work / row["gflops"] / 3600e9, 3),
            "measured": f"a step of {row['shape']}"}


def in_words(found):
    from pyllm.cli.estimate import duration

    first = found[0]
    times = " or ".join(f"{duration(3600 * each['hours'])} in {each['precision']}" for each in found)
    return (f"estimate: {first['family']} with {_count(first['parameters'])} parameters on {_count(first['tokens'])} tokens: "
            f"about {times}\n"
            f"          (from {first['measured']}; evaluation not counted)")


# ---- what is measured ------------------------------------------------------------------------------------------------

STEPS = "training step, the model"
DECODING = ("f32", "q8_0")  # precisions of the weights


def cases(config):
    """-> name, shape, precision, build() -> (call, FLOP, bytes, further values of the row)."""
    from pyllm.models import GPT2Config

    for precision in ("f32", "bf16"):
        for m, k, n in ((1024, 768, 768), (1024, 768, 3072), (768, 128, 512)):
            yield "matmul", f"{m} x {k} x {n}", precision, lambda m=m, k=k, n=n, p=precision: _matmul(m, k, n, p)
    for precision in ("f32", "bf16"):
        yield "attention, and back", "4 x 256, 12 heads of 64", precision, lambda p=precision: _attention(p)
    for precision in ("f32", "bf16"):
        yield "head and loss", "1024 x 768 x 8192", precision, lambda p=precision: _head(1024, 768, 8192, p)
    yield "layer norm, and back", "1024 x 768", "f32", lambda: _norm(1024, 768)
    yield "SwiGLU, and back", "1024 x 3072", "f32", lambda: _glu(1024, 3072)
    for precision in DECODING:
        yield "one token x weights", "1 x 4096 x 16384", precision, lambda p=precision: _vector(4096, 16384, p)
    yield "AdamW", "20 M", "f32", lambda: _adamw(20_000_000)
    small = GPT2Config(vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4, bias=False)
    for precision in ("f32", "bf16"):
        yield "training step, 0.8 M", "12 x 64 tokens", precision, lambda p=precision: _step(small, 12, 64, p)
    for precision in DECODING:
        yield "decoding, 10 M", "1 text", precision, lambda p=precision: _decode(shaped(10_000_000), p)
    for precision in ("f32", "bf16"):
        yield STEPS, "", precision, lambda p=precision: _model_step(config, p)


def measured(name, shape, precision, build, limits):
    """-> the row: median, rate and % of the limit of its precision or of reading memory."""
    from pyllm import kernels as K
    from pyllm import measure

    call, flops, moved, more = build()
    if flops > 1e11:  # seconds: the first one asks the system for memory, the better of two more counts
        call()
        seconds = min(measure.seconds(call) for _ in range(2))
    else:
        seconds = measure.median_seconds(call, 0.3)
    rate = (flops or moved) / seconds / 1e9
    limit = limits.get(precision if flops else "memory read", (0,))[0]
    return {"name": name, "shape": shape, "precision": precision, "threads": K.num_threads(), "median_ms": round(1e3 * seconds, 3),
            "gflops" if flops else "gbs": round(rate, 1), "pct_limit": round(100 * rate / limit, 1) if limit else None, **more}


def _array(*shape):
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _matmul(m, k, n, precision):
    from pyllm import kernels as K

    a, w, c = _array(m, k), _array(n, k), K.empty((m, n))
    return lambda: K.matmul(a, w, tb=True, out=c, reduced=precision == "bf16"), 2.0 * m * k * n, 0.0, {}


def _vector(inputs, outputs, precision):
    from pyllm import kernels as K

    x, w = _array(1, inputs), _array(outputs, inputs)
    w = w if precision == "f32" else K.Packed.quantize(w, precision)
    return lambda: K.linear(x, w), 0.0, float(w.nbytes), {}


def _attention(precision):
    from pyllm import kernels as K

    q, k, v, dout = (_array(4, 256, 12, 64) for _ in range(4))
    half = precision == "bf16"
    call = lambda: K.attention_vjp(dout, q, k, v, *K.attention(q, k, v, reduced=half), reduced=half)
    return call, 14.0 * 4 * 12 * 256 * 257 / 2 * 64, 0.0, {}


def _head(n, c, v, precision):
    import numpy as np

    from pyllm import kernels as K

    h, w, targets = _array(n, c), _array(v, c) * np.float32(0.05), np.arange(n, dtype=np.int32) % v
    call = lambda: K.linear_cross_entropy(h, w, None, targets, need=(True, True, False), reduced=precision == "bf16")
    return call, 6.0 * n * c * v, 0.0, {}


def _norm(n, c):
    from pyllm import kernels as K

    x, w, b = _array(n, c), _array(c), _array(c)

    def both():
        _, mean, rstd = K.layer_norm(x, w, b, 1e-5)
        K.layer_norm_vjp(x, x, w, mean, rstd)

    return both, 0.0, 20.0 * n * c, {}


def _glu(n, c):
    from pyllm import kernels as K

    gate, up = _array(n, c), _array(n, c)
    return lambda: (K.glu(gate, up, "silu"), K.glu_vjp(up, gate, up, "silu")), 0.0, 32.0 * n * c, {}


def _adamw(size):
    from pyllm import kernels as K

    p, g, m, v = (K.empty((size,)) for _ in range(4))
    for a in (p, g, m, v):
        a.fill(1e-3)
    return lambda: K.adamw(p, g, m, v, 1e-5, 0.9, 0.95, 1e-8, 0.1, 10), 0.0, 28.0 * size, {}


def _step(config, rows, length, precision):
    from pyllm import folders
    from pyllm.cli.estimate import step_flops, stepper

    model = folders.build(config, seed=0)
    return stepper(model, rows, length, precision), step_flops(model, rows, length), 0.0, {}


def _model_step(config, precision):
    from pyllm.cli.estimate import product_gflops

    cut, rows, length = fitting(config, 0.7e9 * product_gflops(1024, config.size("width")))
    call, flops, moved, more = _step(cut, rows, length, precision)
    layers, all_layers = cut.size("layers"), config.size("layers")
    text = f"{rows} x {length} tokens" + (f", {layers} of {all_layers} layers" if layers < all_layers else "")
    return call, flops, moved, {"shape": text, "length": length}


def _decode(config, precision, new=32):
    from pyllm import folders
    from pyllm.generation import generate
    from pyllm.nn import quantize

    model = quantize(folders.build(config, seed=0), precision, skip="*wpe*")
    weights = [*(p.data for name, p in model.named_parameters() if "wpe" not in name), *(w for _, w in model.named_packed())]
    moved = sum(w.nbytes for w in weights)
    return lambda: generate(model, None, [1], max_tokens=new, temperature=0), 0.0, float(moved) * new, {"tokens": new}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def line(row):
    """-> a row as a line of text."""
    rate = f"{row['gflops']:8.1f} GFLOP/s" if "gflops" in row else f"{row['gbs']:8.1f} GB/s   "
    share = f"{row['pct_limit']:6.1f} % of the limit" if row["pct_limit"] else ""
    tokens = f"  {1e3 * row['tokens'] / row['median_ms']:.0f} tokens/s" if "tokens" in row else ""
    return f"{row['name']:<25}{row['shape']:<32}{row['precision']:<5}{row['median_ms']:>11.3f} ms {rate} {share}{tokens}"


def check_chart(path):
    """ValueError where a chart cannot be drawn: said before anything is measured."""
    from importlib.util import find_spec
    from pathlib import Path

    if not find_spec("matplotlib"):
        raise ValueError("bench: --chart needs matplotlib, which is not installed. Hint: pip install matplotlib (the extra `plot`)")
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"bench: --chart {path!r}; expected a name that ends in .png, .svg or .pdf")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"bench: --chart {path}: no such folder")


def chart(rows, heading, path):
    """Writes bars of % of the limit: a group a row, a colour a precision."""
    import textwrap

    pyplot = plot.pyplot(path)  # there: check_chart
    groups = {}
    for row in rows:
        if row["pct_limit"]:
            groups.setdefault((row["name"], row["shape"]), {})[row["precision"]] = row
    colours, height = {"f32": "#4c72b0", "bf16": "#dd8452", "q8_0": "#55a868"}, 0.38
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.5 * len(groups)), layout="constrained")
    for at, found in enumerate(groups.values()):
        for i, (precision, row) in enumerate(found.items()):
            y = at + (i - (len(found) - 1) / 2) * height
            rate = f"{row['gflops']:.0f} GFLOP/s" if "gflops" in row else f"{row['gbs']:.0f} GB/s"
            axes.barh(y, row["pct_limit"], height, color=colours[precision])
            axes.text(row["pct_limit"] + 1, y, f"{row['pct_limit']:.0f} %, {rate}", va="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), [f"{name}\n{shape}" for name, shape in groups], fontsize=8)
    axes.set_xlim(0, 1.25 * max([100, *(row["pct_limit"] for found in groups.values() for row in found.values())]))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel("% of the limit: multiply-adds of the precision, or reading memory; beyond 100 % the caches help")
    axes.set_title("\n".join(textwrap.wrap(heading, 95)), fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    used = [p for p in colours if any(p in found for found in groups.values())]
    axes.legend([pyplot.Rectangle((0, 0), 1, 1, color=colours[p]) for p in used], used, loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _json(bar, **values):
    import json

    bar.line(json.dumps(values))


def _count(n):
    """12_345_678 -> '12.3 M'."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)
