/* SPDX-License-Identifier: GPL-2.0 */
/* Vouching: the guard inside a process registers it, and marks each socket it approved with the destination; the
 * address hooks compare. Both by setsockopt(2) on a level of our own, which these programs swallow.
 *
 * A vouch belongs to the socket: it goes over fork and descriptor passing, and ends with the socket. Being guarded
 * belongs to the process: forked children inherit it, exec ends it (am_process.h). What finds accidental and lazy
 * bypasses; native code that forges a vouch is held by the policy like everyone.
 */
#ifndef AM_VOUCH_H
#define AM_VOUCH_H

#include "am_verdict.h"

#define AM_PASS 1 /* setsockopt goes on: with optlen -1 the kernel's own handler is skipped and 0 returned */
#define AM_FAIL 0 /* EPERM */

static __always_inline int am_is_guarded(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return !!am_guarded.lookup(&tgid);
}

static __always_inline __u64 am_same16(const void *a, const void *b)
{
	const __u64 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]));
}

/* `subflows`: the hook may be asked about a subflow of MPTCP. A security hook never is, and may not ask. */
static __always_inline int am_is_vouched(struct bpf_sock *sk, const struct am_query *q, int subflows)
{
	struct am_vouches *vouches;
	int i;

	if (!sk)
		return 0;
	vouches = am_vouched.sk_storage_get(sk, 0, 0);
	if (!vouches && subflows) {
		/* MPTCP connects by a subflow; what the process holds, and vouched for, is the socket above it. */
		void *above = bpf_skc_to_mptcp_sock(sk);

		if (!above)
			return 0;
		vouches = am_vouched.sk_storage_get(above, 0, 0);
	}
	if (!vouches)
		return 0;
#pragma unroll
	for (i = 0; i < AM_VOUCHES; i++) {
		struct am_vouch *vouch = &vouches->vouch[i];

		if (vouch->proto == q->proto && vouch->port == q->port && am_same16(vouch->addr, q->addr_be))
			return 1;
	}
	return 0;
}

/* After am_decide(): turns what a guarded process did without a vouch into OBSERVED or, strict, REFUSED.
 * 1 when it was such a bypass, also of what the policy refuses. */
static __always_inline int am_judge_vouch(struct bpf_sock *sk, struct am_query *q, int subflows)
{
	if (!(q->bottle.flags & AM_BOTTLE_GUARD) || q->exempt || q->reason == AM_REASON_CLOSED ||
	    q->reason == AM_REASON_NETNS)
		return 0;
	if (!am_is_guarded() || am_is_vouched(sk, q, subflows))
		return 0;
	if (q->verdict == AM_VERDICT_REFUSED)
		return 1;
	if (q->bottle.flags & AM_BOTTLE_STRICT) {
		q->verdict = AM_VERDICT_REFUSED;
		q->reason = AM_REASON_UNVOUCHED;
	} else if (q->verdict == AM_VERDICT_ALLOWED) {
		q->verdict = AM_VERDICT_OBSERVED;
		q->reason = AM_REASON_UNVOUCHED;
	}
	return 1;
}

static __always_inline int am_register_impl(const struct am_register *value, const struct am_bottle *bottle)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct am_guarded *known = am_guarded.lookup(&tgid);
	struct am_guarded guarded = {};

	if (known)
		return known->token == value->token ? AM_PASS : AM_FAIL;
	guarded.token = value->token;
	guarded.since_ns = bpf_ktime_get_boot_ns();
	guarded.slot = bottle->slot;
	return am_guarded.update(&tgid, &guarded) ? AM_FAIL : AM_PASS;
}

static __always_inline int am_unregister_impl(const struct am_register *value)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct am_guarded *known = am_guarded.lookup(&tgid);

	if (!known || known->token != value->token)
		return AM_FAIL;
	am_guarded.delete(&tgid);
	return AM_PASS;
}

static __always_inline int am_vouch_impl(struct bpf_sock *sk, const struct am_vouch *value)
{
	struct am_vouches *vouches;
	__u32 slot;
	int i;

	if (!sk || !am_is_guarded())
		return AM_FAIL;
	vouches = am_vouched.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!vouches)
		return AM_FAIL;
#pragma unroll
	for (i = 0; i < AM_VOUCHES; i++) {
		struct am_vouch *vouch = &vouches->vouch[i];

		if (vouch->proto == value->proto && vouch->port == value->port && am_same16(vouch->addr, value->addr))
			return AM_PASS;
	}
	slot = vouches->next++ & (AM_VOUCHES - 1); /* the kernel holds the socket's lock around this hook */
	__builtin_memcpy(&vouches->vouch[slot], value, sizeof(*value));
	return AM_PASS;
}

static __always_inline int am_option_impl(struct bpf_sockopt *ctx, const struct am_bottle *bottle)
{
	void *value = ctx->optval, *end = ctx->optval_end;

	switch (ctx->optname) {
	case AM_SO_REGISTER:
		if (value + sizeof(struct am_register) > end)
			return AM_FAIL;
		return am_register_impl(value, bottle);
	case AM_SO_UNREGISTER:
		if (value + sizeof(struct am_register) > end)
			return AM_FAIL;
		return am_unregister_impl(value);
	case AM_SO_VOUCH:
		if (value + sizeof(struct am_vouch) > end)
			return AM_FAIL;
		return am_vouch_impl(ctx->sk, value);
	}
	return AM_FAIL;
}

int am_setsockopt(struct bpf_sockopt *ctx)
{
	struct am_bottle bottle = {};

	if (ctx->level != AM_SOL) {
		/* The kernel copied one page of a longer value: it is to take the caller's own. */
		if (ctx->optlen > 4096)
			ctx->optlen = 0;
		return AM_PASS;
	}
	am_find_bottle(&bottle);
	if (!bottle.cgroup_id || !(bottle.flags & AM_BOTTLE_GUARD))
		return AM_PASS; /* the kernel answers ENOPROTOOPT: no vouching here */
	if (am_option_impl(ctx, &bottle) == AM_FAIL)
		return AM_FAIL;
	ctx->optlen = -1;
	return AM_PASS;
}

#endif
