#!/usr/bin/env bash
# Prints the path of a development tool (gofumpt, golangci-lint), built from the
# versions of tools/go.mod on first use and kept in the user's cache after that.
set -euo pipefail
cd "$(dirname "$0")/../tools"

case "${1:-}" in
gofumpt) pkg=mvdan.cc/gofumpt ;;
golangci-lint) pkg=github.com/golangci/golangci-lint/v2/cmd/golangci-lint ;;
*)
	echo "tool.sh: no tool \"${1:-}\": gofumpt, golangci-lint" >&2
	exit 2
	;;
esac
stamp=$({ go version && cat go.mod; } | sha256sum | cut -c1-12)
bin="${XDG_CACHE_HOME:-$HOME/.cache}/weft/tools/$1-$stamp"
if [ ! -x "$bin" ]; then
	[ "${2:-}" = --if-built ] && exit 3
	echo "tool.sh: building $1, once" >&2
	mkdir -p "$(dirname "$bin")"
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$bin.$$" "$pkg"
	mv "$bin.$$" "$bin"
fi
echo "$bin"
