"""One thing changes, and nothing is a hit: field by field of the identity's document, and through engines that share a Redis."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
import vllm
from safetensors.torch import load_file, save_file
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_none_hash_seed, init_none_hash
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from connector.tests.engine import models
from connector.tests.engine.harness import TINY, empty, remote, running, tokens
from kvpool_connector import config as kvpool_config
from kvpool_connector import format as part_format
from kvpool_connector.config import ConfigError
from kvpool_connector.identity import digest
from kvpool_connector.vllm import facts, kv_abi
from kvpool_connector.vllm.facts import engine_facts, hash_seed, layout_facts
from kvpool_connector.vllm.prepare import reconsidered
from testkit.host import has_fp8_kv
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(300)

PROMPT = tokens(1, 300, models.VOCABULARY)
REDIS = {"type": "redis", "host": "127.0.0.1", "port": 1}
ALONE: dict[str, Any] = {"tiers": {"cpu": {"size": "64Mi"}}, "admission": "always", "chunk_tokens": 128}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full attention."""
    return Path(models.save(models.llama, tmp_path_factory.mktemp("llama")))


def engine_config(model: Path, **options: Any) -> VllmConfig:
    """Return the configuration of an engine that is not started."""
    settings: dict[str, Any] = {"max_model_len": 4096, "dtype": "float32", "enforce_eager": True} | TINY | options
    return EngineArgs(str(model), **settings).create_engine_config()


def digest_of(vllm_config: VllmConfig, kvpool: dict[str, Any] | None = None) -> str:
    """Return the digest of all facts but the layout."""
    config = kvpool_config.parse({"tiers": {"cpu": {"size": "64Mi"}}} | (kvpool or {}), "test")
    return digest(engine_facts(vllm_config, config))


def engine_digest(model: Path, kvpool: dict[str, Any] | None = None, **options: Any) -> str:
    """Return the digest of an engine that is not started."""
    return digest_of(engine_config(model, **options), kvpool)


@pytest.fixture(scope="module")
def unchanged(llama: Path) -> str:
    """The digest that every other is compared with."""
    return engine_digest(llama)


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}


@pytest.mark.parametrize(
    ("kvpool", "options"),
    [
        ({"tenant": "other"}, {}),
        ({"model_revision": "0123abc"}, {}),
        ({}, {"dtype": "bfloat16"}),
        pytest.param(
            {},
            {"kv_cache_dtype": "fp8_e5m2"},
            marks=pytest.mark.skipif(not has_fp8_kv(), reason="vLLM has no FP8 KV memory on this CPU"),
        ),
        ({}, {"prefix_caching_hash_algo": "sha256_cbor"}),
        ({}, {"hf_overrides": {"rope_parameters": ROPE}}),
        ({}, {"hf_overrides": {"rms_norm_eps": 1e-3}}),
        ({}, {"speculative_config": NGRAM}),
        ({}, {"load_format": "dummy"}),
        ({}, {"model_impl": "transformers"}),
        ({}, {"disable_sliding_window": True}),
        ({}, {"override_generation_config": {"attn_temperature_tuning": True}}),
        ({}, {"attention_config": {"backend_per_kind": {"full_attention": "CPU_ATTN"}}}),
        ({}, {"kv_cache_dtype_skip_layers": ["0"]}),
        ({}, {"code_revision": "0123abc"}),
        ({}, {"additional_config": {"kernels": "own"}}),
        ({}, {"enable_lora": True, "lora_target_modules": ["q_proj"]}),
    ],
    ids=str,
)
def test_a_setting_changes_the_identity(
    kvpool: dict[str, Any], options: dict[str, Any], llama: Path, unchanged: str
) -> None:
    """Of those that an engine's configuration shows before KV memory is laid out."""
    assert engine_digest(llama, kvpool, **options) != unchanged


def test_what_does_not_matter_does_not_change_it(llama: Path, unchanged: str, tmp_path: Path) -> None:
    """The folder's name, and how much is computed at a time: else nothing would ever be shared."""
    shutil.copytree(llama, tmp_path / "elsewhere")
    assert engine_digest(tmp_path / "elsewhere", max_num_batched_tokens=512, max_num_seqs=3) == unchanged
    assert engine_digest(llama, enable_lora=True, max_lora_rank=8) == unchanged


