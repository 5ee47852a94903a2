// Package golden prints policies of the common form as a person would read them, and holds converters to files of such
// texts: it is for the tests of the converters.
//
// It knows no API and decides nothing. It reads no file: the tests do.
package golden

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"weft/internal/convert/object"
	"weft/internal/model"
	"weft/internal/selector"
)

// Case is one case of a file: an object in YAML, and what it becomes.
type Case struct {
	Name, YAML string
	Want, Got  string
}

// The lines of a file before a case's name and between its parts.
const (
	caseLine = "=== "
	wantLine = "---\n"
)

// Run converts every case of a file. A case is a line "=== name", YAML, a line "---", and the text that is wanted.
func Run(file string, convert func(json []byte) object.Result) []Case {
	var out []Case
	for _, part := range strings.Split("\n"+file, "\n"+caseLine)[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		in, want, _ := strings.Cut(rest+"\n", wantLine)
		c := Case{Name: name, YAML: in, Want: strings.Trim(want, "\n") + "\n"}
		if data, err := yaml.YAMLToJSONStrict([]byte(in)); err != nil {
			c.Got = "not YAML: " + err.Error() + "\n"
		} else {
			c.Got = Result(convert(data))
		}
		out = append(out, c)
	}
	return out
}

// File is the file of the cases with what they became.
func File(cases []Case) string {
	var b strings.Builder
	for i, c := range cases {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(caseLine + c.Name + "\n" + c.YAML + wantLine + c.Got)
	}
	return b.String()
}

// Result prints what an object became: its policies, then the mistakes.
func Result(r object.Result) string {
	var b strings.Builder
	for _, o := range r.Objects {
		if p, ok := o.(*model.Policy); ok {
			b.WriteString(Policy(p))
		} else {
			fmt.Fprintf(&b, "%s\n", o.Key())
		}
	}
	if r.Err != nil {
		for line := range strings.SplitSeq(r.Err.Error(), "\n") {
			b.WriteString("error: " + line + "\n")
		}
	}
	return b.String()
}

// Check says what no result may be, whatever the object was: empty without a reason, invalid, or open where it should be closed.
func Check(r object.Result) error {
	if len(r.Objects) == 0 && r.Err == nil {
		return errors.New("neither an object nor an error")
	}
	for _, o := range r.Objects {
		if err := o.Validate(); err != nil {
			return err
		}
		p, ok := o.(*model.Policy)
		if !ok {
			continue
		}
		kind := false
		if p.Subject != nil {
			p.Subject.Keys(func(k string) { kind = kind || k == selector.Kind })
		}
		if !kind {
			return fmt.Errorf("%s: the subject %s is of no kind", p.Ref, p.Subject)
		}
		for _, s := range []*model.Section{p.Ingress, p.Egress} {
			if s == nil {
				continue
			}
			for _, r := range s.Rules {
				closed := r.Verdict == model.VerdictDeny || r.Verdict == model.VerdictReject || r.Peers != nil && len(r.Peers) == 0
				if r.Field == "" || r.Unsupported != "" && !closed {
					return fmt.Errorf("%s: rule %q is open, although %q is not enforced", p.Ref, r.Field, r.Unsupported)
				}
			}
		}
	}
	return nil
}

// Policy prints one policy, a line for each thing that it says.
func Policy(p *model.Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: tier %s %v, order %v", p.Ref, p.Tier.Name, p.Tier.Order, p.Order)
	if p.Tie != "" {
		fmt.Fprintf(&b, " %q", p.Tie)
	}
	if p.Set {
		b.WriteString(", set")
	}
	b.WriteByte('\n')
	if p.Subject == nil {
		b.WriteString("subject: none\n")
	} else {
		fmt.Fprintf(&b, "subject: %s\n", p.Subject)
	}
	section(&b, "ingress", "from", p.Ingress)
	section(&b, "egress", "to", p.Egress)
	for _, u := range p.Unsupported {
		fmt.Fprintf(&b, "not enforced yet: %s\n", u)
	}
	return b.String()
}

func section(b *strings.Builder, name, side string, s *model.Section) {
	if s == nil {
		return
	}
	b.WriteString(name)
	if s.Isolates {
		b.WriteString(", isolates")
	}
	b.WriteByte('\n')
	for i := range s.Rules {
		rule(b, side, &s.Rules[i])
	}
}

