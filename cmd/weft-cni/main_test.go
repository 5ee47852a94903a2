package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/api"
)

var update = flag.Bool("update", false, "write the golden results and deps.txt") //nolint:gochecknoglobals // a flag

// agent is a fake agent on a socket. It records what it is asked.
type agent struct {
	socket string
	mu     sync.Mutex
	asked  map[string]json.RawMessage
	fail   error
	stop   func()
}

func startAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{socket: filepath.Join(t.TempDir(), api.SocketName), asked: map[string]json.RawMessage{}}
	l, err := api.Listen(a.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer()
	for method, reply := range map[string]any{
		api.MethodCNIAdd: api.AddReply{
			HostIf: "weft0123456789a", HostMAC: "02:77:65:66:74:01", MAC: "02:04:0a:f4:01:07", MTU: 1450,
			IPs: []api.Address{
				{Addr: netip.MustParseAddr("10.244.1.7"), Gateway: netip.MustParseAddr("169.254.1.1")},
				{Addr: netip.MustParseAddr("fd00:1::7"), Gateway: netip.MustParseAddr("fe80::1")},
			},
		},
		api.MethodCNIDel: struct{}{}, api.MethodCNICheck: struct{}{}, api.MethodCNIGC: api.GCReply{}, api.MethodCNIStatus: api.StatusReply{},
	} {
		srv.Handle(method, func(_ context.Context, params json.RawMessage, send func(any) error) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.asked[method] = params
			if a.fail != nil {
				return a.fail
			}
			return send(reply)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	a.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(a.stop)
	return a
}

func (a *agent) params(t *testing.T, method string, to any) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked[method] == nil {
		t.Fatalf("%s was not asked", method)
	}
	if err := json.Unmarshal(a.asked[method], to); err != nil {
		t.Fatal(err)
	}
}

// cniEnv is the environment of a pod's eth0, changed by pairs of name and value.
func cniEnv(command string, change ...string) func(string) string {
	env := map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "4f1c", "CNI_NETNS": "/run/netns/p", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1",
	}
	for i := 0; i < len(change); i += 2 {
		env[change[i]] = change[i+1]
	}
	return func(k string) string { return env[k] }
}

// conf is a network configuration with more fields.
func conf(version, socket string, more ...string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"weft","type":"weft-cni","socket":%q%s}`, version, socket, strings.Join(append([]string{""}, more...), ","))
}

func exec1(env func(string) string, in string) (status int, out string) {
	var stdout, stderr bytes.Buffer
	status = run(env, time.Now(), strings.NewReader(in), &stdout, &stderr)
	return status, stdout.String() + stderr.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Errorf("%s: got\n%s\nwant (%v)\n%s", path, got, err, want)
	}
}

func TestAddResults(t *testing.T) {
	a := startAgent(t)
	for _, v := range supported() {
		status, out := exec1(cniEnv("ADD"), conf(v, a.socket))
		if status != 0 {
			t.Errorf("%s: %s", v, out)
		}
		golden(t, "add-"+v+".json", out)
	}
	prev := `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/run/netns/p","socketPath":"/x"}],` +
		`"ips":[{"address":"192.0.2.5/24","interface":0}],"routes":[{"dst":"192.0.2.0/24","priority":7}],"dns":{"nameservers":["192.0.2.53"]}}`
	status, out := exec1(cniEnv("ADD"), conf("1.0.0", a.socket, prev))
	if status != 0 {
		t.Error(out)
	}
	golden(t, "add-chained.json", out)
	if status, out := exec1(cniEnv("VERSION"), `{"cniVersion":"0.4.0"}`); status != 0 {
		t.Error(out)
	} else {
		golden(t, "version.json", out)
	}
}

