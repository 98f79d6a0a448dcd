"""One thread: these models are far too small for two, and on a busy machine two wait for each other. Results do not depend on it."""
import pytest

from pyllm import kernels as K


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = K.num_threads()
    K.set_num_threads(1)
    yield
    K.set_num_threads(before)
