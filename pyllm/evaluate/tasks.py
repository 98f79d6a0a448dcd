"""Tasks: what a model is asked for an example, and the metrics of its answers. TASKS: name -> Task; a new task is one entry.

A record stands for each example: what was predicted, what is right. Nothing in it depends on the batch size.
"""
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pyllm.autograd import no_grad
from pyllm.data import collate, read_examples, render
from pyllm.data.dedup import normalise
from pyllm.data.formats import assistant, user
from pyllm.data.render import STRIDE, written
from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.evaluate import bias, metrics, text_metrics
from pyllm.evaluate.likelihood import log_likelihoods, windows
from pyllm.evaluate.spans import find_spans
from pyllm.generation import generate
from pyllm.models.base import CausalLM
from pyllm.models.heads import SequenceClassifier, SpanFinder
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.progress import Progress
from pyllm.text.chat import turn_end


@dataclass(frozen=True)
class Options:
    """batch: rows at a time. max_tokens, num_beams, stop: of generated answers, which are the likeliest ones (temperature 0).

    prompt_format: what stands around a prompt. length: tokens of context at most, 0 = the model's. stride: of clm see likelihood.windows,
    of spans data.windows; 0 = theirs. no_answer_threshold: by how much no answer may score above a span which is the answer all the same.
    seed: of the intervals' resampling and of the choice of shots. shots: how many other examples stand, answered, before each one. chat: a
    prompt that is text is a user's turn, shots are turns before it, as the tokenizer's chat template writes them.
    """

    batch: int = 16
    max_tokens: int = 64
    num_beams: int = 1
    stop: tuple = ()
    prompt_format: str = "{prompt}"
    length: int = 0
    stride: int = 0
    no_answer_threshold: float = 0.0
    seed: int = 0
    shots: int = 0
    chat: bool = False


@dataclass(frozen=True)
class Task:
    """about: one line. kinds: of the examples it reads. predict: (model, tokenizer, examples, options) -> a record (dict) an example.

    score: (records, options) -> {name: Score}. read: (path, split, columns) -> examples.
    """

    about: str
    kinds: tuple
    predict: Callable
    score: Callable
    read: Callable = read_examples


def evaluate(task, model, tokenizer, examples, options=Options(), *, limit=None, pool=None):
    """task: a name in TASKS; examples: what its `read` gives, or any dicts of its kinds -> ({name: Score}, [record of each example]).

    limit: only the first so many. pool: examples that shots are drawn from, None: `examples`. ConfigError: an unknown task, a model that
    cannot do it; FormatError: examples of another kind.
    """
    if task not in TASKS:
        raise ConfigError(f"evaluate: task={task!r}; expected one of {', '.join(TASKS)}.{suggest(task, TASKS)}")
    task_ = TASKS[task]
    if (kind := getattr(examples, "kind", task_.kinds[0])) not in task_.kinds:
        fits = [name for name, other in TASKS.items() if kind in other.kinds]
        raise FormatError(f"evaluate: examples of the kind {kind} for the task {task}, which reads {', '.join(task_.kinds)}. "
                          + (f"Hint: they fit {', '.join(fits)}" if fits else "No task reads them"))
    if options.shots and pool is None:
        pool = examples = list(examples)
    found = [{"kind": kind, **example} for example in islice(examples, limit)]
    if not found:
        raise FormatError("evaluate: no examples")
    if options.shots or options.chat and kind != "bbq":
        found, options = prompted(model, found, pool or (), options), replace(options, prompt_format="{prompt}")
    records = task_.predict(model, tokenizer, found, options)
    return task_.score(records, options), records


def _named(example):
    return {key: example[key] for key in ("id", "where") if key in example}


def _architecture(model):
    return "encoder-decoder" if isinstance(model, EncoderDecoder) else "decoder" if isinstance(model, CausalLM) else "encoder"


def _writer(model, task):
    """ConfigError unless the model writes text."""
    if not isinstance(model, (CausalLM, EncoderDecoder)):
        raise ConfigError(f"evaluate: a {type(model).__name__} writes no text, which the task {task} needs; "
                          "expected a causal model or an encoder-decoder")


