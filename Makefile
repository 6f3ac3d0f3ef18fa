# solepod: make help lists the targets.

GO            ?= go
GOLANGCI_LINT ?= $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
REFERENCE     ?= $(GO) run github.com/elastic/crd-ref-docs@v0.3.0 --source-path=pkg/config --config=docs/templates/config.yaml --templates-dir=docs/templates --renderer=markdown --log-level=ERROR
VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
AIRFLOW       ?= $(patsubst test/airflow/requirements/%.txt,%,$(wildcard test/airflow/requirements/*.txt))
MODULES        = . test/controlplane/binaries

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
run: ## Leave control plane and guard running, and print the KUBECONFIG
	@$(GO) build -o bin/demo ./test/demo && exec bin/demo -keep

.PHONY: test
test: controlplane ## Run all tests, unit and integration
	$(GO) test ./...

.PHONY: test-unit
test-unit: ## Run the tests that need no control plane
	$(GO) test ./cmd/... ./pkg/...

.PHONY: test-race
test-race: controlplane ## Let 16 clients race for each of 1,000 tasks, with three replicas that crash
	$(GO) test ./test/race -v -run 'TestRace$$' -timeout 60m -rounds $(or $(ROUNDS),1000)

.PHONY: test-airflow
test-airflow: controlplane ## Replay the incident with real Airflows, version by version (needs Python 3.11)
	@for row in $(AIRFLOW); do echo "=== provider $$row"; "$$(test/airflow/environment $$row)" -m pytest -q -p no:cacheprovider test/airflow/policy || exit 1; done
	$(GO) test -tags airflow ./test/airflow -v -timeout 60m -rows "$(subst $(space),$(comma),$(AIRFLOW))"

.PHONY: controlplane
controlplane: ## Build kube-apiserver, etcd, kube-controller-manager and kwok, unless they are there
	@$(GO) run ./test/controlplane/build >/dev/null

.PHONY: build
build: ## Build bin/solepod
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/solepod ./cmd/solepod

.PHONY: lint
lint: ## Run golangci-lint
	$(GOLANGCI_LINT) run

.PHONY: fmt
fmt: ## Format the code
	$(GOLANGCI_LINT) fmt

.PHONY: docs
docs: ## Regenerate docs/configuration.md from the types
	$(REFERENCE) --output-path=docs/configuration.md

.PHONY: verify
verify: ## Fail if go.mod, go.sum, formatting or what is generated are not as they should be
	@generated=$$(mktemp) && $(REFERENCE) --output-path=$$generated && diff -u docs/configuration.md $$generated && rm $$generated
	@for module in $(MODULES); do (cd $$module && $(GO) mod tidy -diff && $(GO) mod verify >/dev/null) || exit 1; done
	$(GOLANGCI_LINT) fmt --diff
	$(GO) vet -tags airflow ./...
