"""Dialogues in a sentence or two: LoRA teaches a pretrained decoder from 450 of them; ROUGE on the test split, before and after.

    python examples/summarisation.py dialogsum --model SmolLM2-135M-Instruct.gguf      # with dialogsum.dev.jsonl, dialogsum.test.jsonl
"""
import time
from pathlib import Path

import common

import pyllm
from pyllm import data, peft
from pyllm.data.formats import assistant, user
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models import Llama, LlamaConfig
from pyllm.objectives import clm
from pyllm.text import ByteLevelBPE

ASKED = "Summarize the dialogue in one to three sentences.\n\n{prompt}"
args = common.arguments(__doc__, model="a folder or a .gguf file with a pretrained decoder (default: a tiny one from scratch)",
                        steps="training steps (default 100: an epoch and a half)",
                        test="how many dialogues of the test split (default 100)")
steps, asked = int(args.steps or (3 if args.quick else 100)), int(args.test or (2 if args.quick else 100))
learned, unseen = (next(Path(args.data).glob(f"*{split}*.jsonl*")) for split in ("dev", "test"))
if args.model:
    model, tokenizer = pyllm.load(args.model)
    peft.inject(model, peft.LoRA(rank=16, alpha=32.0), targets="all-linear", seed=args.seed)
else:
    texts = [example["prompt"] for example in data.read_examples(learned)]
    tokenizer = ByteLevelBPE.train(texts, 400 if args.quick else 4000)
    tokenizer.chat_template = "alpaca"  # plain words
    model = Llama(LlamaConfig.from_sizes({"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 2, "width": 32, "context": 512})
                  ).initialize(args.seed)
length = min(768, model.config.size("context"))
rows = [data.render({"messages": [user(ASKED.replace("{prompt}", example["prompt"])), assistant(example["completion"])],
                     "where": example["where"]}, "messages", tokenizer, max_length=length, truncation="keep_end")
        for example in data.read_examples(learned)]
print(f"{len(rows)} dialogues, {sum(map(len, rows)):,} tokens, {sum(row.targets for row in rows):,} of them learned")
written = Options(batch=10, max_tokens=80, prompt_format=ASKED, chat=True, length=length)


def score(when):
    """The model's summaries of the test's dialogues, against all references of each -> the first of them and a reference."""
    with pyllm.precision(args.precision):
        scores, records = evaluate("summarise", model, tokenizer, data.read_examples(unseen), written, limit=asked)
    print(f"{when}: " + ", ".join(f"{name} {value}" for name, value in scores.items()) + f", of {asked} dialogues", flush=True)
    return records[0]["prediction"], records[0]["references"][0]


score("before")
held, began = len(rows) // 10, time.monotonic()
common.fit(model, clm, data.row_batches(rows[held:], tokens=2048, seed=args.seed),
           data.row_batches(rows[:held], tokens=2048, shuffle=False), args, steps=steps, lr=1e-3 if args.model else 3e-3,
           every=max(1, steps // 2), ema=0.9)
print(f"{(time.monotonic() - began) / 60:.1f} minutes of training")
if args.model:
    peft.merge(model)
if args.out:
    pyllm.save(model, tokenizer, args.out)
answer, reference = score("after")
print(f"{reference!r} is in the model's words: {answer!r}")
