/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Addresses and headers of IPv4 and IPv6. The one place in C where the family is special: everything
 * else handles struct weft_addr and struct weft_packet and does not ask.
 */
#pragma once
#include "kernel.h"
#include "config.h"

#define ETH_P_IP         0x0800
#define ETH_P_ARP        0x0806
#define ETH_P_IPV6       0x86dd

#define IPPROTO_TCP      6
#define IPPROTO_UDP      17
#define IPPROTO_ICMP     1
#define IPPROTO_ICMPV6   58
#define IPPROTO_SCTP     132

#define NEXTHDR_FRAGMENT 44
#define AF_INET          2
#define AF_INET6         10

/* An address of either family: IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2). Words, so that keys have no holes. */
struct weft_addr {
	__be32 w[4];
};

struct weft_mac {
	__u16 w[3];
};

struct weft_eth {
	struct weft_mac dst;
	struct weft_mac src;
	__be16 proto;
};
#define ETH_LEN ((int)sizeof(struct weft_eth))

struct weft_ipv4 {
	__u8 ihl_version;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__u16 check;
	__be32 src;
	__be32 dst;
};

struct weft_ipv6 {
	__u8 version_tc;
	__u8 tc_flow;
	__be16 flow;
	__be16 len;
	__u8 next;
	__u8 hops;
	struct weft_addr src;
	struct weft_addr dst;
};

struct weft_udp {
	__be16 src;
	__be16 dst;
	__be16 len;
	__u16 check;
};

/* What the programs know of a packet. */
struct weft_header {
	struct weft_addr src;
	struct weft_addr dst;
	__u32 l3;      /* offset of the IP header in the packet */
	__u32 l4;      /* offset of what follows it */
	__be16 family; /* ETH_P_IP or ETH_P_IPV6 in network byte order */
	__u8 proto;    /* of what follows; an IPv6 extension header counts as a protocol */
	__u8 ttl;
	__u8 ecn;
	bool fragment;
};

/*
 * The same with pointers, that die with the next change of the packet's size. Functions that are verified on their
 * own get the header alone: what they are handed, the verifier takes for changed.
 */
struct weft_packet {
	struct weft_header;
	struct weft_eth *eth;
	void *ip;
};

static __always_inline const struct weft_header *head(const struct weft_packet *p)
{
	return (const struct weft_header *)p;
}

static __always_inline bool mac_equal(const struct weft_mac *a, const struct weft_mac *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2];
}

