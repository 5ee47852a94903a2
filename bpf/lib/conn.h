/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Flows of pods under policy: whoever has been allowed, and what answers him, is not asked about again. police() is the
 * one question that the programs ask.
 */
#pragma once
#include "record.h"

/* A flow by its two ends, the same for both directions: sorted. */
struct weft_pair {
	struct weft_addr addr[2];
	__be16 port[2]; /* both the identifier of an ICMP echo; of other ICMP none and the type */
	__u32 proto;    /* with PAIR_ECHO */
};
#define PAIR_ECHO 0x100

struct weft_conn {
	__u32 generation[2]; /* of each end's set, when the flow was allowed; by the place in the pair */
	__u32 ifindex[2];    /* of each end that is a pod of this node, 0: it is not */
	__u32 last;          /* ticks() */
	__u32 flags;
};
#define CONN_SECOND    0x01 /* the second of the pair opened it */
#define CONN_CLOSING   0x02 /* FIN or RST was seen */
#define CONN_HOST      0x04 /* the node itself opened it */
#define CONN_UNDECIDED 0x08 /* to a service address: every packet is decided where it has been translated */
#define CONN_THROUGH   0x10 /* of others, under the node's own address: its replies are not for the node itself */
#define NOTE_REVERSE   0x80 /* of conn_note(): the destination opened it */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_LRU_HASH);
			__uint(max_entries, WEFT_CONNS_MAX);
			__inner(key, struct weft_pair);
			__inner(value, struct weft_conn);
		});
} conns SEC(".maps");

/* How long a flow is known after its last packet, in seconds. */
#define TCP_SECONDS     7200
#define CLOSING_SECONDS 10
#define UDP_SECONDS     60
#define OTHER_SECONDS   30

/* Addresses of services that the stack translates. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, WEFT_VIPS_MAX);
			__uint(map_flags, BPF_F_NO_PREALLOC);
			__inner(key, struct weft_addr);
			__type(value, __u32);
		});
} vips SEC(".maps");

/* Where a packet is asked about. */
enum weft_place {
	AT_FROM_POD, /* the sender's egress, and the ingress of a pod of the node */
	AT_FROM_NET, /* the receiver's ingress */
	AT_TO_POD,   /* both, of what the stack delivers */
	AT_TO_NET,   /* the sender's egress, of what the stack sends */
	AT_NODE,     /* the node's own ingress */
};

/* One end of a packet, for whom it is decided here. Zero: for him it is not. */
struct weft_end {
	__u32 ifindex;
	struct weft_guard guard;
};

/* The node's own end of a flow. No pod has the index of the loopback device. */
#define NODE_IFINDEX 1

/* Who decided, and with which version of his rules. */
struct weft_ruling {
	__u32 rule[2];       /* by enum weft_direction; 0: none */
	__u32 generation[2]; /* likewise */
	__u8 direction;      /* which one denies */
	__u8 why;            /* enum weft_reason, if denied */
	__u8 pad[2];
};

/* enum plan.Direction */
enum weft_direction {
	WEFT_INGRESS,
	WEFT_EGRESS,
};

/* What police() is asked, and what it found out. */
struct weft_ask {
	struct weft_end end[2]; /* source and destination */
	struct weft_l4 l4;
	struct weft_ruling ruling;
	struct weft_ruling other; /* the answer to the other direction */
	__u8 place;               /* enum weft_place */
	__u8 host;                /* 1: the node itself sent it */
	__u8 second;              /* the source's place in the pair */
	__u8 through;             /* 1: the node forwards it under its own address */
};

static __always_inline bool guarded(const struct weft_local *l)
{
	return l->guard.ingress | l->guard.egress;
}

static __always_inline void set_end(struct weft_end *end, const struct weft_local *l)
{
	end->ifindex = l->ifindex;
	end->guard = l->guard;
}

