/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What becomes of a packet that policy does not let pass: it is counted, recorded, and dropped or rejected. */
#pragma once
#include "conn.h"

/*
 * refuse ends a packet to which police() gave another answer than WEFT_ALLOW and WEFT_LATER. A rejected one goes to the
 * stack with a mark on which its table answers the sender. At the end of the way through the stack it is too late for
 * that: it is dropped.
 */
__global int refuse(struct __sk_buff *skb, const struct weft_header *p, const struct weft_ask *a, int answer)
{
	const struct weft_settings *s = get_settings();
	bool loud;
	__u8 why;

	if (!s || !p || !a)
		return TCX_DROP;
	why = a->ruling.why;
	loud = answer == WEFT_DENY_LOUD && a->place != AT_TO_POD && a->place != AT_TO_NET;

	if (a->place == AT_NODE)
		why = WEFT_DENY_NODE;
	else if (loud)
		why = WEFT_REJECT;
	if (a->ruling.direction == WEFT_EGRESS)
		count_rule(a->ruling.rule[WEFT_EGRESS]);
	else
		count_rule(a->ruling.rule[WEFT_INGRESS]);
	record(p, &a->l4, a->ruling.direction, why, 0,
	       a->ruling.direction == WEFT_EGRESS ? a->ruling.rule[WEFT_EGRESS] : a->ruling.rule[WEFT_INGRESS],
	       skb->ifindex);
	if (a->place == AT_NODE) {
		skb->mark = (skb->mark & ~WEFT_MARK_MASK) | (loud ? WEFT_MARK_NODE_REJECT : WEFT_MARK_NODE);
		return verdict(why, TCX_NEXT);
	}
	if (loud) {
		skb->mark = (skb->mark & ~WEFT_MARK_MASK) | WEFT_MARK_REJECT;
		return verdict(why, TCX_NEXT);
	}
	return verdict(why, TCX_DROP);
}

/* is_marked says whether a program of ours left a packet to the stack with a mark. */
static __always_inline bool is_marked(const struct __sk_buff *skb, __u32 mark)
{
	return (skb->mark & WEFT_MARK_MASK) == mark;
}

/* refuse_marked is for a packet that must not leave the stack. */
static __noinline int refuse_marked(struct __sk_buff *skb, const struct weft_header *p, __u32 place)
{
	struct weft_ask a = {.place = place};

	a.l4.proto = p->proto;
	a.ruling.direction = WEFT_EGRESS;
	a.ruling.why = WEFT_DROP_UNDECIDED;
	return refuse(skb, p, &a, WEFT_DENY);
}

/* police_received asks about what arrives for a pod from another node, or was left to the stack on its way there. */
static __always_inline int police_received(struct __sk_buff *skb, const struct weft_settings *s,
					   const struct weft_header *p, const struct weft_local *to, struct weft_ask *a)
{
	a->place = AT_FROM_NET;
	set_end(&a->end[1], to);
	return police(skb, s, p, a);
}

