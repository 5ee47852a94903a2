/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The programs of a pod's link: on its host side, or where a netkit pair has them. */
#include "lib/deliver.h"
#include "lib/gateway.h"
#include "lib/refuse.h"
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
		sign(skb, s);
		return verdict(WEFT_DIRECT, to_neighbour(s, to));
	}
	if (tunnel_push(skb, s, to, p))
		return verdict(WEFT_TUNNEL, to_neighbour(s, to));
	sign(skb, s);
	return bpf_redirect(s->overlay, 0); /* to_overlay tells the device where to, and counts */
}

/*
 * police_sent asks about what a pod sends, to is the receiver if he is a pod of this node. True: it goes on as ever;
 * else code is what the program returns.
 */
static __always_inline bool police_sent(struct __sk_buff *skb, const struct weft_settings *s,
					const struct weft_header *p, const struct weft_local *from,
					const struct weft_local *to, int *code)
{
	struct weft_ask a = {.place = AT_FROM_POD};
	int answer;

	set_end(&a.end[0], from);
	if (to)
		set_end(&a.end[1], to);
	answer = police(skb, s, p, &a);
	if (likely(answer == WEFT_ALLOW))
		return true;
	if (answer == WEFT_LATER) {
		if (from->guard.egress)
			skb->mark = (skb->mark & ~WEFT_MARK_MASK) | WEFT_MARK_UNDECIDED;
		*code = verdict(WEFT_STACK, TCX_NEXT);
	} else {
		*code = refuse(skb, p, &a, answer);
	}
	return false;
}

/*
 * pod_sends has what a pod sends. on_send is a constant: the pod's own transmission runs this, on the packet as the
 * host side would get it, that being skb->ifindex.
 */
static __always_inline int pod_sends(struct __sk_buff *skb, bool on_send)
{
	const struct weft_settings *s = get_settings();
	const struct weft_local *from, *to;
	const struct weft_remote *remote;
	struct weft_packet p;
	int code;

	if (!s)
		return verdict(WEFT_DROP_SETTINGS, TCX_DROP);
	if (skb->vlan_present || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return unknown_source(skb);
	from = get_local(&p.src);
	if (!from || from->ifindex != skb->ifindex || !mac_equal(&from->mac, &p.eth->src))
		return unknown_source(skb);
	unsign(skb, s);
	to = get_local(&p.dst);
	if (unlikely(guarded(from) || (to && guarded(to))) && !police_sent(skb, s, head(&p), from, to, &code))
		return code;
	if (s->tracked && track_hit(skb, &p))
		return verdict(WEFT_STACK_TRACKED, TCX_NEXT);
	if (to)
		return p.ttl > 1 ? deliver(skb, s, to, p.family, on_send) : verdict(WEFT_STACK_TTL, TCX_NEXT);
	remote = get_remote(&p.dst);
	if (remote)
		return p.ttl > 1 ? send_remote(skb, s, remote, &p) : verdict(WEFT_STACK_TTL, TCX_NEXT);
	return verdict(WEFT_STACK, TCX_NEXT);
}

/* from_pod is on the ingress of a veth pair's host side. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	return pod_sends(skb, false);
}

/* from_pod_netkit is on the pod's end of a netkit pair, whose verdicts have the same numbers. */
SEC("tc")
int from_pod_netkit(struct __sk_buff *skb)
{
	return pod_sends(skb, true);
}

/*
 * police_delivered asks about what the stack delivers to a pod. The packet may have been translated since from_pod, if
 * it came from a pod of this node, so that the sender is asked as well.
 */
static __always_inline bool police_delivered(struct __sk_buff *skb, const struct weft_settings *s,
					     const struct weft_header *p, int *code)
{
	const struct weft_local *from = get_local(&p->src), *to = get_local(&p->dst);
	struct weft_ask a = {.place = AT_TO_POD, .host = !skb->ingress_ifindex};
	int answer;

	*code = TCX_DROP;
	if (unlikely(is_marked(skb, WEFT_MARK_REJECT))) /* nobody answered the sender */
		return false;
	/* Masqueraded before it was decided about. What comes back to its own sender needs no decision. */
	if (unlikely(is_marked(skb, WEFT_MARK_UNDECIDED)) && !from && (!to || to->ifindex != skb->ingress_ifindex)) {
		*code = refuse_marked(skb, p, AT_TO_POD);
		return false;
	}
	if (from)
		set_end(&a.end[0], from);
	if (to)
		set_end(&a.end[1], to);
	if (likely(!((from && guarded(from)) || (to && guarded(to)))))
		return true;
	answer = police(skb, s, p, &a);
	if (likely(answer == WEFT_ALLOW))
		return true;
	*code = refuse(skb, p, &a, answer);
	return false;
}

/* to_pod has what the stack delivers to a pod, and what from_* redirect through its queue. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	const struct weft_settings *s = get_settings();
	struct weft_packet p;
	int code;

	if (!s || !from_stack(skb, s) || !ip_parse(skb, skb->protocol, ETH_LEN, &p))
		return TCX_NEXT;
	if (s->policed && !police_delivered(skb, s, head(&p), &code))
		return code;
	/* A reply to anybody else than a pod or a node passes the stack anyway. */
	if (s->tracked && (get_local(&p.src) || get_remote(&p.src)))
		track_note(skb, &p);
	return TCX_NEXT;
}
