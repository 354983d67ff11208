/* SPDX-License-Identifier: GPL-2.0 */
/* Optional: the same verdict at the security hooks, where the kernel runs BPF there (CONFIG_BPF_LSM, lsm=…,bpf).
 *
 * A cgroup hook runs for the cgroup that a socket was made in; a security hook runs for whoever uses it. So a bottle's
 * process is held here also on a socket that it was handed from elsewhere, and in families that no cgroup hook sees.
 * Everyone else on the host passes at once. What is only to be reported is left to the cgroup hooks. Offsets come from
 * the kernel's BTF.
 */
#ifndef AM_LSM_H
#define AM_LSM_H

#include "am_hooks.h"
#include "am_origin.h"
#include "am_vouch.h"

#define AM_LSM_GO 0
#define AM_LSM_STOP -1 /* -EPERM */
#define AM_NETLINK_FAMILY 16
#define AM_UNSPEC 0 /* sendto takes it as IPv4 */

/* The 8 bytes at `from` + `offset`, read so that the verifier keeps what it knows of them: bcc turns every other reading
 * into a copy, after which a socket is only a number. */
#define AM_TYPED(to, from, offset) asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(to) : "r"(from), "i"(offset))

struct am_lsm_address {
	__u16 family;
	__u16 port_be;
	__u32 v4_be;
	__u32 v6_be[4];
};

/* Fills what is asked from the socket and the kernel's copy of the address; 1 when it is an inet address. */
static __always_inline int am_lsm_ask(struct am_query *q, void *sock, void *address, __u8 *type, int unspec_is_v4)
{
	struct am_lsm_address to = {};
	void *sk = 0, *net = 0;
	__u16 protocol = 0, socktype = 0;

	if (!address || bpf_probe_read_kernel(&to, sizeof(to), address))
		return 0;
	if (to.family == AM_UNSPEC && unspec_is_v4)
		to.family = AM_INET;
	if (to.family != AM_INET && to.family != AM_INET6)
		return 0;
	bpf_probe_read_kernel(&sk, sizeof(sk), sock + AM_SOCKET_SK);
	bpf_probe_read_kernel(&protocol, sizeof(protocol), sk + AM_SK_PROTOCOL);
	bpf_probe_read_kernel(&socktype, sizeof(socktype), sk + AM_SK_TYPE);
	bpf_probe_read_kernel(&net, sizeof(net), sk + AM_SK_NET);
	bpf_probe_read_kernel(&q->netns_cookie, 8, net + AM_NET_COOKIE);
	*type = socktype;
	q->port = bpf_ntohs(to.port_be);
	q->proto = protocol == AM_MPTCP ? AM_TCP : protocol;
	if (to.family == AM_INET) {
		q->addr_be[2] = bpf_htonl(0x0000ffff);
		q->addr_be[3] = to.v4_be;
	} else {
		q->addr_be[0] = to.v6_be[0];
		q->addr_be[1] = to.v6_be[1];
		q->addr_be[2] = to.v6_be[2];
		q->addr_be[3] = to.v6_be[3];
	}
	return 1;
}

static __always_inline int am_lsm_judge(__u64 *ctx, void *address, __u8 kind)
{
	void *sock, *sk;
	struct am_query q = {};
	struct am_event event = {};
	__u8 type = 0;
	int bypass;

	AM_TYPED(sock, ctx, 0);
	AM_TYPED(sk, sock, AM_SOCKET_SK);
	am_find_bottle(&q.bottle);
	if (!q.bottle.cgroup_id || !am_lsm_ask(&q, sock, address, &type, kind == AM_KIND_SEND))
		return AM_LSM_GO;
	am_decide(&q);
	if (q.verdict == AM_VERDICT_REFUSED && kind == AM_KIND_CONNECT && q.proto == AM_UDP &&
	    q.reason != AM_REASON_NETNS && am_is_sorting(&q))
		return AM_LSM_STOP;
	bypass = am_judge_vouch(sk, &q, 0);
	if (q.verdict != AM_VERDICT_REFUSED)
		return AM_LSM_GO; /* what is only to be reported the cgroup hook reports */
	am_begin(&event, &q.bottle, am_now(&q));
	event.rule = q.rule;
	event.port = q.port;
	event.proto = q.proto;
	event.kind = q.reason == AM_REASON_NETNS ? AM_KIND_ESCAPE : bypass ? AM_KIND_BYPASS : kind;
	event.guarded = bypass;
	event.verdict = q.verdict;
	event.reason = q.reason;
	event.family = am_is_mapped(q.addr_be) ? AM_INET : AM_INET6;
	event.socktype = type;
	__builtin_memcpy(event.addr, q.addr_be, 16);
	if (am_report(&event))
		am_attribute();
	return AM_LSM_STOP;
}

/* security_socket_connect(struct socket *sock, struct sockaddr *address, int addrlen) */
int lsm__socket_connect(__u64 *ctx)
{
	return am_lsm_judge(ctx, (void *)ctx[1], AM_KIND_CONNECT);
}

/* security_socket_sendmsg(struct socket *sock, struct msghdr *msg, int size); msg_name is msghdr's first member. */
int lsm__socket_sendmsg(__u64 *ctx)
{
	void *name = 0;

	bpf_probe_read_kernel(&name, sizeof(name), (void *)ctx[1]);
	return am_lsm_judge(ctx, name, AM_KIND_SEND);
}

/* security_socket_create(int family, int type, int protocol, int kern): inet sockets are sock_create's. */
int lsm__socket_create(__u64 *ctx)
{
	__u32 family = ctx[0];
	struct am_bottle bottle = {};
	struct am_event event = {};

	if (family == AM_UNIX_FAMILY || family == AM_INET || family == AM_INET6 || family == AM_NETLINK_FAMILY ||
	    ctx[3])
		return AM_LSM_GO;
	am_find_bottle(&bottle);
	if (!bottle.cgroup_id)
		return AM_LSM_GO;
	am_begin(&event, &bottle, bpf_ktime_get_boot_ns());
	event.kind = AM_KIND_SOCKET;
	event.verdict = AM_VERDICT_REFUSED;
	event.reason = AM_REASON_FAMILY;
	event.family = family;
	event.socktype = ctx[1];
	event.addr[0] = family; /* no destination: tells families apart */
	if (am_report(&event))
		am_attribute();
	return AM_LSM_STOP;
}

#endif
