"""pyllm constitution run: a model, principles and prompts -> a model that keeps to them; inspect: what was said on the way.

    revisions.jsonl     stage 1: every answer, critique and revision      revised/   the model fine-tuned on the last revisions (pyllm sft)
    comparisons.jsonl   stage 2: two answers, a probability each          aligned/   the same after DPO on the comparisons (pyllm dpo), or
    report.json         on held-out prompts: violations, evasiveness,                after PPO (pyllm ppo) against
                        a proxy of helpfulness, agreement of both orders  reward/    the preference model they taught (pyllm reward)

Each of these runs has the examples that it learned from beside its own files, as examples.jsonl.
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pyllm.cli.adapters import Peft
from pyllm.cli.config import key


@dataclass(frozen=True)
class Model:
    path: str = key("", "a model folder, a .gguf file, or a run folder", flags=("model",))
    precision: str = key("f32", "of the products' operands, in drawing and in learning", choices=("f32", "bf16"))


@dataclass(frozen=True)
class Data:
    path: str = key("", "prompts: a file of examples, or a folder of them; of other examples the prompts are taken", flags=("data",))
    columns: str = key("", "the names that the files have for keys, such as prompt=question")
    skip_bad_lines: bool = key(False, "count lines that cannot be read, and go on")
    prompts: int = key(64, "prompts to learn from", 1)
    held: int = key(32, "further prompts to measure by", 1)


@dataclass(frozen=True)
class Principles:
    path: str = key("", "the constitution: a .json file, or a folder of them", flags=("constitution",))
    rounds: int = key(2, "critiques and revisions of an answer", 1)
    shots: int = key(0, "of the constitution's examples that stand before a request", 0)
    tries: int = key(4, "draws of a revision, until one is sound: breaks no rule, evades nothing, takes up a word of the prompt", 1)
    rewrite: bool = key(False, "ask for a revision of the text alone, the request as the system's: for small chat models")
    critique_tokens: int = key(0, "of a critique; 0 = as max_tokens", 0)
    unsound: bool = key(False, "learn from revisions that are not sound too, as the paper does")
    checkers: bool = key(True, "rules decide a comparison before the model does")
    think: bool = key(False, "a chain of thought before each comparison")
    max_tokens: int = key(64, "of an answer, a critique, a revision", 1)
    temperature: float = key(1.0, "of what is drawn", 0.0)
    top_p: float = key(0.95, "of what is drawn", 0.0, 1.0)
    rows: int = key(16, "texts that are drawn side by side", 1)
    seed: int = key(0, "of everything that is drawn", 0)


@dataclass(frozen=True)
class Stage:
    """ALL: the learning rate that 0 stands for, of an adapter more, as pyllm.cli.adapters.rated has it."""

    epochs: float = key(1.0, "times that the examples are read", 0.0)
    batch: int = key(8, "examples of a step", 1)
    lr: float = key(0.0, "learning rate at its highest", 0.0)


@dataclass(frozen=True)
class Revised(Stage):
    ALL = 2e-5
    epochs: float = key(2.0, "times that the revisions are read", 0.0, flags=("sl-epochs",))
    batch: int = key(8, "revisions of a step", 1, flags=("sl-batch",))
    lr: float = key(0.0, "learning rate of the fine-tuning; 0 = 2e-5, of LoRA 2e-4", 0.0, flags=("sl-lr",))


@dataclass(frozen=True)
class Aligned(Stage):
    ALL = 5e-6
    method: str = key("dpo", "dpo: on the comparisons; ppo: against a preference model that they teach", choices=("dpo", "ppo"))
    epochs: float = key(1.0, "times that the comparisons (ppo: the prompts) are read; 0 = no second stage", 0.0, flags=("rl-epochs",))
    batch: int = key(8, "pairs of a step, or prompts of an iteration of ppo", 1, flags=("rl-batch",))
    lr: float = key(0.0, "learning rate of dpo or ppo; 0 = 5e-6, of LoRA 5e-5", 0.0, flags=("rl-lr",))
    beta: float = key(0.1, "of dpo: how much answers may move away from the revised model's, less for more", 0.0)
    kl_coef: float = key(0.05, "of ppo: penalty of the divergence from the revised model, per nat", 0.0)


@dataclass(frozen=True)
class Preference(Stage):
    ALL = 1e-4
    epochs: float = key(1.0, "times that the preference model of ppo reads the comparisons", 0.0, flags=("reward-epochs",))
    batch: int = key(8, "pairs of a step", 1, flags=("reward-batch",))
    lr: float = key(0.0, "its learning rate; 0 = 1e-4, of LoRA 1e-3", 0.0, flags=("reward-lr",))


SECTIONS = {"model": Model, "constitution": Principles, "data": Data, "revised": Revised, "aligned": Aligned, "reward": Preference,
            "peft": Peft}


def add_arguments(parser):
    from pyllm.cli.run import add_arguments

    actions = parser.add_subparsers(dest="action", metavar="run|inspect", required=True)
    add_arguments(actions.add_parser("run", help="both stages; --resume goes on in the middle of either"), SECTIONS)
    inspect = actions.add_parser("inspect", help="print what was said: critiques, revisions, comparisons")
    inspect.add_argument("run", metavar="RUN", help="the run folder")
    inspect.add_argument("--count", type=int, default=3, metavar="N", help="records of each kind (default %(default)s)")


def run(args):
    from pyllm.autograd import precision
    from pyllm.cli.run import settings
    from pyllm.errors import ConfigError

    if args.action == "inspect":
        return inspect(Path(args.run), args.count)
    config = settings("constitution", args, SECTIONS)
    if not config.constitution.path:
        raise ConfigError("constitution: no principles; expected --constitution FILE or FOLDER")
    with precision(config.model.precision):
        return constitution(config, Path(args.out), args.resume)


def constitution(config, out, resume=False):
    """Runs a Config of SECTIONS in the folder `out` -> exit code. Every stage goes on where its files end."""
    from pyllm.align.constitution import read_constitution
    from pyllm.align.constitutional import compare, preferences, revise, revisions
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError
    from pyllm.io.files import write_json, write_toml

    c, aligned = config.constitution, config.aligned
    check_adapter(config)
    if (out / "revisions.jsonl").is_file() and not resume:
        raise ConfigError(f"constitution: {out} holds a run already. Hint: --resume goes on with it; or choose another --out")
    principles = read_constitution(c.path)
    prompts, held = prompts_of(config.data)
    model, tokenizer = open_model(config.model.path)
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / "config.resolved.toml", config.table())
    print(f"principles {len(principles.revising)} to revise by, {len(principles.comparing)} to compare by, "
          f"{sum(p.checker is not None for p in principles.principles)} with a checker\nprompts    {len(prompts)} to learn from, "
          f"{len(held)} held out", flush=True)
    asks = {"rounds": c.rounds, "tries": c.tries, "rewrite": c.rewrite, "critique_tokens": c.critique_tokens or None}
    drawn = {"max_tokens": c.max_tokens, "temperature": c.temperature, "top_p": c.top_p, "seed": c.seed, "rows": c.rows, "shots": c.shots}

    print("\nstage 1    answers, critiques and revisions; then fine-tuning on the revisions", flush=True)
    records = kept(out / "revisions.jsonl", c.rows, len(prompts), "revise",
                   lambda start: revise(model, tokenizer, principles, prompts, start=start, **asks, **drawn))
    examples = [{"prompt": chat(tokenizer, e["prompt"]), "completion": said(tokenizer, e["completion"])}
                for e in revisions(records, c.unsound)]
    print(f"revisions  {len(examples)} of {len(records)} to learn from", flush=True)
    if code := trained("sft", config, config.model.path, out / "revised", examples, config.revised, epochs=config.revised.epochs,
                       sample_tokens=0):
        return code

    named = {"before": config.model.path, "revised": out / "revised"}
    comparisons = []
    if aligned.epochs:
        print(f"\nstage 2    two answers to each prompt, compared; then {aligned.method}", flush=True)
        learned, _ = open_model(out / "revised")
        comparisons = kept(out / "comparisons.jsonl", c.rows, len(prompts), "compare", lambda start: compare(
            learned, tokenizer, principles, prompts, judge=model, think=c.think, checkers=c.checkers, start=start, **drawn))
        pairs = [{"prompt": chat(tokenizer, p["prompt"]), **{k: said(tokenizer, p[k]) for k in ("chosen", "rejected")}}
                 for p in preferences(comparisons)]
        print(f"pairs      {len(pairs)} of {len(comparisons)} comparisons say which answer is better", flush=True)
        for verb, name, examples, stage, options in second_stage(config, tokenizer, pairs, prompts):
            if code := trained(verb, config, out / "revised", out / name, examples, stage, **options):
                return code
        named["aligned"] = out / "aligned"
    report = {name: measured(path, principles, held, c) for name, path in named.items()}
    report["comparisons"] = counted(comparisons)
    write_json(out / "report.json", report)
    print()
    shown(report)
    print(f"model      {[*named.values()][-1]}. Hint: pyllm constitution inspect {out}; pyllm chat {[*named.values()][-1]}")
    return 0


# ---- the pieces

def prompts_of(d):
    """-> texts to learn from, texts to measure by, none twice."""
    from pyllm.cli.sft import read
    from pyllm.errors import ConfigError, FormatError

    found = {}
    try:
        for example in read(d)["train"]:
            turns = example.get("prompt", example.get("messages", example.get("text")))
            if not isinstance(turns, str):
                turns = next((m["content"] for m in reversed(turns or []) if m["role"] == "user"), "")
            if turns.strip():
                found[turns.strip()] = True
            if len(found) == d.prompts + d.held:
                break
    except FormatError as error:
        raise ConfigError(f"data: {error}") from None
    if len(found) < 4:
        raise ConfigError(f"data: {len(found)} prompts; expected at least 4")
    texts = list(found)
    held = max(1, min(d.held, len(texts) * d.held // (d.prompts + d.held)))
    return texts[:-held], texts[-held:]


def chat(tokenizer, prompt):
    """-> a prompt as an example has it: a message where the tokenizer has a template, else text in the paper's form."""
    return [{"role": "user", "content": prompt}] if tokenizer.chat_template is not None else f"\n\nHuman: {prompt}\n\nAssistant:"


