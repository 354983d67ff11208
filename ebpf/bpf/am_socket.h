/* SPDX-License-Identifier: GPL-2.0 */
/* Making and binding inet sockets: sock_create, bind4/6, post_bind4/6. */
#ifndef AM_SOCKET_H
#define AM_SOCKET_H

#include "am_hooks.h"

/* Only plain TCP and UDP: raw sockets write their own headers, ping sockets carry payload, the others (UDP-Lite,
 * SCTP, DCCP) are carried by no policy. MPTCP connects as TCP does. */
static __always_inline int am_socket_is_plain(struct bpf_sock *ctx)
{
	if (ctx->type == AM_STREAM)
		return ctx->protocol == AM_TCP || ctx->protocol == AM_MPTCP;
	return ctx->type == AM_DGRAM && ctx->protocol == AM_UDP;
}

int am_sock_create(struct bpf_sock *ctx)
{
	struct am_bottle bottle = {};
	struct am_event event = {};

	if (am_socket_is_plain(ctx))
		return AM_GO;
	am_find_bottle(&bottle);
	am_begin(&event, &bottle, bpf_ktime_get_boot_ns());
	event.proto = ctx->protocol;
	event.kind = AM_KIND_SOCKET;
	event.verdict = AM_VERDICT_REFUSED;
	event.reason = AM_REASON_FAMILY;
	event.family = ctx->family;
	event.socktype = ctx->type;
	am_report(&event);
	return AM_STOP;
}

static __always_inline int am_may_listen(const struct am_bottle *bottle, __u8 proto, __u16 port)
{
	struct am_listen_key key = {.policy_id = bottle->policy_id, .proto = proto};
	struct am_ranges *ranges = am_listen.lookup(&key);

	return ranges && am_find_range(ranges, port);
}

/* Where the policy limits listening. A UDP socket may take an ephemeral port (clients do); a TCP socket that asks for
 * one is decided when it has it. listen(2) without bind(2) passes no hook: the packet layers hold inbound anyway. */
static __always_inline int am_bind_impl(struct am_event *event, __u16 port, int attributed)
{
	struct am_bottle bottle = {};
	int go;

	am_find_bottle(&bottle);
	if (!(bottle.flags & AM_BOTTLE_LISTEN) || am_may_listen(&bottle, event->proto, port))
		return AM_GO;
	go = bottle.mode == AM_MODE_OBSERVE;
	am_begin(event, &bottle, bpf_ktime_get_boot_ns());
	event->port = port;
	event->kind = AM_KIND_SOCKET;
	event->verdict = go ? AM_VERDICT_OBSERVED : AM_VERDICT_REFUSED;
	event->reason = AM_REASON_LISTEN;
	am_report_if_new(event, attributed);
	return go ? AM_GO : AM_STOP;
}

static __always_inline int am_bind_address(struct bpf_sock_addr *ctx, struct am_event *event)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);

	if (!port)
		return AM_GO;
	event->proto = ctx->protocol == AM_MPTCP ? AM_TCP : ctx->protocol;
	event->socktype = ctx->type;
	return am_bind_impl(event, port, 1);
}

int am_bind4(struct bpf_sock_addr *ctx)
{
	struct am_event event = {.family = AM_INET};

	event.addr[10] = event.addr[11] = 0xff;
	*(__u32 *)&event.addr[12] = ctx->user_ip4;
	return am_bind_address(ctx, &event);
}

int am_bind6(struct bpf_sock_addr *ctx)
{
	struct am_event event = {.family = AM_INET6};
	__u32 *addr = (__u32 *)event.addr;

	addr[0] = ctx->user_ip6[0];
	addr[1] = ctx->user_ip6[1];
	addr[2] = ctx->user_ip6[2];
	addr[3] = ctx->user_ip6[3];
	return am_bind_address(ctx, &event);
}

/* The port that a TCP socket got; for one named in bind(2) this says the same again. */
static __always_inline int am_bound(struct bpf_sock *ctx, struct am_event *event)
{
	if (ctx->type != AM_STREAM)
		return AM_GO;
	event->proto = AM_TCP;
	event->socktype = ctx->type;
	return am_bind_impl(event, ctx->src_port, 0); /* no attribution follows */
}

int am_post_bind4(struct bpf_sock *ctx)
{
	struct am_event event = {.family = AM_INET};

	event.addr[10] = event.addr[11] = 0xff;
	*(__u32 *)&event.addr[12] = ctx->src_ip4;
	return am_bound(ctx, &event);
}

int am_post_bind6(struct bpf_sock *ctx)
{
	struct am_event event = {.family = AM_INET6};
	__u32 *addr = (__u32 *)event.addr;

	addr[0] = ctx->src_ip6[0];
	addr[1] = ctx->src_ip6[1];
	addr[2] = ctx->src_ip6[2];
	addr[3] = ctx->src_ip6[3];
	return am_bound(ctx, &event);
}

#endif
