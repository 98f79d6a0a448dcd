"""pyllm tokenize: train a tokenizer, encode, decode, look at the tokens."""
import sys

KINDS = {"bpe": "ByteLevelBPE", "sentencepiece": "SentencePieceBPE", "unigram": "Unigram", "wordpiece": "WordPiece",
         "chars": "CharTokenizer"}
COLOURS = (44, 42, 45, 46, 41, 43)


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="make a tokenizer from text")
    train.add_argument("--data", required=True, metavar="PATH", help="a .txt or .jsonl file, or a folder of them")
    train.add_argument("--vocab-size", "--vocab_size", type=int, default=8192, metavar="N",
                       help="tokens at most, special ones included (default %(default)s)")
    train.add_argument("--kind", choices=tuple(KINDS), default="bpe", help="byte-level BPE (default), SentencePiece's BPE, Unigram, "
                       "WordPiece, or characters as tokens")
    train.add_argument("--out", required=True, metavar="DIR", help="folder for tokenizer.json")
    for name, line in (("encode", "text -> ids"), ("decode", "ids -> the exact text"), ("show", "each token apart, with counts")):
        action = actions.add_parser(name, help=line)
        action.add_argument("--tokenizer", required=True, metavar="DIR", help="a folder with tokenizer.json, or that file")
        action.add_argument("--text", metavar="TEXT", help="instead of standard input")


def run(args):
    if args.action == "train":
        return train(args)
    from pyllm.text import read_tokenizer

    tokenizer = read_tokenizer(args.tokenizer)
    text = sys.stdin.read() if args.text is None else args.text
    return {"encode": encode, "decode": decode, "show": show}[args.action](tokenizer, text)


def train(args):
    """Makes the tokenizer and says what it does to the text it was made from."""
    from pyllm.data.corpus import read_documents
    from pyllm.errors import ConfigError, FormatError
    from pyllm import text

    try:
        documents = read_documents(args.data)
        kind = getattr(text, KINDS[args.kind])
        tokenizer = kind.train(documents) if args.kind == "chars" else kind.train(documents, args.vocab_size)
        sample = next(iter(read_documents(args.data)))[:100_000]
    except FormatError as error:  # of the data, not of a model
        raise ConfigError(str(error)) from None
    tokenizer.save(args.out)
    print(f"{args.out}: {tokenizer.vocab_size} tokens; {len(sample) / max(1, len(tokenizer.encode(sample))):.2f} characters a token "
          "on the beginning of the text")
    return 0


def encode(tokenizer, text):
    """Prints the ids of a text, blanks between them."""
    print(" ".join(map(str, tokenizer.encode(text))))
    return 0


def decode(tokenizer, text):
    """Writes the bytes of ids, no line end added."""
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"decode: expected whole numbers between blanks or commas: {error}") from None
    sys.stdout.buffer.write(tokenizer.decode_bytes(ids))
    return 0


def show(tokenizer, text):
    """Prints the tokens in colours on a terminal, between bars otherwise, and counts."""
    ids = tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(i).decode("utf-8", "backslashreplace") for i in ids]
    if sys.stdout.isatty():
        print("".join(f"\x1b[{COLOURS[i % len(COLOURS)]};97m{piece}\x1b[0m" for i, piece in enumerate(pieces)))
    else:
        print("|".join(piece.replace("\n", "\\n") for piece in pieces))
    print(f"{len(ids)} tokens, {len(set(ids))} of them different, {len(text)} characters, "
          f"{len(text) / max(1, len(ids)):.2f} characters a token")
    return 0
