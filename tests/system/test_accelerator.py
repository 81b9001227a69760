"""Memory, streams and precision of a GPU, with stubs of torch.cuda's queries."""

from collections.abc import Iterator

import pytest
import torch

from taskres_cache.errors import OptionError
from taskres_cache.system.accelerator import free_memory, is_out_of_memory, own_stream, use_float32_convolutions
from taskres_cache.system.devices import choose_device

CUDA = torch.device("cuda", 1)


def test_reserved_memory_that_is_not_used_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory(CUDA) == 1300
    assert free_memory(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_full_memory_is_told_from_other_errors(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) == full


def test_the_error_that_led_to_another_counts() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert is_out_of_memory(error)


def test_a_stream_is_made_once_for_each_device_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    own_stream.cache_clear()
    streams = [own_stream(torch.device("cuda", gpu), number) for _ in range(2) for gpu in (0, 1) for number in (0, 1)]
    own_stream.cache_clear()
    assert streams[:4] == streams[4:]
    assert len(set(streams)) == 4


@pytest.fixture
def restored_precision() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    for operator in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        operator.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("of_program", ["none", "tf32"])
def test_float32_convolutions_do_not_use_tf32(of_program: str) -> None:
    torch.backends.fp32_precision = of_program
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    use_float32_convolutions()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.allow_tf32 is False  # torch raises an error here if the settings disagree


def test_a_device_without_numbers_is_refused() -> None:
    with pytest.raises(OptionError, match=r"device 'meta' cannot be used here .*; use --device auto or cpu"):
        choose_device("meta")
