/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The programs on the VXLAN device. */
#include "lib/deliver.h"
#include "lib/refuse.h"
#include "lib/track.h"
#include "lib/tunnel.h"

/* from_overlay has what the device decapsulated: what from_net left to it, or what came in by another device. */
SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	const struct weft_local *local;
	struct weft_packet p;
	struct weft_addr from;
	__u32 vni;

	if (!s)
		return verdict(WEFT_DROP_SETTINGS, TCX_DROP);
	unsign(skb, s);
	if (!ip_tunnel_source(skb, &from, &vni) || vni != s->vni)
		return verdict(WEFT_DROP_VNI, TCX_DROP);
	if (!bpf_map_lookup_elem(&peers, &from))
		return verdict(WEFT_DROP_PEER, TCX_DROP);
	if (skb->vlan_present || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return verdict(WEFT_DROP_NOT_IP, TCX_DROP);
	local = get_local(&p.dst);
	if (!local) {
		if (unlikely(node_guarded(&s->over)) && !police_node_in(skb, s, &s->over, head(&p)))
			return TCX_NEXT;
		return verdict(WEFT_STACK, TCX_NEXT);
	}
	if (p.ttl <= 1)
		return verdict(WEFT_STACK_TTL, TCX_NEXT);
	if (s->tracked && track_hit(skb, &p))
		return verdict(WEFT_STACK_TRACKED, TCX_NEXT);
	if (unlikely(guarded(local))) {
		struct weft_ask a = {};
		int answer = police_received(skb, s, head(&p), local, &a);

		if (answer != WEFT_ALLOW)
			return refuse(skb, head(&p), &a, answer);
	}
	return deliver(skb, s, local, p.family, false);
}

/* to_overlay has what the stack sends to pods of other nodes, and what from_pod could not encapsulate. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	const struct weft_local *from;
	const struct weft_remote *to;
	struct weft_packet p;
	int code;

	if (!s)
		return verdict(WEFT_DROP_SETTINGS, TCX_DROP);
	if (!ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return verdict(WEFT_DROP_NOT_IP, TCX_DROP);
	to = get_remote(&p.dst);
	if (!to || !to->tunnel)
		return verdict(WEFT_DROP_NO_REMOTE, TCX_DROP);
	if (from_stack(skb, s)) {
		from = get_local(&p.src);
		if (s->policed && !police_forwarded(skb, s, &s->over, head(&p), from, &code))
			return code;
		if (s->tracked && from)
			track_note(skb, &p);
	}
	p.eth->dst = to->mac;
	p.eth->src = s->sender;
	if (tunnel_push(skb, s, to, &p))
		return verdict(WEFT_TUNNEL, to_neighbour(s, to));
	if (!tunnel_key(skb, s, to))
		return verdict(WEFT_DROP_NO_REMOTE, TCX_DROP);
	return verdict(WEFT_TUNNEL_DEVICE, TCX_NEXT);
}
