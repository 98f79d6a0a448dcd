"""pyllm tune: searches the settings of a verb that trains. Each trial is a run of it in a folder of its own; a bad one is given up early.

    [search]                                            beside the sections of the verb's own configuration
    "train.lr" = {low = 1e-5, high = 1e-3, log = true}    a range: of whole numbers where low is one
    "train.batch" = [8, 16, 32]                           one of these

    study.log   every trial, see optuna's JournalStorage     best.toml   the settings of the best trial
    trials/     the runs                                     tune.png    scores by trial and by setting
"""
import argparse
import re
import shutil
from itertools import chain, repeat
from pathlib import Path

from pyllm import plot


def add_arguments(parser):
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, __doc__.partition("\n\n")[2]
    parser.add_argument("config", help="a TOML file: the verb's sections and [search]")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the search")
    parser.add_argument("--verb", choices=("sft", "pretrain"), default="sft", help="what a trial runs (default %(default)s)")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials in all (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the settings that are tried (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out, as one that never stopped")
    parser.add_argument("--keep", action="store_true", help="keep the run of every trial, not of the best alone")


def run(args):
    from pyllm.cli.config import read_toml
    from pyllm.errors import ConfigError

    if args.trials < 1:
        raise ConfigError(f"tune: --trials {args.trials}; expected at least 1")
    table, places = read_toml(args.config)
    ranges = {name: _checked(name, value) for name, value in table.pop("search", {}).items()}
    if not ranges:
        raise ConfigError(f"{args.config}: no [search]; expected for example \"train.lr\" = {{low = 1e-5, high = 1e-3, log = true}}")
    train, sections = _verb(args.verb)
    configure = lambda settings: _configured(sections, table, places, settings)
    for end in (0, -1):  # an unknown key or a value out of range is told before the first trial
        configure({name: [*value.values()][:2][end] if isinstance(value, dict) else value[end] for name, value in ranges.items()})
    return tune(configure, train, ranges, Path(args.out), args.trials, args.seed, args.resume, args.keep)


def tune(configure, train, ranges, out, trials, seed=0, resume=False, keep=False):
    """Runs the search -> exit code. configure: {key: value} -> Config; train: (Config, folder, watch=...) -> exit code; ranges: see above.

    What the n-th trial tries depends on the seed, n and the trials before, so that a search that stopped goes on as one that did not.
    """
    import numpy as np

    from pyllm.errors import ConfigError
    from pyllm.io.files import write_toml

    optuna = _optuna()
    states = optuna.trial.TrialState
    if (out / "study.log").exists() and not resume:
        raise ConfigError(f"tune: {out} holds a search already. Hint: --resume goes on with it; or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / "study.log")))
    study = optuna.create_study(storage=storage, study_name="tune", load_if_exists=True, pruner=optuna.pruners.MedianPruner(4))
    for trial in study.get_trials(states=(states.RUNNING,)):  # cut off by whatever ended the search
        study.tell(trial.number, state=states.FAIL)
    while (done := len(_finished(study, states))) < trials:
        mixed = int(np.random.SeedSequence([seed, done]).generate_state(1)[0])  # neighbours would draw much the same first
        study.sampler = optuna.samplers.TPESampler(seed=mixed, n_startup_trials=min(10, max(3, trials // 4)))
        trial = study.ask()
        settings = {name: _suggested(trial, name, value) for name, value in ranges.items()}
        folder = out / "trials" / f"{done:03d}"
        trial.set_user_attr("folder", folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\ntrial {done + 1} of {trials}: {_words(settings)}", flush=True)
        scores, given_up = [], False

        def watch(step, score):
            nonlocal given_up
            scores.append(score)
            trial.report(min(scores), step)
            given_up = trial.should_prune()
            return given_up

        try:
            code = train(configure(settings), folder, watch=watch)
        except FloatingPointError as error:  # diverged: these settings are bad, others may not be
            print(f"given up: {error}")
            code, given_up = 0, True
        if code:
            study.tell(trial, state=states.FAIL)
            print(f"stopped; --resume goes on with trial {done + 1}")
            return code
        study.tell(trial, *((None, states.PRUNED) if given_up else (min(scores),)))
        best = _finished(study, states)[0]
        if not keep:
            for other in (out / "trials").iterdir():
                if other.name != best.user_attrs["folder"]:
                    shutil.rmtree(other)
        write_toml(out / "best.toml", configure(best.params).table())
    _report(_finished(study, states), ranges, out)
    return 0


# ---- the pieces

def _optuna():
    from pyllm.errors import ConfigError

    try:
        import optuna
    except ImportError:
        raise ConfigError("tune: optuna is not installed. Hint: pip install optuna (the extra `tune`)") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _checked(name, value):
    """A value of [search] -> itself, a range with its `log`; ConfigError says what it has to be."""
    from pyllm.errors import ConfigError

    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    if re.fullmatch(r"[\w-]+\.[\w-]+", name):
        if isinstance(value, list) and len(value) > 1 and all(isinstance(x, (int, float, str, bool)) for x in value):
            return value
        if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            low, high, log = value["low"], value["high"], value.get("log", False)
            if number(low) and number(high) and low < high and isinstance(log, bool) and (low > 0 or not log):
                return {"low": low, "high": high, "log": log}
    raise ConfigError(f"search: {name!r} = {value!r}; expected \"SECTION.KEY\" = [one, another, ...] or "
                      "{low = 1e-5, high = 1e-3, log = true} with low < high, low above 0 where log is true")


def _suggested(trial, name, value):
    if isinstance(value, list):
        return trial.suggest_categorical(name, value)
    whole = all(isinstance(value[end], int) for end in ("low", "high"))
    return (trial.suggest_int if whole else trial.suggest_float)(name, value["low"], value["high"], log=value["log"])


def _verb(name):
    """-> (the function of a verb that trains, its sections)."""
    from pyllm.cli import config, pretrain, sft

    show = chain([True], repeat(False))  # the example of the data at the first trial
    trial = lambda settings, folder, watch: sft.sft(settings, folder, watch=watch, show=next(show))
    return {"sft": (trial, sft.SECTIONS), "pretrain": (pretrain.pretrain, config.SECTIONS)}[name]


def _configured(sections, table, places, settings):
    """-> the Config of the verb: the file's table, and over it the settings of a trial."""
    from pyllm.cli.config import resolve

    over = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        over.setdefault(section, {})[key] = value
    return resolve((table, places), (over, "search"), sections=sections)


def _finished(study, states):
    """-> trials that ran to their end, the best first; behind them those given up, which have no score to be ranked by."""
    found = study.get_trials(states=(states.COMPLETE, states.PRUNED))
    return sorted(found, key=lambda t: (not _ended(t), _score(t), t.number))


def _ended(trial):
    """-> whether a finished trial ran to its end, rather than being given up."""
    return trial.state.name == "COMPLETE"


def _score(trial):
    """-> the best score that a trial reported, infinity for none."""
    return min(trial.intermediate_values.values(), default=float("inf"))


def _words(settings):
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items())


def _report(trials, ranges, out):
    """Prints the table, the best first, and draws the chart where matplotlib is installed."""
    sign = -1 if any(_score(t) < 0 for t in trials) else 1  # a run's score is a loss, or minus a metric
    what = "score, the higher the better" if sign < 0 else "loss"
    print(f"\n{'trial':>5}  {what.partition(',')[0]:>10}  settings")
    for t in trials:
        note = "" if _ended(t) else "  given up"
        print(f"{t.user_attrs['folder']:>5}  {sign * _score(t):>10.4f}  {_words(t.params)}{note}")
    print(f"best       trial {trials[0].user_attrs['folder']}: {out / 'best.toml'}")
    if (pyplot := plot.pyplot("tune.png")) is None:
        return
    figure, axes = pyplot.subplots(1, 1 + len(ranges), figsize=(4 * (1 + len(ranges)), 3.5), layout="constrained", sharey=True)
    for kept, marker in ((True, "o"), (False, "x")):
        shown = [t for t in trials if _ended(t) == kept and t.intermediate_values]
        for axis, name in zip(axes, (None, *ranges)):
            values = [int(t.user_attrs["folder"]) if name is None else t.params[name] for t in shown]
            axis.plot([str(v) if isinstance(ranges.get(name), list) else v for v in values], [sign * _score(t) for t in shown], marker,
                      label="ended" if kept else "given up")
            axis.set_xlabel(name or "trial")
            if isinstance(ranges.get(name), dict) and ranges[name]["log"]:
                axis.set_xscale("log")
            axis.grid(alpha=0.3)
    axes[0].set_ylabel(what)
    axes[0].legend()
    figure.savefig(out / "tune.png", dpi=120)
    pyplot.close(figure)
