package k8s

import (
	"encoding/json"
	"errors"
	"math/rand"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"

	"weft/internal/convert/wire"
	"weft/internal/model"
	"weft/internal/netset"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range s {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

func TestObject(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want model.Object
		err  string // every line must occur in the error
	}{
		"node, dual stack": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {a: b}},
				spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:1::/64"]},
				status: {addresses: [{type: Hostname, address: n1}, {type: ExternalIP, address: 8.8.8.8},
					{type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: "fd00:172::11"}]}}`,
			want: &model.Node{
				Name: "n1", Addrs: addrs("172.30.0.11", "fd00:172::11"),
				PodCIDRs: prefixes("10.244.1.0/24", "fd00:1::/64"), Labels: map[string]string{"a": "b"},
			},
		},
		"node, only podCIDR": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24}}`,
			want: &model.Node{Name: "n1", PodCIDRs: prefixes("10.244.1.0/24"), Labels: map[string]string{}},
		},
		"node, malformed parts are left out": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0, fd00::/64]},
				status: {addresses: [{type: InternalIP, address: 1.2.3}, {type: InternalIP, address: 10.0.0.1}]}}`,
			want: &model.Node{Name: "n1", Addrs: addrs("10.0.0.1"), PodCIDRs: prefixes("fd00::/64"), Labels: map[string]string{}},
			err: `node n1: status.addresses[0]: "1.2.3" is not an IP address
