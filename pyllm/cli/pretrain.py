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


def pretrain(config, out, resume=False, until=None, watch=None):
    """Runs a Config in the folder `out` -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved.

    until: a step after which the run stops as if it had been interrupted. watch: see pyllm.cli.run.

    Without resume the folder must hold no checkpoint. Raises ConfigError for settings, FormatError for a broken checkpoint, OSError for a
    full disk, FloatingPointError for a diverged run; in each case the newest checkpoint is whole and --resume goes on from it.
    """
    from pyllm import training
    from pyllm.cli import run as runs
    from pyllm.cli.sft import taught
    from pyllm.data.loader import Loader, validation
    from pyllm.objectives import OBJECTIVES

    out, t = Path(out), config.train
    family_of(config)  # before the tokenizer, which takes a while
    checkpoint = runs.newest("pretrain", out, resume)
    tokenizer, train_shards, valid_shards = prepare(config, out, resume)
    model = build_model(config, tokenizer.vocab_size, tokenizer).initialize(t.seed)
    length, corrupted = row_length(config, model), corruption(config, model, tokenizer)
    objective, teacher = OBJECTIVES[loss_of(t.objective)], taught(t, model, tokenizer)
    print(f"model      {model.config.model_type}, {model.num_parameters():,} parameters, rows of {length} tokens", flush=True)

    def evaluate():
        batches = validation(valid_shards, t.batch, length, corrupted)
        # Only where every token is told are the bytes of the text those of the targets.
        size = valid_shards.text_bytes / len(valid_shards) if corrupted is None else None
        found = training.evaluate(model, objective, islice(batches, t.eval_batches or None), bytes_per_token=size)
        bits = {"bits_per_byte": found.bits_per_byte} if size else {}
        words = f"{found.loss:.4f}: perplexity {found.perplexity:.2f}" + (f", {found.bits_per_byte:.3f} bits a byte" if size else "")
        return found.loss, {"valid_loss": found.loss, "perplexity": found.perplexity, **bits}, words

    def continued(step):
        prompt = next(validation(valid_shards, 1, length, corrupted)).tokens[0] if objective is OBJECTIVES["seq2seq"] else valid_shards[:8]
        prompt, text = sample(model, tokenizer, prompt, t.sample_tokens, t.seed + step)
        return {"prompt": prompt, "text": text}

    return runs.run("pretrain", out, t, steps=t.steps, warmup=t.warmup, model=model, tokenizer=tokenizer,
                    objective=partial(objective, label_smoothing=t.label_smoothing, z_loss=t.z_loss) if teacher is None else teacher,
                    batches=Loader(train_shards, t.batch, length, t.seed, corrupted=corrupted), evaluate=evaluate,
                    sample=None if objective is OBJECTIVES["mlm"] else continued, checkpoint=checkpoint, until=until,
                    watch=watch)


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
    from pyllm import text
    from pyllm.data.corpus import read_documents

    kind, objective = config.tokenizer.kind, config.train.objective
    if resume and (folder / "tokenizer.json").is_file():
        return text.read_tokenizer(folder)
    if kind in KINDS:
        name, specials = KINDS[kind]
        documents, specials = read_documents(config.data.path), special_tokens(objective, specials)
        sizes = () if kind == "chars" else (config.tokenizer.vocab_size,)
        tokenizer = getattr(text, name).train(documents, *sizes, special_tokens=specials)
    else:
        tokenizer = text.read_tokenizer(kind)
    if folder:
        tokenizer.save(folder)
    return tokenizer


KINDS = {  # kind: class, special tokens
    "bpe": ("ByteLevelBPE", ("<|endoftext|>",)), "chars": ("CharTokenizer", ()),
    "wordpiece": ("WordPiece", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), "unigram": ("Unigram", ("<unk>", "<s>", "</s>")),
}


