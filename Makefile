# Kiln's build. `make` alone lists what there is to make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build test conformance demo frontends bench soak lint generate fmt clean

# All programs and tests are compiled in one way, and therefore once. The tags
# leave text/template out, with which the linker keeps what nobody calls: a quarter
# of the program. All works without them, too.
export CGO_ENABLED = 0
export GOFLAGS := -trimpath -tags=grpcnotrace,urfave_cli_no_template $(GOFLAGS)

ONLY ?=
SEEDS ?= 100000
KILLS ?= 1000
HISTORIES ?= 5000

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: bin/kiln-runc ## build bin/kiln and the container runtime beside it
	scripts/setup
	go build -ldflags='-s -w' -o bin/kiln ./cmd/kiln

test: build bin/registry ## install what is missing, then run all tests
	mkdir -p bin/path && ln -sf ../kiln-runc bin/path/runc && ln -sf ../registry bin/path/registry
	PATH="$(CURDIR)/bin/path:$$PATH" go test -timeout 30m ./...

conformance: build bin/registry bin/azurite-blob ## run BuildKit's clients, daemon and own tests against Kiln
	go -C conformance test -json -timeout 40m -count=1 ./... | go -C conformance run ./tally

demo: build bin/registry ## build an image from nothing, push it, run it, twice
	scripts/demo

frontends: build ## build the images of the ready frontends
	scripts/frontends

bench: build ## race Kiln and buildkitd; ONLY=name,... runs some cases, KEEP=1 keeps their rows in RESULTS.md
	go -C bench run . -kiln "$(CURDIR)/bin/kiln" -runtime "$(CURDIR)/bin/kiln-runc" -only "$(ONLY)" $(if $(KEEP),-keep)

soak: build ## run SEEDS histories of the solver's simulation and HISTORIES of builds, kill the daemon KILLS times, have frontends make each call 100,000 times, log a line of 4 GiB
	go test -count=1 -timeout 2h -run Simulation ./internal/solver -seeds $(SEEDS)
	go test -count=1 -timeout 8h -run TestHistories ./cmd/kiln -histories $(HISTORIES)
	go test -count=1 -timeout 8h -run 'TestKill' ./cmd/kiln -kills $(KILLS)
	go test -count=1 -timeout 2h -run 'TestEachCallWithoutEnd' ./internal/daemon -calls 100000
	go test -count=1 -timeout 2h -run 'TestEndlessLine' ./cmd/kiln -line 4096

lint: bin/golangci-lint ## run go vet and the linters
	go vet ./...
	bin/golangci-lint run

generate: ## write the generated protobuf code anew
	go -C tools/genproto run .

fmt: bin/golangci-lint ## format the Go code
	bin/golangci-lint fmt

clean: ## remove everything built
	rm -rf bin bench/out

# The programs below come from modules of their own, so that their dependencies
# do not bear on Kiln's. They are built once for each version.
bin/kiln-runc: tools/runc/go.mod tools/runc/go.sum
	scripts/setup
	CGO_ENABLED=1 go -C tools/runc build -tags 'seccomp netgo osusergo' \
		-ldflags '-s -w -extldflags -static' -o "$(CURDIR)/$@" github.com/opencontainers/runc

bin/registry: tools/registry/go.mod tools/registry/go.sum
	scripts/setup
	go -C tools/registry build -o "$(CURDIR)/$@" github.com/distribution/distribution/v3/cmd/registry

bin/azurite-blob: # an emulator of Azure's storage, of which only some tests know
	npm install --prefix bin/azurite --no-save --no-audit --no-fund --ignore-scripts --loglevel=error azurite@3.37.0
	ln -sf azurite/node_modules/.bin/azurite-blob $@

bin/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	go -C tools/lint build -o "$(CURDIR)/$@" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
