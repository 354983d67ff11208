/* SPDX-License-Identifier: GPL-2.0 */
/* Unix sockets by path (unix connect, v6.7: "bpf: Add cgroup hooks for unix sockets"), where the policy limits them.
 *
 * Decided by the kernel's own copy of the address, which nobody can change any more: the hook's context is a
 * struct bpf_sock_addr_kern, and its offsets come from the kernel's BTF (ebpf/btf.py). Abstract names live in the
 * bottle's own network namespace and pass. What is compared is the text of the path: `..`, doubled slashes and relative
 * paths are refused, and a symbolic link is followed by the kernel after this (the launcher masks sockets that it
 * shows a bottle, see docs/design/ebpf.md).
 */
#ifndef AM_UNIX_H
#define AM_UNIX_H

#include "am_hooks.h"

#define AM_SUN_PATH 2 /* offset of sun_path in struct sockaddr_un */

/* The trie's answer for the `len` bytes of `key`'s path. After a cut only the bottle's own places are open. */
static __always_inline int am_unix_allows(struct am_unix_key *key, __u32 len, __u8 mode)
{
	struct am_unix_value *value;

	key->prefixlen = 32 + 8 * AM_PATH_LEN;
	value = am_unix.lookup(key);
	if (!value || value->bytes > len || (value->exact && value->bytes != len))
		return 0;
	return mode != AM_MODE_CUT || value->own;
}

/* Why no path is open at all, or AM_REASON_UNIX. A bottle below the parent that nobody has described yet is closed. */
static __always_inline __u8 am_unix_shut(const struct am_bottle *bottle)
{
	if (!bottle->cgroup_id)
		return AM_REASON_UNKNOWN;
	return bottle->mode == AM_MODE_CLOSED ? AM_REASON_CLOSED : AM_REASON_UNIX;
}

/* 1 where `a` and `b`, both below 256, are equal. Without a jump, and kept from clang's hands that would make one: with
 * jumps the verifier walks every spelling of a path, and gives up (clang 14, v6.18). */
static __always_inline __u32 am_same(__u32 a, __u32 b)
{
	__u32 x = a ^ b;

	asm volatile("" : "+r"(x));
	x = (x - 1) >> 31;
	asm volatile("" : "+r"(x));
	return x;
}

/* 1 where `a` is below `b`, both small. */
static __always_inline __u32 am_below(__u32 a, __u32 b)
{
	__u32 x = a - b;

	asm volatile("" : "+r"(x));
	return x >> 31;
}

/* The length of the path in the first `len` bytes of `path`, up to its first NUL; 0 for one that does not say what it
 * means: not absolute, or with `//`, `/./`, `/../` or a name that begins with `..`. `hash` tells paths apart. */
static __always_inline __u32 am_plain_length(const __u8 *path, __u32 len, __u64 *hash)
{
	__u32 length = 0, bad = 1 - am_same(path[0], '/'), open = 1, before = 0, last = 0, i;
	__u64 h = 14695981039346656037ULL; /* FNV-1a */

#pragma clang loop unroll(disable)
	for (i = 0; i < AM_PATH_LEN; i++) {
		__u32 c = path[i] * (open & am_below(i, len));
		__u32 slash = am_same(c, '/'), end = am_same(c, 0), dot = am_same(c, '.');

		bad |= open & am_same(last, '/') & slash;
		bad |= open & am_same(before, '/') & am_same(last, '.') & (slash | end | dot);
		open &= 1 - end;
		length += open;
		before = last;
		last = c;
		h = (h ^ c) * 1099511628211ULL;
	}
	*hash = h;
	return (1 - bad) * length;
}

#ifdef AM_ADDR_LEN /* as old as the hooks: v6.7, "bpf: Add cgroup hooks for unix sockets" and what precedes it */
static __always_inline int am_unix_impl(struct bpf_sock_addr *ctx, __u8 kind)
{
	struct am_bottle bottle = {};
	struct am_unix_key key = {};
	struct am_event event = {};
	struct am_pending *pending;
	void *address = 0;
	__u32 len = 0, plain;
	__u8 shut;
	int go;

	event.socktype =
		ctx->type; /* first: clang reuses `ctx + offset` below, from which the verifier lets nobody read */
	am_find_bottle(&bottle);
	shut = am_unix_shut(&bottle);
	if (shut == AM_REASON_UNIX && !(bottle.flags & AM_BOTTLE_UNIX))
		return AM_GO;
	bpf_probe_read_kernel(&address, sizeof(address), (void *)ctx + AM_ADDR_UADDR);
	bpf_probe_read_kernel(&len, sizeof(len), (void *)ctx + AM_ADDR_LEN);
	if (len <= AM_SUN_PATH)
		return AM_GO; /* no name: the kernel answers EINVAL */
	/* All of it, whatever the length: the kernel's copy is a struct sockaddr_storage. */
	bpf_probe_read_kernel(key.path, AM_PATH_LEN, address + AM_SUN_PATH);
	if (!key.path[0])
		return AM_GO; /* abstract */
	key.policy_id = bottle.policy_id;
	plain = am_plain_length(key.path, len - AM_SUN_PATH, (__u64 *)event.addr);
	if (shut == AM_REASON_UNIX && plain && am_unix_allows(&key, plain, bottle.mode))
		return AM_GO;
	go = bottle.mode == AM_MODE_OBSERVE;
	am_begin(&event, &bottle, bpf_ktime_get_boot_ns());
	event.kind = kind;
	event.verdict = go ? AM_VERDICT_OBSERVED : AM_VERDICT_REFUSED;
	event.reason = shut;
	event.family = AM_UNIX_FAMILY;
	pending = am_report(&event);
	if (pending) {
		pending->path_len = len - AM_SUN_PATH;
		__builtin_memcpy(pending->path, key.path, AM_PATH_LEN);
	}
	return go ? AM_GO : AM_STOP;
}

int am_unix_connect(struct bpf_sock_addr *ctx)
{
	return am_unix_impl(ctx, AM_KIND_CONNECT);
}

int am_unix_sendmsg(struct bpf_sock_addr *ctx)
{
	return am_unix_impl(ctx, AM_KIND_SEND);
}
#endif

#endif
