"""Which device a rank gets."""

import pytest
import torch

from distributed.errors import EngineError
from distributed.placement import training_device
from distributed.rank import Rank


def test_a_job_whose_gpus_are_not_found_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(index=0, local_index=0, world_size=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert training_device(rank) == torch.device("cpu")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(
        EngineError, match=r"this job has 4 GPUs on \S+, of which torch \S+ finds none: `sonoshard doctor`"
    ):
        training_device(rank)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert training_device(rank) == torch.device("cpu")
