#!/usr/bin/env bash
# Installs the Debian packages that a group of make targets needs, and nothing
# else: deps.sh GROUP... A second run prints nothing and takes milliseconds.
# On another distribution it names what is missing and goes on.
set -euo pipefail

packages() {
	case "$1" in
	test) echo iproute2 nftables iputils-ping ethtool conntrack kmod strace gcc libc6-dev ;;
	gen) echo clang-19 llvm-19 clang-format-19 libbpf-dev linux-libc-dev ;;
	lint) echo shellcheck ;;
	vm) echo qemu-system-x86 dpkg xz-utils zstd iproute2 nftables iputils-ping ethtool conntrack iptables strace ;;
	bench) echo iproute2 nftables ethtool ;;
	e2e) echo iproute2 nftables iputils-ping kmod gcc libc6-dev libseccomp-dev pkg-config busybox-static bash dash curl netcat-openbsd bind9-dnsutils tcpdump ;;
	*)
		echo "deps.sh: no group \"$1\": test, gen, lint, vm, bench, e2e" >&2
		exit 2
		;;
	esac
}

missing=()
for group in "$@"; do
	for p in $(packages "$group"); do
		if ! dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed; then
			missing+=("$p")
		fi
	done
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: not Debian; by its names these are needed: ${missing[*]}" >&2
	exit 0
fi
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
export DEBIAN_FRONTEND=noninteractive
install() { "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
echo "deps.sh: installing ${missing[*]}"
# The package lists may be absent or too old; ask for new ones only then.
install 2>/dev/null || { "${sudo[@]}" apt-get update -qq && install; }
