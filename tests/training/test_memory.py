"""What is said of a run that does not fit into memory."""

from __future__ import annotations

import pytest
import torch

from ram_tune.errors import NotEnoughMemoryError
from ram_tune.presets import configure, parse_set
from ram_tune.training.local import train_in_folder
from ram_tune.training.memory import telling_what_does_not_fit, too_large


@pytest.mark.parametrize(
    ("fields", "world", "at_once", "pieces"),
    [
        ([], 1, "", 2),
        (["execution.accumulate=4"], 1, ", 4 images at once", 8),
        ([], 2, ", 8 images at once", 2),
        (["execution.accumulate=2"], 3, ", 3 images at once", 4),
    ],
)
def test_the_batch_size_is_named_and_what_each_process_holds_of_it(fields, world, at_once, pieces):
    config = configure("voc2007", overrides=parse_set(["training.batch_size=16", *fields]))
    assert too_large(config, "why", world) == (
        f"out of memory with training.batch_size=16{at_once}, execution.evaluation_batch_size=32, data.image_size=512 (why). "
        f"Set execution.accumulate={pieces}, which computes the same in smaller pieces, or lower training.batch_size; "
        "where it was not training, lower execution.evaluation_batch_size."
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nMore."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_each_way_to_run_out_is_the_same_to_a_person(error):
    with (
        pytest.raises(NotEnoughMemoryError, match="batch_size") as told,
        telling_what_does_not_fit(configure("voc2007")),
    ):
        raise error
    assert "More." not in str(told.value)


def test_what_pytorch_says_on_this_cpu_is_known():
    with pytest.raises(NotEnoughMemoryError, match="allocate"), telling_what_does_not_fit(configure("voc2007")):
        torch.empty(10**15)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes") as told, telling_what_does_not_fit(configure("voc2007")):
        raise RuntimeError("shapes differ")
    assert not isinstance(told.value, NotEnoughMemoryError)


def test_a_run_by_itself_says_so_too(pictures, tiny, tmp_path):
    huge = parse_set([*tiny, "stage1.epochs=0", "model.hidden_size=400000000"])
    with pytest.raises(NotEnoughMemoryError, match=r"training\.batch_size=8"):
        train_in_folder(configure(str(pictures), overrides=huge), tmp_path / "run", tmp_path)