node n1: spec.podCIDRs: "10.244.1.0" is not a prefix in CIDR notation`,
		},
		"node of flannel": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {
				flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/public-ip: 10.0.0.1,
				flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"4a:7d:01:02:03:04"}'}},
				status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}`,
			want: &model.Node{
				Name: "n1", Addrs: addrs("10.0.0.1"), Labels: map[string]string{},
				VTEPMAC: model.MAC{0x4a, 0x7d, 1, 2, 3, 4},
			},
		},
		"node of flannel, IPv6 only": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {
				flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/public-ipv6: "fd00::1",
				flannel.alpha.coreos.com/backend-data: 'null',
				flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"4a:7d:01:02:03:05"}'}},
				status: {addresses: [{type: InternalIP, address: "fd00::1"}]}}`,
			want: &model.Node{
				Name: "n1", Addrs: addrs("fd00::1"), Labels: map[string]string{},
				VTEPMAC: model.MAC{0x4a, 0x7d, 1, 2, 3, 5},
			},
		},
		"node, flannel's annotation of an older address": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {
				flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/public-ip: 10.0.0.9,
				flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"4a:7d:01:02:03:04"}'}},
				status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}`,
			want: &model.Node{Name: "n1", Addrs: addrs("10.0.0.1"), Labels: map[string]string{}},
		},
		"node, flannel's annotation malformed": {
			yaml: `{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {
				flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/backend-data: '{"VtepMAC":"zz"}'}},
				status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}}`,
			want: &model.Node{Name: "n1", Addrs: addrs("10.0.0.1"), Labels: map[string]string{}},
			err:  `node n1: annotation flannel.alpha.coreos.com/backend-data: address zz: invalid MAC address`,
		},
		"namespace": {
			yaml: "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: prod\n  labels:\n    env: prod\n",
			want: &model.Namespace{Name: "prod", Labels: map[string]string{"env": "prod"}},
		},
		"pod": {
			yaml: `{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: prod, uid: u-1, labels: {app: web}, annotations: {
				weft.io/ips: "10.244.1.9, fd00:1::9", weft.io/mac: "02:00:00:00:00:09",
				kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 1.5Gi}},
				spec: {nodeName: n1, hostNetwork: true, serviceAccountName: builder, restartPolicy: Always,
					containers: [{name: a, ports: [{name: http, containerPort: 80}, {containerPort: 81}]}, {name: b, ports: [{name: dns, containerPort: 53, protocol: UDP}]}],
					initContainers: [{name: c, ports: [{name: gone, containerPort: 1}]},
						{name: d, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090, protocol: TCP}, {name: http, containerPort: 8080}]}]},
				status: {phase: Running, podIP: 10.244.1.9, podIPs: [{ip: 10.244.1.9}, {ip: "fd00:1::9"}]}}`,
			want: &model.Pod{
				PodRef: model.PodRef{Namespace: "prod", Name: "web", UID: "u-1"}, Node: "n1", HostNetwork: true,
				Labels: map[string]string{"app": "web"}, Account: "builder", Ports: []model.Port{
					{Name: "http", Protocol: "tcp", Port: 80},
					{Name: "dns", Protocol: "udp", Port: 53},
					{Name: "metrics", Protocol: "tcp", Port: 9090},
					{Name: "http", Protocol: "tcp", Port: 8080},
				}, Addrs: addrs("10.244.1.9", "fd00:1::9"), WantAddrs: addrs("10.244.1.9", "fd00:1::9"),
				WantMAC: model.MAC{2, 0, 0, 0, 0, 9}, Ingress: &model.Rate{Bits: 1e7}, Egress: &model.Rate{Bits: 3 << 29},
			},
		},
		"pod, calico's annotations, default namespace, finished": {
			yaml: `{apiVersion: v1, kind: Pod, metadata: {name: web, annotations: {
				cni.projectcalico.org/ipAddrs: '["10.244.1.9"]', cni.projectcalico.org/hwAddr: "02:00:00:00:00:09"}},
				status: {phase: Succeeded, podIP: 10.244.1.9}}`,
			want: &model.Pod{
				PodRef: model.PodRef{Namespace: "default", Name: "web"}, Labels: map[string]string{}, Account: "default", Finished: true,
				WantAddrs: addrs("10.244.1.9"), WantMAC: model.MAC{2, 0, 0, 0, 0, 9},
			},
		},
		"pod, malformed ports are left out": {
			yaml: `{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {
				containers: [{ports: [{name: a, containerPort: 70000}, {name: b, containerPort: 1, protocol: QUIC}, {name: c, containerPort: 2}]}]}}`,
			want: &model.Pod{
				PodRef: model.PodRef{Namespace: "default", Name: "web"}, Labels: map[string]string{}, Account: "default",
				Ports: []model.Port{{Name: "c", Protocol: "tcp", Port: 2}},
			},
			err: `pod default/web: spec.containers[0].ports[0].containerPort: 70000 is not in 1..65535
pod default/web: spec.containers[0].ports[1].protocol: "QUIC" is not TCP, UDP or SCTP`,
		},
		"service account": {
			yaml: `{apiVersion: v1, kind: ServiceAccount, metadata: {name: builder, namespace: ci, labels: {team: a}}, secrets: [{name: x}]}`,
			want: &model.ServiceAccount{Namespace: "ci", Name: "builder", Labels: map[string]string{"team": "a"}},
		},
		"service": {
			yaml: `{apiVersion: v1, kind: Service, metadata: {name: dns, namespace: kube-system},
				spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:96::a"], ports: [{name: dns, protocol: UDP, port: 53}, {port: 9153}]}}`,
			want: &model.Service{
				Namespace: "kube-system", Name: "dns", Type: "ClusterIP", Addrs: addrs("10.96.0.10", "fd00:96::a"),
				Ports: []model.ServicePort{{Port: model.Port{Name: "dns", Protocol: "udp", Port: 53}}, {Port: model.Port{Protocol: "tcp", Port: 9153}}},
			},
		},
		"service, all of it": {
			yaml: `{apiVersion: v1, kind: Service, metadata: {name: web, labels: {service.kubernetes.io/service-proxy-name: mine}},
				spec: {type: LoadBalancer, clusterIPs: [10.96.0.11], externalIPs: [192.0.2.1], sessionAffinity: ClientIP, internalTrafficPolicy: Local,
					externalTrafficPolicy: Local, healthCheckNodePort: 31000, loadBalancerSourceRanges: ["192.0.2.9/24", " fd00::/8"],
					ports: [{name: http, port: 80, nodePort: 30080}]},
				status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {ip: "fd00::1", ipMode: VIP}, {hostname: x}]}}}`,
			want: &model.Service{
				Namespace: "default", Name: "web", Type: "LoadBalancer", Addrs: addrs("10.96.0.11"), ExternalIPs: addrs("192.0.2.1"),
				Balancers: addrs("198.51.100.1", "fd00::1"), SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::/8")},
				Ports:    []model.ServicePort{{Port: model.Port{Name: "http", Protocol: "tcp", Port: 80}, NodePort: 30080}},
				Affinity: 10800, InternalLocal: true, ExternalLocal: true, HealthPort: 31000, Elsewhere: "service.kubernetes.io/service-proxy-name",
			},
		},
		"service, wrong": {
			yaml: `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {externalIPs: [x], sessionAffinity: Cookie, internalTrafficPolicy: Near,
				externalTrafficPolicy: Far, healthCheckNodePort: 70000, loadBalancerSourceRanges: ["1.2.3.4"], ports: [{port: 1, nodePort: -1}]}}`,
			want: &model.Service{Namespace: "default", Name: "web", Type: "ClusterIP", Ports: []model.ServicePort{{Port: model.Port{Protocol: "tcp", Port: 1}}}, SourceRanges: []netip.Prefix{}},
			err: `service default/web: spec.externalIPs[0]: "x" is not an IP address
service default/web: spec.loadBalancerSourceRanges[0]: netip.ParsePrefix("1.2.3.4"): no '/'
service default/web: spec.ports[0].nodePort: -1 is not in 0..65535
service default/web: spec.healthCheckNodePort: 70000 is not in 0..65535
service default/web: spec.internalTrafficPolicy: "Near" is not Cluster or Local
service default/web: spec.externalTrafficPolicy: "Far" is not Cluster or Local
service default/web: spec.sessionAffinity: "Cookie" is not None or ClientIP`,
		},
		"service, affinity out of range": {
			yaml: `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}}`,
			want: &model.Service{Namespace: "default", Name: "web", Type: "ClusterIP"},
			err:  `service default/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not in 1..86400`,
		},
		"service, headless and wrong": {
			yaml: `{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: None, ports: [{port: 70000}, {port: 1, protocol: QUIC}]}}`,
			want: &model.Service{Namespace: "default", Name: "db", Type: "ClusterIP"},
			err: `service default/db: spec.ports[0].port: 70000 is not in 1..65535
service default/db: spec.ports[1].protocol: "QUIC" is not TCP, UDP or SCTP`,
		},
		"slice": {
			yaml: `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
				metadata: {name: dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}, ports: [{name: dns, port: 53, protocol: UDP}],
				endpoints: [{addresses: [10.244.1.2], nodeName: n1, hints: {forZones: [{name: z}], forNodes: [{name: n1}, {name: n2}]}}, {addresses: [10.244.1.3], conditions: {ready: false, serving: true, terminating: true}}]}`,
			want: &model.Backends{
				Namespace: "kube-system", Name: "dns-1", Service: "dns", Family: netset.V4,
				Ports: []model.Port{{Name: "dns", Protocol: "udp", Port: 53}},
				Backends: []model.Backend{
					{Addr: addrs("10.244.1.2")[0], Node: "n1", Ready: true, Serving: true, Hints: &model.Hints{Zones: []string{"z"}, Nodes: []string{"n1", "n2"}}},
					{Addr: addrs("10.244.1.3")[0], Serving: true, Terminating: true},
				},
			},
		},
		"slice, wrong family": {
			yaml: `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv6, metadata: {name: s}, endpoints: [{addresses: [10.244.1.2]}, {}]}`,
			want: &model.Backends{Namespace: "default", Name: "s", Family: netset.V6, Backends: []model.Backend{}},
			err: `endpointslice default/s: endpoints[0].addresses[0]: 10.244.1.2 is not IPv6
endpointslice default/s: endpoints[1].addresses is empty`,
		},
		"no name":      {yaml: `{apiVersion: v1, kind: Pod, metadata: {generateName: x-}}`, err: "pod: metadata.name is missing"},
		"no kind":      {yaml: `{metadata: {name: x}}`, err: "apiVersion or kind is missing: not a Kubernetes object"},
		"other kind":   {yaml: `{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}}`, err: "apps/v1 Deployment: not a kind that weft uses"},
		"wrong type":   {yaml: `{apiVersion: v1, kind: Pod, metadata: {name: x, labels: {a: true}}}`, err: "pod x: metadata.labels: want string, got a JSON bool"},
		"not an obj":   {yaml: `[1, 2]`, err: "got a JSON array"},
		"not YAML":     {yaml: "a: b: c", err: "not YAML: mapping values are not allowed"},
		"key repeated": {yaml: "apiVersion: v1\nkind: Pod\nkind: Node\n", err: `key "kind" already set`},
		"two objects":  {yaml: "a: b\n---\nc: d\n", err: "2 objects in the document, want one"},
		"nothing":      {yaml: "# only a comment\n---\n", err: "no object in the document"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Object([]byte(strings.ReplaceAll(tc.yaml, "\t", "  ")))
			if !reflect.DeepEqual(got.Object, tc.want) && (got.Object != nil || tc.want != nil) {
				t.Errorf("object\n got %+v\nwant %+v", got.Object, tc.want)
			}
			if (got.Err == nil) != (tc.err == "") {
				t.Fatalf("error %v, want %q", got.Err, tc.err)
			}
			for line := range strings.SplitSeq(tc.err, "\n") {
				if tc.err != "" && !strings.Contains(got.Err.Error(), line) {
					t.Errorf("error %q lacks %q", got.Err, line)
				}
			}
		})
	}
	if got := Object([]byte("apiVersion: apps/v1\nkind: Deployment\n")); !errors.Is(got.Err, ErrUnsupported) {
		t.Errorf("%v is not ErrUnsupported", got.Err)
	}
}

