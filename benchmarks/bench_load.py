"""From the start of a process to a model's first token: a folder of float32 weights, which is mapped, and GGUF files of packed ones.

Each run is a process of its own, the file in the page cache. Checked: the token, and that no more than the file and what the imports take
is resident. GB/s: bytes of the file. Peer: transformers, of the folder.
"""
import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import pyllm
from benchmarks.bench_train_step import MODELS
from benchmarks.harness import Case
from pyllm import kernels as K

PROMPT = [1, 2, 3]
SLACK = 40  # MB beside the file and the imports: the activations, the tokens' Python objects
RUN = """
import json, os, sys
import pyllm
pyllm.load, pyllm.generate, pyllm.models, pyllm.kernels
memory = lambda kind: int(open("/proc/self/status").read().split(kind + ":")[1].split()[0]) / 1e3
before = memory("VmRSS")
pyllm.set_num_threads(int(sys.argv[2]))
model, _ = pyllm.load(sys.argv[1], packed=True)
token, = pyllm.generate(model, None, [%r], max_tokens=1, temperature=0)[0].ids
print(json.dumps({"token": token, "more_mb": memory("VmHWM") - before}), flush=True)
os._exit(0)
""" % PROMPT
PEER = """
import os, sys
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
with torch.no_grad():
    print(AutoModelForCausalLM.from_pretrained(sys.argv[1])(torch.tensor([%r])).logits[0, -1].argmax().item(), flush=True)
os._exit(0)
""" % PROMPT


def cases(quick):
    rows = [("llama_135M", "f32"), ("gpt2_124M", "f32"), *(("llama_135M", kind) for kind in ("bf16", "q8_0", "q4_0"))]
    for name, kind in [("gpt_10.8M", "f32")] if quick else rows:  # the first is mapped whole, GPT-2's files lie transposed
        size = sum(p.stat().st_size for p in files(name, kind))
        yield Case(f"load_{name}", "folder" if kind == "f32" else "GGUF file", partial(build, name, kind), precision=kind, bytes=size)


@cache
def saved(name, kind):
    """-> Path of the model, written once for the life of this process."""
    folder = Path(tempfile.mkdtemp(prefix="pyllm-load-"))
    atexit.register(shutil.rmtree, folder, True)
    path, model = folder / ("m" if kind == "f32" else "m.gguf"), MODELS[name]().initialize(0)
    pyllm.save(model if kind == "f32" else pyllm.quantize(model, kind), None, path)
    return path


def files(name, kind):
    path = saved(name, kind)
    return [path] if path.is_file() else list(path.iterdir())


def build(name, kind):
    path = saved(name, kind)

    def started(code):
        done = subprocess.run([sys.executable, "-c", code, str(path), str(K.num_threads())], capture_output=True, text=True,
                              cwd=Path(__file__).parents[1])
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return done.stdout

    def check():
        found, (model, _) = json.loads(started(RUN)), pyllm.load(path, packed=True)
        assert found["token"] == pyllm.generate(model, None, [PROMPT], max_tokens=1, temperature=0)[0].ids[0]
        size = sum(p.stat().st_size for p in files(name, kind)) / 1e6
        print(f"  {path.name}, {kind}: {size:.0f} MB, resident {found['more_mb']:.0f} MB over the imports", file=sys.stderr)
        assert found["more_mb"] <= size + SLACK, f"{found['more_mb']:.0f} MB resident for a file of {size:.0f} MB"

    peer = partial(started, PEER) if kind == "f32" and find_spec("torch") and find_spec("transformers") else None
    return partial(started, RUN), check, {"transformers": peer}
