# Every command that developers and CI run. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

GO ?= go
BIN := $(CURDIR)/bin

# Where programs run: static, so that the image holds nothing else.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
STATIC := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
PROGRAMS := overlayd zlayer-cni
WINDOWS_ARCHS ?= amd64 arm64

# Tools come from a module of their own; users of this one don't inherit them.
TOOL := $(GO) tool -modfile=tools/go.mod
REFERENCE := bridge ptp loopback host-local

# ZLAYER_BIN names the programs that are run. Those under test have failpoints.
# TESTFLAGS goes to every `go test`, which leaves vet to `make verify`. BENCHFLAGS
# goes to the bench as it is, since a $ ends a regular expression.
TAGS := -tags failpoints
TESTFLAGS ?=
BENCHFLAGS ?=
test fuzz: export ZLAYER_BIN := $(BIN)/test
demo bench: export ZLAYER_BIN := $(BIN)

# The race detector is slow and needs a C compiler: it watches the packages
# whose goroutines share state.
RACE_PACKAGES := ./internal/... ./pkg/... ./cmd/overlayd
RACE := $(if $(shell command -v $$($(GO) env CC) 2>/dev/null),-race)

# Tests that need a kernel are those that enter test/netlab; those of test/e2e
# need a cluster.
NETNS_PACKAGES = $(sort $(dir $(shell grep -rl --include='*_test.go' --exclude-dir=e2e '"github.com/zlayer/zlayer-cni/test/netlab"' cmd internal pkg test)))
# Those that WireGuard in the kernel makes a difference to.
DATAPLANE_PACKAGES = $(filter-out pkg/dataplane/dns/ pkg/dataplane/nat/ pkg/dataplane/ping/,$(filter pkg/dataplane/% test/node/ test/nat/,$(NETNS_PACKAGES)))
# How to reach a kernel with WireGuard: empty runs on this one, otherwise a
# command that is given a folder and a command line to run in it as root.
KERNEL_RUN ?=
FUZZTIME ?= 30s

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/overlayd and bin/zlayer-cni
	$(STATIC) -o $(BIN)/ $(PROGRAMS:%=./cmd/%)

.PHONY: build-windows
build-windows: ## build both programs for Windows into bin/windows/amd64 and arm64
	@for arch in $(WINDOWS_ARCHS); do \
	  echo "build for windows/$$arch"; \
	  GOOS=windows GOARCH=$$arch $(STATIC) -o $(BIN)/windows/$$arch/ $(PROGRAMS:%=./cmd/%); \
	done

.PHONY: test-programs
test-programs: ## build the programs with failpoints into bin/test
	CGO_ENABLED=0 $(GO) build -trimpath $(TAGS) -o $(BIN)/test/ $(PROGRAMS:%=./cmd/%)

.PHONY: test
test: test-programs ## run all tests, as root or as an ordinary user
	$(GO) test -vet=off $(TAGS) $(RACE) $(TESTFLAGS) $(RACE_PACKAGES)
	$(GO) test -vet=off $(TAGS) $(TESTFLAGS) $$($(GO) list ./... | grep -vxFf <($(GO) list $(RACE_PACKAGES)))

.PHONY: test-race
test-race: test-programs ## drive a daemon that watches itself for races and dies of the first
	mkdir -p $(BIN)/race
	cp $(BIN)/test/zlayer-cni $(BIN)/race/
	CGO_ENABLED=1 $(GO) build -race -trimpath $(TAGS) -o $(BIN)/race/ ./cmd/overlayd
	ZLAYER_BIN=$(BIN)/race GORACE=halt_on_error=1 $(GO) test -vet=off -short $(TESTFLAGS) ./test/node

.PHONY: test-bundle
test-bundle: test-programs ## compile the namespace tests into bin/bundle, which runs without Go
	rm -rf $(BIN)/bundle
	test/bundle/make.sh $(BIN)/bundle $(BIN)/test $(NETNS_PACKAGES)

.PHONY: test-wine
test-wine: WINDOWS_ARCHS := amd64
test-wine: build-windows ## run the programs for Windows and their tests under Wine, with a stand-in for HCN
	test/wine/run.sh $(BIN)/windows/amd64

.PHONY: test-kernel
test-kernel: NETNS_PACKAGES := $(DATAPLANE_PACKAGES)
test-kernel: test-bundle ## run the data plane's tests on a kernel with WireGuard (KERNEL_RUN=command to reach it)
	$(if $(KERNEL_RUN),$(KERNEL_RUN) $(BIN)/bundle,cd $(BIN)/bundle &&) sh run.sh --wireguard $(TESTFLAGS)

.PHONY: demo
demo: export KEEP := $(KEEP)
demo: export NAT := $(NAT)
demo: build ## three nodes on this machine, from attach to ping (NAT=1: five, behind NATs; KEEP=1 leaves them up)
	$(GO) run ./test/demo

.PHONY: bench
bench: build reference-plugins reference-coredns ## measure against the reference plugins, a bare tunnel and CoreDNS (BENCHFLAGS='-run ^nat': that block alone)
	$(GO) run ./test/bench $(value BENCHFLAGS)

.PHONY: reference-plugins
reference-plugins: ## build the CNI project's own plugins into bin/reference
	CGO_ENABLED=0 $(GO) build -modfile=tools/go.mod -trimpath -ldflags '-s -w' -o $(BIN)/reference/ \
	  $$($(GO) list -modfile=tools/go.mod tool | grep -E '/plugins/.*/($(subst $(eval ) ,|,$(REFERENCE)))$$')

