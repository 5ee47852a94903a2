package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"weft/internal/netset"
)

func (c *Cluster) pki(file string) string { return c.path("pki", file) }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte // the certificate
}

// makeCertificates writes all keys, certificates and kubeconfigs, unless they are there.
func (c *Cluster) makeCertificates() error {
	done := c.pki("done")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := os.MkdirAll(c.pki(""), 0o700); err != nil {
		return err
	}
	root, err := c.newAuthority("ca")
	if err != nil {
		return err
	}
	front, err := c.newAuthority("front-ca")
	if err != nil {
		return err
	}
	if err := c.makeServiceAccountKey(); err != nil {
		return err
	}
	server := pkix.Name{CommonName: "kube-apiserver"}
	if _, _, err := c.issue(root, "apiserver", server, c.apiServerNames()); err != nil {
		return err
	}
	client := pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}
	if _, _, err := c.issue(root, "apiserver-kubelet", client, nil); err != nil {
		return err
	}
	if _, _, err := c.issue(front, "front-proxy", pkix.Name{CommonName: "front-proxy-client"}, nil); err != nil {
		return err
	}
	users := map[string]pkix.Name{
		"admin":              {CommonName: "admin", Organization: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":         {CommonName: "system:kube-proxy"},
	}
	for _, n := range c.NodeNames() {
		users["kubelet-"+n] = pkix.Name{CommonName: "system:node:" + n, Organization: []string{"system:nodes"}}
	}
	for file, name := range users {
		crt, key, err := c.issue(root, file, name, nil)
		if err != nil {
			return err
		}
		if err := writeKubeconfig(c.kubeconfigOf(file), c.apiServer(), root.pem, crt, key); err != nil {
			return err
		}
		if file == "admin" {
			local := fmt.Sprintf("https://127.0.0.1:%d", c.Port)
			if err := writeKubeconfig(c.Kubeconfig(), local, root.pem, crt, key); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(done, nil, 0o600)
}

// kubeconfigOf is a component's kubeconfig, for use on the cluster's hosts.
func (c *Cluster) kubeconfigOf(user string) string { return c.pki(user + ".kubeconfig") }

// apiServerNames are all names and addresses under which clients reach the API server.
func (c *Cluster) apiServerNames() []string {
	names := []string{
		"localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local",
	}
	for _, f := range netset.Families() {
		for _, a := range []netip.Addr{Address(ControlPlane, f), netset.Nth(prefix(services, f), 1)} {
			names = append(names, a.String())
		}
	}
	return names
}

func (c *Cluster) newAuthority(name string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	t := certificate(pkix.Name{CommonName: name})
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, err
	}
	crt, _, err := c.write(name, der, key)
	return authority{cert, key, crt}, err
}

// issue writes <file>.crt and <file>.key and returns both in PEM.
func (c *Cluster) issue(by authority, file string, subject pkix.Name, sans []string) (crt, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := certificate(subject)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, s := range sans {
		if a := net.ParseIP(s); a != nil {
			t.IPAddresses = append(t.IPAddresses, a)
		} else {
			t.DNSNames = append(t.DNSNames, s)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, k.Public(), by.key)
	if err != nil {
		return nil, nil, err
	}
	return c.write(file, der, k)
}

func certificate(subject pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: subject, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
	}
}

func (c *Cluster) write(file string, der []byte, k *ecdsa.PrivateKey) (crt, key []byte, err error) {
	kd, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	crt = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kd})
	if err := os.WriteFile(c.pki(file+".crt"), crt, 0o644); err != nil {
		return nil, nil, err
	}
	return crt, key, os.WriteFile(c.pki(file+".key"), key, 0o600)
}

// makeServiceAccountKey writes the key pair that signs service accounts' tokens.
func (c *Cluster) makeServiceAccountKey() error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.pki("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.pki("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644)
}

func writeKubeconfig(path, server string, ca, crt, key []byte) error {
	type object = map[string]any
	b, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "weft",
		"contexts": []object{{"name": "weft", "context": object{"cluster": "weft", "user": "weft"}}},
		"clusters": []object{{"name": "weft", "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"users":    []object{{"name": "weft", "user": object{"client-certificate-data": crt, "client-key-data": key}}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
