"""The process around the kernels: forks, refused threads and memory, variables, threads of Python, determinism, missing builds."""
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pyllm import kernels as K
from pyllm import objectives, training
from pyllm.autograd import no_grad
from pyllm.data.batch import Batch
from pyllm.folders import build
from pyllm.nn import Cache

ROOT = Path(__file__).resolve().parents[1]
COMPILED = pytest.mark.skipif(K.available() == ["reference"], reason="the kernels are not compiled")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
MODEL = dict(model_type="gpt2", vocab_size=97, n_positions=32, n_embd=48, n_layer=2, n_head=3, resid_pdrop=0.1, embd_pdrop=0.1)


def python(code, *, cwd=ROOT, before=(), **env):
    """Runs code in a fresh interpreter with the variables of env (None: unset) -> CompletedProcess."""
    variables = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
    return subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd=cwd, timeout=120)


def printed(run):
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def batches(count, rows=8, length=32):
    draw = np.random.default_rng(5)
    return [Batch(*draw.integers(0, 97, (2, rows, length)).astype(np.int32)) for _ in range(count)]


def trained(steps=2):
    """-> every weight after a small training run with dropout, accumulation and clipping, as bytes."""
    model = build(MODEL, seed=1)
    optimizer = training.AdamW(model)
    for _ in training.train(model, objectives.clm, iter(batches(2 * steps)), optimizer, steps=steps, lr=1e-2, accumulate=2, seed=3):
        pass
    return {name: a.tobytes() for name, a in model.state().items()}


def product(n=300):
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((n, n), np.float32) for _ in range(2))
    return K.matmul(a, b)


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = K.num_threads()
    yield K.set_num_threads
    K.set_num_threads(before)


@COMPILED
def test_a_training_run_has_the_same_bits_on_any_number_of_threads(threads):
    runs = []
    for n in (1, 2, 3, 4, 8):
        threads(n)
        assert K.num_threads() in (n, 1)
        runs.append(trained())
    assert all(run == runs[0] for run in runs[1:])
    assert trained() == runs[0]


@COMPILED
def test_python_threads_that_share_a_model_give_the_bits_of_one(threads):
    """Four readers and learners, each with its own cache, while the interpreter switches between them as often as it can."""
    threads(2)
    model, tokens = build(MODEL, seed=2), np.random.default_rng(1).integers(0, 97, (4, 1, 16))

    def read(i):
        with no_grad():
            cache, parts = Cache(1), []
            for part in (tokens[i][:, :12], *[tokens[i][:, t : t + 1] for t in range(12, 16)]):
                parts.append(model(part, cache=cache).data)
                cache.advance(np.array([part.shape[1]]))
        return np.concatenate(parts, 1)

    def train_once(i):
        loss = objectives.clm(build(MODEL, seed=i), Batch(*np.repeat(tokens[None, i].astype(np.int32), 2, 0)))
        loss.total.backward()
        return np.asarray(loss.total.item())

    serial, together, interval = [(read(i), train_once(i)) for i in range(4)], [None] * 4, sys.getswitchinterval()

    def work(i):
        together[i] = (read(i), train_once(i))

    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    finally:
        sys.setswitchinterval(interval)
    for alone, shared in zip(serial, together):
        assert all(np.array_equal(a, b) for a, b in zip(alone, shared))


# ---- fork ------------------------------------------------------------------------------------------------------------


def wait(pid, seconds=60):
    """-> exit code of a child; one that hangs is killed and fails."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"the child hangs after {seconds} s")


@COMPILED
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_kernels(threads):
    """GCC's OpenMP waits in the child for threads that were not forked with it, unless they are let go before."""
    threads(2)
    expected = product()
    for _ in range(20):
        product()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if np.array_equal(product(), expected) else 1)
        assert wait(pid) == 0
        assert np.array_equal(product(), expected)


def _child(queue):
    queue.put(product().sum().item())


@COMPILED
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_multiprocessing_fork(threads):
    threads(2)
    expected = product().sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    for _ in range(3):
        worker = context.Process(target=_child, args=(queue,))
        worker.start()
        assert wait(worker.pid) == 0
        assert queue.get() == expected


# ---- refused threads and memory --------------------------------------------------------------------------------------

