"""vLLM's runner whose forward pass is queued on the emulated device instead of being computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    KVCacheConfig,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
    group_kernel_blocks,
)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from testkit.paced.device import Event, Gpu, Range, Stream, current, sleep_until
from testkit.paced.pattern import WORD_BYTES, Fault, KvMemory, Numbers, Pages, Share, Words, mix, prefix_hashes
from testkit.paced.profiles import Profile
from testkit.paced.report import Passed

FIRST_TOKEN = 3
"""Token ids below this one have a meaning in many models and are never sampled."""


class Device:
    """Forward passes of one rank: their time, their KV, and what was wrong with it."""

    FAULTS = 200
    """Faults that are described; the others are counted."""

    def __init__(self, profile: Profile, gpu: Gpu) -> None:
        self.profile = profile
        self.gpu = gpu
        self.memory: KvMemory | None = None
        self.passes: list[Passed] = []
        self.faults: list[Fault] = []
        self.wrong = 0
        """Positions that were wrong when they were read."""
        self.checked = 0
        """Positions that were read."""
        self._launched = 0
        self._free_at = 0.0

    def launch(self, tokens: int, shares: Sequence[Share]) -> None:
        """Queue a pass on the compute stream."""
        number = self._launched
        self._launched += 1
        launched_at = time.monotonic()
        self.gpu.compute.enqueue(lambda: self._run(number, tokens, shares, launched_at))

    def zero(self, blocks: Numbers) -> None:
        """Queue the kernel that zeroes new blocks."""
        memory = self.memory
        assert memory is not None
        self.gpu.compute.enqueue(lambda: memory.zero(blocks))

    def _run(self, number: int, tokens: int, shares: Sequence[Share], launched_at: float) -> None:
        assert self.memory is not None
        began_at = max(launched_at, self._free_at)
        self._free_at = began_at + self.profile.pass_s(tokens)
        checked, wrong, faults = self.memory.check(number, shares)
        self.checked += checked
        self.wrong += wrong
        self.faults += faults[: self.FAULTS - len(self.faults)]
        sleep_until(self._free_at)
        self.memory.write(shares)
        ended_at = time.monotonic()
        late_s = ended_at - self._free_at
        self.passes.append(Passed(tokens, len(shares), launched_at, began_at, self._free_at, late_s))


class History:
    """The hashes of one request's tokens, as far as they are known to the device."""

    def __init__(self) -> None:
        self._hashes: Words = np.zeros(0, np.uint64)

    def extend(self, state: CachedRequestState, computed: int, tokens: Numbers) -> Words:
        """Return the hashes of all tokens up to the last one of a pass.

        Args:
            state: what vLLM's runner keeps of the request.
            computed: tokens before those of the pass.
            tokens: those of the pass.
        """
        have = min(len(self._hashes), computed)
        # A request that was cached, loaded or resumed: the device has not seen these tokens yet.
        unseen = [] if have == computed else [*(state.prompt_token_ids or []), *state.output_token_ids][have:computed]
        earlier = np.array(unseen, np.int64)
        assert len(earlier) == computed - have, "the host does not know a computed token"
        assert (earlier >= 0).all(), "the host has a placeholder for a computed token"
        new = np.concatenate((earlier, tokens))
        before = int(self._hashes[have - 1]) if have else 0
        self._hashes = np.concatenate((self._hashes[:have], prefix_hashes(new, have, before)))
        return self._hashes


