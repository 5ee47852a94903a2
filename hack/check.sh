#!/usr/bin/env bash
# The checks of `make test`, each by name: check.sh STEP... Steps run in the order
# given and the first failure ends the run. Each prints its name and its seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

race_packages="" # RACE="…" on the command line: patterns for the race detector

# tracked_go lists our Go files that are not generated.
tracked_go() {
	git ls-files --cached --others --exclude-standard '*.go' | while read -r f; do
		[ -f "$f" ] && ! head -5 "$f" | grep -q '^// Code generated .* DO NOT EDIT' && echo "$f"
	done || true
}

step_format() {
	local bad
	bad=$(tracked_go | xargs -r "$(hack/tool.sh gofumpt)" -l)
	if [ -n "$bad" ]; then
		printf 'not in gofumpt form (run: %s -w FILE):\n%s\n' "$(hack/tool.sh gofumpt)" "$bad" >&2
		return 1
	fi
	if git ls-files 'bpf/*.[ch]' | grep -q .; then
		git ls-files 'bpf/*.[ch]' | xargs clang-format-19 --dry-run --Werror
	fi
}

step_vet() {
	go vet ./...
	go vet -tags behaviour,e2e ./test/...
}

# step_laws shows what the tests log, because budgets are only told there.
step_laws() { go test -count=1 -v ./internal/laws | { grep -v '^=== ' || true; }; }

# step_gen re-creates what is generated and fails if that changed anything.
step_gen() {
	local before after
	before=$(git ls-files -s -m -o --exclude-standard | sha256sum; git diff | sha256sum)
	go generate ./...
	after=$(git ls-files -s -m -o --exclude-standard | sha256sum; git diff | sha256sum)
	if [ "$before" != "$after" ]; then
		echo "generated files were out of date; commit what 'make gen' changed:" >&2
		git status --short >&2
		return 1
	fi
}

# step_lint uses golangci-lint, building it if need be.
step_lint() {
	"$(hack/tool.sh golangci-lint)" run ./...
	shellcheck hack/*.sh .ci/run
}

# racy prints the packages that the race patterns name and that exist.
racy() {
	local p
	for p in $race_packages; do
		go list "$p" 2>/dev/null || true
	done | sort -u
}

step_test() {
	go list ./... | grep -vxF -f <(racy) | xargs go test -timeout 8m
}

step_race() {
	racy | xargs -r go test -race -timeout 8m
}

# step_behaviour: whole nodes in a lab, what users are promised and what they write.
step_behaviour() {
	go test -count=1 -tags behaviour -timeout 8m -v ./test/behaviour | { grep -v 'level=' || true; }
	bin/weft lab test test/lab/*.txtar
}

steps=()
for arg in "$@"; do
	case "$arg" in
	RACE=*) race_packages=${arg#RACE=} ;;
	*) steps+=("$arg") ;;
	esac
done
for s in "${steps[@]}"; do
	start=$SECONDS
	echo "== $s"
	"step_$s"
	echo "== $s: $((SECONDS - start)) s"
done
