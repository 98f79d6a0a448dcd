"""What importing costs: wall time of a fresh interpreter that does nothing else. Peers: NumPy, PyTorch, transformers' GPT-2."""
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import Case

PEERS = {"numpy": "import numpy", "torch": "import torch", "transformers": "from transformers import GPT2LMHeadModel"}


def cases(quick):
    whole = "import pyllm; pyllm.models, pyllm.ops, pyllm.train"
    for shape, code in (("import pyllm", "import pyllm"), ("with kernels and models", whole)):
        yield Case("import", shape, partial(build, code))


def build(code):
    def run(code=code):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])

    def check():
        run(f"{code}; import sys; assert not {{'torch', 'transformers', 'tqdm', 'matplotlib'}} & set(sys.modules)")

    return run, check, {peer: partial(run, line) if find_spec(peer) else None for peer, line in PEERS.items()}
