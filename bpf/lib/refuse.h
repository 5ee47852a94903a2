/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What becomes of a packet that policy does not let pass: it is counted, recorded, and dropped or rejected. */
#pragma once
#include "conn.h"

/* A record of a denied packet. Counters are exact; of records, a CPU makes so many in a second and counts the others.
 */
struct weft_denial {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	struct weft_addr src;
	struct weft_addr dst;
	__be16 sport;
	__be16 dport; /* of ICMP: type and code */
	__u8 proto;
	__u8 direction; /* enum weft_direction */
	__u8 reason;    /* enum weft_reason */
	__u8 pad;
	__u32 rule;    /* 0: none */
	__u32 ifindex; /* of the device that it was seen on */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, WEFT_RING);
} denials SEC(".maps");

struct weft_pace {
	__u32 second; /* ticks() at its beginning */
	__u32 records;
	__u64 lost;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct weft_pace);
} pace SEC(".maps");

/* A function of its own, so that the type is in the object's BTF. */
static __noinline int fill_denial(struct weft_denial *d, const struct __sk_buff *skb, const struct weft_header *p,
				  const struct weft_ask *a, __u8 reason)
{
	d->time = bpf_ktime_get_ns();
	d->src = p->src;
	d->dst = p->dst;
	d->sport = a->l4.sport;
	d->dport = a->l4.dport;
	d->proto = a->l4.proto;
	d->direction = a->ruling.direction;
	d->reason = reason;
	d->pad = 0;
	d->rule = a->ruling.direction == WEFT_EGRESS ? a->ruling.rule[WEFT_EGRESS] : a->ruling.rule[WEFT_INGRESS];
	d->ifindex = skb->ifindex;
	return 0;
}

static __always_inline void record(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_header *p,
				   const struct weft_ask *a, __u8 reason)
{
	__u32 zero = 0, now = ticks();
	struct weft_pace *pc = bpf_map_lookup_elem(&pace, &zero);
	struct weft_denial *d;

	if (!pc)
		return;
	if (now - pc->second >= s->second) {
		pc->second = now;
		pc->records = 0;
	}
	if (pc->records >= WEFT_RECORDS) {
		pc->lost++;
		return;
	}
	pc->records++;
	d = bpf_ringbuf_reserve(&denials, sizeof(*d), 0);
	if (!d) {
		pc->lost++;
		return;
	}
	fill_denial(d, skb, p, a, reason);
	bpf_ringbuf_submit(d, 0);
}

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

	if (loud)
		why = WEFT_REJECT;
	if (a->ruling.direction == WEFT_EGRESS)
		count_rule(a->ruling.rule[WEFT_EGRESS]);
	else
		count_rule(a->ruling.rule[WEFT_INGRESS]);
	record(skb, s, p, a, why);
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
static __always_inline int police_received(struct __sk_buff *skb, const struct weft_header *p,
					   const struct weft_local *to, struct weft_ask *a)
{
	a->place = AT_FROM_NET;
	set_end(&a->end[1], to);
	return police(skb, p, a);
}

/*
 * police_forwarded asks about what the stack sends to other nodes, if it is a pod's: it may have been translated since
 * from_pod. True: it goes on.
 */
static __always_inline bool police_forwarded(struct __sk_buff *skb, const struct weft_header *p,
					     const struct weft_local *from, int *code)
{
	struct weft_ask a = {.place = AT_TO_NET};
	int answer;

	*code = TCX_DROP;
	if (unlikely(is_marked(skb, WEFT_MARK_REJECT)))
		return false;
	if (!from) {
		if (likely(!is_marked(skb, WEFT_MARK_UNDECIDED)))
			return true;
		*code = refuse_marked(skb, p, AT_TO_NET);
		return false;
	}
	if (unlikely(is_marked(
		    skb, WEFT_MARK_UNDECIDED))) /* decided now, before it is tunnelled and its source another one */
		skb->mark &= ~WEFT_MARK_MASK;
	if (likely(!guarded(from)))
		return true;
	set_end(&a.end[0], from);
	answer = police(skb, p, &a);
	if (likely(answer == WEFT_ALLOW))
		return true;
	*code = refuse(skb, p, &a, answer);
	return false;
}
