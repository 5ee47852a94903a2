package cilium

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"weft/internal/model"
	"weft/internal/netset"
	"weft/internal/oracle"
	"weft/internal/selector"
)

// snapshot is a cluster.
type snapshot map[model.Key]model.Object

func (s snapshot) Get(k model.Key) model.Object { return s[k] }

func (s snapshot) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for k, o := range s {
			if k.Kind == kind && !yield(o) {
				return
			}
		}
	}
}

// The ends of packets: pods by their names, nodes and others.
func addresses() map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for name, a := range map[string]string{
		"web": "10.1.0.1", "db": "10.1.0.2", "other/web": "10.1.0.3", "dns": "10.1.0.4", "web6": "fd00::1",
		"here": "172.16.0.1", "there": "172.16.0.2", "world": "192.0.2.1", "partner": "198.51.100.1", "world6": "2001:db8::1",
	} {
		out[name] = netip.MustParseAddr(a)
	}
	return out
}

// cluster has two namespaces, two nodes (the kube-apiserver is on "there") and a CIDR group, and the objects of docs.
func cluster(t *testing.T, docs string) snapshot {
	t.Helper()
	s := snapshot{}
	at := addresses()
	pod := func(ns, name string, labels map[string]string, ports []model.Port, addrs ...string) {
		p := &model.Pod{PodRef: model.PodRef{Namespace: ns, Name: name}, Node: "here", Labels: labels, Account: "robot", Ports: ports}
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, at[a])
		}
		s[p.Key()] = p
	}
	pod("shop", "web", map[string]string{"app": "web", "team": "a"}, []model.Port{{Name: "http", Protocol: "tcp", Port: 8080}}, "web", "web6")
	pod("shop", "db", map[string]string{"app": "db", "team": "a"}, nil, "db")
	pod("other", "web", map[string]string{"app": "web", "team": "b"}, nil, "other/web")
	pod("kube-system", "dns", map[string]string{"k8s-app": "kube-dns"}, nil, "dns")
	for _, o := range []model.Object{
		&model.Namespace{Name: "shop", Labels: map[string]string{"env": "prod"}},
		&model.Namespace{Name: "other", Labels: map[string]string{"env": "test"}},
		&model.Node{Name: "here", Addrs: []netip.Addr{at["here"]}, Labels: map[string]string{"zone": "a"}},
		&model.Node{Name: "there", Addrs: []netip.Addr{at["there"]}, Labels: map[string]string{"zone": "b"}},
		&model.Backends{
			Namespace: "default", Name: "kubernetes-1", Service: "kubernetes", Family: netset.V4,
			Backends: []model.Backend{{Addr: at["there"], Ready: true}},
		},
		&model.Backends{
			Namespace: "shop", Name: "db-1", Service: "db", Family: netset.V4, Backends: []model.Backend{{Addr: at["db"], Ready: true}},
		},
		&model.AddressSet{ // Calico's, which no selector of Cilium may find
			Ref: model.Ref{Kind: "NetworkSet", Name: "x"}, Labels: selector.Map{selector.Kind: selector.KindSet, "env": "prod", "app": "web"},
			Nets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		},
	} {
		s[o.Key()] = o
	}
	group := golden{yaml: "{kind: CiliumCIDRGroup, metadata: {name: partners, labels: {env: prod}}, spec: {externalCIDRs: [198.51.100.0/24]}}"}
	for _, g := range []golden{group, {yaml: docs}} {
		for _, o := range Convert(g.json(t)).Objects {
			s[o.Key()] = o
		}
	}
	return s
}

// packet reads "web db tcp/80", and "host" before it for one that the node's own processes send.
func packet(t *testing.T, s string) oracle.Packet {
	t.Helper()
	f := strings.Fields(s)
	p := oracle.Packet{SrcPort: 40000}
	if f[0] == "host" {
		p.FromHost, f = true, append([]string{"here"}, f[1:]...)
	}
	at := addresses()
	p.Src, p.Dst = at[f[0]], at[f[1]]
	proto, port, _ := strings.Cut(f[2], "/")
	n, err := strconv.Atoi(port)
	if err != nil || !p.Src.IsValid() || !p.Dst.IsValid() {
		t.Fatalf("%s: %v", s, err)
	}
	p.DstPort = uint16(n)
	switch proto {
	case "tcp":
		p.Proto = model.ProtoTCP
	case "udp":
		p.Proto = model.ProtoUDP
	case "icmp":
		p.Proto, p.DstPort = model.ProtoICMP, uint16(n)<<8
	case "icmpv6":
		p.Proto, p.DstPort = model.ProtoICMPv6, uint16(n)<<8
	default:
		t.Fatal(s)
	}
	return p
}

