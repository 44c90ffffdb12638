# compute-agent. `make` prints what can be made. Nothing is needed beyond make, Go and, for the race detector, a C
# compiler; what else a target wants, it fetches itself (Go modules into .cache/bin, Debian packages when root).

MODULE  := github.com/compute-agent/compute-agent
BIN     := bin/compute-agent
TOOLS   := $(CURDIR)/.cache/bin
LINTER  := $(TOOLS)/golangci-lint
VULN    := $(TOOLS)/govulncheck

VERSION ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//')
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null)
STAMP    = $(MODULE)/internal/version
LDFLAGS  = -s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)

DRIVER    ?= fake
TESTFLAGS ?=
BENCH     ?= .
CASTS     ?= 100000
# Minutes that they may take: more than four times what they took on a machine with other work.
SOAKTIME  ?= $(shell echo $$((10 + $(CASTS) / 2000)))
SEEDS     ?= 100000
SEED      ?=
FRESH     ?= 3000
TIMES     ?= 1
FUZZTIME  ?= 30s
PREFIX    ?= /usr
SYSCONF   ?= /etc
UNITS     ?= $(PREFIX)/lib/systemd/system
SYSUSERS  ?= $(PREFIX)/lib/sysusers.d
TMPFILES  ?= $(PREFIX)/lib/tmpfiles.d

# Everything but the lab, which needs root and starts hypervisors.
PACKAGES = $(shell go list ./... | grep -v '/test/lab')
UNIT     = $(shell go list ./... | grep -v '/test/')
# The tests that can write their golden files again know the flag -update.
GOLDEN   = $(shell grep -rlE 'Bool."update"' --include='*_test.go' . | xargs -r -n1 dirname | sort -u)

GOTEST = CGO_ENABLED=1 go test -race -shuffle=on -timeout 10m $(TESTFLAGS)

.DEFAULT_GOAL := help
.PHONY: help build demo test unit e2e lab lab-rare lab-matrix sim bench soak microbench fuzz lint fmt fmt-check vet tidy vuln golden generate cover ci clean install units cc

help: ## print what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/compute-agent: static, without machine paths, with its version inside
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/compute-agent

demo: build ## two hosts, one instance, a live migration and a reboot (DRIVER=fake or libvirt)
	DRIVER=$(DRIVER) BIN=$(CURDIR)/$(BIN) test/demo/demo.sh

test: cc ## unit, contract and e2e tests with the race detector, up to FRESH seeds of the simulation, then the lab when it can run (LAB=required: it must)
	$(GOTEST) $(PACKAGES)
	go -C test/bench test ./...
	go test -count=1 -v -timeout 15m -run '^Test(Simulation|RestartTable)$$' ./test/sim -seeds $(FRESH) -limit 70s -floor 200
	@LAB='$(LAB)' TESTFLAGS='$(TESTFLAGS)' tools/lab.sh

unit: cc ## unit and contract tests with the race detector
	$(GOTEST) $(UNIT)

e2e: cc ## the main scenario on the fake driver, without root
	$(GOTEST) -count=1 ./test/e2e/...

lab: cc ## the main scenario on real hypervisors, as root; fails when it can't run
	@LAB=required TESTFLAGS='$(TESTFLAGS)' tools/lab.sh

fuzz: ## run each fuzz target for FUZZTIME (30s, or a count: 200000x) and tell how often it was executed
	@tools/fuzz.sh '$(FUZZTIME)'

lab-rare: ## the scenarios of which the lab's ordinary run does one a day, all of them (RARE='volumes|TLS': some), as root
	@test/lab/setup.sh
	COMPUTE_AGENT_LAB=required COMPUTE_AGENT_LAB_RARE='$(or $(RARE),all)' \
		go test -count=1 -v -timeout 60m -run '^(TestRare|TestAbortInEachPhase)$$' $(TESTFLAGS) ./test/lab

lab-matrix: ## every cell of the kill matrix, about half an hour, as root; writes its table into docs/reliability.md
	@test/lab/setup.sh
	COMPUTE_AGENT_LAB=required COMPUTE_AGENT_LAB_MATRIX='$(or $(CELLS),all)' COMPUTE_AGENT_LAB_TABLE=write \
		go test -count=1 -v -timeout 90m -run '^TestKillMatrix$$' $(TESTFLAGS) ./test/lab

