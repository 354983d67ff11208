/* SPDX-License-Identifier: GPL-2.0 */
/* The verdict on one destination: predicates, then am_decide(), used by every address hook. No side effects.
 *
 * Order, first answer wins:
 *   unknown bottle · CLOSED · foreign namespace · service (in CUT only those that survive) · own loopback ·
 *   protected · CUT · deny · exact · host ranges · prefixes · default
 */
#ifndef AM_VERDICT_H
#define AM_VERDICT_H

#include "am_identity.h"

#define AM_TCP 6
#define AM_UDP 17
#define AM_MPTCP 262

/* What is asked: who, and to where. Lives on the stack of the hook. */
struct am_query {
	struct am_bottle bottle; /* all zero when unknown */
	__u64 netns_cookie;
	__u64 now_ns; /* 0 until am_now() */
	__u32 rule; /* out */
	__u16 port;
	__u8 proto;
	__u8 verdict; /* out, AM_VERDICT_ALLOWED … */
	__u8 reason; /* out, AM_REASON_* */
	__u8 exempt; /* out, 1: needs no vouching */
	__u8 pad0[6];
	__u32 addr_be[4]; /* IPv4 as ::ffff:a.b.c.d */
};

/* The predicates use | and & on purpose: without jumps the verifier has one path to walk instead of dozens. */
static __always_inline __u32 am_is_mapped(const __u32 *a)
{
	return !(a[0] | a[1] | (a[2] ^ bpf_htonl(0x0000ffff)));
}

/* 64:ff9b::/96, through which a NAT64 gateway reaches any IPv4 address (RFC 6052, 2.1). */
static __always_inline __u32 am_is_nat64(const __u32 *a)
{
	return !((a[0] ^ bpf_htonl(0x0064ff9b)) | a[1] | a[2]);
}

static __always_inline __u32 am_is_loopback(const __u32 *a)
{
	__u32 v6 = !(a[0] | a[1] | a[2] | (a[3] ^ bpf_htonl(1)));

	return v6 | (am_is_mapped(a) & (bpf_ntohl(a[3]) >> 24 == 127));
}

/* This network, loopback, link-local (169.254.169.254), multicast, reserved and broadcast, a cloud's wire server. */
static __always_inline __u32 am_is_protected4(__u32 v4)
{
	__u32 first = v4 >> 24;

	return (first == 0) | (first == 127) | (first >= 224) | (v4 >> 16 == 0xa9fe) | (v4 == 0xa83f8110);
}

static __always_inline __u32 am_is_protected(const __u32 *a)
{
	__u32 top = bpf_ntohl(a[0]) >> 16;
	__u32 low = !(a[0] | a[1] | a[2]); /* unspecified, loopback, IPv4-compatible */
	__u32 ec2 = !((a[0] ^ bpf_htonl(0xfd000ec2)) | a[1] | a[2] | (a[3] ^ bpf_htonl(0x254)));
	__u32 v4 = (am_is_mapped(a) | am_is_nat64(a)) & am_is_protected4(bpf_ntohl(a[3]));

	return v4 | low | ec2 | (top >> 8 == 0xff) | ((top & 0xffc0) == 0xfe80);
}

/* The first range that covers `port`, or NULL. */
static __always_inline struct am_range *am_find_range(struct am_ranges *ranges, __u16 port)
{
	__u32 i;

#pragma unroll
	for (i = 0; i < AM_RANGES; i++) {
		struct am_range *range = &ranges->range[i];

		if (i >= ranges->count)
			return 0;
		if (port >= range->lo && port <= range->hi)
			return range;
	}
	return 0;
}

/* CLOCK_BOOTTIME, read once a query and only where something ends or is reported: 25 ns, a tenth of a verdict. */
static __always_inline __u64 am_now(struct am_query *q)
{
	if (!q->now_ns)
		q->now_ns = bpf_ktime_get_boot_ns();
	return q->now_ns;
}

#define AM_IN_DENY 0
#define AM_IN_PREFIX 1

/* The rule of the longest prefix that covers address and port, outwards by `shorter`. 1 when there is one. */
static __always_inline int am_trie_has(struct am_query *q, int trie)
{
	struct am_prefix_key key = {.policy_id = q->bottle.policy_id, .proto = q->proto};
	int i;

	key.prefixlen = AM_PREFIX_BASE + 128;
	__builtin_memcpy(key.addr, q->addr_be, 16);
	for (i = 0; i < AM_NESTING; i++) {
		struct am_ranges *ranges = trie == AM_IN_DENY ? am_deny.lookup(&key) : am_prefix.lookup(&key);
		struct am_range *range;

		if (!ranges)
			return 0;
		range = am_find_range(ranges, q->port);
		if (range) {
			q->rule = range->rule;
			return 1;
		}
		if (!ranges->shorter)
			return 0;
		key.prefixlen = ranges->shorter;
	}
	return 0;
}