def said(tokenizer, text):
    return [{"role": "assistant", "content": text}] if tokenizer.chat_template is not None else f" {text}"


def kept(path, rows, total, what, begin):
    """-> the records of a .jsonl file, completed by begin(start), an iterator of those from `start` on."""
    from pyllm.io.files import parse_json, write_atomic
    from pyllm.progress import Progress

    lines = [line for line in (path.read_bytes().splitlines(keepends=True) if path.is_file() else []) if line.endswith(b"\n")]
    lines = lines if len(lines) == total else lines[: len(lines) // rows * rows]
    records = [parse_json(line, path) for line in lines]
    write_atomic(path, b"".join(lines))
    with open(path, "a", encoding="utf-8") as file, Progress(total, what, "prompt", len(records)) as bar:
        for record in begin(len(records)) if len(records) < total else ():
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            records.append(record)
            bar.update()
    return records


def check_adapter(config):
    """ConfigError for an adapter that does not fit the model, or that a stage cannot hand on to the next as weights."""
    from pyllm import peft
    from pyllm.cli.adapters import adapt
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError

    p = config.peft
    if p.method != "none":
        model, _ = open_model(config.model.path)
        adapt(model, p, config.constitution.seed)
        if not all(a.MERGES for a in peft.adapters(model)) or p.method == "adalora" and config.aligned.method == "ppo":
            raise ConfigError(f"constitution: peft.method={p.method!r}: a stage begins with the weights that the one before left; expected "
                              "an adapter that can be merged into them (for ppo not adalora either). Hint: --peft lora")


def second_stage(config, tokenizer, pairs, prompts):
    """-> (verb, folder, examples, its section, further settings) of each run that makes the aligned model of the revised one."""
    c, a = config.constitution, config.aligned
    if a.method == "dpo":
        return [("dpo", "aligned", pairs, a, {"epochs": a.epochs, "beta": a.beta, "sample_tokens": 0})]
    asks = [{"prompt": chat(tokenizer, prompt)} for prompt in prompts]
    steps = max(1, round(a.epochs * len(asks) / a.batch))
    return [("reward", "reward", pairs, config.reward, {"epochs": config.reward.epochs}),
            ("ppo", "aligned", asks, a, {"steps": steps, "kl_coef": a.kl_coef, "response_length": c.max_tokens,
                                         "temperature": c.temperature})]


def trained(verb, config, model, out, examples, stage, **options):
    """Trains on examples with another verb, whose settings but these are its defaults -> exit code."""
    from pyllm.cli import dpo, ppo, reward, sft
    from pyllm.cli.adapters import rated
    from pyllm.cli.config import resolve
    from pyllm.cli.merge import merge
    from pyllm.errors import ConfigError
    from pyllm.io.files import write_atomic

    if (out / "model/config.json").is_file() and any(out.glob("*.png")):
        return 0
    if len(examples) < 2:
        raise ConfigError(f"constitution: {len(examples)} examples for {out.name}; expected at least 2: revisions that are sound, or "
                          "comparisons that say which answer is better. Hint: more prompts, a higher temperature, --unsound")
    out.mkdir(exist_ok=True)
    path = out / "examples.jsonl"
    print(f"\n{verb:<10} {model} learns from {len(examples)} examples, {path}", flush=True)
    write_atomic(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in examples).encode())
    module = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}[verb]
    table = {"model": {"path": str(model)}, "data": {"path": str(path)}, "peft": asdict(config.peft),
             "train": {"batch": stage.batch, "lr": rated(stage, config.peft).lr, "seed": config.constitution.seed, **options}}
    if verb == "ppo":
        table["model"]["reward"], table["run"] = str(out.with_name("reward")), {"precision": config.model.precision}
    else:  # of few examples one is for validation all the same
        table["data"]["fraction"], table["train"]["precision"] = min(0.9, 1 - 1 / len(examples)), config.model.precision
    code = getattr(module, verb)(resolve((table, "constitution"), sections=module.SECTIONS), out, resume=True)
    if not code and verb != "reward" and config.peft.method != "none":  # the next stage begins with a model of its own
        merge(model, out, out / "model")
    return code


