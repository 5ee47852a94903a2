// Package status words what became of a policy as its API says it: the conditions and numbers that users of that API
// look at.
//
// It is pure: it writes nothing and knows no clock; the result is a patch for the status of the object. It does not find out what became of
// a policy, and where it is in force somebody else has counted (see source/kube).
package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"weft/internal/convert/language"
	"weft/internal/model"
)

// Observed is what an object says of itself, and what became of it.
type Observed struct {
	Kind       language.Kind
	Path       string          // of its status, below the API server's URL
	Version    string          // resource version
	Generation int64           // of its spec
	Status     json.RawMessage // that it has; nil: none
	Err        error           // mistakes; nil: there are none
	Missing    []string        // fields that are not enforced yet
	Refused    bool            // nothing of it is used
	TakenBack  string          // nodes that have taken it back, and what had broken there; "": none
	Unreported bool            // it is not known yet which nodes have
}

// Observe reads an object (JSON) of which became objs, with mistakes.
func Observe(k language.Kind, raw []byte, objs []model.Object, mistakes error) (Observed, error) {
	var in struct {
		APIVersion string `json:"apiVersion"`
		Metadata   struct {
			Name            string `json:"name"`
			Namespace       string `json:"namespace"`
			ResourceVersion string `json:"resourceVersion"`
			Generation      int64  `json:"generation"`
		} `json:"metadata"`
		Status json.RawMessage `json:"status"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return Observed{}, err
	}
	path := "/apis/" + in.APIVersion
	if k.Namespaced {
		path += "/namespaces/" + in.Metadata.Namespace
	}
	o := Observed{
		Kind: k, Path: path + "/" + k.Plural + "/" + in.Metadata.Name + "/status", Version: in.Metadata.ResourceVersion,
		Generation: in.Metadata.Generation, Status: in.Status, Err: mistakes, Refused: mistakes != nil && len(objs) == 0,
	}
	for _, obj := range objs {
		if p, ok := obj.(*model.Policy); ok {
			for _, f := range p.Unsupported {
				if !slices.Contains(o.Missing, f) {
					o.Missing = append(o.Missing, f)
				}
			}
		}
	}
	return o, nil
}

// Counts reports whether a kind's status says on how many nodes it is in force: see Observed.Realized.
func Counts(k language.Kind) bool {
	return k.Language == "antrea" && (k.Type.Kind == "ClusterNetworkPolicy" || k.Type.Kind == "NetworkPolicy")
}

// condition is one of a status.
type condition struct {
	typ, status, reason, message string
	generation                   bool // the API's conditions say which generation they are about
}

// wanted is the condition that the object's API has for what became of it; false if it has none.
func (o *Observed) wanted() (condition, bool) {
	wrong := o.mistakes()
	switch o.Kind.Language {
	case "cilium":
		if !strings.HasSuffix(o.Kind.Type.Kind, "NetworkPolicy") {
			return condition{}, false
		}
		c := condition{typ: "Valid", status: "True", message: "Policy validation succeeded"}
		if len(o.Missing) > 0 {
			c.message += "; " + o.missing()
		}
		if wrong != "" {
			c.status, c.message = "False", wrong
		}
		return c, true
	case "calico":
		if o.Kind.Type.Kind != "Tier" {
			return condition{}, false
		}
		c := condition{typ: "Ready", status: "True", reason: "Ready", message: "the tier is in force", generation: true}
		if wrong != "" {
			c.status, c.reason, c.message = "False", "Invalid", wrong
		}
		return c, true
	case "sig-network", "aws":
		c := condition{typ: "weft.io/Accepted", status: "True", reason: "Accepted", message: "the policy is enforced", generation: true}
		switch {
		case wrong != "":
			c.status, c.reason, c.message = "False", "Invalid", wrong
		case len(o.Missing) > 0:
			c.status, c.reason, c.message = "False", "Unsupported", o.missing()
		}
		return c, true
	}
	return condition{}, false
}

// mistakes are what is wrong, on one line.
func (o *Observed) mistakes() string {
	if o.Err == nil {
		return ""
	}
	return strings.ReplaceAll(o.Err.Error(), "\n", "; ")
}

// missing names the fields that are not enforced.
func (o *Observed) missing() string { return "not enforced yet: " + strings.Join(o.Missing, ", ") }

// Conditions returns the merge patch that gives the object its condition; nil if it has it, or its API has none. Those of others
// stay, and the patch fails if they have changed meanwhile. Now is the time in RFC 3339.
func (o *Observed) Conditions(now string) []byte {
	want, ok := o.wanted()
	if !ok {
		return nil
	}
	var have struct {
		Conditions []map[string]any `json:"conditions"`
	}
	_ = json.Unmarshal(o.Status, &have) // what is no list of conditions is replaced
	conditions, changed := merge(have.Conditions, want, o.Generation, now)
	conditions, more := o.enforced(conditions, now)
	if !changed && !more {
		return nil
	}
	return o.patch(map[string]any{"conditions": conditions})
}

// Realized is Conditions for a kind that Counts: the policy is in force on current nodes of desired.
func (o *Observed) Realized(current, desired int, now string) []byte {
	var have struct {
		Phase      string           `json:"phase"`
		Generation int64            `json:"observedGeneration"`
		Current    int              `json:"currentNodesRealized"`
		Desired    int              `json:"desiredNodesRealized"`
		Conditions []map[string]any `json:"conditions"`
	}
	_ = json.Unmarshal(o.Status, &have) // what is not that is replaced
	phase := "Realizing"
	switch {
	case o.Refused:
		phase = "Failed"
	case current == desired && desired > 0:
		phase = "Realized"
	}
	c := condition{typ: "Realizable", status: "True"}
	switch {
	case o.Err != nil:
		c.status, c.reason, c.message = "False", "Invalid", o.mistakes()
	case len(o.Missing) > 0:
		c.status, c.reason, c.message = "False", "Unsupported", o.missing()
	}
	conditions, changed := merge(have.Conditions, c, o.Generation, now)
	conditions, more := o.enforced(conditions, now)
	if !changed && !more && have.Phase == phase && have.Generation == o.Generation && have.Current == current && have.Desired == desired {
		return nil
	}
	return o.patch(map[string]any{
		"phase": phase, "observedGeneration": o.Generation, "currentNodesRealized": current, "desiredNodesRealized": desired,
		"conditions": conditions,
	})
}

// enforcedType is the condition of every API that says that nodes have taken a policy back. It is there as long as one has.
const enforcedType = "weft.io/Enforced"

// enforced puts that condition among those that are there, or takes it away, and reports whether that changes something.
func (o *Observed) enforced(have []map[string]any, now string) ([]map[string]any, bool) {
	switch {
	case o.Unreported:
		return have, false
	case o.TakenBack != "":
		return merge(have, condition{typ: enforcedType, status: "False", reason: "RolledBack", message: "not in force on " + o.TakenBack}, o.Generation, now)
	}
	n := len(have)
	have = slices.DeleteFunc(have, func(c map[string]any) bool { return c["type"] == enforcedType })
	return have, len(have) < n
}

// merge puts a condition among those that are there, and reports whether that changes something.
func merge(have []map[string]any, want condition, generation int64, now string) ([]map[string]any, bool) {
	c := map[string]any{"type": want.typ, "status": want.status, "lastTransitionTime": now}
	if want.reason != "" {
		c["reason"] = want.reason
	}
	if want.message != "" {
		c["message"] = clip(want.message)
	}
	if want.generation {
		c["observedGeneration"] = generation
	}
	i := slices.IndexFunc(have, func(c map[string]any) bool { return c["type"] == want.typ })
	if i < 0 {
		return append(have, c), true
	}
	old := have[i]
	if old["status"] == c["status"] && old["lastTransitionTime"] != nil {
		c["lastTransitionTime"] = old["lastTransitionTime"]
	}
	if same(old, c) {
		return have, false
	}
	have[i] = c
	return have, true
}

// patch is a merge patch of the status of this version of the object.
func (o *Observed) patch(status map[string]any) []byte {
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": o.Version}, "status": status})
	if err != nil {
		return nil // it is made of texts and numbers
	}
	return b
}

// same compares what JSON makes of two values.
func same(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return errors.Join(err1, err2) == nil && bytes.Equal(x, y)
}

// clip keeps a message within what the API server takes.
func clip(s string) string {
	if len(s) > 30_000 {
		return strings.ToValidUTF8(s[:30_000], "") + "…"
	}
	return s
}
