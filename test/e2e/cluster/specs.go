package cluster

import (
	"crypto/rand"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"

	"weft/internal/host"
	"weft/internal/netset"
)

//go:embed manifests
var manifests embed.FS

// render fills a file of manifests/ with the cluster's values.
func (c *Cluster) render(file string, extra map[string]any) (string, error) {
	t, err := template.New(file).ParseFS(manifests, "manifests/"+file)
	if err != nil {
		return "", err
	}
	var dns, families []string
	for _, f := range c.Families {
		dns = append(dns, dnsService(f).String())
		families = append(families, fmt.Sprintf("IPv%d", f))
	}
	values := map[string]any{
		"Bin": c.Bin, "PKI": c.pki(""), "PauseImage": pauseImage, "CoreDNSImage": coreDNSImage,
		"DNS": dns, "IPFamilies": families, "Pods": c.prefixes(pods), "Proxy": c.KubeProxy,
		"World": Address(World, c.Families[0]), "API": Address(ControlPlane, c.Families[0]), "APIPort": apiPort,
		"Outside": []any{Outside(netset.V4), Outside(netset.V6)},
	}
	for k, v := range extra {
		values[k] = v
	}
	var out strings.Builder
	if err := t.ExecuteTemplate(&out, file, values); err != nil {
		return "", fmt.Errorf("render %s: %w", file, err)
	}
	return out.String(), nil
}

// forwarding is what a machine that routes has set; everything else is weft's business.
func forwarding() map[string]string {
	return map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/default/forwarding": "1",
		"net/ipv6/conf/all/disable_ipv6": "0", "net/ipv6/conf/default/disable_ipv6": "0",
	}
}

func (c *Cluster) worldSpec() (host.Spec, error) {
	corefile, err := c.render("world.corefile", nil)
	return host.Spec{
		Name: World, Cgroup: c.cgroup(World), Sysctls: forwarding(), Volatile: []string{"/run"},
		Files: map[string]string{"/run/Corefile": corefile},
		Processes: []host.Process{
			{Name: "http", Args: []string{c.program("agnhost"), "netexec", "--http-port=80", "--udp-port=80"}},
			{Name: "dns", Args: []string{c.program("coredns"), "-conf", "/run/Corefile", "-quiet"}},
		},
	}, err
}