def measured(path, principles, held, c):
    """-> {"violation_rate", "interval": [low, high] (95 %), "violations": {principle: rate}, "evasive_rate", "helpfulness", "words"} of
    answers to held-out prompts."""
    from pyllm.align.constitution import evasive, helpful
    from pyllm.align.constitutional import answers
    from pyllm.cli.sft import open_model
    from pyllm.evaluate.metrics import proportion

    model, tokenizer = open_model(path)
    texts = answers(model, tokenizer, [[("user", prompt)] for prompt in held], c.seed + 1, c.rows, max_tokens=c.max_tokens,
                    temperature=c.temperature, top_p=c.top_p)
    broken = [principles.violations(text) for text in texts]
    checked = [p.name for p in principles.principles if p.checker]
    n, rate = len(held), proportion("violations", list(map(bool, broken)))
    return {**({"violation_rate": rate.value, "interval": [rate.low, rate.high]} if checked else {"violation_rate": None}),
            "violations": {name: sum(name in b for b in broken) / n for name in checked}, "evasive_rate": sum(map(evasive, texts)) / n,
            "helpfulness": sum(helpful(p, t) for p, t in zip(held, texts)) / n, "words": sum(len(t.split()) for t in texts) / n,
            "samples": [{"prompt": p, "text": t} for p, t in list(zip(held, texts))[:8]]}


