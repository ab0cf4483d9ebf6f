# Millrace. make help lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# What starts servers in containers has Docker's client in it, so it is built in only where containers are asked for by
# MILLRACE_STACK=containers, or where nothing else can start servers.
TAGS        := $(if $(filter containers,$(MILLRACE_STACK))$(filter-out Linux,$(shell uname -s)),-tags containers)
GOBUILD     := CGO_ENABLED=0 go build $(TAGS) -trimpath -ldflags "-X main.version=$(VERSION)"
# It waits while another apt is at work.
APT         := .ci/apt.sh

.DEFAULT_GOAL := help
.PHONY: help run test test-newer shippers clients engine engine-stop bench chaos chaos-newer fuzz lint build clean servers compiler browser axe screenshots chart bench-compare answers archive searches size sweep profile loadtest watch watchers up down logs smoke scan terraform swarm kube install balancer pooler s3server

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build servers ## everything on this machine, data in .millrace; Ctrl-C stops it
	@exec bin/millrace run

# Debian 13 in a folder: see .ci/newer.sh, which also runs single tests there.
test-newer: ## the tests that talk to servers, on RabbitMQ 4, PostgreSQL 17 and Redis 8 (Debian 13 in a folder); as root or with sudo
	.ci/newer.sh

test: build servers compiler browser axe watchers balancer pooler s3server ## all tests, on private servers, with the race detector
	bin/millrace stack -- go test $(TAGS) -race -count=1 -timeout 40m ./...

shippers: export MILLRACE_SLOW_CLIENTS := yes
shippers: build servers clients ## real clients of other protocols through lost answers, a restart, a bad record; also those that take minutes
	bin/millrace stack -- go test -count=1 -v -timeout 20m -run '^TestClients' ./deploy

# It keeps what it sees in .millrace. The credentials come from millrace run, which leaves them there.
watch: watchers ## Prometheus on http://127.0.0.1:9090 that watches make run, which runs beside it
	@[ -f .millrace/env ] || { echo "make run first, in another terminal"; exit 1; }
	@. .millrace/env; DATA_SOURCE_NAME="$$POSTGRES_URL" prometheus-postgres-exporter --web.listen-address=127.0.0.1:9187 --log.level=warn & \
	trap "kill $$!" EXIT; \
	prometheus --config.file=deploy/prometheus/local.yml --storage.tsdb.path=.millrace/prometheus --web.listen-address=127.0.0.1:9090 --log.level=warn

# What hangs is ended, and says where: -test.timeout does not hold for benchmarks.
LIMIT := timeout --foreground --signal=QUIT

# Counts, not times: a round has its own length. Each line's output is as benchstat reads it.
STAMP   := $(shell date +%F)-$(shell git describe --always --dirty --abbrev=7 --exclude '*' 2>/dev/null || echo dev)
RESULTS := bench/results/$(STAMP).txt
bench: build servers ## how fast Millrace is here, each figure beside its ceiling: one table, in less than 10 minutes
	@go test -c -o bin/bench.test ./bench; go test -c -o bin/api.test ./api; go build -o bin/report ./bench/report
	@bin/millrace stack -- bash -euc 'run() { $(LIMIT) 10m "../bin/$$1.test" -test.run NONE -test.bench "^Benchmark($$2)\$$" -test.benchtime $$3; }; cd bench; \
		run bench "Scan|Frame" 25x; \
		run bench "Accept(One|Early|Batch)|Slowloris" 20x; \
		run bench AcceptDoor 10x; \
		(cd ../api; run api Publish 15x); \
		run bench "Drain|EndToEnd|Export" 8x; \
		run bench "Visible|Tail" 300x; \
		run bench Search 20x' | bin/report -out $(RESULTS)
	@echo "$(RESULTS) has it for benchstat, $(RESULTS:.txt=.svg) is its picture"
	@echo "go run ./bench/report -update $(RESULTS) brings it into README.md and bench/README.md"

