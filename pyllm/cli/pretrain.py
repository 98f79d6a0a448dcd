"""pyllm pretrain: text -> tokenizer -> token shards -> training -> a run folder, see pyllm.cli.run.

Beside what every run has, it holds tokenizer/ and shards/, made once and read on resume.
"""
from functools import partial
from itertools import islice
from pathlib import Path


def add_arguments(parser):
    from pyllm.cli.config import PRESETS, add_flags

    parser.add_argument("config", nargs="?", help="a TOML file with the sections below; flags override it")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run folder")
    parser.add_argument("--preset", help=f"settings to start from: {', '.join(PRESETS)}")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of RUN, with its settings")
    parser.add_argument("--dry-run", "--dry_run", action="store_true",
                        help="print parameters, memory and time, train nothing, write nothing")
    add_flags(parser)


def run(args):
    from pyllm.cli.config import load_config, read_toml
    from pyllm.errors import ConfigError

    resolved = Path(args.out, "config.resolved.toml")
    below = [read_toml(resolved)] if args.resume and resolved.is_file() else []
    config = load_config(args, *below)
    if not config.data.path:
        raise ConfigError("pretrain: no data; expected --data PATH, or path in [data] of the configuration" +
                          (f" (there is no {resolved} to resume)" if args.resume else ""))
    if args.dry_run:
        from pyllm.cli.estimate import report

        return report(config)
    return pretrain(config, args.out, args.resume)


def pretrain(config, out, resume=False, until=None):
    """Runs a Config in the folder `out` -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved.

    until: a step after which the run stops as if it had been interrupted.

    Without resume the folder must hold no checkpoint. Raises ConfigError for settings, FormatError for a broken checkpoint, OSError for a
    full disk, FloatingPointError for a diverged run; in each case the newest checkpoint is whole and --resume goes on from it.
    """
    from pyllm import training
    from pyllm.cli import run as runs
    from pyllm.data.loader import Loader, validation
    from pyllm.objectives import clm

    out, t = Path(out), config.train
    checkpoint = runs.newest("pretrain", out, resume)
    tokenizer, train_shards, valid_shards = prepare(config, out, resume)
    model = build_model(config, tokenizer.vocab_size).initialize(t.seed)
    length = row_length(config, model)
    print(f"model      {model.config.model_type}, {model.num_parameters():,} parameters, rows of {length} tokens", flush=True)

    def evaluate():
        batches = validation(valid_shards, t.batch, length)
        found = training.evaluate(model, clm, islice(batches, t.eval_batches or None),
                                  bytes_per_token=valid_shards.text_bytes / len(valid_shards))
        values = {"valid_loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        return found.loss, values, f"{found.loss:.4f}: perplexity {found.perplexity:.2f}, {found.bits_per_byte:.3f} bits a byte"

    def continued(step):
        prompt, text = sample(model, tokenizer, valid_shards, t.sample_tokens, t.seed + step)
        return {"prompt": prompt, "text": text}

    return runs.run("pretrain", out, t, steps=t.steps, warmup=t.warmup, model=model, tokenizer=tokenizer,
                    objective=partial(clm, label_smoothing=t.label_smoothing, z_loss=t.z_loss),
                    batches=Loader(train_shards, t.batch, length, t.seed), evaluate=evaluate, sample=continued, checkpoint=checkpoint,
                    until=until)


# ---- the pieces

def prepare(config, out, resume):
    """-> tokenizer, shards for training, shards for validation; made in the run folder, or read from it on resume."""
    from pyllm.data import corpus, shards
    from pyllm.errors import ConfigError, FormatError
    from pyllm.io.files import write_toml

    path = Path(config.data.path)
    try:
        ready = (path / "index.json").is_file()
        if not ready:
            corpus.find_files(path)
        out.mkdir(parents=True, exist_ok=True)
        write_toml(out / "config.resolved.toml", config.table())
        tokenizer = make_tokenizer(config, out / "tokenizer", resume)
        print(f"tokenizer  {type(tokenizer).__name__}, {tokenizer.vocab_size} tokens", flush=True)
        if ready:
            everything = shards.open_shards(path)
            if everything.vocab_size != tokenizer.vocab_size:
                raise ConfigError(f"{path}: token shards of a vocabulary of {everything.vocab_size}, "
                                  f"the tokenizer has {tokenizer.vocab_size}")
            train, valid = shards.split(everything, config.data.fraction)
        elif has_validation(path):
            train, valid = (make_shards(path, out / "shards" / part, tokenizer, part, resume) for part in ("train", "valid"))
        else:
            train, valid = shards.split(make_shards(path, out / "shards" / "all", tokenizer, None, resume), config.data.fraction)
    except (FormatError, FileNotFoundError) as error:
        raise ConfigError(f"data: {error}") from None
    print(f"data       {len(train):,} tokens to train on, {len(valid):,} for validation, "
          f"{(train.text_bytes + valid.text_bytes) / (len(train) + len(valid)):.2f} bytes a token", flush=True)
    return tokenizer, train, valid


def has_validation(path):
    """Whether a folder of text has files of its own for validation."""
    from pyllm.data.corpus import find_files
    from pyllm.errors import FormatError

    try:
        return path.is_dir() and bool(find_files(path, "valid"))
    except FormatError:
        return False


def make_tokenizer(config, folder=None, resume=False):
    """-> the tokenizer in `folder` on resume, else a new one, saved there (folder None: nowhere)."""
    from pyllm.data.corpus import read_documents
    from pyllm.text import ByteLevelBPE, CharTokenizer, read_tokenizer

    kind = config.tokenizer.kind
    if resume and (folder / "tokenizer.json").is_file():
        return read_tokenizer(folder)
    if kind == "chars":
        tokenizer = CharTokenizer.train(read_documents(config.data.path))
    elif kind == "bpe":
        tokenizer = ByteLevelBPE.train(read_documents(config.data.path), config.tokenizer.vocab_size)
    else:
        tokenizer = read_tokenizer(kind)
    if folder:
        tokenizer.save(folder)
    return tokenizer


def make_shards(path, folder, tokenizer, part, resume):
    from pyllm.data.shards import open_shards, tokenize

    if resume and (folder / "index.json").is_file():
        return open_shards(folder)
    folder.parent.mkdir(exist_ok=True)
    return tokenize(path, folder, tokenizer, part)


def build_model(config, vocab_size):
    """-> the model of [model], its weights zero."""
    from pyllm import folders
    from pyllm.errors import ConfigError, suggest
    from pyllm.models import FAMILIES
    from pyllm.models.base import CausalLM

    sizes = dict(config.model)
    family = sizes.pop("family")
    causal = [name for name, (_, model) in FAMILIES.items() if issubclass(model, CausalLM)]  # that predict the next token
    if family not in causal:
        raise ConfigError(f"model.family={family!r}; expected one of {', '.join(causal)}.{suggest(family, causal)}")
    return folders.build(FAMILIES[family][0].from_sizes({"vocab_size": vocab_size, **sizes}))


def row_length(config, model):
    """-> tokens a row."""
    from pyllm.errors import ConfigError

    context = model.config.size("context")
    if config.data.length > context:
        raise ConfigError(f"data.length={config.data.length}; expected at most the model's context, {context}")
    return config.data.length or context


def sample(model, tokenizer, shards, tokens, seed):
    """-> (prompt, continuation): the first words of the validation data, continued."""
    from pyllm.generation import generate

    prompt = tokenizer.decode(shards[:8])
    return prompt, generate(model, tokenizer, prompt, max_tokens=tokens, temperature=0.8, seed=seed).text

