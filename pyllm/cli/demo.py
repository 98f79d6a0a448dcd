"""pyllm demo: a small model's whole life, on the text of Python's own help pages, which every Python has.

STAGES run in order and share one Demo; a later stage of a model's life is one more function in the list.
"""
import math
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from pyllm.cli import demo_align

CONFIG = {
    "model": {"family": "gpt2", "layers": 4, "heads": 4, "width": 128, "context": 128},
    "tokenizer": {"kind": "bpe", "vocab_size": 1024},
    "train": {"steps": 800, "batch": 12, "lr": 3e-3, "min_lr": 1e-4, "warmup": 40, "weight_decay": 0.1, "eval_every": 100,
              "eval_batches": 20, "sample_tokens": 40, "seed": 1},
}
PROMPTS = ("The ", "A class ", "If the ")


def add_arguments(parser):
    parser.add_argument("--out", metavar="DIR", help="keep the run in this new folder (default: a temporary one, removed at the end)")
    parser.add_argument("--steps", type=int, default=CONFIG["train"]["steps"], metavar="N", help="training steps (default %(default)s)")


@dataclass
class Demo:
    """What the stages share."""

    folder: Path
    steps: int
    shared: dict = field(default_factory=dict)

    run = property(lambda self: self.folder / "run")
    corpus = property(lambda self: self.folder / "corpus.jsonl")


def run(args):
    if args.steps < 2:
        raise ValueError(f"demo: --steps {args.steps}; expected at least 2, so that there is a middle to stop in")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyllm-demo-") as temporary:
        demo = Demo(Path(args.out or temporary), args.steps)
        if args.out:
            demo.folder.mkdir(parents=True)
        for number, stage in enumerate(STAGES, 1):
            start = time.monotonic()
            print(f"\n{number}/{len(STAGES)}  {stage.__doc__}", flush=True)
            stage(demo)
            print(f"     {time.monotonic() - start:.1f} s", flush=True)
    print(f"\nAll of it took {time.monotonic() - began:.0f} s. " + (f"The run is in {demo.run}." if args.out else
          "--out DIR keeps the run; pyllm pretrain --data YOUR_TEXT --out DIR does the same with yours."))
    return 0


def corpus(demo):
    """The text: the topics of Python's help(), one document each."""
    import json
    from pydoc_data.topics import topics

    with open(demo.corpus, "w", encoding="utf-8") as file:
        for name in sorted(topics):
            file.write(json.dumps({"text": topics[name]}) + "\n")
    print(f"     {len(topics)} documents, {sum(map(len, topics.values())):,} characters")


def pretraining(demo):
    """A tokenizer and a small GPT learn from it, until they are stopped half-way."""
    _pretrain(demo, until=demo.steps // 2)


def resuming(demo):
    """The run goes on from its checkpoint, with the bits of a run that never stopped."""
    _pretrain(demo, resume=True)
    from pyllm.training import read_log

    found = [line for line in read_log(demo.run / "metrics.jsonl") if "valid_loss" in line]
    import pyllm

    model, _ = pyllm.load(demo.run / "model")
    print(f"     validation loss: {math.log(model.config.vocab_size):.2f} (guessing) -> {found[0]['valid_loss']:.2f} -> "
          f"{found[-1]['valid_loss']:.2f} nats a token, {found[-1]['bits_per_byte']:.2f} bits a byte")


def generation(demo):
    """The model writes. It is small and has read for a minute: it has the form of the text, not its sense."""
    import pyllm

    model, tokenizer = pyllm.load(demo.run / "model")
    results = pyllm.generate(model, tokenizer, list(PROMPTS), max_tokens=48, temperature=0.7, top_p=0.95, seed=1)
    for prompt, result in zip(PROMPTS, results):
        print(f"     {prompt!r} -> {result.text!r}")


def finetuning(demo):
    """It learns to answer: which of the longest topics is a sentence from? A part of the sentences is kept back for the test."""
    import json
    import re

    import pyllm
    from pyllm.cli.config import resolve
    from pyllm.cli.sft import SECTIONS, sft
    from pyllm.evaluate import exact_match

    with open(demo.corpus, encoding="utf-8") as file:
        texts = sorted((json.loads(line)["text"] for line in file), key=len)[-8:]
    found = {"train": [], "test": []}
    for text in texts:
        title = re.sub(r"[^A-Za-z ]", "", text.split("\n", 1)[0]).strip()
        sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.:])\s", text) if 60 <= len(s) <= 160]
        for i, sentence in enumerate([*dict.fromkeys(sentences)][:200]):
            found["test" if i % 5 == 0 else "train"].append({"prompt": f"{sentence}\nTopic:", "completion": f" {title}"})
    folder = demo.folder / "questions"
    folder.mkdir()
    for part, examples in found.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    steps = min(200, demo.steps)
    table = {"model": {"path": str(demo.run)}, "data": {"path": str(folder), "length": 128},
             "train": {"steps": steps, "batch": 16, "lr": 1e-3, "eval_every": steps, "sample_tokens": 0}}
    if code := sft(resolve((table, "demo"), sections=SECTIONS), demo.folder / "answers"):
        sys.exit(code)
    asked = found["test"]
    for name, path in (("before", demo.run), ("after", demo.folder / "answers")):
        model, tokenizer = pyllm.load(path / "model")
        texts = [r.text for r in pyllm.generate(model, tokenizer, [e["prompt"] for e in asked], max_tokens=12, temperature=0)]
        print(f"     right answers {name}: {100 * float(exact_match(texts, [e['completion'] for e in asked])):.0f} % of {len(asked)}")
    print(f"     {asked[0]['prompt']!r} -> {texts[0]!r}")


def adapting(demo):
    """The same with LoRA: a small adapter learns, the model is frozen; then it is merged into the weights, checked."""
    import pyllm
    from pyllm.cli.config import resolve
    from pyllm.cli.merge import merge
    from pyllm.cli.sft import SECTIONS, sft

    steps = min(100, demo.steps)
    table = {"model": {"path": str(demo.run)}, "data": {"path": str(demo.folder / "questions"), "length": 128},
             "train": {"steps": steps, "batch": 8, "lr": 5e-3, "eval_every": steps, "eval_batches": 4, "sample_tokens": 0},
             "peft": {"method": "lora", "rank": 8, "targets": "all-linear"}}
    if code := sft(resolve((table, "demo"), sections=SECTIONS), demo.folder / "adapted"):
        sys.exit(code)
    size = sum(file.stat().st_size for file in (demo.folder / "adapted" / "adapter").iterdir())
    merge(demo.run, demo.folder / "adapted", demo.folder / "merged", threshold=1e-4)
    model, _ = pyllm.load(demo.folder / "merged")
    print(f"     the adapter takes {size / 1e3:.0f} kB beside {4 * model.num_parameters() / 1e6:.1f} MB")


STAGES = [corpus, pretraining, resuming, generation, finetuning, adapting, *demo_align.STAGES]


def _pretrain(demo, resume=False, until=None):
    from pyllm.cli.config import resolve
    from pyllm.cli.pretrain import pretrain

    train = {**CONFIG["train"], "steps": demo.steps, "eval_every": max(1, demo.steps // 4), "warmup": min(40, demo.steps // 4)}
    code = pretrain(resolve(({**CONFIG, "data": {"path": str(demo.corpus)}, "train": train}, "demo")), demo.run, resume, until)
    if code:  # Ctrl-C ends the demo, not only its stage
        sys.exit(code)
