"""What a memory tier saves when the device's KV cache is too small for all prompts.

    python cpu_offloading.py                      # vLLM alone
    python cpu_offloading.py --enable-kvpool

The prompts have different beginnings, so nothing is shared between them, and together they are larger than the device's cache, so
vLLM alone computes each of them again in the second run, whether its own prefix caching is on (--enable-prefix-caching) or off.
"""

from __future__ import annotations

import time

from engine import end, parser, start
from vllm import LLM, SamplingParams


def create_test_prompts(num_prompts: int, num_tokens: int) -> list[str]:
    """About ``num_tokens`` tokens each."""
    return [f"[Prompt {number}] {'Hi ' * num_tokens} how are you?" for number in range(num_prompts)]


def generate_and_print_output(llm: LLM, prompts: list[str], sampling: SamplingParams) -> float:
    """The seconds it took."""
    began = time.time()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.time() - began
    for output in outputs:
        print(f"Generated text: {output.outputs[0].text!r}")
    return seconds


def main() -> None:
    """All prompts, twice."""
    options = parser(__doc__, max_model_len=16384, enable_prefix_caching=False)
    options.add_argument("--num-prompts", type=int, default=10, help="Number of prompts")
    options.add_argument("--num-tokens", type=int, default=10000, help="Number of tokens per prompt")
    options.add_argument("--enable-kvpool", action="store_true", help="With a memory tier for all prompts")
    args = vars(options.parse_args())
    count, tokens, enabled = (args.pop(name) for name in ("num_prompts", "num_tokens", "enable_kvpool"))
    size = int(
        count * tokens * 1.5 / 10000 * (1 << 30)
    )  # 1.5 GiB per 10000 tokens, enough for a model of 8 B parameters
    llm = start(args, {"tiers": {"cpu": {"size": size}}} if enabled else None)

    prompts = create_test_prompts(count, tokens)
    sampling = SamplingParams(temperature=0, top_p=0.95, max_tokens=1)
    print("\nFirst run:")
    first = generate_and_print_output(llm, prompts, sampling)
    print(f"First run time: {first:.2f} seconds")
    print("\nSecond run:")
    second = generate_and_print_output(llm, prompts, sampling)
    print(f"Second run time: {second:.2f} seconds")
    print(f"\nSpeedup (first run / second run): {first / second:.2f}x")

    end(llm)


if __name__ == "__main__":
    main()