// TestPackets asks the oracle what policies mean to packets.
func TestPackets(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml       string
		pass, drop []string
	}{
		"an empty selector of peers is the namespace": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{}]}]}`,
			pass: []string{"web db tcp/1", "web db icmp/8", "host db tcp/1", "other/web web tcp/1"},
			drop: []string{"other/web db tcp/1", "world db tcp/1", "there db tcp/1"},
		},
		"clusterwide, the cluster": {
			yaml: `{kind: CiliumClusterwideNetworkPolicy, metadata: {name: x}, spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{}]}]}}`,
			pass: []string{"web db tcp/1", "other/web db tcp/1"},
			drop: []string{"world db tcp/1", "there db tcp/1"},
		},
		"an empty rule is a lock, an empty list is none": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{}], egress: []}}`,
			pass: []string{"db web tcp/1", "host db tcp/1"},
			drop: []string{"web db tcp/1"},
		},
		"namespaces": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [
				{matchLabels: {"k8s:io.cilium.k8s.namespace.labels.env": test}}, {matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system}}]}]}`,
			pass: []string{"other/web db tcp/1", "dns db tcp/1"},
			drop: []string{"web db tcp/1", "world db tcp/1"},
		},
		"ports without peers": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{toPorts: [{ports: [{port: "80"}, {port: "100", endPort: 200, protocol: UDP}]}]}]}`,
			pass: []string{"web db tcp/80", "world db udp/80", "there db udp/100", "there db udp/200"},
			drop: []string{"web db tcp/81", "web db icmp/8", "there db udp/201", "there db tcp/100"},
		},
		"all ports are not ICMP; types of ICMP": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{toPorts: [{ports: [{port: "0"}]}]}]},
				specs: [{endpointSelector: {matchLabels: {app: web}}, ingress: [{icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}]}]}]}]}`,
			pass: []string{"web db tcp/80", "web db udp/9", "db web icmp/8", "world6 web6 icmpv6/128"},
			drop: []string{"web db icmp/8", "db web icmp/0", "db web tcp/1", "world6 web6 icmpv6/8"},
		},
		"named ports": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{toPorts: [{ports: [{port: HTTP, protocol: TCP}]}]}]}`,
			pass: []string{"world web tcp/8080"},
			drop: []string{"world web tcp/80", "world web udp/8080"},
		},
		"blocks are outside": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, egress: [{toCIDRSet: [{cidr: 0.0.0.0/0, except: [198.51.100.0/24]}]}]}`,
			pass: []string{"db world tcp/1"},
			drop: []string{"db partner tcp/1", "db web tcp/1", "db here tcp/1", "db there tcp/1"},
		},
		"CIDR groups": {
			yaml: `spec: {endpointSelector: {matchLabels: {team: a}}, egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {env: prod}}}]}]}`,
			pass: []string{"db partner tcp/1"},
			drop: []string{"db world tcp/1", "db web tcp/1"},
		},
		"a CIDR group by its name, without a part of it": {
			yaml: `spec: {endpointSelector: {matchLabels: {team: a}}, egress: [{toCIDRSet: [{cidrGroupRef: partners, except: [198.51.100.1/32]}]}]}`,
			drop: []string{"db partner tcp/1", "db world tcp/1"},
		},
		"world": {
			yaml: `{spec: {endpointSelector: {}, egress: [{toEntities: [world-ipv4]}], ingress: [{fromEntities: [world]}]}}`,
			pass: []string{"db world tcp/1", "db partner tcp/1", "world6 web6 tcp/1", "partner db tcp/1"},
			drop: []string{"web6 world6 tcp/1", "db there tcp/1", "db web tcp/1", "there db tcp/1"},
		},
		"cluster": {
			yaml: `spec: {endpointSelector: {}, egress: [{toEntities: [cluster]}]}`,
			pass: []string{"db other/web tcp/1", "db here tcp/1", "db there tcp/1"},
			drop: []string{"db world tcp/1"},
		},
		"nodes": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, egress: [{toEntities: [host]}, {toEntities: [kube-apiserver], toPorts: [{ports: [{port: "6443"}]}]}]},
				specs: [{endpointSelector: {matchLabels: {app: web}}, egress: [{toNodes: [{matchLabels: {zone: b}}]}]}]}`,
			pass: []string{"db here tcp/1", "db there tcp/6443", "web there tcp/1"},
			drop: []string{"db there tcp/1", "web here tcp/1", "db web tcp/6443"},
		},
		"labels of reserved, not": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, egress: [{toEndpoints: [{matchExpressions: [
				{key: "reserved:kube-apiserver", operator: DoesNotExist}, {key: "reserved:world", operator: DoesNotExist}]}]}]}`,
			pass: []string{"db here tcp/1", "db other/web tcp/1"},
			drop: []string{"db there tcp/1", "db world tcp/1"},
		},
		"services": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: web}}, egress: [{toServices: [{k8sService: {serviceName: db, namespace: shop}}]}]}`,
			pass: []string{"web db tcp/1"},
			drop: []string{"web dns tcp/1", "web world tcp/1"},
		},
		"deny goes before allow": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [all]}], ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]}`,
			pass: []string{"other/web db tcp/1", "world db tcp/1", "there db tcp/1"},
			drop: []string{"web db tcp/1"},
		},
		"the node's own traffic": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, ingressDeny: [{fromEntities: [host]}]},
				specs: [{endpointSelector: {matchLabels: {app: web}}, ingressDeny: [{toPorts: [{ports: [{port: "22"}]}]}]}]}`,
			pass: []string{"host web tcp/22"},
			drop: []string{"host db tcp/1", "db web tcp/22"},
		},
		"a policy that does not isolate": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, enableDefaultDeny: {ingress: false}, ingressDeny: [{fromEntities: [world]}]}`,
			pass: []string{"web db tcp/1", "there db tcp/1"},
			drop: []string{"world db tcp/1"},
		},
		"layer 7 that cannot be enforced, isolated": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEndpoints: [{}], toPorts: [
				{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}, {ports: [{port: "443", protocol: TCP}]}]}]}`,
			pass: []string{"web db tcp/443"},
			drop: []string{"web db tcp/80", "world db tcp/443"},
		},
		"layer 7 that cannot be enforced, not isolated; somebody else may allow the port": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, enableDefaultDeny: {ingress: false}, ingress: [{fromEndpoints: [{}], toPorts: [
				{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}, {ports: [{port: "81", protocol: TCP}], rules: {http: [{}]}}]}]},
				specs: [{endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingress: [{fromEndpoints: [{matchLabels: {app: db}}]}]}]}`,
			pass: []string{"web db tcp/443", "web db tcp/81", "world db tcp/80", "db db tcp/80"},
			drop: []string{"web db tcp/80"},
		},
		"requirements": {
			yaml: `{spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromRequires: [{matchLabels: {team: a}}]}]},
				specs: [{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromEntities: [all]}]}]}`,
			pass: []string{"web db tcp/1", "world db tcp/1"},
			drop: []string{"other/web db tcp/1", "dns db tcp/1"},
		},
		"host policy": {
			yaml: `{kind: CiliumClusterwideNetworkPolicy, metadata: {name: x}, spec: {nodeSelector: {matchLabels: {zone: a}}, ingress: [{fromEntities: [remote-node]}]}}`,
			pass: []string{"there here tcp/1", "world db tcp/1"},
			drop: []string{"world here tcp/1", "web here tcp/1"},
		},
		"a bad rule does not open what others close": {
			yaml: `spec: {endpointSelector: {matchLabels: {app: db}}, ingress: [{fromCIDR: [x]}, {fromEndpoints: [{matchLabels: {app: web}}]}], egressDeny: [{toCIDR: [x]}]}`,
			pass: []string{"web db tcp/1"},
			drop: []string{"world db tcp/1", "db web tcp/1", "db world tcp/1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := cluster(t, tc.yaml)
			for want, list := range map[bool][]string{true: tc.pass, false: tc.drop} {
				for _, p := range list {
					out, in := oracle.Decide(s, "here", packet(t, p))
					if got := out.Verdict == model.VerdictAllow && in.Verdict == model.VerdictAllow; got != want {
						t.Errorf("%s: passes: %v, by %s and %s", p, got, said(out), said(in))
					}
				}
			}
		})
	}
}

func said(d oracle.Decision) string { return fmt.Sprintf("%s (%s %s)", d.Verdict, d.Policy, d.Rule) }