func TestPodProblem(t *testing.T) {
	for name, tc := range map[string]struct{ annotation, value, problem string }{
		"no address":     {annIPs, "10.0.0", `pod default/p: annotation weft.io/ips: "10.0.0" is not an IP address`},
		"empty":          {annIPs, "", `annotation weft.io/ips: "" is not an IP address`},
		"prefix":         {annIPs, "10.0.0.0/8", `is not an IP address`},
		"zone":           {annIPs, "fe80::1%eth0", `is not an IP address`},
		"two of a kind":  {annIPs, "10.0.0.1,10.0.0.2", "10.0.0.1 and 10.0.0.2 are both IPv4; at most one"},
		"not a list":     {annCalicoIPs, `[10.0.0.1`, "annotation cni.projectcalico.org/ipAddrs: \"[10.0.0.1\" is not a JSON list of strings"},
		"MAC":            {annMAC, "zz", "annotation weft.io/mac: address zz: invalid MAC address"},
		"multicast MAC":  {annMAC, "01:00:00:00:00:01", "is not a unicast address"},
		"rate too low":   {annIngress, "999", `annotation kubernetes.io/ingress-bandwidth: "999" is not in 1k..1P bit/s`},
		"rate too high":  {annEgress, "2P", `"2P" is not in 1k..1P bit/s`},
		"rate a word":    {annEgress, "fast", `"fast" is not a quantity such as 10M or 1.5Gi`},
		"rate a minus":   {annEgress, "-10M", `"-10M" is negative`},
		"rate with unit": {annEgress, "10Mbit", `"10Mbit" is not a quantity`},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := (&Pod{Meta: Meta{Name: "p", Namespace: "default", Annotations: map[string]string{tc.annotation: tc.value}}}).Model()
			if err != nil {
				t.Fatalf("the pod itself is fine, got %v", err)
			}
			p := o.(*model.Pod)
			if p.Problem == nil || !strings.Contains(p.Problem.Error(), tc.problem) {
				t.Errorf("problem %v, want %s", p.Problem, tc.problem)
			}
			if p.WantAddrs != nil || !p.WantMAC.IsZero() || p.Ingress != nil || p.Egress != nil {
				t.Errorf("half of a malformed annotation was used: %+v", p)
			}
		})
	}
}

