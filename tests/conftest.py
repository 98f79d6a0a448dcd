"""Settings of every test, and the processes of the whole suite. No Hypothesis deadline: a shared machine has its slow moments."""
import os

import pytest
from hypothesis import HealthCheck, settings

# ci: the same examples on every run, so that a red run can be repeated. nightly: HYPOTHESIS_PROFILE=nightly pytest draws new and many more.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# One of several processes has one kernel thread, told before NumPy and pyllm are imported: threads of two processes wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("PYLLM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_ignore_collect(collection_path, config):
    """PyTorch and its like take seconds to import, for nothing where the marker expression leaves none of their tests."""
    return True if collection_path.stem.removeprefix("test_").startswith("parity") and "not parity" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist the whole suite runs in as many processes as kernels would take threads, at most 4: each takes a gigabyte.

    One process as without it: -n 0; files or tests by name, -k, another -m; what shows output or asks (-s, --pdb, --trace).
    """
    told = config.option
    part = config.args_source is not config.ArgsSource.TESTPATHS or told.keyword or "not parity" not in told.markexpr
    if part or "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist") or told.numprocesses is not None:
        return
    if told.collectonly or told.usepdb or told.trace or told.capture == "no":
        return
    from pyllm import kernels

    told.numprocesses = min(kernels.num_threads(), 4)
    told.dist = "worksteal"  # neighbours share what a module makes, and nobody is left with the last long tests
