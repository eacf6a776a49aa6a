"""Questions about one long document: each but the first loads what the document's tokens were computed to.

python shared_prefix.py
"""

from __future__ import annotations

import time

from engine import end, parser, start
from vllm import SamplingParams

QUESTIONS = ["Who wrote the journal?", "What was the weather like?", "Which ships passed?"]


def main() -> None:
    """Without vLLM's own prefix cache, so that every hit is kvpool's."""
    options = parser(__doc__, max_model_len=8000, enable_prefix_caching=False)
    options.add_argument("--words", type=int, default=3000, help="Length of the document")
    args = vars(options.parse_args())
    words = args.pop("words")
    llm = start(args, {"tiers": {"cpu": {"size": "2Gi"}}})

    day = "The keeper of the lighthouse wrote about wind, tides and ships."
    document = " ".join(f"Day {number}. {day}" for number in range(words // 13))
    for question in QUESTIONS:
        began = time.monotonic()
        (output,) = llm.generate(
            [f"{document}\n\nQuestion: {question}\nAnswer:"],
            SamplingParams(temperature=0, max_tokens=8),
            use_tqdm=False,
        )
        seconds = time.monotonic() - began
        tokens = len(output.prompt_token_ids or [])
        print(f"{question} {output.num_cached_tokens} of {tokens} tokens from kvpool, {seconds:.2f} seconds")

    end(llm)


if __name__ == "__main__":
    main()
