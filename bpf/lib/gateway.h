/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Neighbour discovery of pods. Pods have permanent entries for their gateways and do not ask; where somebody removed
 * them, the question is answered here, so that nothing is ever flooded. The gateways are 169.254.1.1 and fe80::1.
 */
#pragma once
#include "maps.h"
#include "stats.h"

#define GATEWAY_IPV4    0xa9fe0101
#define ARP_REQUEST     1
#define ARP_REPLY       2
#define ICMPV6_SOLICIT  135
#define ICMPV6_ADVERT   136
#define ND_LINK_SOURCE  1
#define ND_LINK_TARGET  2
#define ND_ADVERT_FLAGS 0xe0000000 /* router, solicited, override (RFC 4861 §4.4) */

struct weft_arp {
	__be16 hardware;
	__be16 proto;
	__u8 hardware_len;
	__u8 proto_len;
	__be16 op;
	struct weft_mac sender_mac;
	__be16 sender[2];
	struct weft_mac target_mac;
	__be16 target[2];
} __packed;

struct weft_nd {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 flags;
	struct weft_addr target;
	__u8 option;
	__u8 option_len; /* in 8 bytes */
	struct weft_mac mac;
};

static __always_inline int answered(struct __sk_buff *skb)
{
	return verdict(WEFT_GATEWAY, bpf_redirect(skb->ifindex, 0));
}

/* gateway_arp answers who has 169.254.1.1. */
static __noinline int gateway_arp(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	struct weft_eth *eth = readable(skb, sizeof(*eth) + sizeof(struct weft_arp));
	struct weft_arp *arp = (void *)(eth + 1);

	if (!s || !eth)
		return verdict(WEFT_DROP_LINK_LOCAL, TCX_DROP);
	if (arp->op != bpf_htons(ARP_REQUEST) || arp->target[0] != bpf_htons(GATEWAY_IPV4 >> 16) ||
	    arp->target[1] != bpf_htons(GATEWAY_IPV4 & 0xffff))
		return verdict(WEFT_DROP_LINK_LOCAL, TCX_DROP);
	eth->dst = eth->src;
	eth->src = s->gateway;
	arp->op = bpf_htons(ARP_REPLY);
	arp->target_mac = arp->sender_mac;
	arp->target[0] = arp->sender[0];
	arp->target[1] = arp->sender[1];
	arp->sender_mac = s->gateway;
	arp->sender[0] = bpf_htons(GATEWAY_IPV4 >> 16);
	arp->sender[1] = bpf_htons(GATEWAY_IPV4 & 0xffff);
	return answered(skb);
}

/* addr_is_gateway recognises fe80::1. */
static __always_inline bool addr_is_gateway(const struct weft_addr *a)
{
	return a->w[0] == bpf_htonl(0xfe800000) && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

/* gateway_nd answers a solicitation for fe80::1 and drops all else that a pod sends from link-local addresses. */
static __noinline int gateway_nd(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	struct weft_eth *eth = readable(skb, sizeof(*eth) + sizeof(struct weft_ipv6) + sizeof(struct weft_nd));
	struct weft_ipv6 *ip = (void *)(eth + 1);
	struct weft_nd *nd = (void *)(ip + 1);
	__u32 sum;

	if (!s || !eth)
		return verdict(WEFT_DROP_LINK_LOCAL, TCX_DROP);
	if (eth->proto != bpf_htons(ETH_P_IPV6) || ip->next != IPPROTO_ICMPV6 || ip->len != bpf_htons(sizeof(*nd)) ||
	    nd->type != ICMPV6_SOLICIT || nd->option != ND_LINK_SOURCE || !addr_is_gateway(&nd->target))
		return verdict(WEFT_DROP_LINK_LOCAL, TCX_DROP);
	eth->dst = eth->src;
	eth->src = s->gateway;
	ip->dst = ip->src;
	ip->src = nd->target;
	ip->hops = 255;
	nd->type = ICMPV6_ADVERT;
	nd->flags = bpf_htonl(ND_ADVERT_FLAGS);
	nd->option = ND_LINK_TARGET;
	nd->mac = s->gateway;
	nd->check = 0;
	/* The pseudo-header is both addresses, the length and the protocol (RFC 8200 §8.1). */
	sum = bpf_csum_diff(NULL, 0, (void *)&ip->src, 2 * sizeof(ip->src), (__u32)bpf_htonl(sizeof(*nd)));
	sum = bpf_csum_diff(NULL, 0, (void *)nd, sizeof(*nd), sum);
	sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(IPPROTO_ICMPV6);
	sum = (sum & 0xffff) + (sum >> 16);
	nd->check = ~(sum + (sum >> 16));
	return answered(skb);
}
