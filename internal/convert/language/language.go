// Package language lists the languages of policy: the kinds of objects of every policy API, and what turns them into the model.
//
// It is where sources learn what there is to watch and to read. It converts nothing itself (see its siblings, one for each API),
// and it knows none of Kubernetes' own kinds but NetworkPolicy (see convert/k8s).
package language

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"weft/internal/convert/antrea"
	"weft/internal/convert/aws"
	"weft/internal/convert/calico"
	"weft/internal/convert/cilium"
	"weft/internal/convert/gke"
	"weft/internal/convert/netpol"
	"weft/internal/convert/object"
	"weft/internal/convert/sig"
	"weft/internal/convert/wire"
	"weft/internal/model"
)

// Kubernetes is the language that needs no CustomResourceDefinition.
const Kubernetes = "kubernetes"

// Kind is a kind of objects with its converter.
type Kind struct {
	object.Kind
	Language string // "kubernetes", "calico" …, as in the configuration
	convert  func(raw []byte) object.Result
}

// CRD returns the name of the kind's CustomResourceDefinition, "tiers.crd.antrea.io".
func (k Kind) CRD() string { return k.Plural + "." + k.Type.Group }

// Path returns the path of the collection of all objects below an API server's URL.
func (k Kind) Path() string {
	return "/apis/" + k.Type.Group + "/" + k.Type.Version + "/" + k.Plural
}

// Kinds lists every kind of every language. Of the versions of a kind the first one that a cluster has is the one to watch.
func Kinds() []Kind {
	var out []Kind
	add := func(language string, kinds []object.Kind, convert func([]byte) object.Result) {
		for _, k := range kinds {
			out = append(out, Kind{k, language, convert})
		}
	}
	add(Kubernetes, netpol.Kinds(), netpol.Convert)
	add("sig-network", sig.Kinds(), sig.Convert)
	add("calico", calico.Kinds(), calico.Convert)
	add("cilium", cilium.Kinds(), cilium.Convert)
	add("antrea", antrea.Kinds(), antrea.Convert)
	add("aws", aws.Kinds(), aws.Convert)
	add("gke", gke.Kinds(), gke.Convert)
	return out
}

// Find returns the kind of a type.
func Find(t object.Type) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Type == t {
			return k, true
		}
	}
	return Kind{}, false
}

// Models are the kinds of the model that objects of policy APIs become.
func Models() []model.Kind {
	return []model.Kind{model.KindPolicy, model.KindTier, model.KindGroup, model.KindAddressSet, model.KindHostEndpoint}
}

// Result is what became of an object: see object.Result. Err names the object and the field.
type Result struct {
	object.Result
	Ref model.Ref // zero if the object's name could not be read
}

// Refused reports whether nothing of the object can be used. An object that stands for nothing (Calico's stagedAction Delete) is
// not refused, and has no objects either.
func (r Result) Refused() bool { return r.Err != nil && len(r.Objects) == 0 }

// Convert turns an object of the kind (JSON) into the model. The items of a list do not say their type: it is put in.
func (k Kind) Convert(raw []byte) Result {
	var head struct {
		APIVersion *string `json:"apiVersion"`
		Kind       *string `json:"kind"`
		Meta       struct {
			Name        any            `json:"name"`
			Namespace   any            `json:"namespace"`
			Annotations map[string]any `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Result{Result: object.Result{Err: fmt.Errorf("%s: %w", k.Type.Kind, object.Explain("", err))}}
	}
	if head.APIVersion == nil && head.Kind == nil {
		typed := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,`, k.Type.Group+"/"+k.Type.Version, k.Type.Kind)
		raw = append(typed, strings.TrimLeft(string(raw), " \t\r\n{")...)
	}
	name, _ := head.Meta.Name.(string)
	namespace, _ := head.Meta.Namespace.(string)
	mode, _ := head.Meta.Annotations[ModeAnnotation].(string)
	return k.named(name, namespace, inMode(mode, k.convert(raw)))
}

