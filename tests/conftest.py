"""Settings of every test. No Hypothesis deadline: a shared machine has its slow moments."""
import os

from hypothesis import HealthCheck, settings

# ci: the same examples on every run, so that a red run can be repeated. nightly: HYPOTHESIS_PROFILE=nightly pytest draws new and many more.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