/* addr_after says whether a is after b, in any order that is always the same. */
static __always_inline bool addr_after(const struct weft_addr *a, const struct weft_addr *b)
{
	if (a->w[3] != b->w[3])
		return a->w[3] > b->w[3];
	if (a->w[2] != b->w[2])
		return a->w[2] > b->w[2];
	if (a->w[1] != b->w[1])
		return a->w[1] > b->w[1];
	return a->w[0] > b->w[0];
}

/* pair_make fills pair with the ends of a packet, and returns the source's place in it. */
static __always_inline __u8 pair_make(struct weft_pair *pair, const struct weft_addr *src, const struct weft_addr *dst,
				      const struct weft_l4 *l4)
{
	bool echo = l4->flags & L4_ECHO;
	__be16 sport = echo ? l4->echo : l4->sport, dport = echo ? l4->echo : l4->dport;

	pair->proto = l4->proto | (echo ? PAIR_ECHO : 0);
	if (addr_after(src, dst) || (addr_equal(src, dst) && sport > dport)) {
		pair->addr[0] = *dst;
		pair->addr[1] = *src;
		pair->port[0] = dport;
		pair->port[1] = sport;
		return 1;
	}
	pair->addr[0] = *src;
	pair->addr[1] = *dst;
	pair->port[0] = sport;
	pair->port[1] = dport;
	return 0;
}

static __always_inline bool conn_expired(const struct weft_settings *s, const struct weft_conn *conn, __u32 proto,
					 __u32 now)
{
	__u32 seconds = OTHER_SECONDS;

	if (proto == IPPROTO_TCP)
		seconds = conn->flags & CONN_CLOSING ? CLOSING_SECONDS : TCP_SECONDS;
	else if (proto == IPPROTO_UDP)
		seconds = UDP_SECONDS;
	return now - conn->last > seconds * s->second;
}

/* conn_seen notes a packet of a flow. The entry is shared by CPUs: it is written once a second, and when the flow ends.
 */
static __always_inline void conn_seen(const struct weft_settings *s, struct weft_conn *conn, const struct weft_l4 *l4,
				      __u32 now)
{
	if (now - conn->last >= s->second)
		conn->last = now;
	if (unlikely(l4->flags & L4_ENDS) && !(conn->flags & CONN_CLOSING))
		conn->flags |= CONN_CLOSING;
	if (unlikely(l4->flags & L4_OPENS) && conn->flags & CONN_CLOSING)
		conn->flags &= ~CONN_CLOSING;
}

/* conn_is_of says whether each end that is here is the pod that it was when the flow was allowed. */
static __always_inline bool conn_is_of(const struct weft_conn *conn, const struct weft_ask *a)
{
	return (!a->end[0].ifindex || conn->ifindex[a->second & 1] == a->end[0].ifindex) &&
	       (!a->end[1].ifindex || conn->ifindex[~a->second & 1] == a->end[1].ifindex);
}

/* set_is_same says whether a set is what it was when the flow was allowed. */
static __always_inline bool set_is_same(const struct weft_settings *s, __u32 set, __u32 generation)
{
	const struct weft_set *now;

	if (!set)
		return true;
	if (s->keep)
		return set != WEFT_SET_CLOSED;
	now = bpf_map_lookup_elem(&sets, &set);
	return now && now->generation == generation;
}

/* conn_stands says whether a flow that was allowed still is. */
static __always_inline bool conn_stands(const struct weft_settings *s, const struct weft_conn *conn,
					const struct weft_ask *a, bool opened)
{
	return set_is_same(s, opened ? a->end[0].guard.egress : a->end[0].guard.ingress,
			   conn->generation[a->second & 1]) &&
	       set_is_same(s, opened ? a->end[1].guard.ingress : a->end[1].guard.egress,
			   conn->generation[~a->second & 1]);
}

/* Bits of what ask() is asked. */
#define ASK_REVERSE 0x01 /* the destination opened the flow */
#define ASK_HOST    0x02 /* the node itself opened it */
#define ASK_QUIET   0x04

