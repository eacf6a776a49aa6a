"""Transfer configurations of the two roles."""

from vllm.config import KVTransferConfig

prefill = KVTransferConfig(
    kv_connector="KVPoolConnector",
    kv_role="kv_producer",
    kv_connector_extra_config={"nixl_backends": ["UCX"]},
)

decode = KVTransferConfig(
    kv_connector="KVPoolConnector",
    kv_role="kv_consumer",
    kv_connector_extra_config={"nixl_backends": ["UCX"]},
)
