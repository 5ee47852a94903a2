/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The last step to a pod of this node, and the step to another node without a tunnel. */
#pragma once
#include "maps.h"
#include "stats.h"
#include "track.h"

/*
 * deliver hands a packet to a local pod: straight into its namespace, or through the host side of its link where the
 * rate is limited, and where a pod is still sending it (on_send): only what has arrived can be redirected to a peer.
 * The IP header follows the Ethernet header.
 */
static __always_inline int deliver(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_local *to,
				   __be16 family, bool on_send)
{
	struct weft_eth *eth = packet_start(skb);
	void *ip = ip_at(skb, sizeof(*eth), family);

	if (!ip)
		return verdict(WEFT_DROP_NOT_IP, TCX_DROP);
	ip_forwarded(skb, ip, family);
	eth->dst = to->mac;
	eth->src = s->gateway;
	eth->proto = family;
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	if (on_send || to->shaped) {
		sign(skb, s);
		return verdict(WEFT_LOCAL, bpf_redirect(to->ifindex, 0));
	}
	return verdict(WEFT_LOCAL, bpf_redirect_peer(to->ifindex, 0));
}

/* to_neighbour sends a packet out of the underlay's device to a node, by its neighbour entry or by the routes. */
static __always_inline int to_neighbour(const struct weft_settings *s, const struct weft_remote *to)
{
	struct bpf_redir_neigh nh = {};

	if (!to->onlink)
		return bpf_redirect_neigh(s->underlay, NULL, 0, 0);
	ip_next_hop(&nh, &to->via);
	return bpf_redirect_neigh(s->underlay, &nh, sizeof(nh), 0);
}

/*
 * list_too_big is too_big for a list of packets. Only the kernel knows their sizes, and compares them with the MTU of a
 * device: where the path is narrower than that, the stack has to look.
 */
static __noinline int list_too_big(struct __sk_buff *skb, __u32 mtu, __u32 dev)
{
	__u32 widest = 0;

	return bpf_check_mtu(skb, dev, &widest, 0, BPF_MTU_CHK_SEGS) || widest > mtu;
}

/*
 * too_big says whether a packet, or the largest that GSO will make of it, exceeds an MTU on its way to a device. What
 * is not TCP counts a UDP header.
 */
static __always_inline bool too_big(struct __sk_buff *skb, const struct weft_packet *p, __u32 mtu, __u32 dev)
{
	__u32 len = skb->len - ETH_LEN;
	__u8 offset;

	if (likely(len <= mtu))
		return false;
	if (!skb->gso_size)
		return true;
	if (skb->gso_size == GSO_BY_FRAGS)
		return list_too_big(skb, mtu, dev);
	len = p->l4 - ETH_LEN + skb->gso_size;
	if (p->proto != IPPROTO_TCP)
		return len + sizeof(struct weft_udp) > mtu;
	if (bpf_skb_load_bytes(skb, p->l4 + 12, &offset, sizeof(offset)))
		return true;
	return len + (offset >> 4) * 4 > mtu;
}
