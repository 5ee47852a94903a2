// Package plan holds what the kernel must be: one row for each thing, with a key,
// the intent object that caused it, and a one-line text form.
//
// It is the waist of the system: compilers write rows and drivers make the kernel agree,
// and neither sees the other. Rows are immutable and pure data; nothing here touches
// the kernel, and no row knows whether it has been applied (that is its status in the store).
package plan

import (
	"iter"

	"weft/internal/model"
)

// Kind names a table of rows; it is the word that `weft show` takes.
type Kind string

// The kinds, in the order in which a driver stage applies them. See Kinds.
const (
	KindOverlay    Kind = "overlays"
	KindRule       Kind = "rules"
	KindPodLink    Kind = "podlinks"
	KindNeighbour  Kind = "neighbours"
	KindRoute      Kind = "routes"
	KindSysctl     Kind = "sysctls"
	KindMasquerade Kind = "masquerade"
	KindHostPort   Kind = "hostports"
	KindSettings   Kind = "settings"
	KindHook       Kind = "hooks"
	KindRemote     Kind = "remotes"
	KindLocal      Kind = "locals"
	KindProblem    Kind = "problems"

	KindIdentity  Kind = "identities"
	KindPeerSet   Kind = "peersets"
	KindPolicySet Kind = "policysets"
	KindAddress   Kind = "addresses"
	KindGuard     Kind = "guards"
	KindVIP       Kind = "vips"
)

// Kinds lists every kind: referents before what refers to them.
func Kinds() []Kind {
	return []Kind{
		KindOverlay, KindRule, KindPodLink, KindNeighbour, KindRoute, KindSysctl,
		KindMasquerade, KindHostPort, KindIdentity, KindPeerSet, KindPolicySet, KindAddress, KindVIP, KindGuard,
		KindSettings, KindHook, KindRemote, KindLocal,
		KindProblem,
	}
}

// Key identifies a row.
type Key struct {
	Kind Kind
	Name string
}

// String returns "kind/name".
func (k Key) String() string { return string(k.Kind) + "/" + k.Name }

// Row is one thing that the kernel must hold. Implementations are pointers to structs of this package.
type Row interface {
	Key() Key
	// Owner is the key of the intent object that caused the row.
	Owner() model.Key
	// String is the row on one line. It is complete: two rows with the same key and the same text are equal.
	String() string
}

// View is everything that is wanted now, read-only.
type View interface {
	// Get returns the wanted row, or nil.
	Get(Key) Row
	// All yields the wanted rows of a kind in the order of their names.
	All(Kind) iter.Seq[Row]
}

// Changes are the rows that a driver has to look at. A row that is in neither list has not changed.
type Changes struct {
	Upsert []Row // new, changed, or to be checked again
	Delete []Row // as they were last wanted
}

// Empty reports whether there is nothing to do.
func (c Changes) Empty() bool { return len(c.Upsert)+len(c.Delete) == 0 }

// Results says what came of each row of a batch: nil is done, an error says what was tried on what.
type Results map[Key]error

// Get returns the wanted row as its own type, or the zero value.
func Get[T Row](v View, k Key) T {
	r, _ := v.Get(k).(T)
	return r
}

// All yields the wanted rows of a kind as their own type.
func All[T Row](v View, k Kind) iter.Seq[T] {
	return func(yield func(T) bool) {
		for r := range v.All(k) {
			if t, ok := r.(T); ok && !yield(t) {
				return
			}
		}
	}
}

// Of yields the rows of one type out of rows.
func Of[T Row](rows []Row) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, r := range rows {
			if t, ok := r.(T); ok && !yield(t) {
				return
			}
		}
	}
}
