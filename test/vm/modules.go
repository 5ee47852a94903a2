package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that a node may need; those that a kernel has built in or lacks are
// skipped. All are loaded at boot, as the machine has no modprobe.
func wanted() []string {
	return strings.Fields(`
		veth dummy bridge 8021q vxlan geneve wireguard ip_gre ip6_gre ipip sit ip6_tunnel ipvlan macvlan vrf netkit
		sch_ingress sch_tbf sch_fq sch_fq_codel sch_netem sch_prio cls_bpf cls_u32 cls_matchall act_bpf act_mirred act_gact act_tunnel_key
		nf_tables nfnetlink nf_conntrack nf_conntrack_netlink nf_nat nft_ct nft_nat nft_masq nft_redir nft_chain_nat nft_fib
		nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet nft_reject nft_reject_inet nft_reject_ipv4 nft_reject_ipv6 nft_limit nft_log nft_numgen
		nft_hash nft_socket nft_tproxy nft_objref nft_quota nft_connlimit nft_compat nft_meta_bridge nf_tables_set
		ip_tables ip6_tables iptable_nat iptable_filter ip6table_nat ip6table_filter xt_MASQUERADE xt_comment xt_mark xt_conntrack xt_nat
		crc32c_generic hmac md5 sha1_generic sha256_generic sctp sctp_diag inet_diag tcp_diag udp_diag openvswitch xfrm_user esp4 esp6 overlay af_packet`)
}

// module is one file of the kernel's module directory.
type module struct {
	name  string
	image []byte
	needs []string
}

// moduleName is the kernel's name for a file: no directory, no endings, no dashes.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// modules returns the wanted modules and what they need, each after what it needs.
func modules(ctx context.Context, dir string) ([]module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path := files[name]
		if path == "" || seen[name] {
			return nil
		}
		seen[name] = true
		image, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		needs, err := dependencies(image)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		out = append(out, module{name, unsigned(image), needs})
		return nil
	}
	for _, name := range wanted() {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// unsigned cuts off the signature that Debian appends: to verify it takes longer than all else
// at boot. A module without one is loaded as well, and taints this kernel that lives for minutes.
func unsigned(image []byte) []byte {
	const magic, trailer = "~Module signature appended~\n", 12
	body, signed := bytes.CutSuffix(image, []byte(magic))
	if !signed || len(body) < trailer {
		return image
	}
	// struct module_signature (include/linux/module_signature.h) ends with the signature's length.
	length := int(binary.BigEndian.Uint32(body[len(body)-4:]))
	if length > len(body)-trailer {
		return image
	}
	return body[:len(body)-trailer-length]
}

// dependencies reads the names in a module's "depends=" (and soft "pre:") lines.
func dependencies(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(line, "depends="); ok && v != "" {
			out = append(out, strings.Split(v, ",")...)
		}
		if v, ok := strings.CutPrefix(line, "softdep=pre: "); ok {
			out = append(out, strings.Fields(v)...)
		}
	}
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], "-", "_")
	}
	return slices.Compact(out), nil
}