/* record_logged has a frame of its own, apart from the deepest chain of calls. */
static __noinline int record_logged(const struct weft_header *p, const struct weft_ask *a,
				    const struct weft_question *q, __u32 direction)
{
	__u32 ifindex = direction == WEFT_EGRESS ? a->end[0].ifindex : a->end[1].ifindex;

	record(p, &a->l4, direction, 0, q->answer, q->logged, ifindex);
	return 0;
}

/* ask_end asks one end's set. peer is the other end's address. */
__global int ask_end(const struct weft_header *p, const struct weft_ask *a, __u32 how, __u32 direction,
		     struct weft_ruling *r)
{
	/* Egress is asked of the opener, ingress of the other. */
	bool source = (direction == WEFT_EGRESS) == !(how & ASK_REVERSE);
	const struct weft_guard *guard;
	struct weft_question q = {};
	const struct weft_set *conf;
	__u32 set;

	if (!p || !a || !r)
		return WEFT_DENY;
	guard = source ? &a->end[0].guard : &a->end[1].guard;
	set = direction == WEFT_EGRESS ? guard->egress : guard->ingress;
	if (!set)
		return WEFT_ALLOW;
	r->direction = direction;
	r->why = WEFT_DROP_CLOSED;
	conf = bpf_map_lookup_elem(&sets, &set);
	if (!conf)
		return WEFT_DENY;
	/* Before the rules: if they change meanwhile, the flow is asked about again. */
	if (direction == WEFT_EGRESS)
		r->generation[WEFT_EGRESS] = *(volatile const __u32 *)&conf->generation;
	else
		r->generation[WEFT_INGRESS] = *(volatile const __u32 *)&conf->generation;
	if (direction == WEFT_INGRESS && how & ASK_HOST) {
		if (!(conf->flags & SET_HOSTS))
			return WEFT_ALLOW;
		q.wanted = RULE_HOSTS;
	}
	q.identity = source ? identity_of(&p->dst, a->end[1].guard.identity)
			    : identity_of(&p->src, a->end[0].guard.identity);
	q.proto = a->l4.proto;
	q.unwanted = addr_is_mapped(&p->src) ? RULE_IPV6 : RULE_IPV4;
	q.quiet = how & ASK_QUIET ? 1 : 0;
	if (!(how & ASK_REVERSE)) {
		q.sport = bpf_ntohs(a->l4.sport);
		q.dport = a->l4.dport;
	} else if (a->l4.flags & L4_ECHO) { /* the request, that this answers */
		q.dport = bpf_htons(a->l4.proto == IPPROTO_ICMP ? 8 << 8 : 128 << 8);
	} else {
		q.sport = bpf_ntohs(a->l4.dport);
		q.dport = a->l4.sport;
	}
	ask_set(set, &q);
	if (unlikely(q.logged) && !q.quiet)
		record_logged(p, a, &q, direction);
	if (direction == WEFT_EGRESS)
		r->rule[WEFT_EGRESS] = q.rule;
	else
		r->rule[WEFT_INGRESS] = q.rule;
	if (q.rule)
		r->why = WEFT_DROP_POLICY;
	return q.answer;
}

/* ask asks the egress of whoever opened the flow and the ingress of the other, as far as they are decided here. */
static __always_inline int ask(const struct weft_header *p, const struct weft_ask *a, __u32 how, struct weft_ruling *r)
{
	int answer = ask_end(p, a, how, WEFT_EGRESS, r);

	return answer == WEFT_ALLOW ? ask_end(p, a, how, WEFT_INGRESS, r) : answer;
}

/*
 * conn_note makes the entry of a flow, or makes an old one new. reverse: the destination opened it.
 */
