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

.PHONY: test
test: ## what CI runs first: format, vet, laws, generated files, unit and real tests
	hack/deps.sh test gen
	hack/check.sh format vet laws gen
	hack/check.sh test race RACE="$(RACE)"

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

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
