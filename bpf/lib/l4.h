/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What policy knows of a packet behind its IP header: ports, or the type of an ICMP message, and what the packet
 * is to a connection. An IPv6 extension header other than a fragment's counts as a protocol without ports.
 */
#pragma once
#include "maps.h"
#include "stats.h"

#define IPPROTO_UDPLITE 136

#define TCP_FIN         0x01
#define TCP_SYN         0x02
#define TCP_RST         0x04
#define TCP_ACK         0x10

struct weft_l4 {
	__be16 sport;
	__be16 dport; /* of ICMP: type and code */
	__be16 echo;  /* identifier of an ICMP echo */
	__u8 proto;
	__u8 flags;
};

#define L4_OPENS  0x01 /* opens a connection: SYN without ACK, echo request */
#define L4_ENDS   0x02 /* FIN or RST */
#define L4_ECHO   0x04 /* echo request or reply */
#define L4_SILENT 0x08 /* opens no connection, even if it is allowed: RST, echo reply, ICMP error */
#define L4_ERROR  0x10 /* ICMP error: belongs to the flow that it quotes */
#define L4_EXEMPT 0x20 /* neighbour discovery */

/* The first bytes of every header that is known here. */
struct weft_l4_header {
	__be16 sport; /* of ICMP: type and code */
	__be16 dport;
	__be16 echo; /* of ICMP */
	__u8 rest[7];
	__u8 tcp; /* flags */
};
_Static_assert(__builtin_offsetof(struct weft_l4_header, tcp) == 13, "struct weft_l4_header");

/* l4_icmp fills in what an ICMP message of either version is. */
static __always_inline void l4_icmp(struct weft_l4 *l4, __be16 message, __be16 echo, __u8 ttl)
{
	__u8 type = bpf_ntohs(message) >> 8;

	l4->sport = 0;
	l4->dport = message;
	if (l4->proto == IPPROTO_ICMP) {
		if (type == 8)
			l4->flags = L4_ECHO | L4_OPENS;
		else if (type == 0)
			l4->flags = L4_ECHO | L4_SILENT;
		else if (type == 3 || type == 11 || type == 12)
			l4->flags = L4_ERROR | L4_SILENT;
	} else {
		if (type == 128)
			l4->flags = L4_ECHO | L4_OPENS;
		else if (type == 129)
			l4->flags = L4_ECHO | L4_SILENT;
		else if (type >= 1 && type <= 4)
			l4->flags = L4_ERROR | L4_SILENT;
		else if (type >= 133 && type <= 137 &&
			 ttl == 255) /* of this link, or a router would have forwarded it */
			l4->flags = L4_EXEMPT;
	}
	if (l4->flags & L4_ECHO)
		l4->echo = echo;
}

/* l4_parse reads the header of l4->proto at off. False: the packet is shorter than that. */
static __always_inline bool l4_parse(struct __sk_buff *skb, __u32 off, __u8 ttl, struct weft_l4 *l4)
{
	bool tcp = l4->proto == IPPROTO_TCP, icmp = l4->proto == IPPROTO_ICMP || l4->proto == IPPROTO_ICMPV6;
	const struct weft_l4_header *h = packet_start(skb) + (off & 0xff);
	struct weft_l4_header copy;

	if (!tcp && !icmp && l4->proto != IPPROTO_UDP && l4->proto != IPPROTO_SCTP && l4->proto != IPPROTO_UDPLITE)
		return true;
	if ((void *)(h + 1) > packet_end(skb)) {
		/* Shorter, or not in the first part of the buffer. All but TCP have eight bytes. */
		__builtin_memset(&copy, 0, sizeof(copy));
		if (bpf_skb_load_bytes(skb, off, &copy, 8) ||
		    (tcp && bpf_skb_load_bytes(skb, off, &copy, sizeof(copy))))
			return false;
		h = &copy;
	}
	if (icmp) {
		l4_icmp(l4, h->sport, h->echo, ttl);
		return true;
	}
	l4->sport = h->sport;
	l4->dport = h->dport;
	if (tcp) {
		if ((h->tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			l4->flags = L4_OPENS;
		else if (h->tcp & TCP_RST)
			l4->flags = L4_ENDS | L4_SILENT;
		else if (h->tcp & TCP_FIN)
			l4->flags = L4_ENDS;
	}
	return true;
}

/* A datagram of which parts are on their way. */
struct weft_datagram {
	struct weft_addr src;
	struct weft_addr dst;
	__u32 id;
	__u32 proto;
};

/* What its first part said. */
struct weft_first {
	struct weft_l4 l4;
	__u32 seen; /* ticks() */
};
#define FRAGMENT_SECONDS 30 /* as long as receivers wait for the rest */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WEFT_FRAGS_MAX);
	__type(key, struct weft_datagram);
	__type(value, struct weft_first);
} frags SEC(".maps");

/* l4_fragment is l4_read for a part of a datagram: the first one has the ports, the others are what the first was. */
static __noinline int l4_fragment(struct __sk_buff *skb, const struct weft_header *p, struct weft_l4 *l4)
{
	const struct weft_settings *s = get_settings();
	struct weft_datagram key = {};
	struct weft_fragment f = {};
	const struct weft_first *first;
	struct weft_first now = {};

	if (!s || !ip_fragment(skb, p, &f))
		return WEFT_DROP_NOT_IP;
	key.src = p->src;
	key.dst = p->dst;
	key.id = f.id;
	key.proto = f.proto;
	l4->proto = f.proto;
	if (!f.offset) {
		if (!l4_parse(skb, f.l4, p->ttl, l4))
			return WEFT_DROP_NOT_IP;
		now.l4 = *l4;
		now.seen = ticks();
		bpf_map_update_elem(&frags, &key, &now, BPF_ANY);
		return 0;
	}
	first = bpf_map_lookup_elem(&frags, &key);
	if (!first || ticks() - first->seen > FRAGMENT_SECONDS * s->second)
		return WEFT_DROP_FRAGMENT;
	*l4 = first->l4;
	return 0;
}

/* l4_read fills l4, which is zero. It returns why it cannot, or 0. */
__global int l4_read(struct __sk_buff *skb, const struct weft_header *p, struct weft_l4 *l4)
{
	if (!p || !l4)
		return WEFT_DROP_NOT_IP;
	if (unlikely(p->fragment))
		return l4_fragment(skb, p, l4);
	l4->proto = p->proto;
	return l4_parse(skb, p->l4, p->ttl, l4) ? 0 : WEFT_DROP_NOT_IP;
}
