package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy is how the old iptables tells its tables of one family (linux/netfilter_ipv4/ip_tables.h and its IPv6 twin).
type legacy struct {
	names        string // lists the tables in use
	domain       int
	level        int
	command      string
	targetOffset int // where a rule says how far its target is
}

func legacies() []legacy {
	return []legacy{
		{"/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, "iptables-legacy", 88},
		{"/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, "ip6tables-legacy", 140},
	}
}

const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES
	infoSize   = 84 // struct ipt_getinfo
	entriesAt  = 40 // in struct ipt_get_entries
	drop       = -1 // how a standard target says it: -NF_DROP-1
)

// uses reports whether a table of the old iptables exists. Asking the kernel for one would make it.
func (l legacy) uses(table string) bool {
	b, err := os.ReadFile(l.names)
	return err == nil && strings.Contains("\n"+string(b), "\n"+table+"\n")
}

// drops says whether the policy for forwarded packets of the filter table is to drop them, in words; "" if not.
func (l legacy) drops() (string, error) {
	if !l.uses("filter") {
		return "", nil
	}
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return "", fmt.Errorf("open a socket for %s: %w", l.command, err)
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, infoSize)
	copy(info, "filter")
	if err := getsockopt(fd, l.level, getInfo, info); err != nil {
		return "", fmt.Errorf("read the tables of %s: %w", l.command, err)
	}
	word := func(at int) int { return int(binary.NativeEndian.Uint32(info[at:])) }
	size, policy := word(80), word(56+4*unix.NF_INET_FORWARD) // size, underflow[FORWARD]
	all := make([]byte, entriesAt+size)
	copy(all, info[:32])
	binary.NativeEndian.PutUint32(all[32:], uint32(size))
	if err := getsockopt(fd, l.level, getEntries, all); err != nil {
		return "", fmt.Errorf("read the rules of %s: %w", l.command, err)
	}
	rule := all[entriesAt:]
	if len(rule) < policy+l.targetOffset+2 {
		return "", errors.New("the rules of " + l.command + " are not understood")
	}
	rule = rule[policy:]
	target := int(binary.NativeEndian.Uint16(rule[l.targetOffset:]))
	if len(rule) < target+36 || !bytes.Equal(rule[target+2:target+4], []byte{0, 0}) { // a standard target has no name
		return "", errors.New("the policy of " + l.command + " is not understood")
	}
	if int32(binary.NativeEndian.Uint32(rule[target+32:])) == drop {
		return l.command + " table filter chain FORWARD has policy drop", nil
	}
	return "", nil
}

// getsockopt fills b, whose beginning the kernel reads as well.
func getsockopt(fd, level, name int, b []byte) error {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
