"""Dialogues in a sentence or two: a pretrained decoder learns from 500 pairs; ROUGE on the test split, before and after.

    python examples/summarisation.py dialogsum --model SmolLM2-135M-Instruct.gguf      # with dialogsum.dev.jsonl, dialogsum.test.jsonl
"""
from pathlib import Path

import common

import pyllm
from pyllm import data
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models import Llama, LlamaConfig
from pyllm.objectives import clm
from pyllm.text import ByteLevelBPE

args = common.arguments(__doc__, model="a folder or a .gguf file with a pretrained decoder (default: a tiny one from scratch)",
                        steps="training steps (default 110)", test="how many dialogues of the test split (default 100)")
steps, asked = int(args.steps or (3 if args.quick else 110)), int(args.test or (2 if args.quick else 100))
learned, unseen = (next(Path(args.data).glob(f"*{split}*.jsonl*")) for split in ("dev", "test"))
if args.model:
    model, tokenizer = pyllm.load(args.model)
else:
    texts = [example["prompt"] for example in data.read_examples(learned)]
    tokenizer = ByteLevelBPE.train(texts, 400 if args.quick else 4000)
    model = Llama(LlamaConfig.from_sizes({"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 2, "width": 32, "context": 512})
                  ).initialize(args.seed)
options = dict(prompt_format="{prompt}\n\nSummary: ", max_length=min(512, model.config.size("context")), truncation="keep_end")
rows = common.rows(learned, None, tokenizer, **options)
written = Options(batch=10, max_tokens=80, stop=("\n",), prompt_format=options["prompt_format"], length=options["max_length"])


def score(when):
    """The model's summaries of the test's dialogues, against all references of each -> the first of them and a reference."""
    scores, records = evaluate("summarise", model, tokenizer, data.read_examples(unseen), written, limit=asked)
    print(f"{when}: " + ", ".join(f"{name} {value}" for name, value in scores.items()) + f", of {asked} dialogues", flush=True)
    return records[0]["prediction"], records[0]["references"][0]


score("before")
held = len(rows) // 10
common.fit(model, clm, data.row_batches(rows[held:], tokens=2048, seed=args.seed),
           data.row_batches(rows[:held], tokens=2048, shuffle=False), args, steps=steps, lr=1e-4 if args.model else 3e-3,
           every=max(1, steps // 4), ema=0.9)
if args.out:
    pyllm.save(model, tokenizer, args.out)
answer, reference = score("after")
print(f"{reference!r} is in the model's words: {answer!r}")