func (c *Cluster) controlPlaneSpec() host.Spec {
	first := Address(ControlPlane, c.Families[0]).String()
	return host.Spec{
		Name: ControlPlane, Cgroup: c.cgroup(ControlPlane), Sysctls: forwarding(),
		Processes: []host.Process{
			{Name: "etcd", Args: []string{
				c.program("etcd"), "--data-dir=" + c.path(ControlPlane, "etcd"), "--unsafe-no-fsync",
				"--listen-peer-urls=http://127.0.0.1:2380", "--quota-backend-bytes=4294967296", "--log-level=warn",
			}},
			{Name: "kube-apiserver", WaitFor: c.path(ControlPlane, "etcd"), Args: []string{
				c.program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
				"--bind-address=::", "--advertise-address=" + first, fmt.Sprintf("--secure-port=%d", apiPort),
				"--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
				"--client-ca-file=" + c.pki("ca.crt"),
				"--kubelet-client-certificate=" + c.pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + c.pki("apiserver-kubelet.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + c.pki("sa.pub"), "--service-account-signing-key-file=" + c.pki("sa.key"),
				"--service-cluster-ip-range=" + c.prefixes(services),
				"--requestheader-client-ca-file=" + c.pki("front-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
				"--requestheader-username-headers=X-Remote-User",
				"--proxy-client-cert-file=" + c.pki("front-proxy.crt"), "--proxy-client-key-file=" + c.pki("front-proxy.key"),
				"--enable-aggregator-routing=true", // nothing routes service addresses on this host
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
				"--profiling=false", "--v=1",
			}},
			{Name: "kube-controller-manager", Args: []string{
				c.program("kube-controller-manager"), "--kubeconfig=" + c.kubeconfigOf("controller-manager"), "--leader-elect=false",
				"--allocate-node-cidrs=true", "--cluster-cidr=" + c.prefixes(pods), c.nodeMask(),
				"--service-cluster-ip-range=" + c.prefixes(services), "--use-service-account-credentials=true",
				"--service-account-private-key-file=" + c.pki("sa.key"), "--root-ca-file=" + c.pki("ca.crt"),
				"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"), "--v=1",
			}},
			{Name: "kube-scheduler", Args: []string{
				c.program("kube-scheduler"), "--kubeconfig=" + c.kubeconfigOf("scheduler"), "--leader-elect=false", "--v=1",
			}},
		},
	}
}

// nodeMask gives each node more IPv4 addresses than the pods of one that is filled in a burst.
func (c *Cluster) nodeMask() string {
	if len(c.Families) > 1 {
		return "--node-cidr-mask-size-ipv4=22"
	}
	if c.Families[0] == netset.V4 {
		return "--node-cidr-mask-size=22"
	}
	return "--node-cidr-mask-size=64"
}

func (c *Cluster) nodeSpec(name string) (host.Spec, error) {
	s := host.Spec{
		Name: name, System: true, Cgroup: c.cgroup(name), Sysctls: forwarding(),
		Private: []string{"/var/lib", "/var/log", "/opt"}, Volatile: []string{"/run"}, Overlay: []string{"/etc"},
		Masks: map[string]string{"/proc/sys/kernel/random/boot_id": bootID()},
		Env:   []string{"PATH=" + c.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	// The kubelet insists on machine-wide sysctls. It finds the values it wants, and changes no machine.
	for k, v := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		s.Masks["/proc/sys/"+k] = v + "\n"
	}
	s.Files = map[string]string{
		"/etc/hosts":                      "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/kubernetes/manifests/.keep": "", // the directory of static pods
		"/etc/resolv.conf":                fmt.Sprintf("nameserver %s\n", Address(World, c.Families[0])),
	}
	for file, path := range map[string]string{
		"containerd.toml": "/etc/containerd/config.toml", "kubelet.yaml": "/etc/kubelet.yaml", "kube-proxy.yaml": "/etc/kube-proxy.yaml",
	} {
		content, err := c.render(file, map[string]any{"Node": name})
		if err != nil {
			return s, err
		}
		s.Files[path] = content
	}
	s.Processes = []host.Process{
		{Name: "containerd", Args: []string{c.program("containerd"), "--log-level=warn"}},
		{Name: "images", Once: true, WaitFor: containerdSocket, Args: importCommand(c, c.archive("images"), ToolboxImage)},
		{Name: "kubelet", Args: []string{
			c.program("kubelet"), "--config=/etc/kubelet.yaml", "--kubeconfig=" + c.kubeconfigOf("kubelet-"+name),
			"--hostname-override=" + name, "--node-ip=" + c.addresses(name), "--root-dir=/var/lib/kubelet",
			"--cert-dir=/var/lib/kubelet/pki", "--v=1",
		}},
	}
	if c.KubeProxy != "" {
		s.Processes = append(s.Processes, host.Process{
			Name: "kube-proxy", Args: []string{c.program("kube-proxy"), "--config=/etc/kube-proxy.yaml", "--v=1"},
		})
	}
	return s, nil
}

const containerdSocket = "/run/containerd/containerd.sock"

// importCommand imports an OCI archive on a node that has not got the image name from it yet. The socket may be
// there a moment before its server.
func importCommand(c *Cluster, archive, name string) []string {
	ctr := c.program("ctr") + " -n k8s.io images "
	return []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do " +
		ctr + "list -q | grep -qxF " + name + " && exit 0; " +
		ctr + "import --local --all-platforms " + archive + " && exit 0; sleep 0.2; done; exit 1"}
}

// bootID is a new boot's id: a node that was started again has been rebooted.
func bootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// arch is the architecture of the images: this machine's.
func arch() string { return runtime.GOARCH }

// moduleRoot is the directory of weft's source tree, which the working directory is in.
func moduleRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "deploy", "chart", "weft", "Chart.yaml")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s is not in weft's source tree", wd)
}
