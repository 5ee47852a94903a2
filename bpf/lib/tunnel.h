/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * VXLAN (RFC 7348) without a tunnel device: the header is pushed and popped in place. What that cannot do is left
 * to the VXLAN device: UDP GSO (a decapsulated superpacket keeps its tunnel type, and a socket cannot cut it), packets
 * that were encapsulated before (-EALREADY), outer IP options, and the merging of congestion marks (RFC 6040).
 */
#pragma once
#include "maps.h"
#include "stats.h"

struct weft_vxlan {
	__be32 flags;
	__be32 vni; /* in the upper 24 bits */
};
#define VXLAN_VNI_VALID 0x08000000

/* What is pushed between the outer IP header and the inner one. */
struct weft_tunnel {
	struct weft_udp udp;
	struct weft_vxlan vxlan;
	struct weft_eth eth;
} __packed;

/* gso_needs_device says whether a superpacket has to be cut by the tunnel device. */
static __always_inline bool gso_needs_device(struct __sk_buff *skb, __u8 proto)
{
	return skb->gso_size && proto != IPPROTO_TCP;
}

/*
 * tunnel_push puts a packet into VXLAN and routes it to the node. False: nothing was done, the device must do it.
 * p's pointers are invalid afterwards.
 */
static __always_inline bool tunnel_push(struct __sk_buff *skb, const struct weft_settings *s,
					const struct weft_remote *to, const struct weft_packet *p)
{
	const struct weft_addr *own = &s->own[addr_index(&to->via)];
	__u32 iplen = ip_header_len(&to->via);
	__u32 hash = bpf_get_hash_recalc(skb);
	struct weft_tunnel *t;
	struct weft_eth *eth;

	if (gso_needs_device(skb, p->proto))
		return false;
	if (bpf_skb_adjust_room(skb, iplen + sizeof(*t), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
					BPF_F_ADJ_ROOM_ENCAP_L2(ETH_LEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
					ip_push_flags(&to->via)))
		return false;
	if (!ip_write_outer(skb, ETH_LEN, own, &to->via, p->ecn))
		return false;
	eth = packet_start(skb);
	t = (void *)(eth + 1) + iplen;
	if ((void *)(t + 1) > packet_end(skb))
		return false;
	t->udp.src = bpf_htons(WEFT_SPORT_BASE | ((hash ^ hash >> 16) & ~WEFT_SPORT_BASE));
	t->udp.dst = s->port;
	t->udp.len = bpf_htons(skb->len - ETH_LEN - iplen);
	t->udp.check = 0; /* the inner packet has its own (RFC 6935) */
	t->vxlan.flags = bpf_htonl(VXLAN_VNI_VALID);
	t->vxlan.vni = bpf_htonl(s->vni << 8);
	t->eth.dst = to->mac;
	t->eth.src = s->sender;
	t->eth.proto = p->family;
	eth->proto = addr_proto(&to->via);
	return true;
}

/* tunnel_key tells the VXLAN device what it shall push. */
static __always_inline bool tunnel_key(struct __sk_buff *skb, const struct weft_settings *s,
				       const struct weft_remote *to)
{
	struct bpf_tunnel_key key = {.tunnel_id = s->vni, .tunnel_ttl = WEFT_OUTER_TTL};
	__u64 flags = ip_tunnel_ends(&key, &s->own[addr_index(&to->via)], &to->via);

	return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags | BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
}

enum weft_inner {
	INNER_NONE,   /* not VXLAN for us */
	INNER_DEVICE, /* VXLAN from a node, but for the device */
	INNER_IP,     /* VXLAN from a node, parsed */
	INNER_DROP,   /* VXLAN that nobody may send us; counted */
};

/*
 * tunnel_peek looks through a VXLAN header without changing the packet. p has been parsed and is a UDP datagram; where
 * the result is INNER_IP, it is the inner packet then, and where it is INNER_NONE as it was.
 */
static __always_inline enum weft_inner tunnel_peek(struct __sk_buff *skb, const struct weft_settings *s,
						   struct weft_packet *p)
{
	__u32 iplen = ip_header_len(&p->dst);
	struct weft_tunnel *t;
	void *data;

	if (!s->overlay || p->fragment) /* without tunnels of ours, VXLAN is somebody else's */
		return INNER_NONE;
	if (!addr_equal(&p->dst, &s->own[addr_index(&p->dst)]))
		return INNER_NONE;
	if (p->l4 != ETH_LEN + iplen)
		return INNER_NONE;
	data = readable(skb, ETH_LEN + iplen + sizeof(*t));
	if (!data)
		return INNER_NONE;
	t = data + ETH_LEN + iplen;
	if ((void *)(t + 1) > packet_end(skb))
		return INNER_NONE;
	if (t->udp.dst != s->port)
		return INNER_NONE;
	if (t->vxlan.flags != bpf_htonl(VXLAN_VNI_VALID) || t->vxlan.vni != bpf_htonl(s->vni << 8)) {
		count(WEFT_DROP_VNI);
		return INNER_DROP;
	}
	if (!bpf_map_lookup_elem(&peers, &p->src)) {
		count(WEFT_DROP_PEER);
		return INNER_DROP;
	}
	if (p->ecn == 3 || !ip_parse(skb, t->eth.proto, ETH_LEN + iplen + sizeof(*t), p))
		return INNER_DEVICE;
	return gso_needs_device(skb, p->proto) ? INNER_DEVICE : INNER_IP;
}

/* tunnel_pop removes the outer headers that tunnel_peek has seen. False: nothing was done. */
static __always_inline bool tunnel_pop(struct __sk_buff *skb, __be16 outer, __be16 inner)
{
	int iplen = outer == bpf_htons(ETH_P_IP) ? sizeof(struct weft_ipv4) : sizeof(struct weft_ipv6);

	if (bpf_skb_adjust_room(skb, -(iplen + (int)sizeof(struct weft_tunnel)), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | ip_pop_flags(outer, inner)))
		return false;
	/* The outer datagram was the first checksum that the device verified; the inner one is next. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return true;
}