def _context(model, options):
    limit = model.config.size("context")
    if options.length > limit:
        raise ConfigError(f"evaluate: length={options.length}; expected at most {limit}, the model's context")
    return options.length or limit


# ---- what stands before a prompt

PROMPTED = ("completion", "messages", "choice", "classification", "question")  # kinds that ask something and have an answer to show


def prompted(model, examples, pool, options):
    """-> examples whose prompts are formatted, behind options.shots answered examples of the pool, as turns where options.chat is set.

    Which ones depends on options.seed and on what the example asks, neither on its place nor on the others; never one that asks the same.
    """
    kind = examples[0]["kind"]
    if kind not in PROMPTED or not isinstance(model, (CausalLM, EncoderDecoder)):
        raise ConfigError(f"evaluate: shots={options.shots}, chat={options.chat} for examples of the kind {kind} and a "
                          f"{type(model).__name__}; expected {', '.join(PROMPTED)}, and a model that writes text")
    if isinstance(model, EncoderDecoder) and options.chat:
        raise ConfigError("evaluate: chat=True for an encoder-decoder; expected a causal model")
    shots = [_asked_and_said({"kind": kind, **shot}) for shot in pool]
    keys = [normalise(_plain(asked)) for asked, _ in shots]
    found = []
    for example in examples:
        asked, said = _asked_and_said(example)
        own = normalise(_plain(asked))
        draw = np.random.default_rng([options.seed, *hashlib.blake2b(own.encode("utf-8", "surrogatepass"), digest_size=8).digest()])
        chosen = list(islice((i for i in draw.permutation(len(shots)) if keys[i] != own), options.shots))
        if len(chosen) < options.shots:
            raise ConfigError(f"evaluate: shots={options.shots} for {example.get('where', 'an example')}, but only {len(chosen)} of "
                              f"{len(shots)} examples ask something else. Hint: fewer shots, or a folder with a train file")
        found.append(_behind([shots[i] for i in chosen], example, asked, said, options))
    return found


def _asked_and_said(example):
    """-> what an example asks and the right answer: both text, or both messages."""
    kind = example["kind"]
    if kind == "messages":
        return example["messages"][:-1], example["messages"][-1:]
    if kind == "classification":
        return example["text"], f" {example['label']}"
    if kind == "choice":
        return example["prompt"], f" {example['choices'][example['answer']]}"
    example = written(example) if kind == "question" else example
    return example["prompt"], example["completion"]


def _plain(asked):
    return asked if isinstance(asked, str) else "\n".join(f"{m['role']}: {m['content']}" for m in asked)


def _behind(shots, example, asked, said, options):
    """-> the example with the shots, (asked, said) pairs, in its prompt."""
    formatted = lambda text: options.prompt_format.replace("{prompt}", text)
    if isinstance(asked, str) and not options.chat:
        prompt = "".join(f"{formatted(a)}{s}\n\n" for a, s in shots) + formatted(asked)
    else:
        turns = lambda a, s: ([user(formatted(a))] if isinstance(a, str) else a, [assistant(s.strip())] if isinstance(s, str) else s)
        asked, said = turns(asked, said)
        system = [m for m in asked[:1] if m["role"] in ("system", "developer")]  # one, its own
        before = [m for shot in shots for side in turns(*shot) for m in side if m["role"] not in ("system", "developer")]
        prompt = [*system, *before, *asked[len(system):]]
    kind = "completion" if example["kind"] in ("messages", "question") else example["kind"]
    references = example.get("references") or [said if isinstance(said, str) else said[-1]["content"]]
    return {**example, "kind": kind, "prompt": prompt, "completion": said, "references": references}


# ---- likelihood of text

