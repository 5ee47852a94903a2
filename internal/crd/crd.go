// Package crd holds the CustomResourceDefinitions of the policy APIs, for clusters that have none.
//
// Their schemas take what any release of an API took, and keep what they do not know: a field that weft has never heard of may
// narrow a policy, so that it must reach the converter, which fails closed, and not be pruned. They are not the definitions of the
// projects whose APIs they are, which check more; one that is there already is used as it is. Package source/kube installs
// them, and this package talks to nobody.
package crd

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed *.yaml
var files embed.FS

// Definition is one CustomResourceDefinition.
type Definition struct {
	Name string          // "tiers.crd.antrea.io"
	JSON json.RawMessage // the whole object
}

// Of returns the definitions of a language; none of one that needs none or is not known.
func Of(language string) ([]Definition, error) {
	text, err := files.ReadFile(language + ".yaml")
	if err != nil {
		return nil, nil //nolint:nilerr // a language without definitions
	}
	var out []Definition
	for _, doc := range strings.Split(string(text), "\n---\n") {
		raw, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			return nil, fmt.Errorf("definitions of %s: %w", language, err)
		}
		var o struct {
			Metadata struct{ Name string }
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			return nil, fmt.Errorf("definitions of %s: %w", language, err)
		}
		out = append(out, Definition{o.Metadata.Name, raw})
	}
	return out, nil
}
