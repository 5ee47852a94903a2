package cilium

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"weft/internal/model"
)

// rules7 is toPorts[].rules: one kind of rules on layer 7. Lists that are nil are absent; one that is empty lets nothing through.
type rules7 struct {
	HTTP    []httpRule          `json:"http"`
	Kafka   []kafkaRule         `json:"kafka"` // Cilium before 1.20
	DNS     []dnsName           `json:"dns"`
	L7Proto string              `json:"l7proto"` // Cilium before 1.20, as L7
	L7      []map[string]string `json:"l7"`
}

type httpRule struct {
	Path          string   `json:"path"`
	Method        string   `json:"method"`
	Host          string   `json:"host"`
	Headers       []string `json:"headers"`
	HeaderMatches []struct {
		Mismatch string  `json:"mismatch"`
		Name     string  `json:"name"`
		Secret   *secret `json:"secret"`
		Value    string  `json:"value"`
	} `json:"headerMatches"`
}

type kafkaRule struct {
	Role       string `json:"role"`
	APIKey     string `json:"apiKey"`
	APIVersion string `json:"apiVersion"`
	ClientID   string `json:"clientID"`
	Topic      string `json:"topic"`
}

type secret struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// dnsName is a name, or a pattern, or both.
type dnsName struct {
	MatchName    string `json:"matchName"`
	MatchPattern string `json:"matchPattern"`
}

// check says what is wrong with it, or "".
func (n *dnsName) check() string {
	const chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	switch {
	case n.MatchName == "" && n.MatchPattern == "":
		return "needs matchName or matchPattern"
	case len(n.MatchName) > 255 || strings.Trim(n.MatchName, chars) != "":
		return fmt.Sprintf("%.80q is not a name of up to 255 letters, digits, -, _ and .", n.MatchName)
	case len(n.MatchPattern) > 255 || strings.Trim(n.MatchPattern, chars+"*") != "":
		return fmt.Sprintf("%.80q is not a pattern of up to 255 letters, digits, -, _, . and *", n.MatchPattern)
	}
	return ""
}

// narrowing are the fields of an element of toPorts that let only some of what its ports say through. It returns the first that
// there is and that weft does not enforce.
func (r *rule) readNarrow(f *fields, ports []port) (narrow string) {
	mark := func(name string) {
		r.missing(f.path(name))
		note(&narrow, f.path(name))
	}
	field, wide := r.readRules(f, ports)
	rules := field != ""
	switch {
	case wide:
		r.missing(f.path(field))
	case rules:
		mark(field)
	}
	var names []string
	raw := f.raw("serverNames")
	ok := r.decode(f.path("serverNames"), raw, &names, &r.bad.rest, &r.bad.rest)
	if ok && slices.Contains(names, "") {
		r.mistake(&r.bad.rest, f.path("serverNames"), "a name is empty")
	}
	if !ok || len(names) > 0 {
		mark("serverNames")
	}
	terminates := false
	for _, name := range []string{"terminatingTLS", "originatingTLS"} {
		raw := f.raw(name)
		if raw == nil {
			continue
		}
		var tls struct {
			Secret      *secret `json:"secret"`
			TrustedCA   string  `json:"trustedCA"`
			Certificate string  `json:"certificate"`
			PrivateKey  string  `json:"privateKey"`
		}
		if r.decode(f.path(name), raw, &tls, &r.bad.rest, &r.bad.rest) && (tls.Secret == nil || tls.Secret.Name == "") {
			r.mistake(&r.bad.rest, f.path(name)+".secret.name", "is missing")
		}
		terminates = terminates || name == "terminatingTLS"
		mark(name)
	}
	if rules && len(names) > 0 && !terminates {
		r.mistake(&r.bad.rest, f.path("serverNames"), "needs terminatingTLS if there are rules")
	}
	if raw := f.raw("listener"); raw != nil {
		r.checkListener(f.path("listener"), raw, rules)
		mark("listener")
	}
	return narrow
}

