package objects

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"weft/internal/convert/language"
	"weft/internal/convert/object"
)

// ReadManifests reads objects from files and directories (their *.yaml, *.yml and
// *.json, sorted, not those below), "-" being stdin. Errors name file and document.
func ReadManifests(stdin io.Reader, paths ...string) ([]*Object, error) {
	var out []*Object
	var errs []error
	for _, p := range paths {
		objs, err := readPath(stdin, p)
		out, errs = append(out, objs...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func readPath(stdin io.Reader, p string) ([]*Object, error) {
	if p == "-" {
		return ParseManifests("stdin", stdin)
	}
	st, err := os.Stat(p)
	if err != nil {
		return nil, err
	}
	files := []string{p}
	if st.IsDir() {
		if files = manifestsIn(p); len(files) == 0 {
			return nil, fmt.Errorf("%s: no *.yaml, *.yml or *.json in this directory", p)
		}
	}
	var out []*Object
	var errs []error
	for _, f := range files {
		r, err := os.Open(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		objs, err := ParseManifests(f, r)
		r.Close()
		out, errs = append(out, objs...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func manifestsIn(dir string) []string {
	var files []string
	entries, _ := os.ReadDir(dir) // sorted; the caller has seen that it is a directory
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files
}

// ParseManifests reads all documents of a stream; Lists are taken apart.
func ParseManifests(name string, r io.Reader) ([]*Object, error) {
	var out []*Object
	docs := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for i := 1; ; i++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		fail := func(err error) ([]*Object, error) {
			return out, fmt.Errorf("%s: document %d: %w", name, i, err)
		}
		if err != nil {
			return fail(err)
		}
		var m map[string]any
		if err := yaml.UnmarshalStrict(doc, &m); err != nil {
			return fail(errors.New(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")))
		}
		if len(m) == 0 {
			continue
		}
		objs := []*Object{{Object: m}}
		if items, ok := m["items"].([]any); ok && strings.HasSuffix(objs[0].GetKind(), "List") {
			objs = objs[:0]
			for j, item := range items {
				im, ok := item.(map[string]any)
				if !ok {
					return fail(fmt.Errorf("items[%d] is not an object", j))
				}
				objs = append(objs, &Object{Object: im})
			}
		}
		for _, o := range objs {
			if err := checkMeta(o); err != nil {
				return fail(err)
			}
		}
		out = append(out, objs...)
	}
}

// checkMeta checks what every object needs: apiVersion, kind, metadata.name.
func checkMeta(o *Object) error {
	switch {
	case o.GetKind() == "":
		return errors.New("kind is missing")
	case o.GetAPIVersion() == "":
		return fmt.Errorf("%s: apiVersion is missing", RefOf(o))
	case o.GetName() == "" && o.GetGenerateName() != "":
		return fmt.Errorf("%s: metadata.generateName is not supported: set metadata.name", strings.ToLower(o.GetKind()))
	case o.GetName() == "":
		return fmt.Errorf("%s: metadata.name is missing", strings.ToLower(o.GetKind()))
	}
	if msgs := validation.IsDNS1123Subdomain(o.GetName()); len(msgs) > 0 {
		return fmt.Errorf("%s: metadata.name: %s", RefOf(o), msgs[0])
	}
	if ns := o.GetNamespace(); ns != "" {
		if msgs := validation.IsDNS1123Label(ns); len(msgs) > 0 {
			return fmt.Errorf("%s: metadata.namespace: %s", RefOf(o), msgs[0])
		}
	}
	if strings.ContainsAny(o.GetKind(), "/_.") {
		return fmt.Errorf("kind %q is not a kind", o.GetKind())
	}
	return nil
}

// clusterScoped reports whether an object has no namespace. Of kinds that the lab does not know, the name tells.
func clusterScoped(o *Object) bool {
	if k, ok := policyKind(o); ok {
		return !k.Namespaced
	}
	known := []string{
		"Node", "Namespace", "PersistentVolume", "StorageClass", "IngressClass", "GatewayClass", "PriorityClass",
		"RuntimeClass", "CustomResourceDefinition", "APIService", "CSIDriver", "BGPPeer", "BGPConfiguration",
		"IPPool", "FelixConfiguration", "ServiceCIDR", "IPAddress", "ValidatingWebhookConfiguration",
		"MutatingWebhookConfiguration",
	}
	kind := o.GetKind()
	return slices.Contains(known, kind) || strings.HasPrefix(kind, "Cluster") || strings.HasPrefix(kind, "Global") ||
		strings.Contains(kind, "Clusterwide")
}

// Settle gives the object the namespace that it is in.
func Settle(o *Object, namespace string) {
	switch {
	case clusterScoped(o):
		o.SetNamespace("")
	case o.GetNamespace() == "":
		o.SetNamespace(namespace)
	}
}

// policyKind returns the object's kind if it is of a policy API.
func policyKind(o *Object) (language.Kind, bool) {
	group, version, found := strings.Cut(o.GetAPIVersion(), "/")
	if !found {
		return language.Kind{}, false
	}
	return language.Find(object.Type{Group: group, Version: version, Kind: o.GetKind()})
}

// Policy reports whether the object is of a policy API, and what is wrong with it, naming the field. If refused is set, nothing of
// it could be used.
func Policy(o *Object) (is, refused bool, problem error) {
	k, is := policyKind(o)
	if !is {
		return false, false, nil
	}
	raw, err := json.Marshal(o.Object)
	if err != nil {
		return true, true, fmt.Errorf("%s: %w", RefOf(o), err)
	}
	r := k.Convert(raw)
	return true, r.Refused(), r.Err
}
