"""What the tests of kernels share."""
import pytest

from pyllm import kernels as K


@pytest.fixture(params=[name for name in K.available() if name != "reference"])
def isa(request):
    """Runs the test on each compiled table; a test may name its own `isa` by parametrize instead."""
    with K.use(request.param):
        yield request.param