def _likelihoods(model, tokenizer, examples, options):
    """Text: every token but the first, which nothing precedes unless the tokenizer puts a BOS there. Of completions what is learned."""
    _writer(model, "clm")
    special = {token.id for token in tokenizer.added if token.special}
    length, rows, owners = _context(model, options), [], []
    for i, example in enumerate(examples):
        if example["kind"] == "text":
            if isinstance(model, EncoderDecoder):
                raise ConfigError("evaluate: plain text for an encoder-decoder; expected completions, or a causal model")
            parts = windows(tokenizer.encode(example["text"]), length, options.stride)
        else:
            parts = [_completion(model, tokenizer, example, options)[:2]]
        rows += parts
        owners += [i] * len(parts)
    log_probs, records = log_likelihoods(model, rows, batch=options.batch), [{**_named(e), "parts": []} for e in examples]
    for (context, continuation), owner, values in zip(rows, owners, log_probs):
        size = sum(len(tokenizer.token_bytes(id)) for id in continuation if id not in special)
        if special.issuperset(context):  # the text's first token, before which no space stands
            size += len(tokenizer.decode_bytes(continuation[:1])) - len(tokenizer.token_bytes(continuation[0]))
        records[owner]["parts"].append([-float(values.sum()), len(continuation), size])
    for record in records:
        record["nll"], record["tokens"], record["bytes"] = (sum(part[k] for part in record["parts"]) for k in range(3))
    return records


def _completion(model, tokenizer, example, options, ends=True):
    """-> (context, continuation, tokens that were cut from the beginning of the context); ends: with the end token."""
    row = render(example, example["kind"], tokenizer, architecture=_architecture(model), prompt_format=options.prompt_format)
    if row.decoder is not None:
        context, continuation = row.tokens.tolist(), row.decoder.tolist()
    else:  # from the last run of what is learned
        learned = np.flatnonzero(row.learned)
        begin = int(learned[np.flatnonzero(np.diff(learned, prepend=-9) > 1)[-1]]) if learned.size else len(row)
        context, continuation = row.tokens[:begin].tolist(), row.tokens[begin : learned[-1] + 1].tolist() if learned.size else []
    if not ends and continuation and continuation[-1] in {tokenizer.eos_id, *(token.id for token in tokenizer.added if token.special)}:
        continuation = continuation[:-1]  # of a text, or of a turn
    if not context or not continuation:
        raise FormatError(f"{example.get('where', 'example')}: no tokens in the {'completion' if context else 'prompt'}")
    room = _context(model, options) - (0 if row.decoder is not None else len(continuation) - 1)
    if room < 1:
        raise FormatError(f"{example.get('where', 'example')}: a completion of {len(continuation)} tokens is beyond the model's context")
    return context[-room:], continuation, max(len(context) - room, 0)


def _score_likelihoods(records, o):
    nll, tokens, sizes = np.array([part for record in records for part in record["parts"]], float).T
    found = {"perplexity": text_metrics.perplexity(nll, tokens, seed=o.seed), "loss": metrics.bootstrap(
        "loss", np.stack([nll, tokens], 1), lambda s: s[..., 0] / s[..., 1], "nats a token", seed=o.seed)}
    return {**found, "bits_per_byte": text_metrics.bits_per_byte(nll, sizes, seed=o.seed)} if sizes.all() else found


# ---- choices by likelihood

def _choose(model, tokenizer, examples, options):
    """The log-likelihood of each choice behind the prompt, a space between them, or as the assistant's turn; without an end token."""
    _writer(model, "multiple-choice")
    said = lambda e, choice: f" {choice}" if isinstance(e["prompt"], str) else [assistant(choice)]
    rows = [[_completion(model, tokenizer, {"where": "", **e, "kind": "completion", "completion": said(e, choice)}, options, ends=False)
             for choice in e["choices"]] for e in examples]
    values = iter(log_likelihoods(model, [row[:2] for several in rows for row in several], batch=options.batch))  # all in one go
    records = []
    for example, several in zip(examples, rows):
        scores = [float(next(values).sum()) for _ in several]
        sizes = [len(choice.encode()) for choice in example["choices"]]
        records.append({**_named(example), "answer": example["answer"], "log_likelihoods": scores, "prediction": int(np.argmax(scores)),
                        "prediction_normalized": int(np.argmax(np.array(scores) / np.maximum(sizes, 1))),
                        "cut": max(row[2] for row in several)})
    return records


