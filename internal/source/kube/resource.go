package kube

import (
	"fmt"
	"net/url"

	"weft/internal/convert/k8s"
	"weft/internal/convert/language"
	"weft/internal/convert/wire"
	"weft/internal/model"
)

// resource is what one watch follows: a collection of the API server.
type resource struct {
	name   string     // of the watch, unique: "nodes", "tiers.crd.antrea.io"
	query  url.Values // for list and watch
	accept accept
	forms  []form // the same objects in several versions of their API, of which the server has some; at least one
}

// form is a resource in one version of its API.
type form struct {
	path   string // of the collection, below the server's URL
	decode decoder
}

// accept is in which encodings lists and watches are wanted.
type accept struct{ object, stream string }

// What is accepted from the API server. JSON is there for servers that have no protobuf, and for objects of
// CustomResourceDefinitions, of which no server has.
const (
	protobuf     = "application/vnd.kubernetes.protobuf"
	partial      = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	partialList  = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	acceptObject = protobuf + ", application/json;q=0.5"
	acceptStream = protobuf + ";stream=watch, application/json;stream=watch;q=0.5, application/json;q=0.4"
)

// The names of the watches that are not those of a kind of the model.
const (
	crdWatch = "customresourcedefinitions"
	// remoteWatch is of the pods of all other nodes. It is not the watch of this node's pods made wider: that one must not lose
	// a pod for a moment.
	remoteWatch = "pods of other nodes"
)

// Kinds are the kinds of the cluster's own objects that can be watched.
func Kinds() []model.Kind {
	return []model.Kind{
		model.KindNode, model.KindNamespace, model.KindPod, model.KindService, model.KindBackends, model.KindServiceAccount,
	}
}

// coreResource returns the resource of a kind. Pods are those of the node only, unless that is empty.
func coreResource(k model.Kind, node string) (resource, error) {
	t := k8s.Type{APIVersion: "v1"}
	var path string
	query := url.Values{}
	switch k {
	case model.KindNode:
		t.Kind, path = "Node", "/api/v1/nodes"
	case model.KindNamespace:
		t.Kind, path = "Namespace", "/api/v1/namespaces"
	case model.KindPod:
		t.Kind, path = "Pod", "/api/v1/pods"
		if node != "" {
			query.Set("fieldSelector", "spec.nodeName="+node)
		}
	case model.KindService:
		t.Kind, path = "Service", "/api/v1/services"
	case model.KindServiceAccount:
		t.Kind, path = "ServiceAccount", "/api/v1/serviceaccounts"
	case model.KindBackends:
		t = k8s.Type{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
		path = "/apis/discovery.k8s.io/v1/endpointslices"
	default:
		return resource{}, fmt.Errorf("kind %s does not come from the API server", k)
	}
	return resource{
		name: string(k), query: query, accept: accept{acceptObject, acceptStream}, forms: []form{{path, core(t)}},
	}, nil
}

// remotePods is the resource of the pods that run on other nodes.
func remotePods(node string) resource {
	return resource{
		name: remoteWatch, accept: accept{acceptObject, acceptStream}, query: url.Values{"fieldSelector": {
			"spec.nodeName!=" + node + ",spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
		}},
		forms: []form{{"/api/v1/pods", slim(core(k8s.Type{APIVersion: "v1", Kind: "Pod"}))}},
	}
}

// maxSets bounds the sets of labels that slim remembers; then it starts anew.
const maxSets = 4096

// slim keeps of pods what policies ask of a peer, and one copy of labels and ports that many pods have, as replicas do.
func slim(full decoder) decoder {
	sets := map[string]*model.Pod{}
	return func(raw []byte, proto bool, s *wire.Strings) item {
		i := full(raw, proto, s)
		if len(i.objs) == 0 {
			return i
		}
		p, ok := i.objs[0].(*model.Pod)
		if !ok {
			return i
		}
		i.err = nil // what its annotations ask for is its own node's affair
		if len(sets) >= maxSets {
			clear(sets)
		}
		key := fmt.Sprint(p.Labels, p.Ports)
		if sets[key] == nil {
			sets[key] = &model.Pod{Labels: p.Labels, Ports: p.Ports}
		}
		i.objs = []model.Object{&model.Pod{
			PodRef: model.PodRef{Namespace: p.Namespace, Name: p.Name}, Node: p.Node, HostNetwork: p.HostNetwork, Finished: p.Finished,
			Labels: sets[key].Labels, Account: p.Account, Ports: sets[key].Ports, Addrs: p.Addrs,
		}}
		return i
	}
}

// crds is the resource of the CustomResourceDefinitions, of which the names are enough.
func crds() resource {
	return resource{
		name: crdWatch, query: url.Values{}, accept: accept{partialList + ", application/json;q=0.5", partial + ", application/json;q=0.5"},
		forms: []form{{"/apis/apiextensions.k8s.io/v1/customresourcedefinitions", metadata("CustomResourceDefinition")}},
	}
}

// policies returns the resources of all languages, in order. Kubernetes' own is first.
func policies() []resource {
	var out []resource
	at := map[string]int{}
	for _, k := range language.Kinds() {
		i, known := at[k.CRD()]
		if !known {
			r := resource{name: k.CRD(), query: url.Values{}, accept: accept{jsonBody, jsonBody}}
			if k.Language == language.Kubernetes {
				r.accept = accept{acceptObject, acceptStream}
			}
			i = len(out)
			at[k.CRD()], out = i, append(out, r)
		}
		out[i].forms = append(out[i].forms, form{k.Path(), policy(k)})
	}
	return out
}