.PHONY: reference-coredns
reference-coredns: ## build CoreDNS into bin/reference
	CGO_ENABLED=0 $(GO) build -C tools/coredns -trimpath -ldflags '-s -w' -o $(BIN)/reference/ .

.PHONY: fuzz
fuzz: test-programs ## fuzz every target for FUZZTIME (30s)
	@grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd internal pkg test | \
	while IFS=: read -r file _ func; do \
	  echo "$$(dirname $$file) $${func#func }"; \
	  $(GO) test -run '^$$' -fuzz "^$${func#func }$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) </dev/null; \
	done

.PHONY: lint
lint: ## run golangci-lint
	$(TOOL) golangci-lint run --allow-parallel-runners ./...

# The plugin's and the wire's tests, which are linked for Windows as well. All
# that is for Windows is compiled with -trimpath, as build-windows needs it.
WINDOWS_TESTS := ./pkg/cni ./pkg/shim ./pkg/shim/ifname

.PHONY: verify
verify: ## formatting, vet on linux and windows, builds for windows, lint, tidy modules, the repository's own rules
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted:"; echo "$$unformatted"; exit 1; fi
	GOOS=linux $(GO) vet $(TAGS) ./...
	GOOS=linux $(GO) vet -tags e2e ./test/e2e
	@for arch in $(WINDOWS_ARCHS); do \
	  echo "vet, build and compile tests for windows/$$arch"; export GOOS=windows GOARCH=$$arch; \
	  $(GO) vet -trimpath ./...; \
	  $(GO) build -trimpath ./...; \
	  $(GO) test -c -trimpath -vet=off -o /dev/null $(WINDOWS_TESTS); \
	done
	$(GO) mod tidy -diff
	$(GO) -C tools mod tidy -diff
	$(GO) -C tools/coredns mod tidy -diff
	$(GO) test ./test/repo
	$(MAKE) --no-print-directory lint

# The image: the daemon, and in cni/ what it installs on its node. The CNI
# project's plugins, which are for Linux, get names of ours, see cmd/overlayd.
IMAGE ?= zlayer-cni:dev
# Windows is asked for: IMAGE_PLATFORMS="linux/amd64 linux/arm64 windows/amd64".
IMAGE_PLATFORMS ?= linux/amd64 linux/arm64
CHAINED := portmap bandwidth tuning
# WireGuard's libraries for Windows go beside the daemon: the folders bin of the
# archives of WireGuardNT and wintun, which have one for each architecture. Without
# them the daemon finds those that a node has in System32.
WINDOWS_DRIVERS ?=

.PHONY: image
image: ## pack the static programs as bin/image.tar, for docker load or ctr images import
	rm -rf $(BIN)/image
	@for platform in $(IMAGE_PLATFORMS); do \
	  echo "build for $$platform"; export GOOS=$${platform%/*} GOARCH=$${platform#*/}; tree=$(BIN)/image/$$platform; \
	  if [ $$GOOS = windows ]; then exe=.exe chained= drivers="$(WINDOWS_DRIVERS)"; else exe= chained="$(CHAINED)" drivers=; fi; \
	  $(STATIC) -o $$tree/overlayd$$exe ./cmd/overlayd; \
	  $(STATIC) -o $$tree/cni/zlayer-cni$$exe ./cmd/zlayer-cni; \
	  for plugin in $$chained; do \
	    CGO_ENABLED=0 $(GO) build -modfile=tools/go.mod -trimpath -ldflags '-s -w' -o $$tree/cni/zlayer-$$plugin github.com/containernetworking/plugins/plugins/meta/$$plugin; \
	  done; \
	  for folder in $$drivers; do cp $$folder/$$GOARCH/*.dll $$tree/; done; \
	done
	$(GO) run ./deploy/image -out $(BIN)/image.tar -tag $(IMAGE) $(IMAGE_PLATFORMS:%=$(BIN)/image/%)

# The cluster of make up. KIND_NODE_IMAGE names another node image than kind's own.
export CLUSTER ?= zlayer
export KIND ?= $(TOOL) kind

.PHONY: up
up: IMAGE_PLATFORMS := linux/$(shell $(GO) env GOARCH)
up: image ## a kind cluster with this network, or the current build into it if it is up
	test/kind/up.sh $(BIN)/image.tar

# A command that is given a pattern of names.
CONFORMANCE ?= test/kind/conformance.sh

# The cluster of KUBECONFIG; its nodes are containers of this machine. -v prints
# what was measured.
.PHONY: e2e
e2e: export E2E_MANIFEST := $(abspath $(or $(E2E_MANIFEST),deploy/daemonset.yaml))
e2e: ## test a running kind cluster that has this network, as root (E2E_* as in CONTRIBUTING.md)
	$(GO) test -vet=off -tags e2e -count=1 -timeout 3h -v $(TESTFLAGS) ./test/e2e

.PHONY: conformance
conformance: ## Kubernetes' own conformance tests of the network, on the cluster of make up
	$(CONFORMANCE) '\[sig-network\].*\[Conformance\]'

.PHONY: down
down: ## remove the cluster of make up
	$(KIND) delete cluster --name $(CLUSTER)

.PHONY: clean
clean: ## remove bin
	rm -rf $(BIN)
