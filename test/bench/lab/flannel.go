package lab

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/netset"
	"weft/test/e2e/binaries"
)

// flannelVersion is the peer's version: as distributed, but for one cloud backend whose
// library the module proxy does not serve.
const (
	flannelVersion = "v0.28.10"
	// FlannelEnv names a flanneld to use, and EtcdEnv an etcd.
	FlannelEnv = "PEER_FLANNEL_BIN"
	EtcdEnv    = "PEER_ETCD_BIN"
)

// BuildPeers builds flannel and etcd from their modules into the user's cache, unless the environment
// names binaries. It needs the module proxy and a C compiler, so it runs before the harness isolates itself.
func BuildPeers() error {
	if os.Getenv(EtcdEnv) == "" {
		dir, err := binaries.Build(context.Background(), func(name string) { fmt.Fprintln(os.Stderr, "building", name) }, "etcd")
		if err != nil {
			return err
		}
		if err := os.Setenv(EtcdEnv, filepath.Join(dir, "etcd")); err != nil {
			return err
		}
	}
	if os.Getenv(FlannelEnv) != "" {
		return nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	binary := filepath.Join(cache, "weft-bench", "flanneld-"+flannelVersion)
	if _, err := os.Stat(binary); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "building flanneld", flannelVersion)
		err = buildFlannel(binary)
		if err != nil {
			return fmt.Errorf("build flanneld: %w", err)
		}
	} else if err != nil {
		return err
	}
	return os.Setenv(FlannelEnv, binary)
}

