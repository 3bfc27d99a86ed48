# One configuration for everything: the program, its tests and the benchmarks are built with the
# same flags into one directory, so dependencies are compiled once.
SHELL := /bin/bash
SCRATCH ?= .build
PREFIX ?= /usr/local
BUILD := -c release --scratch-path $(SCRATCH)
PROGRAM := $(SCRATCH)/release/stillpoint

.PHONY: help build build-tests test soak simulate mutants fuzz bpf guests coverage demo peers bench bench-nbd bench-snapshots bench-block bench-rooms format lint install uninstall deb tarball test-package test-systemd figures clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: ## Build, serve a sample disk, use it through NBD and show what happened
	@Scripts/ensure-swift
	@Scripts/ensure-packages build demo
	@$(MAKE) --no-print-directory build
	@Scripts/demo $(PROGRAM)

test: ## Build and run all tests, long ones at a twentieth of their size; or those that can with SANITIZE=address|thread
	@Scripts/ensure-swift
ifdef SANITIZE
	@Scripts/ensure-packages build test
	@$(MAKE) --no-print-directory build-tests
	@Scripts/sanitize $(SANITIZE) $(SCRATCH)-$(SANITIZE) $(SCRATCH)
else
	@# Dependencies are fetched meanwhile; the build tells what is wrong with them.
	@swift package --scratch-path $(SCRATCH) resolve >/dev/null 2>&1 & \
		Scripts/ensure-packages build test; status=$$?; wait; exit $$status
	@$(MAKE) --no-print-directory lint build-tests
	@Scripts/test $(SCRATCH)
endif

soak: ## Run all tests at their stated size, planted bugs and a long simulation
	@Scripts/ensure-swift
	@Scripts/ensure-packages build test
	@$(MAKE) --no-print-directory build-tests
	@STILLPOINT_SOAK=1 Scripts/run-tests $(SCRATCH)
	@Tests/Mutants/durability.sh $(SCRATCH)-mutants/service
	@$(MAKE) --no-print-directory mutants
	@$(MAKE) --no-print-directory simulate SECONDS=600
	@$(MAKE) --no-print-directory coverage

simulate: ## Simulate for SECONDS (default 60), or replay SEED
	@Scripts/ensure-swift
	swift build $(BUILD) --product simulate
	$(SCRATCH)/release/simulate $(if $(SEED),--seed $(SEED),--seconds $(or $(SECONDS),60))

mutants: ## Plant bugs in the engine and expect the simulator to find each
	@Scripts/ensure-swift
	@Scripts/mutants $(SCRATCH)-mutants/engine

fuzz: ## Fuzz TARGET (handshake, transmission, map, documents, configuration, mounts, client, difference; default all) for SECONDS each (default 60)
	@Scripts/ensure-swift
	@Scripts/ensure-packages build
	@Scripts/fuzz $(SCRATCH)-fuzz $(or $(TARGET),all) $(or $(SECONDS),60)

bpf: ## Make the header with the BPF programs anew (needs bpftool and libbpf-dev)
	@Scripts/ensure-swift
	@Scripts/live-skeleton

guests: ## Live devices under the kernels of Debian 12 and 13 in emulated machines (SUITES, ROUNDS of load, default 3)
	@Scripts/ensure-packages build guests
	@$(MAKE) --no-print-directory build
	@Scripts/guests $(PROGRAM) $(SCRATCH)-guests $(SUITES)

coverage: ## How much of the rooms that decide their tests run, and which lines they do not
	@Scripts/ensure-swift
	@Scripts/coverage $(SCRATCH)-coverage

build: ## Build the program in release mode
	@Scripts/ensure-swift
	@Scripts/ensure-packages build
	swift build $(BUILD) --product stillpoint

build-tests: ## Build everything, the tests too
	@Scripts/ensure-swift
	swift build $(BUILD) --build-tests

peers: ## Run clients of others (Debian's, the next Debian's, PyPI's) against the server, with SUITES=all the tests of others too, and print a table
	@Scripts/ensure-packages build test peers
	@$(MAKE) --no-print-directory build
	@Scripts/peers $(PROGRAM) $(SCRATCH)-peers $(SUITES)

