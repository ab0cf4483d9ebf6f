# Millrace. make help lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD     := CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)"
# RUNLEVEL=1 keeps Debian's packages from starting their own servers; Millrace starts private ones.
APT         := env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get

.DEFAULT_GOAL := help
.PHONY: help run test bench fuzz lint build clean up down logs smoke terraform install servers compiler browser balancer screenshots

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build servers ## everything on this machine, data in .millrace; Ctrl-C stops it
	@exec bin/millrace run

test: build servers compiler browser balancer ## all tests, on private servers, with the race detector
	bin/millrace stack -- go test -race -count=1 -timeout 10m ./...

# Counts, not times: a round has its own length. Each line's output is as benchstat reads it.
RESULTS := bench/results/$(shell date +%F)-$(shell git rev-parse --short HEAD 2>/dev/null || echo dev).txt
bench: build servers ## how fast Millrace is here, each figure beside its ceiling: one table, in less than 10 minutes
	@bin/millrace stack -- bash -euc 'go test -c -o bin/bench.test ./bench; cd bench; \
		../bin/bench.test -test.run NONE -test.bench "Accept|Slowloris" -test.benchtime 20x; \
		../bin/bench.test -test.run NONE -test.bench "Drain|EndToEnd|Export" -test.benchtime 8x; \
		../bin/bench.test -test.run NONE -test.bench "Visible|Tail" -test.benchtime 300x; \
		../bin/bench.test -test.run NONE -test.bench "Layout|Compression" -test.benchtime 3x; \
		../bin/bench.test -test.run NONE -test.bench "Search" -test.benchtime 30x; \
		cd ..; go test -run NONE -bench "Body/ascii/ndjson|Single" -benchtime 300ms ./internal/scan' | \
		go run ./bench/report -out $(RESULTS); echo "$(RESULTS) has it for benchstat"

screenshots: build servers browser ## the README's pictures of the page, anew
	bin/millrace stack -- go test -count=1 -run TestScreenshots ./query -screenshots

build: ## bin/millrace
	@mkdir -p bin
	$(GOBUILD) -o bin/millrace .

lint: ## formatting, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go mod verify

# A count, not a time: a fuzz run that is cut off by its time may fail for that alone.
FUZZTIME ?= 20000x
fuzz: build servers compiler ## every fuzz target for FUZZTIME (20000x) each, the scanner's against PostgreSQL
	bin/millrace stack -- bash -euc 'for f in $$(git grep -lE "^func Fuzz" -- "*_test.go"); do \
		for name in $$(sed -nE "s/^func (Fuzz[A-Za-z]+)\(.*/\1/p" $$f); do \
			echo "== $$name ($$f)"; go test -run NONE -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f); done; done'

up: ## everything in containers (docker-compose.yml), with random passwords in .env; waits until it runs
	deploy/env.sh
	VERSION=$(VERSION) docker compose up --detach --build --wait

down: ## stop the containers; volumes stay
	docker compose --profile cluster down

logs: ## what the containers write, as they write it
	docker compose logs --follow --tail 100

smoke: ## make up in a project of its own: post, read back, scale, lose a worker; then remove all of it
	VERSION=$(VERSION) deploy/smoke.sh

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
	$$sudo apt-get -qq update; \
	$(if $(2),apt-cache show $$packages >/dev/null 2>&1 || failed "apt has no $$packages";) \
	$$sudo $(APT) -qq install -y --no-install-recommends $$packages
endef

servers: build
	$(call install,$$(bin/millrace stack --missing))

# The race detector needs a C compiler.
compiler:
	$(call install,$$(command -v gcc >/dev/null || command -v cc >/dev/null || echo gcc libc6-dev))

# Not every distribution packages it: Ubuntu has but the snap.
browser:
	$(call install,$$(command -v chromium >/dev/null || command -v google-chrome >/dev/null || echo chromium),the page's browser tests are skipped)

balancer:
	$(call install,$$(command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || echo haproxy),the test of the balancer is skipped)
