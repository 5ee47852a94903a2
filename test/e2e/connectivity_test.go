//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/netset"
	"weft/test/e2e/cluster"
)

// Pods reach pods, nodes and the outside, nodes and outsiders reach pods, and all of them see the addresses that they should.
func TestConnectivity(t *testing.T) {
	f := newFixture(t, shared, 3*time.Minute)
	checkConnectivity(f, f.echoPods())
}

// The same on clusters of one family, with the other choices that users have: direct routes, kube-proxy beside weft.
func TestVariants(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name   string
		family netset.Family
		proxy  string
		chart  []string
	}{
		{"IPv4-direct-iptables", netset.V4, "iptables", []string{"config.backend.type=direct"}},
		{"IPv6-vxlan-nftables", netset.V6, "nftables", nil},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			dir := shared.Dir + "-" + v.name
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			if old, err := cluster.Open(dir, progress); err == nil {
				if err := old.Down(ctx); err != nil {
					t.Fatal(err)
				}
			}
			c, err := start(ctx, cluster.Config{
				Dir: dir, Nodes: 2, Families: []netset.Family{v.family}, KubeProxy: v.proxy, Images: shared.Dir,
			}, v.chart...)
			t.Cleanup(func() {
				if t.Failed() {
					_ = diagnose(c)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if err := errors.Join(c.Down(ctx), leftovers(dir)); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			f := newFixture(t, c, 5*time.Minute)
			pods := f.echoPods()
			checkConnectivity(f, pods)
			checkService(f, pods)
		})
	}
}

// checkService reaches all pods behind a service by its name, from every pod: kube-proxy's translation, and the
// replies' way back through it, work on links and tunnels of weft.
func checkService(f *fixture, pods []pod) {
	f.Helper()
	f.apply("service.yaml")
	url := fmt.Sprintf("http://echo.%s.svc.cluster.local:8080/hostname", f.ns)
	for _, from := range pods {
		script := "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do curl -s --max-time 5 " + url + "; echo; done"
		seen := map[string]int{}
		f.eventually(20*time.Second, func() error { // until kube-proxy has heard of it
			out, err := f.in(from.Name, "sh", "-c", script)
			clear(seen)
			for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
				seen[strings.TrimSpace(l)]++
			}
			if err != nil || len(seen) != len(pods) || seen[""] > 0 {
				return fmt.Errorf("from %s on %s the service answered %v (%v)", from.Name, from.Node, seen, err)
			}
			return nil
		})
	}
}

func checkConnectivity(f *fixture, pods []pod) {
	f.Helper()
	for _, family := range f.Families {
		var names, pings []string // of what every node, and every pod, tries
		byName := map[string]string{}
		for _, to := range pods {
			url := httpURL(to.address(family), 8080, "/hostname")
			names, byName[url] = append(names, url), to.Name
		}
		// The control plane is no node: to pods it is the outside, with a route to them.
		for _, from := range append(f.NodeNames(), cluster.ControlPlane) {
			if from != cluster.ControlPlane {
				pings = append(pings, cluster.Address(from, family).String())
			}
			out, err := f.Exec(f.ctx, from, curl(names)...)
			f.compare("host "+from, out, err, byName)
		}
		for _, from := range pods {
			want := map[string]string{}
			for _, to := range pods { // pods see each other's own address
				want[httpURL(to.address(family), 8080, "/clientip")] = from.address(family).String()
			}
			if !ptp() { // beyond the cluster, a pod has its node's address
				want[httpURL(cluster.Outside(family), 80, "/clientip")] = cluster.Address(from.Node, family).String()
			}
			out, err := f.in(from.Name, curl(slices.Sorted(maps.Keys(want)))...)
			f.compare(from.Name+" on "+from.Node, out, err, want)
			out, err = f.in(from.Name, "sh", "-c", "for a in "+strings.Join(pings, " ")+"; do ping -c1 -W3 $a >/dev/null || echo $a; done")
			if err != nil || out != "" {
				f.Errorf("%s on %s does not reach nodes: %s %v", from.Name, from.Node, out, err)
			}
		}
	}
}

func httpURL(to netip.Addr, port uint16, path string) string {
	return "http://" + netip.AddrPortFrom(to, port).String() + path
}