static __always_inline bool addr_equal(const struct weft_addr *a, const struct weft_addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline bool addr_is_mapped(const struct weft_addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_map(struct weft_addr *to, __be32 a)
{
	to->w[0] = 0;
	to->w[1] = 0;
	to->w[2] = bpf_htonl(0xffff);
	to->w[3] = a;
}

/* addr_is_local_business says whether an address means something on one link only: unspecified or link-local. */
static __always_inline bool addr_is_local_business(const struct weft_addr *a)
{
	if (addr_is_mapped(a))
		return !a->w[3] || (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) || !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* addr_index is where arrays of one entry for each family have this packet's. */
static __always_inline __u32 addr_index(const struct weft_addr *a)
{
	return addr_is_mapped(a) ? 0 : 1;
}

/* addr_slot is where an address has its slot: by its low bits, with the families half the table apart. */
static __always_inline __u32 addr_slot(const struct weft_addr *a)
{
	__u32 low = bpf_ntohl(a->w[3]);

	return (addr_is_mapped(a) ? low : low ^ WEFT_SLOTS / 2) & (WEFT_SLOTS - 1);
}

/* readable returns the packet's start if its first len bytes can be read directly, pulling them if need be. */
static __always_inline void *readable(struct __sk_buff *skb, __u32 len)
{
	void *data = packet_start(skb);

	if (likely(data + len <= packet_end(skb)))
		return data;
	if (bpf_skb_pull_data(skb, len))
		return NULL;
	data = packet_start(skb);
	return data + len <= packet_end(skb) ? data : NULL;
}

/*
 * ip_parse reads the IP header at off, behind an Ethernet header of the given protocol.
 * False: it is no IP, the packet is shorter than the header, or an address means something else than it seems to.
 */
static __always_inline bool ip_parse(struct __sk_buff *skb, __be16 proto, __u32 off, struct weft_packet *p)
{
	void *data;

	p->family = proto;
	p->l3 = off;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct weft_ipv4 *ip;

		data = readable(skb, off + sizeof(*ip));
		if (!data)
			return false;
		ip = data + off;
		if ((void *)(ip + 1) > packet_end(skb) || ip->ihl_version >> 4 != 4)
			return false;
		addr_map(&p->src, ip->src);
		addr_map(&p->dst, ip->dst);
		p->l4 = off + (ip->ihl_version & 15) * 4;
		p->proto = ip->proto;
		p->ttl = ip->ttl;
		p->ecn = ip->tos & 3;
		p->fragment = ip->frag & bpf_htons(0x3fff);
		p->ip = ip;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct weft_ipv6 *ip;

		data = readable(skb, off + sizeof(*ip));
		if (!data)
			return false;
		ip = data + off;
		if ((void *)(ip + 1) > packet_end(skb) || ip->version_tc >> 4 != 6)
			return false;
		p->src = ip->src;
		p->dst = ip->dst;
		/* Never on a wire (RFC 4038 §4.2); they would be taken for the IPv4 addresses that they hold. */
		if (addr_is_mapped(&p->src) || addr_is_mapped(&p->dst))
			return false;
		p->l4 = off + sizeof(*ip);
		p->proto = ip->next;
		p->ttl = ip->hops;
		p->ecn = ip->tc_flow >> 4 & 3;
		p->fragment = ip->next == NEXTHDR_FRAGMENT;
		p->ip = ip;
	} else {
		return false;
	}
	p->eth = data;
	return true;
}

/* A part of a datagram. */
struct weft_fragment {
	__u32 id;     /* of the datagram */
	__u32 l4;     /* offset of what follows, which in the first part is the header of the protocol */
	__u16 offset; /* 0 in the first part, in no unit in particular */
	__u8 proto;
};

/* ip_fragment reads which part of a datagram p is, if p->fragment. False: the packet is shorter than its headers. */
static __always_inline bool ip_fragment(struct __sk_buff *skb, const struct weft_header *p, struct weft_fragment *f)
{
	if (p->family == bpf_htons(ETH_P_IP)) {
		__be16 word[2]; /* identification, and flags with the offset */

		if (bpf_skb_load_bytes(skb, p->l3 + __builtin_offsetof(struct weft_ipv4, id), word, sizeof(word)))
			return false;
		f->id = word[0];
		f->offset = word[1] & bpf_htons(0x1fff);
		f->proto = p->proto;
		f->l4 = p->l4;
	} else {
		__be16 word[4]; /* next header and nothing, offset and flags, identification (RFC 8200 §4.5) */

		if (bpf_skb_load_bytes(skb, p->l4, word, sizeof(word)))
			return false;
		f->id = word[2] | (__u32)word[3] << 16;
		f->offset = word[1] & bpf_htons(0xfff8);
		f->proto = bpf_ntohs(word[0]) >> 8;
		f->l4 = p->l4 + sizeof(word);
	}
	return true;
}

/*
 * ip_quoted reads the IP header at off, in an ICMP error about it, without making it readable, which would move the
 * packet. False: it is no IP header, or there are no ports behind it.
 */
static __always_inline bool ip_quoted(struct __sk_buff *skb, __be16 proto, __u32 off, struct weft_header *p)
{
	p->l3 = off;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct weft_ipv4 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.ihl_version >> 4 != 4)
			return false;
		addr_map(&p->src, ip.src);
		addr_map(&p->dst, ip.dst);
		p->l4 = off + (ip.ihl_version & 15) * 4;
		p->proto = ip.proto;
		return !(ip.frag & bpf_htons(0x1fff));
	} else {
		struct weft_ipv6 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.version_tc >> 4 != 6)
			return false;
		p->src = ip.src;
		p->dst = ip.dst;
		p->l4 = off + sizeof(ip);
		p->proto = ip.next;
		return ip.next != NEXTHDR_FRAGMENT;
	}
}

/*
 * ip_forwarded takes one off the TTL, as a router does. A sum over the whole packet (CHECKSUM_COMPLETE) is kept
 * right: in IPv4 the header's checksum makes up for it, in IPv6 the helper must be told.
 */
static __always_inline void ip_forwarded(struct __sk_buff *skb, void *header, __be16 family)
{
	if (family == bpf_htons(ETH_P_IP)) {
		struct weft_ipv4 *ip = header;
		__u32 check = ip->check + (__u32)bpf_htons(0x0100);

		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	} else {
		struct weft_ipv6 *ip = header;

		ip->hops--;
		bpf_csum_update(skb, ~(__u32)bpf_htons(1));
	}
}

/* ip_at returns the IP header of the family at a fixed offset, or NULL where the packet is shorter. */
static __always_inline void *ip_at(struct __sk_buff *skb, __u32 off, __be16 family)
{
	void *ip = packet_start(skb) + off;
	__u32 len = family == bpf_htons(ETH_P_IP) ? sizeof(struct weft_ipv4) : sizeof(struct weft_ipv6);

	return ip + len <= packet_end(skb) ? ip : NULL;
}

static __always_inline __u32 ip_header_len(const struct weft_addr *a)
{
	return addr_is_mapped(a) ? sizeof(struct weft_ipv4) : sizeof(struct weft_ipv6);
}

static __always_inline __be16 addr_proto(const struct weft_addr *a)
{
	return addr_is_mapped(a) ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
}

/* ip_push_flags and ip_pop_flags tell bpf_skb_adjust_room() which family the outer (pushed) or inner (kept) one is. */
static __always_inline __u64 ip_push_flags(const struct weft_addr *outer)
{
	return addr_is_mapped(outer) ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
}

static __always_inline __u64 ip_pop_flags(__be16 outer, __be16 inner)
{
	if (outer == inner)
		return 0; /* so that Linux before 6.3, which has no such flag, agrees */
	return inner == bpf_htons(ETH_P_IP) ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
}