static __always_inline int am_host_allows(struct am_query *q, int *expired)
{
	struct am_host_key key = {.policy_id = q->bottle.policy_id, .proto = q->proto};
	struct am_ranges *ranges;
	struct am_range *range;

	__builtin_memcpy(key.addr, q->addr_be, 16);
	ranges = am_host.lookup(&key);
	if (!ranges)
		return 0;
	range = am_find_range(ranges, q->port);
	if (!range)
		return 0;
	if (range->expires_ns && range->expires_ns <= am_now(q)) {
		*expired = 1;
		return 0;
	}
	q->rule = range->rule;
	return 1;
}

static __always_inline struct am_exact_value *am_exact_of(const struct am_query *q)
{
	struct am_exact_key key = {.policy_id = q->bottle.policy_id, .port = q->port, .proto = q->proto};

	__builtin_memcpy(key.addr, q->addr_be, 16);
	return am_exact.lookup(&key);
}

static __always_inline void am_allow(struct am_query *q, __u8 reason)
{
	q->verdict = AM_VERDICT_ALLOWED;
	q->reason = reason;
}

static __always_inline void am_refuse(struct am_query *q, __u8 reason)
{
	q->verdict = AM_VERDICT_REFUSED;
	q->reason = reason;
}

/* What no policy opens: closed bottles, foreign namespaces, protected destinations. 1 when decided. */
static __always_inline int am_decide_fixed(struct am_query *q, const struct am_exact_value *exact)
{
	__u64 cookie = q->bottle.netns_cookie;

	if (!q->bottle.cgroup_id) {
		am_refuse(q, AM_REASON_UNKNOWN);
		return 1;
	}
	if (q->bottle.mode != AM_MODE_ENFORCE && q->bottle.mode != AM_MODE_OBSERVE && q->bottle.mode != AM_MODE_CUT) {
		am_refuse(q, AM_REASON_CLOSED);
		return 1;
	}
	if (cookie && cookie != q->netns_cookie) {
		am_refuse(q, AM_REASON_NETNS);
		return 1;
	}
	if (exact && (exact->flags & AM_EXACT_SERVICE)) {
		q->exempt = !!(exact->flags & AM_EXACT_UNVOUCHED);
		if (q->bottle.mode == AM_MODE_CUT && !(exact->flags & AM_EXACT_SURVIVES_CUT))
			am_refuse(q, AM_REASON_CUT);
		else
			am_allow(q, AM_REASON_SERVICE);
		return 1;
	}
	if (cookie && am_is_loopback(q->addr_be)) {
		am_allow(q, AM_REASON_LOOPBACK);
		return 1;
	}
	if (am_is_protected(q->addr_be)) {
		am_refuse(q, AM_REASON_PROTECTED);
		return 1;
	}
	return 0;
}

/* The allow rules, for TCP and UDP. */
static __always_inline void am_decide_allow(struct am_query *q, const struct am_exact_value *exact)
{
	int expired = 0;

	am_allow(q, AM_REASON_RULE);
	if (exact) {
		q->rule = exact->rule;
		if (!exact->expires_ns || exact->expires_ns > am_now(q))
			return;
		expired = 1;
	}
	if (!(q->bottle.flags & AM_BOTTLE_NO_HOST) && am_host_allows(q, &expired))
		return;
	if ((q->bottle.flags & AM_BOTTLE_PREFIX) && am_trie_has(q, AM_IN_PREFIX))
		return;
	am_refuse(q, expired ? AM_REASON_EXPIRED : AM_REASON_DEFAULT);
}

static __always_inline void am_decide(struct am_query *q)
{
	struct am_exact_value *exact = am_exact_of(q);

	q->rule = 0;
	if (am_decide_fixed(q, exact))
		return;
	if (q->bottle.mode == AM_MODE_CUT) {
		am_refuse(q, AM_REASON_CUT);
		return;
	}
	if ((q->bottle.flags & AM_BOTTLE_DENY) && am_trie_has(q, AM_IN_DENY)) {
		am_refuse(q, AM_REASON_DENY);
		return;
	}
	if (q->proto != AM_TCP && q->proto != AM_UDP)
		am_refuse(q, AM_REASON_FAMILY);
	else
		am_decide_allow(q, exact);
	if (q->verdict == AM_VERDICT_REFUSED && q->bottle.mode == AM_MODE_OBSERVE)
		q->verdict = AM_VERDICT_OBSERVED;
}

#endif