BENCH ?= Scan/ndjson|Frame/encode|Publish|AcceptOne/=64$$|AcceptBatch|Drain/=2|EndToEnd/full
COUNT ?= 10
bench-compare: build servers ## what differs in speed from the commit BASE=…, in 10 minutes; BENCH=REGEXP and COUNT=TURNS choose
	@go build -o bin/compare ./bench/compare
	@bin/millrace stack -- bin/compare -base "$(BASE)" -bench '$(BENCH)' -count $(COUNT)

# Each round goes over all points, so that what else the machine does does not hit one point alone.
SWEEP  ?= Sweep
sweep: ROUNDS ?= 3
sweep: build servers ## how speed and latency change with sizes and settings, in a quarter of an hour; SWEEP=REGEXP and ROUNDS=N choose
	@go test -c -o bin/bench.test ./bench; go build -o bin/report ./bench/report; mkdir -p bench/results; rm -rf bin/sweep
	@bin/millrace stack --dir bin/sweep -- bash -euc 'cd bench; export MILLRACE_BENCH_STACK=$(CURDIR)/bin/sweep; for round in $$(seq $(ROUNDS)); do \
		echo "round $$round of $(ROUNDS)" >&2; $(LIMIT) 30m ../bin/bench.test -test.run NONE -test.bench "$(SWEEP)" -test.benchtime 2x; done' | \
		tee bin/sweep.txt
	@rm -rf bin/sweep; mkdir -p bin/curves; bin/report -curves bin/sweep.txt -to bin/curves; mv bin/sweep.txt bench/results/$(STAMP)-sweep.txt
	@echo "bench/results/$(STAMP)-sweep.txt has the figures, bin/curves the curves"
	@echo "go run ./bench/report -curves bench/results/$(STAMP)-sweep.txt -to bench brings those into bench/README.md"

ROWS ?= 1000000
answers: build servers ## twenty searches of ROWS (1,000,000) rows of a day, with a budget and without: how long each takes
	@bin/millrace stack -- go test $(TAGS) -v -count=1 -timeout 0 -run 'TestAnswers$$' ./bench -answers $(ROWS)

archive: build servers ## searches of ROWS (1,000,000) rows of a day in closed partitions, from an archive and from PostgreSQL
	@bin/millrace stack -- go test $(TAGS) -v -count=1 -timeout 0 -run 'TestArchive$$' ./bench -archive $(ROWS)

SEARCHES ?= 200
searches: build servers ## what SEARCHES (200) searches that alert cost beside 20,000 records/s stored, and how late they are; in 5 minutes
	@bin/millrace stack -- go test $(TAGS) -v -count=1 -timeout 0 -run 'TestSearches$$' ./bench -searches $(SEARCHES)

# The options, with their defaults: go run ./internal/chaos/run -help. A seed replays its schedule.
SEED ?= 0
DURATION ?= 1h
chaos: ROUNDS ?= 5
RATE ?= 1000
BROKERS ?= 1
FAULT_EVERY ?= 0s
FAULTS ?=
ARCHIVE ?=
chaos: build servers ## anything killed, cut and filled up for DURATION (1h), and each record counted; also SEED ROUNDS RATE BROKERS FAULT_EVERY FAULTS ARCHIVE=1
	@go build $(TAGS) -o bin/chaos-run ./internal/chaos/run
	@bin/chaos-run -seed $(SEED) -duration $(DURATION) -rounds $(ROUNDS) -rate $(RATE) -brokers $(BROKERS) \
		-every $(FAULT_EVERY) -faults "$(FAULTS)" $(if $(ARCHIVE),-archive) -out bin/chaos

chaos-newer: ## the same on Debian 13's servers, RabbitMQ 4, PostgreSQL 17 and Redis 8; report in bin/chaos-newer
	.ci/newer.sh chaos -seed $(SEED) -duration $(DURATION) -rounds $(ROUNDS) -rate $(RATE) -brokers $(BROKERS) -every $(FAULT_EVERY) $(if $(ARCHIVE),-archive) $(if $(FAULTS),-faults "$(FAULTS)")
chaos-newer: ROUNDS ?= 5

SEND_LINES ?= 5000000
size: build servers ## 10,000 connections and a flood of packets of syslog, and SEND_LINES (5,000,000) lines by millrace send through 20 kills; memory and what was lost
	@MILLRACE_AT_SIZE=1 MILLRACE_SEND_LINES=$(SEND_LINES) bin/millrace stack -- go test $(TAGS) -v -count=1 -timeout 0 -run 'AtSize|ThroughTwentyKills' ./internal/e2e

