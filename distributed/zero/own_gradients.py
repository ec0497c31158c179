"""What a rank keeps of a gradient that is summed: the elements of its own slice, once (ZeRO-2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class OwnGradients:
    """Cuts the gradients of parameters that lie in several ranks' slices as soon as they are summed over the ranks.

    DeepSpeed keeps them whole until the step, and each slice begins and ends within a parameter: of Stable Diffusion
    1.5 at 8 ranks that is 1.3 GB a rank where the slices have 0.2. And it keeps those of a further micro batch beside
    the sum of the earlier ones until the backward pass is over: here each joins the sum as soon as it is there.
    """

    def __init__(self, zero: Any) -> None:
        """Take the place of three methods of DeepSpeed's ZeRO-2 optimizer `zero`, which sums into no buffer of its own.

        Its slices are covered by parameters, padding included.
        """
        self._zero = zero
        self._parts: dict[Tensor, Tensor] = {}
        self._own: dict[Tensor, slice] = {}  # of parameters that are this rank's in part
        self._places: dict[Tensor, int] = {}  # of this rank's parameters, in their group's sums
        self._summed: set[Tensor] = set()  # those of which this micro batch's gradient has joined the sum
        for index, parameters in enumerate(zero.params_in_partition):
            start, missing = int(zero.first_offset[index]), int(zero.partition_size[index])
            for place, parameter in enumerate(parameters):
                self._places[parameter] = place
                numel = min(parameter.numel() - start, missing)
                if numel < parameter.numel():
                    self._own[parameter] = slice(start, start + numel)
                start, missing = 0, missing - numel
            assert missing == 0, "a slice is not covered by parameters"
        self._reduce = zero.reduce_ipg_grads
        zero.reduce_ipg_grads = self._reduce_and_cut
        zero.get_all_grad_tensors = self._taken
        zero.get_flat_partition = self._slice_of_group

    def _reduce_and_cut(self, comm_dtype: torch.dtype | None = None) -> None:
        """Sum the gradients that wait for it over the ranks, cut them, and add them to earlier micro batches'."""
        places = [place for bucket in self._zero.ipg_buckets.values() for place in bucket.params]
        self._reduce(comm_dtype)
        for group, index, _ in places:
            parameter = self._zero.bit16_groups[group][index]
            if parameter not in self._places:
                continue
            gradient = parameter.grad
            if parameter in self._own:
                gradient = gradient.contiguous().view(-1)[self._own[parameter]]
            sums = self._zero.all_grad_tensors.get(group)
            if sums is not None:
                sums[self._places[parameter]].add_(gradient)
                self._summed.add(parameter)
                parameter.grad = None
            elif parameter in self._own:
                self._parts[parameter] = gradient.clone()
                parameter.grad = None

    def _taken(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return this rank's part of each gradient, flat where it is not the whole; zeros where there is none.

        A single zero, to be added to all elements, where it has joined the sum.
        """
        return [self._take(parameter, dtype) for parameter in parameters]

    def _take(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        if parameter in self._summed:
            self._summed.discard(parameter)
            return torch.zeros((), dtype=dtype, device=parameter.device)
        if parameter not in self._own:
            return torch.zeros_like(parameter, dtype=dtype) if parameter.grad is None else parameter.grad
        part = self._parts.pop(parameter, None)
        own = self._own[parameter]
        return torch.zeros(own.stop - own.start, dtype=dtype, device=parameter.device) if part is None else part

    def _slice_of_group(self, *_: Any, param_group_idx: int, return_tensor_list: bool, **__: Any) -> list[Tensor]:
        """Return the gradients that make up this rank's slice of a group."""
        assert return_tensor_list
        gradients: list[Tensor] = list(self._zero.all_grad_tensors[param_group_idx])
        return gradients