func TestDocuments(t *testing.T) {
	docs := Documents([]byte(`# a file
---
apiVersion: v1
kind: Node
metadata: {name: a}
--- # the next

# comment
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
- {apiVersion: v1, kind: Pod, metadata: {}}
---
kind: [
---
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: c}
---
apiVersion: apps/v1
kind: DeploymentList
items: [{metadata: {name: d}}]
`))
	var got []string
	for _, d := range docs {
		s := d.Name()
		if d.Err != nil {
			s += ": " + d.Err.Error()
		}
		got = append(got, strings.Join([]string{string(rune('0' + d.Line/10)), string(rune('0' + d.Line%10)), " ", s}, ""))
	}
	want := []string{
		"03 Node a", "09 Namespace b", "09 Pod default/: items[1]: pod: metadata.name is missing",
		"15 : not YAML: line 15: did not find expected node content",
		"17 Namespace c", "22 DeploymentList: apps/v1 DeploymentList: not a kind that weft uses",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestQuantityAgreesWithKubernetes(t *testing.T) {
	fixed := []string{
		"0", "1", "10M", "1.5Gi", "1e3", "1E3", "1E", "100m", "1001m", "+5k", "-5k", ".5", "5.", ".", "", "k", "Ki", "1kk", "1 k", "1e", "1e+2", "1E-2", "1ee2",
		"0x10", "1_000", "1/2", "inf", "NaN", "1n", "1u", "8Ei", "1P", "1Pi", "1KiM", "1iK", "1.2.3", "--1", "1-", "1i", "1K",
	}
	r := rand.New(rand.NewSource(1))
	const letters = "0123456789.+-eEkKMGTPimnu"
	for range 20000 {
		b := make([]byte, 1+r.Intn(6))
		for i := range b {
			b[i] = letters[r.Intn(len(letters))]
		}
		fixed = append(fixed, string(b))
	}
	good := 0
	for _, s := range fixed {
		got, err := quantity(s)
		want, wantErr := resource.ParseQuantity(s)
		if wantErr == nil && want.IsZero() && err != nil {
			continue // Kubernetes takes "k" or "-" for zero; the limits forbid both
		}
		bad := wantErr != nil || want.Sign() < 0
		if bad != (err != nil) {
			t.Errorf("%q: got %d %v, Kubernetes %v %v", s, got, err, want.Value(), wantErr)
			continue
		}
		big := want.Cmp(resource.MustParse("4E")) > 0 || want.Value() == 0 // where Kubernetes' Value overflows
		if v := want.Value(); !bad && got != uint64(v) && !(big && got > 4e18) {
			t.Errorf("%q: got %d, Kubernetes %d", s, got, v)
		}
		if !bad {
			good++
		}
	}
	if good < 500 {
		t.Errorf("only %d of %d quantities were well-formed: the test tests little", good, len(fixed))
	}
}

// TestProtobufAgreesWithJSON fills Kubernetes' own types with random values and decodes both of their encodings: this
// holds every field name and number of types.go to the real ones.
func TestProtobufAgreesWithJSON(t *testing.T) {
	type marshaler interface{ Marshal() ([]byte, error) }
	types := map[Type]func() marshaler{
		{"v1", "Node"}:                           func() marshaler { return new(corev1.Node) },
		{"v1", "Namespace"}:                      func() marshaler { return new(corev1.Namespace) },
		{"v1", "Pod"}:                            func() marshaler { return new(corev1.Pod) },
		{"v1", "Service"}:                        func() marshaler { return new(corev1.Service) },
		{"v1", "ServiceAccount"}:                 func() marshaler { return new(corev1.ServiceAccount) },
		{"discovery.k8s.io/v1", "EndpointSlice"}: func() marshaler { return new(discoveryv1.EndpointSlice) },
	}
	fill := randfill.NewWithSeed(7).NilChance(.3).NumElements(1, 3).Funcs(
		func(*metav1.FieldsV1, randfill.Continue) {},
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewQuantity(c.Int63n(1000), resource.DecimalSI)
		},
		func(m *metav1.ObjectMeta, c randfill.Continue) {
			c.FillNoCustom(m)
			m.Annotations = map[string]string{annIPs: c.String(5), annIngress: "10M", "other": "x"}
		},
	)
	for typ, make := range types {
		var strs wire.Strings
		set := map[string]bool{}
		for range 200 {
			o := make()
			fill.Fill(o)
			pb, err := o.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			js, err := json.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			fromProto, fromJSON := typ.make(), typ.make()
			if err := wire.Walk(pb, &strs, fromProto.read); err != nil {
				t.Fatalf("%s: %v", typ.Kind, err)
			}
			if err := json.Unmarshal(js, fromJSON); err != nil {
				t.Fatal(err)
			}
			delete(fromJSON.meta().Annotations, "other")
			if p, j := normal(t, fromProto), normal(t, fromJSON); p != j {
				t.Fatalf("%s\nprotobuf %s\nJSON     %s", typ.Kind, p, j)
			}
			record(reflect.ValueOf(fromProto).Elem(), "", set)
		}
		every := map[string]bool{}
		fields(reflect.TypeOf(typ.make()).Elem(), "", every)
		for f := range every {
			if !set[f] {
				t.Errorf("%s%s was never set from protobuf", typ.Kind, f)
			}
		}
	}
}

// normal is an object's text, with nil and empty made equal as protobuf has it.
func normal(t *testing.T, o object) string {
	b, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("[]", "null", "{}", "null").Replace(string(b))
}

// fields and record name the leaf fields of a struct, all of them and those that are not zero.
func fields(typ reflect.Type, path string, out map[string]bool) {
	for typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		out[path] = true
		return
	}
	for i := range typ.NumField() {
		fields(typ.Field(i).Type, path+"."+typ.Field(i).Name, out)
	}
}