def counted(comparisons):
    """-> {"comparisons", "by_checker", "undecided", "agreement"}."""
    from pyllm.align.constitutional import agreement_rate

    return {"comparisons": len(comparisons), "by_checker": sum(r["probability"] in (0.0, 1.0) for r in comparisons),
            "undecided": sum(r["probability"] == 0.5 for r in comparisons), "agreement": agreement_rate(comparisons)}


def shown(report):
    """Prints a report as a table."""
    print(f"{'':12}break a rule (95 %)    evasive  takes up the prompt  words")
    for name in ("before", "revised", "aligned"):
        if name in report:
            r = report[name]
            rate = "-"
            if r["violation_rate"] is not None:
                rate = "{:.3f} ({:.2f} to {:.2f})".format(r["violation_rate"], *r.get("interval", (0, 1)))
            print(f"{name:12}{rate:<20}  {r['evasive_rate']:7.3f}  {r['helpfulness']:19.3f}  {r['words']:5.1f}")
    c = report["comparisons"]
    if c["comparisons"]:
        agreement = "" if c["agreement"] is None else f"; both orders agree in {100 * c['agreement']:.0f} % of the model's own"
        print(f"comparisons {c['comparisons']}, {c['by_checker']} by a checker, {c['undecided']} undecided{agreement}", flush=True)


def inspect(out, count):
    """Prints `count` records of each stage and the report -> exit code."""
    from pyllm.io.files import read_json
    from pyllm.training import read_log

    if not (out / "revisions.jsonl").is_file():
        raise FileNotFoundError(f"{out}: no run of pyllm constitution: there is no revisions.jsonl")
    for r in read_log(out / "revisions.jsonl")[:count]:
        print(f"prompt      {r['prompt']}\n  answer    {r['response']}{marked(r['violations'])}")
        for turn in r["rounds"]:
            print(f"  by        {turn['principle']}\n  critique  {turn['critique']}\n  revision  {turn['revision']}"
                  f"{marked(turn['violations'])}{'' if turn['sound'] else '  [not sound]'}")
            for draft in turn["drafts"]:
                print(f"    drawn before and not sound: {draft}")
    if (out / "comparisons.jsonl").is_file():
        for r in read_log(out / "comparisons.jsonl")[:count]:
            places = f" ({r['first']:.2f} in place A, {r['second']:.2f} in place B)" if "first" in r else ""
            places += "" if r.get("agree", True) else ", which is left out"
            print(f"prompt      {r['prompt']}\n  by        {r['principle']}: the first is better with probability {r['probability']:.2f}"
                  f"{places}\n  first     {r['a']}{marked(r['violations'][0])}\n  second    {r['b']}{marked(r['violations'][1])}")
    if (out / "report.json").is_file():
        shown(read_json(out / "report.json"))
    return 0


def marked(violations):
    return f"  [breaks {', '.join(violations)}]" if violations else ""