/* routed_here says whether the host's routes keep here what goes to an address. */
static __noinline int routed_here(struct __sk_buff *skb, const struct weft_addr *addr, const struct weft_addr *other)
{
	struct bpf_fib_lookup fib = {.ifindex = skb->ifindex};
	long answer;

	ip_fib_ends(&fib, other, addr);
	answer = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return answer == BPF_FIB_LKUP_RET_NOT_FWDED || answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* is_own says whether the node has an address: it may have others than those of its underlay. other is the packet's
 * other end. */
static __always_inline bool is_own(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_addr *addr,
				   const struct weft_addr *other)
{
	return addr_equal(addr, &s->own[addr_index(addr)]) || routed_here(skb, addr, other);
}

/* to_group says whether a packet is sent to many on the link. */
static __always_inline bool to_group(struct __sk_buff *skb)
{
	__u8 first;

	return !bpf_skb_load_bytes(skb, 0, &first, sizeof(first)) && first & 1;
}

/* node_guard is what policy says of the node by the device of from_net and to_net. NULL: nothing. */
static __always_inline const struct weft_guard *node_guard(const struct __sk_buff *skb, const struct weft_settings *s)
{
	__u32 dev = skb->ifindex;

	if (likely(!s->others || dev == s->underlay))
		return &s->host;
	return bpf_map_lookup_elem(&devices, &dev);
}

/* node_guarded says whether policy has a say in the node's own traffic by a device. */
static __always_inline bool node_guarded(const struct weft_guard *own)
{
	return own && (own->ingress | own->egress);
}

/* is_infrastructure recognises what nodes have among themselves: tunnels, and measurements of paths. */
static __always_inline bool is_infrastructure(struct __sk_buff *skb, const struct weft_settings *s,
					      const struct weft_header *p)
{
	__be16 port[2];

	if (p->proto != IPPROTO_UDP || p->fragment || bpf_skb_load_bytes(skb, p->l4, port, sizeof(port)))
		return false;
	return (s->overlay && port[1] == s->port) || (s->probe && (port[0] == s->probe || port[1] == s->probe));
}

/*
 * police_node_in asks about what arrives for an address of the node. Whether it is for the node itself only the
 * stack can tell, after it has translated it: what is denied is marked and counted, and the stack's table stops it on
 * its way in.
 */
static __always_inline bool police_node_in(struct __sk_buff *skb, const struct weft_settings *s,
					   const struct weft_guard *own, const struct weft_header *p)
{
	struct weft_ask a = {.place = AT_NODE};
	int answer;

	if (!is_own(skb, s, &p->dst, &p->src) || is_infrastructure(skb, s, p))
		return true;
	a.end[1].ifindex = NODE_IFINDEX;
	a.end[1].guard = *own;
	answer = police(skb, s, p, &a);
	if (likely(answer == WEFT_ALLOW))
		return true;
	if (answer == WEFT_LATER) { /* of others: should nobody translate it, it is not for the node */
		skb->mark = (skb->mark & ~WEFT_MARK_MASK) | WEFT_MARK_NODE;
		return true;
	}
	refuse(skb, p, &a, answer);
	return false;
}

/* set_node makes the node itself the sender, of whatever address. What it forwards under its own address (masqueraded)
 * was decided about as a pod's. */
static __always_inline bool set_node(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_guard *own,
				     const struct weft_header *p, struct weft_ask *a)
{
	if (skb->ingress_ifindex ? !is_own(skb, s, &p->src, &p->dst)
				 : addr_is_local_business(&p->src) && to_group(skb)) /* MLD, DAD and the like */
		return false;
	if (is_infrastructure(skb, s, p))
		return false;
	a->end[0].ifindex = NODE_IFINDEX;
	if (skb->ingress_ifindex)
		a->through = 1; /* only noted, so that its replies are known */
	else
		a->end[0].guard = *own;
	return true;
}

/*
 * police_forwarded asks about what the stack sends to other nodes, if it is a pod's, which may have been translated
 * since from_pod, or the node's own, about which own has the say. True: it goes on.
 */
static __always_inline bool police_forwarded(struct __sk_buff *skb, const struct weft_settings *s,
					     const struct weft_guard *own, const struct weft_header *p,
					     const struct weft_local *from, int *code)
{
	struct weft_ask a = {.place = AT_TO_NET};
	int answer;

	*code = TCX_DROP;
	if (unlikely(is_marked(skb, WEFT_MARK_REJECT)))
		return false;
	if (!from) {
		if (unlikely(is_marked(skb, WEFT_MARK_UNDECIDED))) {
			*code = refuse_marked(skb, p, AT_TO_NET);
			return false;
		}
		if (likely(!node_guarded(own)) || !set_node(skb, s, own, p, &a))
			return true;
	} else {
		if (unlikely(is_marked(skb, WEFT_MARK_UNDECIDED))) /* decided now, before it is tunnelled */
			skb->mark &= ~WEFT_MARK_MASK;
		if (likely(!guarded(from)))
			return true;
		set_end(&a.end[0], from);
	}
	answer = police(skb, s, p, &a);
	if (likely(answer == WEFT_ALLOW))
		return true;
	*code = refuse(skb, p, &a, answer);
	return false;
}
