/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The program on the node's network namespace. */
#include "lib/refuse.h"

/*
 * to_node sees for whom the stack looks for a socket of the node's: a connection's first segment, and each datagram. A
 * pod's packet to a service whose backend is the node itself passes no device after it was translated: it is decided
 * here, the sender's egress.
 */
SEC("sk_lookup")
int to_node(struct bpf_sk_lookup *ctx)
{
	const struct weft_settings *s = get_settings();
	struct weft_ask a = {.place = AT_TO_NET};
	const struct weft_local *from;
	struct weft_header p = {};

	if (!s || !s->policed || !ctx->ingress_ifindex)
		return SK_PASS;
	ip_lookup_ends(ctx, &p.src, &p.dst);
	from = get_local(&p.src);
	if (!from || !from->guard.egress || from->ifindex != ctx->ingress_ifindex)
		return SK_PASS;
	set_end(&a.end[0], from);
	p.proto = a.l4.proto = ctx->protocol;
	a.l4.sport = ctx->remote_port;
	a.l4.dport = bpf_htons(ctx->local_port);
	if (p.proto == IPPROTO_TCP)
		a.l4.flags = L4_OPENS;
	if (police_flow(&p, &a) == WEFT_ALLOW)
		return SK_PASS;
	count_rule(a.ruling.rule[WEFT_EGRESS]);
	record(&p, &a.l4, a.ruling.direction, a.ruling.why, 0, a.ruling.rule[WEFT_EGRESS], ctx->ingress_ifindex);
	return verdict(a.ruling.why, SK_DROP);
}
