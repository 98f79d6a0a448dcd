"""pyllm info: what runs here, and what a model folder holds."""
import sys

EXTRAS = {"cli": ("tqdm",), "plot": ("matplotlib",), "text": ("regex",), "test": ("pytest", "hypothesis", "safetensors")}


def add_arguments(parser):
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model folder, a run folder or a GGUF file")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--explain", action="store_true", help="also load the weights and say what became of every tensor of the files")


def run(args):
    facts = model_facts(args.model) if args.model else machine_facts()
    report = load_report(args.model) if args.model and args.explain else []
    if args.json:
        import json

        print(json.dumps({**facts, "report": report} if report else facts, indent=2))
        return 0
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):<18} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    width = max((len(name) for name, *_ in report), default=0)
    for name, dtype, shape, kind in report:
        print(f"{name:<{width}}  {dtype:<4}  {' x '.join(map(str, shape)):<16}  {kind}")
    return 0


def load_report(path):
    """-> [(tensor of the files, dtype, shape, what became of it)]; FormatError names all that does not fit."""
    from pyllm.cli.generate import model_folder
    from pyllm.folders import load_files, read_files

    return load_files(read_files(model_folder(path)))[1]


def machine_facts():
    """-> version, kernels and threads of this process, and what is installed beside."""
    import os
    import platform
    from importlib.util import find_spec

    import numpy

    import pyllm
    from pyllm import env
    from pyllm import kernels as K

    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    limit, compiled = env.threads(), K.available() != ["reference"]
    why = [f"{cpus} CPUs for this process", *([f"PYLLM_THREADS={limit}"] if limit else [])]
    if not compiled:
        why = ["the NumPy reference"]
    elif K.num_threads() < min(cpus, limit or cpus):
        why.append(f"a cgroup quota of {K.num_threads()}")
    return {
        "version": pyllm.__version__, "python": platform.python_version(), "numpy": numpy.__version__, "platform": platform.platform(),
        "compiled": compiled, "isa": K.active(), "isa_available": K.available(), "isa_forced": env.isa(),
        "threads": K.num_threads(), "threads_why": ", ".join(why),
        "extras": [name for name, modules in EXTRAS.items() if all(find_spec(m) for m in modules)],
        "debug": env.debug(), "folder": os.path.dirname(os.path.abspath(pyllm.__file__)), "executable": sys.executable,
    }


def model_facts(path):
    """-> family, sizes and tokenizer of a model folder or a GGUF file; the weights are mapped, not read."""
    from pyllm.cli.generate import model_folder
    from pyllm.folders import build_for, read_files
    from pyllm.io.ggml import kind_of

    files = read_files(model_folder(path))
    model, tokenizer = build_for(files), files.tokenizer
    facts = {"path": str(files.path), "family": model.config.model_type, "architecture": model.architecture,
             "parameters": model.num_parameters(),
             "context": model.config.size("context"), "layers": model.config.size("layers"), "heads": model.config.size("heads"),
             "width": model.config.size("width"), "vocabulary": model.config.vocab_size, "tied_head": model.config.tie_word_embeddings,
             "tensors": len(files.tensors), "types": sorted({kind_of(t) for t in files.tensors.values()}),
             "bytes": sum(t.nbytes for t in files.tensors.values())}
    if tokenizer is not None:
        facts |= {"tokenizer": type(tokenizer).__name__, "tokens": tokenizer.vocab_size, "eos_id": tokenizer.eos_id}
    return facts
