/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The programs on the host side of a pod's link. */
#include "lib/deliver.h"
#include "lib/gateway.h"
#include "lib/track.h"
#include "lib/tunnel.h"

/* unknown_source: a pod sent something else than IP from an address of its own. */
static __noinline int unknown_source(struct __sk_buff *skb)
{
	struct weft_packet p;

	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return gateway_arp(skb);
	if (skb->vlan_present || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return verdict(WEFT_DROP_NOT_IP, TCX_DROP);
	if (addr_is_local_business(&p.src))
		return gateway_nd(skb);
	return verdict(WEFT_DROP_SPOOF, TCX_DROP);
}

/* send_remote sends a pod's packet to another node. */
static __always_inline int send_remote(struct __sk_buff *skb, const struct weft_settings *s,
				       const struct weft_remote *to, const struct weft_packet *p)
{
	if (too_big(skb, p, to->mtu, to->tunnel ? s->overlay : s->underlay))
		return verdict(WEFT_STACK_MTU, TCX_NEXT);
	ip_forwarded(skb, p->ip, p->family);
	if (!to->tunnel) {
		track_sign(skb, s);
		return verdict(WEFT_DIRECT, to_neighbour(s, to));
	}
	if (tunnel_push(skb, s, to, p))
		return verdict(WEFT_TUNNEL, to_neighbour(s, to));
	track_sign(skb, s);
	return bpf_redirect(s->overlay, 0); /* to_overlay tells the device where to, and counts */
}

/* from_pod has what a pod sends. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	const struct weft_remote *remote;
	const struct weft_local *local;
	struct weft_packet p;

	if (!s)
		return verdict(WEFT_DROP_SETTINGS, TCX_DROP);
	if (skb->vlan_present || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return unknown_source(skb);
	local = get_local(&p.src);
	if (!local || local->ifindex != skb->ifindex || !mac_equal(&local->mac, &p.eth->src))
		return unknown_source(skb);
	if (s->tracked && track_hit(skb, &p))
		return verdict(WEFT_STACK_TRACKED, TCX_NEXT);
	local = get_local(&p.dst);
	if (local)
		return p.ttl > 1 ? deliver(skb, s, local, p.family) : verdict(WEFT_STACK_TTL, TCX_NEXT);
	remote = get_remote(&p.dst);
	if (remote)
		return p.ttl > 1 ? send_remote(skb, s, remote, &p) : verdict(WEFT_STACK_TTL, TCX_NEXT);
	return verdict(WEFT_STACK, TCX_NEXT);
}

/* to_pod has what the stack delivers to a pod, and what from_* redirect through its queue. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	struct weft_packet p;

	if (!s || !track_wanted(skb, s) || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return TCX_NEXT;
	/* A reply to anybody else than a pod or a node passes the stack anyway. */
	if (get_local(&p.src) || get_remote(&p.src))
		track_note(skb, &p);
	return TCX_NEXT;
}
