# solepod: make help lists the targets.

GO            ?= go
GOLANGCI_LINT ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
REFERENCE     ?= $(GO) run github.com/elastic/crd-ref-docs@v0.3.0 --source-path=pkg/config --config=docs/templates/config.yaml --templates-dir=docs/templates --renderer=markdown --log-level=ERROR
HELM          ?= bin/helm
HELM_DOCS     ?= $(GO) run github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2 --chart-search-root=manifests --log-level=error
GOVULNCHECK   ?= $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0
GO_LICENSES   ?= $(GO) run github.com/google/go-licenses@v1.6.0
# v3.23.0 to v3.26.0 require a version of cascadia that the module proxy refuses.
VALE          ?= $(GO) run github.com/vale-cli/vale/v3/cmd/vale@v3.22.0
# Releases are built with this toolchain on every machine.
TOOLCHAIN      = $(shell sed -n 's/^toolchain //p' go.mod)
VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
AIRFLOW       ?= $(patsubst test/airflow/requirements/%.txt,%,$(wildcard test/airflow/requirements/*.txt))
VERSIONS      ?= $(notdir $(wildcard test/controlplane/binaries/1.*))
PACKAGES      ?= ./test/integration ./test/install
FUZZTIME      ?= 60s
MODULES        = . test/tools $(wildcard test/controlplane/binaries/1.*)
NEWEST         = $(notdir $(lastword $(sort $(wildcard test/controlplane/binaries/1.*))))
IMAGE         ?= ghcr.io/solepod/solepod
PLATFORMS     ?= linux/amd64 linux/arm64

comma         := ,
space         := $(subst ,, )

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Replay the incident on an embedded control plane (no cluster needed)
	@$(GO) run ./test/demo

.PHONY: run
run: ## Start a control plane and solepod, keep them running, and print the KUBECONFIG
	@$(GO) build -o bin/demo ./test/demo && exec bin/demo -keep

.PHONY: test
test: controlplane ## Run all unit and integration tests except those of make test-slow
	@mkdir -p bin
	@{ $(GO) test -short -timeout 30m ./...; echo $$? >bin/test.status; } 2>&1 | tee bin/test.log
	@echo; echo 'The slowest packages, in seconds:'
	@awk -F '\t' '/^(ok|FAIL)/ && $$3 ~ /^[0-9.]+s$$/ {printf "%8.1f  %s\n", $$3, $$2}' bin/test.log | sort -rn | head -n 10
	@exit $$(cat bin/test.status)

# With -short, these tests are skipped, or do less.
.PHONY: test-slow
test-slow: controlplane ## Run the tests that make test skips: soak, rotations, ratios of memory and goroutines
	$(GO) test -v -count=1 -timeout 60m -run '^(TestMemory|TestNothingIsLeftRunning|TestRotation|TestSoak)$$' ./pkg/webhook ./test/integration ./test/install

.PHONY: test-unit
test-unit: ## Run the tests that need no control plane
	$(GO) test -short ./cmd/... ./pkg/...

# Up to go1.26, go test fails with "context deadline exceeded" if a worker is busy at
# the end of the fuzz time (https://go.dev/issue/75804).
.PHONY: fuzz
fuzz: ## Run each fuzz target for a minute (FUZZTIME), one by one
	@for package in $$($(GO) list ./cmd/... ./pkg/...); do \
		targets=$$($(GO) test -list '^Fuzz' $$package) || { echo "$$targets"; exit 1; }; \
		for target in $$(echo "$$targets" | grep '^Fuzz'); do \
			echo "=== $$package $$target"; \
			out=$$($(GO) test $$package -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x 2>&1); failed=$$?; \
			echo "$$out"; \
			if [ $$failed = 0 ]; then continue; fi; \
			case "$$out" in \
			*'Failing input'*|*'seed corpus'*|*panic*) exit 1 ;; \
			*'    context deadline exceeded'*) echo "Nothing was found: https://go.dev/issue/75804" ;; \
			*) exit 1 ;; \
			esac; \
		done; \
	done

.PHONY: test-race
test-race: controlplane ## Race 16 clients for each of 1,000 tasks, with three replicas that crash
	$(GO) test ./test/race -v -run 'TestRace$$' -timeout 60m -rounds $(or $(ROUNDS),1000)

# The exploration of claims is sequential and has no races. The detector allocates
# memory, which TestMemory would count.
.PHONY: test-race-detector
test-race-detector: controlplane ## Run the unit tests and three replicas under Go's race detector (needs gcc)
	$(GO) test -race -skip '^(TestAllInterleavings|TestBrokenProtocolsAreFound|TestMemory)$$' ./certs/... ./cmd/... ./pkg/...
	$(GO) test -race ./test/race -run '^(TestRace|TestMappedBesideUnmapped)$$' -rounds 50

.PHONY: test-faults
test-faults: controlplane ## Break the dependencies of solepod one by one (part of make test)
	$(GO) test ./test/faults -v -count=1

.PHONY: soak
soak: controlplane ## Create and delete tasks for 20 minutes (SOAK) while replicas, certificates and the API server are replaced
	$(GO) test ./test/install -v -run 'TestSoak$$' -count=1 -timeout 2h -soak $(or $(SOAK),20m)

.PHONY: bench
bench: controlplane ## Compare creates with and without solepod, and with other guards (about 20 minutes; FLAGS=-help)
	@mkdir -p bin
	$(GO) test ./pkg/webhook -run '^$$' -bench . -benchmem
	$(GO) run ./test/bench -json bin/bench.json -benchfmt bin/bench.txt $(FLAGS)
	@echo "=== the same, with an etcd that does not wait for the disk"
	$(GO) run ./test/bench -fsync=false -sizes 5000 -clients 1,32 -memory 0 -json bin/bench-no-fsync.json $(FLAGS)

.PHONY: test-versions
test-versions: ## Run the integration tests on each version of Kubernetes: VERSIONS="1.34 1.37"
	@test/controlplane/versions "$(VERSIONS)" $(PACKAGES)

.PHONY: test-airflow
test-airflow: controlplane ## Replay the incident with real Airflows, version by version (needs Python 3.11, and 3.10 for 5.2.2)
	@for row in $(AIRFLOW); do echo "=== provider $$row"; "$$(test/airflow/environment $$row)" -m pytest -q -p no:cacheprovider test/airflow/plugin || exit 1; done
	$(GO) test -tags airflow ./test/airflow -v -timeout 60m -rows "$(subst $(space),$(comma),$(AIRFLOW))"

.PHONY: controlplane
controlplane: ## Build kube-apiserver, etcd, kube-controller-manager, kwok, helm and promtool, unless they exist (KUBERNETES_VERSION=1.34)
	@$(GO) run ./test/controlplane/build >/dev/null

# --force replaces an incomplete folder of an interrupted download. ENVTEST_INDEX is
# the URL of another index than GitHub's.
.PHONY: controlplane-download
controlplane-download: ## Download kube-apiserver and etcd from GitHub instead of building them (KUBERNETES_VERSION=1.34)
	@$(GO) -C test/tools tool setup-envtest use --force $(if $(ENVTEST_INDEX),--index '$(ENVTEST_INDEX)') '$(or $(KUBERNETES_VERSION),$(NEWEST)).x'

# helm is a link to the binary that test/tools pins. It is built if necessary.
.PHONY: bin/helm
bin/helm:
	@mkdir -p bin && helm=$$($(GO) run ./test/controlplane/build helm) && ln -sf "$$helm" $@

# -buildvcs=auto records the commit in the binary, with any GOFLAGS.
BUILD = GOTOOLCHAIN=$(TOOLCHAIN) CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '-s -w -X main.version=$(VERSION)'
BINARIES  = $(foreach platform,$(PLATFORMS),bin/solepod-$(subst /,-,$(platform)))
CYCLONEDX = GOTOOLCHAIN=$(TOOLCHAIN) $(GO) run -exec 'env GOOS=linux GOARCH=amd64 CGO_ENABLED=0' github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
# The storage is separate from the user's. vfs works everywhere.
BUILDAH   = buildah --root $(CURDIR)/bin/buildah --runroot $(CURDIR)/bin/buildah/run --storage-driver vfs
# All timestamps in the image are that of the commit: every build is identical.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

.PHONY: build
build: ## Build bin/solepod
	$(BUILD) -o bin/solepod ./cmd/solepod

.PHONY: $(BINARIES)
$(BINARIES): bin/solepod-%:
	GOOS=$(word 1,$(subst -, ,$*)) GOARCH=$(word 2,$(subst -, ,$*)) $(BUILD) -o $@ ./cmd/solepod

.PHONY: buildah
buildah:
	@command -v buildah >/dev/null || { echo 'The image is built by buildah. On Debian: apt-get install -y --no-install-recommends buildah' >&2; exit 1; }

.PHONY: image
image: buildah $(BINARIES) ## Build bin/solepod-image.tar, an OCI archive of IMAGE for PLATFORMS (needs buildah)
	@chmod -fR u+w bin/buildah; rm -rf bin/buildah bin/solepod-image.tar
	@# One platform after the other: buildah would list them in any order.
	for platform in $(PLATFORMS); do $(BUILDAH) build --quiet --isolation chroot --platform $$platform --manifest $(IMAGE):$(VERSION) \
		--timestamp $(SOURCE_DATE_EPOCH) --identity-label=false \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) . || exit 1; done
	$(BUILDAH) manifest push --quiet --all $(IMAGE):$(VERSION) oci-archive:bin/solepod-image.tar:$(IMAGE):$(VERSION)
	@chmod -fR u+w bin/buildah; rm -rf bin/buildah

.PHONY: test-image
test-image: buildah controlplane ## Build the image twice, inspect it and run it (needs buildah)
	$(GO) test -tags image ./test/image -v -count=1 -timeout 20m

.PHONY: test-page
test-page: ## Test the page of solepod audit in a browser (needs chromium)
	@command -v chromium >/dev/null || { echo 'On Debian: apt-get install -y --no-install-recommends chromium' >&2; exit 1; }
	$(GO) test -tags browser ./test/page -v -count=1

.PHONY: wheel
wheel: ## Build bin/solepod_airflow-*.whl, the plugin for an Airflow outside the cluster (needs Python)
	@python3 -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir bin manifests/airflow

.PHONY: sbom
sbom: ## Write bin/solepod.cdx.json, which lists the modules in the image
	@mkdir -p bin
	$(CYCLONEDX) app -json -licenses -std -noserial -notimestamp -main cmd/solepod -output bin/solepod.cdx.json

# The database is the newest in the module proxy.
.PHONY: vulncheck
vulncheck: ## Search for known vulnerabilities in the code that solepod calls
	@dir=$$($(GO) mod download -json golang.org/x/vulndb@latest | sed -n 's/^.*"Dir": "\(.*\)",$$/\1/p') && \
	GOTOOLCHAIN=$(TOOLCHAIN) $(GOVULNCHECK) -db "file://$$dir/data/osv" ./cmd/...

.PHONY: licences
licences: ## Fail if a module in the binary has a licence that is not listed here
	@mkdir -p bin && $(GO_LICENSES) check ./cmd/solepod --allowed_licenses=Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT,MPL-2.0 2>bin/licences.log || \
	{ grep -v 'non-Go code\|^/' bin/licences.log; exit 1; }

# In another folder, with an empty build cache.
.PHONY: reproducible
reproducible: build ## Build the binary again in another folder, and compare
	@other=$$(mktemp -d) && git clone --quiet . "$$other/solepod" && \
	GOCACHE="$$other/cache" $(MAKE) --no-print-directory -C "$$other/solepod" build VERSION=$(VERSION) && \
	cmp bin/solepod "$$other/solepod/bin/solepod" && sha256sum bin/solepod && rm -rf "$$other"

.PHONY: lint
lint: ## Run golangci-lint on the code, and Vale on the prose
	$(GOLANGCI_LINT) run
	@$(MAKE) --no-print-directory lint-prose

# .vale.ini names the formats that are checked, and the exceptions. .vale itself
# quotes what its rules forbid; testdata and requirements are not written by hand.
.PHONY: lint-prose
lint-prose: ## Run Vale on documentation, comments and messages (needs gcc)
	@$(VALE) --no-global test .vale/styles
	@$(VALE) --no-global --output=line $$(git ls-files -- ':!.vale' ':!*/testdata/*' ':!test/airflow/requirements' ':!*_test.go')
	@$(VALE) --no-global --output=line --config=.vale/tests.ini $$(git ls-files -- '*_test.go')

.PHONY: fmt
fmt: ## Format the code
	$(GOLANGCI_LINT) fmt

.PHONY: docs
docs: ## Regenerate docs/configuration.md and the chart's README
	$(REFERENCE) --output-path=docs/configuration.md
	$(HELM_DOCS)

# $(call render,values) prints the manifests of an installation with these values.
render = echo '\# Rendered from manifests/chart by make manifests.' && $(HELM) template solepod manifests/chart --namespace solepod-system --set namespace.create=true,$(1) | sed '/^\# Source: /d'

.PHONY: manifests
manifests: bin/helm ## Regenerate manifests/install*.yaml from the chart
	@( $(call render,certificates.mode=SelfSigned) ) > manifests/install.yaml
	@( $(call render,certificates.mode=CertManager) ) > manifests/install-cert-manager.yaml

.PHONY: verify
verify: bin/helm ## Fail if go.mod, go.sum, formatting or generated files are out of date
	@generated=$$(mktemp) && $(REFERENCE) --output-path=$$generated && diff -u docs/configuration.md $$generated && rm $$generated
	@( $(call render,certificates.mode=SelfSigned) ) | diff -u manifests/install.yaml -
	@( $(call render,certificates.mode=CertManager) ) | diff -u manifests/install-cert-manager.yaml -
	@$(HELM_DOCS) --dry-run | diff -u manifests/chart/README.md -
	$(HELM) lint --strict --quiet manifests/chart
	@for module in $(MODULES); do (cd $$module && $(GO) mod tidy -diff && $(GO) mod verify >/dev/null) || exit 1; done
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet -tags airflow,browser,image ./...