// curl fetches URLs and prints a line for each: the URL, curl's exit code, the page.
func curl(urls []string) []string {
	return append([]string{"curl", "-s", "--max-time", "5", "-w", `\n%{exitcode} %{url}\n`}, urls...)
}

// compare checks what curl printed: at each URL the page that is wanted, whatever port an address in it has.
func (f *fixture) compare(from, out string, err error, want map[string]string) {
	f.Helper()
	got := map[string]string{}
	lines := strings.Split(out, "\n")
	for i := 1; i < len(lines); i++ {
		code, url, ok := strings.Cut(lines[i], " ")
		if !ok || want[url] == "" {
			continue
		}
		if got[url] = strings.TrimSpace(lines[i-1]); code != "0" {
			got[url] = "curl's error " + code
		} else if h, _, err := net.SplitHostPort(got[url]); err == nil {
			got[url] = h
		}
	}
	for url, page := range want {
		if got[url] != page {
			f.Errorf("%s to %s: %q, want %q (%v)", from, url, got[url], page, err)
		}
	}
}

// Every pod resolves names by each DNS pod's address.
func TestDNS(t *testing.T) {
	f := newFixture(t, shared, 2*time.Minute)
	clients := f.echoPods()
	servers := listPods(t, f.ctx, f.Cluster, "-n", "kube-system", "-l", "k8s-app=kube-dns")
	if len(servers) == 0 {
		t.Fatal("no DNS pods")
	}
	for _, c := range clients {
		for _, s := range servers {
			for _, a := range s.IPs {
				out, err := f.in(c.Name, "dig", "+short", "+time=2", "+tries=1", "@"+a.String(), "kubernetes.default.svc.cluster.local")
				if _, bad := netip.ParseAddr(strings.TrimSpace(out)); err != nil || bad != nil {
					t.Errorf("%s on %s asks %s on %s: %q %v", c.Name, c.Node, a, s.Node, out, err)
				}
			}
		}
	}
	if ptp() {
		return // the DNS pods' way to the outside is masqueraded
	}
	out, err := f.in(clients[0].Name, "dig", "+short", "+tcp", "@"+servers[0].IPs[0].String(), "outside.test")
	if err != nil || !strings.Contains(out, cluster.Outside(f.Families[0]).String()) {
		t.Errorf("a name from outside of the cluster: %q %v", out, err)
	}
}

// What a service is on a node is asked of an agent that watches no services.
func TestServiceExplain(t *testing.T) {
	needsWeft(t)
	f := newFixture(t, shared, 2*time.Minute)
	agent := f.agents()[0]
	ask := func(args ...string) string {
		return f.kubectl(append([]string{"-n", "kube-system", "exec", agent.Name, "--", "weft"}, args...)...)
	}
	out := ask("service", "explain", "kube-system/kube-dns")
	servers := listPods(t, f.ctx, f.Cluster, "-n", "kube-system", "-l", "k8s-app=kube-dns")
	for _, s := range servers {
		at := netip.AddrPortFrom(netset.First(s.IPs, f.Families[0]), 53).String()
		if want := regexp.MustCompile(`dns/udp +` + regexp.QuoteMeta(at) + ` +` + s.Node + ` +ready +used`); !want.MatchString(out) {
			t.Errorf("DNS pod %s of %s is not in\n%s", at, s.Node, out)
		}
	}
	if len(servers) == 0 || !strings.Contains(out, "translated by nobody") { // there is no kube-proxy in this cluster
		t.Errorf("%d DNS pods, and somebody translates in\n%s", len(servers), out)
	}
	f.eventually(time.Minute, func() error {
		if out := ask("show", "services"); strings.Contains(out, "kube-dns") {
			return errors.New("services are still watched:\n" + out)
		}
		return nil
	})
}

// kubectl exec with input, logs and port-forward work on every node.
func TestKubectl(t *testing.T) {
	f := newFixture(t, shared, 2*time.Minute)
	for _, p := range f.echoPods() {
		out, err := f.KubectlInput(f.ctx, "hello", "-n", f.ns, "exec", "-i", p.Name, "--", "cat")
		if err != nil || out != "hello" {
			t.Errorf("exec on %s: %q %v", p.Node, out, err)
		}
		if log := f.kubectl("-n", f.ns, "logs", p.Name, "-c", "http"); !strings.Contains(log, "Started HTTP server") {
			t.Errorf("log of %s on %s: %q", p.Name, p.Node, log)
		}
	}
}
