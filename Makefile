# SPDX-License-Identifier: Apache-2.0
# Targets and what they do are printed by a bare `make`. Needed are Go and make; where a target needs
# more, its line says so.

GO        ?= go
BIN       := bin/tcbee-export
VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOLS     := internal/tools/go.mod
TOOL      := $(GO) tool -modfile=$(TOOLS)
CLANG     := clang-19
STRIP     := llvm-strip-19
BENCH     ?= .
BENCHTIME ?= 1s
BENCHPKG  ?= ./...
COUNT     ?= 1
FUZZTIME  ?= 30s
FUZZFLAGS ?=
PKG       ?= ./...
TESTFLAGS ?=
# The builder's version decides that of the Collector's core.
BUILDER   := go.opentelemetry.io/collector/cmd/builder@v0.161.0
OTELCOL   := _build/otelcol/otelcol-tcbee

# Nothing here needs a C compiler, but for the race detector.
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help download build demo test test-race test-kernel bench generate lint fmt otelcol otelcol-test cover fuzz clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

download: ## fetch all modules that the other targets use
	@for os in linux darwin windows; do GOOS=$$os $(GO) list -deps -test ./... >/dev/null || exit; done
	$(GO) list -modfile=$(TOOLS) -deps tool >/dev/null
	@mkdir -p _build
	$(GO) run $(BUILDER) --config=otelcol-builder.yaml --skip-compilation

build: ## build bin/tcbee-export
	@mkdir -p $(dir $(BIN))
	$(GO) build -trimpath -ldflags '-s -w -X github.com/tcbee/tcbee-export/internal/pipeline.version=$(VERSION)' -o $(BIN) ./cmd/tcbee-export

demo: build ## a lossy link, a transfer over it, and its metrics, live (root; without, a recorded one is shown)
	./$(BIN) demo

# One package at a time: the hooks and counters are those of the whole machine, and tests that count must not meet
# one another's traffic.
test: ## all tests; as root also those that load programs into the kernel
	$(GO) test -p 1 -timeout 20m $(TESTFLAGS) $(PKG)

test-race: ## all tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -p 1 -timeout 30m $(TESTFLAGS) $(PKG)

test-kernel: ## capture tests in QEMU guests of other kernels (needs Debian, root, qemu-system-x86 busybox-static cpio kmod)
	internal/kerneltest/run.sh $(KERNELS)

bench: ## run the benchmarks; their figures also go to bench.json (BENCH=regexp BENCHTIME=1s COUNT=1 BENCHPKG=./...)
	$(GO) run ./internal/benchjson -o bench.json $(GO) test -timeout 60m -run '^$$' -bench '$(BENCH)' \
		-benchmem -benchtime $(BENCHTIME) -count $(COUNT) -p 1 $(BENCHPKG)

# Inputs are shortened for a few tries only: many targets keep what they have read before, and the fuzzer would try for a minute each time.
fuzz: ## fuzz every decoder in turn for FUZZTIME=30s each (FUZZFLAGS='-parallel 1' PKG=./...)
	@set -e; for pkg in $$($(GO) list $(PKG)); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $(FUZZFLAGS) $$pkg; \
		done; \
	done

cover: ## test coverage: the sum, and coverage.html
	$(GO) test -timeout 20m -coverprofile=coverage.out -coverpkg=./... $(PKG)
	$(GO) tool cover -html=coverage.out -o coverage.html
	$(GO) tool cover -func=coverage.out | tail -n 1

generate: ## compile the kernel programs and write generated code (needs clang-19 and llvm-19)
	@for tool in $(CLANG) $(STRIP); do command -v $$tool >/dev/null || { \
		echo "make generate: $$tool is not installed; on Debian: apt-get install clang-19 llvm-19 libbpf-dev" >&2; exit 1; }; done
	$(GO) generate ./bpf/...

lint: ## run the linters, import rules included
	$(TOOL) golangci-lint run

fmt: ## format Go code
	$(TOOL) golangci-lint fmt

otelcol: ## build a Collector with the receiver tcbee, _build/otelcol/otelcol-tcbee, and check the sample configuration with it
	@mkdir -p _build
	$(GO) run $(BUILDER) --config=otelcol-builder.yaml
	./$(OTELCOL) validate --config=tcbeereceiver/testdata/config.yaml

otelcol-test: otelcol ## run that Collector with the sample configuration on real traffic (root)
	TCBEE_OTELCOL=$(CURDIR)/$(OTELCOL) $(GO) test -count=1 -run Otelcol -v ./tcbeereceiver

clean: ## remove what was built
	rm -rf bin _build bench.json coverage.out coverage.html
