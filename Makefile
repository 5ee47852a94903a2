# weft: `make demo` shows it, `make test` checks it, `make help` lists the rest.
# CONTRIBUTING.md explains each target; the bodies that are long live in hack/ and test/.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --always --dirty --tags 2>/dev/null || echo dev)
GOARCH  ?= $(shell go env GOARCH)
GOFLAGS_STATIC = -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

# Packages whose goroutines share memory: their tests run under the race detector.
RACE = ./internal/run/... ./internal/store/... ./internal/reconcile/... ./internal/api/... \
       ./internal/mesh/... ./internal/source/... ./internal/ipam/... ./internal/agent/...

.PHONY: build
build: ## bin/weft and bin/weft-cni, static, with Go alone
	CGO_ENABLED=0 GOARCH=$(GOARCH) go build $(GOFLAGS_STATIC) -o bin/weft ./cmd/weft
	CGO_ENABLED=0 GOARCH=$(GOARCH) go build $(GOFLAGS_STATIC) -o bin/weft-cni ./cmd/weft-cni

.PHONY: demo clean-demo
demo: build ## three nodes on this machine: what reaches what, with times
	bin/weft lab demo
clean-demo: ## end the demo and leave nothing of it
	bin/weft lab down --name demo

.PHONY: test
test: ## what CI runs first: format, vet, laws, generated files, unit and real tests
	hack/deps.sh test gen
	hack/check.sh format vet laws gen
	hack/check.sh test race RACE="$(RACE)"
	$(MAKE) build
	hack/check.sh behaviour

.PHONY: lint
lint: ## golangci-lint (built and cached on first use) and shellcheck
	hack/deps.sh lint
	hack/check.sh lint

.PHONY: gen
gen: ## re-create BPF objects, bindings and generated documents
	hack/deps.sh gen
	go generate ./...

.PHONY: test-kernels
test-kernels: ## the datapath's tests on Debian's 6.1 and 6.12, each in a small VM
	hack/deps.sh vm
	go run ./test/vm

CHART = $(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' deploy/chart/weft/Chart.yaml)

.PHONY: image
image: ## bin/weft-image-{amd64,arm64}.tar, OCI archives, without a container engine
	for a in amd64 arm64; do \
	  CGO_ENABLED=0 GOARCH=$$a go build $(GOFLAGS_STATIC) -o bin/$$a/ ./cmd/weft ./cmd/weft-cni; \
	  go run ./internal/image/cmd/weft-image -name localhost/weft:$(VERSION),localhost/weft:$(CHART) -arch $$a -from bin/$$a -o bin/weft-image-$$a.tar; \
	done

.PHONY: manifest
manifest: ## deploy/weft.yaml, rendered from the chart
	hack/deps.sh e2e
	{ echo "# Rendered from deploy/chart/weft by make manifest."; go run ./test/e2e/cmd/cluster manifest; } >bin/weft.yaml
	mv bin/weft.yaml deploy/weft.yaml

.PHONY: cluster
cluster: ## a real Kubernetes cluster with weft on this machine; prints how to use and end it
	hack/deps.sh e2e
	go run ./test/e2e/cmd/cluster up

.PHONY: e2e
e2e: ## the tests that need a real Kubernetes cluster: made for it, and removed
	hack/deps.sh e2e
	go run ./test/e2e/cmd/cluster binaries
	go test -tags e2e -count=1 -timeout 40m -v ./test/e2e

.PHONY: bench
bench: build ## weft beside its peers on this machine, see docs/benchmarks.md; ARGS="-quick"
	go run ./test/bench $(ARGS)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
