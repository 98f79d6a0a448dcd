"""Where in a text an answer stands, or that there is none: an encoder learns from SQuAD v2; exact match and F1 on passages it has not seen.

    python examples/question_answering.py squadv2-samples --model MiniLM     # with squadv2_samples.csv: passages with questions
"""
import csv
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import common

import pyllm
from pyllm import data, training
from pyllm.evaluate import exact_match, token_f1
from pyllm.evaluate.spans import best_threshold
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models.bert import Bert, BertConfig
from pyllm.objectives import span
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


args = common.arguments(__doc__, model="a folder with a pretrained encoder (default: a small one from scratch)", steps="default 160")
steps, began = int(args.steps or (3 if args.quick else 160)), time.monotonic()
passages = list(questions(Path(args.data) / "squadv2_samples.csv").items())
order = np.random.default_rng(args.seed).permutation(len(passages))
cut = [len(order) * part // 10 for part in (6, 8)]  # six tenths to learn from, two for validation, two for the test
train, valid, test = (Questions(example(passages[i][0], q, a) for i in part for q, a in passages[i][1].items())
                      for part in np.split(order, cut))
if args.model:
    base, tokenizer = pyllm.load(args.model)
else:
    tokenizer = WordPiece.train([passage for passage, _ in passages], 500 if args.quick else 4000)
    base = Bert.alone(BertConfig.from_sizes({"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 4, "width": 32, "context": 256})
                      ).initialize(args.seed)
model, new, _ = training.transfer(base, "span", seed=args.seed)
print(f"{len(train)} questions to learn from, {len(valid)} for validation, {len(test)} for the test; new: {', '.join(new)}")
options = dict(architecture="encoder", max_length=min(256, model.config.size("context")), stride=128)
learned, held = (data.prepare(part, tokenizer, **options)[0] for part in (train, valid))

common.fit(model, span, data.row_batches(learned, batch=16, seed=args.seed), data.row_batches(held, batch=16, shuffle=False), args,
           steps=steps, lr=2e-4 if args.model else 1e-3, every=max(1, steps // 5), by=lambda found: -found.metrics["accuracy"], ema=0.97,
           betas=(0.9, 0.999))
if args.out:
    pyllm.save(model, tokenizer, args.out)

windows = Options(length=options["max_length"], stride=128)
for threshold in (0.0, best_threshold(evaluate("qa", model, tokenizer, valid, windows)[1])):  # as it is, and chosen on the validation
    _, records = evaluate("qa", model, tokenizer, test, replace(windows, no_answer_threshold=threshold))
    right, given = ([record[key] for record in records] for key in ("references", "prediction"))
    print(f"the model: exact match {exact_match(given, right)}, F1 {token_f1(given, right)}, threshold {threshold:.2f}, "
          f"{sum(not g for g in given) / len(given):.0%} without an answer")
nothing = [""] * len(test)
print(f"always no answer: exact match {exact_match(nothing, right)}, F1 {token_f1(nothing, right)}")
print(f"{test[0]['question']} {[best['text'] for best in records[0]['n_best']]}, right is {records[0]['references']}; "
      f"{(time.monotonic() - began) / 60:.1f} minutes")
