# The menu. Every target sets up what it needs; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
DEV := .venvs/dev/bin
ENGINE := .venvs/engine/bin
export PYTHONUNBUFFERED := 1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

# ---- see it work

# Asks first, before anything is installed, whether this machine has what a demo needs. The demo tells at its end how long all
# of it took and from which caches, so it is told when it began and what they were.
define play
@python3.11 -c "" 2>/dev/null || { \
  echo "demo: python3.11 is missing: install Python 3.11 and put it on the PATH" >&2; exit 1; }
@began=$$(date +%s) && caches=$$(python3.11 -m e2e.demo.preflight $(1)) && $(MAKE) --no-print-directory setup && \
  KVPOOL_BEGAN=$$began KVPOOL_CACHES=$$caches $(DEV)/python -m e2e.demo $(1)
endef

.PHONY: demo demo-down demo-engine
demo: ## The main job end to end: cluster, operator, pool, steps with figures (root)
	$(call play,cluster)
demo-down: ## End all that `make demo` started
	@tools/setup.sh dev
	$(DEV)/python -m e2e.demo.install down
demo-engine: ## The same steps with vLLM and Redis alone: no Kubernetes, no root
	$(call play,engine)

.PHONY: example-cpu-offloading
CPU_OFFLOADING := examples/vllm/cpu_offloading.py --num-prompts 5 --num-tokens 2048 --max-model-len 2304 --block-size 128 \
  --num-gpu-blocks-override 24 --enable-prefix-caching --dtype float32 --enforce-eager \
  --model "$${KVPOOL_CACHE:-$$HOME/.cache/kvpool}/models/SmolLM2-135M-Instruct"
example-cpu-offloading: setup ## examples/vllm/cpu_offloading.py without and with kvpool: prompts that do not fit the device
	@for pool in "" --enable-kvpool; do \
	  echo "==== $${pool:-vLLM alone}"; \
	  HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=WARNING VLLM_CPU_KVCACHE_SPACE=1 \
	    VLLM_CPU_OMP_THREADS_BIND=0-$$(($$(nproc) - 1)) PYTHONPATH=connector/src $(ENGINE)/python $(CPU_OFFLOADING) $$pool || exit 1; \
	done

# ---- tests

.PHONY: setup test check test-unit test-store test-apiserver test-controllers test-engine test-paced test-examples test-demo test-cluster test-cluster-stores test-ray test-slow
setup: ## Virtual environments, servers and the model, pinned and cached
	@tools/setup.sh dev engine servers
	@$(ENGINE)/python tools/make_model.py "$${KVPOOL_CACHE:-$$HOME/.cache/kvpool}/models/SmolLM2-135M-Instruct"
test: ## All checks and tests of a CI run, with times and the list of skips
	@tools/run_tests.sh
