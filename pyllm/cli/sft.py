"""pyllm sft: a model and examples -> a fine-tuned model in a run folder, see pyllm.cli.run.

Decoders learn completions and assistant turns, encoders classes or spans (with a new head where they have none), encoder-decoders answers.
"""
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from pyllm.cli import run as runs
from pyllm.cli.adapters import Peft, adapt, rated
from pyllm.cli.config import Steps, Taught, key

METRICS = {  # task: {what a model may be best in: the task of pyllm.evaluate whose score it is, or None for what the objective gives}
    "lm": {"loss": None, "exact_match": "generate", "token_f1": "generate", "rouge1": "summarise", "rougeL": "summarise",
           "bleu": "translate", "chrf": "translate"},
    "classify": {"loss": None, "accuracy": None, "f1_macro": "classify", "matthews": "classify"},
    "span": {"loss": None, "accuracy": None, "exact_match": "qa", "token_f1": "qa"},
}


@dataclass(frozen=True)
class Model:
    path: str = key("", "a model folder, a .gguf file, or a run folder", flags=("model",))
    task: str = key("auto", "lm: answers; classify: a label for a text; span: where the answer stands; auto: what the data is for",
                    choices=("auto", *METRICS))
    dropout: float = key(-1.0, "probability, instead of the model's; -1 = the model's", -1.0, 1.0)
    noise: float = key(0.0, "NEFTune's alpha, such as 5: noise on the embeddings in training; 0 = none", 0.0)
    checkpointing: bool = key(False, "keep no activations inside a block, compute them twice: much less memory, a third more time")
    freeze: str = key("", "regular expression of the paths of parameters that do not learn")
    layer_decay: float = key(1.0, "factor of the learning rate from each block to the one below; 1 = none", 0.0, 1.0)


@dataclass(frozen=True)
class Data:
    path: str = key("", "a file of examples, or a folder of them, with train* and valid* files or split by fraction", flags=("data",))
    columns: str = key("", "the names that the files have for keys, such as prompt=question,completion=answer")
    prompt_format: str = key("{prompt}", "what stands around a prompt, such as 'Translate to German: {prompt}'")
    chat_template: str = key("", "a built-in chat template, such as alpaca, or a file, in place of the tokenizer's; saved with the model")
    length: int = key(0, "tokens of a row at most; 0 = the model's context", 0)
    truncation: str = key("keep_start", "which part of a longer row is kept", choices=("keep_start", "keep_end"))
    stride: int = key(128, "of questions for an encoder: tokens from one window of a long text to the next", 1)
    packing: bool = key(False, "several examples in a row of --length tokens; they do not see each other")
    fraction: float = key(0.9, "share of the examples to train on where the data has no valid* files; the rest is for validation", 0.0, 1.0)
    token_dropout: float = key(0.0, "probability that a token which is only read is dropped, in training", 0.0, 1.0)
    span_masking: float = key(0.0, "share of the tokens which are only read that become mask tokens, in training", 0.0, 1.0)
    check: bool = key(True, "look at all examples first, as pyllm data check does, and refuse what would spoil the run")
    allow: str = key("", "shares of the examples that the check lets pass, such as duplicates=0.1,cut=0.3")
    skip_bad_lines: bool = key(False, "count lines that cannot be read, and go on")


@dataclass(frozen=True)
class Finetune(Steps):
    ALL = 5e-5
    epochs: float = key(3.0, "times that the examples are read", 0.0)
    steps: int = key(0, "optimizer steps in all, instead of epochs", 0)
    batch: int = key(16, "rows of a micro-batch", 1)
    tokens: int = key(0, "tokens of a micro-batch at most, padding included, instead of a number of rows", 0)
    lr: float = key(0.0, "learning rate at its highest; 0 = 5e-5, of an adapter its method's own", 0.0, flags=("lr", "learning-rate"))
    min_lr: float = key(0.0, "learning rate at the end of the schedule", 0.0)
    warmup_ratio: float = key(0.06, "share of the steps in which the learning rate rises", 0.0, 1.0)
    beta2: float = key(0.999, "AdamW's decay of the second moment, a step", 0.0, 1.0)
    weight_decay: float = key(0.01, "AdamW's decay of matrices, times the learning rate", 0.0)
    eval_every: int = key(0, "steps between evaluations; 0 = an epoch", 0)
    metric: str = key("auto", "what the best model is best in, on the validation data; auto: accuracy of a classifier, else loss",
                      choices=("auto", *dict.fromkeys(name for names in METRICS.values() for name in names)))
    answer_tokens: int = key(64, "tokens of an answer at most, where the metric is of answers", 1)