static __noinline int conn_note(const struct weft_header *p, const struct weft_ask *a, const struct weft_ruling *r,
				struct weft_conn *old, __u32 flags)
{
	__u32 reverse = flags & NOTE_REVERSE;
	__u32 source = reverse ? r->generation[WEFT_INGRESS] : r->generation[WEFT_EGRESS];
	__u32 destination = reverse ? r->generation[WEFT_EGRESS] : r->generation[WEFT_INGRESS];
	struct weft_conn conn = {.last = ticks(), .flags = flags & ~NOTE_REVERSE};
	struct weft_pair pair = {};
	void *table = grown(&conns);

	if (pair_make(&pair, &p->src, &p->dst, &a->l4)) {
		conn.generation[0] = destination;
		conn.generation[1] = source;
		conn.ifindex[0] = a->end[1].ifindex;
		conn.ifindex[1] = a->end[0].ifindex;
	} else {
		conn.generation[0] = source;
		conn.generation[1] = destination;
		conn.ifindex[0] = a->end[0].ifindex;
		conn.ifindex[1] = a->end[1].ifindex;
	}
	if (!a->second != !reverse) /* the opener's place */
		conn.flags |= CONN_SECOND;
	if (a->l4.flags & L4_ENDS)
		conn.flags |= CONN_CLOSING;
	if (old)
		*old = conn;
	else if (table)
		bpf_map_update_elem(table, &pair, &conn, BPF_ANY);
	return 0;
}

/* is_service says whether the stack translates an address. */
static __always_inline bool is_service(const struct weft_addr *addr)
{
	void *table = grown(&vips);
	struct weft_addr key = *addr;

	return table && bpf_map_lookup_elem(table, &key);
}

/*
 * decide is for a packet of no flow that stands. old is the entry that is there, good or not; known: it tells who
 * opened the flow, of which only the rules have changed.
 */
__global int decide(const struct weft_header *p, struct weft_ask *a, struct weft_conn *old, __u32 known)
{
	const struct weft_settings *s = get_settings();
	bool tcp;
	__u32 how;
	int answer;

	if (!p || !a || !s)
		return WEFT_DENY;
	tcp = a->l4.proto == IPPROTO_TCP;
	how = a->host ? ASK_HOST : 0;
	if (a->place == AT_FROM_POD && s->tracked && !known && !a->end[1].ifindex && is_service(&p->dst)) {
		conn_note(p, a, &a->other, old, CONN_UNDECIDED);
		return WEFT_LATER;
	}
	if (known && old) {
		if ((old->flags & CONN_SECOND ? 1 : 0) != a->second)
			how |= ASK_REVERSE;
		if (old->flags & CONN_HOST)
			how |= ASK_HOST;
	}
	answer = ask(p, a, how, &a->ruling);
	/*
	 * Of a TCP connection that was open before policy came, or was forgotten, nobody knows who opened it. What
	 * answers a flow that is not allowed any more opens none: it would keep the flow alive.
	 */
	if (answer != WEFT_ALLOW && !known && tcp && !(a->l4.flags & L4_OPENS)) {
		how = (~how & ASK_REVERSE) | ASK_QUIET;
		if (ask(p, a, how, &a->other) == WEFT_ALLOW) {
			a->ruling = a->other;
			answer = WEFT_ALLOW;
		}
	}
	if (answer != WEFT_ALLOW)
		return answer;
	count_rule(a->ruling.rule[WEFT_EGRESS]);
	count_rule(a->ruling.rule[WEFT_INGRESS]);
	if (!(a->l4.flags & L4_SILENT) || known)
		conn_note(p, a, &a->ruling, old,
			  (how & ASK_REVERSE ? NOTE_REVERSE : 0) | (how & ASK_HOST ? CONN_HOST : 0) |
				  (a->through ? CONN_THROUGH : 0));
	return WEFT_ALLOW;
}

/* quotes_flow says whether an ICMP error is about a packet of a flow that its receiver sent, or that its receiver's pod
 * did. */
