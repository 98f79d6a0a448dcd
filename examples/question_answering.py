"""Questions about a text, or that it has no answer: a model learns from SQuAD v2; exact match and F1 on passages it has not seen.

    python examples/question_answering.py squadv2-samples --model SmolLM2.gguf   # with squadv2_samples.csv: passages with questions

A decoder writes the answer, and learns by LoRA; an encoder (a folder, such as BERT's) says where in the text it stands.
"""
import csv
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import common

import pyllm
from pyllm import data, peft, training
from pyllm.evaluate import exact_match, token_f1
from pyllm.evaluate.spans import best_threshold
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models.base import CausalLM
from pyllm.models.bert import Bert, BertConfig
from pyllm.objectives import clm, span
from pyllm.text import WordPiece

NONE = "Not in background."


class Questions(list):
    kind = "question"


def questions(path):
    """-> {passage: [(question, [right answers])]} of the file's prompts: a passage, questions with answers, one that ref_text answers."""
    found = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            passage, _, rest = row["context"].partition("Background: ")[2].partition("\n\nQ:")
            asked = re.findall(r"Q: (.*?)\n\nA: ?(.*?)(?:\n\n|$)", f"Q:{rest}", re.S)
            known = found.setdefault(passage, {})
            known.update({question: answer.split("|") for question, answer in asked[:-1]})
            known[asked[-1][0]] = row["ref_text"].split("|")
    return found


def example(passage, question, answers):
    """-> an example of the kind "question": the answers that stand in the passage, none for one that does not."""
    places = [(a, passage.index(a)) for a in answers if a != NONE and a in passage]
    return {"question": question, "context": passage, "answers": places, "references": [a for a, _ in places], "where": question}


args = common.arguments(__doc__, model="a pretrained decoder or encoder, a folder or a .gguf file (default: a small encoder from scratch)",
                        steps="default 160; of a decoder 120: an epoch and a half", shots="of a decoder before it learns (default 3)")
began = time.monotonic()
passages = list(questions(Path(args.data) / "squadv2_samples.csv").items())
order = np.random.default_rng(args.seed).permutation(len(passages))
cut = [len(order) * part // 10 for part in (6, 8)]  # six tenths to learn from, two for validation, two for the test
train, valid, test = (Questions(example(passages[i][0], q, a) for i in part for q, a in passages[i][1].items())
                      for part in np.split(order, cut))
print(f"{len(train)} questions to learn from, {len(valid)} for validation, {len(test)} for the test")
if args.model:
    model, tokenizer = pyllm.load(args.model)
else:
    tokenizer = WordPiece.train([passage for passage, _ in passages], 500 if args.quick else 4000)
    model = Bert.alone(BertConfig.from_sizes({"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 4, "width": 32, "context": 256})
                       ).initialize(args.seed)
writes = isinstance(model, CausalLM)
options = Options(length=min(1024 if writes else 256, model.config.size("context")), stride=128, max_tokens=32)


def score(when, questions, options, **more):
    """Prints exact match and F1 of all questions, of those with an answer and of those without -> the records."""
    with pyllm.precision(args.precision):
        scores, records = evaluate("qa", model, tokenizer, questions, options, **more)
    print(f"{when}: " + ", ".join(f"{name} {value}" for name, value in scores.items())
          + f", {sum(not r['prediction'] for r in records) / len(records):.0%} without an answer", flush=True)
    return records


nothing = [""] * len(test)
right = [question["references"] or [""] for question in test]
print(f"always no answer: exact match {exact_match(nothing, right)}, F1 {token_f1(nothing, right)}")
if writes:
    shots = int(args.shots or 3)
    score(f"before, {shots} shots", test, replace(options, shots=shots, stop=("\n",)), pool=train)
    peft.inject(model, peft.LoRA(rank=16, alpha=32.0), targets="all-linear", seed=args.seed)
    objective, batch, steps, lr, by, ema = clm, {"tokens": 1024}, 120, 1e-3, lambda found: found.loss, 0.9
else:
    model, new, _ = training.transfer(model, "span", seed=args.seed)
    objective, batch, steps, lr, by, ema = span, {"batch": 16}, 160, 2e-4, lambda found: -found.metrics["accuracy"], 0.97
steps = int(args.steps or (3 if args.quick else steps))
rows, held = (data.prepare(part, tokenizer, architecture="decoder" if writes else "encoder", max_length=options.length, stride=128)[0]
              for part in (train, valid))
common.fit(model, objective, data.row_batches(rows, seed=args.seed, **batch), data.row_batches(held, shuffle=False, **batch), args,
           steps=steps, lr=lr if args.model else 1e-3, every=max(1, steps // 4), by=by, ema=ema, betas=(0.9, 0.999))
print(f"{(time.monotonic() - began) / 60:.1f} minutes")
records = score("the model", test, options)
if not writes:  # how sure no answer has to be, chosen on the validation
    threshold = best_threshold(evaluate("qa", model, tokenizer, valid, options)[1])
    records = score(f"the model, threshold {threshold:.2f}", test, replace(options, no_answer_threshold=threshold))
if args.out:
    if writes:
        peft.merge(model)
    pyllm.save(model, tokenizer, args.out)
for record in records[:5]:
    print(f"{record['where']} {record['prediction']!r}, right is {record['references']}")
print(f"{(time.monotonic() - began) / 60:.1f} minutes")