@dataclass(frozen=True)
class Sets(Data):
    more: str = key("", "further sets to train on and their shares of what is read, such as chats.jsonl=0.2,facts=0.1; path has the rest")


@dataclass(frozen=True)
class Sft(Finetune, Taught):
    """A Finetune that may have a teacher."""


SECTIONS = {"model": Model, "data": Sets, "train": Sft, "peft": Peft}


def add_arguments(parser):
    parser.epilog = ("For example: pyllm sft --model MODEL --data chats.jsonl --out runs/sft. Formats are known by their keys: text; "
                     "messages; prompt, completion; text, label; question, context, answers. pyllm data check looks at the examples.")
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return sft(runs.settings("sft", args, SECTIONS), args.out, args.resume)


def sft(config, out, resume=False, until=None, watch=None, show=True):
    """Runs a Config of SECTIONS in the folder `out` -> exit code. show: an example with what is learned of it; the rest as
    pyllm.cli.pretrain.pretrain."""
    from pyllm import peft, training
    from pyllm.cli.chat import template
    from pyllm.errors import ConfigError
    from pyllm.evaluate.tasks import Options
    from pyllm.evaluate.tasks import evaluate as score
    from pyllm.io.files import write_toml

    out, m = Path(out), config.model
    config.train = t = rated(config.train, config.peft)
    checkpoint = runs.newest("sft", out, resume)
    base, tokenizer = open_model(m.path, packed=m.path.endswith(".gguf") and config.peft.base != "f32")
    if config.data.chat_template:
        tokenizer.chat_template = template(config.data.chat_template)
    examples, shares = read(config.data), shares_of(config.data)
    sets = [examples, *({**examples, "train": read(replace(config.data, path=path))["train"]} for path in shares)]
    task, *others = [task_of(m.task, base, found["train"].kind) for found in sets]
    if set(others) - {task}:
        raise ConfigError(f"data.more={config.data.more!r}: examples for {', '.join(others)}; expected the task of data.path, {task}")
    if t.label_smoothing and task == "span":
        raise ConfigError(f"train.label_smoothing={t.label_smoothing}: spans have none; expected 0")
    if t.teacher and task != "lm":
        raise ConfigError(f"train.teacher={t.teacher!r}: for the task {task}; expected lm, where probabilities of tokens are learned")
    if config.data.packing and (task != "lm" or architecture(base) != "decoder"):
        raise ConfigError(f"data.packing is for decoders; expected none for {base.config.model_type} and the task {task}")
    metric = "accuracy" if t.metric == "auto" and task != "lm" else "loss" if t.metric == "auto" else t.metric
    if metric not in METRICS[task]:
        raise ConfigError(f"train.metric={metric!r}: the task {task} has {', '.join(METRICS[task])}")
    if METRICS[task][metric] and "valid" not in examples:
        raise ConfigError(f"train.metric={metric!r} is of whole examples: expected a folder with valid* files, not a share of the rows")
    model, labels = build(base, task, m, t.seed, examples["train"])
    for found in sets if config.data.check and not checkpoint else ():
        look(config.data, model, tokenizer, found, labels, show)
    rows = render(config, model, tokenizer, examples, labels)
    learned = [rows["train"], *(rows_of_a_set(config, model, tokenizer, "more", found["train"], labels) for found in sets[1:])]
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / "config.resolved.toml", config.table())
    adapt(model, config.peft, t.seed)
    if m.freeze:
        frozen = training.freeze(model, m.freeze)
        print(f"frozen     {len(frozen)} parameters, such as {frozen[0]}", flush=True)
    batches = make_batches(learned, model, t, config.data.packing and row_length(config.data, model),
                           augment=augmentation(config.data, tokenizer, task), weights=[1 - sum(shares.values()), *shares.values()])
    if config.data.packing:
        plan = batches.plan(0)
        used = sum(batches.lengths[i] for batch in plan for row in batch for i in row) / (batches.length * sum(map(len, plan)))
        print(f"packed     {100 * used:.1f} % of a batch are tokens, the rest is padding")
    valid = make_batches([rows["valid"]], model, t, shuffle=False)
    an_epoch = max(1, len(batches.plan(0)) // t.accumulate)
    steps = t.steps or max(1, round(t.epochs * an_epoch))
    objective, smooth = objective_of(task, model), {"label_smoothing": t.label_smoothing} if t.label_smoothing else {}
    learns = taught(t, model, tokenizer) or partial(objective, **smooth)
    print(f"steps      {steps:,}; {an_epoch:,} are an epoch; learning rate {t.lr:g}", flush=True)

    def evaluate():
        found = training.evaluate(model, objective, islice(valid.once(), t.eval_batches or None))
        values = {"valid_loss": found.loss, **{f"valid_{name}": value for name, value in found.metrics.items()}}
        if scored := METRICS[task][metric]:
            windows = {"length": config.data.length, "stride": config.data.stride} if task == "span" else {}
            options = Options(batch=t.batch, max_tokens=t.answer_tokens, prompt_format=config.data.prompt_format, **windows)
            scores, _ = score(scored, model, tokenizer, examples["valid"], options, limit=t.eval_batches * t.batch or None)
            values[f"valid_{metric}"] = float(scores[metric])
        words = runs.described(values).removeprefix("validation ")
        return (1 if metric == "loss" else -1) * values[f"valid_{metric}"], values, words

    return runs.run("sft", out, replace(t, eval_every=t.eval_every or an_epoch), steps=steps, warmup=int(t.warmup_ratio * steps),
                    model=model, tokenizer=tokenizer, objective=learns, batches=batches, evaluate=evaluate,
                    sample=(lambda step: answer(model, tokenizer, rows["valid"][0], t.sample_tokens)) if task == "lm" else None,
                    rates=training.layerwise(model, m.layer_decay) if m.layer_decay < 1 else peft.rates(model), base=m.path,
                    checkpoint=checkpoint, until=until, watch=watch)


# ---- the pieces

def open_model(path, packed=False):
    """-> (model, tokenizer) of a folder, a run folder or a .gguf file, packed as that has them."""
    from pyllm.cli.generate import model_folder
    from pyllm.errors import FormatError
    from pyllm.folders import load

    model, tokenizer = load(path if Path(path).is_file() else model_folder(path), packed=packed)
    if tokenizer is None:
        raise FormatError(f"{path}: has no tokenizer file, such as tokenizer.json, which text needs")
    return model, tokenizer


def taught(t, model, tokenizer):
    """t: a Taught -> the objective of distillation from its teacher, or None where there is none."""
    from pyllm.errors import ConfigError
    from pyllm.models.base import LanguageModel
    from pyllm.models.seq2seq import EncoderDecoder
    from pyllm.objectives import distill

    if not t.teacher:
        return None
    teacher, theirs = open_model(t.teacher)
    one, other = ([kind.token(i) for i in range(kind.vocab_size)] for kind in (theirs, tokenizer))
    wrong = [f"another tokenizer, of {theirs.vocab_size} tokens; expected the student's, of {tokenizer.vocab_size}"] * (one != other)
    if architecture(teacher) != architecture(model) or not isinstance(teacher, (LanguageModel, EncoderDecoder)):
        wrong.append(f"the architecture {type(teacher).__name__}; expected the student's kind, {architecture(model)} with a language head")
    elif one == other and teacher.head_weight().shape[0] != model.head_weight().shape[0]:
        wrong.append(f"logits for {teacher.head_weight().shape[0]} tokens; expected the student's {model.head_weight().shape[0]}")
    if wrong:
        raise ConfigError(f"train.teacher={t.teacher!r} has {'; '.join(wrong)}. Hint: a teacher and a student of one family of models, or "
                          "pyllm pretrain --tokenizer with the teacher's folder")
    return partial(distill, teacher=teacher, temperature=t.teacher_temperature, alpha=t.teacher_share)


def architecture(model):
    """-> decoder, encoder or encoder-decoder, as pyllm.data.render calls them."""
    from pyllm.models.base import Headed
    from pyllm.models.seq2seq import EncoderDecoder

    if isinstance(model, EncoderDecoder):
        return "encoder-decoder"
    return "decoder" if (model.trunk if isinstance(model, Headed) else model).CAUSAL else "encoder"


def read(d):
    """d: a Data -> {"train": Examples, and "valid": Examples where the data has such files}."""
    from pyllm.cli.data import columns_of
    from pyllm.data import find_splits, read_examples
    from pyllm.errors import ConfigError, FormatError

    columns = columns_of(d)
    try:
        return {part: read_examples(d.path, part, columns=columns, skip_bad_lines=d.skip_bad_lines)
                for part in ("train", "valid") if part == "train" or part in find_splits(d.path, columns)}
    except (FormatError, FileNotFoundError) as error:
        raise ConfigError(f"data: {error}") from None


def shares_of(d):
    """d: a Data -> {path: share} of the further sets."""
    from pyllm.cli.data import pairs_of
    from pyllm.errors import ConfigError

    shares = dict(pairs_of("more", d.more.split(","), float, "FILE=SHARE,..., such as chats.jsonl=0.2,facts=0.1"))
    if not all(share > 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ConfigError(f"data.more={d.more!r}; expected shares above 0 that leave some for data.path")
    return shares


def look(d, model, tokenizer, examples, labels, show=True):
    """ConfigError for data that would spoil the run; shows an example with what is learned of it."""
    import sys

    from pyllm.cli.data import pairs_of, say, shown
    from pyllm.data import lint
    from pyllm.errors import ConfigError, FormatError

    allow = dict(pairs_of("allow", d.allow.split(","), float, "NAME=SHARE,..., such as duplicates=0.1,cut=0.3"))
    lint.refusals({}, allow)
    try:
        reports = lint.check(examples, tokenizer, near=None, labels=labels, architecture=architecture(model), prompt_format=d.prompt_format,
                             max_length=row_length(d, model), truncation=d.truncation, stride=d.stride)
    except FormatError as error:
        raise ConfigError(f"data: {error}") from None
    for line in shown(reports["train"].row, tokenizer, sys.stdout.isatty()) if show and reports["train"].row is not None else ():
        say(line)
    if refused := lint.refusals(reports, allow):
        lines = [f"{part}: {lint.CHECKS[name][0]}: {100 * reports[part].share(name):.3g} %, such as {reports[part].found[name][0]}"
                 for part, name in refused]
        worst = {name: max(report.share(name) for report in reports.values()) for _, name in refused}
        shares = ",".join(f"{name}={min(1, (share * 1000 // 1 + 1) / 1000):g}" for name, share in worst.items())
        raise ConfigError("data: refused:\n  " + "\n  ".join(lines) +
                          f"\nHint: pyllm data check tells more; --allow {shares} lets so many pass")


def task_of(named, model, kind):
    """-> lm, classify or span: what was asked for, or what examples of this kind are for."""
    from pyllm.errors import ConfigError

    fits = {"classification": "classify", "question": "span" if architecture(model) == "encoder" else "lm"}.get(kind, "lm")
    if fits == "lm" and architecture(model) == "encoder":
        raise ConfigError(f"sft: examples of kind {kind} for {model.config.model_type}, an encoder, which writes no text; expected "
                          "classification (text, label) or questions (question, context, answers)")
    if named not in ("auto", fits):
        raise ConfigError(f"model.task={named!r}: examples of kind {kind} are for {fits!r}")
    return fits


def build(base, task, m, seed, examples):
    """-> (the model that learns, names of the labels or None); what is new in it and what is left behind is printed."""
    from pyllm import peft, training
    from pyllm.data import label_names
    from pyllm.errors import ConfigError
    from pyllm.nn import quantize

    labels = label_names(examples) if task == "classify" else None
    if labels and len(labels) < 2:
        raise ConfigError(f"data: all examples have the label {labels[0]!r}; expected at least two labels")
    known = base.config.extra.get("id2label", {})
    if labels and set(labels) <= set(known.values()):  # the model's own order, so that its head goes on
        labels = [known[str(i)] for i in range(len(known))]
    if any(base.named_packed()) and (task != "lm" or m.dropout >= 0):
        quantize(base, "f32")
    model, fresh, left = base, [], []
    if not any(base.named_packed()):
        model, fresh, left = training.transfer(base, task, labels=labels, dropout=None if m.dropout < 0 else m.dropout, seed=seed)
    print(f"model      {type(model).__name__}, {model.config.model_type}, {peft.report(model).total:,} parameters", flush=True)
    if labels:
        print(f"labels     {', '.join(labels)}")
    if fresh:
        print(f"new        {', '.join(fresh)}: not in the model, drawn from seed {seed}")
    if left:
        print(f"left       {', '.join(left)}: this task does not use them")
    embedding = model.embedding() if architecture(model) == "encoder-decoder" else model.trunk.embedding()
    embedding.noise, model.checkpointing = m.noise, m.checkpointing
    return model, labels


def row_length(d, model):
    """-> tokens of a row at most."""
    from pyllm.errors import ConfigError

    context = model.config.size("context")
    if d.length > context:
        raise ConfigError(f"data.length={d.length}; expected at most the model's context, {context}")
    return d.length or context


def render(config, model, tokenizer, examples, labels):
    """-> {"train": rows, "valid": rows}; without files of their own the latter are a share of the examples, drawn with the seed."""
    import numpy as np

    from pyllm.data.render import rows_of
    from pyllm.errors import ConfigError

    d, rows = config.data, {part: rows_of_a_set(config, model, tokenizer, part, found, labels) for part, found in examples.items()}
    if "valid" not in rows:
        whole = [rows_of([item])[0] for item in rows["train"]]
        whole = [row.where if isinstance(row.label, tuple) else i for i, row in enumerate(whole)]  # a question with all its windows
        names = list(dict.fromkeys(whole))
        order = np.random.default_rng(config.train.seed).permutation(len(names))
        held = {names[i] for i in order[:len(order) - round(d.fraction * len(order))]}
        if not 0 < len(held) < len(order):
            raise ConfigError(f"data.fraction={d.fraction}: {len(held)} of {len(order)} rows are for validation; expected at least one, "
                              "and at least one to train on")
        rows = {part: [row for row, name in zip(rows["train"], whole) if (name in held) == (part == "valid")]
                for part in ("train", "valid")}
        print(f"valid      {len(rows['valid']):,} rows held out of these")
    return rows


def rows_of_a_set(config, model, tokenizer, part, examples, labels):
    """-> the rows of a set of Examples; what became of them is printed behind `part`."""
    from pyllm.data import prepare
    from pyllm.errors import ConfigError, FormatError

    d = config.data
    try:
        rows, counts = prepare(examples, tokenizer, architecture=architecture(model), max_length=row_length(d, model), stride=d.stride,
                               truncation=d.truncation, prompt_format=d.prompt_format, labels=labels)
    except FormatError as error:
        raise ConfigError(f"data: {error}") from None
    skipped = f", {examples.skipped} bad lines skipped, the first: {examples.first_skipped}" if examples.skipped else ""
    print(f"{part:<10} {counts}{skipped}")
    return rows


def augmentation(d, tokenizer, task):
    """-> function (row, rng) -> Row of what is asked for, or None."""
    from pyllm.data.augment import drop_tokens, mask_spans
    from pyllm.errors import ConfigError

    if not d.token_dropout and not d.span_masking:
        return None
    if task == "span":
        raise ConfigError("data.token_dropout, data.span_masking: the places of spans would move; expected 0")
    if d.span_masking and tokenizer.mask_id is None:
        raise ConfigError(f"data.span_masking={d.span_masking}: the tokenizer has no mask token; expected 0")
    special = [token.id for token in tokenizer.added if token.special]

    def augment(row, rng):
        if d.span_masking:
            row = mask_spans(row, rng, d.span_masking, tokenizer.mask_id, special)
        return drop_tokens(row, rng, d.token_dropout, special) if d.token_dropout else row
    return augment


def make_batches(sets, model, t, packed=0, shuffle=True, augment=None, weights=None):
    """-> Batches over one set of rows, or over several by weights; packed: tokens of a row that holds several, or 0."""
    from pyllm.data import row_batches

    mixed = {"weights": weights} if len(sets) > 1 else {}
    start = model.config.starts[0] if architecture(model) == "encoder-decoder" else None
    return row_batches(sets if mixed else sets[0], batch=0 if t.tokens else t.batch, tokens=t.tokens, pack=packed, seed=t.seed,
                       shuffle=shuffle, augment=augment, start=start, **mixed)


def objective_of(task, model):
    from pyllm import objectives

    if task == "lm":
        return objectives.seq2seq if architecture(model) == "encoder-decoder" else objectives.clm
    return objectives.classify if task == "classify" else objectives.span


def answer(model, tokenizer, row, tokens):
    """-> {"prompt", "text", "expected"}: what the model answers to a row's prompt, greedily."""
    from pyllm.generation import generate

    if row.decoder is None:
        begin = max(1, int(row.learned.argmax()) if not row.learned[0] else min(8, len(row) - 1))
        prompt, expected = row.tokens[:begin], row.tokens[begin:]
    else:
        prompt, expected = row.tokens, row.decoder
    text = generate(model, tokenizer, prompt.tolist(), max_tokens=tokens, temperature=0).text
    return {"prompt": tokenizer.decode(prompt), "text": text, "expected": tokenizer.decode(expected)}