/*
 * ip_write_outer writes an IP header for a UDP datagram at off, whose packet ends at skb->len. Not fragmented
 * on the way: the agents measure the path. False: the packet is shorter than that.
 */
static __always_inline bool ip_write_outer(struct __sk_buff *skb, __u32 off, const struct weft_addr *src,
					   const struct weft_addr *dst, __u8 ecn)
{
	void *header = packet_start(skb) + off, *end = packet_end(skb);

	if (addr_is_mapped(dst)) {
		struct weft_ipv4 *ip = header;
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return false;
		ip->ihl_version = 0x45;
		ip->tos = ecn;
		ip->len = bpf_htons(skb->len - off);
		ip->id = 0;
		ip->frag = bpf_htons(0x4000); /* do not fragment, so the identification means nothing (RFC 6864) */
		ip->ttl = WEFT_OUTER_TTL;
		ip->proto = IPPROTO_UDP;
		ip->src = src->w[3];
		ip->dst = dst->w[3];
		sum = bpf_htons(0x4500 | ecn) + ip->len + ip->frag + bpf_htons(WEFT_OUTER_TTL << 8 | IPPROTO_UDP);
		sum += (ip->src & 0xffff) + (ip->src >> 16) + (ip->dst & 0xffff) + (ip->dst >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = ~(sum + (sum >> 16));
	} else {
		struct weft_ipv6 *ip = header;

		if ((void *)(ip + 1) > end)
			return false;
		ip->version_tc = 0x60;
		ip->tc_flow = ecn << 4;
		ip->flow = 0;
		ip->len = bpf_htons(skb->len - off - sizeof(*ip));
		ip->next = IPPROTO_UDP;
		ip->hops = WEFT_OUTER_TTL;
		ip->src = *src;
		ip->dst = *dst;
	}
	return true;
}

/* ip_next_hop makes the parameters of bpf_redirect_neigh() for a next hop. */
static __always_inline void ip_next_hop(struct bpf_redir_neigh *nh, const struct weft_addr *via)
{
	if (addr_is_mapped(via)) {
		nh->nh_family = AF_INET;
		nh->nh[0] = via->w[3];
		return;
	}
	nh->nh_family = AF_INET6;
	__builtin_memcpy(nh->nh, via, sizeof(*via));
}

/* ip_fib_ends fills in family and addresses of a question to the host's routes. */
static __always_inline void ip_fib_ends(struct bpf_fib_lookup *fib, const struct weft_addr *src,
					const struct weft_addr *dst)
{
	if (addr_is_mapped(dst)) {
		fib->family = AF_INET;
		fib->src[0] = src->w[3];
		fib->dst[0] = dst->w[3];
		return;
	}
	fib->family = AF_INET6;
	__builtin_memcpy(fib->src, src, sizeof(*src));
	__builtin_memcpy(fib->dst, dst, sizeof(*dst));
}

/* ip_tunnel_ends fills both ends of a tunnel key and returns the flag of the family. */
static __always_inline __u64 ip_tunnel_ends(struct bpf_tunnel_key *key, const struct weft_addr *local,
					    const struct weft_addr *remote)
{
	if (addr_is_mapped(remote)) {
		key->remote[0] = bpf_ntohl(remote->w[3]);
		key->local[0] = bpf_ntohl(local->w[3]);
		return 0;
	}
	__builtin_memcpy(key->remote, remote, sizeof(*remote));
	__builtin_memcpy(key->local, local, sizeof(*local));
	return BPF_F_TUNINFO_IPV6;
}

/* ip_tunnel_source reads where a packet that the VXLAN device decapsulated came from, and its identifier. */
static __always_inline bool ip_tunnel_source(struct __sk_buff *skb, struct weft_addr *from, __u32 *vni)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_map(from, bpf_htonl(key.remote[0]));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(from, key.remote, sizeof(*from));
	} else {
		return false;
	}
	*vni = key.tunnel_id;
	return true;
}

/* ip_lookup_ends fills in the addresses of a packet that a socket is looked up for. */
static __always_inline void ip_lookup_ends(const struct bpf_sk_lookup *ctx, struct weft_addr *remote,
					   struct weft_addr *local)
{
	if (ctx->family == AF_INET) {
		addr_map(remote, lookup_word(ctx, remote_ip4));
		addr_map(local, lookup_word(ctx, local_ip4));
		return;
	}
	remote->w[0] = lookup_word(ctx, remote_ip6[0]);
	remote->w[1] = lookup_word(ctx, remote_ip6[1]);
	remote->w[2] = lookup_word(ctx, remote_ip6[2]);
	remote->w[3] = lookup_word(ctx, remote_ip6[3]);
	local->w[0] = lookup_word(ctx, local_ip6[0]);
	local->w[1] = lookup_word(ctx, local_ip6[1]);
	local->w[2] = lookup_word(ctx, local_ip6[2]);
	local->w[3] = lookup_word(ctx, local_ip6[3]);
}
