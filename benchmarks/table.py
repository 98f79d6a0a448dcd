"""Records as a Markdown table, for README and LOG.md: python -m benchmarks all --markdown, or from files of --json lines."""
import json
import sys
from pathlib import Path

HEAD = ("row", "shape", "precision", "ms", "GFLOP/s or GB/s", "% of limit", "times as fast as NumPy", "PyTorch", "others; memory")
README = {  # (row, shape): how the README calls it
    ("train_gpt_0.8M", "B12 T64"): "training step, 0.8 M parameters, 12 x 64 tokens",
    ("train_gpt_10.8M", "B12 T256"): "training step, 10.8 M parameters, 12 x 256 tokens",
    ("train_gpt2_124M", "B4 T256"): "training step, GPT-2 124 M, 4 x 256 tokens",
    ("train_llama_135M", "B1 T512"): "training step, Llama 135 M, 1 x 512 tokens",
    ("attention_fwd_bwd", "B1 H12/12 T1024 D64"): "attention, forward and backward, 12 heads, 1024 tokens",
    ("head_cross_entropy", "1024 x 768 x 50257"): "head and loss over 50257 tokens, 1024 rows",
    ("decode_gpt2_124M", "1 x 32 tokens"): "decoding, GPT-2 124 M, one text",
    ("decode_gpt2_124M", "8 x 32 tokens"): "decoding, GPT-2 124 M, eight texts",
}


def read(paths):
    """-> the records of files of JSON lines ('-': standard input), a later one of the same row in place of an earlier one."""
    found = {}
    for path in paths:
        text = sys.stdin.read() if str(path) == "-" else Path(path).read_text(encoding="utf-8")
        for line in text.splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                found[record["name"], record["shape"], record["precision"]] = record
    return list(found.values())


def row(record):
    """-> the cells of a record under HEAD."""
    ratio = lambda peer: f"{r:g}x" if (r := record.get(f"ratio_{peer}")) is not None else "-"
    tokens = f" ({record['tokens_per_second']:,.0f} tok/s)" if "tokens_per_second" in record else ""
    rate = f"{record['gflops']:g}" if "gflops" in record else f"{record['gbs']:g} GB/s" if "gbs" in record else "-"
    rest = [f"{ratio(key[6:])} {key[6:]}" for key, value in record.items()
            if key.startswith("ratio_") and key not in ("ratio_numpy", "ratio_torch") and value is not None]
    rest += [f"{key.removesuffix('_setting')}: {value}" for key, value in record.items() if key.endswith("_setting")]
    if "memory_mb" in record:
        rest += [f"{record['memory_mb']:.0f} MB, {record['faults_a_step']} faults a step"]
        if record["memory_torch_mb"]:
            rest[-1] += f"; PyTorch {record['memory_torch_mb']:.0f} MB, {record['faults_a_step_torch']}"
    share = f"{record['pct_limit']:g}" if record.get("pct_limit") else "-"
    return (record["name"], record["shape"], record["precision"], f"{record['median_ms']:.4g}{tokens}", rate, share, ratio("numpy"),
            ratio("torch"), "; ".join(rest))


def markdown(records):
    """-> the whole table, a line a record."""
    return _lines(HEAD, map(row, records))


def readme(records):
    """-> the rows that README shows, float32 and bf16 side by side."""
    lines = []
    for (name, shape), words in README.items():
        for record in records:
            if (record["name"], record["shape"]) == (name, shape):
                took = (f"{record['tokens_per_second']:,.0f} tokens/s" if name.startswith("decode") else
                        f"{record['median_ms'] / 1e3:.3g} s" if record["median_ms"] >= 1000 else f"{record['median_ms']:.3g} ms")
                peer = record["ratio_torch"]
                lines.append((f"{words}, {record['precision']}", took, f"{record['pct_limit']:.0f} %", f"{peer:g} times" if peer else "-"))
    return _lines(("", "pyllm", "of the machine's limit", "PyTorch takes"), lines)


def _lines(head, rows):
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, ["---"] * len(head), *rows))