static __noinline int quotes_flow(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_header *p)
{
	struct weft_header quoted = {};
	const struct weft_conn *conn;
	struct weft_pair pair = {};
	struct weft_l4 l4 = {};
	void *table = grown(&conns);

	if (!table || !ip_quoted(skb, p->family, p->l4 + 8, &quoted) || !addr_equal(&quoted.src, &p->dst))
		return 0;
	l4.proto = quoted.proto;
	/* Eight bytes are quoted at least: no flags of TCP. */
	if (quoted.proto == IPPROTO_TCP) {
		__be16 port[2];

		if (bpf_skb_load_bytes(skb, quoted.l4, port, sizeof(port)))
			return 0;
		l4.sport = port[0];
		l4.dport = port[1];
	} else if (!l4_parse(skb, quoted.l4, 0, &l4)) {
		return 0;
	}
	pair_make(&pair, &quoted.src, &quoted.dst, &l4);
	conn = bpf_map_lookup_elem(table, &pair);
	return conn && !conn_expired(s, conn, pair.proto, ticks());
}

/* police_flow is police() for a packet whose ports are known. */
__global int police_flow(const struct weft_header *p, struct weft_ask *a)
{
	const struct weft_settings *s = get_settings();
	struct weft_conn *conn = NULL;
	struct weft_pair pair;
	__u32 now = ticks();
	bool known = false;
	void *table;

	if (!s || !p || !a)
		return WEFT_DENY;
	a->second = pair_make(&pair, &p->src, &p->dst, &a->l4);
	table = grown(&conns);
	if (table)
		conn = bpf_map_lookup_elem(table, &pair);
	if (conn && !conn_expired(s, conn, pair.proto, now) && conn_is_of(conn, a)) {
		bool opened = (conn->flags & CONN_SECOND) == a->second; /* by the source */

		if (unlikely(a->l4.flags & L4_OPENS) && !opened)
			return decide(p, a, conn, false);
		if (unlikely(conn->flags & (CONN_UNDECIDED | CONN_THROUGH))) {
			bool through = conn->flags & CONN_THROUGH;

			if (through && a->place != AT_NODE && !a->through) /* the node's own, later */
				return decide(p, a, conn, false);
			conn_seen(s, conn, &a->l4, now);
			if (through)
				return a->through ? WEFT_ALLOW : WEFT_LATER;
			if (a->place == AT_FROM_POD)
				return WEFT_LATER;
			if (a->place == AT_TO_POD && !opened)
				return WEFT_ALLOW; /* the answer, translated back */
			a->l4.flags |= L4_SILENT;  /* the entry stays as it is */
			return decide(p, a, NULL, false);
		}
		known = true;
		if (conn_stands(s, conn, a, opened)) {
			conn_seen(s, conn, &a->l4, now);
			return WEFT_ALLOW;
		}
	}
	return decide(p, a, conn, known);
}

/*
 * police says whether policy lets a packet pass, for the ends that the caller gave in a: WEFT_ALLOW, WEFT_LATER (a
 * service's), else what refuse() makes of it. It neither counts nor changes the packet.
 */
static __always_inline int police(struct __sk_buff *skb, const struct weft_settings *s, const struct weft_header *p,
				  struct weft_ask *a)
{
	int why = l4_read(skb, p, &a->l4);

	if (unlikely(why)) {
		a->ruling.why = why;
		return WEFT_DENY;
	}
	if (unlikely(a->l4.flags & (L4_EXEMPT | L4_ERROR))) {
		if (a->l4.flags & L4_EXEMPT || quotes_flow(skb, s, p))
			return WEFT_ALLOW;
	}
	/* Of the node's own stack, about what it did not deliver, or what it got. */
	if (unlikely((a->host || a->end[0].ifindex == NODE_IFINDEX) && a->l4.flags & L4_SILENT))
		return WEFT_ALLOW;
	return police_flow(p, a);
}
