"""A small GPT learns to write like Shakespeare, a character at a time; nats a character on the text it has not seen, and a sample.

    python examples/text_generation.py tinyshakespeare     # with input.txt
"""
import math
from itertools import islice
from pathlib import Path

import common

import pyllm
from pyllm import data, training
from pyllm.models import GPT2, GPT2Config
from pyllm.objectives import clm
from pyllm.text import CharTokenizer

args = common.arguments(__doc__)
steps, length, batch = (10, 16, 4) if args.quick else (2000, 64, 12)
text = (Path(args.data) / "input.txt").read_text(encoding="utf-8")
tokenizer = CharTokenizer.train([text])
train, valid = data.split(data.in_memory([tokenizer.encode_array(text)], tokenizer.vocab_size), 0.9)

model = GPT2(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=length, n_embd=16 if args.quick else 128, n_layer=4, n_head=4,
                        bias=False, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)).initialize(args.seed)
optimizer = training.AdamW(model, betas=(0.9, 0.99), weight_decay=0.1)
for record in pyllm.train(model, clm, data.Loader(train, batch, length, args.seed), optimizer, steps=steps, seed=args.seed,
                          lr=training.cosine(3e-3, steps, min(100, steps // 4), 1e-4), precision=args.precision):
    if record.step % 250 == 0:
        print(f"step {record.step}/{steps}  loss {record.loss:.3f}", flush=True)
if args.out:
    pyllm.save(model, tokenizer, args.out)

found = training.evaluate(model, clm, islice(data.validation(valid, batch, length), 4 if args.quick else None))
print(pyllm.generate(model, tokenizer, "ROMEO:", max_tokens=200, temperature=0.8, seed=args.seed, slide=True).text)
print(f"validation: {found.loss:.3f} nats a character, {found.loss / math.log(2):.3f} bits, perplexity {found.perplexity:.2f}")
