# Sallyport. `make` shows what there is to do.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

MODULES := gen internal services/internal services/inventory services/issuer services/deployer services/audit agent auditlog cli pebbletest docs/examples tests
# Whose tests take longest comes first, so that none of them is left to run alone.
PARTS := ./cli/... ./services/internal/... ./services/audit/... $(patsubst %,./%/...,$(filter-out cli services/internal services/audit gen tests,$(MODULES)))
ALONE := ./tests/fleet/... ./tests/torture/...
WHOLE := $(filter-out $(ALONE),$(patsubst %/,./%/...,$(wildcard tests/*/)))
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DATE    := $(shell git log -1 --format=%cI 2>/dev/null)
BOOT    := github.com/sallyport-pki/sallyport/internal/boot
LDFLAGS := -s -w -X $(BOOT).version=$(VERSION) -X $(BOOT).commit=$(COMMIT) -X $(BOOT).date=$(DATE)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
TOOLS   := .tools/bin
FUZZTIME ?= 10s

# What only looks compiles as the build does: most of a run on a new machine is compiling.
docs verify-docs isolated lint: export CGO_ENABLED := 0
docs verify-docs isolated lint: export GOFLAGS := $(GOFLAGS) -trimpath

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST) | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi

.PHONY: build
build: ## Build sallyport, sallyport-agent and the four daemons into bin/ (static)
	@mkdir -p bin
	@$(GOBUILD) -o bin/ ./cli/cmd/sallyport ./agent/cmd/sallyport-agent \
	  ./services/inventory/cmd/sallyport-inventory ./services/issuer/cmd/sallyport-issuer \
	  ./services/deployer/cmd/sallyport-deployer ./services/audit/cmd/sallyport-audit

.PHONY: previous
previous: ## Build the version before this one into bin/previous, for the upgrade tests
	@scripts/build-previous

.PHONY: demo
demo: build ## Show the main job on this machine, then stop clean (KEEP=1 stays up)
	@$(GOBUILD) -o bin/sallyport-demo ./tests/demo
	@bin/sallyport-demo $(if $(KEEP),--keep)

.PHONY: test
test: tools verify-gen verify-tidy verify-docs isolated cross lint race ## Everything CI runs: install what is missing, verify, lint, build, test with the race detector

.PHONY: race
race: build previous ## All tests, race detector on (vet is in lint); parts mostly wait, so three at once; of the whole product two, always anew; those that fill the machine alone
	@rc=0; \
	  export CGO_ENABLED=1; \
	  go test -race -vet=off -p 3 -timeout 20m $(PARTS) || rc=1; \
	  go test -race -vet=off -count=1 -timeout 20m -p 2 $(WHOLE) || rc=1; \
	  go test -race -vet=off -count=1 -timeout 20m -p 1 $(ALONE) || rc=1; \
	  exit $$rc

.PHONY: unit
unit: ## The tests of the parts, without the race detector
	@go test -timeout 20m $(PARTS)

.PHONY: tools
tools: ## Install what the tests need (with apt as root; else print the command and fail)
	@scripts/install-tools

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/buf ## Lint protos and Go, import table included
	@$(TOOLS)/buf lint
	@$(TOOLS)/buf breaking --against proto/released.binpb
	@$(TOOLS)/golangci-lint run --allow-parallel-runners $(PARTS) ./tests/...

.PHONY: fix-lint
fix-lint: $(TOOLS)/golangci-lint ## Repair what the linter can
	@$(TOOLS)/golangci-lint run --allow-parallel-runners --fix $(PARTS) ./tests/...

.PHONY: gen
gen: $(TOOLS)/buf ## Generate Go from the protos
	@rm -rf gen/sallyport
	@$(TOOLS)/buf generate

.PHONY: verify-gen
verify-gen: gen ## Generated code is what the protos say
	@test -z "$$(git status --porcelain -- gen)" || { git --no-pager diff --stat -- gen; git status --porcelain -- gen; echo 'gen/ is stale: run "make gen" and commit'; exit 1; }

.PHONY: released
released: $(TOOLS)/buf ## Take today's protos as the ones that must never break (at a release)
	@$(TOOLS)/buf build --exclude-source-info -o proto/released.binpb

.PHONY: verify-tidy
verify-tidy: ## Every go.mod is tidy
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy -diff >/dev/null) || { echo "$$m/go.mod is not tidy: run \"make fix-tidy\""; exit 1; }; done

.PHONY: fix-tidy
fix-tidy: ## Tidy every go.mod
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy); done

.PHONY: docs
docs: ## Write docs/reference from the code
	@go run ./cli/cmd/sallyport docs docs/reference
	@go run ./tests/reference

.PHONY: verify-docs
verify-docs: docs ## Reference docs are what the code says
	@test -z "$$(git status --porcelain -- docs/reference)" || { git --no-pager diff --stat -- docs/reference; echo 'docs/reference is stale: run "make docs" and commit'; exit 1; }

.PHONY: isolated
isolated: ## Every module builds alone, without the workspace
	@for m in $(MODULES); do (cd $$m && GOWORK=off go build -o /dev/null ./... ) || { echo "$$m does not build alone"; exit 1; }; done

.PHONY: cross
cross: ## The agent builds for linux/arm64 and windows/amd64
	@for t in linux/arm64 windows/amd64; do (cd agent && GOOS=$${t%/*} GOARCH=$${t#*/} CGO_ENABLED=0 go build -o /dev/null ./cmd/sallyport-agent); done

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 10s each)
	@scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## Measure beside floors, about 3 minutes on an idle machine (BENCH=-h lists what can be set)
	@$(GOBUILD) -o bin/sallyport-bench ./tests/bench
	@bin/sallyport-bench $(BENCH)

.PHONY: fleet
fleet: ## Run a fleet of real agents in one process through storms, AGENTS of them (default 1000; 3.5 open files each)
	@cd tests && go test -count=1 -timeout 40m -v ./fleet -agents $(or $(AGENTS),1000)

.PHONY: torture
torture: build ## Kill everything KILLS times (default 3000), at every point and at random; SEED repeats a run; cut the power, take the brokers away
	@cd tests && go test -count=1 -timeout 120m -v -run TestTorture ./torture -kills $(or $(KILLS),3000) $(if $(SEED),-seed $(SEED))
	@cd tests && go test -count=1 -timeout 60m -v -run 'PowerCuts|FirstStart' ./disk -rounds 40 -first-rounds 200 $(if $(SEED),-seed $(SEED))
	@cd tests && go test -count=1 -timeout 60m -v -run 'BrokerAway|Cluster' ./daemons -away 5m -kills 10

.PHONY: later
later: ## Run the upgrade tests as if it were DAYS later (default 62, 100 and 1200); scripts/later does it with other tests
	@for d in $(or $(DAYS),62 100 1200); do scripts/later $$d; done

.PHONY: vuln
vuln: ## Look for known vulnerabilities (needs the Go vulnerability database)
	@for m in $(MODULES); do (cd $$m && GOWORK=off go run golang.org/x/vuln/cmd/govulncheck@v1.8.0 ./...); done

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin

$(TOOLS)/buf $(TOOLS)/golangci-lint:
	@scripts/install-tools --go-only