sim: ## whole agents, faults drawn from seeds, virtual time (SEEDS=100000, or SEED=n to play one, TIMES=n)
	go test -count=1 -timeout 24h -v -run '^TestSimulation$$' ./test/sim $(if $(SEED),-seeds 1 -first $(SEED) -times $(TIMES),-seeds $(SEEDS))

bench: ## figures beside peers and floors (BENCH=start,calls,finish,casts,monitors,green,lab); see docs/performance.md
	go build -C test/bench -o $(CURDIR)/.cache/bench/agent-bench ./agent
	cd test/bench && $(CURDIR)/.cache/bench/agent-bench -only '$(BENCH)' $(BENCHFLAGS)

microbench: ## the packages' own benchmarks (BENCH=regexp)
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(TESTFLAGS) $(UNIT)

soak: ## 100,000 casts while the agent is killed and the server restarted: none lost, none twice (CASTS=n, SOAKTIME=minutes)
	go test -count=1 -timeout $$(($(SOAKTIME) + 10))m ./test/loss/... $(TESTFLAGS) -v -args -casts $(CASTS) -limit $(SOAKTIME)m

lint: $(LINTER) ## golangci-lint with .golangci.yml, at the version pinned in tools/go.mod
	$(LINTER) run ./...

fmt: $(LINTER) ## format the code (gofumpt, imports in three groups)
	$(LINTER) fmt ./...

fmt-check: $(LINTER) ## fail when `make fmt` would change something
	@out=$$($(LINTER) fmt --diff ./... 2>&1) || { printf '%s\n' "$$out"; echo 'do: make fmt'; exit 1; }

vet: ## go vet, of the benches too
	go vet ./...
	go -C test/bench vet ./...

tidy: ## check that go.mod and go.sum of every module say what the code needs
	@find . -name go.mod -not -path './.cache/*' -not -path '*/testdata/*' -printf '%h\n' | sort | while read -r dir; do \
		echo "go -C $$dir mod tidy -diff"; go -C "$$dir" mod tidy -diff || exit 1; done

vuln: $(VULN) ## look for known vulnerabilities that the code can reach (says so when the data can't be fetched)
	@tools/vuln.sh $(VULN)

golden: ## write the golden files of the tests again; read the diff before you commit it
	@[ -n '$(GOLDEN)' ] || { echo 'no test knows the flag -update'; exit 0; }; \
	set -x; go test -count=1 $(GOLDEN) -update

generate: ## write the generated documentation again
	go generate ./...

cover: cc ## statement coverage of all tests but the lab: cover.out, cover.html and the total
	CGO_ENABLED=1 go test -race -coverpkg=./... -coverprofile=cover.out $(PACKAGES) > cover.log || { cat cover.log; exit 1; }
	go tool cover -html=cover.out -o cover.html
	go tool cover -func=cover.out | tail -1

units: ## check the systemd unit and the system user (where systemd is installed)
	@tools/units.sh

ci: ## what CI runs in a fresh clone; needs root for the lab
	.ci/run

clean: ## remove what was built, tools included
	rm -rf bin dist .cache cover.out cover.html cover.log

install: ## install the built binary, the unit and a first config (DESTDIR, PREFIX, SYSCONF)
	@[ -x $(BIN) ] || { echo '$(BIN) is missing: run make build first'; exit 1; }
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/compute-agent
	install -d $(DESTDIR)$(UNITS)
	sed 's|/usr/bin/compute-agent|$(PREFIX)/bin/compute-agent|; s|/etc/compute-agent|$(SYSCONF)/compute-agent|' \
		systemd/compute-agent.service > $(DESTDIR)$(UNITS)/compute-agent.service
	chmod 0644 $(DESTDIR)$(UNITS)/compute-agent.service
	install -D -m 0644 systemd/compute-agent.sysusers $(DESTDIR)$(SYSUSERS)/compute-agent.conf
	install -D -m 0644 systemd/compute-agent.tmpfiles $(DESTDIR)$(TMPFILES)/compute-agent.conf
	[ -e $(DESTDIR)$(SYSCONF)/compute-agent/compute-agent.toml ] || \
		install -D -m 0640 systemd/compute-agent.toml $(DESTDIR)$(SYSCONF)/compute-agent/compute-agent.toml

# The race detector needs a C compiler.
cc:
	@tools/cc.sh

# The tools are built once, from their own module, so that go.mod stays lean.
$(LINTER): tools/go.mod tools/go.sum
	go build -C tools -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(VULN): tools/go.mod tools/go.sum
	go build -C tools -o $@ golang.org/x/vuln/cmd/govulncheck