def _score_choices(records, o):
    return {name: metrics.proportion("accuracy", [r[key] == r["answer"] for r in records], norm) for name, key, norm in (
        ("accuracy", "prediction", "norm:none"), ("accuracy_normalized", "prediction_normalized", "norm:bytes"))}


# ---- classification

def _classify(model, tokenizer, examples, options):
    """The labels' probabilities: a classifier's, or of a model that writes, those of the labels' names behind the prompt."""
    if not isinstance(model, SequenceClassifier):
        names = sorted({e["label"] for e in examples})
        chosen = _choose(model, tokenizer, [{"prompt": e.get("prompt", e["text"]), "choices": names, "answer": 0, **_named(e)}
                                            for e in examples], options)
        scores = [record["log_likelihoods"] for record in chosen]
    else:
        named = model.config.extra.get("id2label", {})
        names = [named.get(str(i), str(i)) for i in range(model.config.labels())]
        if not {e["label"] for e in examples} <= set(names):
            names = [str(i) for i in range(len(names))]
        limit = _context(model, options)
        rows = [render(e, "classification", tokenizer, max_length=limit, labels=names) for e in examples]
        scores = _in_batches(lambda batch: model(batch.tokens, batch.segments).data, rows, options.batch)
    records = []
    for example, row in zip(examples, scores):
        p = np.exp(np.asarray(row, np.float64) - np.max(row))
        p = p / p.sum()
        records.append({**_named(example), "label": example["label"], "prediction": names[int(p.argmax())],
                        "probabilities": dict(zip(names, p.tolist()))})
    return records


def _in_batches(forward, rows, size):
    """forward: Batch -> an array with a row for each -> its rows in order; rows alike in length go together."""
    order, found = sorted(range(len(rows)), key=lambda i: -len(rows[i])), [None] * len(rows)
    with no_grad(), Progress(len(rows), "evaluate", "row") as bar:
        for begin in range(0, len(rows), size):
            part = order[begin : begin + size]
            for i, row in zip(part, forward(collate([rows[i] for i in part]))):
                found[i] = row
            bar.update(len(part))
    return found


def _score_classes(records, o):
    truth, guess = ([r[key] for r in records] for key in ("label", "prediction"))
    names = list(records[0]["probabilities"])
    found = {"accuracy": metrics.accuracy(guess, truth)}
    found |= {f"f1_{average}": metrics.f1(guess, truth, average, seed=o.seed) for average in ("macro", "micro", "weighted")}
    found["matthews"] = metrics.matthews(guess, truth, seed=o.seed)
    return found | metrics.calibration([list(r["probabilities"].values()) for r in records], np.array([names.index(t) for t in truth]),
                                       seed=o.seed)


# ---- answers that are written

def _write(model, tokenizer, examples, options):
    """What the model writes behind each prompt."""
    _writer(model, "of generated text")
    prompts, records, stop = [], [], options.stop
    if any(not isinstance(e.get("prompt", ""), str) or e["kind"] == "messages" for e in examples) and (end := turn_end(tokenizer)):
        stop = (*stop, end)  # which need not be the model's end token
    for example in examples:
        context, continuation, _ = _completion(model, tokenizer, example, options)
        room = _context(model, options) - (0 if isinstance(model, EncoderDecoder) else options.max_tokens)
        if room < 1:
            raise ConfigError(f"evaluate: max_tokens={options.max_tokens} leaves no room for a prompt in a context of "
                              f"{_context(model, options)} tokens")
        prompts.append(context[-room:])
        expected = example.get("references") or [example["completion"] if example["kind"] == "completion" else
                                                 example["messages"][-1]["content"] if example["kind"] == "messages" else ""]
        if example["kind"] == "completion" and not isinstance(expected[0], str):
            expected = [example["completion"][-1]["content"]]
        records.append({**_named(example), "references": [text.strip() for text in expected], "cut": max(len(context) - room, 0)})
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    with Progress(len(prompts), "generate", "row") as bar:
        for begin in range(0, len(order), options.batch):
            part = order[begin : begin + options.batch]
            found = generate(model, tokenizer, [prompts[i] for i in part], max_tokens=options.max_tokens, num_beams=options.num_beams,
                             temperature=0, stop=stop)
            for i, generation in zip(part, found):
                records[i].update(prediction=generation.text.strip(), finish_reason=generation.finish_reason)
            bar.update(len(part))
    return records


