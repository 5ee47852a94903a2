package model

import "time"

// Trial is a change of policy that this node may take back, or has taken back, because of what has happened since.
type Trial struct {
	Of      Key       // the object that was changed
	Ref     Ref       // of the API's object; zero where it has none (tiers)
	Name    string    // of the object, for messages: Ref.String() where it has one
	Back    bool      // taken back; else on trial
	Since   time.Time // when it came in force, or when it was taken back
	Until   time.Time // when the trial ends; zero once it was taken back
	Why     []string  // what broke: the names of invariants; empty while on trial
	Instead string    // what is in force instead, "its earlier version"; "" while on trial
}

// Key implements Object.
func (t *Trial) Key() Key { return TrialKey(t.Of) }

// TrialKey is the key of the trial of an object.
func TrialKey(of Key) Key { return Key{KindTrial, of.String()} }

// Validate implements Object.
func (t *Trial) Validate() error { return nil }
