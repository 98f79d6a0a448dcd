"""The state of a run on the disk: checkpoints that are whole or not there, and the log that belongs to them.

    checkpoints/step-000500/   config.json model.safetensors tokenizer.json ...   as pyllm.save writes them; of a model with adapters
                               adapter.safetensors                                alone: all that changes
                               optimizer.safetensors  ema.safetensors             where there are such
                               trainer_state.json     step, the caller's state, versions, sha256 of each file
    checkpoints/last, best     the name of a folder beside them
    metrics.jsonl              one object a line, flushed line by line

A run that goes on from a checkpoint has the bits of one that never stopped: everything it depends on is here or derived from the step.
"""
import hashlib
import json
import math
import re
import shutil
import warnings
from pathlib import Path

from pyllm import kernels as K
from pyllm.errors import FormatError
from pyllm.folders import load_weights, write_files
from pyllm.io.files import atomic_folder, parse_json, read_json, sweep, write_atomic, write_json
from pyllm.io.safetensors import read, write
from pyllm.peft import adapters

FORMAT = "pyllm checkpoint 1"


def save_checkpoint(folder, step, model, tokenizer, optimizer, state, *, ema=None, best=False, keep=2):
    """Writes folder/step-NNNNNN and the pointers, then removes all but the newest `keep` and the best -> its Path.

    state: a dict for JSON, handed back by load_checkpoint: data cursor, seed, early stopping. best: the pointer `best` moves here.
    OSError (disk full ...) leaves the older checkpoints as they were, and so does FloatingPointError: weights that are not finite.
    """
    if broken := [name for name, p in model.named_parameters() if not math.isfinite(K.sum_squares(p.data))]:
        raise FloatingPointError(f"save_checkpoint: step {step}: {len(broken)} weights are not finite, the first {broken[0]}; nothing is "
                                 "written. Hint: a lower lr or a longer warm-up; PYLLM_DEBUG=2 names the operation")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}"
    with atomic_folder(path) as temporary:
        if adapter := adapter_parameters(model):
            write(temporary / "adapter.safetensors", {name: p.data for name, p in adapter.items()})
        else:
            write_files(model, tokenizer, temporary)
        write(temporary / "optimizer.safetensors", optimizer.state())
        if ema is not None:
            write(temporary / "ema.safetensors", ema.state())
        hashes = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / "trainer_state.json",
                   {"format": FORMAT, "step": step, "state": state, "versions": versions(), "sha256": hashes})
    write_atomic(folder / "last", f"{path.name}\n".encode())
    if best:
        write_atomic(folder / "best", f"{path.name}\n".encode())
    spared = pointer(folder, "best")
    for old in checkpoints(folder)[max(keep, 1):]:
        if old != spared:
            shutil.rmtree(old, ignore_errors=True)
    return path


def load_checkpoint(path, model, optimizer, ema=None):
    """Puts a checkpoint into model, optimizer and ema -> (step, state). FormatError names what does not fit."""
    path = Path(path)
    document = read_state(path)
    if ema is not None and "ema.safetensors" not in document["sha256"]:
        raise FormatError(f"{path}: has no ema.safetensors, and this run keeps an average of the weights")
    adapter = adapter_parameters(model)
    if not adapter:
        load_weights(model, read(path / "model.safetensors"), str(path))
    try:
        if adapter:
            _load_adapter(adapter, read(path / "adapter.safetensors"))
        optimizer.load_state(read(path / "optimizer.safetensors"))
        if ema is not None:
            ema.load_state(read(path / "ema.safetensors"))
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None
    return document["step"], document["state"]


def adapter_parameters(model):
    """-> {path: Tensor} of what the adapters in a model bring along, {} without any."""
    own = {id(p) for adapter in adapters(model) for p in adapter.own().values()}
    return {name: p for name, p in model.named_parameters() if id(p) in own}


def _load_adapter(parameters, tensors):
    wrong = sorted(parameters.keys() ^ tensors.keys()) or [n for n, p in parameters.items() if tensors[n].shape != p.shape]
    if wrong:
        raise ValueError(f"adapter.safetensors: {len(wrong)} tensors are missing, unexpected or of another shape: {', '.join(wrong[:5])}")
    for name, p in parameters.items():
        p.data[...] = tensors[name]


def newest(folder):
    """-> Path of the newest checkpoint that is complete and whose every file has its sha256, or None; a warning names those passed over."""
    if not Path(folder).is_dir():
        return None
    sweep(folder)
    for path in checkpoints(folder):
        try:
            document = read_state(path)
            wrong = [name for name, digest in document["sha256"].items() if not (path / name).is_file() or _sha256(path / name) != digest]
            if not wrong:
                return path
            reason = f"{', '.join(wrong)}: missing or changed since it was written"
        except (FormatError, OSError) as error:
            reason = str(error)
        warnings.warn(f"checkpoint {path} is passed over: {reason}", stacklevel=2)
    return None


def checkpoints(folder):
    """-> Paths of the folders named step-NNNNNN, the newest first."""
    found = [(int(m[1]), p) for p in Path(folder).iterdir() if (m := re.fullmatch(r"step-(\d{6,})", p.name)) and p.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def pointer(folder, name):
    """-> the Path that folder/`last` or folder/`best` names, or None."""
    file = Path(folder, name)
    return Path(folder, file.read_text().strip()) if file.is_file() else None


def read_state(path):
    """-> what trainer_state.json holds; FormatError when it is not this format."""
    document = read_json(Path(path, "trainer_state.json"))
    kinds = {"step": int, "state": dict, "sha256": dict}
    right = isinstance(document, dict) and document.get("format") == FORMAT
    if not right or not all(isinstance(document.get(k), t) for k, t in kinds.items()):
        raise FormatError(f"{path}/trainer_state.json: expected format {FORMAT!r} with step, state and sha256")
    return document


def versions():
    """-> what the bits of a run depend on besides its settings."""
    import platform

    import numpy

    from pyllm import __version__

    return {"pyllm": __version__, "numpy": numpy.__version__, "python": platform.python_version(), "kernels": K.active()}


def _sha256(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Log:
    """A .jsonl file: write(step=5, loss=2.1) appends a line and flushes it; a number that is not finite is written as null.

    Opened with the step a run goes on from, it first drops the lines beyond that step and a line cut short by a kill.
    """

    def __init__(self, path, step=0):
        path = Path(path)
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and parse_json(line, path)["step"] <= step]
            if len(kept) < len(lines):
                write_atomic(path, b"".join(kept))
        self.file = open(path, "a", encoding="utf-8")

    def write(self, **values):
        values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self.file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
        self.file.flush()

    def close(self):
        self.file.close()


def read_log(path):
    """-> the objects of a .jsonl file, in order."""
    with open(path, encoding="utf-8") as file:
        return [parse_json(line, path) for line in file]