def _answer(model, tokenizer, examples, options):
    """A span of the context, or what is written; "" where there is no answer."""
    if not isinstance(model, SpanFinder):
        records = _write(model, tokenizer, examples, options)
        none = "unanswerable"
        return [{**r, "prediction": "" if text_metrics.normalized(r["prediction"]) == none else r["prediction"],
                 "references": ["" if text == none else text for text in r["references"]]} for r in records]
    found = find_spans(model, tokenizer, examples, batch=options.batch, length=_context(model, options), stride=options.stride or STRIDE)
    records = []
    for example, (spans, none) in zip(examples, found):
        text, score = spans[0] if spans else ("", -np.inf)
        odds = np.exp(np.array([s for _, s in spans]) - max(score, none))
        chances = (odds / (odds.sum() + np.exp(none - max(score, none)))).tolist()
        records.append({**_named(example), "prediction": text if none - score <= options.no_answer_threshold else "",
                        "references": example["references"] or [""], "score": score, "no_answer_score": none,
                        "n_best": [{"text": t, "score": s, "probability": p} for (t, s), p in zip(spans, chances)]})
    return records


def _texts(records):
    return [r["prediction"] for r in records], [r["references"] for r in records]


def _score_answers(records, o):
    found = {"exact_match": text_metrics.exact_match(*_texts(records)), "token_f1": text_metrics.token_f1(*_texts(records), seed=o.seed)}
    for name, part in (("answerable", [r for r in records if any(r["references"])]),
                       ("unanswerable", [r for r in records if not any(r["references"])])):
        if part and len(part) < len(records):  # SQuAD 2.0's HasAns and NoAns
            found[f"exact_match_{name}"] = text_metrics.exact_match(*_texts(part))
            found[f"token_f1_{name}"] = text_metrics.token_f1(*_texts(part), seed=o.seed)
    return found


def _score_translations(records, o):
    return {name: getattr(text_metrics, name)(*_texts(records), seed=o.seed) for name in ("bleu", "chrf", "ter")}


def _score_summaries(records, o):
    return text_metrics.rouge(*_texts(records), seed=o.seed)


def _score_texts(records, o):
    stopped = metrics.proportion("stopped", [r["finish_reason"] == "stop" for r in records])
    return {**_score_answers(records, o), **_score_summaries(records, o), "stopped": stopped}


WRITTEN = ("completion", "messages")
TASKS = {
    "clm": Task("perplexity and bits per byte of text, or of completions", ("text", *WRITTEN), _likelihoods, _score_likelihoods),
    "classify": Task("labels of texts: accuracy, F1, Matthews, calibration", ("classification",), _classify, _score_classes),
    "multiple-choice": Task("the likeliest of given answers", ("choice",), _choose, _score_choices),
    "qa": Task("answers to questions about a text: exact match, token F1", ("question", *WRITTEN), _answer, _score_answers),
    "translate": Task("translations: BLEU, chrF, TER (extra `eval`)", WRITTEN, _write, _score_translations),
    "summarise": Task("summaries: ROUGE-1, -2, -L", WRITTEN, _write, _score_summaries),
    "generate": Task("answers: exact match, token F1, ROUGE, how many end by themselves", WRITTEN, _write, _score_texts),
    "crows-pairs": Task("which of two sentences, one a stereotype, is likelier", ("crows-pairs",), bias.crows_pairs, bias.score_crows,
                        bias.read_crows),
    "bbq": Task("stereotypes in answers, by likelihood", ("bbq",), bias.bbq, bias.score_bbq, bias.read_bbq),
    "bbq-written": Task("the same in answers that are written; parse failures apart", ("bbq",), bias.bbq_written, bias.score_bbq,
                        bias.read_bbq),
    "winogender": Task("whom a pronoun means, by its gender", ("winogender",), bias.winogender, bias.score_winogender,
                       bias.read_winogender),
}
