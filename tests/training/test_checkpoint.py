"""Checkpoints: a run that goes on has the bits of one that never stopped; what is broken is passed over; nothing is lost on a full disk."""
import errno
import json
import os

import pytest

from pyllm import folders, training
from pyllm.errors import FormatError
from pyllm.io import files
from pyllm.training import checkpoint
from tests.training.tiny import Run

STEPS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint after every step -> (folder, bits after each step, records)."""
    folder, run = tmp_path_factory.mktemp("whole"), Run()
    bits, records = {}, []
    for record in run.records(STEPS):
        run.save(folder, record.step, keep=STEPS)
        bits[record.step] = run.bits()
        records.append((record.step, record.loss, record.lr, record.grad_norm, record.tokens))
    return folder, bits, records


def test_the_run_is_a_hard_case(whole):
    """Epochs end in the middle of a step, all weights move, dropout is on."""
    epochs = [training.checkpoint.read_state(path)["state"]["data"] for path in reversed(checkpoint.checkpoints(whole[0]))]
    assert epochs[-1]["epoch"] >= 3 and any(e["position"] % 3 for e in epochs)
    assert all(a != b for a, b in zip(whole[1][1].values(), whole[1][2].values(), strict=True))


@pytest.mark.parametrize("k", range(1, STEPS))
def test_resuming_at_any_step_is_bitwise_equal(whole, k):
    folder, bits, records = whole
    run = Run(seed=3)
    assert run.load(folder / f"step-{k:06d}") == k and run.bits() == bits[k]
    went_on = [(r.step, r.loss, r.lr, r.grad_norm, r.tokens) for r in run.records(STEPS, start=k)]
    assert went_on == records[k:] and run.bits() == bits[STEPS]


@pytest.mark.parametrize("micro", range(3))
def test_a_run_cut_in_the_middle_of_a_step(whole, micro, tmp_path):
    """The second or third micro-batch of step 8 never comes: the state on the disk is that of step 7."""
    from pyllm.objectives import clm

    run, calls = Run(), iter(range(1000))

    def objective(model, batch, rng=None):
        if next(calls) == 7 * 3 + micro:
            raise KeyboardInterrupt
        return clm(model, batch, rng)

    with pytest.raises(KeyboardInterrupt):
        for record in run.records(STEPS, objective=objective):
            run.save(tmp_path, record.step)
    run = Run()
    start = run.load(training.newest(tmp_path))
    assert start == 7
    list(run.records(STEPS, start=start))
    assert run.bits() == whole[1][STEPS]


def test_folder_is_a_model_folder_and_pointers_and_rotation(tmp_path):
    run = Run()
    for record in run.records(6):
        path = run.save(tmp_path, record.step, best=record.step == 2, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last", "step-000002", "step-000005", "step-000006"]
    assert checkpoint.pointer(tmp_path, "last") == path == training.newest(tmp_path)
    assert checkpoint.pointer(tmp_path, "best").name == "step-000002" and checkpoint.pointer(tmp_path, "worst") is None
    model, tokenizer = folders.load(path)
    assert tokenizer is None and all((a.data == b.data).all() for a, b in zip(model.parameters(), run.model.parameters(), strict=True))
    state = json.loads((path / "trainer_state.json").read_text())
    assert state["step"] == 6 and set(state["versions"]) == {"pyllm", "numpy", "python", "kernels"}
    assert set(state["sha256"]) == {"config.json", "model.safetensors", "optimizer.safetensors", "ema.safetensors"}


@pytest.mark.parametrize("harm, reason", [
    (lambda p: flip(p / "model.safetensors"), "model.safetensors: missing or changed"),
    (lambda p: flip(p / "optimizer.safetensors"), "optimizer.safetensors: missing or changed"),
    (lambda p: (p / "ema.safetensors").unlink(), "ema.safetensors: missing or changed"),
    (lambda p: (p / "trainer_state.json").unlink(), "trainer_state.json"),
    (lambda p: (p / "trainer_state.json").write_text("{"), "not JSON"),
    (lambda p: (p / "trainer_state.json").write_text("[]"), "expected format"),
])
def test_a_broken_checkpoint_is_passed_over(tmp_path, harm, reason):
    run = Run()
    for record in run.records(2):
        run.save(tmp_path, record.step)
    harm(tmp_path / "step-000002")
    with pytest.warns(UserWarning, match=f"(?s)step-000002 is passed over.*{reason}"):
        assert training.newest(tmp_path) == tmp_path / "step-000001"


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_no_checkpoints(tmp_path):
    assert training.newest(tmp_path) is None and training.newest(tmp_path / "none") is None


def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path):
    import numpy as np

    from pyllm.io import safetensors
    from tests.training import tiny

    path = whole[0] / "step-000004"
    with pytest.raises(FormatError, match="mismatches"):
        training.load_checkpoint(path, tiny.gpt2(n_layer=1), Run().optimizer)
    run = Run()
    saved = training.save_checkpoint(tmp_path, 1, run.model, None, run.optimizer, {})
    with pytest.raises(FormatError, match="no ema.safetensors"):
        training.load_checkpoint(saved, run.model, run.optimizer, run.ema)
    safetensors.write(saved / "optimizer.safetensors", {"steps": np.array([1])})
    with pytest.raises(FormatError, match=f"(?s){saved}: AdamW.load_state: .*missing: m.transformer"):
        training.load_checkpoint(saved, run.model, run.optimizer)


def test_a_full_disk_at_any_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run, write, failing = Run(), os.write, []
    records = run.records(2)
    next(records)
    run.save(tmp_path, 1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    next(records)
    for allowed in range(0, 1000, 3):
        left = iter(range(allowed))

        def full(handle, data, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(handle, data)

        monkeypatch.setattr(files.os, "write", full)
        try:
            run.save(tmp_path, 2, keep=1)
        except OSError as error:
            assert error.errno == errno.ENOSPC and "bytes needed" in str(error) and error.filename
            monkeypatch.setattr(files.os, "write", write)
            failing.append(allowed)
            if not (tmp_path / "step-000002").exists():
                assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
            assert training.newest(tmp_path) is not None
        else:
            break
    monkeypatch.setattr(files.os, "write", write)
    assert len(failing) > 20 and training.newest(tmp_path).name == "step-000002"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = Run()
    run.save(tmp_path, 1)
    run.model.get("transformer.ln_f.weight").data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 2: 1 weights are not finite, the first transformer.ln_f.weight"):
        run.save(tmp_path, 2)
    assert training.newest(tmp_path).name == "step-000001"


# ---- the log

def test_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = training.Log(path)
    for step in range(1, 6):
        log.write(step=step, loss=step / 2)
        log.write(step=step, valid_loss=1.0)
        assert len(path.read_text().splitlines()) == 2 * step  # flushed line by line
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')  # a kill in the middle of a line
    log = training.Log(path, 3)
    log.write(step=4, loss=9.0)
    log.close()
    assert [line["step"] for line in training.read_log(path)] == [1, 1, 2, 2, 3, 3, 4]
    log = training.Log(path)
    log.write(step=1, perplexity=float("inf"), text="\u00e9")
    log.close()
    assert path.read_text() == '{"step": 1, "perplexity": null, "text": "\u00e9"}\n'