func TestRequest(t *testing.T) {
	a := startAgent(t)
	in := conf("1.0.0", a.socket, `"runtimeConfig":{`+
		`"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP","hostIP":""},{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"192.0.2.1"},{"hostPort":0,"containerPort":9}],`+
		`"bandwidth":{"ingressRate":1000,"ingressBurst":2147483647,"egressRate":2000,"egressBurst":3},`+
		`"ips":["10.0.0.9/24","fd00::9"],"mac":"02:00:00:00:00:09","unknown":[1]}`, `"somebody":{"elses":true}`)
	if status, out := exec1(cniEnv("ADD"), in); status != 0 {
		t.Fatal(out)
	}
	var got api.AddRequest
	a.params(t, api.MethodCNIAdd, &got)
	if got.Started.IsZero() {
		t.Error("the start is missing")
	}
	got.Started = time.Time{}
	want := api.AddRequest{
		Attachment: api.Attachment{ContainerID: "4f1c", IfName: "eth0", Network: "weft", Netns: "/run/netns/p"},
		Pod:        api.PodRef{Namespace: "default", Name: "web", UID: "u-1"},
		Addrs:      []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")}, MAC: "02:00:00:00:00:09",
		Ports: []api.PortMapping{
			{HostPort: 8080, ContainerPort: 80, Protocol: "TCP"},
			{HostPort: 53, ContainerPort: 5353, Protocol: "udp", HostIP: netip.MustParseAddr("192.0.2.1")},
		},
		Bandwidth: api.Bandwidth{IngressRate: 1000, IngressBurst: 2147483647, EgressRate: 2000, EgressBurst: 3},
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
	for from, in := range map[string]string{
		"args":     conf("1.0.0", a.socket, `"args":{"cni":{"ips":["10.0.0.8"]}}`),
		"CNI_ARGS": conf("1.0.0", a.socket),
	} {
		want := map[string]string{"args": "10.0.0.8", "CNI_ARGS": "10.0.0.7"}[from]
		if status, out := exec1(cniEnv("ADD", "CNI_ARGS", "IP=10.0.0.7/16"), in); status != 0 {
			t.Fatal(out)
		}
		a.params(t, api.MethodCNIAdd, &got)
		if len(got.Addrs) != 1 || got.Addrs[0].String() != want {
			t.Errorf("%s: %v", from, got.Addrs)
		}
	}
}

// TestErrors: each bad input is a CNI error on stdout with the code of the specification, naming what is wrong.
func TestErrors(t *testing.T) {
	a := startAgent(t)
	good := conf("1.0.0", a.socket)
	more := func(m string) string { return conf("1.0.0", a.socket, m) }
	for name, c := range map[string]struct {
		env  func(string) string
		in   string
		code api.Code
		say  string
	}{
		"no command":          {cniEnv(""), good, 4, "CNI_COMMAND"},
		"unknown command":     {cniEnv("FROB"), good, 4, `CNI_COMMAND="FROB"`},
		"no container":        {cniEnv("ADD", "CNI_CONTAINERID", ""), good, 4, "CNI_CONTAINERID"},
		"bad container":       {cniEnv("DEL", "CNI_CONTAINERID", "../x"), good, 4, "CNI_CONTAINERID"},
		"no netns":            {cniEnv("ADD", "CNI_NETNS", ""), good, 4, "CNI_NETNS"},
		"no netns to check":   {cniEnv("CHECK", "CNI_NETNS", ""), good, 4, "CNI_NETNS"},
		"no interface":        {cniEnv("ADD", "CNI_IFNAME", ""), good, 4, "CNI_IFNAME"},
		"long interface":      {cniEnv("ADD", "CNI_IFNAME", "abcdefghijklmnop"), good, 4, "CNI_IFNAME"},
		"interface with /":    {cniEnv("ADD", "CNI_IFNAME", "a/b"), good, 4, "CNI_IFNAME"},
		"bad args":            {cniEnv("ADD", "CNI_ARGS", "a=b;c"), good, 4, "CNI_ARGS"},
		"empty":               {cniEnv("ADD"), " \n", 6, "empty"},
		"no JSON":             {cniEnv("ADD"), "{\"cniVersion\":\"1.0.0\",}", 6, "byte"},
		"not an object":       {cniEnv("ADD"), "[]", 6, "configuration"},
		"huge":                {cniEnv("ADD"), strings.Repeat(" ", maxConf+1), 6, "longer"},
		"no version":          {cniEnv("ADD"), `{"name":"x"}`, 1, `""`},
		"old version":         {cniEnv("ADD"), `{"cniVersion":"0.2.0"}`, 1, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"},
		"future version":      {cniEnv("DEL"), `{"cniVersion":"2.0.0"}`, 1, "2.0.0"},
		"CHECK in 0.3.1":      {cniEnv("CHECK"), conf("0.3.1", a.socket), 1, "CHECK came with CNI 0.4.0"},
		"STATUS in 1.0.0":     {cniEnv("STATUS"), good, 1, "STATUS came with CNI 1.1.0"},
		"GC in 1.0.0":         {cniEnv("GC"), good, 1, "GC"},
		"GC without list":     {cniEnv("GC"), conf("1.1.0", a.socket), 7, "valid-attachments"},
		"GC list is a word":   {cniEnv("GC"), conf("1.1.0", a.socket, `"cni.dev/valid-attachments":"all"`), 6, "valid-attachments"},
		"version is a number": {cniEnv("ADD"), `{"cniVersion":1}`, 6, "cniVersion"},
		"socket is a list":    {cniEnv("ADD"), more(`"name":["x"]`), 6, "name"},
		"ips is a string":     {cniEnv("ADD"), more(`"runtimeConfig":{"ips":"10.0.0.1"}`), 6, "runtimeConfig.ips"},
		"dns is a number":     {cniEnv("ADD"), more(`"dns":{"search":7}`), 6, "dns.search"},
		"port is a string":    {cniEnv("ADD"), more(`"runtimeConfig":{"portMappings":[{"hostPort":"80"}]}`), 6, "hostPort"},
		"port too large":      {cniEnv("ADD"), more(`"runtimeConfig":{"portMappings":[{"hostPort":65536,"containerPort":1}]}`), 7, "portMappings[0]: hostPort"},
		"no container port":   {cniEnv("ADD"), more(`"runtimeConfig":{"portMappings":[{"hostPort":80}]}`), 7, "containerPort"},
		"bad hostIP":          {cniEnv("ADD"), more(`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"hostIP":"x"}]}`), 7, "hostIP"},
		"bad ip":              {cniEnv("ADD"), more(`"runtimeConfig":{"ips":["10.0.0"]}`), 7, `"10.0.0"`},
		"negative rate":       {cniEnv("ADD"), more(`"runtimeConfig":{"bandwidth":{"egressRate":-1}}`), 7, "bandwidth"},
		"rate is a fraction":  {cniEnv("ADD"), more(`"runtimeConfig":{"bandwidth":{"egressRate":1.5}}`), 6, "egressRate"},
		"interface exists":    {cniEnv("ADD"), more(`"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/p"}]}`), 7, "eth0"},
		"other prevResult":    {cniEnv("ADD"), more(`"prevResult":{"cniVersion":"0.4.0"}`), 7, "prevResult"},
		"bad prevResult":      {cniEnv("ADD"), more(`"prevResult":{"interfaces":{}}`), 6, "prevResult"},
		"CHECK without prev":  {cniEnv("CHECK"), good, 7, "prevResult"},
		"prev without eth0":   {cniEnv("CHECK"), more(`"prevResult":{"interfaces":[]}`), 7, "eth0"},
	} {
		status, out := exec1(c.env, c.in)
		var e struct {
			CNIVersion string `json:"cniVersion"`
			api.Error
		}
		if err := json.Unmarshal([]byte(out), &e); err != nil || status == 0 || e.Code != c.code ||
			!strings.Contains(e.Msg+e.Details, c.say) || !slices.Contains(supported(), e.CNIVersion) {
			t.Errorf("%s: status %d, want code %d saying %q; got %s", name, status, c.code, c.say, out)
		}
	}
	a.fail = &api.Error{Code: api.CodeExhausted, Msg: "no free address", Details: "most by namespace x"}
	_, out := exec1(cniEnv("ADD"), good)
	golden(t, "error.json", out)
}

func TestOtherCommands(t *testing.T) {
	a := startAgent(t)
	prev := `"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"weft0","mac":"02:77:65:66:74:01"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/p"}],` +
		`"ips":[{"address":"10.0.0.1/32","interface":1},{"address":"192.0.2.1/24","interface":0}]}`
	for command, in := range map[string]string{
		"DEL": conf("0.3.1", a.socket), "CHECK": conf("1.1.0", a.socket, prev), "STATUS": conf("1.1.0", a.socket),
		"GC": conf("1.1.0", a.socket, `"cni.dev/valid-attachments":[{"containerID":"a1","ifname":"eth0"}]`),
	} {
		if status, out := exec1(cniEnv(command), in); status != 0 || out != "" {
			t.Errorf("%s: status %d, %s", command, status, out)
		}
	}
	var check api.CheckRequest
	a.params(t, api.MethodCNICheck, &check)
	if fmt.Sprint(check.Addrs, check.MAC) != "[10.0.0.1]02:00:00:00:00:01" {
		t.Errorf("CHECK asked %+v", check)
	}
	var gc api.GCRequest
	a.params(t, api.MethodCNIGC, &gc)
	if gc.Network != "weft" || len(gc.Valid) != 1 || gc.Valid[0].ID() != "a1/eth0" {
		t.Errorf("GC asked %+v", gc)
	}
	// DEL may come without a namespace.
	if status, out := exec1(cniEnv("DEL", "CNI_NETNS", ""), conf("1.0.0", a.socket)); status != 0 {
		t.Error(out)
	}
	a.fail = api.Errorf(api.CodeNotAvailable, "the agent is not ready")
	if status, out := exec1(cniEnv("STATUS"), conf("1.1.0", a.socket)); status == 0 || !strings.Contains(out, `"code": 50`) {
		t.Error(out)
	}
}

// TestAgentAway: dead, never started, or hanging, within 2 s ADD says 11 and DEL succeeds, leaving a tombstone and nothing else.
func TestAgentAway(t *testing.T) {
	dead := startAgent(t)
	dead.stop()
	hanging := filepath.Join(t.TempDir(), api.SocketName)
	l, err := api.Listen(hanging) // the kernel accepts, nobody reads
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dying := filepath.Join(t.TempDir(), api.SocketName)
	d, err := api.Listen(dying) // reads the request, and dies
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	go func() {
		for {
			c, err := d.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 10))
			_ = c.(*net.UnixConn).Close()
		}
	}()
	never := filepath.Join(t.TempDir(), "none", api.SocketName)
	for name, socket := range map[string]string{"dead": dead.socket, "never": never, "hanging": hanging, "dying": dying} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for command, want := range map[string]string{"ADD": `"code": 11`, "GC": `"code": 11`, "STATUS": `"code": 50`, "DEL": ""} {
				begin := time.Now()
				status, out := exec1(cniEnv(command), conf("1.1.0", socket, `"cni.dev/valid-attachments":[]`))
				if d := time.Since(begin); d > 2*time.Second {
					t.Errorf("%s took %s", command, d)
				}
				if (status == 0) != (want == "") || !strings.Contains(out, want) {
					t.Errorf("%s: status %d, %s", command, status, out)
				}
			}
			stone := filepath.Join(filepath.Dir(socket), api.TombstoneDir, "4f1c@eth0")
			b, err := os.ReadFile(stone)
			if name == "never" {
				if _, err := os.Stat(filepath.Dir(socket)); err == nil {
					t.Error("a run directory was made for an agent that never was")
				}
				return
			}
			var a api.Attachment
			if err != nil || json.Unmarshal(b, &a) != nil || a.ID() != "4f1c/eth0" || a.Started.IsZero() {
				t.Errorf("tombstone %q, %v", b, err)
			}
			if files, _ := os.ReadDir(filepath.Dir(stone)); len(files) != 1 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// TestBinary builds what is shipped and runs it as a runtime does; its size and what it is made of are held.
func TestBinary(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "weft-cni")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	st, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("weft-cni has %.2f MB", float64(st.Size())/1e6)
	if st.Size() > 4e6 {
		t.Errorf("weft-cni has %d bytes, more than 4,000,000", st.Size())
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	list.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	deps, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	// What the standard library is made of inside is Go's business and changes with it.
	deps = slices.Concat(slices.Collect(func(yield func([]byte) bool) {
		for l := range bytes.Lines(deps) {
			if own := bytes.HasPrefix(l, []byte("weft/")); own || !bytes.Contains(l, []byte("internal/")) && !bytes.HasPrefix(l, []byte("vendor/")) {
				if !yield(l) {
					return
				}
			}
		}
	})...)
	if *update {
		if err := os.WriteFile("deps.txt", deps, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile("deps.txt"); err != nil || string(want) != string(deps) {
		t.Errorf("dependencies are not those of deps.txt (%v); if each of them is worth its start-up time, run: go test ./cmd/weft-cni -update\n%s", err, deps)
	}

	a := startAgent(t)
	add := func(ifname string) (string, error) {
		cmd := exec.CommandContext(t.Context(), bin)
		env := cniEnv("ADD", "CNI_IFNAME", ifname)
		for _, k := range []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"} {
			cmd.Env = append(cmd.Env, k+"="+env(k))
		}
		cmd.Stdin = strings.NewReader(conf("1.1.0", a.socket))
		out, err := cmd.Output()
		return string(out), err
	}
	for _, ifname := range []string{"eth0", "net1"} { // one container, two interfaces
		out, err := add(ifname)
		if err != nil || !strings.Contains(out, fmt.Sprintf("%q", ifname)) {
			t.Fatalf("ADD %s: %v\n%s", ifname, err, out)
		}
	}
	times := make([]time.Duration, 20)
	for i := range times {
		begin := time.Now()
		if _, err := add("eth0"); err != nil {
			t.Fatal(err)
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	t.Logf("exec to exit, with an agent that answers at once: median %s", times[len(times)/2])
}

// FuzzConf: whatever the configuration is, the answer is a CNI document and an exit status.
func FuzzConf(f *testing.F) {
	f.Add([]byte(conf("1.1.0", "/none", `"runtimeConfig":{"portMappings":[{"hostPort":1}],"ips":["10.0.0.1/8"],"mac":"x"},"prevResult":{"interfaces":[{}]}`)), "ADD", "K8S_POD_NAME=x")
	f.Add([]byte(`{"cniVersion":"1.0.0","cni.dev/valid-attachments":null,"dns":7}`), "GC", "")
	f.Fuzz(func(t *testing.T, in []byte, command, args string) {
		// No agent: what is asked of it is another test's.
		if c, _ := parseConf(in); c != nil && c.Socket != defaultSocket && c.Socket != "/none" {
			return
		}
		status, out := exec1(cniEnv(command, "CNI_ARGS", args), string(in))
		var e struct {
			CNIVersion string `json:"cniVersion"`
			Code       int    `json:"code"`
			Msg        string `json:"msg"`
		}
		if status == 0 && out == "" {
			return // a DEL
		}
		if err := json.Unmarshal([]byte(out), &e); err != nil || e.CNIVersion == "" || status != 0 && (e.Code == 0 || e.Msg == "") {
			t.Fatalf("%s: status %d, %q", command, status, out)
		}
	})
}