func record(v reflect.Value, path string, out map[string]bool) {
	switch {
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			record(v.Index(i), path, out)
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			record(v.Field(i), path+"."+v.Type().Field(i).Name, out)
		}
	case !v.IsZero():
		out[path] = true
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Node\nmetadata: {name: a}\n---\nkind: List\nitems: [{}]\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","annotations":{"weft.io/ips":"[\"::1\"]","kubernetes.io/egress-bandwidth":"1e9"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, d := range Documents(raw) {
			if d.Object == nil && d.Err == nil {
				t.Fatalf("neither an object nor an error: %+v", d)
			}
			if d.Object != nil && (d.Object.Key().Name == "" || d.Line < 1) {
				t.Fatalf("an object without a name or line: %+v", d)
			}
		}
	})
}

func FuzzFromProto(f *testing.F) {
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"a": "b"}}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24"}}}
	seed, _ := node.Marshal()
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, kind := range []Type{{"v1", "Node"}, {"v1", "Pod"}, {"v1", "Service"}, {"v1", "ServiceAccount"}, {"discovery.k8s.io/v1", "EndpointSlice"}} {
			if item := FromProto(kind, raw, nil); item.Object == nil && item.Err == nil {
				t.Fatalf("neither an object nor an error: %+v", item)
			}
		}
	})
}

// TestTheReferenceNamesEveryAnnotation holds docs/reference/objects.md to what is read.
func TestTheReferenceNamesEveryAnnotation(t *testing.T) {
	page, err := os.ReadFile("../../../docs/reference/objects.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		annIPs, annMAC, annCalicoIPs, annCalicoMAC, annIngress, annEgress, annFlannel, annFlannelData, annFlannelDataB, annFlannelIP,
		annFlannelIPB, labelService,
	} {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/reference/objects.md does not name %s", name)
		}
		if name != labelService && !used([]byte(name)) {
			t.Errorf("%s is stripped before it is read", name)
		}
	}
}