// buildFlannel builds a copy of the module's source in which the package of that backend is empty.
func buildFlannel(binary string) error {
	out, err := Program("go", "mod", "download", "-json", "github.com/flannel-io/flannel@"+flannelVersion).Output()
	if err != nil {
		return err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(binary), "build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.CopyFS(work, os.DirFS(module.Dir)); err != nil {
		return err
	}
	cloud := filepath.Join(work, "pkg", "backend", "tencentvpc")
	err = errors.Join(os.RemoveAll(cloud), os.Mkdir(cloud, 0o755),
		os.WriteFile(filepath.Join(cloud, "empty.go"), []byte("package tencentvpc\n"), 0o644))
	if err != nil {
		return err
	}
	cmd := Program("go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	cmd.Dir, cmd.Env = work, append(os.Environ(), "CGO_ENABLED=1")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// Flannel is a flanneld on each of two nodes, with etcd on the first.
type Flannel struct {
	ns      [2]string
	etcd    *Process
	Daemons [2]*Process
	subnets [2][]netip.Prefix
	mtu     int
	Ready   [2]time.Duration // exec to subnet file
}

// StartFlannel starts flannel with a backend ("vxlan" or "host-gw") and waits for its leases.
func (r *Lab) StartFlannel(name, backend string, ns [2]string) (*Flannel, error) {
	etcd, flanneld := os.Getenv(EtcdEnv), os.Getenv(FlannelEnv)
	if etcd == "" || flanneld == "" {
		return nil, fmt.Errorf("flannel is not built: give -peers, or set %s and %s", FlannelEnv, EtcdEnv)
	}
	f := &Flannel{ns: ns}
	url := fmt.Sprintf("http://%s:2379", byFamily(Both(NodePrefix, 1))[netset.V4])
	dir := filepath.Join(r.Dir, space(name)+"-etcd")
	var err error
	f.etcd, err = r.Start(ns[0], space(name)+"-etcd", nil, etcd, "--data-dir", dir, "--unsafe-no-fsync", "--listen-client-urls", url,
		"--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`{"EnableIPv4":true,"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:10:244::/48","Backend":{"Type":%q}}`, backend)
	if err := Await("etcd", 20*time.Second, f.etcd, func() bool { return InNS(ns[0], func() error { return putEtcd(url, conf) }) == nil }); err != nil {
		return nil, err
	}
	for i, n := range ns {
		if err := f.startDaemon(r, name, i, n, flanneld, url); err != nil {
			return nil, err
		}
	}
	if backend == "vxlan" { // the peers have learned of each other when the route is there
		return f, Await("flannel's routes", 10*time.Second, nil, func() bool {
			out, _ := Program("ip", "-n", ns[0], "route").Output()
			return bytes.Contains(out, []byte("flannel.1"))
		})
	}
	return f, nil
}

func (f *Flannel) startDaemon(r *Lab, name string, i int, ns, flanneld, url string) error {
	env := filepath.Join(r.Dir, fmt.Sprintf("%s-%d.env", space(name), i))
	addr := byFamily(Both(NodePrefix, i+1))
	begin := time.Now()
	var err error
	f.Daemons[i], err = r.Start(ns, fmt.Sprintf("%s-flanneld-%d", space(name), i), nil, flanneld, "-etcd-endpoints", url,
		"-iface", "eth0", "-public-ip", addr[netset.V4].String(), "-public-ipv6", addr[netset.V6].String(), "-subnet-file", env,
		"-ip-masq") // the flags of its own manifest, but for the kube subnet manager
	if err != nil {
		return err
	}
	if err := Await("flannel's lease", 30*time.Second, f.Daemons[i], func() bool {
		raw, err := os.ReadFile(env)
		return err == nil && bytes.Contains(raw, []byte("FLANNEL_MTU"))
	}); err != nil {
		return err
	}
	f.Ready[i] = time.Since(begin)
	raw, err := os.ReadFile(env)
	if err != nil {
		return err
	}
	for _, l := range strings.Split(string(raw), "\n") {
		key, value, _ := strings.Cut(l, "=")
		switch key {
		case "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET":
			p, err := netip.ParsePrefix(value)
			if err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
			f.subnets[i] = append(f.subnets[i], p.Masked())
		case "FLANNEL_MTU":
			_, _ = fmt.Sscan(value, &f.mtu)
		}
	}
	return nil
}

// Stop kills all of it.
func (f *Flannel) Stop() {
	for _, p := range append(slices.Clone(f.Daemons[:]), f.etcd) {
		p.Stop(syscall.SIGKILL)
	}
}

// putEtcd writes flannel's configuration through etcd's JSON gateway, in the calling thread's
// namespace. net/http would dial from another thread, which is in the harness's.
func putEtcd(url, value string) error {
	encode := base64.StdEncoding.EncodeToString
	body := fmt.Sprintf(`{"key":%q,"value":%q}`, encode([]byte("/coreos.com/network/config")), encode([]byte(value)))
	address := strings.TrimPrefix(url, "http://")
	host, port, _ := strings.Cut(address, ":")
	request := fmt.Sprintf("POST /v3/kv/put HTTP/1.0\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", address, len(body), body)
	answer, err := rawExchange(netip.MustParseAddr(host), port, request)
	if err == nil && !strings.Contains(answer, " 200 ") {
		err = fmt.Errorf("etcd: %s", answer)
	}
	return err
}

// rawExchange sends text over a TCP socket of the calling thread and returns what comes until the end.
func rawExchange(host netip.Addr, port, text string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.Timeval{Sec: 2}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: n, Addr: host.As4()}); err != nil {
		return "", err
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return "", err
	}
	var answer []byte
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if n <= 0 {
			return string(answer), err
		}
		answer = append(answer, buf[:n]...)
	}
}

// FlannelArm attaches pods behind flannel as its CNI plugin does: the bridge plugin with the lease's subnet.
func (r *Lab) FlannelArm(name, backend string) (*Arm, error) {
	ns, err := Nodes(name)
	if err != nil {
		return nil, err
	}
	f, err := r.StartFlannel(name, backend, ns)
	if err != nil {
		return nil, err
	}
	a := &Arm{Name: name, About: "flannel " + flannelVersion + " " + backend + ", bridge + host-local", Client: space(name) + ".c", Server: space(name) + ".s"}
	for i, pod := range []string{a.Client, a.Server} {
		if err := Netns(pod); err != nil {
			return nil, err
		}
		p, err := r.DebianPlugin("bridge", fmt.Sprintf("%s-%d", space(name), i), f.subnets[i], f.mtu)
		if err != nil {
			return nil, err
		}
		var result Result
		if err := InNS(ns[i], func() (err error) { result, err = p.Add(fmt.Sprintf("bench%d", i), pod); return }); err != nil {
			return nil, err
		}
		a.Address = result.Addresses()
	}
	return a, nil
}
