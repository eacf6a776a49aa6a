"""The engine of the offline part."""

from vllm import LLM
from vllm.config import KVTransferConfig

llm = LLM(
    model="meta-llama/Llama-3.1-8B-Instruct",
    gpu_memory_utilization=0.8,
    max_model_len=8000,
    kv_transfer_config=KVTransferConfig(
        kv_connector="KVPoolConnector",
        kv_role="kv_both",
    ),
)