PROFILES := bench/profiles/$(STAMP)
profile: build servers ## CPU and allocation profiles of API and worker under load, and where the time goes
	@bin/millrace stack -- go test -count=1 -run TestProfiles ./bench -profiles "$(CURDIR)/$(PROFILES)"
	@cat $(PROFILES)/*.txt; echo; echo "Look: go tool pprof -http=: $(PROFILES)/batches-api-cpu.pb.gz"

loadtest: build $(if $(BASE_URL),,servers) bin/k6 ## k6's SCENARIO (smoke, steady, breakpoint, spike, soak, mixed): loadtest/README.md
	@loadtest/run.sh

# Built from the module proxy, in a minute or two; again only when its version changes.
bin/k6: loadtest/k6/go.mod loadtest/k6/go.sum
	@mkdir -p bin
	go -C loadtest/k6 build -trimpath -ldflags "-s -w" -o ../../bin/k6 go.k6.io/k6

# The tests of the chart are a module of their own: they need Helm's packages and Kubernetes' types, which lint spares those who don't.
chart: build ## lint and render the chart for Kubernetes (deploy/helm), and check what comes out
	go -C deploy/helm mod tidy -diff
	go -C deploy/helm test -count=1 .

# The server of S3 that tests talk to. Built from the module proxy, in some minutes; again only when its version changes.
s3server: bin/versitygw
bin/versitygw: internal/archive/s3server/go.mod internal/archive/s3server/go.sum
	@mkdir -p bin
	CGO_ENABLED=0 go -C internal/archive/s3server build -trimpath -ldflags "-s -w" -o ../../../bin/versitygw github.com/versity/versitygw/cmd/versitygw

screenshots: build servers browser ## the README's pictures of the page, anew; with LOGHUB=file.ndjson those of real records, too
	bin/millrace stack -- go test -count=1 -run TestScreenshots ./query -screenshots $(if $(LOGHUB),-loghub $(abspath $(LOGHUB)))

build: ## bin/millrace
	@mkdir -p bin
	$(GOBUILD) -o bin/millrace .

lint: ## formatting, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go vet -tags containers ./internal/localstack
	go tool staticcheck ./...
	go tool staticcheck -tags containers ./internal/localstack
	go mod tidy -diff
	go -C loadtest/k6 mod tidy -diff
	go mod verify

# A count, not a time: a fuzz run that is cut off by its time may fail for that alone.
FUZZTIME ?= 20000x
fuzz: export FUZZTIME := $(FUZZTIME)
fuzz: build servers compiler ## every fuzz target for FUZZTIME (20000x) each, the scanner's against PostgreSQL
	bin/millrace stack -- .ci/fuzz.sh

scan: build ## known vulnerabilities in what bin/millrace is made of; and bin/millrace.cdx.json, its modules with versions and licenses (SBOM)
	@VERSION=$(VERSION) deploy/scan.sh

# On the Docker engine that answers, or else on that of make engine.
ENGINE := .ci/engine.sh run

up: ## everything in containers (docker-compose.yml), with random passwords in .env; waits until it runs
	@VERSION=$(VERSION) $(ENGINE) deploy/up.sh

down: ## stop the containers; volumes stay
	@$(ENGINE) docker compose --profile cluster down

logs: ## what the containers write, as they write it
	@$(ENGINE) docker compose logs --follow --tail 100

smoke: ## make up in a project of its own: post, read back, scale, KILLS (2) of each container, upgrade; then remove all of it
	@VERSION=$(VERSION) $(ENGINE) deploy/smoke.sh

# Debian 13's, in namespaces of its own: .ci/engine.sh.
engine: ## a Docker engine for tests where none answers, with images that stand in for the official ones; as root or with sudo
	.ci/engine.sh start

engine-stop: ## end the engine that make engine started; .ci/engine.sh remove also removes its images and volumes
	.ci/engine.sh stop

swarm: terraform ## Terraform's module on a swarm of one: apply, no changes, updates under load, destroy
	@$(ENGINE) terraform/swarm.sh

# One of its own, below the engine's namespaces, or kind's where another engine answers: .ci/kube.sh.
kube: ## the chart on a Kubernetes cluster: install, load, updates, KILLS (2) of each pod, upgrade, removal; as root or with sudo
	.ci/kube.sh test

terraform: ## check terraform/: format, validate, test with a mocked provider
	terraform/check.sh

# The layout of a Debian package: make install PREFIX=/usr DESTDIR=debian/millrace.
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
install: ## what make build made, systemd units and /etc/millrace; then systemctl enable --now millrace-api …
	@[ -x bin/millrace ] || { echo "First: make build"; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(SYSCONFDIR)/millrace
	install -m 755 bin/millrace $(DESTDIR)$(PREFIX)/bin/millrace
	for unit in deploy/systemd/*.service; do \
		sed -e 's|/usr/bin/millrace|$(PREFIX)/bin/millrace|' -e 's|/etc/millrace|$(SYSCONFDIR)/millrace|' $$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$unit); done
	install -m 644 deploy/systemd/millrace.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/millrace.conf
	[ -e $(DESTDIR)$(SYSCONFDIR)/millrace/millrace.env ] || install -m 640 .env.example $(DESTDIR)$(SYSCONFDIR)/millrace/millrace.env
	@[ -n "$(DESTDIR)" ] || { systemd-sysusers 2>/dev/null && systemctl daemon-reload; } || echo "Now run: systemd-sysusers && systemctl daemon-reload"

clean: ## remove what was built, and the data of make run
	rm -rf bin .millrace

# install,PACKAGES,WITHOUT: apt as root or with sudo that asks for no password; else the command to type. WITHOUT
# says what happens without the packages, where that is no reason to stop.
define install
	@packages="$(1)"; \
	if [ -z "$${packages// /}" ]; then exit 0; fi; \
	failed() { echo "$$1$(if $(2), ($(2)))"; exit $(if $(2),0,1); }; \
	if ! command -v apt-get >/dev/null; then failed "Please install: $$packages"; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	else failed "Some packages are missing. Please run: sudo apt-get install -y $$packages"; fi; \
	echo "Installing $$packages"; \
	$$sudo $(APT) update; \
	$(if $(2),apt-cache show $$packages >/dev/null 2>&1 || failed "apt has no $$packages";) \
	$$sudo $(APT) install -y --no-install-recommends $$packages
endef

servers: build
	$(call install,$$(bin/millrace stack --missing))

# The race detector needs a C compiler.
compiler:
	$(call install,$$(command -v gcc >/dev/null || command -v cc >/dev/null || echo gcc libc6-dev))

# Not every distribution packages it: Ubuntu has but the snap.
browser:
	$(call install,$$(command -v chromium >/dev/null || command -v google-chrome >/dev/null || echo chromium),the page's browser tests are skipped)

# What looks for barriers on the page, from npm. Without it that test is skipped.
axe:
	@mkdir -p bin/axe && cp query/axe/package.json query/axe/package-lock.json query/axe/.npmrc bin/axe/ && cd bin/axe && \
		if [ "$$(cat .installed 2>/dev/null)" != "$$(sha256sum package-lock.json)" ]; then \
			if timeout 180 npm ci --ignore-scripts --silent 2>/dev/null; then sha256sum package-lock.json >.installed; else echo "npm can't get axe-core (the test for barriers on the page is skipped)"; fi; fi

watchers:
	$(call install,$$(command -v promtool >/dev/null && command -v prometheus >/dev/null || echo prometheus) \
		$$(command -v prometheus-postgres-exporter >/dev/null || echo prometheus-postgres-exporter) \
		$$(command -v prometheus-alertmanager >/dev/null || echo prometheus-alertmanager),the tests of what watches Millrace are skipped)

# Programs that send by other protocols. Each is got in its own way, and the tests of one that can't be had are skipped.
clients:
	deploy/shippers/clients/install.sh bin/shippers

balancer:
	$(call install,$$(command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || echo haproxy),the test of the balancer is skipped)

pooler:
	$(call install,$$(command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || echo pgbouncer),the tests behind a pooler are skipped)