PRODUCT = """
import json, numpy as np
from pyllm import kernels as K
a = np.arange(300 * 300, dtype=np.float32).reshape(300, 300) % 7
def product():
    return K.matmul(a, a).astype(np.float64).sum()
"""


@COMPILED
@LINUX
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_NPROC"])
def test_a_refused_thread_does_not_end_the_process(limit):
    """libgomp exits where the system refuses it a thread: by stacks of 8 GB under 2 GB of address space, or by one process a user."""
    if limit == "RLIMIT_AS":
        import resource

        if 0 <= resource.getrlimit(resource.RLIMIT_STACK)[1] < 8 << 30:
            pytest.skip("stacks of 8 GB are not allowed here")
        before = ["sh", "-c", 'ulimit -s 8388608; exec "$@"', "sh"]
        refuse = 'used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (2 << 30)'
    else:
        before, refuse = (), "used = 1\nif os.getuid() == 0:\n    os.setgroups([]), os.setgid(54321), os.setuid(54321)"
    code = f"{PRODUCT}\nimport os, resource\n{refuse}\nresource.setrlimit(resource.{limit}, (used, used))\nK.set_num_threads(8)\n" \
        "print(json.dumps([product(), product(), K.num_threads()]))"
    first, second, threads = printed(python(code, before=before))
    expected = np.arange(90000, dtype=np.float64).reshape(300, 300) % 7
    assert first == second == (expected @ expected).sum()
    assert threads < 8


@COMPILED
def test_absurd_sizes_are_a_memory_error_and_nothing_is_lost():
    before = K._C.pool()["in_use"]
    for shape in ((1 << 40, 1 << 10), (1 << 47,)):
        with pytest.raises((MemoryError, ValueError)):
            K.native.empty(shape)
    assert K._C.pool()["in_use"] == before
    assert np.isfinite(product()).all()


@COMPILED
@LINUX
def test_out_of_memory_in_the_middle_of_a_step():
    """Under a limit of address space a large forward fails with MemoryError; then a small one runs, and so does the optimizer."""
    code = """
import json, resource
import numpy as np
from pyllm import objectives, training
from pyllm.data.batch import Batch
from pyllm.folders import build
model = build(dict(model_type="gpt2", vocab_size=97, n_positions=64, n_embd=48, n_layer=2, n_head=3), seed=0)
small = Batch(*np.zeros((2, 2, 8), np.int32))
step = lambda batch: next(training.train(model, objectives.clm, iter([batch]), training.AdamW(model), steps=1, lr=1e-3)).loss
first = step(small)
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + (192 << 20),) * 2)
errors = 0
for _ in range(3):
    try:
        step(Batch(*np.zeros((2, 4096, 64), np.int32)))
    except MemoryError:
        errors += 1
print(json.dumps([errors, step(small) < first]))
"""
    assert printed(python(code)) == [3, True]


@COMPILED
def test_the_pool_serves_every_step_after_the_first():
    """Training steps of one shape take no new memory from the system once the first ones are over."""
    model = build(MODEL, seed=1)
    steps = training.train(model, objectives.clm, iter(batches(12)), training.AdamW(model), steps=12, lr=1e-3)
    calls = [K._C.pool()["system_calls"] for _ in steps]
    assert calls[3] == calls[-1], calls
    pool = K._C.pool()
    assert pool["peak"] >= pool["in_use"] >= 0 and pool["cached"] > 0
    K._C.trim()
    assert K._C.pool()["cached"] == 0


# ---- environment variables -------------------------------------------------------------------------------------------


def state(**env):
    return python("import json\nfrom pyllm import kernels as K\nprint(json.dumps([K.active(), K.available(), K.num_threads()]))", **env)


@pytest.mark.parametrize("isa", K.available())
def test_pyllm_isa(isa):
    """Each table forced: the state, and a training step that goes down."""
    code = """
import json
import numpy as np
from pyllm import kernels as K, objectives, training
from pyllm.data.batch import Batch
from pyllm.folders import build
model = build(dict(model_type="gpt2", vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2), seed=0)
batch = Batch(np.tile(np.arange(8, dtype=np.int32), (2, 1)), np.tile(np.arange(1, 9, dtype=np.int32), (2, 1)))
losses = [r.loss for r in training.train(model, objectives.clm, iter([batch] * 5), training.AdamW(model), steps=5, lr=1e-2)]
print(json.dumps([K.active(), losses]))
"""
    active, losses = printed(python(code, PYLLM_ISA=isa))
    assert active == isa and all(b < a for a, b in zip(losses, losses[1:]))


