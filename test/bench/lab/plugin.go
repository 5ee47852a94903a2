package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"weft/internal/netset"
)

// Plugin is a CNI plugin as a container runtime would run it, without libcni in between.
type Plugin struct {
	Binary string
	path   string // CNI_PATH
	conf   []byte // network configuration
}

// Result is the part of a result (CNI spec 0.4 and 1.x) that the rig needs.
type Result struct {
	IPs []struct {
		Address netip.Prefix `json:"address"`
	} `json:"ips"`
}

// Addresses are those that the pod was given.
func (r Result) Addresses() map[netset.Family]netip.Addr {
	m := map[netset.Family]netip.Addr{}
	for _, i := range r.IPs {
		m[netset.Of(i.Address.Addr())] = i.Address.Addr()
	}
	return m
}

// Command prepares an execution of the plugin.
func (p *Plugin) Command(command, id, netns string) *exec.Cmd {
	cmd := Program(p.Binary)
	cmd.Stdin = bytes.NewReader(p.conf)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_IFNAME=eth0",
		"CNI_NETNS=" + filepath.Join(NetnsDir, netns), "CNI_PATH=" + p.path,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=" + id,
	}
	return cmd
}

// call executes the plugin in the calling thread's network namespace.
func (p *Plugin) call(command, id, netns string) ([]byte, error) {
	cmd := p.Command(command, id, netns)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s %s: %w: %s %s", filepath.Base(p.Binary), command, id, err,
			strings.TrimSpace(out.String()), strings.TrimSpace(stderr.String()))
	}
	return out.Bytes(), nil
}

// Add attaches a pod.
func (p *Plugin) Add(id, netns string) (Result, error) {
	var r Result
	raw, err := p.call("ADD", id, netns)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	return r, err
}

// Del removes it again.
func (p *Plugin) Del(id, netns string) error {
	_, err := p.call("DEL", id, netns)
	return err
}

// pluginDir finds the containernetworking plugins: $PEER_CNI_PLUGINS, or Debian's package.
func pluginDir() (string, error) {
	for _, d := range []string{os.Getenv("PEER_CNI_PLUGINS"), "/usr/lib/cni", "/opt/cni/bin"} {
		if d == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(d, "host-local")); err == nil {
			return d, nil
		}
	}
	return "", errors.New("no containernetworking plugins: apt-get install containernetworking-plugins, or set PEER_CNI_PLUGINS")
}

// DebianPlugins names the plugins' version.
func DebianPlugins() string {
	dir, err := pluginDir()
	if err != nil {
		return "containernetworking plugins"
	}
	out, err := Program("dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins").Output()
	if err != nil || !strings.HasPrefix(dir, "/usr/lib/") {
		return "containernetworking plugins in " + dir
	}
	return "containernetworking plugins " + string(out)
}

// command runs a program and returns its output as the error's text.
func command(name string, args ...string) error {
	if out, err := Program(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
