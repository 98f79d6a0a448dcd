"""The native tests (tests/native, run by .ci/run) know every entry of the table."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_entry_of_the_table_has_a_native_case():
    struct = re.search(r"^struct Kernels \{.*?^\};", (ROOT / "csrc/kernels.h").read_text(), re.M | re.S).group()
    entries = set(re.findall(r"\(\*(\w+)\)\(", struct))
    cases = {name for p in (ROOT / "tests/native").glob("*.cpp") for name in re.findall(r"^CASE\w*\((\w+)\)", p.read_text(), re.M)}
    missing = entries - cases
    assert entries and not missing, "give them a CASE in tests/native"
