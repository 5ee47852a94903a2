package nft_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/internal/testkit"
)

// echo sends back what it reads, each time behind a word.
func echo(word string) func(net.Conn) {
	return func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			k, err := c.Read(b)
			if err != nil {
				return
			}
			if _, err := c.Write(append([]byte(word), b[:k]...)); err != nil {
				return
			}
		}
	}
}

// associate opens an association that lasts until the test ends, from a port of the namespace.
func (n *node) associate(ns *testkit.Netns, port uint16, to string) net.Conn {
	n.Helper()
	var c net.Conn
	ns.Do(n.TB, func() {
		var err error
		if c, err = testkit.DialSCTP(port, netip.MustParseAddrPort(to), 4*time.Second); err != nil {
			n.Fatal(err)
		}
	})
	n.Cleanup(func() {
		_ = c.(*net.TCPConn).SetLinger(0) // it may have nobody at its other end any more
		_ = c.Close()
	})
	return c
}

// say sends a word and returns what came back.
func say(c net.Conn, word string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(4 * time.Second))
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	k, err := c.Read(b)
	return string(b[:k]), err
}

// TestStaleAssociations: an association through a host port ends when the port moves to another pod, and no other one does.
func TestStaleAssociations(t *testing.T) {
	testkit.RequireSCTP(t)
	modes(t, testStaleAssociations)
}

func testStaleAssociations(t *testing.T, n *node) {
	t.Helper()
	for i, p := range n.pods {
		for _, port := range []string{":80", ":81"} {
			n.serveSCTP(p, port, echo(fmt.Sprintf("pod%d%s ", i, port)))
		}
	}
	both(func(pod, other, host, _ string) {
		keep := hostPort("sctp", "", 8081, other+":81")
		n.apply(masquerade(), keep, hostPort("sctp", "", 8080, pod+":80"))
		expect := func(when string, c net.Conn, want string) {
			t.Helper()
			if got, err := say(c, when); err != nil || got != want+" "+when {
				t.Errorf("%s %s: %q, %v, want %q", host, when, got, err, want)
			}
		}
		moving, staying := n.associate(n.out, 4000, host+":8080"), n.associate(n.out, 4001, host+":8081")
		expect("before", moving, "pod0:80")
		expect("before", staying, "pod1:81")
		n.apply(masquerade(), keep, hostPort("sctp", "", 8080, other+":80"))
		if got, err := say(moving, "moved"); err == nil {
			t.Errorf("%s: an association to a port that moved goes on: %q", host, got)
		}
		_ = moving.(*net.TCPConn).SetLinger(0)
		_ = moving.Close()
		expect("another moved", staying, "pod1:81")
		expect("moved", n.associate(n.out, 4000, host+":8080"), "pod1:80")
	})
}

// TestSCTPChecksums: translation keeps SCTP's checksum right where packets bear one: nobody but a network card, or the
// kernel for one that cannot, fills it in, and a pod's link does neither.
func TestSCTPChecksums(t *testing.T) {
	testkit.RequireSCTP(t)
	modes(t, testSCTPChecksums)
}

func testSCTPChecksums(t *testing.T, n *node) {
	t.Helper()
	for _, ns := range []*testkit.Netns{n.out, n.pods[0], n.pods[1]} {
		ns.Run(t, "ethtool", "-K", "eth0", "tx", "off")
		if out := ns.Run(t, "ethtool", "-k", "eth0"); !strings.Contains(out, "tx-checksum-sctp: off") {
			t.Fatalf("eth0 still leaves SCTP's checksum to the other end:\n%s", out)
		}
	}
	for _, p := range n.pods {
		n.serveSCTP(p, ":80", echo(""))
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	both(func(pod, _, host, _ string) {
		n.apply(masquerade(), hostPort("sctp", "", 8080, pod+":80"))
		for _, from := range []*testkit.Netns{n.out, n.pods[1], n.pods[0]} { // the last is masqueraded, too
			c := n.associate(from, 0, host+":8080")
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			got := make([]byte, len(block))
			for range 20 {
				if _, err := c.Write(block); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
					t.Fatalf("%s: the echo differs, or %v", host, err)
				}
			}
		}
	})
	for i, ns := range []*testkit.Netns{n.out, n.host, n.pods[0], n.pods[1]} {
		if got := snmp(t, ns, "SctpChecksumErrors"); got != 0 {
			t.Errorf("namespace %d saw %d wrong checksums", i, got)
		}
	}
	if got := snmp(t, n.pods[0], "SctpInSCTPPacks"); got < 100 {
		t.Errorf("the pod received %d packets: this test shows nothing", got)
	}
}

// snmp reads a counter of SCTP.
func snmp(t *testing.T, ns *testkit.Netns, name string) int {
	t.Helper()
	for line := range strings.Lines(ns.Run(t, "cat", "/proc/net/sctp/snmp")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			v, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}

// TestSCTPFirst: a client that asked before there was a host port reaches it from the same port.
func TestSCTPFirst(t *testing.T) {
	testkit.RequireSCTP(t)
	modes(t, func(t *testing.T, n *node) {
		t.Helper()
		n.serveSCTP(n.pods[0], ":80", echo("pod0 "))
		both(func(pod, _, host, _ string) {
			n.apply(masquerade())
			n.out.Do(t, func() {
				if c, err := testkit.DialSCTP(4000, netip.MustParseAddrPort(host+":8080"), 4*time.Second); err == nil {
					_ = c.Close()
					t.Errorf("%s: somebody serves the port", host)
				}
			})
			n.apply(masquerade(), hostPort("sctp", "", 8080, pod+":80"))
			if got, err := say(n.associate(n.out, 4000, host+":8080"), "x"); got != "pod0 x" {
				t.Errorf("%s: %q, %v", host, got, err)
			}
		})
	})
}