def test_what_a_models_code_writes_does_not_change_it(llama: Path, unchanged: str) -> None:
    """It writes into its configuration while it loads, in the ranks' processes and not in the
    scheduler's."""
    loaded = engine_config(llama)
    loaded.model_config.hf_config.max_model_len = 4096  # models/minimax_m2.py
    loaded.model_config.hf_config.rope_parameters["partial_rotary_factor"] = 1.0  # models/falcon_h1.py
    assert digest_of(loaded) == unchanged


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 4096,
    "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 32.0,
}  # fmt: skip


@pytest.fixture(scope="module", params=["at the top", "under text_config"])
def longrope(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rope depends on the longest context, in a configuration of its own or in that
    of a multimodal model. The latter names a language model as its architecture, which stands in
    for one that sees: vLLM's need libraries for images that are not here."""
    folder = Path(models.save(models.llama, tmp_path_factory.mktemp("longrope")))
    configuration = json.loads((folder / "config.json").read_text())
    configuration |= {"rope_parameters": LONGROPE, "max_position_embeddings": 131_072}
    if request.param == "under text_config":
        configuration = {
            "model_type": "llava", "architectures": ["LlamaForCausalLM"], "image_token_index": 3,
            "text_config": configuration, "vision_config": {"model_type": "clip_vision_model"},
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(configuration))
    return folder


def test_the_longest_context_counts_where_rope_depends_on_it(longrope: Path) -> None:
    """LongRoPE takes its long factors from 4097 tokens on, and ``auto`` those of the model's own
    length."""
    lengths = [4096, 131_072, -1]
    assert len({engine_digest(longrope, max_model_len=length) for length in lengths}) == 3


def test_a_length_that_was_fitted_does_not_count(longrope: Path) -> None:
    """vLLM shortens ``auto`` to what fits into memory when the weights are loaded already."""
    fitted = engine_config(longrope, max_model_len=-1)
    before = digest_of(fitted)
    fitted.model_config.max_model_len = 4096
    assert digest_of(fitted) == before
    assert before != engine_digest(longrope, max_model_len=4096)


def test_the_longest_context_does_not_count_elsewhere(llama: Path, unchanged: str) -> None:
    """Engines that serve other lengths share their blocks."""
    assert engine_digest(llama, max_model_len=2048) == unchanged


def test_a_function_as_override(llama: Path) -> None:
    """Nobody can tell its model from that of another function."""
    with pytest.raises(ConfigError, match=r"hf_overrides is a function.*give a dictionary"):
        engine_digest(llama, hf_overrides=lambda configuration: configuration)


def test_files_beside_the_weights_change_it(llama: Path, unchanged: str, tmp_path: Path) -> None:
    """The same weights under another configuration; the way from text to tokens does not matter."""
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "chat_template.json").write_text("{}")
    assert engine_digest(tmp_path / "model") == unchanged
    configuration = json.loads((llama / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(configuration | {"rms_norm_eps": 1e-3}))
    assert engine_digest(tmp_path / "model") != unchanged


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"])
@pytest.mark.parametrize("seed", [None, "7"])
def test_the_seed_is_the_one_that_vllm_draws(algorithm: str, seed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or None, where vLLM says after its start that it drew another one."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    drawn = set()
    for _ in range(2):
        init_none_hash(get_hash_fn_by_name(algorithm))
        drawn.add(get_none_hash_seed())
    assert ({hash_seed(algorithm)} == drawn) is (len(drawn) == 1)
    assert (hash_seed(algorithm) is None) is (len(drawn) == 2)


@pytest.mark.parametrize(
    ("algorithm", "seed", "tiers"),
    [("xxhash", "7", ["remote"]), ("sha256", None, ["remote"]), ("xxhash", None, [])],
    ids=str,
)
def test_a_seed_that_others_can_know_or_need_not(
    algorithm: str, seed: str | None, tiers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said, and the store stays in use."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    config = kvpool_config.parse(ALONE | ({"remote": REDIS} if tiers else {}), "test")
    assert reconsidered(config, algorithm) == (config, [])


def test_a_random_seed_leaves_the_store_out(
    llama: Path,
    store: KeyValueServer,
    shared: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine whose blocks nobody else can find writes none to Redis, hits its own, and says what
    to set."""
    monkeypatch.delenv("PYTHONHASHSEED")
    with running(str(llama), shared, **TINY, prefix_caching_hash_algo="xxhash") as engine:
        text, cached = engine.generate(PROMPT)
        engine.settle()
        engine.forget()
        assert (cached, engine.generate(PROMPT)) == (0, (text, 256))
        engine.assert_nothing_is_left()
    with redis.Redis(port=store.port, password=store.password) as client:
        assert not client.dbsize()


def test_what_a_random_seed_costs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, with what is not used and what to set; without shared tiers nothing is lost."""
    monkeypatch.delenv("PYTHONHASHSEED")
    config = kvpool_config.parse(ALONE | {"remote": REDIS}, "test")
    reduced, (said,) = reconsidered(config, "xxhash")
    assert reduced == config.model_copy(update={"remote": None})
    assert said.warning
    assert "(remote configured): the remote store is not used" in said.text
    assert "Set PYTHONHASHSEED to one number in all engines, or --prefix-caching-hash-algo sha256_cbor" in said.text


def test_a_random_seed_belongs_to_one_engine(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes agree, and its next start is another engine."""
    monkeypatch.delenv("PYTHONHASHSEED")

    def start(algorithm: str) -> VllmConfig:
        transfer = KVTransferConfig(
            kv_connector="KVPoolConnector", kv_role="kv_both", kv_connector_module_path="kvpool_connector.vllm"
        )
        return engine_config(llama, prefix_caching_hash_algo=algorithm, kv_transfer_config=transfer)

    first = start("xxhash")
    assert digest_of(copy.deepcopy(first)) == digest_of(first)
    assert digest_of(start("xxhash")) != digest_of(first)
    assert digest_of(start("sha256_cbor")) == digest_of(start("sha256_cbor"))


def test_versions_of_one_number_share(llama: Path, unchanged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch release that was checked, and vLLM's builds for other devices, which the device tells
    apart."""
    monkeypatch.setattr(kv_abi, "KV_ABI", {"0.32.0": 1, "0.32.1": 1, "0.33.0": 2})
    digests = {}
    for version in ("0.32.1", "0.32.0+cpu", "0.32.0+cu130", "0.33.0", "0.33.0+cu130"):
        monkeypatch.setattr(vllm, "__version__", version)
        digests[version] = engine_digest(llama)
    assert digests["0.32.1"] == digests["0.32.0+cpu"] == digests["0.32.0+cu130"] == unchanged
    assert digests["0.33.0"] == digests["0.33.0+cu130"] != unchanged


@pytest.mark.parametrize("version", ["0.32.2", "0.32.1rc1", "0.33.0.dev7+gabcdef", "0.32.0+gabcdef.d20261128"])
def test_a_version_that_nobody_checked(
    version: str, llama: Path, unchanged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands for itself alone, and the log says so once."""
    monkeypatch.setattr(vllm, "__version__", version)
    assert engine_digest(llama) != unchanged
    alone = kvpool_config.parse(ALONE, "test")
    config, said = reconsidered(alone, "sha256")
    assert config == alone
    assert [line.warning for line in said] == [True]
    assert f"vLLM {version} was not checked" in said[0].text


def test_one_weight_changes_it(llama: Path, unchanged: str, tmp_path: Path) -> None:
    """Same names, shapes and sizes."""
    assert engine_digest(one_weight_changed(llama, tmp_path / "tuned")) != unchanged


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(vllm, "__version__", "0.32.1"),
        lambda patch: patch.setattr(facts, "VERSION", part_format.VERSION + 1),
        lambda patch: patch.setenv("PYTHONHASHSEED", "7"),
        lambda patch: patch.setattr(facts, "_device", lambda vllm_config: ["cpu", "x86_64", "other", "None"]),
    ],
    ids=["vLLM's version", "format", "hash seed", "instruction set"],
)
def test_the_surroundings_change_it(
    change: Callable[[pytest.MonkeyPatch], None], llama: Path, unchanged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process has from its image and environment."""
    change(monkeypatch)
    assert engine_digest(llama) != unchanged


LAYOUT = OffloadingConfig(
    groups=(OffloadingGroupConfig(32, ("layers.0", "layers.1"), 0),),
    worker_kv_bytes_per_block=4096, enable_kv_cache_events=False, extra_config={}, engine_id="e",
    model=OffloadingModelConfig("m", "float32"), cache=OffloadingCacheConfig(32, 4),
    parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True), kv_cache_layout="NHD",
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"groups": (OffloadingGroupConfig(64, ("layers.0", "layers.1"), 0),)},
        {"groups": (OffloadingGroupConfig(32, ("layers.1", "layers.0"), 0),)},
        {"worker_kv_bytes_per_block": 2048},
        {"kv_cache_layout": "HND"},
        {"cache": OffloadingCacheConfig(16, 4)},
        {"cache": OffloadingCacheConfig(32, 8)},
        {"parallel": dataclasses.replace(LAYOUT.parallel, world_size=2, tp_size=2)},
        {"parallel": dataclasses.replace(LAYOUT.parallel, world_size=2, pp_size=2)},
    ],
    ids=["block", "order of layers", "bytes", "layout", "hash", "chunk", "TP", "PP"],
)
def test_the_layout_changes_it(change: dict[str, Any]) -> None:
    """Block, chunk, order of layers, parallel sizes."""
    assert digest(layout_facts(dataclasses.replace(LAYOUT, **change))) != digest(layout_facts(LAYOUT))


def test_ranks_share_an_identity() -> None:
    """The scheduler's process knows no rank; the rank is in the name of a part."""
    other = dataclasses.replace(LAYOUT, engine_id="f", parallel=dataclasses.replace(LAYOUT.parallel, rank=1))
    assert digest(layout_facts(other)) == digest(layout_facts(LAYOUT))
    names = {part_format.part_name("i", rank, b"key") for rank in (0, 1)}
    assert len(names) == 2


def one_weight_changed(model: Path, folder: Path) -> Path:
    """A copy of the model that differs in one number."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.v_proj.weight"
    with torch.no_grad():
        weights[name][0, 0] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def shared(store: KeyValueServer, tmp_path: Path) -> dict[str, Any]:
    """Memory tier, and a Redis that is empty."""
    empty(store)
    return ALONE | {"remote": remote(store, tmp_path)}


def ask(model: Path, config: dict[str, Any], **options: Any) -> tuple[list[int], int]:
    """The text of an engine that starts, answers and ends, and how many tokens it had from Redis."""
    with running(str(model), config, **(TINY | options)) as engine:
        answer = engine.generate(PROMPT)
        engine.settle()
        engine.assert_nothing_is_left()
        return answer


def test_engines_with_other_weights_share_nothing(llama: Path, shared: dict[str, Any], tmp_path: Path) -> None:
    """No hit, and the text that the engine says without Redis. The same engine hits."""
    text, cached = ask(llama, shared)
    assert cached == 0
    tuned = one_weight_changed(llama, tmp_path / "tuned")
    expected, _ = ask(tuned, ALONE)
    assert expected != text
    assert ask(tuned, shared) == (expected, 0)
    assert ask(llama, shared) == (text, 256)


@pytest.mark.slow
def test_engines_that_differ_share_nothing(llama: Path, shared: dict[str, Any]) -> None:
    """Chunk, tenant, block, dtype."""
    text, cached = ask(llama, shared | {"tenant": "one"})
    assert cached == 0
    for changes, options in (
        ({"chunk_tokens": 64}, {}), ({"tenant": "other"}, {}), ({}, {"block_size": 64}),
    ):  # fmt: skip
        assert ask(llama, shared | {"tenant": "one"} | changes, **options) == (text, 0), (changes, options)
    assert ask(llama, shared | {"tenant": "one"}, dtype="bfloat16")[1] == 0
    assert ask(llama, shared | {"tenant": "one"}) == (text, 256)
