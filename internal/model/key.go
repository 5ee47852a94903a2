// Package model holds the intent: what users and Kubernetes said, as plain structs.
//
// It knows neither Kubernetes nor Linux. Objects are immutable once they are in the
// store: a change is a new object under the same key. It is not the plan: what the
// kernel must hold is package plan, and only compile/* turns one into the other.
package model

import (
	"fmt"
	"iter"
	"net"
)

// Kind names a table of intent objects; it is the word that `weft show` takes.
type Kind string

// The kinds. Config, Device, PathMTU, Feature and Incident are the agent's own:
// the first is read from the configuration, the others are learned from the node. So is Trial.
const (
	KindConfig    Kind = "config"
	KindNode      Kind = "nodes"
	KindNamespace Kind = "namespaces"
	KindPod       Kind = "pods"
	KindService   Kind = "services"
	KindBackends  Kind = "backends"
	KindEndpoint  Kind = "endpoints"
	KindDevice    Kind = "devices"
	KindPathMTU   Kind = "pathmtu"
	KindFeature   Kind = "features"
	KindIncident  Kind = "incidents"
	KindTrial     Kind = "trials"

	KindPolicy         Kind = "policies"
	KindTier           Kind = "tiers"
	KindGroup          Kind = "groups"
	KindAddressSet     Kind = "addresssets"
	KindHostEndpoint   Kind = "hostendpoints"
	KindServiceAccount Kind = "serviceaccounts"
)

// Kinds lists every kind in the order in which tables are shown.
func Kinds() []Kind {
	return []Kind{
		KindConfig, KindNode, KindNamespace, KindPod, KindService, KindBackends,
		KindServiceAccount, KindPolicy, KindTier, KindGroup, KindAddressSet, KindHostEndpoint,
		KindEndpoint, KindDevice, KindPathMTU, KindFeature, KindIncident, KindTrial,
	}
}

// Key identifies one object: its kind and its name, "namespace/name" where the kind is namespaced.
type Key struct {
	Kind Kind
	Name string
}

// String returns "kind/name".
func (k Key) String() string { return string(k.Kind) + "/" + k.Name }

// Object is one intent object. Implementations are pointers to structs of this package.
type Object interface {
	Key() Key
	// Validate returns why the object cannot be used, naming the field; nil if it can.
	Validate() error
}

// Snapshot is a consistent read-only view of all intent.
type Snapshot interface {
	// Get returns the object of the key, or nil. Objects that failed Validate are not in a snapshot.
	Get(Key) Object
	// All yields the objects of a kind in the order of their names.
	All(Kind) iter.Seq[Object]
}

// Get returns the object of the given type and key, or the zero value (a nil pointer).
func Get[T Object](s Snapshot, k Key) T {
	o, _ := s.Get(k).(T)
	return o
}

// All yields the objects of a kind as their own type.
func All[T Object](s Snapshot, k Kind) iter.Seq[T] {
	return func(yield func(T) bool) {
		for o := range s.All(k) {
			if t, ok := o.(T); ok && !yield(t) {
				return
			}
		}
	}
}

// MAC is an Ethernet address as a comparable value. The zero value means none.
type MAC [6]byte

// GatewayMAC is the address of the host side of every pod link and of the overlay
// device of every node. One constant (locally administered, "weft") for all: no neighbour
// has to be learned or distributed, and a frame from any node is accepted by any other.
var GatewayMAC = MAC{0x02, 'w', 'e', 'f', 't', 0x01} //nolint:gochecknoglobals // an array constant

// ParseMAC parses the usual colon-separated form of a unicast Ethernet address.
func ParseMAC(s string) (MAC, error) {
	h, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(h) != len(MAC{}) {
		return MAC{}, fmt.Errorf("MAC %q has %d bytes, want 6", s, len(h))
	}
	m := MAC(h)
	if m[0]&1 != 0 || m.IsZero() {
		return MAC{}, fmt.Errorf("MAC %q is not a unicast address", s)
	}
	return m, nil
}

// IsZero reports whether no address is set.
func (m MAC) IsZero() bool { return m == MAC{} }

// String returns the colon-separated form, or "" for the zero value.
func (m MAC) String() string {
	if m.IsZero() {
		return ""
	}
	return net.HardwareAddr(m[:]).String()
}

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; empty text is the zero value.
func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = MAC{}
		return nil
	}
	v, err := ParseMAC(string(b))
	*m = v
	return err
}