def test_an_unknown_isa():
    run = state(PYLLM_ISA="foo")
    assert run.returncode == 1
    known = ", ".join(K.available())
    assert run.stderr.splitlines()[-1] == f"ImportError: PYLLM_ISA='foo' is not available on this CPU; available: {known}"
    with pytest.raises(ValueError, match=r"kernels.use: 'foo' is not available on this CPU; available: "):
        K.use("foo")


@COMPILED
def test_pyllm_threads():
    cpus = printed(state(PYLLM_THREADS=None))[2]
    assert 1 <= cpus <= len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus >= 1
    assert printed(state(PYLLM_THREADS="1"))[2] == 1
    assert printed(state(PYLLM_THREADS="1000"))[2] == cpus  # a limit, not a wish
    for wrong in ("0", "-1", "two", "1.5"):
        run = state(PYLLM_THREADS=wrong)
        assert run.returncode == 1 and f"PYLLM_THREADS='{wrong}': expected a whole number of at least 1" in run.stderr


@COMPILED
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity here")
def test_the_number_of_threads_follows_the_cpus_of_the_process():
    first = min(os.sched_getaffinity(0))
    code = f"import os, json\nos.sched_setaffinity(0, [{first}])\nfrom pyllm import kernels as K\nprint(json.dumps(K.num_threads()))"
    assert printed(python(code, PYLLM_THREADS=None)) == 1


@pytest.mark.parametrize("n", [0, -1, 1.0, "2", None])
def test_set_num_threads_of_what_is_no_number(n):
    with pytest.raises(ValueError, match=rf"set_num_threads: n={n!r}; expected a whole number of at least 1"):
        K.set_num_threads(n)


# ---- builds ----------------------------------------------------------------------------------------------------------

WARNED = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pyllm import kernels as K
    import pyllm.models, pyllm.autograd
import numpy as np
y = K.matmul(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)).tolist()
print(json.dumps([[[w.category.__name__, str(w.message)] for w in caught], K.available(), K.num_threads(), y, K.__file__]))
"""


@pytest.fixture
def sources(tmp_path):
    """A copy of the package without its compiled modules."""
    shutil.copytree(ROOT / "pyllm", tmp_path / "source" / "pyllm", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    return tmp_path / "source"


def test_without_compiled_kernels_the_reference_runs_with_one_warning(sources):
    """-S: no installed pyllm may lend its kernels; NumPy comes by its folder."""
    numpy_folder = str(Path(np.__file__).parents[1])
    code = f"import sys\nsys.path.append({str(sources / 'site')!r})\n" + WARNED
    (sources / "site").mkdir()
    for part in Path(numpy_folder).glob("numpy*"):
        (sources / "site" / part.name).symlink_to(part)
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=sources, timeout=60)
    warned, available, threads, y, file = printed(run)
    assert file.startswith(str(sources))
    assert [kind for kind, _ in warned] == ["RuntimeWarning"] and "the NumPy reference runs" in warned[0][1] and "Hint: " in warned[0][1]
    assert (available, threads, y) == (["reference"], 1, [[3, 3], [3, 3]])


@COMPILED
@pytest.mark.parametrize("version, found", [("same", True), ("other", False)])
def test_the_source_folder_finds_the_kernels_of_the_installed_package(sources, tmp_path, version, found):
    """After `pip install .`, Python started in the source folder imports the sources: their kernels lie in the installed package."""
    import pyllm

    site = tmp_path / "site"
    (site / "pyllm").mkdir(parents=True)
    shutil.copy(K._C.__file__, site / "pyllm")
    (site / f"pyllm-{pyllm.__version__ if version == 'same' else '0.0.1'}.dist-info").mkdir()
    for part in Path(np.__file__).parents[1].glob("numpy*"):
        (site / part.name).symlink_to(part)
    code = f"import sys\nsys.path.append({str(site)!r})\n" + WARNED
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=sources, timeout=60)
    warned, available, _, y, file = printed(run)
    assert file.startswith(str(sources)) and y == [[3, 3], [3, 3]]
    assert available == (K.available() if found else ["reference"]) and len(warned) == (0 if found else 1)
