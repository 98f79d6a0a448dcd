"""pyllm merge: a model and an adapter -> a model folder with the adapter in its weights, checked."""


def add_arguments(parser):
    add = parser.add_argument
    add("--model", required=True, metavar="BASE", help="a model folder, a .gguf file, or a run folder")
    add("--adapter", required=True, metavar="FOLDER", help="the adapter's folder, ours or PEFT's, or a run folder that has one")
    add("--out", required=True, metavar="OUT", help="the new model's folder")
    add("--data", metavar="TEXT", help="a text on which the logits before and after are compared (default: random tokens)")
    add("--threshold", type=float, default=1e-3, metavar="X",
        help="the largest difference allowed, in parts of the largest logit, and in nats of divergence (default %(default)s)")


def run(args):
    merge(args.model, args.adapter, args.out, args.data, args.threshold)
    return 0


def merge(base, adapter, out, data=None, threshold=1e-3):
    """Writes the model `base` with the adapter merged as the folder `out`; how far the logits are from the unmerged model's is printed."""
    import pyllm
    from pyllm import peft
    from pyllm.cli.sft import open_model

    model, tokenizer = open_model(base)
    model = adapted(model, adapter)
    found = peft.merge(model, verify=batch_of(model, tokenizer, data), threshold=threshold)
    pyllm.save(model, tokenizer, out)
    print(f"merged     {found.layers} layers; logits up to {found.logits:.3g} differ by at most {found.max_diff:.2g}, "
          f"the distributions by {found.kl:.2g} nats" + ("; the head is no longer tied to the embedding" if found.untied else ""))
    print(f"model      {out}")


def adapted(model, path, name="default"):
    """-> the model with the adapter at `path`, a folder or a run folder's best one; with the head that came with the adapter."""
    from dataclasses import replace

    from pyllm import peft, training
    from pyllm.io.files import read_json
    from pyllm.training.transfer import TASKS

    folder = adapter_folder(path)
    if (folder / "config.json").is_file():
        values = read_json(folder / "config.json")
        task = next(task for task, head in TASKS.items() if head and values["architectures"][0].endswith(head))
        named = values.get("id2label")
        labels = [named[str(i)] for i in range(len(named))] if named and task == "classify" else None
        model, *_ = training.transfer(model, task, labels=labels)
        scale = {key: values[key] for key in ("reward_gain", "reward_bias") if key in values}
        model.config = replace(model.config, extra={**model.config.extra, **scale})
    return peft.load(model, folder, name)


def adapter_folder(path):
    """-> Path of an adapter: that of a run folder, or the folder itself."""
    from pathlib import Path

    return Path(path, "adapter") if Path(path, "adapter", "adapter_config.json").is_file() else Path(path)


def batch_of(model, tokenizer, data):
    """-> a Batch of 4 rows of up to 64 tokens: of a text's beginning, or random ones."""
    import numpy as np

    from pyllm.data.batch import Batch
    from pyllm.errors import ConfigError
    from pyllm.models.seq2seq import EncoderDecoder

    length = min(64, model.config.size("context") // 2)
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 4 * length)
    if data:
        with open(data, encoding="utf-8") as file:
            ids = np.array(tokenizer.encode(file.read(64 * length)))[: 4 * length]
    rows = len(ids) // length
    if not rows:
        raise ConfigError(f"merge: {data}: {len(ids)} tokens; expected at least {length}")
    tokens = np.ascontiguousarray(ids[: rows * length].reshape(rows, length), np.int32)
    return Batch(tokens, tokens, decoder_tokens=tokens if isinstance(model, EncoderDecoder) else None)