def special_tokens(objective, own):
    """-> a new vocabulary's special tokens: its kind's own, and those that the objective puts into rows."""
    from pyllm.data.corruptions import CORRUPTIONS

    if objective == "clm":
        return own
    wanted = [token for token in CORRUPTIONS[objective].specials if token != "<mask>" or "[MASK]" not in own]
    if loss_of(objective) != "mlm":
        wanted = [*([] if {"<|endoftext|>", "</s>"} & set(own) else ["</s>"]), *([] if "[PAD]" in own else ["<pad>"]), *wanted]
    return (*own, *wanted)


def loss_of(objective):
    """-> the name in OBJECTIVES of what learns from a pretraining objective's rows."""
    from pyllm.data.corruptions import CORRUPTIONS

    return CORRUPTIONS[objective].loss if objective in CORRUPTIONS else objective


def corruption(config, model, tokenizer):
    """-> what becomes of the windows, or None."""
    from pyllm.data.corruptions import Corrupted
    from pyllm.errors import ConfigError

    t = config.train
    if t.objective == "clm":
        if t.corruption:
            raise ConfigError(f"train.corruption={t.corruption}: the objective clm corrupts nothing")
        return None
    return Corrupted(t.objective, tokenizer, getattr(model.config, "starts", ()), t.corruption or None)


def make_shards(path, folder, tokenizer, part, resume):
    from pyllm.data.shards import open_shards, tokenize

    if resume and (folder / "index.json").is_file():
        return open_shards(folder)
    folder.parent.mkdir(exist_ok=True)
    return tokenize(path, folder, tokenizer, part)


def family_of(config):
    """-> the model family, one that the objective can train."""
    from pyllm.errors import ConfigError, suggest
    from pyllm.models import FAMILIES
    from pyllm.models.base import CausalLM
    from pyllm.models.seq2seq import EncoderDecoder

    family, objective = config.model["family"], config.train.objective
    learns = {"clm": lambda m: issubclass(m, CausalLM), "seq2seq": lambda m: issubclass(m, EncoderDecoder),
              "mlm": lambda m: not issubclass(m, (CausalLM, EncoderDecoder))}[loss_of(objective)]
    known = [name for name, (_, model) in FAMILIES.items() if learns(model)]
    if family not in known:
        raise ConfigError(f"model.family={family!r}; expected one of {', '.join(known)} for the objective {objective}."
                          f"{suggest(family, known)}")
    return family


def build_model(config, vocab_size, tokenizer=None):
    """-> the model of [model], its weights zero; an encoder-decoder begins and ends with ids of the tokenizer."""
    from pyllm import folders
    from pyllm.errors import ConfigError
    from pyllm.models import FAMILIES

    family, sizes = family_of(config), {name: value for name, value in config.model.items() if name != "family"}
    values = FAMILIES[family][0].from_sizes({"vocab_size": vocab_size, **sizes})
    if loss_of(config.train.objective) == "seq2seq" and tokenizer is not None:
        eos, pad = tokenizer.eos_id, tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
        if eos is None:
            raise ConfigError("the tokenizer has no end token, which an encoder-decoder needs; expected one such as </s>")
        forced = {"forced_eos_token_id": eos, "bos_token_id": tokenizer.bos_id} if family == "bart" else {}
        values = {**values.to_dict(), "pad_token_id": pad, "eos_token_id": eos,
                  "decoder_start_token_id": eos if family == "bart" else pad, **forced}
    return folders.build(values)


def row_length(config, model):
    """-> tokens a row."""
    from pyllm.errors import ConfigError

    context = model.config.size("context")
    if config.data.length > context:
        raise ConfigError(f"data.length={config.data.length}; expected at most the model's context, {context}")
    return config.data.length or context


def sample(model, tokenizer, prompt, tokens, seed):
    """prompt: ids -> (prompt, continuation) as text; of an encoder-decoder its answer."""
    from pyllm.generation import generate

    prompt = prompt.tolist()
    return tokenizer.decode(prompt), generate(model, tokenizer, prompt, max_tokens=tokens, temperature=0.8, seed=seed).text

