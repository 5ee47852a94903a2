// Command weft-cni is the CNI plugin that the container runtime executes for each pod.
//
// It translates: environment and network configuration become a request to the agent, the agent's
// answer becomes a result of the version that the runtime speaks (CNI specification 0.3.0 to
// 1.1.0). It does no networking and keeps no state, but for the tombstone of a DEL
// that it could not deliver. Under the name loopback it is that plugin. It is started once a pod and operation, so it stays small: see deps.txt.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"weft/internal/api"
)

func main() {
	if filepath.Base(os.Args[0]) == loopbackName {
		os.Exit(loopback(os.Getenv, os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Getenv, time.Now(), os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. It returns the exit status; results and errors are JSON on stdout.
func run(env func(string) string, started time.Time, stdin io.Reader, stdout, stderr io.Writer) int {
	version, err := execute(env, started, stdin, stdout, stderr)
	if err == nil {
		return 0
	}
	e := api.AsError(err)
	emit(stdout, struct {
		CNIVersion string `json:"cniVersion"`
		*api.Error
	}{version, e})
	return 1
}

func emit(w io.Writer, v any) {
	out, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		_, err = w.Write(append(out, '\n'))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft-cni:", err)
	}
}

// execute does what CNI_COMMAND says, and returns the version to speak with the caller.
func execute(env func(string) string, started time.Time, stdin io.Reader, stdout, stderr io.Writer) (string, error) {
	command := env("CNI_COMMAND")
	if command == "" {
		return newest, api.Errorf(api.CodeInvalidEnv, "CNI_COMMAND is missing; weft-cni is executed by a container runtime")
	}
	raw, err := io.ReadAll(io.LimitReader(stdin, maxConf+1))
	if err != nil {
		return newest, api.Errorf(api.CodeIO, "read the network configuration from stdin: %v", err)
	}
	conf, err := parseConf(raw)
	version := newest
	if conf != nil && slices.Contains(supported(), conf.CNIVersion) {
		version = conf.CNIVersion
	}
	if err != nil {
		return version, err
	}
	if command == "VERSION" {
		emit(stdout, struct {
			CNIVersion string   `json:"cniVersion"`
			Supported  []string `json:"supportedVersions"`
		}{version, supported()})
		return version, nil
	}
	p := &plugin{conf: conf, env: env, started: started, stdout: stdout, stderr: stderr}
	do := map[string]func() error{"ADD": p.add, "DEL": p.del, "CHECK": p.check, "GC": p.gc, "STATUS": p.status}[command]
	if do == nil {
		return version, api.Errorf(api.CodeInvalidEnv, "CNI_COMMAND=%q is not ADD, DEL, CHECK, GC, STATUS or VERSION", command)
	}
	if err := conf.speaks(command); err != nil {
		return newest, err
	}
	return version, do()
}

// plugin is one execution.
type plugin struct {
	conf           *netConf
	env            func(string) string
	started        time.Time
	stdout, stderr io.Writer
}

// call asks the agent and gives it the time.
func (p *plugin) call(wait time.Duration, method string, params, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	err := api.Call(ctx, p.conf.Socket, method, params, result)
	if errors.Is(err, context.DeadlineExceeded) {
		return &api.Error{Code: api.CodeTryAgain, Msg: fmt.Sprintf("the agent did not answer within %s", wait), Details: err.Error()}
	}
	return err
}

// away turns the error of an absent agent into one with the code.
func away(err error, code api.Code) error {
	if !api.Away(err) {
		return err
	}
	return &api.Error{Code: code, Msg: "the weft agent on this node does not answer", Details: err.Error()}
}

// attachment is what the environment names.
func (p *plugin) attachment() (api.Attachment, error) {
	a := api.Attachment{
		ContainerID: p.env("CNI_CONTAINERID"), IfName: p.env("CNI_IFNAME"), Netns: p.env("CNI_NETNS"),
		Network: p.conf.Name, Started: p.started,
	}
	return a, a.Validate()
}

func (p *plugin) add() error {
	a, err := p.attachment()
	if err != nil {
		return err
	}
	if a.Netns == "" {
		return api.Errorf(api.CodeInvalidEnv, "CNI_NETNS is missing")
	}
	req, err := p.conf.request(a, p.env("CNI_ARGS"))
	if err != nil {
		return err
	}
	res, err := p.conf.prevResult()
	if err != nil {
		return err
	}
	if res.has(a) {
		return &api.Error{
			Code: api.CodeInvalidConfig, Msg: fmt.Sprintf("interface %s of the container was already made by an earlier plugin of the chain", a.IfName),
			Details: "weft-cni makes the pod's interface: it must be the first plugin of its network that does",
		}
	}
	var reply api.AddReply
	if err := p.call(30*time.Second, api.MethodCNIAdd, req, &reply); err != nil {
		if api.Lost(err) {
			// It may have happened. The runtime hears that it failed, so it must not last.
			a.Started = time.Now()
			p.bury(a)
		}
		return away(err, api.CodeTryAgain)
	}
	out, err := res.with(p.conf, a, reply)
	if err != nil {
		return err
	}
	emit(p.stdout, out)
	return nil
}

func (p *plugin) del() error {
	a, err := p.attachment()
	if err != nil {
		return err
	}
	if err := p.call(15*time.Second, api.MethodCNIDel, a, nil); api.Away(err) {
		p.bury(a)
	} else if err != nil {
		return err
	}
	return nil
}

// bury leaves a DEL to the agent that starts next. Should that fail, for want of an agent ever, or of space, the agent
// still finds that the network namespace is gone: so a DEL succeeds in any case.
func (p *plugin) bury(a api.Attachment) {
	dir := filepath.Join(filepath.Dir(p.conf.Socket), api.TombstoneDir)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		return // no agent since the boot
	}
	doc, err := json.Marshal(a)
	if err == nil {
		tmp := filepath.Join(dir, "."+a.TombstoneName())
		if err = os.WriteFile(tmp, doc, 0o600); err == nil {
			err = os.Rename(tmp, filepath.Join(dir, a.TombstoneName()))
		}
		if err != nil {
			os.Remove(tmp)
		}
	}
	if err != nil {
		fmt.Fprintln(p.stderr, "weft-cni: leave the DEL to the next agent:", err)
	}
}

func (p *plugin) check() error {
	a, err := p.attachment()
	if err != nil {
		return err
	}
	if a.Netns == "" {
		return api.Errorf(api.CodeInvalidEnv, "CNI_NETNS is missing")
	}
	res, err := p.conf.prevResult()
	if err != nil {
		return err
	}
	if res == nil {
		return api.Errorf(api.CodeInvalidConfig, "prevResult is missing: CHECK compares with it")
	}
	req := api.CheckRequest{Attachment: a}
	if req.Addrs, req.MAC, err = res.of(a); err != nil {
		return err
	}
	return away(p.call(10*time.Second, api.MethodCNICheck, req, nil), api.CodeTryAgain)
}

func (p *plugin) gc() error {
	const field = "cni.dev/valid-attachments"
	req := api.GCRequest{Network: p.conf.Name}
	if p.conf.Valid == nil {
		return api.Errorf(api.CodeInvalidConfig, "%q is missing: without it, everything would be stale", field)
	}
	if err := json.Unmarshal(p.conf.Valid, &req.Valid); err != nil {
		return api.Errorf(api.CodeDecode, "%q: %v", field, err)
	}
	return away(p.call(30*time.Second, api.MethodCNIGC, req, nil), api.CodeTryAgain)
}

func (p *plugin) status() error {
	return away(p.call(5*time.Second, api.MethodCNIStatus, nil, nil), api.CodeNotAvailable)
}
