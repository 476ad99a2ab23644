# build, demo, test, lint, bench: `make help` says what each does.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help build demo test lint bench tools

help:
	@echo 'make build   one static binary: bin/weir'
	@echo 'make demo    balance real HTTP traffic in a network of namespaces'
	@echo 'make test    all tests; those on real packets build their own namespaces'
	@echo 'make lint    gofmt, go vet, staticcheck'
	@echo 'make bench   weir beside nft -f, iptables-restore, ipset and haproxy, some fifteen minutes'

build:
	$(BUILD) -o bin/weir ./cmd/weir

demo: build
	@bin/weir demo $(DEMOFLAGS)

# -count=1: go's cache of results does not see that some tests build cmd/weir.
test: tools
	$(GO) test -count=1 -timeout 20m ./...

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: tools build
	$(GO) run ./internal/bench $(BENCHFLAGS)

# What tests and benchmarks compare weir with. Root gets it installed; anybody else is
# told, and the tests that need it are skipped (with CI=true they fail).
tools:
	@missing=; for t in nft:nftables ip:iproute2 iptables-restore:iptables ipset:ipset tcpdump:tcpdump; do \
		command -v $${t%%:*} >/dev/null || [ -x /usr/sbin/$${t%%:*} ] || missing="$$missing $${t##*:}"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; log=$$(mktemp); \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; } \
			>"$$log" 2>&1 || { cat "$$log"; rm -f "$$log"; exit 1; }; \
		rm -f "$$log"; \
	else echo "not installed:$$missing; tests that need them are skipped (apt install$$missing)"; fi