check: ## Format, lint, types, import contracts, generated files
	@tools/setup.sh dev engine
	$(DEV)/ruff format --check .
	$(DEV)/ruff check .
	$(DEV)/mypy --exclude '^testkit/paced/' operator/src connector/src/kvpool_connector/config e2e testkit bench/*.py bench/serving bench/stores operator/tests connector/tests/unit connector/tests/store
	$(DEV)/mypy --python-executable $(ENGINE)/python connector/src connector/tests/engine connector/tests/paced testkit/paced tools bench/engine
	MYPYPATH=examples/vllm $(DEV)/mypy --python-executable $(ENGINE)/python examples/vllm
	cd operator && PYTHONPATH=src:../connector/src ../$(DEV)/lint-imports --config importlinter.ini
	cd connector && PYTHONPATH=src ../$(DEV)/lint-imports --config importlinter.ini
	PYTHONPATH=operator/src:connector/src $(DEV)/python -m kvpool_operator.api.generate --check
test-unit: ## Pure tests: no server, no cluster, no vLLM
	@tools/setup.sh dev
	$(DEV)/pytest operator/tests/unit connector/tests/unit e2e/tests/unit -m "not slow"
test-store: ## The connector against every store: Redis, Valkey, Sentinel, lmcache_server, Mooncake
	@tools/setup.sh dev engine servers
	$(DEV)/pytest connector/tests/store operator/tests/store -m "not slow" -n 3 --dist loadfile
test-apiserver: ## The operator against a real kube-apiserver
	@tools/setup.sh dev servers
	$(DEV)/pytest operator/tests/apiserver -m "not slow" --ignore operator/tests/apiserver/controllers
test-controllers: ## InferenceServices and RayServices through KServe's and KubeRay's own controllers (built once: 10 minutes)
	@tools/setup.sh dev
	KVPOOL_TEST_CLUSTER=test-controllers $(DEV)/pytest operator/tests/apiserver/controllers -m "not slow" --durations=0 --durations-min=5
test-engine: setup ## The connector inside a real vLLM engine, byte for byte
	@tools/setup.sh partners
	$(ENGINE)/pytest connector/tests/engine -m "not slow" --durations=0 --durations-min=15
test-paced: setup ## The connector with CUDA's copies on an emulated GPU: every block checked when it is read
	$(ENGINE)/pytest connector/tests/paced -m "not slow"
test-examples: setup ## Every example of examples/vllm, with a real vLLM
	$(ENGINE)/pytest connector/tests/engine/test_examples.py connector/tests/engine/test_seeds.py
test-demo: setup ## The demo's steps on processes with short prompts, in float32 and in bfloat16
	$(DEV)/pytest e2e/tests/demo --durations=0 --durations-min=5
test-cluster: setup ## Pods on a real node (root)
	$(DEV)/pytest e2e/tests/e2e -m "not slow" --durations=0 --durations-min=5
test-cluster-stores: setup ## Every kind of store and the disk tier as Pods, also with real engines: not in CI (root; 25 min)
	$(DEV)/pytest e2e/tests/e2e/test_stores.py e2e/tests/e2e/test_disk.py e2e/tests/e2e/test_engines.py --durations=0 --durations-min=5
test-ray: setup ## Ray Serve with the connector on this CPU: not in CI (Ray, 0.5 GB; some minutes)
	@tools/setup.sh ray
	$(DEV)/pytest e2e/tests/ray
test-slow: setup ## What is too slow for every run
	@tools/setup.sh lmcache
	$(DEV)/pytest operator/tests connector/tests/unit connector/tests/store e2e/tests -m slow
	$(ENGINE)/pytest connector/tests/engine connector/tests/paced -m slow

# ---- generated files, figures

.PHONY: generate requirements bench-engine bench-admission bench-cold bench-stores bench-paced
generate: ## Write the CRD and what is made from it
	@tools/setup.sh dev
	PYTHONPATH=operator/src:connector/src $(DEV)/python -m kvpool_operator.api.generate
requirements: ## Compile the pins anew from requirements/*.in
	tools/compile_requirements.sh
bench-engine: setup ## The pool against vLLM alone and LMCache: first tokens, time between tokens, copy, index (35 min, quiet machine)
	@tools/setup.sh lmcache
	$(DEV)/python -m bench.serving $(ARGS)
bench-admission: setup ## Never worse than no cache: first tokens with a store behind 1, 10 and 100 MB/s
	$(DEV)/python -m bench.admission $(ARGS)
bench-paced: setup ## At a GPU's pace: the prefill estimate, documents of another engine, what hangs cost (needs root)
	PYTHONPATH=connector/src $(ENGINE)/python -m bench.engine.paced $(ARGS)
bench-stores: setup ## The stores' clients against raw streams and the usual clients (1 min, quiet machine)
	@tools/setup.sh lmcache
	$(DEV)/python -m bench.stores
bench-cold: setup ## What the connector costs a request that hits nothing: cold with it over cold without it
	$(DEV)/python -m bench.cold
