"""Three functions of vLLM 0.32 that are replaced, in the process of the engine: each gives the same but
where vLLM's is wrong, or is read by nobody.
"""

from typing import Any

from rft.loops import in_loop


def find_loops_fast() -> None:
    """Replaces vLLM's search for repetitions by one that gives the same (rft/loops.py).

    It is made for each token of each running sequence, between two steps of the engine. vLLM 0.32
    looks at every length of piece in turn, which takes 60 microseconds a token where the longest has
    128 tokens: 15 ms a step with 256 sequences, more than a GPU needs for the step of a small model.
    This takes 6. Engines in a process of their own (`tensor_parallel`) keep vLLM's.
    """
    from vllm.v1.core.sched import utils

    utils.check_sequence_repetition = lambda token_ids, params: in_loop(
        token_ids, params.min_pattern_size, params.max_pattern_size, params.min_count
    )


def leave_out_ranks() -> None:
    """Saves the rank that vLLM gives with each log-probability, and that nothing here reads.

    vLLM 0.32 counts it over the whole vocabulary, by a function that it has compiled in the first step:
    1.6 s of every start on a CPU.
    """
    from vllm.v1.sample import sampler

    sampler.batched_count_greater_than = lambda _, chosen: chosen.new_zeros(len(chosen)).long()


def group_lora_by_adapter() -> None:
    """Replaces vLLM's LoRA product on a CPU by two matrix products per adapter in the batch:
    y += scale * (x A^T) B^T (Hu et al. 2021, eq. 3, with row vectors).

    vLLM 0.32 copies all of A and B once for every token, which takes a 135M model from 405 to 110
    tokens/s (with this: 355). Worse, rows without an adapter (index -1) get the last slot's where
    they share a batch with rows that have one.
    """
    import torch
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU as Wrapper

    if getattr(Wrapper, "_rft_grouped", False):
        return
    update = Wrapper.update_metadata

    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        indices = self.token_lora_indices  # one a token; -1 where there is no adapter
        slots = [int(slot) for slot in torch.unique(indices)]
        self._rft_groups = [
            (slot, None if len(slots) == 1 else (indices == slot).nonzero().squeeze(1))
            for slot in slots
            if slot >= 0
        ]

    def add_lora_linear(
        self: Any,
        y: Any,
        x: Any,
        lora_a_stacked: tuple[Any, ...],
        lora_b_stacked: tuple[Any, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """y [T, sum of slices], x [T, h]; each A [slots, 1, r, h], each B [slots, 1, slice, r]."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._rft_groups:
            x_rows, start = x if rows is None else x[rows], 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low, part = x_rows @ a[slot, 0].T, y[:, start : start + size]
                if rows is None:
                    part.addmm_(low, b[slot, 0].T, alpha=scale)
                else:
                    part.index_add_(0, rows, low @ b[slot, 0].T, alpha=scale)
                start += size

    Wrapper.update_metadata = update_metadata
    Wrapper.add_lora_linear = add_lora_linear
    Wrapper._rft_grouped = True
