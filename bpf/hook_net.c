/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The programs on the underlay's device. */
#include "lib/deliver.h"
#include "lib/refuse.h"
#include "lib/track.h"
#include "lib/tunnel.h"

/* receive_tunnelled delivers what tunnel_peek has parsed, or leaves the packet as it is to the VXLAN device. */
static __always_inline int receive_tunnelled(struct __sk_buff *skb, const struct weft_settings *s, __be16 outer,
					     const struct weft_packet *inner)
{
	const struct weft_local *local = get_local(&inner->dst);

	if (!local || inner->ttl <= 1 || (local->shaped && skb->gso_size))
		return TCX_NEXT; /* a queue may have to cut it, which needs the device's decapsulation */
	if (s->tracked && track_hit(skb, inner))
		return TCX_NEXT;
	if (unlikely(guarded(local))) {
		struct weft_ask a = {};
		int answer = police_received(skb, s, head(inner), local, &a);

		if (answer ==
		    WEFT_DENY_LOUD) /* from_overlay decides again: the stack can answer what is in no tunnel */
			return TCX_NEXT;
		if (answer != WEFT_ALLOW)
			return refuse(skb, head(inner), &a, answer);
	}
	if (!tunnel_pop(skb, outer, inner->family))
		return TCX_NEXT;
	return deliver(skb, s, local, inner->family, false);
}

/* from_net has what arrives from other nodes and from the outside. */
SEC("tc")
int from_net(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	const struct weft_guard *own;
	const struct weft_local *local;
	struct weft_packet p;
	__be16 outer;

	/* On a device that hears frames for others (promiscuous, flooded), those are not ours to deliver. */
	if (!s)
		return TCX_NEXT;
	unsign(skb, s);
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TCX_NEXT;
	if (!ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return TCX_NEXT;
	if (p.proto == IPPROTO_UDP) {
		outer = p.family;
		switch (tunnel_peek(skb, s, &p)) {
		case INNER_IP:
			return receive_tunnelled(skb, s, outer, &p);
		case INNER_DEVICE:
			return TCX_NEXT;
		case INNER_DROP:
			return TCX_DROP;
		case INNER_NONE:
			break;
		}
	}
	local = get_local(&p.dst);
	if (!local) {
		own = node_guard(skb, s);
		if (unlikely(node_guarded(own)))
			police_node_in(skb, s, own, head(&p));
		return TCX_NEXT;
	}
	if (p.ttl <= 1)
		return verdict(WEFT_STACK_TTL, TCX_NEXT);
	if (s->tracked && track_hit(skb, &p))
		return verdict(WEFT_STACK_TRACKED, TCX_NEXT);
	/* Replies to anybody else than a pod or a node pass the stack. It has to see both directions: of half a
	 * connection it makes a new one, and masquerades that. */
	if (!get_remote(&p.src))
		return verdict(WEFT_STACK, TCX_NEXT);
	if (unlikely(guarded(local))) {
		struct weft_ask a = {};
		int answer = police_received(skb, s, head(&p), local, &a);

		if (answer != WEFT_ALLOW)
			return refuse(skb, head(&p), &a, answer);
	}
	return deliver(skb, s, local, p.family, false);
}

/* to_net has what the stack sends into the underlay. A local pod's flow that comes this way was not redirected. */
SEC("tc")
int to_net(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	const struct weft_local *from;
	struct weft_packet p;
	int code;

	if (!s || !from_stack(skb, s) || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return TCX_NEXT;
	from = get_local(&p.src);
	if (s->policed && !police_forwarded(skb, s, node_guard(skb, s), head(&p), from, &code))
		return code;
	if (s->tracked && from)
		track_note(skb, &p);
	return TCX_NEXT;
}
