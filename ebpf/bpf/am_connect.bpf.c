// SPDX-License-Identifier: GPL-2.0
/* Enforcement: connect4/6, sendmsg4/6 and sock_create on the parent cgroup of all bottles.
 *
 *   hook (thin, one per attach type) → am_address_impl → am_decide (am_verdict.h) → am_report (am_report.h)
 *
 * A hook returns AM_GO or AM_STOP; AM_STOP makes the system call fail with EPERM. UAPI types only: no kernel headers
 * and no BTF are needed. AF_UNSPEC (disconnect) never reaches a connect hook: inet_dgram_connect and
 * __inet_stream_connect act on it before (net/ipv4/af_inet.c); a sendmsg hook does see it, and decides by address.
 */
#include "am_report.h"
#include "am_verdict.h"

#define AM_STOP 0
#define AM_GO 1

#define AM_STREAM 1
#define AM_DGRAM 2
#define AM_INET 2
#define AM_INET6 10

/* Ports that resolvers put into the UDP connect with which they sort candidate addresses by source address
 * (RFC 6724): glibc without a service 0, Go's net 9, musl 65535. */
static __always_inline int am_is_sorting_port(__u16 port)
{
	return port == 0 || port == 9 || port == 65535;
}

/* Finds the bottle by the ancestor cgroup at the bottles' level, so that child cgroups change nothing.
 * An element freed under a reader may come back for another bottle before the copy is complete: the copy names its
 * key, and is taken again when it is not ours. */
static __always_inline void am_find_bottle(struct am_bottle *out)
{
	__u32 zero = 0;
	struct am_config *config = am_config.lookup(&zero);
	__u64 id;
	int i;

	if (!config)
		return;
	id = bpf_get_current_ancestor_cgroup_id(config->bottle_level);
	if (!id)
		return;
#pragma unroll
	for (i = 0; i < 3; i++) {
		struct am_bottle *bottle = am_bottle.lookup(&id);

		if (!bottle)
			return;
		__builtin_memcpy(out, bottle, sizeof(*out));
		if (out->cgroup_id == id)
			return;
		__builtin_memset(out, 0, sizeof(*out));
	}
}

static __always_inline int am_logs_allowed(void)
{
	__u32 zero = 0;
	struct am_config *config = am_config.lookup(&zero);

	return config && (config->flags & AM_CONFIG_LOG_ALLOWED);
}

/* A refused UDP connect that is only a resolver sorting addresses: by its port, or (glibc with a service) because
 * the same address and port are open by TCP. No data can follow, so nothing is lost but the report. */
static __always_inline int am_is_sorting(struct am_query *q)
{
	int expired = 0, sorting;

	if (am_is_sorting_port(q->port))
		return 1;
	q->proto = AM_TCP;
	sorting = am_exact_of(q) || am_host_allows(q, &expired);
	q->proto = AM_UDP;
	return sorting;
}

static __always_inline int am_address_impl(struct bpf_sock_addr *ctx, struct am_query *q, __u8 kind)
{
	struct am_event event = {};

	am_find_bottle(&q->bottle);
	q->port = bpf_ntohs((__u16)ctx->user_port);
	q->proto = ctx->protocol == AM_MPTCP ? AM_TCP : ctx->protocol;
	q->netns_cookie = bpf_get_netns_cookie(ctx);
	q->now_ns = bpf_ktime_get_boot_ns();
	am_decide(q);

	if (q->verdict == AM_VERDICT_ALLOWED) {
		if (!am_logs_allowed())
			return AM_GO;
	} else if (kind == AM_KIND_CONNECT && q->proto == AM_UDP && q->reason != AM_REASON_NETNS && am_is_sorting(q)) {
		return q->verdict == AM_VERDICT_REFUSED ? AM_STOP : AM_GO;
	}
	event.ts_ns = q->now_ns;
	event.cgroup_id = q->bottle.cgroup_id;
	event.slot = q->bottle.slot;
	event.epoch = q->bottle.epoch;
	event.rule = q->rule;
	event.port = q->port;
	event.proto = q->proto;
	event.kind = q->reason == AM_REASON_NETNS ? AM_KIND_ESCAPE : kind;
	event.verdict = q->verdict;
	event.reason = q->reason;
	event.family = am_is_mapped(q->addr_be) ? AM_INET : AM_INET6;
	event.socktype = ctx->type;
	__builtin_memcpy(event.addr, q->addr_be, 16);
	am_report(&event);
	return q->verdict == AM_VERDICT_REFUSED ? AM_STOP : AM_GO;
}

static __always_inline int am_address4(struct bpf_sock_addr *ctx, __u8 kind)
{
	struct am_query q = {};

	q.addr_be[2] = bpf_htonl(0x0000ffff);
	q.addr_be[3] = ctx->user_ip4;
	return am_address_impl(ctx, &q, kind);
}

static __always_inline int am_address6(struct bpf_sock_addr *ctx, __u8 kind)
{
	struct am_query q = {};

	q.addr_be[0] = ctx->user_ip6[0];
	q.addr_be[1] = ctx->user_ip6[1];
	q.addr_be[2] = ctx->user_ip6[2];
	q.addr_be[3] = ctx->user_ip6[3];
	return am_address_impl(ctx, &q, kind);
}

/* Only plain TCP and UDP: raw sockets write their own headers, ping sockets carry payload, the others (UDP-Lite,
 * SCTP, DCCP) are carried by no policy. MPTCP connects as TCP does. */
static __always_inline int am_socket_is_plain(struct bpf_sock *ctx)
{
	if (ctx->type == AM_STREAM)
		return ctx->protocol == AM_TCP || ctx->protocol == AM_MPTCP;
	return ctx->type == AM_DGRAM && ctx->protocol == AM_UDP;
}

static __always_inline int am_sock_create_impl(struct bpf_sock *ctx)
{
	struct am_bottle bottle = {};
	struct am_event event = {};

	if (am_socket_is_plain(ctx))
		return AM_GO;
	am_find_bottle(&bottle);
	event.ts_ns = bpf_ktime_get_boot_ns();
	event.cgroup_id = bottle.cgroup_id;
	event.slot = bottle.slot;
	event.epoch = bottle.epoch;
	event.proto = ctx->protocol;
	event.kind = AM_KIND_SOCKET;
	event.verdict = AM_VERDICT_REFUSED;
	event.reason = AM_REASON_FAMILY;
	event.family = ctx->family;
	event.socktype = ctx->type;
	am_report(&event);
	return AM_STOP;
}

int am_connect4(struct bpf_sock_addr *ctx)
{
	return am_address4(ctx, AM_KIND_CONNECT);
}

int am_connect6(struct bpf_sock_addr *ctx)
{
	return am_address6(ctx, AM_KIND_CONNECT);
}

int am_sendmsg4(struct bpf_sock_addr *ctx)
{
	return am_address4(ctx, AM_KIND_SEND);
}

int am_sendmsg6(struct bpf_sock_addr *ctx)
{
	return am_address6(ctx, AM_KIND_SEND);
}

int am_sock_create(struct bpf_sock *ctx)
{
	return am_sock_create_impl(ctx);
}