func (r *rule) checkListener(at string, raw json.RawMessage, rules bool) {
	var in struct {
		EnvoyConfig *struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"envoyConfig"`
		Name     string `json:"name"`
		Priority int64  `json:"priority"`
	}
	r.decode(at, raw, &in, &r.bad.rest, &r.bad.rest)
	switch {
	case !r.to:
		r.mistake(&r.bad.rest, at, "is for egress only")
	case rules:
		r.mistake(&r.bad.rest, at, "cannot be with rules")
	}
}

// readRules reads rules, and returns which there are ("rules.http"), or "". Wide says that one of them matches all that the
// protocol can say, so that together they let everything through.
func (r *rule) readRules(f *fields, ports []port) (field string, wide bool) {
	raw := f.raw("rules")
	if raw == nil {
		return "", false
	}
	at := f.path("rules")
	var in rules7
	unknown := ""
	if !r.decode(at, raw, &in, &r.bad.rest, &unknown) {
		return "rules", false
	}
	if unknown != "" {
		note(&r.bad.rest, unknown)
		return "rules", false
	}
	var kinds []string
	for _, k := range []struct {
		name  string
		there bool
	}{{"http", in.HTTP != nil}, {"kafka", in.Kafka != nil}, {"dns", in.DNS != nil}, {"l7proto", in.L7Proto != ""}, {"l7", in.L7 != nil}} {
		if k.there && (k.name != "l7" || in.L7Proto == "") {
			kinds = append(kinds, k.name)
		}
	}
	if len(kinds) == 0 {
		return "", false
	}
	bad := func(field, format string, a ...any) { r.mistake(&r.bad.rest, field, format, a...) }
	dns := in.DNS != nil
	switch { // as Cilium's Sanitize
	case len(kinds) > 1:
		bad(at, "%s cannot be in one list", strings.Join(kinds, " and "))
	case kinds[0] == "l7":
		bad(at+".l7", "needs l7proto")
	case dns && !r.to:
		bad(at+".dns", "is for egress only")
	case r.node && !(dns && r.to):
		bad(at+"."+kinds[0], "is not for nodes")
	case dns && len(ports) == 0:
		bad(at+".dns", "needs ports")
	}
	for _, p := range ports {
		switch {
		case p.name == "" && p.last == 0 && p.protocols != nil:
			bad(at, "cannot be with port 0")
		case dns && p.last > p.first:
			bad(at+".dns", "cannot be with a range of ports")
		case !dns && p.protocols != nil && !slices.Equal(p.protocols, []int{model.ProtoTCP}):
			bad(at, "needs ports of protocol TCP")
		default:
			continue
		}
		break
	}
	r.checkRules(at, &in)
	return "rules." + kinds[0], in.wide()
}

// checkRules notes what is wrong with single rules.
func (r *rule) checkRules(at string, in *rules7) {
	bad := func(field, format string, a ...any) { r.mistake(&r.bad.rest, field, format, a...) }
	for i := range in.HTTP {
		h, at := &in.HTTP[i], fmt.Sprintf("%s.http[%d]", at, i)
		for _, x := range [][2]string{{"path", h.Path}, {"method", h.Method}} {
			if _, err := regexp.Compile(x[1]); err != nil {
				bad(at+"."+x[0], "%q is not a regular expression", x[1])
			}
		}
		for j, m := range h.HeaderMatches {
			at := fmt.Sprintf("%s.headerMatches[%d]", at, j)
			switch {
			case m.Name == "":
				bad(at+".name", "is missing")
			case m.Secret != nil && m.Secret.Name == "":
				bad(at+".secret.name", "is missing")
			case !slices.Contains([]string{"", "LOG", "ADD", "DELETE", "REPLACE"}, m.Mismatch):
				bad(at+".mismatch", "%q is not LOG, ADD, DELETE or REPLACE", m.Mismatch)
			}
		}
	}
	for i := range in.Kafka {
		k, at := &in.Kafka[i], fmt.Sprintf("%s.kafka[%d]", at, i)
		switch {
		case k.Role != "" && k.APIKey != "":
			bad(at+".role", "cannot be with apiKey")
		case !slices.Contains([]string{"", "produce", "consume"}, k.Role):
			bad(at+".role", "%q is not produce or consume", k.Role)
		}
	}
	for i := range in.DNS {
		if why := in.DNS[i].check(); why != "" {
			bad(fmt.Sprintf("%s.dns[%d]", at, i), "%s", why)
		}
	}
}

// wide reports whether one of the rules matches everything.
func (in *rules7) wide() bool {
	return slices.ContainsFunc(in.HTTP, func(h httpRule) bool {
		return h.Path == "" && h.Method == "" && h.Host == "" && len(h.Headers) == 0 && len(h.HeaderMatches) == 0
	}) || slices.Contains(in.Kafka, kafkaRule{}) ||
		slices.ContainsFunc(in.DNS, func(n dnsName) bool { return n.MatchPattern == "*" })
}
