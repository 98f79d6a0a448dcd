"""The plan of the library, as tests: who may import whom, sizes, what every file keeps to."""
import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, CSRC = ROOT / "pyllm", ROOT / "csrc"
PYTHON = sorted(p for p in PACKAGE.rglob("*.py*") if p.suffix in (".py", ".pyx"))
CPP = sorted(p for p in CSRC.rglob("*") if p.suffix in (".cpp", ".h"))
NATIVE = sorted(p for p in (ROOT / "tests/native").iterdir() if p.is_file())
SCRIPTS = [p for folder in ("tests", "benchmarks", "examples") for p in sorted((ROOT / folder).rglob("*.py"))]
CODE = PYTHON + CPP + NATIVE + SCRIPTS + [ROOT / "setup.py"]

# A part imports only from itself and from lower layers.
LAYERS = [
    {"__init__", "errors", "env", "progress", "plot", "extension"},
    {"kernels", "io"},
    {"measure"},
    {"autograd", "text", "data"},
    {"nn"},
    {"models"},
    {"gguf"},
    {"folders", "embedding", "objectives", "generation", "peft"},
    {"training", "evaluate"},
    {"align"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
NUMPY_ONLY = {"io", "text", "data"}  # usable without the kernels: they import NumPy, layer 0 and io
# The extras, one or more a user-facing need; imported inside functions alone.
OPTIONAL = {"tqdm", "matplotlib", "regex", "jinja2", "huggingface_hub", "sacrebleu", "optuna"}


def name(path):
    return str(path.relative_to(ROOT))


def part_of(path):
    """pyllm/nn/cache.py -> nn, pyllm/env.py -> env."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def modules(path):
    """-> (imported module as written in full, whether at the top level of the file) of every import in the file."""
    tree, found = ast.parse(path.read_text()), []
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{base}.{alias.name}" if base == "pyllm" else base, node in tree.body) for alias in node.names]
    return found


def parts_imported(path):
    for module, _ in modules(path):
        head, _, rest = module.partition(".")
        if head == "pyllm":
            part = rest.split(".")[0]
            yield part if part in LEVEL else "__init__"


SOURCES = [p for p in PYTHON if p.suffix == ".py"]


def test_every_part_has_a_layer():
    unknown = {part_of(p) for p in SOURCES} - LEVEL.keys()
    assert not unknown, f"give {unknown} a place in LAYERS (and in DESIGN.md)"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_come_from_lower_layers(path):
    here = part_of(path)
    wrong = {p for p in parts_imported(path) if p != here and LEVEL[p] >= LEVEL[here] and p != "__init__"}
    assert not wrong, f"{name(path)} (layer {LEVEL[here]}) imports {sorted(wrong)}"
    if here in NUMPY_ONLY:
        assert set(parts_imported(path)) <= LAYERS[0] | {here, "io"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_numpy_is_the_only_hard_dependency(path):
    for module, top in modules(path):
        head = module.split(".")[0]
        if head not in {*sys.stdlib_module_names, "pyllm", "numpy"}:
            assert head in OPTIONAL and not top, f"{name(path)} imports {module}"


def test_modules_are_imported_by_name_for_public_names_alone():
    """So that the layers above cannot be passed by a string."""
    users = {p for p in SOURCES if re.search(r"import_module\(|__import__\(", p.read_text())}
    assert not [name(p) for p in users if p.name not in ("__init__.py", "extension.py")]
    packages = [p for p in users if p.name == "__init__.py" and p.parent != PACKAGE]
    assert not [name(p) for p in packages if 'import_module(f"{__name__}.' not in p.read_text()]


def test_public_names_lead_somewhere():
    import pyllm

    for public, target in pyllm._PUBLIC.items():
        module, _, attribute = target.partition(":")
        stem = ROOT.joinpath(*module.split("."))
        file = next(p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file())
        assert not attribute or re.search(rf"\b{attribute}\b", file.read_text()), f"pyllm.{public}: {target}"


def test_numpy_alone_in_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.match(r"[\w-]+", d).group() for d in project["dependencies"]] == ["numpy"]
    extras = project["optional-dependencies"]
    user_facing = ("cli", "plot", "text", "chat", "hub", "eval", "tune")
    assert {re.match(r"[\w-]+", d).group() for extra in user_facing for d in extras[extra]} == OPTIONAL


def test_only_env_reads_the_environment():
    readers = {name(p) for p in PYTHON if re.search(r"\bos\.(environ|getenv|putenv)|\bfrom os import.*\b(environ|getenv)", p.read_text())}
    assert readers == {"pyllm/env.py"}
    assert not [name(p) for p in CPP if re.search(r"\b(secure_)?getenv\b", p.read_text())]


def test_only_parallel_has_openmp():
    users = {name(p) for p in CPP if re.search(r"#\s*pragma\s+omp|_Pragma\(\s*\"omp|\bomp_\w+\s*\(|<omp\.h>", p.read_text())}
    assert users == {"csrc/parallel.cpp"}


def test_no_pickle():
    for path in PYTHON:
        text = path.read_text()
        assert not re.search(r"^\s*(import|from)\s+(pickle|cPickle|dill|shelve|marshal)\b", text, re.M), name(path)
        assert not re.search(r"allow_pickle\s*=\s*True", text), name(path)


def test_budgets():
    """Raise one in DESIGN.md with a reason, never by squeezing lines."""
    lines = {p: p.read_text().splitlines() for p in CODE}
    assert not [f"{name(p)}: {len(text)} lines" for p, text in lines.items() if len(text) > 600]
    assert not [f"{name(p)}:{i}: {len(s)} columns" for p, text in lines.items() for i, s in enumerate(text, 1) if len(s) > 140]
    assert sum(len(lines[p]) for p in PYTHON) <= 28_500
    assert sum(len(lines[p]) for p in CPP) <= 6_000


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is_and_has_no_stubs(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{name(path)} has no docstring"
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        raises = [s for s in ast.walk(node) if isinstance(s, ast.Raise) and s.exc and "NotImplementedError" in ast.unparse(s.exc)]
        # An abstract method is documented and does nothing but raise; anything else that raises it is unfinished work.
        abstract = body == raises and ast.get_docstring(node)
        assert abstract or not raises, f"{name(path)}:{node.lineno} {node.name}"


# ---- one exported symbol per ISA ----------------------------------------------------------------------------------------


def built_objects():
    """{source: object} of an in-place build that is newer than all sources; {} where there is none."""
    newest = max(p.stat().st_mtime for p in CPP)
    found = {p.stem: p for p in (ROOT / "build").glob("temp*/csrc/isa/*.o") if p.stat().st_mtime >= newest}
    return found if len(found) == len(list(CSRC.glob("isa/*.cpp"))) else {}


@pytest.fixture(scope="module")
def isa_objects(tmp_path_factory):
    if not shutil.which("g++") or not shutil.which("nm"):
        pytest.skip("needs g++ and nm")
    if built := built_objects():
        return built
    folder, running = tmp_path_factory.mktemp("isa"), {}
    for source in sorted(CSRC.glob("isa/*.cpp")):
        command = ["g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{CSRC}", f"-I{sysconfig.get_paths()['include']}",
                   "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        running[source.stem] = subprocess.Popen(command)
    assert not any(process.wait() for process in running.values())
    return {stem: folder / f"{stem}.o" for stem in running}


@pytest.mark.slow  # compiles every table: half a minute
def test_one_exported_symbol_per_isa(isa_objects):
    """A second one could be the copy of a library function that the linker keeps for every CPU, and older CPUs crash in it."""
    for stem, file in isa_objects.items():
        run = subprocess.run(["nm", "-C", "--defined-only", "--extern-only", file], capture_output=True, text=True, check=True)
        symbols = [line.split(maxsplit=2)[2] for line in run.stdout.splitlines()]
        assert symbols == [f"table_{stem}()"], stem


# ---- what an import costs and leaves behind -------------------------------------------------------------------------


def python(code, **env):
    """Runs code in a fresh interpreter -> the JSON it prints."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**os.environ, **env}, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_import_is_light():
    """<= 40 modules and <= 30 ms over NumPy, of CPU time, best of five; the core of a script (tensors, models) takes little more."""
    code = """
import json, sys, time
import numpy
before, began = set(sys.modules), time.process_time()
import pyllm
first = [time.process_time() - began, len(set(sys.modules) - before)]
pyllm.Tensor, pyllm.ops, pyllm.nn, pyllm.models, pyllm.kernels
print(json.dumps([*first, time.process_time() - began, sorted(set(sys.modules) - before)]))
"""
    runs = [python(code) for _ in range(5)]
    assert runs[0][1] <= 40 and len(runs[0][3]) <= 60, runs[0][3]
    assert not set(runs[0][3]) & {"argparse", "tomllib", "difflib", "multiprocessing", "urllib.request", "matplotlib", "tqdm"}
    limit = 0.030 if not os.environ.get("CI") else 0.1
    assert min(r[0] for r in runs) <= limit
    assert min(r[2] for r in runs) <= 3 * limit


@pytest.mark.parametrize("threads", ["1", "2"])
def test_denormals_survive(threads):
    """The control word of the vector unit is as it was, after the import and after kernels, in this thread and in the workers'."""
    code = """
import json
import numpy as np
tiny = np.full(64, 1e-40, np.float32)
half = np.float32(0.5)
expected = (tiny * half).tolist()
from pyllm import kernels as K
results = [(tiny * half).tolist()]
K.matmul(np.ones((256, 256), np.float32), np.ones((256, 256), np.float32))
results.append((tiny * half).tolist())
results.append(K.add(np.full(1 << 20, 1e-40, np.float32), np.zeros(1 << 20, np.float32))[:: 1 << 14].tolist())
print(json.dumps([expected[0] > 0, all(r == expected for r in results[:2]), [float(np.float32(1e-40))] * 64 == results[2]]))
"""
    assert python(code, PYLLM_THREADS=threads) == [True, True, True]
