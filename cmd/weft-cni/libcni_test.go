package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"weft/internal/api"
	"weft/internal/source/cni"
)

// TestLibcni runs what the agent installs through the library that containerd and CRI-O use: the configuration is taken,
// results of every version are understood, and STATUS and GC are called, which old versions do not have.
func TestLibcni(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "built")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	a := startAgent(t)
	i := cni.Installation{Plugin: bin, BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), ConfName: "05-weft.conflist", Socket: a.socket}
	if err := cni.Install(i); err != nil {
		t.Fatal(err)
	}
	list, err := libcni.LoadConfList(i.ConfDir, cni.NetworkName)
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" {
		t.Errorf("a library of today chose CNI %s", list.CNIVersion)
	}
	raw := string(list.Bytes)
	for _, version := range append(supported(), "installed") {
		t.Run(version, func(t *testing.T) {
			a.mu.Lock()
			clear(a.asked)
			a.mu.Unlock()
			l := list
			if version != "installed" {
				var doc map[string]any
				if err := json.Unmarshal([]byte(raw), &doc); err != nil {
					t.Fatal(err)
				}
				delete(doc, "cniVersions")
				doc["cniVersion"] = version
				b, _ := json.Marshal(doc)
				if l, err = libcni.NetworkConfFromBytes(b); err != nil {
					t.Fatal(err)
				}
			}
			runList(t, a, l, i.BinDir, t.TempDir())
		})
	}
	a.stop()
	c := libcni.NewCNIConfigWithCacheDir([]string{i.BinDir}, t.TempDir(), nil)
	rt := &libcni.RuntimeConf{ContainerID: "4f1c", NetNS: "/run/netns/p", IfName: "eth0"}
	if _, err := c.AddNetworkList(t.Context(), list, rt); err == nil || !strings.Contains(err.Error(), "agent on this node does not answer") {
		t.Errorf("ADD without an agent: %v", err)
	}
	if err := c.DelNetworkList(t.Context(), list, rt); err != nil {
		t.Errorf("DEL without an agent: %v", err)
	}
}

// runList is the life of one container.
func runList(t *testing.T, a *agent, list *libcni.NetworkConfigList, binDir, cacheDir string) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := libcni.NewCNIConfigWithCacheDir([]string{binDir}, cacheDir, nil)
	rt := &libcni.RuntimeConf{
		ContainerID: "4f1c", NetNS: "/run/netns/p", IfName: "eth0", Args: [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "web"}},
		CapabilityArgs: map[string]any{
			"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}},
			"bandwidth":    map[string]any{"ingressRate": 1000, "ingressBurst": 2000}, "dns": map[string]any{"servers": []string{"192.0.2.53"}},
		},
	}
	r, err := c.AddNetworkList(ctx, list, rt)
	if err != nil {
		t.Fatalf("ADD: %v", err)
	}
	res, err := current.GetResult(r)
	if err != nil || len(res.IPs) != 2 || len(res.Interfaces) != 2 || len(res.Routes) != 2 || *res.IPs[1].Interface != 1 ||
		res.IPs[0].Address.String() != "10.244.1.7/32" || res.Interfaces[1].Sandbox != "/run/netns/p" {
		t.Fatalf("result %+v, %v", res, err)
	}
	var add api.AddRequest
	a.params(t, api.MethodCNIAdd, &add)
	if len(add.Ports) != 1 || add.Bandwidth.IngressRate != 1000 || add.Pod.Name != "web" {
		t.Errorf("capabilities and arguments did not arrive: %+v", add)
	}
	if list.CNIVersion >= "0.4" {
		if err := c.CheckNetworkList(ctx, list, rt); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		var check api.CheckRequest
		a.params(t, api.MethodCNICheck, &check)
		if len(check.Addrs) != 2 || check.MAC != "02:04:0a:f4:01:07" {
			t.Errorf("CHECK asked %+v", check)
		}
	}
	if list.CNIVersion >= "1.1" {
		if err := c.GetStatusNetworkList(ctx, list); err != nil {
			t.Errorf("STATUS: %v", err)
		}
		for _, valid := range [][]types.GCAttachment{nil, {{ContainerID: "4f1c", IfName: "eth0"}}} {
			if err := c.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
				t.Errorf("GC: %v", err)
			}
			var gc api.GCRequest
			if a.params(t, api.MethodCNIGC, &gc); len(gc.Valid) != len(valid) || gc.Network != cni.NetworkName {
				t.Errorf("GC asked %+v", gc)
			}
		}
	}
	if err := c.DelNetworkList(ctx, list, rt); err != nil {
		t.Errorf("DEL: %v", err)
	}
	var del api.Attachment
	a.params(t, api.MethodCNIDel, &del)
}
