"""Questions about a text, or that it has no answer: a model learns from SQuAD v2; exact match and F1 on passages it has not seen.

    python examples/question_answering.py squadv2-samples --model SmolLM2.gguf   # with squadv2_samples.csv: passages with questions

A decoder writes the answer and learns by LoRA, all questions of a text in one conversation; an encoder says where in the text it stands.
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
from pyllm.data.formats import assistant, user
from pyllm.evaluate import exact_match, token_f1
from pyllm.evaluate.spans import best_threshold
from pyllm.evaluate.tasks import Options, evaluate
from pyllm.models.base import CausalLM
from pyllm.models.bert import Bert, BertConfig
from pyllm.objectives import clm, span
from pyllm.text import WordPiece

NONE = "Not in background."
ASKED = "{}\n\nAnswer with a few words of this text, or say unanswerable if it has no answer. {}"


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


def said(question):
    return question["references"][0] if question["references"] else "unanswerable"


def written(question):
    """A question as a prompt and its answer, for a model that writes."""
    return {**question, "prompt": ASKED.format(question["context"], question["question"]), "completion": said(question),
            "references": question["references"] or [""]}


def conversation(several):
    """Questions about one passage as turns, the passage in the first of them -> messages; a model reads the passage once for all."""
    first, *others = several
    turns = [(written(first)["prompt"], said(first)), *((q["question"], said(q)) for q in others)]
    return {"messages": [message for asked, answer in turns for message in (user(asked), assistant(answer))], "where": first["where"]}


args = common.arguments(__doc__, model="a pretrained decoder or encoder, a folder or a .gguf file (default: a small encoder from scratch)",
                        steps="default 160 of an encoder, 60 of a decoder")
began, draw = time.monotonic(), np.random.default_rng(args.seed)
passages = [Questions(example(passage, q, a) for q, a in asked.items())
            for passage, asked in questions(Path(args.data) / "squadv2_samples.csv").items()]
order = draw.permutation(len(passages))
parts = np.split(order, [len(order) * part // 10 for part in (6, 8)])  # six tenths to learn from, two for validation, two for the test
train, valid, test = (Questions(q for i in part for q in passages[i]) for part in parts)
print(f"{len(train)} questions to learn from, {len(valid)} for validation, {len(test)} for the test")
if args.model:
    model, tokenizer = pyllm.load(args.model)
else:
    tokenizer = WordPiece.train([several[0]["context"] for several in passages], 500 if args.quick else 4000)
    model = Bert.alone(BertConfig.from_sizes({"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 4, "width": 32, "context": 256})
                       ).initialize(args.seed)
writes = isinstance(model, CausalLM)
options = Options(length=min(1024 if writes else 256, model.config.size("context")), stride=128, max_tokens=24, chat=writes)


def score(when, questions, options):
    """Prints exact match and F1 of all questions, of those with an answer and of those without -> the records."""
    examples = Questions(map(written, questions)) if writes else questions
    examples.kind = "completion" if writes else "question"
    with pyllm.precision(args.precision):
        scores, records = evaluate("qa", model, tokenizer, examples, options)
    print(f"{when}: " + ", ".join(f"{name} {value}" for name, value in scores.items())
          + f", {sum(not r['prediction'] for r in records) / len(records):.0%} without an answer", flush=True)
    return records


nothing, right = [""] * len(test), [question["references"] or [""] for question in test]
print(f"always no answer: exact match {exact_match(nothing, right)}, F1 {token_f1(nothing, right)}", flush=True)
if writes:
    tokenizer.chat_template = tokenizer.chat_template or "alpaca"
    score("before", test, options)
    peft.inject(model, peft.LoRA(rank=16, alpha=32.0), targets="all-linear", seed=args.seed)
    talk = lambda part: [data.render(conversation([passages[i][k] for k in draw.permutation(len(passages[i]))]), "messages", tokenizer,
                                     max_length=options.length) for i in part]
    rows, held = talk(np.tile(parts[0], 4)), talk(parts[1])  # the questions of a passage in four orders
    objective, batch, steps, lr, by, ema = clm, {"tokens": 1024}, 60, 1e-3, lambda found: found.loss, 0.9
else:
    model, *_ = training.transfer(model, "span", seed=args.seed)
    rows, held = (data.prepare(part, tokenizer, architecture="encoder", max_length=options.length, stride=128)[0]
                  for part in (train, valid))
    objective, batch, steps, lr, by, ema = span, {"batch": 16}, 160, 2e-4, lambda found: -found.metrics["accuracy"], 0.97
steps = int(args.steps or (3 if args.quick else steps))
print(f"{sum(map(len, rows)):,} tokens to learn from", flush=True)
common.fit(model, objective, data.row_batches(rows, seed=args.seed, **batch), data.row_batches(held, shuffle=False, **batch), args,
           steps=steps, lr=lr if args.model else 1e-3, every=max(1, steps // 4), by=by, ema=ema, betas=(0.9, 0.999))
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
