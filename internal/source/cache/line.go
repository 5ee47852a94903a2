package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"strconv"

	"weft/internal/model"
	"weft/internal/selector"
)

// line is one object of a file.
type line struct {
	Kind   model.Kind      `json:"kind"`
	Object json.RawMessage `json:"object"`
}

// podLine is a pod without what it has not: there are many.
type podLine struct {
	model.PodRef
	Node        string            `json:",omitzero"`
	HostNetwork bool              `json:",omitzero"`
	Finished    bool              `json:",omitzero"`
	Labels      map[string]string `json:",omitempty"`
	Account     string            `json:",omitzero"`
	Ports       []model.Port      `json:",omitzero"`
	Addrs       []netip.Addr      `json:",omitzero"`
	WantAddrs   []netip.Addr      `json:",omitzero"`
	WantMAC     model.MAC         `json:",omitzero"`
	Ingress     *model.Rate       `json:",omitzero"`
	Egress      *model.Rate       `json:",omitzero"`
	Problem     string            `json:",omitzero"`
}

// number is a float64 that may be infinite, which JSON has no word for.
type number float64

// MarshalJSON implements json.Marshaler.
func (n number) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(n), 0) {
		return json.Marshal(fmt.Sprint(float64(n)))
	}
	return json.Marshal(float64(n))
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		return json.Unmarshal(b, (*float64)(n))
	}
	v, err := strconv.ParseFloat(s, 64)
	*n = number(v)
	return err
}

// policyLine is a policy with its orders as numbers.
type policyLine struct {
	*model.Policy
	Order number
	Tier  struct {
		model.TierRef
		Order number
	}
}

// tierLine is a tier with its order as a number.
type tierLine struct {
	*model.Tier
	Order number
}

// toLine returns the line of an object.
func toLine(kind model.Kind, o model.Object) ([]byte, error) {
	var v any = o
	switch o := o.(type) {
	case *model.Pod:
		l := podLine{
			PodRef: o.PodRef, Node: o.Node, HostNetwork: o.HostNetwork, Finished: o.Finished, Labels: o.Labels, Account: o.Account,
			Ports: o.Ports, Addrs: o.Addrs, WantAddrs: o.WantAddrs, WantMAC: o.WantMAC, Ingress: o.Ingress, Egress: o.Egress,
		}
		if o.Problem != nil {
			l.Problem = o.Problem.Error()
		}
		v = l
	case *model.Policy:
		l := policyLine{Policy: o, Order: number(o.Order)}
		l.Tier.TierRef, l.Tier.Order = o.Tier, number(o.Tier.Order)
		v = l
	case *model.Tier:
		v = tierLine{o, number(o.Order)}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	switch kind {
	case model.KindPolicy, model.KindGroup:
		b = dense(b)
	}
	head := append([]byte(`{"kind":"`+string(kind)), `","object":`...)
	return append(append(head, b...), "}\n"...), nil
}

// What dense leaves out, in the middle and at the end of an object.
var (
	zeroField = regexp.MustCompile(`"\w+":(?:null|false|0),`)   //nolint:gochecknoglobals // never changes
	zeroLast  = regexp.MustCompile(`,?"\w+":(?:null|false|0)}`) //nolint:gochecknoglobals // never changes
)

// dense leaves out the fields that are null, false or 0, which is most of a policy. Fields alone are meant: the maps in it have
// strings as values, and a quote within a string is not one here, since there is a backslash before it.
func dense(b []byte) []byte {
	return zeroLast.ReplaceAll(zeroField.ReplaceAll(b, nil), []byte("}"))
}

// Encode returns an object of one of Kinds as it is on disk, in one line; two objects that hold the same are encoded alike.
func Encode(o model.Object) ([]byte, error) { return toLine(o.Key().Kind, o) }

// Decode is the inverse of Encode.
func Decode(b []byte) (model.Object, error) {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, err
	}
	return l.object()
}

// object decodes the line.
func (l line) object() (model.Object, error) {
	switch l.Kind {
	case model.KindNode:
		o := &model.Node{Labels: map[string]string{}}
		return o, json.Unmarshal(l.Object, o)
	case model.KindNamespace:
		o := &model.Namespace{Labels: map[string]string{}}
		return o, json.Unmarshal(l.Object, o)
	case model.KindPod:
		p := struct {
			*model.Pod
			Problem string
		}{Pod: &model.Pod{Labels: map[string]string{}}}
		err := json.Unmarshal(l.Object, &p)
		if p.Problem != "" {
			p.Pod.Problem = errors.New(p.Problem)
		}
		return p.Pod, err
	case model.KindPolicy:
		p := policyLine{Policy: new(model.Policy)}
		err := json.Unmarshal(l.Object, &p)
		p.Policy.Tier = p.Tier.TierRef
		p.Policy.Order, p.Policy.Tier.Order = float64(p.Order), float64(p.Tier.Order)
		return p.Policy, err
	case model.KindTier:
		t := tierLine{Tier: new(model.Tier)}
		err := json.Unmarshal(l.Object, &t)
		t.Tier.Order = float64(t.Order)
		return t.Tier, err
	}
	o := empty(l.Kind)
	if o == nil {
		return nil, fmt.Errorf("unknown kind %q", l.Kind)
	}
	return o, json.Unmarshal(l.Object, o)
}

// empty returns an object of a kind that is written as it is; nil for other kinds.
func empty(k model.Kind) model.Object {
	switch k {
	case model.KindService:
		return new(model.Service)
	case model.KindBackends:
		return new(model.Backends)
	case model.KindServiceAccount:
		return &model.ServiceAccount{Labels: map[string]string{}}
	case model.KindGroup:
		return new(model.Group)
	case model.KindAddressSet:
		return &model.AddressSet{Labels: selector.Map{}}
	case model.KindHostEndpoint:
		return &model.HostEndpoint{Labels: selector.Map{}}
	default:
		return nil
	}
}