// ModeAnnotation says, on an object of any policy API, whether its policies are enforced ("enforce", or without the annotation),
// enforced unless a node takes them back because they break what it lives on ("confirm"), or only count what they would do ("shadow").
const ModeAnnotation = "weft.io/policy-mode"

// inMode puts what an object became into a mode. A mode that is not known changes nothing: the policy is enforced.
func inMode(mode string, r object.Result) object.Result {
	var put func(*model.Policy)
	switch mode {
	case "":
		return r
	case "enforce":
		put = func(p *model.Policy) { p.Confirm = model.ConfirmNever }
	case "confirm":
		put = func(p *model.Policy) { p.Confirm = model.ConfirmAlways }
	case "shadow":
		put = func(p *model.Policy) { p.Staged = true }
	default:
		r.Err = errors.Join(r.Err, fmt.Errorf("metadata.annotations[%s]: %q is none of enforce, confirm and shadow; the policy is enforced", ModeAnnotation, mode))
		return r
	}
	for _, o := range r.Objects {
		if p, ok := o.(*model.Policy); ok {
			put(p)
		}
	}
	return r
}

// modeOf reads the mode from an object in the API server's protobuf (k8s.io/apimachinery/pkg/apis/meta/v1, ObjectMeta.annotations).
func modeOf(raw []byte) string {
	mode := ""
	entry := func(f wire.Field) error {
		var mine bool
		return f.Message(func(f wire.Field) error {
			switch f.Num {
			case 1:
				mine = string(f.Bytes()) == ModeAnnotation
			case 2:
				if mine {
					mode = f.Text()
				}
			}
			return nil
		})
	}
	_ = wire.Walk(raw, nil, func(f wire.Field) error { // a message that is malformed is refused by who converts it
		if f.Num != 1 {
			return nil
		}
		return f.Message(func(f wire.Field) error {
			if f.Num == 12 {
				return entry(f)
			}
			return nil
		})
	})
	return mode
}

// FromProto turns a NetworkPolicy in the API server's protobuf into the model. Name and namespace are those of its metadata.
func (k Kind) FromProto(name, namespace string, raw []byte, s *wire.Strings) Result {
	return k.named(name, namespace, inMode(modeOf(raw), netpol.FromProto(raw, s)))
}

// named gives a result the object's name.
func (k Kind) named(name, namespace string, r object.Result) Result {
	switch {
	case !k.Namespaced:
		namespace = ""
	case namespace == "":
		namespace = "default"
	}
	out := Result{Result: r}
	if name == "" {
		out.Objects, out.Err = nil, fmt.Errorf("%s.%s: metadata.name is missing", k.Type.Kind, k.Type.Group)
		return out
	}
	out.Ref = model.Ref{Group: k.Type.Group, Kind: k.Type.Kind, Namespace: namespace, Name: name}
	if r.Err != nil {
		out.Err = fmt.Errorf("%s: %w", out.Ref, r.Err)
		for _, o := range r.Objects {
			if p, ok := o.(*model.Policy); ok {
				p.Problem = r.Err.Error()
			}
		}
	}
	return out
}

// Stand returns what stands for an object that was refused, so that it is shown with the reason. It is valid in no snapshot.
func (k Kind) Stand(r model.Ref) model.Object {
	nowhere := math.NaN() // an order that Validate refuses
	switch k.Type.Kind {
	case "Tier":
		return &model.Tier{API: k.Language, Name: r.Name, Order: nowhere}
	case "Group", "ClusterGroup":
		return &model.Group{Ref: r, Unsupported: []string{"the whole object"}}
	case "NetworkSet", "GlobalNetworkSet", "CiliumCIDRGroup":
		return &model.AddressSet{Ref: r}
	case "HostEndpoint":
		return &model.HostEndpoint{Ref: r}
	}
	return &model.Policy{Ref: r, Order: nowhere}
}