bench: bench-build ## Measure against the peers and write a report (QUICK=1: under 5 minutes)
	@Scripts/bench $(PROGRAM) --untracked $(SCRATCH)/untracked/stillpoint $(BENCH)

bench-nbd: bench-build ## The part of it without snapshots
	@Scripts/bench $(PROGRAM) --only plain $(BENCH)

bench-snapshots: bench-build ## The part of it with snapshots
	@Scripts/bench $(PROGRAM) --untracked $(SCRATCH)/untracked/stillpoint --only tracking,map,overwrites,many,images,cuts,sizes,memory $(BENCH)

bench-block: bench-build ## The part of it with local block devices
	@Scripts/bench $(PROGRAM) --only blocks $(BENCH)

BENCH = $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(FORMER),--former $(FORMER))

# The build that marks nothing goes first and is moved aside: one directory, so that dependencies
# are compiled once.
.PHONY: bench-build
bench-build:
	@Scripts/ensure-swift
	@Scripts/ensure-packages build test bench
	@STILLPOINT_WITHOUT_TRACKING=1 $(MAKE) --no-print-directory build
	@install -D -m 0755 $(PROGRAM) $(SCRATCH)/untracked/stillpoint
	@$(MAKE) --no-print-directory build
	swift build $(BUILD) --product nbd-load
	swift build $(BUILD) --product bench-tracking

bench-rooms: ## Microbenchmarks of the rooms that decide
	@Scripts/ensure-swift
	swift package --package-path Benchmarks/Micro --scratch-path $(CURDIR)/$(SCRATCH)-micro benchmark

lint: ## Check the format of all Swift sources
	@echo "swift format lint --strict"
	@swift format lint --strict --parallel -r Sources Tests Benchmarks/Micro/Benchmarks Package.swift

format: ## Format all Swift sources in place
	swift format -i --parallel -r Sources Tests Benchmarks/Micro/Benchmarks Package.swift

# The programs that an installation consists of.
.PHONY: build-install
build-install: build
	@swift build $(BUILD) --product manual

install: build-install ## Install program, manual pages, completions and systemd units under PREFIX (default /usr/local)
	@Scripts/install-tree $(SCRATCH) $(PREFIX) $(DESTDIR)

uninstall: build-install ## Remove what `make install` installed; state and configuration stay
	@Scripts/install-tree --list $(SCRATCH) $(PREFIX) $(DESTDIR) | while read -r file; do \
		rm -fv -- "$$file"; done

deb: build-install ## Build stillpoint_VERSION_ARCH.deb in PACKAGES (default .build/packages)
	@Scripts/ensure-packages package
	@Scripts/package deb $(SCRATCH) $(VERSION) $(PACKAGES)

tarball: build-install ## Build an archive for any distribution in PACKAGES
	@Scripts/ensure-packages package
	@Scripts/package tarball $(SCRATCH) $(VERSION) $(PACKAGES)

test-package: deb ## Install, use, upgrade and purge the package in fresh Debians 12 and 13
	@Scripts/ensure-packages package test
	@Scripts/test-install $(SCRATCH)
	@for suite in bookworm trixie; do Scripts/test-package \
		$(PACKAGES)/stillpoint_$(VERSION)_$$(dpkg --print-architecture).deb $$suite || exit; done

test-systemd: deb ## Run the package in a virtual machine with systemd: restarts, kill, upgrade, fstab, reboot
	@Scripts/ensure-packages demo package guests
	@Scripts/test-systemd $(PACKAGES)/stillpoint_$(VERSION)_$$(dpkg --print-architecture).deb $(SCRATCH)-guests/systemd $(SUITE)

figures: build ## Compare the program's size, memory and start with their limits (on an idle machine)
	@Scripts/figures $(PROGRAM)

PACKAGES ?= $(SCRATCH)/packages
# The one place that says it is the program's source.
VERSION = $(shell sed -nE 's/^package let stillpointVersion = "(.*)"/\1/p' Sources/ControlDocuments/*.swift)

clean: ## Remove what was built
	rm -rf $(SCRATCH)
