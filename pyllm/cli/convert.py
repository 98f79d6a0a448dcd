"""pyllm convert: a model between a Hugging Face folder and a GGUF file, and between the types of its weights."""

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")


def add_arguments(parser):
    add = parser.add_argument
    add("source", metavar="SRC", help="a model folder, a run folder of pyllm, or a .gguf file")
    add("target", metavar="DST", help="a name that ends in .gguf, or of a folder; what is there is replaced when all is written")
    add("--type", choices=TYPES, help="of the weights; q types in .gguf alone (default: what they are, f32 for q types in a folder)")
    add("--skip", action="append", default=[], metavar="PATTERN", help="layers that stay floats, such as lm_head or *.mlp.*")


def run(args):
    from pyllm.cli.generate import model_folder
    from pyllm.errors import ConfigError
    from pyllm.folders import load_files, read_files
    from pyllm.nn import quantize

    into_file, quantised = args.target.endswith(".gguf"), args.type in TYPES[3:]
    if quantised and not into_file:
        raise ConfigError(f"convert: --type {args.type} into the folder {args.target}, which holds floats. Hint: a name that ends in .gguf")
    if args.skip and not quantised:
        raise ConfigError(f"convert: --skip {args.skip[0]} without a quantised --type; expected one of {', '.join(TYPES[3:])}")
    files = read_files(model_folder(args.source))
    model, _ = load_files(files, packed=into_file and args.type is None)
    if quantised:
        quantize(model, args.type, args.skip)
    write(model, files.tokenizer, args.target, args.type or float_type(files))
    return 0


def float_type(files):
    """-> f16 or bf16 where all matrices of the files are, else f32."""
    from pyllm.io.ggml import kind_of

    kinds = {kind_of(tensor) for tensor in files.tensors.values() if tensor.ndim == 2}
    return {("F16",): "f16", ("BF16",): "bf16"}.get(tuple(kinds), "f32")


def write(model, tokenizer, target, type):
    """Saves the model and says what was written."""
    from collections import Counter

    from pyllm.folders import DTYPES, save
    from pyllm.io import gguf
    from pyllm.io.ggml import kind_of
    from pyllm.io.safetensors import read_shards

    save(model, tokenizer, target, type if type in DTYPES else "f32")
    tensors = gguf.read(target)[1] if str(target).endswith(".gguf") else read_shards(target)
    kinds = Counter(kind_of(tensor) for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{target}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}; {size / 1e6:.1f} MB")
