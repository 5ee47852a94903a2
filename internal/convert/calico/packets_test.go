package calico

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/model"
	"weft/internal/oracle"
	"weft/internal/selector"
)

// snapshot is a list of objects as a model.Snapshot.
type snapshot []model.Object

func (s snapshot) Get(k model.Key) model.Object {
	if i := slices.IndexFunc(s, func(o model.Object) bool { return o.Key() == k }); i >= 0 {
		return s[i]
	}
	return nil
}

func (s snapshot) All(kind model.Kind) iter.Seq[model.Object] {
	return func(yield func(model.Object) bool) {
		for _, o := range s {
			if o.Key().Kind == kind && !yield(o) {
				return
			}
		}
	}
}

// cluster is what the policies of TestPackets are about: pods named namespace-app, a node and the world.
func cluster() (snapshot, map[string]netip.Addr) {
	addrs := map[string]netip.Addr{"world": netip.MustParseAddr("198.51.100.1"), "partner": netip.MustParseAddr("192.0.2.1"), "bank": netip.MustParseAddr("192.0.2.130")}
	s := snapshot{
		&model.Namespace{Name: "prod", Labels: map[string]string{"env": "prod"}},
		&model.Namespace{Name: "test", Labels: map[string]string{"env": "test"}},
	}
	for i, name := range []string{"prod-web", "prod-db", "test-web", "test-db"} {
		ns, app, _ := strings.Cut(name, "-")
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
		addrs[name] = a
		s = append(s, &model.Pod{
			PodRef: model.PodRef{Namespace: ns, Name: name}, Node: "n", Account: app,
			Labels: map[string]string{"app": app}, Addrs: []netip.Addr{a}, Ports: []model.Port{{Name: "http", Protocol: "tcp", Port: 8080}},
		})
	}
	return s, addrs
}

