// Package host makes one Linux machine out of namespaces: a process that is pid 1
// of its own network, mount, pid, uts, ipc and cgroup namespaces, with private
// directories, its own cgroups and bpffs, and supervised processes with logs.
//
// It is the node of the lab, a pod of the lab (a host in a network namespace that
// a CNI plugin furnishes) and the node of the test cluster. It is not a container
// runtime: there are no images, no user namespaces and no limits; all hosts see the
// machine's file system, except where the Spec gives them their own. It knows
// nothing of Kubernetes.
//
// What a host leaves in the kernel: namespaces and the mounts and links in them,
// which go with its pid 1; cgroups named Spec.Cgroup, which Destroy removes; and
// files below its directory. Whoever can connect to <dir>/host.sock has found the
// living pid 1 (its pid is the peer's of that connection, so that no pid file
// can lie); a starter that dies on the way leaves a host which Open finds or, if it
// was killed before it listened, processes in its cgroup, which Destroy kills.
package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Spec is what a host is made of. It is stored as <dir>/spec.json.
type Spec struct {
	// Name is the host's name (uname -n).
	Name string `json:"name"`
	// System mounts what daemons of a node need: bpffs, tracefs and cgroup
	// hierarchies that show the host's own part only. Without it there are just a
	// fresh /proc and /sys, as in a container.
	System bool `json:"system,omitempty"`
	// Cgroup is created below the root of every cgroup hierarchy and is the root of
	// the host's cgroup namespace, e.g. "weft-lab/demo/node1". Empty: the starter's.
	Cgroup string `json:"cgroup,omitempty"`
	// Netns is the path of the network namespace to live in. Empty: a new one.
	Netns string `json:"netns,omitempty"`
	// ReadOnly shows the machine's file systems read-only: what the host writes goes to
	// the directories below, or fails.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Private directories are the host's own, empty at first; they survive a restart.
	Private []string `json:"private,omitempty"`
	// Volatile directories are the host's own and empty after each start (tmpfs).
	Volatile []string `json:"volatile,omitempty"`
	// Overlay directories show the machine's content; what is written is the host's
	// own and survives a restart.
	Overlay []string `json:"overlay,omitempty"`
	// Binds show a file or directory of the machine at another path of the host.
	Binds []Bind `json:"binds,omitempty"`
	// Files are written at each start, with mode 0644, after all mounts.
	Files map[string]string `json:"files,omitempty"`
	// Masks hide existing files, /proc/sys included, under a writable copy that has
	// the given content: the host's daemons write there in place of the machine.
	Masks map[string]string `json:"masks,omitempty"`
	// Sysctls are written below /proc/sys, keys with slashes: "net/ipv4/ip_forward".
	// One that does not exist is skipped.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Env is the environment of all processes and of Start, with PATH, HOME and TERM
	// where it has none.
	Env []string `json:"env,omitempty"`
	// Processes are started in their order.
	Processes []Process `json:"processes,omitempty"`
	// Data is for the Builtins of the program that calls Init.
	Data json.RawMessage `json:"data,omitempty"`
}

// Bind is a bind mount. The target is created as a directory or file like the source.
type Bind struct {
	Source   string `json:"source"` // path on the machine, outside the host
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Restart says when a process that exited is started again.
type Restart string

// The policies. The empty value is RestartAlways.
const (
	RestartAlways    Restart = "always"
	RestartOnFailure Restart = "on-failure"
	RestartNever     Restart = "never"
)

// Process is one supervised process. Its output goes to <dir>/log/<name>.log.
type Process struct {
	Name    string   `json:"name"`
	Args    []string `json:"args"` // Args[0] is looked up in the host's PATH
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"` // "" is "/"
	Restart Restart  `json:"restart,omitempty"`
	// WaitFor delays the start until the path exists; processes after it go on.
	WaitFor string `json:"waitFor,omitempty"`
	// Once runs the process to its end before the next one starts. If it fails, the
	// following ones are not started and are shown as Failed.
	Once bool `json:"once,omitempty"`
	// Down leaves the process stopped until StartProcess.
	Down bool `json:"down,omitempty"`
}

// State is where a process is in its life.
type State string

// The states.
const (
	Waiting State = "waiting" // for WaitFor, a Once before it, or the restart delay
	Running State = "running"
	Stopped State = "stopped" // by StopProcess
	Exited  State = "exited"  // and not to be restarted
	Failed  State = "failed"  // could not be started
)

// Status is what a process is doing.
type Status struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"`      // inside the host
	ExitCode int       `json:"exitCode,omitempty"` // of the last run; 128+signal if killed
	Restarts int       `json:"restarts,omitempty"` // starts after the first
	Since    time.Time `json:"since"`              // when State was entered
	Message  string    `json:"message,omitempty"`  // why Failed
}

const (
	specFile   = "spec.json"
	socketFile = "host.sock"
	lockFile   = "lock"
	logDir     = "log"
	fsDir      = "fs" // what Private and Overlay directories hold

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Validate reports every field that cannot be used.
func (s *Spec) Validate() error {
	var errs []error
	bad := func(f string, a ...any) { errs = append(errs, fmt.Errorf("host "+s.Name+": "+f, a...)) }
	if s.Name == "" || strings.ContainsAny(s.Name, "/\x00") || len(s.Name) > 64 {
		bad("name: %q is not a host name", s.Name)
	}
	if s.Cgroup != "" && !filepath.IsLocal(s.Cgroup) {
		bad("cgroup: %q is not a relative path", s.Cgroup)
	}
	for _, p := range slices.Concat(s.Private, s.Volatile, s.Overlay) {
		if !filepath.IsAbs(p) {
			bad("private, volatile, overlay: %q is not an absolute path", p)
		}
	}
	seen := map[string]bool{}
	for i := range s.Processes {
		p := &s.Processes[i]
		if err := p.validate(); err != nil {
			bad("processes[%d]: %w", i, err)
		}
		if seen[p.Name] {
			bad("processes[%d]: name %q is not unique", i, p.Name)
		}
		seen[p.Name] = true
	}
	return errors.Join(errs...)
}

func (p *Process) validate() error {
	switch {
	case p.Name == "" || strings.ContainsAny(p.Name, "/\x00"):
		return fmt.Errorf("name: %q is not a file name", p.Name)
	case len(p.Args) == 0:
		return errors.New("args: empty")
	case !slices.Contains([]Restart{"", RestartAlways, RestartOnFailure, RestartNever}, p.Restart):
		return fmt.Errorf("restart: %q is not always, on-failure or never", p.Restart)
	}
	return nil
}

// environ is the environment of the host's processes.
func (s *Spec) environ() []string {
	env := slices.Clone(s.Env)
	for _, def := range []string{"PATH=" + defaultPath, "HOME=/root", "TERM=" + os.Getenv("TERM")} {
		name, _, _ := strings.Cut(def, "=")
		if !slices.ContainsFunc(s.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			env = append(env, def) // a variable that is there twice has the value that its reader sees first or last
		}
	}
	return env
}

func readSpec(dir string) (*Spec, error) {
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	s := &Spec{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, specFile), err)
	}
	return s, nil
}

func writeSpec(dir string, s *Spec) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, specFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, specFile))
}
