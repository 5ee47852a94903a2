/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Flows that the host's stack delivered, and so may have translated (host ports, kube-proxy). Their replies
 * must pass the stack as well, or they would arrive from an address that nobody has asked. Only looked at while
 * settings.tracked is 1. What has no ports to compare (fragments, ICMP errors) goes to the stack then.
 */
#pragma once
#include "maps.h"
#include "stats.h"

struct weft_flow {
	struct weft_addr src;
	struct weft_addr dst;
	__be16 sport;
	__be16 dport;
	__u32 proto;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WEFT_TRACK_MAX);
	__type(key, struct weft_flow);
	__type(value, __u32);
} track SEC(".maps");

/*
 * What a program redirects to a device passes that device's egress program, too, where it must not be taken for
 * the stack's: it has been decided about. The traffic class index, which only qdiscs of old read, bears a sign until
 * then.
 */
#define REDIRECTED 0x7765

/* watched says whether egress programs look at what the stack sends. */
static __always_inline bool watched(const struct weft_settings *s)
{
	return s->tracked | s->policed;
}

/* sign is for a packet that is about to be redirected to the egress of a device. */
static __always_inline void sign(struct __sk_buff *skb, const struct weft_settings *s)
{
	if (watched(s))
		skb->tc_index = REDIRECTED;
}

/* unsign takes off what is no sign of ours: a pod, or another node on this machine, may have put it there. */
static __always_inline void unsign(struct __sk_buff *skb, const struct weft_settings *s)
{
	if (watched(s) && unlikely(skb->tc_index == REDIRECTED))
		skb->tc_index = 0;
}

/* from_stack says in an egress program whether the stack sent the packet, and anybody wants to know. */
static __always_inline bool from_stack(struct __sk_buff *skb, const struct weft_settings *s)
{
	if (!watched(s))
		return false;
	if (skb->tc_index != REDIRECTED)
		return true;
	skb->tc_index = 0;
	return false;
}

/* has_ports says whether the stack could translate the protocol's ports, which lead its header. */
static __always_inline bool has_ports(const struct weft_packet *p)
{
	return p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP;
}

/* is_echo says whether an ICMP packet is no error: 8 and 0, and in ICMPv6 those with the high bit set. */
static __always_inline bool is_echo(struct __sk_buff *skb, const struct weft_packet *p)
{
	__u8 type;

	if (bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)))
		return false;
	return p->proto == IPPROTO_ICMPV6 ? type & 0x80 : p->proto == IPPROTO_ICMP && (type == 8 || type == 0);
}

/* track_note remembers that the reply to p must pass the stack. */
static __noinline int track_note(struct __sk_buff *skb, const struct weft_packet *p)
{
	struct weft_flow flow = {};
	__be16 ports[2];
	__u32 one = 1;

	if (p->fragment || !has_ports(p) || bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
		return 0;
	flow.src = p->dst;
	flow.dst = p->src;
	flow.sport = ports[1];
	flow.dport = ports[0];
	flow.proto = p->proto;
	if (!bpf_map_lookup_elem(&track, &flow))
		bpf_map_update_elem(&track, &flow, &one, BPF_ANY);
	return 0;
}

/*
 * track_hit says whether p must pass the stack: as the reply to a translated flow, or because its own reply would be
 * taken for one. A client may use one port for a pod's own address and for a host port of it; the stack
 * then gives one of the two flows another port.
 */
static __noinline int track_hit(struct __sk_buff *skb, const struct weft_packet *p)
{
	struct weft_flow flow = {}, reply = {};
	__be16 ports[2];

	if (p->fragment)
		return 1;
	if (!has_ports(p))
		return !is_echo(skb, p);
	if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
		return 1;
	flow.src = p->src;
	flow.dst = p->dst;
	flow.sport = ports[0];
	flow.dport = ports[1];
	flow.proto = p->proto;
	if (bpf_map_lookup_elem(&track, &flow))
		return 1;
	reply.src = p->dst;
	reply.dst = p->src;
	reply.sport = ports[1];
	reply.dport = ports[0];
	reply.proto = p->proto;
	return bpf_map_lookup_elem(&track, &reply) != NULL;
}