class PacedRunner(CPUModelRunner):
    """Everything but the forward pass is vLLM's."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        profile = Profile.of_config(vllm_config.additional_config)
        self.paced = Device(profile, current())
        self.async_output_copy_stream = Stream()  # type: ignore[assignment]  # the CPU's was a placeholder
        self.prepare_inputs_event = Event()  # type: ignore[assignment]
        self._histories: dict[str, History] = {}
        self._last_hashes: Words = np.zeros(0, np.uint64)
        self._in_last_pass: frozenset[str] = frozenset()

    def initialize_kv_cache_tensors(self, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any) -> Any:
        """Allocate KV memory, which is the emulated device's from now on."""
        kv_caches = super().initialize_kv_cache_tensors(kv_cache_config, *args, **kwargs)
        words = _words_of(next(iter(kv_caches.values())))
        groups = [
            _pages(group, kv_caches, kv_cache_config.num_blocks, self.paced.profile, self.parallel_config.rank)
            for group in kv_cache_config.kv_cache_groups
        ]
        self.paced.memory = KvMemory(words, groups)
        start = int(words.ctypes.data)
        self.paced.gpu.memory.append(Range(start, start + words.nbytes))
        return kv_caches

    def _zero_block_ids(self, block_ids: list[int]) -> None:
        self.paced.zero(np.array(block_ids, np.int64))

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        self._histories.pop(req_id, None)

    def _model_forward(
        self,
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        """Queue the pass and return at once, as a launch on a GPU does."""
        assert input_ids is not None, "prompts of embeddings have no tokens to derive a pattern from"
        shares = self._shares(input_ids.numpy().astype(np.int64))
        self._last_hashes = np.array([share.hashes[-1] for share in shares], np.uint64)
        self._in_last_pass = frozenset(share.request for share in shares)
        self.paced.launch(len(input_ids), shares)
        return torch.zeros(len(input_ids), self.model_config.get_hidden_size(), dtype=torch.bfloat16)

    def _shares(self, tokens: Numbers) -> list[Share]:
        batch, starts = self.input_batch, self.query_start_loc.np
        every = self.paced.profile.recheck_every
        turn = len(self.paced.passes)
        shares = []
        for index, request in enumerate(batch.req_ids):
            state = self.requests[request]
            computed = int(batch.num_computed_tokens_cpu[index])
            history = self._histories.setdefault(request, History())
            hashes = history.extend(state, computed, tokens[starts[index] : starts[index + 1]])
            blocks = tuple(np.array(ids, np.int64) for ids in state.block_ids)
            often = 1 if request not in self._in_last_pass else every
            shares.append(Share(request, computed, hashes, blocks, often, turn))
        return shares

    def _sample(self, logits: torch.Tensor | None, spec_decode_metadata: Any) -> Any:
        """Let the next token of a request follow from all its tokens so far."""
        if logits is not None and len(self._last_hashes):
            count = logits.shape[-1] - FIRST_TOKEN
            chosen = (mix(self._last_hashes) % np.uint64(count)).astype(np.int64) + FIRST_TOKEN
            logits.zero_()
            logits[torch.arange(len(chosen)), torch.from_numpy(chosen)] = 1.0
        return super()._sample(logits, spec_decode_metadata)


def _words_of(view: torch.Tensor) -> Words:
    """Return the whole allocation that a layer's view is of."""
    storage = view.untyped_storage()
    whole = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    words: Words = whole.numpy().view(np.uint64)
    return words


def _pages(group: Any, kv_caches: dict[str, torch.Tensor], blocks: int, profile: Profile, rank: int) -> Pages:
    """Return where a group's tokens are; the same views as those that vLLM hands to connectors."""
    spec = group.kv_cache_spec
    specs = spec.kv_cache_specs if isinstance(spec, UniformTypeKVCacheSpecs) else {}
    base, stride, token_words, places, salt = [], [], [], [], []
    for name in group.layer_names:
        layer = specs.get(name, spec)
        assert isinstance(layer, AttentionSpec), f"no pattern for {type(layer).__name__}"
        view = group_kernel_blocks(kv_caches[name], blocks)
        words = layer.unpadded_page_size_bytes // layer.block_size // WORD_BYTES
        base.append(view.storage_offset() * view.element_size() // WORD_BYTES)
        stride.append(view.stride(0) * view.element_size() // WORD_BYTES)
        token_words.append(words)
        places.append(np.linspace(0, words - 1, profile.stamps).astype(np.int64))
        # The latent vector of MLA is the same on all ranks.
        number = len(base) << 16 | (0 if isinstance(layer, MLAAttentionSpec) else rank + 1) << 8
        salt.append(mix(np.arange(number, number + profile.stamps, dtype=np.uint64)))
    return Pages(
        spec.block_size,
        np.array(base, np.int64),
        np.array(stride, np.int64),
        np.array(token_words, np.int64),
        np.array(places),
        np.array(salt),
        spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None,
    )
