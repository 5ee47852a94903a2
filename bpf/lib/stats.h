/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What became of packets: one counter for each reason, on each CPU. A packet that leaves the programs in any
 * way but "not for us" is counted once. Go reads the names out of the object's BTF: WEFT_DROP_SPOOF is drop_spoof.
 */
#pragma once
#include "kernel.h"

enum weft_reason {
	WEFT_LOCAL,           /* delivered to a pod of this node */
	WEFT_DIRECT,          /* sent to another node as it is */
	WEFT_TUNNEL,          /* sent to another node in VXLAN, header pushed by us */
	WEFT_TUNNEL_DEVICE,   /* left to the VXLAN device: UDP GSO, or encapsulated before */
	WEFT_GATEWAY,         /* ARP or ND for the gateway, answered */
	WEFT_STACK,           /* left to the stack: no pod's address */
	WEFT_STACK_TTL,       /* left to the stack, which tells the sender: last hop */
	WEFT_STACK_MTU,       /* left to the stack, which tells the sender or fragments: too big for the path */
	WEFT_STACK_TRACKED,   /* left to the stack: it translated, or may have translated, the flow */
	WEFT_DROP_SPOOF,      /* a pod sent from an address or MAC that it does not have */
	WEFT_DROP_LINK_LOCAL, /* a pod's own link-local business: DAD, router solicitation, MLD, other ARP */
	WEFT_DROP_NOT_IP,     /* neither IP nor ARP, tagged, or shorter than its header */
	WEFT_DROP_VNI,        /* VXLAN with another network identifier */
	WEFT_DROP_PEER,       /* VXLAN from an address that is no node's */
	WEFT_DROP_NO_REMOTE,  /* the stack sent into the VXLAN device what no node has */
	WEFT_DROP_SETTINGS,   /* the agent has not written the settings yet */
	WEFT_DROP_POLICY,     /* a rule denies it */
	WEFT_DROP_CLOSED,     /* the pod's rules are not known yet */
	WEFT_DROP_FRAGMENT,   /* a part of a datagram whose first part, which has the ports, was not seen */
	WEFT_DROP_UNDECIDED, /* translated and masqueraded before policy was asked: nobody knows any more whose it is */
	WEFT_REJECT,         /* a rule rejects it: left to the stack, which tells the sender */
	WEFT_DENY_NODE, /* a rule denies it to the node itself: left to the stack, which lets it go to nobody but a pod
			 */
	WEFT_REASONS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WEFT_REASONS);
	__type(key, enum weft_reason);
	__type(value, __u64);
} stats SEC(".maps");

static __always_inline void count(enum weft_reason why)
{
	__u32 key = why;
	__u64 *n = bpf_map_lookup_elem(&stats, &key);

	if (n)
		(*n)++;
}

/* verdict counts a packet on its way out of a program. */
static __always_inline int verdict(enum weft_reason why, int code)
{
	count(why);
	return code;
}
