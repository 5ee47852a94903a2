/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Records of packets: of those that policy does not let pass, and of those that a rule wants to be told of. */
#pragma once
#include "policy.h"

/* Counters are exact; of records, a CPU makes so many in a second and counts the others. */
struct weft_record {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	struct weft_addr src;
	struct weft_addr dst;
	__be16 sport;
	__be16 dport; /* of ICMP: type and code */
	__u8 proto;
	__u8 direction; /* enum weft_direction */
	__u8 reason;    /* of a denied one: enum weft_reason */
	__u8 answer;    /* enum weft_answer of the rules, for a rule that logs; 0: a denied packet */
	__u32 rule;     /* 0: none */
	__u32 ifindex;  /* of the device that it was seen on, or of the end that was asked about */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, WEFT_RING);
} records SEC(".maps");

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

/* begin_record makes room for a record, NULL: it is only counted. */
static __always_inline struct weft_record *begin_record(const struct weft_settings *s)
{
	__u32 zero = 0, now = ticks();
	struct weft_pace *pc = bpf_map_lookup_elem(&pace, &zero);
	struct weft_record *r;

	if (!pc)
		return NULL;
	if (now - pc->second >= s->second) {
		pc->second = now;
		pc->records = 0;
	}
	if (pc->records >= WEFT_RECORDS) {
		pc->lost++;
		return NULL;
	}
	pc->records++;
	r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);
	if (!r)
		pc->lost++;
	return r;
}

/* fill_record fills in the packet. It is a function of its own, so that the type is in the object's BTF. */
static __noinline int fill_record(struct weft_record *r, const struct weft_header *p, const struct weft_l4 *l4)
{
	r->time = bpf_ktime_get_ns();
	r->src = p->src;
	r->dst = p->dst;
	r->sport = l4->sport;
	r->dport = l4->dport;
	r->proto = l4->proto;
	return 0;
}

static __always_inline void record(const struct weft_header *p, const struct weft_l4 *l4, __u8 direction, __u8 reason,
				   __u8 answer, __u32 rule, __u32 ifindex)
{
	const struct weft_settings *s = get_settings();
	struct weft_record *r = s ? begin_record(s) : NULL;

	if (!r)
		return;
	fill_record(r, p, l4);
	r->direction = direction;
	r->reason = reason;
	r->answer = answer;
	r->rule = rule;
	r->ifindex = ifindex;
	bpf_ringbuf_submit(r, 0);
}
