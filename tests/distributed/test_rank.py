"""A rank's place among the others, before anything is sent between them."""

import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from distributed.errors import EngineError
from distributed.rank import join_process_group, rank_variables


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """A node that shows two GPUs, and a DeepSpeed: what was called of both, in order."""
    called = Mock()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", called.set_device)
    operators = SimpleNamespace(__compatible_ops__={})
    deepspeed = SimpleNamespace(ops=operators, init_distributed=called.init_distributed)
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    monkeypatch.setitem(sys.modules, "deepspeed.utils", SimpleNamespace(logger=Mock()))
    return called


def be_rank(monkeypatch: pytest.MonkeyPatch, index: int, world_size: int) -> None:
    for name, value in rank_variables(index, world_size, "127.0.0.1", 1).items():
        monkeypatch.setenv(name, value)


def test_a_rank_takes_its_own_gpu_before_it_joins_the_others(monkeypatch: pytest.MonkeyPatch, two_gpus: Mock) -> None:
    """NCCL's collectives of objects go by the current GPU; two ranks on one are refused."""
    be_rank(monkeypatch, 1, 2)
    join_process_group()
    assert [call[0] for call in two_gpus.method_calls] == ["set_device", "init_distributed"]
    two_gpus.set_device.assert_called_once_with(1)


def test_more_ranks_than_gpus_are_refused_before_they_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, two_gpus: Mock
) -> None:
    be_rank(monkeypatch, 2, 3)
    with pytest.raises(EngineError, match="rank 2 is number 2 of its node, which shows 2 GPUs"):
        join_process_group()
    two_gpus.init_distributed.assert_not_called()
