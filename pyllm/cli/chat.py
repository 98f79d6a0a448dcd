"""pyllm chat: a conversation with a model, answers as they come; lines of a pipe are messages too."""
import sys

from pyllm.cli.generate import ADAPTER, NUMBERS, opened

GIVEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
HELP = '''/reset          forget the conversation (the system text stays)
/system TEXT    a new system text, and a new conversation; without TEXT: none
/help           this
/quit           the end, like the end of the input (Ctrl-D)
"""             before a message of several lines, and after it
Ctrl-C ends an answer. A message that begins with / begins with a blank.'''


def add_arguments(parser):
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, a run folder of pyllm, or a .gguf file")
    add("--adapter", **ADAPTER)
    add("--system", metavar="TEXT", help="how the model should answer; default: what its chat template says")
    add("--template", metavar="NAME", help="a built-in chat template (chatml, llama3, gemma) or a file with Jinja text, in place of the "
        "model's own")
    add("--max-tokens", "--max_tokens", type=int, default=512, metavar="N", help="tokens of an answer at most (default %(default)s)")
    add("--temp", "--temperature", dest="temperature", type=float, metavar="T",
        help="0 takes the likeliest token (default: as generation_config.json says, else 0.7 and top-p 0.9)")
    for name in ("top-k", "top-p", "min-p", "repetition-penalty"):
        kind, unit, words = NUMBERS[name]
        add(f"--{name}", f"--{name.replace('-', '_')}", type=kind, metavar=unit, help=words)
    add("--packed", action="store_true", help="keep weights that a file holds as BF16, Q8_0, Q4_0 or Q4_1 as they are: a fraction of the "
        "memory, more tokens a second, and what goes into them rounded to the same precision")
    add("--seed", type=int, default=0, metavar="S", help="the same seed and messages give the same answers (default %(default)s)")


def run(args):
    from pyllm.errors import ConfigError
    from pyllm.text.chat import BUILT_IN

    model, tokenizer = opened(args.model, args.adapter, args.packed)
    if args.template is not None:
        tokenizer.chat_template = template(args.template)
    if tokenizer.chat_template is None:
        raise ConfigError(f"{args.model} has no chat template: it may never have seen a chat. Hint: --template NAME with one of "
                          f"{', '.join(BUILT_IN)}, or pyllm generate, which goes on with any text")
    sampling = {"max_tokens": args.max_tokens, **{name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None}}
    talk = Talk(model, tokenizer, args.system, args.seed, **sampling)
    screen = sys.stdin.isatty() and sys.stdout.isatty()
    if screen:
        weights = sum(w.size for w in (*model.parameters(), *(packed for _, packed in model.named_packed())))
        print(f"{args.model}: {model.config.model_type}, {weights / 1e6:.0f} M parameters, context {talk.context} tokens. /help tells the "
              "commands.")
    for line in _lines(screen):
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            talk.reset(talk.system)
        elif command == "/system":
            talk.reset(rest.strip() or None)
        elif command.startswith("/"):
            print(f"pyllm chat: no command {command}; there are /reset, /system TEXT, /help, /quit. A message that begins with / begins "
                  "with a blank", file=sys.stderr)
        elif line.strip():
            _answer(talk, line.strip() if line.startswith(" /") else line)
    return 0


class Talk:
    """A conversation. say(text) streams the answer and keeps both; what no longer fits into the context is forgotten, oldest first.

    sampling: of pyllm.stream. session: keeps what was read, so that a turn reads its own tokens alone.
    """

    def __init__(self, model, tokenizer, system=None, seed=0, **sampling):
        from pyllm.generation import Session
        from pyllm.models.base import CausalLM
        from pyllm.text.chat import turn_end

        if model.generation is None and "temperature" not in sampling:
            sampling = {"temperature": 0.7, "top_p": 0.9, **sampling}
        self.model, self.tokenizer, self.seed, self.sampling = model, tokenizer, seed, sampling
        self.session = Session(model) if isinstance(model, CausalLM) else None
        self.context, self.forgotten, self.turns = model.config.size("context"), 0, 0
        self.reset(system)
        end = turn_end(tokenizer)
        self.stop = () if end is None else (end,)

    def reset(self, system):
        self.system, self.messages = system, []

    def say(self, text):
        """text: the user's message -> iterator of pieces of the answer. ValueError: the message alone is too long for the context."""
        from pyllm.generation import stream

        messages = [*self.messages, {"role": "user", "content": text}]
        ids, self.forgotten = self._ids(messages), 0
        room = min(self.sampling["max_tokens"], self.context // 4)
        while len(ids) + room > self.context and len(messages) > 1:
            messages = messages[2:]
            self.forgotten += 2
            ids = self._ids(messages)
        if len(ids) >= self.context:
            raise ValueError(f"chat: the message makes {len(ids)} tokens, the model's context is {self.context}")
        pieces = stream(self.model, self.tokenizer, ids, stop=self.stop, seed=self.seed + self.turns,
                        session=self.session, **self.sampling)
        return self._heard(messages, pieces)

    def _heard(self, messages, pieces):
        answer = []
        try:
            for piece in pieces:
                answer.append(piece)
                yield piece
        finally:  # an answer that is broken off is part of the conversation too
            self.turns += 1
            self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def _ids(self, messages):
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.tokenizer.chat([*system, *messages])


def _answer(talk, text):
    """Prints the answer as it comes; on a terminal a message that is too long ends nothing."""
    try:
        pieces = talk.say(text)
    except ValueError as error:
        if not sys.stdin.isatty():
            raise
        print(f"pyllm chat: {error}", file=sys.stderr)
        return
    if talk.forgotten:
        print(f"pyllm chat: the context is full: the {talk.forgotten} oldest messages are forgotten", file=sys.stderr)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
    print(flush=True)


def _lines(screen):
    """Yields messages and commands: a line each, or the lines between two marks of three quotes."""
    if screen:
        import readline  # noqa: F401 (input() then has a history and editing)
    while True:
        try:
            line = _line(screen, "> ")
            if line is not None and line.startswith('"""'):
                lines = [line[3:]]
                while not lines[-1].endswith('"""') and (more := _line(screen, ". ")) is not None:
                    lines.append(more)
                line = "\n".join(lines).removesuffix('"""').strip("\n")
                line = f" {line}" if line.startswith("/") else line
        except KeyboardInterrupt:
            print()
            continue
        if line is None:
            return
        yield line


def _line(screen, prompt):
    """-> a line without its end, or None at the end of the input."""
    if not screen:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def template(name):
    """-> the name of a built-in template, or the Jinja text of a file."""
    from pathlib import Path

    from pyllm.errors import ConfigError
    from pyllm.text.chat import BUILT_IN

    if name in BUILT_IN:
        return name
    if not Path(name).is_file():
        raise ConfigError(f"chat template {name}: expected one of {', '.join(BUILT_IN)}, or a file with Jinja text")
    return Path(name).read_text(encoding="utf-8")