func rule(b *strings.Builder, side string, r *model.Rule) {
	fmt.Fprintf(b, "  %s: %s", r.Field, r.Verdict)
	if r.Name != "" {
		fmt.Fprintf(b, " %q", r.Name)
	}
	if r.Hosts {
		b.WriteString(", nodes too")
	}
	if r.Unsupported != "" {
		fmt.Fprintf(b, ", closed by %s", r.Unsupported)
	}
	b.WriteByte('\n')
	if r.Peers != nil && len(r.Peers) == 0 {
		fmt.Fprintf(b, "    %s nothing\n", side)
	}
	for _, p := range r.Peers {
		fmt.Fprintf(b, "    %s %s\n", side, peer(p))
	}
	if r.L4 != nil && len(r.L4) == 0 {
		b.WriteString("    no port\n")
	}
	for _, l := range r.L4 {
		fmt.Fprintf(b, "    %s\n", ports(l))
	}
}

func peer(p model.Peer) string {
	var parts []string
	if p.Select != nil {
		parts = append(parts, p.Select.String())
	}
	if p.NotSelect != nil {
		parts = append(parts, "not "+p.NotSelect.String())
	}
	if p.Nets != nil {
		parts = append(parts, "["+nets(p.Nets)+"]")
	}
	if p.NotNets != nil {
		parts = append(parts, "except ["+nets(p.NotNets)+"]")
	}
	if p.External {
		parts = append(parts, "outside the cluster")
	}
	if p.Group != nil {
		parts = append(parts, p.Group.String())
	}
	if p.SameNamespace {
		parts = append(parts, "in the subject's namespace")
	}
	if p.SameLabels != nil {
		parts = append(parts, fmt.Sprintf("in a namespace with the subject's %v", p.SameLabels))
	}
	if p.Names != nil {
		parts = append(parts, fmt.Sprintf("names %q", p.Names))
	}
	if parts == nil {
		return "anything"
	}
	return strings.Join(parts, " ")
}

func nets(ps []netip.Prefix) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return strings.Join(out, " ")
}

func ports(l model.L4) string {
	out := map[int]string{
		model.ProtoAny: "any protocol", model.ProtoICMP: "icmp", model.ProtoICMPv6: "icmpv6",
		model.ProtoTCP: "tcp", model.ProtoUDP: "udp", model.ProtoSCTP: "sctp",
	}[l.Proto]
	if out == "" {
		out = fmt.Sprintf("protocol %d", l.Proto)
	}
	add := func(word string, ranges []model.PortRange) {
		for _, r := range ranges {
			out += " " + word + r.String()
		}
	}
	if l.NotProto != nil {
		out += fmt.Sprintf(" not protocols %v", l.NotProto)
	}
	add("", l.Ports)
	for _, n := range l.Named {
		out += fmt.Sprintf(" %q", n)
	}
	add("not ", l.NotPorts)
	for _, n := range l.NotNamed {
		out += fmt.Sprintf(" not %q", n)
	}
	if l.Service != "" {
		out += " of service " + l.Service
	}
	add("source ", l.SrcPorts)
	add("not source ", l.NotSrcPorts)
	return out
}

// Test holds the cases of a file, and what Check says of every object in it. It returns the file as it would be written now.
func Test(t *testing.T, file string, convert func(json []byte) object.Result) string {
	t.Helper()
	cases := Run(file, func(data []byte) object.Result {
		r := convert(data)
		if err := Check(r); err != nil {
			t.Errorf("%s\n%v", data, err)
		}
		return r
	})
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			if c.Got != c.Want {
				t.Errorf("got\n%s\nwant\n%s", c.Got, c.Want)
			}
		})
	}
	return File(cases)
}

// Fuzz tries what a file's objects may be changed to.
func Fuzz(f *testing.F, file string, convert func(json []byte) object.Result) {
	f.Helper()
	Run(file, func(data []byte) object.Result {
		f.Add(data)
		return convert(data)
	})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := Check(convert(raw)); err != nil {
			t.Fatal(err)
		}
	})
}
