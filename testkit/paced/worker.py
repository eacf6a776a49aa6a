"""vLLM's CPU worker on the emulated device."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.worker import cpu_worker

from testkit.paced.device import Gpu, install, uninstall
from testkit.paced.profiles import Profile
from testkit.paced.report import Report
from testkit.paced.runner import Device, PacedRunner


class PacedWorker(cpu_worker.CPUWorker):
    """One rank; the methods without an underscore are called through vLLM's ``collective_rpc``."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        profile = Profile.of_config(vllm_config.additional_config)
        self._gpu = Gpu(profile.paced_link_bytes_per_s, profile.link_latency_s)

    def init_device(self) -> None:
        """Install the device, and make the runner that uses it."""
        install(self._gpu)
        _use_cuda_copies()
        setattr(cpu_worker, "CPUModelRunner", PacedRunner)  # noqa: B010 - vLLM names the class nowhere else
        super().init_device()  # type: ignore[no-untyped-call]

    def shutdown(self) -> None:
        """End the runner, the connector and the device's streams."""
        super().shutdown()
        uninstall(self._gpu)

    def paced_report(self, forget: bool = False) -> dict[str, Any]:
        """Return the fields of a :class:`Report`, after all that is queued.

        Args:
            forget: begin a new report.
        """
        device = self._device
        self._gpu.compute.synchronize()
        report = Report(
            list(device.passes), device.checked, device.wrong, [str(fault) for fault in device.faults],
            list(self._gpu.broken), self._gpu.batches,
        )  # fmt: skip
        if forget:
            device.passes.clear()
            device.faults.clear()
            device.checked = device.wrong = 0
            self._gpu.broken.clear()
        return dataclasses.asdict(report)

    def paced_spoil(self) -> None:
        """Overwrite KV memory: what vLLM's prefix cache held is gone. Call it after a reset."""
        self._gpu.compute.synchronize()
        memory = self._device.memory
        assert memory is not None
        memory.words[:] = 0xA5A5A5A5A5A5A5A5

    def paced_connector_idle(self) -> bool:
        """Return whether the connector of this rank has nothing to do; True without one."""
        from kvpool_connector.vllm.worker import KVPoolWorker

        return KVPoolWorker.live is None or KVPoolWorker.live.mover.idle

    @property
    def _device(self) -> Device:
        assert isinstance(self.model_runner, PacedRunner)
        return self.model_runner.paced


def _use_cuda_copies() -> None:
    """Make the connector copy with ``worker/device/cuda.py``, although KV memory is the host's."""
    from kvpool_connector.vllm import worker

    worker.COPIERS["cpu"] = worker.COPIERS["cuda"]
