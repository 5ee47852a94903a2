package api

import (
	"context"
	"encoding/json"
	"time"
)

// Methods of the agent beside CNI's.
const (
	MethodShow   = "show"   // ShowRequest → a stream of Table
	MethodStatus = "status" // nothing → Status
	MethodDoctor = "doctor" // nothing → Doctor
)

// ShowRequest asks for a table. An empty name asks for the list of tables.
type ShowRequest struct {
	Table string `json:"table"`
	Watch bool   `json:"watch"` // send the table again at each change, until the caller goes
}

// Table is a table as it is shown: cells are text, in the order of the columns.
type Table struct {
	Name    string     `json:"name"`
	Columns []string   `json:"columns"`
	Rows    [][]string `json:"rows"`
}

// Status is how an agent is.
type Status struct {
	Node     string            `json:"node"`
	Version  string            `json:"version"`
	Started  time.Time         `json:"started"`
	Ready    bool              `json:"ready"`
	Waiting  []string          `json:"waiting,omitempty"` // what readiness waits for
	Backend  string            `json:"backend"`
	Underlay string            `json:"underlay,omitempty"`
	Pools    []PoolUse         `json:"pools,omitempty"`
	Rows     map[string]int    `json:"rows"` // plan rows by status
	Failures []string          `json:"failures,omitempty"`
	Features []Feature         `json:"features,omitempty"`
	Tasks    []Task            `json:"tasks"`
	Counters map[string]uint64 `json:"counters"` // of the data path, by reason
	Problems []string          `json:"problems,omitempty"`
}

// Feature is one thing that this kernel can do or not.
type Feature struct {
	Name, State, Detail string
}

// Task is one supervised goroutine of the agent.
type Task struct {
	Name     string `json:"name"`
	Running  bool   `json:"running"`
	Restarts int    `json:"restarts"`
	Err      string `json:"err,omitempty"`
}

// Doctor is what was found wrong on this host, newest first, and what is wrong now.
type Doctor struct {
	Now       []string   `json:"now"`
	Incidents []Incident `json:"incidents"`
}

// Incident is one finding.
type Incident struct {
	What   string    `json:"what"`
	Action string    `json:"action"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
	Count  int       `json:"count"`
}

// StreamFunc adapts a function with one typed parameter and any number of results to a Handler.
func StreamFunc[P any](f func(ctx context.Context, p P, send func(any) error) error) Handler {
	return func(ctx context.Context, params json.RawMessage, send func(any) error) error {
		var p P
		if len(params) > 0 {
			if err := json.Unmarshal(params, &p); err != nil {
				return Errorf(CodeDecode, "parameters: %v", err)
			}
		}
		return f(ctx, p, send)
	}
}
