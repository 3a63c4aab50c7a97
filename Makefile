# make build      bin/coracle, a static binary with the shim inside
# make check      formatting, vet, structure
# make test       all tests, scenarios included   make test-race   the concurrent ones under the race detector
# make test-scripts  only the scenarios that drive the real binary (root)
# make bench      the table of docs/results/bench.md (root, long)
# make conformance  Kubernetes' own suite against a cluster of its own (root, long): FOCUS, SKIP, PARALLEL choose
# make gateway-conformance  the Gateway API's suite, likewise (root, half an hour): GATEWAY="-test NAME" chooses
# make crash      the store's crash test, 1,000 rounds (long)

GO       ?= go
VERSION  ?= v0.1.0-dev
K8S      := v1.37.2
LDFLAGS  := -s -w -X coracle.dev/coracle/internal/version.Coracle=$(VERSION) \
	-X k8s.io/component-base/version.gitVersion=$(K8S) -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=37 -X k8s.io/client-go/pkg/version.gitVersion=$(K8S)
SHIM_SRC := $(shell find cmd/coracle-shim linux container -name '*.go' -not -name '*_test.go' 2>/dev/null)

.PHONY: build shim check test test-race test-scripts bench conformance gateway-conformance crash clean generate

build: shim
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/coracle ./cmd/coracle
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/busybox-image ./tools/busybox-image

shim:
	container/embedded/shim/build.sh

check:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	cd examples/website && $(GO) vet ./...
	$(GO) test ./internal/structure

test: build
	$(GO) test -timeout 20m ./...
	cd examples/website && $(GO) test ./...

test-race:
	$(GO) test -race -short -timeout 20m ./store/... ./reconcile/... ./client/... ./apiserver/... ./node/ ./node/simulated ./node/plugins ./node/claims ./node/devices ./node/podresources ./scheduler/... ./mesh/... ./dns/... ./linux/nft

test-scripts: build
	$(GO) test -count=1 -timeout 15m ./test/scripts/...

bench: build
	$(GO) run ./test/bench

FOCUS    ?=
SKIP     ?=
PARALLEL ?= 2

conformance: build
	cd test/conformance && $(GO) run ./run -focus '$(FOCUS)' -skip '$(SKIP)' -parallel $(PARALLEL) $(CONFORMANCE)

gateway-conformance: build
	cd test/gateway && $(GO) run ./run $(GATEWAY)

crash:
	CORACLE_CRASH_ROUNDS=1000 $(GO) test -count=1 -timeout 60m -v ./store/pebble/crash

clean:
	rm -rf bin
