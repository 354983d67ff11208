// SPDX-License-Identifier: GPL-2.0
/* The programs on the parent cgroup of all bottles. This file: connect4/6 and sendmsg4/6; the others are in am_socket.h
 * (making, binding), am_unix.h, am_vouch.h (setsockopt), am_process.h (fork, exec, exit), am_origin.h (attribution),
 * am_lsm.h (the same at security hooks).
 *
 *   hook (thin, one per attach type) → am_address_impl → am_decide (am_verdict.h) → am_judge_vouch (am_vouch.h)
 *                                                      → am_report (am_report.h) ⇢ the attribution of the same hook
 *
 * A hook returns AM_GO or AM_STOP; AM_STOP makes the system call fail with EPERM. UAPI types only: no kernel headers
 * are needed, and BTF only for the optional programs. AF_UNSPEC (disconnect) never reaches a connect hook: inet_dgram_connect and
 * __inet_stream_connect act on it before (net/ipv4/af_inet.c); a sendmsg hook does see it, and decides by address.
 */
#include "am_hooks.h"
#include "am_socket.h"
#include "am_vouch.h"
#ifdef AM_TASK_TGID /* the offsets of ebpf/btf.py: without them the optional programs are left out */
#include "am_unix.h"
#include "am_process.h"
#include "am_origin.h"
#ifdef AM_LSM /* this kernel takes programs for security hooks: 0.5 s of compiling where it does not */
#include "am_lsm.h"
#endif
#endif

static __always_inline int am_report_address(struct bpf_sock_addr *ctx, struct am_query *q, __u8 kind, int bypass)
{
	struct am_event event = {};

	am_begin(&event, &q->bottle, am_now(q));
	event.rule = q->rule;
	event.port = q->port;
	event.proto = q->proto;
	event.kind = q->reason == AM_REASON_NETNS ? AM_KIND_ESCAPE : bypass ? AM_KIND_BYPASS : kind;
	event.verdict = q->verdict;
	event.reason = q->reason;
	event.family = am_is_mapped(q->addr_be) ? AM_INET : AM_INET6;
	event.socktype = ctx->type;
	event.guarded = bypass;
	__builtin_memcpy(event.addr, q->addr_be, 16);
	/* A guarded process's UDP connect may be libc sorting addresses, which only the caller's place in libc tells (in
	 * user space); a real one to the same destination must not count as its repeat. */
	if (bypass && kind == AM_KIND_CONNECT && q->proto == AM_UDP)
		am_report_each(&event);
	else
		am_report(&event);
	return q->verdict == AM_VERDICT_REFUSED ? AM_STOP : AM_GO;
}

static __always_inline int am_address_impl(struct bpf_sock_addr *ctx, struct am_query *q, __u8 kind)
{
	int bypass;

	am_find_bottle(&q->bottle);
	q->port = bpf_ntohs((__u16)ctx->user_port);
	q->proto = ctx->protocol == AM_MPTCP ? AM_TCP : ctx->protocol;
	q->netns_cookie = q->bottle.netns_cookie ? bpf_get_netns_cookie(ctx) : 0;
	am_decide(q);

	if (q->verdict == AM_VERDICT_REFUSED && kind == AM_KIND_CONNECT && q->proto == AM_UDP &&
	    q->reason != AM_REASON_NETNS && am_is_sorting(q))
		return AM_STOP; /* silent; what OBSERVE lets pass can send, so that it is judged and told like any other */
	bypass = am_judge_vouch(ctx->sk, q, 1);
	if (q->verdict == AM_VERDICT_ALLOWED && !am_logs_allowed())
		return AM_GO;
	return am_report_address(ctx, q, kind, bypass);
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