// TestPackets: what the policies mean to packets, where a mistake would not show in the goldens.
func TestPackets(t *testing.T) {
	const head = "apiVersion: projectcalico.org/v3\nkind: "
	np := func(name, spec string) string {
		return head + "NetworkPolicy\nmetadata: {name: " + name + ", namespace: prod}\nspec: {" + spec + "}\n"
	}
	gnp := func(name, spec string) string {
		return head + "GlobalNetworkPolicy\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
	}
	const sets = head + "NetworkSet\nmetadata: {name: partners, namespace: prod, labels: {app: partner}}\nspec: {nets: [192.0.2.0/25]}\n" +
		"===\n" + head + "GlobalNetworkSet\nmetadata: {name: banks, labels: {color: red}}\nspec: {nets: [192.0.2.128/25]}\n===\n"
	for _, tc := range []struct {
		name, objects string
		allow, deny   string // "from>to" or "from>to:port"
	}{
		{"no policy", "", "world>prod-web test-db>prod-web", ""},
		{"selected, no rule", np("a", "selector: app == 'web'"), "world>prod-db world>test-web prod-web>world", "world>prod-web prod-db>prod-web"},
		{"own namespace", np("a", "ingress: [{action: Allow, source: {selector: has(app)}}]"), "prod-db>prod-web", "test-db>prod-web world>prod-web"},
		{"own namespace's sets", sets + np("a", "ingress: [{action: Allow, source: {selector: app == 'partner'}}]"), "partner>prod-web", "bank>prod-web prod-db>prod-web world>prod-web"},
		{"global()", sets + np("a", "ingress: [{action: Allow, source: {namespaceSelector: global(), selector: all()}}]"), "bank>prod-web", "partner>prod-web prod-db>prod-web world>prod-web"},
		{"namespaceSelector", np("a", "ingress: [{action: Allow, source: {namespaceSelector: env == 'test', selector: app == 'db'}}]"), "test-db>prod-web", "test-web>prod-web prod-db>prod-web"},
		{"global, all sets", sets + gnp("a", "selector: app == 'web', ingress: [{action: Allow, source: {selector: has(color) || app == 'partner'}}]"), "bank>test-web partner>test-web", "prod-db>test-web world>test-web"},
		{"!has is of the known", sets + gnp("a", "ingress: [{action: Allow, source: {selector: '!has(app)'}}]"), "bank>prod-web", "world>prod-web partner>prod-web prod-db>prod-web"},
		{"notSelector has is of all", sets + gnp("a", "ingress: [{action: Allow, source: {notSelector: has(app)}}]"), "bank>prod-web world>prod-web", "partner>prod-web prod-db>prod-web"},
		{"notSelector !has does not exclude the world", gnp("a", "ingress: [{action: Allow, source: {notSelector: '!has(app)'}}]"), "world>prod-web prod-db>prod-web", ""},
		{"notSelector in a namespace", np("a", "ingress: [{action: Allow, source: {notSelector: app == 'db'}}]"), "prod-web>prod-db", "world>prod-web prod-db>prod-web test-web>prod-web"},
		{"the own side", np("a", "ingress: [{action: Allow, destination: {selector: app == 'web'}}]"), "world>prod-web", "world>prod-db"},
		{"both ways", np("a", "types: [Ingress, Egress], egress: [{action: Allow, source: {selector: app == 'web'}}], ingress: [{action: Allow}]"), "prod-web>prod-db", "prod-db>prod-web"},
		{"ports", np("a", "ingress: [{action: Allow, protocol: TCP, destination: {ports: [http, 80, '100:200'], notPorts: [150]}}]"), "world>prod-web:8080 world>prod-web:80 world>prod-web:200", "world>prod-web:150 world>prod-web:81"},
		{"order, the first rule that matches", np("b", "order: 1, ingress: [{action: Deny, source: {selector: app == 'db'}}]") + "===\n" + np("a", "order: 2, ingress: [{action: Allow}]"), "world>prod-web", "prod-db>prod-web"},
		{"no order is last", np("a", "ingress: [{action: Deny}]") + "===\n" + np("b", "order: 9, ingress: [{action: Allow}]"), "world>prod-web", ""},
		{"equal orders: by name", np("b", "order: 1, ingress: [{action: Deny}]") + "===\n" + np("a", "order: 1, ingress: [{action: Allow}]"), "world>prod-web", ""},
		{"log goes on", np("a", "ingress: [{action: Log}, {action: Allow}]"), "world>prod-web", ""},
		{
			"a tier that denies at its end comes before the default one",
			head + "Tier\nmetadata: {name: sec}\nspec: {order: 5}\n===\n" + gnp("sec.a", "tier: sec, selector: app == 'web', ingress: [{action: Pass, source: {selector: app == 'db'}}]") + "===\n" + np("a", "ingress: [{action: Allow}]"),
			"prod-db>prod-web world>prod-db", "world>prod-web",
		},
		{
			"a tier that passes",
			head + "Tier\nmetadata: {name: sec}\nspec: {order: 5, defaultAction: Pass}\n===\n" + gnp("sec.a", "tier: sec, ingress: [{action: Deny, source: {selector: app == 'db'}}]"),
			"world>prod-web", "prod-db>prod-web",
		},
		{"a tier that nobody made is last", gnp("sec.a", "tier: sec, ingress: [{action: Deny}]") + "===\n" + np("a", "ingress: [{action: Allow}]"), "world>prod-web", "world>test-web"},
		{"staged", strings.ReplaceAll(gnp("a", "types: [Ingress, Egress]"), "kind: ", "kind: Staged"), "world>prod-web prod-web>world", ""},
		{"host endpoint hooks are not of pods", gnp("a", "preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]") + "===\n" + gnp("b", "doNotTrack: true, applyOnForward: true, ingress: [{action: Deny}]"), "world>prod-web", ""},
		{"applyOnForward is of pods too, as any", gnp("a", "applyOnForward: true, ingress: [{action: Deny}]"), "", "world>prod-web"},
		{"service accounts", np("a", "ingress: [{action: Allow, source: {serviceAccounts: {names: [db]}}}]"), "prod-db>prod-web", "test-db>prod-web world>prod-web"},
		{"a mistake allows nothing", np("a", "ingress: [{action: Allow, source: {selector: app =}}]"), "", "prod-db>prod-web world>prod-web"},
		{"a mistake denies", np("a", "ingress: [{action: Deny, source: {nets: [ten]}}, {action: Allow}]"), "", "prod-db>prod-web world>prod-web"},
		{"a mistake elsewhere leaves the rest", np("a", "ingress: [{action: Allow, protocolX: TCP}, {action: Allow, source: {selector: app == 'db'}}]"), "prod-db>prod-web", "world>prod-web"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, addrs := cluster()
			for doc := range strings.SplitSeq(tc.objects, "===\n") {
				data, err := yaml.YAMLToJSONStrict([]byte(doc))
				if err != nil {
					t.Fatal(err)
				}
				if doc != "" {
					s = append(s, Convert(data).Objects...)
				}
			}
			for want, packets := range map[bool]string{true: tc.allow, false: tc.deny} {
				for _, packet := range strings.Fields(packets) {
					if d := decide(t, s, addrs, packet); d != want {
						t.Errorf("%s: got allow %v", packet, d)
					}
				}
			}
		})
	}
}

func decide(t *testing.T, s snapshot, addrs map[string]netip.Addr, packet string) bool {
	t.Helper()
	from, to, _ := strings.Cut(packet, ">")
	to, port, found := strings.Cut(to, ":")
	p := oracle.Packet{Src: addrs[from], Dst: addrs[to], Proto: model.ProtoTCP, SrcPort: 40000, DstPort: 9999}
	if found {
		if _, err := fmt.Sscan(port, &p.DstPort); err != nil {
			t.Fatal(err)
		}
	}
	if !p.Src.IsValid() || !p.Dst.IsValid() {
		t.Fatalf("%s: who is that?", packet)
	}
	egress, ingress := oracle.Decide(s, "n", p)
	return egress.Verdict == model.VerdictAllow && ingress.Verdict == model.VerdictAllow
}

// TestSetByName: a set has its name and kind as labels.
func TestSetByName(t *testing.T) {
	r := Convert([]byte(`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"x"},"spec":{"nets":["192.0.2.0/24"]}}`))
	set, ok := r.Objects[0].(*model.AddressSet)
	e, err := parseSelector("projectcalico.org/name == 'x' && projectcalico.org/kind == 'GlobalNetworkSet'", endpointLanguage(selector.AllOf()))
	if !ok || err != nil || !e.Match(set.Labels) {
		t.Error("not found by its name", err)
	}
}
