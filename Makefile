# Two commands on a fresh machine:  make demo   make test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN  := $(VENV)/bin
PY   := $(BIN)/python
PROTOS := $(wildcard proto/novamesh_proto/v1/*.proto)
PARTS  := node,coordinator
EXTRAS := $(PARTS),test
# By uv, which needs no compiler for it; pip is the other way (docs/mesh.md).
P2P := libp2p==0.8.1
SERVERS := mosquitto
SEEDS ?= 10000
ROUNDS ?= 25
MESSAGES ?= 100000
MINUTES ?= 30
SECONDS ?= 600
# benchmarks/NAME.py, and what each is asked in turn; `make network` is all of them, in half an hour.
NETWORK := failover mesh paths presence standby
failover: MODES = killed silent
standby presence: MODES = ""
mesh: MODES = outage churn tunnel
paths: MODES = reverse direct tunnel relay beside
.DELETE_ON_ERROR:   # half a venv would be taken for a whole one
.PHONY: demo test coverage mutants sim crash chaos disk restart done images network $(NETWORK) fuzz hostile siege load soak sanitize kernels lint fix proto check-proto check-compose docs bench train clean

demo: $(VENV)/.demo
	$(BIN)/novamesh demo
test: $(VENV)/.run $(VENV)/.servers
	$(PY) -m pytest -n 2 --dist loadfile
coverage: $(VENV)/.run
	cd tests && ../$(PY) -m support.own_coverage $(MODULES)
mutants: $(VENV)/.mutants
	cd tests && ../$(PY) -m support.mutants $(MODULES)
sim: $(VENV)/.run
	cd tests && ../$(PY) -m support.sim.campaign --seeds $(SEEDS)
crash: $(VENV)/.run
	cd tests && GRPC_VERBOSITY=NONE ../$(PY) -m support.crash --rounds $(ROUNDS)
	cd tests && GRPC_VERBOSITY=NONE ../$(PY) -m support.kills --jobs 200
chaos: $(VENV)/.run
	cd tests && GRPC_VERBOSITY=NONE ../$(PY) -m support.chaos --jobs 200
disk: $(VENV)/.run
	cd tests && GRPC_VERBOSITY=NONE ../$(PY) -m support.disk_faults --rounds $(ROUNDS)
restart: $(VENV)/.run
	PYTHONPATH=tests $(PY) benchmarks/restart.py
done: $(VENV)/.run $(VENV)/.servers
	NOVAMESH_TEST_DONE_SLOTS=2 NOVAMESH_TEST_DONE_TOKENS=4000 $(PY) -m pytest -rP tests/e2e/test_done.py
images: $(VENV)/.run $(VENV)/.servers
	cd tests && ../$(PY) -m support.images
	NOVAMESH_TEST_IMAGES=$(CURDIR)/build/images $(PY) -m pytest tests/e2e/test_compose_pool.py
network:
	@for name in $(NETWORK); do $(MAKE) --no-print-directory $$name || missed=1; done; test -z "$$missed"
$(NETWORK): $(VENV)/.run $(VENV)/.servers
	@for mode in $(MODES); do echo "== $@ $$mode"; \
	  PYTHONPATH=tests $(PY) benchmarks/$@.py $$mode || missed=1; done; test -z "$$missed"
fuzz: $(VENV)/.fuzz
	cd tests && ../$(PY) -m support.fuzz.campaign --minutes $(MINUTES)
hostile: $(VENV)/.run
	cd tests && ../$(PY) -m support.hostile.storm --messages $(MESSAGES)
siege: $(VENV)/.run
	GRPC_VERBOSITY=NONE PYTHONPATH=tests $(PY) benchmarks/hostile.py
load: $(VENV)/.run
	@for mode in core latency idle overload snapshot "steady --seconds $(SECONDS)"; do echo "== $$mode"; \
	  PYTHONPATH=tests $(PY) benchmarks/coordinator.py $$mode || missed=1; done; test -z "$$missed"
soak: $(VENV)/.run
	PYTHONPATH=tests $(PY) benchmarks/coordinator.py soak --rate 5 --seconds 3600
sanitize:
	mkdir -p build
	@for kind in address,undefined thread; do echo "== $$kind"; \
	  $(CXX) -std=c++17 -O1 -g -fsanitize=$$kind -fno-sanitize-recover=all -ffp-contract=off -w -I engine/native \
	    tests/engine/native/steps.cpp engine/native/*.cpp -pthread -o build/steps && setarch -R build/steps || exit 1; done
kernels: $(VENV)/.run
	cd tests && TRITON_CACHE_DIR=$$(mktemp -d) ../$(PY) -m support.ahead
lint: $(VENV)/.dev check-proto check-compose
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
	@if [ -x $(BIN)/hadolint ]; then echo hadolint && $(BIN)/hadolint --failure-threshold style Dockerfile; \
	else echo "the Dockerfile is not linted: hadolint has no build for this machine"; fi
	$(BIN)/lint-imports && $(BIN)/buf lint && $(BIN)/buf format -d --exit-code
	$(BIN)/buf breaking --against proto/v1.binpb   # docs/protocol.md, section 9
fix: $(VENV)/.dev
	$(PY) -m ruff check --fix . && $(PY) -m ruff format . && $(BIN)/buf format -w
proto: $(VENV)/.run
	PATH=$(BIN):$$PATH $(PY) -m grpc_tools.protoc -I proto --python_out=proto --grpc_python_out=proto \
	  --mypy_out=quiet:proto --mypy_grpc_out=quiet:proto $(PROTOS)
check-proto: proto
	git diff --exit-code -- proto/novamesh_proto/v1
check-compose: $(VENV)/.run
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
docs: $(VENV)/.run
	$(PY) -m novamesh.cli.reference > docs/cli.md
bench: $(VENV)/.run
	$(PY) benchmarks/protocol.py
train: $(VENV)/.run
	$(BIN)/novamesh recipe train --preset pico --seed 0
clean:
	rm -rf $(VENV) build

# Debian's Python without python3-venv makes no pip of its own, but brings one that fills the venv.
$(PY):
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(PY) install --quiet pip; }
	$(PY) -m pip install --quiet --upgrade pip
# Without a C++ compiler the wheel is pure and the engine computes with torch: `novamesh doctor` says which.
SETUP := pyproject.toml constraints.txt $(wildcard engine/native/*)
$(VENV)/.demo: $(SETUP) | $(PY)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(PARTS)]'
	@touch $@
$(VENV)/.run: $(SETUP) | $(PY)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]' uv
	@if $(PY) -m uv pip install --quiet --python $(PY) -c constraints.txt '$(P2P)'; \
	then echo "$(P2P): installed by uv, nothing was compiled"; \
	else echo "$(P2P): uv could not; by pip, which compiles fastecdsa"; \
	  $(PY) -m pip install --quiet -c constraints.txt '$(P2P)'; fi
	@touch $(VENV)/.demo $@
# Programs of Debian's that tests run against, unpacked below build/; a test that misses one says so.
$(VENV)/.servers: tests/support/debian_packages.py $(VENV)/.run
	-$(PY) $< $(SERVERS) && touch $@
$(VENV)/.fuzz: $(VENV)/.run
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),fuzz]'
	@touch $@
$(VENV)/.mutants: $(VENV)/.run
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),mutants]'
	@touch $@
$(VENV)/.dev: $(VENV)/.run
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),dev]'
	@touch $@
