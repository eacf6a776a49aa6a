"""What is read from an engine's metrics page."""

from __future__ import annotations

from testkit.engine_facts import EngineFacts, samples, total

PAGE = """# HELP kvpool:chunk_tokens Tokens of a chunk
# TYPE kvpool:chunk_tokens gauge
kvpool:chunk_tokens{engine="0",model_name="m"} 64.0
kvpool:written_chunks_total{engine="0",model_name="m",tier="remote"} 12.0
kvpool:written_chunks_total{engine="1",model_name="m",tier="remote"} 3.0
kvpool:written_chunks_total{engine="0",model_name="m",tier="disk"} 100.0
kvpool:identity_info{digest="ab\\"c",engine="0"} 1.0
"""


def test_series_are_added_up_by_their_labels() -> None:
    assert total(PAGE, "kvpool:chunk_tokens") == 64
    assert total(PAGE, "kvpool:written_chunks_total", tier="remote") == 15
    assert total(PAGE, "kvpool:written_chunks_total", tier="disk", engine="1") == 0
    assert total(PAGE, "kvpool:written_chunks") == 0


def test_labels_are_read() -> None:
    assert samples(PAGE, "kvpool:identity_info") == [({"digest": 'ab\\"c', "engine": "0"}, 1.0)]


def test_a_prompts_last_token_is_in_no_chunk() -> None:
    facts = EngineFacts(chunk_tokens=64, chunk_parts=3, identity="")
    assert [facts.cacheable_tokens(tokens) for tokens in (64, 65, 128, 129)] == [0, 64, 64, 128]
    assert facts.parts(200) == 9
