package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"

	"weft/test/bench/lab"
	"weft/test/bench/scale"
)

// scaleJob is one measurement of package scale, made in a process of its own.
type scaleJob struct {
	What    string      `json:"what"` // compile, enforce or memory
	Place   scale.Place `json:"place"`
	Changes int         `json:"changes"`
}

// profileEnv names where the Y rows leave CPU profiles.
const profileEnv = "WEFT_BENCH_PROFILE"

// scaleMain is that process.
func scaleMain(args []string) error {
	if len(args) != 1 {
		return errors.New("_scale JOB")
	}
	var job scaleJob
	if err := json.Unmarshal([]byte(args[0]), &job); err != nil {
		return err
	}
	if path := os.Getenv(profileEnv); path != "" {
		file, err := os.Create(path + "." + job.What)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var out any
	var err error
	switch job.What {
	case "compile":
		out = scale.Compile(job.Place.Size)
	case "enforce":
		out, err = scale.Enforce(job.Place, job.Changes)
	case "memory":
		out, err = scale.Memory(job.Place.BPF)
	default:
		err = fmt.Errorf("_scale: %q is no measurement", job.What)
	}
	if err != nil {
		return errors.New(err.Error()) // not the exit code of a program of its own
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// scale runs a job in a process, in a namespace, and reads its result.
func (r *rig) scale(ns string, job scaleJob, result any) error {
	raw, err := json.Marshal(job)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(r.Ctx, r.Self, "_scale", string(raw))
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := lab.InNS(ns, cmd.Run); err != nil {
		return fmt.Errorf("%s: %w: %s", job.What, err, strings.TrimSpace(stderr.String()))
	}
	return json.Unmarshal(out.Bytes(), result)
}

// place makes what a scale.Place needs, and returns it with the node's namespace.
func (r *rig) place(name string, size scale.Size) (scale.Place, string, error) {
	p := scale.Place{Size: size, BPF: filepath.Join(r.Dir, name, "bpf"), Server: name + ".s", Client: name + ".c"}
	ns, err := lab.Nodes(name)
	if err != nil {
		return p, "", err
	}
	p.Other = ns[1]
	for _, pod := range []string{p.Server, p.Client} {
		if err := lab.Netns(pod); err != nil {
			return p, "", err
		}
	}
	if err := os.MkdirAll(p.BPF, 0o755); err != nil {
		return p, "", err
	}
	if err := r.Mount("bpf", p.BPF); err != nil {
		return p, "", err
	}
	p.BPF = filepath.Join(p.BPF, "weft")
	return p, ns[0], p.Addresses()
}
